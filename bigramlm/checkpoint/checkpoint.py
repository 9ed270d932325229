"""Checkpoints: a folder a step, whole or absent, with nothing in it that runs when it is loaded."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_model
from torch import nn

from bigramlm.adapter.lora import ADAPTER, ADAPTER_CONFIG, LoRA
from bigramlm.checkpoint.format import (
    BASE,
    CONFIG,
    MANIFEST,
    MODEL,
    STATE,
    TOKENIZER,
    TRAINING,
    UNREADABLE,
    first_line,
    manifest_text,
    read_manifest,
    seal_of,
    write_manifest,
)
from bigramlm.checkpoint.state import by_index, cut_positions, device_of, make_room
from bigramlm.errors import UserError, require
from bigramlm.model.base import is_count_table
from bigramlm.tokenizer.base import Tokenizer
from bigramlm.tokenizer.config import TokenizerConfig
from bigramlm.utils import files, paths

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BaseWeights:
    """The weights that an adapter stands beside."""

    location: str
    """The place of the weights: a folder, or a name on the Hugging Face hub."""
    sha256: str

    def to_dict(self) -> dict[str, str]:
        """Return what files say of it, by the names that it has there."""
        return {"place": self.location, "sha256": self.sha256}


@dataclass
class Progress:
    """The progress of a run, as a checkpoint records it."""

    step: int = 0
    """The updates that made the weights."""
    seconds: float = 0.0
    """Seconds of training until then, evaluations and saves included."""
    best: dict[str, float] = field(default_factory=dict)
    """The lowest val loss of an evaluation, with its step: {"step": 10, "val/loss": 2.5}; empty before the first."""
    waited: int = 0
    """Evaluations since the best one."""
    evaluated: int = -1
    """The step of the last evaluation."""


class Checkpoint:
    """A checkpoint that was found whole: every file is the one that was saved."""

    def __init__(self, path: Path) -> None:
        """UserError naming the first thing that is missing, or not as it was saved."""
        self.path = path
        self.manifest = read_manifest(path)
        for name, seal in self.manifest["files"].items():
            try:
                found = seal_of(path / name)
            except OSError as error:
                raise UserError(f"{path / name}: cannot be read: {error.strerror}") from None
            if found != seal:
                raise UserError(
                    f"{path / name}: damaged: it is not the file that was saved ({MANIFEST} has its SHA-256)"
                )
        with self.reading(STATE):
            self.state: dict[str, Any] = json.loads((path / STATE).read_text("utf-8"))
            best = {name: float(value) for name, value in self.state["best"].items()}
            self.progress = Progress(
                step=int(self.state["step"]),
                seconds=float(self.state["seconds"]),
                best={"step": int(best["step"]), "val/loss": best["val/loss"]} if best else {},
                waited=int(self.state.get("waited", 0)),
                evaluated=int(self.state.get("evaluated", -1)),
            )
            if self.step != self.manifest["step"]:
                raise ValueError("its step is not that of the manifest")
        if paths.step_of(path.name) not in (None, self.step):
            raise UserError(f"{path}: damaged: what is in it was saved as step_{self.step}")

    @property
    def step(self) -> int:
        """The updates that made the weights."""
        return self.progress.step

    @property
    def best(self) -> dict[str, float]:
        """The lowest val loss until then, with its step."""
        return self.progress.best

    @property
    def stripped(self) -> bool:
        """True if what only training needs was taken out."""
        return TRAINING not in self.manifest["files"]

    @property
    def is_adapter(self) -> bool:
        """True if it holds an adapter alone, and not the weights beside it."""
        return ADAPTER in self.manifest["files"]

    def base(self) -> BaseWeights:
        """Return the weights that the adapter was trained on."""
        with self.reading(BASE):
            said = json.loads((self.path / BASE).read_text("utf-8"))
            moved = said["from_here"] and (self.path / said["from_here"]).resolve()  # with this checkpoint
            place = str(moved) if moved and moved.exists() and not Path(said["place"]).exists() else str(said["place"])
            return BaseWeights(place, str(said["sha256"]))

    @property
    def location(self) -> str:
        """The folder."""
        return str(self.path)

    @property
    def sha256(self) -> str:
        """The SHA-256 of the weights; for an adapter, of it and its base."""
        sealed = {name: seal["sha256"] for name, seal in self.manifest["files"].items()}
        if not self.is_adapter:
            return str(sealed[MODEL])
        return files.sha256_of("".join([sealed[ADAPTER], sealed[ADAPTER_CONFIG], self.base().sha256]))

    def pin(self, why: str) -> None:
        """Have the run that it is of keep it, however far that goes."""
        if paths.step_of(self.path.name) is not None:
            try:
                files.write(kept_mark(self.path), [why.encode()])
            except OSError as error:
                log.warning("%s: cannot be marked to be kept: %s; do not resume its run", self.path, error.strerror)

    def load_adapter(self, adapter: LoRA) -> None:
        """Put the adapter in that was saved. UserError where it does not fit."""
        with self.reading(ADAPTER):
            adapter.load(self.path)

    def tokenizer(self, cfg: TokenizerConfig) -> Tokenizer:
        """Read the tokenizer that was saved; cfg: its config."""
        with self.reading(TOKENIZER):
            return cfg.restore((self.path / TOKENIZER).read_text("utf-8"))

    def load_weights(self, model: nn.Module, *, counted: bool = True) -> None:
        """Put the weights into the model. UserError names what does not fit.

        counted: whether also tables that were counted and not trained.
        """
        with self.reading(MODEL):
            tensors = load_file(self.path / MODEL)
        if not counted:
            had, has = ({name for name in names if is_count_table(name)} for names in (tensors, model.state_dict()))
            if had != has:
                log.warning(
                    "%s: its weights stood on other n-grams than this model does: is model.ngram_order as it was?",
                    self.path,
                )
            tensors = {name: tensor for name, tensor in tensors.items() if name not in had}
        make_room(model, tensors)
        cut_positions(model, tensors)
        own = {name: tensor for name, tensor in model.state_dict().items() if counted or not is_count_table(name)}
        for name in tensors.keys() & own.keys():
            there, here = tuple(tensors[name].shape), tuple(own[name].shape)
            require(
                there == here, f"{self.path}: its weights don't fit the model: {name} is {there} there, {here} here"
            )
        with self.reading(MODEL):
            missing, unexpected = model.load_state_dict(tensors, strict=False)
        missing = [name for name in missing if name in own]
        # Of tied weights one name is saved; the others got theirs by it.
        loaded = {own[name].data_ptr() for name in tensors.keys() & own.keys()}
        missing = [name for name in missing if own[name].data_ptr() not in loaded]
        for what, names in (("lack", missing), ("have, and the model has not,", unexpected)):
            require(not names, f"{self.path}: its weights don't fit the model: they {what} {', '.join(names[:3])}")

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer, adapter: LoRA | None = None) -> None:
        """Put weights, optimizer state and random state in place, so that training goes on as if it had never stopped.

        adapter: of the model, whose own weights are in place then. Tables that were counted are left as they are: the
        run has counted them, in the text that it trains on. The optimizer's groups, with the learning rate and the
        like, stay those of the config.
        """
        require(
            not self.stripped,
            f"{self.path}: is stripped of what resuming needs; init_from={self.path} starts a new run from its weights",
        )
        if adapter is not None:
            self.load_adapter(adapter)
        else:
            self.load_weights(model, counted=False)
        with self.reading(TRAINING):
            with safe_open(self.path / TRAINING, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
                plain = json.loads(file.metadata()["optimizer"])
            random = {name: tensors.pop(name) for name in [name for name in tensors if name.startswith("rng/")]}
            per_param = {name: dict(values) for name, values in plain.items()}
            for name, tensor in tensors.items():
                _, parameter, key = name.split("/")
                per_param.setdefault(parameter, {})[key] = tensor
            optimizer.load_state_dict(
                {
                    "state": by_index(per_param, model, optimizer),
                    "param_groups": optimizer.state_dict()["param_groups"],
                }
            )
            torch.set_rng_state(random["rng/cpu"])
            device = device_of(model)
            if device.type == "cuda" and "rng/cuda" in random:
                torch.cuda.set_rng_state(random["rng/cuda"], device)
            if device.type == "mps" and "rng/mps" in random:
                torch.mps.set_rng_state(random["rng/mps"])

    def strip(self, output: Path) -> None:
        """Write the checkpoint to a folder, which may be its own, without what only training needs."""
        try:
            if output == self.path:
                # With the new manifest the file is none of the checkpoint's any more, whether it is still there or not.
                kept = {name: seal for name, seal in self.manifest["files"].items() if name != TRAINING}
                files.write(output / MANIFEST, [manifest_text(self.step, kept).encode()])
                (output / TRAINING).unlink()
                return
        except OSError as error:
            raise UserError(f"{output}: cannot be written: {error.strerror}") from error
        with files.written_aside(output) as aside:
            for name in self.manifest["files"].keys() - {TRAINING}:
                shutil.copyfile(self.path / name, aside / name)
            write_manifest(aside, self.step)

    def merged(self, output: Path, model: nn.Module, config: str) -> None:
        """Write the checkpoint of an adapter as a stripped one of the model's weights, with a config of its own."""
        with files.written_aside(output) as aside:
            save_model(model, str(aside / MODEL))
            for name in (STATE, TOKENIZER):
                shutil.copyfile(self.path / name, aside / name)
            (aside / CONFIG).write_text(config, "utf-8")
            write_manifest(aside, self.step)

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """Turn whatever a file brings that bigramlm did not write into a UserError that names the file."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except UNREADABLE as error:
            raise UserError(f"{self.path / name}: not a file that bigramlm saved: {first_line(error)}") from error


def kept_mark(path: Path) -> Path:
    # Beside a checkpoint: that it is needed.
    return path.with_name(f"{path.name}.kept")
