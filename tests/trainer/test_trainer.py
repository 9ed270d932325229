"""The Trainer: reproducible bits, records, checkpoints and speed."""

import functools
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from bigramlm.checkpoint.checkpoint import Checkpoint
from bigramlm.checkpoint.format import write_manifest
from bigramlm.device.peak import Peak
from bigramlm.model.base import LanguageModel
from bigramlm.model.bigram import Bigram, best_bigram_losses
from bigramlm.model.config import GPTConfig
from bigramlm.trainer import trainer as module
from bigramlm.trainer.step import StepResult
from bigramlm.trainer.trainer import Trainer
from bigramlm.utils.progress import bar
from tests.helpers import TOKENS, Stub, build, fit, fitted, refuses
from tests.trainer.helpers import records, weights


def set_one_second_per_step(trainer: Trainer, *, start: float) -> list[float]:
    """Give the Trainer a clock that advances by a second per training step only.

    Returns the clock as a list of one number, which the caller may change.
    """
    now, original = [start], trainer.train_step
    trainer.speed.clock = lambda: now[0]

    def step(*arguments: Any) -> Any:
        now[0] += 1
        return original(*arguments)

    class Slow:
        __call__ = staticmethod(step)

        def __getattr__(self, name: str) -> Any:
            return getattr(original, name)

    trainer.train_step = Slow()  # type: ignore[assignment]
    return now


def test_the_same_seed_gives_the_same_bits(tmp_path: Path) -> None:
    one, two = fitted(tmp_path / "1"), fitted(tmp_path / "2")
    other = fitted(tmp_path / "3", "seed=7")
    assert torch.equal(weights(one), weights(two))
    assert records(tmp_path / "1") == records(tmp_path / "2")
    assert not torch.equal(weights(one), weights(other))
    assert not torch.equal(one.batches[0][0], other.batches[0][0]), "the seed decides the batches too"


def test_evaluations_logs_and_saves_do_not_change_the_run(tmp_path: Path) -> None:
    plain = fitted(tmp_path / "1", "trainer.steps=12")
    observed = fitted(
        tmp_path / "2",
        "trainer.steps=12",
        "trainer.eval_every=1",
        "trainer.log_every=3",
        "trainer.checkpoint_every=2",
        "trainer.eval_batches=all",
    )
    assert torch.equal(weights(plain), weights(observed))


def test_training_equals_the_tutorials_loop(tmp_path: Path) -> None:
    """Compare with a plain PyTorch loop with warm-up and clipping."""
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


def test_the_loss_in_the_bar_moves_with_the_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(module, "bar", functools.partial(bar, file=stream, mininterval=0, ncols=200))
    fitted(tmp_path / "often", "trainer.log_every=1")
    each_step = [f"loss {record['train/batch_loss']:.3f}" for record in records(tmp_path / "often")[:-1]]
    stream.truncate(stream.seek(0))
    fitted(tmp_path / "seldom", "trainer.log_every=10")
    drawn = {int(n): loss for n, loss in re.findall(r"(\d+)/30 \[[^]]*?, (loss \d\.\d+)", stream.getvalue())}
    assert [drawn[n] for n in range(1, 31)] == each_step
    stream.truncate(stream.seek(0))
    fitted(tmp_path / "none", "trainer.steps=0")
    assert stream.getvalue().strip("\r ") == "", "no bar for no steps"


def test_a_record_describes_the_state_at_its_step(tmp_path: Path) -> None:
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
    assert "train/batch_loss" not in found[-1], "there is no batch after the last step"
    # Each split has fewer blocks than 100 batches of 32, so the evaluation covers the whole split.
    splits = {"train": TOKENS[:1800].long(), "val": TOKENS[1800:].long()}
    for split, ids in splits.items():
        expected = F.cross_entropy(weights(trainer)[ids[:-1]], ids[1:]).item()
        assert found[-1][f"{split}/loss"] == pytest.approx(expected, rel=1e-5)
    assert found[-1]["final/val/loss"] == pytest.approx(expected, rel=1e-5)
    best = best_bigram_losses(splits["train"], splits["val"], 11)
    assert (found[0]["train/best_bigram"], found[0]["val/best_bigram"]) == best


def test_speed_is_tokens_per_second_of_training_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = build(tmp_path, "trainer.eval_every=7")
    now = set_one_second_per_step(trainer, start=0.0)

    def slow(*_: Any) -> float:
        now[0] += 100
        return 1.0

    monkeypatch.setattr("bigramlm.trainer.evaluate.mean_loss", slow)
    fit(trainer)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    speeds = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    assert speeds == pytest.approx([256.0] * 3), "the time of evaluations is excluded"
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["seconds"] == lines[-1]["seconds"]
    assert summary["tokens_per_second"] == pytest.approx(30 * 256 / summary["seconds"], rel=0.01)


def test_zero_steps_evaluate_and_save_the_untrained_model(tmp_path: Path) -> None:
    trainer = fitted(tmp_path, "trainer.steps=0")
    assert [record["step"] for record in records(tmp_path)] == [0]
    assert (trainer.checkpoints.path("last") / "model.safetensors").exists()
    assert trainer.progress.best["step"] == 0


def test_a_worse_checkpoint_never_replaces_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([4.0, 4.0, 3.0, 3.0, 3.5, 3.5, 3.0, 3.0, 1.0, 1.0])  # train and val, at 0, 10, 20, 30; final
    monkeypatch.setattr("bigramlm.trainer.evaluate.mean_loss", lambda *_: next(losses))
    trainer = fitted(tmp_path)
    assert trainer.progress.best == {"step": 10, "val/loss": 3.0}
    assert trainer.checkpoints.path("best").name == "step_10"
    assert trainer.checkpoints.path("last").name == "step_30"
    kept = sorted(path.name for path in trainer.checkpoints.folder.iterdir())
    assert kept == ["best", "last", "step_10", "step_30"], "no temporary files and no superfluous checkpoints"


def test_a_requested_stop_ends_the_run_after_a_step_and_a_save(tmp_path: Path) -> None:
    trainer = build(tmp_path, should_stop=lambda: trainer.progress.step == 13)
    assert fit(trainer).result.status == "stopped"
    assert trainer.progress.step == 13
    assert trainer.checkpoints.path("last").name == "step_13"
    assert [record["step"] for record in records(tmp_path)] == [0, 10], "the stop adds no record"
    assert json.loads((tmp_path / "summary.json").read_text())["step"] == 13


def test_a_nonfinite_loss_fails_the_run(tmp_path: Path) -> None:
    with refuses("step 10", "1e+38", "optim.lr=", field="train/batch_loss", value="nan"):
        fitted(tmp_path, "optim.lr=1e38", "trainer.eval_every=100")
    with refuses("step 5", "1e+38", "optim.lr=", field="val/loss", value="nan"):
        fitted(tmp_path / "2", "optim.lr=1e38", "trainer.eval_every=5", "trainer.log_every=100")


@pytest.mark.parametrize("kind", [Bigram, Stub])
def test_a_resumed_run_equals_an_uninterrupted_run(tmp_path: Path, kind: type[LanguageModel]) -> None:
    whole = fitted(tmp_path / "whole", kind=kind)
    half = fitted(tmp_path / "half", "trainer.steps=14", kind=kind)
    torch.randn(3)  # changes the random state, which the resume must restore
    resumed = build(tmp_path / "half", kind=kind)
    resumed.start(Checkpoint(half.checkpoints.path("last")))
    assert torch.equal(weights(resumed), weights(half))
    assert 0 < resumed.progress.seconds <= half.progress.seconds
    fit(resumed)
    assert torch.equal(weights(resumed), weights(whole))
    states = (trainer.train_step.optimizer.state for trainer in (resumed, whole))
    for a, b in zip(*(state.values() for state in states), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in b)
    assert json.loads((half.checkpoints.path("last") / "tokenizer.json").read_text())["chars"] == "abcdefghijk"


def test_an_overflow_of_a_sum_of_finite_values_is_not_an_error(tmp_path: Path) -> None:
    trainer = fitted(tmp_path, "trainer.steps=3")
    (parameter,) = trainer.model.parameters()
    with torch.no_grad():
        parameter[0, :2] = 3e38  # their sum is infinite, although both are finite
    trainer.progress.step = 4
    trainer.save()
    trainer.train_step.optimizer.state[parameter]["exp_avg_sq"][0, 0] = torch.inf
    trainer.progress.step = 5
    with refuses("step 5", field="exp_avg_sq", value="inf"):
        trainer.save()
    assert trainer.checkpoints.steps()[-1] == 4


def test_the_speed_of_a_resumed_run_excludes_the_steps_before(tmp_path: Path) -> None:
    fitted(tmp_path, "trainer.steps=14")
    resumed = build(tmp_path)
    resumed.start(Checkpoint(resumed.checkpoints.path("last")))
    set_one_second_per_step(resumed, start=100.0)
    resumed.progress.seconds = seconds_before = 7.0
    fit(resumed)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["seconds"] == pytest.approx(seconds_before + 16)
    assert summary["tokens_per_second"] == pytest.approx(256)


class Scaler:
    """An enabled loss scaler, like that of fp16 on a GPU."""

    def __init__(self) -> None:
        self.loaded: dict[str, Any] = {}

    def is_enabled(self) -> bool:
        return True

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loaded = state


def test_the_fp16_scale_is_resumed_and_infinite_gradients_are_allowed(tmp_path: Path) -> None:
    trainer = fitted(tmp_path, "trainer.steps=3")
    path = trainer.checkpoints.path("last")
    state = json.loads((path / "state.json").read_text()) | {"scaler": {"scale": 2.0}}
    (path / "state.json").write_text(json.dumps(state))
    (path / "manifest.json").unlink()
    write_manifest(path, 3)
    resumed = build(tmp_path)
    resumed.train_step.scaler = scaler = Scaler()  # type: ignore[assignment]
    resumed.checkpoints.contents = replace(resumed.checkpoints.contents, scaler=scaler)  # type: ignore[arg-type]
    resumed.start(Checkpoint(path))
    assert scaler.loaded == {"scale": 2.0}
    assert resumed.measure(StepResult(torch.tensor(1.0), torch.tensor(float("inf"))))["grad_norm"] == float("inf")


def test_evaluations_without_improvement_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeat the evaluation of the resumed step, also with another interval."""
    monkeypatch.setattr("bigramlm.trainer.evaluate.mean_loss", lambda *_: 5.0)
    overrides = ("trainer.eval_every=2", "trainer.early_stopping_patience=4")
    whole = fitted(tmp_path / "whole", *overrides)
    assert (whole.progress.step, whole.result.early_stopped) == (8, True)
    fitted(tmp_path / "half", *overrides, "trainer.steps=6")
    resumed = build(tmp_path / "half", *overrides)
    resumed.start(Checkpoint(resumed.checkpoints.path("last")))
    assert resumed.progress.waited == 3
    assert fit(resumed).progress.step == 8
    another = build(tmp_path / "half", "trainer.eval_every=1", "trainer.early_stopping_patience=6")
    another.start(Checkpoint(tmp_path / "half" / "checkpoints" / "step_8"))
    assert fit(another).progress.step == 10


def test_final_losses_cover_val_and_as_much_of_train(tmp_path: Path) -> None:
    trainer = build(tmp_path)
    final = trainer.evaluator.final()
    val = TOKENS[1800:].long()
    _, loss = trainer.model(val[None, :-1], val[None, 1:])
    assert loss is not None
    assert final["val/loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert final["val/bpc"] == pytest.approx(loss.item() / math.log(2), rel=1e-6)
    starts = [i * (1800 - 9) // 24 for i in range(25)]  # the 200 tokens of val make 25 blocks of 8
    x = torch.stack([TOKENS[s : s + 8] for s in starts]).long()
    y = torch.stack([TOKENS[s + 1 : s + 9] for s in starts]).long()
    assert final["train/loss"] == pytest.approx(trainer.model(x, y)[1].item(), rel=1e-6)


def test_final_losses_of_a_long_split_cover_a_fixed_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = build(tmp_path)
    whole = trainer.evaluator.final()
    monkeypatch.setattr("bigramlm.trainer.evaluate.MAX_FINAL_TOKENS", 80)
    part = trainer.evaluator.final()
    assert part == trainer.evaluator.final()
    assert part["val/loss"] != whole["val/loss"]


def gpt(*, vocab_size: int, block_size: int) -> LanguageModel:
    return GPTConfig(n_layer=2, n_head=2, n_embd=16).build(vocab_size=vocab_size, block_size=block_size)


def test_mfu_is_the_share_of_the_peak_in_matrix_products(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigramlm.trainer.speed.peak", lambda device: Peak(1e9, "made up"))
    trainer = build(tmp_path, "model=gpt", kind=gpt)  # type: ignore[arg-type]
    set_one_second_per_step(trainer, start=0.0)
    fit(trainer)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    expected = 256 * trainer.model.flops_per_token() / 1e9
    assert [line["mfu"] for line in lines if "mfu" in line] == pytest.approx([expected] * 3, abs=1e-4)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["peak"] == {"flops": 1e9, "how": "made up"}
    assert summary["mfu"] == pytest.approx(expected, abs=1e-4)


def test_a_model_without_matrix_products_has_no_mfu(tmp_path: Path) -> None:
    fitted(tmp_path)
    assert "mfu" not in (tmp_path / "metrics.jsonl").read_text()
    assert "peak" not in json.loads((tmp_path / "summary.json").read_text())


def test_a_loss_that_is_not_finite_at_the_start_is_not_blamed_on_the_learning_rate(tmp_path: Path) -> None:
    trainer = build(tmp_path / "checkpoints")
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(float("nan"))
    with refuses("step 0", "nan", "before the first update", "preflight=true") as raised:
        fit(trainer)
    assert "learning rate" not in str(raised.value)


def test_a_run_that_diverges_to_finite_losses_ends_with_a_warning(tmp_path: Path, caplog: Any) -> None:
    fitted(tmp_path / "sound")
    assert "diverged" not in caplog.text
    fitted(tmp_path / "diverged", "optim=sgd", "optim.lr=1e6")
    (warning,) = (record.getMessage() for record in caplog.records if "diverged" in record.getMessage())
    assert "that of guessing" in warning
    assert "optim.lr=0.001" in warning
