"""The files of a checkpoint, and the manifest with their sizes and SHA-256 hashes."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from bigramlm.adapter.lora import ADAPTER, ADAPTER_CONFIG
from bigramlm.errors import UserError, require
from bigramlm.utils import documents, files

MODEL, TRAINING, STATE, TOKENIZER, CONFIG, MANIFEST = (
    "model.safetensors",
    "training.safetensors",
    "state.json",
    "tokenizer.json",
    "config.yaml",
    "manifest.json",
)
BASE = "base.json"

# The files of a checkpoint except the manifest. A checkpoint contains either the weights, or an adapter in peft's
# format and the location of its base weights. A stripped checkpoint does not contain TRAINING, so no run can resume
# from it.
_WEIGHTS = ({MODEL}, {ADAPTER, ADAPTER_CONFIG, BASE})
_FILES = {TRAINING, STATE, TOKENIZER, CONFIG}
_ALL = {MANIFEST}.union(_FILES, *_WEIGHTS)
_FORMAT = 1

# Files that operating systems add to every folder that a user opens in a window.
_OF_SYSTEMS = {".DS_Store", "Thumbs.db", "desktop.ini"}

# The name under which safetensors writes a file before it renames it.
_PARTIAL = re.compile(r"\.tmp[0-9A-Za-z]{6}")

# The exceptions that reading a malformed file can raise.
UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError),
    *(SafetensorError, RuntimeError),
)


class MissingCheckpointError(UserError):
    """An error raised if a checkpoint does not exist, or no longer exists."""


def is_checkpoint(folder: Path) -> bool:
    """Return True if a folder contains files of a checkpoint, complete or not."""
    return any((folder / name).is_file() for name in _ALL)


def foreign_entry(folder: Path) -> Path | None:
    """Find something in a checkpoint folder that no save has written.

    A folder that contains such a file or folder must not be deleted. A link to a folder is foreign itself. Returns None
    if there is nothing foreign.
    """
    if folder.is_symlink():
        return folder
    for path in sorted(folder.iterdir()):
        is_known = path.name in _ALL | _OF_SYSTEMS or _PARTIAL.fullmatch(path.name)
        if path.is_symlink() or not path.is_file() or not is_known:
            return path
    return None


def read_manifest(path: Path) -> dict[str, Any]:
    hint = f"a checkpoint is a folder that contains a {MANIFEST}"
    if not path.exists():
        raise MissingCheckpointError(f"{path}: there is no such checkpoint; {hint}")
    require(path.is_dir(), f"{path}: this is not a checkpoint; {hint}")
    try:
        raw = documents.read(path / MANIFEST).decode()
        manifest: dict[str, Any] = documents.parse_json(raw)
        listed = {name: dict(entry) for name, entry in manifest["files"].items()}
        written = manifest["format"]
        is_intact = raw == manifest_text(manifest["step"], listed, written)
    except UNREADABLE as error:
        raise UserError(
            f"{path}: the checkpoint is not complete: its {MANIFEST} cannot be read ({first_line(error)})"
        ) from None
    require(is_intact, f"{path / MANIFEST}: the file is damaged: the SHA-256 in it does not match its content")
    require(
        written == _FORMAT,
        f"{path}: the checkpoint has format {written}, but this version of bigramlm reads only format {_FORMAT}; use a "
        "different checkpoint",
    )
    require(
        any(set(listed) in (weights | _FILES, weights | _FILES - {TRAINING}) for weights in _WEIGHTS),
        f"{path}: the checkpoint does not contain the expected files: its {MANIFEST} lists "
        f"{', '.join(map(repr, sorted(listed)[:8]))}",
    )
    return manifest


def write_manifest(folder: Path, step: int) -> None:
    """Write a manifest that lists every file in the folder."""
    text = manifest_text(step, {path.name: manifest_entry(path) for path in sorted(folder.iterdir())})
    (folder / MANIFEST).write_text(text, "utf-8", newline="\n")


def manifest_text(step: int, entries: dict[str, Any], written: int = _FORMAT) -> str:
    # Includes the SHA-256 of the manifest's own content, so that any flipped bit in the manifest is detected.
    content = {"format": written, "step": step, "files": entries}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({**content, "sha256": digest}, indent=1, sort_keys=True) + "\n"


def write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    path.write_text(text, "utf-8", errors="backslashreplace")  # JSON can contain half of a character


def manifest_entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": files.sha256(path)}


def sync_all(folder: Path) -> None:
    for path in (*folder.iterdir(), folder):
        files.sync(path)


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
