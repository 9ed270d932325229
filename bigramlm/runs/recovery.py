"""Recovery of the files of a run that a power cut has damaged.

A file that is written often is not synced to disk each time. After a power cut it may have its name but not its
content.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigramlm.errors import UserError
from bigramlm.utils import documents

if TYPE_CHECKING:
    from bigramlm.checkpoint.checkpoint import Checkpoint

# The groups that every saved config has.
_GROUPS = {"model", "tokenizer", "data", "optim"}


def is_config(path: Path) -> bool:
    """Check whether a file contains a saved config, valid or not."""
    try:
        config = documents.read_yaml(path)
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
    return found if isinstance(found, dict) else {}


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
