"""The table of pairs and the embeddings of a model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bigramlm.look.subject import Subject

MAX_ROWS = 128
"""The maximum number of tokens in the table of pairs: those that the text uses most."""
MAX_POINTS = 500
"""The maximum number of embeddings in the plane."""
_N_LACKING = 10


@dataclass(frozen=True)
class Lacking:
    """A pair of tokens whose probability costs the model much."""

    first: int
    second: int
    counted: float
    """The share of the second token after the first one in the text."""
    predicted: float


def use(train: Tensor, vocab_size: int) -> Tensor:
    """Count the occurrences (V,) of each token in the training tokens (N,)."""
    return torch.bincount(train.long().cpu(), minlength=vocab_size)


def predicted_pairs(subject: Subject, tokens: list[int]) -> Tensor:
    """Return the probability of each of M tokens after each of them alone, (M, M)."""
    shown = torch.tensor(tokens)
    rows = [subject.logits(part[:, None])[:, 0].softmax(-1).cpu()[:, shown] for part in shown.split(64)]
    return torch.cat(rows)


def counted_pairs(train: Tensor, tokens: list[int], vocab_size: int) -> Tensor:
    """Return the share of each token among those that follow each other one.

    train: the training tokens (N,). tokens: M tokens, for which the result is (M, M).
    """
    shown, train = torch.tensor(tokens), train.long().cpu()
    row = torch.full((vocab_size,), -1).index_copy_(0, shown, torch.arange(len(tokens)))
    first, second = row[train[:-1]], row[train[1:]]
    total = torch.bincount(first[first >= 0], minlength=len(tokens))
    is_shown = (first >= 0) & (second >= 0)
    pairs = torch.bincount(first[is_shown] * len(tokens) + second[is_shown], minlength=len(tokens) ** 2)
    return pairs.view(len(tokens), -1) / total[:, None].clamp(min=1)


def lacking(predicted: Tensor, counted: Tensor, used: Tensor, tokens: list[int]) -> list[Lacking]:
    """Return the pairs that cost the model the most nats compared with the counts.

    predicted, counted: the probabilities (M, M). used: the number of occurrences of each of the M tokens.
    """
    cost = used[:, None] * counted * (counted / predicted.clamp(min=1e-12)).clamp(min=1e-12).log()
    n = len(tokens)
    found = cost.flatten().topk(min(_N_LACKING, n * n))
    places = [(int(at) // n, int(at) % n) for at, value in zip(found.indices, found.values, strict=True) if value > 0]
    return [Lacking(tokens[a], tokens[b], float(counted[a, b]), float(predicted[a, b])) for a, b in places]


def plane(embeddings: Tensor, axes: Tensor | None = None) -> tuple[Tensor, Tensor, list[float]]:
    """Project embeddings (M, C) onto the two directions of the largest variance (PCA).

    axes: directions (2, C) to use instead. Returns the points (M, 2), the directions and their shares of the variance.
    """
    centred = embeddings.float() - embeddings.float().mean(0)
    if axes is None:
        _, _, directions = torch.linalg.svd(centred, full_matrices=False)
        axes = torch.zeros(2, centred.shape[1])
        axes[: min(2, len(directions))] = directions[:2]
        # The sign of a direction is arbitrary; a fixed one makes the picture the same on every machine.
        signs = axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
        axes = axes * torch.where(signs == 0, 1.0, signs)
    points = centred @ axes.T
    total = centred.square().sum().clamp(min=1e-12)
    return points, axes, (points.square().sum(0) / total).tolist()


def token_embeddings(subject: Subject, tokens: list[int]) -> Tensor | None:
    """Return the embeddings (M, C) of tokens, or None if the model has none."""
    module = subject.model.token_embedding()
    if module is None:
        return None
    weight = module.get_parameter("weight") if "weight" in dict(module.named_parameters(recurse=False)) else None
    if weight is None:  # an adapter wraps the embedding
        with torch.inference_mode():
            found: Tensor = module(torch.tensor(tokens, device=subject.device.torch))
            return found.float().cpu()
    return weight.detach()[torch.tensor(tokens, device=weight.device)].float().cpu()
