"""Configs of the tokenizers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from omegaconf import MISSING

from bigramlm.errors import require

if TYPE_CHECKING:
    from bigramlm.tokenizer.base import Tokenizer

# Yields pieces of the training split, spread evenly over the split: at most the given number of characters.
TrainingText = Callable[[int], Iterator[str]]


@dataclass
class TokenizerConfig:
    """The fields common to all tokenizers."""

    name: str = MISSING
    """The name of the tokenizer; set by `tokenizer=NAME`."""

    def build(self, *, characters: str, documents: int, train: TrainingText) -> Tokenizer:
        """Build the tokenizer for a text.

        `characters` contains each character of the text once, sorted; `documents` is the number of documents; `train`
        yields pieces of the training split. Raises UserError if the text is too short for the vocabulary.
        """
        raise NotImplementedError

    def restore(self, saved: str) -> Tokenizer:
        """Restore the tokenizer from the content of its file, as returned by `to_json`.

        Raises ValueError if the file contains another kind of tokenizer or no tokenizer.
        """
        raise NotImplementedError


@dataclass
class CharConfig(TokenizerConfig):
    """A tokenizer whose tokens are the characters of the whole text, sorted."""

    name: str = "char"

    def build(self, *, characters: str, documents: int, train: TrainingText) -> Tokenizer:  # noqa: ARG002
        from bigramlm.tokenizer.char import CharTokenizer

        return CharTokenizer(characters, end_of_text=documents > 1)

    def restore(self, saved: str) -> Tokenizer:
        from bigramlm.tokenizer.char import CharTokenizer

        about = json.loads(saved)
        _check_kind("char", about.get("name") == "char")
        return CharTokenizer(about["chars"], end_of_text=about.get("end_of_text", False))


@dataclass
class ByteConfig(TokenizerConfig):
    """A tokenizer whose tokens are the bytes of the text in UTF-8.

    Its 256 tokens encode any text.
    """

    name: str = "byte"

    def build(self, *, characters: str, documents: int, train: TrainingText) -> Tokenizer:  # noqa: ARG002
        from bigramlm.tokenizer.byte import ByteTokenizer

        return ByteTokenizer(end_of_text=documents > 1)

    def restore(self, saved: str) -> Tokenizer:
        from bigramlm.tokenizer.byte import ByteTokenizer

        about = json.loads(saved)
        model = about.get("model", {})
        _check_kind("byte", model.get("type") == "BPE" and len(model["vocab"]) == 256 and not model["merges"])
        return ByteTokenizer(end_of_text=bool(about["added_tokens"]), saved=saved.strip())


@dataclass
class LearnedConfig(TokenizerConfig):
    """The fields of tokenizers that learn a vocabulary from the training split."""

    vocab_size: int = 1024
    """Number of tokens in the vocabulary, including special tokens."""
    min_frequency: int = 2
    """Minimum number of times that a pair of tokens must occur in the training text to be merged."""
    train_characters: int = 100_000_000
    """Maximum number of characters to learn from. They are spread evenly over a longer training split."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "min_frequency", "train_characters"):
            require(getattr(self, name) >= 1, f"tokenizer.{name}={getattr(self, name)}: must be at least 1")


@dataclass
class BPEConfig(LearnedConfig):
    """Byte-level BPE, whose tokens are bytes and frequent sequences of bytes.

    Learning repeatedly merges the most frequent pair of tokens. The tokenizer is lossless for any text.
    """

    name: str = "bpe"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.vocab_size >= 257,
            f"tokenizer.vocab_size={self.vocab_size}: must be at least 257, for 256 bytes and the end-of-text token; "
            "for bytes alone, choose tokenizer=byte",
        )

    def build(self, *, characters: str, documents: int, train: TrainingText) -> Tokenizer:  # noqa: ARG002
        from bigramlm.tokenizer.subword import train_bpe

        texts = train(self.train_characters)
        return train_bpe(texts, vocab_size=self.vocab_size, min_frequency=self.min_frequency)

    def restore(self, saved: str) -> Tokenizer:
        return _restore_subword("bpe", saved, "BPE")


@dataclass
class WordPieceConfig(LearnedConfig):
    """WordPiece as in BERT, whose tokens are words and parts that continue a word.

    It loses line breaks, spaces, and words with characters that do not occur in the text it learned from.
    """

    name: str = "wordpiece"

    def build(self, *, characters: str, documents: int, train: TrainingText) -> Tokenizer:  # noqa: ARG002
        from bigramlm.tokenizer.subword import train_wordpiece

        return train_wordpiece(
            lambda: train(self.train_characters), vocab_size=self.vocab_size, min_frequency=self.min_frequency
        )

    def restore(self, saved: str) -> Tokenizer:
        return _restore_subword("wordpiece", saved, "WordPiece")


@dataclass
class GPT2TokenizerConfig(TokenizerConfig):
    """GPT-2's vocabulary or any other existing vocabulary; nothing is learned."""

    name: str = "gpt2"
    path: str = "openai-community/gpt2"
    """A tokenizer.json, a folder that contains a tokenizer.json or vocab.json and merges.txt, or a name on the Hugging
    Face hub."""

    def build(self, *, characters: str, documents: int, train: TrainingText) -> Tokenizer:  # noqa: ARG002
        from bigramlm.tokenizer.subword import from_path

        tokenizer, self.path = from_path(self.path)
        return tokenizer

    def restore(self, saved: str) -> Tokenizer:
        return _restore_subword("gpt2", saved)


def _restore_subword(name: str, saved: str, kind: str = "") -> Tokenizer:
    from bigramlm.tokenizer.subword import from_json

    found = json.loads(saved).get("model", {}).get("type", "")
    _check_kind(name, kind in (found, "") and found != "")
    return from_json(saved)


def _check_kind(name: str, ok: bool) -> None:
    if not ok:
        raise ValueError(f"the file was not written by tokenizer={name}")


TOKENIZERS: dict[str, type[TokenizerConfig]] = {
    "char": CharConfig,
    "byte": ByteConfig,
    "bpe": BPEConfig,
    "wordpiece": WordPieceConfig,
    "gpt2": GPT2TokenizerConfig,
}
