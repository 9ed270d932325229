"""The run's folder and its summary."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from bigramlm.runs.folder import RunFolder, git_state, versions
from bigramlm.utils import files, paths


def test_a_summary_is_changed_value_by_value(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.update_summary(status="running", step=0)
    folder.update_summary(status="completed")
    assert json.loads((tmp_path / "summary.json").read_text("utf-8")) == {"status": "completed", "step": 0}
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_a_summary_still_tells_of_a_failure_where_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path)
    folder.update_summary(status="running", note="something long that is to go, all of it")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write", full)
    folder.update_summary(status="failed", note="")
    assert json.loads((tmp_path / "summary.json").read_text("utf-8")) == {"status": "failed", "note": ""}


@pytest.mark.skipif(os.name == "nt", reason="a limit on the size of files stands in for a full disk; Windows has none")
def test_a_summary_is_as_it_was_where_it_cannot_grow(tmp_path: Path) -> None:
    """Written over in part it would be neither the one nor the other."""
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


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("old")

    def fails(self: Path, target: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OSError, match="Input/output"):
        files.write(path, [b"new"], durable=False)
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_versions_are_those_that_run() -> None:
    import torch

    assert versions()["torch"] == torch.__version__


def test_git_state_is_the_checkouts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        return subprocess.run(
            ["git", *identity, "-C", str(tmp_path), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    now = git_state.__wrapped__  # a process asks once
    monkeypatch.setattr(paths, "home", lambda: tmp_path)
    assert now() is None
    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-q", "-m", "m")
    assert now() == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "a").write_text("2")
    assert now() == {"commit": git("rev-parse", "HEAD"), "dirty": True}
    monkeypatch.setattr(paths, "IN_CHECKOUT", False)
    assert now() is None
