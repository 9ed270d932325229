"""Prompt-completion pairs, and the bounds of each pair in the token ids."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bigramlm.data.reader import Reader, get_text
from bigramlm.data.text import File, Piece, describe_files, file_size, sha256_of
from bigramlm.errors import require

log = logging.getLogger(__name__)

Bounds = NDArray[np.int64]
"""The bounds of M examples, (M, 3). The columns are the index of the example's first token, the index of its first
target, which is the first token of the completion, and the index of its end (exclusive)."""


class Example(NamedTuple):
    """A prompt and its completion."""

    prompt: str
    completion: str
    where: str
    """The file and line of the example, for error messages."""


@dataclass(frozen=True)
class Pairs:
    """Examples in memory, with their files and their split point."""

    name: str
    files: tuple[File, ...]
    train: int
    """The number of training examples, which come first. The other examples are for validation."""
    kept: tuple[Example, ...] = field(repr=False)

    @property
    def sha256(self) -> str:
        """The SHA-256 of the file or, for several files, of their hashes."""
        return sha256_of(self.files)

    @property
    def documents(self) -> int:
        """The number of documents, because each example is one document."""
        return len(self.kept)

    @property
    def n_characters(self) -> int:
        """The number of characters in all prompts and completions."""
        return sum(len(piece.text) for piece in self.pieces())

    @property
    def characters(self) -> str:
        """The distinct characters of all prompts and completions, sorted."""
        return "".join(sorted(set().union(*(piece.text for piece in self.pieces()))))

    @property
    def split(self) -> int:
        """The number of characters in the training examples."""
        return sum(len(piece.text) for piece in self.pieces() if piece.split == "train")

    def examples(self, split: str) -> tuple[Example, ...]:
        """Return the examples of a split, train or val."""
        return self.kept[: self.train] if split == "train" else self.kept[self.train :]

    def pieces(self) -> Iterator[Piece]:
        """Yield all prompts and completions in order, to train and check tokenizers."""
        for split in ("train", "val"):
            for example in self.examples(split):
                yield Piece(split, example.prompt, False)
                yield Piece(split, example.completion, True)


def read_pairs(
    paths: Sequence[Path],
    *,
    name: str,
    prompt_field: str,
    completion_field: str,
    format: str,
    train_fraction: float,
) -> Pairs:
    """Read examples from files of JSON Lines or JSON arrays.

    format: a value of `data.format`, but not text. Raises UserError if the files cannot be used. The message contains
    the file and, for a bad line, the line number.
    """
    files, kept = [], []
    for path in paths:
        file_size(path)  # raises UserError if the file cannot be read
        status = path.stat()
        reader = Reader(path, prompt_field, format)
        for where, value in reader.objects():
            prompt = get_text(value, prompt_field, where, setting="prompt_field")
            completion = get_text(value, completion_field, where, setting="completion_field")
            require(
                completion != "",
                f"{where}: the field {completion_field!r} is empty, so there is nothing to predict; remove the line",
            )
            kept.append(Example(prompt, completion, where))
        files.append(File(str(path), status.st_size, status.st_mtime_ns, reader.sha256))
    require(
        len(kept) > 1,
        f"{describe_files(paths)}: found {'only one example' if kept else 'no examples'}; at least two are required, "
        "one for training and one for validation",
    )
    train = min(int(train_fraction * len(kept)), len(kept) - 1)
    require(
        train > 0,
        f"data.train_fraction={train_fraction} leaves none of the {len(kept):,} examples for training; choose a larger "
        "fraction",
    )
    return Pairs(name, tuple(files), train, tuple(kept))


def crop_bounds(bounds: Bounds, block_size: int) -> Bounds:
    """Crop examples to at most block_size inputs and at least one target.

    bounds: the bounds of M examples, (M, 3); the result has the same shape. The prompt of a longer example is truncated
    from the left, but at least its last token is kept. If the example is still too long, its completion is truncated
    from the right.
    """
    begin, first, end = bounds.T
    prompt = np.maximum(1, block_size + 1 - (end - first))  # the number of its tokens that fit
    begin = np.maximum(begin, first - prompt)
    return np.stack([begin, first, np.minimum(end, begin + block_size + 1)], axis=1)


def row_length(bounds: Mapping[str, Bounds], block_size: int) -> int:
    """Return the row length (T) for all splits.

    The row length is block_size or, if all examples are shorter, the length of the longest example. If examples are
    longer than block_size, a warning is logged.
    """
    begin, first, end = np.concatenate([*bounds.values()]).T
    inputs, targets = end - begin - 1, end - first
    long, cut = int((inputs > block_size).sum()), int((targets > block_size).sum())
    if long:
        log.warning(
            "%s of %s examples are longer than data.block_size=%d: their prompts are truncated from the left%s",
            f"{long:,}",
            f"{len(inputs):,}",
            block_size,
            f", and {cut:,} of their completions from the right" if cut else "",
        )
    return int(min(block_size, inputs.max()))
