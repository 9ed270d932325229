"""The cache of a model with attention, so that the next token costs no more than itself."""

import torch
from torch import Tensor


class KeyValues:
    """The keys and values that one layer of attention has computed so far."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._kept: tuple[Tensor, Tensor] | None = None
        self._length = 0

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and all values so far, each (B, H, S, D), for new ones (B, H, T, D), which come last."""
        if self._kept is None:  # as large as it can get, so that nothing is copied when it grows
            rows, heads, _, width = keys.shape
            self._kept = (
                keys.new_empty(rows, heads, self._block_size, width),
                values.new_empty(rows, heads, self._block_size, width),
            )
        start, self._length = self._length, self._length + keys.shape[2]
        for kept, new in zip(self._kept, (keys, values), strict=True):
            kept[:, :, start : self._length] = new
        all_keys, all_values = (kept[:, :, : self._length] for kept in self._kept)
        return all_keys, all_values


class Cache:
    """The tokens that a model has seen, at most block_size of them, and each layer's keys and values for them."""

    def __init__(self, *, n_layer: int, block_size: int) -> None:
        self.layers = [KeyValues(block_size) for _ in range(n_layer)]
        self.tokens: Tensor | None = None

    @property
    def length(self) -> int:
        return 0 if self.tokens is None else self.tokens.shape[1]

    def see(self, idx: Tensor) -> Tensor:
        """Note the next tokens (B, T), and return all so far (B, S)."""
        self.tokens = idx if self.tokens is None else torch.cat((self.tokens, idx), dim=1)
        return self.tokens
