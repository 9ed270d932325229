"""Tests of the command `look`: where the page is written, and what is refused."""

import os
import shutil
from pathlib import Path

import pytest

from bigramlm.cli import look
from tests.helpers import SHORT, Cli, assert_refused, command


@pytest.fixture
def run(short_run: Path, tmp_path: Path) -> Path:
    """Return a copy of the folder of a short run, which a test may change."""
    return Path(shutil.copytree(short_run, tmp_path / "run"))


@pytest.fixture(scope="session")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a short run."""
    folder = tmp_path_factory.mktemp("short") / "run"
    ended = command(*SHORT, f"hydra.run.dir={folder}")
    assert ended.code == 0, ended.err
    return folder


def test_the_page_is_written_into_the_run_folder_and_replaced(run: Path, tool: Cli) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for prompt in ("The first passage", "the second"):
        ended = tool(look.main, f"run={run}", f"prompt={prompt}")
        assert ended.code == 0, ended.err
        assert f"Page: {run / 'look.html'}" in ended.out
    assert "has no attention" in ended.err
    assert {path: path.read_bytes() for path in before} == before, "nothing else changes"
    assert 'content="bigramlm look"' in (run / "look.html").read_text("utf-8")


def test_a_passage_from_a_file_goes_to_a_file_of_the_users_choice(run: Path, tool: Cli, tmp_path: Path) -> None:
    text = tmp_path / "passage.txt"
    text.write_text("A passage of a file\n" * 300, "utf-8")
    ended = tool(look.main, f"run={run}", f"text={text}", f"output={tmp_path / 'page.html'}", f"compare={run}")
    assert ended.code == 0, ended.err
    assert "of which the first 4,096 are shown" in (tmp_path / "page.html").read_text("utf-8")
    assert not (run / "look.html").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["prompt=a", "text=b.txt"], ["prompt=a text=b.txt", "cannot be combined"]),
        (["prompt=caf\u00e9"], ["caf\u00e9", "lacks '\u00e9'"]),
        (["text=nowhere.txt"], ["text=nowhere.txt", "no such file"]),
        (["text=."], ["text=.", "cannot be read"]),
        (["checkpoint=7"], ["checkpoint=7", "last, best"]),
        (["compare=nowhere"], ["nowhere", "does not exist"]),
        (["output=mine.html"], ["mine.html", "not overwritten"]),
        (["output=no/folder.html"], ["does not exist", "choose a different one"]),
        (["device.compile=true"], ["device.compile=true"]),
        (["promt=a"], ["promt", "prompt"]),
    ],
)
def test_bad_input_gives_one_line_and_changes_no_file(
    run: Path, tool: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], named: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.html").write_text("mine", "utf-8")
    assert_refused(tool(look.main, f"run={run}", *words), *named)
    assert Path("mine.html").read_text("utf-8") == "mine"
    assert not (run / "look.html").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows does not let every user make links")
def test_nothing_is_written_through_a_link_in_the_run_folder(run: Path, tool: Cli, tmp_path: Path) -> None:
    target = tmp_path / "target.html"
    target.write_text('<meta name="generator" content="bigramlm look">', "utf-8")
    before = target.read_bytes()
    (run / "look.html").symlink_to(target)
    assert_refused(tool(look.main, f"run={run}"), "look.html is a link", "output=")
    assert target.read_bytes() == before


def test_a_checkpoint_alone_needs_a_file_to_write(run: Path, tool: Cli, tmp_path: Path) -> None:
    alone = Path(shutil.move(run / "checkpoints" / "step_5", tmp_path / "step_5"))
    words = (f"run={alone}", "prompt=The")
    assert_refused(tool(look.main, *words), "output=look.html")
    ended = tool(look.main, *words, f"output={tmp_path / 'page.html'}")
    assert ended.code == 0, ended.err
    assert "belongs to no run" in ended.err
