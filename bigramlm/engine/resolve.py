"""Resolving a config: whatever is left open, found on the disk or decided by weights is settled here, once.

What comes of it is a new config, which is saved, and in which nobody writes afterwards. Every decision is logged.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bigramlm.config.overrides import Overrides
from bigramlm.config.run_config import RunConfig, differences, load, to_dict, tokenizer_config
from bigramlm.data.config import PairsConfig
from bigramlm.errors import UserError, require
from bigramlm.model.huggingface import FREE, Pretrained, as_typed
from bigramlm.runs.folder import RunFolder
from bigramlm.tokenizer.config import GPT2TokenizerConfig
from bigramlm.utils.console import relative

if TYPE_CHECKING:
    from bigramlm.checkpoint.checkpoint import Checkpoint
    from bigramlm.data.pairs import Pairs
    from bigramlm.data.text import Text
    from bigramlm.data.tokens import TokenFiles
    from bigramlm.engine.load import Weights
    from bigramlm.model.base import LanguageModel
    from bigramlm.tokenizer.base import Tokenizer
    from bigramlm.tokenizer.config import TokenizerConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InitState:
    """The state that a run starts from; nothing, for one that is new and has fresh weights."""

    resume_from: Checkpoint | None = None
    """The run's own checkpoint that it resumes from."""
    init_weights: Weights | None = None
    """The weights for a fresh model; with an adapter, its base."""
    resumed_at: int | None = None
    """The step that a resumed run resumes from; None for a new run."""
    base: str | None = None
    """The place of the base of the adapter in `init_weights`, if it has moved."""
    is_changed: bool = False
    """True if the config of a resumed run is another than it was."""

    def is_fresh(self, cfg: RunConfig) -> bool:
        """Tell whether the model has weights that know nothing yet; cfg: the run's."""
        return self.resume_from is None and (self.init_weights is None or cfg.from_scratch)

    def tokenizer(self, cfg: TokenizerConfig) -> Tokenizer | None:
        """Return the tokenizer of these weights, without which they mean nothing; None if there are no weights.

        UserError where cfg asks for another.
        """
        weights = self.resume_from or self.init_weights
        if weights is None:
            return None
        theirs: TokenizerConfig
        if isinstance(weights, Pretrained):
            place = weights.tokenizer_path()
            if place is None:  # how many tokens it has is compared once it is there
                return None
            theirs = GPT2TokenizerConfig(path=place)
        else:
            from bigramlm.checkpoint.checkpoint import CONFIG

            theirs = load(weights.path / CONFIG).tokenizer
        require(
            theirs == cfg,
            f"{_typed(cfg)}: the weights in {relative(weights.path)} were trained with {_typed(theirs)}, and mean "
            "nothing with another; leave the tokenizer out, which takes theirs, or train a new run",
        )
        if isinstance(weights, Pretrained):
            return cfg.build(characters="", documents=1, train=lambda _: iter(()))
        return weights.tokenizer(cfg)


def _typed(cfg: TokenizerConfig) -> str:
    return " ".join(f"tokenizer{f'.{name}' if name != 'name' else ''}={value}" for name, value in vars(cfg).items())


def resolve(
    asked: RunConfig, overrides: Overrides, folder: RunFolder
) -> tuple[RunConfig, Text | TokenFiles | Pairs, InitState]:
    """Settle what needs no model: the text that is really used, and what its tokens or trained weights decide.

    overrides: what was typed, which nothing else may decide. Returns the config, the text, and the state that the run
    starts from. UserError where that cannot be.
    """
    from bigramlm.data.tokens import TokenFiles

    asked.adapter.require_installed()
    # The saved config says how the run is, and not how it came about.
    data = asked.data.prepare(the_same=asked.resume is not None)
    cfg = replace(asked, data=data, resume=None, sweep=None, base=None)
    text = cfg.data.read()
    if isinstance(text, TokenFiles):
        of_weights = cfg.init_from is not None or asked.resume is not None  # whose tokenizer must be that of the files
        cfg = _resolve_tokens(cfg, text, overrides, of_weights=of_weights)
    if asked.resume is not None:
        own = _checkpoint_of(cfg, folder, text, overrides)
        cfg, init = _resolve_resumed(cfg, own, folder, moved_to=asked.base)
    elif cfg.init_from is not None:
        cfg, weights = _resolve_weights(cfg, overrides)
        init = InitState(init_weights=weights, base=asked.base)
    else:
        init = InitState(base=asked.base)
    require(
        init.base is None or getattr(init.init_weights, "is_adapter", False),
        f"base={init.base}: is where an adapter's base has moved to, and no adapter is started from here; leave it out",
    )
    return cfg, text, init


def resolve_for_model(cfg: RunConfig, model: LanguageModel, row_length: int) -> RunConfig:
    """Settle what depends on the model's size: the device, its precision and threads; and that some take no steps.

    row_length: the tokens in a row. UserError where the machine lacks what was asked for.
    """
    from bigramlm.device.device import decide

    if not cfg.model.trains and cfg.trainer.steps:
        log.info("steps: none, a model that is counted has nothing to train")
        cfg = replace(cfg, trainer=replace(cfg.trainer, steps=0))
    cfg = replace(cfg, device=decide(cfg.device, n_params=model.n_params(), tokens=cfg.data.batch_size * row_length))
    require(
        cfg.device.name != "mps"
        or not (cfg.trainer.activation_checkpointing and getattr(cfg.model, "dropout", 0.0) > 0),
        "trainer.activation_checkpointing=true with model.dropout: on MPS PyTorch draws others again; leave one out",
    )
    return cfg


def _resolve_tokens(cfg: RunConfig, tokens: TokenFiles, overrides: Overrides, *, of_weights: bool) -> RunConfig:
    # What token files bring: their tokenizer, and where they are split. UserError where another was typed.
    theirs = tokenizer_config(tokens.about.tokenizer)
    if overrides.touches("tokenizer") and not of_weights and cfg.tokenizer != theirs:
        raise UserError(
            f"{_typed(cfg.tokenizer)}: the token files in {relative(tokens.folder)} were made with {_typed(theirs)}; "
            "leave the tokenizer out, or prepare the text with this one"
        )
    fraction = tokens.about.split / tokens.about.n_characters
    is_other = abs(fraction - cfg.data.train_fraction) > 0.01
    if overrides.has("data.train_fraction") and is_other:
        raise UserError(
            f"data.train_fraction={cfg.data.train_fraction}: the token files in {relative(tokens.folder)} are split at "
            f"{fraction:.2g}; leave it out, or prepare the text with this one"
        )
    if not of_weights:
        log.info("tokenizer: %s, of the token files", theirs.name)
        cfg = replace(cfg, tokenizer=theirs)
    if is_other:
        log.info("data.train_fraction: %.2g, of the token files", fraction)
        cfg = replace(cfg, data=replace(cfg.data, train_fraction=fraction))
    return cfg


def _checkpoint_of(
    cfg: RunConfig, folder: RunFolder, text: Text | TokenFiles | Pairs, overrides: Overrides
) -> Checkpoint | None:
    # The checkpoint that a run resumes from, None where it was ended before its first. UserError where it cannot.
    from bigramlm.checkpoint.manager import Checkpoints

    checkpoints = Checkpoints(folder.path / "checkpoints")
    checkpoints.clean_up()
    own = checkpoints.newest()
    step = own.step if own else 0
    _require_unfinished(cfg, folder, step)
    before = folder.summary.get("data", {}).get("sha256")
    if before not in (None, text.sha256) and not overrides.has("data.path"):
        raise UserError(
            f"{cfg.data.file()}: is not the text that the run was trained on (SHA-256 {text.sha256[:12]}, then "
            f"{before[:12]}); restore that file; with data=text or data=pairs, data.path= resumes with "
            "another"
        )
    log.info("resume: %s from step %d", relative(folder.path), step)
    if before not in (None, text.sha256):
        log.warning("changed: the text, its SHA-256 is %s, it was %s", text.sha256[:12], before[:12])
    return own


def _require_unfinished(cfg: RunConfig, folder: RunFolder, step: int) -> None:
    # UserError where the run has nothing left to do.
    saved = load(folder.path / "config.yaml")
    completed = folder.summary.get("status") == "completed"
    completed = completed and folder.summary.get("step") == step  # and not a later step whose checkpoint was lost
    patience, waited = cfg.trainer.early_stopping_patience, saved.trainer.early_stopping_patience
    if completed and folder.summary.get("early_stopped") and 0 < patience <= waited:
        raise UserError(
            f"resume={relative(folder.path)}: early stopping has ended the run at step {step}; "
            f"trainer.early_stopping_patience=0, or above {waited}, continues it"
        )
    require(
        cfg.model.trains or not completed,
        f"resume={relative(folder.path)}: is complete: model={cfg.model.name} is counted, and takes no steps",
    )
    if cfg.trainer.steps < step or (completed and cfg.trainer.steps == step):
        raise UserError(
            f"resume={relative(folder.path)} trainer.steps={cfg.trainer.steps}: the run is at step {step} already; "
            f"trainer.steps={2 * max(step, 1)} goes further, init_from= starts a new run from its weights"
        )


def _resolve_resumed(
    cfg: RunConfig, own: Checkpoint | None, folder: RunFolder, *, moved_to: str | None
) -> tuple[RunConfig, InitState]:
    # moved_to: where the base of its adapter is now.
    changes = differences(to_dict(load(folder.path / "config.yaml")), to_dict(cfg))
    for name, was, now in changes:
        log.info("changed: %s=%s, it was %s", name, now, was)
    weights: Weights | None = None
    if own is not None and own.is_adapter:
        from bigramlm.engine.load import open_base

        weights, beyond = open_base(own, moved_to)
        if moved_to and not beyond:
            cfg = replace(cfg, init_from=weights.location)
        moved_to = beyond
    elif own is None and cfg.init_from is not None:
        # A run that ended before its first checkpoint takes the weights that it was to start from once more.
        cfg, weights = _resolve_weights(cfg, None)
    init = InitState(own, weights, own.step if own else 0, moved_to, is_changed=bool(changes))
    return cfg, init


def _resolve_weights(cfg: RunConfig, overrides: Overrides | None) -> tuple[RunConfig, Weights]:
    # overrides: None where the block size is settled already.
    from bigramlm.checkpoint.checkpoint import CONFIG
    from bigramlm.engine.load import open_weights

    weights = open_weights(str(cfg.init_from))
    taken = "all but the weights" if cfg.from_scratch else "weights"
    typed = overrides is None or overrides.has("data.block_size")
    cfg = replace(cfg, init_from=weights.location)
    if isinstance(weights, Pretrained):
        _check_shape(cfg, weights, overrides or Overrides())
        cfg = _resolve_block_size(cfg, weights, typed=typed)
        log.info("%s: of GPT-2 (%s), from %s", taken, weights.model_config().size, relative(weights.path))
        return cfg, weights
    theirs = load(weights.path / CONFIG).data.block_size
    if not typed and cfg.data.block_size != theirs:
        log.info("block size: %d, as the weights were trained with", theirs)
        cfg = replace(cfg, data=replace(cfg.data, block_size=theirs))
    require(
        cfg.data.block_size <= theirs or getattr(cfg.model, "position", "") != "learned",
        f"data.block_size={cfg.data.block_size}: the weights in {relative(weights.path)} have learned {theirs:,} "
        f"positions, and know no token behind them; take {theirs} at the most",
    )
    log.info("%s: of step %d, from %s", taken, weights.step, relative(weights.path))
    return cfg, weights


def _check_shape(cfg: RunConfig, pretrained: Pretrained, overrides: Overrides) -> None:
    # What a recipe or the command line says of the model must be what the weights are: shapes do not tell all of it.
    theirs = pretrained.model_config()
    asked = [(name, value) for name, value in vars(cfg.model).items() if name not in FREE]
    asked += [("size", size) for size in ("small", "medium", "large", "xl") if overrides.get("model.size") == size]
    for name, value in asked:
        require(
            value == getattr(theirs, name),
            f"model.{name}={as_typed(value)}: the weights in {pretrained.location} have model.{name}="
            f"{as_typed(getattr(theirs, name))}, and their config.json decides; leave it out, or take other weights",
        )


def _resolve_block_size(cfg: RunConfig, pretrained: Pretrained, *, typed: bool) -> RunConfig:
    asked = size = cfg.data.block_size
    positions = pretrained.block_size
    if not typed:  # a recipe's is cut, and without one the block is as long as it can be
        said_nothing = asked == type(cfg.data).block_size and not isinstance(cfg.data, PairsConfig)
        size = positions if said_nothing else min(asked, positions)
    require(
        size <= positions,
        f"data.block_size={asked}: the weights in {pretrained.location} have {positions:,} positions, and know no "
        f"token behind them; take {positions} at the most",
    )
    log.info("block size: %d of %d positions", size, positions)
    return replace(cfg, data=replace(cfg.data, block_size=size))
