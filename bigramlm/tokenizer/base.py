"""What the rest of the program asks of a tokenizer."""

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Tokenizer(Protocol):
    """Turns text into token ids 0 .. vocab_size - 1 and back."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> NDArray[np.int32]:
        """The token ids of the text, shape (N,). UserError names what the tokenizer has no token for."""
        ...

    def decode(self, ids: Iterable[int]) -> str: ...

    def to_dict(self) -> dict[str, Any]:
        """All that it takes to make this tokenizer again, as plain JSON."""
        ...
