"""Tests of power cuts: every state that one can leave ends well.

POWER_STATES is the number of states for each kind of command.
"""

import filecmp
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bigramlm.checkpoint.checkpoint import Checkpoint
from bigramlm.cli import prepare
from bigramlm.cli.verify_resume import compare
from bigramlm.errors import UserError
from bigramlm.utils import paths
from tests.helpers import assert_refused, command
from tests.power import can_trace, disk_after, states, trace

STATES = int(os.environ.get("POWER_STATES", "5"))
SHORT = (
    *("data=bundled", "trainer.steps=10", "trainer.eval_every=5", "trainer.log_every=2", "trainer.checkpoint_every=5"),
    *("trainer.eval_batches=2", "sample.max_new_tokens=20"),
)
SWEEP = ("-m", *SHORT, "logger=none", "seed=1,2")
SEARCH = (
    *("-m", *SHORT, "logger=none", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3"),
    "optim.lr=tag(log, interval(1e-3, 1e-1))",
)
TRAIN = "from bigramlm.cli import train; train.main()"
# Records its progress often.
PREPARE = (
    "from bigramlm.cli import prepare; from bigramlm.data import corpus, text; "
    "corpus.KEPT_EVERY, text.PIECE = 20_000, 5_000; prepare.main()"
)


def run_again(state: Path, whole: Path) -> None:
    """Resume a run, which may only be refused if no checkpoint is complete."""
    run = state / "run"
    ended = command(f"resume={run}")
    if ended.code != 0 and not any(is_complete(path) for path in run.glob("checkpoints/*step_*")):
        assert_refused(ended, run)
        return
    if ended.code != 0:
        assert_refused(ended, "already at step 10")
    assert compare(whole / "run", run) is None


def is_complete(checkpoint: Path) -> bool:
    try:
        Checkpoint(checkpoint)
    except UserError:
        return False
    return True


def sweep_again(state: Path, whole: Path, arguments: tuple[str, ...] = SWEEP) -> None:
    """Repeat the command of a sweep in the same folder."""
    sweep = state / "run"
    where = f"sweep={sweep}" if (sweep / "sweep.json").exists() else f"hydra.sweep.dir={sweep}"
    ended = command(*arguments, where)
    assert ended.code == 0, ended.err
    jobs, expected = (sorted(path.name for path in folder.glob("[0-9]")) for folder in (sweep, whole / "run"))
    assert jobs == expected
    for job in jobs:
        assert compare(whole / "run" / job, sweep / job) is None


def search_again(state: Path, whole: Path) -> None:
    sweep_again(state, whole, SEARCH)


def prepare_again(state: Path, whole: Path) -> None:
    """Repeat a preparation."""
    text = f"data.path={whole.parent / 'text.txt'}"
    ended = command(text, "tokenizer=char", f"output={state / 'run'}", main=prepare.main)
    assert ended.code == 0, ended.err
    names = ["train.bin", "val.bin", "tokenizer.json", "manifest.json"]
    assert filecmp.cmpfiles(whole / "run", state / "run", names, shallow=False)[0] == names


@pytest.mark.skipif(not can_trace(), reason="strace is not installed, or not permitted")
@pytest.mark.parametrize(
    ("code", "arguments", "again"),
    [
        pytest.param(TRAIN, [*SHORT, "logger=tensorboard", "hydra.run.dir={run}"], run_again, id="run"),
        pytest.param(PREPARE, ["data.path={text}", "tokenizer=char", "output={run}"], prepare_again, id="prepare"),
        pytest.param(TRAIN, [*SWEEP, "hydra.sweep.dir={run}"], sweep_again, id="sweep", marks=pytest.mark.slow),
        pytest.param(TRAIN, [*SEARCH, "hydra.sweep.dir={run}"], search_again, id="search", marks=pytest.mark.slow),
    ],
)
def test_every_state_after_a_power_cut_ends_well(
    tmp_path: Path, code: str, arguments: list[str], again: Callable[[Path, Path], None]
) -> None:
    whole, text = tmp_path / "whole", tmp_path / "text.txt"
    whole.mkdir()
    text.write_text(3 * paths.bundled_text().read_text("utf-8"), "utf-8")
    filled = [argument.format(run=whole / "run", text=text) for argument in arguments]
    calls = trace(whole, code, *filled, output=tmp_path / "strace")
    disk_after(calls, whole).write(tmp_path / "copy")
    assert_equal(tmp_path / "copy", whole)  # the trace is complete
    for state in states(calls, whole, tmp_path, n=STATES):
        again(state, whole)


def assert_equal(a: Path, b: Path) -> None:
    names, others = ({path.relative_to(folder): path for path in folder.rglob("*")} for folder in (a, b))
    assert names.keys() == others.keys()
    for name, path in names.items():
        assert path.is_dir() or path.read_bytes() == others[name].read_bytes(), name
