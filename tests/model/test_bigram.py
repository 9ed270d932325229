"""The bigram: comparison with its closed form and with the tutorial."""

import itertools
import math
from collections import Counter

import pytest
import torch
from torch.nn import functional as F

from bigramlm.device.config import DeviceConfig
from bigramlm.device.device import decide, set_up
from bigramlm.generate import generate
from bigramlm.model.bigram import Bigram, best_bigram_losses
from tests.helpers import tokens

DEVICE = set_up(decide(DeviceConfig(name="cpu"), n_params=1, tokens=1))


def test_forward_returns_table_rows_and_mean_cross_entropy() -> None:
    model = Bigram(vocab_size=5, block_size=4)
    idx, targets = torch.randint(5, (3, 4)), torch.randint(5, (3, 4))
    logits, loss = model(idx, targets)
    assert logits.shape == (3, 4, 5)
    assert torch.equal(logits[1, 2], model.token_embedding_table.weight[idx[1, 2]])
    expected = -torch.stack([logits[b, t].log_softmax(-1)[targets[b, t]] for b in range(3) for t in range(4)]).mean()
    torch.testing.assert_close(loss, expected)
    assert model(idx)[1] is None
    assert model.n_params() == 25


def test_logits_depend_on_their_own_token_only() -> None:
    model = Bigram(vocab_size=7, block_size=6)
    idx = torch.randint(7, (1, 6))
    logits, _ = model(idx)
    for t in range(6):
        changed, _ = model(idx.index_fill(1, torch.tensor([t]), (int(idx[0, t]) + 1) % 7))
        same = (changed == logits).all(-1)[0]
        assert same.tolist() == [other != t for other in range(6)]


def test_gradient_is_zero_at_the_counted_optimum() -> None:
    """A table of log counts has the closed-form loss and no gradient."""
    train = tokens(3000, 6)
    counts = torch.zeros(6, 6).index_put_((train[:-1].long(), train[1:].long()), torch.ones(2999), accumulate=True)
    model = Bigram(vocab_size=6, block_size=8).double()
    with torch.no_grad():
        model.token_embedding_table.weight.copy_((counts.double() + 1e-30).log())
    _, loss = model(train[None, :-1].long(), train[None, 1:].long())
    assert loss is not None
    loss.backward()
    best, _ = best_bigram_losses(train, train, 6)
    assert loss.item() == pytest.approx(best, abs=1e-12)
    assert model.token_embedding_table.weight.grad is not None
    assert model.token_embedding_table.weight.grad.abs().max() < 1e-12


def test_training_converges_to_the_closed_form() -> None:
    train = tokens(2000, 4)
    best, _ = best_bigram_losses(train, train, 4)
    torch.manual_seed(0)
    model = Bigram(vocab_size=4, block_size=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(300):
        _, loss = model(train[None, :-1].long(), train[None, 1:].long())
        assert loss is not None
        assert loss.item() >= best - 1e-6
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() == pytest.approx(best, abs=1e-3)


def test_best_losses_match_a_plain_implementation() -> None:
    train, val = tokens(500, 9, seed=1), tokens(300, 9, seed=2)
    pairs = list(zip(train.tolist(), train.tolist()[1:], strict=False))
    pair, first = Counter(pairs), Counter(a for a, _ in pairs)
    train_loss = -sum(math.log(pair[p] / first[p[0]]) for p in pairs) / len(pairs)
    val_pairs = list(zip(val.tolist(), val.tolist()[1:], strict=False))
    assert any(pair[p] == 0 for p in val_pairs), "the val text must contain pairs that train lacks"
    val_loss = -sum(math.log((pair[p] + 1) / (first[p[0]] + 9)) for p in val_pairs) / len(val_pairs)
    assert best_bigram_losses(train, val, 9) == pytest.approx((train_loss, val_loss))


def test_loss_by_counts_is_the_loss_of_the_whole_text() -> None:
    train = tokens(3000, 6)
    torch.manual_seed(0)
    model = Bigram(vocab_size=6, block_size=8)
    _, loss = model(train[None, :-1].long(), train[None, 1:].long())
    assert loss is not None
    assert model.loss_by_counts(train) == pytest.approx(loss.item(), rel=1e-6)
    best, _ = best_bigram_losses(train, train, 6)
    assert loss.item() > best


def test_generate_matches_the_tutorials_loop() -> None:
    model = Bigram(vocab_size=11, block_size=8)
    idx = torch.zeros((1, 1), dtype=torch.long)
    found = generate(model, idx, 50, temperature=1.0, seed=3, device=DEVICE)
    generator = torch.Generator().manual_seed(3)
    for _ in range(50):  # the tutorial's loop, with the whole context
        probabilities = F.softmax(model(idx)[0][:, -1, :], dim=-1)
        idx = torch.cat((idx, torch.multinomial(probabilities, num_samples=1, generator=generator)), dim=1)
    assert torch.equal(found, idx)
    assert found[0, 0] == 0


def test_generate_at_temperature_zero_takes_the_likeliest_token() -> None:
    model = Bigram(vocab_size=11, block_size=8)
    ids = generate(model, torch.tensor([[4]]), 5, temperature=0.0, seed=0, device=DEVICE)[0]
    for a, b in itertools.pairwise(ids):
        assert model.token_embedding_table.weight[a].argmax() == b


def test_generate_does_not_change_the_global_random_state() -> None:
    model = Bigram(vocab_size=3, block_size=2)
    state = torch.get_rng_state()
    generate(model, torch.tensor([[0]]), 5, temperature=1.0, seed=0, device=DEVICE)
    assert torch.equal(state, torch.get_rng_state())
