"""Helpers for the tests of models: small models of every preset."""

import functools
from dataclasses import replace
from typing import Any

import torch

from bigramlm.model.base import LanguageModel
from bigramlm.model.config import GPTConfig, ModelConfig
from tests.helpers import run_config

V, BLOCK = 11, 8


preset_of = functools.cache(lambda preset: run_config(f"model={preset}").model)


def config(preset: str, **fields: Any) -> ModelConfig:
    """Return the config of a preset with these fields; a GPT is made small."""
    cfg: ModelConfig = preset_of(preset)
    if isinstance(cfg, GPTConfig):
        fields = {"n_embd": 4 * cfg.n_head, "n_layer": min(2, cfg.n_layer), **fields}
    return replace(cfg, **fields)


def build(preset: str, *, moved: bool = True, **fields: Any) -> LanguageModel:
    """Build a preset's model in double precision.

    moved: add noise to all weights, so that they are far from zero as in a trained model.
    """
    torch.manual_seed(0)
    model = config(preset, **fields).build(vocab_size=V, block_size=BLOCK).double()
    if moved:
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.3 * torch.randn_like(p))
    model.fit_counts(torch.randint(V, (200,), generator=torch.Generator().manual_seed(1)))
    return model
