"""The files that match a pattern, each file once."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path

Identity = tuple[int, int]


def matching_files(pattern: Path) -> list[Path]:
    """Return the files that match an absolute pattern, sorted, each file once.

    A file that has several names, because of links, is returned under the first name that is not a link. Links to
    folders are followed, except into a folder that contains the link. As in a shell, `*` and `**` match no name that
    begins with a dot.
    """
    base, parts = Path(pattern.anchor), list(pattern.parts[1:])
    while len(parts) > 1 and (literal := _literal(parts[0])) is not None:
        base, parts = base / literal, parts[1:]
    above = frozenset[Identity]().union(*map(_identity, Path(os.path.realpath(base)).parents))
    found: dict[Identity | Path, tuple[bool, Path]] = {}
    for is_link, path in _expand(base, parts, False, above):
        try:
            status = path.stat()
        except OSError:  # a link to nothing or to itself
            continue
        key = (status.st_dev, status.st_ino) if status.st_ino else path
        found[key] = min(found.get(key, (is_link, path)), (is_link, path))
    return sorted(path for _, path in found.values())


def _expand(folder: Path, parts: list[str], is_link: bool, above: frozenset[Identity]) -> Iterator[tuple[bool, Path]]:
    # Yields the files below a folder whose names match the parts of a pattern, and whether a link leads to them.
    # above: the folders that contain this one.
    part, rest = parts[0], parts[1:]
    if rest and (literal := _literal(part)) is not None:
        yield from _expand(folder / literal, rest, is_link, above)
        return
    if part == "**" and rest:  # no folder between
        yield from _expand(folder, rest, is_link, above)
    identity = _identity(folder)
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    if identity & above:
        return
    for entry in entries:
        if not _matches(entry.name, part):
            continue
        leads_through_link = is_link or entry.is_symlink()
        if not _is_dir(entry):
            if not rest:
                yield leads_through_link, Path(entry.path)
        elif part == "**":
            yield from _expand(Path(entry.path), parts, leads_through_link, above | identity)
        elif rest:
            yield from _expand(Path(entry.path), rest, leads_through_link, above | identity)


def _literal(part: str) -> str | None:
    # The name that a part of a pattern stands for; None if it may stand for several.
    literal = re.sub(r"\[([*?[])\]", r"\1", part)
    return literal if glob.escape(literal) == part else None


def _identity(folder: Path) -> frozenset[Identity]:
    try:
        status = folder.stat()
    except OSError:
        return frozenset()
    return frozenset({(status.st_dev, status.st_ino)})


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _matches(name: str, part: str) -> bool:
    if name.startswith(".") and not part.startswith("."):
        return False
    return part == "**" or fnmatch.fnmatch(name, part)
