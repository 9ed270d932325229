"""The interface of tokenizers."""

import os
from collections.abc import Iterable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bigramlm.errors import UserError

# The name of the token that ends a document, as in GPT-2 (Radford et al. 2019, section 2.1).
END_OF_TEXT = "<|endoftext|>"


class Tokenizer(Protocol):
    """A converter of text into token ids 0 .. vocab_size - 1 and back."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def end_of_text(self) -> int | None:
        """The id of the token between documents; None if there is none.

        No text is encoded as this token, not even the token's name.
        """
        ...

    @property
    def lossless(self) -> bool:
        """True if decode(encode(text)) equals text for every text that can be encoded."""
        ...

    def encode(self, text: str) -> NDArray[np.int32]:
        """Encode a text as token ids (N,).

        Raises UserError if parts of the text have no token, and names these parts.
        """
        ...

    def decode(self, ids: Iterable[int]) -> str: ...

    def to_json(self) -> str:
        """Return the content of `tokenizer.json`, which restores this tokenizer."""
        ...


def start_tokens(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Return the tokens from which a model continues: those of the prompt, if any.

    Without a prompt, return the newline if it is a single token, else token 0. In the tutorial's text the newline is
    token 0, from which the tutorial starts. Raises UserError if the prompt cannot be encoded.
    """
    if prompt:
        ids: list[int] = tokenizer.encode(prompt).tolist()
        return ids or [0]
    try:
        newline: list[int] = tokenizer.encode("\n").tolist()
    except UserError:
        newline = []
    return newline if len(newline) == 1 else [0]


def round_trip_difference(tokenizer: Tokenizer, text: str) -> tuple[int, str, str] | None:
    """Find the first difference between a text and decode(encode(text)).

    Returns the position and up to 20 characters from there on, of the text and of the result; None if they are equal.
    """
    result = tokenizer.decode(tokenizer.encode(text).tolist())
    if result == text:
        return None
    at = len(os.path.commonprefix([text, result]))  # noqa: RUF071 - the strings are not paths
    return at, text[at : at + 20], result[at : at + 20]
