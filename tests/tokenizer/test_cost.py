"""Tests of the bounds of what a tokenizer of somebody else may need."""

import base64
import json
from typing import Any

import pytest

from bigramlm.tokenizer.subword import from_json, train_bpe
from bigramlm.utils import paths
from tests.helpers import refuses

About = dict[str, Any]
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
# A tokenizer whose added token is normalized, which the library does as soon as it reads the file.
ADDED = {"id": 300, "content": "aa", "special": False, "normalized": True}


@pytest.fixture(scope="module")
def about() -> About:
    """Return the content of a tokenizer.json."""
    text = paths.bundled_text().read_text("utf-8")[:20_000]
    content: About = json.loads(train_bpe([text], vocab_size=300, min_frequency=2).to_json())
    added = {**ADDED, "single_word": False, "lstrip": False, "rstrip": False}
    return {**content, "added_tokens": [*content["added_tokens"], added]}


def replace(content: str, **pattern: str) -> About:
    return {"type": "Replace", "pattern": pattern, "content": content}


def charsmap(longest: int) -> About:
    content = base64.b64encode(bytes(4) + b"x" * longest + b"\0").decode()
    return {"type": "Precompiled", "precompiled_charsmap": content}


@pytest.mark.parametrize("part", ["normalizer", "pre_tokenizer", "decoder"])
@pytest.mark.parametrize(
    "parts",
    [
        [replace("a" * 10, String="a")] * 9,
        [replace("a", Regex="")] * 30,
        [replace("a", Regex="(?=.)")] * 30,
        [replace("aa", String="")] * 20,
        [{"type": "Sequence", "normalizers": [replace("a" * 100, String="a")] * 5}],
        [{"type": "ByteLevel"}] * 20,
        [BYTES] * 20,
        [{"type": "Prepend", "prepend": "x" * 100_000}],
        [charsmap(1000)] * 5,
        [{"type": "BPEDecoder", "suffix": ""}] * 40,
        [{"type": "CTC", "pad_token": "x", "word_delimiter_token": "", "cleanup": True}] * 40,
    ],
    ids=lambda parts: f"{parts[0]['type']}-{len(parts)}",
)
def test_parts_that_lengthen_a_text_without_bound_are_refused(parts: list[About], part: str, about: About) -> None:
    names = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}
    sequence = {"type": "Sequence", names[part]: parts}
    with refuses(part, "would not end", "different copy"):
        from_json(json.dumps({**about, part: sequence}))


def test_usual_parts_are_used(about: About) -> None:
    parts = [{"type": kind} for kind in ("NFKC", "Lowercase", "StripAccents", "ByteLevel")]
    parts += [replace(" ", Regex=r"\s+"), replace('"', String="``"), replace("\u2581", String=" ")]
    normalizer = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, *parts]}
    assert from_json(json.dumps({**about, "normalizer": normalizer})).vocab_size == 301


@pytest.mark.parametrize(("longest", "is_refused"), [(200, False), (10**9, True)])
def test_words_that_wordpiece_looks_up_are_short(longest: int, is_refused: bool, about: About) -> None:
    model = {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "vocab": {"[UNK]": 0, "a": 1},
    }
    content = json.dumps({**about, "added_tokens": [], "model": {**model, "max_input_chars_per_word": longest}})
    if is_refused:
        with refuses("max_input_chars_per_word", "1,000,000,000", "1,000,"):
            from_json(content)
    else:
        assert from_json(content).vocab_size == 2
