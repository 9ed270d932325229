"""The Trainer: same bits from the same config, and steps that are what they say."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from bigramlm.checkpoint import Checkpoint, _write_manifest
from bigramlm.device.device import Device
from bigramlm.device.peak import Peak
from bigramlm.errors import UserError
from bigramlm.evaluate import bits_per_character, mean_loss
from bigramlm.generate import generate
from bigramlm.model.base import LanguageModel
from bigramlm.model.bigram import Bigram, best_bigram_losses
from bigramlm.model.config import GPTConfig
from bigramlm.step import CompiledStep, TrainStep
from bigramlm.trainer import Trainer
from tests.helpers import TOKENS, Stub, build, fit, fitted, kept_for_the_gradient, run_config


def take_a_second_a_step(trainer: Trainer, monkeypatch: pytest.MonkeyPatch, *, at: float) -> None:
    """Give the Trainer a clock that stands still but in training steps, one by one, which take a second each."""
    now, take = [at], trainer.train_step.__call__
    monkeypatch.setattr("bigramlm.trainer.time.perf_counter", lambda: now[0])

    def second(*arguments: Any) -> Any:
        now[0] += 1
        return take(*arguments)

    trainer.train_step = second  # type: ignore[assignment]
    trainer.train_step.together = 1


def weights(trainer: Trainer) -> torch.Tensor:
    return next(trainer.model.parameters()).detach().clone()


def records(folder: Path) -> list[dict[str, Any]]:
    """The records without what a clock decides."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "tokens_per_second", "mfu")} for line in lines]


def test_the_same_seed_gives_the_same_bits(tmp_path: Path) -> None:
    one, two = fitted(tmp_path / "1"), fitted(tmp_path / "2")
    other = fitted(tmp_path / "3", "seed=7")
    assert torch.equal(weights(one), weights(two))
    assert records(tmp_path / "1") == records(tmp_path / "2")
    assert not torch.equal(weights(one), weights(other))
    assert not torch.equal(one.batches[0][0], other.batches[0][0]), "the seed decides the batches too"


def test_looking_does_not_change_the_run(tmp_path: Path) -> None:
    plain = fitted(tmp_path / "1")
    watched = fitted(
        tmp_path / "2",
        "trainer.eval_every=1",
        "trainer.log_every=3",
        "trainer.checkpoint_every=2",
        "trainer.eval_batches=all",
    )
    assert torch.equal(weights(plain), weights(watched))


def test_steps_are_the_tutorials_loop(tmp_path: Path) -> None:
    """The same batches through PyTorch's own optimizer, written out, with a warm-up and clipping."""
    trainer = build(tmp_path, "optim.warmup_steps=20", "optim.grad_clip=0.05", "optim.lr=0.1")
    torch.manual_seed(1337)
    table = torch.nn.Embedding(11, 11)
    assert torch.equal(table.weight, weights(trainer))
    optimizer = torch.optim.AdamW(table.parameters(), lr=1e-3, fused=True)
    clipped = 0
    for step in range(30):
        x, y = trainer.batches[step]
        loss = F.cross_entropy(table(x).view(-1, 11), y.view(-1))
        optimizer.zero_grad()
        loss.backward()
        clipped += bool(clip_grad_norm_(table.parameters(), 0.05) > 0.05)
        optimizer.param_groups[0]["lr"] = 0.1 * min(1, (step + 1) / 21)
        optimizer.step()
    assert clipped > 0
    fit(trainer)
    assert torch.equal(table.weight, weights(trainer))


def test_a_record_is_of_the_state_it_is_numbered_by(tmp_path: Path) -> None:
    trainer = fitted(tmp_path)
    found = records(tmp_path)
    assert [record["step"] for record in found] == [0, 10, 20, 30]
    fresh = build(tmp_path / "again")
    _, loss = fresh.model(*fresh.batches[0])
    assert loss is not None
    assert found[0]["train/batch_loss"] == loss.item()
    (gradient,) = torch.autograd.grad(loss, list(fresh.model.parameters()))
    assert found[0]["grad_norm"] == pytest.approx(gradient.norm().item())
    assert found[0]["lr"] == 1e-3
    assert "train/batch_loss" not in found[-1], "after the last step there is no further batch"
    # The losses by hand: 100 batches of 32 blocks are more than there are, so each split is covered whole.
    splits = {"train": TOKENS[:1800].long(), "val": TOKENS[1800:].long()}
    for split, ids in splits.items():
        by_hand = F.cross_entropy(weights(trainer)[ids[:-1]], ids[1:]).item()
        assert found[-1][f"{split}/loss"] == pytest.approx(by_hand, rel=1e-5)
    assert found[-1]["final/val/loss"] == pytest.approx(by_hand, rel=1e-5)
    best = best_bigram_losses(splits["train"], splits["val"], 11)
    assert (found[0]["train/best_bigram"], found[0]["val/best_bigram"]) == best


def test_an_evaluation_covers_as_many_batches_as_asked(tmp_path: Path) -> None:
    trainer = build(tmp_path, "trainer.eval_batches=2", "data.batch_size=3")
    for split, ids in (("train", TOKENS[:1800].long()), ("val", TOKENS[1800:].long())):
        starts = [i * (len(ids) - 9) // 5 for i in range(6)]
        x = torch.stack([ids[s : s + 8] for s in starts])
        y = torch.stack([ids[s + 1 : s + 9] for s in starts])
        by_hand = F.cross_entropy(weights(trainer)[x].view(-1, 11), y.view(-1)).item()
        assert mean_loss(trainer.model, trainer.eval_blocks[split], trainer.device) == pytest.approx(by_hand, rel=1e-6)


def test_speed_is_tokens_by_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that stands still but in training steps, which take a second each."""
    trainer = build(tmp_path, "trainer.eval_every=7")
    now, take = [0.0], trainer.train_step.__call__
    monkeypatch.setattr("bigramlm.trainer.time.perf_counter", lambda: now[0])

    def second(*arguments: Any) -> Any:
        now[0] += 1
        return take(*arguments)

    def slow(*_: Any) -> float:
        now[0] += 100
        return 1.0

    trainer.train_step = second  # type: ignore[assignment]
    trainer.train_step.together = 1
    monkeypatch.setattr("bigramlm.trainer.mean_loss", slow)
    fit(trainer)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    speeds = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    assert speeds == pytest.approx([256.0] * 3), "evaluations don't count"
    told = json.loads((tmp_path / "summary.json").read_text())
    assert told["seconds"] == lines[-1]["seconds"]
    assert told["tokens_per_second"] == pytest.approx(30 * 256 / told["seconds"], rel=0.01)


def test_no_steps_evaluate_and_save_the_fresh_model(tmp_path: Path) -> None:
    trainer = fitted(tmp_path, "trainer.steps=0")
    assert [record["step"] for record in records(tmp_path)] == [0]
    assert (trainer.checkpoints.path("last") / "model.safetensors").exists()
    assert trainer.best["step"] == 0


def test_accumulation_makes_the_update_of_the_whole_batch(tmp_path: Path) -> None:
    whole = fitted(tmp_path / "1", "data.batch_size=32")
    parts = fitted(tmp_path / "2", "data.batch_size=8", "trainer.grad_accumulation=4")
    torch.testing.assert_close(weights(whole), weights(parts), rtol=1e-5, atol=1e-6)
    losses = [[r.get("train/batch_loss") for r in records(tmp_path / run)][:3] for run in ("1", "2")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    norms = [[r["grad_norm"] for r in records(tmp_path / run)[:-1]] for run in ("1", "2")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert whole.tokens_per_step == parts.tokens_per_step


def test_clipping_bounds_the_update(tmp_path: Path) -> None:
    trainer = build(tmp_path, "optim.grad_clip=1e-3")
    _, norm = trainer.update()
    assert norm is not None
    assert norm > 1e-3, "the norm before clipping"
    clipped = torch.stack([p.grad.norm() for p in trainer.model.parameters() if p.grad is not None]).norm()
    assert clipped.item() == pytest.approx(1e-3, rel=1e-3)


def test_dropout_is_off_in_evaluation_and_sampling_and_on_again_after(tmp_path: Path) -> None:
    trainer = build(tmp_path, kind=Stub)
    trainer.model.train()
    losses = {mean_loss(trainer.model, trainer.eval_blocks["val"], trainer.device) for _ in range(3)}
    assert len(losses) == 1
    assert trainer.model.training
    start = torch.zeros((1, 1), dtype=torch.long)
    first, second = (
        generate(trainer.model, start, 30, temperature=0.0, seed=0, device=trainer.device) for _ in range(2)
    )
    assert torch.equal(first, second), "30 tokens, of which the model, with positions for 8, sees the last 8"
    assert trainer.model.training
    x, y = trainer.batches[0]
    assert trainer.model(x, y)[1] != trainer.model(x, y)[1], "on in training"


def test_bf16_is_what_matrix_products_are_computed_in(tmp_path: Path) -> None:
    trainer = build(tmp_path, "device.precision=bf16", kind=Stub)
    trainer.update()
    assert isinstance(trainer.model, Stub)
    assert trainer.model.dtype == torch.bfloat16
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    trainer.evaluate()
    assert trainer.model.dtype == torch.bfloat16


@pytest.mark.parametrize("temperature", [1e-40, 1e-3, 1e3])
def test_no_temperature_overflows(tmp_path: Path, temperature: float) -> None:
    trainer = build(tmp_path)
    start = torch.zeros((1, 1), dtype=torch.long)
    ids = generate(trainer.model, start, 20, temperature=temperature, seed=0, device=trainer.device)
    likeliest = generate(trainer.model, start, 20, temperature=0.0, seed=0, device=trainer.device)
    assert torch.equal(ids, likeliest) == (temperature < 1)


def test_fp16_scales_its_losses_and_unscales_its_gradients(tmp_path: Path) -> None:
    """The path of an older GPU, on the CPU: the gradient that is left is that of the plain loss."""
    device = Device(torch.device("cpu"), "fp16", compile=False)
    trainer, plain = build(tmp_path / "1", device=device), build(tmp_path / "2")
    assert trainer.scaler.get_scale() > 1
    trainer.update(), plain.update()
    trainer.evaluate()
    trainer.save()
    saved = json.loads((trainer.checkpoints.path("last") / "state.json").read_text("utf-8"))
    assert saved["scaler"] == trainer.scaler.state_dict()
    for a, b in zip(trainer.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-2, atol=1e-4)


def test_the_best_is_never_replaced_by_a_worse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([4.0, 4.0, 3.0, 3.0, 3.5, 3.5, 3.0, 3.0, 1.0, 1.0])  # train and val, at 0, 10, 20, 30; final
    monkeypatch.setattr("bigramlm.trainer.mean_loss", lambda *_: next(losses))
    trainer = fitted(tmp_path)
    assert trainer.best == {"step": 10, "val/loss": 3.0}
    assert trainer.checkpoints.path("best").name == "step_10"
    assert trainer.checkpoints.path("last").name == "step_30"
    kept = sorted(path.name for path in trainer.checkpoints.folder.iterdir())
    assert kept == ["best", "last", "step_10", "step_30"], "nothing half-written, nothing more than is to be kept"


def test_a_signal_ends_the_run_after_its_step_and_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = build(tmp_path)
    take = trainer.update

    def update() -> Any:
        outcome = take()
        if trainer.step == 13:
            trainer.stop_signal = 2
        return outcome

    monkeypatch.setattr(trainer, "update", update)
    fit(trainer)
    assert trainer.step == 13
    assert trainer.checkpoints.path("last").name == "step_13"
    assert [record["step"] for record in records(tmp_path)] == [0, 10], "no record that a run without a stop lacks"
    assert json.loads((tmp_path / "summary.json").read_text())["step"] == 13


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"step 10: train/batch_loss is nan, with a learning rate of 1e\+38"):
        fitted(tmp_path, "optim.lr=1e38", "trainer.eval_every=100")
    with pytest.raises(UserError, match=r"step 5: val/loss is nan"):
        fitted(tmp_path / "2", "optim.lr=1e38", "trainer.eval_every=5", "trainer.log_every=100")


@pytest.mark.parametrize("kind", [Bigram, Stub])
def test_a_checkpoint_holds_all_that_it_takes_to_go_on(tmp_path: Path, kind: type[LanguageModel]) -> None:
    whole = fitted(tmp_path / "whole", kind=kind)
    half = fitted(tmp_path / "half", "trainer.steps=14", kind=kind)
    torch.randn(3)
    going_on = build(tmp_path / "half", kind=kind)
    going_on.resume(Checkpoint(half.checkpoints.path("last")))
    assert torch.equal(weights(going_on), weights(half))
    assert 0 < going_on.seconds <= half.seconds
    fit(going_on)
    assert torch.equal(weights(going_on), weights(whole))
    for a, b in zip(going_on.optimizer.state.values(), whole.optimizer.state.values(), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in b)
    assert json.loads((half.checkpoints.path("last") / "tokenizer.json").read_text())["chars"] == "abcdefghijk"


def test_what_overflows_is_told_from_what_only_sums_to_more(tmp_path: Path) -> None:
    trainer = fitted(tmp_path, "trainer.steps=3")
    (parameter,) = trainer.model.parameters()
    with torch.no_grad():
        parameter[0, :2] = 3e38  # their sum is not finite, and each of them is
    trainer.step = 4
    trainer.save()
    trainer.optimizer.state[parameter]["exp_avg_sq"][0, 0] = torch.inf
    trainer.step = 5
    with pytest.raises(UserError, match="the optimizer's exp_avg_sq is inf"):
        trainer.save()
    assert trainer.checkpoints.steps()[-1] == 4


def test_the_speed_of_a_resumed_run_is_that_of_its_own_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted(tmp_path, "trainer.steps=14")
    going_on = build(tmp_path)
    going_on.resume(Checkpoint(going_on.checkpoints.path("last")))
    take_a_second_a_step(going_on, monkeypatch, at=100.0)
    going_on.seconds = before = 7.0
    fit(going_on)
    told = json.loads((tmp_path / "summary.json").read_text())
    assert told["seconds"] == pytest.approx(before + 16)
    assert told["tokens_per_second"] == pytest.approx(256)


class Scaler:
    """A scaler of losses that is enabled, as fp16's is on a GPU."""

    def __init__(self) -> None:
        self.loaded: dict[str, Any] = {}

    def is_enabled(self) -> bool:
        return True

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loaded = state


def test_fp16s_scale_is_resumed_and_its_skipped_steps_are_no_failure(tmp_path: Path) -> None:
    trainer = fitted(tmp_path, "trainer.steps=3")
    path = trainer.checkpoints.path("last")
    state = json.loads((path / "state.json").read_text()) | {"scaler": {"scale": 2.0}}
    (path / "state.json").write_text(json.dumps(state))
    (path / "manifest.json").unlink()
    _write_manifest(path, 3)
    going_on = build(tmp_path)
    going_on.scaler = scaler = Scaler()  # type: ignore[assignment]
    going_on.resume(Checkpoint(path))
    assert scaler.loaded == {"scale": 2.0}
    assert going_on.measure(torch.tensor(1.0), torch.tensor(float("inf")))["grad_norm"] == float("inf")


def test_evaluations_that_wait_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the interval changes, and where a resumed run evaluates the step again that it goes on from."""
    monkeypatch.setattr("bigramlm.trainer.mean_loss", lambda *_: 5.0)
    often = ("trainer.eval_every=2", "trainer.early_stopping_patience=4")
    whole = fitted(tmp_path / "whole", *often)
    assert (whole.step, whole.early_stopped) == (8, True)
    fitted(tmp_path / "half", *often, "trainer.steps=6")
    going_on = build(tmp_path / "half", *often)
    going_on.resume(Checkpoint(going_on.checkpoints.path("last")))
    assert going_on.waited == 3
    assert fit(going_on).step == 8
    every = build(tmp_path / "half", "trainer.eval_every=1", "trainer.early_stopping_patience=6")
    every.resume(Checkpoint(tmp_path / "half" / "checkpoints" / "step_8"))
    assert fit(every).step == 10


def test_final_losses_cover_val_whole_and_train_as_far(tmp_path: Path) -> None:
    trainer = build(tmp_path)
    final = trainer.final_losses()
    val = TOKENS[1800:].long()
    _, loss = trainer.model(val[None, :-1], val[None, 1:])
    assert loss is not None
    assert final["val/loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert final["val/bpc"] == pytest.approx(loss.item() / math.log(2), rel=1e-6)
    starts = [i * (1800 - 9) // 24 for i in range(25)]  # 25 blocks of 8 are what val's 200 tokens make
    x = torch.stack([TOKENS[s : s + 8] for s in starts]).long()
    y = torch.stack([TOKENS[s + 1 : s + 9] for s in starts]).long()
    assert final["train/loss"] == pytest.approx(trainer.model(x, y)[1].item(), rel=1e-6)


def test_bits_a_character_count_characters_and_not_tokens() -> None:
    assert bits_per_character(math.log(2), tokens=10, characters=40) == pytest.approx(0.25)


def test_final_losses_of_a_long_split_take_a_fixed_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = build(tmp_path)
    whole = trainer.final_losses()
    monkeypatch.setattr("bigramlm.trainer.WHOLE_SPLIT_UP_TO", 80)
    part = trainer.final_losses()
    assert part == trainer.final_losses()
    assert part["val/loss"] != whole["val/loss"]


def gpt(**fields: Any) -> Any:
    cfg = GPTConfig(n_layer=2, n_head=2, n_embd=16, **fields)
    return lambda *, vocab_size, block_size: cfg.build(vocab_size=vocab_size, block_size=block_size)


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
    with pytest.raises(UserError, match=r"trainer.activation_checkpointing=true: model=bigram has no blocks"):
        run_config("trainer.activation_checkpointing=true")


def test_what_is_computed_again_is_not_compiled() -> None:
    with pytest.raises(UserError, match=r"device.compile=true with trainer.activation_checkpointing=true"):
        run_config("model=gpt", "trainer.activation_checkpointing=true", "device.compile=true")


def test_mfu_is_the_share_of_the_peak_that_matrix_products_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that counts a second for a step."""
    monkeypatch.setattr("bigramlm.trainer.peak", lambda device: Peak(1e9, "made up"))
    trainer = build(tmp_path, "model=gpt", kind=gpt())
    take_a_second_a_step(trainer, monkeypatch, at=0.0)
    fit(trainer)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    expected = 256 * trainer.model.flops_per_token() / 1e9
    assert [line["mfu"] for line in lines if "mfu" in line] == pytest.approx([expected] * 3, abs=1e-4)
    told = json.loads((tmp_path / "summary.json").read_text())
    assert told["peak"] == {"flops": 1e9, "how": "made up"}
    assert told["mfu"] == pytest.approx(expected, abs=1e-4)


def test_a_model_without_matrix_products_has_no_mfu(tmp_path: Path) -> None:
    fitted(tmp_path)
    assert "mfu" not in (tmp_path / "metrics.jsonl").read_text()
    assert "peak" not in json.loads((tmp_path / "summary.json").read_text())


@pytest.mark.parametrize(
    ("kind", "chosen"), [(Bigram, ()), (gpt(), ("model=gpt", "optim=muon"))], ids=["bigram", "gpt"]
)
def test_what_a_compiled_call_changes_stays_in_its_place(
    kind: Any,
    chosen: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As a CUDA graph asks for: of all tensors only the batch and the rates come from elsewhere at each call."""
    compile_, loose = torch.compile, []

    def graph(module: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        known = [node.meta.get("tensor_dict", {}) for node in module.graph.nodes if node.op == "placeholder"]
        loose.append(sum("_dynamo_static_input_type" not in of for of in known))
        return module.forward

    monkeypatch.setattr(torch, "compile", lambda function, *, mode, **k: compile_(function, **k, backend=graph))
    fitted(tmp_path, *chosen, "device.compile=true", kind=kind)
    assert "does not compile" not in caplog.text
    assert set(loose) == {3}


@pytest.mark.parametrize(("kind", "mode"), [("cuda", "reduce-overhead"), ("cpu", None)])
def test_a_gpu_s_graph_is_captured(kind: str, mode: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda function, *, mode, **_: asked.append(mode))
    model = Bigram(vocab_size=5, block_size=4)
    optimizer = run_config().optim.build(model, compiled=True)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    device = Device(torch.device(kind), "fp32", compile=True)
    CompiledStep(model, optimizer, device, scaler, grad_accumulation=1, grad_clip=0.0).compile(together=1)
    assert asked == [mode]


@pytest.mark.parametrize(("kind", "fails_at"), [("cpu", 1), ("cuda", 1), ("cuda", 2)])
def test_a_graph_that_cannot_be_made_costs_no_step(
    kind: str, fails_at: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Compiling fails at the first call, capturing at the second; from there on steps are taken as they stand."""
    torch.manual_seed(0)
    model = Bigram(vocab_size=11, block_size=8)
    optimizer = run_config("optim=sgd").optim.build(model, compiled=True)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    device = Device(torch.device("cpu"), "fp32", compile=True)
    step = CompiledStep(model, optimizer, device, scaler, grad_accumulation=1, grad_clip=0.0)
    calls: list[int] = []

    def compiled(function: Any, **_: Any) -> Any:
        def call(*arguments: Any) -> Any:
            calls.append(1)
            if len(calls) == fails_at:
                raise RuntimeError("no graph")
            return function(*arguments)

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(step, "device", Device(torch.device(kind), "fp32", compile=True))
    step.compile(together=1)
    before = [model.token_embedding_table.weight.detach().clone()]
    batch = (TOKENS[:8].long()[None], TOKENS[1:9].long()[None])
    for _ in range(3):
        step([batch], [0.1])
        before.append(model.token_embedding_table.weight.detach().clone())
    assert "the step does not compile here (no graph); going on uncompiled" in caplog.text
    assert not step.is_compiled
    assert len(calls) == fails_at
    other = Bigram(vocab_size=11, block_size=8)
    other.token_embedding_table.weight.data.copy_(before[0])
    plain = TrainStep(
        *(other, run_config("optim=sgd").optim.build(other, compiled=False), device, scaler),
        grad_accumulation=1,
        grad_clip=0.0,
    )
    for weights_ in before[1:]:
        plain([batch], [0.1])
        torch.testing.assert_close(weights_, other.token_embedding_table.weight.detach())


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_step_is_the_same_step(tmp_path: Path) -> None:
    """With all that an update can have: a learning rate that rises, clipping, accumulation."""
    overrides = ("optim.warmup_steps=20", "optim.lr=0.05", "optim.grad_clip=0.05", "trainer.grad_accumulation=2")
    eager = fitted(tmp_path / "1", *overrides)
    compiled = fitted(tmp_path / "2", *overrides, "device.compile=true")
    assert compiled.train_step.together == 9, "steps that share a call fill the gap between two records"
    assert compiled.step == 30
    torch.testing.assert_close(weights(eager), weights(compiled), rtol=1e-4, atol=1e-5)
    assert [r["step"] for r in records(tmp_path / "2")] == [0, 10, 20, 30]
    for a, b in zip(records(tmp_path / "1"), records(tmp_path / "2"), strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    half = fitted(tmp_path / "3", *overrides, "device.compile=true", "trainer.steps=20")
    going_on = build(tmp_path / "3", *overrides, "device.compile=true")
    going_on.resume(Checkpoint(half.checkpoints.path("last")))
    fit(going_on)
    assert torch.equal(weights(compiled), weights(going_on)), "a compiled run goes on compiled, to the bit"
    saved = (compiled.checkpoints.path("last") / "model.safetensors").read_bytes()
    assert b"_orig_mod" not in saved


def test_a_step_that_does_not_compile_is_taken_uncompiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object, **__: object) -> Any:
        def call(*_: object) -> None:
            raise RuntimeError("backend='inductor' raised:\nno compiler here\nand much more text")

        return call

    monkeypatch.setattr(torch, "compile", fails)
    trainer = fitted(tmp_path / "1", "device.compile=true")
    assert "the step does not compile here (no compiler here); going on uncompiled" in caplog.text
    assert "much more text" not in caplog.text
    assert trainer.step == 30
    torch.testing.assert_close(weights(trainer), weights(fitted(tmp_path / "2")), rtol=1e-5, atol=1e-6)
