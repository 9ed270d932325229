"""Compiled training steps, several of which can share a call."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from bigramlm.device.device import Device
from bigramlm.model.base import LanguageModel
from bigramlm.optim.base import set_learning_rate
from bigramlm.trainer.step import Batch, StepResult, TrainStep

log = logging.getLogger(__name__)

# The maximum number of updates in one compiled call: more updates gain little, but take longer to compile.
MAX_STEPS_PER_CALL = 12


class SharedCalls:
    """The number of updates in each compiled call.

    A logged step has a call to itself, and so has a step whose vital signs are measured. The steps between two log
    records are divided into calls of equal size. The sizes depend only on the step number and on the intervals of logs,
    evaluations and saves, so that a resumed run makes the same calls as an uninterrupted run.
    """

    def __init__(self, *, log_every: int, intervals: Sequence[int], alone_every: int = 0) -> None:
        """Find the largest number of steps per call that divides log_every - 1.

        log_every: the number of steps between log records. intervals: the numbers of steps between evaluations and
        between saves, and the total number of steps. No call may cross a multiple of these numbers, because the weights
        are needed at these steps. alone_every: the number of steps between further steps with a call to themselves; 0
        if there are none.
        """
        self.log_every = log_every
        self.alone_every = alone_every
        self.intervals = (log_every, *intervals, *([alone_every] if alone_every else []))
        self.max_steps = max(n for n in range(1, MAX_STEPS_PER_CALL + 1) if (log_every - 1) % n == 0)

    def __call__(self, first: int) -> int:
        """Return the number of updates in the call that begins at step `first`."""
        since_record, n = first % self.log_every, self.max_steps
        shares_call = (
            since_record > 0
            and (not self.alone_every or first % self.alone_every > 0)
            and (since_record - 1) % n == 0
            and all(first // every == (first + n - 1) // every for every in self.intervals)
        )
        return n if shares_call else 1


class CompiledStep(TrainStep):
    """A training step whose forward pass, backward pass and update are compiled.

    If compilation fails, steps run in eager mode. An update of a small model takes less time than the call that starts
    it, so one call can make several updates. Their batches are collected until there are enough of them.
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
        """Prepare the compilation, which happens in the first call.

        steps_per_call: a function that takes the first step of a call and returns the number of steps in the call.
        options: the keyword arguments of TrainStep.
        """
        import torch._dynamo.config

        super().__init__(model, optimizer, device, **options)
        torch._dynamo.reset()  # jobs of a sweep share a process and must not reuse the code of another job
        torch._dynamo.config.trace_autograd_ops = True
        self.steps_per_call = steps_per_call
        self._step = 0
        self._pending: list[tuple[Batch, float]] = []
        # For each number of steps per call, only these first calls can fail: the first call compiles, and on CUDA the
        # second call captures the graph.
        self._first_calls = 2 if device.torch.type == "cuda" else 1
        self._calls: Counter[int] = Counter()
        # On a GPU the kernels are also captured in a CUDA graph, which one launch starts: launching the kernels of a
        # small model one by one takes longer than running them.
        mode = "reduce-overhead" if device.torch.type == "cuda" else None
        self._compiled: Callable[[Tensor, Tensor, Tensor], StepResult] | None = torch.compile(
            self._run_steps, fullgraph=True, dynamic=False, mode=mode
        )

    @property
    def is_compiled(self) -> bool:
        """True if calls use compiled code; False after compilation has failed."""
        return self._compiled is not None

    def start_at(self, step: int) -> None:
        self._step = step

    def __call__(self, batch: Batch, lr: float) -> StepResult | None:
        if self._compiled is None:
            return super().__call__(batch, lr)
        self._pending.append((batch, lr))
        if len(self._pending) == 1:
            self._call_size = self.steps_per_call(self._step)
        self._step += 1
        if len(self._pending) < self._call_size:
            return None
        steps, self._pending = self._pending, []
        return self._call(steps)

    def _call(self, steps: list[tuple[Batch, float]]) -> StepResult | None:
        # Returns the result of the first of the K steps.
        x = torch.stack([x for (x, _), _ in steps])  # (K, A * B, T)
        y = torch.stack([y for (_, y), _ in steps])  # (K, A * B, T)
        lrs = torch.tensor([lr for _, lr in steps]).to(x.device, non_blocking=x.device.type == "cuda")
        assert self._compiled is not None
        if self._calls[len(steps)] >= self._first_calls:
            return self._compiled(x, y, lrs)
        if not self._calls:
            log.info("compiling the training step, so the first step is slow")
            for p in self.params:
                p.grad = torch.zeros_like(p)
            self._mark_static()
        try:
            result = self._compiled(x, y, lrs)
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except Exception as error:  # compilation and capture raise many types, all before any update has run
            lines = [line for line in str(error).splitlines() if line.strip() and not line.endswith("raised:")]
            reason = lines[0] if lines else type(error).__name__
            log.warning("device.compile: the step does not compile here (%s); continuing without compilation", reason)
            self._compiled = None
            first, *_ = [super(CompiledStep, self).__call__(batch, lr) for batch, lr in steps]
            return first
        self._calls[len(steps)] += 1
        return result

    def _mark_static(self) -> None:
        # Marks the tensors that a call changes in place: a CUDA graph would otherwise change copies of them.
        tensors = [*self.params, *(p.grad for p in self.params)]
        for group in self.optimizer.param_groups:
            tensors.append(group["lr"])
        for values in self.optimizer.state.values():
            tensors += values.values()
        for tensor in tensors:
            if torch.is_tensor(tensor):
                torch._dynamo.mark_static_address(tensor)

    def _run_steps(self, x: Tensor, y: Tensor, lrs: Tensor) -> StepResult:
        first, *_ = [self._run_step((x[k], y[k]), lrs[k]) for k in range(len(x))]
        return first

    def _run_step(self, batch: Batch, lr: Tensor) -> StepResult:
        set_learning_rate(self.optimizer, lr)
        # Gradients are accumulated in place, because the compiler tracks changes of a tensor's values but not the
        # replacement of `p.grad` by another tensor.
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
