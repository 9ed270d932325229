"""Metrics of a run: always written to metrics.jsonl, and sent to the loggers that were chosen."""

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
    """One record a step, to metrics.jsonl and to every logger.

    Records that a resumed run left behind from the step on that it goes on from are dropped: that step is measured
    again, and so are those after it, which a crash may have left without a checkpoint.
    """

    def __init__(self, cfg: LoggerConfig, origin: LoggerContext) -> None:
        path = origin.folder / "metrics.jsonl"
        if origin.resumed_at is not None and path.exists():
            keep_before(origin.resumed_at, path)
        self._jsonl = path.open("a", encoding="utf-8", buffering=1)
        self._loggers: dict[str, Logger] = {}
        for name in cfg.use:
            with self._guarded(name):
                self._loggers[name] = LOGGERS[name](cfg, origin)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Close what is open; an exception says that the run did not come to its end."""
        self.close(completed=kind is None)

    def log(self, step: int, seconds: float, metrics: dict[str, float]) -> None:
        """Record metrics by name for a step; seconds: training time since the start."""
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}  # JSON has no NaN
        self._jsonl.write(json.dumps({"step": step, "seconds": round(seconds, 4), **finite}) + "\n")
        for name, logger in list(self._loggers.items()):
            with self._guarded(name):
                logger.log(step, metrics)

    def text(self, step: int, name: str, text: str) -> None:
        """Show a text, such as a sample, in the loggers."""
        for logger_name, logger in list(self._loggers.items()):
            with self._guarded(logger_name):
                logger.text(step, name, text)

    def close(self, *, completed: bool = True) -> None:
        """Finish everything that is open; completed: whether the run came to its end."""
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
                "the %s logger failed and is dropped; the run continues, and metrics.jsonl has everything (%s: %s)",
                *(name, type(error).__name__, error),
            )


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a metrics.jsonl; skips a line that a crash cut short."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict) and isinstance(record.get("step"), int):
                    yield record


def keep_before(step: int, path: Path) -> None:
    """Leave in a file of records those of the steps before this one."""
    files.write(path, ((json.dumps(r) + "\n").encode() for r in read_records(path) if r["step"] < step))
