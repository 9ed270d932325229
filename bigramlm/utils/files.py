"""Files that are whole or not there, whatever happens in the middle."""

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from bigramlm.errors import UserError, require
from bigramlm.utils import paths


def aside(path: Path) -> Path:
    """Return a hidden name beside a path, unique, to write to before it is renamed."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def write(path: Path, content: Iterable[bytes], *, durable: bool = True) -> None:
    """Write a file aside and rename it: a reader, or a crash, meets the old one or the new one, and never half of one.

    durable: also after a power cut; costs a wait for the disk.
    """
    part = aside(path)
    try:
        with part.open("wb") as file:
            file.writelines(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    if durable:
        sync(path.parent)


def require_new(folder: Path) -> None:
    """UserError where a folder that is to be written is there already, or has a name that has a meaning."""
    require(not folder.exists(), f"{folder}: is there already, and nothing is written over; name another folder")
    require(
        paths.step_of(folder.name) is None,
        f"{folder}: is how a run names its checkpoints; name another folder",
    )


@contextlib.contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """Yield a folder to write to, which is renamed to one that does not exist yet when the block ends well.

    UserError where it cannot be written.
    """
    part = aside(folder)
    try:
        part.mkdir(parents=True)
        yield part
        for path in (*part.iterdir(), part):
            sync(path)
        part.rename(folder)
        sync(folder.parent)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def sync(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows has no handle on a folder
    fd = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sha256_of(text: str) -> str:
    """Return the SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
