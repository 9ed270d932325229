"""Tests of the recorded commit, also if settings of the repository start programs."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bigramlm.runs.git import git_state
from bigramlm.utils import paths

uncached = git_state.__wrapped__


@pytest.fixture
def git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., str]:
    """Make a function that runs git on a checkout of the package with one file."""

    def call(*arguments: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        return subprocess.run(
            ["git", *identity, "-C", str(tmp_path), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    monkeypatch.setattr(paths, "home", lambda: tmp_path)
    assert uncached() is None
    call("init", "-q")
    (tmp_path / "a").write_text("1")
    call("add", "a")
    call("commit", "-q", "-m", "m")
    return call


def test_git_state_of_the_checkout(git: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert uncached() == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "a").write_text("2")
    assert uncached() == {"commit": git("rev-parse", "HEAD"), "dirty": True}
    monkeypatch.setattr(paths, "IN_CHECKOUT", False)
    assert uncached() is None


@pytest.mark.parametrize(
    ("name", "dirty"),
    [
        *[("my.txt", False), ("texts/my.txt", False), ("scripts.txt", False), ("bigram lm/my.txt", False)],
        *[("bigramlm/new.py", True), ("bigramlm/model/new.py", True), ("scripts/é.py", True)],
        *[("conf/model/new.yaml", True), ("hydra_plugins/new.py", True)],
    ],
)
def test_of_new_files_only_code_and_presets_count(
    git: Callable[..., str], tmp_path: Path, name: str, dirty: bool
) -> None:
    if dirty:
        git("config", "status.showUntrackedFiles", "no")  # a setting for large repositories
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("1")
    assert uncached() == {"commit": git("rev-parse", "HEAD"), "dirty": dirty}


def test_git_is_not_looked_for_in_a_changed_environment(
    git: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program, ran = _program(tmp_path / "bin" / "git", tmp_path)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    assert uncached() is not None
    assert not ran.exists()


def test_settings_of_a_repository_start_no_program(git: Callable[..., str], tmp_path: Path) -> None:
    program, ran = _program(tmp_path / ".git" / "hooks" / "post-index-change", tmp_path)
    (tmp_path / ".gitattributes").write_text("* filter=a.b\n")
    git("config", "core.fsmonitor", str(program))
    git("config", "filter.a.b.clean", str(program))
    git("config", "filter.a.b.required", "true")
    (tmp_path / "a").write_text("2")
    git("status")
    assert ran.exists(), "these settings start programs"
    ran.unlink()
    assert uncached() == {"commit": git("rev-parse", "HEAD"), "dirty": True}
    assert not ran.exists()
    git("config", "filter.a=b.clean", str(program))
    assert uncached() is None, "a setting that cannot be switched off"


def _program(path: Path, folder: Path) -> tuple[Path, Path]:
    """Make a program, and return its path and that of the file that it writes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\ntouch {folder}/ran\ncat\n")
    path.chmod(0o755)
    return path, folder / "ran"
