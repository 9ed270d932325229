"""A trained model from its run's folder or a checkpoint, and from nothing else."""

from __future__ import annotations

from bigramlm import runs
from bigramlm.checkpoint import CONFIG, MANIFEST, Checkpoint, Checkpoints
from bigramlm.config import RunConfig, load
from bigramlm.errors import UserError, require
from bigramlm.model.base import LanguageModel
from bigramlm.tokenizer.base import Tokenizer


def open_checkpoint(where: str, which: str = "last") -> Checkpoint:
    """A checkpoint that is whole, by its own folder or its run's.

    where: the folder, or `latest`; which: of a run `last` (the newest that is whole), `best` or a step.
    UserError where there is none such, or it is damaged.
    """
    folder = runs.find(where)
    checkpoints = Checkpoints(folder / "checkpoints")
    if (folder / MANIFEST).exists() or not checkpoints.folder.is_dir():
        require(
            folder.is_dir() and not (folder / "summary.json").exists(),
            f"{where}: holds no checkpoint; a run's first is saved at step 0",
        )
        return Checkpoint(folder)
    if which == "last":
        newest = checkpoints.newest()
        if newest is None:
            raise UserError(f"{where}: holds no checkpoint yet")
        return newest
    if which == "best":
        return Checkpoint(checkpoints.path("best"))
    steps = checkpoints.steps()
    require(
        which.isdecimal() and int(which) in steps,
        f"checkpoint={which}: {where} has none such; choose one of last, best, {', '.join(map(str, steps))}",
    )
    return Checkpoint(checkpoints.folder / f"step_{int(which)}")


def load_model(checkpoint: Checkpoint) -> tuple[LanguageModel, Tokenizer, RunConfig]:
    """The model, on the CPU, with its tokenizer and the config of its run."""
    cfg = load(checkpoint.path / CONFIG)
    tokenizer = checkpoint.tokenizer(cfg.tokenizer)
    model = cfg.model.build(vocab_size=tokenizer.vocab_size, block_size=cfg.data.block_size)
    checkpoint.load_weights(model)
    return model, tokenizer, cfg
