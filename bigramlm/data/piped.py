"""Texts that are piped to a command, as `data.path=/dev/stdin`."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from bigramlm.errors import UserError, require
from bigramlm.utils import files, paths

_READ_SIZE = 1 << 20


def kept_text(content: bytes) -> Path:
    """Return a file in outputs/texts/ with this content, named after the content."""
    return _kept(iter([content]))


def keep_piped_text(words: Iterable[str]) -> list[str]:
    """Replace a pipe in the override data.path= by a file with its content.

    The other overrides are returned unchanged. The errors are those of `keep_piped`.
    """
    found = ((word, re.fullmatch(r"(\+{0,2}data\.path=)(.*)", word, re.DOTALL)) for word in words)
    return [match[1] + keep_piped(match[2], "data.path") if match else word for word, match in found]


def is_inherited(path: str) -> bool:
    """Return True for the name of a file that this command was started with."""
    return re.fullmatch(r"/dev/stdin|/dev/fd/\d+|/proc/self/fd/\d+", path) is not None


def keep_piped(path: str, field: str) -> str:
    """Return the path of a file with the content of an inherited pipe.

    A pipe can be read only once, but a text is read several times, also to resume the run. Any other path is returned
    unchanged. Raises UserError if the pipe is empty or closed.
    """
    if not is_inherited(path):
        return path
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - the path is a string that must not be resolved
        if stat.S_ISREG(mode):  # the command was called with < FILE
            return str(Path(path).resolve())
        require(
            stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode),
            f"{field}={path}: nothing is piped to this command; pipe a text, or give a file",
        )
        blocks = _blocks(int(path.rpartition("/")[2].replace("stdin", "0")))
        first = next(blocks, b"")
        require(first != b"", f"{field}={path}: the pipe is empty; pipe a text, or give a file")
        return str(_kept(itertools.chain([first], blocks)))
    except OSError as error:
        raise UserError(f"{field}={path}: cannot be read: {error.strerror}; pipe a text, or give a file") from None


def _blocks(fd: int) -> Iterator[bytes]:
    while block := os.read(fd, _READ_SIZE):
        yield block


def _kept(blocks: Iterable[bytes]) -> Path:
    folder, digest = paths.home() / "outputs" / "texts", hashlib.sha256()

    def hashed() -> Iterator[bytes]:
        for block in blocks:
            digest.update(block)
            yield block

    files.make_folder(folder)
    unnamed = files.temporary_path(folder / "text")
    files.write(unnamed, hashed())
    path = unnamed.replace(folder / f"{digest.hexdigest()[:16]}.txt")
    files.sync(folder)
    return path
