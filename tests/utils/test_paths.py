"""Tests of paths as users type them."""

import unicodedata
from pathlib import Path

import pytest

from bigramlm.utils.paths import typed, typed_pattern
from tests.helpers import SHORT, command, refuses, summary


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


def test_an_empty_path_is_refused() -> None:
    with refuses("tokenizer.path=:", "empty"):
        typed("", "tokenizer.path")


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


@pytest.mark.parametrize("flags", [[], ["-m", "seed=1,2"]])
def test_paths_are_relative_to_where_they_were_typed(flags: list[str], folder: Path, tmp_path: Path) -> None:
    """With hydra.job.chdir=true, a job begins in its run folder."""
    (folder / "~a.txt").write_text("To be, or not to be, that is the question.\n" * 60, "utf-8")
    (folder / "my_loggers.py").write_text("SEEN = True\n", "utf-8")
    options = [option for option in SHORT if not option.startswith("data=")]
    run = tmp_path / "run"
    words = ["data=text", "data.path=~a.txt", "extensions=my_loggers.py", "hydra.job.chdir=true"]
    target = f"hydra.sweep.dir={run}" if flags else f"hydra.run.dir={run}"
    ended = command(*flags, *options, *words, target, cwd=folder)
    assert ended.code == 0, ended.err
    assert summary(run / "1" if flags else run)["status"] == "completed"
    if not flags:
        ended = command(f"resume={run}", "trainer.steps=9", "extensions=my_loggers.py", cwd=folder)
        assert ended.code == 0, ended.err


def test_a_name_with_accents_is_found_as_it_is_stored(folder: Path) -> None:
    typed_name, stored = (unicodedata.normalize(form, "Müller/é.txt") for form in ("NFC", "NFD"))
    assert typed(typed_name) == folder / typed_name
    (folder / stored).parent.mkdir()
    (folder / stored).touch()
    assert typed(typed_name) == folder / stored
    assert typed(stored) == folder / stored
    (folder / stored).with_name(unicodedata.normalize("NFC", "é.txt")).touch()
    assert typed(typed_name).name == unicodedata.normalize("NFC", "é.txt"), "the name that was typed comes first"
