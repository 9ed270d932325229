"""Saving, finding, restoring and removing the checkpoints of a run."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
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
    sync_all,
    write_json,
    write_manifest,
)
from bigramlm.checkpoint.state import training_state
from bigramlm.errors import UserError, require
from bigramlm.utils import files, paths

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AdapterState:
    """The adapter of a model and the base weights that it is trained on."""

    adapter: LoRA
    base: BaseWeights


@dataclass(frozen=True)
class Contents:
    """The objects that every checkpoint of a run is saved from."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    tokenizer: str
    """The tokenizer as JSON."""
    config: str
    """The run's config as YAML."""
    adapter: AdapterState | None = None
    """The adapter, which is saved instead of the weights; None if there is none."""


class Checkpoints:
    """The checkpoints of a run: folders `step_<n>` and files `last` and `best`.

    `last` and `best` contain the name of a folder. A folder contains the weights, the optimizer and random state, the
    progress of the run, the tokenizer, the run's config, and a manifest with every file's size and SHA-256.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """Return the folder that `last` or `best` names; raise UserError if none."""
        try:
            step = (self.folder / name).read_text("utf-8").strip()
        except (OSError, ValueError) as error:
            raise UserError(f"{self.folder / name}: names no checkpoint: it cannot be read ({error})") from None
        require(paths.step_of(step) is not None, f"{self.folder / name}: names no checkpoint: {step[:60]!r}")
        return self.folder / step

    def steps(self) -> list[int]:
        """List the steps that have a checkpoint, complete or not, in ascending order."""
        steps = (paths.step_of(path.name) for path in self.folder.glob("step_*"))
        return sorted(step for step in steps if step is not None)

    def newest(self) -> Checkpoint | None:
        """Return the newest complete checkpoint, or None if there are no checkpoints.

        Logs a warning with the reason for every checkpoint that is skipped. Raises UserError if none of the checkpoints
        is complete.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return Checkpoint(self.folder / f"step_{step}")
            except UserError as error:
                log.warning("skipped: %s", error)
        require(not steps, f"{self.folder}: none of the {len(steps)} checkpoints is complete")
        return None

    def quarantine(self, *, after: int | None) -> None:
        """Rename the checkpoints after a step to `damaged_step_<n>.<random>`.

        They are not complete and were skipped on resuming. after: the step, None to rename none.
        """
        for step in self.steps():
            if after is not None and step > after:
                path = self.folder / f"step_{step}"
                path.rename(self.folder / f"damaged_{path.name}.{uuid.uuid4().hex[:6]}")

    def best_at(self, resumed: Checkpoint) -> dict[str, float]:
        """Return the best evaluation of the run that resumes from a checkpoint.

        Returns an empty dict if the best checkpoint is lost, so that the next evaluation becomes the best one.
        """
        if resumed.best and resumed.best["step"] != resumed.step:
            try:
                Checkpoint(self.folder / f"step_{resumed.best['step']}")
            except UserError as error:
                log.warning("the best checkpoint is lost (%s); the next evaluation becomes the best one", error)
                return {}
        return resumed.best

    def clean_up(self) -> None:
        """Restore or remove the temporary files and folders that a crash left.

        A complete temporary folder is renamed to its step if this step has no folder. The caller must hold the run's
        lock.
        """
        for path in self.folder.glob(".*"):
            if path.is_dir():
                final = path.with_name(path.name.split(".")[1])
                with contextlib.suppress(UserError):
                    Checkpoint(path)
                    if not final.exists():
                        path.rename(final)
                        continue
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


class CheckpointManager(Checkpoints):
    """The checkpoints of a training run, which saves, restores and removes them."""

    def __init__(self, folder: Path, contents: Contents, *, keep: int = 1) -> None:
        """Store the sources; keep: the number of newest checkpoints to keep.

        The best checkpoint is kept in addition to them.
        """
        super().__init__(folder)
        self.contents = contents
        self._keep = keep
        self._restored: Checkpoint | None = None

    def has(self, progress: Progress) -> bool:
        """Check whether the run was restored from exactly this state.

        The state differs if another step has become the best one since.
        """
        restored = self._restored
        return restored is not None and (restored.step, restored.best) == (progress.step, progress.best)

    def save(self, progress: Progress) -> None:
        """Save the state and make it `last`.

        The folder is written under a temporary name, synced to disk and renamed: after a crash at any moment it is
        complete or absent. Raises UserError if it cannot be written.
        """
        if not self.has(progress):
            self.folder.mkdir(exist_ok=True)
            final = self.folder / f"step_{progress.step}"
            temporary = files.temporary_path(final)
            try:
                temporary.mkdir()
                self._write(temporary, final, progress)
                sync_all(temporary)
                _replace(temporary, final)
            except SafetensorError as error:
                raise UserError(f"{final}: the checkpoint cannot be written: {error}") from error
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        self.update_pointers(progress.step, best=int(progress.best["step"]) if progress.best else None)

    def _write(self, folder: Path, final: Path, progress: Progress) -> None:
        contents = self.contents
        tensors, plain = training_state(contents.model, contents.optimizer)
        if contents.adapter is None:
            save_model(contents.model, str(folder / MODEL))
        else:
            base = contents.adapter.base
            contents.adapter.adapter.save(folder, base=base.location)
            write_json(folder / BASE, {**base.to_dict(), "from_here": _relative_location(base.location, final)})
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
            },
        )
        (folder / TOKENIZER).write_text(contents.tokenizer + "\n", "utf-8")
        (folder / CONFIG).write_text(contents.config, "utf-8")
        write_manifest(folder, progress.step)

    def restore(self, checkpoint: Checkpoint) -> Progress:
        """Restore the state of a checkpoint and return its progress.

        The progress has no best evaluation if the best checkpoint is lost. Raises UserError if the checkpoint cannot be
        restored.
        """
        contents = self.contents
        checkpoint.restore(contents.model, contents.optimizer, contents.adapter.adapter if contents.adapter else None)
        with checkpoint.reading(STATE):
            if contents.scaler.is_enabled() and checkpoint.state["scaler"]:
                contents.scaler.load_state_dict(checkpoint.state["scaler"])
        self._restored = checkpoint
        return replace(checkpoint.progress, best=self.best_at(checkpoint))

    def update_pointers(self, step: int, *, best: int | None) -> None:
        """Write the names of `last` and `best` and remove old checkpoints.

        step: the step that was saved last; best: the best step, None if there is none.
        """
        for name, target in (("last", step), ("best", best)):
            if target is not None:
                # Not synced to disk, because resuming depends on neither file.
                files.write(self.folder / name, [f"step_{target}\n".encode()], durable=False)
        self._prune(step, best)

    def _prune(self, just_saved: int, best: int | None) -> None:
        steps = self.steps()
        for step in set(steps) - {just_saved, best, *steps[-self._keep :]}:
            path = self.folder / f"step_{step}"
            if pin_path(path).exists():
                continue
            try:
                shutil.rmtree(path.rename(files.temporary_path(path)))
            except OSError as error:  # another process may be reading it; the next save tries again
                log.warning("%s: cannot be removed: %s", path, error.strerror)


def _relative_location(location: str, checkpoint: Path) -> str | None:
    # Returns the relative path from a checkpoint to its base, which finds the base if both are moved together.
    if not Path(location).is_absolute():
        return None
    with contextlib.suppress(ValueError):  # the two are on different drives
        return os.path.relpath(location, checkpoint)
    return None


def _replace(temporary: Path, final: Path) -> None:
    # Replaces an existing checkpoint of the same step: the step may have become the best one since the run resumed.
    replaced = final.rename(files.temporary_path(final)) if final.exists() else None
    temporary.rename(final)
    files.sync(final.parent)
    if replaced is not None:
        shutil.rmtree(replaced)
