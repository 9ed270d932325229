"""RunConfig, the sum of the parts' configs: as Hydra's schemas, and to and from YAML."""

import math
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from bigramlm.data.config import DATASETS, DataConfig
from bigramlm.device.config import DeviceConfig
from bigramlm.errors import UserError, require
from bigramlm.metrics import LoggerConfig
from bigramlm.model.config import MODELS, ModelConfig
from bigramlm.optim.config import OPTIMIZERS, OptimConfig
from bigramlm.tokenizer.config import TOKENIZERS, TokenizerConfig

GROUPS = ("model", "tokenizer", "data", "optim", "device", "trainer", "logger", "experiment")
"""The groups of presets, a folder in conf/ each."""

# Groups that hold several kinds of thing, each with fields of its own: the class of a kind by its `name`.
KINDS: dict[str, dict[str, type[Any]]] = {
    "model": MODELS,
    "tokenizer": TOKENIZERS,
    "data": DATASETS,
    "optim": OPTIMIZERS,
}


@dataclass
class TrainerConfig:
    """How long a run trains, and how often it looks up."""

    steps: int = 10_000
    """Updates of the weights; 0 evaluates, saves and samples the fresh model."""
    eval_every: int = 1000
    """Steps between evaluations on both splits; the last step is always evaluated."""
    eval_batches: str = "100"
    """How many fixed batches of each split an evaluation covers, or `all` for the whole split."""
    log_every: int = 100
    """Steps between records of the training batch's loss, the learning rate, the gradient's norm and the speed."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; the last step, and the best at an evaluation, are always saved."""
    keep_checkpoints: int = 1
    """How many of the newest checkpoints stay; the best stays besides."""
    grad_accumulation: int = 1
    """Batches whose mean gradient makes one update."""

    def __post_init__(self) -> None:
        require(self.steps >= 0, f"trainer.steps={self.steps}: must be 0 or more")
        for name in ("eval_every", "log_every", "checkpoint_every", "keep_checkpoints", "grad_accumulation"):
            require(getattr(self, name) >= 1, f"trainer.{name}={getattr(self, name)}: must be 1 or more")
        require(
            self.eval_batches == "all" or (self.eval_batches.isdecimal() and int(self.eval_batches) >= 1),
            f"trainer.eval_batches={self.eval_batches}: must be all or a whole number, 1 or more",
        )


@dataclass
class SampleConfig:
    """The text that the model writes at the end."""

    max_new_tokens: int = 300
    """How many tokens it writes."""
    prompt: str = ""
    """What it goes on from, as typed; without one it starts from token 0, as the tutorial does."""
    temperature: float = 1.0
    """Logits are divided by this: below 1 plays safe, above 1 takes risks, 0 always takes the likeliest token (and soon
    goes round in circles)."""

    def __post_init__(self) -> None:
        require(self.max_new_tokens >= 0, f"sample.max_new_tokens={self.max_new_tokens}: must be 0 or more")
        require(
            math.isfinite(self.temperature) and self.temperature >= 0,
            f"sample.temperature={self.temperature}: must be a finite number, 0 or more",
        )


@dataclass
class RunConfig:
    """All that a run is made from."""

    model: ModelConfig = MISSING
    tokenizer: TokenizerConfig = MISSING
    data: DataConfig = MISSING
    optim: OptimConfig = MISSING
    device: DeviceConfig = field(default_factory=DeviceConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    seed: int = 1337
    """Decides the fresh weights, the batches and the sample."""

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**63, f"seed={self.seed}: must be 0 or more, and below 2**63")
        for group, kinds in KINDS.items():
            part = getattr(self, group)
            require(
                kinds.get(part.name) is type(part),
                f"{group}.name={part.name}: choose another with {group}=NAME, which brings its fields: "
                f"{', '.join(kinds)}",
            )


def register_schemas() -> None:
    """Make the dataclasses known to Hydra, so that every preset and override is checked against them."""
    store = ConfigStore.instance()
    store.store("run_schema", RunConfig)
    for group, kinds in KINDS.items():
        for name, kind in kinds.items():
            # In a group of their own: beside the presets they would show up as choices.
            store.store(name, kind, group=f"schema/{group}")


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
    """The config as plain dictionaries."""
    return asdict(cfg)


def to_yaml(cfg: RunConfig) -> str:
    """The config as YAML that `load` takes."""

    def escaped(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: escaped(inner) for name, inner in value.items()}
        return escape_references(value) if isinstance(value, str) else value

    return OmegaConf.to_yaml(OmegaConf.create(escaped(to_dict(cfg))))


def escape_references(text: str) -> str:
    """The text such that OmegaConf, which takes ${...} for a reference to another field, reads it as it stands."""
    return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + "\\${", text)


def load(path: Path) -> RunConfig:
    """The config that a run saved. UserError where the file is not one."""
    try:
        plain = OmegaConf.load(path)
        assert isinstance(plain, DictConfig), "not a mapping"
        schema = OmegaConf.structured(RunConfig)
        for group, kinds in KINDS.items():
            schema[group] = OmegaConf.structured(kinds[plain[group].name])
        merged = OmegaConf.merge(schema, plain)
    except Exception as error:
        raise UserError(f"{path}: not a config that a run saved: {str(error).splitlines()[0]}") from error
    assert isinstance(merged, DictConfig)
    return to_run_config(merged)
