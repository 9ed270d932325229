"""AdamW by PyTorch, in the variant that is fastest where it runs."""

import torch

from bigramlm.optim.base import without_wrappers
from bigramlm.optim.config import AdamWConfig


def build_adamw(cfg: AdamWConfig, model: torch.nn.Module, *, compiled: bool) -> torch.optim.Optimizer:
    """AdamW over the parameters that are trained.

    Fused, all parameters are updated by one call. A compiled step fuses by itself and cannot trace the fused call; it
    needs the learning rate as a tensor, since a number would be compiled in.
    """
    params = [p for p in model.parameters() if p.requires_grad]
    lr = torch.tensor(cfg.lr, device=params[0].device) if compiled else cfg.lr
    return without_wrappers(torch.optim.AdamW)(
        params,
        lr=lr,
        betas=(cfg.betas[0], cfg.betas[1]),
        eps=cfg.eps,
        weight_decay=cfg.weight_decay,
        fused=not compiled,
        capturable=compiled and params[0].is_cuda,
    )
