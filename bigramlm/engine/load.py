"""Loading of trained models from runs, checkpoints and Hugging Face folders."""

from __future__ import annotations

import contextlib
from pathlib import Path

from bigramlm.adapter.lora import LoRA
from bigramlm.checkpoint.checkpoint import CONFIG, MANIFEST, Checkpoint
from bigramlm.checkpoint.manager import Checkpoints
from bigramlm.config.run_config import RunConfig, load
from bigramlm.errors import UserError, require
from bigramlm.model.base import LanguageModel
from bigramlm.model.huggingface import Pretrained
from bigramlm.runs import find as runs
from bigramlm.tokenizer.base import Tokenizer
from bigramlm.utils import paths

Weights = Checkpoint | Pretrained


def open_weights(where: str) -> Weights:
    """Open the weights of a run, a checkpoint or a pretrained GPT-2.

    where: the folder of a run or a checkpoint, a folder in Hugging Face's layout, or a name on its hub. Raises
    UserError if there are no such weights.
    """
    return runs.find_pretrained(where) or open_checkpoint(where)


def open_checkpoint(where: str, which: str = "last") -> Checkpoint:
    """Open a checkpoint, given its own folder or the folder of its run.

    where: the folder, or `latest`; which: `last` (the newest intact one), `best` or a step, for the folder of a run.
    Raises UserError if there is no such checkpoint or it is damaged.
    """
    folder = runs.find(where, containing="checkpoints")
    if (folder / MANIFEST).exists() or paths.step_of(folder.name) is not None:
        return Checkpoint(folder)
    checkpoints = Checkpoints(folder if folder.name == "checkpoints" else folder / "checkpoints")
    steps = checkpoints.steps()
    require(bool(steps), f"{where}: is not a checkpoint and contains none; a run saves its first checkpoint at step 0")
    if which == "last":
        newest = checkpoints.newest()
        assert newest is not None
        return newest
    if which == "best":
        return Checkpoint(checkpoints.path("best"))
    step = which.removeprefix("step_")
    require(
        step.isdecimal() and int(step) in steps,
        f"checkpoint={which}: {where} has no such checkpoint; choose one of last, best, {', '.join(map(str, steps))}",
    )
    return Checkpoint(checkpoints.folder / f"step_{int(step)}")


def open_base(checkpoint: Checkpoint, moved_to: str | None = None) -> tuple[Weights, str | None]:
    """Open the base weights that a checkpoint's adapter was trained on.

    moved_to: the new location of the base, if it has moved. If the base is itself an adapter that is still in its
    place, `moved_to` may instead be the location of the base's own base; it is then returned as the second value, which
    is None otherwise. Raises UserError if the weights are missing or have another SHA-256.
    """
    base = checkpoint.base()
    location = moved_to or base.location
    hint = "give the location of the base (base=PLACE, or --base PLACE of checkpoint.py)"
    try:
        weights = open_weights(location)
    except UserError as error:
        raise UserError(
            f"{checkpoint.path}: contains only an adapter, and its base is not at {location} ({error}); {hint}"
        ) from None
    if weights.sha256 == base.sha256:
        return weights, None
    if moved_to is not None:
        with contextlib.suppress(UserError):
            inner = open_weights(base.location)
            if isinstance(inner, Checkpoint) and inner.is_adapter and inner.sha256 == base.sha256:
                return inner, moved_to
    raise UserError(
        f"{location}: is not the base that the adapter in {checkpoint.path} was trained on: the SHA-256 of its weights "
        f"is {weights.sha256[:12]} instead of {base.sha256[:12]}; {hint}"
    )


def keep_base(weights: Weights, adapter: Path) -> None:
    """Mark the base checkpoint of an adapter to be kept, even if its run continues."""
    if isinstance(weights, Checkpoint):
        weights.pin(f"The base of the adapter in {adapter}; delete this file when that adapter is gone.\n")


def put_weights(weights: Weights, model: LanguageModel, *, counted: bool = True, base: str | None = None) -> None:
    """Load weights into a model; an adapter is merged into its base.

    counted: as for `Checkpoint.load_weights`; base: the location of an adapter's base, if it has moved.
    """
    if isinstance(weights, Checkpoint) and weights.is_adapter:
        adapter = put_adapter(weights, model, counted=counted, base=base)
        adapter.merge()
    else:
        weights.load_weights(model, counted=counted)


def put_adapter(checkpoint: Checkpoint, model: LanguageModel, *, counted: bool = True, base: str | None = None) -> LoRA:
    """Load an adapter's base weights into a model and attach the adapter.

    Arguments as for `put_weights`.
    """
    weights, inner_base = open_base(checkpoint, base)
    put_weights(weights, model, counted=counted, base=inner_base)
    adapter = load(checkpoint.path / CONFIG).adapter.attach(model)
    assert adapter is not None, "the checkpoint contains an adapter"
    checkpoint.load_adapter(adapter)
    return adapter


def build(checkpoint: Checkpoint) -> tuple[LanguageModel, Tokenizer, RunConfig]:
    """Build a checkpoint's model with fresh weights, its tokenizer and run config."""
    cfg = load(checkpoint.path / CONFIG)
    tokenizer = checkpoint.tokenizer(cfg.tokenizer)
    return cfg.model.build(vocab_size=tokenizer.vocab_size, block_size=cfg.data.block_size), tokenizer, cfg


def load_model(checkpoint: Checkpoint, base: str | None = None) -> tuple[LanguageModel, Tokenizer, RunConfig]:
    """Load a checkpoint's model on the CPU, its tokenizer and run config.

    An adapter stays separate from the base weights, as it was trained; base: their location, if they have moved.
    """
    model, tokenizer, cfg = build(checkpoint)
    if checkpoint.is_adapter:
        put_adapter(checkpoint, model, base=base)
    else:
        require(
            base is None,
            f"base={base}: applies to adapters only, and {checkpoint.path} contains all weights; leave it out",
        )
        checkpoint.load_weights(model)
    return model, tokenizer, cfg
