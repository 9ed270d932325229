"""Classes that find, save, restore and delete the checkpoints of a run."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file, save_model
from torch import nn

from bigramlm.adapter.lora import LoRA
from bigramlm.checkpoint.checkpoint import BaseWeights, Checkpoint, Progress, pin_path
from bigramlm.checkpoint.format import (
    BASE,
    CONFIG,
    MODEL,
    STATE,
    TOKENIZER,
    TRAINING,
    MissingCheckpointError,
    foreign_entry,
    is_checkpoint,
    sync_all,
    write_json,
    write_manifest,
)
from bigramlm.checkpoint.reading import retry
from bigramlm.checkpoint.state import training_state
from bigramlm.errors import UserError, require
from bigramlm.utils import documents, files, paths
from bigramlm.utils.tensors import writing

log = logging.getLogger(__name__)

# The entries of summary.json from which it is rebuilt if a power cut has damaged it.
_RECOVERED = ("id", "name", "note", "started", "overrides", "asked", "resumed", "data")


@dataclass(frozen=True)
class AdapterState:
    """The adapter of a model, and the base weights on which it is trained."""

    adapter: LoRA
    base: BaseWeights


@dataclass(frozen=True)
class Contents:
    """The objects whose state is saved in every checkpoint of a run."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    tokenizer: str
    """The tokenizer as JSON."""
    config: str
    """The run's config as YAML."""
    adapter: AdapterState | None = None
    """The adapter, which is saved instead of the model weights; None for a run without an adapter."""
    summary: dict[str, Any] = field(default_factory=dict)
    """The entries of summary.json, which change during the run."""


class Checkpoints:
    """The checkpoints of a run: folders `step_<n>` and files `last` and `best`.

    `last` and `best` each contain the name of a checkpoint folder. A checkpoint folder contains the weights, the
    optimizer and random state, the progress of the run, the tokenizer, the run's config, and a manifest with the size
    and SHA-256 of every file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """Return the checkpoint folder that the file `last` or `best` names.

        name: the name of the file. Raises UserError if the file cannot be read or contains no folder name.
        """
        try:
            step = documents.read(self.folder / name).decode().strip()
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.folder / name}: the file, which names a checkpoint, cannot be read ({error})"
            ) from None
        require(
            paths.step_of(step) is not None,
            f"{self.folder / name}: the file must contain the name of a checkpoint, but contains {step[:60]!r}",
        )
        return self.folder / step

    def steps(self) -> list[int]:
        """List the steps that have a checkpoint folder, in ascending order.

        The list includes steps whose checkpoint is not complete.
        """
        steps = (paths.step_of(path.name) for path in self.folder.glob("step_*") if path.is_dir())
        return sorted(step for step in steps if step is not None)

    def newest(self) -> Checkpoint | None:
        """Return the newest complete checkpoint, or None if there are no checkpoints.

        Every checkpoint that is not complete is skipped with a warning that gives the reason. If the run deletes a
        checkpoint meanwhile, the search starts again. Raises UserError if there are checkpoints and none of them is
        complete.
        """
        return retry(self._newest)

    def _newest(self) -> Checkpoint | None:
        steps, skipped, found = self.steps(), list[UserError](), None
        for step in reversed(steps):
            try:
                found = Checkpoint(self.folder / f"step_{step}")
                break
            except MissingCheckpointError:
                raise
            except UserError as error:
                skipped.append(error)
        for reason in skipped:
            log.warning("checkpoint skipped: %s", reason)
        require(
            found is not None or not steps,
            f"{self.folder}: none of the {len(steps)} checkpoints in this folder is complete",
        )
        return found

    def quarantine(self, *, after: int | None) -> None:
        """Rename the checkpoints after a step to `damaged_step_<n>.<random>`.

        These checkpoints are not complete and were skipped on resuming. Folders without any file of a checkpoint are
        left alone. after: the step from which the run resumes; if None, no checkpoint is renamed.
        """
        for path in (self.folder / f"step_{step}" for step in self.steps() if after is not None and step > after):
            if is_checkpoint(path):
                files.set_aside(path)

    def best_at(self, resumed: Checkpoint) -> dict[str, float]:
        """Return the best evaluation up to the checkpoint from which the run resumes.

        resumed: the checkpoint from which the run resumes. Returns an empty dict if the best checkpoint is missing or
        damaged; in that case, the next evaluation becomes the best one.
        """
        if resumed.best and resumed.best["step"] != resumed.step:
            try:
                Checkpoint(self.folder / f"step_{resumed.best['step']}")
            except UserError as error:
                log.warning("the best checkpoint is unusable (%s), so the next evaluation becomes the best one", error)
                return {}
        return resumed.best

    def clean_up(self) -> None:
        """Restore or delete the temporary files and folders that a crash left behind.

        A temporary folder with a complete checkpoint is renamed to `step_<n>`, unless that folder exists. All other
        temporary files and folders are deleted. Everything else, such as a user's hidden file, is left alone, and so is
        a temporary file or folder that cannot be deleted. The caller must hold the run's lock.
        """
        for path in self.folder.glob(".*"):
            name = files.final_name(path.name)
            if name is None or path.is_symlink():
                continue
            is_marker = name.endswith(".kept") and paths.step_of(name.removesuffix(".kept")) is not None
            with contextlib.suppress(OSError):
                if paths.step_of(name) is not None and path.is_dir():
                    _recover(path, path.with_name(name))
                elif (name in ("last", "best") or is_marker) and path.is_file():
                    path.unlink()


class CheckpointManager(Checkpoints):
    """The checkpoints of a training run, with methods to save and restore them."""

    def __init__(
        self, folder: Path, contents: Contents, *, keep: int = 1, keeps: Callable[[int], bool] = lambda _: False
    ) -> None:
        """Store the folder, the objects to save and the number of checkpoints to keep.

        keep: the number of newest checkpoints to keep. The best checkpoint is kept in addition to them, and so are
        those of the steps for which `keeps` returns True.
        """
        super().__init__(folder)
        self.contents = contents
        self._keep, self._keeps = keep, keeps
        self._restored: Checkpoint | None = None
        self._left: set[Path] = set()  # the old checkpoints that cannot be deleted, of which a warning was logged

    def has(self, progress: Progress) -> bool:
        """Return True if the run was restored from a checkpoint with this progress.

        A checkpoint also stores the best step. If a different step has become the best one since the run was restored,
        the result is False.
        """
        restored = self._restored
        return restored is not None and (restored.step, restored.best) == (progress.step, progress.best)

    def save(self, progress: Progress, sync_records: Callable[[], None] | None = None) -> None:
        """Save a checkpoint, and update `last` and `best`.

        sync_records: syncs the records that the checkpoint counts on. It is called when the files of the checkpoint are
        written, but not yet synced, because a disk then writes all of them together.

        The folder is written under a temporary name, synced to disk and renamed, so that the checkpoint is complete or
        absent after a crash at any moment. No checkpoint is written if the run was restored from exactly this state.
        Raises UserError if the checkpoint cannot be written.
        """
        if not self.has(progress):
            files.make_folder(self.folder)
            final = self.folder / f"step_{progress.step}"
            temporary = files.temporary_path(final)
            try:
                temporary.mkdir()
                self._write(temporary, final, progress)
                if sync_records is not None:
                    sync_records()
                sync_all(temporary)
                _replace(temporary, final)
            except OSError as error:
                raise files.unwritable(final, error) from error
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        self.update_pointers(progress.step, best=int(progress.best["step"]) if progress.best else None)

    def _write(self, folder: Path, final: Path, progress: Progress) -> None:
        contents = self.contents
        tensors, plain = training_state(contents.model, contents.optimizer)
        if contents.adapter is None:
            with writing(folder / MODEL):
                save_model(contents.model, str(folder / MODEL))
        else:
            base = contents.adapter.base
            contents.adapter.adapter.save(folder, base=base.location)
            write_json(folder / BASE, {**base.to_dict(), "from_here": _relative_location(base.location, final)})
        with writing(folder / TRAINING):
            save_file(tensors, str(folder / TRAINING), metadata={"optimizer": json.dumps(plain)})
        write_json(
            folder / STATE,
            {
                "step": progress.step,
                "seconds": progress.seconds,
                "best": progress.best,
                "scaler": contents.scaler.state_dict(),
                "waited": progress.waited,
                "evaluated": progress.evaluated,
                "metrics_bytes": progress.metrics_bytes,
                "summary": {name: contents.summary[name] for name in _RECOVERED if name in contents.summary},
            },
        )
        (folder / TOKENIZER).write_text(contents.tokenizer + "\n", "utf-8")
        (folder / CONFIG).write_text(contents.config, "utf-8")
        write_manifest(folder, progress.step)

    def restore(self, checkpoint: Checkpoint) -> Progress:
        """Restore the run's state from a checkpoint, and return the progress.

        The progress contains no best evaluation if the best checkpoint is missing or damaged. Raises UserError if the
        state cannot be restored.
        """
        contents = self.contents
        checkpoint.restore(contents.model, contents.optimizer, contents.adapter.adapter if contents.adapter else None)
        with checkpoint.reading(STATE):
            if contents.scaler.is_enabled() and checkpoint.state["scaler"]:
                contents.scaler.load_state_dict(checkpoint.state["scaler"])
        self._restored = checkpoint
        return replace(checkpoint.progress, best=self.best_at(checkpoint))

    def update_pointers(self, step: int, *, best: int | None) -> None:
        """Update the files `last` and `best`, and delete old checkpoints.

        step: the step that was saved last. best: the step of the best evaluation; if None, `best` is not written.
        """
        for name, target in (("last", step), ("best", best)):
            if target is not None:
                # Not synced to disk until training ends, because resuming depends on neither file.
                files.write(self.folder / name, [f"step_{target}\n".encode()], durable=False)
        self._prune(step, best)

    def sync(self) -> None:
        """Sync `last`, `best` and the removal of old checkpoints to disk."""
        for path in (self.folder / "last", self.folder / "best", self.folder):
            if path.exists():
                files.sync(path)

    def _prune(self, just_saved: int, best: int | None) -> None:
        steps = []
        for step in self.steps():
            if is_checkpoint(self.folder / f"step_{step}"):
                steps.append(step)
                continue
            with contextlib.suppress(OSError):  # it is not empty
                (self.folder / f"step_{step}").rmdir()  # a power cut kept the name of a deleted checkpoint
        for step in sorted(set(steps) - {just_saved, best, *steps[-self._keep :]}):
            path = self.folder / f"step_{step}"
            if self._keeps(step) or pin_path(path).exists() or path in self._left:
                continue
            try:
                foreign = foreign_entry(path)
                if foreign is None:
                    shutil.rmtree(path.rename(files.temporary_path(path)))
                    continue
            except OSError as error:  # another process may be reading the checkpoint; the next save tries again
                log.warning("%s: this old checkpoint could not be deleted: %s", path, error.strerror)
                continue
            reason = "is a link" if foreign == path else f"contains {foreign.name!r}, which is not part of a checkpoint"
            log.warning("%s: this old checkpoint is not deleted, because it %s", path, reason)
            self._left.add(path)


def _relative_location(location: str, checkpoint: Path) -> str | None:
    # Returns the relative path from a checkpoint to its base, so that the base is found if both are moved together.
    if not Path(location).is_absolute():
        return None
    with contextlib.suppress(ValueError):  # the two are on different drives
        return os.path.relpath(location, checkpoint)
    return None


def _recover(temporary: Path, final: Path) -> None:
    # Renames a temporary folder with a complete checkpoint, unless the step has one already; deletes any other one.
    with contextlib.suppress(UserError):
        Checkpoint(temporary)
        if not final.exists():
            temporary.rename(final)
            return
    if foreign_entry(temporary) is None:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace(temporary: Path, final: Path) -> None:
    # Replaces an existing checkpoint of the same step, because the step may have become the best one since the run
    # resumed. What is not a checkpoint is renamed.
    replaced = None
    if os.path.lexists(final):
        if final.is_dir() and foreign_entry(final) is None:
            replaced = final.rename(files.temporary_path(final))
        else:
            log.warning("%s is in the way of a checkpoint and is renamed to %s", final, files.set_aside(final).name)
    temporary.rename(final)
    files.sync(final.parent)
    if replaced is not None:
        shutil.rmtree(replaced, ignore_errors=True)  # the next resume tries again
