"""Metrics of a run, written to metrics.jsonl and sent to the chosen loggers."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigramlm.logger.base import HistogramLogger, Logger, LoggerContext
from bigramlm.logger.config import LOGGERS, LoggerConfig
from bigramlm.utils import documents, files

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The number of characters that no record reaches.
_MAX_LINE = 1 << 20

log = logging.getLogger(__name__)


class Metrics:
    """The metrics of a run, written to metrics.jsonl and to every logger.

    A crash may leave records of steps after the last checkpoint. A resumed run repeats these steps, so it first drops
    all records from the step at which it resumes onwards.
    """

    def __init__(self, cfg: LoggerConfig, context: LoggerContext) -> None:
        path = context.folder / "metrics.jsonl"
        if context.resumed_at is not None and path.exists():
            keep_before(context.resumed_at, path)
        self._jsonl = documents.open_own(path, "a")
        self._synced = 0
        if context.resumed_at is not None:
            files.sync(context.folder)  # in a new run, the first checkpoint does this
            _report_loss(path, context.resumed_at, context.metrics_bytes)
        self._loggers: dict[str, Logger] = {}
        for name in cfg.use:
            with self._guarded(name):
                self._loggers[name] = LOGGERS[name](cfg, context)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Close all loggers; an exception means that the run did not complete."""
        self.close(completed=kind is None)

    @property
    def length(self) -> int:
        """The length of metrics.jsonl in bytes."""
        return os.fstat(self._jsonl.fileno()).st_size

    def sync(self) -> None:
        """Sync metrics.jsonl to disk."""
        if self.length != self._synced:
            os.fsync(self._jsonl.fileno())
            self._synced = self.length

    def log(self, step: int, seconds: float, metrics: dict[str, float]) -> None:
        """Record the metrics of a step.

        seconds: the training time since the start of the run. metrics: the values by name.
        """
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}  # JSON has no NaN
        self._jsonl.write(json.dumps({"step": step, "seconds": round(seconds, 4), **finite}) + "\n")
        for name, logger in list(self._loggers.items()):
            with self._guarded(name):
                logger.log(step, metrics)

    def text(self, step: int, name: str, text: str) -> None:
        """Send a text, such as a sample, to the loggers."""
        for logger_name, logger in list(self._loggers.items()):
            with self._guarded(logger_name):
                logger.text(step, name, text)

    @property
    def draws_histograms(self) -> bool:
        """True if a logger draws histograms."""
        return any(isinstance(logger, HistogramLogger) for logger in self._loggers.values())

    def histograms(self, step: int, values: Mapping[str, NDArray[Any]]) -> None:
        """Send arrays of finite values, by name, to the loggers that draw histograms."""
        for name, logger in list(self._loggers.items()):
            if isinstance(logger, HistogramLogger):
                with self._guarded(name):
                    logger.histograms(step, values)

    def close(self, *, completed: bool = True) -> None:
        """Close all loggers and metrics.jsonl.

        completed: False if the run was stopped or failed.
        """
        for name, logger in list(self._loggers.items()):
            with self._guarded(name):
                logger.close(completed=completed)
        self._loggers.clear()
        self._jsonl.close()

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._loggers.pop(name, None)
            log.warning(
                "the %s logger failed (%s: %s); the run continues without it, and metrics.jsonl stays complete",
                *(name, type(error).__name__, error),
            )


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a metrics.jsonl file.

    Lines that are not records are skipped, such as a line truncated by a crash. Nothing is read after a line that is
    longer than any record, nor of anything else than a regular file. Raises ValueError for a link.
    """
    if not path.is_file():
        return
    with documents.open_regular(documents.no_link(path)) as binary, TextIOWrapper(binary, "utf-8", "replace") as file:
        while (line := file.readline(_MAX_LINE)) and len(line) < _MAX_LINE:
            with contextlib.suppress(ValueError):
                record = documents.parse_json(line)
                if isinstance(record, dict) and isinstance(record.get("step"), int):
                    yield record


def _report_loss(path: Path, step: int, expected: int | None) -> None:
    # expected: the number of bytes before this step; None if unknown.
    missing = (expected or 0) - path.stat().st_size
    if missing > 0:
        last = max((record["step"] for record in read_records(path)), default=-1)
        log.warning(
            "%s lacks records of steps %d to %d: %d of its %d bytes are missing, and cannot be recovered",
            *(path, last + 1, step - 1, missing, expected),
        )


def keep_before(step: int, path: Path) -> None:
    """Drop the records of this step and of later steps from a metrics.jsonl file."""
    files.write(path, ((json.dumps(r) + "\n").encode() for r in read_records(path) if r["step"] < step))
