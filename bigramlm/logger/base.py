"""The logger interface, and the description of a run that loggers receive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Logger(Protocol):
    """A destination for metrics.

    If a method raises an exception, a warning is logged and the run continues without the logger.
    """

    def log(self, step: int, metrics: dict[str, float]) -> None: ...

    def text(self, step: int, name: str, text: str) -> None: ...

    def close(self, *, completed: bool) -> None: ...


@runtime_checkable
class HistogramLogger(Protocol):
    """A logger that also draws histograms."""

    def histograms(self, step: int, values: Mapping[str, NDArray[Any]]) -> None: ...


@dataclass(frozen=True)
class LoggerContext:
    """The run that the metrics belong to."""

    folder: Path
    config: dict[str, Any]
    """The whole config as plain dictionaries, for loggers that show the config."""
    run_id: str
    """The id of the run. A resumed run keeps its id."""
    resumed_at: int | None = None
    """The step at which a resumed run continues; None for a new run."""
    metrics_bytes: int | None = None
    """The length of metrics.jsonl at that step, in bytes; None if unknown."""
    swept: dict[str, str] | None = None
    """The values of the swept fields by field name if the run is a sweep job; None for any other run. The folder of a
    sweep job is named after the job number and is in the sweep folder."""
    name: str = ""
    """The name of the run."""
    note: str = ""
    """The note on the run; empty if there is none."""
