"""Tests of the names of runs."""

import json
from pathlib import Path

import pytest

from bigramlm.config.overrides import Overrides
from bigramlm.runs.naming import MAX_LENGTH, default_name
from bigramlm.runs.summary import RunSummary
from tests.helpers import Cli, assert_refused

SHORT = ("data=bundled", "logger=none", "trainer.steps=5", "sample.max_new_tokens=5")


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ([], ""),
        (["optim.lr=1e-2", "model=gpt"], "gpt lr=0.01"),
        (["trainer.steps=10", "experiment=quick"], "quick steps=10"),
        (["data=text", "data.path=/home/me/a b.txt", "logger=wandb", "logger.project=x"], "data=text path=a b.txt"),
        (["model.dropout=0.1", "adapter.dropout=0.2"], "model.dropout=0.1 adapter.dropout=0.2"),
        (["seed=2", "device.compile=True", "note=why", "resume=latest"], "seed=2 compile=true"),
        (["sample.prompt=To be\x1b[31m"], "prompt=To be\\x1b[31m"),
    ],
)
def test_the_default_name_is_what_was_typed_shortened(typed: list[str], name: str) -> None:
    assert default_name(Overrides.typed(typed).values()) == name


def test_long_names_end_between_two_values() -> None:
    values = {f"optim.field{number}": "0.123" for number in range(20)}
    name = default_name(values)
    assert len(name) <= MAX_LENGTH
    assert name.endswith("field3=0.123 …")
    assert len(default_name({"sample.prompt": "x" * 500})) <= MAX_LENGTH


def test_name_and_note_are_not_part_of_what_a_run_is(cli: Cli, tmp_path: Path) -> None:
    sweep = f"hydra.sweep.dir={tmp_path / 'sweep'}"
    first = cli("-m", *SHORT, "seed=1,2", sweep, run_dir=False)
    assert first.code == 0, first.err
    again = cli("-m", *SHORT, "seed=1,2", "name=other", "note=why", f"sweep={tmp_path / 'sweep'}", run_dir=False)
    assert "2 done, 0 started, 0 not started" in again.err
    names = [RunSummary.read(tmp_path / "sweep" / job).label for job in "01"]
    assert names == ["0 seed=1", "1 seed=2"]
    third = cli("-m", *SHORT, "seed=3,4", "name=other", f"sweep={tmp_path / 'sweep'}", run_dir=False)
    assert third.code == 0
    assert RunSummary.read(tmp_path / "sweep" / "3").label == "3 other seed=4"


def test_a_resume_may_change_name_and_note(cli: Cli) -> None:
    run = cli(*SHORT, "name=a, first; try", "note=because x=1")
    assert run.code == 0, run.err
    found = RunSummary.read(run.folder)
    assert (found.label, found.note) == ("a, first; try", "because x=1")
    asked = found.summary["asked"]
    assert cli(f"resume={run.folder}", "trainer.steps=5", "note=y", run_dir=False).code == 2, "it is completed"
    assert RunSummary.read(run.folder).note == "because x=1"
    assert cli(f"resume={run.folder}", "trainer.steps=7", "note=later", run_dir=False).code == 0
    found = RunSummary.read(run.folder)
    assert (found.label, found.note) == ("a, first; try", "later")
    assert found.summary["asked"] is None is not asked, "the steps have changed"


def test_runs_of_earlier_versions_have_names(tmp_path: Path) -> None:
    for folder, overrides, name in (
        ("run", ["optim.lr=0.1", "model=gpt"], "gpt lr=0.1"),
        ("3", ["optim.lr=0.1", "seed=2"], "3 lr=0.1 seed=2"),
        ("none", [], "bigram"),
        ("damaged", 5, "bigram"),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "summary.json").write_text(json.dumps({"overrides": overrides, "name": 7}))
        (tmp_path / folder / "config.yaml").write_text("model:\n  name: bigram\n")
        assert RunSummary.read(tmp_path / folder).label == name


def test_an_empty_name_is_refused(cli: Cli) -> None:
    assert_refused(cli(*SHORT, "name="), "name=: the value is empty")
