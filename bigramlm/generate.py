"""Generation of text from a model, token by token."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bigramlm.device.device import Device
from bigramlm.errors import UserError
from bigramlm.model.base import LanguageModel

# The smallest number that fp32 never rounds to 0. A temperature below it counts as 0.
_TINY = torch.finfo(torch.float32).tiny


def generate(model: LanguageModel, idx: Tensor, max_new_tokens: int, **settings: Any) -> Tensor:
    """Append up to max_new_tokens generated tokens to token ids idx (B, T).

    settings: the keyword arguments of `stream`. Returns (B, T + max_new_tokens), or fewer columns if all rows end
    earlier.
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
    """Generate the tokens that follow token ids idx (B, T), and yield them one by one.

    Each yielded tensor (B, 1) contains the next token of each row. The token is sampled from softmax(logits /
    temperature) at the last position, restricted to the tokens that top_k and top_p select. If temperature is 0, the
    likeliest token is chosen. Sampling uses a separate random generator, so that sampling during training does not
    change the run. Dropout is off.

    until: the token that ends a row. Generation stops early once every row has generated this token. The tokens after
    it in the same row have no meaning.

    The context grows up to block_size tokens, and is then shortened to its last half. The context is not shifted by one
    token at every step, because the position of every token would change, which would invalidate the cache.
    cached: if False, no cache is used; the generated tokens are the same.
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

    Returns all ids if `until` is None or does not occur.
    """
    return ids[: ids.index(until)] if until in ids else ids


def draw(logits: Tensor, *, temperature: float, top_k: int, top_p: float, generator: torch.Generator) -> Tensor:
    """Sample one token (B, 1) per row of logits (B, V).

    temperature: as in `stream`. top_k: sample only from the k likeliest tokens (Fan et al. 2018, "Hierarchical Neural
    Story Generation"); 0 means no restriction. top_p: sample only from the smallest set of likeliest tokens whose
    total probability at the given temperature is at least top_p (Holtzman et al. 2020, "The Curious Case of Neural
    Text Degeneration", section 3.1); 1 means no restriction.
    """
    if temperature < _TINY:
        return logits.argmax(dim=-1, keepdim=True)
    logits = logits - logits.amax(dim=-1, keepdim=True)  # at most 0, so that no temperature makes them overflow
    if 0 < top_k < logits.shape[-1]:
        ranked = logits.argsort(dim=-1, descending=True, stable=True)
        logits = logits.scatter(-1, ranked[:, top_k:], -torch.inf)
    p = F.softmax(logits / temperature, dim=-1)  # (B, V)
    if top_p < 1:
        ranked_p, ranked = p.sort(dim=-1, descending=True, stable=True)
        likelier_p = ranked_p.cumsum(dim=-1) - ranked_p  # the probability of all likelier tokens
        p = p.scatter(-1, ranked, ranked_p.masked_fill(likelier_p >= max(top_p, _TINY), 0.0))
    try:
        return torch.multinomial(p, 1, generator=generator)
    except RuntimeError as error:
        if "probability tensor" not in str(error):
            raise
        raise UserError(
            "no token can be sampled, because the model computes logits that are NaN or infinite: its weights are "
            "damaged or too large; use a different checkpoint"
        ) from None
