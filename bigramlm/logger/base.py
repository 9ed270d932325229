"""The interface of loggers, and the description of a run for loggers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


class Logger(Protocol):
    """A destination of metrics.

    An error in a logger costs a warning, never the run.
    """

    def log(self, step: int, metrics: dict[str, float]) -> None: ...

    def text(self, step: int, name: str, text: str) -> None: ...

    def close(self, *, completed: bool) -> None: ...


@dataclass(frozen=True)
class LoggerContext:
    """The run that the metrics belong to."""

    folder: Path
    config: dict[str, Any]
    """The whole config as plain dictionaries, for loggers that show the config."""
    run_id: str
    """The id of the run, which stays the same when the run is resumed."""
    resumed_at: int | None = None
    """The step from which a resumed run resumes; None for a new run."""
    swept: dict[str, str] | None = None
    """The values of the swept fields, by field, for a job of a sweep; None for any other run. The job's folder is named
    by the job's number and is in the sweep's folder."""
