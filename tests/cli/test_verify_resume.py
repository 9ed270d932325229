"""Tests of `verify_resume`: resumed runs are bit-equal, and bugs are found."""

import functools
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from bigramlm.checkpoint.checkpoint import Checkpoint
from bigramlm.cli import verify_resume
from bigramlm.trainer.trainer import Trainer
from bigramlm.utils import paths
from tests.helpers import LINUX, SHORT, TIMEOUT, Cli, assert_refused, verified

SCRIPT = paths.home() / "scripts" / "verify_resume.py"


def check_random_kills(n: int, *overrides: str) -> int:
    """Check that n runs that are killed at random moments resume bit-equal.

    Returns the number of runs that were killed in the middle of a save.
    """
    done = verified("--kills", str(n), "data=bundled", "optim.grad_clip=0.5", "optim.warmup_steps=10", *overrides)
    assert done.code == 0, done.out + done.err
    found = re.fullmatch(rf"{n} of {n} runs bit-equal; (\d+) runs were killed in the middle of a save\n", done.out)
    assert found is not None, done.out
    return int(found[1])


@LINUX
def test_runs_killed_at_random_moments_resume_bit_equal() -> None:
    check_random_kills(3, "trainer.steps=20")


@pytest.mark.slow
@LINUX
def test_fifty_runs_killed_at_random_moments_resume_bit_equal() -> None:
    assert check_random_kills(50) > 0, "some kills must hit the middle of a save"


def test_the_verifier_runs_as_a_script() -> None:
    command = [sys.executable, str(SCRIPT), "data=bundled", "trainer.steps=4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert (done.returncode, done.stdout) == (
        0,
        "bit-equal: a run of 4 steps, and the same run killed at step 2 and resumed\n",
    ), done.stderr


def train_on_later(base: Path) -> None:
    """Arrange that a run saves its last checkpoint after the uninterrupted run."""
    original = verify_resume.load

    def load(path: Path) -> Any:
        if (base / "later").exists():
            (base / "later").rename(base / "step_5")
        return original(path)

    mock.patch.object(verify_resume, "load", load).start()


@LINUX
def test_all_runs_start_from_the_same_checkpoint_of_a_run_that_trains_on(cli: Cli) -> None:
    base = cli(*SHORT, "trainer.checkpoint_every=3", "trainer.keep_checkpoints=9").folder / "checkpoints"
    (base / "step_5").rename(base / "later")
    setup = functools.partial(train_on_later, base)
    done = verified("data=bundled", "trainer.steps=4", f"init_from={base.parent}", setup=setup)
    assert done.code == 0, done.out + done.err
    assert (base / "step_5").exists()


# Bugs that are patched into the process of the command, from which the runs are forked


def reset_optimizer() -> None:
    mock.patch.object(Checkpoint, "restore", lambda checkpoint, model, *_: checkpoint.load_weights(model)).start()


class Renumbered:
    """Batches that are numbered from the step of the resume instead of step 0."""

    def __init__(self, batches: Any, first: int) -> None:
        self.batches, self.first = batches, first

    def __getitem__(self, n: int) -> Any:
        return self.batches[n - self.first]


def reset_batches() -> None:
    original_start = Trainer.start

    def start(trainer: Any, resume_from: Checkpoint | None, **rest: Any) -> None:
        original_start(trainer, resume_from, **rest)
        if resume_from is not None:
            trainer.batches = Renumbered(trainer.batches, trainer.progress.step)

    mock.patch.object(Trainer, "start", start).start()


def keep_later_records() -> None:
    mock.patch("bigramlm.logger.metrics.keep_before").start()


@LINUX
@pytest.mark.parametrize(
    ("bug", "expected"),
    [
        (reset_optimizer, r"step 12: model\.safetensors: token_embedding_table\.weight"),
        (reset_batches, r"step 12: model\.safetensors: token_embedding_table\.weight"),
        (keep_later_records, r"step \d+: the records .* step|2\d records"),
    ],
    ids=["optimizer", "batches", "records"],
)
def test_the_first_difference_is_reported(bug: Callable[[], None], expected: str) -> None:
    """Check that each bug is found.

    The kill after step 10 leaves a checkpoint of step 8 and later records.
    """
    every = ("trainer.checkpoint_every=4", "trainer.eval_every=4")
    done = verified("data=bundled", "trainer.steps=20", *every, setup=bug)
    assert done.code == 1, done.out + done.err
    assert re.search(expected, done.out), done.out


@LINUX
def test_the_run_is_killed_halfway_even_without_a_save() -> None:
    done = verified("data=bundled", "trainer.checkpoint_every=1000", "trainer.eval_every=1000")
    assert (done.code, done.out) == (
        0,
        "bit-equal: a run of 40 steps, and the same run killed at step 20 and resumed\n",
    ), done.err


@pytest.mark.parametrize(
    "argument",
    ["resume=latest", "sweep=latest", "hydra.mode=MULTIRUN", "hydra.run.dir=x", "trainer.keep_checkpoints=1"],
)
def test_fields_that_the_command_sets_itself_are_refused(argument: str, tool: Cli) -> None:
    assert_refused(tool(verify_resume.main, "data=bundled", argument), argument, "omit")


def test_a_failure_does_not_advise_a_folder_that_is_deleted() -> None:
    done = verified("data=bundled", "trainer.steps=4", "optim.lr=1e30")
    assert_refused(done, "optim.lr=")
    assert "resume=" not in done.err


@pytest.mark.parametrize("argument", ["optim.lrr=1", "optim.lr=-1", "trainer.steps=1"])
def test_invalid_arguments_give_a_one_line_error(argument: str) -> None:
    done = verified("data=bundled", argument)
    assert_refused(done, argument.partition("=")[0].removeprefix("optim.") if "lrr" in argument else argument)
    assert done.err.count("\n") == 1, "the error is the only output"


def test_between_two_versions_only_a_new_field_of_the_records_is_no_difference(cli: Cli, tmp_path: Path) -> None:
    run = cli(*SHORT).folder
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    more = shutil.copytree(run, tmp_path / "more", symlinks=True)
    (more / "metrics.jsonl").write_text("".join(f'{{"new": 1, {line[1:]}\n' for line in lines), "utf-8")

    assert verify_resume.compare(run, more, may_add=True) is None
    assert verify_resume.compare(run, more) == "step 0: the records differ in new"
    assert str(verify_resume.compare(more, run, may_add=True)).endswith("the records differ in new")
