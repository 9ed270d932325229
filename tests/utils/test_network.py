"""Tests of the names that may be requested from the network."""

import pytest

from bigramlm.utils.network import is_typed, typed


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        *((f"{field}=me/tiny", True) for field in ("init_from", "++init_from", "base", "tokenizer.path", "--base")),
        ('init_from="me/other","me/tiny"', True),
        ("hydra.sweeper.params={init_from: 'me/tiny,me/other'}", True),
        ("me/tiny", True),
        *((f"{field}=me/tiny", False) for field in ("experiment", "resume", "run", "sample.prompt", "hydra.run.dir")),
        *((f"init_from={name}", False) for name in ("me/tiny2", "./me/tiny", "me/tiny/x", "")),
    ],
)
def test_a_name_is_typed_in_a_field_that_requests_it(word: str, expected: bool) -> None:
    with typed(["model=gpt2", word]):
        assert is_typed("me/tiny") == expected
    assert not is_typed("me/tiny")
