"""Checkpoints: a folder a step, whole or absent, with nothing in it that runs when it is loaded."""

import hashlib
import json
import os
import shutil
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
        aside = self.folder / f".step_{step}.{os.getpid()}"
        try:
            aside.mkdir()
            tensors, plain = _training_state(optimizer)
            save_model(model, str(aside / MODEL))
            save_file(tensors, str(aside / TRAINING))
            _write_json(aside / STATE, {"step": step, **state, "optimizer": plain})
            _write_json(aside / TOKENIZER, tokenizer)
            _write_json(aside / MANIFEST, {"step": step, "files": {p.name: _seal(p) for p in sorted(aside.iterdir())}})
            for path in aside.iterdir():
                _sync(path)
            if final.exists():  # the same step saved again, after a resume from an older one
                shutil.rmtree(final)
            aside.replace(final)
            _sync(self.folder)
        except SafetensorError as error:
            raise UserError(f"{final}: the checkpoint could not be written: {error}") from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        self._point("last", final)
        if best:
            self._point("best", final)
        self._prune()

    def path(self, name: str) -> Path:
        """The folder that `last` or `best` names."""
        return self.folder / (self.folder / name).read_text("utf-8").strip()

    def _point(self, name: str, target: Path) -> None:
        aside = self.folder / f".{name}.{os.getpid()}"
        aside.write_text(target.name + "\n", "utf-8")
        aside.replace(self.folder / name)

    def _prune(self) -> None:
        steps = sorted((int(p.name.removeprefix("step_")), p) for p in self.folder.glob("step_*"))
        best = self.folder / "best"
        kept = best.read_text("utf-8").strip() if best.exists() else None
        for _, path in steps[: -self._keep]:
            if path.name != kept:
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
    for name in [name for name in tensors if name.startswith("rng/")]:  # those of the machine that saved it
        rng, (_, kind, *index) = tensors.pop(name), name.split("/")
        if kind == "cuda" and int(index[0]) < torch.cuda.device_count():
            torch.cuda.set_rng_state(rng, int(index[0]))
        elif kind == "mps" and torch.backends.mps.is_available():
            torch.mps.set_rng_state(rng)
    per_param: dict[int, dict[str, Any]] = {int(i): dict(values) for i, values in plain["state"].items()}
    for name, tensor in tensors.items():
        _, index, key = name.split("/")
        per_param.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": per_param, "param_groups": plain["param_groups"]})
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


def _training_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    # What is a tensor goes into safetensors, the rest into JSON.
    whole = optimizer.state_dict()
    tensors = {"rng/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"rng/cuda/{i}": rng for i, rng in enumerate(torch.cuda.get_rng_state_all())}
    if torch.backends.mps.is_available():
        tensors["rng/mps"] = torch.mps.get_rng_state()
    plain: dict[str, Any] = {"state": {}, "param_groups": []}
    for index, values in whole["state"].items():
        plain["state"][index] = {key: value for key, value in values.items() if not isinstance(value, Tensor)}
        tensors |= {
            f"optimizer/{index}/{key}": value.contiguous() for key, value in values.items() if isinstance(value, Tensor)
        }
    for group in whole["param_groups"]:
        numbers = {key: value.item() if isinstance(value, Tensor) else value for key, value in group.items()}
        plain["param_groups"].append(numbers)
    return tensors, plain


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")


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
