"""Text from a model, token by token."""

import torch
from torch import Tensor
from torch.nn import functional as F

from bigramlm.device.device import Device
from bigramlm.model.base import LanguageModel


@torch.inference_mode()
def generate(
    model: LanguageModel, idx: Tensor, max_new_tokens: int, *, temperature: float, seed: int, device: Device
) -> Tensor:
    """idx (B, T) with max_new_tokens more tokens, (B, T + max_new_tokens).

    Each token is drawn from softmax(logits / temperature) of the last position; a temperature of 0 takes the likeliest.
    The context is the last block_size tokens. Draws come from a generator of their own, so that sampling in the middle
    of a run changes nothing of the run. Dropout is off while it runs.
    """
    was_training = model.training
    model.eval()
    generator = torch.Generator(device.torch).manual_seed(seed)
    for _ in range(max_new_tokens):
        with device.autocast():
            logits, _ = model(idx[:, -model.block_size :])  # (B, T, V)
        logits = logits[:, -1].float()  # (B, V)
        if temperature == 0:
            following = logits.argmax(dim=-1, keepdim=True)  # (B, 1)
        else:
            logits -= logits.amax(dim=-1, keepdim=True)  # at most 0, which no temperature can make overflow
            following = torch.multinomial(F.softmax(logits / temperature, dim=-1), 1, generator=generator)  # (B, 1)
        idx = torch.cat((idx, following), dim=1)
    model.train(was_training)
    return idx
