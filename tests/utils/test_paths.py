"""Tests of paths as users type them."""

from pathlib import Path

import pytest

from bigramlm.utils.paths import typed, typed_pattern
from tests.helpers import refuses


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "my[p]" / "work"
    path.mkdir(parents=True)
    monkeypatch.chdir(path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return path


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.txt", "WORK/a.txt"),
        ("~draft.txt", "WORK/~draft.txt"),
        ("~nosuchuser/a.txt", "WORK/~nosuchuser/a.txt"),
        ("a~b", "WORK/a~b"),
        ("~", "HOME"),
        ("~/a.txt", "HOME/a.txt"),
        ("/etc/x", "/etc/x"),
        ("../x", "WORK/../x"),
    ],
)
def test_a_tilde_is_a_home_folder_only_where_there_is_one(path: str, expected: str, folder: Path) -> None:
    expected = expected.replace("WORK", str(folder)).replace("HOME", str(folder.parent.parent / "home"))
    assert str(typed(path, "data.path")) == expected


def test_a_file_with_a_tilde_precedes_a_home_folder(folder: Path) -> None:
    (folder / "~").mkdir()
    (folder / "~" / "a.txt").touch()
    assert typed("~/a.txt", "data.path") == folder / "~" / "a.txt"


@pytest.mark.parametrize("path", ["x" * 300, "x" * 300 + "/b", "\udcff.txt", "a\0b", "x/" * 3000])
def test_a_path_that_no_file_can_have_is_refused(path: str) -> None:
    for function in (typed, typed_pattern):
        with refuses(field="data.path=") as raised:
            function(path, "data.path")
        assert len(str(raised.value)) < 200


def test_the_pattern_is_what_was_typed(folder: Path) -> None:
    (folder / "sub[1]").mkdir()
    (folder / "sub[1]" / "a.txt").touch()
    prefix = str(folder).replace("[", "[[]")
    assert str(typed_pattern("*.txt", "data.path")) == f"{prefix}/*.txt"
    assert str(typed_pattern("sub[1]/*.txt", "data.path")) == f"{prefix}/sub[[]1]/*.txt"
    assert str(typed_pattern("sub[1-9]/*.txt", "data.path")) == f"{prefix}/sub[1-9]/*.txt"
    assert typed_pattern("sub[1]/a.txt", "data.path") == folder / "sub[1]" / "a.txt"
    again = str(typed_pattern("*.txt", "data.path"))
    assert str(typed_pattern(again, "data.path")) == again, "a saved pattern keeps its meaning"
