"""The walk over folders with which all commands find runs and sweeps."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def walk(below: Path) -> Iterator[tuple[Path, set[str]]]:
    """Yield every folder in a folder, and the folder itself, with its file names.

    Links to folders are followed, and each folder is yielded once, whatever number of names it has: by its own path if
    that is in the folder, and by a link otherwise. Folders that cannot be read are skipped.
    """
    seen: set[tuple[int, int]] = set()
    folders, links = [below], list[Path]()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        try:
            about = folder.stat()
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:  # e.g. no permission, or deleted meanwhile
            continue
        if (about.st_dev, about.st_ino) in seen:
            continue
        seen.add((about.st_dev, about.st_ino))
        inner = [entry for entry in entries if _is_folder(entry)]
        links += [Path(entry.path) for entry in inner if entry.is_symlink()]
        folders += [Path(entry.path) for entry in reversed(inner) if not entry.is_symlink()]
        yield folder, {entry.name for entry in entries} - {entry.name for entry in inner}


def run_folders(below: Path) -> Iterator[Path]:
    """Yield all run folders in a folder, and the folder itself if it is one."""
    return (folder for folder, names in walk(below) if "summary.json" in names)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # e.g. a link to itself
        return False
