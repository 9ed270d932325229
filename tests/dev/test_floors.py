"""The picture of the floors is that of the package as it is."""

import xml.etree.ElementTree as ET

import pytest

from bigramlm.dev.floors import FLOORS, ROADS, modules, picture
from bigramlm.utils import paths


def test_the_picture_is_current() -> None:
    written = (paths.home() / "docs" / "pictures" / "floors.svg").read_text("utf-8")
    assert written == picture(), "make docs writes it"


def test_the_picture_has_every_room_and_module() -> None:
    shown = [element.text for element in ET.fromstring(picture()).iter("{http://www.w3.org/2000/svg}text")]
    for room in (name for floor in FLOORS for name in floor):
        assert {room, *modules(room)} <= {*shown}


@pytest.mark.parametrize("road", ROADS)
def test_a_road_passes_modules_that_there_are(road: str) -> None:
    for stop in ROADS[road]:
        assert (paths.home() / "bigramlm" / f"{stop}.py").is_file(), stop
