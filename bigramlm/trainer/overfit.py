"""The verdict on a run that repeats its first batches."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence

import torch
from torch import Tensor, nn

from bigramlm.data.batches import IGNORED, Batches
from bigramlm.device.device import Device
from bigramlm.model.base import LanguageModel

# The difference from the least possible loss, in nats per token, up to which a batch counts as learned by heart.
_CLOSE = 0.05


def verdict(model: LanguageModel, batches: Batches, n: int, device: Device, losses: Sequence[float]) -> str:
    """Say whether a model has learned the first n batches by heart.

    If it has not, the sentence says why. losses: the batch losses that were recorded during training, in order.
    """
    found = [batches[step] for step in range(n)]
    loss = _loss(model, found, device)
    least, least_of_one = (_least_loss(found, whole=whole) for whole in (True, False))
    what = "the repeated batch" if n == 1 else f"the {n} repeated batches"
    if loss <= least + _CLOSE:
        rest = f"; {least:.4f} is the minimum, because equal beginnings continue differently" if least > 1e-4 else ""
        return f"{what}: learned by heart, loss {loss:.4f}{rest}"
    result = f"{what}: not learned by heart, loss {loss:.4f}, where {least:.4f} is possible"
    if abs(loss - least_of_one) <= _CLOSE:
        return (
            f"{result}; from the current token alone, no model gets below {least_of_one:.4f}, and this one uses no more"
        )
    if len(losses) > 3 and losses[-1] < 0.95 * losses[len(losses) * 3 // 4]:
        return f"{result}; it was still falling, so take more trainer.steps or a higher optim.lr"
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()):
        return f"{result}; dropout is on, which prevents it: add model.dropout=0"
    return f"{result}; the loss no longer falls: try another optim.lr or a larger model"


def _loss(model: LanguageModel, batches: Iterable[tuple[Tensor, Tensor]], device: Device) -> float:
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    with torch.inference_mode(), device.autocast():
        for x, y in batches:
            n = int((y != IGNORED).sum())
            total += float(model(x, y)[1]) * n
            count += n
    model.train(was_training)
    return total / max(count, 1)


def _least_loss(batches: Iterable[tuple[Tensor, Tensor]], *, whole: bool) -> float:
    """Return the least mean loss that any model can reach, in nats per token.

    It is the entropy of the targets given the tokens before them. whole: if True, all tokens of the row up to the
    target; if False, only the last of them.
    """
    targets: dict[Hashable, Counter[int]] = defaultdict(Counter)
    prefixes: dict[Hashable, int] = {}
    for x, y in batches:
        for row, row_targets in zip(x.tolist(), y.tolist(), strict=True):
            prefix = -1
            for token, target in zip(row, row_targets, strict=True):
                prefix = prefixes.setdefault((prefix, token) if whole else token, len(prefixes))
                if target != IGNORED:
                    targets[prefix][target] += 1
    counts = [(n, sum(counted.values())) for counted in targets.values() for n in counted.values()]
    return sum(-n * math.log(n / total) for n, total in counts) / max(1, sum(n for n, _ in counts))
