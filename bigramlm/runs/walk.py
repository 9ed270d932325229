"""The walk over folders with which all commands find runs and sweeps."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

DELETED = ".deleted_"
"""The start of the name of a folder that is being deleted."""


# The files of which each run or sweep folder has one.
_OF_RUNS = {"summary.json", "sweep.json"}


def walk(below: Path) -> Iterator[tuple[Path, set[str]]]:
    """Yield every folder in a folder, and the folder itself, with its file names.

    Links to folders are followed, and each folder is yielded once, whatever number of names it has: by its own path if
    that is in the folder, and by a link otherwise. Folders that cannot be read are skipped. A link in a run or a sweep,
    such as a job that was moved to another disk, is yielded, but the folders in it are not: a run may come from someone
    else, and contain a link to all files of the disk.
    """
    seen: set[tuple[int, int]] = set()
    # The path of a folder, and whether it is in a run or a sweep.
    folders, links = [(below, False)], list[tuple[Path, bool]]()
    while folders or links:
        is_link = not folders
        folder, is_inside = links.pop(0) if is_link else folders.pop()
        try:
            about = folder.stat()
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:  # e.g. no permission, or deleted meanwhile
            continue
        if (about.st_dev, about.st_ino) in seen:
            continue
        seen.add((about.st_dev, about.st_ino))
        inner = [entry for entry in entries if _is_folder(entry) and not entry.name.startswith(DELETED)]
        names = {entry.name for entry in entries} - {entry.name for entry in inner}
        if not (is_link and is_inside):
            is_inside = is_inside or bool(names & _OF_RUNS)
            links += [(Path(entry.path), is_inside) for entry in inner if entry.is_symlink()]
            folders += [(Path(entry.path), is_inside) for entry in reversed(inner) if not entry.is_symlink()]
        yield folder, names


def run_folders(below: Path) -> Iterator[Path]:
    """Yield all run folders in a folder, and the folder itself if it is one."""
    return (folder for folder, names in walk(below) if "summary.json" in names)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # e.g. a link to itself
        return False
