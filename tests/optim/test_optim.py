"""Tests of the optimizers and the learning rate schedule."""

import copy
import math
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from bigramlm.model.bigram import Bigram
from bigramlm.model.config import GPTConfig
from bigramlm.optim.base import Schedule, set_learning_rate
from bigramlm.optim.config import SCHEDULES, AdamWConfig, MuonConfig, OptimConfig, SGDConfig
from bigramlm.optim.muon import POLAR_EXPRESS, Muon, orthogonalise, polar_express
from tests.helpers import PRESETS, Cli, assert_refused, gpts, refuses, run_config


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


def test_adamw_equals_pytorchs_bit_for_bit() -> None:
    ours = model()
    found = train(AdamWConfig(lr=0.01, weight_decay=0.1, betas=[0.8, 0.99]).build(ours, compiled=False), ours)
    plain = model()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.01, weight_decay=0.1, betas=(0.8, 0.99), fused=True)
    assert torch.equal(found, train(optimizer, plain))


def test_adamw_has_the_tutorials_defaults() -> None:
    ours = model()
    found = AdamWConfig().build(ours, compiled=False).param_groups[0]
    theirs = torch.optim.AdamW(ours.parameters(), lr=1e-3).param_groups[0]
    for name in ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize"):
        assert found[name] == theirs[name], name
    assert AdamWConfig(eps=0.5).build(ours, compiled=False).param_groups[0]["eps"] == 0.5


def rates(steps: int, **fields: Any) -> list[float]:
    return [Schedule(AdamWConfig(**fields), steps)(step) for step in range(steps)]


def test_learning_rate_rises_linearly_and_stays_constant() -> None:
    assert rates(6, lr=1.0, warmup_steps=4) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert rates(2, lr=0.5) == [0.5, 0.5]


def test_each_schedule_falls_as_documented() -> None:
    assert rates(5, lr=1.0, schedule="linear") == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    assert rates(6, lr=1.0, schedule="linear", min_lr=0.5, warmup_steps=1) == pytest.approx(
        [0.5, 1.0, 0.9, 0.8, 0.7, 0.6]
    )
    assert rates(10, lr=1.0, schedule="wsd", decay_fraction=0.4) == pytest.approx([1.0] * 7 + [0.75, 0.5, 0.25])
    assert rates(4, lr=1.0, schedule="wsd", decay_fraction=1.0) == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert rates(4, lr=1.0, schedule="cosine", min_lr=0.2) == pytest.approx(
        [0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * done)) for done in (0, 0.25, 0.5, 0.75)]
    )


def test_cosine_schedule_equals_nanogpts() -> None:
    """Compare with nanoGPT's train.py for 2,000 steps with a warmup of 100."""

    def theirs(step: int) -> float:
        if step < 100:
            return 1e-3 * (step + 1) / 101
        ratio = (step - 100) / 1900
        return 1e-4 + 0.5 * (1.0 + math.cos(math.pi * ratio)) * 9e-4

    cfg = run_config("experiment=nanogpt_cpu")
    assert cfg.trainer.steps == 2000
    assert [Schedule(cfg.optim, 2000)(n) for n in range(2000)] == pytest.approx([theirs(n) for n in range(2000)])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_stay_between_min_lr_and_lr(schedule: str) -> None:
    for warmup in (0, 3, 20):
        for steps in (1, 2, 19, 20):
            found = rates(steps, lr=0.3, min_lr=0.1, schedule=schedule, warmup_steps=warmup)
            after = [rate for step, rate in enumerate(found) if step >= warmup]
            assert not after or after[0] == pytest.approx(0.3), "the schedule starts where the warmup ends"
            assert all(0.1 - 1e-12 <= rate <= 0.3 + 1e-12 for rate in after)
            assert after == sorted(after, reverse=True)


def test_set_learning_rate_updates_numbers_and_tensors() -> None:
    for compiled in (False, True):
        optimizer = AdamWConfig().build(model(), compiled=compiled)
        set_learning_rate(optimizer, 0.25)
        assert float(optimizer.param_groups[0]["lr"]) == 0.25


def test_set_learning_rate_scales_each_part_of_muon() -> None:
    for compiled in (False, True):
        optimizer = MuonConfig(lr=0.02, adamw_lr=0.005).build(gpt(), compiled=compiled)
        set_learning_rate(optimizer, 0.01)
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        assert rates == pytest.approx([0.01, 0.0025])


def gpt() -> torch.nn.Module:
    """Build a GPT with embeddings, hidden layers, head, gains and biases."""
    torch.manual_seed(0)
    cfg = GPTConfig(n_layer=2, n_head=4, n_embd=16, position="learned", norm="layer", qk_norm=False, bias=True)
    return replace(cfg, activation="gelu", tie_weights=True, init="gpt2", zero_init=False).build(
        vocab_size=7, block_size=8
    )


def take_step(optimizer: torch.optim.Optimizer, network: torch.nn.Module) -> None:
    ids = torch.randint(7, (4, 9), generator=torch.Generator().manual_seed(5))
    _, loss = network(ids[:, :-1], ids[:, 1:])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize("cfg", [AdamWConfig(weight_decay=0.5), SGDConfig(weight_decay=0.5)], ids=lambda c: c.name)
def test_only_matrices_decay(cfg: OptimConfig) -> None:
    decayed, not_decayed = gpt(), gpt()
    for cfg_, network in ((cfg, decayed), (type(cfg)(weight_decay=0.0), not_decayed)):
        take_step(cfg_.build(network, compiled=False), network)
    for (name, a), (_, b) in zip(decayed.named_parameters(), not_decayed.named_parameters(), strict=True):
        assert torch.equal(a, b) == (a.ndim < 2), name


@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd_equals_pytorchs_bit_for_bit(nesterov: bool) -> None:
    ours, plain = model(), model()
    cfg = SGDConfig(lr=0.5, momentum=0.8, weight_decay=0.1, nesterov=nesterov)
    optimizer = torch.optim.SGD(
        plain.parameters(), lr=0.5, momentum=0.8, weight_decay=0.1, nesterov=nesterov, fused=True
    )
    assert torch.equal(train(cfg.build(ours, compiled=False), ours), train(optimizer, plain))


def muon_update(name: str, mean: torch.Tensor, gradient: torch.Tensor, lr: float, cfg: MuonConfig) -> torch.Tensor:
    """Return Muon's update of a matrix by a plain implementation.

    Computes in double precision. The matrices that are stacked in one, such as queries, keys and values, are updated
    separately. `mean` is changed in place.
    """
    mean.lerp_(gradient, 1 - cfg.momentum)
    direction = gradient.lerp(mean, cfg.momentum) if cfg.nesterov else mean
    updates = []
    for part in direction.double().chunk(3 if "c_attn" in name else 1):
        x = part / (1.01 * part.norm())
        for a, b, c in POLAR_EXPRESS[: cfg.ns_steps]:
            x = a * x + b * x @ x.T @ x + c * x @ x.T @ x @ x.T @ x
        updates.append(lr * max(1, part.shape[0] / part.shape[1]) ** 0.5 * x)
    return torch.cat(updates).float()


@pytest.mark.parametrize("fields", [{}, {"momentum": 0.5}, {"nesterov": False}, {"ns_steps": 2}], ids=str)
def test_muon_equals_a_plain_implementation_and_adamw(fields: dict[str, Any]) -> None:
    """Compare with `muon_update` and PyTorch's AdamW.

    Muon trains the weight matrices of the hidden layers, AdamW all other parameters.
    """
    cfg = MuonConfig(lr=0.03, adamw_lr=0.004, weight_decay=0.1, betas=[0.8, 0.9], **fields)
    ours, plain = gpt(), gpt()
    optimizer = cfg.build(ours, compiled=False)
    hidden = {name: p for name, p in plain.named_parameters() if name.startswith("h.") and p.ndim == 2}
    rest = [p for name, p in plain.named_parameters() if name not in hidden]
    decay = [[p for p in rest if p.ndim == 2], [p for p in rest if p.ndim < 2]]
    groups = [{"params": decay[0], "weight_decay": 0.1}, {"params": decay[1], "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=0.004, betas=(0.8, 0.9), fused=True)
    means = {name: torch.zeros_like(p) for name, p in hidden.items()}
    for share in (1.0, 0.5, 0.25):
        set_learning_rate(optimizer, 0.03 * share)
        take_step(optimizer, ours)
        set_learning_rate(adamw, 0.004 * share)
        ids = torch.randint(7, (4, 9), generator=torch.Generator().manual_seed(5))
        plain.zero_grad()
        plain(ids[:, :-1], ids[:, 1:])[1].backward()
        with torch.no_grad():
            for name, p in hidden.items():
                assert p.grad is not None
                update = muon_update(name, means[name], p.grad, 0.03 * share, cfg)
                p.mul_(1 - 0.03 * share * 0.1).sub_(update)
        adamw.step()
    fresh = gpt()
    for (name, a), (_, b) in zip(ours.named_parameters(), plain.named_parameters(), strict=True):
        if name.endswith("c_attn.bias"):  # a key's bias has no effect, and AdamW turns its rounding errors into steps
            continue
        torch.testing.assert_close(a, b, msg=name, rtol=1e-3, atol=1e-4)
        assert not torch.equal(a, fresh.get_parameter(name)), name


def test_muon_with_jordans_polynomial_equals_pytorchs() -> None:
    """Compare with PyTorch's Muon, which rounds to bf16.

    No matrix is split into parts.
    """
    torch.manual_seed(3)
    ours = {torch.nn.Parameter(torch.randn(*shape)): 1 for shape in ((8, 8), (24, 8), (8, 24), (8, 8))}
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    fields: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.2, "momentum": 0.9, "nesterov": True}
    optimizers = (Muon(ours, **fields, polynomials=[(3.4445, -4.7750, 2.0315)] * 5), torch.optim.Muon(theirs, **fields))
    for _ in range(3):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0.01)


@pytest.mark.parametrize("ns_steps", [3, 5, 9])
def test_more_iterations_bring_singular_values_closer_to_one(ns_steps: int) -> None:
    matrices = [torch.randn(16, 40, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    results = orthogonalise(torch.stack(matrices), polar_express(ns_steps))
    for matrix, result in zip(matrices, results, strict=True):
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        tolerance = {3: 0.9, 5: 0.2, 9: 1e-4}[ns_steps]
        torch.testing.assert_close(u.T @ result @ v.T, torch.eye(16), rtol=0, atol=tolerance)


def test_muon_updates_have_singular_values_near_one() -> None:
    network = gpt()
    before = {id(p): p.detach().clone() for p in network.parameters()}
    take_step(MuonConfig(lr=1.0).build(network, compiled=False), network)
    for p, parts in network.hidden_matrices().items():  # type: ignore[operator]
        for update in (p.detach() - before[id(p)]).chunk(parts):
            values = torch.linalg.svdvals(update) / math.sqrt(max(1, update.shape[0] / update.shape[1]))
            assert values.max() < 1.3
            assert values.median() > 0.5


def test_muon_skips_frozen_parameters() -> None:
    network = gpt()
    frozen, *others = network.hidden_matrices()  # type: ignore[operator]
    frozen.requires_grad = False
    groups = MuonConfig().build(network, compiled=False).param_groups
    optimized = [p for group in groups for p in group["params"]]
    assert {id(p) for p in optimized} == {id(p) for p in network.parameters()} - {id(frozen)}
    for p in others:
        p.requires_grad = False
    with refuses("optim=adamw", field="optim", value="muon"):
        MuonConfig().build(network, compiled=False)


def test_muon_resumes_from_its_saved_state() -> None:
    """Load the state of both parts.

    A plain load would leave each part with its previous state.
    """
    ours, other = gpt(), gpt()
    optimizer, resumed = (MuonConfig().build(network, compiled=False) for network in (ours, other))
    take_step(optimizer, ours)
    other.load_state_dict(ours.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for network, its_optimizer in ((ours, optimizer), (other, resumed)):
        set_learning_rate(its_optimizer, 0.01)
        take_step(its_optimizer, network)
    for (name, a), (_, b) in zip(ours.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_muon_resumes_from_a_state_without_momentum() -> None:
    """Load a state such as that of PyTorch's Muon before its first step."""
    ours, other = gpt(), gpt()
    optimizer, resumed = (MuonConfig().build(network, compiled=False) for network in (ours, other))
    state = copy.deepcopy(optimizer.state_dict())
    state["state"] = {}
    take_step(resumed, other)
    other.load_state_dict(ours.state_dict())
    resumed.load_state_dict(state)
    for network, its_optimizer in ((ours, optimizer), (other, resumed)):
        take_step(its_optimizer, network)
    for (name, a), (_, b) in zip(ours.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_rounding_to_bf16_does_not_diverge() -> None:
    """Orthogonalise in bf16, as on a GPU.

    A singular value that is rounded up to the limit of a polynomial's range would explode in the next iteration.
    """
    u, _ = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(1)))
    v, _ = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(2)))
    for value in (0.09, 0.36, 0.37, 0.376, 0.38, 0.39):
        rest = math.sqrt((1 - 6 * value**2) / 58) if 6 * value**2 < 1 else 0.01
        matrix = u @ torch.diag(torch.tensor([value] * 6 + [rest] * 58)) @ v
        for n in (3, 5, 7):
            polynomials = polar_express(n)
            result = orthogonalise(matrix.bfloat16()[None], polynomials)[0].float()
            assert torch.linalg.svdvals(result).max() < 2.1, (value, n)


@pytest.mark.parametrize("preset", [preset for preset in PRESETS if preset not in gpts()])
def test_muon_trains_models_with_hidden_matrices_and_refuses_others(preset: str, cli: Cli) -> None:
    model = run_config(f"model={preset}").model.build(vocab_size=11, block_size=8)
    ended = cli("data=bundled", f"model={preset}", "optim=muon", "trainer.steps=1", "logger=none")
    if model.hidden_matrices():
        assert ended.code == 0, ended.err
    else:
        assert_refused(ended, "optim=adamw", "hidden_matrices", field="optim", value="muon")


def test_a_warmup_longer_than_the_run_is_refused(cli: Cli) -> None:
    ended = cli("data=bundled", "optim.warmup_steps=11", "trainer.steps=10")
    assert_refused(ended, "trainer.steps=10", field="optim.warmup_steps", value=11)
    assert ended.err.count("\n") == 1
    run_config("optim.warmup_steps=10", "trainer.steps=10")
    run_config("optim.warmup_steps=10", "trainer.steps=0")  # no training, no conflict


def test_an_uncompiled_run_does_not_import_the_compiler() -> None:
    """Check each optimizer in a new process, without any previous imports."""
    code = """
import sys
import torch
from bigramlm.model.config import GPTConfig
from bigramlm.optim.config import OPTIMIZERS
for kind in OPTIMIZERS.values():
    model = GPTConfig(n_layer=1, n_head=2, n_embd=8).build(vocab_size=5, block_size=4)
    optimizer = kind().build(model, compiled=False)
    model(torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 2, dtype=torch.long))[1].backward()
    optimizer.step(); optimizer.zero_grad(); optimizer.load_state_dict(optimizer.state_dict()); optimizer.step()
    assert "torch._dynamo" not in sys.modules, kind
"""
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


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
        {"schedule": "cosin"},
        {"min_lr": -1e-5},
        {"min_lr": 1.0},
        {"min_lr": float("nan")},
        {"decay_fraction": 0.0},
        {"decay_fraction": 1.5},
    ],
    ids=str,
)
def test_invalid_fields_are_refused(fields: dict[str, object]) -> None:
    ((name, value),) = fields.items()
    with refuses(field=f"optim.{name}", value=value):
        AdamWConfig(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (SGDConfig, {"momentum": 1.0}),
        (SGDConfig, {"momentum": -0.1}),
        (SGDConfig, {"momentum": 0.0}),
        (MuonConfig, {"momentum": 1.0}),
        (MuonConfig, {"adamw_lr": 0.0}),
        (MuonConfig, {"adamw_lr": float("inf")}),
        (MuonConfig, {"ns_steps": 0}),
        (MuonConfig, {"betas": [0.9]}),
    ],
    ids=str,
)
def test_invalid_fields_of_sgd_and_muon_are_refused(kind: type[OptimConfig], fields: dict[str, Any]) -> None:
    ((name, value),) = fields.items()
    with refuses(field=f"optim.{name}", value=f"{value:g}" if isinstance(value, float) else value):
        kind(**fields)
