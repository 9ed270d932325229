"""N-grams: what counting can do, without a single step of training.

Source: Chen and Goodman 1998, "An Empirical Study of Smoothing Techniques for Language Modeling", section 3: modified
Kneser-Ney smoothing, interpolated.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bigramlm.errors import require
from bigramlm.model.base import REFERENCES_UP_TO, LanguageModel, cross_entropy
from bigramlm.model.cache import Cache

# Counting takes some 100 bytes a token, the most for sorting.
COUNTED_UP_TO = 50_000_000

# The two ways to count a gram: how often it occurs, and after how many different tokens.
_OFTEN, _AFTER = 0, 1


class Grams(nn.Module):
    """The grams of one length n that a text has, each n - 1 tokens of context and one that follows, and their counts.

    A gram is known by its place in `keys`, which are sorted: the place of its context among the grams of length n - 1,
    times V, plus the token that follows. So N grams take 16 N bytes, whatever the vocabulary and the length.
    """

    keys: Tensor
    counts: Tensor
    first: Tensor
    totals: Tensor
    spare: Tensor
    discounts: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Empty until they are counted or loaded; then for N grams after M contexts, and two ways to count them:
        self.register_buffer("keys", torch.empty(0, dtype=torch.int64))  # (N,)
        self.register_buffer("counts", torch.empty(0, dtype=torch.int32))  # (2, N)
        self.register_buffer("first", torch.empty(0, dtype=torch.int64))  # (M + 1,): where a context's grams begin
        self.register_buffer("totals", torch.empty(0, dtype=torch.int32))  # (2, M): the sum of a context's counts
        self.register_buffer("spare", torch.empty(0))  # (2, M): how much of it goes to the shorter context
        self.register_buffer("discounts", torch.empty(0))  # (2, 4): taken off a count of 0, 1, 2, and 3 or more

    def sum_up(self, contexts: int, vocab_size: int) -> None:
        """Derive all else from keys and counts; contexts: how many there are, M."""
        self.first = torch.searchsorted(self.keys, torch.arange(contexts + 1, device=self.keys.device) * vocab_size)
        self.discounts = torch.stack([_discounts(counts) for counts in self.counts])
        context, empty = self.keys // vocab_size, torch.zeros(2, contexts, device=self.keys.device)
        self.totals = empty.int().index_add(1, context, self.counts)
        self.spare = empty.index_add(1, context, self.taken_off(self.both_kinds(), self.counts))

    def find(self, context: Tensor, token: Tensor, vocab_size: int) -> Tensor:
        """Find the places of the grams that these contexts and tokens make; -1 if there is none, or no context (-1)."""
        if len(self.keys) == 0:
            return torch.full_like(context, -1)
        key = context * vocab_size + token
        at = torch.searchsorted(self.keys, key).clamp(max=len(self.keys) - 1)
        return torch.where((context >= 0) & (self.keys[at] == key), at, -1)

    def count_of(self, kind: Tensor | int, gram: Tensor) -> Tensor:
        """Return the counts of grams; 0 for one that is missing (-1)."""
        return self.counts[kind, gram.clamp(min=0)].where(gram >= 0, 0) if len(self.keys) else torch.zeros_like(gram)

    def both_kinds(self) -> Tensor:
        """Both ways to count, (2, 1)."""
        return torch.tensor([[_OFTEN], [_AFTER]], device=self.keys.device)

    def taken_off(self, kind: Tensor | int, count: Tensor) -> Tensor:
        """Return what is taken off these counts, for the tokens that were not seen after the context."""
        return self.discounts[kind, count.clamp(max=3)]

    def share_out(self, p: Tensor, rows: Tensor, kind: Tensor, context: Tensor, weight: Tensor) -> None:
        """Add to p (N, V), in these rows, the share of each token that follows the row's context: count by weight."""
        V = p.shape[1]
        if len(self.first) == 2:  # one context for all rows, that of no tokens, and nearly every token follows it
            counts = torch.zeros(2, V, device=p.device, dtype=p.dtype)
            counts[:, self.keys] = self.counts - self.taken_off(self.both_kinds(), self.counts)
            p[rows] += counts[kind] * weight[:, None]
            return
        first, n_grams = self.first[context], self.first[context + 1] - self.first[context]
        row = torch.repeat_interleave(n_grams)  # (M,), of all grams that follow the rows' contexts
        gram = torch.arange(len(row), device=p.device) + (first - n_grams.cumsum(0) + n_grams)[row]
        count = self.counts[kind[row], gram]
        p[rows[row], self.keys[gram] % V] += (count - self.taken_off(kind[row], count)) * weight[row]

    def interpolated(self, kind: int, context: Tensor, gram: Tensor, shorter: Tensor) -> Tensor:
        """Return the probabilities of grams after their contexts, from those that the shorter contexts give them."""
        if len(self.keys) == 0:
            return shorter
        count, total = self.count_of(kind, gram), self.totals[kind, context.clamp(min=0)]
        p = (count - self.taken_off(kind, count) + self.spare[kind, context.clamp(min=0)] * shorter) / total
        return p.where((context >= 0) & (total > 0), shorter)


class Ngram(LanguageModel):
    """The next token by how often it followed the last tokens in the training text, order - 1 of them at the most.

    Each probability is interpolated with that after a context that is one token shorter, down to no context at all, and
    there with all tokens alike. What counts for a shorter context is not how often a token follows it, but after how
    many different tokens the two stand: how often is known to the longer contexts (Kneser and Ney 1995). At the start
    of a block, where there are fewer tokens, all of them are the longest context.
    """

    def __init__(self, *, vocab_size: int, block_size: int, order: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.block_size = block_size
        self.grams = nn.ModuleList(Grams() for _ in range(order))  # of length 1 to order

    def fit_counts(self, train: Tensor) -> bool:
        """Count the grams of the training tokens (N,), of every length up to the order. UserError for too many."""
        require(
            len(train) <= COUNTED_UP_TO,
            f"an n-gram model counts its n-grams in memory, of {COUNTED_UP_TO:,} tokens of training text at the most, "
            f"and this one has {len(train):,}; take a shorter text, or a model that is trained",
        )
        train, shorter = train.long(), None
        ends = torch.zeros_like(train)  # the place of the gram that ends at each token; at first of length 0
        for length, grams in enumerate(self._grams(), start=1):
            context, less_first = (ends, ends) if length == 1 else (ends[:-1], ends[1:])
            keys, ends, often = (context * self.vocab_size + train[length - 1 :]).unique(
                return_inverse=True, return_counts=True
            )
            grams.keys, grams.counts = keys, torch.stack((often, torch.zeros_like(often))).int()
            if shorter is not None:
                # Each gram here is one of the length before, which it is without its first token, after another token.
                suffix = torch.empty_like(keys).index_copy_(0, ends, less_first)
                shorter.counts[_AFTER] = suffix.bincount(minlength=len(shorter.keys))
            shorter = grams
        contexts = 1
        for grams in self._grams():
            grams.sum_up(contexts, self.vocab_size)
            contexts = len(grams.keys)
        return True

    def forward(
        self, idx: Tensor, targets: Tensor | None = None, cache: Cache | None = None
    ) -> tuple[Tensor, Tensor | None]:
        logits = self.following(idx if cache is None else cache.see(idx), idx.shape[1])
        return logits, cross_entropy(logits, targets)

    def new_cache(self) -> Cache:
        return Cache(n_layer=0, block_size=self.block_size)

    def following(self, seen: Tensor, n_new: int, own: Tensor | None = None) -> Tensor:
        """`log_probabilities` after the last n_new of the tokens seen (B, S) alone, as (B, n_new, V)."""
        return self.log_probabilities(seen[:, -(n_new + len(self.grams) - 1) :], own)[:, -n_new:]

    @torch.no_grad()
    def log_probabilities(self, idx: Tensor, own: Tensor | None = None) -> Tensor:
        """Return ln of the next token's probabilities (B, T, V), for token ids idx (B, T).

        own: where idx is from the text that was counted, the tokens that follow (B, T): each position's own occurrence
        is then left out of the counts that it is predicted from.
        """
        V, last = self.vocab_size, len(self.grams) - 1
        contexts = [context.flatten() for context in self._contexts(idx)]  # (N,) each, where N is B*T
        position = torch.arange(idx.shape[1], device=idx.device).repeat(len(idx))  # (N,)
        p = torch.full((idx.numel(), V), 1 / V, device=idx.device, dtype=self._dtype)  # (N, V)
        if own is not None:
            own = own.flatten()
            found = [grams.find(context, own, V) for grams, context in zip(self._grams(), contexts, strict=True)]
        for n, grams in enumerate(self._grams()):  # after contexts of n tokens
            rows = (contexts[n] >= 0).nonzero().flatten()
            if len(rows) == 0 or len(grams.keys) == 0:
                break
            context, longest = contexts[n][rows], (position[rows] == n - 1) | (n == last)
            kind = torch.where(longest, _OFTEN, _AFTER)
            total, spare = grams.totals[kind, context], grams.spare[kind, context]
            if own is not None:
                # It occurs once less; and it stands after one token less, if it did so only here.
                its = grams.count_of(kind, found[n][rows])
                only_here = longest | (self._count(n + 1, found[n + 1][rows]) == 1) if n < last else longest
                left = its - (only_here & (its > 0)).int()
                total = total - its + left
                spare = spare - grams.taken_off(kind, its) + grams.taken_off(kind, left)
            weight = torch.where(total > 0, 1 / total, 0.0)
            p[rows] *= torch.where(total > 0, spare * weight, 1.0)[:, None]
            if own is None:
                grams.share_out(p, rows, kind, context, weight)
            else:  # put in place, not taken off what was added: rounding could leave less than nothing
                own_share = p[rows, own[rows]] + (left - grams.taken_off(kind, left)) * weight
                grams.share_out(p, rows, kind, context, weight)
                p[rows, own[rows]] = own_share
        return p.log().view(*idx.shape, V)

    def losses(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Sum the cross-entropies in nats, (order,), that n-grams of order 1, 2, ... have over targets (B, T)."""
        position = torch.arange(idx.shape[1], device=idx.device)
        shorter = p = torch.full(idx.shape, 1 / self.vocab_size, device=idx.device, dtype=self._dtype)
        sums = []
        for n, (grams, context) in enumerate(zip(self._grams(), self._contexts(idx), strict=True)):
            gram = grams.find(context, targets, self.vocab_size)
            p = torch.where(position >= n - 1, grams.interpolated(_OFTEN, context, gram, shorter), p)
            shorter = grams.interpolated(_AFTER, context, gram, shorter)
            sums.append(-p.log().sum())
        return torch.stack(sums)

    def reference_losses(self, train: Tensor, val: Tensor) -> dict[str, float]:
        return ngram_losses(train, val, vocab_size=self.vocab_size, block_size=self.block_size)

    def n_params(self) -> int:
        """Count the different grams, of all lengths."""
        return sum(len(grams.keys) for grams in self._grams())

    def _contexts(self, idx: Tensor) -> Iterator[Tensor]:
        # The places of the grams of 0, 1, 2, ... tokens that end at each token, (B, T); -1 where there is none.
        ends = torch.zeros_like(idx)
        for length, grams in enumerate(self._grams(), start=1):
            yield ends
            ends = grams.find(ends if length == 1 else F.pad(ends[:, :-1], (1, 0), value=-1), idx, self.vocab_size)

    def _grams(self) -> Iterator[Grams]:
        for grams in self.grams:
            assert isinstance(grams, Grams)
            yield grams

    @property
    def _dtype(self) -> torch.dtype:
        return next(self._grams()).spare.dtype

    def _count(self, n: int, gram: Tensor) -> Tensor:
        grams = self.grams[n]
        assert isinstance(grams, Grams)
        return grams.count_of(_OFTEN, gram)


def _discounts(counts: Tensor) -> Tensor:
    # What is taken off a count of 0, 1, 2, and 3 or more, by how many counts there are of 1, 2, 3 and 4 (Chen and
    # Goodman, equation 26); a text that is too small to tell gets half of each.
    n1, n2, n3, n4 = torch.bincount(counts.clamp(max=5), minlength=5)[1:5].tolist()
    if 0 in (n1, n2, n3, n4):
        return torch.tensor([0, 0.5, 1, 1.5], device=counts.device)
    y = n1 / (n1 + 2 * n2)
    estimated = (y, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    return torch.tensor([0, *(max(d, 0.1) for d in estimated)], device=counts.device)


@torch.no_grad()
def ngram_losses(train: Tensor, val: Tensor, *, vocab_size: int, block_size: int) -> dict[str, float]:
    """Compute the losses in nats of n-grams of orders 1 to 6, counted in train (N,), over val, within blocks.

    Empty where there is too much to count for what is only to measure against.
    """
    if len(train) + len(val) > REFERENCES_UP_TO:
        return {}
    ngram = Ngram(vocab_size=vocab_size, block_size=block_size, order=6).to(train.device)
    ngram.fit_counts(train)
    idx, targets = val[:-1].long(), val[1:].long()
    whole = len(idx) // block_size * block_size
    sums = ngram.losses(idx[:whole].view(-1, block_size), targets[:whole].view(-1, block_size))
    if whole < len(idx):
        sums += ngram.losses(idx[None, whole:], targets[None, whole:])
    return {f"val/ngram_{order}": loss for order, loss in enumerate((sums / len(idx)).tolist(), start=1)}
