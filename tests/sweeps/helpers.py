"""Helpers of the tests of sweeps: sweeps in other processes, and kills at a step."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from pathlib import Path

from bigramlm.optim.base import Schedule
from bigramlm.runs.folder import holder
from tests.helpers import Started, started, wait_for

SHORT = (
    *("data=bundled", "logger=none", "trainer.steps=20", "trainer.eval_every=10", "trainer.log_every=5"),
    *("trainer.eval_batches=2", "sample.max_new_tokens=20"),
)


def start_sweep(folder: Path, *arguments: str) -> contextlib.AbstractContextManager[Started]:
    """Start a sweep in another process, which ends with the block."""
    return started("-m", *arguments, f"hydra.sweep.dir={folder}")


def kill_this_process_at(job_index: int, kill_step: int) -> None:
    """Arrange that this process is killed at a step of one of its jobs.

    job_index: the index of the job, or trial, among those that this process trains.
    """
    original, seen_steps = Schedule.__call__, [0]

    def call(self: Schedule, step: int) -> float:
        seen_steps.append(step)
        current = sum(later < earlier for earlier, later in itertools.pairwise(seen_steps))
        if current == job_index and step >= kill_step:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, step)

    Schedule.__call__ = call  # type: ignore[method-assign]


def has_reached(job: Path, step: int) -> bool:
    """Check if a job has a checkpoint of a step or of a later step."""
    return any(int(path.name[5:]) >= step for path in job.glob("checkpoints/step_*"))


def kill_at_step(job: Path, step: int) -> None:
    """Kill the process that trains a job once the job has reached a step."""
    wait_for(lambda: has_reached(job, step))
    pid = holder(job)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
