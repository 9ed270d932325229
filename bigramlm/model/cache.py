"""The key-value cache, so that generation does not recompute earlier tokens."""

import torch
from torch import Tensor


class KeyValues:
    """The keys and values of one attention layer for all tokens so far."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._buffers: tuple[Tensor, Tensor] | None = None
        self._length = 0

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values (B, H, T, D), and return all so far (B, H, S, D)."""
        if self._buffers is None:  # allocated at full size, so that nothing is copied when the cache grows
            rows, heads, _, width = keys.shape
            self._buffers = (
                keys.new_empty(rows, heads, self._block_size, width),
                values.new_empty(rows, heads, self._block_size, width),
            )
        start, self._length = self._length, self._length + keys.shape[2]
        for buffer, new in zip(self._buffers, (keys, values), strict=True):
            buffer[:, :, start : self._length] = new
        all_keys, all_values = (buffer[:, :, : self._length] for buffer in self._buffers)
        return all_keys, all_values


class Cache:
    """The tokens so far, at most block_size, and each layer's keys and values."""

    def __init__(self, *, n_layer: int, block_size: int) -> None:
        self.layers = [KeyValues(block_size) for _ in range(n_layer)]
        self.tokens: Tensor | None = None

    @property
    def length(self) -> int:
        return 0 if self.tokens is None else self.tokens.shape[1]

    def append(self, idx: Tensor) -> Tensor:
        """Append the next tokens (B, T), and return all tokens so far (B, S)."""
        self.tokens = idx if self.tokens is None else torch.cat((self.tokens, idx), dim=1)
        return self.tokens
