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
    checkpoint_at: str | None = None
    """Further steps whose checkpoints are saved and kept: `log` for 0, 1, 2, 5, 10, 20, 50 and so on, so that
    `scripts/look.py` shows how a model began to learn; `null` for none."""
    sample_every: int = 0
    """The number of steps between samples of what the model writes while it learns, from step 0 on. They are in the
    log, in samples.txt, in TensorBoard, W&B and the report, and have the settings of `sample`. 0 means none until the
    run ends. Training is the same with or without samples."""
    vitals_every: int = 0
    """The number of steps between measurements of the vital signs of each layer, such as 100: the ratio of the update
    to the weights, the gradient norm, the size of the activations, dead units, the entropy of attention and the largest
    logit. They are in the records, in TensorBoard, W&B and the report, and the log says if one is off. 0 disables them.
    Training is the same with or without them."""
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
        for name in ("early_stopping_patience", "sample_every", "vitals_every", "overfit_batches"):
            require(getattr(self, name) >= 0, f"trainer.{name}={getattr(self, name)}: must be 0 or more")
        require(
            self.checkpoint_at in (None, "log"),
            f"trainer.checkpoint_at={self.checkpoint_at}: must be log or null; for every N steps, use "
            "checkpoint_every=N and keep_checkpoints",
        )
        require(
            self.eval_batches == "all" or (self.eval_batches.isdecimal() and int(self.eval_batches) >= 1),
            f"trainer.eval_batches={self.eval_batches}: must be all, or a whole number of 1 or more",
        )

    def keeps(self, step: int) -> bool:
        """Check whether `checkpoint_at` saves and keeps the checkpoint of a step."""
        digits = str(step)
        return self.checkpoint_at == "log" and (step == 0 or (digits[0] in "125" and not digits[1:].strip("0")))
