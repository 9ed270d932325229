"""The loss of a model over a split."""

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from bigramlm.trainer.evaluate import bits_per_character, mean_loss
from tests.helpers import TOKENS, Stub, build


def test_an_evaluation_covers_as_many_batches_as_asked(tmp_path: Path) -> None:
    trainer = build(tmp_path, "trainer.eval_batches=2", "data.batch_size=3")
    for split, ids in (("train", TOKENS[:1800].long()), ("val", TOKENS[1800:].long())):
        starts = [i * (len(ids) - 9) // 5 for i in range(6)]
        x = torch.stack([ids[s : s + 8] for s in starts])
        y = torch.stack([ids[s + 1 : s + 9] for s in starts])
        by_hand = F.cross_entropy(next(trainer.model.parameters())[x].view(-1, 11), y.view(-1)).item()
        assert trainer.evaluator.evaluate()[f"{split}/loss"] == pytest.approx(by_hand, rel=1e-6)


def test_bits_a_character_count_characters_and_not_tokens() -> None:
    assert bits_per_character(math.log(2), tokens=10, characters=40) == pytest.approx(0.25)


def test_dropout_is_off_in_evaluation_and_on_again_after(tmp_path: Path) -> None:
    trainer = build(tmp_path, kind=Stub)
    trainer.model.train()
    losses = {mean_loss(trainer.model, trainer.evaluator.blocks["val"], trainer.train_step.device) for _ in range(3)}
    assert len(losses) == 1
    assert trainer.model.training
    x, y = trainer.batches[0]
    assert trainer.model(x, y)[1] != trainer.model(x, y)[1], "on in training"
