"""The checkpoint that all jobs of a sweep start from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bigramlm.config.overrides import Overrides
from bigramlm.errors import require
from bigramlm.runs.find import PLAN
from bigramlm.sweeps.plan import Sweep

if TYPE_CHECKING:
    from bigramlm.checkpoint.checkpoint import Checkpoint


class StartingWeights:
    """The initial weights of a sweep's jobs.

    A run stands for its newest checkpoint when the sweep first starts from it. The run may go on training, so the plan
    records which checkpoint that was.
    """

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self._opened: list[Checkpoint] = []

    def settle(self, init_from: str | None) -> str | None:
        """Return the `init_from` of all jobs for the requested one.

        A run is replaced by its checkpoint, unless jobs of an earlier version started from the run. Raises UserError if
        the run has no checkpoint.
        """
        if init_from is None or not (Path(init_from) / "checkpoints").is_dir():
            return init_from
        settled, key = self.sweep.settled, f"init_from={init_from}"
        if key not in settled:
            if any(Overrides(job.overrides).get("init_from") == init_from for job in self.sweep.jobs.values()):
                return init_from
            from bigramlm.engine.load import open_checkpoint  # slow: imports torch

            self._opened.append(open_checkpoint(init_from))
            self._opened[-1].reopen = None
            settled[key] = self._opened[-1].location
        location = settled[key]
        require(
            Path(location).parent.resolve() == (Path(init_from) / "checkpoints").resolve(),
            f"{self.sweep.folder / PLAN}: {location} is no checkpoint of {key}, which you typed; correct the plan, or "
            "start a new sweep in a different folder",
        )
        return location

    def keep(self) -> None:
        """Mark the checkpoints, so that their runs do not delete them.

        Raises MissingCheckpointError if a run has already deleted its checkpoint.
        """
        while self._opened:
            self._opened.pop().pin(
                f"The sweep in {self.sweep.folder} starts from this checkpoint. Delete this file when the sweep is "
                "completed.\n"
            )
