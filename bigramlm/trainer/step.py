"""Updates of the weights: one by one in eager mode, or several per compiled call."""

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

# The limit on the compiled updates of a small model in one call: more updates gain little and compile longer.
MAX_STEPS_PER_CALL = 12


class StepResult(NamedTuple):
    """The result of one update of the weights."""

    loss: Tensor
    """The loss before the update, of shape ()."""
    grad_norm: Tensor | None
    """The gradient norm before clipping, of shape (); None if gradients are not clipped."""


class TrainStep:
    """The update of the weights in eager mode."""

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
        """Store the model, the optimizer and the options of an update.

        grad_accumulation: the number A of parts that a batch is split into; grad_clip: the largest gradient norm, 0 for
        no clipping; masked: whether some targets are ignored in the loss.
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
        """Set the number of the next step."""

    def __call__(self, batch: Batch, lr: float) -> StepResult | None:
        """Update the weights and return the result.

        batch: inputs and targets, both (A * B, T). Returns None while the update waits for the other updates of a
        shared call. The gradients of an update are kept until the next update.
        """
        set_learning_rate(self.optimizer, lr)
        # Replaces optimizer.zero_grad(), whose profiling costs a fifth of a bigram's step.
        for p in self.params:
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
        """Yield the loss of each part of a batch, weighted by its share of targets.

        The sum of these losses is the loss of the whole batch.
        """
        parts = self.grad_accumulation
        n_targets = (batch[1] != IGNORED).sum() if self.masked and parts > 1 else None
        for x, y in [batch] if parts == 1 else zip(batch[0].chunk(parts), batch[1].chunk(parts), strict=True):
            with self.device.autocast():
                _, loss = self.model(x, y)
            if n_targets is not None:
                yield loss * ((y != IGNORED).sum() / n_targets)
            else:
                yield loss if parts == 1 else loss / parts


class SharedCalls:
    """The plan of which updates share a compiled call.

    The updates between two log records are divided into equal groups without a remainder. The plan depends only on the
    steps' numbers and on the intervals of logs, evaluations and saves, so a resumed run makes the same calls as an
    uninterrupted run.
    """

    def __init__(self, *, log_every: int, intervals: Sequence[int]) -> None:
        """Find the largest number of steps per call that divides log_every - 1.

        log_every: steps between log records; a logged step does not share its call; intervals: the intervals at which
        the weights are evaluated or saved, and the total number of steps.
        """
        self.log_every = log_every
        self.intervals = (log_every, *intervals)
        self.max_steps = max(n for n in range(1, MAX_STEPS_PER_CALL + 1) if (log_every - 1) % n == 0)

    def __call__(self, first: int) -> int:
        """Return the number of updates in the call that begins with step `first`."""
        since_record, n = first % self.log_every, self.max_steps
        shares_call = (
            since_record > 0
            and (since_record - 1) % n == 0
            and all(first // every == (first + n - 1) // every for every in self.intervals)
        )
        return n if shares_call else 1


class CompiledStep(TrainStep):
    """The same update as one compiled graph, from the logits to the new weights.

    If compilation fails, updates run in eager mode. A small model's update takes less time than the call that starts
    the update, so one call can run several updates; they wait until their group is complete.
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

        steps_per_call: a function from a call's first step to the number of steps in the call; options: the options of
        TrainStep.
        """
        import torch._dynamo.config

        super().__init__(model, optimizer, device, **options)
        torch._dynamo.reset()  # jobs of a sweep share a process and must not reuse the code of another job
        torch._dynamo.config.trace_autograd_ops = True
        self.steps_per_call = steps_per_call
        self._step = 0
        self._pending: list[tuple[Batch, float]] = []
        # The calls that can fail, for each number of steps per call: the first call compiles, and on CUDA the second
        # call captures the graph.
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
        """True unless compilation has failed."""
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
            log.info("compiling the training step, which takes a while at the first call")
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
            log.warning("device.compile: the step does not compile here (%s); continuing uncompiled", reason)
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
