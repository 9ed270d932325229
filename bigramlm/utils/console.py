"""Console output: printing, filtering the log, tables and relative paths."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO

from bigramlm.errors import UserError, printable, visible
from bigramlm.utils import documents, files


class PlainFormatter(logging.Formatter):
    """A formatter that shows what a terminal would obey, e.g. in a name from a file.

    A line end in an argument of the message is escaped too, so that a name cannot look like a record of its own.
    """

    def format(self, record: logging.LogRecord) -> str:
        record = copy.copy(record)
        if isinstance(record.args, tuple):
            texts = (str, Path, BaseException)
            record.args = tuple(printable(str(part)) if isinstance(part, texts) else part for part in record.args)
        return visible(super().format(record))


class LogFile(logging.FileHandler):
    """The log file of a run, which is written only once the run has begun.

    Until `write_held` is called, records are held in memory, so that a run that is refused adds nothing to a file that
    exists already. Records that cannot be written, e.g. on a full disk, are skipped; the base class would print a
    traceback for each. The run itself reports a full disk when it fails to save a checkpoint.
    """

    def __init__(self, filename: str, encoding: str = "utf-8") -> None:
        super().__init__(filename, encoding=encoding, delay=True)
        self._held: list[logging.LogRecord] | None = []

    def emit(self, record: logging.LogRecord) -> None:
        if self._held is not None:
            self._held.append(record)
            return
        with contextlib.suppress(OSError):  # raised if the file cannot be opened
            super().emit(record)

    def _open(self) -> TextIOWrapper:
        path = Path(self.baseFilename)
        files.unshare(path)
        return documents.open_own(path, "a")

    def write_held(self) -> None:
        """Write the held records, and every later record at once."""
        held, self._held = self._held, None
        for record in held or []:
            self.emit(record)

    def drop_held(self) -> None:
        """Discard the held records, so that they are never written."""
        self._held = [] if self._held is not None else None

    def close(self) -> None:
        """Write the held records, and close the file."""
        self.write_held()
        super().close()

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def show(text: str, end: str = "\n") -> bool:
    """Print text on standard output.

    On a terminal, characters that it would obey are escaped; a pipe or a file gets the text itself. Returns False if
    standard output is a pipe that its reader, e.g. `head`, has closed, and otherwise True. Raises UserError if the text
    cannot be written for another reason. Prints nothing in a block of `muted`.
    """
    if _muted:
        return True
    try:
        print(visible(text) if is_terminal(sys.stdout) else text, end=end, flush=True)
    except OSError as error:
        _discard(sys.stdout)
        if isinstance(error, BrokenPipeError):
            return False
        raise UserError(f"standard output cannot be written: {error.strerror}") from None
    return True


def note(text: str) -> None:
    """Print text on standard error, unless it cannot be written there.

    Characters that a terminal would obey are escaped.
    """
    try:
        print(visible(text), file=sys.stderr, flush=True)
    except OSError:
        _discard(sys.stderr)


def is_terminal(stream: TextIO) -> bool:
    """Return True if a stream is a terminal; False for an object that cannot tell."""
    return hasattr(stream, "isatty") and stream.isatty()


def _discard(stream: TextIO) -> None:
    # The rest of the buffer is flushed when the process ends and must not fail again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def open_streams() -> Iterator[None]:
    """Replace closed standard streams with the null device in the block.

    A shell closes them with >&- and 2>&-, and pythonw has none. The next file that is opened would become the stream,
    and code that prints would fail.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number)  # for the processes that this one starts
            if null == number:
                os.set_inheritable(number, True)
            else:
                os.close(null)
    replaced = {}
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None or getattr(stream, "closed", False):  # an object of the caller's may only have write
            replaced[name] = stream
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123
    try:
        yield
    finally:
        for name, stream in replaced.items():
            getattr(sys, name).close()
            setattr(sys, name, stream)


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Print nothing with `show` in the block, for calls from Python."""
    _muted.append(True)
    try:
        yield
    finally:
        _muted.pop()


_muted: list[bool] = []


class OnlyWarnings(logging.Filter):
    """A filter for calls from Python: their errors are raised and not printed."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno == logging.WARNING


@contextlib.contextmanager
def console_filter(*, logger: str) -> Iterator[None]:
    """Show only one logger's records and new warnings on the console, in the block.

    logger: the name of the logger. A warning of any other logger is shown only once per process. The log file still
    receives every record.
    """

    def passes(record: logging.LogRecord) -> bool:
        if record.name == logger:
            return True
        is_new = record.levelno == logging.WARNING and record.getMessage() not in _shown_warnings
        if is_new:
            _shown_warnings.add(record.getMessage())
        return is_new

    consoles = [handler for handler in logging.getLogger().handlers if type(handler) is logging.StreamHandler]
    for handler in consoles:
        handler.addFilter(passes)
    try:
        yield
    finally:
        for handler in consoles:
            handler.removeFilter(passes)


_shown_warnings: set[str] = set()


def relative(path: Path) -> Path:
    """Return a path inside the working directory relative to that directory.

    A path outside the working directory is returned unchanged.
    """
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format rows as aligned columns of text.

    head: the column names. Columns that contain only numbers are aligned to the right. Characters that are not
    printable are escaped.
    """
    lines = [[printable(cell) for cell in line] for line in (head, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    right = [all(re.fullmatch(r"[-\d.,]*(e[-+]?\d+)?", line[i]) for line in lines[1:]) for i in range(len(head))]
    aligned = (
        (cell.rjust(width) if to_right else cell.ljust(width))
        for line in lines
        for cell, width, to_right in zip(line, widths, right, strict=True)
    )
    return "\n".join("  ".join(next(aligned) for _ in head).rstrip() for _ in lines)


# How a table becomes narrower, step by step: the columns that are left out, and the least widths of those that may
# then be shortened.
_NARROWER: tuple[tuple[str | None, dict[str, int]], ...] = (
    *((name, {"error": 24, "note": 24, "name": 24}) for name in (None, "data", "steps", "model")),
    *((name, {"error": 12, "note": 12, "name": 12, "folder": 14}) for name in (None, "when", "status", "folder")),
)


def fitting_table(columns: dict[str, list[str]], width: int | None, keep: Collection[str] = ()) -> str:
    """Format columns as a table that fits a width, if possible.

    Long texts lose their end, folders their start, and the least important columns are left out. width: in characters;
    None for no limit. keep: the columns that are not left out.
    """
    cells = {name: [printable(cell) for cell in column] for name, column in columns.items()}
    widths = {name: max(map(len, [name, *column])) for name, column in cells.items()}

    def excess(least: dict[str, int]) -> int:
        narrow = [min(found, least.get(name, found)) for name, found in widths.items()]
        return 0 if width is None else sum(narrow) + 2 * (len(narrow) - 1) - width

    least: dict[str, int] = {}
    for name, least in _NARROWER:
        if name not in keep:
            widths.pop(name or "", None)
        if excess(least) <= 0:
            break
    for name in ("error", "note", "name", "folder"):
        if name in widths and excess({}) > 0:
            room = widths[name] = max(widths[name] - excess({}), least.get(name, 4))
            cut = [f"…{cell[1 - room :]}" if name == "folder" else f"{cell[: room - 1]}…" for cell in cells[name]]
            cells[name] = [cell if len(cell) <= room else short for cell, short in zip(cells[name], cut, strict=True)]
    return table(list(widths), list(zip(*(cells[name] for name in widths), strict=True)))
