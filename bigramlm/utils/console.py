"""Console output: text on standard output, the log on the console, tables, paths."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from bigramlm.errors import UserError


class LogFile(logging.FileHandler):
    """A log file that a full disk makes shorter, and no traceback for each line that is lost: the run will tell."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def show(text: str, end: str = "\n") -> bool:
    """Print on standard output; False where whoever reads it, `head` perhaps, has had enough of it.

    UserError where it cannot be written to.
    """
    try:
        print(text, end=end, flush=True)
    except OSError as error:
        # What is left in the buffer must not fail once more when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return False
        raise UserError(f"standard output: cannot be written: {error.strerror}") from None
    return True


@contextlib.contextmanager
def console_filter(*, but: str) -> Iterator[None]:
    """Leave the log on the console to one logger, and to warnings, each once: its file has everything.

    but: the logger's name.
    """

    def passes(record: logging.LogRecord) -> bool:
        if record.name == but:
            return True
        new = record.levelno == logging.WARNING and record.getMessage() not in _WARNED
        if new:
            _WARNED.add(record.getMessage())
        return new

    consoles = [handler for handler in logging.getLogger().handlers if type(handler) is logging.StreamHandler]
    for handler in consoles:
        handler.addFilter(passes)
    try:
        yield
    finally:
        for handler in consoles:
            handler.removeFilter(passes)


_WARNED: set[str] = set()


def relative(path: Path) -> Path:
    """Shorten a path to the one from the working folder, if it is below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows as columns of text; those whose entries are all numbers stand to the right."""
    lines = [head, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    right = [all(re.fullmatch(r"[-\d.,]*(e[-+]?\d+)?", row[i]) for row in rows) for i in range(len(head))]
    aligned = (
        (cell.rjust(width) if to_right else cell.ljust(width))
        for line in lines
        for cell, width, to_right in zip(line, widths, right, strict=True)
    )
    return "\n".join("  ".join(next(aligned) for _ in head).rstrip() for _ in lines)
