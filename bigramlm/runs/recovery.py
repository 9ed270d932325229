"""Recovery of the files of a run that a power cut or a person has damaged.

A file that is written often is not synced to disk each time. After a power cut it may have its name but not its
content.
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigramlm.errors import UserError
from bigramlm.utils import documents

if TYPE_CHECKING:
    from bigramlm.checkpoint.checkpoint import Checkpoint

log = logging.getLogger(__name__)

# The number of characters that the overrides of no command reach; parsing them would take long.
_MAX_COMMAND = 400_000

# The groups that every saved config has.
_GROUPS = {"model", "tokenizer", "data", "optim"}

# The entries of summary.json that are texts, and those that are dictionaries.
_TEXTS = {"id", "name", "note", "status", "error", "started", "asked", "host", "device", "model"}
_PARTS = {"data", "tokenizer", "versions", "git", "base", "best", "final", "references"}


def is_config(path: Path) -> bool:
    """Check whether a file contains a saved config, valid or not.

    A link contains none: where it leads is not read.
    """
    try:
        config = None if path.is_symlink() else documents.read_yaml(path)
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.keys() >= _GROUPS


def config_file(folder: Path) -> Path:
    """Return the path of the saved config of a run.

    That is config.yaml in the run folder or, if this file is missing or damaged, the one in the newest complete
    checkpoint.
    """
    path = folder / "config.yaml"
    newest = None if is_config(path) else _newest_checkpoint(folder)
    return path if newest is None else newest.path / "config.yaml"


def recovered_summary(folder: Path) -> dict[str, Any]:
    """Return the entries of summary.json that the newest complete checkpoint contains."""
    newest = _newest_checkpoint(folder)
    found = {} if newest is None else newest.state.get("summary")
    return sound(found, folder) if isinstance(found, dict) else {}


def sound(summary: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the entries of a summary that have the types of those of a run.

    folder: the run folder, for the warning of the other entries, which someone has edited.
    """
    kept = {name: value for name, value in summary.items() if _is_sound(name, value)}
    if len(kept) < len(summary):
        _warn(folder, ", ".join(name for name in summary if name not in kept))
    return kept


def _is_sound(name: str, value: Any) -> bool:
    if value is None and name in ("asked", "git"):
        return True
    if name in _TEXTS:
        return isinstance(value, str)
    if name in _PARTS:
        return isinstance(value, dict) and isinstance(value.get("sha256", ""), str)
    if name == "overrides":
        return _is_overrides(value)
    if name == "resumed":
        return isinstance(value, list) and all(
            isinstance(entry, dict) and type(entry.get("step")) is int and _is_overrides(entry.get("overrides"))
            for entry in value
        )
    return True


def _is_overrides(value: Any) -> bool:
    is_list = isinstance(value, list) and all(isinstance(entry, str) for entry in value)
    return is_list and sum(map(len, value)) < _MAX_COMMAND


@functools.cache  # a command may read the summary several times
def _warn(folder: Path, names: str) -> None:
    log.warning("%s: in summary.json, the type of %s is not that of a run, so it is ignored", folder, names)


def is_torn(path: Path, start: str) -> bool:
    """Check whether a file may be the rest of one with this start, without its data."""
    try:
        content = documents.read(path).rstrip(b"\0")
    except (OSError, ValueError):
        return False
    return start.encode().startswith(content[: len(start)])


def _newest_checkpoint(folder: Path) -> Checkpoint | None:
    if not (folder / "checkpoints").is_dir():
        return None
    from bigramlm.checkpoint.manager import Checkpoints  # slow: imports torch

    try:
        return Checkpoints(folder / "checkpoints").newest()
    except UserError:  # none of them is complete
        return None
