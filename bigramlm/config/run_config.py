"""The run config with all of its parts, as schemas for Hydra and as YAML."""

import dataclasses
import functools
import hashlib
import json
import math
import re
from dataclasses import Field, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import MISSING, DictConfig, OmegaConf

from bigramlm.adapter.config import ADAPTERS, AdapterConfig
from bigramlm.data.config import DATASETS, DataConfig, PairsConfig
from bigramlm.device.config import DeviceConfig
from bigramlm.errors import UserError, require
from bigramlm.logger.config import LoggerConfig
from bigramlm.model.config import MODELS, ModelConfig, gpt2_size
from bigramlm.optim.config import OPTIMIZERS, OptimConfig
from bigramlm.tokenizer.config import TOKENIZERS, TokenizerConfig
from bigramlm.trainer.config import TrainerConfig
from bigramlm.utils import paths

GROUPS = ("model", "adapter", "tokenizer", "data", "optim", "device", "trainer", "logger", "experiment")
"""The config groups; each is a folder of presets in conf/."""

# Groups with several classes, which differ in their fields: the class by its `name`.
KINDS: dict[str, dict[str, type[Any]]] = {
    "model": MODELS,
    "adapter": ADAPTERS,
    "tokenizer": TOKENIZERS,
    "data": DATASETS,
    "optim": OPTIMIZERS,
}


@dataclass
class SampleConfig:
    """The sample that the model generates at the end of a run."""

    max_new_tokens: int = 300
    """The number of tokens to generate."""
    prompt: str = ""
    """The text to continue, taken literally. If empty, the sample starts from token 0, as in the tutorial, or, with
    `data=pairs`, from the first val prompt."""
    temperature: float = 1.0
    """The divisor of the logits: values below 1 favour likely tokens, values above 1 favour unlikely ones, and 0 always
    picks the likeliest token (which soon repeats itself)."""
    top_k: int = 0
    """The number of likeliest tokens to sample from; 0 means all."""
    top_p: float = 1.0
    """The total probability of the likeliest tokens to sample from; 1 means all."""
    stop_at_end: bool = True
    """True to stop at the end-of-text token, if the tokenizer has one; false to continue after it."""

    prefix: ClassVar[str] = "sample."  # of the fields on the command line

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "top_k"):
            require(getattr(self, name) >= 0, f"{self.prefix}{name}={getattr(self, name)}: must be 0 or more")
        require(
            math.isfinite(self.temperature) and self.temperature >= 0,
            f"{self.prefix}temperature={self.temperature}: must be a finite number, 0 or more",
        )
        require(0 < self.top_p <= 1, f"{self.prefix}top_p={self.top_p}: must be above 0 and at most 1")


@dataclass
class RunConfig:
    """The whole config of a run."""

    model: ModelConfig = MISSING
    adapter: AdapterConfig = MISSING
    tokenizer: TokenizerConfig = MISSING
    data: DataConfig = MISSING
    optim: OptimConfig = MISSING
    device: DeviceConfig = field(default_factory=DeviceConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    seed: int = 1337
    """The random seed of the initial weights, the batches and the sample."""
    preflight: bool = True
    """True to check the model, its tokenizer and its batches for common mistakes before training."""
    resume: str | None = None
    """The folder of a run to resume, or `latest`. The run continues in its folder with its config, except for
    overridden fields. The saved config contains null."""
    init_from: str | None = None
    """The trained weights to start a new run from: the folder of a run (its newest checkpoint) or a checkpoint, or
    GPT-2's folder in Hugging Face's layout or name on its hub. Model, tokenizer and block size come from the weights
    unless they are overridden."""
    from_scratch: bool = False
    """True to take everything but the weights from `init_from` and draw fresh weights, as a baseline."""
    base: str | None = None
    """The new location of the weights that an adapter was trained on, if they have moved, given as for `init_from`. The
    saved config contains null."""
    sweep: str | None = None
    """The folder of a sweep to continue with -m, or `latest`. Jobs that are completed with the same config and text are
    skipped, interrupted jobs resume, and the others run. The saved config contains null."""

    def __post_init__(self) -> None:
        require(
            self.optim.warmup_steps <= self.trainer.steps or self.trainer.steps == 0 or not self.model.trains,
            f"optim.warmup_steps={self.optim.warmup_steps}: the warmup is longer than the run (trainer.steps="
            f"{self.trainer.steps}); choose a shorter warmup or more steps",
        )
        require(
            self.model.has_blocks or not self.trainer.activation_checkpointing,
            f"trainer.activation_checkpointing=true: model={self.model.name} has no blocks to recompute; leave it out",
        )
        require(
            not (self.device.compile and self.trainer.activation_checkpointing),
            "device.compile=true with trainer.activation_checkpointing=true: PyTorch cannot compile recomputed "
            "activations; leave one out",
        )
        order = getattr(self.model, "ngram_order", 0)
        reason = "from_scratch=true draws fresh ones" if self.from_scratch else "without init_from they are random"
        require(
            not self.adapter.adapts or (self.init_from is not None and not self.from_scratch),
            f"adapter={self.adapter.name}: an adapter needs trained weights, and {reason}; use init_from=RUN, or "
            "GPT-2's folder or name, without from_scratch",
        )
        require(
            not self.from_scratch or self.init_from is not None,
            "from_scratch=true: takes model, tokenizer and block size from init_from, which is not given; set "
            "init_from, or leave from_scratch out",
        )
        require(
            not self.adapter.adapts or order == 0,
            f"adapter={self.adapter.name} with model.ngram_order={order}: an adapter's checkpoint cannot contain the "
            "n-gram counts of the text; adapt a model with model.ngram_order=0",
        )
        counts = f"model.ngram_order={order}" if order else ""
        counts = counts if self.model.trains else f"model={self.model.name}"
        require(
            not (counts and isinstance(self.data, PairsConfig)),
            f"data=pairs {counts}: n-grams are counted in running text, which pairs are not; leave one out",
        )
        require(0 <= self.seed < 2**63, f"seed={self.seed}: must be at least 0 and below 2**63")
        for group, kinds in KINDS.items():
            part = getattr(self, group)
            require(
                kinds.get(part.name) is type(part),
                f"{group}.name={part.name}: cannot be set alone; use {group}=NAME, which also sets the other fields, "
                f"with one of {', '.join(kinds)}",
            )


@functools.cache
def register_schemas() -> None:
    """Register the dataclasses with Hydra, to check presets and overrides."""
    store = ConfigStore.instance()
    store.store("run_schema", RunConfig)
    for group, kinds in KINDS.items():
        for name, kind in kinds.items():
            # In a separate group: next to the presets they would appear as choices.
            store.store(name, kind, group=f"schema/{group}")
    OmegaConf.register_new_resolver("gpt2_size", gpt2_size, replace=True)
    prefer_our_presets()


def prefer_our_presets() -> None:
    """Replace the sweep presets of Hydra's plugins by those in conf/hydra.

    If two presets have the same name, Hydra would merge them and warn at every job.
    """
    Plugins.instance()  # stores the presets of the plugins
    for preset in (paths.conf_dir() / "hydra").glob("*/*.yaml"):
        ConfigStore.instance().repo["hydra"].get(preset.parent.name, {}).pop(preset.name, None)


def to_run_config(cfg: DictConfig) -> RunConfig:
    """Convert a composed config to plain dataclasses.

    Raises UserError for an invalid, missing or unknown value.
    """
    missing = sorted(OmegaConf.missing_keys(cfg))
    require(not missing, f"{', '.join(missing)}: needs a value, e.g. {missing and missing[0]}=VALUE")
    run = OmegaConf.to_object(cfg)
    if not isinstance(run, RunConfig):
        raise UserError("this config is not based on conf/train.yaml; see --help")
    # Hydra's `+key=value` can add fields that no dataclass has, which nothing would read.
    _refuse_unknown("", OmegaConf.to_container(cfg), to_dict(run))
    return run


def _refuse_unknown(group: str, composed: Any, known: dict[str, Any]) -> None:
    for name, value in composed.items():
        require(name in known, f"{group}{name}: there is no such field; the fields are {', '.join(known)}")
        if isinstance(value, dict):
            _refuse_unknown(f"{group}{name}.", value, known[name])


def to_dict(cfg: RunConfig) -> dict[str, Any]:
    """Return the config as plain dictionaries."""
    return asdict(cfg)


def tokenizer_config(fields: dict[str, Any]) -> TokenizerConfig:
    """Build a tokenizer's config from its fields.

    Raises UserError for an unknown tokenizer or field.
    """
    try:
        return TOKENIZERS[fields["name"]](**fields)
    except (KeyError, TypeError) as error:
        raise UserError(f"tokenizer {fields}: is not the config of a tokenizer: {error}") from None


# Fields that describe how a run was started, not the run itself.
_NOT_HASHED = ("resume", "sweep", "base")

ADDED: frozenset[str] = frozenset()
"""The full names of the fields that are newer than `config_hash`; older hashes, of all fields, lack them."""


def config_hash(cfg: RunConfig) -> str:
    """Return a hash of the fields that differ from their defaults.

    It identifies a config before it is resolved. A new field with a default leaves every hash unchanged. A changed
    default would give old hashes another meaning; tests/old/defaults.json contains the defaults to compare with.
    """
    return _hash({name: part for name, part in _not_default(cfg).items() if name not in _NOT_HASHED})


def config_hashes(cfg: RunConfig) -> tuple[str, ...]:
    """Return the config's hash, followed by its hashes in earlier versions.

    A sweep may know the config by any of them.
    """
    if ADDED & flat(_not_default(cfg)).keys():
        return (config_hash(cfg),)
    all_fields = {name: value for name, value in to_dict(cfg).items() if name not in _NOT_HASHED}
    for name in ADDED:
        group, _, last = name.rpartition(".")
        (all_fields[group] if group else all_fields).pop(last, None)
    return config_hash(cfg), _hash(all_fields)


def _hash(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def _not_default(part: Any) -> dict[str, Any]:
    # The fields of a dataclass that differ from their defaults, and its `name`.
    changed: dict[str, Any] = {}
    for of in fields(part):
        value = getattr(part, of.name)
        if is_dataclass(value):
            changed[of.name] = _not_default(value)
        elif of.name == "name" or value != default_of(of):
            changed[of.name] = value
    return changed


def default_of(of: Field[Any]) -> Any:
    """Return the default value of a dataclass field."""
    return of.default if of.default_factory is dataclasses.MISSING else of.default_factory()


def to_yaml(cfg: RunConfig) -> str:
    """Return the config as YAML that `load` can read."""

    def escaped(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: escaped(inner) for name, inner in value.items()}
        return escape_references(value) if isinstance(value, str) else value

    return OmegaConf.to_yaml(OmegaConf.create(escaped(to_dict(cfg))))


def escape_references(text: str) -> str:
    """Escape ${...}, so that OmegaConf reads it as text and not as a reference."""
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + "\\${", text)


def load(path: Path) -> RunConfig:
    """Read the config that a run saved.

    Raises UserError if the file is not a run's config.
    """
    return to_run_config(load_composed(path))


def load_composed(path: Path) -> DictConfig:
    """Read a saved config in the form that Hydra composes with.

    Raises UserError if the file is not a run's config.
    """
    try:
        plain = OmegaConf.load(path)
        assert isinstance(plain, DictConfig), "not a mapping"
        schema = OmegaConf.structured(RunConfig)
        for group, kinds in KINDS.items():
            before_adapters = group == "adapter" and group not in plain
            schema[group] = OmegaConf.structured(kinds["none" if before_adapters else plain[group].name])
        merged = OmegaConf.merge(schema, plain)
        assert isinstance(merged, DictConfig)
    except Exception as error:  # YAML, OmegaConf and the schemas each raise their own types
        raise UserError(f"{path}: is not the config of a run: {(str(error) or 'empty').splitlines()[0]}") from error
    return merged


def flat(cfg: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a config to values by full name, e.g. {"optim.lr": 0.001}."""
    result: dict[str, Any] = {}
    for name, value in cfg.items():
        result |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return result


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """List the fields in which two configs differ: (name, value in a, value in b)."""
    flat_a, flat_b = flat(a), flat(b)
    names = [*flat_a, *(name for name in flat_b if name not in flat_a)]
    return [(name, flat_a.get(name), flat_b.get(name)) for name in names if flat_a.get(name) != flat_b.get(name)]
