"""The comparison of two models' surprises at the same text."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from bigramlm.look.surprise import Passage
from bigramlm.tokenizer.base import Tokenizer


def differences(tokenizer: Tokenizer, own: Passage, other_tokenizer: Tokenizer, other: Passage) -> Tensor:
    """Return by how much a model is more surprised than another, for each token.

    Returns the surprise of the model at each of its N tokens, minus that of the other at the same characters. The
    tokens of the models may differ. Then surprises are summed over the shortest pieces of text that both divide into
    whole tokens, and all tokens of a piece get the mean difference per token. NaN where one of them predicts nothing.
    """
    ends, other_ends = _ends(tokenizer, own.ids), _ends(other_tokenizer, other.ids)
    found = torch.full((len(ends),), torch.nan)
    first, other_first = 0, 0
    for common in sorted({*ends} & {*other_ends}):
        last, other_last = ends.index(common, first) + 1, other_ends.index(common, other_first) + 1
        total = own.surprise[first:last].sum() - other.surprise[other_first:other_last].sum()
        found[first:last] = total / (last - first)
        first, other_first = last, other_last
    return found


def _ends(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    # The number of characters up to the end of each token. Tokens that are parts of one character end together.
    whole = tokenizer.decode(ids)
    texts = (tokenizer.decode([token]) for token in ids)
    ends = list(itertools.accumulate(len(text) for text in texts))
    return ends if ends[-1] == len(whole) else [len(tokenizer.decode(ids[: n + 1])) for n in range(len(ids))]
