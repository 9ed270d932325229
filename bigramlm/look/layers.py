"""The states, units and weights of a model, layer by layer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bigramlm.look.subject import Subject

N_BINS = 41
# More matrices than this are not shown.
_MAX_MATRICES = 64


@dataclass(frozen=True)
class Histogram:
    """The distribution of the elements of a tensor."""

    name: str
    low: float
    high: float
    counts: list[int]
    std: float

    @classmethod
    def of(cls, name: str, values: Tensor) -> Histogram:
        """Count the values in N_BINS bins of equal width, from the lowest to the highest."""
        values = values.detach().float().cpu().flatten()
        low, high = float(values.min()), float(values.max())
        if low == high:
            low, high = low - 0.5, high + 0.5
        counts = torch.histc(values, N_BINS, low, high).int().tolist()
        return cls(name, low, high, counts, float(values.std(correction=0)))


@dataclass(frozen=True)
class Units:
    """The activations of the hidden units of a layer."""

    histogram: Histogram
    never: float
    """The share of units that are 0 at every position, or below, e.g. after a GELU."""


def state_names(n_states: int) -> list[str]:
    """Name the states of a stream."""
    return ["embedding", *(f"h.{n}" for n in range(n_states - 1))]


def lens(subject: Subject, idx: Tensor) -> list[Tensor]:
    """Return the logits (T, V) as which each state of the stream is read out.

    idx: token ids (1, T).
    """
    idx = idx.to(subject.device.torch)
    with torch.inference_mode(), subject.device.autocast():
        states = subject.model.stream(idx)
        return [subject.model.read_out(state, idx)[0].float().cpu() for state in states]


def stream_norms(subject: Subject, idx: Tensor) -> list[float]:
    """Return the root mean square of each state of the stream.

    idx: token ids (B, T).
    """
    with torch.inference_mode(), subject.device.autocast():
        return [
            float(state.float().square().mean().sqrt()) for state in subject.model.stream(idx.to(subject.device.torch))
        ]


def hidden_units(subject: Subject, idx: Tensor) -> list[Units]:
    """Measure the hidden units of each layer for token ids idx (B, T)."""
    with _inputs_of(subject.model.hidden_units()) as found:
        subject.logits(idx)
    measured = []
    for name, units in found.items():  # (B, T, units)
        never = (units.flatten(0, -2) <= 0).all(0).float().mean()
        measured.append(Units(Histogram.of(name, units), float(never)))
    return measured


@contextlib.contextmanager
def _inputs_of(modules: dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    # The first argument of each module in the calls of the block.
    found: dict[str, Tensor] = {}

    def keeper(name: str) -> Any:
        return lambda _, arguments: found.__setitem__(name, arguments[0].detach().float().cpu())

    handles = [module.register_forward_pre_hook(keeper(name)) for name, module in modules.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def weights(model: nn.Module) -> list[Histogram]:
    """Return the histograms of the model's matrices, the first ones of a large model."""
    matrices = [(name, p) for name, p in model.named_parameters() if p.ndim >= 2 and p.numel()]
    return [Histogram.of(name, p) for name, p in matrices[:_MAX_MATRICES]]
