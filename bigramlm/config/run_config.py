"""RunConfig, the sum of the parts' configs: as Hydra's schemas, and to and from YAML."""

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
"""The groups of presets, a folder in conf/ each."""

# Groups that hold several kinds of thing, each with fields of its own: the class of a kind by its `name`.
KINDS: dict[str, dict[str, type[Any]]] = {
    "model": MODELS,
    "adapter": ADAPTERS,
    "tokenizer": TOKENIZERS,
    "data": DATASETS,
    "optim": OPTIMIZERS,
}


@dataclass
class SampleConfig:
    """The text that the model writes at the end."""

    max_new_tokens: int = 300
    """The number of tokens to write."""
    prompt: str = ""
    """The text to continue, as typed; without one it starts from token 0, as the tutorial does. With `data=pairs` a run
    ends with the first prompt of val."""
    temperature: float = 1.0
    """Logits are divided by this: below 1 plays safe, above 1 takes risks, 0 always takes the likeliest token (and soon
    goes round in circles)."""
    top_k: int = 0
    """Only the k likeliest tokens can be drawn; 0 is all."""
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability can be drawn; 1 is all."""
    stop_at_end: bool = True
    """A text ends where the model ends a document, if the tokenizer has a token for that; false continues after it."""

    prefix: ClassVar[str] = "sample."  # what the fields are called by on the command line

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "top_k"):
            require(getattr(self, name) >= 0, f"{self.prefix}{name}={getattr(self, name)}: must be 0 or more")
        require(
            math.isfinite(self.temperature) and self.temperature >= 0,
            f"{self.prefix}temperature={self.temperature}: must be a finite number, 0 or more",
        )
        require(0 < self.top_p <= 1, f"{self.prefix}top_p={self.top_p}: must be above 0, and 1 at the most")


@dataclass
class RunConfig:
    """All that a run is made from."""

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
    """Decides the fresh weights, the batches and the sample."""
    preflight: bool = True
    """Check a fresh model, its tokenizer and its batches for the usual mistakes before anything is trained."""
    resume: str | None = None
    """Go on with a run where it stopped, in its folder and with its config: the run's folder, or `latest`. Only fields
    typed besides are changed. In the saved config it is null."""
    init_from: str | None = None
    """Start a new run from trained weights: a run's folder (its newest checkpoint) or a checkpoint's, or GPT-2's folder
    in Hugging Face's layout, or name on its hub. Model, tokenizer and block size are theirs where nothing else is
    typed."""
    from_scratch: bool = False
    """Take all but the weights from `init_from`, and draw fresh ones: to see what the trained weights are worth."""
    base: str | None = None
    """The weights that an adapter was trained on, if they have moved since; a place as for
    `init_from`. In the saved config it is null."""
    sweep: str | None = None
    """With -m, go on with a sweep: its folder, or `latest`. Jobs that are completed with the same config and text are
    left as they are, those that were interrupted go on, the others run. In the saved config it is null."""

    def __post_init__(self) -> None:
        require(
            self.optim.warmup_steps <= self.trainer.steps or self.trainer.steps == 0 or not self.model.trains,
            f"optim.warmup_steps={self.optim.warmup_steps}: longer than the run, which has trainer.steps="
            f"{self.trainer.steps}; take a shorter warmup, or more steps",
        )
        require(
            self.model.has_blocks or not self.trainer.activation_checkpointing,
            f"trainer.activation_checkpointing=true: model={self.model.name} has no blocks to compute "
            "again; leave it out",
        )
        require(
            not (self.device.compile and self.trainer.activation_checkpointing),
            "device.compile=true with trainer.activation_checkpointing=true: PyTorch does not compile what is "
            "computed again; leave one out",
        )
        order = getattr(self.model, "ngram_order", 0)
        fresh = "from_scratch=true draws fresh ones" if self.from_scratch else "fresh ones would be random"
        require(
            not self.adapter.adapts or (self.init_from is not None and not self.from_scratch),
            f"adapter={self.adapter.name}: stands beside trained weights, and {fresh}; give init_from=RUN, or GPT-2's "
            "folder or name, and its weights",
        )
        require(
            not self.from_scratch or self.init_from is not None,
            "from_scratch=true: takes model, tokenizer and block size from init_from, which is not given; leave it out",
        )
        require(
            not self.adapter.adapts or order == 0,
            f"adapter={self.adapter.name} with model.ngram_order={order}: an n-gram is counted anew in every text, and "
            "an adapter's checkpoints, which hold nothing else, would lack it; adapt a model that stands alone",
        )
        counts = f"model.ngram_order={order}" if order else ""
        counts = counts if self.model.trains else f"model={self.model.name}"
        require(
            not (counts and isinstance(self.data, PairsConfig)),
            f"data=pairs {counts}: n-grams are counted in running text, and pairs are none; leave one out",
        )
        require(0 <= self.seed < 2**63, f"seed={self.seed}: must be 0 or more, and below 2**63")
        for group, kinds in KINDS.items():
            part = getattr(self, group)
            require(
                kinds.get(part.name) is type(part),
                f"{group}.name={part.name}: choose another with {group}=NAME, which brings its fields: "
                f"{', '.join(kinds)}",
            )


@functools.cache
def register_schemas() -> None:
    """Make the dataclasses known to Hydra, so that every preset and override is checked against them."""
    store = ConfigStore.instance()
    store.store("run_schema", RunConfig)
    for group, kinds in KINDS.items():
        for name, kind in kinds.items():
            # In a group of their own: beside the presets they would show up as choices.
            store.store(name, kind, group=f"schema/{group}")
    OmegaConf.register_new_resolver("gpt2_size", gpt2_size, replace=True)
    prefer_our_presets()


def prefer_our_presets() -> None:
    """Put our presets for sweeps in the place of those that Hydra and its plugins store under the same names.

    It would merge the two, and warn of it at every job.
    """
    Plugins.instance()  # which stores them
    for preset in (paths.conf_dir() / "hydra").glob("*/*.yaml"):
        ConfigStore.instance().repo["hydra"].get(preset.parent.name, {}).pop(preset.name, None)


def to_run_config(cfg: DictConfig) -> RunConfig:
    """Plain dataclasses from what Hydra composed. UserError for a value that cannot be or is missing."""
    missing = sorted(OmegaConf.missing_keys(cfg))
    require(not missing, f"{', '.join(missing)}: must be given a value, for instance {missing and missing[0]}=VALUE")
    run = OmegaConf.to_object(cfg)
    if not isinstance(run, RunConfig):
        raise UserError("this config is not made from conf/train.yaml; see --help")
    # Hydra lets `+key=value` add what no dataclass has, and nothing would read it.
    _refuse_unknown("", OmegaConf.to_container(cfg), to_dict(run))
    return run


def _refuse_unknown(group: str, typed: Any, known: dict[str, Any]) -> None:
    for name, value in typed.items():
        require(name in known, f"{group}{name}: there is no such field; there are: {', '.join(known)}")
        if isinstance(value, dict):
            _refuse_unknown(f"{group}{name}.", value, known[name])


def to_dict(cfg: RunConfig) -> dict[str, Any]:
    """Return the config as plain dictionaries."""
    return asdict(cfg)


def tokenizer_config(fields: dict[str, Any]) -> TokenizerConfig:
    """Build a tokenizer's config from its fields. UserError if there is no such tokenizer."""
    try:
        return TOKENIZERS[fields["name"]](**fields)
    except (KeyError, TypeError) as error:
        raise UserError(f"tokenizer {fields}: not the config of one: {error}") from None


# Fields that say how a run came about, and not how it is.
_NOT_HASHED = ("resume", "sweep", "base")

ADDED: frozenset[str] = frozenset()
"""The fields, by their full names, that are newer than `config_hash`: hashes of before, of all fields, lack them."""


def config_hash(cfg: RunConfig) -> str:
    """Return what identifies a config as it was asked for: a hash of the fields that differ from their defaults.

    So a new field with a default leaves every hash as it was. Where a default changes, hashes of before mean another
    config: tests/old/defaults.json holds the defaults.
    """
    return _hash({name: part for name, part in _not_default(cfg).items() if name not in _NOT_HASHED})


def config_hashes(cfg: RunConfig) -> tuple[str, ...]:
    """Return the config's hash, and behind it those that it had in earlier versions, by which a sweep may know it."""
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
    # The fields of a dataclass that differ from their defaults, and the name of its kind.
    found: dict[str, Any] = {}
    for of in fields(part):
        value = getattr(part, of.name)
        if is_dataclass(value):
            found[of.name] = _not_default(value)
        elif of.name == "name" or value != default_of(of):
            found[of.name] = value
    return found


def default_of(of: Field[Any]) -> Any:
    """Return the default of a dataclass's field."""
    return of.default if of.default_factory is dataclasses.MISSING else of.default_factory()


def to_yaml(cfg: RunConfig) -> str:
    """Write the config as YAML that `load` reads."""

    def escaped(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: escaped(inner) for name, inner in value.items()}
        return escape_references(value) if isinstance(value, str) else value

    return OmegaConf.to_yaml(OmegaConf.create(escaped(to_dict(cfg))))


def escape_references(text: str) -> str:
    """Escape references, so that OmegaConf, which takes ${...} for another field, reads the text as it is."""
    return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + "\\${", text)


def load(path: Path) -> RunConfig:
    """Read the config that a run saved. UserError if the file is none."""
    return to_run_config(load_composed(path))


def load_composed(path: Path) -> DictConfig:
    """Read the same as a config that Hydra can compose with. UserError if the file is none."""
    try:
        plain = OmegaConf.load(path)
        assert isinstance(plain, DictConfig), "not a mapping"
        schema = OmegaConf.structured(RunConfig)
        for group, kinds in KINDS.items():
            before_adapters = group == "adapter" and group not in plain
            schema[group] = OmegaConf.structured(kinds["none" if before_adapters else plain[group].name])
        merged = OmegaConf.merge(schema, plain)
        assert isinstance(merged, DictConfig)
    except Exception as error:  # YAML, OmegaConf and the schemas each have their own
        raise UserError(f"{path}: not a config that a run saved: {(str(error) or 'empty').splitlines()[0]}") from error
    return merged


def flat(cfg: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a config: its fields by their full names, {"optim.lr": 0.001, ...}."""
    found: dict[str, Any] = {}
    for name, value in cfg.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """List the fields in which two configs, as plain dictionaries, differ: (name, value in a, value in b)."""
    one, other = flat(a), flat(b)
    names = [*one, *(name for name in other if name not in one)]
    return [(name, one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)]
