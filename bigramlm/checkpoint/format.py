"""A checkpoint's files, and the manifest that seals them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from bigramlm.adapter.lora import ADAPTER, ADAPTER_CONFIG
from bigramlm.errors import UserError, require
from bigramlm.utils import files

MODEL, TRAINING, STATE, TOKENIZER, CONFIG, MANIFEST = (
    "model.safetensors",
    "training.safetensors",
    "state.json",
    "tokenizer.json",
    "config.yaml",
    "manifest.json",
)
BASE = "base.json"

# What a checkpoint has besides the manifest: the weights, or an adapter in peft's format with what it stands beside.
# Without TRAINING it is a stripped one, from which no run can go on.
_WEIGHTS = ({MODEL}, {ADAPTER, ADAPTER_CONFIG, BASE})
_FILES = {TRAINING, STATE, TOKENIZER, CONFIG}
_FORMAT = 1

# What reading a file brings that is not what it should be, whoever made it so.
UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError),
    *(SafetensorError, RuntimeError),
)


def read_manifest(path: Path) -> dict[str, Any]:
    require(path.is_dir(), f"{path}: there is no such checkpoint; it would be a folder with a {MANIFEST}")
    try:
        raw = (path / MANIFEST).read_text("utf-8")
        manifest: dict[str, Any] = json.loads(raw)
        listed = dict(manifest["files"])
        written = manifest["format"]
        whole = raw == manifest_text(manifest["step"], listed, written)
    except UNREADABLE as error:
        raise UserError(
            f"{path}: not a whole checkpoint: its {MANIFEST} cannot be read ({first_line(error)})"
        ) from None
    require(whole, f"{path / MANIFEST}: damaged: it is not the file that was saved (it has its own SHA-256)")
    require(written == _FORMAT, f"{path}: is of format {written}, this bigramlm reads format {_FORMAT}; take another")
    require(
        any(set(listed) in (weights | _FILES, weights | _FILES - {TRAINING}) for weights in _WEIGHTS),
        f"{path}: not a whole checkpoint: its {MANIFEST} names {', '.join(map(repr, sorted(listed)[:8]))}",
    )
    return manifest


def write_manifest(folder: Path, step: int) -> None:
    """Write what seals every file that is in the folder, as the last of them."""
    text = manifest_text(step, {path.name: seal_of(path) for path in sorted(folder.iterdir())})
    (folder / MANIFEST).write_text(text, "utf-8", newline="\n")


def manifest_text(step: int, seals: dict[str, Any], written: int = _FORMAT) -> str:
    # It seals itself too: a flipped bit anywhere in it makes another text than this.
    content = {"format": written, "step": step, "files": seals}
    seal = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({**content, "sha256": seal}, indent=1, sort_keys=True) + "\n"


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")


def seal_of(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": files.sha256(path)}


def sync_all(folder: Path) -> None:
    for path in (*folder.iterdir(), folder):
        files.sync(path)


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
