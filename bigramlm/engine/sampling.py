"""Sampling of texts from a trained model."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bigramlm.config.run_config import SampleConfig
from bigramlm.device.config import DeviceConfig
from bigramlm.device.device import Device, decide, set_up
from bigramlm.generate import stream, truncate_at
from bigramlm.model.base import LanguageModel
from bigramlm.tokenizer.base import Tokenizer

# Texts per batch, and prompts that are read ahead so that prompts of the same length can share a batch.
_ROWS = 64
_PROMPTS = 256


def place(model: LanguageModel, cfg: DeviceConfig) -> Device:
    """Resolve the device for sampling, and move the model to it."""
    device = set_up(decide(cfg, n_params=count_params(model), tokens=model.block_size))
    model.to(device.torch)
    return device


def count_params(model: LanguageModel) -> int:
    """Count all parameters, or the counts of a model fitted by counting.

    Parameters that an adapter has frozen are included.
    """
    return sum(p.numel() for p in model.parameters()) or model.n_params()


def completions(
    cfg: SampleConfig,
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: list[list[int]],
    device: Device,
    *,
    num_samples: int,
    seed: int,
) -> Iterator[tuple[int, str]]:
    """Yield pairs of a prompt's index and a completion, in the order of the prompts.

    There are num_samples pairs per prompt. Prompts with the same number of tokens share a batch.
    """
    batch, end = 0, end_token(cfg, tokenizer)
    for first in range(0, len(prompts), _PROMPTS):
        window = range(first, min(first + _PROMPTS, len(prompts)))
        texts: dict[int, list[str]] = {prompt: [] for prompt in window}
        for length in sorted({len(prompts[prompt]) for prompt in window}):
            rows = [prompt for prompt in window if len(prompts[prompt]) == length for _ in range(num_samples)]
            for at in range(0, len(rows), _ROWS):
                chunk = rows[at : at + _ROWS]
                chunk_prompts = [prompts[prompt] for prompt in chunk]
                tokens = list(stream_tokens(cfg, model, chunk_prompts, device, seed + batch, end))
                new = torch.cat(tokens, dim=1).tolist() if tokens else [[]] * len(chunk)
                batch += 1
                for prompt, ids in zip(chunk, new, strict=True):
                    full_text = tokenizer.decode(prompts[prompt] + truncate_at(ids, end))
                    texts[prompt].append(full_text.removeprefix(tokenizer.decode(prompts[prompt])))
        for prompt in window:
            for text in texts[prompt]:
                yield prompt, text


def end_token(cfg: SampleConfig, tokenizer: Tokenizer) -> int | None:
    """Return the token at which sampling stops, or None if there is no such token."""
    return tokenizer.end_of_text if cfg.stop_at_end else None


def stream_tokens(
    cfg: SampleConfig, model: LanguageModel, prompts: list[list[int]], device: Device, seed: int, end: int | None
) -> Iterator[Tensor]:
    """Sample tokens for B prompts of the same length.

    Yields one tensor (B, 1) per step, which contains the next token of each prompt.
    """
    return stream(
        model,
        torch.tensor(prompts, device=device.torch),
        cfg.max_new_tokens,
        temperature=cfg.temperature,
        top_k=cfg.top_k,
        top_p=cfg.top_p,
        seed=seed,
        device=device,
        until=end,
    )
