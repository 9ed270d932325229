"""The interface of tokenizers."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bigramlm.errors import UserError

# The name of the token that ends a document, as in GPT-2 (Radford et al. 2019, section 2.1).
END_OF_TEXT = "<|endoftext|>"


class Tokenizer(Protocol):
    """A converter between text and token ids 0 to vocab_size - 1."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def end_of_text(self) -> int | None:
        """The id of the end-of-text token, or None if the vocabulary has none.

        The token follows each document. `encode` never returns this id: if a text contains the name of the token, this
        name is encoded as plain text.
        """
        ...

    @property
    def lossless(self) -> bool:
        """True if decode(encode(text)) equals text for every text that can be encoded."""
        ...

    def encode(self, text: str) -> NDArray[np.int32]:
        """Encode a text as token ids (N,).

        Raises UserError if the vocabulary has no token for a part of the text. The message contains this part.
        """
        ...

    def decode(self, ids: Iterable[int]) -> str: ...

    def to_json(self) -> str:
        """Return the content of `tokenizer.json`, which restores this tokenizer."""
        ...


def start_tokens(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Return the tokens of a prompt, at least one, for a model to continue.

    A prompt is encoded. An empty prompt becomes a newline if a newline is a single token, and token 0 otherwise. (The
    tutorial starts from token 0, which is the newline in its text.) Raises UserError if the prompt cannot be encoded.
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

    Returns the position of the difference, and up to 20 characters from this position in the text and in the result.
    Returns None if the text and the result are equal, except for a space before the text: some tokenizers add one.
    """
    result = tokenizer.decode(tokenizer.encode(text).tolist())
    if result.removeprefix(" ") == text.removeprefix(" "):
        return None
    at = len(os.path.commonprefix([text, result]))  # noqa: RUF071 - the strings are not paths
    return at, text[at : at + 20], result[at : at + 20]


def lost_share(tokenizer: Tokenizer, text: str) -> float:
    """Return the share of a text's characters that its tokens do not contain.

    These characters are encoded as the unknown token, or as nothing. White space is not counted, nor a difference in
    case, because some tokenizers change both on purpose.
    """
    original, kept = _characters(tokenizer, text)
    return (original - kept).total() / max(1, original.total())


def added_share(tokenizer: Tokenizer, text: str) -> float:
    """Return the share of a decoded text's characters that the text lacks.

    The unknown token, white space and a difference in case do not count.
    """
    original, kept = _characters(tokenizer, text)
    return (kept - original).total() / max(1, kept.total())


def _characters(tokenizer: Tokenizer, text: str) -> tuple[Counter[str], Counter[str]]:
    # The characters of a text, and of the text that is decoded from its tokens.
    ids = tokenizer.encode(text)
    unknown = getattr(tokenizer, "unknown", None)
    result = tokenizer.decode((ids if unknown is None else ids[ids != unknown]).tolist())
    letters = [unicodedata.normalize("NFKD", part).casefold().split() for part in (text, result)]
    original, kept = (Counter("".join(words)) for words in letters)
    return original, kept
