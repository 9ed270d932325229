"""Tests of the checkpoint that all jobs of a sweep start from."""

import json
from pathlib import Path
from typing import Any

import pytest

from bigramlm.checkpoint.format import MissingCheckpointError
from bigramlm.config.run_config import load
from bigramlm.sweeps.plan import Sweep
from bigramlm.sweeps.weights import StartingWeights
from tests.helpers import SHORT, Cli, assert_refused, refuses, resumed, summary

LONGER = ("trainer.steps=9", "trainer.keep_checkpoints=1", "trainer.eval_every=1")


@pytest.fixture
def base(cli: Cli) -> Path:
    """Return the folder of a completed run."""
    return cli(*SHORT, "trainer.steps=5").folder


def test_a_run_that_trains_on_changes_no_later_job(cli: Cli, base: Path, tmp_path: Path) -> None:
    words = ("-m", *SHORT, "trainer.steps=2", f"init_from={base}")
    first = cli(*words, "seed=1", f"hydra.sweep.dir={tmp_path / 'sweep'}", run_dir=False)
    assert first.code == 0, first.err
    longer = resumed(cli, base, *LONGER)
    assert longer.code == 0, longer.err
    second = cli(*words, "seed=1,2", f"sweep={tmp_path / 'sweep'}", run_dir=False)
    assert second.code == 0, second.err
    assert "1 done" in second.err
    starts = [load(tmp_path / "sweep" / job / "config.yaml").init_from for job in "01"]
    assert starts == [str(base / "checkpoints" / "step_5")] * 2
    assert str(tmp_path / "sweep") in (base / "checkpoints" / "step_5.kept").read_text("utf-8")


def test_a_sweep_of_an_earlier_version_is_continued(cli: Cli, base: Path, tmp_path: Path) -> None:
    words = ("-m", *SHORT, "trainer.steps=2", f"init_from={base}", "seed=1,2")
    first = cli(*words, f"hydra.sweep.dir={tmp_path / 'sweep'}", run_dir=False)
    assert first.code == 0, first.err
    # Earlier versions did not record the checkpoint: the jobs were planned with the run.
    single = cli(*SHORT, "trainer.steps=2", f"init_from={base}", "seed=1")
    plan: Any = json.loads((tmp_path / "sweep" / "sweep.json").read_text("utf-8"))
    plan["settled"] = {}
    for job, seed in zip(plan["jobs"], (1, 2), strict=True):
        job["overrides"] = [f"init_from={base}" if word.startswith("init_from") else word for word in job["overrides"]]
        found = summary(tmp_path / "sweep" / str(job["number"]))
        job["asked"] = found["asked"] = summary(single.folder)["asked"] if seed == 1 else "other"
        (tmp_path / "sweep" / str(job["number"]) / "summary.json").write_text(json.dumps(found))
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps(plan))
    again = cli("-m", *words[1:-1], "seed=1", f"sweep={tmp_path / 'sweep'}", run_dir=False)
    assert again.code == 0, again.err
    assert "1 done" in again.err


def test_a_refused_sweep_marks_no_checkpoint(cli: Cli, base: Path, tmp_path: Path) -> None:
    before = sorted(base.rglob("*"))
    assert_refused(cli("-m", *SHORT, f"init_from={base}", "seed=1,2", "optim.lr=-1"), field="optim.lr")
    assert sorted(base.rglob("*")) == before


def test_a_checkpoint_that_is_gone_is_refused(cli: Cli, base: Path, tmp_path: Path) -> None:
    weights = StartingWeights(Sweep(tmp_path))
    assert weights.settle(str(base)) == str(base / "checkpoints" / "step_5")
    assert weights.settle(str(tmp_path)) == str(tmp_path)
    assert resumed(cli, base, *LONGER).code == 0
    with pytest.raises(MissingCheckpointError, match="step_5"):
        weights.keep()


def test_a_checkpoint_of_another_run_in_the_plan_is_refused(base: Path, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    sweep.settled[f"init_from={base}"] = str(tmp_path / "theirs" / "checkpoints" / "step_5")
    with refuses(tmp_path / "theirs", "sweep.json", f"init_from={base}"):
        StartingWeights(sweep).settle(str(base))
