"""Checkpoints: a folder a step, whole or absent, with nothing in it that runs when it is loaded."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor, nn

from bigramlm.adapter.lora import ADAPTER, ADAPTER_CONFIG, LoRA
from bigramlm.errors import UserError, require
from bigramlm.model.base import is_counted
from bigramlm.tokenizer.base import Tokenizer
from bigramlm.tokenizer.config import TokenizerConfig
from bigramlm.utils import files, paths

log = logging.getLogger(__name__)

MODEL, TRAINING, STATE, TOKENIZER, CONFIG, MANIFEST = (
    "model.safetensors",
    "training.safetensors",
    "state.json",
    "tokenizer.json",
    "config.yaml",
    "manifest.json",
)
BASE = "base.json"
# What a checkpoint has besides the manifest: the weights, or an adapter in peft's format with what it stands beside.
# Without TRAINING it is a stripped one, from which no run can go on.
_WEIGHTS = ({MODEL}, {ADAPTER, ADAPTER_CONFIG, BASE})
_FILES = {TRAINING, STATE, TOKENIZER, CONFIG}
_FORMAT = 1
# What reading a file brings that is not what it should be, whoever made it so.
_UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError),
    *(SafetensorError, RuntimeError),
)


@dataclass(frozen=True)
class Base:
    """The weights that an adapter stands beside."""

    place: str
    """Where they are: a folder, or a name on the Hugging Face hub."""
    sha256: str


@dataclass(frozen=True)
class AdapterState:
    """What is trained of a model where that is an adapter, with the weights that it stands beside."""

    adapter: LoRA
    base: Base


@dataclass
class Progress:
    """How far a run is: what a checkpoint says of it beside its tensors."""

    step: int = 0
    """The updates that made the weights."""
    seconds: float = 0.0
    """Of training until then, evaluations and saves included."""
    best: dict[str, float] = field(default_factory=dict)
    """The lowest val loss of an evaluation, with its step: {"step": 10, "val/loss": 2.5}; empty before the first."""
    waited: int = 0
    """Evaluations since the best one."""
    evaluated: int = -1
    """The step of the last evaluation."""


@dataclass(frozen=True)
class Contents:
    """What a run's checkpoints are made from; what never changes is bound here once."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    tokenizer: str
    """As JSON."""
    config: str
    """The run's, as YAML."""
    adapter: AdapterState | None = None
    """What is saved in the place of the weights, where there is one."""


class Checkpoints:
    """The checkpoints of a run: folders `step_<n>`, and the files `last` and `best`, each with the name of one.

    A folder holds the weights, what else the training needs to go on (optimizer and random state), how far the run
    was, the tokenizer, the run's config, and a manifest with every file's size and SHA-256.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """The folder that `last` or `best` names. UserError where it names none."""
        try:
            step = (self.folder / name).read_text("utf-8").strip()
        except (OSError, ValueError) as error:
            raise UserError(f"{self.folder / name}: names no checkpoint: it cannot be read ({error})") from None
        require(paths.step_of(step) is not None, f"{self.folder / name}: names no checkpoint: {step[:60]!r}")
        return self.folder / step

    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, whole or not, in order."""
        steps = (paths.step_of(path.name) for path in self.folder.glob("step_*"))
        return sorted(step for step in steps if step is not None)

    def newest(self) -> Checkpoint | None:
        """The newest one that is whole, None where there is none at all; the log says which were passed over and why.

        UserError where there are some and not one of them is whole.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return Checkpoint(self.folder / f"step_{step}")
            except UserError as error:
                log.warning("passed over: %s", error)
        require(not steps, f"{self.folder}: none of the {len(steps)} checkpoints is whole")
        return None

    def quarantine(self, *, after: int | None) -> None:
        """Rename the checkpoints of later steps, which were passed over: they are not whole. None renames none."""
        for step in self.steps():
            if after is not None and step > after:
                path = self.folder / f"step_{step}"
                path.rename(self.folder / f"damaged_{path.name}.{uuid.uuid4().hex[:6]}")

    def best_at(self, resumed: Checkpoint) -> dict[str, float]:
        """The best evaluation, as a run knows it that goes on from this checkpoint.

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
                _sync_all(aside)
                _put(aside, final)
            except SafetensorError as error:
                raise UserError(f"{final}: the checkpoint could not be written: {error}") from error
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        self.point(progress.step, best=int(progress.best["step"]) if progress.best else None)

    def _write(self, aside: Path, final: Path, progress: Progress) -> None:
        of = self.contents
        tensors, plain = _training_state(of.model, of.optimizer)
        if of.adapter is None:
            save_model(of.model, str(aside / MODEL))
        else:
            base = of.adapter.base
            of.adapter.adapter.save(aside, base=base.place)
            _write_json(aside / BASE, {**asdict(base), "from_here": _from_here(base.place, final)})
        save_file(tensors, str(aside / TRAINING), metadata={"optimizer": json.dumps(plain)})
        _write_json(
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

    def point(self, step: int, *, best: int | None) -> None:
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
            if _mark(path).exists():
                continue
            try:
                shutil.rmtree(path.rename(files.aside(path)))
            except OSError as error:  # somebody reads it, perhaps; it is tried again after the next save
                log.warning("%s: could not be removed: %s", path, error.strerror)


class Checkpoint:
    """A checkpoint that was found whole: every file is the one that was saved."""

    def __init__(self, path: Path) -> None:
        """UserError naming the first thing that is missing, or not as it was saved."""
        self.path = path
        self.manifest = _read_manifest(path)
        for name, seal in self.manifest["files"].items():
            try:
                found = _seal(path / name)
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
        """Whether what only training needs was taken out."""
        return TRAINING not in self.manifest["files"]

    @property
    def is_adapter(self) -> bool:
        """Whether it holds an adapter alone, and not the weights beside it."""
        return ADAPTER in self.manifest["files"]

    def base(self) -> Base:
        """What the adapter stands beside."""
        with self.reading(BASE):
            said = json.loads((self.path / BASE).read_text("utf-8"))
            moved = said["from_here"] and (self.path / said["from_here"]).resolve()  # with this checkpoint
            place = str(moved) if moved and moved.exists() and not Path(said["place"]).exists() else str(said["place"])
            return Base(place, str(said["sha256"]))

    @property
    def place(self) -> str:
        """The folder."""
        return str(self.path)

    @property
    def sha256(self) -> str:
        """Of the weights; of an adapter, of it and its base."""
        sealed = {name: seal["sha256"] for name, seal in self.manifest["files"].items()}
        if not self.is_adapter:
            return str(sealed[MODEL])
        return files.sha256_of("".join([sealed[ADAPTER], sealed[ADAPTER_CONFIG], self.base().sha256]))

    def keep(self, why: str) -> None:
        """Have the run that it is of keep it, however far that goes."""
        if paths.step_of(self.path.name) is not None:
            try:
                files.write(_mark(self.path), [why.encode()])
            except OSError as error:
                log.warning("%s: cannot be marked to be kept: %s; do not let its run go on", self.path, error.strerror)

    def load_adapter(self, adapter: LoRA) -> None:
        """Put the adapter in that was saved. UserError where it does not fit."""
        with self.reading(ADAPTER):
            adapter.load(self.path)

    def tokenizer(self, cfg: TokenizerConfig) -> Tokenizer:
        """The tokenizer that was saved; cfg: its config."""
        with self.reading(TOKENIZER):
            return cfg.restore((self.path / TOKENIZER).read_text("utf-8"))

    def load_weights(self, model: nn.Module, *, counted: bool = True) -> None:
        """Put the weights into the model. UserError names what does not fit.

        counted: whether also tables that were counted and not trained.
        """
        with self.reading(MODEL):
            tensors = load_file(self.path / MODEL)
        if not counted:
            had, has = ({name for name in names if is_counted(name)} for names in (tensors, model.state_dict()))
            if had != has:
                log.warning(
                    "%s: its weights stood on other n-grams than this model does: is model.ngram_order as it was?",
                    self.path,
                )
            tensors = {name: tensor for name, tensor in tensors.items() if name not in had}
        _make_room(model, tensors)
        _cut_positions(model, tensors)
        own = {name: tensor for name, tensor in model.state_dict().items() if counted or not is_counted(name)}
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
            f"{self.path}: is stripped of what training needs to go on; init_from={self.path} starts a new run from "
            "its weights",
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
                    "state": _by_index(per_param, model, optimizer),
                    "param_groups": optimizer.state_dict()["param_groups"],
                }
            )
            torch.set_rng_state(random["rng/cpu"])
            device = _device_of(model)
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
                files.write(output / MANIFEST, [_manifest_text(self.step, kept).encode()])
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
        """What someone else than bigramlm has put into this file becomes a UserError that names it."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except _UNREADABLE as error:
            raise UserError(f"{self.path / name}: not a file that bigramlm saved: {_line(error)}") from error


def _read_manifest(path: Path) -> dict[str, Any]:
    require(path.is_dir(), f"{path}: there is no such checkpoint; it would be a folder with a {MANIFEST}")
    try:
        raw = (path / MANIFEST).read_text("utf-8")
        manifest: dict[str, Any] = json.loads(raw)
        listed = dict(manifest["files"])
        written = manifest["format"]
        whole = raw == _manifest_text(manifest["step"], listed, written)
    except _UNREADABLE as error:
        raise UserError(f"{path}: not a whole checkpoint: its {MANIFEST} cannot be read ({_line(error)})") from None
    require(whole, f"{path / MANIFEST}: damaged: it is not the file that was saved (it has its own SHA-256)")
    require(written == _FORMAT, f"{path}: is of format {written}, this bigramlm reads format {_FORMAT}; take another")
    require(
        any(set(listed) in (weights | _FILES, weights | _FILES - {TRAINING}) for weights in _WEIGHTS),
        f"{path}: not a whole checkpoint: its {MANIFEST} names {', '.join(map(repr, sorted(listed)[:8]))}",
    )
    return manifest


def write_manifest(folder: Path, step: int) -> None:
    """Write what seals every file that is in the folder, as the last of them."""
    text = _manifest_text(step, {path.name: _seal(path) for path in sorted(folder.iterdir())})
    (folder / MANIFEST).write_text(text, "utf-8", newline="\n")


def _manifest_text(step: int, seals: dict[str, Any], written: int = _FORMAT) -> str:
    # It seals itself too: a flipped bit anywhere in it makes another text than this.
    content = {"format": written, "step": step, "files": seals}
    seal = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({**content, "sha256": seal}, indent=1, sort_keys=True) + "\n"


def _device_of(model: nn.Module) -> torch.device:
    return next(itertools.chain(model.parameters(), model.buffers())).device


def _make_room(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    # Tables that were counted are as long as their text made them: a model that has not counted has them empty.
    for name, buffer in list(model.named_buffers()):
        if buffer.numel() == 0 and name in tensors:
            holder, _, last = name.rpartition(".")
            setattr(model.get_submodule(holder), last, torch.empty_like(tensors[name], device=buffer.device))


def _cut_positions(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    # A shorter block needs the first positions only.
    for name, own in model.named_parameters():
        if name.endswith("wpe.weight") and name in tensors:
            tensors[name] = tensors[name][: len(own)]


def _training_state(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    # By the parameters' names. What is a tensor goes into safetensors, the rest beside it as JSON.
    tensors = {"rng/cpu": torch.get_rng_state()}
    device = _device_of(model)
    if device.type == "cuda":
        tensors["rng/cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        tensors["rng/mps"] = torch.mps.get_rng_state()
    plain: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter, {})
        plain[name] = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
        tensors |= {
            f"optimizer/{name}/{key}": value.contiguous() for key, value in state.items() if isinstance(value, Tensor)
        }
    return tensors, {name: values for name, values in plain.items() if values}


def _by_index(
    per_param: dict[str, dict[str, Any]], model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[int, dict[str, Any]]:
    # As an optimizer counts its parameters. An update writes as far as a parameter goes: no other shape may pass.
    named = dict(model.named_parameters())
    position = {id(p): i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    for name, values in per_param.items():
        for key, value in values.items():
            if isinstance(value, Tensor) and value.shape not in ((), named[name].shape):
                raise ValueError(f"{key} of {name} is {tuple(value.shape)}, the parameter {tuple(named[name].shape)}")
    return dict(sorted((position[id(named[name])], values) for name, values in per_param.items()))


def _mark(path: Path) -> Path:
    # Beside a checkpoint: that it is needed.
    return path.with_name(f"{path.name}.kept")


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


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")


def _seal(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": files.sha256(path)}


def _sync_all(folder: Path) -> None:
    for path in (*folder.iterdir(), folder):
        files.sync(path)


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
