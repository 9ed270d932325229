"""A feed-forward network over the embeddings of the last tokens.

It was the first neural language model that beat n-grams, and the first with embeddings that are learned with the rest.

Source: Bengio, Ducharme, Vincent and Jauvin 2003, "A Neural Probabilistic Language Model", Journal of Machine Learning
Research 3, section 2.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bigramlm.model.base import LanguageModel, cross_entropy, matrix_flops
from bigramlm.model.cache import Cache
from bigramlm.model.config import MLPConfig
from bigramlm.model.ngram import ngram_losses


class MLP(LanguageModel):
    """A hidden layer between the concatenated embeddings of N tokens and the head.

    Letters in shapes, in addition to B, T and V: N is the context size, C the number of channels of an embedding
    (n_embd), and H the number of hidden units.
    """

    def __init__(self, cfg: MLPConfig, *, vocab_size: int, block_size: int) -> None:
        super().__init__(vocab_size=vocab_size, block_size=block_size)
        self.context_size = cfg.context_size
        # The last row is the embedding of the padding, which stands for the tokens before the start of a sequence.
        self.embedding = nn.Embedding(vocab_size + 1, cfg.n_embd)
        self.hidden = nn.Linear(cfg.context_size * cfg.n_embd, cfg.n_hidden)
        self.head = nn.Linear(cfg.n_hidden, vocab_size)
        self.direct = nn.Linear(cfg.context_size * cfg.n_embd, vocab_size, bias=False) if cfg.direct else None

    def forward(
        self, idx: Tensor, targets: Tensor | None = None, cache: Cache | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the logits (B, T, V) and the loss, as `LanguageModel.forward` does.

        cache: the tokens before idx. The tokens of idx are appended to the cache.
        """
        tokens = idx if cache is None else cache.append(idx)
        before = self.context_size - 1
        padded = F.pad(tokens, (before, 0), value=self.vocab_size)[:, -(before + idx.shape[1]) :]
        windows = padded.unfold(1, self.context_size, 1)  # (B, T, N): each token, after those before it
        x = self.embedding(windows).flatten(2)  # (B, T, N C)
        logits = self.head(torch.tanh(self.hidden(x)))  # (B, T, H), then (B, T, V)
        if self.direct is not None:
            logits = logits + self.direct(x)
        return logits, cross_entropy(logits, targets)

    def new_cache(self) -> Cache:
        return Cache(n_layer=0, block_size=self.block_size)

    def hidden_units(self) -> dict[str, nn.Module]:
        return {"hidden": self.head}

    def hidden_matrices(self) -> dict[nn.Parameter, int]:
        return {p: 1 for p in self.hidden.parameters() if p.ndim == 2}

    def flops_per_token(self, length: int | None = None) -> int:  # noqa: ARG002
        # The embeddings are looked up; all other matrices multiply.
        return matrix_flops(p for name, p in self.named_parameters() if p.ndim == 2 and "embedding" not in name)

    def reference_losses(self, train: Tensor, val: Tensor) -> dict[str, float]:
        return ngram_losses(train, val, vocab_size=self.vocab_size, block_size=self.block_size)
