"""The config fields of the training loop."""

from __future__ import annotations

from dataclasses import dataclass

from bigramlm.errors import require


@dataclass
class TrainerConfig:
    """The length of a run and its intervals for evaluation, logging and checkpoints."""

    steps: int = 10_000
    """The number of updates of the weights; 0 evaluates, saves and samples the untrained model."""
    eval_every: int = 1000
    """Steps between evaluations on both splits. The last step is always evaluated."""
    eval_batches: str = "100"
    """The number of fixed batches per split in an evaluation, or `all` for the whole split."""
    log_every: int = 100
    """Steps between log records of the training batch's loss, the learning rate, the gradient norm and the speed."""
    checkpoint_every: int = 1000
    """Steps between checkpoints. The last step and every new best evaluation are always saved."""
    keep_checkpoints: int = 2
    """The number of newest checkpoints to keep in addition to the best one; with 2, one remains if one is damaged."""
    grad_accumulation: int = 1
    """The number of batches whose mean gradient makes one update."""
    activation_checkpointing: bool = False
    """If true, only each block's input is kept for the backward pass, which recomputes the other activations: the same
    result with far less memory, at the cost of about a third more arithmetic."""
    early_stopping_patience: int = 0
    """The number of consecutive evaluations without a lower val loss after which the run ends as completed; 0 disables
    early stopping."""

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
            f"trainer.eval_batches={self.eval_batches}: must be all or a whole number, 1 or more",
        )
