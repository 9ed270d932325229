"""Muon for the weight matrices of the hidden layers, AdamW for the rest.

Both optimizers are combined into one. AdamW is PyTorch's.
"""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from bigramlm.errors import require
from bigramlm.optim.adamw import adamw
from bigramlm.optim.base import initial_lr, trainable_parameters, unwrap_optimizer
from bigramlm.optim.config import MuonConfig

# Coefficients a, b, c of the polynomials a x + b x^3 + c x^5, one per iteration. Applied in this order, they bring all
# singular values from 0.001 to 1 as close to 1 as such polynomials can (Amsel et al. 2025, "The Polar Express: Optimal
# Matrix Sign Methods and Their Application to the Muon Algorithm"). All further iterations repeat the last polynomial.
# For Muon, three of these iterations achieve as much as five of Jordan's, which all use the same polynomial
# (docs/log.md).
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.875, -1.25, 0.375),
)
# Singular values are first scaled to slightly below 1, because the polynomials diverge above 1. In bf16 they are scaled
# again before each iteration, as in the paper, because rounding alone can push them above 1.
_SAFETY_FACTOR = 1.01


class HasHiddenMatrices(Protocol):
    """A model that lists the weight matrices of its hidden layers.

    `hidden_matrices` maps each parameter to the number of matrices of equal height that are stacked in the parameter.
    """

    def hidden_matrices(self) -> dict[torch.nn.Parameter, int]: ...


def build_muon(cfg: MuonConfig, model: Any, *, compiled: bool) -> torch.optim.Optimizer:
    """Build Muon for the hidden layers' weight matrices and AdamW for the rest.

    Raises UserError if none of these matrices is trainable.
    """
    typed_model: HasHiddenMatrices = model
    matrices = {p: parts for p, parts in typed_model.hidden_matrices().items() if p.requires_grad}
    require(
        bool(matrices),
        "optim=muon: Muon trains the matrices between a model's embedding and its head, but this model names no such "
        "trainable matrix; choose optim=adamw, or, for a model of your own, return its matrices from the method "
        "hidden_matrices of LanguageModel (docs/adding-a-model.md)",
    )
    rest = [p for p in trainable_parameters(model) if p not in matrices]
    muon = unwrap_optimizer(Muon)(
        matrices,
        lr=initial_lr(cfg.lr, list(matrices), compiled=compiled),
        weight_decay=cfg.weight_decay,
        momentum=cfg.momentum,
        nesterov=cfg.nesterov,
        polynomials=polar_express(cfg.ns_steps),
    )
    others = adamw(cfg, rest, lr=cfg.adamw_lr, compiled=compiled)
    for group in others.param_groups:
        group["lr_ratio"] = cfg.adamw_lr / cfg.lr
    return unwrap_optimizer(CombinedOptimizer)(muon, others)


def polar_express(n: int) -> list[tuple[float, float, float]]:
    """Return the coefficients (a, b, c) of each of n Newton-Schulz iterations."""
    return [POLAR_EXPRESS[min(k, len(POLAR_EXPRESS) - 1)] for k in range(n)]


class Muon(torch.optim.Optimizer):
    """Gradient descent with momentum and nearly orthogonal updates.

    In an orthogonal update all singular values are equal, so all directions are learned equally fast. Source: Jordan et
    al. 2024, "Muon: An optimizer for hidden layers in neural networks".

    PyTorch's Muon updates one matrix at a time, always in bf16. This class updates all matrices of one shape together.
    On a CPU it computes in the dtype of the matrices (fp32), because bf16 is slow there.
    """

    def __init__(
        self,
        matrices: dict[torch.nn.Parameter, int],
        *,
        lr: float | Tensor,
        weight_decay: float,
        momentum: float,
        nesterov: bool,
        polynomials: list[tuple[float, float, float]],
    ) -> None:
        """Build the optimizer with zero momentum.

        matrices: maps each parameter to the number of matrices of equal height that are stacked in the parameter.
        polynomials: the coefficients (a, b, c) of each Newton-Schulz iteration.
        """
        super().__init__(
            list(matrices), {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov}
        )
        self.matrices = matrices
        self.polynomials = polynomials
        self.init_momentum()

    def init_momentum(self) -> None:
        """Set the momentum to zero for each matrix that has no momentum yet.

        `step` cannot create the momentum, because the first step may be compiled.
        """
        for p in self.matrices:
            self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[tuple[int, int, int], list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    parts = self.matrices[p]
                    by_shape.setdefault((parts, p.shape[0] // parts, p.shape[1]), []).append(p)
            for (parts, rows, columns), params in by_shape.items():
                gradients: Any = [p.grad for p in params]
                means = [self.state[p]["momentum_buffer"] for p in params]
                torch._foreach_lerp_(means, gradients, 1 - group["momentum"])
                directions = torch._foreach_lerp(gradients, means, group["momentum"]) if group["nesterov"] else means
                stacked = torch.stack(directions).view(-1, rows, columns)  # (N, rows, columns)
                updates = orthogonalise(stacked, self.polynomials) * (group["lr"] * math.sqrt(max(1, rows / columns)))
                if group["weight_decay"]:
                    torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_sub_(params, list(updates.view(-1, parts * rows, columns).unbind()))


def orthogonalise(matrices: Tensor, polynomials: Sequence[tuple[float, float, float]]) -> Tensor:
    """Bring the singular values of matrices close to 1, and keep singular vectors.

    matrices: N matrices of R rows and C columns, (N, R, C). polynomials: the coefficients (a, b, c) of each
    Newton-Schulz iteration.
    """
    X = matrices.to(torch.bfloat16 if matrices.device.type != "cpu" else matrices.dtype)
    tall = X.shape[1] > X.shape[2]
    X = X.mT if tall else X  # X X^T is then the smaller of the two products
    # A matrix's Frobenius norm is at least its largest singular value.
    X = X / (X.flatten(1).norm(dim=1)[:, None, None] * _SAFETY_FACTOR).clamp(min=1e-7)
    if X.dtype == torch.bfloat16:
        polynomials = [
            p if p == POLAR_EXPRESS[-1] else (p[0] / _SAFETY_FACTOR, p[1] / _SAFETY_FACTOR**3, p[2] / _SAFETY_FACTOR**5)
            for p in polynomials
        ]
    for a, b, c in polynomials:
        gram = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), X, beta=a)
    return (X.mT if tall else X).to(matrices.dtype)


class CombinedOptimizer(torch.optim.Optimizer):
    """Several optimizers of disjoint sets of parameters, used as one optimizer.

    One call of `step` steps all of them. They share one state, and their parameter groups form one list.
    """

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts
        for part in parts:
            self.state.update(part.state)
        self._share()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None
        for part in self.parts:
            part.step()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()
        for part in self.parts:
            if isinstance(part, Muon):  # the state of PyTorch's Muon, used in earlier versions, may have none
                part.init_momentum()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for part in self.parts:
            part.state = self.state
            part.param_groups = [next(groups) for _ in part.param_groups]
