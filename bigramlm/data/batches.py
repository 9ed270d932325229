"""The training batches and the evaluation blocks of a split."""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bigramlm.data.pairs import Bounds, crop_bounds

IGNORED = -100
"""The value of a target without a loss: the default `ignore_index` of `torch.nn.functional.cross_entropy`."""

# The number of steps whose rows are drawn in one call. A different number gives different batches for the same seed.
_STEPS_PER_DRAW = 1024
# The number of tokens gathered in one call, rounded to whole batches (at least one).
TOKENS_PER_GATHER = 1 << 16


class Stream:
    """A split as one stream of tokens, with rows at random positions.

    A row consists of T + 1 consecutive tokens: the first T are the inputs, the last T are the targets. Rows may overlap
    and repeat. There are no epochs.
    """

    masked = False
    """True if some targets are IGNORED, so that they have no loss."""

    def __init__(self, tokens: Tensor, *, block_size: int) -> None:
        """Store the token ids of a split.

        tokens: the ids, (N,) with N > block_size. block_size: the number of tokens in a row (T).
        """
        self.tokens = tokens
        self.block_size = block_size

    @property
    def n_tokens(self) -> int:
        """The number of tokens in the split."""
        return len(self.tokens)

    @property
    def n_rows(self) -> int:
        """The number of consecutive blocks that cover the split, including a shorter rest."""
        return -(-(len(self.tokens) - 1) // self.block_size)

    def draw(self, seed: int, number: int, shape: tuple[int, int]) -> NDArray[np.int64]:
        """Sample the start positions of rows, which depend only on (seed, number).

        number: the index of the call. shape: the shape of the result, (steps, batch size).
        """
        rng = np.random.default_rng((seed, number))
        return rng.integers(0, len(self.tokens) - self.block_size, size=shape)

    def rows(self, at: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the inputs and targets of the rows at the given start positions.

        at: the start positions, of any shape (...). Inputs and targets are int64, (..., T) each.
        """
        windows = to_device(self.tokens.unfold(0, self.block_size + 1, 1)[at], device).long()  # (..., T + 1)
        return windows[..., :-1].contiguous(), windows[..., 1:].contiguous()

    def blocks(self, *, limit: int | None) -> list[tuple[Tensor, Tensor]]:
        """Return the evaluation blocks of the split; see the function `blocks`."""
        return blocks(self.tokens, block_size=self.block_size, limit=limit)


class Examples:
    """A split of examples, with one example per row, padded to T tokens.

    An example is a prompt and its completion, and starts at position 0 of its row. Targets in the prompt and in the
    padding are IGNORED. Training uses each example once per epoch, in an order that depends only on (seed, epoch).
    """

    masked = True

    def __init__(self, tokens: Tensor, bounds: Bounds, *, block_size: int) -> None:
        """Store the token ids of all examples, and crop the examples to the block size.

        tokens: the ids of all examples, concatenated, (N,). bounds: for each of the M examples, the indices in `tokens`
        of its first token, its first target and its end (exclusive), (M, 3). block_size: the number of tokens in a row
        (T).
        """
        self.tokens = tokens
        self.block_size = block_size
        # Includes targets that are cut off, because the character counts of the corpus include their characters.
        self.n_tokens = int((bounds[:, 2] - bounds[:, 1]).sum())
        self.n_rows = len(bounds)
        self._bounds = torch.from_numpy(crop_bounds(bounds, block_size)).to(tokens.device)

    def draw(self, seed: int, number: int, shape: tuple[int, int]) -> NDArray[np.int64]:
        """Return the indices of the next examples in the shuffled epochs.

        number: the index of the call; each call continues where the previous one ends. shape: the shape of the result,
        (steps, batch size).
        """
        n = self.n_rows
        first, last = number * shape[0] * shape[1], (number + 1) * shape[0] * shape[1]
        epochs = [np.random.default_rng((seed, epoch)).permutation(n) for epoch in range(first // n, -(-last // n))]
        return np.concatenate(epochs)[first % n :][: last - first].reshape(shape)

    def rows(self, at: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the inputs and targets of the examples at the given indices.

        at: the indices, of any shape (...). Inputs and targets are int64, (..., T) each.
        """
        begin, first, end = self._bounds[at][..., None, :].unbind(-1)  # (..., 1) each
        position = begin + torch.arange(self.block_size + 1, device=at.device)  # (..., T + 1)
        ids = self.tokens[position.clamp(max=len(self.tokens) - 1)].long()
        x = torch.where(position < end, ids, 0)[..., :-1].contiguous()
        y = torch.where((first <= position) & (position < end), ids, IGNORED)[..., 1:].contiguous()
        return to_device(x, device), to_device(y, device)

    def blocks(self, *, limit: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the inputs and targets of the examples in order, in groups of (M, T) each.

        limit: the maximum number of examples. If the split has more examples, they are chosen at even distances, so the
        choice is always the same.
        """
        n = self.n_rows
        at = torch.arange(n if limit is None else min(limit, n), device=self.tokens.device)
        if len(at) < n:
            at = at * (n - 1) // max(len(at) - 1, 1)
        for indices in at.split(max(1, TOKENS_PER_GATHER // self.block_size)):
            yield self.rows(indices, self.tokens.device)


Split = Stream | Examples


class Batches:
    """The training batches of a split, indexed by step.

    The batch at step n depends only on (seed, n), regardless of the order of access. For speed, the rows of many
    batches are sampled in one call, and the tokens of a group of batches are gathered in one call.
    """

    def __init__(
        self, split: Split, *, batch_size: int, seed: int, device: torch.device | None = None, repeated: int = 0
    ) -> None:
        """Prepare to sample batches from a split.

        batch_size: the number of rows in a batch (B). device: the device of the batches; by default, the device of the
        split's tokens. repeated: the number of batches after which the first one follows again; 0 if none is repeated.
        """
        self._repeated = repeated
        self._split = split
        self._device = device or split.tokens.device
        self._batch_size = batch_size
        self._seed = seed
        self._group = max(1, min(_STEPS_PER_DRAW, TOKENS_PER_GATHER // (batch_size * split.block_size)))
        self._starts = torch.empty((0, batch_size), dtype=torch.int64)
        self._drawn = -1
        # The current group: its first step, and the inputs and targets of each of its steps.
        self._first = 0
        self._x: tuple[Tensor, ...] = ()
        self._y: tuple[Tensor, ...] = ()

    @property
    def block_size(self) -> int:
        """The number of tokens in a row (T)."""
        return self._split.block_size

    @property
    def tokens_per_batch(self) -> int:
        """The number of tokens in a batch (B * T), including padding."""
        return self._batch_size * self._split.block_size

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the inputs and targets at a step, (B, T) each."""
        step = step % self._repeated if self._repeated else step
        if not 0 <= step - self._first < len(self._x):
            self._gather(step)
        return self._x[step - self._first], self._y[step - self._first]

    def _gather(self, step: int) -> None:
        draw, row = divmod(step, _STEPS_PER_DRAW)
        if draw != self._drawn:
            drawn = self._split.draw(self._seed, draw, (_STEPS_PER_DRAW, self._batch_size))
            self._starts = to_device(torch.from_numpy(drawn), self._split.tokens.device)
            self._drawn = draw
        row -= row % self._group  # each draw starts a new group, so its last group may be shorter
        x, y = self._split.rows(self._starts[row : row + self._group], self._device)  # (G, B, T)
        self._first = draw * _STEPS_PER_DRAW + row
        self._x, self._y = x.unbind(0), y.unbind(0)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a tensor to a device, unless it is already there.

    A moved uint16 tensor becomes int32.
    """
    if tensor.device.type == device.type:
        return tensor
    if tensor.dtype == torch.uint16:  # not every PyTorch operation supports unsigned types wider than a byte
        tensor = tensor.int()
    # A GPU copies from pinned memory asynchronously. The CPU runs far ahead of the GPU, so a batch is on the GPU before
    # its step begins, and neither of them waits.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def on_device(ids: NDArray[Any], device: torch.device) -> Tensor:
    """Convert token ids (N,) to a tensor on a device.

    Ids that are memory-mapped from a file stay on the CPU, so that the whole file is not loaded into memory.
    """
    if isinstance(ids, np.memmap):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the array is not writable: the tensor is never written to
            return torch.from_numpy(ids)
    return to_device(torch.from_numpy(ids), device)


def blocks(tokens: Tensor, *, block_size: int, limit: int | None = None) -> list[tuple[Tensor, Tensor]]:
    """Cut a split into non-overlapping blocks of inputs and targets.

    tokens: the token ids of the split, (N,). block_size: the length of a block (T).

    The result is a list of (inputs, targets). Its first element contains the M whole blocks, (M, T) each. If R tokens
    remain after the whole blocks, a second element contains them, (1, R) each.

    limit: the maximum number of blocks. If there are more whole blocks, the list contains only `limit` whole blocks,
    spread evenly over the split, so the choice is always the same.

    Blocks keep the dtype of the tokens. Without a limit they are views of the tokens, because a copy of the split may
    not fit into memory.
    """
    n = (len(tokens) - 1) // block_size
    if limit is not None and limit < n:
        starts = torch.arange(limit, device=tokens.device) * (len(tokens) - 1 - block_size) // max(limit - 1, 1)
        windows = tokens.unfold(0, block_size + 1, 1)[starts]
        return [(windows[:, :-1], windows[:, 1:])]
    whole = n * block_size
    pairs = [(tokens[:whole].view(n, block_size), tokens[1 : whole + 1].view(n, block_size))]
    if whole + 1 < len(tokens):
        pairs.append((tokens[whole:-1][None], tokens[whole + 1 :][None]))
    return pairs
