"""A run's folder: its lock, config.yaml, summary.json and samples.txt."""

import contextlib
import errno
import functools
import json
import logging
import os
import platform
import re
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bigramlm.errors import UserError
from bigramlm.utils import files, paths

LOCK, HOLDER = ".lock", ".lock.json"

log = logging.getLogger(__name__)


class RunFolder:
    """The folder of one run. The summary on disk says how it stands, and is whole but where a full disk cuts it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.summary: dict[str, Any] = {}
        self.begun = False

    def claim(self) -> None:
        """Take the folder for a new run. UserError where it holds one that has begun: nothing is written over."""
        if (self.path / "metrics.jsonl").exists() or any(self.path.glob("checkpoints/step_*")):
            raise UserError(
                f"{self.path}: contains a run already, and nothing is overwritten; resume={self.path} resumes it, "
                "or name another folder"
            )
        self.summary = {"id": uuid.uuid4().hex[:12]}

    def holds(self, hashes: Sequence[str]) -> bool:
        """Tell whether the folder holds a run that began with just this config, by its `config.config_hashes`."""
        found = read_summary(self.path) or {}
        return found.get("asked") in hashes and (self.path / "config.yaml").exists()

    def reopen(self) -> None:
        """Take up the run that the folder holds; nothing in it changes before `begin`."""
        found = read_summary(self.path)
        if found is None:
            log.warning("%s: its summary.json cannot be read; a new one is begun", self.path)
        self.summary = found or {}
        self.summary.setdefault("id", uuid.uuid4().hex[:12])

    def begin(self, overrides: list[str], *, resumed_at: int | None = None) -> None:
        """Say in the summary that the run has begun, or resumes; from here on it says how the run ends."""
        self.begun = True
        if resumed_at is None:
            self.update_summary(status="running", step=0, overrides=overrides, **process())
            return
        for outcome in ("error", "final", "references", "early_stopped"):
            self.summary.pop(outcome, None)
        now = process()
        resumed = {"step": resumed_at, "overrides": overrides, "started": now["started"]}
        self.update_summary(
            status="running", step=resumed_at, resumed=[*self.summary.get("resumed", []), resumed], **now
        )

    def begin_training(
        self, config: str, overrides: list[str], *, resumed_at: int | None, is_changed: bool = False
    ) -> None:
        """Save the config as it was resolved, as YAML; of a run that is resumed, say in the summary that it goes on.

        is_changed: whether the config is another than it was, so that a sweep that the run is a job of has not asked
        for it.
        """
        if resumed_at is not None:
            if is_changed:
                self.summary["asked"] = None
            self.begin(overrides, resumed_at=resumed_at)
        self.save_config(config, overrides, resumed_at=resumed_at)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder: no other process can train in it. UserError says who has it.

        The lock is the operating system's and ends with the process, however that ends.
        """
        from filelock import FileLock, Timeout

        held = FileLock(self.path / LOCK, timeout=1)  # who lists the runs holds it for a moment
        try:
            held.acquire()
        except Timeout:
            holder = _read_json(self.path / HOLDER) or {}
            raise UserError(
                f"{self.path}: another process trains in it: pid {holder.get('pid')} on {holder.get('host')}, "
                f"since {holder.get('started')}; wait for it, stop it, or name another folder"
            ) from None
        try:
            _write(self.path / HOLDER, json.dumps(process()))
            yield
        finally:
            (self.path / HOLDER).unlink(missing_ok=True)
            held.release()

    def save_config(self, yaml: str, overrides: list[str], *, resumed_at: int | None = None) -> None:
        """Save the config that runs, with what was typed above it as comments, also what was before a resume."""
        path = self.path / "config.yaml"
        comments = [f"# typed: {override!r}\n" for override in overrides]
        if resumed_at is not None:
            comments = [f"# typed on resuming at step {resumed_at}: {override!r}\n" for override in overrides]
            with path.open(encoding="utf-8") as file:
                comments = [line for line in file if line.startswith("# typed")] + comments
        _write(path, "".join(comments) + yaml)

    def update_summary(self, **values: Any) -> None:
        """Change these values of summary.json, and leave the others."""
        self.summary |= values
        path, content = self.path / "summary.json", json.dumps(self.summary, indent=1, ensure_ascii=False) + "\n"
        try:
            _write(path, content)
        except OSError:  # on a full disk what is there can still be written over where it stands
            if not path.exists():
                raise
            _write_over(path, content.encode())

    def add_sample(self, step: int, text: str) -> None:
        """Add a sample to samples.txt, but where it is the last one there, as it may be after a resume."""
        path, sample = self.path / "samples.txt", f"---- step {step}\n{text}\n"
        with path.open("a+", encoding="utf-8", newline="") as file:
            file.seek(0)
            if not file.read().endswith(sample):
                file.write(sample)


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Read the summary in a run's folder, None if there is none that can be read."""
    return _read_json(folder / "summary.json")


def read_config(folder: Path) -> dict[str, Any]:
    """Read the config that a run saved, as plain dictionaries; empty if there is none, or it is damaged."""
    from omegaconf import OmegaConf

    try:
        config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"), resolve=False)
    except Exception:  # refused before it had one, or damaged: what the summary says is still worth showing
        return {}
    return config if isinstance(config, dict) else {}  # type: ignore[return-value]


def last_sample(folder: Path) -> str | None:
    """Return the last text that the run wrote, None if there is none."""
    try:
        text = (folder / "samples.txt").read_text("utf-8", "replace")
    except OSError:
        return None
    return re.split(r"(?m)^---- step \d+\n", text)[-1].removesuffix("\n")


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def status(folder: Path, summary: dict[str, Any]) -> str:
    """Return the run's status: the summary's, but `killed` if that is `running` and nobody holds the folder."""
    said = str(summary.get("status", "unknown"))
    return "killed" if said == "running" and not is_held(folder) else said


def holder(folder: Path) -> int | None:
    """Return the process on this machine that trains in the folder, None if there is none."""
    found = _read_json(folder / HOLDER) or {}
    return int(found["pid"]) if found.get("host") == platform.node() and is_held(folder) else None


def is_held(folder: Path) -> bool:
    """Tell whether a process trains in the folder right now."""
    from filelock import FileLock, Timeout

    if not (folder / LOCK).exists():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0.1, poll_interval=0.02):  # who else asks holds it for a moment
            return False
    except Timeout:
        return True
    except OSError:  # somebody else's folder, that may only be read
        return False


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of what computes the run's figures."""
    found = {"python": platform.python_version()}
    for package in ("bigramlm", "torch", "numpy", "hydra-core", "omegaconf"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a checkout that is not installed
            found[package] = "not installed"
    return found


def process() -> dict[str, Any]:
    """Describe this process, so that a run that says `running` can be distinguished from a killed one."""
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"started": started, "host": platform.node(), "pid": os.getpid()}


@functools.cache  # the code that runs is the one that the process began with
def git_state() -> dict[str, Any] | None:
    """Return the commit of the checkout, and whether anything was changed or added since; None outside a checkout."""
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
    files.write(path, [content.encode()], durable=False)


def _write_over(path: Path, content: bytes) -> None:
    # Where the file stands, which takes no room but for what it grows by; if that is not to be had, it is as it was.
    with path.open("r+b", buffering=0) as file:
        before = file.read()
        for text in (content, before):
            file.seek(0)
            try:
                if file.write(text) == len(text):
                    file.truncate()
                    break
            except OSError:
                continue
    if text is before:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
