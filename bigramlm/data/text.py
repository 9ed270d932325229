"""Texts read from plain or JSONL files, in memory or streamed."""

from __future__ import annotations

import array
import bisect
import contextlib
import hashlib
import json
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bigramlm.data.reader import Blocks, Reader
from bigramlm.errors import UserError, require
from bigramlm.utils import files
from bigramlm.utils.paths import program
from bigramlm.utils.progress import bar

# A text of at most this many characters is kept in memory; a longer text is read from its files each time.
IN_MEMORY_UP_TO = 16_000_000
# The approximate number of characters in a piece of a document. This number affects the tokens of a text: if a document
# has no spaces, a word that is cut in two is encoded as two words.
PIECE = 1 << 16
# The preferred place for a cut is before a space between two words, which no usual tokenizer merges across.
_CUT = re.compile(r"\w(?= \w)")

MAX_ENDS = 200_000  # the most document ends that are remembered to find the split


class Piece(NamedTuple):
    """A short part of a document that belongs to a single split."""

    split: str
    text: str
    ends: bool
    """True if this is the last piece of its document."""
    continues: bool = False
    """True if the piece before belongs to the same document and split."""


class TextChanged(UserError):
    """The error raised when a text file changes while it is being read."""


@dataclass(frozen=True)
class File:
    """The state of a text file when it was read."""

    path: str
    bytes: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True)
class Text:
    """A text of one or more documents, with its files and its split point."""

    name: str
    files: tuple[File, ...]
    jsonl_field: str
    """The name of the JSON field that contains the text."""
    n_characters: int
    characters: str
    """The distinct characters of the text, sorted."""
    documents: int
    split: int
    """The number of training characters, from the start of the text. The other characters are for validation."""
    format: str = "suffix"
    """The format of the files: a value of `data.format`."""
    kept: list[list[str]] | None = field(default=None, repr=False, compare=False)
    """The documents, each a list of strings; None if the text is not kept in memory."""
    kept_at: Path | None = field(default=None, repr=False, compare=False)
    """The file that caches the description of a long text."""

    @property
    def sha256(self) -> str:
        """The SHA-256 of the file or, for several files, of their hashes."""
        return sha256_of(self.files)

    @property
    def where(self) -> str:
        """The files of the text, for error messages."""
        return describe_files([file.path for file in self.files])

    def pieces(self) -> Iterator[Piece]:
        """Yield the pieces of the text in order; raise TextChanged if a file changed."""
        try:
            yield from self._pieces()
        except UserError:  # the files were valid when they were first read, so a change is the likely cause
            changed = next((file for file in self.files if not _is_unchanged(file)), None)
            if self.kept is not None or changed is None:
                raise
            raise self._text_changed(changed) from None

    def _pieces(self) -> Iterator[Piece]:
        at = 0
        for document in self._documents() if self.kept is None else self.kept:
            start = at
            for text, ends in split_into_pieces(document):
                cut = self.split - at
                if 0 < cut < len(text):
                    yield Piece("train", text[:cut], False, at > start)
                    yield Piece("val", text[cut:], ends)
                else:
                    yield Piece("train" if cut > 0 else "val", text, ends, at > start and cut != 0)
                at += len(text)

    def to_dict(self) -> dict[str, Any]:
        """Return a description of the text for `from_dict`, without the documents."""
        fields = {name: value for name, value in vars(self).items() if not name.startswith("kept")}
        return {**fields, "files": [asdict(file) for file in self.files]}

    def _documents(self) -> Iterator[Blocks]:
        for file in self.files:
            reader = Reader(Path(file.path), self.jsonl_field, self.format)
            yield from reader.documents()
            if reader.sha256 != file.sha256:
                raise self._text_changed(file)

    def _text_changed(self, file: File) -> TextChanged:
        if self.kept_at is not None:  # the cached description is no longer true
            self.kept_at.unlink(missing_ok=True)
        return TextChanged(f"{file.path} changed while it was being read; run the command again")


def sha256_of(files: Sequence[File]) -> str:
    """Return the SHA-256 of the file or, for several files, of their hashes."""
    if len(files) == 1:
        return files[0].sha256
    return hashlib.sha256("".join(file.sha256 for file in files).encode()).hexdigest()


def _is_unchanged(file: File) -> bool:
    try:
        status = Path(file.path).stat()
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (file.bytes, file.mtime_ns)


def from_dict(about: dict[str, Any]) -> Text:
    """Create a text from a description that `to_dict` returned."""
    return Text(**{**about, "files": tuple(File(**file) for file in about["files"])})


def read_text(
    paths: Sequence[Path], *, name: str, field: str, format: str, train_fraction: float, kept_at: Path
) -> Text:
    """Read a text from its files.

    format: a value of `data.format`. kept_at: the file that caches the description of a long text, so that the next run
    need not read the whole text. Raises UserError if the files cannot be used. The message contains the file and, for
    bad content, the line.
    """
    sizes = [file_size(path) for path in paths]
    cached = _load_description(paths, name, kept_at)
    if cached is not None:
        return replace(cached, kept_at=kept_at)
    text = _read(paths, sizes, name, field, format, train_fraction)
    if text.kept is not None:
        return text
    _save_description(text, kept_at)
    return replace(text, kept_at=kept_at)


def _read(
    paths: Sequence[Path], sizes: Sequence[int], name: str, field: str, format: str, train_fraction: float
) -> Text:
    read_files: list[File] = []
    ends = array.array("q")  # the ends of the documents, in characters from the start of the text
    seen = np.zeros(sys.maxunicode + 1, dtype=bool)
    kept: list[list[str]] | None = []
    n = documents = 0
    with bar(sum(sizes), hidden=sum(sizes) <= IN_MEMORY_UP_TO, desc="reading", unit="B", unit_scale=True) as progress:
        for path in paths:
            status = path.stat()
            reader = Reader(path, field, format, progress)
            for document in reader.documents():
                start, blocks = n, []
                for block in document:
                    seen[np.frombuffer(block.encode("utf-32-le"), dtype=np.uint32)] = True
                    n += len(block)
                    if kept is not None:
                        blocks.append(block)
                    if n > IN_MEMORY_UP_TO:
                        kept, blocks = None, []
                if n > start:
                    documents += 1
                    ends.append(n)
                    if len(ends) > MAX_ENDS:
                        ends = _thin_ends(ends, n)
                    if kept is not None:
                        kept.append(blocks)
            read_files.append(File(str(path), status.st_size, status.st_mtime_ns, reader.sha256))
    require(n > 0, f"{describe_files(paths)}: the text is empty, so there is nothing to train on")
    characters = np.flatnonzero(seen).astype(np.uint32).tobytes().decode("utf-32-le")
    split = _split(n, ends, train_fraction)
    return Text(name, tuple(read_files), field, n, characters, documents, split, format, kept)


def _split(n: int, ends: Sequence[int], train_fraction: float) -> int:
    # If a document ends shortly after the requested point, the split moves to its end, so that it is not cut.
    cut = int(train_fraction * n)
    end = ends[bisect.bisect_left(ends, cut)]
    return end if end - cut <= n // 100 and end < n else cut


def describe_files(paths: Sequence[Path] | Sequence[str]) -> str:
    """Return the first path and the number of others, such as 'a.txt and 2 more'."""
    return str(paths[0]) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")


def _thin_ends(ends: array.array[int], n: int) -> array.array[int]:
    # Keep the last end in each of MAX_ENDS / 2 equal stretches: a hundredth of the text still has a thousand of them.
    width = max(1, 2 * n // MAX_ENDS)
    return array.array("q", {end // width: end for end in ends}.values())


def file_size(path: Path) -> int:
    """Return the size of a file in bytes; raise UserError if it cannot be read."""
    files.refuse_dangling(path)
    try:
        status = path.stat()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give the path of an existing file (data.path=FILE)") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    require(
        not ((path / "manifest.json").is_file() and (path / "train.bin").is_file()),
        f"{path} is a folder of token files that {program('prepare')} made; train on it with data=tokens "
        f"data.path={path}",
    )
    require(
        not stat.S_ISDIR(status.st_mode),
        f"{path} is a folder; give a text file, or a glob that matches text files (data.path='{path}/*.txt')",
    )
    require(
        stat.S_ISREG(status.st_mode),
        f"{path} is a pipe or a device, which cannot be read twice; give a file, or the pipe as data.path=/dev/stdin",
    )
    return status.st_size


def _load_description(paths: Sequence[Path], name: str, kept_at: Path) -> Text | None:
    # A file with the same size and time counts as unchanged, as in make and git; if only the time differs, the file is
    # hashed.
    try:
        text = from_dict(json.loads(kept_at.read_text("utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if [file.path for file in text.files] != [str(path) for path in paths] or text.n_characters <= IN_MEMORY_UP_TO:
        return None
    current = []
    for path, file in zip(paths, text.files, strict=True):
        status = path.stat()
        if status.st_size != file.bytes or (status.st_mtime_ns != file.mtime_ns and files.sha256(path) != file.sha256):
            return None
        current.append(File(file.path, file.bytes, status.st_mtime_ns, file.sha256))
    updated = from_dict({**text.to_dict(), "name": name, "files": [asdict(file) for file in current]})
    if updated != text:
        _save_description(updated, kept_at)
    return updated


def _save_description(text: Text, kept_at: Path) -> None:
    with contextlib.suppress(OSError):  # without the description, the text is read again the next time
        files.make_folder(kept_at.parent)
        files.write(kept_at, [json.dumps(text.to_dict(), indent=1, ensure_ascii=False).encode()])


def split_into_pieces(document: Blocks) -> Iterator[tuple[str, bool]]:
    """Cut a document into pieces of about `PIECE` characters.

    Yields each piece, with True if it is the last piece of the document. Cuts are between two words if possible. They
    depend on the document alone, not on how its text is divided into blocks. An empty document has no pieces.
    """
    buffer, at = "", 0
    for block in document:
        buffer, at = buffer[at:] + block, 0
        while len(buffer) - at > 2 * PIECE:
            match = _CUT.search(buffer, at + PIECE, at + 2 * PIECE)
            end = match.end() if match else at + 2 * PIECE
            yield buffer[at:end], False
            at = end
    if buffer:
        yield buffer[at:], True


def check_length(n_tokens: int, *, split: str, block_size: int, text: str) -> None:
    """Raise UserError unless a split has at least block_size + 1 tokens."""
    require(
        n_tokens > block_size,
        f"data.block_size={block_size}: the {split} split of {text} has only {n_tokens:,} of the {block_size + 1:,} "
        "tokens that a block and its targets need; lower data.block_size or use a longer text",
    )
