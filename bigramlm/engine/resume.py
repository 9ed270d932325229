"""Translation of `resume=` and `init_from=` into overrides for Hydra.

Each group of the saved config is registered with Hydra as a preset named `_saved`. Hydra then applies the user's
overrides to these presets and checks them, as for a new run.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from bigramlm.config.extensions import differing
from bigramlm.config.overrides import Overrides, quoted
from bigramlm.config.run_config import GROUPS, load_composed
from bigramlm.engine.recipes import field_of_recipes
from bigramlm.errors import UserError, require
from bigramlm.model.config import PythonConfig
from bigramlm.model.huggingface import Pretrained
from bigramlm.runs import find as runs
from bigramlm.runs.recovery import config_file
from bigramlm.tokenizer.config import GPT2TokenizerConfig
from bigramlm.utils.console import relative

log = logging.getLogger(__name__)

SAVED = "_saved"
"""The name of the presets that contain the groups of a saved config."""
# The groups that a resumed run cannot change: with a different model or text, it would be a different run.
_FIXED = ("model", "adapter", "tokenizer", "data", "optim", "experiment")


def saved_presets(overrides: Overrides, folders: Sequence[Path], *, has_model: bool = False) -> Overrides:
    """Return the overrides that implement `resume=` or `init_from=`, if given.

    folders: the folders of presets, in which recipes may set `init_from`. has_model: if True, Python passed a model.
    Raises UserError if a run cannot start from the given folder, or if `resume=` or `init_from=` contradicts the other
    overrides.
    """
    values = overrides.values()
    for name in ("resume", "init_from"):
        require(values.get(name) != "", f"{name}=: the value is empty; give the folder of a run, or omit {name}=")
    if values.get("resume", "null") != "null":
        return Overrides(_resume(values, has_model=has_model))
    where = values.get("init_from") or _init_from_of_recipes(values.get("experiment", ""), folders)
    if where in (None, "null"):
        return Overrides()
    assert where is not None
    pretrained = runs.find_pretrained(where)
    if pretrained is not None:
        presets = _pretrained_presets(pretrained, values)
        if pretrained.location == where and "init_from" not in values:  # the name that a recipe gives was not typed
            return Overrides(presets)
        return Overrides([*presets, f"init_from={quoted(pretrained.location)}"])
    folder = _find("init_from", where, containing="checkpoints")
    saved = load_composed(runs.saved_config(folder))
    if "model" not in values:
        _check_model(saved, f"init_from={where}", has_model=has_model)
    groups = [_register(group, saved[group]) for group in ("model", "tokenizer") if group not in values]
    # `latest` is resolved here, once: the jobs of a sweep must not start from the job before them.
    return Overrides([*groups, f"init_from={quoted(str(folder))}"])


def _find(field: str, where: str, *, containing: str) -> Path:
    try:
        return runs.find(where, containing=containing)
    except UserError as error:
        is_named = str(error).startswith(where)
        from_scratch = "; to train from the start, omit init_from=" if where in ("scratch", "none", "None") else ""
        raise UserError(f"{field}={error}{from_scratch}" if is_named else str(error)) from None


def _pretrained_presets(pretrained: Pretrained, values: dict[str, str]) -> list[str]:
    # Pretrained weights require the model shape in their config.json, and the tokenizer that they were trained with.
    location = pretrained.location
    require(
        values.get("model", "gpt2") == "gpt2",
        f"model={values.get('model')}: the weights in {location} are those of a GPT-2; use model=gpt2, or omit model=",
    )
    presets = [_register("model", OmegaConf.structured(pretrained.model_config()))]
    tokenizer = pretrained.tokenizer_path()
    if "tokenizer" not in values:
        if tokenizer is None:
            pretrained.check_sizes()  # refuses a folder that lacks the weights too
        require(
            tokenizer is not None,
            f"init_from={location}: there is no tokenizer beside the weights (tokenizer.json, or vocab.json and "
            "merges.txt); add the tokenizer files to the folder, or use tokenizer=gpt2 tokenizer.path=PATH",
        )
        presets.append(_register("tokenizer", OmegaConf.structured(GPT2TokenizerConfig(path=str(tokenizer)))))
    return presets


def _init_from_of_recipes(names: str, folders: Sequence[Path]) -> str | None:
    # Return the value of init_from that these recipes share.
    found = {str(where or "none") for where in field_of_recipes("init_from", names, folders)}
    require(
        len(found) == 1,
        f"experiment={names}: the recipes start from different weights ({', '.join(sorted(found))}); choose the "
        "weights with init_from=",
    )
    where = found.pop()
    return None if where == "none" else where


def _resume(values: dict[str, str], *, has_model: bool) -> list[str]:
    where = values["resume"]
    folder = _find("resume", where, containing="config.yaml")
    for name in _FIXED:
        require(
            name not in values,
            f"resume={where} {name}={values.get(name)}: a resumed run keeps its {name}; override single "
            f"fields only, or start a new run from the weights of this run with init_from={where}",
        )
    shape = [name for name in values if name.startswith("adapter.") and name != "adapter.dropout"]
    if shape:
        raise UserError(
            f"resume={where} {shape[0]}={values[shape[0]]}: a resumed run keeps its adapter; override only "
            f"adapter.dropout, or start a new run with a different adapter with init_from={where}"
        )
    for name in ("from_scratch", "hydra.run.dir"):
        require(
            name not in values,
            f"resume={where} {name}={values.get(name)}: resume= cannot be combined with {name}=; omit one of them",
        )
    is_checkpoint = (folder / "manifest.json").exists()
    path = config_file(folder)
    if not path.is_file() or is_checkpoint:
        reason = "is a checkpoint" if is_checkpoint else "contains no config.yaml, so no run has started there"
        run = folder.parent.parent
        is_of_run = folder.parent.name == "checkpoints" and (run / "config.yaml").is_file()
        to_continue = f"to continue its run, use resume={relative(run)}; " if is_of_run else ""
        raise UserError(
            f"resume={where}: only a run folder can be resumed, but this folder {reason}; {to_continue}to start a new "
            "run from a checkpoint, use init_from="
        )
    saved = load_composed(path)
    require(  # the same name again allows its download
        values.get("init_from", saved.init_from) == saved.init_from,
        f"resume={where} init_from={values.get('init_from')}: a resumed run keeps its init_from={saved.init_from}; "
        "omit init_from=",
    )
    _check_model(saved, f"resume={where}", has_model=has_model)
    for name in differing(saved.get("extensions") or []):
        log.warning("extensions=%s: the file has changed since the run last started", name)
    presets = [_register(group, saved[group]) for group in GROUPS if group != "experiment" and group not in values]
    rest = {name: value for name, value in saved.items_ex(resolve=False) if name not in (*GROUPS, "resume")}
    return [
        *presets,
        _register("experiment", OmegaConf.create(rest), package="_global_"),
        f"hydra.run.dir={quoted(str(folder))}",
    ]


def _check_model(saved: DictConfig, override: str, *, has_model: bool) -> None:
    # A model that was passed from Python must be passed again, and no other.
    is_python = saved.model.name == PythonConfig.name
    require(
        is_python or not has_model,
        f"{override} model=: the run has model={saved.model.name}, which its config builds; omit model=",
    )
    if is_python and not has_model:
        model = PythonConfig(source=saved.model.source)
        raise UserError(
            f"{override}: the model {model.source} was passed from Python, so continue there: "
            f"bigramlm.train({override!r}, model={model.variable})"
        )


def _register(group: str, node: DictConfig, package: str | None = None) -> str:
    ConfigStore.instance().store(SAVED, node, group=group, package=package)
    return f"{group}={SAVED}"
