"""Updates of the weights: one at a time as the code stands, or several in one call of compiled code."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from bigramlm.data.batches import IGNORED
from bigramlm.device.device import Device
from bigramlm.model.base import LanguageModel
from bigramlm.optim.base import set_learning_rate, trained

log = logging.getLogger(__name__)

Batch = tuple[Tensor, Tensor]
# The loss before the update and, where gradients are clipped, their norm before that; both of shape ().
Outcome = tuple[Tensor, Tensor | None]


class TrainStep:
    """The update of the weights, as PyTorch runs it: operation by operation."""

    together = 1
    """How many updates one call may take; it may always take just one."""

    def __init__(
        self,
        model: LanguageModel,
        optimizer: torch.optim.Optimizer,
        device: Device,
        scaler: torch.amp.GradScaler,
        *,
        grad_accumulation: int,
        grad_clip: float,
        masked: bool = False,
    ) -> None:
        """grad_accumulation: the parts A that a batch is cut in; grad_clip: the largest norm of a gradient, 0 any;
        masked: whether there are targets that do not count.
        """
        self.model = model
        self.params = trained(model)
        self.optimizer = optimizer
        self.device = device
        self.scaler = scaler
        self.grad_accumulation = grad_accumulation
        self.grad_clip = grad_clip
        self.masked = masked

    def __call__(self, batches: Sequence[Batch], lrs: Sequence[float]) -> Outcome:
        """Update the weights once for each batch, and return the first update's outcome.

        batches: inputs and targets, all (A * B, T); lrs: the learning rate of each. The gradients of the last update
        stay in place until the next.
        """
        (batch,), (lr,) = batches, lrs
        set_learning_rate(self.optimizer, lr)
        for p in self.params:  # what optimizer.zero_grad() does, less a fifth of a bigram's step for its profiling
            p.grad = None
        total = None
        for loss in self.losses(batch):
            self.scaler.scale(loss).backward()
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None
        self.scaler.unscale_(self.optimizer)
        norm = clip_grad_norm_(self.params, self.grad_clip) if self.grad_clip else None
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return total, norm

    def losses(self, batch: Batch) -> Iterator[Tensor]:
        """The losses of a batch's parts, each by its share of the targets: their sum is the loss of the whole batch."""
        parts = self.grad_accumulation
        counted = (batch[1] != IGNORED).sum() if self.masked and parts > 1 else None
        for x, y in [batch] if parts == 1 else zip(batch[0].chunk(parts), batch[1].chunk(parts), strict=True):
            with self.device.autocast():
                _, loss = self.model(x, y)
            if counted is not None:
                yield loss * ((y != IGNORED).sum() / counted)
            else:
                yield loss if parts == 1 else loss / parts


class CompiledStep(TrainStep):
    """The same update as one compiled graph, from the logits to the new weights; as it stands where that fails.

    A small model's update is shorter than the call that starts it: one call may take several of them.
    """

    def compile(self, *, together: int) -> None:
        """Make ready to compile, which the first call does."""
        import torch._dynamo.config

        torch._dynamo.reset()  # jobs of a sweep share a process: none may meet what another compiled
        torch._dynamo.config.trace_autograd_ops = True
        self.together = together
        # Calls that may still fail: the first of each number of steps, which compiles, and on CUDA the second, which
        # captures.
        self._first_calls = 2 if self.device.torch.type == "cuda" else 1
        self._calls: Counter[int] = Counter()
        # On a GPU the graph's kernels are captured in a CUDA graph too, and started by one call: a small model's would
        # be started more slowly than they run.
        mode = "reduce-overhead" if self.device.torch.type == "cuda" else None
        self._compiled: Callable[[Tensor, Tensor, Tensor], Outcome] | None = torch.compile(
            self._several, fullgraph=True, dynamic=False, mode=mode
        )

    @property
    def is_compiled(self) -> bool:
        """Whether it compiled, as far as it was tried."""
        return self._compiled is not None

    def __call__(self, batches: Sequence[Batch], lrs: Sequence[float]) -> Outcome:
        if self._compiled is None:
            return super().__call__(batches, lrs)
        x = torch.stack([x for x, _ in batches])  # (K, A * B, T)
        y = torch.stack([y for _, y in batches])
        rates = torch.tensor(lrs).to(x.device, non_blocking=x.device.type == "cuda")
        if self._calls[len(batches)] >= self._first_calls:
            outcome: Outcome = self._compiled(x, y, rates)
            return outcome
        if not self._calls:
            log.info("compiling the training step, which takes a while the first time")
            for p in self.params:
                p.grad = torch.zeros_like(p)
            self._mark_static()
        try:
            outcome = self._compiled(x, y, rates)
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except Exception as error:  # compiling and capturing fail in many ways, all of them before anything has run
            lines = [line for line in str(error).splitlines() if line.strip() and not line.endswith("raised:")]
            reason = lines[0] if lines else type(error).__name__
            log.warning("device.compile: the step does not compile here (%s); going on uncompiled", reason)
            self._compiled, self.together = None, 1
            first, *_ = [super(CompiledStep, self).__call__([b], [lr]) for b, lr in zip(batches, lrs, strict=True)]
            return first
        self._calls[len(batches)] += 1
        return outcome

    def _mark_static(self) -> None:
        # What a call changes where it stands: a CUDA graph of anything else would change copies.
        tensors = [*self.params, *(p.grad for p in self.params)]
        for group in self.optimizer.param_groups:
            tensors.append(group["lr"])
        for values in self.optimizer.state.values():
            tensors += values.values()
        for tensor in tensors:
            if torch.is_tensor(tensor):
                torch._dynamo.mark_static_address(tensor)

    def _several(self, x: Tensor, y: Tensor, lrs: Tensor) -> Outcome:
        first, *_ = [self._one((x[k], y[k]), lrs[k]) for k in range(len(x))]
        return first

    def _one(self, batch: Batch, lr: Tensor) -> Outcome:
        set_learning_rate(self.optimizer, lr)
        # Gradients are added into tensors that stay where they are: the compiler follows what a tensor holds, and not
        # the exchange of `p.grad` for another.
        for p in self.params:
            p.grad.zero_()  # type: ignore[union-attr]
        total = torch.zeros_like(lr)
        for loss in self.losses(batch):
            for p, gradient in zip(self.params, torch.autograd.grad(loss, self.params), strict=True):
                p.grad.add_(gradient)  # type: ignore[union-attr]
            total = total + loss.detach()
        norm = clip_grad_norm_(self.params, self.grad_clip) if self.grad_clip else None
        self.optimizer.step()
        return total, norm
