"""Updates of the weights, eager and compiled."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from bigramlm.checkpoint.checkpoint import Checkpoint
from bigramlm.device.device import Device
from bigramlm.model.bigram import Bigram
from bigramlm.model.config import GPTConfig
from bigramlm.trainer.compiled import CompiledStep, SharedCalls
from bigramlm.trainer.step import TrainStep
from bigramlm.trainer.trainer import Trainer
from tests.helpers import TOKENS, Stub, build, count_saved_elements, fit, fitted, gpts, refuses, run_config, small
from tests.trainer.helpers import records, weights

COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
# A run with calls of one step and calls of two steps.
SHORT_RUN = ("trainer.steps=6", "trainer.log_every=3", "trainer.eval_every=3")


def is_compiled(trainer: Trainer) -> bool:
    return isinstance(trainer.train_step, CompiledStep) and trainer.train_step.is_compiled


def max_steps_per_call(trainer: Trainer) -> int:
    assert isinstance(trainer.train_step, CompiledStep)
    assert isinstance(trainer.train_step.steps_per_call, SharedCalls)
    return trainer.train_step.steps_per_call.max_steps


def gpt(**fields: Any) -> Any:
    cfg = GPTConfig(**{"n_layer": 2, "n_head": 2, "n_embd": 16, **fields})
    return lambda *, vocab_size, block_size: cfg.build(vocab_size=vocab_size, block_size=block_size)


def test_accumulation_gives_the_update_of_the_whole_batch(tmp_path: Path) -> None:
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
    assert result.grad_norm is not None
    assert result.grad_norm > 1e-3, "grad_norm is the norm before clipping"
    clipped = torch.stack([p.grad.norm() for p in trainer.model.parameters() if p.grad is not None]).norm()
    assert clipped.item() == pytest.approx(1e-3, rel=1e-3)


class Operations(TorchDispatchMode):
    """The names of all operations in the block."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def gpt_step(preset: str, *, optim: str = "adamw", precision: str = "fp32") -> Callable[[], object]:
    """Return a function that takes one step of a small GPT, which clips gradients."""
    cfg = run_config(f"model={preset}", *small(preset), f"optim={optim}")
    torch.manual_seed(0)
    model = cfg.model.build(vocab_size=11, block_size=8)
    model.train()
    optimizer = cfg.optim.build(model, compiled=False)
    step = TrainStep(model, optimizer, Device(torch.device("cpu"), precision, False), grad_clip=1.0)
    batch = (TOKENS[:16].view(2, 8).long(), TOKENS[1:17].view(2, 8).long())
    return lambda: step(batch, 1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optim", ["adamw", "muon"])
def test_a_step_never_waits_for_the_device(optim: str, precision: str) -> None:
    """A GPU would stand still if a step read one of its numbers, as `item` does."""
    take_step = gpt_step("gpt", optim=optim, precision=precision)
    take_step()
    with Operations() as operations:
        take_step()
    assert any("adamw" in name for name in operations.names), "the fused AdamW"
    waiting = ("local_scalar", "nonzero", "masked_select", "unique", "equal", "is_nonzero")
    assert not [name for name in operations.names if any(word in name for word in waiting)]


@pytest.mark.parametrize("preset", gpts())
def test_attention_in_training_has_no_mask(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flash attention takes `is_causal`, but no mask."""
    original, calls = F.scaled_dot_product_attention, []

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
        calls.append(options)
        return original(q, k, v, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    gpt_step(preset)()
    assert calls
    assert all(options["attn_mask"] is None and options["is_causal"] for options in calls)


def test_bf16_applies_to_matrix_products_only(tmp_path: Path) -> None:
    trainer = build(tmp_path, "device.precision=bf16", kind=Stub)
    trainer.update()
    assert isinstance(trainer.model, Stub)
    assert trainer.model.dtype == torch.bfloat16
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    trainer.evaluate()
    assert trainer.model.dtype == torch.bfloat16


def test_fp16_scales_losses_and_unscales_gradients(tmp_path: Path) -> None:
    """Take the fp16 path of an older GPU on the CPU.

    The remaining gradients must be those of the unscaled loss.
    """
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


def test_activation_checkpointing_saves_memory_and_changes_no_bit(tmp_path: Path) -> None:
    """Use dropout, whose random draws must be the same when they are recomputed."""
    overrides = ("model=gpt", "data.block_size=16", "optim=muon", "optim.grad_clip=1")
    kept: list[int] = []

    def run(name: str, *more: str) -> Trainer:
        trainer = build(tmp_path / name, *overrides, *more, kind=gpt(dropout=0.3))
        kept.append(count_saved_elements(lambda: list(trainer.train_step.losses(trainer.batches[0]))))
        return fit(trainer)

    whole, again = run("1"), run("2", "trainer.activation_checkpointing=true")
    for (name, a), (_, b) in zip(whole.model.named_parameters(), again.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert records(tmp_path / "1") == records(tmp_path / "2")
    assert kept[1] < kept[0] / 2


def test_activation_checkpointing_requires_blocks() -> None:
    with refuses("model=bigram", field="trainer.activation_checkpointing", value="true"):
        run_config("trainer.activation_checkpointing=true")


def test_activation_checkpointing_is_not_compiled() -> None:
    with refuses("trainer.activation_checkpointing=true", field="device.compile", value="true"):
        run_config("model=gpt", "trainer.activation_checkpointing=true", "device.compile=true")


@pytest.mark.parametrize(
    ("kind", "overrides"), [(Bigram, ()), (gpt(n_layer=1), ("model=gpt", "optim=muon"))], ids=["bigram", "gpt"]
)
def test_tensors_that_a_compiled_call_changes_are_static(
    kind: Any,
    overrides: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Count the graph inputs that are not static.

    As a CUDA graph requires, they are only the inputs, the targets and the learning rates.
    """
    compile_, dynamic_inputs = torch.compile, []

    def graph(module: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        tensors = [node.meta.get("tensor_dict", {}) for node in module.graph.nodes if node.op == "placeholder"]
        dynamic_inputs.append(sum("_dynamo_static_input_type" not in tensor for tensor in tensors))
        return module.forward

    monkeypatch.setattr(torch, "compile", lambda function, *, mode, **k: compile_(function, **k, backend=graph))
    trainer = fitted(tmp_path, *overrides, *SHORT_RUN, "device.compile=true", kind=kind)
    assert max_steps_per_call(trainer) == 2
    assert is_compiled(trainer)
    assert dynamic_inputs == [3, 3], "the graphs of one step and of two steps"


@pytest.mark.parametrize(("kind", "mode"), [("cuda", "reduce-overhead"), ("cpu", None)])
def test_cuda_graphs_are_captured_on_a_gpu_only(kind: str, mode: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda function, *, mode, **_: modes.append(mode))
    model = Bigram(vocab_size=5, block_size=4)
    optimizer = run_config().optim.build(model, compiled=True)
    CompiledStep(model, optimizer, Device(torch.device(kind), "fp32", compile=True))
    assert modes == [mode]


@pytest.mark.parametrize(("kind", "fails_at"), [("cpu", 1), ("cuda", 1), ("cuda", 2)])
def test_no_step_is_lost_if_compilation_fails(
    kind: str, fails_at: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Fail at the first call (compilation) or the second call (capture).

    All later steps run in eager mode.
    """
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
    history = [model.token_embedding_table.weight.detach().clone()]
    batch = (TOKENS[:8].long()[None], TOKENS[1:9].long()[None])
    for _ in range(3):
        step(batch, 0.1)
        history.append(model.token_embedding_table.weight.detach().clone())
    assert caplog.text.count("no graph") == 1
    assert not step.is_compiled
    assert len(calls) == fails_at
    other = Bigram(vocab_size=11, block_size=8)
    other.token_embedding_table.weight.data.copy_(history[0])
    device = Device(torch.device("cpu"), "fp32", compile=False)
    plain = TrainStep(other, run_config("optim=sgd").optim.build(other, compiled=False), device)
    for expected in history[1:]:
        plain(batch, 0.1)
        torch.testing.assert_close(expected, other.token_embedding_table.weight.detach())


@pytest.fixture(params=["eager", pytest.param("inductor", marks=[pytest.mark.slow, COMPILER])])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the backend of torch.compile.

    `eager` runs the traced graph without compiling it, `inductor` compiles it.
    """
    compile_, chosen = torch.compile, request.param
    monkeypatch.setattr(torch, "compile", lambda function, *, mode, **k: compile_(function, **k, backend=chosen))


@pytest.mark.usefixtures("backend")
def test_compiled_steps_equal_eager_steps(tmp_path: Path) -> None:
    """Use every option of an update: warm-up, clipping and accumulation."""
    update = ("optim.warmup_steps=6", "optim.lr=0.05", "optim.grad_clip=0.05", "trainer.grad_accumulation=2")
    overrides = (*update, "trainer.log_every=4", "trainer.eval_every=4", "trainer.steps=12")
    eager = fitted(tmp_path / "1", *overrides)
    compiled = fitted(tmp_path / "2", *overrides, "device.compile=true")
    assert is_compiled(compiled)
    assert max_steps_per_call(compiled) == 3
    assert compiled.progress.step == 12
    torch.testing.assert_close(weights(eager), weights(compiled), rtol=1e-4, atol=1e-5)
    assert [r["step"] for r in records(tmp_path / "2")] == [0, 4, 8, 12]
    for a, b in zip(records(tmp_path / "1"), records(tmp_path / "2"), strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    half = fitted(tmp_path / "3", *overrides, "device.compile=true", "trainer.steps=8")
    resumed = build(tmp_path / "3", *overrides, "device.compile=true")
    resumed.start(Checkpoint(half.checkpoints.path("last")))
    fit(resumed)
    assert torch.equal(weights(compiled), weights(resumed)), "a compiled run resumes bit by bit"
    saved = (compiled.checkpoints.path("last") / "model.safetensors").read_bytes()
    assert b"_orig_mod" not in saved


@pytest.mark.usefixtures("backend")
def test_compiled_steps_with_muon_equal_eager_steps(tmp_path: Path) -> None:
    overrides = ("model=gpt", "optim=muon", *SHORT_RUN, "trainer.steps=3")
    kind = gpt(n_layer=1, zero_init=False)
    plain, compiled = (
        fitted(tmp_path / name, *overrides, f"device.compile={name}", kind=kind) for name in ("false", "true")
    )
    assert is_compiled(compiled)
    for (name, a), (_, b) in zip(plain.model.named_parameters(), compiled.model.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize(("log_every", "shared"), [(10, 9), (100, 11)])
def test_shared_calls_cover_the_steps_between_two_records(log_every: int, shared: int, tmp_path: Path) -> None:
    trainer = build(tmp_path, f"trainer.log_every={log_every}", "device.compile=true")
    assert max_steps_per_call(trainer) == shared


@COMPILER
def test_inductor_code_takes_the_same_step() -> None:
    """Compile one small graph, the only real compilation outside of the slow tests."""
    device, results = Device(torch.device("cpu"), "fp32", compile=True), []
    for kind in (TrainStep, CompiledStep):
        torch.manual_seed(0)
        model = Bigram(vocab_size=11, block_size=8)
        optimizer = run_config("optim=sgd").optim.build(model, compiled=kind is CompiledStep)
        step = kind(model, optimizer, device)
        for rate in (0.1, 0.2):
            step((TOKENS[:8].long()[None], TOKENS[1:9].long()[None]), rate)
        assert not isinstance(step, CompiledStep) or step.is_compiled
        results.append(model.token_embedding_table.weight.detach())
    torch.testing.assert_close(results[0], results[1])


def test_training_continues_uncompiled_if_compilation_fails(
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
