"""Training batches, and the blocks that evaluation covers a split with."""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bigramlm.data.pairs import Bounds, fitted

IGNORED = -100
"""The target where nothing is to be predicted: what `torch.nn.functional.cross_entropy` leaves out."""

# How many steps' offsets are drawn with one call. Part of what a seed means: another number gives other batches.
_DRAWN_TOGETHER = 1024
# How many tokens are gathered with one call, at least one batch.
GATHERED_TOKENS = 1 << 16


class Stream:
    """A split that is one stream of tokens, of which rows are random stretches.

    A row is T + 1 tokens: the first T are inputs, the last T targets. Rows may overlap and repeat; there are no epochs.
    """

    masked = False
    """True if there are targets that do not count."""

    def __init__(self, tokens: Tensor, *, block_size: int) -> None:
        """tokens: (N,) ids, N above block_size."""
        self.tokens = tokens
        self.block_size = block_size

    @property
    def n_tokens(self) -> int:
        """The number of tokens in the split."""
        return len(self.tokens)

    @property
    def n_rows(self) -> int:
        """The number of rows that cover the split."""
        return -(-(len(self.tokens) - 1) // self.block_size)

    def draw(self, seed: int, number: int, shape: tuple[int, int]) -> NDArray[np.int64]:
        """Return the positions at which the rows of draw `number` start."""
        rng = np.random.default_rng((seed, number))
        return rng.integers(0, len(self.tokens) - self.block_size, size=shape)

    def rows(self, at: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of the rows that start at these positions (...), each (..., T)."""
        windows = to_device(self.tokens.unfold(0, self.block_size + 1, 1)[at], device).long()  # (..., T + 1)
        return windows[..., :-1].contiguous(), windows[..., 1:].contiguous()

    def blocks(self, *, limit: int | None) -> list[tuple[Tensor, Tensor]]:
        """Return the blocks that an evaluation covers the split with: see the function `blocks`."""
        return blocks(self.tokens, block_size=self.block_size, limit=limit)


class Examples:
    """A split that is examples of prompt and completion: each is a row by itself, from position 0, padded to T.

    Targets of a prompt and of padding are IGNORED. In training each comes once in an epoch, in an order that is a pure
    function of (seed, epoch).
    """

    masked = True

    def __init__(self, tokens: Tensor, bounds: Bounds, *, block_size: int) -> None:
        """tokens: (N,) ids of all examples; bounds: where they are in it."""
        self.tokens = tokens
        self.block_size = block_size
        self.n_tokens = int((bounds[:, 2] - bounds[:, 1]).sum())  # of what is cut off too: its characters count
        self.n_rows = len(bounds)
        self._bounds = torch.from_numpy(fitted(bounds, block_size)).to(tokens.device)

    def draw(self, seed: int, number: int, shape: tuple[int, int]) -> NDArray[np.int64]:
        """Return the examples that the rows of draw `number` are."""
        n = self.n_rows
        first, last = number * shape[0] * shape[1], (number + 1) * shape[0] * shape[1]
        epochs = [np.random.default_rng((seed, epoch)).permutation(n) for epoch in range(first // n, -(-last // n))]
        return np.concatenate(epochs)[first % n :][: last - first].reshape(shape)

    def rows(self, at: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of these examples (...), each (..., T)."""
        begin, first, end = self._bounds[at][..., None, :].unbind(-1)  # (..., 1) each
        place = begin + torch.arange(self.block_size + 1, device=at.device)  # (..., T + 1)
        ids = self.tokens[place.clamp(max=len(self.tokens) - 1)].long()
        x = torch.where(place < end, ids, 0)[..., :-1].contiguous()
        y = torch.where((first <= place) & (place < end), ids, IGNORED)[..., 1:].contiguous()
        return to_device(x, device), to_device(y, device)

    def blocks(self, *, limit: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the examples in order, (M, T) each; with a limit that many, spread evenly, always the same ones."""
        n = self.n_rows
        at = torch.arange(n if limit is None else min(limit, n), device=self.tokens.device)
        if len(at) < n:
            at = at * (n - 1) // max(len(at) - 1, 1)
        for some in at.split(max(1, GATHERED_TOKENS // self.block_size)):
            yield self.rows(some, self.tokens.device)


Split = Stream | Examples


class Batches:
    """The training batches: rows of a split, as it draws them.

    Batch n is a pure function of (seed, n), in whatever order they are asked for. For speed the rows of many batches
    are drawn with one call, and a group of batches is gathered with one.
    """

    def __init__(self, split: Split, *, batch_size: int, seed: int, device: torch.device | None = None) -> None:
        """device: where batches are wanted, if not where the tokens are."""
        self._split = split
        self._device = device or split.tokens.device
        self._batch_size = batch_size
        self._seed = seed
        self._group = max(1, min(_DRAWN_TOGETHER, GATHERED_TOKENS // (batch_size * split.block_size)))
        self._starts = torch.empty((0, batch_size), dtype=torch.int64)
        self._drawn = -1
        # The group at hand: its first step, and the inputs and targets of each of its steps.
        self._first = 0
        self._x: tuple[Tensor, ...] = ()
        self._y: tuple[Tensor, ...] = ()

    @property
    def block_size(self) -> int:
        """Tokens in a row (T)."""
        return self._split.block_size

    @property
    def tokens_per_batch(self) -> int:
        """The tokens that are computed for a batch (B * T), padding included."""
        return self._batch_size * self._split.block_size

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of a step, both (B, T)."""
        if not 0 <= step - self._first < len(self._x):
            self._gather(step)
        return self._x[step - self._first], self._y[step - self._first]

    def _gather(self, step: int) -> None:
        draw, row = divmod(step, _DRAWN_TOGETHER)
        if draw != self._drawn:
            drawn = self._split.draw(self._seed, draw, (_DRAWN_TOGETHER, self._batch_size))
            self._starts = to_device(torch.from_numpy(drawn), self._split.tokens.device)
            self._drawn = draw
        row -= row % self._group  # groups begin anew with each draw, whose last may be shorter
        x, y = self._split.rows(self._starts[row : row + self._group], self._device)  # (G, B, T)
        self._first = draw * _DRAWN_TOGETHER + row
        self._x, self._y = x.unbind(0), y.unbind(0)


def to_device(drawn: Tensor, device: torch.device) -> Tensor:
    """Move a tensor to a device, unless it is there."""
    if drawn.device.type == device.type:
        return drawn
    if drawn.dtype == torch.uint16:  # PyTorch's unsigned types of more than a byte are new, and not known everywhere
        drawn = drawn.int()
    # A GPU takes what is drawn from pinned memory while the program goes on, which is far ahead of it and gathers
    # there: a batch lies ready before its step begins, and nothing waits.
    return drawn.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else drawn.to(device)


def on_device(ids: NDArray[Any], device: torch.device) -> Tensor:
    """Token ids (N,) as a tensor: on the device, or where they are mapped from a file, which is not loaded whole."""
    if isinstance(ids, np.memmap):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it may not be written to, which nobody does
            return torch.from_numpy(ids)
    return to_device(torch.from_numpy(ids), device)


def blocks(tokens: Tensor, *, block_size: int, limit: int | None = None) -> list[tuple[Tensor, Tensor]]:
    """Cut a split into (inputs, targets) in blocks that don't overlap: [(M, T) each], and the shorter rest.

    They are of the tokens' own type, and views where they can be: a split need not fit into memory. With a limit, at
    most that many whole blocks, spread evenly over the split, always the same ones.
    """
    n = (len(tokens) - 1) // block_size
    if limit is not None and limit < n:
        starts = torch.arange(limit, device=tokens.device) * (len(tokens) - 1 - block_size) // max(limit - 1, 1)
        windows = tokens.unfold(0, block_size + 1, 1)[starts]
        return [(windows[:, :-1], windows[:, 1:])]
    whole = n * block_size
    covered = [(tokens[:whole].view(n, block_size), tokens[1 : whole + 1].view(n, block_size))]
    if whole + 1 < len(tokens):
        covered.append((tokens[whole:-1][None], tokens[whole + 1 :][None]))
    return covered
