"""Shared by all optimizers: the learning rate, weight decay by shape, and a lighter start."""

import inspect
import math
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from bigramlm.optim.config import OptimConfig

Optimizer = TypeVar("Optimizer", bound=torch.optim.Optimizer)


def learning_rate(cfg: OptimConfig, step: int, steps: int) -> float:
    """Return the learning rate of a step, 0 to steps - 1, from the config alone, so that a resumed run has the same.

    It rises in a line up to `cfg.lr`, and goes on as `cfg.schedule` says; the step after the last would have
    `cfg.min_lr` where it falls.
    """
    if step < cfg.warmup_steps:
        return cfg.lr * (step + 1) / (cfg.warmup_steps + 1)
    if cfg.schedule == "constant":
        return cfg.lr
    began = max(cfg.warmup_steps, steps * (1 - cfg.decay_fraction)) if cfg.schedule == "wsd" else cfg.warmup_steps
    done = min(1.0, max(0.0, (step - began) / max(1, steps - began)))
    left = 0.5 * (1 + math.cos(math.pi * done)) if cfg.schedule == "cosine" else 1 - done
    return cfg.min_lr + left * (cfg.lr - cfg.min_lr)


@dataclass(frozen=True)
class Schedule:
    """The learning rate of every step of a run."""

    optim: OptimConfig
    steps: int
    """The steps of the whole run."""

    def __call__(self, step: int) -> float:
        return learning_rate(self.optim, step, self.steps)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float | torch.Tensor) -> None:
    """Set the learning rate of every group; one that is a tensor is changed in place, for the compiled step.

    A group with an `lr_ratio` gets that much of it.
    """
    # By the parts of one that has any: the compiler knows a group by its place in its own optimizer.
    for part in getattr(optimizer, "parts", (optimizer,)):
        for group in part.param_groups:
            of_group = lr * group.get("lr_ratio", 1.0)
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(of_group)
            else:
                group["lr"] = of_group


def trainable_parameters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """List the parameters that are trained."""
    return [p for p in model.parameters() if p.requires_grad]


def param_groups(params: list[torch.nn.Parameter], *, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups of which only matrices decay: what multiplies activations, or is looked up for them.

    Biases and the gains of norms do not: pulling them towards zero restrains nothing, and harms what they are for.
    """
    matrices, vectors = [p for p in params if p.ndim >= 2], [p for p in params if p.ndim < 2]
    if not weight_decay or not vectors:
        return [{"params": params, "weight_decay": weight_decay}]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def rate_for(lr: float, params: list[torch.nn.Parameter], *, compiled: bool) -> float | torch.Tensor:
    """Return a learning rate as a step takes it: compiled it must be a tensor, since a number would be compiled in."""
    return torch.tensor(lr, device=params[0].device) if compiled and params else lr


def unwrap_optimizer(cls: type[Optimizer]) -> type[Optimizer]:
    """Derive the same optimizer without what PyTorch wraps its methods in.

    The wrappers tell the compiler to leave the optimizer out, for which they import torch._dynamo at the first call:
    that takes as long as importing torch itself, and an uncompiled run needs none of it, while a compiled step wants
    the optimizer in. Another wrapper names the step to the profiler, at a tenth of a bigram's step. `step` gets back
    the `no_grad` that one of them brought.
    """
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    bare = {name: inspect.unwrap(getattr(cls, name)) for name in names}
    step = torch.no_grad()(inspect.unwrap(cls.step))
    step.hooked = True  # as PyTorch marks a step that has the profiler's wrapper
    return type(cls.__name__, (cls,), {**bare, "step": step, "__module__": cls.__module__, "__doc__": cls.__doc__})
