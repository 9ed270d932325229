"""The character tokenizer."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigramlm.errors import UserError


class CharTokenizer:
    """A token is a character: its id is its place in `chars`."""

    def __init__(self, chars: str) -> None:
        self.chars = chars
        self._code_points = _code_points(chars)
        # Code point -> id, -1 where there is none: one look-up encodes a whole text at once.
        self._ids = np.full(max(map(ord, chars), default=0) + 2, -1, dtype=np.int32)
        self._ids[self._code_points] = np.arange(len(chars), dtype=np.int32)

    @property
    def vocab_size(self) -> int:
        return len(self.chars)

    def encode(self, text: str) -> NDArray[np.int32]:
        """The token ids of the text, shape (N,). UserError names the characters that the vocabulary lacks."""
        ids: NDArray[np.int32] = self._ids[np.minimum(_code_points(text), len(self._ids) - 1)]
        if (ids < 0).any():
            missing = sorted(set(text) - set(self.chars))
            # ascii() shows what a terminal may not be able to.
            named = ", ".join(repr(c) if c.isprintable() else ascii(c) for c in missing[:10])
            more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
            has = f"; it has {self.chars!r}" if self.vocab_size <= 128 else ""
            raise UserError(f"the vocabulary of {self.vocab_size} characters lacks {named}{more}{has}")
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        found = self._code_points[np.fromiter(ids, dtype=np.int64)]
        return found.tobytes().decode("utf-32-le", "surrogatepass")

    def to_dict(self) -> dict[str, Any]:
        return {"name": "char", "chars": self.chars}


def _code_points(text: str) -> NDArray[np.uint32]:
    # surrogatepass: a command line may bring bytes that are no text; they must get as far as the error message.
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
