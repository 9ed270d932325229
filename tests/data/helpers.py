"""Texts of all formats, and functions to read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bigramlm.data.config import TextConfig
from bigramlm.data.reader import Reader

PROSE = "Übung macht den Meister.\nSo sagt man, “immer” und \u2013 überall.\n" * 40
OBJECTS = [{"text": f"Nummer {i}: ü\n", "id": i} for i in range(30)]
LINES = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in OBJECTS)


def read(path: Path, content: bytes | str, *, format: str = "auto", field: str = "text") -> list[str]:
    """Write a file, and return its documents."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return ["".join(blocks) for blocks in Reader(path, field, format).documents()]


def resolved(path: Path, **fields: Any) -> str:
    """Return the format that is recognised."""
    prepared = TextConfig(path=str(path), **fields).prepare()
    assert isinstance(prepared, TextConfig)
    return prepared.format
