"""Configs of the optimizers."""

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
    """The fields common to all optimizers."""

    name: str = MISSING
    """The name of the optimizer, set by `optim=NAME`."""
    lr: float = 1e-3
    """The learning rate after the warmup."""
    warmup_steps: int = 0
    """The number of steps over which the learning rate increases linearly to `optim.lr`; 0 starts at `optim.lr`."""
    schedule: str = "constant"
    """The learning rate schedule after the warmup: constant, cosine (decays along half a cosine wave), linear (decays
    linearly) or wsd (constant, then decays linearly over the last `optim.decay_fraction` of the steps)."""
    min_lr: float = 0.0
    """The learning rate at the end of a decaying schedule."""
    decay_fraction: float = 0.2
    """The fraction of all steps, at the end of the run, over which the schedule wsd decays."""
    weight_decay: float = 0.0
    """The weight decay: each step multiplies the matrices by `1 - lr * weight_decay`. Biases and norm gains do not
    decay."""
    grad_clip: float = 0.0
    """The maximum norm of the gradient: a larger gradient is scaled down to this norm. 0 disables clipping."""

    def __post_init__(self) -> None:
        require(math.isfinite(self.lr) and self.lr > 0, f"optim.lr={self.lr}: must be a finite number above 0")
        require(self.warmup_steps >= 0, f"optim.warmup_steps={self.warmup_steps}: must be at least 0")
        require_choice("optim.schedule", self.schedule, SCHEDULES)
        require(
            0 <= self.min_lr <= self.lr,
            f"optim.min_lr={self.min_lr}: must be at least 0 and at most optim.lr={self.lr}",
        )
        require(
            0 < self.decay_fraction <= 1,
            f"optim.decay_fraction={self.decay_fraction}: must be above 0 and at most 1 (all steps)",
        )
        for name in ("weight_decay", "grad_clip"):
            value = getattr(self, name)
            require(math.isfinite(value) and value >= 0, f"optim.{name}={value}: must be a finite number, at least 0")

    def build(self, model: torch.nn.Module, *, compiled: bool) -> torch.optim.Optimizer:
        """Build the optimizer for the model's trainable parameters.

        compiled: must be True if the optimizer runs inside a compiled step.
        """
        raise NotImplementedError


@dataclass
class AdamWConfig(OptimConfig):
    """AdamW with PyTorch's defaults.

    Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization".
    """

    name: str = "adamw"
    weight_decay: float = 0.01
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    """The decay rates of the running means of the gradient and of the squared gradient."""
    eps: float = 1e-8
    """A constant that is added to the denominator to prevent a division by zero."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            f"optim.betas={self.betas}: must be two numbers, each at least 0 and below 1, such as [0.9,0.999]",
        )
        require(math.isfinite(self.eps) and self.eps > 0, f"optim.eps={self.eps}: must be a finite number above 0")

    def build(self, model: torch.nn.Module, *, compiled: bool) -> torch.optim.Optimizer:
        from bigramlm.optim.adamw import build_adamw

        return build_adamw(self, model, compiled=compiled)


@dataclass
class SGDConfig(OptimConfig):
    """Stochastic gradient descent with momentum.

    Source: Sutskever et al. 2013, "On the importance of initialization and momentum in deep learning".
    """

    name: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    """The factor by which the previous update contributes to the next update; 0 is plain gradient descent."""
    nesterov: bool = True
    """Nesterov momentum: the update looks ahead along the momentum."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_momentum(self.momentum)
        require(
            self.momentum > 0 or not self.nesterov,
            "optim.momentum=0 optim.nesterov=true: Nesterov momentum requires a momentum above 0; "
            "choose optim.nesterov=false or a larger optim.momentum",
        )

    def build(self, model: torch.nn.Module, *, compiled: bool) -> torch.optim.Optimizer:
        from bigramlm.optim.sgd import build_sgd

        return build_sgd(self, model, compiled=compiled)


@dataclass
class MuonConfig(AdamWConfig):
    """Muon for the weight matrices of the hidden layers, AdamW for the rest.

    AdamW trains embeddings, head, biases and norm gains. The singular values of Muon's updates are all close to 1.
    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
    """

    name: str = "muon"
    lr: float = 0.02
    """Muon's learning rate after the warmup."""
    adamw_lr: float = 3e-3
    """AdamW's learning rate after the warmup. The schedule is the same as Muon's, scaled by `adamw_lr / lr`; this also
    applies to `optim.min_lr`."""
    weight_decay: float = 0.0
    momentum: float = 0.95
    """The decay rate of the running mean of the gradients."""
    nesterov: bool = True
    """Nesterov momentum: the update looks ahead along the momentum."""
    ns_steps: int = 5
    """The number of Newton-Schulz iterations, which bring the singular values of an update close to 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            math.isfinite(self.adamw_lr) and self.adamw_lr > 0,
            f"optim.adamw_lr={self.adamw_lr}: must be a finite number above 0",
        )
        _require_momentum(self.momentum)
        require(1 <= self.ns_steps < 100, f"optim.ns_steps={self.ns_steps}: must be at least 1 and below 100")

    def build(self, model: torch.nn.Module, *, compiled: bool) -> torch.optim.Optimizer:
        from bigramlm.optim.muon import build_muon

        return build_muon(self, model, compiled=compiled)


def _require_momentum(momentum: float) -> None:
    require(0 <= momentum < 1, f"optim.momentum={momentum}: must be at least 0 and below 1")


OPTIMIZERS: dict[str, type[OptimConfig]] = {"adamw": AdamWConfig, "sgd": SGDConfig, "muon": MuonConfig}
