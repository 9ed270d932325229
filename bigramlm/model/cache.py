"""The key-value cache for generation.

The attention layers store the keys and values of earlier tokens in the cache, so that only those of the new tokens are
computed.
"""

import torch
from torch import Tensor


class KeyValues:
    """The cached keys and values of one attention layer, for all tokens so far."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._buffers: tuple[Tensor, Tensor] | None = None
        self._length = 0

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append the keys and values of new tokens, and return those of all tokens.

        keys, values: (B, H, T, D) for batch size B, H heads, T new tokens and head dimension D. Returns the keys and
        the values of all S tokens so far, (B, H, S, D) each.
        """
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
    """The tokens so far, and the keys and values of every layer.

    The cache has room for block_size tokens.
    """

    def __init__(self, *, n_layer: int, block_size: int) -> None:
        self.layers = [KeyValues(block_size) for _ in range(n_layer)]
        self.tokens: Tensor | None = None

    @property
    def length(self) -> int:
        return 0 if self.tokens is None else self.tokens.shape[1]

    def append(self, idx: Tensor) -> Tensor:
        """Append the T new tokens (B, T), and return all S tokens so far (B, S)."""
        self.tokens = idx if self.tokens is None else torch.cat((self.tokens, idx), dim=1)
        return self.tokens
