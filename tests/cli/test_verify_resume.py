"""The verifier: killed and resumed runs are bit-equal, and it says where they part when a mistake is put in."""

import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest

from bigramlm.checkpoint.checkpoint import Checkpoint
from bigramlm.trainer.trainer import Trainer
from bigramlm.utils import paths
from tests.helpers import LINUX, PATIENCE, assert_refused, verified

SCRIPT = paths.home() / "scripts" / "verify_resume.py"


def killed_and_resumed(n: int, *overrides: str) -> int:
    """Kill n runs at random moments, find all of them bit-equal; returns how many were in the middle of a save."""
    done = verified("--kills", str(n), "data=bundled", "optim.grad_clip=0.5", "optim.warmup_steps=10", *overrides)
    assert done.code == 0, done.out + done.err
    found = re.fullmatch(rf"{n} of {n} bit-equal; (\d+) of them were killed in the middle of a save\n", done.out)
    assert found is not None, done.out
    return int(found[1])


@LINUX
def test_runs_killed_at_random_moments_and_resumed_are_bit_equal() -> None:
    killed_and_resumed(3, "trainer.steps=20")


@pytest.mark.slow
@LINUX
def test_fifty_runs_killed_at_random_moments_and_resumed_are_bit_equal() -> None:
    assert killed_and_resumed(50) > 0, "some of them in the middle of a save"


def test_the_verifier_is_a_script() -> None:
    command = [sys.executable, str(SCRIPT), "data=bundled", "trainer.steps=4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stdout) == (0, "bit-equal: 4 steps, and 2, a kill, and 2 more\n"), done.stderr


# Mistakes, each put into the command's process, from which the runs are forked.


def the_optimizer_starts_anew() -> None:
    mock.patch.object(Checkpoint, "restore", lambda checkpoint, model, *_: checkpoint.load_weights(model)).start()


class Anew:
    """Batches that are numbered from where they are gone on with."""

    def __init__(self, batches: Any, first: int) -> None:
        self.batches, self.first = batches, first

    def __getitem__(self, n: int) -> Any:
        return self.batches[n - self.first]


def the_batches_start_anew() -> None:
    taken = Trainer.start

    def start(trainer: Any, resume_from: Checkpoint | None, **rest: Any) -> None:
        taken(trainer, resume_from, **rest)
        if resume_from is not None:
            trainer.batches = Anew(trainer.batches, trainer.progress.step)

    mock.patch.object(Trainer, "start", start).start()


def records_stay_that_the_crash_came_after() -> None:
    mock.patch("bigramlm.logger.metrics.keep_before").start()


@LINUX
@pytest.mark.parametrize(
    ("mistake", "found"),
    [
        (the_optimizer_starts_anew, r"step 12: model\.safetensors: token_embedding_table\.weight"),
        (the_batches_start_anew, r"step 12: model\.safetensors: token_embedding_table\.weight"),
        (records_stay_that_the_crash_came_after, r"step \d+: the records .* step|2\d records"),
    ],
    ids=["optimizer", "batches", "records"],
)
def test_the_verifier_says_where_runs_part(mistake: Callable[[], None], found: str) -> None:
    """Each mistake is put in. The kill after step 10 finds a checkpoint of step 8, and records that are later."""
    every = ("trainer.checkpoint_every=4", "trainer.eval_every=4")
    done = verified("data=bundled", "trainer.steps=20", *every, setup=mistake)
    assert done.code == 1, done.out + done.err
    assert re.search(found, done.out), done.out


@LINUX
def test_the_kill_comes_at_the_middle_however_seldom_is_saved() -> None:
    done = verified("data=bundled", "trainer.checkpoint_every=1000", "trainer.eval_every=1000")
    assert (done.code, done.out) == (0, "bit-equal: 40 steps, and 20, a kill, and 20 more\n"), done.err


@pytest.mark.parametrize("argument", ["optim.lrr=1", "optim.lr=-1", "resume=latest", "trainer.steps=1"])
def test_what_the_verifier_cannot_run_is_one_line(argument: str) -> None:
    done = verified("data=bundled", argument)
    assert_refused(done, argument.partition("=")[0].removeprefix("optim.") if "lrr" in argument else argument)
    assert done.err.count("\n") == 1, "nothing else is said"
