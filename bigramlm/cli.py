"""What the commands share: free text as typed, output for people, errors in one line, exit codes."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bigramlm import paths
from bigramlm.errors import UserError, require
from bigramlm.memory import is_out_of_memory
from bigramlm.overrides import Overrides

T = TypeVar("T")

# Failures of the disk and its permissions that are the user's to mend.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DISK_ERRORS = _FULL | {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}


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
def quiet(*, but: str) -> Iterator[None]:
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
    """The path as short as can be from where the user is."""
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


def known(error: BaseException, folder: Path | None = None) -> BaseException:
    """The error as a UserError where it is one that the user can mend, such as a full disk; folder: written to."""
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        path = Path(error.filename or folder or "")
        while path.name.startswith("."):  # what is written aside first
            path = path.parent
        mend = "make room there" if error.errno in _FULL else "change its permissions"
        return UserError(f"{path}: cannot be written: {error.strerror}; {mend} or choose another folder")
    if is_out_of_memory(error):
        return UserError(f"out of memory: {(str(error) or 'there was none left').splitlines()[0]}")
    return error


def composed(config_name: str, typed: Sequence[str], free_text: Sequence[str]) -> DictConfig:
    """What is typed, on top of conf/<config_name>.yaml; raises what Hydra raises for a wrong field or value."""
    with initialize_config_dir(str(paths.conf_dir()), version_base="1.3"):
        return compose(config_name, Overrides.typed(typed, free_text).words)


def fields_command(config_name: str, schema: type[T], about: str, free_text: Sequence[str]) -> T | None:
    """The fields of a command that trains nothing: conf/<config_name>.yaml with what is typed.

    None where help was asked for, and printed: about, with the fields in the place of {fields}. UserError, and what
    Hydra raises, for what is wrong.
    """
    flags = [argument for argument in sys.argv[1:] if argument.startswith("-")]
    unknown = [flag for flag in flags if flag not in ("--help", "-h")]
    require(not unknown, f"{unknown and unknown[0]}: there is no such flag; fields are NAME=VALUE, see --help")
    cfg = composed(config_name, [argument for argument in sys.argv[1:] if argument not in flags], free_text)
    if flags:
        text = about.format(fields="".join(f"  {line}\n" for line in OmegaConf.to_yaml(cfg).splitlines()))
        script = f"python scripts/{config_name}.py"
        show(text if paths.IN_CHECKOUT else text.replace(script, f"bigramlm-{config_name}"))
        return None
    missing = sorted(OmegaConf.missing_keys(cfg))
    require(not missing, f"{', '.join(missing)}: must be given a value, for instance {missing and missing[0]}=VALUE")
    command = OmegaConf.to_object(cfg)
    assert isinstance(command, schema)
    return command


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """End the process as its errors ask for: 2 and one line for what the user can mend, 1 as Hydra does, 130 Ctrl-C."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a character of the text still shows the rest
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        print(error, error.__cause__ or "", sep="\n", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR") or not isinstance(known(error), UserError):
            raise
        print(f"error: {known(error)}", file=sys.stderr)
        sys.exit(2)
