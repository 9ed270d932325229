"""The Trainer: same bits from the same config, and steps that are what they say."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from bigramlm.checkpoint import restore, verify
from bigramlm.config import RunConfig
from bigramlm.device.device import Device, decide, set_up
from bigramlm.errors import UserError
from bigramlm.metrics import LoggerConfig, Metrics
from bigramlm.run import RunFolder
from bigramlm.trainer import Trainer
from tests.conftest import run_config

TOKENS = torch.randint(11, (2000,), generator=torch.Generator().manual_seed(0)).int()


def build(folder: Path, *overrides: str, device: Device | None = None) -> Trainer:
    """A Trainer of a small bigram on random tokens; everything else as the overrides say."""
    cfg: RunConfig = run_config("trainer.steps=30", "trainer.log_every=10", "trainer.eval_every=10", *overrides)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(cfg.seed)
    model = cfg.model.build(vocab_size=11, block_size=cfg.data.block_size)
    cfg.device = decide(cfg.device, n_params=model.n_params(), tokens=256)
    return Trainer(
        cfg,
        model=model,
        train=TOKENS[:1800],
        val=TOKENS[1800:],
        val_characters=200,
        tokenizer={"name": "char", "chars": "abcdefghijk"},
        device=device or set_up(cfg.device),
        metrics=Metrics(folder, LoggerConfig(use=[]), {}),
        folder=RunFolder(folder),
    )


def fitted(folder: Path, *overrides: str, device: Device | None = None) -> Trainer:
    trainer = build(folder, *overrides, device=device)
    trainer.fit()
    trainer.metrics.close()
    return trainer


def weights(trainer: Trainer) -> torch.Tensor:
    return next(trainer.model.parameters()).detach().clone()


def records(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "tokens_per_second")} for line in lines]


def test_the_same_seed_gives_the_same_bits(tmp_path: Path) -> None:
    one, two = fitted(tmp_path / "1"), fitted(tmp_path / "2")
    other = fitted(tmp_path / "3", "seed=7")
    assert torch.equal(weights(one), weights(two))
    assert records(tmp_path / "1") == records(tmp_path / "2")
    assert not torch.equal(weights(one), weights(other))


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


def test_a_step_is_the_tutorials_loop(tmp_path: Path) -> None:
    """The same batches through PyTorch's own optimizer, written out."""
    trainer = build(tmp_path)
    torch.manual_seed(1337)
    table = torch.nn.Embedding(11, 11)
    assert torch.equal(table.weight, weights(trainer))
    optimizer = torch.optim.AdamW(table.parameters(), lr=1e-3, fused=True)
    for step in range(30):
        x, y = trainer.batches[step]
        loss = torch.nn.functional.cross_entropy(table(x).view(-1, 11), y.view(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trainer.fit()
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
    assert found[-1]["val/loss"] == pytest.approx(trainer.evaluate()["val/loss"])


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
    assert whole.tokens_per_step == parts.tokens_per_step


def test_clipping_bounds_the_update(tmp_path: Path) -> None:
    trainer = build(tmp_path, "optim.grad_clip=1e-3")
    _, norm = trainer.update()
    assert norm is not None
    assert norm > 1e-3, "the norm before clipping"
    clipped = torch.stack([p.grad.norm() for p in trainer.model.parameters() if p.grad is not None]).norm()
    assert clipped.item() == pytest.approx(1e-3, rel=1e-3)


def test_fp16_scales_its_losses_and_unscales_its_gradients(tmp_path: Path) -> None:
    """The path of an older GPU, on the CPU: the gradient that is left is that of the plain loss."""
    device = Device(torch.device("cpu"), "fp16", compile=False)
    trainer, plain = build(tmp_path / "1", device=device), build(tmp_path / "2")
    assert trainer.scaler.get_scale() > 1
    trainer.update(), plain.update()
    for a, b in zip(trainer.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-2, atol=1e-4)


def test_the_best_is_never_replaced_by_a_worse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([4.0, 4.0, 3.0, 3.0, 3.5, 3.5, 3.2, 3.2, 1.0, 1.0])  # train and val, at 0, 10, 20, 30; final
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
    trainer.fit()
    assert trainer.step == 13
    assert trainer.checkpoints.path("last").name == "step_13"


def test_a_checkpoint_holds_all_that_it_takes_to_go_on(tmp_path: Path) -> None:
    whole = fitted(tmp_path / "whole")
    half = fitted(tmp_path / "half", "trainer.steps=14")
    torch.randn(3)
    going_on = build(tmp_path / "on")
    state = restore(half.checkpoints.path("last"), model=going_on.model, optimizer=going_on.optimizer)
    assert torch.equal(weights(going_on), weights(half))
    going_on.step = state["step"]
    going_on.best = state["best"]
    going_on.fit()
    assert torch.equal(weights(going_on), weights(whole))
    for a, b in zip(going_on.optimizer.state.values(), whole.optimizer.state.values(), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in b)
    assert json.loads((half.checkpoints.path("last") / "tokenizer.json").read_text())["chars"] == "abcdefghijk"


def test_damage_to_any_file_of_a_checkpoint_is_found(tmp_path: Path) -> None:
    path = fitted(tmp_path / "run", "trainer.steps=3").checkpoints.path("last")
    verify(path)
    for name in sorted(file.name for file in path.iterdir()):
        for damage in ("removed", "truncated", "flipped"):
            copy = tmp_path / f"{name}-{damage}"
            shutil.copytree(path, copy)
            content = bytearray((copy / name).read_bytes())
            if damage == "removed":
                (copy / name).unlink()
            else:
                content[len(content) // 2] ^= 1
                (copy / name).write_bytes(content if damage == "flipped" else content[:-1])
            if (name, damage) == ("manifest.json", "truncated"):
                continue  # only the line's end is gone
            with pytest.raises(UserError, match=r"not a whole checkpoint|cannot be read|damaged"):
                verify(copy)


def test_final_losses_cover_val_whole_and_train_as_far(tmp_path: Path) -> None:
    trainer = build(tmp_path)
    final = trainer.final_losses()
    val = TOKENS[1800:].long()
    _, loss = trainer.model(val[None, :-1], val[None, 1:])
    assert loss is not None
    assert final["val/loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert final["train/loss"] == pytest.approx(2.9, abs=0.5)


def test_final_losses_of_a_long_split_take_a_fixed_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = build(tmp_path)
    whole = trainer.final_losses()
    monkeypatch.setattr("bigramlm.trainer.WHOLE_SPLIT_UP_TO", 80)
    part = trainer.final_losses()
    assert part == trainer.final_losses()
    assert part["val/loss"] != whole["val/loss"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_step_is_the_same_step(tmp_path: Path) -> None:
    eager = fitted(tmp_path / "1")
    compiled = fitted(tmp_path / "2", "device.compile=true")
    assert compiled.train_step.together == 9, "steps that share a call fill the gap between two records"
    assert compiled.step == 30
    torch.testing.assert_close(weights(eager), weights(compiled), rtol=1e-4, atol=1e-5)
    assert [r["step"] for r in records(tmp_path / "2")] == [0, 10, 20, 30]
    for a, b in zip(records(tmp_path / "1"), records(tmp_path / "2"), strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    again = fitted(tmp_path / "3", "device.compile=true")
    assert torch.equal(weights(compiled), weights(again))
    saved = (compiled.checkpoints.path("last") / "model.safetensors").read_bytes()
    assert b"_orig_mod" not in saved


def test_a_step_that_does_not_compile_is_taken_uncompiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object, **__: object) -> Any:
        def call(*_: object) -> None:
            raise RuntimeError("no compiler here\nand much more text")

        return call

    monkeypatch.setattr(torch, "compile", fails)
    trainer = fitted(tmp_path / "1", "device.compile=true")
    assert "no compiler here" in caplog.text
    assert "much more text" not in caplog.text
    assert trainer.step == 30
    torch.testing.assert_close(weights(trainer), weights(fitted(tmp_path / "2")), rtol=1e-5, atol=1e-6)
