"""Tests of the messages for failures, such as running out of memory."""

from dataclasses import replace

import pytest
import torch

from bigramlm.device.config import DeviceConfig
from bigramlm.engine.failures import is_out_of_memory, out_of_memory
from bigramlm.model.config import BigramConfig, ModelConfig
from bigramlm.trainer.step import TrainStep
from tests.helpers import Cli, assert_refused, run_config, small, summary

GPT = ("model=gpt", "model.n_embd=512", "data.block_size=128")


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (
            ("data.batch_size=512",),
            ("data.batch_size=256", "trainer.grad_accumulation=2", "trainer.activation_checkpointing=true"),
        ),
        (
            ("data.batch_size=512", "trainer.activation_checkpointing=true", "trainer.grad_accumulation=3"),
            ("data.batch_size=256", "trainer.grad_accumulation=6"),
        ),
        (
            ("data.batch_size=1", "data.block_size=20000"),
            ("data.block_size=10000", "trainer.activation_checkpointing=true"),
        ),
        (("data.batch_size=301",), ("data.batch_size=150", "trainer.grad_accumulation=2", "nearly")),
        (("data.batch_size=1",), ("model.n_embd", "512", "model.n_layer", "4")),
    ],
    ids=str,
)
def test_message_names_the_largest_memory_use(overrides: tuple[str, ...], named: tuple[str, ...]) -> None:
    message = out_of_memory(run_config(*GPT, *overrides), vocab_size=65)
    for fact in named:
        assert fact in message
    assert "\n" not in message


def test_message_for_a_model_without_an_estimate_has_its_real_size(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def runs_out(self: TrainStep, *arguments: object) -> object:
        raise MemoryError

    monkeypatch.setattr(BigramConfig, "estimate_size", ModelConfig.estimate_size)
    monkeypatch.setattr(TrainStep, "__call__", runs_out)
    ended = cli("data=bundled", "logger=none")
    n_params = summary(ended.folder)["n_params"]
    assert_refused(ended, "model=bigram", f"{n_params:,}", "data.batch_size=16", "a smaller vocabulary")
    unknown = out_of_memory(run_config("model=bigram"), vocab_size=5000)
    assert "unknown amount for its weights" in unknown
    assert "GB" not in unknown


def test_message_for_a_count_based_model_omits_the_batch() -> None:
    message = out_of_memory(run_config("model=ngram"), vocab_size=65)
    assert "model.order" in message
    assert "data.batch_size" not in message


def test_out_of_memory_before_tokenizing_is_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def runs_out(self: object) -> None:
        raise MemoryError

    monkeypatch.setattr("bigramlm.data.config.DataConfig.read", runs_out)
    ended = cli("data=bundled", "logger=none")
    assert_refused(ended, "out of memory")


def test_message_contains_sizes() -> None:
    message = out_of_memory(run_config(*GPT, "data.batch_size=1024"), vocab_size=65)
    # 4 blocks of 12 x 512^2 weights and two matrices of 65 x 512, each four times in training; per token,
    # 4 x 18 x 512 and 3 x 65 activations.
    assert "0.2 GB" in message
    assert f"{4 * 1024 * 128 * (4 * 18 * 512 + 3 * 65) / 1e9:.1f} GB" in message
    assert "data.batch_size=1024" in message


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore about it."),
    MemoryError(),
    RuntimeError("MPS backend out of memory (MPS allocated: 9.06 GB)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: str(error)[:12])
def test_out_of_memory_errors_are_recognised(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [ERRORS[0], *(pytest.param(error, marks=pytest.mark.slow) for error in ERRORS[1:])],
    ids=lambda error: str(error)[:12],
)
def test_out_of_memory_ends_the_run_with_advice(error: Exception, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    original = TrainStep.__call__

    def runs_out(self: TrainStep, *arguments: object) -> object:
        steps.append(1)
        if len(steps) == 4:
            raise error
        return original(self, *arguments)  # type: ignore[arg-type]

    steps: list[int] = []
    monkeypatch.setattr(TrainStep, "__call__", runs_out)
    run = ("data=bundled", "logger=none", "trainer.steps=6", "trainer.checkpoint_every=2", "sample.max_new_tokens=1")
    ended = cli(*run)
    assert_refused(ended, "out of memory", "data.batch_size=16", "trainer.grad_accumulation=2")
    found = summary(ended.folder)
    assert found["status"] == "failed"
    assert "data.batch_size=16" in str(found["error"])
    again = cli(f"resume={ended.folder}", run_dir=False)
    assert again.code == 0, again.err
    assert "resumed" in summary(ended.folder)


def test_recomputed_dropout_on_mps_is_refused(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def decide(cfg: DeviceConfig, **_: object) -> DeviceConfig:
        return replace(cfg, name="mps", precision="fp32", threads="1")

    monkeypatch.setattr("bigramlm.device.device.decide", decide)
    chosen = ("data=bundled", "logger=none", "model=transformer", *small("transformer"))
    ended = cli(*chosen, "trainer.activation_checkpointing=true")
    assert_refused(ended, "model.dropout", "MPS", field="trainer.activation_checkpointing", value="true")


@pytest.mark.parametrize("error", [RuntimeError("no kernel image"), ValueError("out of memory"), OSError(12, "x")])
def test_other_errors_are_not_out_of_memory(error: Exception) -> None:
    assert not is_out_of_memory(error)
