"""Which tokenizers there are, and their fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING

if TYPE_CHECKING:
    from bigramlm.tokenizer.base import Tokenizer


@dataclass
class TokenizerConfig:
    """What every tokenizer has."""

    name: str = MISSING
    """Which tokenizer this is; set by `tokenizer=NAME`."""

    def build(self, text: str) -> Tokenizer:
        """The tokenizer for this text."""
        raise NotImplementedError

    def restore(self, saved: dict[str, Any]) -> Tokenizer:
        """The tokenizer that `to_dict()` described so."""
        raise NotImplementedError


@dataclass
class CharConfig(TokenizerConfig):
    """A token is a character; the vocabulary is the characters that the whole text has, sorted."""

    name: str = "char"

    def build(self, text: str) -> Tokenizer:
        from bigramlm.tokenizer.char import CharTokenizer

        return CharTokenizer("".join(sorted(set(text))))

    def restore(self, saved: dict[str, Any]) -> Tokenizer:
        from bigramlm.tokenizer.char import CharTokenizer

        return CharTokenizer(saved["chars"])


TOKENIZERS: dict[str, type[TokenizerConfig]] = {"char": CharConfig}
