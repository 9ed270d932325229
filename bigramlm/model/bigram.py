"""The bigram model, and the best loss that any bigram model can reach.

The bigram is the first model of the tutorial.

Source: A. Karpathy, "Let's build GPT: from scratch, in code, spelled out", youtube.com/watch?v=kCc8FmEb1nY
"""

import torch
from torch import Tensor, nn

from bigramlm.model.base import MAX_REFERENCE_TOKENS, LanguageModel, cross_entropy


class Bigram(LanguageModel):
    """A V x V table: row i contains the logits of the token that follows token i.

    V is the vocabulary size.
    """

    def __init__(self, *, vocab_size: int, block_size: int) -> None:
        super().__init__(vocab_size=vocab_size, block_size=block_size)
        # nn.Embedding initialises the table with N(0, 1), so the first loss is about 0.5 above ln V.
        self.token_embedding_table = nn.Embedding(vocab_size, vocab_size)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        logits = self.token_embedding_table(idx)  # (B, T, V)
        return logits, cross_entropy(logits, targets)

    def reference_losses(self, train: Tensor, val: Tensor) -> dict[str, float]:
        if len(train) + len(val) > MAX_REFERENCE_TOKENS:
            return {}
        train_loss, val_loss = best_bigram_losses(train.cpu(), val.cpu(), self.vocab_size)
        return {"train/best_bigram": train_loss, "val/best_bigram": val_loss}

    @torch.inference_mode()
    def loss_by_counts(self, tokens: Tensor) -> float | None:
        pairs, counts = _count_pairs(tokens.cpu(), self.vocab_size)
        every_token = torch.arange(self.vocab_size, device=self.token_embedding_table.weight.device)
        logits, _ = self(every_token[:, None])  # (V, 1, V)
        log_p = logits.log_softmax(-1).cpu().flatten()[pairs].double()
        return float(-(counts * log_p).sum() / counts.sum())


def best_bigram_losses(train: Tensor, val: Tensor, vocab_size: int) -> tuple[float, float]:
    """Compute the train and val loss in nats of the bigram model fitted by counting.

    train, val: the token ids (N,) of the splits. The train loss is the lowest that a bigram model can reach, because
    cross-entropy is minimal if the predicted probabilities are the observed frequencies, p(b|a) = count(ab) / count(a).
    The val loss adds one to every count of train (Laplace's rule), because a pair that never occurs in train would
    otherwise have an infinite loss. If train is short, a different bigram model may have a lower val loss.
    """
    pairs, counts = _count_pairs(train, vocab_size)
    first_counts = torch.zeros(vocab_size, dtype=torch.double).index_add_(0, pairs // vocab_size, counts)  # count(a)
    train_loss = (counts * (first_counts[pairs // vocab_size] / counts).log()).sum() / counts.sum()

    val_pairs, val_counts = _count_pairs(val, vocab_size)
    # The index of each val pair among the sorted train pairs. A pair that does not occur in train has count 0.
    index = torch.searchsorted(pairs, val_pairs).clamp(max=len(pairs) - 1)
    count = torch.where(pairs[index] == val_pairs, counts[index], 0.0)
    p = (count + 1) / (first_counts[val_pairs // vocab_size] + vocab_size)
    val_loss = -(val_counts * p.log()).sum() / val_counts.sum()
    return train_loss.item(), val_loss.item()


def _count_pairs(ids: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    # Returns the pairs that occur, as a * V + b in ascending order, and their counts.
    ids = ids.int()
    if vocab_size**2 > 1_000_000:
        pairs, counts = (ids[:-1].long() * vocab_size + ids[1:]).unique(return_counts=True)
    else:  # filling a table of all pairs is ten times as fast as sorting the pairs
        table = torch.bincount(ids[:-1] * vocab_size + ids[1:], minlength=vocab_size**2)
        pairs = table.nonzero().flatten()
        counts = table[pairs]
    return pairs, counts.double()
