"""Loading of trained models from runs, checkpoints and Hugging Face folders."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bigramlm.adapter.lora import ADAPTER, LoRA, saved_ranks
from bigramlm.checkpoint.checkpoint import CONFIG, MANIFEST, Checkpoint
from bigramlm.checkpoint.manager import Checkpoints
from bigramlm.checkpoint.reading import retry
from bigramlm.config.run_config import RunConfig, load
from bigramlm.errors import UserError, require
from bigramlm.model import python
from bigramlm.model.base import LanguageModel
from bigramlm.model.config import PythonConfig
from bigramlm.model.huggingface import Pretrained
from bigramlm.runs import find as runs
from bigramlm.tokenizer.base import Tokenizer
from bigramlm.utils import paths
from bigramlm.utils.console import relative

if TYPE_CHECKING:
    from torch import nn

    from bigramlm.model.python import ModelFactory

Weights = Checkpoint | Pretrained

# The block size of a saved config that no model reaches.
_MAX_BLOCK = 1 << 24


def open_weights(where: str) -> Weights:
    """Open the weights of a run, a checkpoint or a pretrained GPT-2.

    where: a run folder, a checkpoint folder, a folder in Hugging Face's layout, or the name of a model on the Hugging
    Face hub. A run stands for its newest checkpoint. Raises UserError if there are no such weights.
    """
    return runs.find_pretrained(where) or open_checkpoint(where)


def open_checkpoint(where: str, which: str = "last") -> Checkpoint:
    """Open a checkpoint, given its own folder or its run folder.

    where: a path as for `find` in runs/find.py, or `latest` for the run that was started last. which: the checkpoint to
    open if `where` is a run folder: `last` (the newest intact checkpoint), `best` or a step. If the run deletes the
    checkpoint while it is read, the one that is then the last or the best is read instead. Raises UserError if there
    is no such checkpoint, or if the checkpoint is damaged.
    """
    folder = runs.find(where, containing="checkpoints")
    if Path(where).name in ("last", "best") and paths.step_of(folder.name) is not None:  # a file that names the folder
        return _open_following(lambda: retry(lambda: Checkpoint(runs.find(where))))
    is_run = (folder / "checkpoints").is_dir()  # a run folder may have any name, such as that of a checkpoint
    if (folder / MANIFEST).exists() or (paths.step_of(folder.name) is not None and not is_run):
        return Checkpoint(folder)
    return _open_in_run(folder, where, which)


def _open_following(select: Callable[[], Checkpoint]) -> Checkpoint:
    checkpoint = select()
    checkpoint.reopen = lambda: _open_following(select)
    return checkpoint


def _open_in_run(folder: Path, where: str, which: str) -> Checkpoint:
    checkpoints = Checkpoints(folder / "checkpoints")
    steps = checkpoints.steps()
    require(
        bool(steps),
        f"{where} is not a checkpoint and contains none; a run saves its first checkpoint at step 0",
    )
    if which == "last":

        def newest() -> Checkpoint:
            found = checkpoints.newest()
            require(found is not None, f"{where} contains no checkpoint any more: its checkpoints were deleted")
            assert found is not None
            return found

        return _open_following(newest)
    if which == "best":
        return _open_following(lambda: retry(lambda: Checkpoint(checkpoints.path("best"))))
    step = which.removeprefix("step_")
    require(
        step.isdecimal() and int(step) in steps,
        f"checkpoint={which}: {where} has no such checkpoint; choose one of last, best, {', '.join(map(str, steps))}",
    )
    return Checkpoint(checkpoints.folder / f"step_{int(step)}")


def open_base(checkpoint: Checkpoint, moved_to: str | None = None) -> tuple[Weights, str | None]:
    """Open the base weights that a checkpoint's adapter was trained on.

    moved_to: the new location of the base weights, if they have moved. The base may itself be an adapter with a base of
    its own. If only that inner base has moved, `moved_to` is the new location of the inner base. Returns the weights
    and the new location of the inner base, which is None if the inner base has not moved. Raises UserError if the
    weights are missing or have a different SHA-256 than during training.
    """
    base = checkpoint.base()
    location = moved_to or base.location
    hint = "pass the location of the base with base=PLACE (in checkpoint.py with --base PLACE)"
    try:
        weights = open_weights(location)
    except UserError as error:
        raise UserError(
            f"{checkpoint.path} contains only an adapter, and the base of this adapter cannot be opened at {location} "
            f"({error}); {hint}"
        ) from None
    if weights.sha256 == base.sha256:
        return weights, None
    if moved_to is not None:
        with contextlib.suppress(UserError):
            inner = open_weights(base.location)
            if isinstance(inner, Checkpoint) and inner.is_adapter and inner.sha256 == base.sha256:
                return inner, moved_to
    raise UserError(
        f"{location} is not the base that the adapter in {checkpoint.path} was trained on: the SHA-256 of the weights "
        f"in {location} is {weights.sha256[:12]} instead of {base.sha256[:12]}; {hint}"
    )


def keep_base(weights: Weights, adapter: Path) -> None:
    """Mark an adapter's base checkpoint, so that its run does not delete it.

    adapter: the run folder of the adapter.
    """
    if isinstance(weights, Checkpoint):
        weights.pin(f"The adapter in {adapter} needs this checkpoint. Delete this file when that adapter is deleted.\n")


def put_weights(weights: Weights, model: LanguageModel, *, counted: bool = True, base: str | None = None) -> None:
    """Load weights into a model; an adapter is merged into its base weights.

    counted: if True, tables of n-gram counts are loaded too. base: the location of an adapter's base weights, if they
    have moved. Raises UserError if the weights do not match the model.
    """
    if isinstance(weights, Checkpoint) and weights.is_adapter:
        adapter = put_adapter(weights, model, counted=counted, base=base)
        adapter.merge()
    else:
        weights.load_weights(model, counted=counted)


def put_adapter(checkpoint: Checkpoint, model: LanguageModel, *, counted: bool = True, base: str | None = None) -> LoRA:
    """Load an adapter's base weights into a model and attach the adapter.

    The arguments and the errors are those of `put_weights`.
    """
    weights, inner_base = open_base(checkpoint, base)
    put_weights(weights, model, counted=counted, base=inner_base)
    adapter = config_of(checkpoint).adapter.attach(model)
    assert adapter is not None, "the checkpoint contains an adapter"
    checkpoint.load_adapter(adapter)
    return adapter


def config_of(checkpoint: Checkpoint) -> RunConfig:
    """Read the config that is saved in a checkpoint."""

    def read() -> RunConfig:
        with checkpoint.reading(CONFIG):
            return load(checkpoint.path / CONFIG)

    return checkpoint.follow(read)


def build_model(cfg: RunConfig, vocab_size: int, passed: nn.Module | ModelFactory | None = None) -> LanguageModel:
    """Build the model of a config, or the model that was passed from Python.

    Raises UserError if the config is that of a different model.
    """
    shape = {"vocab_size": vocab_size, "block_size": cfg.data.block_size}
    if passed is None:
        return python.as_language_model(cfg.model.build(**shape), cfg.model.name, **shape)
    require(
        isinstance(cfg.model, PythonConfig),
        f"model=: the run has model={cfg.model.name}, which needs no model from Python; omit model=",
    )
    return python.build_model(passed, **shape)


def build(
    checkpoint: Checkpoint, passed: nn.Module | ModelFactory | None = None, base: str | None = None
) -> tuple[LanguageModel, Tokenizer, RunConfig]:
    """Build the model (with fresh weights), tokenizer and config of a checkpoint.

    base: the location of an adapter's base weights, if they have moved.
    """
    cfg = config_of(checkpoint)
    tokenizer = checkpoint.tokenizer(cfg.tokenizer)
    if passed is None and isinstance(cfg.model, PythonConfig):
        raise UserError(
            f"{relative(checkpoint.path)}: the model {cfg.model.source} was passed from Python, so load it there: "
            f"bigramlm.load({str(relative(checkpoint.path))!r}, model={cfg.model.variable})"
        )
    if passed is None:
        check_size(checkpoint, cfg, tokenizer.vocab_size, base)
    return build_model(cfg, tokenizer.vocab_size, passed), tokenizer, cfg


def check_size(weights: Weights, cfg: RunConfig, vocab_size: int, base: str | None = None) -> None:
    """Compare the size of a config's model with the weights before it is built.

    A config that has been edited could describe a model that takes hours to build, or all memory. For an adapter, its
    rank and the size of its base are compared. base: the location of an adapter's base weights, if they have moved.
    Raises UserError if the model is far larger than the weights.
    """
    path = weights.path
    while isinstance(weights, Checkpoint) and weights.is_adapter:
        _check_rank(weights)
        weights, base = open_base(weights, base)
    size = cfg.model.estimate_size(vocab_size=vocab_size, block_size=cfg.data.block_size)
    n_saved = weights.n_elements()
    require(
        (size is None or size[0] <= 2 * n_saved + 10**6) and cfg.data.block_size <= _MAX_BLOCK,
        f"{path / CONFIG} describes a model of {size[0] if size else 0:,} parameters with blocks of "
        f"{cfg.data.block_size:,} tokens, but {weights.path} has {n_saved:,} weights; use an unchanged copy of both",
    )


def _check_rank(checkpoint: Checkpoint) -> None:
    def read() -> set[int]:
        with checkpoint.reading(ADAPTER):
            return saved_ranks(checkpoint.path)

    adapter, found = config_of(checkpoint).adapter, checkpoint.follow(read)
    require(
        found == {getattr(adapter, "r", None)},
        f"{checkpoint.path / CONFIG} describes adapter={adapter.name} of rank {getattr(adapter, 'r', 0):,}, but "
        f"{ADAPTER} has rank {', '.join(map(str, sorted(found)))}; use an unchanged copy of both",
    )


def load_model(
    checkpoint: Checkpoint, base: str | None = None, passed: nn.Module | ModelFactory | None = None
) -> tuple[LanguageModel, Tokenizer, RunConfig]:
    """Load the model of a checkpoint on the CPU, its tokenizer and its config.

    An adapter is attached but not merged into its base weights. base: the location of these base weights, if they have
    moved.
    """
    model, tokenizer, cfg = build(checkpoint, passed, base)
    if checkpoint.is_adapter:
        put_adapter(checkpoint, model, base=base)
    else:
        require(
            base is None,
            f"base={base}: {checkpoint.path} contains no adapter, so it has no base weights to locate; omit base=",
        )
        checkpoint.load_weights(model)
    return model, tokenizer, cfg
