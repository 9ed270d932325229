"""Checkpoints: a folder a step, whole or absent, with nothing in it that runs when it is loaded."""

import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_file, save_model
from torch import Tensor, nn

from bigramlm.errors import UserError

MODEL, TRAINING, STATE, TOKENIZER, MANIFEST = (
    "model.safetensors",
    "training.safetensors",
    "state.json",
    "tokenizer.json",
    "manifest.json",
)


class Checkpoints:
    """The checkpoints of a run: folders `step_<n>`, and the files `last` and `best`, each with the name of one.

    A folder holds the weights, what else the training needs to go on (optimizer, random state, step, best loss), the
    tokenizer, and a manifest with every file's size and SHA-256.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        """keep: how many of the newest stay, `best` not counted."""
        self.folder = folder
        self._keep = keep

    def save(
        self,
        step: int,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        tokenizer: dict[str, Any],
        state: dict[str, Any],
        best: bool,
    ) -> None:
        """Save a step, as `last` and, where it is the best so far, as `best`.

        The folder is written aside, synced and renamed: a crash at any moment leaves it whole or absent.
        """
        self.folder.mkdir(exist_ok=True)
        final = self.folder / f"step_{step}"
        aside = self.folder / f".step_{step}.{uuid.uuid4().hex}"
        try:
            aside.mkdir()
            tensors, plain = _training_state(optimizer, next(model.parameters()).device)
            save_model(model, str(aside / MODEL))
            save_file(tensors, str(aside / TRAINING))
            _write_json(aside / STATE, {"step": step, **state, "optimizer": plain})
            _write_json(aside / TOKENIZER, tokenizer)
            _write_json(aside / MANIFEST, {"step": step, "files": {p.name: _seal(p) for p in sorted(aside.iterdir())}})
            for path in (*aside.iterdir(), aside):
                _sync(path)
            replaced = None
            if final.exists():  # the same step saved again, after going on from an older one
                replaced = final.rename(aside.with_name(f"{aside.name}.replaced"))
            aside.rename(final)
            _sync(self.folder)
            if replaced is not None:
                shutil.rmtree(replaced)
        except SafetensorError as error:
            raise UserError(f"{final}: the checkpoint could not be written: {error}") from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        self._point("last", final)
        if best:
            self._point("best", final)
        self._prune(just_saved=final)

    def path(self, name: str) -> Path:
        """The folder that `last` or `best` names."""
        return self.folder / (self.folder / name).read_text("utf-8").strip()

    def _point(self, name: str, target: Path) -> None:
        aside = self.folder / f".{name}.{uuid.uuid4().hex}"
        try:
            aside.write_text(target.name + "\n", "utf-8")
            _sync(aside)
            aside.replace(self.folder / name)
        finally:
            aside.unlink(missing_ok=True)

    def _prune(self, *, just_saved: Path) -> None:
        # The newest are those up to the one just saved: later steps are left over from before a return to an older one.
        best = self.folder / "best"
        kept = {just_saved, self.folder / best.read_text("utf-8").strip()} if best.exists() else {just_saved}
        steps = sorted((int(path.name.removeprefix("step_")), path) for path in self.folder.glob("step_*"))
        now = int(just_saved.name.removeprefix("step_"))
        kept |= {path for step, path in [pair for pair in steps if pair[0] <= now][-self._keep :]}
        for _, path in steps:
            if path not in kept:
                shutil.rmtree(path)


def restore(path: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put a checkpoint's weights, optimizer state and random state in place, and return its state.json.

    UserError where a file is not what the manifest says.
    """
    verify(path)
    load_model(model, str(path / MODEL))
    state: dict[str, Any] = json.loads((path / STATE).read_text("utf-8"))
    plain = state.pop("optimizer")
    with safe_open(path / TRAINING, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    torch.set_rng_state(tensors.pop("rng/cpu"))
    device = next(model.parameters()).device
    for kind in ("cuda", "mps"):
        rng = tensors.pop(f"rng/{kind}", None)
        if rng is not None and device.type == kind:
            getattr(torch, kind).set_rng_state(rng)
    per_param: dict[int, dict[str, Any]] = {int(i): dict(values) for i, values in plain.items()}
    for name, tensor in tensors.items():
        _, index, key = name.split("/")
        per_param.setdefault(int(index), {})[key] = tensor
    # The groups, with the learning rate and the like, stay those of the config.
    optimizer.load_state_dict({"state": per_param, "param_groups": optimizer.state_dict()["param_groups"]})
    return state


def verify(path: Path) -> None:
    """UserError naming the first file of a checkpoint that is missing or not what the manifest says."""
    try:
        manifest = json.loads((path / MANIFEST).read_text("utf-8"))["files"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a whole checkpoint: its {MANIFEST} cannot be read ({error})") from None
    for name, expected in manifest.items():
        try:
            found = _seal(path / name)
        except OSError as error:
            raise UserError(f"{path / name}: cannot be read: {error.strerror}") from None
        if found != expected:
            raise UserError(f"{path / name}: damaged: it is not the file that was saved ({MANIFEST} has its SHA-256)")


def _training_state(
    optimizer: torch.optim.Optimizer, device: torch.device
) -> tuple[dict[str, Tensor], dict[int, dict[str, Any]]]:
    # What is a tensor goes into safetensors, the rest into JSON.
    tensors = {"rng/cpu": torch.get_rng_state()}
    if device.type in ("cuda", "mps"):
        tensors[f"rng/{device.type}"] = getattr(torch, device.type).get_rng_state()
    plain: dict[int, dict[str, Any]] = {}
    for index, values in optimizer.state_dict()["state"].items():
        plain[index] = {key: value for key, value in values.items() if not isinstance(value, Tensor)}
        tensors |= {
            f"optimizer/{index}/{key}": value.contiguous() for key, value in values.items() if isinstance(value, Tensor)
        }
    return tensors, plain


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")


def _seal(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows has no handle on a folder
    fd = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
