"""The reading of plain and compressed files, with a hash of the bytes read."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import io
import lzma
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from bigramlm.errors import UserError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

READ_SIZE = 1 << 20  # bytes per read

# The first bytes of compressed files. The suffixes are those of earlier versions, which went by the name.
_OPENERS: tuple[tuple[bytes, str, Any], ...] = (
    (b"\x1f\x8b\x08", ".gz", lambda raw: gzip.GzipFile(fileobj=raw)),
    (b"\x28\xb5\x2f\xfd", ".zst", zstd.ZstdFile),
    (b"BZh", "", bz2.BZ2File),
    (b"\xfd7zXZ\x00", "", lzma.LZMAFile),
)
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


class Lookahead(io.RawIOBase):
    """A reader that can also return the start of what it has not read yet."""

    def __init__(self, content: io.RawIOBase | io.BufferedIOBase) -> None:
        self._content = content
        self._ahead = b""

    def start(self, n: int) -> bytes:
        """Return the next n bytes without reading them; fewer if the file ends before."""
        while len(self._ahead) < n and (block := self._content.read(n - len(self._ahead))):
            self._ahead += block
        return self._ahead[:n]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._ahead:
            return int(self._content.readinto(buffer) or 0)
        n = min(len(buffer), len(self._ahead))
        buffer[:n], self._ahead = self._ahead[:n], self._ahead[n:]
        return n


@contextlib.contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Convert errors of reading and decompressing a file to UserError."""
    try:
        yield
    except EOFError:
        raise UserError(
            f"{path}: the compressed file is truncated; download it again, or give the decompressed file"
        ) from None
    except (zlib.error, gzip.BadGzipFile, zstd.ZstdError, lzma.LZMAError) as error:
        raise _damaged(path, error) from None
    except OSError as error:
        if error.errno is None:  # from bz2
            raise _damaged(path, error) from None
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def _damaged(path: Path, error: Exception) -> UserError:
    reason = f"not a valid compressed file: {error}"
    return UserError(f"{path}: {reason}; download it again, or give the decompressed file")


def decompressed(raw: io.BufferedReader[Any]) -> io.BufferedReader[Any]:
    """Return a reader that decompresses a file, if its first bytes say so."""
    head = raw.peek(10)
    for signature, _, opener in _OPENERS:
        if head.startswith(signature) and (signature != b"BZh" or head[4:10] in (b"1AY&SY", b"\x17rE8P\x90")):
            return io.BufferedReader(opener(raw), READ_SIZE)
    return raw


def decompressed_by_name(raw: io.BufferedReader[Any], path: Path) -> io.BufferedIOBase:
    """Return a reader that decompresses a file by its suffix, as version 0.1 did."""
    for _, suffix, opener in _OPENERS:
        if suffix and path.suffix == suffix:
            opened: io.BufferedIOBase = opener(raw)
            return opened
    return raw


def is_jsonl_by_name(path: Path) -> bool:
    """Return True if a file name ends in .jsonl or .ndjson, compressed or not.

    An additional suffix .gz or .zst is ignored.
    """
    return (path.with_suffix("") if path.suffix in (".gz", ".zst") else path).suffix in _JSONL
