"""The attention of a model's heads, and what kind of head each one is."""

from __future__ import annotations

import torch
from torch import Tensor

from bigramlm.look.subject import Subject

# The probe of the heads: random tokens, repeated once. A row has at most twice so many tokens.
_MAX_HALF = 64
_ROWS = 8

KINDS = ("previous token", "first token", "same token", "induction")
"""The kinds of head, by what a position attends to.

They are the previous token; the first token, on which heads rest that have nothing to attend to (Xiao et al. 2023,
"Efficient Streaming Language Models with Attention Sinks"); the earlier occurrence of the same token; and the token
after that occurrence (Olsson et al. 2022, "In-context Learning and Induction Heads").
"""

NAMED_ABOVE = 0.3
"""The lowest score that names the kind of a head: far above the score of a head that attends to all tokens alike, 1/T
on average."""


def attention(subject: Subject, idx: Tensor) -> list[Tensor]:
    """Return the attention weights (B, H, T, T) of each layer.

    idx: token ids (B, T).
    """
    with torch.inference_mode():
        return [weights.float().cpu() for weights in subject.model.attention(idx.to(subject.device.torch))]


def scores(subject: Subject, seed: int = 0) -> list[Tensor]:
    """Measure on repeated random tokens how much each head attends as each kind does.

    Returns one tensor (H, 4) per layer: the mean attention, in the order of KINDS, over the positions of the
    repetition. The list is empty if the model has no attention, or has room for fewer than four tokens.
    """
    V = subject.model.vocab_size
    half = min(_MAX_HALF, subject.model.block_size // 2, V)
    if half < 2:
        return []
    generator = torch.Generator().manual_seed(seed)
    # Without a token twice, so that each has one earlier occurrence.
    part = torch.stack([torch.randperm(V, generator=generator)[:half] for _ in range(_ROWS)])
    return [_scores(weights, half) for weights in attention(subject, torch.cat((part, part), dim=1))]


def _scores(weights: Tensor, half: int) -> Tensor:
    # weights: (B, H, 2 * half, 2 * half). The first token of the repetition has no earlier successor of its own.
    at = torch.arange(half + 1, 2 * half)
    targets = (at - 1, torch.zeros_like(at), at - half, at - half + 1)
    return torch.stack([weights[:, :, at, target].mean(dim=(0, 2)) for target in targets], dim=1)


def kind_of(scores: Tensor) -> str:
    """Return the kind of a head, or "mixed" if no score is above NAMED_ABOVE.

    scores: those of the kinds, (4,).
    """
    best = int(scores.argmax())
    return KINDS[best] if scores[best] >= NAMED_ABOVE else "mixed"
