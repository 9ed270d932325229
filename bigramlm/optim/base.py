"""Code shared by all optimizers: learning rates, weight decay, fast start."""

import inspect
import math
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from bigramlm.optim.config import OptimConfig

Optimizer = TypeVar("Optimizer", bound=torch.optim.Optimizer)


@dataclass(frozen=True)
class Schedule:
    """The learning rate schedule of a run.

    The learning rate increases linearly to `cfg.lr` during the warmup, and then follows `cfg.schedule`. A decaying
    schedule would reach `cfg.min_lr` at the step after the last step.
    """

    cfg: OptimConfig
    steps: int
    """The number of steps in the whole run."""

    def __call__(self, step: int) -> float:
        """Return the learning rate at a step from 0 to steps - 1.

        It depends only on the config and the step, so a resumed run has the same learning rates as an uninterrupted
        run.
        """
        cfg, steps = self.cfg, self.steps
        if step < cfg.warmup_steps:
            return cfg.lr * (step + 1) / (cfg.warmup_steps + 1)
        if cfg.schedule == "constant":
            return cfg.lr
        wsd_start = max(cfg.warmup_steps, steps * (1 - cfg.decay_fraction))
        decay_start = wsd_start if cfg.schedule == "wsd" else cfg.warmup_steps
        progress = min(1.0, max(0.0, (step - decay_start) / max(1, steps - decay_start)))
        factor = 0.5 * (1 + math.cos(math.pi * progress)) if cfg.schedule == "cosine" else 1 - progress
        return cfg.min_lr + factor * (cfg.lr - cfg.min_lr)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float | torch.Tensor) -> None:
    """Set the learning rate of every parameter group.

    If a group has an `lr_ratio`, its learning rate is multiplied by this ratio. A learning rate that is stored as a
    tensor is changed in place, because a compiled step reads this tensor.
    """
    # A combined optimizer is updated through its parts: the compiler knows a group by its index in the optimizer that
    # steps it.
    for part in getattr(optimizer, "parts", (optimizer,)):
        for group in part.param_groups:
            group_lr = lr * group.get("lr_ratio", 1.0)
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(group_lr)
            else:
                group["lr"] = group_lr


def trainable_parameters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """List the parameters that require a gradient."""
    return [p for p in model.parameters() if p.requires_grad]


def param_groups(params: list[torch.nn.Parameter], *, weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters into groups so that weight decay applies to matrices only.

    Matrices are the weights of linear layers and the embeddings. Biases and norm gains do not decay, because pulling
    them towards zero has no regularising effect and harms their function.
    """
    matrices, vectors = [p for p in params if p.ndim >= 2], [p for p in params if p.ndim < 2]
    if not weight_decay or not vectors:
        return [{"params": params, "weight_decay": weight_decay}]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def initial_lr(lr: float, params: list[torch.nn.Parameter], *, compiled: bool) -> float | torch.Tensor:
    """Return a learning rate, as a scalar tensor if the step is compiled.

    The tensor is required because a compiled step would treat a Python number as a constant.
    """
    return torch.tensor(lr, device=params[0].device) if compiled and params else lr


def unwrap_optimizer(cls: type[Optimizer]) -> type[Optimizer]:
    """Return a subclass of an optimizer class without PyTorch's method wrappers.

    The wrappers are removed for three reasons. Some wrappers exclude the optimizer from compilation, but a compiled
    step must include the optimizer. These wrappers also import torch._dynamo at the first call, which takes as long as
    importing torch and is unnecessary in an uncompiled run. A further wrapper names the step for the profiler, which
    takes a tenth of the time of a bigram's step.

    One of the removed wrappers disables gradients in `step`; `torch.no_grad` replaces this wrapper.
    """
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    bare = {name: inspect.unwrap(getattr(cls, name)) for name in names}
    step = torch.no_grad()(inspect.unwrap(cls.step))
    step.hooked = True  # PyTorch sets this on a step that has the profiler's wrapper, and adds no second wrapper
    return type(cls.__name__, (cls,), {**bare, "step": step, "__module__": cls.__module__, "__doc__": cls.__doc__})
