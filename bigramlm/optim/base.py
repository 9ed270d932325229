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


def without_dynamo(cls: type[Optimizer]) -> type[Optimizer]:
    """The same optimizer, without the wrappers that import torch._dynamo, the compiler's front end, at the first call.

    The import takes as long as that of torch itself, and an uncompiled run needs nothing of it. The wrappers tell the
    compiler to leave the optimizer out; a compiled step wants it in. `step` gets the `no_grad` back that its wrapper
    brought.
    """
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    bare = {name: inspect.unwrap(getattr(cls, name)) for name in names}
    step = torch.no_grad()(inspect.unwrap(cls.step))
    return type(cls.__name__, (cls,), {**bare, "step": step, "__module__": cls.__module__, "__doc__": cls.__doc__})
