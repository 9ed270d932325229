"""Resolution of a run's config: undetermined fields get their final values here.

These values come from files on the disk, from the initial weights and from the machine. The result is a new config,
which is saved and never modified afterwards. Every decision is logged.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bigramlm.config.extensions import describe
from bigramlm.config.overrides import Overrides
from bigramlm.config.run_config import LABELS, RunConfig, differences, load, to_dict, tokenizer_config
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
    """The state that a run starts from.

    A new run without `init_from` has no such state.
    """

    resume_from: Checkpoint | None = None
    """The checkpoint from which the run resumes; None for a new run, and for a run without checkpoints."""
    init_weights: Weights | None = None
    """The weights to load into the fresh model. For a run with an adapter, they are the adapter's base weights."""
    resumed_at: int | None = None
    """The step from which the run resumes; None for a new run."""
    base: str | None = None
    """The new location of the base weights, if `init_weights` are an adapter whose base has moved."""
    is_changed: bool = False
    """True if the config of a resumed run has changed."""

    def is_fresh(self, cfg: RunConfig) -> bool:
        """Return whether the model starts with untrained weights."""
        return self.resume_from is None and (self.init_weights is None or cfg.from_scratch)

    def tokenizer(self, cfg: TokenizerConfig) -> Tokenizer | None:
        """Return the tokenizer that the weights were trained with.

        Returns None if there are no weights, or if the weights come without a tokenizer. Raises UserError if `cfg` is
        the config of a different tokenizer.
        """
        weights = self.resume_from or self.init_weights
        if weights is None or not _has_tokenizer(weights, cfg):
            return None
        if isinstance(weights, Pretrained):
            return cfg.build(characters="", documents=1, train=lambda _: iter(()))
        return weights.tokenizer(cfg)


def _has_tokenizer(weights: Weights, cfg: TokenizerConfig) -> bool:
    # Raises UserError if the weights come with a different tokenizer.
    trained_with: TokenizerConfig
    if isinstance(weights, Pretrained):
        path = weights.tokenizer_path()
        if path is None:  # only the vocabulary sizes can be compared, once the model is built
            return False
        trained_with = GPT2TokenizerConfig(path=path)
    else:
        from bigramlm.engine.load import config_of

        trained_with = config_of(weights).tokenizer
    require(
        trained_with == cfg,
        f"{_as_overrides(cfg)}: the weights in {relative(weights.path)} were trained with "
        f"{_as_overrides(trained_with)} and are meaningless with a different tokenizer; omit tokenizer= to use the "
        "tokenizer of the weights, or train a new run without these weights",
    )
    return True


def _as_overrides(cfg: TokenizerConfig) -> str:
    return " ".join(f"tokenizer{f'.{name}' if name != 'name' else ''}={value}" for name, value in vars(cfg).items())


def resolve(
    requested: RunConfig, overrides: Overrides, folder: RunFolder
) -> tuple[RunConfig, Text | TokenFiles | Pairs, InitState]:
    """Resolve the fields that do not depend on the built model.

    They are determined by the text, by its token files or by the initial weights. A field in `overrides` is never
    replaced, but must not contradict the files. Returns the config, the text, and the state that the run starts from.
    Raises UserError if the text, the weights or the overrides are unusable or contradictory.
    """
    from bigramlm.data.tokens import TokenFiles

    requested.adapter.require_installed()
    requested.logger.check()
    # The saved config describes the run itself, not how the run was started.
    data = requested.data.prepare(require_same=requested.resume is not None)
    cfg = replace(requested, data=data, resume=None, sweep=None, base=None, extensions=describe(requested.extensions))
    text = cfg.data.read()
    if isinstance(text, TokenFiles):
        has_weights = cfg.init_from is not None or requested.resume is not None
        cfg = _resolve_tokens(cfg, text, overrides, has_weights=has_weights)
    if requested.resume is not None:
        checkpoint = _find_checkpoint(cfg, folder, text, overrides)
        cfg, init = _resolve_resumed(cfg, checkpoint, folder, moved_to=requested.base)
    elif cfg.init_from is not None:
        cfg, weights = _resolve_weights(cfg, overrides)
        init = InitState(init_weights=weights, base=requested.base)
    else:
        init = InitState(base=requested.base)
    require(
        init.base is None or getattr(init.init_weights, "is_adapter", False),
        f"base={init.base}: this run does not start from an adapter, so it has no base weights to locate; omit base=",
    )
    return cfg, text, init


def resolve_for_model(cfg: RunConfig, model: LanguageModel, row_length: int) -> RunConfig:
    """Resolve the fields that depend on the model: device, precision, threads, steps.

    A model that is fitted by counting gets trainer.steps=0. row_length: the number of tokens in a row of a batch (T).
    Raises UserError if the machine does not support a requested feature.
    """
    from bigramlm.device.device import decide

    if not cfg.model.trains and cfg.trainer.steps:
        log.info("steps: 0, because model=%s is fitted by counting instead of training", cfg.model.name)
        cfg = replace(cfg, trainer=replace(cfg.trainer, steps=0))
    cfg = replace(cfg, device=decide(cfg.device, n_params=model.n_params(), tokens=cfg.data.batch_size * row_length))
    require(
        cfg.device.name != "mps"
        or not (cfg.trainer.activation_checkpointing and getattr(cfg.model, "dropout", 0.0) > 0),
        "trainer.activation_checkpointing=true with model.dropout above 0: on MPS, PyTorch recomputes the activations "
        "with a different dropout mask, which makes the gradients wrong; set trainer.activation_checkpointing=false or "
        "model.dropout=0",
    )
    return cfg


def _resolve_tokens(cfg: RunConfig, tokens: TokenFiles, overrides: Overrides, *, has_weights: bool) -> RunConfig:
    # Take the tokenizer and the train fraction from the token files. Raises UserError if an override contradicts them.
    # has_weights: if True, the run uses the tokenizer of its weights, and tokenizing checks that it matches the files.
    from bigramlm.data.tokens import MANIFEST

    try:
        made_with = tokenizer_config(tokens.about.tokenizer)
    except UserError as error:
        raise UserError(f"{tokens.folder / MANIFEST}: {error}; prepare the text again") from None
    if overrides.touches("tokenizer") and not has_weights and cfg.tokenizer != made_with:
        raise UserError(
            f"{_as_overrides(cfg.tokenizer)}: the token files in {relative(tokens.folder)} were made with "
            f"{_as_overrides(made_with)}; omit tokenizer=, or prepare the text again with the new tokenizer"
        )
    fraction = tokens.about.split / tokens.about.n_characters
    is_different = abs(fraction - cfg.data.train_fraction) > 0.01
    if overrides.has("data.train_fraction") and is_different:
        raise UserError(
            f"data.train_fraction={cfg.data.train_fraction}: the token files in {relative(tokens.folder)} were made "
            f"with data.train_fraction={fraction:.2g}; omit data.train_fraction=, or prepare the text again with the "
            "new value"
        )
    if not has_weights:
        log.info("tokenizer: %s (the tokenizer of the token files)", made_with.name)
        cfg = replace(cfg, tokenizer=made_with)
    if is_different:
        log.info("data.train_fraction: %.2g (the value for which the token files were made)", fraction)
        cfg = replace(cfg, data=replace(cfg.data, train_fraction=fraction))
    return cfg


def _find_checkpoint(
    cfg: RunConfig, folder: RunFolder, text: Text | TokenFiles | Pairs, overrides: Overrides
) -> Checkpoint | None:
    # Return the checkpoint to resume from, or None if the run ended before its first checkpoint. Raises UserError if
    # the run is finished, if its text has changed, or if all of its checkpoints are damaged.
    from bigramlm.checkpoint.manager import Checkpoints

    checkpoints = Checkpoints(folder.path / "checkpoints")
    checkpoints.clean_up()
    newest = checkpoints.newest()
    step = newest.step if newest else 0
    _require_unfinished(cfg, folder, step)
    old_sha256 = folder.summary.get("data", {}).get("sha256")
    if old_sha256 not in (None, text.sha256) and not overrides.has("data.path"):
        raise UserError(
            f"{cfg.data.file()} is not the text that the run was trained on: its SHA-256 is {text.sha256[:12]} instead "
            f"of {old_sha256[:12]}; restore the old text, or, with data=text or data=pairs, add data.path=FILE to "
            "continue on a different text"
        )
    log.info("resume: continuing %s from step %d", relative(folder.path), step)
    if old_sha256 not in (None, text.sha256):
        log.warning("changed: the SHA-256 of the text is %s (previously %s)", text.sha256[:12], old_sha256[:12])
    if newest is not None:
        _warn_if_mixed(newest, folder, overrides)
    return newest


def _warn_if_mixed(checkpoint: Checkpoint, folder: RunFolder, overrides: Overrides) -> None:
    # Warn if the checkpoint is that of another run, or if config.yaml was edited since it was saved. The config of a
    # checkpoint differs from that of its run only in fields that were typed on a later resume.
    from bigramlm.engine.load import config_of

    resumes = [part for part in folder.summary.get("resumed", []) if part["step"] >= checkpoint.step]
    typed = Overrides([*(word for part in resumes for word in part["overrides"]), *overrides.words])
    saved_with, config = to_dict(config_of(checkpoint)), to_dict(load(folder.config_file))
    different = [
        (name, old, new)
        for name, old, new in differences(saved_with, config)
        if name not in ("extensions", "init_from", "base", *LABELS) and not typed.touches(name.split(".")[0])
    ]
    other, path = checkpoint.run_id, checkpoint.path.relative_to(folder.path)
    fields = ", ".join(f"{name}={new} (in the checkpoint {old})" for name, old, new in different) or "the same config"
    if other not in (None, folder.summary["id"]):
        log.warning("%s was saved by another run (id %s), from which this run continues: %s", path, other, fields)
    elif different:
        cause = "" if other else f", or {path} is the checkpoint of another run"
        log.warning("config.yaml was edited%s: %s; the run continues with config.yaml", cause, fields)


def _require_unfinished(cfg: RunConfig, folder: RunFolder, step: int) -> None:
    # Raise UserError if the run has nothing left to do.
    saved = load(folder.config_file)
    completed = folder.summary.get("status") == "completed"
    completed = completed and folder.summary.get("step") == step  # otherwise the final checkpoint was lost
    patience, old_patience = cfg.trainer.early_stopping_patience, saved.trainer.early_stopping_patience
    if completed and folder.summary.get("early_stopped") and 0 < patience <= old_patience:
        raise UserError(
            f"resume={relative(folder.path)}: early stopping ended the run at step {step}; to continue the run, set "
            f"trainer.early_stopping_patience=0 or a value above {old_patience}"
        )
    require(
        cfg.model.trains or not completed,
        f"resume={relative(folder.path)}: the run is completed, and no steps can be added, because "
        f"model={cfg.model.name} is fitted by counting",
    )
    if cfg.trainer.steps < step or (completed and cfg.trainer.steps == step):
        raise UserError(
            f"resume={relative(folder.path)} trainer.steps={cfg.trainer.steps}: the run is already at step {step}; "
            f"continue the run with e.g. trainer.steps={2 * max(step, 1)}, or start a new run from the weights of this "
            "run with init_from="
        )


def _resolve_resumed(
    cfg: RunConfig, checkpoint: Checkpoint | None, folder: RunFolder, *, moved_to: str | None
) -> tuple[RunConfig, InitState]:
    # moved_to: as for `open_base`.
    changes = differences(to_dict(load(folder.config_file)), to_dict(cfg))
    for name, old, new in changes:
        if name == "extensions":  # a changed file is a warning, and its location does not matter
            continue
        log.info("changed: %s=%s (previously %s)", name, new, old)
    weights: Weights | None = None
    if checkpoint is not None and checkpoint.is_adapter:
        from bigramlm.engine.load import open_base

        weights, inner_base = open_base(checkpoint, moved_to)
        if moved_to and not inner_base:
            cfg = replace(cfg, init_from=weights.location)
        moved_to = inner_base
    elif checkpoint is None and cfg.init_from is not None:
        # The run ended before its first checkpoint, so it starts again from its initial weights.
        cfg, weights = _resolve_weights(cfg, None)
    is_changed = any(name not in LABELS for name, _, _ in changes)
    init = InitState(checkpoint, weights, checkpoint.step if checkpoint else 0, moved_to, is_changed=is_changed)
    return cfg, init


def _resolve_weights(cfg: RunConfig, overrides: Overrides | None) -> tuple[RunConfig, Weights]:
    # overrides: None if the block size is already resolved.
    from bigramlm.engine.load import config_of, open_weights

    weights = open_weights(str(cfg.init_from))
    _has_tokenizer(weights, cfg.tokenizer)
    label = "weights: initialised from"
    if cfg.from_scratch:
        label = "weights: fresh, because from_scratch=true; the model's config and the tokenizer come from"
    is_block_size_fixed = overrides is None or overrides.has("data.block_size")
    cfg = replace(cfg, init_from=weights.location)
    if isinstance(weights, Pretrained):
        _check_shape(cfg, weights, overrides or Overrides())
        if not cfg.from_scratch:
            weights.check_sizes()
        cfg = _resolve_block_size(cfg, weights, is_fixed=is_block_size_fixed)
        log.info("%s GPT-2 (%s) in %s", label, weights.model_config().size, relative(weights.path))
        return cfg, weights
    trained_with = config_of(weights).data.block_size
    if not is_block_size_fixed and cfg.data.block_size != trained_with:
        log.info("block size: %d (the block size with which the weights were trained)", trained_with)
        cfg = replace(cfg, data=replace(cfg.data, block_size=trained_with))
    require(
        cfg.data.block_size <= trained_with or getattr(cfg.model, "position", "") != "learned",
        f"data.block_size={cfg.data.block_size}: the weights in {relative(weights.path)} have position embeddings for "
        f"only {trained_with:,} tokens; choose at most {trained_with}",
    )
    log.info("%s the checkpoint %s (step %d)", label, relative(weights.path), weights.step)
    return cfg, weights


def _check_shape(cfg: RunConfig, pretrained: Pretrained, overrides: Overrides) -> None:
    # The model's fields in a recipe or in overrides must match the weights. They are compared here, because a wrong
    # value of some fields would not change the shape of any tensor.
    expected = pretrained.model_config()
    fields = [(name, value) for name, value in vars(cfg.model).items() if name not in FREE]
    fields += [("size", size) for size in ("small", "medium", "large", "xl") if overrides.get("model.size") == size]
    for name, value in fields:
        require(
            value == getattr(expected, name),
            f"model.{name}={as_typed(value)}: the weights in {pretrained.location} require model.{name}="
            f"{as_typed(getattr(expected, name))} (see config.json); use that value, or choose different weights",
        )


def _resolve_block_size(cfg: RunConfig, pretrained: Pretrained, *, is_fixed: bool) -> RunConfig:
    configured = size = cfg.data.block_size
    positions = pretrained.block_size
    if not is_fixed:  # a recipe's block size is reduced if necessary; the default is replaced by all positions
        is_default = configured == type(cfg.data).block_size and not isinstance(cfg.data, PairsConfig)
        size = positions if is_default else min(configured, positions)
    require(
        size <= positions,
        f"data.block_size={configured}: the weights in {pretrained.location} have position embeddings for only "
        f"{positions:,} tokens; choose at most {positions}",
    )
    log.info("block size: %d (the weights have embeddings for %d positions)", size, positions)
    return replace(cfg, data=replace(cfg.data, block_size=size))
