"""The training step in eager mode."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from bigramlm.data.batches import IGNORED
from bigramlm.device.device import Device
from bigramlm.model.base import LanguageModel
from bigramlm.optim.base import set_learning_rate, trainable_parameters

Batch = tuple[Tensor, Tensor]


class StepResult(NamedTuple):
    """The result of one update of the weights."""

    loss: Tensor
    """The loss before the update, of shape ()."""
    grad_norm: Tensor | None
    """The gradient norm before clipping, of shape (); None if gradients are not clipped."""


class TrainStep:
    """A training step in eager mode; each call updates the weights once."""

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
        """Store the model, the optimizer and the update options.

        grad_accumulation: the number of micro-batches per batch (A). grad_clip: the maximum gradient
        norm; 0 disables clipping. masked: if True, some targets are ignored in the loss.
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
        """Set the number of the next step.

        Only compiled mode uses the number; eager mode ignores it.
        """

    def __call__(self, batch: Batch, lr: float) -> StepResult | None:
        """Update the weights from one batch at the given learning rate.

        batch: inputs and targets, both (A * B, T) for A micro-batches of B rows. Returns None if the update is deferred
        so that one compiled call can make several updates. After an update, the gradients stay available until the next
        one.
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
        """Yield the loss of each micro-batch, weighted by its share of the targets.

        The sum of these losses is the loss of the whole batch.
        """
        n = self.grad_accumulation
        n_targets = (batch[1] != IGNORED).sum() if self.masked and n > 1 else None
        for x, y in [batch] if n == 1 else zip(batch[0].chunk(n), batch[1].chunk(n), strict=True):
            with self.device.autocast():
                _, loss = self.model(x, y)
            if n_targets is not None:
                yield loss * ((y != IGNORED).sum() / n_targets)
            else:
                yield loss if n == 1 else loss / n
