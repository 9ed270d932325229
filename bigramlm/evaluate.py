"""The loss of a model over a split."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from bigramlm.data.batches import IGNORED, sent
from bigramlm.device.device import Device
from bigramlm.model.base import LanguageModel

# Logits computed at once in an evaluation: on a CPU 1 MiB of them in fp32, so that activations stay in its cache.
LOGITS_AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 20, "mps": 1 << 20}


@torch.inference_mode()
def mean_loss(model: LanguageModel, covered: Iterable[tuple[Tensor, Tensor]], device: Device) -> float:
    """The mean cross-entropy in nats over all targets that count, of these (inputs, targets), each (M, T).

    Waits for the device. The ids may be of any type, and not yet on the device. Dropout is off while it runs.
    """
    was_training = model.training
    model.eval()
    total = torch.zeros((), device=device.torch)
    count = torch.zeros((), dtype=torch.int64, device=device.torch)
    for inputs, targets in covered:
        rows = max(1, LOGITS_AT_ONCE[device.torch.type] // (model.vocab_size * inputs.shape[1]))
        for x, y in zip(inputs.split(rows), targets.split(rows), strict=True):
            x, y = sent(x, device.torch).long(), sent(y, device.torch).long()
            with device.autocast():
                _, loss = model(x, y)
            assert loss is not None
            n = (y != IGNORED).sum()
            total += loss.float() * n
            count += n
    model.train(was_training)
    return total.item() / count.item()


def bits_per_character(loss: float, *, tokens: int, characters: int) -> float:
    """A loss in nats a token as bits a character, the same measure for every tokenizer."""
    return loss / math.log(2) * tokens / characters
