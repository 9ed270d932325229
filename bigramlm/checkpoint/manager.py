"""The checkpoints of a run: saving, finding, restoring, removing."""

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
from bigramlm.checkpoint.checkpoint import BaseWeights, Checkpoint, Progress, kept_mark
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
    """The adapter of a model, if one is trained, with the weights that it was attached to."""

    adapter: LoRA
    base: BaseWeights


@dataclass(frozen=True)
class Contents:
    """The sources of a run's checkpoints; what never changes is bound here once."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    tokenizer: str
    """As JSON."""
    config: str
    """The run's, as YAML."""
    adapter: AdapterState | None = None
    """The adapter that is saved in place of the weights, if there is one."""


class Checkpoints:
    """The checkpoints of a run: folders `step_<n>`, and the files `last` and `best`, each with the name of one.

    A folder holds the weights, what else the training needs to go on (optimizer and random state), how far the run
    was, the tokenizer, the run's config, and a manifest with every file's size and SHA-256.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """Return the folder that `last` or `best` names. UserError if it names none."""
        try:
            step = (self.folder / name).read_text("utf-8").strip()
        except (OSError, ValueError) as error:
            raise UserError(f"{self.folder / name}: names no checkpoint: it cannot be read ({error})") from None
        require(paths.step_of(step) is not None, f"{self.folder / name}: names no checkpoint: {step[:60]!r}")
        return self.folder / step

    def steps(self) -> list[int]:
        """List the steps that have a checkpoint, whole or not, in order."""
        steps = (paths.step_of(path.name) for path in self.folder.glob("step_*"))
        return sorted(step for step in steps if step is not None)

    def newest(self) -> Checkpoint | None:
        """Return the newest whole checkpoint, None if there is none at all; the log says which were skipped, and why.

        UserError where there are some and not one of them is whole.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return Checkpoint(self.folder / f"step_{step}")
            except UserError as error:
                log.warning("skipped: %s", error)
        require(not steps, f"{self.folder}: none of the {len(steps)} checkpoints is whole")
        return None

    def quarantine(self, *, after: int | None) -> None:
        """Rename the checkpoints of later steps, which were skipped because they are not whole. None renames none."""
        for step in self.steps():
            if after is not None and step > after:
                path = self.folder / f"step_{step}"
                path.rename(self.folder / f"damaged_{path.name}.{uuid.uuid4().hex[:6]}")

    def best_at(self, resumed: Checkpoint) -> dict[str, float]:
        """Return the best evaluation that a run knows of when it resumes from this checkpoint.

        Where the best checkpoint was lost, none is best until the next evaluation.
        """
        if resumed.best and resumed.best["step"] != resumed.step:
            try:
                Checkpoint(self.folder / f"step_{resumed.best['step']}")
            except UserError as error:
                log.warning("the best checkpoint is lost (%s); the next evaluation's takes its place", error)
                return {}
        return resumed.best

    def clean_up(self) -> None:
        """Put in place or remove what a crash left aside, whole or not. The run's lock must be held."""
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
    """The checkpoints of a run that trains: saves its states, restores one, and removes what is old."""

    def __init__(self, folder: Path, contents: Contents, *, keep: int = 1) -> None:
        """keep: how many of the newest stay, `best` not counted."""
        super().__init__(folder)
        self.contents = contents
        self._keep = keep
        self._restored: Checkpoint | None = None

    def has(self, progress: Progress) -> bool:
        """Tell whether a state is saved already: the run was restored from it, and has found no other to be best."""
        restored = self._restored
        return restored is not None and (restored.step, restored.best) == (progress.step, progress.best)

    def save(self, progress: Progress) -> None:
        """Save the state as `last`.

        The folder is written aside, synced and renamed: a crash at any moment leaves it whole or absent.
        """
        if not self.has(progress):
            self.folder.mkdir(exist_ok=True)
            final = self.folder / f"step_{progress.step}"
            aside = files.aside(final)
            try:
                aside.mkdir()
                self._write(aside, final, progress)
                sync_all(aside)
                _put(aside, final)
            except SafetensorError as error:
                raise UserError(f"{final}: the checkpoint could not be written: {error}") from error
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        self.update_pointers(progress.step, best=int(progress.best["step"]) if progress.best else None)

    def _write(self, aside: Path, final: Path, progress: Progress) -> None:
        of = self.contents
        tensors, plain = training_state(of.model, of.optimizer)
        if of.adapter is None:
            save_model(of.model, str(aside / MODEL))
        else:
            base = of.adapter.base
            of.adapter.adapter.save(aside, base=base.location)
            write_json(aside / BASE, {**base.to_dict(), "from_here": _from_here(base.location, final)})
        save_file(tensors, str(aside / TRAINING), metadata={"optimizer": json.dumps(plain)})
        write_json(
            aside / STATE,
            {
                "step": progress.step,
                "seconds": progress.seconds,
                "best": progress.best,
                "scaler": of.scaler.state_dict(),
                "waited": progress.waited,
                "evaluated": progress.evaluated,
            },
        )
        (aside / TOKENIZER).write_text(of.tokenizer + "\n", "utf-8")
        (aside / CONFIG).write_text(of.config, "utf-8")
        write_manifest(aside, progress.step)

    def restore(self, checkpoint: Checkpoint) -> Progress:
        """Put everything in place as it was when the checkpoint was saved, and return how far the run was.

        UserError where that cannot be. Where the best checkpoint was lost, none is best until the next evaluation.
        """
        of = self.contents
        checkpoint.restore(of.model, of.optimizer, of.adapter.adapter if of.adapter else None)
        with checkpoint.reading(STATE):
            if of.scaler.is_enabled() and checkpoint.state["scaler"]:
                of.scaler.load_state_dict(checkpoint.state["scaler"])
        self._restored = checkpoint
        return replace(checkpoint.progress, best=self.best_at(checkpoint))

    def update_pointers(self, step: int, *, best: int | None) -> None:
        """Name a step that is saved as `last`, and the best one as `best`; remove what is old."""
        for name, named in (("last", step), ("best", best)):
            if named is not None:
                # Not synced: going on relies on neither of them.
                files.write(self.folder / name, [f"step_{named}\n".encode()], durable=False)
        self._prune(step, best)

    def _prune(self, just_saved: int, best: int | None) -> None:
        steps = self.steps()
        for step in set(steps) - {just_saved, best, *steps[-self._keep :]}:
            path = self.folder / f"step_{step}"
            if kept_mark(path).exists():
                continue
            try:
                shutil.rmtree(path.rename(files.aside(path)))
            except OSError as error:  # somebody reads it, perhaps; it is tried again after the next save
                log.warning("%s: could not be removed: %s", path, error.strerror)


def _from_here(place: str, here: Path) -> str | None:
    # The way from a checkpoint to a folder near by, which may move together with it.
    if not Path(place).is_absolute():
        return None
    with contextlib.suppress(ValueError):  # on another drive
        return os.path.relpath(place, here)
    return None


def _put(aside: Path, final: Path) -> None:
    # Where the same step is there already, it gives way: a run resumed from it may have found it to be the best since.
    replaced = final.rename(files.aside(final)) if final.exists() else None
    aside.rename(final)
    files.sync(final.parent)
    if replaced is not None:
        shutil.rmtree(replaced)
