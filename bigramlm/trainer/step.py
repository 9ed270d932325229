"""Updates of the weights: one at a time as the code stands, or several in one call of compiled code."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from bigramlm.data.batches import IGNORED
from bigramlm.device.device import Device
from bigramlm.model.base import LanguageModel
from bigramlm.optim.base import set_learning_rate, trainable_parameters

log = logging.getLogger(__name__)

Batch = tuple[Tensor, Tensor]

# The most compiled updates of a small model that one call takes: more gain little and take longer to compile.
STEPS_PER_CALL_AT_MOST = 12


class StepResult(NamedTuple):
    """An update of the weights."""

    loss: Tensor
    """The loss before it, of shape ()."""
    grad_norm: Tensor | None
    """The gradient's norm before clipping, of shape (); None if gradients are not clipped."""


class TrainStep:
    """The update of the weights, as PyTorch runs it: operation by operation."""

    def __init__(
        self,
        model: LanguageModel,
        optimizer: torch.optim.Optimizer,
        device: Device,
        *,
        grad_accumulation: int = 1,
        grad_clip: float = 0.0,
        masked: bool = False,
    ) -> None:
        """Take the parts of an update.

        grad_accumulation: the parts A that a batch is cut in; grad_clip: the largest norm of a gradient, 0 any; masked:
        whether there are targets that do not count.
        """
        self.model = model
        self.params = trainable_parameters(model)
        self.optimizer = optimizer
        self.device = device
        self.scaler = torch.amp.GradScaler(device.torch.type, enabled=device.precision == "fp16")
        self.grad_accumulation = grad_accumulation
        self.grad_clip = grad_clip
        self.masked = masked

    def start_at(self, step: int) -> None:
        """Take this as the number of the next step."""

    def __call__(self, batch: Batch, lr: float) -> StepResult | None:
        """Update the weights, and return what came of it; None where the update waits for others to share a call.

        batch: inputs and targets, both (A * B, T). The gradients of the last update stay in place until the next.
        """
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
        return StepResult(total, norm)

    def losses(self, batch: Batch) -> Iterator[Tensor]:
        """Yield the losses of a batch's parts, each by its share of targets: their sum is the whole batch's loss."""
        parts = self.grad_accumulation
        counted = (batch[1] != IGNORED).sum() if self.masked and parts > 1 else None
        for x, y in [batch] if parts == 1 else zip(batch[0].chunk(parts), batch[1].chunk(parts), strict=True):
            with self.device.autocast():
                _, loss = self.model(x, y)
            if counted is not None:
                yield loss * ((y != IGNORED).sum() / counted)
            else:
                yield loss if parts == 1 else loss / parts


class SharedCalls:
    """The plan of which updates share a call: those between two records, in equal groups without a rest.

    It follows from the steps' numbers and from when something looks at the weights, so that a resumed run takes the
    same calls as one that was not interrupted.
    """

    def __init__(self, *, log_every: int, looks: Sequence[int]) -> None:
        """Get ready to compile, which the first call does.

        log_every: every so many steps one is recorded, and taken alone; looks: intervals at which the weights are
        evaluated or saved, and the number of all steps.
        """
        self.log_every = log_every
        self.looks = (log_every, *looks)
        self.most = max(n for n in range(1, STEPS_PER_CALL_AT_MOST + 1) if (log_every - 1) % n == 0)

    def __call__(self, first: int) -> int:
        """Return how many updates a call takes that begins with step `first`."""
        since_a_record, n = first % self.log_every, self.most
        undisturbed = (
            since_a_record > 0
            and (since_a_record - 1) % n == 0
            and all(first // every == (first + n - 1) // every for every in self.looks)
        )
        return n if undisturbed else 1


class CompiledStep(TrainStep):
    """The same update as one compiled graph, from the logits to the new weights; as it stands where that fails.

    A small model's update is shorter than the call that starts it: one call may take several of them, which wait until
    they are complete.
    """

    def __init__(
        self,
        model: LanguageModel,
        optimizer: torch.optim.Optimizer,
        device: Device,
        *,
        steps_per_call: Callable[[int], int] = lambda _: 1,
        **options: Any,
    ) -> None:
        """steps_per_call: how many steps a call takes that begins with the step of this number.

        options: as of TrainStep. The first call compiles.
        """
        import torch._dynamo.config

        super().__init__(model, optimizer, device, **options)
        torch._dynamo.reset()  # jobs of a sweep share a process: none may meet what another compiled
        torch._dynamo.config.trace_autograd_ops = True
        self.steps_per_call = steps_per_call
        self._step = 0
        self._waiting: list[tuple[Batch, float]] = []
        # Calls that may still fail: the first of each number of steps, which compiles, and on CUDA the second, which
        # captures.
        self._first_calls = 2 if device.torch.type == "cuda" else 1
        self._calls: Counter[int] = Counter()
        # On a GPU the graph's kernels are captured in a CUDA graph too, and started by one call: a small model's would
        # be started more slowly than they run.
        mode = "reduce-overhead" if device.torch.type == "cuda" else None
        self._compiled: Callable[[Tensor, Tensor, Tensor], StepResult] | None = torch.compile(
            self._several, fullgraph=True, dynamic=False, mode=mode
        )

    @property
    def is_compiled(self) -> bool:
        """True if it compiled, as far as it was tried."""
        return self._compiled is not None

    def start_at(self, step: int) -> None:
        self._step = step

    def __call__(self, batch: Batch, lr: float) -> StepResult | None:
        if self._compiled is None:
            return super().__call__(batch, lr)
        self._waiting.append((batch, lr))
        if len(self._waiting) == 1:
            self._due = self.steps_per_call(self._step)
        self._step += 1
        if len(self._waiting) < self._due:
            return None
        waiting, self._waiting = self._waiting, []
        return self._call(waiting)

    def _call(self, steps: list[tuple[Batch, float]]) -> StepResult | None:
        # Returns what came of the first one.
        x = torch.stack([x for (x, _), _ in steps])  # (K, A * B, T)
        y = torch.stack([y for (_, y), _ in steps])
        lrs = torch.tensor([lr for _, lr in steps]).to(x.device, non_blocking=x.device.type == "cuda")
        assert self._compiled is not None
        if self._calls[len(steps)] >= self._first_calls:
            return self._compiled(x, y, lrs)
        if not self._calls:
            log.info("compiling the training step, which takes a while the first time")
            for p in self.params:
                p.grad = torch.zeros_like(p)
            self._mark_static()
        try:
            result = self._compiled(x, y, lrs)
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except Exception as error:  # compiling and capturing fail in many ways, all of them before anything has run
            lines = [line for line in str(error).splitlines() if line.strip() and not line.endswith("raised:")]
            reason = lines[0] if lines else type(error).__name__
            log.warning("device.compile: the step does not compile here (%s); continuing uncompiled", reason)
            self._compiled = None
            first, *_ = [super(CompiledStep, self).__call__(batch, lr) for batch, lr in steps]
            return first
        self._calls[len(steps)] += 1
        return result

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

    def _several(self, x: Tensor, y: Tensor, lrs: Tensor) -> StepResult:
        first, *_ = [self._one((x[k], y[k]), lrs[k]) for k in range(len(x))]
        return first

    def _one(self, batch: Batch, lr: Tensor) -> StepResult:
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
        return StepResult(total, norm)
