"""Locks of the operating system on files, which end with their process."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

from bigramlm.errors import UserError, require

if TYPE_CHECKING:
    from filelock import FileLock

# Errors that mean that the lock file cannot be written, as any other file of its folder.
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.ENOENT}


class Lock:
    """A lock on a file, which at most one process holds at a time.

    The operating system releases it when the process ends, even if the process crashes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: FileLock | None = None
        self._file: tuple[int, int] | None = None

    def acquire(self, timeout: float) -> bool:
        """Wait for the lock; return False if another process still holds it afterwards.

        timeout: the maximum time to wait in seconds; -1 for no limit. Raises UserError if the file system has no locks
        or the file is not empty, and OSError if it cannot be written.
        """
        from filelock import FileLock, Timeout

        require(  # some versions of filelock truncate it
            not self.path.is_file() or self.path.stat().st_size == 0,
            f"{self.path} is not empty, so it is not a lock and would be overwritten; rename it, or choose a different "
            "folder",
        )
        is_new = not os.path.lexists(self.path)
        lock = FileLock(self.path, fallback_to_soft=False)  # a soft lock would outlive a process that is killed
        try:
            lock.acquire(timeout=timeout, poll_interval=0.02)
        except Timeout:
            return False
        except OSError as error:
            if error.errno in _NOT_WRITABLE:
                raise
            if is_new:
                self.path.unlink(missing_ok=True)
            raise UserError(
                f"{self.path.parent} cannot be locked: {error.strerror}; its file system may not support locks, "
                "without which several processes could write to the folder at a time: choose a folder on a local disk, "
                "e.g. with hydra.run.dir=FOLDER, or make outputs/ a link to one"
            ) from error
        self._lock, self._file = lock, _identity(self.path)
        return True

    @property
    def is_held(self) -> bool:
        """True if this object holds the lock."""
        return self._lock is not None

    @property
    def is_lost(self) -> bool:
        """True if the lock is held, but its file was deleted: it keeps nobody out."""
        return self.is_held and self._file != _identity(self.path)

    def release(self) -> None:
        """Release the lock, if it is held."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
