"""Text from a model, token by token."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bigramlm.device.device import Device
from bigramlm.model.base import LanguageModel


def generate(model: LanguageModel, idx: Tensor, max_new_tokens: int, **settings: Any) -> Tensor:
    """Return idx (B, T) with max_new_tokens more tokens, (B, T + max_new_tokens); settings: those of `stream`."""
    return torch.cat((idx, *stream(model, idx, max_new_tokens, **settings)), dim=1)


def stream(
    model: LanguageModel,
    idx: Tensor,
    max_new_tokens: int,
    *,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int,
    device: Device,
    until: int | None = None,
    cached: bool = True,
) -> Iterator[Tensor]:
    """Yield the tokens that follow idx (B, T), one by one, each (B, 1), as they are made.

    Each token is drawn from softmax(logits / temperature) of the last position, among those that top_k and top_p leave;
    a temperature of 0 takes the likeliest. Draws come from a generator of their own, so that sampling in the middle of
    a run changes nothing of the run. Dropout is off while it runs. It ends before its time where every row has had the
    token `until`; what follows that in a row means nothing.

    The context grows up to block_size tokens; then it starts again from its last half, since what a model keeps of its
    context would be of no use with every token in another place. cached=False keeps nothing, and computes the same.
    """
    was_training = model.training
    model.eval()
    generator = torch.Generator(device.torch).manual_seed(seed)
    context = new = idx[:, -model.block_size :]
    cache = model.new_cache() if cached else None
    ended = torch.zeros_like(idx[:, :1], dtype=torch.bool)
    try:
        for _ in range(max_new_tokens):
            with torch.inference_mode(), device.autocast():
                logits, _ = model(context) if cache is None else model(new, cache=cache)  # (B, T, V)
                following = draw(
                    logits[:, -1].float(), temperature=temperature, top_k=top_k, top_p=top_p, generator=generator
                )
                if context.shape[1] < model.block_size:
                    context, new = torch.cat((context, following), dim=1), following
                else:
                    context = new = torch.cat((context, following), dim=1)[:, -max(1, model.block_size // 2) :]
                    cache = model.new_cache() if cached else None
            yield following
            if until is not None:
                ended = ended | (following == until)
                if ended.all():
                    return
    finally:
        model.train(was_training)


def truncate_at(ids: list[int], until: int | None) -> list[int]:
    """Return the ids before the token `until`; all of them if it is None, or not among them."""
    return ids[: ids.index(until)] if until in ids else ids


def draw(logits: Tensor, *, temperature: float, top_k: int, top_p: float, generator: torch.Generator) -> Tensor:
    """Draw a token (B, 1) for each row of logits (B, V).

    top_k: only the k likeliest tokens can be drawn (Fan et al. 2018, "Hierarchical Neural Story Generation"); 0 is all.
    top_p: only the likeliest tokens that together have this probability, the one that crosses it included, at the given
    temperature (Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", section 3.1); 1 is all.
    """
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    logits = logits - logits.amax(dim=-1, keepdim=True)  # at most 0, which no temperature can make overflow
    if 0 < top_k < logits.shape[-1]:
        ranked = logits.argsort(dim=-1, descending=True, stable=True)
        logits = logits.scatter(-1, ranked[:, top_k:], -torch.inf)
    p = F.softmax(logits / temperature, dim=-1)  # (B, V)
    if top_p < 1:
        ranked_p, ranked = p.sort(dim=-1, descending=True, stable=True)
        before = ranked_p.cumsum(dim=-1) - ranked_p  # the probability of those that are likelier
        p = p.scatter(-1, ranked, ranked_p.masked_fill(before >= top_p, 0.0))
    return torch.multinomial(p, 1, generator=generator)
