"""Tests of the verdict on runs that repeat their first batches."""

import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bigramlm.data.batches import Batches, Stream
from bigramlm.device.config import DeviceConfig
from bigramlm.device.device import set_up
from bigramlm.model.base import LanguageModel
from bigramlm.model.bigram import Bigram
from bigramlm.trainer.overfit import verdict
from tests.helpers import Cli, assert_refused

# In this text, `a` is followed by b twice and by c once in each period.
TOKENS = torch.tensor([0, 1, 0, 1, 0, 2] * 20)


class Predicts(Bigram):
    """A model that predicts the true target of every token with a given probability."""

    def __init__(self, loss: float) -> None:
        super().__init__(vocab_size=3, block_size=6)
        self.loss = loss

    def forward(self, idx: Tensor, targets: Tensor | None = None, cache: object = None) -> tuple[Tensor, Tensor]:
        return torch.zeros(*idx.shape, 3), torch.tensor(self.loss)


def said(loss: float, losses: list[float], *, model: LanguageModel | None = None) -> str:
    batches = Batches(Stream(TOKENS, block_size=6), batch_size=4, seed=1, repeated=1)
    return verdict(
        model or Predicts(loss), batches, 1, set_up(DeviceConfig(name="cpu", precision="fp32", threads="1")), losses
    )


def test_the_verdict_says_why() -> None:
    flat = [1.0] * 20
    least = float(re.search(r"where ([\d.]+) is possible", said(2.0, flat))[1])  # type: ignore[index]
    assert "learned by heart" in said(least + 0.04, flat)
    assert "not learned by heart" in said(least + 0.06, flat)
    assert "the loss no longer falls" in said(2.0, flat)
    assert "was still falling" in said(2.0, [4.0 - n / 10 for n in range(20)])
    model = Predicts(2.0)
    model.drop = nn.Dropout(0.1)
    assert "model.dropout=0" in said(2.0, flat, model=model)


def test_the_minimum_is_the_entropy_of_what_follows() -> None:
    """From the last token alone, a is followed by b with a probability of 2/3."""
    batches = Batches(Stream(TOKENS, block_size=6), batch_size=256, seed=1, repeated=1)
    text = verdict(Predicts(5.0), batches, 1, set_up(DeviceConfig(name="cpu", precision="fp32", threads="1")), [])
    entropy = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)) / 2  # half of the tokens are a
    alone = verdict(Predicts(entropy), batches, 1, set_up(DeviceConfig(name="cpu", precision="fp32", threads="1")), [])
    found = re.search(r"from the current token alone, no model gets below ([\d.]+)", alone)
    assert found is not None
    assert float(found[1]) == pytest.approx(entropy, abs=0.02)
    least = re.search(r"where ([\d.]+) is possible", text)
    assert least is not None
    assert 0 < float(least[1]) < entropy, "the tokens before tell more, except at the start of a row"


def test_a_gpt_learns_a_batch_by_heart_and_a_bigram_cannot(cli: Cli) -> None:
    small = ("data=bundled", "logger=none", "experiment=overfit", "data.batch_size=4", "sample.max_new_tokens=5")
    gpt = cli(*small, "model=gpt", "model.n_layer=1", "model.n_head=2", "model.n_embd=32", "trainer.steps=150")
    assert gpt.code == 0, gpt.err
    assert "overfit: the repeated batch: learned by heart" in gpt.err
    bigram = cli(*small, "optim.lr=0.1")
    assert "not learned by heart" in bigram.err
    assert "from the current token alone, no model gets below" in bigram.err
    assert_refused(cli(*small, "model=ngram"), "trainer.overfit_batches=1", "model=ngram", "no training to test")


def test_batches_repeat() -> None:
    split = Stream(TOKENS, block_size=6)
    repeated = Batches(split, batch_size=4, seed=1, repeated=2)
    others = Batches(split, batch_size=4, seed=1)
    for step in range(7):
        assert torch.equal(repeated[step][0], others[step % 2][0])


def test_every_part_of_a_run_works_once(cli: Cli) -> None:
    ended = cli("experiment=smoke", "logger=none", "device.threads=1")
    assert ended.code == 0, ended.err
    assert {path.name for path in Path(ended.folder / "checkpoints").iterdir()} > {"step_6", "last", "best"}
    assert (ended.folder / "samples.txt").read_text("utf-8").count("---- step") == 3
