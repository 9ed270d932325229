"""The bigram: the tutorial's first model, and how good any bigram can be.

Source: A. Karpathy, "Let's build GPT: from scratch, in code, spelled out", youtube.com/watch?v=kCc8FmEb1nY
"""

import torch
from torch import Tensor, nn

from bigramlm.model.base import REFERENCES_UP_TO, LanguageModel, cross_entropy


class Bigram(LanguageModel):
    """Row i of one V x V table holds the logits of the token after token i."""

    def __init__(self, *, vocab_size: int, block_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.block_size = block_size
        # The rows start as N(0, 1), nn.Embedding's own start, so the first loss is above ln V by about one half.
        self.token_embedding_table = nn.Embedding(vocab_size, vocab_size)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        logits = self.token_embedding_table(idx)  # (B, T, V)
        return logits, cross_entropy(logits, targets)

    def reference_losses(self, train: Tensor, val: Tensor) -> dict[str, float]:
        if len(train) + len(val) > REFERENCES_UP_TO:
            return {}
        train_loss, val_loss = best_bigram_losses(train.cpu(), val.cpu(), self.vocab_size)
        return {"train/best_bigram": train_loss, "val/best_bigram": val_loss}


def best_bigram_losses(train: Tensor, val: Tensor, vocab_size: int) -> tuple[float, float]:
    """Compute the least loss of a bigram on train, and what counting on train gives on val, in nats; ids (N,).

    In closed form: cross-entropy is least where the predicted probabilities are the observed frequencies,
    p(b|a) = count(ab) / count(a), which gives the train loss. For val one is added to each count of train (Laplace's
    rule), since a pair never seen in train would cost infinitely much; with little text to count in, another bigram
    may do better there.
    """
    pairs, counts = _count_pairs(train, vocab_size)
    seen = torch.zeros(vocab_size, dtype=torch.double).index_add_(0, pairs // vocab_size, counts)  # count(a)
    train_loss = (counts * (seen[pairs // vocab_size] / counts).log()).sum() / counts.sum()

    val_pairs, val_counts = _count_pairs(val, vocab_size)
    # The place of each val pair among the sorted train pairs; pairs that train lacks count 0.
    at = torch.searchsorted(pairs, val_pairs).clamp(max=len(pairs) - 1)
    count = torch.where(pairs[at] == val_pairs, counts[at], 0.0)
    p = (count + 1) / (seen[val_pairs // vocab_size] + vocab_size)
    val_loss = -(val_counts * p.log()).sum() / val_counts.sum()
    return train_loss.item(), val_loss.item()


def _count_pairs(ids: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    # The pairs that occur, as a * V + b in ascending order, and how often.
    ids = ids.int()
    if vocab_size**2 > 1_000_000:
        found, counts = (ids[:-1].long() * vocab_size + ids[1:]).unique(return_counts=True)
    else:  # a table of all pairs is filled ten times as fast as they are sorted
        table = torch.bincount(ids[:-1] * vocab_size + ids[1:], minlength=vocab_size**2)
        found = table.nonzero().flatten()
        counts = table[found]
    return found, counts.double()
