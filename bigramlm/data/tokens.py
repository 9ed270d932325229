"""Token files: a text's two splits as token ids, on the disk, mapped into memory and never loaded whole."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigramlm.errors import UserError, require
from bigramlm.utils import files

MANIFEST, TOKENIZER, PROGRESS = "manifest.json", "tokenizer.json", "progress.json"
SPLITS = ("train", "val")
_FORMAT = 1

# The types that token ids are kept in, the narrowest first.
_KINDS = (np.uint8, np.int16, np.uint16, np.int32)

Ids = NDArray[Any]
"""Token ids (N,), of the narrowest type that holds them all."""


def narrowest(vocab_size: int) -> type[np.generic]:
    """Return the narrowest type that holds the ids of so many tokens: caches are small."""
    return next(kind for kind in _KINDS if vocab_size - 1 <= np.iinfo(kind).max)


@dataclass(frozen=True)
class Counts:
    """The size of a split."""

    tokens: int = 0
    characters: int = 0
    sha256: str = ""
    """The SHA-256 of its file."""


@dataclass(frozen=True)
class About:
    """The text and tokenizer that token files were made of."""

    name: str
    """The text's."""
    sha256: str
    """The SHA-256 of the text."""
    n_characters: int
    documents: int
    split: int
    """The number of its characters that train."""
    tokenizer: dict[str, Any]
    """Its config."""
    tokenizer_sha256: str
    """The SHA-256 of its tokenizer.json."""
    vocab_size: int
    dtype: str


@dataclass(frozen=True)
class TokenFiles:
    """A folder of token files that is complete: `train.bin`, `val.bin`, the tokenizer, and a manifest of it all."""

    folder: Path
    about: About
    splits: dict[str, Counts]

    @property
    def sha256(self) -> str:
        """The SHA-256 of the text."""
        return self.about.sha256

    def ids(self, split: str) -> Ids:
        """Map the ids of a split into memory."""
        if self.splits[split].tokens == 0:
            return np.empty(0, dtype=self.about.dtype)
        # Read only: of a mapping that could be written to the system would have to promise as much memory.
        return np.memmap(self.folder / f"{split}.bin", dtype=self.about.dtype, mode="r")

    def tokenizer(self) -> str:
        """Return the tokenizer that they were made with, as JSON. UserError if it is missing, or another."""
        try:
            found = (self.folder / TOKENIZER).read_text("utf-8")
        except (OSError, ValueError) as error:
            raise UserError(f"{self.folder / TOKENIZER}: cannot be read: {error}") from None
        require(
            files.sha256_of(found) == self.about.tokenizer_sha256,
            f"{self.folder / TOKENIZER}: is not the tokenizer that these token files were made with ({MANIFEST} has "
            "its SHA-256); put that one back, or prepare the text again",
        )
        return found

    def verify(self) -> None:
        """Read every token file, and compare it with what was written. UserError where one is another."""
        for split, counts in self.splits.items():
            path = self.folder / f"{split}.bin"
            require(
                files.sha256(path) == counts.sha256,
                f"{path}: damaged: it is not the file that was written; {_again(path)}",
            )


def open_tokens(folder: Path) -> TokenFiles:
    """Open the token files in a folder. UserError if there are none, or one is cut short."""
    try:
        found = json.loads((folder / MANIFEST).read_text("utf-8"))
        require(found["format"] == _FORMAT, f"{folder}: token files of format {found['format']}, this reads {_FORMAT}")
        tokens = TokenFiles(folder, About(**found["about"]), {name: Counts(**found["splits"][name]) for name in SPLITS})
        width = np.dtype(tokens.about.dtype).itemsize
    except FileNotFoundError:
        unfinished = (folder / PROGRESS).exists()
        what = "preparing them was not finished; the same command continues" if unfinished else "prepare.py makes them"
        raise UserError(f"{folder}: holds no token files, which would have a {MANIFEST}: {what}") from None
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / MANIFEST}: is not one that prepare.py wrote: {error}") from None
    for split, counts in tokens.splits.items():
        path = folder / f"{split}.bin"
        size = path.stat().st_size if path.exists() else 0
        require(
            size == counts.tokens * width,
            f"{path}: has {size:,} bytes, and {counts.tokens * width:,} were written: it is "
            f"{'cut short' if size < counts.tokens * width else 'another file'}; {_again(path)}",
        )
    return tokens


def about_of(folder: Path) -> About | None:
    """Return what the token files in a folder were made of, or are being made of; None if there are none."""
    for name in (MANIFEST, PROGRESS):
        try:
            return About(**json.loads((folder / name).read_text("utf-8"))["about"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def discard(folder: Path) -> None:
    """Delete the token files in a folder."""
    for name in (*(f"{split}.bin" for split in SPLITS), TOKENIZER, MANIFEST, PROGRESS):
        (folder / name).unlink(missing_ok=True)


class TokenWriter:
    """Writes token files, from where it was interrupted if it was. The folder must be held by who writes.

    What is written counts once `keep` has said so, at the latest when the writing ends, however it ends; what came
    after, a crash or a full disk cuts off.
    """

    def __init__(self, folder: Path, about: About, tokenizer: str) -> None:
        self.folder = folder
        self.about = about
        self._width = np.dtype(about.dtype).itemsize
        self._done = self._begun()
        paths = {split: folder / f"{split}.bin" for split in SPLITS}
        with ExitStack() as stack:
            if self.pieces == 0:
                discard(folder)  # and not written over: a run may be reading them
                self._say(PROGRESS, pieces=0)  # first, so that the folder is known for what it is
                files.write(folder / TOKENIZER, [tokenizer.encode()])
            self._files = {split: stack.enter_context(path.open("ab", buffering=0)) for split, path in paths.items()}
            for split, file in self._files.items():
                file.truncate(self.counts[split].tokens * self._width)
            self._open = stack.pop_all()

    @property
    def counts(self) -> dict[str, Counts]:
        """The counts of what is written so far, by split."""
        return self._done[0]

    @property
    def pieces(self) -> int:
        """The number of the text's pieces that are written."""
        return self._done[1]

    def _begun(self) -> tuple[dict[str, Counts], int]:
        nothing = {split: Counts() for split in SPLITS}, 0
        try:
            found = json.loads((self.folder / PROGRESS).read_text("utf-8"))
            counts = {split: Counts(**found["splits"][split]) for split in SPLITS}
            there = {split: (self.folder / f"{split}.bin").stat().st_size for split in SPLITS}
            lost = any(there[split] < counts[split].tokens * self._width for split in SPLITS)
            return nothing if lost or found["about"] != asdict(self.about) else (counts, int(found["pieces"]))
        except (OSError, ValueError, KeyError, TypeError):
            return nothing

    def __enter__(self) -> TokenWriter:
        self._open.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        if (self.folder / PROGRESS).exists():  # it is not finished
            with contextlib.suppress(OSError):  # a full disk may be the very reason
                self.keep()
        self._open.__exit__(*raised)

    def write(self, ids: Mapping[str, bytes], characters: Mapping[str, int], pieces: int) -> None:
        """Append the ids of so many pieces, as bytes of the type that is written, and their characters, by split."""
        counts = dict(self.counts)
        for split, raw in ids.items():
            left = memoryview(raw)
            while left:
                left = left[self._files[split].write(left) :]
            before = counts[split]
            tokens = before.tokens + len(raw) // self._width
            counts[split] = Counts(tokens, before.characters + characters[split])
        self._done = counts, self.pieces + pieces  # at once, and whole whenever a signal comes

    def keep(self) -> None:
        """Put what is written on the disk, to continue from."""
        for file in self._files.values():
            os.fsync(file.fileno())
        self._say(PROGRESS, pieces=self.pieces)

    def finish(self) -> TokenFiles:
        """Write the manifest, which makes the folder complete."""
        self.keep()
        hashes = {split: files.sha256(self.folder / f"{split}.bin") for split in SPLITS}
        counts = {split: replace(counts, sha256=hashes[split]) for split, counts in self.counts.items()}
        self._done = counts, self.pieces
        self._say(MANIFEST, format=_FORMAT)
        (self.folder / PROGRESS).unlink()
        return TokenFiles(self.folder, self.about, counts)

    def _say(self, name: str, **more: int) -> None:
        counts, _ = self._done
        splits = {split: asdict(found) for split, found in counts.items()}
        content = {**more, "about": asdict(self.about), "splits": splits}
        files.write(self.folder / name, [json.dumps(content, indent=1, ensure_ascii=False).encode(), b"\n"])


def _again(path: Path) -> str:
    return f"delete {path.parent} and prepare the text again"
