"""Tests of the table of pairs and of the plane, against plain computations."""

import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch

from bigramlm.look import tables
from bigramlm.look.subject import Subject

SubjectOf = Callable[..., Subject]


def test_the_table_of_a_bigram_is_its_softmax(subject_of: SubjectOf) -> None:
    subject = subject_of("bigram")
    tokens = [4, 0, 7]
    logits = subject.model.get_parameter("token_embedding_table.weight").detach()
    expected = logits.softmax(-1)[torch.tensor(tokens)][:, torch.tensor(tokens)]
    torch.testing.assert_close(tables.predicted_pairs(subject, tokens), expected)


def test_pairs_are_counted_as_shares_of_all_that_follow() -> None:
    train = torch.tensor([0, 1, 0, 2, 0, 1, 3, 3])
    shown = [1, 0, 3]
    following = Counter(zip(train.tolist(), train[1:].tolist(), strict=False))
    after = Counter(train[:-1].tolist())
    expected = [[following[a, b] / after[a] for b in shown] for a in shown]
    assert tables.counted_pairs(train, shown, 4).tolist() == [pytest.approx(row) for row in expected]


def test_lacking_pairs_are_those_that_cost_the_most() -> None:
    counted = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    predicted = torch.tensor([[0.4, 0.6], [0.25, 0.75]])
    found = tables.lacking(predicted, counted, torch.tensor([100, 10]), [8, 9])
    costs = {(8, 8): 100 * 0.5 * math.log(0.5 / 0.4), (9, 8): 10 * math.log(1 / 0.25)}
    assert [(pair.first, pair.second) for pair in found] == sorted(costs, key=lambda pair: -costs[pair])
    assert (found[0].counted, found[0].predicted) == (1.0, 0.25)
    assert tables.lacking(counted, counted, torch.tensor([1, 1]), [8, 9]) == []


def test_the_plane_has_the_largest_variances() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(200, 5, generator=generator) * torch.tensor([5.0, 1.0, 3.0, 0.1, 0.5])
    found, axes, share = tables.plane(points)
    values = torch.linalg.eigvalsh(torch.cov(points.T)).flip(0)
    assert share == pytest.approx((values[:2] / values.sum()).tolist(), rel=1e-4)
    torch.testing.assert_close(axes @ axes.T, torch.eye(2), atol=1e-5, rtol=0)
    again, _, _ = tables.plane(points, axes)
    torch.testing.assert_close(again, found)
    assert tables.plane(torch.ones(1, 3))[2] == [0, 0], "a single token"
