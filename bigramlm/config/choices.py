"""The presets that a group offers, and the one that a user may have meant."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from bigramlm.config.run_config import GROUPS

# What a file is chosen with, where a group would need the name of a preset.
_FILES = {"data": "data=text data.path=", "tokenizer": "tokenizer=gpt2 tokenizer.path=", "model": "init_from="}


def presets(group: str, folders: Iterable[Path]) -> list[str]:
    """List the presets of a group in folders of presets.

    A subfolder is part of a name.
    """
    roots = [folder / group for folder in folders]
    found = {path.relative_to(root).as_posix() for root in roots for path in root.rglob("*.yaml")}
    return sorted(name.removesuffix(".yaml") for name in found)


def meant(name: str, choices: Iterable[str]) -> str | None:
    """Return the preset that a name or a path may mean; None if none is similar."""
    choices, stem = list(choices), re.sub(r"\.(ya?ml|py)$", "", name)
    last = stem.rpartition("/")[2].lower()
    same = [choice for choice in choices if choice.rpartition("/")[2].lower() == last]
    return next(iter(same or difflib.get_close_matches(stem, choices, n=1)), None)


def no_such_preset(whole: str, where: str, options: Iterable[str], folders: Sequence[Path]) -> str:
    """Return the message for a preset that does not exist, with the choices.

    whole: the group and the preset, e.g. experiment/quik. where: the preset whose defaults name it; empty for an
    override. options: the choices that Hydra has found.
    """
    parts = whole.split("/")
    groups = ["/".join(parts[:n]) for n in range(1, len(parts))]  # a name of a preset may have a slash too
    group = next((group for group in groups if _has_presets(group, folders)), groups[-1])
    name = whole[len(group) + 1 :]
    choices = sorted({*options, *presets(group, folders)})
    hint, similar, outer = "", meant(name, choices), name.partition("/")[0]
    if group in _FILES and re.search(r"[./~]", name):
        hint = f"for a file, write {_FILES[group]}{shlex.quote(name)}; "
    elif similar is not None:
        hint = f"did you mean {group}={similar}? "
    elif any((folder / group / re.sub(r"(\.ya?ml)?$", ".yml", name, count=1)).is_file() for folder in folders):
        hint = "its file is named *.yml, and must be named *.yaml; "
    if where and outer in GROUPS and outer != name:
        hint += f"to choose from a group in the defaults, write - override /{outer}: {name[len(outer) + 1 :]}; "
    the = "The" if hint.endswith("? ") else "the"
    return f"{group}={name}: there is no such preset; {hint}{the} choices are {', '.join(choices)}"


def _has_presets(group: str, folders: Sequence[Path]) -> bool:
    return any(True for folder in folders for _ in (folder / group).glob("*.yaml"))
