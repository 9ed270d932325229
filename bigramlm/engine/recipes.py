"""The fields of recipes that must be known before Hydra composes the config.

A recipe is a preset of the group `experiment`. It may be in conf/ or in a folder of the user's.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from bigramlm.config.overrides import Overrides
from bigramlm.errors import require
from bigramlm.utils import paths


def preset_folders(arguments: Sequence[str]) -> list[Path]:
    """Return conf/, and the folders of presets that the arguments add.

    Arguments add folders with --config-dir, -cd and hydra.searchpath.
    """
    flags = ("--config-dir", "-cd")
    added = [word.partition("=")[2] for word in arguments if word.startswith(tuple(f"{flag}=" for flag in flags))]
    added += [value for flag, value in itertools.pairwise(arguments) if flag in flags]
    return [paths.conf_dir(), *(Path(path).absolute() for path in [*added, *_search_path(arguments)])]


def field_of_recipes(field: str, names: str, folders: Sequence[Path]) -> list[Any]:
    """Return the value of a field in each recipe, or None if a recipe does not set it.

    names: the value of `experiment=`: a name, or several that are separated by commas. folders: those of
    `preset_folders`. A recipe may inherit the value from a recipe in its defaults. Raises UserError if it inherits from
    itself.
    """
    return [_field(field, name.strip(), folders, ()) for name in names.strip("[]").split(",")]


def _field(field: str, name: str, folders: Sequence[Path], inheriting: tuple[str, ...]) -> Any:
    # inheriting: the recipes that inherit from this one.
    name = name.removeprefix("/experiment/").removesuffix(".yaml")
    recipe = _read(name, folders)
    if recipe is None:
        return None
    circle = " -> ".join([*inheriting, name])
    require(name not in inheriting, f"experiment={(*inheriting, name)[0]}: the recipe inherits from itself: {circle}")
    bases = [base for base in recipe.get("defaults") or [] if isinstance(base, str) and base != "_self_"]
    inherited = (_field(field, base, folders, (*inheriting, name)) for base in reversed(bases))
    return next((value for value in [recipe.get(field), *inherited] if value is not None), None)


def _read(name: str, folders: Sequence[Path]) -> DictConfig | None:
    if not name or ".." in Path(name).parts:
        return None
    path = next((path for folder in folders if (path := folder / "experiment" / f"{name}.yaml").is_file()), None)
    if path is None:
        return None
    with contextlib.suppress(Exception):  # Hydra reports a damaged preset
        recipe = OmegaConf.load(path)
        if isinstance(recipe, DictConfig):
            return recipe
    return None


def _search_path(arguments: Sequence[str]) -> list[str]:
    # The folders in hydra.searchpath; Python packages (pkg://) are left out.
    words = Overrides.from_arguments(arguments).only("hydra.searchpath")
    with contextlib.suppress(Exception):  # Hydra reports a malformed override
        lists = [override.value() for override in words.parsed()]
        entries = [str(entry) for value in lists if isinstance(value, list) for entry in value]
        return [entry.removeprefix("file://") for entry in entries if not entry.startswith("pkg://")]
    return []
