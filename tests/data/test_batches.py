"""Tests of batches and blocks, from a stream of tokens and from examples."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bigramlm.data.batches import IGNORED, Batches, Examples, Stream, blocks, on_device
from bigramlm.data.pairs import crop_bounds, row_length
from bigramlm.data.tokens import narrowest_dtype

CPU = torch.device("cpu")
TOKENS = torch.arange(5000, dtype=torch.int32)  # the id of each token is its position


def batches(seed: int = 1, block_size: int = 8, batch_size: int = 4) -> Batches:
    return Batches(Stream(TOKENS, block_size=block_size), batch_size=batch_size, seed=seed)


def test_targets_are_the_inputs_shifted_by_one() -> None:
    x, y = batches()[0]
    assert x.shape == y.shape == (4, 8)
    assert x.dtype == y.dtype == torch.int64
    assert torch.equal(y, x + 1)
    assert torch.equal(x[:, 1:], x[:, :-1] + 1)


def test_batch_depends_only_on_seed_and_step() -> None:
    steps = [0, 1, 1023, 1024, 1025, 5000]
    forward = {step: batches()[step] for step in steps}
    backward = batches()
    for step in reversed(steps):
        assert torch.equal(backward[step][0], forward[step][0])
    in_order = batches()
    inputs = [in_order[step][0] for step in range(1030)]
    assert torch.equal(inputs[1025], forward[1025][0])
    assert not torch.equal(forward[0][0], forward[1][0])
    assert not torch.equal(forward[0][0], forward[1024][0])
    assert not torch.equal(forward[0][0], batches(seed=2)[0][0])


def test_batches_do_not_depend_on_the_gather_size(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [batches()[step][0] for step in (0, 7, 1023, 1024, 2047)]
    for gathered in (1, 100, 1 << 20):
        monkeypatch.setattr("bigramlm.data.batches.TOKENS_PER_GATHER", gathered)
        found = [batches()[step][0] for step in (0, 7, 1023, 1024, 2047)]
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_all_start_positions_are_drawn() -> None:
    tokens = torch.arange(12, dtype=torch.int32)
    drawn = Batches(Stream(tokens, block_size=8), batch_size=64, seed=0)
    starts = {int(start) for step in range(5) for start in drawn[step][0][:, 0]}
    assert starts == {0, 1, 2, 3}
    assert int(max(drawn[step][1].max() for step in range(5))) == 11


@pytest.mark.parametrize("n", [9, 16, 17, 18, 100])
def test_blocks_cover_each_target_exactly_once(n: int) -> None:
    covered = blocks(TOKENS[:n], block_size=8)
    targets = torch.cat([y.flatten() for _, y in covered])
    inputs = torch.cat([x.flatten() for x, _ in covered])
    assert torch.equal(targets, torch.arange(1, n))
    assert torch.equal(inputs, torch.arange(n - 1))


def test_limited_blocks_are_spread_over_the_whole_split() -> None:
    ((x, y),) = blocks(TOKENS, block_size=8, limit=10)
    assert x.shape == (10, 8)
    assert torch.equal(y, x + 1)
    assert x[0, 0] == 0
    assert y[-1, -1] == len(TOKENS) - 1
    gaps = x[1:, 0] - x[:-1, 0]
    assert gaps.max() - gaps.min() <= 1, "spread evenly"
    assert torch.equal(x, blocks(TOKENS, block_size=8, limit=10)[0][0]), "always the same blocks"


@pytest.mark.parametrize(
    ("vocab_size", "dtype"),
    [(256, np.uint8), (257, np.int16), (32768, np.int16), (32769, np.uint16), (65536, np.uint16), (65537, np.int32)],
)
def test_ids_are_stored_in_the_narrowest_dtype(vocab_size: int, dtype: type[np.generic]) -> None:
    assert narrowest_dtype(vocab_size) is dtype
    ids = np.array([0, vocab_size - 1, 1], dtype=narrowest_dtype(vocab_size))
    tokens = on_device(ids, torch.device("cpu"))
    assert tokens.tolist() == [0, vocab_size - 1, 1]
    x, y = Batches(Stream(tokens, block_size=1), batch_size=50, seed=0)[0]
    assert {(int(a), int(b)) for a, b in zip(x, y, strict=True)} == {(0, vocab_size - 1), (vocab_size - 1, 1)}
    ((inputs, targets),) = blocks(tokens, block_size=2)
    assert inputs.long().tolist() == [[0, vocab_size - 1]]
    assert targets.long().tolist() == [[vocab_size - 1, 1]]


def test_blocks_are_views() -> None:
    for x, y in blocks(TOKENS, block_size=8):
        assert x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr() == TOKENS.untyped_storage().data_ptr()


# Batches and blocks of examples (prompt and completion)


def examples(lengths: list[tuple[int, int]], block_size: int | None = None) -> tuple[Examples, list[list[int]]]:
    """Create examples with distinct tokens; return them and the token ids of each.

    lengths: the number of prompt tokens and of targets of each example.
    """
    at = np.cumsum([0, *(n for pair in lengths for n in pair)])
    bounds = np.stack([at[:-1:2], at[1::2], at[2::2]], axis=1)
    length = row_length({"train": bounds}, block_size or 1000)
    tokens = torch.arange(1, at[-1] + 1, dtype=torch.int32)
    return Examples(tokens, bounds, block_size=length), [tokens[a:b].tolist() for a, _, b in bounds]


def test_row_is_an_example_with_targets_only_in_the_completion() -> None:
    split, _ = examples([(2, 3), (1, 1), (3, 1)])
    x, y = split.rows(torch.arange(3), CPU)
    assert x.tolist() == [[1, 2, 3, 4], [6, 7, 0, 0], [8, 9, 10, 11]]
    assert y.tolist() == [[-100, 3, 4, 5], [7, -100, -100, -100], [-100, -100, 11, -100]]
    assert x.dtype == y.dtype == torch.int64


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=9), st.integers(1, 20))
@settings(max_examples=200)
def test_long_examples_are_cropped_as_in_the_reference(lengths: list[tuple[int, int]], block_size: int) -> None:
    split, tokens = examples(lengths, block_size)
    longest = max(p + t - 1 for p, t in lengths)
    assert split.block_size == min(block_size, longest)
    x, y = split.rows(torch.arange(len(lengths)), CPU)
    for row, ((p, t), ids) in enumerate(zip(lengths, tokens, strict=True)):
        prompt, targets = ids[:p], ids[p:]
        while len(prompt) > 1 and len(prompt) + len(targets) - 1 > block_size:
            prompt = prompt[1:]
        while len(prompt) + len(targets) - 1 > block_size:
            targets = targets[:-1]
        counted = y[row] != IGNORED
        assert y[row][counted].tolist() == targets
        assert counted.nonzero().flatten().tolist() == [*range(len(prompt) - 1, len(prompt) + len(targets) - 1)]
        assert x[row, : len(prompt) + len(targets) - 1].tolist() == (prompt + targets)[:-1]
        assert t >= len(targets) >= 1


@pytest.mark.parametrize(("n", "batch_size"), [(7, 3), (2, 8), (50, 4), (5000, 4)])
def test_each_epoch_contains_each_example_once(n: int, batch_size: int) -> None:
    split, _ = examples([(1, 1)] * n)
    batches = Batches(split, batch_size=batch_size, seed=3)
    steps = -(-3 * n // batch_size)
    drawn = torch.cat([batches[step][0][:, 0] for step in range(steps)])
    epochs = [drawn[epoch * n : (epoch + 1) * n].tolist() for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == sorted(x for x, *_ in split.rows(torch.arange(n), CPU)[0].tolist())
    if n > 2:
        assert epochs[0] != epochs[1] != epochs[2], "each epoch has a different order"


def test_batch_of_examples_depends_only_on_seed_and_step(monkeypatch: pytest.MonkeyPatch) -> None:
    split, _ = examples([(2, 1 + n % 5) for n in range(300)])
    steps = [0, 7, 74, 75, 1023, 1024, 2500]
    expected = {step: Batches(split, batch_size=4, seed=1)[step] for step in steps}
    for gathered in (1, 100, 1 << 20):
        monkeypatch.setattr("bigramlm.data.batches.TOKENS_PER_GATHER", gathered)
        batches = Batches(split, batch_size=4, seed=1)
        for step in reversed(steps):
            assert all(torch.equal(a, b) for a, b in zip(batches[step], expected[step], strict=True))
    assert not torch.equal(Batches(split, batch_size=4, seed=2)[0][0], expected[0][0])
    whole = Batches(split, batch_size=8, seed=1)[0][0]
    halves = [Batches(split, batch_size=4, seed=1)[step][0] for step in (0, 1)]
    assert torch.equal(whole, torch.cat(halves)), "the order does not depend on the batch size"


def test_evaluation_covers_examples_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    split, _ = examples([(2, 1 + n % 5) for n in range(100)])
    monkeypatch.setattr("bigramlm.data.batches.TOKENS_PER_GATHER", 70)

    def covered(limit: int | None) -> torch.Tensor:
        x, y = (torch.cat(parts) for parts in zip(*split.blocks(limit=limit), strict=True))
        rows = split.rows(torch.arange(100), CPU)
        indices = (x[:, None] == rows[0]).all(-1).nonzero()[:, 1]
        assert torch.equal(y, rows[1][indices])
        return indices

    assert covered(None).tolist() == covered(100).tolist() == covered(1000).tolist() == [*range(100)]
    limited = covered(10)
    assert (limited[0], limited[-1], len(limited)) == (0, 99, 10)
    assert (limited[1:] - limited[:-1]).max() - (limited[1:] - limited[:-1]).min() <= 1, "spread evenly"
    assert covered(1).tolist() == [0]


def test_cropping_changes_only_examples_that_are_too_long() -> None:
    bounds = np.array([[0, 2, 5], [5, 6, 7]])
    assert np.array_equal(crop_bounds(bounds, 4), bounds)
    assert crop_bounds(bounds, 3).tolist() == [[1, 2, 5], [5, 6, 7]]
    assert crop_bounds(bounds, 2).tolist() == [[1, 2, 4], [5, 6, 7]]
