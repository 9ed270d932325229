"""The character tokenizer."""

import json
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from bigramlm.errors import UserError
from bigramlm.tokenizer.base import END_OF_TEXT


class CharTokenizer:
    """A tokenizer whose tokens are the characters in `chars`.

    The id of a token is the index of its character in `chars`. end_of_text: if True, there is also an end-of-text
    token, with the last id.
    """

    lossless = True

    def __init__(self, chars: str, *, end_of_text: bool = False) -> None:
        self.chars = chars
        self.end_of_text = len(chars) if end_of_text else None
        # Maps a code point to its id, or to -1 if there is none: one look-up encodes a whole text.
        self._ids = np.full(max(map(ord, chars), default=0) + 2, -1, dtype=np.int32)
        self._ids[_code_points(chars)] = np.arange(len(chars), dtype=np.int32)
        self._tokens = [*chars, *([END_OF_TEXT] if end_of_text else [])]

    @property
    def vocab_size(self) -> int:
        return len(self._tokens)

    def encode(self, text: str) -> NDArray[np.int32]:
        """Encode a text as token ids (N,).

        Raises UserError if the vocabulary lacks characters of the text. The message contains up to 10 of them.
        """
        ids: NDArray[np.int32] = self._ids[np.minimum(_code_points(text), len(self._ids) - 1)]
        if (ids < 0).any():
            missing = sorted(set(text) - set(self.chars))
            # A terminal may not be able to show unprintable characters.
            named = ", ".join(repr(c) if c.isprintable() else ascii(c) for c in missing[:10])
            more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
            available = f"; it contains {self.chars!r}" if len(self.chars) <= 128 else ""
            raise UserError(f"the vocabulary of {len(self.chars)} characters lacks {named}{more}{available}")
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        return "".join([self._tokens[i] for i in ids])

    def to_json(self) -> str:
        about = {"name": "char", "chars": self.chars}
        return json.dumps(about if self.end_of_text is None else {**about, "end_of_text": True}, ensure_ascii=False)


def _code_points(text: str) -> NDArray[np.uint32]:
    # A command line may contain bytes that are not text: with surrogatepass these reach the error message.
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
