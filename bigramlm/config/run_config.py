"""The config of a run: dataclasses, which are also schemas for Hydra, and YAML."""

import dataclasses
import functools
import hashlib
import json
import math
import re
import shlex
import sys
from collections.abc import Iterable
from dataclasses import Field, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar

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
from bigramlm.utils import documents, paths

GROUPS = ("model", "adapter", "tokenizer", "data", "optim", "device", "trainer", "logger", "experiment")
"""The config groups; each is a folder of presets in conf/."""

# The groups whose presets have different fields: for each group, the config classes by `name`.
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
    """The text to continue, taken literally. If it is empty, the sample starts from token 0, as in the tutorial. With
    `data=pairs`, an empty prompt means the first val prompt."""
    temperature: float = 1.0
    """The divisor of the logits. Values below 1 favour likely tokens, values above 1 favour unlikely tokens. With 0 the
    likeliest token is always chosen, which soon leads to repetition."""
    top_k: int = 0
    """The number of tokens to sample from, starting with the likeliest; 0 means all tokens."""
    top_p: float = 1.0
    """Samples are restricted to the likeliest tokens whose total probability reaches this value; 1 means all tokens."""
    stop_at_end: bool = True
    """If true, the sample ends at the end-of-text token, if the tokenizer has such a token. If false, it continues."""

    prefix: ClassVar[str] = "sample."  # precedes the field names in messages

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
    """The config of a run."""

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
    """If true, the model, the tokenizer and the first batch are checked for common mistakes before training."""
    resume: str | None = None
    """The run folder to resume, or `latest`. The run continues in this folder with its saved config, in which single
    fields can be overridden. In a saved config this field is always null."""
    name: str | None = None
    """The name of the run in lists, reports and dashboards. By default, it is what was typed, shortened; the name of a
    sweep job begins with its number and ends with its swept values."""
    note: str = ""
    """A note on the run, for `runs.py list` and the report, such as the reason why it was started."""
    init_from: str | None = None
    """The trained weights to start a new run from: a run folder (which means its newest checkpoint), a checkpoint
    folder, a folder with GPT-2 weights in Hugging Face's layout, or the name of a GPT-2 on the Hugging Face hub. Model,
    tokenizer and block size are those of the weights unless they are overridden."""
    from_scratch: bool = False
    """If true, the run uses the model's config, the tokenizer and the block size of `init_from`, but fresh weights.
    Such a run is a baseline that shows the benefit of the trained weights."""
    base: str | None = None
    """The new location of the base weights that an adapter was trained on, if they have moved; the same values as for
    `init_from` are possible. Once training has begun, this field is null in the saved config."""
    sweep: str | None = None
    """The sweep folder to continue with -m, or `latest`. Jobs that are completed with the same config and text are
    skipped, interrupted jobs resume, and all other jobs start. In a saved config this field is always null."""
    extensions: Any = field(default_factory=list)
    """Python files that add models, tokenizers, datasets, optimizers or loggers: `extensions=my_models.py`, or several
    as `[a.py,b.py]`. A saved config records their names and SHA-256, but never imports them: a command that needs them
    must name them again."""

    def __post_init__(self) -> None:
        require(
            self.optim.warmup_steps <= self.trainer.steps or self.trainer.steps == 0 or not self.model.trains,
            f"optim.warmup_steps={self.optim.warmup_steps}: the warmup is longer than the run (trainer.steps="
            f"{self.trainer.steps}); choose a shorter warmup or more steps",
        )
        require(
            self.model.has_blocks or not self.trainer.activation_checkpointing,
            f"trainer.activation_checkpointing=true: model={self.model.name} has no blocks whose "
            "activations could be recomputed; omit trainer.activation_checkpointing=",
        )
        require(
            not (self.device.compile and self.trainer.activation_checkpointing),
            "device.compile=true with trainer.activation_checkpointing=true: PyTorch cannot compile the recomputation "
            "of activations; set one of the two fields to false",
        )
        require(
            self.model.trains or not self.trainer.overfit_batches,
            f"trainer.overfit_batches={self.trainer.overfit_batches}: model={self.model.name} is fitted by counting "
            "the whole text, so there is no training to test; choose a model that is trained",
        )
        order = getattr(self.model, "ngram_order", 0)
        reason = "from_scratch=true discards them" if self.from_scratch else "init_from= is not given"
        require(
            not self.adapter.adapts or (self.init_from is not None and not self.from_scratch),
            f"adapter={self.adapter.name}: an adapter needs trained weights, but {reason}; use init_from=RUN, or "
            "init_from= with the folder or name of a GPT-2, without from_scratch=true",
        )
        require(
            not self.from_scratch or self.init_from is not None,
            "from_scratch=true: model, tokenizer and block size would be those of init_from=, which is not given; add "
            "init_from=, or omit from_scratch=",
        )
        require(
            not self.adapter.adapts or order == 0,
            f"adapter={self.adapter.name} with model.ngram_order={order}: an adapter's checkpoint cannot store "
            "the n-gram counts of the text; use a model with model.ngram_order=0",
        )
        counts = f"model.ngram_order={order}" if order else ""
        counts = counts if self.model.trains else f"model={self.model.name}"
        require(
            not (counts and isinstance(self.data, PairsConfig)),
            f"data=pairs {counts}: n-grams can be counted in running text only, not in pairs; omit data=pairs or "
            f"{counts}",
        )
        require(self.name is None or bool(self.name.strip()), "name=: the value is empty; give a name, or omit name=")
        require(0 <= self.seed < 2**63, f"seed={self.seed}: must be at least 0 and below 2**63")
        for group, kinds in KINDS.items():
            part = getattr(self, group)
            require(
                kinds.get(part.name) is type(part),
                f"{group}.name={part.name}: this field cannot be set directly; use {group}=NAME, which also sets the "
                f"other fields of the group; NAME is one of {', '.join(kinds)}",
            )


@functools.cache
def register_schemas() -> None:
    """Register the config classes with Hydra, so that it checks presets and overrides."""
    from hydra.core.config_store import ConfigStore  # imports all of Hydra, which TAB completion does not need

    store = ConfigStore.instance()
    store.store("run_schema", RunConfig)
    for group, kinds in KINDS.items():
        for name, kind in kinds.items():
            # In a separate group, because in the group itself the schemas would be listed as presets.
            store.store(name, kind, group=f"schema/{group}")
    OmegaConf.register_new_resolver("gpt2_size", gpt2_size, replace=True)
    prefer_our_presets()


def prefer_our_presets() -> None:
    """Remove the presets of Hydra's plugins that conf/hydra replaces.

    Hydra would merge two presets with the same name, and warn at every job.
    """
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    Plugins.instance()  # registers the presets of the plugins
    for preset in (paths.conf_dir() / "hydra").glob("*/*.yaml"):
        ConfigStore.instance().repo["hydra"].get(preset.parent.name, {}).pop(preset.name, None)


def to_run_config(cfg: DictConfig) -> RunConfig:
    """Convert a composed config to plain dataclasses.

    Raises UserError for an invalid, missing or unknown value.
    """
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UserError(f"{', '.join(missing)}: a value is required; add e.g. {missing[0]}=VALUE")
    run = OmegaConf.to_object(cfg)
    if not isinstance(run, RunConfig):
        raise UserError("this config is not based on conf/train.yaml; see --help")
    # Hydra's `+key=value` can add fields that no config class has; they would have no effect.
    _refuse_unknown("", OmegaConf.to_container(cfg), to_dict(run))
    return run


def _refuse_unknown(group: str, composed: Any, known: dict[str, Any]) -> None:
    for name, value in composed.items():
        require(name in known, f"{group}{name}: this field does not exist; the fields are {', '.join(known)}")
        if isinstance(value, dict):
            _refuse_unknown(f"{group}{name}.", value, known[name])


def to_dict(cfg: RunConfig) -> dict[str, Any]:
    """Return the config as plain dictionaries."""
    return asdict(cfg)


def tokenizer_config(fields: dict[str, Any]) -> TokenizerConfig:
    """Build the config of a tokenizer from a dictionary of its fields.

    Raises UserError for an unknown tokenizer or field.
    """
    try:
        return TOKENIZERS[fields["name"]](**fields)
    except (KeyError, TypeError) as error:
        raise UserError(f"no known tokenizer matches the fields {fields}: {error}") from None


LABELS = ("name", "note")
"""The fields that only describe a run to people. Runs that differ in nothing else are equal."""

# Fields that describe how a run was started, not the run itself.
_NOT_HASHED = ("resume", "sweep", "base", "extensions", *LABELS)

_ADDED_TO_TRAINER = ["checkpoint_at", "sample_every", "vitals_every", "overfit_batches"]
ADDED = frozenset({"extensions", "data.format", *(f"trainer.{name}" for name in _ADDED_TO_TRAINER), *LABELS})
"""The full names of the fields that were added after `config_hash` was introduced.

Hashes from before that time cover all fields that existed then, so these fields are left out of them.
"""


def config_hash(cfg: RunConfig) -> str:
    """Hash the fields of an unresolved config that differ from their defaults.

    A sweep recognises its jobs by this hash. Adding a field with a default does not change the hashes of existing
    configs. Changing a default would give existing hashes a different meaning, so a test compares the defaults with
    those in tests/old/defaults.json.
    """
    return _hash({name: part for name, part in _not_default(cfg).items() if name not in _NOT_HASHED})


def config_hashes(cfg: RunConfig) -> tuple[str, ...]:
    """Return the hash of a config, followed by its hash in earlier versions.

    A sweep that an earlier version started identifies the config by the second hash. There is no second hash if
    the config uses a field in ADDED.
    """
    if (ADDED - {*LABELS}) & flat(_not_default(cfg)).keys():
        return (config_hash(cfg),)
    all_fields = {name: value for name, value in to_dict(cfg).items() if name not in _NOT_HASHED}
    for name in ADDED:
        group, _, last = name.rpartition(".")
        (all_fields[group] if group else all_fields).pop(last, None)
    return config_hash(cfg), _hash(all_fields)


def _hash(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def _not_default(part: Any) -> dict[str, Any]:
    # Return the fields of a dataclass that differ from their defaults, and the field `name`.
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
    """Escape ${...} so that OmegaConf treats it as literal text.

    Without the escape, OmegaConf treats it as an interpolation.
    """
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + "\\${", text)


def load(path: Path) -> RunConfig:
    """Read the saved config of a run.

    Raises UserError if the file is not the config of a run.
    """
    return to_run_config(load_composed(path))


def _missing_class(group: str, name: str, saved: Iterable[Any]) -> str:
    """Return the error message for a saved config whose class is not registered."""
    names = [str(entry["name"]) for entry in saved]
    if not names:
        return f"{group}={name} is unknown; choose one of {', '.join(KINDS[group])}"
    joined = ",".join(names)
    override = f"extensions={joined}" if len(names) == 1 else f"extensions=[{joined}]"
    program = Path(sys.argv[0]).name
    command = program.removesuffix(".py").removeprefix("bigramlm-")
    flags = {"train": override, "sample": override, "checkpoint": f"--extensions={joined}"}
    if command in flags:
        python = ["python"] if program.endswith(".py") else []
        advice = shlex.join([*python, *sys.argv, flags[command]])
    else:
        advice = f'add "{override}" to the overrides, or extensions="{joined}" to the arguments of bigramlm.load'
    return f"{group}={name} comes from {', '.join(names)}, which is not loaded: {advice}"


def load_composed(path: Path) -> DictConfig:
    """Read the saved config of a run as an OmegaConf object.

    Its schema is that of RunConfig. Raises UserError if the file is not the config of a run, or contains an
    interpolation, which could read e.g. the environment: what a run saves contains none.
    """
    try:
        plain = OmegaConf.create(documents.read_yaml_text(path))
        assert isinstance(plain, DictConfig), "not a mapping"
        _refuse_references(path, OmegaConf.to_container(plain, resolve=False))
        is_record = [{*entry} == {"name", "sha256"} for entry in plain.get("extensions") or []]
        assert all(is_record), "extensions must have a name and a sha256; a file to import is named when typing"
        schema = OmegaConf.structured(RunConfig)
        for group, kinds in KINDS.items():
            name = "none" if group == "adapter" and group not in plain else plain[group].name
            if name not in kinds:
                raise UserError(f"{path}: {_missing_class(group, name, plain.get('extensions') or [])}")
            schema[group] = OmegaConf.structured(kinds[name])
        merged = OmegaConf.merge(schema, plain)
        if "format" in merged.data and "format" not in plain.data:  # saved by a version that went by the names of files
            merged.data.format = "suffix"
        assert isinstance(merged, DictConfig)
    except UserError:
        raise
    except Exception as error:  # YAML, OmegaConf and the schemas each raise their own types
        raise UserError(f"{path} is not the config of a run: {(str(error) or 'empty').splitlines()[0]}") from error
    return merged


def _refuse_references(path: Path, value: Any) -> None:
    for inner in [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ():
        _refuse_references(path, inner)
    require(
        not isinstance(value, str) or re.search(r"(?<!\\)(\\\\)*\$\{", value) is None,
        f"{path}: {value!r} is an interpolation, which the config of a run does not contain; replace it by its value, "
        "or write \\${ for the characters themselves",
    )


def flat(cfg: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries to values by full name, e.g. {"optim.lr": 0.001}."""
    result: dict[str, Any] = {}
    for name, value in cfg.items():
        result |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return result


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """List the fields that differ between two configs: (name, value in a, value in b)."""
    flat_a, flat_b = flat(a), flat(b)
    names = [*flat_a, *(name for name in flat_b if name not in flat_a)]
    return [(name, flat_a.get(name), flat_b.get(name)) for name in names if flat_a.get(name) != flat_b.get(name)]
