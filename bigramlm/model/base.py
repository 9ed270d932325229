"""The model interface that the Trainer, evaluation and generation use."""

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn import functional as F

from bigramlm.model.cache import Cache


class LanguageModel(nn.Module):
    """A model that predicts the next token at every position.

    Letters in shapes, here and in every model: B is the batch size, T the number of tokens in a sequence (at most
    block_size), and V the vocabulary size.
    """

    def __init__(self, *, vocab_size: int, block_size: int) -> None:
        """Store the vocabulary size and the maximum number of tokens in a sequence."""
        super().__init__()
        self.vocab_size = vocab_size
        self.block_size = block_size

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Compute the next-token logits (B, T, V) for token ids idx (B, T), and the loss.

        The loss is the mean cross-entropy in nats of the logits for targets (B, T). The loss is None if targets is
        None.
        """
        raise NotImplementedError

    def fit_counts(self, train: Tensor) -> bool:  # noqa: ARG002
        """Count the n-grams of the training tokens (N,), if the model uses counts.

        Returns False if the model uses no counts.
        """
        return False

    def new_cache(self) -> Cache | None:
        """Return a new cache for `forward(idx, cache=cache)`, or None if unsupported.

        With a cache, idx contains only the new tokens, and the logits are computed at their positions only. The tokens
        of the earlier calls with this cache are their context.
        """
        return None

    def hidden_matrices(self) -> dict[nn.Parameter, int]:
        """Return the weight matrices of the hidden layers, between embedding and head.

        Each key is a parameter. Its value is the number of matrices of equal height that are stacked in the parameter;
        Muon updates each of these matrices separately.
        """
        return {}

    def checkpoint_activations(self) -> None:
        """Switch on activation checkpointing.

        From now on, only the inputs of the blocks are stored for the backward pass, which recomputes the other
        activations (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"). Only models whose config sets
        `has_blocks` implement this method.
        """
        raise NotImplementedError

    def flops_per_token(self, length: int | None = None) -> int:  # noqa: ARG002
        """Count the floating point operations per token in a training step.

        length: the number of tokens in a sequence; block_size if None. Only matrix products are counted. Returns 0 for
        a model without significant matrix products.

        A multiplication and its addition are two operations, and the backward pass has twice as many as the forward
        pass (Chowdhery et al. 2022, "PaLM", appendix B). Operations that activation checkpointing repeats are not
        counted, because they are not needed for the result.
        """
        return 0

    def reference_losses(self, train: Tensor, val: Tensor) -> dict[str, float]:  # noqa: ARG002
        """Compute the losses of simpler models in nats, for comparison with this model.

        train, val: the token ids (N,) of the splits. Returns the losses by name, such as "val/best_bigram". The loggers
        plot them as lines.
        """
        return {}

    def loss_by_counts(self, tokens: Tensor) -> float | None:  # noqa: ARG002
        """Compute the loss in nats on all tokens (N,) from the counts of their pairs.

        Returns None if the model uses more than one token of context.
        """
        return None

    def attention(self, idx: Tensor) -> list[Tensor]:  # noqa: ARG002
        """Compute the attention weights of each layer for token ids idx (B, T).

        Returns one tensor (B, H, T, T) per layer, where H is the number of heads. Row i of a head contains how much
        position i attends to each position; it sums to 1. The list is empty if the model has no attention.
        """
        return []

    def stream(self, idx: Tensor) -> list[Tensor]:  # noqa: ARG002
        """Compute the residual stream: the states between the layers.

        idx: token ids (B, T). Returns L + 1 tensors (B, T, C) for L layers of C channels: the embeddings, and the
        output of each layer. The list is empty if the model has no layers that `read_out` can follow.
        """
        return []

    def read_out(self, x: Tensor, idx: Tensor) -> Tensor:
        """Compute logits (B, T, V) as if the model ended at a state of the stream.

        x: the state (B, T, C). idx: the token ids (B, T). For the last state, these are the
        logits of `forward` ("logit lens"; nostalgebraist 2020, "interpreting GPT: the logit lens").
        """
        raise NotImplementedError

    def token_embedding(self) -> nn.Module | None:
        """Return the embedding of the tokens, or None if there is none.

        Its weight has at least one row per token. By default, it is the first embedding of that size.
        """
        modules = (module for module in self.modules() if isinstance(module, nn.Embedding))
        return next((module for module in modules if module.num_embeddings >= self.vocab_size), None)

    def hidden_units(self) -> dict[str, nn.Module]:
        """Return the modules whose inputs are the activations of hidden units.

        The keys are the names of their layers. An example is the second matrix of a feed-forward network,
        which gets what the activation function returns.
        """
        return {}

    def n_params(self) -> int:
        """Return the number of trainable parameters.

        A count-based model returns its number of distinct n-grams instead.
        """
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


# Computing reference losses from counts takes seconds for a text of this many tokens. Longer texts get none.
MAX_REFERENCE_TOKENS = 10_000_000


def is_count_table(name: str) -> bool:
    """Return True if a tensor of a model's state dict belongs to an n-gram table.

    name: the tensor's key in the state dict. Such a tensor results from counting and not from training.
    """
    return "grams." in name


def matrix_flops(matrices: Iterable[Tensor]) -> int:
    """Count the floating point operations per token of products with matrices.

    matrices: the weight matrices by which each token is multiplied. The forward and the backward pass are counted. A
    frozen matrix needs no gradient, which saves a third.
    """
    return sum((6 if matrix.requires_grad else 4) * matrix.numel() for matrix in matrices)


def cross_entropy(logits: Tensor, targets: Tensor | None) -> Tensor | None:
    """Compute the mean cross-entropy in nats of logits (B, T, V) for targets (B, T).

    Returns None if targets is None.
    """
    if targets is None:
        return None
    return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))  # (B*T, V), (B*T)
