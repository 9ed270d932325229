"""Steps: what an update is made of, and that a compiled one is the same."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from bigramlm.checkpoint.checkpoint import Checkpoint
from bigramlm.device.device import Device
from bigramlm.model.bigram import Bigram
from bigramlm.model.config import GPTConfig
from bigramlm.trainer.step import CompiledStep, SharedCalls, TrainStep
from bigramlm.trainer.trainer import Trainer
from tests.helpers import TOKENS, Stub, build, fit, fitted, kept_for_the_gradient, refuses, run_config

COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
# A run in which one call takes one step, and another two.
FEW = ("trainer.steps=6", "trainer.log_every=3", "trainer.eval_every=3")


def weights(trainer: Trainer) -> torch.Tensor:
    return next(trainer.model.parameters()).detach().clone()


def records(folder: Path) -> list[dict[str, Any]]:
    """Return the records without what a clock decides."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "tokens_per_second", "mfu")} for line in lines]


def is_compiled(trainer: Trainer) -> bool:
    return isinstance(trainer.train_step, CompiledStep) and trainer.train_step.is_compiled


def most_per_call(trainer: Trainer) -> int:
    assert isinstance(trainer.train_step, CompiledStep)
    assert isinstance(trainer.train_step.steps_per_call, SharedCalls)
    return trainer.train_step.steps_per_call.most


def gpt(**fields: Any) -> Any:
    cfg = GPTConfig(**{"n_layer": 2, "n_head": 2, "n_embd": 16, **fields})
    return lambda *, vocab_size, block_size: cfg.build(vocab_size=vocab_size, block_size=block_size)


def test_accumulation_makes_the_update_of_the_whole_batch(tmp_path: Path) -> None:
    whole = fitted(tmp_path / "1", "data.batch_size=32")
    parts = fitted(tmp_path / "2", "data.batch_size=8", "trainer.grad_accumulation=4")
    torch.testing.assert_close(weights(whole), weights(parts), rtol=1e-5, atol=1e-6)
    losses = [[r.get("train/batch_loss") for r in records(tmp_path / run)][:3] for run in ("1", "2")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    norms = [[r["grad_norm"] for r in records(tmp_path / run)[:-1]] for run in ("1", "2")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert whole.batches.tokens_per_batch == parts.batches.tokens_per_batch


def test_clipping_bounds_the_update(tmp_path: Path) -> None:
    trainer = build(tmp_path, "optim.grad_clip=1e-3")
    result = trainer.update()
    assert result is not None
    assert result.grad_norm is not None
    assert result.grad_norm > 1e-3, "the norm before clipping"
    clipped = torch.stack([p.grad.norm() for p in trainer.model.parameters() if p.grad is not None]).norm()
    assert clipped.item() == pytest.approx(1e-3, rel=1e-3)


def test_bf16_is_what_matrix_products_are_computed_in(tmp_path: Path) -> None:
    trainer = build(tmp_path, "device.precision=bf16", kind=Stub)
    trainer.update()
    assert isinstance(trainer.model, Stub)
    assert trainer.model.dtype == torch.bfloat16
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    trainer.evaluate()
    assert trainer.model.dtype == torch.bfloat16


def test_fp16_scales_its_losses_and_unscales_its_gradients(tmp_path: Path) -> None:
    """The path of an older GPU, on the CPU: the gradient that is left is that of the plain loss."""
    device = Device(torch.device("cpu"), "fp16", compile=False)
    trainer, plain = build(tmp_path / "1", device=device), build(tmp_path / "2")
    assert trainer.train_step.scaler.get_scale() > 1
    trainer.update(), plain.update()
    trainer.evaluate()
    trainer.save()
    saved = json.loads((trainer.checkpoints.path("last") / "state.json").read_text("utf-8"))
    assert saved["scaler"] == trainer.train_step.scaler.state_dict()
    for a, b in zip(trainer.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-2, atol=1e-4)


def test_activation_checkpointing_keeps_less_and_changes_no_bit(tmp_path: Path) -> None:
    """With dropout, whose draws have to be the same when they are made again."""
    overrides = ("model=gpt", "data.block_size=16", "optim=muon", "optim.grad_clip=1")
    kept: list[int] = []

    def run(name: str, *more: str) -> Trainer:
        trainer = build(tmp_path / name, *overrides, *more, kind=gpt(dropout=0.3))
        kept.append(kept_for_the_gradient(lambda: list(trainer.train_step.losses(trainer.batches[0]))))
        return fit(trainer)

    whole, again = run("1"), run("2", "trainer.activation_checkpointing=true")
    for (name, a), (_, b) in zip(whole.model.named_parameters(), again.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert records(tmp_path / "1") == records(tmp_path / "2")
    assert kept[1] < kept[0] / 2


def test_activation_checkpointing_needs_blocks() -> None:
    with refuses("model=bigram", field="trainer.activation_checkpointing", value="true"):
        run_config("trainer.activation_checkpointing=true")


def test_what_is_computed_again_is_not_compiled() -> None:
    with refuses("trainer.activation_checkpointing=true", field="device.compile", value="true"):
        run_config("model=gpt", "trainer.activation_checkpointing=true", "device.compile=true")


@pytest.mark.parametrize(
    ("kind", "chosen"), [(Bigram, ()), (gpt(n_layer=1), ("model=gpt", "optim=muon"))], ids=["bigram", "gpt"]
)
def test_what_a_compiled_call_changes_stays_in_its_place(
    kind: Any,
    chosen: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a CUDA graph asks for: of all tensors only the batch and the rates come from elsewhere at each call."""
    compile_, loose = torch.compile, []

    def graph(module: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        known = [node.meta.get("tensor_dict", {}) for node in module.graph.nodes if node.op == "placeholder"]
        loose.append(sum("_dynamo_static_input_type" not in of for of in known))
        return module.forward

    monkeypatch.setattr(torch, "compile", lambda function, *, mode, **k: compile_(function, **k, backend=graph))
    trainer = fitted(tmp_path, *chosen, *FEW, "device.compile=true", kind=kind)
    assert most_per_call(trainer) == 2
    assert is_compiled(trainer)
    assert loose == [3, 3], "the graphs of a step and of two"


@pytest.mark.parametrize(("kind", "mode"), [("cuda", "reduce-overhead"), ("cpu", None)])
def test_a_gpu_s_graph_is_captured(kind: str, mode: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda function, *, mode, **_: asked.append(mode))
    model = Bigram(vocab_size=5, block_size=4)
    optimizer = run_config().optim.build(model, compiled=True)
    CompiledStep(model, optimizer, Device(torch.device(kind), "fp32", compile=True))
    assert asked == [mode]


@pytest.mark.parametrize(("kind", "fails_at"), [("cpu", 1), ("cuda", 1), ("cuda", 2)])
def test_a_graph_that_cannot_be_made_costs_no_step(
    kind: str, fails_at: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Compiling fails at the first call, capturing at the second; from there on steps are taken as they stand."""
    torch.manual_seed(0)
    model = Bigram(vocab_size=11, block_size=8)
    optimizer = run_config("optim=sgd").optim.build(model, compiled=True)
    calls: list[int] = []

    def compiled(function: Any, **_: Any) -> Any:
        def call(*arguments: Any) -> Any:
            calls.append(1)
            if len(calls) == fails_at:
                raise RuntimeError("no graph")
            return function(*arguments)

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    step = CompiledStep(model, optimizer, Device(torch.device(kind), "fp32", compile=True))
    before = [model.token_embedding_table.weight.detach().clone()]
    batch = (TOKENS[:8].long()[None], TOKENS[1:9].long()[None])
    for _ in range(3):
        step(batch, 0.1)
        before.append(model.token_embedding_table.weight.detach().clone())
    assert caplog.text.count("no graph") == 1
    assert not step.is_compiled
    assert len(calls) == fails_at
    other = Bigram(vocab_size=11, block_size=8)
    other.token_embedding_table.weight.data.copy_(before[0])
    device = Device(torch.device("cpu"), "fp32", compile=False)
    plain = TrainStep(other, run_config("optim=sgd").optim.build(other, compiled=False), device)
    for weights_ in before[1:]:
        plain(batch, 0.1)
        torch.testing.assert_close(weights_, other.token_embedding_table.weight.detach())


@pytest.fixture(params=["eager", pytest.param("inductor", marks=[pytest.mark.slow, COMPILER])])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Return what torch.compile makes of a step's graph: nothing (eager runs it as it was traced), or code."""
    compile_, chosen = torch.compile, request.param
    monkeypatch.setattr(torch, "compile", lambda function, *, mode, **k: compile_(function, **k, backend=chosen))


@pytest.mark.usefixtures("backend")
def test_a_compiled_step_is_the_same_step(tmp_path: Path) -> None:
    """With all that an update can have: a learning rate that rises, clipping, accumulation."""
    update = ("optim.warmup_steps=6", "optim.lr=0.05", "optim.grad_clip=0.05", "trainer.grad_accumulation=2")
    overrides = (*update, "trainer.log_every=4", "trainer.eval_every=4", "trainer.steps=12")
    eager = fitted(tmp_path / "1", *overrides)
    compiled = fitted(tmp_path / "2", *overrides, "device.compile=true")
    assert is_compiled(compiled)
    assert most_per_call(compiled) == 3
    assert compiled.progress.step == 12
    torch.testing.assert_close(weights(eager), weights(compiled), rtol=1e-4, atol=1e-5)
    assert [r["step"] for r in records(tmp_path / "2")] == [0, 4, 8, 12]
    for a, b in zip(records(tmp_path / "1"), records(tmp_path / "2"), strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    half = fitted(tmp_path / "3", *overrides, "device.compile=true", "trainer.steps=8")
    going_on = build(tmp_path / "3", *overrides, "device.compile=true")
    going_on.start(Checkpoint(half.checkpoints.path("last")))
    fit(going_on)
    assert torch.equal(weights(compiled), weights(going_on)), "a compiled run goes on compiled, to the bit"
    saved = (compiled.checkpoints.path("last") / "model.safetensors").read_bytes()
    assert b"_orig_mod" not in saved


@pytest.mark.usefixtures("backend")
def test_a_compiled_step_with_muon_is_the_same_step(tmp_path: Path) -> None:
    chosen = ("model=gpt", "optim=muon", *FEW, "trainer.steps=3")
    kind = gpt(n_layer=1, zero_init=False)
    plain, compiled = (
        fitted(tmp_path / name, *chosen, f"device.compile={name}", kind=kind) for name in ("false", "true")
    )
    assert is_compiled(compiled)
    for (name, a), (_, b) in zip(plain.model.named_parameters(), compiled.model.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize(("log_every", "together"), [(10, 9), (100, 11)])
def test_steps_that_share_a_call_fill_the_gap_between_two_records(
    log_every: int, together: int, tmp_path: Path
) -> None:
    trainer = build(tmp_path, f"trainer.log_every={log_every}", "device.compile=true")
    assert most_per_call(trainer) == together


@COMPILER
def test_code_that_is_compiled_takes_the_same_step() -> None:
    """The one real compilation outside of long tests, of one small graph."""
    device, after = Device(torch.device("cpu"), "fp32", compile=True), []
    for kind in (TrainStep, CompiledStep):
        torch.manual_seed(0)
        model = Bigram(vocab_size=11, block_size=8)
        optimizer = run_config("optim=sgd").optim.build(model, compiled=kind is CompiledStep)
        step = kind(model, optimizer, device)
        for rate in (0.1, 0.2):
            step((TOKENS[:8].long()[None], TOKENS[1:9].long()[None]), rate)
        assert not isinstance(step, CompiledStep) or step.is_compiled
        after.append(model.token_embedding_table.weight.detach())
    torch.testing.assert_close(after[0], after[1])


def test_a_step_that_does_not_compile_is_taken_uncompiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object, **__: object) -> Any:
        def call(*_: object) -> None:
            raise RuntimeError("backend='inductor' raised:\nno compiler here\nand much more text")

        return call

    monkeypatch.setattr(torch, "compile", fails)
    trainer = fitted(tmp_path / "1", "device.compile=true")
    assert caplog.text.count("no compiler here") == 1
    assert "device.compile" in caplog.text
    assert "much more text" not in caplog.text
    assert trainer.progress.step == 30
    torch.testing.assert_close(weights(trainer), weights(fitted(tmp_path / "2")), rtol=1e-5, atol=1e-6)
