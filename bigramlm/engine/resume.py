"""The meaning of `resume=` and `init_from=` to Hydra.

What a run saved is offered to Hydra as presets named `_saved`. So what is typed besides is composed on top of it, and
checked against it, as it is for a new run.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from bigramlm.config.overrides import Overrides, quoted
from bigramlm.config.run_config import GROUPS, load_composed
from bigramlm.errors import UserError, require
from bigramlm.model.huggingface import Pretrained
from bigramlm.runs import find as runs
from bigramlm.tokenizer.config import GPT2TokenizerConfig
from bigramlm.utils import paths

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)

SAVED = "_saved"
"""The choice that a saved group is offered to Hydra as."""
# A run whose model, tokenizer, text or optimizer is exchanged is another run.
_FIXED = ("model", "adapter", "tokenizer", "data", "optim", "experiment")


def saved_presets(typed: Overrides, *, sweeps: bool = False) -> Overrides:
    """Return the overrides that stand for `resume=` and `init_from=`, if one of them is typed.

    sweeps: whether -m is typed. UserError where they name nothing that a run can start from, or contradict the rest.
    """
    values = typed.values()
    if values.get("resume", "null") != "null":
        return Overrides(_resume(values, sweeps=sweeps))
    where = values.get("init_from") or _of_experiments(values.get("experiment", ""))
    if where in (None, "null"):
        return Overrides()
    assert where is not None
    pretrained = runs.find_pretrained(where)
    if pretrained is not None:
        return Overrides([*_pretrained_presets(pretrained, values), f"init_from={quoted(pretrained.location)}"])
    folder = runs.find(where, holding="checkpoints")
    saved = load_composed(runs.saved_config(folder))
    groups = [_offer(group, saved[group]) for group in ("model", "tokenizer") if group not in values]
    # `latest` is settled here, once: a job of a sweep must not start from the job before it.
    return Overrides([*groups, f"init_from={quoted(str(folder))}"])


def _pretrained_presets(pretrained: Pretrained, typed: dict[str, str]) -> list[str]:
    # Their own config decides the shape, and their tokenizer is the one that they mean something with.
    place = pretrained.location
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


def _resume(typed: dict[str, str], *, sweeps: bool) -> list[str]:
    where = typed["resume"]
    require(not sweeps, f"resume={where}: resumes one run; leave -m out, or continue a sweep with sweep=")
    folder = runs.find(where, holding="config.yaml")
    for name in _FIXED:
        require(
            name not in typed,
            f"resume={where} {name}={typed.get(name)}: a run keeps its own {name}, and only fields of it may "
            f"change; init_from={where} starts a new run from its weights",
        )
    own = [name for name in typed if name.startswith("adapter.") and name != "adapter.dropout"]
    require(
        not own,
        f"resume={where} {own and own[0]}={own and typed[own[0]]}: an adapter keeps its shape; init_from={where} "
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
    ConfigStore.instance().store(SAVED, node, group=group, package=package)
    return f"{group}={SAVED}"
