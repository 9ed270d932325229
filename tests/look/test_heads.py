"""Tests of the heads: planted heads are found, and fresh ones are none."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bigramlm.look import heads
from bigramlm.look.subject import Subject
from tests.helpers import gpts, run_config

SubjectOf = Callable[..., Subject]


class Planted(torch.nn.Module):
    """A model whose heads attend exactly as each kind of head does."""

    vocab_size, block_size = 1000, 64

    def attention(self, idx: Tensor) -> list[Tensor]:
        B, T = idx.shape
        weights = torch.zeros(B, len(heads.KINDS) + 1, T, T)
        for b in range(B):
            for t in range(T):
                earlier = [s for s in range(t) if idx[b, s] == idx[b, t]]
                targets = (max(0, t - 1), 0, earlier[-1] if earlier else 0, earlier[-1] + 1 if earlier else 0)
                for head, target in enumerate(targets):
                    weights[b, head, t, target] = 1
                weights[b, -1, t, : t + 1] = 1 / (t + 1)
        return [weights]


def test_planted_heads_of_each_kind_are_named(subject_of: SubjectOf) -> None:
    planted: Any = Planted()
    (scores,) = heads.scores(replace(subject_of("bigram"), model=planted))
    assert [heads.kind_of(row) for row in scores] == [*heads.KINDS, "mixed"]
    for n, row in enumerate(scores[:-1]):
        assert float(row[n]) > 0.95
    assert float(scores[-1].max()) < 0.1, "a head that attends to all alike"


@pytest.mark.parametrize("preset", gpts())
def test_fresh_models_have_no_induction_head(subject_of: SubjectOf, preset: str) -> None:
    torch.manual_seed(0)
    cfg = run_config(f"model={preset}", "model.n_layer=2", "model.n_embd=32", "model.n_head=2")
    model = cfg.model.build(vocab_size=65, block_size=64).eval()
    for layer in heads.scores(replace(subject_of("bigram"), model=model)):
        assert float(layer[:, heads.KINDS.index("induction")].max()) < 0.2


def test_models_without_attention_or_room_have_no_scores(subject_of: SubjectOf) -> None:
    assert heads.scores(subject_of("bigram")) == []
    cfg = run_config("model=attention")
    tiny = replace(subject_of("bigram"), model=cfg.model.build(vocab_size=5, block_size=3))
    assert heads.scores(tiny) == []


def test_measuring_changes_neither_weights_nor_random_state(subject_of: SubjectOf) -> None:
    subject = subject_of("gpt")
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    state = torch.get_rng_state()
    first = heads.scores(subject)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in subject.model.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(first, heads.scores(subject), strict=True)), "the same each time"
