"""Vital signs of training: numbers for each layer, and a sentence if one is off.

The activations come from a forward pass in eval mode and without gradients, on a few rows of the batch that the next
update uses. It has a random state of its own, so that training is the same without it.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bigramlm.model.base import LanguageModel
from bigramlm.model.python import PythonModel
from bigramlm.optim.base import Schedule
from bigramlm.optim.config import MuonConfig
from bigramlm.trainer.step import Batch, StepResult, TrainStep

log = logging.getLogger(__name__)

# The thresholds of the warnings. "Sound" are runs of experiment=ladder with every model preset and of the recipes
# gpt_cpu, nanogpt_cpu, quick_gpt, overfit and finetune; "30 x lr" are those of the ladder with optim.lr=0.15. All were
# measured on Shakespeare every 20 steps; docs/look.md has figures.

# The norm of an update divided by that of the weights. About 1e-3 is common (Karpathy, "Building makemore part 3").
# Sound runs stay below 0.05, with a short warmup below 0.09; with 30 x lr, gpt, mlp, nanogpt and residual reach 0.12 to
# 0.15.
MAX_UPDATE_RATIO = 0.1
# Adam's first updates change every weight by about the learning rate, whatever its gradient (Kingma and Ba 2015,
# "Adam", section 2.1), until the mean of the gradients is one of many: sound runs without a warmup begin with up to
# 0.3.
FIRST_UPDATES = 10
# The largest ratio of all layers, at no less than half of the full learning rate. Sound runs of the ladder stay above
# 5e-4; fine-tuning with a learning rate of 1e-5 has ratios a hundred times smaller.
MIN_UPDATE_RATIO = 1e-7
# The size of the stream after a layer, divided by that before it, or by 1 if that is smaller; and the same before the
# first update of an untrained model. Sound runs stay below 9, and below 1.1 before the first update; with 30 x lr, gpt
# and nanogpt exceed 300. Residual layers keep it near 1 if their initial weights are divided by the square root of
# their number (Radford et al. 2019, GPT-2, section 2.3).
MAX_GROWTH, MAX_FIRST_GROWTH = 30.0, 3.0
# The share of units that never fire. Sound runs stay below 0.42, and those on top of an n-gram below 0.52; with 30 x
# lr, the gpt reaches 0.52 too. Units of ReLU can die in a large update, or be dead from the start (Lu et al. 2019,
# "Dying ReLU and Initialization: Theory and Numerical Examples").
MAX_DEAD = 0.6
# The share of units that equal another one. Sound runs stay below 0.03. Initial weights must break the symmetry of
# units (Goodfellow et al. 2016, "Deep Learning", section 8.4).
MAX_ALIKE = 0.5
# The mean entropy of a layer's heads, as a share of the largest possible. Sound runs stay above 0.06, single heads
# above 0.01; with 30 x lr, nanogpt falls to 3e-5, which is the collapse that Zhai et al. 2023 describe ("Stabilizing
# Transformer Training by Preventing Attention Entropy Collapse").
MIN_ENTROPY = 0.02
# The largest logit. Sound runs stay below 34. PaLM keeps the normaliser of its softmax near 0 with an auxiliary loss
# (Chowdhery et al. 2022, "PaLM", section 5), because large logits make training unstable.
MAX_LOGIT = 100.0

# A warning is repeated if its sign is so many times as far beyond its threshold.
_MUCH_WORSE = 3.0

# The approximate number of tokens of the forward pass, and the largest length of its sequences. The attention weights
# of the smallest GPT-2 then take 150 MB.
_TOKENS, _LENGTH = 1024, 256
# A unit is dead if its activations are never larger than the first number (never above 0, for a ReLU), or, in a layer
# whose activations are at most 1, such as tanh, always larger than the second ("makemore part 3", on saturated tanh).
_ZERO, _SATURATED = 1e-6, 0.99
# A model is untrained if its loss is more than this share of that of guessing, ln V.
_FRESH = 0.8
# Two units are alike if a fixed mix of their activations differs by less than this share of the norm of one of them.
_ALIKE = 1e-5
# The largest number of values in a histogram. Of more, evenly spaced ones are used.
_IN_HISTOGRAM = 50_000

Sign = tuple[str, str]
"""The names of a layer and of a number about it."""


class Finding(NamedTuple):
    """A vital sign that is off."""

    kind: str
    layer: str
    value: float
    severity: float
    """The ratio to the threshold, above 1."""


class Vitals:
    """The vital signs of a model, measured before and after an update of its weights."""

    def __init__(self, train_step: TrainStep, schedule: Schedule) -> None:
        self.train_step, self.schedule = train_step, schedule
        self.model = train_step.model
        self.histograms: dict[str, NDArray[Any]] = {}
        """The values of the last measurement's histograms, by name; empty if there are none."""
        self._signs: dict[Sign, Tensor] = {}
        self._before: list[Tensor] = []
        self._probe_shape = (0, 0)
        self._severities: dict[tuple[str, str], float] = {}  # of the warnings so far, by kind and layer

    @functools.cached_property
    def _layers(self) -> dict[str, list[nn.Parameter]]:
        # The trained parameters of each layer that has a matrix among them.
        layers: dict[str, list[nn.Parameter]] = defaultdict(list)
        for name, p in self._parameters():
            if p.requires_grad:
                layers[layer_of(name)].append(p)
        return {layer: params for layer, params in layers.items() if any(p.ndim > 1 for p in params)}

    @functools.cached_property
    def _matrices(self) -> list[nn.Parameter]:
        return [p for params in self._layers.values() for p in params if p.ndim > 1]

    @functools.cached_property
    def _adapted(self) -> set[str]:
        # The layers of which a part is frozen: the matrices of an adapter begin at 0, so that they change by a lot.
        return {layer_of(name) for name, p in self._parameters() if not p.requires_grad}

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        # With the names that a network from Python has without its wrapper.
        network = self.model.module if isinstance(self.model, PythonModel) else self.model
        return network.named_parameters()

    def begin(self, batch: Batch, *, histograms: bool = False) -> None:
        """Measure the activations, and copy the weight matrices, before an update.

        batch: the inputs and targets of the update, each (rows, T). histograms: if True, the values of weights and
        activations are kept in `histograms`.
        """
        x, device = batch[0], self.train_step.device
        length = min(x.shape[1], _LENGTH)
        x = x[: max(1, _TOKENS // length), :length]
        self._probe_shape = (x.shape[0], x.shape[1])
        was_training, on_cpu, random_state = self.model.training, x.device.type == "cpu", torch.get_rng_state()
        forked = nullcontext() if on_cpu else torch.random.fork_rng([x.device], device_type=x.device.type)
        with forked, torch.no_grad(), device.autocast():
            self._signs, activations = probe(self.model.eval(), x)
        torch.set_rng_state(random_state)
        self.model.train(was_training)
        self._before = [p.detach().clone() for p in self._matrices]
        self.histograms = {}
        if histograms:
            weights = {f"{layer}/weights": [p for p in self._layers[layer] if p.ndim > 1] for layer in self._layers}
            tensors = weights | {f"{layer}/activations": [values] for layer, values in activations.items()}
            arrays = {f"vitals/{name}": _sampled(values) for name, values in tensors.items()}
            self.histograms = {name: array for name, array in arrays.items() if array.size}

    def end(self, step: int, result: StepResult) -> dict[str, float]:
        """Measure the update, and log a warning for what is off.

        result: the result of the update at this step. Returns the vital signs, by metric name. Waits until the device
        has finished.
        """
        layers = self._layers
        gradients = {layer: [p.grad for p in params if p.grad is not None] for layer, params in layers.items()}
        sizes = _norms(self._before)
        if sizes:
            torch._foreach_sub_(self._before, [p.detach() for p in self._matrices])
        changes, gradient_norms = _norms(self._before), _norms([g for found in gradients.values() for g in found])
        norm = [] if result.grad_norm is None else [result.grad_norm]
        tensors = [*sizes, *changes, *gradient_norms, *self._signs.values(), result.loss, *norm]
        numbers = iter(torch.stack([tensor.detach().float() for tensor in tensors]).tolist())
        n_matrices = {layer: sum(p.ndim > 1 for p in params) for layer, params in layers.items()}
        size, change = ({layer: _total(numbers, n) for layer, n in n_matrices.items()} for _ in range(2))
        gradient = {layer: _total(numbers, len(found)) for layer, found in gradients.items()}
        signs = {sign: next(numbers) for sign in self._signs}
        is_fresh = next(numbers) > _FRESH * math.log(self.model.vocab_size) and step == 0
        # The gradients have been scaled down to the norm grad_clip, and are scaled back.
        scale = max(1.0, next(numbers) / self.train_step.grad_clip) if norm else 1.0
        for layer in layers:
            if size[layer]:
                signs[layer, "update_ratio"] = change[layer] / size[layer]
            signs[layer, "grad_norm"] = gradient[layer] * scale
        self._signs, self._before = {}, []
        self._warn(step, signs, is_fresh=is_fresh)
        return {f"vitals/{layer}/{sign}": float(f"{value:.6g}") for (layer, sign), value in signs.items()}

    def _warn(self, step: int, signs: Mapping[Sign, float], *, is_fresh: bool) -> None:
        # One line for each kind of finding, about the layer where it is worst.
        by_kind: dict[str, list[Finding]] = defaultdict(list)
        at_full_lr = self.schedule(step) >= self.schedule.cfg.lr / 2
        for finding in findings(signs, step=step, at_full_lr=at_full_lr, is_fresh=is_fresh):
            if finding.kind == "large update" and finding.layer in self._adapted:
                continue
            known = self._severities.get((finding.kind, finding.layer), 0.0)
            if finding.severity > known * _MUCH_WORSE:
                self._severities[finding.kind, finding.layer] = finding.severity
                by_kind[finding.kind].append(finding)
        for found in by_kind.values():
            worst = max(found, key=lambda finding: finding.severity)
            others = [finding.layer for finding in found if finding is not worst]
            more = f" (also {', '.join(others[:3])}{' …' if len(others) > 3 else ''})" if others else ""
            log.warning("step %d: %s%s: %s", step, worst.layer, more, self._sentence(step, worst))

    def _sentence(self, step: int, found: Finding) -> str:
        # What is off, the likely cause, and a way out.
        cfg, value = self.schedule.cfg, found.value
        hidden = self.model.hidden_matrices()
        field, lr = "optim.lr", cfg.lr
        if isinstance(cfg, MuonConfig) and not any(p in hidden for p in self._layers.get(found.layer, [])):
            field, lr = "optim.adamw_lr", cfg.adamw_lr
        lower = f"the learning rate may be too high ({field}={lr:g}): try {field}={lr / 10:.1g}"
        rows, length = self._probe_shape
        number = f"{value:,.0f}" if value < 1e6 else f"{value:.0e}"
        too_large = (
            "the matrices that write to the stream may be too large at first: divide them by the square root of twice "
            "the number of layers (model.init=gpt2), or start at 0 (model.zero_init=true)"
        )
        return {
            "large update": f"one update changes its weights by {value:.0%}, where about 0.1% is common: {lower}",
            "small update": f"one update changes its weights by {value:.1g} of their size, and those of no layer by "
            f"more: the learning rate may be too low ({field}={lr:g}): try {field}={lr * 10:.1g}",
            "growth": f"the stream after it is {number} times as large as before it: "
            f"{f'{lower}; or ' if step else ''}{too_large}",
            "dead": f"{value:.0%} of its units never fire, or are saturated, on {rows} sequences of {length} tokens: "
            f"{lower}, optim.warmup_steps=100, or smaller initial weights",
            "alike": f"{value:.0%} of its units compute the same as another: units whose weights are equal at first "
            "stay equal: draw the initial weights at random",
            "low entropy": f"its heads attend to almost one position each (entropy {value:.1%} of the largest "
            f"possible): the queries and keys may be too large: try model.qk_norm=true, smaller initial weights, or a "
            f"lower learning rate ({field}={lr / 10:.1g})",
            "large logit": f"the largest is {number}, so that the softmax is saturated: the head's weights or its "
            "input may be too large: add a norm before the head (model.norm=layer) or smaller initial weights, or "
            f"{lower}",
        }[found.kind]


def findings(signs: Mapping[Sign, float], *, step: int, at_full_lr: bool, is_fresh: bool) -> Iterator[Finding]:
    """Yield the vital signs that are off.

    signs: the values by layer and sign. at_full_lr: False during warmup and at the end of a decay, where updates are
    meant to be small. is_fresh: True before the first update of an untrained model.
    """
    max_growth = MAX_FIRST_GROWTH if is_fresh else MAX_GROWTH
    for (layer, sign), value in signs.items():
        if sign == "update_ratio" and value > MAX_UPDATE_RATIO and step >= FIRST_UPDATES:
            yield Finding("large update", layer, value, value / MAX_UPDATE_RATIO)
        elif sign == "dead" and value > MAX_DEAD:
            yield Finding("dead", layer, value, (1 - MAX_DEAD) / (1.001 - value))
        elif sign == "alike" and value > MAX_ALIKE:
            yield Finding("alike", layer, value, value / MAX_ALIKE)
        elif sign == "entropy" and value < MIN_ENTROPY and ".head_" not in layer:
            yield Finding("low entropy", layer, value, (MIN_ENTROPY + 0.01) / (value + 0.01))
        elif sign == "max" and value > MAX_LOGIT:
            yield Finding("large logit", layer, value, value / MAX_LOGIT)
    stream = [(layer, value) for (layer, sign), value in signs.items() if sign == "rms"]
    for (_, before), (layer, after) in itertools.pairwise(stream):
        if after > max_growth * max(before, 1):
            yield Finding("growth", layer, after / before, after / before / max_growth)
    ratios = {layer: value for (layer, sign), value in signs.items() if sign == "update_ratio"}
    layer = max(ratios, key=lambda name: ratios[name], default="")
    if ratios and at_full_lr and 0 < ratios[layer] < MIN_UPDATE_RATIO:
        yield Finding("small update", layer, ratios[layer], MIN_UPDATE_RATIO / ratios[layer])


def probe(model: LanguageModel, x: Tensor) -> tuple[dict[Sign, Tensor], dict[str, Tensor]]:
    """Measure the vital signs of a model's activations.

    x: token ids (B, T). Also returns the activations themselves: the stream after each layer, and the hidden units. A
    model without the methods that name them only has logits.
    """
    activations: dict[str, Tensor] = {}
    hidden = model.hidden_units()
    handles = [module.register_forward_pre_hook(_keep_input(activations, layer)) for layer, module in hidden.items()]
    try:
        states = model.stream(x)
        logits = model.read_out(states[-1], x) if states else model(x)[0]
    finally:
        for handle in handles:
            handle.remove()
    names = stream_names(model, len(states))
    signs: dict[Sign, Tensor] = {}
    for name, state in zip(names, states, strict=True):
        signs[name, "rms"] = state.float().square().mean().sqrt()
    for layer, inputs in activations.items():
        signs[layer, "dead"], signs[layer, "alike"] = unit_shares(inputs.flatten(0, -2).float())
    for name, weights in zip(names[1:], model.attention(x), strict=False):
        layer, entropies = f"{name}.attn", attention_entropy(weights.float())
        signs[layer, "entropy"] = entropies.mean()
        signs |= {(f"{layer}.head_{head}", "entropy"): entropy for head, entropy in enumerate(entropies)}
    signs["logits", "max"] = logits.float().max()
    return signs, activations | dict(zip(names, states, strict=True))


def _keep_input(kept: dict[str, Tensor], layer: str) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:  # noqa: ARG001
        kept[layer] = inputs[0]

    return hook


def layer_of(name: str) -> str:
    """Return the layer of a parameter.

    name: the name of the parameter. A layer ends with the word after the first number: `h.0.attn.c_proj.weight` belongs
    to `h.0.attn`. Without a number, it is the module: `lm_head.weight` belongs to `lm_head`.
    """
    module = name.rpartition(".")[0] or name
    found = re.match(r"(?:.*?\.)??\d+(?:\.\d+)*(?:\.[^.]+)?", module)
    return found[0] if found else module


def stream_names(model: LanguageModel, n: int) -> list[str]:
    """Return the names of the n states of the stream: the embedding and the layers."""
    if n == 0:
        return []
    embedding, modules = model.token_embedding(), dict(model.named_modules())
    first = next((name for name, module in modules.items() if module is embedding), "embedding")
    lists = (name for name, module in modules.items() if isinstance(module, nn.ModuleList) and len(module) == n - 1)
    layers = next(lists, "layer")
    return [first, *(f"{layers}.{number}" for number in range(n - 1))]


def unit_shares(activations: Tensor) -> tuple[Tensor, Tensor]:
    """Return the share of dead units, and of those that equal another unit.

    activations: the activations (N, H) of H units at N positions.
    """
    size = activations.abs()
    largest = size.amax(0)  # (H,)
    dead = (largest <= _ZERO) | ((size.amin(0) > _SATURATED) & (largest.amax() <= 1))
    activations = activations / largest.amax()  # their squares cannot overflow
    mix = torch.arange(len(size), device=size.device).cos() @ activations  # (H,): equal units have equal mixes
    mix, order = mix.masked_fill(dead, torch.nan).sort()  # nan comes last, and equals nothing
    norm = activations.square().sum(0).sqrt()[order]
    equal = mix.diff().abs() <= _ALIKE * norm[1:]
    return dead.float().mean(), equal.sum() / (len(dead) - dead.sum() - 1).clamp(min=1)


def attention_entropy(weights: Tensor) -> Tensor:
    """Return the mean entropy of each head (H,), as a share of the largest possible.

    weights: the attention weights (B, H, T, T). Position i can attend to i + 1 positions, so that its entropy is at
    most ln(i + 1); position 0, which has no choice, is left out.
    """
    entropy: Tensor = torch.special.entr(weights[:, :, 1:]).sum(-1)  # (B, H, T - 1)
    largest = torch.arange(2, weights.shape[-1] + 1, device=weights.device).log()
    return (entropy / largest).mean((0, 2))


def _norms(tensors: list[Tensor]) -> list[Tensor]:
    return list(torch._foreach_norm(tensors)) if tensors else []


def _total(norms: Iterator[float], n: int) -> float:
    # The norm of the next n tensors together.
    return math.sqrt(sum(next(norms) ** 2 for _ in range(n)))


def _sampled(tensors: Iterable[Tensor]) -> NDArray[Any]:
    # Finite values at even distances, at most _IN_HISTOGRAM of each tensor.
    flat = [tensor.detach().flatten()[:: -(-tensor.numel() // _IN_HISTOGRAM) or 1].float() for tensor in tensors]
    values = torch.cat(flat)
    return values[values.isfinite()].cpu().numpy()
