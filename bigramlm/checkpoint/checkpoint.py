"""A checkpoint folder: verify, load, strip and merge it.

Reading a checkpoint executes no code from it, because its files are safetensors, JSON and YAML.
"""

from __future__ import annotations

import logging
import math
import shutil
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
    MissingCheckpointError,
    manifest_entry,
    manifest_text,
    read_manifest,
    write_manifest,
)
from bigramlm.checkpoint.reading import CheckpointFolder
from bigramlm.checkpoint.state import (
    allocate_count_tables,
    by_index,
    check_count_tables,
    device_of,
    truncate_positions,
    try_update,
)
from bigramlm.errors import UserError, require
from bigramlm.model.base import is_count_table
from bigramlm.tokenizer.base import Tokenizer
from bigramlm.tokenizer.config import TokenizerConfig
from bigramlm.utils import documents, files, paths
from bigramlm.utils.tensors import require_finite, require_same_kind, writing

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BaseWeights:
    """The location and the SHA-256 of an adapter's base weights."""

    location: str
    """A folder, or a model name on the Hugging Face Hub."""
    sha256: str

    def to_dict(self) -> dict[str, str]:
        """Return the location and the hash under their keys in the saved JSON files."""
        return {"place": self.location, "sha256": self.sha256}


@dataclass
class Progress:
    """The progress of a run, as recorded in a checkpoint."""

    step: int = 0
    """The number of parameter updates so far."""
    seconds: float = 0.0
    """The training time so far in seconds, including evaluations and saves."""
    best: dict[str, float] = field(default_factory=dict)
    """The lowest val loss so far and its step, such as {"step": 10, "val/loss": 2.5}. Empty before the first
    evaluation."""
    waited: int = 0
    """The number of evaluations since the best one, for early stopping."""
    evaluated: int = -1
    """The step of the last evaluation; -1 before the first evaluation."""
    metrics_bytes: int | None = None
    """The length of metrics.jsonl at the save, in bytes; None if unknown, as in checkpoints of earlier versions."""


class Checkpoint(CheckpointFolder):
    """A complete checkpoint, in which every file matches its SHA-256 in the manifest.

    The run of the checkpoint may delete or replace the folder at any time. Its other users then read the checkpoint
    that `reopen` returns, if it is set.
    """

    def __init__(self, path: Path) -> None:
        """Verify every file against the manifest and read the progress.

        Raises UserError for the first file that is missing or damaged, and MissingCheckpointError if the folder does
        not exist, or is deleted meanwhile.
        """
        super().__init__(path)
        try:
            self._verify()
        except UserError:
            self.require_unchanged()
            raise

    def _verify(self) -> None:
        path = self.path
        self.manifest = read_manifest(path)
        for name, entry in self.manifest["files"].items():
            try:
                is_intact = entry.get("bytes") == files.readable_size(path / name)
                is_intact = is_intact and manifest_entry(path / name) == entry
            except OSError as error:
                raise UserError(f"{path / name}: the file cannot be read: {error.strerror}") from None
            if not is_intact:
                raise UserError(f"{path / name}: the file is damaged: its SHA-256 differs from that in {MANIFEST}")
        with self.reading(STATE):
            self._state_json = documents.read(path / STATE)
            self._tokenizer_json = documents.read(path / TOKENIZER, limit=files.MAX_TEXT)
            self.state: dict[str, Any] = documents.parse_json(self._state_json.decode())
            best = {name: float(value) for name, value in self.state["best"].items()}
            length = self.state.get("metrics_bytes")
            self.progress = Progress(
                step=int(self.state["step"]),
                seconds=float(self.state["seconds"]),
                best={"step": int(best["step"]), "val/loss": best["val/loss"]} if best else {},
                waited=int(self.state.get("waited", 0)),
                evaluated=int(self.state.get("evaluated", -1)),
                metrics_bytes=None if length is None else int(length),
            )
            if not 0 <= self.step < 2**62:
                raise ValueError(f"its step is {self.step}")
            if self.step != self.manifest["step"]:
                raise ValueError(f"its step is {self.step}, but the step in {MANIFEST} is {self.manifest['step']}")
        if paths.step_of(path.name) not in (None, self.step):
            raise UserError(f"{path}: the folder has the wrong name: its content was saved as step_{self.step}")

    @property
    def step(self) -> int:
        """The number of parameter updates before the save."""
        return self.progress.step

    @property
    def best(self) -> dict[str, float]:
        """The lowest val loss before the save, and its step."""
        return self.progress.best

    @property
    def run_id(self) -> str | None:
        """The id of the run that saved the checkpoint; None if it is not recorded."""
        summary = self.state.get("summary")  # checkpoints of earlier versions have none
        return str(summary["id"]) if isinstance(summary, dict) and "id" in summary else None

    @property
    def stripped(self) -> bool:
        """True if the training state was removed, so that no run can resume from it.

        The training state consists of the optimizer state and the random state.
        """
        return TRAINING not in self.manifest["files"]

    @property
    def is_adapter(self) -> bool:
        """True if the checkpoint contains an adapter instead of all model weights."""
        return ADAPTER in self.manifest["files"]

    def base(self) -> BaseWeights:
        """Return the location and the SHA-256 of the adapter's base weights.

        The location may differ from the saved one: if the saved location no longer exists, but the base is still at the
        same relative path from this checkpoint, the base's current path is returned.
        """
        return self.follow(self._read_base)

    def _read_base(self) -> BaseWeights:
        with self.reading(BASE):
            content = documents.read_json(self.path / BASE)
            # The base may have moved together with this checkpoint.
            moved = content["from_here"] and (self.path / content["from_here"]).resolve()
            is_moved = moved and moved.exists() and not Path(content["place"]).exists()
            return BaseWeights(str(moved if is_moved else content["place"]), str(content["sha256"]))

    @property
    def size(self) -> int:
        """The number of bytes of all files."""
        entries = self.manifest["files"]
        return len(manifest_text(self.step, entries)) + sum(int(entry["bytes"]) for entry in entries.values())

    @property
    def location(self) -> str:
        """The path of the checkpoint folder."""
        return str(self.path)

    @property
    def sha256(self) -> str:
        """The SHA-256 of the weights.

        For an adapter, this is a hash of the adapter's files and the SHA-256 of the base weights.
        """
        hashes = {name: entry["sha256"] for name, entry in self.manifest["files"].items()}
        if not self.is_adapter:
            return str(hashes[MODEL])
        return files.sha256_of("".join([hashes[ADAPTER], hashes[ADAPTER_CONFIG], self.base().sha256]))

    def pin(self, reason: str) -> None:
        """Write a marker file that prevents a run from deleting this checkpoint.

        The marker is `step_<n>.kept` beside the checkpoint folder. A folder that is not named `step_<n>` needs no
        marker, because no run deletes it. reason: the text to write into the marker file.
        """
        if paths.step_of(self.path.name) is not None:
            self.follow(lambda: self._pin(reason))

    def _pin(self, reason: str) -> None:
        path = pin_path(self.path)
        try:
            files.write(path, [reason.encode()])
        except OSError as error:
            log.warning(
                "%s: the checkpoint cannot be marked as in use (%s); its run may delete it after a resume",
                self.path,
                error.strerror,
            )
            return
        try:
            self.require_unchanged()
        except MissingCheckpointError:
            path.unlink(missing_ok=True)
            raise

    def load_adapter(self, adapter: LoRA) -> None:
        """Load the saved tensors into an adapter that is attached to a model.

        Raises UserError if the tensors do not match the adapter, or are not finite.
        """
        self.follow(lambda: self._load_adapter(adapter))

    def _load_adapter(self, adapter: LoRA) -> None:
        with self.reading(ADAPTER):
            adapter.load(self.path)

    def tokenizer(self, cfg: TokenizerConfig) -> Tokenizer:
        """Load the saved tokenizer.

        cfg: the tokenizer config of the run.
        """
        with self.reading(TOKENIZER):
            return cfg.restore(self._tokenizer_json.decode())

    def load_weights(self, model: nn.Module, *, counted: bool = True) -> None:
        """Load the weights into a model.

        counted: if True, also load n-gram count tables, which are counted on the text and not trained. Raises UserError
        if the names or shapes of the tensors do not match the model, or if their values are not finite.
        """
        tensors = self.follow(self._read_weights)
        for name, tensor in model.state_dict().items():  # before the sizes of the count tables are those in the file
            if name in tensors:
                require_same_kind(self.path / MODEL, name, tensors[name], tensor.dtype)
        # Counts are not weights: a table may contain any value.
        require_finite(self.path / MODEL, ((name, t) for name, t in tensors.items() if not is_count_table(name)))
        if not counted:
            saved_tables, model_tables = (set(filter(is_count_table, names)) for names in (tensors, model.state_dict()))
            if saved_tables != model_tables:
                log.warning(
                    "%s: the weights were trained with different n-gram tables than those of this model; "
                    "check model.ngram_order",
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
                f"{self.path}: the weights do not match the model: {name} has shape {saved_shape} in the checkpoint "
                f"and {shape} in the model; use the model that the checkpoint was trained with",
            )
        with self.reading(MODEL):
            missing, unexpected = model.load_state_dict(tensors, strict=False)
            check_count_tables(model)
        missing = [name for name in missing if name in expected]
        # Tied weights are saved under one name, so the other names count as loaded.
        loaded = {expected[name].data_ptr() for name in tensors.keys() & expected.keys()}
        missing = [name for name in missing if expected[name].data_ptr() not in loaded]
        for problem, names in (("the checkpoint lacks", missing), ("the model lacks", unexpected)):
            require(
                not names,
                f"{self.path}: the weights do not match the model: {problem} {', '.join(names[:3])}; use the model "
                "config of the checkpoint",
            )

    def n_elements(self) -> int:
        """Return the number of elements of all weights."""
        return self.follow(self._n_elements)

    def _n_elements(self) -> int:
        with self.reading(MODEL), safe_open(self.path / MODEL, "pt") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118

    def _read_weights(self) -> dict[str, torch.Tensor]:
        with self.reading(MODEL):
            return load_file(self.path / MODEL)

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer, adapter: LoRA | None = None) -> None:
        """Load the weights, the optimizer state and the random state.

        Training then continues as if it had never been interrupted. n-gram count tables are not loaded, because the run
        has already counted its training text. The optimizer's parameter groups (learning rate, weight decay etc.) keep
        the values of the config.

        adapter: the adapter attached to the model, if any; its base weights must already be loaded. Raises UserError if
        the checkpoint is stripped or does not match the model.
        """
        require(
            not self.stripped,
            f"{self.path}: no run can resume from this checkpoint, because its training state was removed "
            f"(stripped); init_from={self.path} starts a new run from its weights",
        )
        if adapter is not None:
            self.load_adapter(adapter)
        else:
            self.load_weights(model, counted=False)
        with self.reading(TRAINING):
            with safe_open(self.path / TRAINING, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
                plain = documents.parse_json(file.metadata()["optimizer"])
            if not isinstance(plain, dict):
                raise TypeError("the state of the optimizer is not a dictionary")
            random = {name: tensors.pop(name) for name in [name for name in tensors if name.startswith("rng/")]}
            per_param = {name: dict(values) for name, values in plain.items()}
            require_finite(self.path / TRAINING, tensors.items())
            for name, tensor in tensors.items():
                _, parameter, key = name.split("/")
                per_param.setdefault(parameter, {})[key] = tensor
            optimizer.load_state_dict(
                {
                    "state": by_index(per_param, model, optimizer),
                    "param_groups": optimizer.state_dict()["param_groups"],
                }
            )
            try_update(optimizer)
            torch.set_rng_state(random["rng/cpu"])
            device = device_of(model)
            if device.type == "cuda" and "rng/cuda" in random:
                torch.cuda.set_rng_state(random["rng/cuda"], device)
            if device.type == "mps" and "rng/mps" in random:
                torch.mps.set_rng_state(random["rng/mps"])

    def strip(self, output: Path) -> None:
        """Write a copy of the checkpoint without the training state.

        output: the folder to write. If it is the checkpoint's own folder, the training state is deleted in place.
        Raises UserError if the folder cannot be written.
        """
        try:
            if output == self.path:
                # The new manifest no longer lists the file, so the checkpoint is complete before and after its removal.
                kept = {name: entry for name, entry in self.manifest["files"].items() if name != TRAINING}
                files.write(output / MANIFEST, [manifest_text(self.step, kept).encode()])
                (output / TRAINING).unlink()
                return
        except OSError as error:
            raise files.unwritable(output, error) from error
        self.follow(lambda: self._copy_stripped(output))

    def _copy_stripped(self, output: Path) -> None:
        with files.atomic_folder(output) as folder:
            for name in self.manifest["files"].keys() - {TRAINING}:
                try:
                    shutil.copyfile(self.path / name, folder / name)
                except FileNotFoundError:
                    self.require_unchanged()
                    raise
            write_manifest(folder, self.step)

    def write_merged(self, output: Path, model: nn.Module, config: str) -> None:
        """Write this adapter checkpoint as a checkpoint of the merged model.

        The new checkpoint contains all weights but no training state, so no run can resume from it. model: the model
        after the adapter was merged into its weights. config: the config to save, as YAML. Raises UserError if the
        folder cannot be written.
        """
        with files.atomic_folder(output) as folder:
            with writing(folder / MODEL):
                save_model(model, str(folder / MODEL))
            (folder / STATE).write_bytes(self._state_json)
            (folder / TOKENIZER).write_bytes(self._tokenizer_json)
            (folder / CONFIG).write_text(config, "utf-8")
            write_manifest(folder, self.step)


def pin_path(path: Path) -> Path:
    # Returns the file beside a checkpoint whose presence prevents the removal of the checkpoint.
    return path.with_name(f"{path.name}.kept")
