"""The interface of models, as used by the Trainer, evaluation and generation."""

from torch import Tensor, nn
from torch.nn import functional as F

from bigramlm.model.cache import Cache


class LanguageModel(nn.Module):
    """A model that predicts the next token at every position.

    Shapes, here and in every model: B batch, T time (at most block_size), V vocabulary.
    """

    vocab_size: int
    block_size: int

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Compute the logits (B, T, V) for token ids idx (B, T), and the loss.

        The loss is the mean cross-entropy in nats for targets (B, T), or None without targets.
        """
        raise NotImplementedError

    def fit_counts(self, train: Tensor) -> bool:  # noqa: ARG002
        """Count the training tokens (N,), and return False if nothing is counted."""
        return False

    def new_cache(self) -> Cache | None:
        """Make a cache for `forward(idx, cache=cache)`, or return None if there is none.

        With a cache, idx contains only the new tokens. The logits are those of the new tokens, after all tokens of the
        earlier calls.
        """
        return None

    def hidden_matrices(self) -> dict[nn.Parameter, int]:
        """Return the matrices between the embedding and the head, for Muon.

        Each value is the number of matrices of equal height that are stacked in the parameter. Muon treats each of
        them separately.
        """
        return {}

    def checkpoint_activations(self) -> None:
        """Keep only the inputs of the blocks for the gradient from now on.

        The other activations are recomputed in the backward pass (Chen et al. 2016, "Training Deep Nets with Sublinear
        Memory Cost"). Only models whose config sets `has_blocks` implement this.
        """
        raise NotImplementedError

    def flops_per_token(self, length: int | None = None) -> int:  # noqa: ARG002
        """Count the floating point operations per token of a training step.

        Only matrix products count; 0 if the model has none that matter. length: of a sequence, block_size by default.

        A multiplication and its addition are two operations, and the backward pass has twice as many as the forward
        pass (Chowdhery et al. 2022, "PaLM", appendix B). Operations that activation checkpointing repeats are not
        counted, because the result does not need them.
        """
        return 0

    def reference_losses(self, train: Tensor, val: Tensor) -> dict[str, float]:  # noqa: ARG002
        """Compute losses in nats to compare this model with, by name.

        train and val contain token ids (N,). The loggers draw these losses as lines.
        """
        return {}

    def n_params(self) -> int:
        """Count the trained parameters, or the counts of a model fitted by counting."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


# Reference losses by counting take seconds for a text of this many tokens; for a longer text they are left out.
MAX_REFERENCE_TOKENS = 10_000_000


def is_count_table(name: str) -> bool:
    """Check by its name if a tensor of a model's state is from a table of counts.

    Such a tensor is counted and not trained.
    """
    return "grams." in name


def cross_entropy(logits: Tensor, targets: Tensor | None) -> Tensor | None:
    """Compute the mean cross-entropy in nats of logits (B, T, V) for targets (B, T).

    Returns None without targets.
    """
    if targets is None:
        return None
    return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))  # (B*T, V), (B*T)
