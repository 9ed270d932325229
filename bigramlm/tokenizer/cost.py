"""Bounds of the time and memory that a tokenizer of somebody else may need."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from typing import Any

from bigramlm.errors import require

# The largest number of characters that the parts of a tokenizer may make of one character.
_MAX_GROWTH = 10_000
# The longest word that WordPiece may look up: its time grows with the cube of the length.
_MAX_WORDPIECE = 1_000


def check_cost(about: dict[str, Any]) -> None:
    """Refuse a tokenizer that would need endless time or memory for a short text.

    about: the content of its tokenizer.json. Raises UserError for a part that can lengthen a text without bound, and
    KeyError, TypeError, ValueError or AttributeError for invalid content.
    """
    for names, task in ((("normalizer", "pre_tokenizer"), "encoding"), (("decoder",), "decoding")):
        growth = math.prod(_growth(part) for name in names for part in _parts(about.get(name)))
        number = f"{growth:,.0f}" if growth < 1e15 else f"{growth:.0e}"
        require(
            growth <= _MAX_GROWTH,
            f"the parts of its {' and '.join(names)} can make {number} characters of one, so {task} would not end; use "
            "a different copy of the tokenizer",
        )
    longest = about["model"].get("max_input_chars_per_word", 0)
    require(
        longest <= _MAX_WORDPIECE,
        f"max_input_chars_per_word={longest:,} in its model: must be at most {_MAX_WORDPIECE:,}, as encoding a long "
        "word would not end; use a different copy of the tokenizer",
    )


def _parts(part: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    # The parts of a sequence, and of the sequences in it.
    parts = [part]
    while parts:
        part = parts.pop() or {}
        for inside in ("normalizers", "pretokenizers", "decoders"):
            parts += part.get(inside, [])
        yield part


def _growth(part: dict[str, Any]) -> float:
    # The factor by which a part can lengthen a text each time that it is applied.
    if "content" in part and "pattern" in part:  # a regular expression may match between any two characters
        old, new = part["pattern"].get("String"), len(part["content"])
        return max(1.0, new / len(old)) if old else new + 1.0
    if "prepend" in part:
        return 1.0 + len(part["prepend"])
    if "precompiled_charsmap" in part:  # a trie with its length in front, then the replacements
        charsmap = base64.b64decode(part["precompiled_charsmap"])
        start = 4 + int.from_bytes(charsmap[:4], "little")
        return max(1.0, *map(len, charsmap[start:].split(b"\0")))
    if part.get("type") == "ByteLevel":
        return 4.0  # the bytes of a character
    return 2.0 if "" in (part.get("suffix"), part.get("word_delimiter_token")) else 1.0
