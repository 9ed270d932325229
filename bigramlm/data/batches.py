"""Training batches, and the blocks that evaluation covers a split with."""

import numpy as np
import torch
from torch import Tensor

from bigramlm.errors import require

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

    def __init__(self, tokens: Tensor, *, block_size: int, batch_size: int, seed: int) -> None:
        """tokens: (N,) ids on the device that trains; N must be above block_size."""
        self._windows = tokens.unfold(0, block_size + 1, 1)  # (N - T, T + 1), a view
        self._batch_size = batch_size
        self._seed = seed
        # A whole number of gathers for each draw.
        self._group = max(1, min(_DRAWN_TOGETHER, _GATHERED_TOKENS // (batch_size * block_size)))
        self._offsets = np.empty((0, batch_size), dtype=np.int64)
        self._drawn = -1
        self._gathered = -1
        self._x: tuple[Tensor, ...] = ()
        self._y: tuple[Tensor, ...] = ()

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a step, both (B, T); the targets are the inputs one token on."""
        # Groups never straddle two draws: the last of each draw may be shorter.
        draw, row = divmod(step, _DRAWN_TOGETHER)
        group, place = divmod(row, self._group)
        key = draw * _DRAWN_TOGETHER + group
        if key != self._gathered:
            self._gather(draw, group)
            self._gathered = key
        return self._x[place], self._y[place]

    def _gather(self, draw: int, group: int) -> None:
        if draw != self._drawn:
            rng = np.random.default_rng((self._seed, draw))
            self._offsets = rng.integers(0, len(self._windows), size=(_DRAWN_TOGETHER, self._batch_size))
            self._drawn = draw
        rows = self._offsets[group * self._group : (group + 1) * self._group]
        windows = self._windows[torch.from_numpy(rows).to(self._windows.device)].long()  # (G, B, T + 1)
        self._x = windows[..., :-1].contiguous().unbind(0)
        self._y = windows[..., 1:].contiguous().unbind(0)


def blocks(tokens: Tensor, *, block_size: int, limit: int | None = None) -> list[tuple[Tensor, Tensor]]:
    """A split as (inputs, targets) in blocks that don't overlap: [(M, T) each], and the shorter rest of the split.

    With a limit, at most that many whole blocks, spread evenly over the split, always the same ones.
    """
    n = (len(tokens) - 1) // block_size
    if limit is not None and limit < n:
        starts = torch.arange(limit, device=tokens.device) * (len(tokens) - 1 - block_size) // max(limit - 1, 1)
        windows = tokens.unfold(0, block_size + 1, 1)[starts].long()
        return [(windows[:, :-1].contiguous(), windows[:, 1:].contiguous())]
    whole = n * block_size
    covered = [(tokens[:whole].long().view(n, block_size), tokens[1 : whole + 1].long().view(n, block_size))]
    if whole + 1 < len(tokens):
        covered.append((tokens[whole:-1].long()[None], tokens[whole + 1 :].long()[None]))
    return covered


def check_length(n_tokens: int, *, split: str, block_size: int, text: str) -> None:
    """UserError where a split is too short for one block and the target of its last token."""
    require(
        n_tokens > block_size,
        f"data.block_size={block_size}: the {split} split of {text} has only {n_tokens:,} of the {block_size + 1:,} "
        "tokens that a block and its targets take; lower data.block_size or use a longer text",
    )
