"""The surprise of a model at each token of a text: the negative log-probability."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bigramlm.data.batches import IGNORED, to_device
from bigramlm.look.subject import Subject
from bigramlm.model.ngram import Ngram
from bigramlm.trainer.evaluate import LOGITS_AT_ONCE

N_LIKELIEST = 5
"""The number of likeliest tokens that are kept for each position."""

NGRAM_ORDER = 5
# Counting takes about a second per million tokens.
_MAX_COUNTED = 3_000_000


@dataclass(frozen=True)
class Passage:
    """The predictions for the N tokens of a text.

    The first token has no prediction: its surprise is NaN, and its rank is 0. The context begins anew at each of the
    positions `starts`, because a model sees at most block_size tokens.
    """

    ids: list[int]
    starts: list[int]
    surprise: Tensor
    """In nats, (N,)."""
    rank: Tensor
    """1 for the likeliest token, (N,)."""
    likeliest: Tensor
    """The ids of the likeliest tokens, (N, N_LIKELIEST)."""
    probabilities: Tensor
    """Their probabilities, (N, N_LIKELIEST)."""


def token_losses(subject: Subject, blocks: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Compute the cross-entropy in nats of every target (N,), as an evaluation does.

    blocks: pairs of inputs and targets, (rows, T) each. Ignored targets have the loss 0 and are left out.
    """
    parts, device = [], subject.device.torch
    for inputs, targets in blocks:
        rows = max(1, LOGITS_AT_ONCE[device.type] // (subject.model.vocab_size * inputs.shape[1]))
        for x, y in zip(inputs.split(rows), targets.split(rows), strict=True):
            y = to_device(y, device).long().flatten()
            logits = subject.logits(to_device(x, device).long())
            losses = F.cross_entropy(logits.view(len(y), -1), y, reduction="none")
            parts.append(losses[y != IGNORED].cpu())
    return torch.cat(parts)


def windows(ids: list[int], block_size: int) -> list[tuple[Tensor, Tensor]]:
    """Cut a text into inputs and targets of at most block_size tokens, (1, T) each.

    Each token but the first is a target once, as in the blocks of an evaluation.
    """
    tokens = torch.tensor(ids)
    pairs = zip(tokens[:-1].split(block_size), tokens[1:].split(block_size), strict=True)
    return [(x[None], y[None]) for x, y in pairs if len(x)]


def predict(subject: Subject, ids: list[int]) -> Passage:
    """Compute the predictions of the model for the tokens of a text, at least one."""
    block, k = subject.model.block_size, min(N_LIKELIEST, subject.model.vocab_size)
    surprise, rank = [torch.full((1,), torch.nan)], [torch.zeros(1, dtype=torch.int64)]
    likeliest, probabilities = [torch.zeros(1, k, dtype=torch.int64)], [torch.zeros(1, k)]
    for x, y in windows(ids, block):
        log_p = subject.logits(x)[0].log_softmax(-1).cpu()  # (T, V)
        own = log_p.gather(1, y[0][:, None])
        top = log_p.topk(k, dim=1)
        surprise.append(-own[:, 0])
        rank.append(1 + (log_p > own).sum(1))
        likeliest.append(top.indices)
        probabilities.append(top.values.exp())
    starts = list(range(0, max(1, len(ids) - 1), block))
    return Passage(ids, starts, *(torch.cat(parts) for parts in (surprise, rank, likeliest, probabilities)))


def ngram_surprise(subject: Subject, train: Tensor, ids: list[int]) -> Tensor | None:
    """Compute the surprise of an n-gram model of the training text at each token.

    Returns nats, (N,). train: the token ids of the training text, (M,). It is None if the training text is too long to
    be counted in a moment.
    """
    if len(train) > _MAX_COUNTED:
        return None
    ngram = Ngram(vocab_size=subject.model.vocab_size, block_size=subject.model.block_size, order=NGRAM_ORDER)
    ngram.fit_counts(train.cpu())
    parts = [torch.full((1,), torch.nan)]
    for x, y in windows(ids, subject.model.block_size):
        parts.append(-ngram.log_probabilities(x)[0].gather(1, y[0][:, None])[:, 0])
    return torch.cat(parts)
