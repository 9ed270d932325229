"""Generation of text from a model, token by token."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bigramlm.device.device import Device
from bigramlm.model.base import LanguageModel


def generate(model: LanguageModel, idx: Tensor, max_new_tokens: int, **settings: Any) -> Tensor:
    """Append max_new_tokens tokens to idx (B, T).

    settings: those of `stream`. Returns (B, T + max_new_tokens), or fewer if all rows end earlier.
    """
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
    """Yield the tokens (B, 1) that follow idx (B, T), one at a time.

    Each token is drawn from softmax(logits / temperature) at the last position, from the tokens that top_k and top_p
    leave; a temperature of 0 takes the likeliest token. The draws use a separate generator, so that sampling during
    training does not change the run. Dropout is off. Generation ends early once every row contains the token `until`;
    the tokens after it in a row have no meaning.

    The context grows up to block_size tokens, and then restarts from its last half. It is not shifted by one token,
    because the cache would be invalid when every token has another position. cached=False uses no cache, and computes
    the same tokens.
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
                next_token = draw(
                    logits[:, -1].float(), temperature=temperature, top_k=top_k, top_p=top_p, generator=generator
                )
                if context.shape[1] < model.block_size:
                    context, new = torch.cat((context, next_token), dim=1), next_token
                else:
                    context = new = torch.cat((context, next_token), dim=1)[:, -max(1, model.block_size // 2) :]
                    cache = model.new_cache() if cached else None
            yield next_token
            if until is not None:
                ended = ended | (next_token == until)
                if ended.all():
                    return
    finally:
        model.train(was_training)


def truncate_at(ids: list[int], until: int | None) -> list[int]:
    """Return the ids before the first token `until`.

    Returns all ids if `until` is None or not among them.
    """
    return ids[: ids.index(until)] if until in ids else ids


def draw(logits: Tensor, *, temperature: float, top_k: int, top_p: float, generator: torch.Generator) -> Tensor:
    """Draw one token (B, 1) per row of logits (B, V).

    top_k: draw only from the k likeliest tokens (Fan et al. 2018, "Hierarchical Neural Story Generation"); 0 is all.
    top_p: draw only from the likeliest tokens that together reach this probability at the given temperature, including
    the token that reaches it (Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", section 3.1); 1 is
    all.
    """
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    logits = logits - logits.amax(dim=-1, keepdim=True)  # at most 0, so that no temperature makes them overflow
    if 0 < top_k < logits.shape[-1]:
        ranked = logits.argsort(dim=-1, descending=True, stable=True)
        logits = logits.scatter(-1, ranked[:, top_k:], -torch.inf)
    p = F.softmax(logits / temperature, dim=-1)  # (B, V)
    if top_p < 1:
        ranked_p, ranked = p.sort(dim=-1, descending=True, stable=True)
        likelier_p = ranked_p.cumsum(dim=-1) - ranked_p  # the probability of all likelier tokens
        p = p.scatter(-1, ranked, ranked_p.masked_fill(likelier_p >= top_p, 0.0))
    return torch.multinomial(p, 1, generator=generator)
