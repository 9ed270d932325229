"""What is said when memory runs out."""

import json
from dataclasses import replace

import pytest
import torch

from bigramlm.device.config import DeviceConfig
from bigramlm.memory import is_out_of_memory, out_of_memory
from bigramlm.step import TrainStep
from tests.helpers import Cli, run_config, small

GPT = ("model=gpt", "model.n_embd=512", "data.block_size=128")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("data.batch_size=512",), "take data.batch_size=256 with trainer.grad_accumulation=2 for the same update, or"),
        (("data.batch_size=512",), "or trainer.activation_checkpointing=true"),
        (
            ("data.batch_size=512", "trainer.activation_checkpointing=true", "trainer.grad_accumulation=3"),
            "take data.batch_size=256 with trainer.grad_accumulation=6 for the same update",
        ),
        (("data.batch_size=1", "data.block_size=20000"), "take data.block_size=10000, or trainer.activation"),
        (("data.batch_size=301",), "take data.batch_size=150 with trainer.grad_accumulation=2 for nearly the same"),
        (("data.batch_size=1",), "make the model smaller: a model.n_embd below 512, or a model.n_layer below 4"),
    ],
    ids=str,
)
def test_what_takes_most_is_what_to_lower(typed: tuple[str, ...], said: str) -> None:
    told = out_of_memory(run_config(*GPT, *typed), vocab_size=65)
    assert said in told
    assert "\n" not in told


def test_what_is_counted_has_no_batch() -> None:
    assert out_of_memory(run_config("model=ngram"), vocab_size=65).endswith("take a model.order below 5")


def test_memory_that_runs_out_before_there_is_a_vocabulary_is_one_line_too(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def runs_out(self: object) -> None:
        raise MemoryError

    monkeypatch.setattr("bigramlm.data.config.DataConfig.read", runs_out)
    ended = cli("data=bundled", "logger=none")
    assert ended.code == 2
    assert "error: out of memory: there was none left" in ended.err
    assert "Traceback" not in ended.err


def test_sizes_are_told() -> None:
    told = out_of_memory(run_config(*GPT, "data.batch_size=1024"), vocab_size=65)
    # 4 blocks of 12 x 512^2 weights and two of 65 x 512, four times; activations 4 x 18 x 512 and 3 x 65 a token.
    assert "0.2 GB for the weights" in told
    assert f"some {4 * 1024 * 128 * (4 * 18 * 512 + 3 * 65) / 1e9:.1f} GB for its data.batch_size=1024" in told


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore about it."),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.06 GB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
    ids=lambda error: str(error)[:12],
)
def test_a_run_that_runs_out_of_memory_ends_with_a_line_that_says_what_to_lower(
    error: Exception, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = TrainStep.__call__

    def runs_out(self: TrainStep, *arguments: object) -> object:
        steps.append(1)
        if len(steps) == 4:
            raise error
        return taken(self, *arguments)  # type: ignore[arg-type]

    steps: list[int] = []
    monkeypatch.setattr(TrainStep, "__call__", runs_out)
    run = ("data=bundled", "logger=none", "trainer.steps=6", "trainer.checkpoint_every=2", "sample.max_new_tokens=1")
    ended = cli(*run)
    assert is_out_of_memory(error)
    assert ended.code == 2
    assert "error: out of memory: a step takes some" in ended.err
    assert "take data.batch_size=16 with trainer.grad_accumulation=2" in ended.err
    assert "Traceback" not in ended.err
    told = json.loads((ended.folder / "summary.json").read_text("utf-8"))
    assert told["status"] == "failed"
    assert told["error"].startswith("out of memory")
    again = cli(f"resume={ended.folder}", run_dir=False)
    assert again.code == 0, again.err
    assert "resumed" in (ended.folder / "summary.json").read_text("utf-8")


def test_dropout_that_mps_would_draw_anew_is_refused(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def decide(cfg: DeviceConfig, **_: object) -> DeviceConfig:
        return replace(cfg, name="mps", precision="fp32", threads="1")

    monkeypatch.setattr("bigramlm.device.device.decide", decide)
    chosen = ("data=bundled", "logger=none", "model=transformer", *small("transformer"))
    ended = cli(*chosen, "trainer.activation_checkpointing=true")
    assert ended.code == 2
    assert "trainer.activation_checkpointing=true with model.dropout: on MPS PyTorch draws others again" in ended.err


@pytest.mark.parametrize("error", [RuntimeError("no kernel image"), ValueError("out of memory"), OSError(12, "x")])
def test_other_errors_are_none(error: Exception) -> None:
    assert not is_out_of_memory(error)
