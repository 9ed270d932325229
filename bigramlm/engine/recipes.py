"""The fields of recipes that must be known before Hydra composes the config.

A recipe is a preset of the group `experiment`. It may be in conf/ or in a folder of the user's.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from bigramlm.config.overrides import Overrides
from bigramlm.errors import require
from bigramlm.utils import paths


def preset_folders(flags: argparse.Namespace) -> list[Path]:
    """Return the folders of presets, those that the flags add before conf/.

    The errors are those of `added_folders`.
    """
    return [*added_folders(flags), paths.conf_dir()]


def added_folders(flags: argparse.Namespace) -> list[Path]:
    """Return the folders of presets that --config-dir and hydra.searchpath add.

    Raises UserError if one does not exist.
    """
    added = [("--config-dir", path) for path in [flags.config_dir] if path is not None]
    added += [("hydra.searchpath", path) for path in _search_path(flags.overrides)]
    found = []
    for name, path in added:
        found.append(paths.typed(path, name))
        require(found[-1].is_dir(), f"{name}={path}: there is no such folder; correct the path, or omit {name}")
    return found


def check_recipes(names: str | None, folders: Sequence[Path]) -> None:
    """Refuse recipes with content that would be ignored, or that Hydra cannot explain.

    names, folders: as for `field_of_recipes`. Raises UserError that names the file.
    """
    for name in (names or "").strip("[]").split(","):
        path = _find(name.strip(), folders)
        if path is None:
            continue
        with contextlib.suppress(OSError, UnicodeDecodeError):  # reported when Hydra composes
            require(
                not path.read_text("utf-8").startswith("\N{ZERO WIDTH NO-BREAK SPACE}"),
                f"{path}: begins with a byte-order mark; save the file as UTF-8 without one",
            )
        recipe = _load(path)
        require(not isinstance(recipe, ListConfig), f"{path}: is a list; a recipe has fields, such as seed: 1")
        for field in ("resume", "sweep"):
            value = recipe.get(field) if isinstance(recipe, DictConfig) else None
            require(value is None, f"{path}: {field}={value} has no effect in a recipe; type it on the command line")


def field_of_recipes(field: str, names: str, folders: Sequence[Path]) -> list[Any]:
    """Return the value of a field in each recipe, or None if a recipe does not set it.

    names: the value of `experiment=`: a name, or several that are separated by commas. folders: those of
    `preset_folders`. A recipe may inherit the value from a recipe in its defaults; as in Hydra, the last of the
    defaults wins, and `_self_`, which is last if it is not among them, stands for the recipe itself. Raises UserError
    if a recipe inherits from itself.
    """
    found = [_values(field, name.strip(), folders, ()) for name in names.strip("[]").split(",")]
    return [next(values, None) for values in found]


def _values(field: str, name: str, folders: Sequence[Path], inheriting: tuple[str, ...]) -> Iterator[Any]:
    # Yields the values that a recipe sets or inherits; the first one wins. inheriting: those that inherit from it.
    name = name.removeprefix("/experiment/").removesuffix(".yaml")
    path = _find(name, folders)
    recipe = None if path is None else _load(path)
    if not isinstance(recipe, DictConfig):
        return
    circle = " -> ".join([*inheriting, name])
    require(name not in inheriting, f"experiment={(*inheriting, name)[0]}: the recipe inherits from itself: {circle}")
    for base in reversed(list(_bases(name, recipe))):
        if base is not None:
            yield from _values(field, base, folders, (*inheriting, name))
        elif field in recipe:
            yield recipe[field]


def _bases(name: str, recipe: DictConfig) -> Iterator[str | None]:
    # Yields the recipes in the defaults of a recipe, in order. None stands for the recipe itself.
    entries = recipe.get("defaults") or []
    for text in (text for entry in entries for text in _as_texts(name, entry)):
        base, _, package = text.partition("@")
        absolute = str(PurePosixPath("/experiment", base))
        if base == "_self_":
            yield None
        elif package in ("", "_global_", "_here_") and absolute.startswith("/experiment/"):
            yield absolute
    if "_self_" not in entries:
        yield None


def _as_texts(name: str, entry: Any) -> list[str]:
    # `/experiment@_global_: [a, b]` is written as /experiment/a@_global_ and /experiment/b@_global_.
    if not isinstance(entry, DictConfig):
        return [str(entry)]
    found = []
    for key, chosen in entry.items():
        group, at, package = str(key).removeprefix("optional ").partition("@")
        require(  # Hydra would replace it without end
            group.strip("/") != "experiment" or bool(package),
            f"experiment={name}: {group}: {chosen} in the defaults would mean this recipe itself; write - {chosen}",
        )
        choices = chosen if isinstance(chosen, ListConfig) else [chosen]
        found += [f"{group}/{choice}{at}{package}" for choice in choices]
    return found


def _find(name: str, folders: Sequence[Path]) -> Path | None:
    name = name.removesuffix(".yaml")
    if not name or name.startswith("/") or ".." in Path(name).parts:
        return None
    # Unlike Path.is_file, os.path.isfile raises nothing for a name that is too long.
    files = (folder / "experiment" / f"{name}.yaml" for folder in folders)
    return next((path for path in files if os.path.isfile(path)), None)  # noqa: PTH113


def _load(path: Path) -> DictConfig | ListConfig | None:
    with contextlib.suppress(Exception):  # Hydra reports a damaged preset
        return OmegaConf.load(path)
    return None


def _search_path(words: Sequence[str]) -> list[str]:
    # The folders in hydra.searchpath; Python packages (pkg://) are left out.
    overrides = Overrides.from_arguments(words).only("hydra.searchpath")
    with contextlib.suppress(Exception):  # Hydra reports a malformed override
        lists = [override.value() for override in overrides.parsed()]
        entries = [str(entry) for value in lists if isinstance(value, list) for entry in value]
        return [entry.removeprefix("file://") for entry in entries if not entry.startswith("pkg://")]
    return []
