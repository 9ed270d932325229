"""One update of the weights: run as it stands, or compiled as a whole."""

import logging
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from bigramlm.device.device import Device
from bigramlm.model.base import LanguageModel

log = logging.getLogger(__name__)

# Takes inputs and targets, both (A * B, T), and updates the weights. Returns the loss before the update and, where
# gradients are clipped, their norm before that. The gradients stay in place until the next step.
TrainStep = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]


def build_step(
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    device: Device,
    scaler: torch.amp.GradScaler,
    *,
    grad_accumulation: int,
    grad_clip: float,
) -> TrainStep:
    """The training step; grad_accumulation: the parts A that a batch is cut in; grad_clip: the largest norm, 0 any."""

    def losses(x: Tensor, y: Tensor) -> Iterator[Tensor]:
        # The parts are of one size, so the mean of their losses is that of the whole batch.
        parts = zip(x.chunk(grad_accumulation), y.chunk(grad_accumulation), strict=True)
        for x_part, y_part in [(x, y)] if grad_accumulation == 1 else parts:
            with device.autocast():
                _, loss = model(x_part, y_part)
            yield loss if grad_accumulation == 1 else loss / grad_accumulation

    def eager(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        optimizer.zero_grad()
        total = None
        for loss in losses(x, y):
            scaler.scale(loss).backward()
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None
        scaler.unscale_(optimizer)
        norm = clip_grad_norm_(model.parameters(), grad_clip) if grad_clip else None
        scaler.step(optimizer)
        scaler.update()
        return total, norm

    if not device.compile:
        return eager

    params = [p for p in model.parameters() if p.requires_grad]

    def whole(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        # The same update in a form that compiles into one graph: gradients are added into tensors that stay where they
        # are, since the compiler follows the contents of a tensor and not the exchange of `p.grad` for another.
        total = torch.zeros((), device=x.device)
        for p in params:
            p.grad.zero_()  # type: ignore[union-attr]
        for loss in losses(x, y):
            for p, gradient in zip(params, torch.autograd.grad(loss, params), strict=True):
                p.grad.add_(gradient)  # type: ignore[union-attr]
            total = total + loss.detach()
        norm = clip_grad_norm_(params, grad_clip) if grad_clip else None
        optimizer.step()
        return total, norm

    return _compile_or_fall_back(whole, eager, params, on_cpu=device.torch.type == "cpu")


def _compile_or_fall_back(whole: TrainStep, eager: TrainStep, params: list[Tensor], *, on_cpu: bool) -> TrainStep:
    import torch._dynamo.config

    torch._dynamo.reset()  # jobs of a sweep share the process: none may meet what another compiled
    torch._dynamo.config.trace_autograd_ops = True
    # With a C++ wrapper the graph is called without a way through Python, where a small model's step spends its time.
    compiled = torch.compile(whole, fullgraph=True, dynamic=False, options={"cpp_wrapper": on_cpu})
    chosen: TrainStep | None = None

    def step(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        nonlocal chosen
        if chosen is not None:
            return chosen(x, y)
        for p in params:
            p.grad = torch.zeros_like(p)
        log.info("compiling the training step; this takes some 10 to 60 seconds the first time")
        try:
            result = compiled(x, y)
        except Exception as error:  # the compiler fails in many ways, all of them before anything has run
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            log.warning("device.compile: the step does not compile here (%s); going on uncompiled", reason)
            chosen = eager
            return eager(x, y)
        chosen = compiled
        return result

    return step
