"""Atomic writes of files and folders, and SHA-256 hashes."""

import codecs
import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from bigramlm.errors import UserError, require
from bigramlm.utils import documents, paths

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""The errors of a disk that is full, or of a file that reached its maximum size."""


def temporary_path(path: Path) -> Path:
    """Return a unique hidden path in the folder of `path`.

    New contents are written to the temporary path, which is then renamed to `path`.
    """
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def final_name(name: str) -> str | None:
    """Return the name that a name of `temporary_path` stands for; None for others."""
    found = re.fullmatch(r"\.(.+)\.[0-9a-f]{32}", name)
    return found[1] if found else None


def write(path: Path, content: Iterable[bytes], *, durable: bool = True) -> None:
    """Write a file atomically: write a temporary file, then rename it.

    Readers see the old file or the complete new file, even after a crash. durable: if True, wait until the disk has
    written the file, so that the file survives a power failure.
    """
    temporary = temporary_path(path)
    try:
        with temporary.open("wb") as file:
            file.writelines(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.filename in (None, str(temporary)):  # the error of a full disk names no file
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        sync(path.parent)


def unshare(path: Path) -> None:
    """Replace a file that has a second name, a hard link, by a copy.

    Whoever appends to the file would change the other one too, which may be elsewhere, e.g. in a backup.
    """
    if os.path.lexists(path) and not path.is_symlink() and path.is_file() and path.stat().st_nlink > 1:
        temporary = temporary_path(path)
        try:
            shutil.copyfile(path, temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder and the missing ones above it, so that they survive a power cut.

    Does nothing if the folder exists.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        with contextlib.suppress(PermissionError):  # of a folder that may be written to, but not read
            sync(path.parent)


def set_aside(path: Path) -> Path:
    """Rename something damaged to `damaged_<name>.<random>`; return the new path."""
    return path.rename(path.with_name(f"damaged_{path.name}.{uuid.uuid4().hex[:6]}"))


def refuse_dangling(path: Path) -> None:
    """Raise UserError if a path or one of its folders is a link to nothing."""
    # The functions of os.path do not raise for folders that cannot be read.
    links = (part for part in (path, *path.parents) if os.path.islink(part) and not os.path.exists(part))  # noqa: PTH110, PTH114
    link = next(links, None)
    if link is not None:
        raise UserError(f"{link} is a link that leads nowhere, to {link.readlink()}; correct or delete the link")


def require_new(folder: Path) -> None:
    """Raise UserError if a folder exists or its name is reserved for checkpoints."""
    refuse_dangling(folder)
    require(not os.path.lexists(folder), f"{folder} already exists and is not overwritten: choose a different folder")
    require(
        paths.step_of(folder.name) is None,
        f"{folder}: the name step_<n> is reserved for checkpoints of a run; choose a different name",
    )


# The size up to which a file may have any share of holes, in bytes.
_MAX_SPARSE = 1 << 30


def readable_size(path: Path) -> int:
    """Return the size of a file in bytes.

    Raises UserError for anything else, and for a sparse file that is far larger than what was written to it: reading it
    would have no end.
    """
    about = path.stat()
    require(stat.S_ISREG(about.st_mode), f"{path}: this is not a file")
    written = getattr(about, "st_blocks", about.st_size) * 512
    require(
        about.st_size < max(_MAX_SPARSE, 64 * written),
        f"{path}: the file says that it has {about.st_size:,} bytes, but only {written:,} were written to it",
    )
    return about.st_size


def unwritable(path: Path | str, error: OSError) -> UserError:
    """Return the error to raise for a file or folder that cannot be written."""
    is_refused = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    fix = "free some space or " if error.errno in FULL else "change its permissions or " if is_refused else ""
    return UserError(f"{path} cannot be written: {error.strerror or error}; {fix}choose a different folder")


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `folder` if the block succeeds.

    `folder` must not exist yet. The temporary folders that killed processes left for it are deleted. Raises UserError
    if the folder cannot be written.
    """
    temporary = temporary_path(folder)
    try:
        make_folder(temporary.parent)
        for path in folder.parent.iterdir():
            if final_name(path.name) == folder.name and path.is_dir() and not path.is_symlink():
                # Renamed first, so that no other process can rename it to its final name while it is deleted.
                shutil.rmtree(path.rename(temporary_path(folder)), ignore_errors=True)
        temporary.mkdir()
        yield temporary
        for path in (*temporary.iterdir(), temporary):
            sync(path)
        temporary.rename(folder)
        sync(folder.parent)
    except OSError as error:
        raise unwritable(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


MARKS = {
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
"""The encodings by byte-order mark. UTF-32 is first, because its little-endian mark begins with that of UTF-16."""


def mark_of(head: bytes) -> bytes:
    """Return the byte-order mark at the start of a file; empty if there is none."""
    return next((mark for mark in MARKS if head.startswith(mark)), b"")


MAX_TEXT = 1 << 28
"""The maximum size of a file that is read as a whole, such as a tokenizer, in bytes."""


def read_text(path: Path) -> str:
    """Read a text as UTF-8, or in the encoding of its byte-order mark.

    The mark is dropped. Raises OSError if the file cannot be read, and ValueError if it is no text of a bounded size.
    """
    content = documents.read(path, limit=MAX_TEXT)
    mark = mark_of(content)
    return content[len(mark) :].decode(MARKS.get(mark, "utf-8"))


def read_before_writing(path: Path) -> bytes:
    """Read a file that is about to be written again; empty if there is none.

    A file that is larger than any that a run writes so, e.g. a sparse one, is not read but set aside.
    """
    try:
        return documents.read(path, limit=MAX_TEXT) if path.exists() else b""
    except ValueError:
        set_aside(path)
        return b""


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
"""The first line of the small file that Git leaves in place of a large one that it has not downloaded."""


def is_lfs_pointer(path: Path) -> bool:
    """Return True for a Git LFS pointer, which lacks the content of its file."""
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


def sync(path: Path) -> None:
    """Flush a file or folder to disk (fsync).

    Does nothing for folders on Windows.
    """
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a folder
    fd = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sha256_of(text: str) -> str:
    """Return the SHA-256 of a string encoded as UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
