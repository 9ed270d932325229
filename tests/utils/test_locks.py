"""Tests of locks: file systems without locks, and lock files that are deleted."""

import errno
import os
from pathlib import Path

import pytest

from bigramlm.utils.locks import Lock
from tests.helpers import refuses

UNIX = pytest.mark.skipif(os.name == "nt", reason="Windows has other locks, and keeps open files")


@UNIX
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO, errno.ENOSYS])
def test_a_file_system_without_locks_is_refused(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    with refuses(tmp_path, os.strerror(number), "local disk", "hydra.run.dir="):
        Lock(tmp_path / ".lock").acquire(timeout=-1)
    assert not list(tmp_path.iterdir()), "no file is left"


def test_a_lock_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    first, second = Lock(tmp_path / ".lock"), Lock(tmp_path / ".lock")
    assert first.acquire(timeout=0)
    assert not second.acquire(timeout=0)
    second.release()
    assert (first.is_held, second.is_held) == (True, False)
    first.release()
    assert second.acquire(timeout=0)
    second.release()


def test_a_file_of_the_user_is_not_truncated(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("mine")
    with refuses(tmp_path / ".lock", "not empty"):
        Lock(tmp_path / ".lock").acquire(timeout=0)
    assert (tmp_path / ".lock").read_text() == "mine"


@UNIX
@pytest.mark.parametrize("replaced", [False, True])
def test_a_lock_whose_file_is_deleted_is_lost(replaced: bool, tmp_path: Path) -> None:
    lock = Lock(tmp_path / ".lock")
    assert not lock.is_lost
    assert lock.acquire(timeout=0)
    assert not lock.is_lost
    lock.path.unlink()
    if replaced:
        lock.path.touch()
    assert lock.is_lost
    lock.release()
    assert not lock.is_lost
