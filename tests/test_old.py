"""Tests of folders written by earlier versions: load, sample, resume, continue."""

import json
import shutil
from pathlib import Path

import pytest

from bigramlm.checkpoint.checkpoint import Checkpoint
from bigramlm.cli import sample
from bigramlm.config.run_config import config_hash, config_hashes, load
from bigramlm.data.batches import Stream, on_device
from bigramlm.data.corpus import tokenized
from bigramlm.device.device import decide, set_up
from bigramlm.engine.load import load_model
from bigramlm.runs import find as runs
from bigramlm.runs.samples import read_samples
from bigramlm.sweeps.plan import Sweep
from bigramlm.trainer.evaluate import mean_loss
from bigramlm.utils import paths
from tests.helpers import Cli, resumed, run_config, summary, table, trials

OLD = paths.home() / "tests" / "old"
CHECKPOINTS = sorted(path.relative_to(OLD) for path in OLD.rglob("step_*") if path.is_dir())

# The overrides of the sweep and the search.
SHARED = (
    *("-m", "data=bundled", "trainer.eval_batches=10", "trainer.keep_checkpoints=1", "sample.max_new_tokens=50"),
    *("trainer.log_every=5", "logger=none", "trainer.steps=20", "trainer.eval_every=10", "trainer.checkpoint_every=10"),
)
SEARCHED = (*SHARED, "hydra/sweeper=optuna", "optim.lr=tag(log, interval(1e-3, 1e-1))")

# The final val losses of the same commands without an interruption.
WHOLE_RUN = 4.190813116184514
WHOLE_SWEEP = {
    ("0.001", "1"): 4.528323966878958,
    ("0.001", "2"): 4.339478030998129,
    ("0.01", "1"): 4.317135720261226,
    ("0.01", "2"): 4.132600546020438,
}
# Processors differ in rounding.
TOLERANCE = 1e-4


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Return a copy of the folders, at another path than the original."""
    shutil.copytree(OLD, tmp_path / "old")
    return tmp_path / "old"


@pytest.mark.parametrize("path", CHECKPOINTS, ids=str)
def test_a_loaded_checkpoint_has_its_saved_loss(old: Path, path: Path) -> None:
    checkpoint = Checkpoint(old / path)
    model, tokenizer, cfg = load_model(checkpoint)
    corpus = tokenized(cfg.data.read(), cfg.tokenizer, tokenizer, cfg.data.kept_in())
    device = set_up(decide(cfg.device, n_params=model.n_params(), tokens=1))
    val = Stream(on_device(corpus.ids["val"], device.torch), block_size=cfg.data.block_size)
    loss = mean_loss(model, val.blocks(limit=10 * cfg.data.batch_size), device)
    assert checkpoint.best["step"] == checkpoint.step
    assert loss == pytest.approx(checkpoint.best["val/loss"], rel=TOLERANCE)


@pytest.mark.parametrize("name", ["run", "adapter", "sweep/0", "search/1"])
def test_a_run_samples_the_same_text(old: Path, tool: Cli, name: str) -> None:
    seed = load(old / name / "config.yaml").seed
    ended = tool(sample.main, f"run={old / name}", "max_new_tokens=50", f"seed={seed}")
    assert ended.code == 0, ended.err
    assert read_samples(old / name)[-1][1].strip() in ended.out


def test_a_killed_run_resumes_to_the_loss_of_a_whole_run(old: Path, cli: Cli) -> None:
    found = runs.read_run(old / "killed")
    assert found is not None
    assert found.status == "killed"
    ended = resumed(cli, old / "killed")
    assert ended.code == 0, ended.err
    assert "step 20" in ended.err
    assert summary(old / "killed")["final"]["val/loss"] == pytest.approx(WHOLE_RUN, rel=TOLERANCE)  # type: ignore[index]
    records = [json.loads(line) for line in (old / "killed" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [record["step"] for record in records] == list(range(0, 41, 5))
    assert (old / "killed" / "checkpoints" / "step_20").is_dir(), "the adapter's base"


@pytest.mark.parametrize(("name", "steps"), [("run", 80), ("adapter", 30)])
def test_a_completed_run_resumes_with_more_steps(old: Path, cli: Cli, name: str, steps: int) -> None:
    before = summary(old / name)
    ended = resumed(cli, old / name, f"trainer.steps={steps}")
    assert ended.code == 0, ended.err
    after = summary(old / name)
    assert (after["step"], after["status"], after["id"]) == (steps, "completed", before["id"])
    assert after["final"]["val/loss"] < before["final"]["val/loss"]  # type: ignore[index]
    commands = [line for line in (old / name / "config.yaml").read_text("utf-8").splitlines() if line.startswith("# ")]
    assert "data=bundled" in commands[0]
    assert f"trainer.steps={steps}" in commands[-1]


def test_a_sweep_continues_with_the_remaining_jobs(old: Path, cli: Cli) -> None:
    done = {name: (old / "sweep" / name / "summary.json").read_bytes() for name in "01"}
    ended = cli(*SHARED, "optim.lr=1e-3,1e-2", "seed=1,2", f"sweep={old / 'sweep'}", run_dir=False)
    assert ended.code == 0, ended.err
    assert done == {name: (old / "sweep" / name / "summary.json").read_bytes() for name in done}
    assert "resumed" in summary(old / "sweep" / "2")
    found = {(row["optim.lr"], row["seed"]): float(row["val/loss"]) for row in table(old / "sweep")}
    assert found == pytest.approx(WHOLE_SWEEP, rel=TOLERANCE)
    # The jobs that ran now have another hash in their folder than in the plan: both hashes identify them.
    again = cli(*SHARED, "optim.lr=1e-3,1e-2", "seed=1,2", f"sweep={old / 'sweep'}", run_dir=False)
    assert again.code == 0, again.err
    assert "4 done, 0 started" in again.err
    assert len(table(old / "sweep")) == 4


def test_a_config_is_identified_by_its_old_hash(old: Path) -> None:
    for job in Sweep(old / "sweep").all_jobs():
        cfg = run_config(*job.overrides)
        assert job.asked in config_hashes(cfg)
        assert job.asked != config_hash(cfg)
        assert job.asked not in config_hashes(run_config(*job.overrides, "optim.weight_decay=0.5"))


def test_a_search_continues_with_its_study(old: Path, cli: Cli) -> None:
    done = {name: (old / "search" / name / "summary.json").read_bytes() for name in "01"}
    ended = cli(*SEARCHED, "hydra.sweeper.n_trials=3", f"sweep={old / 'search'}", run_dir=False)
    assert ended.code == 0, ended.err
    assert done == {name: (old / "search" / name / "summary.json").read_bytes() for name in done}
    found = trials(old / "search")
    assert [trial.user_attrs["job"] for trial in found] == [0, 1, 2]
    assert all(trial.value is not None for trial in found)


def test_a_new_run_starts_from_the_weights_of_an_old_run(old: Path, cli: Cli) -> None:
    ended = cli(f"init_from={old / 'killed'}", "data=bundled", "trainer.steps=2", "logger=none")
    assert ended.code == 0, ended.err


def test_the_folders_are_small() -> None:
    assert sum(path.stat().st_size for path in OLD.rglob("*") if path.is_file()) < 1_000_000
