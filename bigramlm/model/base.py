"""The interface of models, as the Trainer, evaluation and generation use it."""

from torch import Tensor, nn
from torch.nn import functional as F

from bigramlm.model.cache import Cache


class LanguageModel(nn.Module):
    """Predicts the next token at every position.

    Shapes, here and in every model: B batch, T time (at most block_size), V vocabulary.
    """

    vocab_size: int
    block_size: int

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits (B, T, V) for token ids idx (B, T); with targets (B, T) also their mean cross-entropy in nats."""
        raise NotImplementedError

    def fit_counts(self, train: Tensor) -> bool:  # noqa: ARG002
        """Take from the training tokens (N,) what is counted and not trained; False where there is nothing."""
        return False

    def new_cache(self) -> Cache | None:
        """Make the cache for `forward(idx, cache=cache)`, which then takes the new tokens alone; None if there is none.

        Such a call gives the logits of the new tokens, which follow those that it saw before.
        """
        return None

    def hidden_matrices(self) -> dict[nn.Parameter, int]:
        """Return the matrices between the embedding and the head, which Muon is for.

        Each with how many it is made of, one above the other and as high, of which each is to be taken by itself.
        """
        return {}

    def checkpoint_activations(self) -> None:
        """From here on keep for the gradient only what enters each block, and compute the rest again (Chen et al.

        2016, "Training Deep Nets with Sublinear Memory Cost"). For a model whose config `has_blocks`.
        """
        raise NotImplementedError

    def flops_per_token(self, length: int | None = None) -> int:  # noqa: ARG002
        """Count the floating point operations of a training step in matrix products, per token.

        0 if it does none worth counting. length: of a sequence, if not block_size.

        Two for each product and sum, and twice as many backward as forward (Chowdhery et al. 2022, "PaLM", appendix B).
        What activation checkpointing computes again is not counted: it is nothing that has to be done.
        """
        return 0

    def reference_losses(self, train: Tensor, val: Tensor) -> dict[str, float]:  # noqa: ARG002
        """Losses in nats to measure this model against on these token ids, by name; drawn as lines by the loggers."""
        return {}

    def n_params(self) -> int:
        """Count the parameters that are trained; of a model that is fitted by counting, its counts."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


# What counting can do, to measure against, is told of texts of up to so many tokens: that takes seconds.
REFERENCES_UP_TO = 10_000_000


def is_count_table(name: str) -> bool:
    """Tell whether a tensor of a model's state, by its name, is of a table that was counted, and not trained."""
    return "grams." in name


def cross_entropy(logits: Tensor, targets: Tensor | None) -> Tensor | None:
    """Return the mean cross-entropy in nats of logits (B, T, V) for targets (B, T); None without targets."""
    if targets is None:
        return None
    return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))  # (B*T, V), (B*T)
