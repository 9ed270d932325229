"""The optimizers, and their fields."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from omegaconf import MISSING

from bigramlm.errors import require, require_choice

if TYPE_CHECKING:
    import torch


SCHEDULES = ("constant", "cosine", "linear", "wsd")


@dataclass
class OptimConfig:
    """The fields of every optimizer."""

    name: str = MISSING
    """The name of the optimizer; set by `optim=NAME`."""
    lr: float = 1e-3
    """Learning rate, once warmed up."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises in a line up to `optim.lr`; 0 starts with all of it."""
    schedule: str = "constant"
    """The learning rate from there to the last step: constant, cosine (falls along half a wave), linear
    (falls in a line) or wsd (constant, then falls in a line over the last `optim.decay_fraction` of the steps)."""
    min_lr: float = 0.0
    """The learning rate at the end, if it falls."""
    decay_fraction: float = 0.2
    """The share of all steps, the last ones, over which wsd falls."""
    weight_decay: float = 0.0
    """Weight decay: each step takes `lr * weight_decay` of the matrices away. Biases and the
    gains of norms are left alone."""
    grad_clip: float = 0.0
    """Gradients with a larger norm than this are scaled down to it; 0 leaves them as they are."""

    def __post_init__(self) -> None:
        require(math.isfinite(self.lr) and self.lr > 0, f"optim.lr={self.lr}: must be a finite number above 0")
        require(self.warmup_steps >= 0, f"optim.warmup_steps={self.warmup_steps}: must be 0 or more")
        require_choice("optim.schedule", self.schedule, SCHEDULES)
        require(0 <= self.min_lr <= self.lr, f"optim.min_lr={self.min_lr}: must be 0 or more, up to optim.lr={self.lr}")
        require(
            0 < self.decay_fraction <= 1,
            f"optim.decay_fraction={self.decay_fraction}: must be above 0, and 1 (all steps) at the most",
        )
        for name in ("weight_decay", "grad_clip"):
            value = getattr(self, name)
            require(math.isfinite(value) and value >= 0, f"optim.{name}={value}: must be a finite number, 0 or more")

    def build(self, model: torch.nn.Module, *, compiled: bool) -> torch.optim.Optimizer:
        """Build the optimizer of the model's parameters; compiled: for use inside a compiled step."""
        raise NotImplementedError


@dataclass
class AdamWConfig(OptimConfig):
    """AdamW (Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization"), with PyTorch's own defaults."""

    name: str = "adamw"
    weight_decay: float = 0.01
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    """The share of the past in the running means of the gradient and of its square."""
    eps: float = 1e-8
    """Added to the divisor, so that a gradient of zero divides by no zero."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            f"optim.betas={self.betas}: must be two numbers, each 0 or more and below 1, such as [0.9,0.999]",
        )
        require(math.isfinite(self.eps) and self.eps > 0, f"optim.eps={self.eps}: must be a finite number above 0")

    def build(self, model: torch.nn.Module, *, compiled: bool) -> torch.optim.Optimizer:
        from bigramlm.optim.adamw import build_adamw

        return build_adamw(self, model, compiled=compiled)


@dataclass
class SGDConfig(OptimConfig):
    """Stochastic gradient descent with momentum (Sutskever et al.

    2013, "On the importance of initialization and momentum in deep learning").
    """

    name: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    """The share of the last update in the next one; 0 is plain gradient descent."""
    nesterov: bool = True
    """Look ahead along the momentum before the gradient is taken."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_momentum(self.momentum)
        require(
            self.momentum > 0 or not self.nesterov,
            "optim.momentum=0 optim.nesterov=true: there is no momentum to look ahead along; take optim.nesterov=false",
        )

    def build(self, model: torch.nn.Module, *, compiled: bool) -> torch.optim.Optimizer:
        from bigramlm.optim.sgd import build_sgd

        return build_sgd(self, model, compiled=compiled)


@dataclass
class MuonConfig(AdamWConfig):
    """Muon for the hidden matrices (Jordan et al.

    2024, "Muon: An optimizer for hidden layers in neural networks"): updates whose singular values are all near one.
    AdamW for embeddings, head, biases and norms.
    """

    name: str = "muon"
    lr: float = 0.02
    """Muon's learning rate, once warmed up."""
    adamw_lr: float = 3e-3
    """AdamW's learning rate, once warmed up; it rises and falls in step with Muon's, and `optim.min_lr` is Muon's."""
    weight_decay: float = 0.0
    momentum: float = 0.95
    """The share of the running mean of the gradients that is kept at each step."""
    nesterov: bool = True
    """Look ahead along the momentum."""
    ns_steps: int = 5
    """Newton-Schulz iterations, which even out an update's singular values."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            math.isfinite(self.adamw_lr) and self.adamw_lr > 0,
            f"optim.adamw_lr={self.adamw_lr}: must be a finite number above 0",
        )
        _require_momentum(self.momentum)
        require(1 <= self.ns_steps < 100, f"optim.ns_steps={self.ns_steps}: must be 1 or more, and below 100")

    def build(self, model: torch.nn.Module, *, compiled: bool) -> torch.optim.Optimizer:
        from bigramlm.optim.muon import build_muon

        return build_muon(self, model, compiled=compiled)


def _require_momentum(momentum: float) -> None:
    require(0 <= momentum < 1, f"optim.momentum={momentum}: must be 0 or more, and below 1")


OPTIMIZERS: dict[str, type[OptimConfig]] = {"adamw": AdamWConfig, "sgd": SGDConfig, "muon": MuonConfig}
