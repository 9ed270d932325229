"""Configs of the tokenizers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from omegaconf import MISSING

from bigramlm.errors import require
from bigramlm.utils import documents

if TYPE_CHECKING:
    from bigramlm.tokenizer.base import Tokenizer

# Yields pieces of the training split, spread evenly over the split: at most the given number of characters.
TrainingText = Callable[[int], Iterator[str]]


@dataclass
class TokenizerConfig:
    """The fields common to all tokenizers."""

    name: str = MISSING
    """The name of the tokenizer, set by `tokenizer=NAME`."""

    def build(self, *, characters: str, documents: int, train: TrainingText) -> Tokenizer:
        """Build the tokenizer for a text.

        characters: the distinct characters of the text, sorted. documents: the number of documents in the text. train:
        a function that yields pieces of the training split. Raises UserError if the vocabulary size does not suit the
        text.
        """
        raise NotImplementedError

    def restore(self, saved: str) -> Tokenizer:
        """Restore the tokenizer from the file content that `to_json` returned.

        saved: the content of the file. Raises ValueError if the file contains no tokenizer or a different kind.
        """
        raise NotImplementedError


@dataclass
class CharConfig(TokenizerConfig):
    """A tokenizer whose tokens are the distinct characters of the text, sorted."""

    name: str = "char"

    def build(self, *, characters: str, documents: int, train: TrainingText) -> Tokenizer:  # noqa: ARG002
        from bigramlm.tokenizer.char import CharTokenizer

        return CharTokenizer(characters, end_of_text=documents > 1)

    def restore(self, saved: str) -> Tokenizer:
        from bigramlm.tokenizer.char import CharTokenizer

        about = documents.parse_json(saved)
        _check_kind("char", about.get("name") == "char")
        chars, end_of_text = about["chars"], about.get("end_of_text", False)
        is_text = isinstance(chars, str) and not any(0xD800 <= ord(char) < 0xE000 for char in chars)
        if not (is_text and chars and len(set(chars)) == len(chars) and type(end_of_text) is bool):
            raise ValueError("its chars are not a text in which each character occurs once")
        return CharTokenizer(chars, end_of_text=end_of_text)


@dataclass
class ByteConfig(TokenizerConfig):
    """A tokenizer whose tokens are the UTF-8 bytes of the text.

    Its 256 tokens encode any text.
    """

    name: str = "byte"

    def build(self, *, characters: str, documents: int, train: TrainingText) -> Tokenizer:  # noqa: ARG002
        from bigramlm.tokenizer.byte import ByteTokenizer

        return ByteTokenizer(end_of_text=documents > 1)

    def restore(self, saved: str) -> Tokenizer:
        from bigramlm.tokenizer.byte import ByteTokenizer

        about = documents.parse_json(saved)
        model = about.get("model", {})
        _check_kind("byte", model.get("type") == "BPE" and len(model["vocab"]) == 256 and not model["merges"])
        return ByteTokenizer(end_of_text=bool(about["added_tokens"]), saved=saved.strip())


@dataclass
class LearnedConfig(TokenizerConfig):
    """The fields of tokenizers that learn a vocabulary from the training split."""

    vocab_size: int = 1024
    """The number of tokens in the vocabulary, including special tokens."""
    min_frequency: int = 2
    """The minimum number of times that a pair of tokens must occur in the training text to be merged into one token."""
    train_characters: int = 100_000_000
    """The maximum number of characters to learn from. If the training split is longer, the vocabulary is learned from
    pieces that are spread evenly over the split."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "min_frequency", "train_characters"):
            require(getattr(self, name) >= 1, f"tokenizer.{name}={getattr(self, name)}: must be at least 1")


@dataclass
class BPEConfig(LearnedConfig):
    """Byte-level BPE, whose tokens are bytes and frequent byte sequences.

    The vocabulary is learned by merging the most frequent pair of tokens repeatedly. Any text is encoded without loss.
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
    """WordPiece as in BERT, whose tokens are words, word starts and continuations.

    The tokenizer is lossy: line breaks and the original spacing are lost, and a word becomes `[UNK]` if one of its
    characters does not occur in the training text.
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
    """GPT-2's vocabulary or a different existing vocabulary; nothing is learned."""

    name: str = "gpt2"
    path: str = "openai-community/gpt2"
    """The vocabulary: a tokenizer.json, a folder with a tokenizer.json or with both vocab.json and merges.txt, or the
    name of a model on the Hugging Face hub."""

    def build(self, *, characters: str, documents: int, train: TrainingText) -> Tokenizer:  # noqa: ARG002
        from bigramlm.tokenizer.opening import from_path

        tokenizer, self.path = from_path(self.path)
        return tokenizer

    def restore(self, saved: str) -> Tokenizer:
        return _restore_subword("gpt2", saved)


def _restore_subword(name: str, saved: str, kind: str = "") -> Tokenizer:
    from bigramlm.tokenizer.subword import from_json

    found = documents.parse_json(saved).get("model", {}).get("type", "")
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
