"""Which optimizers there are, and their fields."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from omegaconf import MISSING

from bigramlm.errors import require

if TYPE_CHECKING:
    import torch


@dataclass
class OptimConfig:
    """What every optimizer has."""

    name: str = MISSING
    """Which optimizer this is; set by `optim=NAME`."""
    lr: float = 1e-3
    """Learning rate, once warmed up."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises in a line up to `optim.lr`; 0 starts with all of it."""
    weight_decay: float = 0.0
    """How strongly weights are pulled towards zero: each step takes away `lr * weight_decay` of them."""
    grad_clip: float = 0.0
    """Gradients with a larger norm than this are scaled down to it; 0 leaves them as they are."""

    def __post_init__(self) -> None:
        require(math.isfinite(self.lr) and self.lr > 0, f"optim.lr={self.lr}: must be a finite number above 0")
        require(self.warmup_steps >= 0, f"optim.warmup_steps={self.warmup_steps}: must be 0 or more")
        for name in ("weight_decay", "grad_clip"):
            value = getattr(self, name)
            require(math.isfinite(value) and value >= 0, f"optim.{name}={value}: must be a finite number, 0 or more")

    def build(self, model: torch.nn.Module, *, compiled: bool) -> torch.optim.Optimizer:
        """The optimizer of the model's parameters; compiled: for use inside a compiled step."""
        raise NotImplementedError


@dataclass
class AdamWConfig(OptimConfig):
    """AdamW (Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization"), with PyTorch's own defaults."""

    name: str = "adamw"
    weight_decay: float = 0.01
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    """How much of the past the running means of the gradient and of its square keep."""
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


OPTIMIZERS: dict[str, type[OptimConfig]] = {"adamw": AdamWConfig}
