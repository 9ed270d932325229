"""What the Trainer, evaluation and generation ask of a model."""

from torch import Tensor, nn


class LanguageModel(nn.Module):
    """Predicts the next token at every position.

    Shapes, here and in every model: B batch, T time (at most block_size), V vocabulary.
    """

    vocab_size: int
    block_size: int

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits (B, T, V) for token ids idx (B, T); with targets (B, T) also their mean cross-entropy in nats."""
        raise NotImplementedError

    def reference_losses(self, train: Tensor, val: Tensor) -> dict[str, float]:  # noqa: ARG002
        """Losses in nats to measure this model against on these token ids, by name; drawn as lines by the loggers."""
        return {}

    def n_params(self) -> int:
        """How many parameters are trained."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)
