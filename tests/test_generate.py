"""Generation: with and without a cache, at any block size and temperature."""

from pathlib import Path
from typing import Any

import pytest
import torch

from bigramlm.device.device import Device
from bigramlm.generate import draw, generate, stream
from bigramlm.model.bigram import Bigram
from bigramlm.model.config import GPTConfig
from bigramlm.model.gpt import GPT
from tests.helpers import PRESETS, Stub, build, refuses, run_config, small

DEVICE = Device(torch.device("cpu"), "fp32", compile=False)
V, BLOCK = 11, 8
CFG = GPTConfig(n_layer=2, n_head=4, n_embd=16)


@pytest.mark.parametrize("preset", PRESETS)
def test_tokens_are_the_same_with_and_without_a_cache(preset: str) -> None:
    torch.manual_seed(0)
    model = run_config(f"model={preset}", *small(preset)).model.build(vocab_size=V, block_size=BLOCK).double()
    with torch.no_grad():
        for p in model.parameters():  # far from zero, as in a trained model
            p.add_(0.3 * torch.randn_like(p))
    model.fit_counts(torch.randint(V, (200,)))
    start = torch.randint(V, (2, 3))
    for temperature in (0.0, 1.0):
        settings: dict[str, Any] = {"temperature": temperature, "seed": 5, "device": DEVICE}
        cached, uncached = (generate(model, start, 3 * BLOCK, cached=cached, **settings) for cached in (True, False))
        assert torch.equal(cached, uncached)


@pytest.mark.parametrize("cached", [True, False])
def test_full_context_restarts_from_its_last_half(cached: bool) -> None:
    lengths: list[int] = []

    class RecordingGPT(GPT):
        def forward(self, idx: torch.Tensor, targets: Any = None, cache: Any = None) -> Any:
            output = super().forward(idx, targets, cache)
            lengths.append(cache.length if cache else idx.shape[1])
            return output

    model = RecordingGPT(CFG, vocab_size=V, block_size=BLOCK)
    for _ in stream(model, torch.zeros(1, 6).long(), 9, temperature=1.0, seed=0, device=DEVICE, cached=cached):
        pass
    assert lengths == [6, 7, 8, 4, 5, 6, 7, 8, 4]
    lengths.clear()
    for _ in stream(model, torch.zeros(1, 20).long(), 2, temperature=1.0, seed=0, device=DEVICE, cached=cached):
        pass
    assert lengths == [8, 4]


@pytest.mark.parametrize("block_size", [1, 2, 3])
def test_generation_with_the_shortest_block_sizes(block_size: int) -> None:
    model = CFG.build(vocab_size=V, block_size=block_size)
    lengths: list[int] = []
    model.get_submodule("wte").register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    for cached in (True, False):
        ids = generate(model, torch.zeros(1, 1).long(), 7, temperature=1.0, seed=0, device=DEVICE, cached=cached)
        assert ids.shape == (1, 8)
    assert max(lengths) <= block_size


def test_dropout_is_off_in_sampling_and_on_afterwards(tmp_path: Path) -> None:
    trainer = build(tmp_path, kind=Stub)
    trainer.model.train()
    start = torch.zeros((1, 1), dtype=torch.long)
    first, second = (
        generate(trainer.model, start, 30, temperature=0.0, seed=0, device=trainer.train_step.device) for _ in range(2)
    )
    assert torch.equal(first, second), "dropout must be off in sampling, also beyond the block size of 8"
    assert trainer.model.training
    x, y = trainer.batches[0]
    assert trainer.model(x, y)[1] != trainer.model(x, y)[1], "dropout must be on in training"


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-3, 1e3])
def test_extreme_temperatures_do_not_overflow(temperature: float) -> None:
    torch.manual_seed(0)
    model = Bigram(vocab_size=V, block_size=BLOCK)
    start = torch.zeros((1, 1), dtype=torch.long)
    ids = generate(model, start, 20, temperature=temperature, seed=0, device=DEVICE)
    likeliest = generate(model, start, 20, temperature=0.0, seed=0, device=DEVICE)
    assert torch.equal(ids, likeliest) == (temperature < 1)


def test_the_smallest_top_p_keeps_the_likeliest_token() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    for top_p in (1e-300, 1e-3):
        assert draw(logits, temperature=1.0, top_k=0, top_p=top_p, generator=torch.Generator()).item() == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("settings", [{}, {"top_k": 2}, {"top_p": 0.5}], ids=str)
def test_logits_that_are_not_numbers_are_refused_in_one_line(settings: dict[str, float], value: float) -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [0.0, value, 2.0]])
    with refuses("NaN", "weights", "checkpoint"):
        draw(logits, **{"temperature": 1.0, "top_k": 0, "top_p": 1.0, **settings}, generator=torch.Generator())  # type: ignore[arg-type]
