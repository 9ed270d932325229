"""Metrics of a run, written to metrics.jsonl and sent to the chosen loggers."""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bigramlm.logger.base import Logger, LoggerContext
from bigramlm.logger.config import LOGGERS, LoggerConfig
from bigramlm.utils import files

log = logging.getLogger(__name__)


class Metrics:
    """The metrics of a run: one record per step, for metrics.jsonl and every logger.

    A resumed run drops the existing records from the step on at which it resumes, because it measures these steps
    again. A crash may leave records of steps later than the last checkpoint.
    """

    def __init__(self, cfg: LoggerConfig, context: LoggerContext) -> None:
        path = context.folder / "metrics.jsonl"
        if context.resumed_at is not None and path.exists():
            keep_before(context.resumed_at, path)
        self._jsonl = path.open("a", encoding="utf-8", buffering=1)
        self._loggers: dict[str, Logger] = {}
        for name in cfg.use:
            with self._guarded(name):
                self._loggers[name] = LOGGERS[name](cfg, context)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Close all loggers; an exception means that the run did not complete."""
        self.close(completed=kind is None)

    def log(self, step: int, seconds: float, metrics: dict[str, float]) -> None:
        """Record the metrics of a step, by name.

        `seconds` is the training time since the start of the run.
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

    def close(self, *, completed: bool = True) -> None:
        """Close all loggers and metrics.jsonl; `completed` is False for an aborted run."""
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
                "the %s logger failed and is dropped; the run continues, and metrics.jsonl is complete (%s: %s)",
                *(name, type(error).__name__, error),
            )


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a metrics.jsonl.

    A line that a crash cut short is skipped.
    """
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict) and isinstance(record.get("step"), int):
                    yield record


def keep_before(step: int, path: Path) -> None:
    """Drop the records of this step and of later steps from a metrics.jsonl."""
    files.write(path, ((json.dumps(r) + "\n").encode() for r in read_records(path) if r["step"] < step))
