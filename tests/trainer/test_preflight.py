"""Each check before training catches the mistake that it is for; here each mistake is put in."""

import copy
import itertools
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bigramlm.data.batches import Batches
from bigramlm.model.base import LanguageModel
from bigramlm.model.bigram import Bigram
from bigramlm.tokenizer.char import CharTokenizer
from bigramlm.trainer.preflight import preflight
from tests.helpers import SHORT, Cli, Stub, assert_refused, refuses, summary

TEXT = "".join(chr(65 + int(i)) for i in torch.randint(30, (4000,), generator=torch.Generator().manual_seed(0)))


class Attention(LanguageModel):
    """One head with a residual stream: as it should be, or with one of the mistakes that people make."""

    mask, scale, detach, summed, unused = True, 0.02, False, False, False
    zero_projection = False

    def __init__(self, *, vocab_size: int, block_size: int) -> None:
        super().__init__()
        self.vocab_size, self.block_size = vocab_size, block_size
        self.token, self.position = nn.Embedding(vocab_size, 16), nn.Embedding(block_size, 16)
        self.qkv, self.projection, self.head = nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, vocab_size)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=self.scale)
        if self.zero_projection:
            nn.init.zeros_(self.projection.weight)
            nn.init.zeros_(self.projection.bias)
        if self.unused:
            self.forgotten = nn.Linear(4, 4)

    def forward(self, idx: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
        x = self.token(idx) + self.position(torch.arange(idx.shape[1]))
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        y = F.scaled_dot_product_attention(q, k, v.detach() if self.detach else v, is_causal=self.mask)
        logits = self.head(x + self.projection(y))
        if targets is None:
            return logits, None
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum" if self.summed else "mean")
        return logits, loss


def model(kind: type[LanguageModel] = Attention, **mistakes: Any) -> LanguageModel:
    torch.manual_seed(0)
    return type("Mistaken", (kind,), mistakes)(vocab_size=30, block_size=8)  # type: ignore[no-any-return]


def check(
    of: LanguageModel,
    *,
    tokenizer: Any = None,
    fresh: bool = True,
    shift: int = 1,
    texts: dict[str, str] | None = None,
) -> None:
    tokenizer = tokenizer or CharTokenizer("".join(sorted(set(TEXT))))
    ids = torch.from_numpy(tokenizer.encode(TEXT)).long()
    x = torch.stack([ids[i : i + 8] for i in range(0, 320, 10)])
    y = torch.stack([ids[i + shift : i + shift + 8] for i in range(0, 320, 10)])
    preflight(of, tokenizer, texts or {"train": TEXT[:3600], "val": TEXT[3600:]}, (x, y), fresh=fresh)


@pytest.mark.parametrize("kind", [Bigram, Attention, Stub])
def test_a_model_as_it_should_be_passes_and_is_not_changed(kind: type[LanguageModel]) -> None:
    it = model(kind)
    before, random = copy.deepcopy(it.state_dict()), torch.get_rng_state()
    check(it, fresh=kind is not Stub)  # its tied embedding of N(0, 1) starts far from a guess
    assert all(torch.equal(value, before[name]) for name, value in it.state_dict().items())
    assert all(parameter.grad is None for parameter in it.parameters())
    assert it.training
    assert torch.equal(random, torch.get_rng_state())


def test_projections_that_start_at_zero_pass() -> None:
    """Behind them every gradient is exactly zero at the first step, and a leak is not to be seen yet."""
    it = model(zero_projection=True)
    _, loss = it(torch.zeros(1, 8, dtype=torch.long), torch.ones(1, 8, dtype=torch.long))
    loss.backward()
    assert not it.get_parameter("qkv.weight").grad.any()  # type: ignore[union-attr]
    check(model(zero_projection=True))
    with refuses("position", "logits", field="preflight", value="preflight=false"):
        check(model(zero_projection=True, mask=False))


class Peeks(Attention):
    """Sees one token of the future, wherever it is."""

    peeks_at = 0

    def forward(self, idx: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
        logits, _ = super().forward(idx)
        logits = logits + 0.1 * self.token(idx[:, [self.peeks_at]]).mean(dim=-1, keepdim=True)
        logits = logits * torch.linspace(1, 2, self.vocab_size)
        return logits, None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Knows(Bigram):
    """A fresh model that is no fresh model."""

    def __init__(self, *, vocab_size: int, block_size: int) -> None:
        super().__init__(vocab_size=vocab_size, block_size=block_size)
        ids = torch.tensor([CHARS.index(c) for c in TEXT[:60]])
        with torch.no_grad():
            self.token_embedding_table.weight.zero_()
            for a, b in itertools.pairwise(ids):
                self.token_embedding_table.weight[a, b] = 9.0

    def forward(self, idx: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
        return super().forward(idx[:4], None if targets is None else targets[:4])


class Middle(CharTokenizer):
    """Goes wrong in the middle of a long text only."""

    def decode(self, ids: Iterable[int]) -> str:
        text = super().decode(ids)
        return text.replace(LONG[len(LONG) // 2 - 5 : len(LONG) // 2], "?")


class TrainsOnly(Attention):
    """A layer that is there in training alone gets its gradient all the same."""

    def forward(self, idx: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
        logits, _ = super().forward(idx)
        if self.training:
            logits = logits + self.forgotten(torch.ones(4)).sum() * torch.linspace(0, 1, self.vocab_size)
        return logits, None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())


LONG = "".join(chr(65 + int(i)) for i in torch.randint(30, (20_000,), generator=torch.Generator().manual_seed(1)))


class LowerCase(CharTokenizer):
    """Loses what it should keep."""

    def decode(self, ids: Iterable[int]) -> str:
        return super().decode(ids).lower()


class Late(CharTokenizer):
    """Goes wrong at the end of a text only."""

    def encode(self, text: str) -> Any:
        ids = super().encode(text)
        return np.append(ids[:-1], (ids[-1] + 1) % self.vocab_size)


CHARS = "".join(sorted(set(TEXT)))
# What each refusal names: a position, a loss, a part of the model, a place in the text.
MISTAKES: dict[str, tuple[Callable[[], None], tuple[str, ...]]] = {
    "attention without its mask": (lambda: check(model(mask=False)), ("position", "logits")),
    "labels shifted twice": (lambda: check(model(), shift=2), ("targets",)),
    "labels not shifted": (lambda: check(model(), shift=0), ("targets",)),
    "first weights too large": (lambda: check(model(scale=2.0)), ("loss", " 30 ", "3.401")),
    "a loss that is summed": (lambda: check(model(summed=True)), ("loss", "summed", "3.401")),
    "a layer that is never used": (lambda: check(model(unused=True)), ("forgotten.weight",)),
    "everything frozen": (lambda: check(model().requires_grad_(False)), ("requires a gradient",)),
    "a look at the last token": (lambda: check(model(Peeks, peeks_at=7)), ("position 7", "logits")),
    "a look at the middle token": (lambda: check(model(Peeks, peeks_at=4)), ("position 4", "logits")),
    "a fresh model that knows the text": (lambda: check(model(Knows)), ("loss", "3.401")),
    "a tokenizer that goes wrong far in": (
        lambda: check(model(), tokenizer=Middle(CHARS), texts={"train": LONG}),
        ("train", "9,99"),
    ),
    "a tokenizer that loses capitals": (lambda: check(model(), tokenizer=LowerCase(CHARS)), ("train", "character 0")),
    "a tokenizer that loses the end": (lambda: check(model(), tokenizer=Late(CHARS)), ("train", "3,599")),
}


@pytest.mark.parametrize(("mistaken", "named"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_caught(mistaken: Callable[[], None], named: tuple[str, ...]) -> None:
    with refuses(*named, field="preflight", value="preflight=false"):
        mistaken()


def test_a_value_that_is_cut_off_is_caught() -> None:
    """With v detached, its third of qkv gets no gradient, but the rest does; wholly cut off it is named."""

    class Cut(Attention):
        def forward(self, idx: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
            logits = self.head((self.token(idx) + self.position(torch.arange(idx.shape[1]))).detach())
            return logits, None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    with refuses("gradient", "token.weight, position.weight, qkv.weight", field="preflight", value="preflight=false"):
        check(model(Cut))


def test_a_layer_that_works_in_training_alone_is_used() -> None:
    check(model(TrainsOnly, unused=True))


def test_a_model_that_is_not_fresh_may_know_something() -> None:
    check(model(scale=2.0), fresh=False)


def test_the_loss_of_a_tiny_vocabulary_says_nothing() -> None:
    torch.manual_seed(0)
    it = Bigram(vocab_size=2, block_size=8)
    with torch.no_grad():
        it.token_embedding_table.weight.copy_(torch.tensor([[5.0, 0.0], [0.0, 5.0]]))
    ids = torch.tensor([[0, 1] * 4])
    preflight(it, CharTokenizer("ab"), {"train": "abab"}, (ids, 1 - ids), fresh=True)


def test_a_failed_check_stops_the_run_before_it_trains(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    take = Batches.__getitem__

    def shifted_twice(self: Batches, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = take(self, step)
        return x, y.roll(-1, dims=1)

    monkeypatch.setattr(Batches, "__getitem__", shifted_twice)
    ended = cli(*SHORT)
    assert_refused(ended, "targets", field="preflight", value="preflight=false")
    assert summary(ended.folder)["status"] == "failed"
    assert not (ended.folder / "metrics.jsonl").exists()
    assert cli(*SHORT, "preflight=false").code == 0


def test_the_checks_change_nothing_of_the_run_and_say_how_long_they_took(cli: Cli) -> None:
    one, two = cli(*SHORT), cli(*SHORT, "preflight=false")
    assert re.search(r"^preflight: passed, in \d+ ms$", one.err, re.MULTILINE)
    assert "preflight: passed" not in two.err
    saved = [(run.folder / "checkpoints" / "step_5" / "model.safetensors").read_bytes() for run in (one, two)]
    assert saved[0] == saved[1]
