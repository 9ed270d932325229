"""The batches and blocks that come of a split: of one stream of tokens, and of examples."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bigramlm.data.batches import IGNORED, Batches, Examples, Stream, blocks, on_device
from bigramlm.data.pairs import fitted, row_length
from bigramlm.data.tokens import narrowest

CPU = torch.device("cpu")
TOKENS = torch.arange(5000, dtype=torch.int32)  # an id says where it stands


def batches(seed: int = 1, block_size: int = 8, batch_size: int = 4) -> Batches:
    return Batches(Stream(TOKENS, block_size=block_size), batch_size=batch_size, seed=seed)


def test_targets_are_the_inputs_one_token_on() -> None:
    x, y = batches()[0]
    assert x.shape == y.shape == (4, 8)
    assert x.dtype == y.dtype == torch.int64
    assert torch.equal(y, x + 1)
    assert torch.equal(x[:, 1:], x[:, :-1] + 1)


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    steps = [0, 1, 1023, 1024, 1025, 5000]
    forward = {step: batches()[step] for step in steps}
    one = batches()
    for step in reversed(steps):
        assert torch.equal(one[step][0], forward[step][0])
    in_order = batches()
    walked = [in_order[step][0] for step in range(1030)]
    assert torch.equal(walked[1025], forward[1025][0])
    assert not torch.equal(forward[0][0], forward[1][0])
    assert not torch.equal(forward[0][0], forward[1024][0])
    assert not torch.equal(forward[0][0], batches(seed=2)[0][0])


def test_batches_do_not_depend_on_how_many_are_gathered_together(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [batches()[step][0] for step in (0, 7, 1023, 1024, 2047)]
    for gathered in (1, 100, 1 << 20):
        monkeypatch.setattr("bigramlm.data.batches.GATHERED_TOKENS", gathered)
        found = [batches()[step][0] for step in (0, 7, 1023, 1024, 2047)]
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_every_place_is_drawn_up_to_the_last_token() -> None:
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


def test_limited_blocks_reach_from_the_first_token_to_the_last() -> None:
    ((x, y),) = blocks(TOKENS, block_size=8, limit=10)
    assert x.shape == (10, 8)
    assert torch.equal(y, x + 1)
    assert x[0, 0] == 0
    assert y[-1, -1] == len(TOKENS) - 1
    gaps = x[1:, 0] - x[:-1, 0]
    assert gaps.max() - gaps.min() <= 1, "spread evenly"
    assert torch.equal(x, blocks(TOKENS, block_size=8, limit=10)[0][0]), "always the same ones"


@pytest.mark.parametrize(
    ("vocab_size", "kind"),
    [(256, np.uint8), (257, np.int16), (32768, np.int16), (32769, np.uint16), (65536, np.uint16), (65537, np.int32)],
)
def test_ids_are_kept_in_the_narrowest_type(vocab_size: int, kind: type[np.generic]) -> None:
    assert narrowest(vocab_size) is kind
    ids = np.array([0, vocab_size - 1, 1], dtype=narrowest(vocab_size))
    kept = on_device(ids, torch.device("cpu"))
    assert kept.tolist() == [0, vocab_size - 1, 1]
    x, y = Batches(Stream(kept, block_size=1), batch_size=50, seed=0)[0]
    assert {(int(a), int(b)) for a, b in zip(x, y, strict=True)} == {(0, vocab_size - 1), (vocab_size - 1, 1)}
    ((inputs, targets),) = blocks(kept, block_size=2)
    assert inputs.long().tolist() == [[0, vocab_size - 1]]
    assert targets.long().tolist() == [[vocab_size - 1, 1]]


def test_blocks_are_views_that_copy_nothing() -> None:
    for x, y in blocks(TOKENS, block_size=8):
        assert x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr() == TOKENS.untyped_storage().data_ptr()


# Batches and blocks of examples: prompts and completions


def examples(lengths: list[tuple[int, int]], block_size: int | None = None) -> tuple[Examples, list[list[int]]]:
    """Examples of so many tokens of prompt and of targets each, all tokens different; and these tokens."""
    at = np.cumsum([0, *(n for pair in lengths for n in pair)])
    bounds = np.stack([at[:-1:2], at[1::2], at[2::2]], axis=1)
    length = row_length({"train": bounds}, block_size or 1000)
    tokens = torch.arange(1, at[-1] + 1, dtype=torch.int32)
    return Examples(tokens, bounds, block_size=length), [tokens[a:b].tolist() for a, _, b in bounds]


def test_a_row_is_an_example_and_its_targets_are_of_the_completion_alone() -> None:
    split, _ = examples([(2, 3), (1, 1), (3, 1)])
    x, y = split.rows(torch.arange(3), CPU)
    assert x.tolist() == [[1, 2, 3, 4], [6, 7, 0, 0], [8, 9, 10, 11]]
    assert y.tolist() == [[-100, 3, 4, 5], [7, -100, -100, -100], [-100, -100, 11, -100]]
    assert x.dtype == y.dtype == torch.int64


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=9), st.integers(1, 20))
@settings(max_examples=200)
def test_what_is_too_long_is_cut_as_it_would_be_by_hand(lengths: list[tuple[int, int]], block_size: int) -> None:
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
        seen = y[row] != IGNORED
        assert y[row][seen].tolist() == targets
        assert seen.nonzero().flatten().tolist() == [*range(len(prompt) - 1, len(prompt) + len(targets) - 1)]
        assert x[row, : len(prompt) + len(targets) - 1].tolist() == (prompt + targets)[:-1]
        assert t >= len(targets) >= 1


@pytest.mark.parametrize(("n", "batch_size"), [(7, 3), (2, 8), (50, 4), (5000, 4)])
def test_each_example_comes_once_in_an_epoch(n: int, batch_size: int) -> None:
    split, _ = examples([(1, 1)] * n)
    batches = Batches(split, batch_size=batch_size, seed=3)
    steps = -(-3 * n // batch_size)
    drawn = torch.cat([batches[step][0][:, 0] for step in range(steps)])
    epochs = [drawn[epoch * n : (epoch + 1) * n].tolist() for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == sorted(x for x, *_ in split.rows(torch.arange(n), CPU)[0].tolist())
    if n > 2:
        assert epochs[0] != epochs[1] != epochs[2], "in another order each time"


def test_a_batch_of_examples_depends_on_seed_and_step_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    split, _ = examples([(2, 1 + n % 5) for n in range(300)])
    steps = [0, 7, 74, 75, 1023, 1024, 2500]
    expected = {step: Batches(split, batch_size=4, seed=1)[step] for step in steps}
    for gathered in (1, 100, 1 << 20):
        monkeypatch.setattr("bigramlm.data.batches.GATHERED_TOKENS", gathered)
        batches = Batches(split, batch_size=4, seed=1)
        for step in reversed(steps):
            assert all(torch.equal(a, b) for a, b in zip(batches[step], expected[step], strict=True))
    assert not torch.equal(Batches(split, batch_size=4, seed=2)[0][0], expected[0][0])
    whole = Batches(split, batch_size=8, seed=1)[0][0]
    halves = [Batches(split, batch_size=4, seed=1)[step][0] for step in (0, 1)]
    assert torch.equal(whole, torch.cat(halves)), "however many are drawn for a step, the order is the same"


def test_evaluation_covers_examples_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    split, _ = examples([(2, 1 + n % 5) for n in range(100)])
    monkeypatch.setattr("bigramlm.data.batches.GATHERED_TOKENS", 70)

    def covered(limit: int | None) -> torch.Tensor:
        x, y = (torch.cat(parts) for parts in zip(*split.blocks(limit=limit), strict=True))
        rows = split.rows(torch.arange(100), CPU)
        found = (x[:, None] == rows[0]).all(-1).nonzero()[:, 1]
        assert torch.equal(y, rows[1][found])
        return found

    assert covered(None).tolist() == covered(100).tolist() == covered(1000).tolist() == [*range(100)]
    some = covered(10)
    assert (some[0], some[-1], len(some)) == (0, 99, 10)
    assert (some[1:] - some[:-1]).max() - (some[1:] - some[:-1]).min() <= 1, "spread evenly"
    assert covered(1).tolist() == [0]


def test_cutting_leaves_what_fits_as_it_is() -> None:
    bounds = np.array([[0, 2, 5], [5, 6, 7]])
    assert np.array_equal(fitted(bounds, 4), bounds)
    assert fitted(bounds, 3).tolist() == [[1, 2, 5], [5, 6, 7]]
    assert fitted(bounds, 2).tolist() == [[1, 2, 4], [5, 6, 7]]
