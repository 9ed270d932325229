"""Which models there are, and their fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from omegaconf import MISSING

if TYPE_CHECKING:
    from bigramlm.model.base import LanguageModel


@dataclass
class ModelConfig:
    """What every model has."""

    name: str = MISSING
    """Which model this is; set by `model=NAME`."""

    def build(self, *, vocab_size: int, block_size: int) -> LanguageModel:
        """The model with fresh weights, drawn from torch's global random state, on the CPU."""
        raise NotImplementedError


@dataclass
class BigramConfig(ModelConfig):
    """A table of V x V logits: the next token given the current one, and nothing else."""

    name: str = "bigram"

    def build(self, *, vocab_size: int, block_size: int) -> LanguageModel:
        from bigramlm.model.bigram import Bigram

        return Bigram(vocab_size=vocab_size, block_size=block_size)


MODELS: dict[str, type[ModelConfig]] = {"bigram": BigramConfig}
