"""The config of the training loop."""

from __future__ import annotations

from dataclasses import dataclass

from bigramlm.errors import require


@dataclass
class TrainerConfig:
    """The length of a run and its intervals for evaluation, logging and checkpoints."""

    steps: int = 10_000
    """The number of updates of the weights. With 0, the untrained model is evaluated, saved and sampled."""
    eval_every: int = 1000
    """The number of steps between evaluations on both splits. The last step is always evaluated."""
    eval_batches: str = "100"
    """The number of batches per split in an evaluation, which are always the same, or `all` for the whole split."""
    log_every: int = 100
    """The number of steps between records of the batch loss, the learning rate, the gradient norm and the speed."""
    checkpoint_every: int = 1000
    """The number of steps between checkpoints. The last step and every evaluation with a new lowest val loss are always
    saved."""
    keep_checkpoints: int = 2
    """The number of newest checkpoints to keep, in addition to the best checkpoint. With 2, the run can still resume if
    the newest checkpoint is damaged."""
    grad_accumulation: int = 1
    """The number of micro-batches per update. Each has `data.batch_size` rows, and their mean gradient is
    used."""
    activation_checkpointing: bool = False
    """If true, only the input of each block is kept for the backward pass, which recomputes the other activations. The
    result is the same with far less memory, at the cost of about a third more arithmetic."""
    early_stopping_patience: int = 0
    """The number of consecutive evaluations without a new lowest val loss after which the run ends early, with the
    status completed. 0 disables early stopping."""

    def __post_init__(self) -> None:
        require(self.steps >= 0, f"trainer.steps={self.steps}: must be 0 or more")
        for name in ("eval_every", "log_every", "checkpoint_every", "keep_checkpoints", "grad_accumulation"):
            require(getattr(self, name) >= 1, f"trainer.{name}={getattr(self, name)}: must be 1 or more")
        require(
            self.early_stopping_patience >= 0,
            f"trainer.early_stopping_patience={self.early_stopping_patience}: must be 0 or more",
        )
        require(
            self.eval_batches == "all" or (self.eval_batches.isdecimal() and int(self.eval_batches) >= 1),
            f"trainer.eval_batches={self.eval_batches}: must be all, or a whole number of 1 or more",
        )
