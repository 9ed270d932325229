"""What a run leaves in its folder, besides metrics and checkpoints: its config, its summary and its samples."""

import json
import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bigramlm import paths
from bigramlm.errors import UserError


class RunFolder:
    """The folder of one run. The summary on disk says how it stands, and is whole but where a full disk cuts it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._summary: dict[str, Any] = {}

    def claim(self) -> None:
        """UserError where the folder holds a run that has begun to train: nothing is written over."""
        if (self.path / "metrics.jsonl").exists():
            raise UserError(f"{self.path}: holds a run already, and nothing is written over; name another folder")

    def save_config(self, yaml: str, overrides: list[str]) -> None:
        """Save the config that runs, with what was typed above it as comments."""
        typed = "".join(f"# typed: {override!r}\n" for override in overrides)
        _write(self.path / "config.yaml", typed + yaml)

    def update_summary(self, **values: Any) -> None:
        """Change these values of summary.json, and leave the others."""
        self._summary |= values
        path, content = self.path / "summary.json", json.dumps(self._summary, indent=1, ensure_ascii=False) + "\n"
        try:
            _write(path, content)
        except OSError:  # on a full disk what is there can still be written over where it stands
            if not path.exists():
                raise
            with path.open("r+", encoding="utf-8") as file:
                file.write(content)
                file.truncate()

    def add_sample(self, step: int, text: str) -> None:
        """Add a sample to samples.txt."""
        with (self.path / "samples.txt").open("a", encoding="utf-8", newline="") as file:
            file.write(f"---- step {step}\n{text}\n")


def versions() -> dict[str, str]:
    """The versions of what computes the run's figures."""
    found = {"python": platform.python_version()}
    for package in ("bigramlm", "torch", "numpy", "hydra-core", "omegaconf"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a checkout that is not installed
            found[package] = "not installed"
    return found


def process() -> dict[str, Any]:
    """Who runs this, so that a run that says `running` can be told from one that was killed."""
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"started": started, "host": platform.node(), "pid": os.getpid()}


def git_state() -> dict[str, Any] | None:
    """The commit of the checkout, and whether anything was changed or added since; None where there is no checkout."""
    if not paths.IN_CHECKOUT:
        return None  # an environment may lie inside a repository that is not ours
    try:
        status, commit = (
            subprocess.run(
                ["git", "-C", str(paths.home()), *arguments], capture_output=True, text=True, timeout=5, check=True
            ).stdout
            for arguments in (("status", "--porcelain"), ("rev-parse", "HEAD"))
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.strip(), "dirty": bool(status.strip())}


def _write(path: Path, content: str) -> None:
    # Aside and renamed, so that a reader, or a crash, never meets half a file.
    aside = path.with_name(f".{path.name}.part")
    try:
        aside.write_text(content, encoding="utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
