"""A trained model from where its weights are: a run's folder, a checkpoint's, or GPT-2's in Hugging Face's layout."""

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
    """Open the weights in a run's or a checkpoint's folder, in Hugging Face's layout, or of a name on its hub.

    UserError where there are none such.
    """
    return runs.find_pretrained(where) or open_checkpoint(where)


def open_checkpoint(where: str, which: str = "last") -> Checkpoint:
    """Open a whole checkpoint, by its own folder or its run's.

    where: the folder, or `latest`; which: of a run `last` (the newest that is whole), `best` or a step.
    UserError where there is none such, or it is damaged.
    """
    folder = runs.find(where, holding="checkpoints")
    if (folder / MANIFEST).exists() or paths.step_of(folder.name) is not None:
        return Checkpoint(folder)
    checkpoints = Checkpoints(folder if folder.name == "checkpoints" else folder / "checkpoints")
    steps = checkpoints.steps()
    require(bool(steps), f"{where}: holds no checkpoint, nor is one; a run saves its first at step 0")
    if which == "last":
        newest = checkpoints.newest()
        assert newest is not None
        return newest
    if which == "best":
        return Checkpoint(checkpoints.path("best"))
    step = which.removeprefix("step_")
    require(
        step.isdecimal() and int(step) in steps,
        f"checkpoint={which}: {where} has none such; choose one of last, best, {', '.join(map(str, steps))}",
    )
    return Checkpoint(checkpoints.folder / f"step_{int(step)}")


def open_base(checkpoint: Checkpoint, moved_to: str | None = None) -> tuple[Weights, str | None]:
    """Open the weights that a checkpoint's adapter was trained on.

    moved_to: where they are now, if not where they were; or, where they are an adapter's too, and in their place, where
    the base of that one is: it is given back then. UserError where they are not there, or others.
    """
    base = checkpoint.base()
    place = moved_to or base.location
    say = "say where that one is (base=PLACE, or --base PLACE of checkpoint.py)"
    try:
        weights = open_weights(place)
    except UserError as error:
        raise UserError(
            f"{checkpoint.path}: holds an adapter alone, and its base is not at {place} ({error}); {say}"
        ) from None
    if weights.sha256 == base.sha256:
        return weights, None
    if moved_to is not None:
        with contextlib.suppress(UserError):
            inner = open_weights(base.location)
            if isinstance(inner, Checkpoint) and inner.is_adapter and inner.sha256 == base.sha256:
                return inner, moved_to
    raise UserError(
        f"{place}: is not the base that the adapter in {checkpoint.path} was trained on: the SHA-256 of its weights is "
        f"{weights.sha256[:12]}, and was {base.sha256[:12]}; {say}"
    )


def keep_base(weights: Weights, adapter: Path) -> None:
    """Keep the checkpoint that an adapter was trained on, even if its own run continues."""
    if isinstance(weights, Checkpoint):
        weights.pin(f"The base of the adapter in {adapter}; delete this file when that one is gone.\n")


def put_weights(weights: Weights, model: LanguageModel, *, counted: bool = True, base: str | None = None) -> None:
    """Put weights into a model as Checkpoint.load_weights does; those of an adapter are merged into those of its base.

    base: where that is, if it has moved.
    """
    if isinstance(weights, Checkpoint) and weights.is_adapter:
        adapter = put_adapter(weights, model, counted=counted, base=base)
        adapter.merge()
    else:
        weights.load_weights(model, counted=counted)


def put_adapter(checkpoint: Checkpoint, model: LanguageModel, *, counted: bool = True, base: str | None = None) -> LoRA:
    """Put the weights of the base into a model, and the adapter beside them."""
    weights, beyond = open_base(checkpoint, base)
    put_weights(weights, model, counted=counted, base=beyond)
    adapter = load(checkpoint.path / CONFIG).adapter.attach(model)
    assert adapter is not None, "it holds one"
    checkpoint.load_adapter(adapter)
    return adapter


def build(checkpoint: Checkpoint) -> tuple[LanguageModel, Tokenizer, RunConfig]:
    """Build a checkpoint's model, with fresh weights, and return it with its tokenizer and the config of its run."""
    cfg = load(checkpoint.path / CONFIG)
    tokenizer = checkpoint.tokenizer(cfg.tokenizer)
    return cfg.model.build(vocab_size=tokenizer.vocab_size, block_size=cfg.data.block_size), tokenizer, cfg


def load_model(checkpoint: Checkpoint, base: str | None = None) -> tuple[LanguageModel, Tokenizer, RunConfig]:
    """Load a checkpoint's model on the CPU, and return it with its tokenizer and the config of its run.

    An adapter stays beside the weights, as it was trained; base: where they are, if they have moved.
    """
    model, tokenizer, cfg = build(checkpoint)
    if checkpoint.is_adapter:
        put_adapter(checkpoint, model, base=base)
    else:
        require(base is None, f"base={base}: is for an adapter, and {checkpoint.path} holds all weights; leave it out")
        checkpoint.load_weights(model)
    return model, tokenizer, cfg
