"""The interface of loggers, and what they are told of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


class Logger(Protocol):
    """A place for metrics. Whatever it raises costs a warning, never the run."""

    def log(self, step: int, metrics: dict[str, float]) -> None: ...

    def text(self, step: int, name: str, text: str) -> None: ...

    def close(self, *, completed: bool) -> None: ...


@dataclass(frozen=True)
class LoggerContext:
    """The run that metrics are of."""

    folder: Path
    config: dict[str, Any]
    """The whole config as plain dictionaries, for loggers that show it."""
    run_id: str
    """Stays the same when the run is resumed."""
    resumed_at: int | None = None
    """The step that a resumed run resumes from; None for a new run."""
    swept: dict[str, str] | None = None
    """The values that a job of a sweep has of what is swept, by field. Its folder is named by its number, in the
    sweep's. None for a run of no sweep."""
