"""Translation of the user's overrides into overrides for Hydra."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import OmegaConf

from bigramlm.config.extensions import import_extensions, names_in, store_presets
from bigramlm.config.overrides import Overrides, quoted
from bigramlm.config.run_config import register_schemas
from bigramlm.engine.recipes import field_of_recipes, preset_folders
from bigramlm.engine.resume import saved_presets
from bigramlm.errors import UserError, require
from bigramlm.runs import find as runs
from bigramlm.runs.find import PLAN
from bigramlm.utils import paths


def set_up_hydra(arguments: Sequence[str] = ()) -> None:
    """Register the config schemas and resolvers that conf/ refers to.

    arguments: those of the command line, whose extensions are imported. Raises UserError if one cannot be imported.
    """
    import_extensions(_extensions(arguments))
    register_schemas()
    store_presets()
    OmegaConf.register_new_resolver("home", lambda: str(paths.home()), replace=True)


def command_line(arguments: Sequence[str], *, has_model: bool = False) -> list[str]:
    """Translate the command-line arguments into arguments for Hydra.

    Free text is quoted, and resume=, init_from= and sweep= are expanded into overrides. has_model: if True, Python
    passed a model.
    """
    flags = {"-m", "--multirun"}
    sweeps = bool(flags & set(arguments))
    overrides = Overrides.typed(arguments, sweeps=sweeps)
    if sweeps:  # Hydra accepts the flag before or after all overrides, but not between them
        overrides = Overrides(["-m", *(word for word in overrides.words if word not in flags)])
    overrides += _sweep_folder(overrides, sweeps=sweeps)
    presets = saved_presets(overrides, preset_folders(arguments), sweeps=sweeps, has_model=has_model)
    if presets.has("model"):  # the config of the weights is more exact than model=gpt2
        overrides = overrides.without("model")
    # The last override of a field wins: presets replace fields of an experiment, and later overrides those of presets.
    first, rest = overrides.split_after("resume", "init_from", "experiment")
    return (first + presets + rest).words


def _extensions(arguments: Sequence[str]) -> list[str]:
    # The extensions that the overrides name, and those that a chosen recipe names.
    overrides = Overrides.typed(Overrides.from_arguments(arguments).words)
    given = [part for word in overrides.only("extensions").parsed() for part in names_in(word.value())]
    for value in field_of_recipes("extensions", overrides.get("experiment") or "", preset_folders(arguments)):
        given += names_in(value)
    return list(dict.fromkeys(given))


def _sweep_folder(overrides: Overrides, *, sweeps: bool) -> Overrides:
    """Translate `sweep=` into an override of `hydra.sweep.dir`, Hydra's sweep folder.

    Raises UserError if `sweep=` does not name a sweep, or cannot be combined with the other overrides.
    """
    subdir, sweep = overrides.get("hydra.sweep.subdir"), overrides.get("sweep", "null")
    if subdir is not None and sweeps:
        raise UserError(
            f"hydra.sweep.subdir={subdir}: cannot be set, because a sweep can only be continued if its job folders are "
            "numbered; omit hydra.sweep.subdir"
        )
    if sweep in (None, "null"):
        return Overrides()
    require(
        sweeps,
        f"sweep={sweep}: only a command with -m can continue a sweep; add -m and the swept fields",
    )
    require(
        not overrides.has("hydra.sweep.dir"),
        f"sweep={sweep}: cannot be combined with hydra.sweep.dir, because both set the sweep folder; omit one of them",
    )
    folder = runs.find_sweep(str(sweep))
    require((folder / PLAN).exists(), f"sweep={sweep}: the folder contains no sweep of bigramlm: there is no {PLAN}")
    return Overrides([f"hydra.sweep.dir={quoted(str(folder))}"])
