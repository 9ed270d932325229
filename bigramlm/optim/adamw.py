"""PyTorch's AdamW, in the variant that is fastest for the run."""

import torch

from bigramlm.optim.base import initial_lr, param_groups, trainable_parameters, unwrap_optimizer
from bigramlm.optim.config import AdamWConfig


def build_adamw(cfg: AdamWConfig, model: torch.nn.Module, *, compiled: bool) -> torch.optim.Optimizer:
    """Build AdamW for the model's trainable parameters."""
    return adamw(cfg, trainable_parameters(model), lr=cfg.lr, compiled=compiled)


def adamw(cfg: AdamWConfig, params: list[torch.nn.Parameter], *, lr: float, compiled: bool) -> torch.optim.Optimizer:
    """Build AdamW for a list of parameters.

    compiled: if False, the fused variant is used, which updates all parameters of a group in one call. A compiled step
    cannot trace this call, and fuses the updates automatically.
    """
    return unwrap_optimizer(torch.optim.AdamW)(
        param_groups(params, weight_decay=cfg.weight_decay),
        lr=initial_lr(lr, params, compiled=compiled),
        betas=(cfg.betas[0], cfg.betas[1]),
        eps=cfg.eps,
        fused=not compiled,
        capturable=compiled and bool(params) and params[0].is_cuda,
    )
