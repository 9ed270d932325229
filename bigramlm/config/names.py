"""The names of groups and fields, and those that a user may have meant."""

from __future__ import annotations

import difflib
import functools
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import OmegaConf

from bigramlm.config.run_config import GROUPS, KINDS, RunConfig, flat

# The names that other programs give to these fields.
_SYNONYMS = {
    **dict.fromkeys(("learning_rate", "lr"), "optim.lr"),
    **dict.fromkeys(("max_iters", "iters", "iterations", "max_steps", "num_steps"), "trainer.steps"),
    **dict.fromkeys(("eval_interval", "eval_steps", "eval_freq"), "trainer.eval_every"),
    **dict.fromkeys(("eval_iters", "limit_val_batches"), "trainer.eval_batches"),
    **dict.fromkeys(("log_interval", "log_steps", "log_every_n_steps"), "trainer.log_every"),
    **dict.fromkeys(("save_steps", "save_interval"), "trainer.checkpoint_every"),
    **dict.fromkeys(("accumulate_grad_batches", "gradient_accumulation_steps"), "trainer.grad_accumulation"),
    **dict.fromkeys(("gradient_clip_val", "clip_grad", "max_grad_norm"), "optim.grad_clip"),
    **dict.fromkeys(("warmup_iters", "warmup"), "optim.warmup_steps"),
    "dtype": "device.precision",
    **dict.fromkeys(("context_length", "seq_len", "max_seq_len", "seq_length", "ctx"), "data.block_size"),
    **dict.fromkeys(("n_layers", "num_layers", "depth"), "model.n_layer"),
    **dict.fromkeys(("n_heads", "num_heads"), "model.n_head"),
    **dict.fromkeys(("d_model", "hidden_size", "dim", "embed_dim"), "model.n_embd"),
    **dict.fromkeys(("max_tokens", "n_tokens"), "max_new_tokens"),
    **dict.fromkeys(("ckpt", "ckpt_path", "model_path"), "run"),
    **dict.fromkeys(("config", "config_file", "recipe"), "experiment"),
}

# The settings of other programs that correspond to these overrides, whatever their value.
_SETTINGS = {
    **dict.fromkeys(("gpu", "gpus", "cuda", "use_gpu"), "device.name=cuda"),
    **dict.fromkeys(("cpu", "no_cuda"), "device.name=cpu"),
    **dict.fromkeys(("fp16", "half"), "device.precision=fp16"),
    "bf16": "device.precision=bf16",
    **dict.fromkeys(("epochs", "epoch", "max_epochs", "n_epochs", "num_epochs", "num_train_epochs"), "trainer.steps=N"),
}


def names_of(schema: type[Any] = RunConfig) -> list[str]:
    """List the groups and fields of a config, including those of all kinds."""
    plain = OmegaConf.to_container(OmegaConf.structured(schema))
    assert isinstance(plain, dict)
    names = [*map(str, plain), *flat({str(name): value for name, value in plain.items()})]
    for group in [group for group in KINDS if group in plain]:
        names += [f"{group}.{field.name}" for kind in KINDS[group].values() for field in fields(kind)]
    return list(dict.fromkeys([*names, *(GROUPS if schema is RunConfig else [])]))


@functools.cache
def types() -> dict[str, str]:
    """Return the type of each field of a run, such as float or list[str], by its name."""
    parts: list[tuple[str, Any]] = [("", RunConfig)]
    parts += [(field.name, field.type) for field in fields(RunConfig) if is_dataclass(field.type)]
    parts += [(group, kind) for group, kinds in KINDS.items() for kind in kinds.values()]
    found = {f"{group}.{field.name}".lstrip("."): field.type for group, part in parts for field in fields(part)}
    return {name: str(getattr(kind, "__name__", kind)) for name, kind in found.items()}


def type_of(field: str) -> str:
    """Return the type of a field, such as float or list; empty if it is not known."""
    # The fields of the command `sample` have no group.
    kind = re.match(r"\w*", types().get(field) or types().get(f"sample.{field}", ""))
    return kind[0] if kind else ""


def is_known(field: str, names: Sequence[str]) -> bool:
    """Check whether a field exists, as far as it is not left to Hydra.

    Elements of a field, settings of Hydra, and packages (optim@x) are left to Hydra.
    """
    leaves = set(names) - {name.rpartition(".")[0] for name in names}
    parents = set(itertools.accumulate(field.partition("@")[0].split("."), lambda one, other: f"{one}.{other}"))
    return bool(parents & leaves) or field.partition("@")[0] in names or re.match(r"hydra\b", field) is not None


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """List the names that are most similar to a name, at most three.

    The last parts are compared too, so that `lr` and `trainer.lr` mean `optim.lr`. They count less than whole names,
    so that `modle` means `model`, not `logger.mode`. For a field of a group, no group is meant.
    """
    names = list(names)
    if (synonym := _SYNONYMS.get(_last(name))) in names:
        return [str(synonym)]
    if name not in names and "." in name:
        names = [other for other in names if "." in other or other not in GROUPS]

    def ratio(a: str, b: str) -> float:
        return difflib.SequenceMatcher(None, a.lower(), b.lower()).ratio()

    def similarity(other: str) -> float:
        (group, _, field), (other_group, _, other_field) = name.rpartition("."), other.rpartition(".")
        last = ratio(field, other_field)
        if group == other_group and last < 0.5:  # the same group alone does not make two fields similar
            return last
        return max(ratio(name, other), 0.95 if last == 1 else 0.85 * last)

    rated = {other: similarity(other) for other in names}
    best = max(rated.values(), default=0.0)
    return [other for other, rating in rated.items() if rating == best >= 0.6][:3]


def proposals(name: str, value: str | None, names: Sequence[str]) -> list[str]:
    """List the overrides that may be meant with a name and a value.

    value: None if there is none, as in the name of a group.
    """
    setting = _SETTINGS.get(_last(name), "")
    if setting.partition("=")[0] in names:
        return [setting]
    found = nearest(name, names)
    if value is not None and found == ["experiment"]:  # --config=conf/experiment/quick.yaml
        value = re.sub(r"([\s\S]*/)?([^/]*)\.(ya?ml|py)", r"\2", value)
    return [other if value is None else f"{other}={value}" for other in found]


def _last(name: str) -> str:
    return name.rpartition(".")[2].lower().replace("-", "_")
