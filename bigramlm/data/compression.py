"""The reading of plain and compressed files, with a hash of the bytes read."""

from __future__ import annotations

import gzip
import hashlib
import io
import sys
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_COMPRESSED = {".gz", ".zst"}
_JSONL = {".jsonl", ".ndjson"}


class HashedFile(io.RawIOBase):
    """A file that computes the SHA-256 of its bytes as they are read."""

    def __init__(self, file: BinaryIO, bar: tqdm[Any] | None) -> None:
        self._file = file
        self._bar = bar
        self.digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        n = self._file.readinto(buffer)  # type: ignore[attr-defined]
        self.digest.update(memoryview(buffer)[:n])
        if self._bar is not None:
            self._bar.update(n)
        return int(n)


def decompress(raw: io.BufferedReader, path: Path) -> io.BufferedIOBase:
    """Return a reader that decompresses a file according to the suffix of its name."""
    if path.suffix == ".gz":
        return gzip.GzipFile(fileobj=raw)
    if path.suffix == ".zst":
        return zstd.ZstdFile(raw)
    return raw


def is_jsonl(path: Path) -> bool:
    """Return True if a file name ends in .jsonl or .ndjson, compressed or not.

    JSONL files contain one JSON object per line. An additional suffix .gz or .zst is ignored.
    """
    return (path.with_suffix("") if path.suffix in _COMPRESSED else path).suffix in _JSONL
