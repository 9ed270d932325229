"""Reading of a checkpoint folder that its run may delete or replace meanwhile."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch

from bigramlm.checkpoint.format import UNREADABLE, MissingCheckpointError, first_line
from bigramlm.errors import UserError

T = TypeVar("T")

# The number of times that a checkpoint is read while its run keeps deleting it.
_ATTEMPTS = 100

log = logging.getLogger(__name__)


def retry(read: Callable[[], T]) -> T:
    """Call a function again as long as the checkpoint that it chooses is deleted.

    Raises MissingCheckpointError after too many attempts.
    """
    for _ in range(_ATTEMPTS - 1):
        with contextlib.suppress(MissingCheckpointError):
            return read()
    return read()


class CheckpointFolder:
    """A checkpoint folder as it was when it was opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reopen: Callable[[], CheckpointFolder] | None = None
        """The function that opens the checkpoint to read after this one was deleted; None to read no other one."""
        self._identity = _identity(path)

    def require_unchanged(self) -> None:
        """Raise MissingCheckpointError if the folder was deleted or replaced."""
        if _identity(self.path) != self._identity:
            raise MissingCheckpointError(
                f"{self.path}: the checkpoint was deleted or replaced while it was read; a run deletes its old "
                "checkpoints (see trainer.keep_checkpoints), so choose a newer one"
            )

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """Raise UserError if the block reads a malformed file.

        name: the name of this file in the checkpoint folder, for the message. Raises MissingCheckpointError if the
        block fails because the checkpoint was deleted.
        """
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except UserError:
            self.require_unchanged()
            raise
        except UNREADABLE as error:
            self.require_unchanged()
            raise UserError(
                f"{self.path / name}: the file was not saved by bigramlm, or is damaged: {first_line(error)}"
            ) from error

    def follow(self, read: Callable[[], T]) -> T:
        """Call a function that reads this checkpoint; return its result.

        If the folder is deleted meanwhile, this object becomes the checkpoint that `reopen` returns, and the function
        is called again. Raises MissingCheckpointError if there is no other checkpoint to read.
        """
        reopen = self.reopen
        if reopen is None:
            return read()

        def read_newest() -> T:
            try:
                return read()
            except MissingCheckpointError:
                old = self.path
                self.__dict__.update(reopen().__dict__)
                log.info("the checkpoint %s was deleted by its run, so %s is used", old, self.path)
                raise

        return retry(read_newest)


def _identity(path: Path) -> tuple[int, int, int] | None:
    # Differs between a folder and one that replaces it. The number alone may be used again by the file system.
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns
