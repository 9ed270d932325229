"""Tests of runs whose files a power cut has damaged: they resume to the same bits."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import bigramlm
from bigramlm.cli import runs
from bigramlm.cli.verify_resume import compare
from bigramlm.config.run_config import load
from bigramlm.runs.folder import read_summary
from tests.helpers import SHORT, Cli, assert_refused, command, crashed_copy, resumed, summary

RUN = (
    *SHORT,
    "trainer.steps=20",
    "trainer.eval_every=5",
    "trainer.log_every=2",
    "trainer.keep_checkpoints=9",
    "seed=7",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an uninterrupted run of 20 steps."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = command(*RUN, f"hydra.run.dir={folder}")
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def crashed(whole: Path, tmp_path: Path) -> Path:
    """Return a copy of that run as a crash after step 10 leaves it."""
    return crashed_copy(whole, tmp_path / "run", 10)


EMPTIED: dict[str, Callable[[Path], object]] = {
    "emptied": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:80]),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", EMPTIED.values(), ids=EMPTIED)
def test_a_damaged_config_is_replaced_by_that_of_the_checkpoint(
    crashed: Path, whole: Path, cli: Cli, damage: Callable[[Path], object]
) -> None:
    saved = load(crashed / "config.yaml")
    damage(crashed / "config.yaml")
    ended = resumed(cli, crashed)
    assert ended.code == 0, ended.err
    (warning,) = (line for line in ended.err.splitlines() if "config.yaml" in line)
    assert "checkpoints/step_10/config.yaml" in warning
    assert compare(whole, crashed) is None
    assert load(crashed / "config.yaml") == saved
    assert "# typed: 'seed=7'\n" in (crashed / "config.yaml").read_text("utf-8")


def test_a_config_that_a_person_has_edited_is_kept(crashed: Path, cli: Cli) -> None:
    (crashed / "config.yaml").write_text("optim: [")
    assert resumed(cli, crashed).code == 0
    (kept,) = crashed.glob("damaged_config.yaml.*")
    assert kept.read_text() == "optim: ["


def test_without_a_config_anywhere_nothing_is_resumed(crashed: Path, cli: Cli) -> None:
    shutil.rmtree(crashed / "checkpoints")
    (crashed / "config.yaml").write_text("")
    assert_refused(resumed(cli, crashed), crashed / "config.yaml")


def test_weights_of_a_run_with_a_damaged_config_are_used(crashed: Path, cli: Cli) -> None:
    (crashed / "config.yaml").write_text("")
    ended = cli(*SHORT, f"init_from={crashed}", "trainer.steps=0")
    assert ended.code == 0, ended.err
    assert bigramlm.load(crashed).config.seed == 7


@pytest.mark.parametrize("damage", EMPTIED.values(), ids=EMPTIED)
def test_a_damaged_summary_is_rebuilt(crashed: Path, whole: Path, cli: Cli, damage: Callable[[Path], object]) -> None:
    damage(crashed / "summary.json")
    ended = resumed(cli, crashed)
    assert ended.code == 0, ended.err
    assert len([line for line in ended.err.splitlines() if "summary.json" in line]) == 1
    assert compare(whole, crashed) is None
    before, after = summary(whole), summary(crashed)
    same = ("id", "overrides", "asked", "data", "final", "step", "status", "n_params", "tokenizer")
    assert {name: after[name] for name in same} == {name: before[name] for name in same}


def test_a_changed_text_is_found_without_the_summary(tmp_path: Path, text_file: Path, cli: Cli) -> None:
    arguments = ("data=text", f"data.path={text_file}", "data.block_size=8", *SHORT[1:])
    run = cli(*arguments).folder
    text_file.write_text(text_file.read_text().upper())
    (run / "summary.json").write_text("")
    assert_refused(resumed(cli, run, "trainer.steps=6"), text_file, "SHA-256")


def test_the_rest_of_a_lock_file_keeps_nobody_out(crashed: Path, cli: Cli) -> None:
    for rest in ("", "\0\0\0", '{"started": "2026-'):
        (crashed / ".lock.json").write_text(rest)
        ended = resumed(cli, crashed, "trainer.steps=10")
        assert ended.code == 0, ended.err
        (crashed / "summary.json").write_text(json.dumps(summary(crashed) | {"status": "running"}))
    (crashed / ".lock.json").write_text("mine")
    assert_refused(resumed(cli, crashed), ".lock.json was not written by a run")
    assert (crashed / ".lock.json").read_text() == "mine"


def test_a_new_run_replaces_the_rest_of_a_summary_only(tmp_path: Path, cli: Cli) -> None:
    folder = tmp_path / "run1"
    folder.mkdir()
    (folder / "summary.json").write_text("")
    assert cli(*SHORT).code == 0
    assert summary(folder)["status"] == "completed"
    for content in ("[]", '{"mine": 1}'):
        other = tmp_path / "other"
        other.mkdir(exist_ok=True)
        (other / "summary.json").write_text(content)
        assert_refused(cli(*SHORT, f"hydra.run.dir={other}", run_dir=False), "summary.json was not written by a run")
        assert (other / "summary.json").read_text() == content


@pytest.mark.parametrize(("kept", "steps"), [(2, "steps 3 to 9"), (0, "steps 0 to 9"), (None, "steps 0 to 9")])
def test_lost_records_are_reported_once(crashed: Path, cli: Cli, kept: int | None, steps: str) -> None:
    path = crashed / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    if kept is None:
        path.unlink()
    else:
        path.write_bytes(b"".join(lines[:kept]) + lines[kept][:30])
    ended = resumed(cli, crashed, "trainer.steps=15")
    assert ended.code == 0, ended.err
    (warning,) = (line for line in ended.err.splitlines() if "metrics.jsonl" in line)
    assert steps in warning
    assert "metrics.jsonl" not in resumed(cli, crashed, "trainer.steps=20").err


# Entries of summary.json that no run writes, as JSON.
UNSOUND = [
    *('"resumed": 5', '"resumed": [5]', '"resumed": [{"step": "x", "overrides": []}]', '"overrides": {"a": 1}'),
    *('"overrides": [5, null]', '"data": 5', '"data": {"sha256": 5}', '"git": [1]', '"versions": "x"', '"error": [1]'),
    *('"status": ["a"]', '"id": null', '"started": 5', '"tokenizer": true', '"final": []', '"best": 1', '"asked": 5'),
]


@pytest.mark.parametrize("entry", UNSOUND)
def test_an_entry_of_another_type_is_ignored(
    crashed: Path, cli: Cli, tool: Cli, caplog: pytest.LogCaptureFixture, entry: str
) -> None:
    path = crashed / "summary.json"
    content = {**json.loads(path.read_text("utf-8")), "status": "failed", **json.loads(f"{{{entry}}}")}
    path.write_text(json.dumps(content), "utf-8")
    name = entry.split('"')[1]
    assert name not in (read_summary(crashed) or {})
    assert f"the type of {name} is not that of a run" in caplog.text
    for arguments in (("report", str(crashed)), ("diff", str(crashed), str(crashed))):
        done = tool(runs.main, *arguments)
        assert done.code == 0, done.err
    ended = resumed(cli, crashed)
    assert ended.code == 0, ended.err


def test_a_summary_keeps_what_is_no_text(crashed: Path, cli: Cli) -> None:
    """JSON can contain half of a character."""
    path = crashed / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), "id": "\ud800", "mine": ["\udfff"]}), "utf-8")
    ended = resumed(cli, crashed)
    assert ended.code == 0, ended.err
    assert summary(crashed)["mine"] == ["\udfff"]
