"""Stochastic gradient descent by PyTorch."""

import torch

from bigramlm.optim.base import param_groups, rate_for, trainable_parameters, unwrap_optimizer
from bigramlm.optim.config import SGDConfig


def build_sgd(cfg: SGDConfig, model: torch.nn.Module, *, compiled: bool) -> torch.optim.Optimizer:
    """SGD over the parameters that are trained."""
    params = trainable_parameters(model)
    return unwrap_optimizer(torch.optim.SGD)(
        param_groups(params, weight_decay=cfg.weight_decay),
        lr=rate_for(cfg.lr, params, compiled=compiled),
        momentum=cfg.momentum,
        nesterov=cfg.nesterov,
        fused=not compiled,
    )
