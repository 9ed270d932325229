"""Removal of a folder that a command made for a run or sweep which never started."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bigramlm.utils.console import LogFile


@dataclass(frozen=True)
class _Before:
    missing: list[Path]  # the folder and its parents, as far as they did not exist; the innermost first
    names: set[str]  # the names in the folder


# The state of each output folder of this process before its command touched the folder.
_before: dict[Path, _Before] = {}


def _real(folder: Path) -> Path:
    return Path(os.path.realpath(folder))  # unlike Path.resolve, this raises nothing for a loop of links


def remember(folder: Path) -> None:
    """Record which parts of a folder exist, before the command makes the others."""
    folder = _real(folder)
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    _before[folder] = _Before([path for path in (folder, *folder.parents) if not os.path.lexists(path)], names)


def is_new(path: Path) -> bool:
    """Check whether a file in a folder did not exist when the command began.

    Returns False if the state of the folder was not recorded.
    """
    before = _before.get(_real(path.parent))
    return before is not None and path.name not in before.names


def discard(folder: Path, names: Iterable[str]) -> None:
    """Delete files and folders that this command has made.

    names: the files in the folder to delete, unless they existed before the command. The folder and its parents are
    deleted if the command made them and they are empty now. A file or folder that cannot be deleted is left.
    """
    folder = _real(folder)
    for path in (folder / name for name in names):
        if is_new(path):
            with contextlib.suppress(OSError):
                path.unlink()
    for path in _before[folder].missing if folder in _before else []:
        with contextlib.suppress(OSError):  # it is not empty, or could not be made
            path.rmdir()


def write_logs(folder: Path) -> None:
    """Write the records that the log files in a folder have held."""
    for handler in _log_files(folder):
        if isinstance(handler, LogFile):
            handler.write_held()


def close_logs(folder: Path) -> list[str]:
    """Close the log files in a folder, without the records that they have held.

    Returns the names of the files that the command made.
    """
    names = []
    for handler in _log_files(folder):
        if isinstance(handler, LogFile):
            handler.drop_held()
        logging.getLogger().removeHandler(handler)
        handler.close()
        names.append(Path(handler.baseFilename).name)
    return [name for name in names if is_new(_real(folder) / name)]


def log_names(folder: Path) -> list[str]:
    """List the names of the log files that this process writes in a folder."""
    return [Path(handler.baseFilename).name for handler in _log_files(folder)]


def _log_files(folder: Path) -> list[logging.FileHandler]:
    handlers = [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.FileHandler)]
    return [handler for handler in handlers if _real(Path(handler.baseFilename).parent) == _real(folder)]
