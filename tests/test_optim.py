"""Optimizers and the learning rate."""

import subprocess
import sys

import pytest
import torch

from bigramlm.errors import UserError
from bigramlm.model.bigram import Bigram
from bigramlm.optim.base import learning_rate, set_learning_rate
from bigramlm.optim.config import AdamWConfig


def train(optimizer: torch.optim.Optimizer, model: Bigram) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    for _ in range(20):
        ids = torch.randint(7, (4, 9), generator=generator)
        _, loss = model(ids[:, :-1], ids[:, 1:])
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.token_embedding_table.weight.detach()


def model() -> Bigram:
    torch.manual_seed(0)
    return Bigram(vocab_size=7, block_size=8)


def test_adamw_is_pytorchs_to_the_bit() -> None:
    ours = model()
    found = train(AdamWConfig(lr=0.01, weight_decay=0.1, betas=[0.8, 0.99]).build(ours, compiled=False), ours)
    plain = model()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.01, weight_decay=0.1, betas=(0.8, 0.99), fused=True)
    assert torch.equal(found, train(optimizer, plain))


def test_the_defaults_are_the_tutorials() -> None:
    ours = model()
    found = AdamWConfig().build(ours, compiled=False).param_groups[0]
    theirs = torch.optim.AdamW(ours.parameters(), lr=1e-3).param_groups[0]
    for name in ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize"):
        assert found[name] == theirs[name], name
    assert AdamWConfig(eps=0.5).build(ours, compiled=False).param_groups[0]["eps"] == 0.5


def test_an_uncompiled_step_does_not_import_the_compiler() -> None:
    code = """
import sys
from bigramlm.optim.config import AdamWConfig
from bigramlm.model.bigram import Bigram
import torch
model = Bigram(vocab_size=3, block_size=2)
optimizer = AdamWConfig().build(model, compiled=False)
model(torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 2, dtype=torch.long))[1].backward()
optimizer.step(); optimizer.zero_grad(); optimizer.load_state_dict(optimizer.state_dict())
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_learning_rate_warms_up_in_a_line_and_stays() -> None:
    cfg = AdamWConfig(lr=1.0, warmup_steps=4)
    assert [learning_rate(cfg, step) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert learning_rate(AdamWConfig(lr=0.5), 0) == 0.5


def test_setting_the_learning_rate_reaches_numbers_and_tensors() -> None:
    for compiled in (False, True):
        optimizer = AdamWConfig().build(model(), compiled=compiled)
        set_learning_rate(optimizer, 0.25)
        assert float(optimizer.param_groups[0]["lr"]) == 0.25


@pytest.mark.parametrize(
    "fields",
    [
        {"lr": 0.0},
        {"lr": -1.0},
        {"lr": float("nan")},
        {"lr": float("inf")},
        {"warmup_steps": -1},
        {"weight_decay": -0.1},
        {"grad_clip": float("nan")},
        {"betas": [0.9]},
        {"betas": [0.9, 1.0]},
        {"betas": [-0.1, 0.9]},
        {"eps": 0.0},
    ],
    ids=str,
)
def test_bad_fields_are_refused_by_name_and_value(fields: dict[str, object]) -> None:
    ((name, value),) = fields.items()
    with pytest.raises(UserError) as error:
        AdamWConfig(**fields)  # type: ignore[arg-type]
    assert f"optim.{name}={value}" in str(error.value)
