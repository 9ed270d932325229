"""Tests of the diagram of the import layers."""

import xml.etree.ElementTree as ET

import pytest

from bigramlm.dev.layers import FLOWS, LAYERS, modules, picture
from bigramlm.utils import paths


def test_diagram_is_up_to_date() -> None:
    written = (paths.home() / "docs" / "pictures" / "floors.svg").read_text("utf-8")
    assert written == picture(), "run `make docs`"


def test_diagram_contains_every_subpackage_and_module() -> None:
    shown = [element.text for element in ET.fromstring(picture()).iter("{http://www.w3.org/2000/svg}text")]
    for package in (name for layer in LAYERS for name in layer):
        assert {package, *modules(package)} <= {*shown}


@pytest.mark.parametrize("flow", FLOWS)
def test_flow_passes_existing_modules(flow: str) -> None:
    for stop in FLOWS[flow]:
        assert (paths.home() / "bigramlm" / f"{stop}.py").is_file(), stop
