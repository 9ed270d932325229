"""Training batches, and the blocks that evaluation covers a split with."""

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# How many steps' offsets are drawn with one call. Part of what a seed means: another number gives other batches.
_DRAWN_TOGETHER = 1024
# How many tokens are gathered with one call, at least one batch.
_GATHERED_TOKENS = 1 << 16


class Batches:
    """The training batches: random stretches of T + 1 tokens, of which the first T are inputs, the last T targets.

    They may overlap and repeat; there are no epochs. Batch n is a pure function of (seed, n), in whatever order they
    are asked for. For speed the starts of many batches are drawn with one call, and a group of batches is gathered with
    one.
    """

    def __init__(
        self, tokens: Tensor, *, block_size: int, batch_size: int, seed: int, device: torch.device | None = None
    ) -> None:
        """tokens: (N,) ids, N above block_size; device: where batches are wanted, if not where the tokens are."""
        self._device = device or tokens.device
        self._windows = tokens.unfold(0, block_size + 1, 1)  # (N - T, T + 1), a view
        self._batch_size = batch_size
        self._seed = seed
        self._group = max(1, min(_DRAWN_TOGETHER, _GATHERED_TOKENS // (batch_size * block_size)))
        self._starts = torch.empty((0, batch_size), dtype=torch.int64)
        self._drawn = -1
        # The group at hand: its first step, and the inputs and targets of each of its steps.
        self._first = 0
        self._x: tuple[Tensor, ...] = ()
        self._y: tuple[Tensor, ...] = ()

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a step, both (B, T); the targets are the inputs one token on."""
        if not 0 <= step - self._first < len(self._x):
            self._gather(step)
        return self._x[step - self._first], self._y[step - self._first]

    def _gather(self, step: int) -> None:
        draw, row = divmod(step, _DRAWN_TOGETHER)
        if draw != self._drawn:
            rng = np.random.default_rng((self._seed, draw))
            starts = rng.integers(0, len(self._windows), size=(_DRAWN_TOGETHER, self._batch_size))
            self._starts = sent(torch.from_numpy(starts), self._windows.device)
            self._drawn = draw
        row -= row % self._group  # groups begin anew with each draw, whose last may be shorter
        windows = sent(self._windows[self._starts[row : row + self._group]], self._device).long()  # (G, B, T + 1)
        self._first = draw * _DRAWN_TOGETHER + row
        self._x = windows[..., :-1].contiguous().unbind(0)
        self._y = windows[..., 1:].contiguous().unbind(0)


def sent(drawn: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device, if it is not there."""
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
    return sent(torch.from_numpy(ids), device)


def blocks(tokens: Tensor, *, block_size: int, limit: int | None = None) -> list[tuple[Tensor, Tensor]]:
    """A split as (inputs, targets) in blocks that don't overlap: [(M, T) each], and the shorter rest of the split.

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
