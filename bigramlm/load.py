"""A trained model from its run's folder or a checkpoint, and from nothing else."""

from __future__ import annotations

import re

from bigramlm import runs
from bigramlm.checkpoint import CONFIG, MANIFEST, Checkpoint, Checkpoints
from bigramlm.config import RunConfig, load
from bigramlm.errors import require
from bigramlm.model.base import LanguageModel
from bigramlm.tokenizer.base import Tokenizer


def open_checkpoint(where: str, which: str = "last") -> Checkpoint:
    """A checkpoint that is whole, by its own folder or its run's.

    where: the folder, or `latest`; which: of a run `last` (the newest that is whole), `best` or a step.
    UserError where there is none such, or it is damaged.
    """
    folder = runs.find(where, holding="checkpoints")
    if (folder / MANIFEST).exists() or re.fullmatch(r"step_\d+", folder.name):
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


def load_model(checkpoint: Checkpoint) -> tuple[LanguageModel, Tokenizer, RunConfig]:
    """The model, on the CPU, with its tokenizer and the config of its run."""
    cfg = load(checkpoint.path / CONFIG)
    tokenizer = checkpoint.tokenizer(cfg.tokenizer)
    model = cfg.model.build(vocab_size=tokenizer.vocab_size, block_size=cfg.data.block_size)
    checkpoint.load_weights(model)
    return model, tokenizer, cfg
