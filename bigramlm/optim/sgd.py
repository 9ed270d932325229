"""PyTorch's stochastic gradient descent."""

import torch

from bigramlm.optim.base import initial_lr, param_groups, trainable_parameters, unwrap_optimizer
from bigramlm.optim.config import SGDConfig


def build_sgd(cfg: SGDConfig, model: torch.nn.Module, *, compiled: bool) -> torch.optim.Optimizer:
    """Build SGD for the model's trainable parameters."""
    params = trainable_parameters(model)
    return unwrap_optimizer(torch.optim.SGD)(
        param_groups(params, weight_decay=cfg.weight_decay),
        lr=initial_lr(cfg.lr, params, compiled=compiled),
        momentum=cfg.momentum,
        nesterov=cfg.nesterov,
        fused=not compiled,
    )
