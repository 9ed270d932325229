"""The character tokenizer."""

import json
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from bigramlm.errors import UserError
from bigramlm.tokenizer.base import END_OF_TEXT


class CharTokenizer:
    """A token is a character: its id is its place in `chars`. With end_of_text there is one more, the last."""

    lossless = True

    def __init__(self, chars: str, *, end_of_text: bool = False) -> None:
        self.chars = chars
        self.end_of_text = len(chars) if end_of_text else None
        # Code point -> id, -1 where there is none: one look-up encodes a whole text at once.
        self._ids = np.full(max(map(ord, chars), default=0) + 2, -1, dtype=np.int32)
        self._ids[_code_points(chars)] = np.arange(len(chars), dtype=np.int32)
        self._spoken = [*chars, *([END_OF_TEXT] if end_of_text else [])]

    @property
    def vocab_size(self) -> int:
        return len(self._spoken)

    def encode(self, text: str) -> NDArray[np.int32]:
        """Encode the text as token ids, shape (N,). UserError names the characters that the vocabulary lacks."""
        ids: NDArray[np.int32] = self._ids[np.minimum(_code_points(text), len(self._ids) - 1)]
        if (ids < 0).any():
            missing = sorted(set(text) - set(self.chars))
            # ascii() shows what a terminal may not be able to.
            named = ", ".join(repr(c) if c.isprintable() else ascii(c) for c in missing[:10])
            more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
            has = f"; it has {self.chars!r}" if len(self.chars) <= 128 else ""
            raise UserError(f"the vocabulary of {len(self.chars)} characters lacks {named}{more}{has}")
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        return "".join([self._spoken[i] for i in ids])

    def to_json(self) -> str:
        about = {"name": "char", "chars": self.chars}
        return json.dumps(about if self.end_of_text is None else {**about, "end_of_text": True}, ensure_ascii=False)


def _code_points(text: str) -> NDArray[np.uint32]:
    # surrogatepass: a command line may bring bytes that are no text; they must get as far as the error message.
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
