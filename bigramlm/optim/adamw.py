"""AdamW by PyTorch, in the variant that is fastest where it runs."""

import torch

from bigramlm.optim.base import param_groups, rate_for, trainable_parameters, unwrap_optimizer
from bigramlm.optim.config import AdamWConfig


def build_adamw(cfg: AdamWConfig, model: torch.nn.Module, *, compiled: bool) -> torch.optim.Optimizer:
    """AdamW over the parameters that are trained."""
    return adamw(cfg, trainable_parameters(model), lr=cfg.lr, compiled=compiled)


def adamw(cfg: AdamWConfig, params: list[torch.nn.Parameter], *, lr: float, compiled: bool) -> torch.optim.Optimizer:
    """AdamW over these parameters.

    Fused, all parameters of a group are updated by one call. A compiled step fuses by itself and cannot trace the
    fused call.
    """
    return unwrap_optimizer(torch.optim.AdamW)(
        param_groups(params, weight_decay=cfg.weight_decay),
        lr=rate_for(lr, params, compiled=compiled),
        betas=(cfg.betas[0], cfg.betas[1]),
        eps=cfg.eps,
        fused=not compiled,
        capturable=compiled and bool(params) and params[0].is_cuda,
    )
