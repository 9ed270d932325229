"""How `resume=` and `init_from=` reach the config: what a run saved is offered to Hydra as presets named `_saved`.

So what is typed besides is composed on top of what was saved, and checked against it, as it is for a new run.
"""

from __future__ import annotations

import re

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from bigramlm import runs
from bigramlm.cli import quoted
from bigramlm.config import GROUPS, load_composed
from bigramlm.errors import UserError, require

_SAVED = "_saved"
# A run whose model, tokenizer, text or optimizer is exchanged is another run.
_FIXED = ("model", "tokenizer", "data", "optim", "experiment")


def saved_presets(arguments: list[str]) -> list[str]:
    """The overrides that stand for `resume=` and `init_from=`, if one of them is typed.

    arguments: the command line. UserError where they name nothing that a run can start from, or contradict the rest.
    """
    typed = {
        match[1]: argument.partition("=")[2] for argument in arguments if (match := re.match(r"\+*([\w.]+)=", argument))
    }
    if typed.get("resume", "null") != "null":
        return _resume(typed, multirun=bool({"-m", "--multirun"} & set(arguments)))
    if typed.get("init_from", "null") != "null":
        saved = load_composed(runs.saved_config(runs.find(typed["init_from"])))
        return [_offer(group, saved[group]) for group in ("model", "tokenizer") if group not in typed]
    return []


def is_saved_preset(override: str) -> bool:
    """Whether an override is one of those, and was not typed."""
    return override.endswith(f"={_SAVED}")


def _resume(typed: dict[str, str], *, multirun: bool) -> list[str]:
    where = typed["resume"]
    require(not multirun, f"resume={where}: one run goes on, and no sweep; leave -m out")
    folder = runs.find(where)
    for name in _FIXED:
        require(
            name not in typed,
            f"resume={where} {name}={typed.get(name)}: a run goes on with its own {name}, and only fields of it may "
            f"change; init_from={where} starts a new run from its weights",
        )
    for name in ("init_from", "hydra.run.dir"):
        require(name not in typed, f"resume={where} {name}={typed.get(name)}: contradict each other; leave one out")
    if not (folder / "config.yaml").is_file() or not (folder / "summary.json").is_file():
        raise UserError(
            f"resume={where}: holds no run that has begun: that would be a folder with a config.yaml and a "
            "summary.json; init_from= takes checkpoints"
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
