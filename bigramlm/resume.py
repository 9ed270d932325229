"""Where a run starts: at nothing, at trained weights (`init_from=`), or where it stopped (`resume=`).

For the latter two what a run saved is offered to Hydra as presets named `_saved`. So what is typed besides is composed
on top of it, and checked against it, as it is for a new run.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from bigramlm import paths, runs
from bigramlm.cli import quoted, relative
from bigramlm.config import GROUPS, RunConfig, differences, load, load_composed, to_dict, tokenizer_config
from bigramlm.data.config import PairsConfig
from bigramlm.errors import UserError, require
from bigramlm.model.huggingface import FREE, Pretrained, as_typed
from bigramlm.run import RunFolder
from bigramlm.tokenizer.config import GPT2TokenizerConfig

if TYPE_CHECKING:
    from bigramlm.checkpoint import Checkpoint
    from bigramlm.data.pairs import Pairs
    from bigramlm.data.text import Text
    from bigramlm.data.tokens import TokenFiles
    from bigramlm.load import Weights
    from bigramlm.tokenizer.base import Tokenizer
    from bigramlm.tokenizer.config import TokenizerConfig

log = logging.getLogger(__name__)

_SAVED = "_saved"
# A run whose model, tokenizer, text or optimizer is exchanged is another run.
_FIXED = ("model", "adapter", "tokenizer", "data", "optim", "experiment")


def saved_presets(arguments: list[str]) -> list[str]:
    """The overrides that stand for `resume=` and `init_from=`, if one of them is typed.

    arguments: the command line. UserError where they name nothing that a run can start from, or contradict the rest.
    """
    typed = {
        match[1]: argument.partition("=")[2] for argument in arguments if (match := re.match(r"\+*([\w.]+)=", argument))
    }
    if typed.get("resume", "null") != "null":
        return _resume(typed, multirun=bool({"-m", "--multirun"} & set(arguments)))
    where = typed.get("init_from") or _of_experiments(typed.get("experiment", ""))
    if where in (None, "null"):
        return []
    assert where is not None
    pretrained = runs.find_pretrained(where)
    if pretrained is not None:
        return [*_pretrained_presets(pretrained, typed), f"init_from={quoted(pretrained.place)}"]
    folder = runs.find(where, holding="checkpoints")
    saved = load_composed(runs.saved_config(folder))
    groups = [_offer(group, saved[group]) for group in ("model", "tokenizer") if group not in typed]
    # `latest` is settled here, once: a job of a sweep must not start from the job before it.
    return [*groups, f"init_from={quoted(str(folder))}"]


def _pretrained_presets(pretrained: Pretrained, typed: dict[str, str]) -> list[str]:
    # Their own config decides the shape, and their tokenizer is the one that they mean something with.
    place = pretrained.place
    require(
        typed.get("model", "gpt2") == "gpt2",
        f"model={typed.get('model')}: the weights in {place} are GPT-2's; take model=gpt2, or leave it out",
    )
    presets = [_offer("model", OmegaConf.structured(pretrained.model_config()))]
    tokenizer = pretrained.tokenizer_path()
    if "tokenizer" not in typed:
        require(
            tokenizer is not None,
            f"init_from={place}: holds no tokenizer, which would be a tokenizer.json, or vocab.json and merges.txt; "
            "put that of these weights there, or give it: tokenizer=gpt2 tokenizer.path=PATH",
        )
        presets.append(_offer("tokenizer", OmegaConf.structured(GPT2TokenizerConfig(path=str(tokenizer)))))
    return presets


def _of_experiments(names: str) -> str | None:
    # The init_from= that recipes bring, which are those that stand in them themselves or in what they build on.
    found = {_of_experiment(name) for name in names.split(",")}
    said = ", ".join(sorted(str(where or "none") for where in found))
    require(len(found) == 1, f"experiment={names}: start from different weights ({said}); init_from= says which")
    return found.pop()


def _of_experiment(name: str) -> str | None:
    path = paths.conf_dir() / "experiment" / f"{name}.yaml"
    if not re.fullmatch(r"[\w-]+", name) or not path.exists():
        return None
    preset = OmegaConf.load(path)
    assert isinstance(preset, DictConfig)
    bases = [base for base in preset.get("defaults", []) if isinstance(base, str)]
    found = [preset.get("init_from"), *(_of_experiment(base) for base in reversed(bases))]
    return next((str(where) for where in found if where is not None), None)


def is_saved_preset(override: str) -> bool:
    """Whether an override is one of those, and was not typed."""
    return override.endswith(f"={_SAVED}")


def _resume(typed: dict[str, str], *, multirun: bool) -> list[str]:
    where = typed["resume"]
    require(not multirun, f"resume={where}: one run goes on; leave -m out, or with sweep= go on with a sweep")
    folder = runs.find(where, holding="config.yaml")
    for name in _FIXED:
        require(
            name not in typed,
            f"resume={where} {name}={typed.get(name)}: a run goes on with its own {name}, and only fields of it may "
            f"change; init_from={where} starts a new run from its weights",
        )
    own = [name for name in typed if name.startswith("adapter.") and name != "adapter.dropout"]
    require(
        not own,
        f"resume={where} {own and own[0]}={own and typed[own[0]]}: an adapter goes on as it is; init_from={where} "
        "starts a new run, with another, where this one ends",
    )
    for name in ("init_from", "from_scratch", "hydra.run.dir"):
        require(name not in typed, f"resume={where} {name}={typed.get(name)}: contradict each other; leave one out")
    if not (folder / "config.yaml").is_file() or (folder / "manifest.json").exists():
        raise UserError(
            f"resume={where}: holds no run that has begun, which would be a folder with a config.yaml; a checkpoint's "
            "folder is for init_from="
        )
    saved = load_composed(folder / "config.yaml")
    presets = [_offer(group, saved[group]) for group in GROUPS if group != "experiment" and group not in typed]
    rest = {name: value for name, value in saved.items_ex(resolve=False) if name not in (*GROUPS, "resume")}
    return [
        *presets,
        _offer("experiment", OmegaConf.create(rest), package="_global_"),
        f"hydra.run.dir={quoted(str(folder))}",
    ]


def _offer(group: str, node: DictConfig, package: str | None = None) -> str:
    ConfigStore.instance().store(_SAVED, node, group=group, package=package)
    return f"{group}={_SAVED}"


@dataclass(frozen=True)
class Start:
    """What a run starts from; all None for one that is new, and starts at nothing."""

    own: Checkpoint | None = None
    """The run's own checkpoint that it goes on from."""
    source: Weights | None = None
    """What a fresh model takes its weights from; with an adapter, its base."""
    resumed_at: int | None = None
    """The step that a resumed run goes on from."""

    def tokenizer(self, cfg: TokenizerConfig) -> Tokenizer | None:
        """The tokenizer of these weights, without which they mean nothing; None where there are none.

        UserError where cfg asks for another.
        """
        weights = self.own or self.source
        if weights is None:
            return None
        theirs: TokenizerConfig
        if isinstance(weights, Pretrained):
            place = weights.tokenizer_path()
            if place is None:  # how many tokens it has is compared once it is there
                return None
            theirs = GPT2TokenizerConfig(path=place)
        else:
            from bigramlm.checkpoint import CONFIG

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


def settle_tokens(cfg: RunConfig, tokens: TokenFiles, overrides: list[str]) -> None:
    """Take into cfg what token files bring: their tokenizer, and where they are split. UserError for another."""
    theirs = tokenizer_config(tokens.about.tokenizer)
    from_weights = cfg.init_from is not None or cfg.resume is not None  # whose tokenizer must be that of these files
    if (
        any(re.match(r"\+*tokenizer[.=]", override) for override in overrides)
        and not from_weights
        and cfg.tokenizer != theirs
    ):
        raise UserError(
            f"{_typed(cfg.tokenizer)}: the token files in {relative(tokens.folder)} were made with {_typed(theirs)}; "
            "leave the tokenizer out, or prepare the text with this one"
        )
    fraction = tokens.about.split / tokens.about.n_characters
    if _is_typed("data.train_fraction", overrides) and abs(fraction - cfg.data.train_fraction) > 0.01:
        raise UserError(
            f"data.train_fraction={cfg.data.train_fraction}: the token files in {relative(tokens.folder)} are split at "
            f"{fraction:.2g}; leave it out, or prepare the text with this one"
        )
    if not from_weights:
        cfg.tokenizer = theirs
    if abs(fraction - cfg.data.train_fraction) > 0.01:
        cfg.data.train_fraction = fraction


def find_start(cfg: RunConfig, folder: RunFolder, text: Text | TokenFiles | Pairs, overrides: list[str]) -> Start:
    """What `cfg.resume` and `cfg.init_from` ask for; sets in cfg what follows from it. UserError where it cannot be.

    text: what the run trains on; overrides: what was typed.
    """
    if cfg.resume is None:
        start = Start() if cfg.init_from is None else Start(source=_source(cfg, overrides))
    else:
        cfg.resume = None  # the saved config says how the run is, and not how it came about
        own = _own(cfg, folder, text, overrides)
        source: Weights | None = None
        if own is not None and own.is_adapter:
            from bigramlm.load import base_of

            source, beyond = base_of(own, cfg.base)
            cfg.init_from, cfg.base = source.place if cfg.base and not beyond else cfg.init_from, beyond
        elif own is None and cfg.init_from is not None:
            # A run that ended before its first checkpoint takes the weights that it was to start from once more.
            source = _source(cfg, None)
        start = Start(own, source, own.step if own else 0)
    require(
        cfg.base is None or getattr(start.source, "is_adapter", False),
        f"base={cfg.base}: is where an adapter's base has moved to, and no adapter is started from here; leave it out",
    )
    return start


def _own(cfg: RunConfig, folder: RunFolder, text: Text | TokenFiles | Pairs, overrides: list[str]) -> Checkpoint | None:
    from bigramlm.checkpoint import Checkpoints

    checkpoints = Checkpoints(folder.path / "checkpoints")
    checkpoints.clean_up()
    own = checkpoints.newest()
    step = own.step if own else 0
    saved = load(folder.path / "config.yaml")
    completed = folder.summary.get("status") == "completed"
    completed = completed and folder.summary.get("step") == step  # and not a later step whose checkpoint was lost
    patience, waited = cfg.trainer.early_stopping_patience, saved.trainer.early_stopping_patience
    if completed and folder.summary.get("early_stopped") and 0 < patience <= waited:
        raise UserError(
            f"resume={relative(folder.path)}: early stopping has ended the run at step {step}; "
            f"trainer.early_stopping_patience=0, or above {waited}, goes on"
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
    before = folder.summary.get("data", {}).get("sha256")
    if before not in (None, text.sha256) and not _is_typed("data.path", overrides):
        raise UserError(
            f"{cfg.data.file()}: is not the text that the run was trained on (SHA-256 {text.sha256[:12]}, then "
            f"{before[:12]}); put that one back; with data=text or data=pairs, data.path= typed besides goes on with "
            "another"
        )
    log.info("resume: %s from step %d", relative(folder.path), step)
    if before not in (None, text.sha256):
        log.warning("changed: the text, its SHA-256 is %s, it was %s", text.sha256[:12], before[:12])
    saved.base = cfg.base  # where something is, and not what the run is
    for name, was, now in differences(to_dict(saved), to_dict(cfg)):
        log.info("changed: %s=%s, it was %s", name, now, was)
        folder.summary["asked"] = None  # a sweep that it is a job of has not asked for this
    return own


def _source(cfg: RunConfig, overrides: list[str] | None) -> Weights:
    # overrides: None where the block size is settled already.
    from bigramlm.checkpoint import CONFIG
    from bigramlm.load import open_weights

    weights = open_weights(str(cfg.init_from))
    taken = "all but the weights" if cfg.from_scratch else "weights"
    typed = overrides is None or _is_typed("data.block_size", overrides)
    cfg.init_from = weights.place
    if isinstance(weights, Pretrained):
        _check_shape(cfg, weights, overrides or [])
        _settle_block_size(cfg, weights, typed=typed)
        log.info("%s: of GPT-2 (%s), from %s", taken, weights.model_config().size, relative(weights.path))
        return weights
    theirs = load(weights.path / CONFIG).data.block_size
    if not typed:
        cfg.data.block_size = theirs
    require(
        cfg.data.block_size <= theirs or getattr(cfg.model, "position", "") != "learned",
        f"data.block_size={cfg.data.block_size}: the weights in {relative(weights.path)} have learned {theirs:,} "
        f"positions, and know no token behind them; take {theirs} at the most",
    )
    log.info("%s: of step %d, from %s", taken, weights.step, relative(weights.path))
    return weights


def _check_shape(cfg: RunConfig, pretrained: Pretrained, overrides: list[str]) -> None:
    # What a recipe or the command line says of the model must be what the weights are: shapes do not tell all of it.
    theirs = pretrained.model_config()
    asked = [(name, value) for name, value in vars(cfg.model).items() if name not in FREE]
    asked += [("size", size) for size in ("small", "medium", "large", "xl") if f"model.size={size}" in overrides]
    for name, value in asked:
        require(
            value == getattr(theirs, name),
            f"model.{name}={as_typed(value)}: the weights in {pretrained.place} have model.{name}="
            f"{as_typed(getattr(theirs, name))}, and their config.json decides; leave it out, or take other weights",
        )


def _settle_block_size(cfg: RunConfig, pretrained: Pretrained, *, typed: bool) -> None:
    asked, positions = cfg.data.block_size, pretrained.block_size
    if not typed:  # a recipe's is cut, and without one the block is as long as it can be
        said_nothing = asked == type(cfg.data).block_size and not isinstance(cfg.data, PairsConfig)
        cfg.data.block_size = positions if said_nothing else min(asked, positions)
    require(
        cfg.data.block_size <= positions,
        f"data.block_size={asked}: the weights in {pretrained.place} have {positions:,} positions, and know no token "
        f"behind them; take {positions} at the most",
    )
    log.info("block size: %d of %d positions", cfg.data.block_size, positions)


def _is_typed(field: str, overrides: list[str]) -> bool:
    return any(re.match(rf"\+*{re.escape(field)}=", override) for override in overrides)
