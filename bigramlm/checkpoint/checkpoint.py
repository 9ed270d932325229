"""Checkpoint folders, which are complete or absent and contain no executable code."""

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
    manifest_entry,
    manifest_text,
    read_manifest,
    write_manifest,
)
from bigramlm.checkpoint.state import allocate_count_tables, by_index, device_of, truncate_positions
from bigramlm.errors import UserError, require
from bigramlm.model.base import is_count_table
from bigramlm.tokenizer.base import Tokenizer
from bigramlm.tokenizer.config import TokenizerConfig
from bigramlm.utils import files, paths

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BaseWeights:
    """The base weights of an adapter."""

    location: str
    """The location of the weights: a folder, or a model name on the Hugging Face Hub."""
    sha256: str

    def to_dict(self) -> dict[str, str]:
        """Return the location and the hash under the keys of the saved files."""
        return {"place": self.location, "sha256": self.sha256}


@dataclass
class Progress:
    """The progress of a run, as a checkpoint records it."""

    step: int = 0
    """The number of updates so far."""
    seconds: float = 0.0
    """Seconds of training so far, including evaluations and saves."""
    best: dict[str, float] = field(default_factory=dict)
    """The lowest val loss so far and its step: {"step": 10, "val/loss": 2.5}; empty before the first evaluation."""
    waited: int = 0
    """The number of evaluations since the best one."""
    evaluated: int = -1
    """The step of the last evaluation."""


class Checkpoint:
    """A checkpoint that is complete: every file has the SHA-256 of the manifest."""

    def __init__(self, path: Path) -> None:
        """Verify every file; raise UserError for the first that is missing or damaged."""
        self.path = path
        self.manifest = read_manifest(path)
        for name, entry in self.manifest["files"].items():
            try:
                found = manifest_entry(path / name)
            except OSError as error:
                raise UserError(f"{path / name}: cannot be read: {error.strerror}") from None
            if found != entry:
                raise UserError(f"{path / name}: damaged: its SHA-256 is not the one in {MANIFEST}")
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
                raise ValueError(f"its step is {self.step}, but {MANIFEST} has step {self.manifest['step']}")
        if paths.step_of(path.name) not in (None, self.step):
            raise UserError(f"{path}: damaged: its content was saved as step_{self.step}")

    @property
    def step(self) -> int:
        """The number of updates of the weights."""
        return self.progress.step

    @property
    def best(self) -> dict[str, float]:
        """The lowest val loss until the save, with its step."""
        return self.progress.best

    @property
    def stripped(self) -> bool:
        """True if the training state, which only resuming requires, was removed."""
        return TRAINING not in self.manifest["files"]

    @property
    def is_adapter(self) -> bool:
        """True if the checkpoint contains an adapter instead of all weights."""
        return ADAPTER in self.manifest["files"]

    def base(self) -> BaseWeights:
        """Return the weights that the adapter was trained on."""
        with self.reading(BASE):
            content = json.loads((self.path / BASE).read_text("utf-8"))
            # The base may have moved together with this checkpoint.
            moved = content["from_here"] and (self.path / content["from_here"]).resolve()
            is_moved = moved and moved.exists() and not Path(content["place"]).exists()
            return BaseWeights(str(moved if is_moved else content["place"]), str(content["sha256"]))

    @property
    def location(self) -> str:
        """The checkpoint's folder."""
        return str(self.path)

    @property
    def sha256(self) -> str:
        """The SHA-256 of the weights; for an adapter, that of the adapter and its base."""
        hashes = {name: entry["sha256"] for name, entry in self.manifest["files"].items()}
        if not self.is_adapter:
            return str(hashes[MODEL])
        return files.sha256_of("".join([hashes[ADAPTER], hashes[ADAPTER_CONFIG], self.base().sha256]))

    def pin(self, reason: str) -> None:
        """Mark the checkpoint so that its run never removes it."""
        if paths.step_of(self.path.name) is not None:
            try:
                files.write(pin_path(self.path), [reason.encode()])
            except OSError as error:
                log.warning(
                    "%s: cannot be protected from removal: %s; do not resume its run", self.path, error.strerror
                )

    def load_adapter(self, adapter: LoRA) -> None:
        """Load the saved adapter; raise UserError if it does not fit the model."""
        with self.reading(ADAPTER):
            adapter.load(self.path)

    def tokenizer(self, cfg: TokenizerConfig) -> Tokenizer:
        """Load the saved tokenizer; cfg: its config."""
        with self.reading(TOKENIZER):
            return cfg.restore((self.path / TOKENIZER).read_text("utf-8"))

    def load_weights(self, model: nn.Module, *, counted: bool = True) -> None:
        """Load the weights into the model; raise UserError if they do not fit.

        counted: whether to load count tables, which are not trained, too.
        """
        with self.reading(MODEL):
            tensors = load_file(self.path / MODEL)
        if not counted:
            saved_tables, model_tables = (set(filter(is_count_table, names)) for names in (tensors, model.state_dict()))
            if saved_tables != model_tables:
                log.warning(
                    "%s: its weights were trained with other n-gram tables than the model has; check model.ngram_order",
                    self.path,
                )
            tensors = {name: tensor for name, tensor in tensors.items() if name not in saved_tables}
        allocate_count_tables(model, tensors)
        truncate_positions(model, tensors)
        expected = {name: tensor for name, tensor in model.state_dict().items() if counted or not is_count_table(name)}
        for name in tensors.keys() & expected.keys():
            saved_shape, shape = tuple(tensors[name].shape), tuple(expected[name].shape)
            require(
                saved_shape == shape,
                f"{self.path}: its weights don't fit the model: {name} has shape {saved_shape} in the checkpoint and "
                f"{shape} in the model; use the model config of the checkpoint",
            )
        with self.reading(MODEL):
            missing, unexpected = model.load_state_dict(tensors, strict=False)
        missing = [name for name in missing if name in expected]
        # Tied weights are saved under one name, so the other names count as loaded.
        loaded = {expected[name].data_ptr() for name in tensors.keys() & expected.keys()}
        missing = [name for name in missing if expected[name].data_ptr() not in loaded]
        for problem, names in (("the checkpoint lacks", missing), ("the model lacks", unexpected)):
            require(not names, f"{self.path}: its weights don't fit the model: {problem} {', '.join(names[:3])}")

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer, adapter: LoRA | None = None) -> None:
        """Load the weights, the optimizer state and the random state.

        Training then continues as if it had never been interrupted. adapter: the model's adapter, whose base weights
        must be loaded already. Count tables are not loaded, because the run has already counted its training text. The
        optimizer's parameter groups (learning rate, weight decay etc.) keep the values of the config. Raises UserError
        if the checkpoint is stripped or does not fit the model.
        """
        require(
            not self.stripped,
            f"{self.path}: is stripped and cannot be resumed; init_from={self.path} starts a new run from its weights",
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
        """Write the checkpoint without its training state to a folder.

        output: the folder to write; the checkpoint's own folder is stripped in place. Raises UserError if it cannot be
        written.
        """
        try:
            if output == self.path:
                # The new manifest no longer lists the file, so the checkpoint is complete before and after its removal.
                kept = {name: entry for name, entry in self.manifest["files"].items() if name != TRAINING}
                files.write(output / MANIFEST, [manifest_text(self.step, kept).encode()])
                (output / TRAINING).unlink()
                return
        except OSError as error:
            raise UserError(f"{output}: cannot be written: {error.strerror}") from error
        with files.atomic_folder(output) as folder:
            for name in self.manifest["files"].keys() - {TRAINING}:
                shutil.copyfile(self.path / name, folder / name)
            write_manifest(folder, self.step)

    def write_merged(self, output: Path, model: nn.Module, config: str) -> None:
        """Write an adapter's checkpoint as a stripped checkpoint of the merged model.

        model: the model with the adapter merged into its weights; config: the config to save, as YAML. Raises UserError
        if the folder cannot be written.
        """
        with files.atomic_folder(output) as folder:
            save_model(model, str(folder / MODEL))
            for name in (STATE, TOKENIZER):
                shutil.copyfile(self.path / name, folder / name)
            (folder / CONFIG).write_text(config, "utf-8")
            write_manifest(folder, self.step)

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """Turn errors from reading a malformed file into a UserError with its name."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except UNREADABLE as error:
            raise UserError(f"{self.path / name}: is not a file that bigramlm saved: {first_line(error)}") from error


def pin_path(path: Path) -> Path:
    # Returns the file beside a checkpoint whose presence prevents the removal of the checkpoint.
    return path.with_name(f"{path.name}.kept")
