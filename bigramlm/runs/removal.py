"""Deletion of runs and sweeps, except those that others need."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bigramlm.errors import UserError
from bigramlm.runs.find import PLAN
from bigramlm.runs.folder import FINISHED, HOLDER, LOCK, is_locked
from bigramlm.runs.summary import RunSummary
from bigramlm.runs.walk import DELETED, run_folders
from bigramlm.utils.console import relative

# The entries of run and sweep folders that bigramlm, Hydra, TensorBoard and W&B write.
_OURS = {
    *("config.yaml", "metrics.jsonl", "summary.json", "samples.txt", "train.log", "checkpoints", "wandb", LOCK, HOLDER),
    *(
        "report.html",
        "look.html",
        "results.csv",
        "results.md",
        "study.db",
        "multirun.yaml",
        ".hydra",
        ".submitit",
        PLAN,
    ),
}
_OURS_PATTERN = re.compile(
    r"events\.out\.tfevents\..*|damaged_.*|.*\.damaged(_\d+)?|study\.db-(journal|wal|shm)|\..*\.tmp"
)
_CHECKPOINT = re.compile(r"(step_\d+|damaged_.*|last|best|\..*)")


@dataclass(frozen=True)
class Plan:
    """The folders that a deletion concerns."""

    folders: list[Path] = field(default_factory=list)
    """The folders to delete."""
    kept: dict[Path, str] = field(default_factory=dict)
    """The folders that stay, each with the reason."""


def plan_removal(targets: Sequence[Path], everything: Iterable[RunSummary]) -> Plan:
    """Decide which of these run and sweep folders can be deleted.

    Nothing is deleted yet. A run stays while a process trains in it, if it is a job of a sweep that stays, if an
    adapter or a run that is not finished needs its weights, or if its folder contains something that no run writes.
    everything: all runs that might need one of the targets.
    """
    chosen = {target.resolve(): target for target in targets}
    plan = Plan()
    runs = [(run, run.folder.resolve()) for run in everything]
    for real, folder in chosen.items():
        reason = _reason(folder, real, chosen)
        if reason:
            plan.kept[folder] = reason
        elif not any(parent in chosen for parent in real.parents):  # else it is deleted with its sweep
            plan.folders.append(folder)
    return _without_needed(plan, runs)


def remove(folder: Path) -> None:
    """Delete a folder; no link in it is followed.

    The folder is renamed first, so that an interrupted deletion leaves no half of a run; the next deletion beside it
    completes the interrupted one. An empty folder of a day is deleted too. Raises UserError if the operating system
    refuses.
    """
    real = folder.resolve()
    try:
        real.rename(real.with_name(f"{DELETED}{real.name}"))
        for hidden in real.parent.glob(f"{DELETED}*"):
            shutil.rmtree(hidden)
        if re.fullmatch(r"\d{4}-\d\d-\d\d", real.parent.name) and not any(real.parent.iterdir()):
            real.parent.rmdir()
    except OSError as error:
        raise UserError(f"{folder} cannot be deleted: {error.strerror}; check the permissions of the folder") from None


def size_of(folder: Path) -> int:
    """Return the number of bytes that the files in a folder occupy."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(parent) / name).lstat().st_size
            except OSError:  # deleted meanwhile
                continue
    return total


def _without_needed(plan: Plan, runs: list[tuple[RunSummary, Path]]) -> Plan:
    # A folder that stays may need another: repeat until nothing changes.
    while True:
        going = {folder.resolve(): folder for folder in plan.folders}
        needed = {folder: reason for real, folder in going.items() if (reason := _user(real, going, runs))}
        if not needed:
            return plan
        plan = Plan([folder for folder in plan.folders if folder not in needed], {**plan.kept, **needed})


def _reason(folder: Path, real: Path, chosen: dict[Path, Path]) -> str | None:
    # Return the reason in the folder itself why it stays.
    jobs = [real, *run_folders(real)]
    if any(is_locked(job) for job in jobs):
        return "a process trains in it"
    if folder.is_symlink():
        return "it is a link"
    if (real.parent / PLAN).exists() and not any(parent in chosen for parent in real.parents):
        return f"it is a job of the sweep {real.parent.name}, whose table needs it; delete the sweep as a whole"
    foreign = next(iter(_foreign(real)), None)
    return None if foreign is None else f"it contains {foreign.relative_to(real)}, which no run writes; move it away"


def _foreign(folder: Path) -> Iterable[Path]:
    for path in sorted(folder.iterdir()):
        is_job = path.is_dir() and path.name.isdecimal() and (folder / PLAN).exists()
        if is_job:
            yield from _foreign(path)
        elif path.is_symlink() or not (path.name in _OURS or _OURS_PATTERN.fullmatch(path.name)):
            yield path
        elif path.name == "checkpoints" and path.is_dir():
            yield from (entry for entry in sorted(path.iterdir()) if not _CHECKPOINT.fullmatch(entry.name))


def _user(real: Path, going: dict[Path, Path], runs: list[tuple[RunSummary, Path]]) -> str | None:
    # Return the reason why another run, which is not deleted, needs a folder.
    for run, place in runs:
        if any(path in going for path in (place, *place.parents)):
            continue
        needed = {"adapter": run.part("base").get("place")}
        if run.status not in FINISHED:
            needed["unfinished run"] = run.get("init_from") or run.typed.get("init_from")
        for kind, location in needed.items():
            if isinstance(location, str) and location not in ("", "null") and _is_in(location, real):
                return f"the {kind} {relative(run.folder)} needs its weights"
    return None


def _is_in(location: str, folder: Path) -> bool:
    try:
        path = Path(location).resolve()
    except (OSError, ValueError, RuntimeError):
        return False
    return path == folder or folder in path.parents
