"""Token files: the splits of a text as token ids on disk.

The files are memory-mapped, so that they are never loaded into memory as a whole.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from bigramlm.errors import UserError, require
from bigramlm.utils import documents, files, paths

log = logging.getLogger(__name__)

MANIFEST, TOKENIZER, PROGRESS = "manifest.json", "tokenizer.json", "progress.json"
_VERIFIED = ".verified.json"
SPLITS = ("train", "val")
_FORMAT = 1

# The dtypes of stored token ids, the narrowest first.
_DTYPES = (np.uint8, np.int16, np.uint16, np.int32)
# The types of the values in a manifest, by their names in the classes below.
_TYPES = {"str": str, "int": int, "dict[str, Any]": dict}

T = TypeVar("T")

Ids = NDArray[Any]
"""Token ids (N,)."""


def narrowest_dtype(vocab_size: int) -> type[np.generic]:
    """Return the narrowest dtype that can store the ids of a vocabulary of this size."""
    return next(dtype for dtype in _DTYPES if vocab_size - 1 <= np.iinfo(dtype).max)


@dataclass(frozen=True)
class Counts:
    """The size of a split, and the hash of its token file."""

    tokens: int = 0
    characters: int = 0
    sha256: str = ""
    """The SHA-256 of the token file; empty until the files are complete."""


@dataclass(frozen=True)
class About:
    """A description of the text and the tokenizer that token files were made with."""

    name: str
    """The name of the text."""
    sha256: str
    """The SHA-256 of the text."""
    n_characters: int
    documents: int
    split: int
    """The number of training characters, from the start of the text."""
    tokenizer: dict[str, Any]
    """The config of the tokenizer."""
    tokenizer_sha256: str
    """The SHA-256 of tokenizer.json."""
    vocab_size: int
    dtype: str


@dataclass(frozen=True)
class TokenFiles:
    """The complete token files in a folder.

    The folder contains train.bin, val.bin, tokenizer.json and manifest.json.
    """

    folder: Path
    about: About
    splits: dict[str, Counts]

    @property
    def sha256(self) -> str:
        """The SHA-256 of the text."""
        return self.about.sha256

    def ids(self, split: str) -> Ids:
        """Return the token ids of a split as a memory-mapped array (N,)."""
        if self.splits[split].tokens == 0:
            return np.empty(0, dtype=self.about.dtype)
        # Read-only: for a writable mapping, the system would have to reserve as much memory.
        return np.memmap(self.folder / f"{split}.bin", dtype=self.about.dtype, mode="r")

    def tokenizer(self) -> str:
        """Return the JSON of the tokenizer that the token files were made with.

        Raises UserError if tokenizer.json cannot be read, or if its SHA-256 differs from the one in the manifest.
        """
        try:
            content = documents.read(self.folder / TOKENIZER, limit=files.MAX_TEXT).decode()
        except (OSError, ValueError) as error:
            raise UserError(f"{self.folder / TOKENIZER} cannot be read: {error}") from None
        require(
            files.sha256_of(content) == self.about.tokenizer_sha256,
            f"{self.folder / TOKENIZER} is not the tokenizer of these token files (its SHA-256 differs from the one in "
            f"{MANIFEST}); restore the original file, or prepare the text again",
        )
        return content

    def verify(self) -> None:
        """Compare the token files with the manifest, and remember the result.

        Raises UserError if the SHA-256 of a file differs, or if a token id is not in the vocabulary.
        """
        for split, counts in self.splits.items():
            path = self.folder / f"{split}.bin"
            require(
                files.sha256(path) == counts.sha256,
                f"{path} is damaged: its SHA-256 differs from the one in {MANIFEST}; {_prepare_again(path)}",
            )
            ids = self.ids(split)
            require(
                len(ids) == 0 or (ids.min() >= 0 and ids.max() < self.about.vocab_size),
                f"{path} contains token ids outside of the vocabulary of {self.about.vocab_size:,} tokens that "
                f"{MANIFEST} gives; {_prepare_again(path)}",
            )
        self.remember()

    def remember(self) -> None:
        """Remember that the files match the manifest, until one of them changes."""
        with contextlib.suppress(OSError):  # e.g. a folder of another user
            files.write(self.folder / _VERIFIED, [json.dumps(self._stamps()).encode()], durable=False)

    def verify_once(self) -> None:
        """Verify the token files, unless they have not changed since they were verified.

        Raises UserError as `verify` does.
        """
        if self._remembered() != self._stamps():
            log.info("tokens: verifying the files in %s", self.folder)
            self.verify()

    def _remembered(self) -> Any:
        # Another user could write the file for token files that were never verified.
        path = self.folder / _VERIFIED
        try:
            is_own = os.name == "nt" or path.stat().st_uid == os.geteuid()
            return documents.read_json(path) if is_own else None
        except (OSError, ValueError):
            return None

    def _stamps(self) -> list[list[int]]:
        # Sizes, times and numbers of the files; a copy of the folder differs in the time of the last change of status.
        stats = [(self.folder / name).stat() for name in (MANIFEST, *(f"{split}.bin" for split in SPLITS))]
        return [[stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino] for stat in stats]


def open_tokens(folder: Path) -> TokenFiles:
    """Open the token files in a folder.

    Raises UserError if the folder has no complete token files, or if a file has the wrong size.
    """
    files.refuse_dangling(folder)
    try:
        manifest = documents.read_json(folder / MANIFEST)
        require(
            manifest["format"] == _FORMAT,
            f"{folder}: the token files have format {manifest['format']}, but this version of bigramlm reads format "
            f"{_FORMAT}; prepare the text again",
        )
        splits = {name: _parsed(Counts, manifest["splits"][name]) for name in SPLITS}
        tokens = TokenFiles(folder, _parsed(About, manifest["about"]), splits)
        width = np.dtype(tokens.about.dtype).itemsize
        if not 0 < tokens.about.split < tokens.about.n_characters:
            raise ValueError(f"split={tokens.about.split!r} is not valid")
        if name := next((name for name, split in splits.items() if split.tokens and not split.characters), None):
            raise ValueError(f"{name}: characters=0 is not valid for {splits[name].tokens:,} tokens")
    except FileNotFoundError:
        advice = "make token files with prepare.py"
        if (folder / PROGRESS).exists():
            advice = "their preparation is not finished; to continue it, run the command that started it again"
        elif any((folder / f"{split}.bin").exists() for split in SPLITS):
            advice = (
                "its train.bin and val.bin were written by another program, such as nanoGPT, and do not say which text "
                f"their ids stand for; encode the text itself: {paths.program('prepare')} data.path=FILE tokenizer=bpe"
            )
        raise UserError(f"{folder} contains no complete token files (there is no {MANIFEST}); {advice}") from None
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / MANIFEST} is not a manifest written by prepare.py: {error}") from None
    for split, counts in tokens.splits.items():
        path = folder / f"{split}.bin"
        require(path.is_file(), f"{path} is missing, or is not a regular file; {_prepare_again(path)}")
        size = files.readable_size(path)
        require(
            size == counts.tokens * width,
            f"{path} has {size:,} bytes instead of {counts.tokens * width:,}, so it is "
            f"{'truncated' if size < counts.tokens * width else 'a different file'}; {_prepare_again(path)}",
        )
    return tokens


def _parsed(kind: type[T], values: dict[str, Any]) -> T:
    """Make a Counts or an About of the values in a file.

    Raises ValueError or TypeError for values of other types.
    """
    made = kind(**values)
    for field in fields(made):  # type: ignore[arg-type]
        value = getattr(made, field.name)
        is_valid = type(value) is _TYPES[str(field.type)] and (type(value) is not int or 0 <= value < 2**63)
        if field.name == "dtype":
            is_valid = value in [np.dtype(dtype).name for dtype in _DTYPES]
        is_long = isinstance(value, str) and len(value) > 255
        if not is_valid or is_long or (field.name in ("n_characters", "vocab_size") and value == 0):
            raise ValueError(f"{field.name}={str(value)[:80]!r} is not valid")
    return made


def read_about(folder: Path) -> About | None:
    """Read the description of the token files in a folder.

    The token files may be incomplete. Returns None if there are no token files.
    """
    for name in (MANIFEST, PROGRESS):
        try:
            return _parsed(About, documents.read_json(folder / name)["about"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def delete_token_files(folder: Path) -> None:
    """Delete the token files in a folder."""
    for name in (*(f"{split}.bin" for split in SPLITS), TOKENIZER, MANIFEST, PROGRESS, _VERIFIED):
        (folder / name).unlink(missing_ok=True)


class TokenWriter:
    """A writer of token files that can continue after an interruption.

    The caller must have locked the folder. Tokens count as written once `keep` has recorded them. `keep` is also called
    when the `with` block ends, with or without an error. A crash or a full disk can prevent the record: the next writer
    truncates the files to the recorded tokens.
    """

    def __init__(self, folder: Path, about: About, tokenizer: str) -> None:
        self.folder = folder
        self.about = about
        self._width = np.dtype(about.dtype).itemsize
        self._done = self._read_progress()
        paths = {split: folder / f"{split}.bin" for split in SPLITS}
        with ExitStack() as stack:
            if self.pieces == 0:
                delete_token_files(folder)  # deleted, not overwritten: a run may be reading the old files
                self._write_json(PROGRESS, pieces=0)  # first, to mark the folder as one of token files
                files.write(folder / TOKENIZER, [tokenizer.encode()])
            self._files = {split: stack.enter_context(path.open("ab", buffering=0)) for split, path in paths.items()}
            for split, file in self._files.items():
                file.truncate(self.counts[split].tokens * self._width)
            self._open = stack.pop_all()

    @property
    def counts(self) -> dict[str, Counts]:
        """The number of tokens and characters written so far, for each split."""
        return self._done[0]

    @property
    def pieces(self) -> int:
        """The number of pieces of the text written so far."""
        return self._done[1]

    def _read_progress(self) -> tuple[dict[str, Counts], int]:
        no_progress = {split: Counts() for split in SPLITS}, 0
        try:
            progress = documents.read_json(self.folder / PROGRESS)
            counts = {split: _parsed(Counts, progress["splits"][split]) for split in SPLITS}
            sizes = {split: (self.folder / f"{split}.bin").stat().st_size for split in SPLITS}
            lost = any(sizes[split] < counts[split].tokens * self._width for split in SPLITS)
            return no_progress if lost or progress["about"] != asdict(self.about) else (counts, int(progress["pieces"]))
        except (OSError, ValueError, KeyError, TypeError):
            return no_progress

    def __enter__(self) -> TokenWriter:
        self._open.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        if (self.folder / PROGRESS).exists():  # the files are not finished
            with contextlib.suppress(OSError):  # a full disk may be the reason for the exception
                self.keep()
        self._open.__exit__(*raised)

    def write(self, ids: Mapping[str, bytes], characters: Mapping[str, int], pieces: int) -> None:
        """Append the token ids of the next pieces of the text.

        ids: the token ids in each split, as bytes of the dtype of the files. characters: the number of characters in
        each split. pieces: the number of pieces.
        """
        counts = dict(self.counts)
        for split, raw in ids.items():
            left = memoryview(raw)
            while left:
                left = left[self._files[split].write(left) :]
            previous = counts[split]
            tokens = previous.tokens + len(raw) // self._width
            counts[split] = Counts(tokens, previous.characters + characters[split])
        self._done = counts, self.pieces + pieces  # one assignment, so that a signal never sees half of an update

    def keep(self) -> None:
        """Sync the written tokens to disk, and record them in progress.json."""
        for file in self._files.values():
            os.fsync(file.fileno())
        self._write_json(PROGRESS, pieces=self.pieces)

    def finish(self) -> TokenFiles:
        """Write the manifest, which completes the folder, and return the token files."""
        self.keep()
        hashes = {split: files.sha256(self.folder / f"{split}.bin") for split in SPLITS}
        counts = {split: replace(counts, sha256=hashes[split]) for split, counts in self.counts.items()}
        self._done = counts, self.pieces
        self._write_json(MANIFEST, format=_FORMAT)
        (self.folder / PROGRESS).unlink()
        made = TokenFiles(self.folder, self.about, counts)
        made.remember()
        return made

    def _write_json(self, name: str, **more: int) -> None:
        by_split, _ = self._done
        splits = {split: asdict(counts) for split, counts in by_split.items()}
        content = {**more, "about": asdict(self.about), "splits": splits}
        files.write(self.folder / name, [json.dumps(content, indent=1, ensure_ascii=False).encode(), b"\n"])


def _prepare_again(path: Path) -> str:
    return f"delete {path.parent}, and prepare the text again"
