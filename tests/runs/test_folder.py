"""Tests of the run folder and its summary."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from bigramlm.runs.folder import RunFolder, git_state, versions
from bigramlm.utils import files, paths


def test_update_summary_keeps_other_values(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.update_summary(status="running", step=0)
    folder.update_summary(status="completed")
    assert json.loads((tmp_path / "summary.json").read_text("utf-8")) == {"status": "completed", "step": 0}
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_summary_records_a_failure_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path)
    folder.update_summary(status="running", note="a long value that must be removed completely")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write", full)
    folder.update_summary(status="failed", note="")
    assert json.loads((tmp_path / "summary.json").read_text("utf-8")) == {"status": "failed", "note": ""}


@pytest.mark.skipif(os.name == "nt", reason="a file size limit simulates a full disk; Windows has none")
def test_summary_is_restored_if_it_cannot_grow(tmp_path: Path) -> None:
    """A partly overwritten summary would be neither the old nor the new one."""
    import resource

    folder = RunFolder(tmp_path)
    folder.update_summary(status="running", overrides=["a" * 50])
    before = (tmp_path / "summary.json").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limits[1]))
    try:
        with pytest.raises(OSError, match=r"space|large"):
            folder.update_summary(error="b" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "summary.json").read_bytes() == before


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("old")

    def fails(self: Path, target: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OSError, match="Input/output"):
        files.write(path, [b"new"], durable=False)
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_versions_match_the_running_packages() -> None:
    import torch

    assert versions()["torch"] == torch.__version__


def test_git_state_of_the_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        return subprocess.run(
            ["git", *identity, "-C", str(tmp_path), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    uncached = git_state.__wrapped__
    monkeypatch.setattr(paths, "home", lambda: tmp_path)
    assert uncached() is None
    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-q", "-m", "m")
    assert uncached() == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "a").write_text("2")
    assert uncached() == {"commit": git("rev-parse", "HEAD"), "dirty": True}
    monkeypatch.setattr(paths, "IN_CHECKOUT", False)
    assert uncached() is None
