"""The interface of tokenizers."""

import os
from collections.abc import Iterable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bigramlm.errors import UserError

# What the end of a document is called, as GPT-2 has it (Radford et al. 2019, section 2.1).
END_OF_TEXT = "<|endoftext|>"


class Tokenizer(Protocol):
    """Turns text into token ids 0 .. vocab_size - 1 and back."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def end_of_text(self) -> int | None:
        """The token between documents; None where there is none. No text is encoded as it, not even its name."""
        ...

    @property
    def lossless(self) -> bool:
        """True if decode(encode(text)) is the text, for all that it encodes."""
        ...

    def encode(self, text: str) -> NDArray[np.int32]:
        """Encode the text as token ids, shape (N,). UserError names what the tokenizer has no token for."""
        ...

    def decode(self, ids: Iterable[int]) -> str: ...

    def to_json(self) -> str:
        """All that it takes to make this tokenizer again: what `tokenizer.json` holds."""
        ...


def start_tokens(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Return the tokens that a text continues from: the prompt's; without one a newline, or else token 0.

    In the tutorial's text the newline is token 0, which it starts from. UserError as of `encode`.
    """
    if prompt:
        ids: list[int] = tokenizer.encode(prompt).tolist()
        return ids or [0]
    try:
        newline: list[int] = tokenizer.encode("\n").tolist()
    except UserError:
        newline = []
    return newline if len(newline) == 1 else [0]


def not_given_back(tokenizer: Tokenizer, text: str) -> tuple[int, str, str] | None:
    """Find where decode(encode(text)) first differs from the text: position, original, result; None if nowhere."""
    back = tokenizer.decode(tokenizer.encode(text).tolist())
    if back == text:
        return None
    at = len(os.path.commonprefix([text, back]))  # noqa: RUF071 - they are no paths
    return at, text[at : at + 20], back[at : at + 20]
