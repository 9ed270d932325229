"""Shared by the tests of sweeps: a sweep in a process of its own, and one that is killed at a step."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from pathlib import Path

from bigramlm.optim import base as optim
from bigramlm.optim.config import OptimConfig
from bigramlm.runs.folder import holder
from tests.helpers import Started, came_to, started, wait_for

SHORT = (
    *("data=bundled", "logger=none", "trainer.steps=20", "trainer.eval_every=10", "trainer.log_every=5"),
    *("trainer.eval_batches=2", "sample.max_new_tokens=20"),
)


def sweeping(folder: Path, *arguments: str) -> contextlib.AbstractContextManager[Started]:
    """Start a sweep in a process of its own, which is ended when the block is."""
    return started("-m", *arguments, f"hydra.sweep.dir={folder}")


def dies_in(nth: int, at: int) -> None:
    """Have this process killed at a step of the nth, from 0, of the jobs or trials that it trains."""
    rate, seen = optim.learning_rate, [0]

    def learning_rate(cfg: OptimConfig, step: int, steps: int) -> float:
        seen.append(step)
        begun = sum(later < earlier for earlier, later in itertools.pairwise(seen))
        if begun == nth and step >= at:
            os.kill(os.getpid(), signal.SIGKILL)
        return rate(cfg, step, steps)

    optim.learning_rate = learning_rate


def kill_when_it_came_to(job: Path, step: int) -> None:
    """Kill the process that trains in a folder, without a warning."""
    wait_for(lambda: came_to(job, step))
    pid = holder(job)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
