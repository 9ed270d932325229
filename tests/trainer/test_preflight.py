"""The checks before training: each test makes the mistake that a check must find."""

import copy
import itertools
import re
from collections.abc import Callable, Iterable
from pathlib import Path
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
from tests.helpers import SHORT, Cli, Stub, assert_refused, refuses

TEXT = "".join(chr(65 + int(i)) for i in torch.randint(30, (4000,), generator=torch.Generator().manual_seed(0)))


class Attention(LanguageModel):
    """One attention head with a residual stream, correct or with a common mistake."""

    mask, scale, detach, summed, unused = True, 0.02, False, False, False
    zero_projection = False

    def __init__(self, *, vocab_size: int, block_size: int) -> None:
        super().__init__(vocab_size=vocab_size, block_size=block_size)
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
    return type("Faulty", (kind,), mistakes)(vocab_size=30, block_size=8)  # type: ignore[no-any-return]


def check(
    checked: LanguageModel,
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
    preflight(checked, tokenizer, texts or {"train": TEXT[:3600], "val": TEXT[3600:]}, (x, y), fresh=fresh)


@pytest.mark.parametrize("kind", [Bigram, Attention, Stub])
def test_a_correct_model_passes_and_is_not_changed(kind: type[LanguageModel]) -> None:
    correct = model(kind)
    state, random_state = copy.deepcopy(correct.state_dict()), torch.get_rng_state()
    # Stub is not checked as fresh: its tied embedding of N(0, 1) has an initial loss far from a guess.
    check(correct, fresh=kind is not Stub)
    assert all(torch.equal(value, state[name]) for name, value in correct.state_dict().items())
    assert all(parameter.grad is None for parameter in correct.parameters())
    assert correct.training
    assert torch.equal(random_state, torch.get_rng_state())


def test_projections_that_are_initialised_to_zero_pass() -> None:
    """Accept zero gradients in the first step, but still find a leak."""
    zero = model(zero_projection=True)
    _, loss = zero(torch.zeros(1, 8, dtype=torch.long), torch.ones(1, 8, dtype=torch.long))
    loss.backward()
    assert not zero.get_parameter("qkv.weight").grad.any()  # type: ignore[union-attr]
    check(model(zero_projection=True))
    with refuses("position", "logits", field="preflight", value="preflight=false"):
        check(model(zero_projection=True, mask=False))


class Peeks(Attention):
    """A model that sees the token at one position of the block."""

    peeks_at = 0

    def forward(self, idx: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
        logits, _ = super().forward(idx)
        logits = logits + 0.1 * self.token(idx[:, [self.peeks_at]]).mean(dim=-1, keepdim=True)
        logits = logits * torch.linspace(1, 2, self.vocab_size)
        return logits, None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Memorised(Bigram):
    """A model that knows the text although it should be untrained."""

    def __init__(self, *, vocab_size: int, block_size: int) -> None:
        super().__init__(vocab_size=vocab_size, block_size=block_size)
        ids = torch.tensor([CHARS.index(c) for c in TEXT[:60]])
        with torch.no_grad():
            self.token_embedding_table.weight.zero_()
            for a, b in itertools.pairwise(ids):
                self.token_embedding_table.weight[a, b] = 9.0

    def forward(self, idx: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
        return super().forward(idx[:4], None if targets is None else targets[:4])


class WrongInTheMiddle(CharTokenizer):
    """A tokenizer that decodes only the middle of a long text wrongly."""

    def decode(self, ids: Iterable[int]) -> str:
        text = super().decode(ids)
        return text.replace(LONG[len(LONG) // 2 - 5 : len(LONG) // 2], "?")


class TrainingOnly(Attention):
    """A model with a layer that is used in training mode only."""

    def forward(self, idx: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
        logits, _ = super().forward(idx)
        if self.training:
            logits = logits + self.forgotten(torch.ones(4)).sum() * torch.linspace(0, 1, self.vocab_size)
        return logits, None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Normalised(Attention):
    """A model with a BatchNorm over positions: it sees later tokens in training."""

    def __init__(self, *, vocab_size: int, block_size: int) -> None:
        super().__init__(vocab_size=vocab_size, block_size=block_size)
        self.norm = nn.BatchNorm1d(vocab_size)

    def forward(self, idx: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
        logits, _ = super().forward(idx)
        logits = self.norm(logits.transpose(1, 2)).transpose(1, 2)
        return logits, None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Probabilities(Attention):
    """A model that returns probabilities instead of logits."""

    def forward(self, idx: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
        logits = super().forward(idx)[0].softmax(dim=-1)
        return logits, None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class FixedLength(Bigram):
    """A model that computes positions for sequences of the block size only."""

    def forward(self, idx: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
        logits = super().forward(idx)[0] + torch.linspace(0, 1, self.block_size)[:, None]  # (B, block_size, V)
        return logits, None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())


LONG = "".join(chr(65 + int(i)) for i in torch.randint(30, (20_000,), generator=torch.Generator().manual_seed(1)))


class LowerCase(CharTokenizer):
    """A tokenizer that decodes every character as lower case."""

    def decode(self, ids: Iterable[int]) -> str:
        return super().decode(ids).lower()


class WrongAtTheEnd(CharTokenizer):
    """A tokenizer that encodes only the last character wrongly."""

    def encode(self, text: str) -> Any:
        ids = super().encode(text)
        return np.append(ids[:-1], (ids[-1] + 1) % self.vocab_size)


CHARS = "".join(sorted(set(TEXT)))
# The mistakes, with the facts that each message contains: a position, a loss, a parameter, a character of the text.
MISTAKES: dict[str, tuple[Callable[[], None], tuple[str, ...]]] = {
    "attention without its mask": (lambda: check(model(mask=False)), ("position", "logits")),
    "targets shifted twice": (lambda: check(model(), shift=2), ("targets",)),
    "targets not shifted": (lambda: check(model(), shift=0), ("targets",)),
    "initial weights too large": (lambda: check(model(scale=2.0)), ("loss", " 30 ", "3.401")),
    "a summed loss": (lambda: check(model(summed=True)), ("loss", "summed", "3.401")),
    "a layer that is never used": (lambda: check(model(unused=True)), ("forgotten.weight",)),
    "everything frozen": (lambda: check(model().requires_grad_(False)), ("requires a gradient",)),
    "attention to the last token": (lambda: check(model(Peeks, peeks_at=7)), ("position 7", "logits")),
    "attention to the middle token": (lambda: check(model(Peeks, peeks_at=4)), ("position 4", "logits")),
    "a BatchNorm over positions": (lambda: check(model(Normalised), fresh=False), ("training mode", "LayerNorm")),
    "probabilities instead of logits": (lambda: check(model(Probabilities)), ("probabilities", "softmax")),
    "a fixed length": (
        lambda: check(model(FixedLength), fresh=False),
        ("8 tokens", "fails for 1", "(1, 8, 30)", "arange"),
    ),
    "an untrained model that knows the text": (lambda: check(model(Memorised)), ("loss", "3.401")),
    "a tokenizer that is wrong in the middle": (
        lambda: check(model(), tokenizer=WrongInTheMiddle(CHARS), texts={"train": LONG}),
        ("train", "9,99"),
    ),
    "a tokenizer that loses capital letters": (
        lambda: check(model(), tokenizer=LowerCase(CHARS)),
        ("train", "character 0"),
    ),
    "a tokenizer that is wrong at the end": (
        lambda: check(model(), tokenizer=WrongAtTheEnd(CHARS)),
        ("train", "3,599"),
    ),
}


@pytest.mark.parametrize(("mistake", "facts"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_found(mistake: Callable[[], None], facts: tuple[str, ...]) -> None:
    with refuses(*facts, field="preflight", value="preflight=false"):
        mistake()


def test_detached_parameters_are_named() -> None:
    """Detach the input of the head, so that no gradient reaches the other parameters.

    Detaching v alone is not found, because the rest of qkv still gets a gradient.
    """

    class Detached(Attention):
        def forward(self, idx: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
            logits = self.head((self.token(idx) + self.position(torch.arange(idx.shape[1]))).detach())
            return logits, None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    with refuses("gradient", "token.weight, position.weight, qkv.weight", field="preflight", value="preflight=false"):
        check(model(Detached))


def test_a_layer_that_is_used_in_training_only_passes() -> None:
    check(model(TrainingOnly, unused=True))


def test_dropout_is_not_mistaken_for_a_look_at_the_future() -> None:
    class Dropped(Attention):
        def forward(self, idx: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
            logits = F.dropout(super().forward(idx)[0], 0.5, self.training)
            return logits, None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    class OwnRandomness(Attention):
        def forward(self, idx: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
            noise = float(np.random.default_rng().normal()) if self.training else 0.0
            logits = super().forward(idx)[0] + noise * torch.linspace(0, 1, self.vocab_size)
            return logits, None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    check(model(Dropped))
    check(model(OwnRandomness))


def test_the_loss_of_a_trained_model_is_not_checked() -> None:
    check(model(scale=2.0), fresh=False)


def test_the_loss_of_a_tiny_vocabulary_is_not_checked() -> None:
    torch.manual_seed(0)
    tiny = Bigram(vocab_size=2, block_size=8)
    with torch.no_grad():
        tiny.token_embedding_table.weight.copy_(torch.tensor([[5.0, 0.0], [0.0, 5.0]]))
    ids = torch.tensor([[0, 1] * 4])
    preflight(tiny, CharTokenizer("ab"), {"train": "abab"}, (ids, 1 - ids), fresh=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("name", ["token.weight", "qkv.bias", "head.weight"])
def test_a_parameter_that_is_not_finite_is_the_named_cause(name: str, value: float) -> None:
    """Set a value that makes some logits NaN, and not a look at the future."""
    broken = model()
    with torch.no_grad():
        parameter = broken.get_parameter(name)
        parameter.view(-1)[:] = value
        parameter.view(-1)[1] = -value
    with refuses(name, "NaN", field="preflight", value="preflight=false") as raised:
        check(broken, fresh=False)
    assert "attention" not in str(raised.value)


@pytest.mark.parametrize("factor", [1e38, 1e20])
def test_loaded_weights_that_are_too_large_are_the_named_cause(factor: float) -> None:
    broken = model()
    with torch.no_grad():
        broken.get_parameter("head.weight").mul_(factor)
    with refuses("loss of the loaded weights", "in head.weight", field="preflight", value="preflight=false"):
        check(broken, fresh=False)


class Undecoded(CharTokenizer):
    """A tokenizer that decodes spaces as letters, for lack of a decoder."""

    lossless = False

    def decode(self, ids: Iterable[int]) -> str:
        return super().decode(ids).replace("A", "Ġ").replace("B", "Ċ")


def test_a_tokenizer_without_its_decoder_is_refused() -> None:
    with refuses("decoder", "Ġ", "tokenizer.json", field="preflight", value="preflight=false"):
        check(model(), tokenizer=Undecoded(CHARS))


class Undefined(Attention):
    """A model that computes 0/0 in one mode, or only in its gradient."""

    where = "eval"

    def forward(self, idx: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
        logits = super().forward(idx)[0]
        zero = logits * 0
        if self.where == "gradient":
            logits = logits + zero.norm(dim=-1, keepdim=True) + zero.square().sum(dim=-1, keepdim=True).sqrt()
        elif (self.where == "training") == self.training:
            logits = logits + zero / zero
        return logits, None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())


@pytest.mark.parametrize(
    ("where", "named"), [("eval", "logits"), ("training", "training mode"), ("gradient", "the gradient of")]
)
def test_nan_in_a_model_is_not_mistaken_for_a_look_at_the_future(where: str, named: str) -> None:
    with refuses("NaN" if where != "training" else "nan", named, field="preflight", value="preflight=false") as raised:
        check(model(Undefined, where=where))
    assert "attention" not in str(raised.value)


def write(path: Path, text: str) -> tuple[str, str]:
    path.write_text(text, "utf-8")
    return "data=text", f"data.path={path}"


@pytest.mark.parametrize("overrides", [(), ("model=attention",), ("model=gpt", "model.n_embd=16", "model.n_head=2")])
def test_a_text_of_one_character_is_the_named_cause(cli: Cli, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    text = write(tmp_path / "a.txt", "a" * 20_000)
    refused = cli(*SHORT, *text, *overrides)
    assert_refused(refused, "the text has only one character, 'a'", "preflight=false")
    trained = cli(*SHORT, *text, *overrides, "preflight=false")
    assert trained.code == 0, trained.err
    assert "val 0.0000" in trained.err


@pytest.mark.parametrize(
    ("text", "tokenizer"),
    [
        *itertools.product(("a", "ab"), (("tokenizer=byte",), ("tokenizer=bpe", "tokenizer.vocab_size=258"))),
        ("ab", ("tokenizer=char",)),
        ("to be ", ("tokenizer=byte",)),
    ],
)
def test_a_text_of_few_characters_trains(cli: Cli, tmp_path: Path, text: str, tokenizer: tuple[str, ...]) -> None:
    for seed in (1, 2):
        ended = cli(*SHORT, *write(tmp_path / "text.txt", text * 9_000), *tokenizer, f"seed={seed}")
        assert ended.code == 0, ended.err


def test_counts_of_a_text_of_one_character_need_nothing_to_learn(cli: Cli, tmp_path: Path) -> None:
    ended = cli(*SHORT, *write(tmp_path / "a.txt", "a" * 20_000), "model=ngram")
    assert ended.code == 0, ended.err


class Unknowing(CharTokenizer):
    """A tokenizer that loses characters, as an unknown token or without a token."""

    lossless = False
    unknown: int | None = None

    def encode(self, text: str) -> Any:
        known = [char if char in self.chars else "?" for char in text]
        return super().encode("".join(char for char in known if char != "?" or self.unknown is not None))


@pytest.mark.parametrize("unknown", [None, 0])
@pytest.mark.parametrize(("share", "outcome"), [(0.004, "passes"), (0.2, "warning"), (0.7, "refused")])
def test_characters_without_a_token_are_counted(
    unknown: int | None, share: float, outcome: str, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = Unknowing("?ABCDEFGHI")
    tokenizer.unknown = unknown
    known = "ABCDEFGHI"
    text = "".join("z" if i % 1000 < 1000 * share else known[i % 9] for i in range(5000))
    ids = torch.from_numpy(tokenizer.encode(known * 20)).long()
    x, y = ids[:160].view(20, 8), ids[1:161].view(20, 8)
    torch.manual_seed(0)
    checked = Bigram(vocab_size=10, block_size=8)
    if outcome == "refused":
        with refuses("70%", "train split", "tokenizer=byte", field="preflight", value="preflight=false"):
            preflight(checked, tokenizer, {"train": text}, (x, y), fresh=False)
        return
    preflight(checked, tokenizer, {"train": text, "val": text}, (x, y), fresh=False)
    assert ["20%" in record.getMessage() for record in caplog.records] == [True] * (2 if outcome == "warning" else 0)


def test_unknown_tokens_of_a_text_on_disk_are_counted_in_the_batch() -> None:
    tokenizer = Unknowing("?ABCDEFGHI")
    tokenizer.unknown = 0
    ids = torch.tensor([[0, 0, 0, 1, 0, 0, 2, 0, 0]])
    with refuses("75%", "first batch", "'?'", field="preflight"):
        preflight(Bigram(vocab_size=10, block_size=8), tokenizer, {}, (ids[:, :-1], ids[:, 1:]), fresh=False)


def test_a_failed_check_stops_the_run_before_it_trains(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Batches.__getitem__

    def shifted_twice(self: Batches, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = original(self, step)
        return x, y.roll(-1, dims=1)

    monkeypatch.setattr(Batches, "__getitem__", shifted_twice)
    failed = cli(*SHORT)
    assert_refused(failed, "targets", field="preflight", value="preflight=false")
    assert not failed.folder.exists()
    assert cli(*SHORT, "preflight=false").code == 0


def test_preflight_changes_no_bit_and_logs_its_duration(cli: Cli) -> None:
    one, two = cli(*SHORT), cli(*SHORT, "preflight=false")
    assert re.search(r"^preflight: passed, in \d+ ms$", one.err, re.MULTILINE)
    assert "preflight: passed" not in two.err
    saved = [(run.folder / "checkpoints" / "step_5" / "model.safetensors").read_bytes() for run in (one, two)]
    assert saved[0] == saved[1]
