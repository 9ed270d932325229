"""N-grams: comparison with a plain implementation, and valid probabilities."""

import json
import math
import time
from collections import Counter

import pytest
import torch

from bigramlm.model.base import cross_entropy
from bigramlm.model.config import GPTConfig
from bigramlm.model.ngram import Grams, Ngram, ngram_losses
from tests.helpers import Cli, assert_refused, refuses, run_config, tokens

V, BLOCK = 7, 6


def counted(order: int, train: torch.Tensor, vocab_size: int = V, block_size: int = BLOCK) -> Ngram:
    ngram = Ngram(vocab_size=vocab_size, block_size=block_size, order=order)
    assert ngram.fit_counts(train)
    return ngram


class PlainNgram:
    """Interpolated Kneser-Ney with three discounts, in plain dictionaries."""

    def __init__(self, text: list[int], order: int, vocab_size: int) -> None:
        self.order, self.vocab_size = order, vocab_size
        self.occurrences = {
            n: Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1)) for n in range(1, order + 1)
        }
        self.discounts = {
            (n, longest): self.estimate_discounts(
                list((self.occurrences[n] if longest else self.continuations(n)).values())
            )
            for n in range(1, order + 1)
            for longest in (True, False)
        }

    def continuations(self, n: int) -> Counter[tuple[int, ...]]:
        """Count the different tokens that precede each n-gram of n tokens."""
        return Counter(gram[1:] for gram, count in self.occurrences.get(n + 1, {}).items() if count > 0)

    @staticmethod
    def estimate_discounts(counts: list[int]) -> tuple[float, ...]:
        n = Counter(counts)
        if not all(n[i] for i in (1, 2, 3, 4)):
            return 0, 0.5, 1, 1.5
        y = n[1] / (n[1] + 2 * n[2])
        return (0, *(max(0.1, i - (i + 1) * y * n[i + 1] / n[i]) for i in (1, 2, 3)))

    def p(self, context: tuple[int, ...], token: int) -> float:
        """Return the probability of a token after the last order - 1 tokens of a context."""
        used = context[-(self.order - 1) :] if self.order > 1 else ()
        return self._p(used, token, longest=True)

    def _p(self, context: tuple[int, ...], token: int, *, longest: bool) -> float:
        n = len(context) + 1
        shorter = self._p(context[1:], token, longest=False) if context else 1 / self.vocab_size
        counts = self.occurrences[n] if longest else self.continuations(n)
        grams = [(*context, t) for t in range(self.vocab_size)]
        following = [counts[gram] for gram in grams]
        if sum(following) == 0:
            return shorter
        discounts = self.discounts[n, longest]
        spare = sum(discounts[min(count, 3)] for count in following)
        count = following[token]
        return (count - discounts[min(count, 3)] + spare * shorter) / sum(following)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_match_a_plain_implementation(order: int) -> None:
    text = tokens(400, V, seed=3)
    plain = PlainNgram(text.tolist(), order, V)
    idx = torch.cat((tokens(5 * BLOCK, V, seed=4), torch.randint(V, (5 * BLOCK,)))).view(-1, BLOCK).long()
    found = counted(order, text).log_probabilities(idx).exp()
    for b, row in enumerate(idx.tolist()):
        for t in range(BLOCK):
            expected = [plain.p(tuple(row[: t + 1]), token) for token in range(V)]
            assert found[b, t].tolist() == pytest.approx(expected, abs=1e-6), (b, t)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_leaving_out_an_occurrence_equals_removing_it_from_the_text(order: int) -> None:
    text = tokens(150, V, seed=5)
    ngram = counted(order, text)
    windows = text.unfold(0, BLOCK + 1, 1)[::7].long()
    found = ngram.log_probabilities(windows[:, :-1], windows[:, 1:]).exp()
    for b, window in enumerate(windows.tolist()):
        for t in range(BLOCK):
            plain = PlainNgram(text.tolist(), order, V)
            for n in range(1, min(order, t + 2) + 1):
                plain.occurrences[n][tuple(window[t + 2 - n : t + 2])] -= 1
            context = tuple(window[: t + 1])
            assert found[b, t].tolist() == pytest.approx([plain.p(context, c) for c in range(V)], abs=1e-6), (b, t)


def test_probabilities_sum_to_one() -> None:
    text = tokens(300, V, seed=6)
    for order in (1, 3, 6):
        ngram = counted(order, text)
        idx, targets = text[:60].view(-1, BLOCK).long(), text[1:61].view(-1, BLOCK).long()
        for p in (ngram.log_probabilities(idx), ngram.log_probabilities(idx, targets)):
            torch.testing.assert_close(p.exp().sum(-1), torch.ones(10, BLOCK))
        unseen = ngram.log_probabilities(torch.randint(V, (4, BLOCK)), torch.randint(V, (4, BLOCK)))  # another text
        torch.testing.assert_close(unseen.exp().sum(-1), torch.ones(4, BLOCK))


def test_reference_losses_match_the_model_of_each_order() -> None:
    train, val = tokens(500, V, seed=1), tokens(203, V, seed=2)
    references = ngram_losses(train, val, vocab_size=V, block_size=BLOCK)
    blocks = [(val[:-1][i : i + BLOCK].long(), val[1:][i : i + BLOCK].long()) for i in range(0, 202, BLOCK)]
    for order in range(1, 7):
        ngram = counted(order, train)
        total = torch.zeros(())
        for idx, targets in blocks:
            loss = cross_entropy(ngram(idx[None])[0], targets[None])
            assert loss is not None
            total += loss * len(targets)
        assert references[f"val/ngram_{order}"] == pytest.approx(total.item() / 202, abs=1e-5)


@pytest.mark.parametrize("counts", [[1, 1, 2, 3, 4, 5], [1, 1, 1, 2, 2, 3], [2, 3, 4], [1, 2, 3, 9], [7]], ids=str)
def test_discounts_match_a_plain_implementation(counts: list[int]) -> None:
    grams, n = Grams(), len(counts)
    grams.keys, grams.counts = torch.arange(n), torch.tensor([counts, counts[::-1]]).int()
    grams.derive_tables(1, n)
    for found in grams.discounts.tolist():  # for both kinds of count
        assert found == pytest.approx(PlainNgram.estimate_discounts(counts))


def test_final_loss_of_a_run_is_the_reference_loss_of_its_order(cli: Cli) -> None:
    ended = cli("data=bundled", "model=ngram", "model.order=3", "data.block_size=16", "sample.max_new_tokens=5")
    assert ended.code == 0, ended.err
    summary = json.loads((ended.folder / "summary.json").read_text("utf-8"))
    assert summary["step"] == 0
    references = summary["references"]
    assert summary["final"]["val/loss"] == pytest.approx(references["val/ngram_3"], abs=1e-5)
    assert references["val/ngram_3"] < references["val/ngram_2"] < references["val/ngram_1"]
    assert "Val loss of counted n-grams, orders 1 to 6:" in ended.out
    lines = ended.out.rpartition("\n\n")[2].splitlines()
    assert max(len(line) for line in lines if not line.startswith(("Run: ", "Metrics: "))) <= 80, "except for paths"
    assert "steps: 0, because" in (ended.folder / "train.log").read_text("utf-8")
    assert f"counts: {summary['n_params']:,} different n-grams" in ended.err
    assert "0 parameters" not in ended.err


def test_seconds_of_a_run_include_counting(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    fit_counts, clock, offset = Ngram.fit_counts, time.perf_counter, [0.0]

    def slow_fit_counts(self: Ngram, train: torch.Tensor) -> bool:
        offset[0] += 10_000
        return fit_counts(self, train)

    monkeypatch.setattr(Ngram, "fit_counts", slow_fit_counts)
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + offset[0])
    ended = cli("data=bundled", "model=ngram", "logger=none", "sample.max_new_tokens=1")
    assert json.loads((ended.folder / "summary.json").read_text("utf-8"))["seconds"] >= 10_000


def test_no_reference_losses_for_a_long_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigramlm.model.ngram.MAX_REFERENCE_TOKENS", 100)
    assert ngram_losses(tokens(90, V), tokens(20, V), vocab_size=V, block_size=4) == {}


def test_text_that_is_too_long_to_count_is_refused(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigramlm.model.ngram.MAX_COUNTED_TOKENS", 1000)
    counted(2, tokens(1000, V))
    with refuses("1,000", "1,001"):
        counted(2, tokens(1001, V))
    for model in (["model=ngram"], ["model=gpt", "model.ngram_order=3"]):
        assert_refused(cli("data=bundled", "trainer.steps=1", "logger=none", *model), "1,000")


def test_text_shorter_than_the_order_and_text_without_repetition() -> None:
    for text in (torch.tensor([1, 2, 3]), torch.arange(V)):
        ngram = counted(5, text)
        p = ngram.log_probabilities(torch.tensor([[1, 2, 3, 4, 5, 6]])).exp()
        torch.testing.assert_close(p.sum(-1), torch.ones(1, 6))
        assert p[0, 1].argmax() == 3


def test_large_vocabulary_needs_no_table_of_its_square() -> None:
    vocab_size = 50_257
    text = torch.randint(vocab_size, (3000,), generator=torch.Generator().manual_seed(0))
    ngram = counted(3, text, vocab_size, 8)
    n_bytes = sum(buffer.numel() * buffer.element_size() for buffer in ngram.buffers())
    assert n_bytes < 60 * 3 * len(text)
    logits = ngram.log_probabilities(text[:16].view(2, 8))
    assert logits.shape == (2, 8, vocab_size)
    assert (logits.argmax(-1)[:, 1:] == text[1:17].view(2, 8)[:, 1:]).all()  # each token here is followed by one


def test_losses_on_random_tokens_are_near_ln_v() -> None:
    """Uniformly random tokens allow no n-gram a loss below ln V, nor one far above."""
    generator = torch.Generator().manual_seed(0)
    train, val = torch.randint(V, (20_000,), generator=generator), torch.randint(V, (2000,), generator=generator)
    for loss in ngram_losses(train, val, vocab_size=V, block_size=8).values():
        assert math.log(V) - 0.01 < loss < math.log(V) + 0.15


def test_empty_tables_give_uniform_probabilities() -> None:
    ngram = Ngram(vocab_size=V, block_size=BLOCK, order=2)
    assert ngram.n_params() == 0
    torch.testing.assert_close(ngram(torch.zeros(1, 3, dtype=torch.long))[0], torch.full((1, 3, V), -math.log(V)))
    assert isinstance(ngram.grams[0], Grams)


def test_gpt_adds_log_probabilities_and_leaves_out_occurrences_in_training() -> None:
    text = tokens(300, V, seed=8)
    torch.manual_seed(0)
    cfg = GPTConfig(n_layer=1, n_head=1, n_embd=8, ngram_order=3)
    gpt = cfg.build(vocab_size=V, block_size=BLOCK)
    assert gpt.fit_counts(text)
    torch.manual_seed(0)
    alone = GPTConfig(n_layer=1, n_head=1, n_embd=8).build(vocab_size=V, block_size=BLOCK)
    ngram = counted(3, text)
    idx, targets = text[:BLOCK][None].long(), text[1 : BLOCK + 1][None].long()
    for training, leave_out in ((True, targets), (False, None)):
        gpt.train(training)
        expected = alone.train(training)(idx)[0] + ngram.log_probabilities(idx, leave_out)
        torch.testing.assert_close(gpt(idx, targets)[0], expected, msg=str(training))
    assert gpt.n_params() == alone.n_params()  # counts are not trained


@pytest.mark.parametrize(
    "overrides", [["model=ngram", "model.order=0"], ["model=gpt", "model.ngram_order=-1"]], ids=str
)
def test_order_below_its_minimum_is_refused(overrides: list[str]) -> None:
    with refuses(overrides[1]):
        run_config(*overrides)
