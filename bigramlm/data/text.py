"""Reading texts: from one file or many, plain, compressed or JSONL, in memory or as a stream."""

from __future__ import annotations

import array
import bisect
import codecs
import contextlib
import gzip
import hashlib
import io
import json
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from bigramlm.data.compression import HashedFile, decompressed, is_jsonl, zstd
from bigramlm.errors import UserError, require
from bigramlm.utils import files
from bigramlm.utils.progress import bar

# A text of up to so many characters is kept in memory; a longer one is read from its files whenever it is needed.
IN_MEMORY_UP_TO = 16_000_000
# How many characters a piece of a document has, about. Part of what a tokenizer makes of a text: a word that is cut in
# two where a document has no spaces is two words.
PIECE = 1 << 16
# Where a document is cut, if it can be: before a space between two words, which no usual tokenizer joins.
_CUT = re.compile(r"\w(?= \w)")

READ_AT_ONCE = 1 << 20  # bytes read at once
ENDS_AT_MOST = 200_000  # of documents, remembered to find where to split

Blocks = Iterable[str]
"""A document, in parts that are strung together."""


class Piece(NamedTuple):
    """A part of a document, small enough to be worked on, all of it in one split."""

    split: str
    text: str
    ends: bool
    """True if the document ends here."""


class TextChanged(UserError):
    """A text is not any more what it was, and what was made of it is worth nothing."""


@dataclass(frozen=True)
class File:
    """A file of a text, as it was when it was read."""

    path: str
    bytes: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True)
class Text:
    """A text, of one document or many, with what identifies it and where it is split."""

    name: str
    files: tuple[File, ...]
    jsonl_field: str
    """The field of a line of JSONL that is read."""
    n_characters: int
    characters: str
    """Those that it has, each once, sorted."""
    documents: int
    split: int
    """The number of its characters, from the start, that train; the others validate."""
    kept: list[list[str]] | None = field(default=None, repr=False, compare=False)
    """Its documents, where they are kept in memory."""
    kept_at: Path | None = field(default=None, repr=False, compare=False)
    """The file in which a long text's description is kept for the next time."""

    @property
    def sha256(self) -> str:
        """The SHA-256 of a single file's bytes; for several files, of their hashes."""
        return sha256_of(self.files)

    @property
    def where(self) -> str:
        """Its files, for people."""
        return named([file.path for file in self.files])

    def pieces(self) -> Iterator[Piece]:
        """All of it in order. TextChanged where a file is not any more what it was."""
        try:
            yield from self._pieces()
        except UserError:  # it was in order when it was read before
            changed = next((file for file in self.files if not _is_still(file)), None)
            if self.kept is not None or changed is None:
                raise
            raise self._changed(changed) from None

    def _pieces(self) -> Iterator[Piece]:
        at = 0
        for document in self._documents() if self.kept is None else self.kept:
            for text, ends in in_pieces(document):
                cut = self.split - at
                if 0 < cut < len(text):
                    yield Piece("train", text[:cut], False)
                    yield Piece("val", text[cut:], ends)
                else:
                    yield Piece("train" if cut > 0 else "val", text, ends)
                at += len(text)

    def to_dict(self) -> dict[str, Any]:
        """Describe the text, for `from_dict` to make it again, except for what is in memory."""
        fields = {name: value for name, value in vars(self).items() if not name.startswith("kept")}
        return {**fields, "files": [asdict(file) for file in self.files]}

    def _documents(self) -> Iterator[Blocks]:
        for file in self.files:
            reader = Reader(Path(file.path), self.jsonl_field)
            yield from reader.documents()
            if reader.sha256 != file.sha256:
                raise self._changed(file)

    def _changed(self, file: File) -> TextChanged:
        if self.kept_at is not None:  # what is known of it does not hold
            self.kept_at.unlink(missing_ok=True)
        return TextChanged(f"{file.path}: was changed while it was read; run this again")


def sha256_of(files: Sequence[File]) -> str:
    """Return the SHA-256 of a single file's bytes; for several files, of their hashes."""
    if len(files) == 1:
        return files[0].sha256
    return hashlib.sha256("".join(file.sha256 for file in files).encode()).hexdigest()


def _is_still(file: File) -> bool:
    try:
        status = Path(file.path).stat()
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (file.bytes, file.mtime_ns)


def from_dict(about: dict[str, Any]) -> Text:
    """Make the text that `to_dict` described."""
    return Text(**{**about, "files": tuple(File(**file) for file in about["files"])})


def read_text(paths: Sequence[Path], *, name: str, field: str, train_fraction: float, kept_at: Path) -> Text:
    """Read the text in these files once; UserError says what is wrong with them, and where.

    kept_at: where what was found out about a long text is kept, so that the next time it need not be read.
    """
    sizes = [size_of(path) for path in paths]
    known = _known(paths, name, kept_at)
    if known is not None:
        return replace(known, kept_at=kept_at)
    text = _read(paths, sizes, name, field, train_fraction)
    if text.kept is not None:
        return text
    _keep(text, kept_at)
    return replace(text, kept_at=kept_at)


def _read(paths: Sequence[Path], sizes: Sequence[int], name: str, field: str, train_fraction: float) -> Text:
    found: list[File] = []
    ends = array.array("q")  # of the documents, in characters
    seen = np.zeros(sys.maxunicode + 1, dtype=bool)
    kept: list[list[str]] | None = []
    n = documents = 0
    with bar(sum(sizes), hidden=sum(sizes) <= IN_MEMORY_UP_TO, desc="reading", unit="B", unit_scale=True) as shown:
        for path in paths:
            status = path.stat()
            reader = Reader(path, field, shown)
            for document in reader.documents():
                before, blocks = n, []
                for block in document:
                    seen[np.frombuffer(block.encode("utf-32-le"), dtype=np.uint32)] = True
                    n += len(block)
                    if kept is not None:
                        blocks.append(block)
                    if n > IN_MEMORY_UP_TO:
                        kept, blocks = None, []
                if n > before:
                    documents += 1
                    ends.append(n)
                    if len(ends) > ENDS_AT_MOST:
                        ends = _thinned(ends, n)
                    if kept is not None:
                        kept.append(blocks)
            found.append(File(str(path), status.st_size, status.st_mtime_ns, reader.sha256))
    require(n > 0, f"{named(paths)}: is empty; there is nothing to train on")
    characters = np.flatnonzero(seen).astype(np.uint32).tobytes().decode("utf-32-le")
    return Text(name, tuple(found), field, n, characters, documents, _split(n, ends, train_fraction), kept)


def _split(n: int, ends: Sequence[int], train_fraction: float) -> int:
    # Where a document ends soon behind the place that is asked for, it is not cut.
    cut = int(train_fraction * n)
    end = ends[bisect.bisect_left(ends, cut)]
    return end if end - cut <= n // 100 and end < n else cut


def named(paths: Sequence[Path] | Sequence[str]) -> str:
    """Files, for people."""
    return str(paths[0]) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")


def _thinned(ends: array.array[int], n: int) -> array.array[int]:
    # The last of each stretch of a text so far: of a hundredth of it they are still a thousand.
    width = max(1, 2 * n // ENDS_AT_MOST)
    return array.array("q", {end // width: end for end in ends}.values())


def size_of(path: Path) -> int:
    """Return the bytes of a file. UserError if there is none."""
    require(
        not path.is_dir(),
        f"{path}: is a folder; give a text file in it, or several (data.path='{path}/*.txt')",
    )
    try:
        return path.stat().st_size
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; give one that exists (data.path=FILE)") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _known(paths: Sequence[Path], name: str, kept_at: Path) -> Text | None:
    # A file of the same size and time is taken for the same, as make and git do; one of another time is read again.
    try:
        text = from_dict(json.loads(kept_at.read_text("utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if [file.path for file in text.files] != [str(path) for path in paths] or text.n_characters <= IN_MEMORY_UP_TO:
        return None
    now = []
    for path, file in zip(paths, text.files, strict=True):
        status = path.stat()
        if status.st_size != file.bytes or (status.st_mtime_ns != file.mtime_ns and files.sha256(path) != file.sha256):
            return None
        now.append(File(file.path, file.bytes, status.st_mtime_ns, file.sha256))
    again = from_dict({**text.to_dict(), "name": name, "files": [asdict(file) for file in now]})
    if again != text:
        _keep(again, kept_at)
    return again


def _keep(text: Text, kept_at: Path) -> None:
    with contextlib.suppress(OSError):  # it is read again the next time
        kept_at.parent.mkdir(parents=True, exist_ok=True)
        files.write(kept_at, [json.dumps(text.to_dict(), indent=1, ensure_ascii=False).encode()])


class Reader:
    """Reads the documents of a file, one after the other, and the file's hash along the way.

    A plain text is one document; of JSONL each line's field is one. Both may be compressed, by gzip or zstd.
    """

    def __init__(self, path: Path, field: str, bar: tqdm[Any] | None = None) -> None:
        """field: what a line of JSONL has the text in; bar: told how many bytes are read."""
        self.path = path
        self.field = field
        self.bar = bar
        self.sha256 = ""
        """The SHA-256 of the file's bytes, once all documents are read."""

    def documents(self) -> Iterator[Blocks]:
        """Yield the documents; each has to be read to its end before the next."""
        if is_jsonl(self.path):
            for where, found in self.objects():
                yield (text_in(found, self.field, where, setting="text_field"),)
            return
        with self._opened() as content:
            yield self._blocks(content)

    def objects(self) -> Iterator[tuple[str, Any]]:
        """Yield what the lines of JSONL hold, each with its file and line number."""
        with self._opened() as content:
            yield from self._lines(content)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[io.BufferedIOBase]:
        with self._reading(), self.path.open("rb") as file:
            hashed = HashedFile(file, self.bar)
            yield decompressed(io.BufferedReader(hashed, READ_AT_ONCE), self.path)
            while hashed.read(READ_AT_ONCE):
                pass
            self.sha256 = hashed.digest.hexdigest()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, zlib.error, gzip.BadGzipFile, zstd.ZstdError) as error:
            cut = isinstance(error, EOFError)
            what = "is cut short: the archive ends in the middle" if cut else f"is no whole archive: {error}"
            raise UserError(f"{self.path}: {what}; get it again, or unpack it and give the text itself") from None
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read: {error.strerror or error}") from None

    def _blocks(self, content: io.BufferedIOBase) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")()
        offset = lines = 0  # of what is decoded
        while True:
            with self._reading():  # of who asks for it
                block = content.read(READ_AT_ONCE)
            pending = decoder.getstate()[0]
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raw = pending + block
                line = lines + raw.count(b"\n", 0, error.start) + 1
                raise UserError(
                    f"{self.path}: not UTF-8: byte 0x{raw[error.start]:02x} at offset "
                    f"{offset - len(pending) + error.start:,} (line {line:,}); "
                    "convert it first, for instance with iconv -f latin1 -t utf-8"
                ) from None
            if text:
                yield text
            if not block:
                return
            offset += len(block)
            lines += block.count(b"\n")

    def _lines(self, content: io.BufferedIOBase) -> Iterator[tuple[str, Any]]:
        for number, line in enumerate(content, start=1):
            if not line.strip():
                continue
            where = f"{self.path}, line {number:,}"
            try:
                found = json.loads(line)
            except UnicodeDecodeError as error:
                raise UserError(f"{where}: not UTF-8: byte 0x{line[error.start]:02x}") from None
            except (ValueError, RecursionError) as error:
                reason = f"{error.msg} (column {error.colno:,})" if isinstance(error, json.JSONDecodeError) else error
                raise UserError(f"{where}: is not JSON: {reason}; mend the line, or take it out") from None
            yield where, found


def text_in(found: Any, field: str, where: str, *, setting: str) -> str:
    """Return the text in a field of a line of JSONL; setting: the field of `data` that names it. UserError if none."""
    require(isinstance(found, dict), f'{where}: is not an object like {{"{field}": "To be"}}')
    if field not in found:
        has = ", ".join(list(found)[:10]) or "none"
        raise UserError(f"{where}: has no field {field!r}; it has {has} (data.{setting}=NAME)")
    text = found[field]
    if not isinstance(text, str):
        raise UserError(f"{where}: its field {field!r} is not a text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: holds half of a surrogate pair, which is no character") from None
    return text


def in_pieces(document: Blocks) -> Iterator[tuple[str, bool]]:
    """Cut a document into pieces of some `PIECE` characters, between words if possible; says which is the last.

    Where it is cut depends on the document alone, and not on how it came in blocks. An empty one has no pieces.
    """
    held, at = "", 0
    for block in document:
        held, at = held[at:] + block, 0
        while len(held) - at > 2 * PIECE:
            found = _CUT.search(held, at + PIECE, at + 2 * PIECE)
            end = found.end() if found else at + 2 * PIECE
            yield held[at:end], False
            at = end
    if held:
        yield held[at:], True


def check_length(n_tokens: int, *, split: str, block_size: int, text: str) -> None:
    """UserError where a split is too short for one block and the target of its last token."""
    require(
        n_tokens > block_size,
        f"data.block_size={block_size}: the {split} split of {text} has only {n_tokens:,} of the {block_size + 1:,} "
        "tokens that a block and its targets take; lower data.block_size or use a longer text",
    )
