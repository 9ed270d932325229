"""What all optimizers share: the learning rate, and a lighter start."""

import inspect
from typing import TypeVar

import torch

from bigramlm.optim.config import OptimConfig

Optimizer = TypeVar("Optimizer", bound=torch.optim.Optimizer)


def learning_rate(cfg: OptimConfig, step: int) -> float:
    """The learning rate of a step, from nothing but the step and the config, so that a resumed run has the same."""
    return cfg.lr * min(1.0, (step + 1) / (cfg.warmup_steps + 1))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group; one that is a tensor is changed in place, for the compiled step."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def without_wrappers(cls: type[Optimizer]) -> type[Optimizer]:
    """The same optimizer, less what PyTorch wraps its methods in.

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
