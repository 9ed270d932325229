"""The fields of the training loop."""

from __future__ import annotations

from dataclasses import dataclass

from bigramlm.errors import require


@dataclass
class TrainerConfig:
    """The length of a run, and the intervals at which it evaluates, records and saves."""

    steps: int = 10_000
    """Updates of the weights; 0 evaluates, saves and samples the fresh model."""
    eval_every: int = 1000
    """Steps between evaluations on both splits; the last step is always evaluated."""
    eval_batches: str = "100"
    """The number of fixed batches of each split that an evaluation covers, or `all` for the whole split."""
    log_every: int = 100
    """Steps between records of the training batch's loss, the learning rate, the gradient's norm and the speed."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; the last step, and the best at an evaluation, are always saved."""
    keep_checkpoints: int = 2
    """The number of newest checkpoints to keep: with two, one is left if the other is damaged. The best stays too."""
    grad_accumulation: int = 1
    """Batches whose mean gradient makes one update."""
    activation_checkpointing: bool = False
    """Keep of the activations only what enters each block, and compute the rest again when the gradient needs it: the
    same result with far less memory, for about a third more arithmetic."""
    early_stopping_patience: int = 0
    """Evaluations in a row without a lower val loss after which the run ends, as completed; 0 never ends it so."""

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
