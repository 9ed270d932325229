"""The run folder: its lock, config.yaml, summary.json and samples.txt."""

import contextlib
import errno
import functools
import json
import logging
import os
import platform
import uuid
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bigramlm.errors import UserError, require
from bigramlm.runs.discard import close_logs, discard, is_new, log_names, write_logs
from bigramlm.runs.naming import retyped
from bigramlm.runs.recovery import config_file, is_config, is_torn, recovered_summary, sound
from bigramlm.runs.walk import run_folders
from bigramlm.utils import documents, files
from bigramlm.utils.locks import Lock

LOCK, HOLDER = ".lock", ".lock.json"

# The first characters of summary.json and of HOLDER.
_SUMMARY_START, _HOLDER_START = '{\n "id": "', '{"started": "'

_FILES = ("config.yaml", "summary.json", "metrics.jsonl", "samples.txt", "checkpoints/last", "checkpoints/best")

FINISHED = ("completed", "pruned")
"""The statuses of runs that need no further work."""

log = logging.getLogger(__name__)


class RunFolder:
    """The folder of a run.

    The run's status and results are recorded in summary.json. A crash cannot leave a partly written summary.json,
    except on a full disk.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.yaml"
        self.summary: dict[str, Any] = {}
        self.begun = False
        self._lock = Lock(path / LOCK)
        self._has_been_locked = False
        self._has_trained = False

    def claim(self) -> None:
        """Prepare the folder for a new run.

        Raises UserError if the folder contains the metrics or checkpoints of a run, or a config.yaml of something else,
        because they must not be overwritten. Other runs in folders below are refused too: they would look like parts
        of this run.
        """
        require_own_place(self.path)
        if (self.path / "metrics.jsonl").exists() or any(self.path.glob("checkpoints/step_*")):
            raise UserError(
                f"{self.path} already contains a run, which would be overwritten; resume that run with "
                f"resume={self.path}, or choose a different folder"
            )
        summary_file = self.path / "summary.json"
        has_summary = "id" in (read_summary(self.path) or {}) or is_torn(summary_file, _SUMMARY_START)
        others = ["checkpoints"] if (self.path / "checkpoints").is_file() else []
        if not has_summary:
            others += ["config.yaml", "summary.json", "samples.txt", "checkpoints/last", "checkpoints/best"]
            others += log_names(self.path)
        for path in (self.path / name for name in others):
            require(
                not os.path.lexists(path),
                f"{path} was not written by a run, and would be overwritten; choose a different folder",
            )
        other = next((folder for folder in run_folders(self.path) if folder != self.path), None)
        require(
            other is None,
            f"{self.path} contains other runs, such as {other}; choose a folder of its own for this run, or omit "
            "hydra.run.dir",
        )
        self.summary = {"id": uuid.uuid4().hex[:12]}

    def has_run_of(self, hashes: Sequence[str], *, planned: str | None = None) -> bool:
        """Check whether the folder contains a run with a given config.

        hashes: the `config_hashes` of the config. planned: the hash of the run according to its sweep, for a summary
        that cannot be read.
        """
        found = read_summary(self.path)
        if found is None and (self.path / "summary.json").exists():
            found = {"asked": planned, **recovered_summary(self.path)}
        return (found or {}).get("asked") in hashes and is_config(config_file(self.path))

    def reopen(self) -> None:
        """Find the summary and the config of the run that resumes; no file is changed.

        A summary that cannot be read is rebuilt from the newest checkpoint.
        """
        found, self.config_file = read_summary(self.path), config_file(self.path)
        if found is None:
            log.warning("%s: summary.json cannot be read, so it is rebuilt", self.path)
            found = recovered_summary(self.path)
        if self.config_file.parent != self.path:
            name = self.config_file.relative_to(self.path)
            log.warning("%s: config.yaml is missing or damaged, so the run continues with %s", self.path, name)
        self.summary = found
        self.summary.setdefault("id", uuid.uuid4().hex[:12])

    def begin(self, overrides: list[str], *, resumed_at: int | None = None) -> None:
        """Record in the summary that the run has started or resumed.

        After this call, the status at the end of the run is recorded too. resumed_at: the step from which the run
        resumes; None for a new run.
        """
        self.begun = True
        if resumed_at is None:
            self.update_summary(status="running", step=0, overrides=overrides, **process())
            return
        for outcome in ("error", "final", "references", "early_stopped"):
            self.summary.pop(outcome, None)
        now = retyped(overrides) | process()
        resumed = {"step": resumed_at, "overrides": overrides, "started": now["started"]}
        self.update_summary(
            status="running", step=resumed_at, resumed=[*self.summary.get("resumed", []), resumed], **now
        )

    def begin_training(
        self, config: str, overrides: list[str], resumed_at: int | None, *, is_changed: bool = False
    ) -> None:
        """Save the resolved config, which is YAML, and record a resume in the summary.

        resumed_at: the step from which the run resumes; None for a new run. is_changed: if True, the config differs
        from that before the resume, so a sweep must no longer recognise the run as its job.
        """
        if resumed_at is not None:
            if is_changed:
                self.summary["asked"] = None
            self.begin(overrides, resumed_at=resumed_at)
        self._has_trained = True
        self.keep_log()
        self.save_config(config, overrides, resumed_at=resumed_at, durable=True)

    @property
    def is_discardable(self) -> bool:
        """True if the run has not trained, and no earlier run recorded a summary here."""
        is_own = not self.begun or is_new(self.path / "summary.json")
        return self._has_been_locked and not self._has_trained and is_own

    def discard(self) -> None:
        """Delete all that was made for a run which was refused before it trained.

        Files and folders that existed before the run stay. Must be called after the lock was released.
        """
        logs = [] if self._has_trained else close_logs(self.path)
        if self.is_discardable:
            written = ["summary.json", "config.yaml"] if self.begun else []
            discard(self.path, [*written, *logs, LOCK, HOLDER])

    def keep_log(self) -> None:
        """Write what the run has logged so far, because its folder stays."""
        write_logs(self.path)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder, so that no other process can train in it.

        The operating system releases the lock when the process ends, even if it crashes. Raises UserError if another
        process holds the lock.
        """
        require_plain(self.path)
        old = self.path / HOLDER  # of a process that was killed
        require(
            not old.exists() or "pid" in (_read_json(old) or {}) or is_torn(old, _HOLDER_START),
            f"{old} was not written by a run, and would be overwritten; choose a different folder",
        )
        self._has_been_locked = True  # also if no process can lock it
        try:
            self._acquire_lock()
            yield
        finally:
            if self._lock.is_held:
                (self.path / HOLDER).unlink(missing_ok=True)
            self._lock.release()

    def keep_lock(self) -> None:
        """Lock the folder again if its lock file was deleted.

        Raises UserError if another process has locked the folder meanwhile; this run must then write nothing more.
        """
        if not self._lock.is_lost:
            return
        require(self.path.is_dir(), f"{self.path} was deleted while a run trained in it, so nothing more can be saved")
        log.warning("%s was deleted or replaced during the run, so the folder is locked again", self._lock.path)
        self._lock.release()
        try:
            self._acquire_lock()
        except UserError:
            self.begun = False  # the summary is that of the other process
            raise

    def _acquire_lock(self) -> None:
        if not self._lock.acquire(timeout=1):  # waits, because runs.py list holds the lock briefly
            self._has_been_locked = False
            holder = _read_json(self.path / HOLDER) or {}
            raise UserError(
                f"{self.path}: another process trains in it: pid {holder.get('pid')} on {holder.get('host')}, "
                f"since {holder.get('started')}; wait for that process, stop it, or choose a different folder"
            )
        files.write(self.path / HOLDER, [json.dumps(process()).encode()], durable=False)

    def save_config(
        self, yaml: str, overrides: list[str], *, resumed_at: int | None = None, durable: bool = False
    ) -> None:
        """Write config.yaml: the overrides as comments, followed by the config as YAML.

        The comments of a resumed run include the overrides with which the run was started. resumed_at: the step from
        which the run resumes; None for a new run. durable: if True, wait until the disk has written the file.
        """
        path = self.path / "config.yaml"
        comments = [f"# typed: {override!r}\n" for override in overrides]
        if resumed_at is not None:
            comments = [f"# typed on resuming at step {resumed_at}: {override!r}\n" for override in overrides]
            earlier = files.read_before_writing(path).decode("utf-8", "replace")
            if self.config_file != path:
                if earlier.strip("\0"):  # a person may have edited it
                    files.set_aside(path)
                earlier = "".join(f"# typed: {override!r}\n" for override in self.summary.get("overrides", []))
            comments = [line for line in earlier.splitlines(keepends=True) if line.startswith("# typed")] + comments
        files.write(path, ["".join(comments).encode(), yaml.encode()], durable=durable)

    def update_summary(self, **values: Any) -> None:
        """Update these values in summary.json and keep all other values."""
        self.summary |= values
        path, content = self.path / "summary.json", json.dumps(self.summary, indent=1, ensure_ascii=False) + "\n"
        try:
            files.write(path, [encoded := content.encode(errors="backslashreplace")], durable=False)
        except OSError:  # a full disk may still allow overwriting the file in place
            if not path.exists():
                raise
            _write_over(path, encoded)


def require_plain(folder: Path) -> None:
    """Raise UserError if a run or sweep folder contains a link, a pipe or a device.

    The command would write or delete through it. The folder itself, and those above, may be links.
    """
    checkpoints = folder / "checkpoints"
    for parent in (folder, checkpoints, *checkpoints.glob("*")) if not checkpoints.is_symlink() else (folder,):
        for entry in os.scandir(parent) if parent.is_dir() else ():
            is_plain = entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)
            kind = "a link" if entry.is_symlink() else "a pipe, a socket or a device"
            require(
                is_plain,
                f"{entry.path} is {kind}, and nothing is written to a folder that contains one: the run may come from "
                f"someone else; delete it, or replace it by {'what it leads to' if kind == 'a link' else 'a file'}",
            )
    for name in _FILES:
        path = folder / name
        require(not path.is_dir(), f"{path} is a folder, but a run writes a file of this name; move the folder away")


def require_own_place(folder: Path) -> None:
    """Raise UserError if a new run or sweep would be among the checkpoints of a run."""
    real = Path(os.path.realpath(folder))
    for path in (real, *real.parents):
        require(
            path.name != "checkpoints" or "id" not in (read_summary(path.parent) or {}),
            f"{folder} is among the checkpoints of the run {path.parent}, which deletes its old checkpoints; choose a "
            "different folder",
        )


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Read the summary in a run folder; return None if it cannot be read."""
    found = _read_json(folder / "summary.json")
    return None if found is None else sound(found, folder)


def read_config(folder: Path) -> dict[str, Any]:
    """Read the saved config of a run; return an empty dict if it cannot be read."""
    try:
        config = documents.read_yaml(documents.no_link(folder / "config.yaml"))
    except (OSError, ValueError):  # the run ended before it saved a config, or the file is damaged
        return {}
    return config if isinstance(config, dict) else {}


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = documents.read_json(documents.no_link(path))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def start_order(folder: Path, summary: dict[str, Any]) -> tuple[datetime, int, str]:
    """Return a key that sorts runs by the moment at which they began.

    Earlier versions recorded whole seconds. Jobs that began in the same second are sorted by their numbers, other runs
    by their paths. Runs without a recorded start come first.
    """
    try:
        began = datetime.fromisoformat(str(summary.get("started", "")))
    except ValueError:
        began = datetime.min
    if began.tzinfo is None:
        began = began.replace(tzinfo=timezone.utc)
    return began, int(folder.name) if folder.name.isdecimal() else -1, str(folder)


def status(folder: Path, summary: dict[str, Any]) -> str:
    """Return the status of a run, as recorded or `killed`.

    A run is `killed` if its summary says `running`, but no process has locked the folder.
    """
    recorded = str(summary.get("status", "unknown"))
    return "killed" if recorded == "running" and not is_locked(folder) else recorded


def holder(folder: Path) -> int | None:
    """Return the id of the process that trains in the folder.

    Returns None if there is no such process on this machine.
    """
    found = _read_json(folder / HOLDER) or {}
    return int(found["pid"]) if found.get("host") == platform.node() and is_locked(folder) else None


def is_locked(folder: Path) -> bool:
    """Check whether a process has locked the folder, which means that it trains there."""
    lock = Lock(folder / LOCK)
    try:
        is_free = not lock.path.exists() or lock.acquire(timeout=0.1)  # a concurrent call holds the lock briefly
    except (OSError, UserError):  # e.g. the folder is read-only
        return False
    lock.release()
    return not is_free


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect results."""
    found = {"python": platform.python_version()}
    for package in ("bigramlm", "torch", "numpy", "hydra-core", "omegaconf"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # e.g. bigramlm runs from a checkout and is not installed
            found[package] = "not installed"
    return found


def process() -> dict[str, Any]:
    """Return the start time, host name and process id of this process."""
    started = datetime.now(timezone.utc).isoformat(timespec="microseconds")
    return {"started": started, "host": platform.node(), "pid": os.getpid()}


def _write_over(path: Path, content: bytes) -> None:
    # Overwrite the file in place, which needs disk space only if the file grows. If there is no space, restore the old
    # content and raise OSError.
    with path.open("r+b", buffering=0) as file:
        old = file.read()
        for text in (content, old):
            file.seek(0)
            try:
                if file.write(text) == len(text):
                    file.truncate()
                    break
            except OSError:
                continue
    if text is old:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
