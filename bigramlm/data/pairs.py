"""Examples of a prompt and its completion, to fine-tune on: reading them, and where they are among their tokens."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bigramlm.data.compression import is_jsonl
from bigramlm.data.text import File, Piece, Reader, named, sha256_of, size_of, text_in
from bigramlm.errors import require

log = logging.getLogger(__name__)

Bounds = NDArray[np.int64]
"""The bounds of M examples, (M, 3): the first token of each, its first target, and its end."""


class Example(NamedTuple):
    """A prompt, and what is to follow it."""

    prompt: str
    completion: str
    where: str
    """Its file and line, for people."""


@dataclass(frozen=True)
class Pairs:
    """Examples, in memory, with what identifies them and which of them train."""

    name: str
    files: tuple[File, ...]
    train: int
    """The number of examples, from the first, that train; the others validate."""
    kept: tuple[Example, ...] = field(repr=False)

    @property
    def sha256(self) -> str:
        """The SHA-256 of the files, as for a text."""
        return sha256_of(self.files)

    @property
    def documents(self) -> int:
        """Each example is one."""
        return len(self.kept)

    @property
    def n_characters(self) -> int:
        """The characters of prompts and completions."""
        return sum(len(piece.text) for piece in self.pieces())

    @property
    def characters(self) -> str:
        """Those that they have, each once, sorted."""
        return "".join(sorted(set().union(*(piece.text for piece in self.pieces()))))

    @property
    def split(self) -> int:
        """The number of characters that train."""
        return sum(len(piece.text) for piece in self.pieces() if piece.split == "train")

    def examples(self, split: str) -> tuple[Example, ...]:
        """Those that train, or validate."""
        return self.kept[: self.train] if split == "train" else self.kept[self.train :]

    def pieces(self) -> Iterator[Piece]:
        """All prompts and completions in order, as a tokenizer meets them."""
        for split in ("train", "val"):
            for example in self.examples(split):
                yield Piece(split, example.prompt, False)
                yield Piece(split, example.completion, True)


def read_pairs(
    paths: Sequence[Path], *, name: str, prompt_field: str, completion_field: str, train_fraction: float
) -> Pairs:
    """Read the examples in these files of JSONL; UserError says what is wrong with them, and where."""
    files, kept = [], []
    for path in paths:
        require(
            is_jsonl(path),
            f'{path}: pairs are read from *.jsonl, an object like {{"{prompt_field}": "2 + 3 =", "{completion_field}": '
            '" 5"} a line; data=text takes plain text',
        )
        size_of(path)
        status = path.stat()
        reader = Reader(path, prompt_field)
        for where, found in reader.objects():
            prompt = text_in(found, prompt_field, where, setting="prompt_field")
            completion = text_in(found, completion_field, where, setting="completion_field")
            require(
                completion != "",
                f"{where}: its field {completion_field!r} is empty: there is nothing to learn; take the line out",
            )
            kept.append(Example(prompt, completion, where))
        files.append(File(str(path), status.st_size, status.st_mtime_ns, reader.sha256))
    require(
        len(kept) > 1,
        f"{named(paths)}: has {'one example' if kept else 'no examples'}; it takes two or more: one to train on, and "
        "one to validate",
    )
    train = min(int(train_fraction * len(kept)), len(kept) - 1)
    require(
        train > 0,
        f"data.train_fraction={train_fraction}: leaves none of the {len(kept):,} examples to train on; raise it",
    )
    return Pairs(name, tuple(files), train, tuple(kept))


def fitted(bounds: Bounds, block_size: int) -> Bounds:
    """Such that no example has more than block_size inputs, and each has a target at least.

    A prompt loses its beginning, but for its last token; where that is not enough, the completion loses its end.
    """
    begin, first, end = bounds.T
    prompt = np.maximum(1, block_size + 1 - (end - first))  # how many of its tokens there is room for
    begin = np.maximum(begin, first - prompt)
    return np.stack([begin, first, np.minimum(end, begin + block_size + 1)], axis=1)


def row_length(bounds: Mapping[str, Bounds], block_size: int) -> int:
    """Return the tokens of a row, the same for all splits: block_size, or less if every example is shorter.

    Warns of examples that are longer.
    """
    begin, first, end = np.concatenate([*bounds.values()]).T
    inputs, targets = end - begin - 1, end - first
    long, cut = int((inputs > block_size).sum()), int((targets > block_size).sum())
    if long:
        log.warning(
            "%s of %s examples are longer than data.block_size=%d: their prompts lose the beginning%s",
            *(f"{long:,}", f"{len(inputs):,}", block_size),
            f", and {cut:,} of their completions the end" if cut else "",
        )
    return int(min(block_size, inputs.max()))
