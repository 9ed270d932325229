"""The tokenizers, and their fields."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from omegaconf import MISSING

from bigramlm.errors import require

if TYPE_CHECKING:
    from bigramlm.tokenizer.base import Tokenizer

# Gives pieces of the training split: so many characters at the most, spread evenly over it.
TrainingText = Callable[[int], Iterator[str]]


@dataclass
class TokenizerConfig:
    """The fields of every tokenizer."""

    name: str = MISSING
    """The name of the tokenizer; set by `tokenizer=NAME`."""

    def build(self, *, characters: str, documents: int, train: TrainingText) -> Tokenizer:
        """Build the tokenizer for a text; characters: all that it has, each once, sorted; documents: how many it has.

        UserError where the text does not suffice for it.
        """
        raise NotImplementedError

    def restore(self, saved: str) -> Tokenizer:
        """Restore the tokenizer that `to_json()` described. ValueError if it is of another kind, or none."""
        raise NotImplementedError


@dataclass
class CharConfig(TokenizerConfig):
    """A token is a character; the vocabulary is the characters that the whole text has, sorted."""

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
    """A token is a byte of the text in UTF-8: 256 of them hold any text."""

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
    """The fields of tokenizers that learn their vocabulary from the training split."""

    vocab_size: int = 1024
    """Tokens in the vocabulary, special ones included."""
    min_frequency: int = 2
    """The least number of times that two tokens must be neighbours in the training text to be merged."""
    train_characters: int = 100_000_000
    """The characters to learn from in a longer training split, spread evenly over it."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "min_frequency", "train_characters"):
            require(getattr(self, name) >= 1, f"tokenizer.{name}={getattr(self, name)}: must be 1 or more")


@dataclass
class BPEConfig(LearnedConfig):
    """Byte-level BPE: bytes, and the pairs of tokens that are most frequent, made one again and again.

    Loses nothing, whatever the text.
    """

    name: str = "bpe"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.vocab_size >= 257,
            f"tokenizer.vocab_size={self.vocab_size}: must be 257 or more: 256 bytes, and the end of a text; "
            "tokenizer=byte has bytes alone",
        )

    def build(self, *, characters: str, documents: int, train: TrainingText) -> Tokenizer:  # noqa: ARG002
        from bigramlm.tokenizer.subword import train_bpe

        texts = train(self.train_characters)
        return train_bpe(texts, vocab_size=self.vocab_size, min_frequency=self.min_frequency)

    def restore(self, saved: str) -> Tokenizer:
        return _restored("bpe", saved, "BPE")


@dataclass
class WordPieceConfig(LearnedConfig):
    """WordPiece, as BERT has it: words, and parts that words go on with.

    Loses line breaks, spaces, and words with characters that training never saw.
    """

    name: str = "wordpiece"

    def build(self, *, characters: str, documents: int, train: TrainingText) -> Tokenizer:  # noqa: ARG002
        from bigramlm.tokenizer.subword import train_wordpiece

        return train_wordpiece(
            lambda: train(self.train_characters), vocab_size=self.vocab_size, min_frequency=self.min_frequency
        )

    def restore(self, saved: str) -> Tokenizer:
        return _restored("wordpiece", saved, "WordPiece")


@dataclass
class GPT2TokenizerConfig(TokenizerConfig):
    """GPT-2's own vocabulary, or any other that is there already: nothing is learned."""

    name: str = "gpt2"
    path: str = "openai-community/gpt2"
    """A tokenizer.json, a folder with one or with vocab.json and merges.txt, or a name on the Hugging Face hub."""

    def build(self, *, characters: str, documents: int, train: TrainingText) -> Tokenizer:  # noqa: ARG002
        from bigramlm.tokenizer.subword import from_path

        tokenizer, self.path = from_path(self.path)
        return tokenizer

    def restore(self, saved: str) -> Tokenizer:
        return _restored("gpt2", saved)


def _restored(name: str, saved: str, kind: str = "") -> Tokenizer:
    from bigramlm.tokenizer.subword import from_json

    found = json.loads(saved).get("model", {}).get("type", "")
    _check_kind(name, kind in (found, "") and found != "")
    return from_json(saved)


def _check_kind(name: str, ok: bool) -> None:
    if not ok:
        raise ValueError(f"it is not for tokenizer={name}")


TOKENIZERS: dict[str, type[TokenizerConfig]] = {
    "char": CharConfig,
    "byte": ByteConfig,
    "bpe": BPEConfig,
    "wordpiece": WordPieceConfig,
    "gpt2": GPT2TokenizerConfig,
}
