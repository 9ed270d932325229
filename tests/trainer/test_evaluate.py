"""The losses of a model over the splits."""

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from bigramlm.trainer.evaluate import bits_per_character, mean_loss
from tests.helpers import TOKENS, Stub, build


def test_evaluations_cover_the_configured_number_of_batches(tmp_path: Path) -> None:
    trainer = build(tmp_path, "trainer.eval_batches=2", "data.batch_size=3")
    for split, ids in (("train", TOKENS[:1800].long()), ("val", TOKENS[1800:].long())):
        starts = [i * (len(ids) - 9) // 5 for i in range(6)]
        x = torch.stack([ids[s : s + 8] for s in starts])
        y = torch.stack([ids[s + 1 : s + 9] for s in starts])
        expected = F.cross_entropy(next(trainer.model.parameters())[x].view(-1, 11), y.view(-1)).item()
        assert trainer.evaluator.evaluate()[f"{split}/loss"] == pytest.approx(expected, rel=1e-6)


def test_bits_per_character_count_characters_and_not_tokens() -> None:
    assert bits_per_character(math.log(2), tokens=10, characters=40) == pytest.approx(0.25)


def test_dropout_is_off_during_evaluation_only(tmp_path: Path) -> None:
    trainer = build(tmp_path, kind=Stub)
    trainer.model.train()
    losses = {mean_loss(trainer.model, trainer.evaluator.blocks["val"], trainer.train_step.device) for _ in range(3)}
    assert len(losses) == 1
    assert trainer.model.training
    x, y = trainer.batches[0]
    assert trainer.model(x, y)[1] != trainer.model(x, y)[1], "dropout is on in training"
