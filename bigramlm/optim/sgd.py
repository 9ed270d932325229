"""Stochastic gradient descent by PyTorch."""

import torch

from bigramlm.optim.base import groups, rate_for, trained, without_wrappers
from bigramlm.optim.config import SGDConfig


def build_sgd(cfg: SGDConfig, model: torch.nn.Module, *, compiled: bool) -> torch.optim.Optimizer:
    """SGD over the parameters that are trained."""
    params = trained(model)
    return without_wrappers(torch.optim.SGD)(
        groups(params, weight_decay=cfg.weight_decay),
        lr=rate_for(cfg.lr, params, compiled=compiled),
        momentum=cfg.momentum,
        nesterov=cfg.nesterov,
        fused=not compiled,
    )
