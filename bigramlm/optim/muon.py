"""Muon by PyTorch for the hidden matrices, with AdamW for all else, as one optimizer."""

from typing import Any, Protocol

import torch

from bigramlm.errors import require
from bigramlm.optim.adamw import adamw
from bigramlm.optim.base import rate_for, trained, without_wrappers
from bigramlm.optim.config import MuonConfig


class HasHiddenMatrices(Protocol):
    """A model that tells which of its matrices stand between its embedding and its head."""

    def hidden_matrices(self) -> list[torch.nn.Parameter]: ...


def build_muon(cfg: MuonConfig, model: Any, *, compiled: bool) -> torch.optim.Optimizer:
    """Muon over the model's hidden matrices, AdamW over its other parameters. UserError where it has no such matrix."""
    holder: HasHiddenMatrices = model
    matrices = [p for p in holder.hidden_matrices() if p.requires_grad]
    require(
        bool(matrices),
        "optim=muon: is for the matrices between a model's embedding and its head, and this model has none that is "
        "trained; take optim=adamw",
    )
    chosen = {id(p) for p in matrices}
    rest = [p for p in trained(model) if id(p) not in chosen]
    muon = without_wrappers(torch.optim.Muon)(
        [{"params": matrices}],
        lr=rate_for(cfg.lr, matrices, compiled=compiled),  # type: ignore[arg-type]
        weight_decay=cfg.weight_decay,
        momentum=cfg.momentum,
        nesterov=cfg.nesterov,
        ns_steps=cfg.ns_steps,
    )
    others = adamw(cfg, rest, lr=cfg.adamw_lr, compiled=compiled)
    for group in others.param_groups:
        group["lr_ratio"] = cfg.adamw_lr / cfg.lr
    return without_wrappers(Together)(muon, others)


class Together(torch.optim.Optimizer):
    """Optimizers of different parameters that are one to whoever uses them: one step, one state, all their groups."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts
        self._share()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None
        for part in self.parts:
            part.step()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for part in self.parts:
            part.state = self.state
            part.param_groups = [next(groups) for _ in part.param_groups]
