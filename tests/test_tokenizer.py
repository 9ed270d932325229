"""The character tokenizer: there and back, and what it says of characters it lacks."""

import numpy as np
import pytest

from bigramlm.errors import UserError
from bigramlm.tokenizer.char import CharTokenizer
from bigramlm.tokenizer.config import CharConfig


@pytest.mark.parametrize("text", ["hello", "naïve café\n", "日本語 and \U0001f40d", "\x00\ttabs\r\n", "a"])
def test_round_trip(text: str) -> None:
    tokenizer = CharConfig().build(text)
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids.tolist()) == text
    assert tokenizer.vocab_size == len(set(text))


def test_ids_are_places_among_the_sorted_characters() -> None:
    """The tutorial's own mapping, by dictionary."""
    text = "The quick brown fox\njumps"
    chars = sorted(set(text))
    assert CharConfig().build(text).encode(text).tolist() == [chars.index(c) for c in text]


def test_empty_text_is_no_tokens() -> None:
    assert CharTokenizer("abc").encode("").tolist() == []


@pytest.mark.parametrize(
    ("text", "named"),
    [("abz", "'z'"), ("日本", "'日', '本'"), ("a\u0000", r"'\x00'"), ("\U0010ffff", "10ffff"), ("a\udcff", r"\udcff")],
)
def test_what_is_lacking_is_named(text: str, named: str) -> None:
    with pytest.raises(UserError) as error:
        CharTokenizer("abc").encode(text)
    assert named in str(error.value)
    assert "\n" not in str(error.value)
    str(error.value).encode("utf-8")


def test_long_vocabularies_are_not_listed() -> None:
    with pytest.raises(UserError) as error:
        CharTokenizer("".join(map(chr, range(0x4E00, 0x5E00)))).encode("x")
    assert len(str(error.value)) < 200
