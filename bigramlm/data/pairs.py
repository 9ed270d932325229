"""Examples of prompt and completion: their files, and their bounds in the tokens."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bigramlm.data.compression import is_jsonl
from bigramlm.data.text import File, Piece, Reader, describe_files, file_size, get_text, sha256_of
from bigramlm.errors import require

log = logging.getLogger(__name__)

Bounds = NDArray[np.int64]
"""The bounds of M examples, (M, 3): the index of the first token, of the first target, and of the end (exclusive)."""


class Example(NamedTuple):
    """A prompt and its completion."""

    prompt: str
    completion: str
    where: str
    """The file and line of the example, for error messages."""


@dataclass(frozen=True)
class Pairs:
    """Examples in memory, with their files and the point of the train/val split."""

    name: str
    files: tuple[File, ...]
    train: int
    """The number of training examples: the first ones; the others are for validation."""
    kept: tuple[Example, ...] = field(repr=False)

    @property
    def sha256(self) -> str:
        """The SHA-256 of the file, or of the hashes of several files."""
        return sha256_of(self.files)

    @property
    def documents(self) -> int:
        """The number of examples: each is a document."""
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
    paths: Sequence[Path], *, name: str, prompt_field: str, completion_field: str, train_fraction: float
) -> Pairs:
    """Read examples from JSONL files.

    Raises UserError, with the file and line, if the files cannot be used.
    """
    files, kept = [], []
    for path in paths:
        require(
            is_jsonl(path),
            f'{path}: pairs must be in *.jsonl, one object per line, such as {{"{prompt_field}": "2 + 3 =", '
            f'"{completion_field}": " 5"}}; use data=text for plain text',
        )
        file_size(path)  # raises UserError if the file cannot be read
        status = path.stat()
        reader = Reader(path, prompt_field)
        for where, value in reader.objects():
            prompt = get_text(value, prompt_field, where, setting="prompt_field")
            completion = get_text(value, completion_field, where, setting="completion_field")
            require(
                completion != "",
                f"{where}: the field {completion_field!r} is empty, so there is nothing to learn; remove the line",
            )
            kept.append(Example(prompt, completion, where))
        files.append(File(str(path), status.st_size, status.st_mtime_ns, reader.sha256))
    require(
        len(kept) > 1,
        f"{describe_files(paths)}: contains {'one example' if kept else 'no examples'}; at least two are required, one "
        "to train on and one to validate on",
    )
    train = min(int(train_fraction * len(kept)), len(kept) - 1)
    require(
        train > 0,
        f"data.train_fraction={train_fraction}: leaves none of the {len(kept):,} examples for training; increase it",
    )
    return Pairs(name, tuple(files), train, tuple(kept))


def crop_bounds(bounds: Bounds, block_size: int) -> Bounds:
    """Crop examples, (M, 3), to at most block_size inputs and at least one target.

    A prompt loses its beginning, up to its last token; if that is not enough, the completion loses its end.
    """
    begin, first, end = bounds.T
    prompt = np.maximum(1, block_size + 1 - (end - first))  # the number of its tokens that fit
    begin = np.maximum(begin, first - prompt)
    return np.stack([begin, first, np.minimum(end, begin + block_size + 1)], axis=1)


def row_length(bounds: Mapping[str, Bounds], block_size: int) -> int:
    """Return the row length (T) of all splits.

    The row length is block_size, or less if every example is shorter. Warns about examples that are longer.
    """
    begin, first, end = np.concatenate([*bounds.values()]).T
    inputs, targets = end - begin - 1, end - first
    long, cut = int((inputs > block_size).sum()), int((targets > block_size).sum())
    if long:
        log.warning(
            "%s of %s examples are longer than data.block_size=%d: their prompts are cut at the beginning%s",
            *(f"{long:,}", f"{len(inputs):,}", block_size),
            f", and {cut:,} of their completions at the end" if cut else "",
        )
    return int(min(block_size, inputs.max()))
