"""Tests of the comparison of two models, also with different tokenizers."""

from collections.abc import Callable

import torch

from bigramlm.look.compare import differences
from bigramlm.look.subject import Subject
from bigramlm.look.surprise import predict

SubjectOf = Callable[..., Subject]
TEXT = "First Citizen:\nBefore we proceed any further"


def test_with_the_same_tokenizer_the_difference_is_token_by_token(subject_of: SubjectOf) -> None:
    one, other = subject_of("bigram"), subject_of("gpt")
    ids = one.tokenizer.encode(TEXT).tolist()
    a, b = predict(one, ids), predict(other, ids)
    found = differences(one.tokenizer, a, other.tokenizer, b)
    torch.testing.assert_close(found, a.surprise - b.surprise, equal_nan=True)


def test_with_different_tokenizers_the_sums_over_common_pieces_agree(subject_of: SubjectOf) -> None:
    one, other = subject_of("bigram"), subject_of("bigram", "tokenizer=bpe", "tokenizer.vocab_size=300")
    a = predict(one, one.tokenizer.encode(TEXT).tolist())
    b = predict(other, other.tokenizer.encode(TEXT).tolist())
    assert len(b.ids) < len(a.ids)
    found = differences(one.tokenizer, a, other.tokenizer, b)
    first = len(other.tokenizer.decode(b.ids[:1]))  # characters in the first token, which has no prediction
    assert found[:first].isnan().all()
    assert not found[first:].isnan().any()
    expected = a.surprise[first:].sum() - b.surprise[1:].sum()
    torch.testing.assert_close(found[first:].sum(), expected)
