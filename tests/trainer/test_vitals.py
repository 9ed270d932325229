"""Tests of the vital signs of training, and of sentences about planted mistakes."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bigramlm.model.base import LanguageModel
from bigramlm.model.config import GPTConfig, MLPConfig
from bigramlm.model.python import PythonModel
from bigramlm.trainer.step import StepResult
from bigramlm.trainer.vitals import attention_entropy, layer_of, stream_names, unit_shares
from tests.helpers import PRESETS, SHORT, Cli, build, fit, fitted, gpts, run_config
from tests.trainer.helpers import records, weights

# A short run of a rung of the ladder.
LADDER = (
    *("experiment=ladder", "data=bundled", "logger=none", "sample.max_new_tokens=5", "device.threads=1"),
    *("optim.warmup_steps=20", "trainer.eval_batches=1", "preflight=false"),
)


def shallow(preset: str) -> list[str]:
    """Return the overrides that make the GPT of a preset small enough for a test."""
    n_layer = min(2, getattr(run_config(f"model={preset}").model, "n_layer", 2))
    return [f"model.n_layer={n_layer}", "model.n_head=4", "model.n_embd=64"] if preset in gpts() else []


def gpt(change: Callable[[Any], None] = lambda _: None, **fields: Any) -> Any:
    """Return a function that builds a small GPT and changes its initial weights."""
    cfg = GPTConfig(**{"n_layer": 3, "n_head": 2, "n_embd": 16, "zero_init": False, **fields})

    def built(**sizes: int) -> LanguageModel:
        model = cfg.build(**sizes)
        with torch.no_grad():
            change(model)
        return model

    return built


def mlp(change: Callable[[Any], None]) -> Any:
    """Return a function that builds an MLP and changes its initial weights."""

    def built(**sizes: int) -> LanguageModel:
        model = MLPConfig(n_hidden=64).build(**sizes)
        with torch.no_grad():
            change(model)
        return model

    return built


def signs_of(folder: Path) -> list[dict[str, float]]:
    """Return the vital signs of each record that has any, without their common prefix."""
    found = [
        {name.removeprefix("vitals/"): value for name, value in record.items() if name.startswith("vitals/")}
        for record in records(folder)
    ]
    return [signs for signs in found if signs]


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "bigramlm.trainer.vitals"]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("wte.weight", "wte"),
        ("lm_head.weight", "lm_head"),
        ("h.0.attn.c_proj.weight", "h.0.attn"),
        ("h.11.mlp.c_fc.lora_A.default.weight", "h.11.mlp"),
        ("transformer.h.3.ln_1.weight", "transformer.h.3.ln_1"),
        ("layers.0.self_attn.in_proj_weight", "layers.0.self_attn"),
        ("token_embedding_table.weight", "token_embedding_table"),
        ("0.weight", "0"),
        ("block1.conv.weight", "block1.conv"),
        ("table", "table"),
    ],
)
def test_parameters_belong_to_the_layer_that_a_person_would_name(name: str, layer: str) -> None:
    assert layer_of(name) == layer


def test_the_entropy_of_attention_is_a_share_of_the_largest() -> None:
    T = 6
    uniform = torch.ones(T, T).tril() / torch.arange(1, T + 1)[:, None]
    one_hot = torch.eye(T)
    half = torch.zeros(T, T)
    half[:, :2] = 0.5
    entropies = attention_entropy(torch.stack([uniform, one_hot, half])[None].expand(4, -1, -1, -1))
    expected = [1.0, 0.0, sum(math.log(2) / math.log(n) for n in range(2, T + 1)) / (T - 1)]
    assert entropies.tolist() == pytest.approx(expected, abs=1e-6)


def test_units_that_are_dead_saturated_or_alike_are_counted() -> None:
    torch.manual_seed(0)
    alive = torch.rand(50, 10)
    assert [float(share) for share in unit_shares(alive)] == [0, 0]
    dead = alive.clone()
    dead[:, :4] = 0
    assert [float(share) for share in unit_shares(dead)] == [pytest.approx(0.4), 0]
    tanh = alive.clone()
    tanh[:, :3] = torch.tensor([1.0, -1.0, 0.995])
    assert [float(share) for share in unit_shares(tanh)] == [pytest.approx(0.3), 0]
    assert unit_shares(2 * tanh)[0] == 0, "activations above 1 do not saturate"
    assert unit_shares(alive[:, :1].expand(-1, 10) * 0.3)[1] == 1
    pairs = torch.cat([alive, alive * (1 + 1e-7)], dim=1)
    assert float(unit_shares(pairs)[1]) == pytest.approx(10 / 19)
    assert [float(share) for share in unit_shares(torch.zeros(50, 10))] == [1, 0]


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_ratio_and_gradient_are_those_of_the_update(tmp_path: Path, clip: float) -> None:
    words = ("trainer.vitals_every=1", "trainer.log_every=1", "trainer.steps=3", f"optim.grad_clip={clip}")
    kind = gpt(norm="layer", bias=True, tie_weights=True)
    trainer = build(tmp_path, *words, kind=kind)
    states = []
    original = trainer.update

    def update() -> StepResult:
        states.append({name: p.detach().clone() for name, p in trainer.model.named_parameters()})
        return original()

    trainer.update = update  # type: ignore[method-assign]
    fit(trainer)
    states.append({name: p.detach() for name, p in trainer.model.named_parameters()})
    lines = [record for record in records(tmp_path) if "grad_norm" in record]
    assert len(lines) == 3
    for step, (line, signs) in enumerate(zip(lines, signs_of(tmp_path), strict=True)):
        before, after = states[step], states[step + 1]
        ratios = {name.removesuffix("/update_ratio"): v for name, v in signs.items() if name.endswith("update_ratio")}
        assert ratios.keys() == {"wte", *(f"h.{n}.{part}" for n in range(3) for part in ("attn", "mlp"))}
        for layer, ratio in ratios.items():
            names = [name for name, p in before.items() if name.startswith(f"{layer}.") and p.ndim == 2]
            change = math.sqrt(sum(float((after[name] - before[name]).square().sum()) for name in names))
            size = math.sqrt(sum(float(before[name].square().sum()) for name in names))
            assert ratio == pytest.approx(change / size, rel=1e-4)
        gradients = [value for name, value in signs.items() if name.endswith("grad_norm")]
        total = math.sqrt(sum(value**2 for value in gradients))
        assert 0.8 * line["grad_norm"] < total <= 1.0001 * line["grad_norm"], "norms of the norms are left out"
        assert line["grad_norm"] > 0.05, "clipping is undone"


def test_activations_are_those_of_the_model(tmp_path: Path) -> None:
    trainer = build(tmp_path, "trainer.vitals_every=1", "trainer.steps=1", kind=gpt(norm="rms", dropout=0.5))
    model, (x, _) = trainer.model, trainer.batches[0]
    model.eval()
    with torch.no_grad():
        states, attention, logits = model.stream(x), model.attention(x), model(x)[0]
    model.train()
    fit(trainer)
    (signs,) = signs_of(tmp_path)
    assert stream_names(model, 4) == ["wte", "h.0", "h.1", "h.2"]
    for name, state in zip(stream_names(model, 4), states, strict=True):
        assert signs[f"{name}/rms"] == pytest.approx(float(state.square().mean().sqrt()), rel=1e-5)
    for number, matrix in enumerate(attention):
        heads = attention_entropy(matrix)
        assert signs[f"h.{number}.attn/entropy"] == pytest.approx(float(heads.mean()), rel=1e-5)
        assert [signs[f"h.{number}.attn.head_{head}/entropy"] for head in range(2)] == pytest.approx(heads.tolist())
    assert signs["logits/max"] == pytest.approx(float(logits.max()), rel=1e-5)
    assert {f"h.{n}.mlp/dead" for n in range(3)} < signs.keys()


class Bare(nn.Module):
    """A network without the methods of LanguageModel that name its layers."""

    def __init__(self, *, vocab_size: int, block_size: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.5)) for _ in range(2))
        self.out = nn.Linear(8, vocab_size)

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        x = self.embed(idx)
        for block in self.blocks:
            x = x + block(x)
        logits: torch.Tensor = self.out(x)
        return logits


def test_a_network_without_names_has_ratios_gradients_and_logits(tmp_path: Path) -> None:
    def kind(**sizes: int) -> LanguageModel:
        return PythonModel(Bare(**sizes), **sizes)

    fitted(tmp_path, "trainer.vitals_every=10", "trainer.steps=20", kind=kind)  # type: ignore[arg-type]
    layers = ("embed", "blocks.0.0", "blocks.1.0", "out")
    expected = {f"{layer}/{sign}" for layer in layers for sign in ("update_ratio", "grad_norm")} | {"logits/max"}
    assert [signs.keys() for signs in signs_of(tmp_path)] == [expected, expected]


class Noisy(Bare):
    """A network that draws random numbers, also in eval mode."""

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        logits = super().forward(idx)
        return logits + 0.1 * torch.randn_like(logits)


def test_the_random_state_of_training_is_left_alone(tmp_path: Path) -> None:
    def kind(**sizes: int) -> LanguageModel:
        return PythonModel(Noisy(**sizes), **sizes)

    words = ("trainer.steps=6", "trainer.eval_every=6", "preflight=false")
    plain, measured = (
        fitted(tmp_path / str(every), *words, f"trainer.vitals_every={every}", kind=kind)  # type: ignore[arg-type]
        for every in (0, 2)
    )
    assert len(signs_of(tmp_path / "2")) == 3
    assert torch.equal(weights(plain), weights(measured))


def test_the_first_updates_may_be_large(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fitted(tmp_path, "trainer.vitals_every=1", "trainer.steps=3", "optim.lr=0.1", kind=gpt())
    ratios = [value for signs in signs_of(tmp_path) for name, value in signs.items() if "ratio" in name]
    assert max(ratios) > 0.2
    assert not [line for line in warned(caplog) if "changes its weights" in line]


def test_frozen_weights_have_no_signs_of_an_update(tmp_path: Path) -> None:
    def freeze(model: Any) -> None:
        model.h.requires_grad_(False)
        model.wte.requires_grad_(False)

    fitted(tmp_path, "trainer.vitals_every=30", kind=gpt(freeze))
    (signs,) = signs_of(tmp_path)
    assert {name.split("/")[0] for name in signs if "ratio" in name or "grad" in name} == {"lm_head"}
    assert "h.2.mlp/dead" in signs


def test_an_adapter_has_the_signs_of_its_own_matrices(cli: Cli) -> None:
    pytest.importorskip("peft")
    base = cli(*SHORT, "model=nanogpt", *shallow("nanogpt"), "data.block_size=16")
    words = ("experiment=finetune_lora", f"init_from={base.folder}", *SHORT, "optim.warmup_steps=30")
    ended = cli(*words, "optim.lr=0.3", "trainer.steps=31", "trainer.vitals_every=10")
    assert ended.code == 0, ended.err
    found = signs_of(ended.folder)
    assert len(found) == 4
    for signs in found:
        ratios = {name: value for name, value in signs.items() if "ratio" in name}
        assert {name.split("/")[0] for name in ratios} == {f"h.{n}.{part}" for n in (0, 1) for part in ("attn", "mlp")}
        assert min(ratios.values()) > 0
        assert "h.1.mlp/dead" in signs
    assert max(value for signs in found[1:] for name, value in signs.items() if "ratio" in name) > 0.1
    assert "changes its weights" not in ended.err, "the matrices of an adapter begin at 0"


def test_a_skipped_update_is_no_alarm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = build(tmp_path, "trainer.vitals_every=10", kind=gpt())
    trainer.train_step.optimizer.step = lambda: None  # type: ignore[method-assign,assignment]
    fit(trainer)
    assert {value for signs in signs_of(tmp_path) for name, value in signs.items() if "ratio" in name} == {0}
    assert warned(caplog) == []


def test_a_model_that_is_counted_has_no_vital_signs(cli: Cli) -> None:
    ended = cli("model=ngram", "data=bundled", "trainer.vitals_every=1", "logger=none", "sample.max_new_tokens=5")
    assert ended.code == 0, ended.err
    assert signs_of(ended.folder) == []


def test_a_tiny_learning_rate_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fitted(tmp_path, "trainer.vitals_every=10", "optim.lr=1e-9", kind=gpt())
    (line,) = warned(caplog)
    assert "step 10" not in line
    assert "optim.lr=1e-09" in line
    assert "optim.lr=1e-08" in line


# Planted mistakes. Each has a sound counterpart above or in the ladder below.


@pytest.mark.parametrize("preset", ["gpt", "nanogpt", "mlp"])
def test_a_learning_rate_of_30_times_its_value_is_named(cli: Cli, preset: str) -> None:
    words = (*LADDER, f"model={preset}", *shallow(preset), "trainer.steps=61", "trainer.vitals_every=20")
    ended = cli(*words, "optim.lr=0.15")
    assert ended.code == 0, ended.err
    lines = [line for line in ended.err.splitlines() if "optim.lr=0.15" in line]
    assert any("may be too high" in line and "try optim.lr=0.01" in line for line in lines), ended.err


@pytest.mark.parametrize(("norm", "factor"), [("none", 12), ("layer", 60)])
def test_a_stream_that_explodes_is_named(
    norm: str, factor: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def enlarge(model: Any) -> None:
        for block in model.h:
            block.attn.c_proj.weight.mul_(factor)
            block.mlp.c_proj.weight.mul_(factor)

    fitted(tmp_path, "trainer.vitals_every=30", "trainer.steps=1", kind=gpt(enlarge, norm=norm))
    found = [line for line in warned(caplog) if "the stream after it is" in line]
    assert len(found) == 1
    assert found[0].startswith("step 0: h.")
    assert "model.init=gpt2" in found[0]
    assert "learning rate" not in found[0], "no update has been made"


@pytest.mark.parametrize("kind", [gpt, mlp])
def test_units_that_start_alike_are_named(
    kind: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fill(model: Any) -> None:
        for name, p in model.named_parameters():
            if "wte" not in name and "embedding" not in name:
                p.fill_(0.02)

    fitted(tmp_path, "trainer.vitals_every=10", "trainer.steps=20", kind=kind(fill))
    (line,) = [line for line in warned(caplog) if "compute the same as another" in line]
    assert line.startswith("step 0: ")
    assert "100% of its units" in line
    assert "at random" in line


def test_a_saturated_softmax_of_attention_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def enlarge(model: Any) -> None:
        for block in model.h:
            block.attn.c_attn.weight[:32].mul_(60)

    fields: dict[str, Any] = {"norm": "layer", "qk_norm": False}
    fitted(tmp_path / "sound", "trainer.vitals_every=10", kind=gpt(**fields))
    assert warned(caplog) == []
    fitted(tmp_path / "large", "trainer.vitals_every=10", kind=gpt(enlarge, **fields))
    (line,) = [line for line in warned(caplog) if "entropy" in line]
    assert line.startswith("step 0: h.")
    assert "(also h." in line
    assert "model.qk_norm=true" in line


def test_a_saturated_softmax_of_the_head_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fitted(tmp_path, "trainer.vitals_every=30", kind=gpt(lambda model: model.lm_head.weight.mul_(300)))
    (line,) = [line for line in warned(caplog) if "softmax is saturated" in line and "logits" in line]
    assert "optim.lr=" in line


@pytest.mark.parametrize("value", [0.0, -20.0])
def test_units_that_never_fire_are_named(value: float, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def kill(model: Any) -> None:
        model.h[1].mlp.c_fc.bias[:50] = value
        model.h[1].mlp.c_fc.weight[:50] = 0

    fitted(tmp_path, "trainer.vitals_every=10", kind=gpt(kill, bias=True, activation="relu"))
    (line,) = warned(caplog)
    assert line.startswith("step 0: h.1.mlp: 78% of its units never fire")
    assert "optim.lr=0.0001" in line, "a way out"


def test_a_warning_is_repeated_only_if_it_gets_much_worse(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = build(tmp_path, kind=gpt(bias=True, activation="relu"))
    model: Any = trainer.model

    def measure(step: int, n_dead: int) -> int:
        with torch.no_grad():
            for layer in (1, 2):
                model.h[layer].mlp.c_fc.bias[:n_dead] = -1e3
        trainer.vitals.begin(trainer.batches[step])
        trainer.vitals.end(step, trainer.update())
        found = [line for line in warned(caplog) if "never fire" in line]
        caplog.clear()
        return len(found)

    assert [measure(step, n) for step, n in enumerate([0, 40, 40, 44, 62, 62, 64])] == [0, 1, 0, 0, 1, 0, 1]


# The sound runs of the ladder.


@pytest.mark.parametrize("preset", PRESETS)
def test_sound_runs_of_the_ladder_raise_no_alarm(preset: str, cli: Cli) -> None:
    ended = cli(*LADDER, f"model={preset}", *shallow(preset), "trainer.steps=61", "trainer.vitals_every=20")
    assert ended.code == 0, ended.err
    assert not [line for line in ended.err.splitlines() if line.startswith("step ") and " train " not in line]
    assert len(signs_of(ended.folder)) == (0 if preset == "ngram" else 4)
