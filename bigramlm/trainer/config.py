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
    sample_every: int = 0
    """The number of steps between samples of what the model writes while it learns, from step 0 on. They are in the
    log, in samples.txt, in TensorBoard, W&B and the report, and have the settings of `sample`. 0 means none until the
    run ends. Training is the same with or without samples."""
    overfit_batches: int = 0
    """The number of batches that training repeats, as a test: a sound model learns a single batch by heart. The log
    says how far it got. 0 disables the repetition, so that every step has a batch of its own."""
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
        for name in ("early_stopping_patience", "sample_every", "overfit_batches"):
            require(getattr(self, name) >= 0, f"trainer.{name}={getattr(self, name)}: must be 0 or more")
        require(
            self.eval_batches == "all" or (self.eval_batches.isdecimal() and int(self.eval_batches) >= 1),
            f"trainer.eval_batches={self.eval_batches}: must be all, or a whole number of 1 or more",
        )
