"""N-gram models: probabilities from counts, without training steps.

Source: Chen and Goodman 1998, "An Empirical Study of Smoothing Techniques for Language Modeling", section 3: modified
Kneser-Ney smoothing, interpolated.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bigramlm.errors import require
from bigramlm.model.base import MAX_REFERENCE_TOKENS, LanguageModel, cross_entropy
from bigramlm.model.cache import Cache

# Counting takes about 100 bytes per token, mostly for sorting.
MAX_COUNTED_TOKENS = 50_000_000

# The two kinds of count of an n-gram: the number of its occurrences, and the number of different tokens that precede it
# (the continuation count).
_OCCURRENCES, _CONTINUATIONS = 0, 1


class Grams(nn.Module):
    """The n-grams of one length n in a text, and their counts.

    An n-gram consists of n - 1 context tokens and the token that follows them. It is identified by its index in the
    sorted array `keys`. The key of an n-gram is c * V + t, where c is the index of the context among the n-grams of
    length n - 1, V the vocabulary size, and t the token that follows. The keys and counts of N n-grams take 16 N bytes,
    for any vocabulary and any length.
    """

    keys: Tensor
    counts: Tensor
    first: Tensor
    totals: Tensor
    spare: Tensor
    discounts: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Empty until counted or loaded. Then N is the number of n-grams, M that of contexts, and 2 the kinds of count.
        self.register_buffer("keys", torch.empty(0, dtype=torch.int64))  # (N,)
        self.register_buffer("counts", torch.empty(0, dtype=torch.int32))  # (2, N)
        self.register_buffer("first", torch.empty(0, dtype=torch.int64))  # (M + 1,): a context's first n-gram
        self.register_buffer("totals", torch.empty(0, dtype=torch.int32))  # (2, M): the sum of a context's counts
        self.register_buffer("spare", torch.empty(0))  # (2, M): the sum of a context's discounts
        self.register_buffer("discounts", torch.empty(0))  # (2, 4): subtracted from counts 0, 1, 2, and at least 3

    def derive_tables(self, contexts: int, vocab_size: int) -> None:
        """Compute all other tables from keys and counts.

        contexts: the number of contexts, M.
        """
        self.first = torch.searchsorted(self.keys, torch.arange(contexts + 1, device=self.keys.device) * vocab_size)
        self.discounts = torch.stack([_discounts(counts) for counts in self.counts])
        context, empty = self.keys // vocab_size, torch.zeros(2, contexts, device=self.keys.device)
        self.totals = empty.int().index_add(1, context, self.counts)
        self.spare = empty.index_add(1, context, self.discount(self.kinds(), self.counts))

    def check(self, contexts: int, vocab_size: int) -> None:
        """Raise ValueError unless the tables, which may come from a file, fit each other.

        contexts: the number of contexts, M.
        """
        n, shapes = len(self.keys), [(2, contexts), (2, contexts), (2, 4)]
        is_sound = (
            self.keys.ndim == 1
            and self.counts.shape == (2, n)
            and self.first.shape == (contexts + 1,)
            and [tuple(part.shape) for part in (self.totals, self.spare, self.discounts)] == shapes
            and bool((self.keys[1:] > self.keys[:-1]).all())
            and bool((self.keys >= 0).all() and (self.keys < contexts * vocab_size).all())
            and bool((self.first[1:] >= self.first[:-1]).all())
            and (int(self.first[0]), int(self.first[-1])) == (0, n)
            and bool((self.counts >= 0).all())
        )
        if not is_sound:
            raise ValueError("the tables of its n-grams do not fit each other")

    def find(self, context: Tensor, token: Tensor, vocab_size: int) -> Tensor:
        """Return the index of the n-gram with each context and token.

        context: indices of contexts, -1 for a context that does not occur. token: the tokens that follow them. The
        returned index is -1 for an n-gram that does not occur.
        """
        if len(self.keys) == 0:
            return torch.full_like(context, -1)
        key = context * vocab_size + token
        index = torch.searchsorted(self.keys, key).clamp(max=len(self.keys) - 1)
        return torch.where((context >= 0) & (self.keys[index] == key), index, -1)

    def count_of(self, kind: Tensor | int, gram: Tensor) -> Tensor:
        """Return the counts of n-grams, given their indices.

        kind: `_OCCURRENCES` (how often an n-gram occurs) or `_CONTINUATIONS` (how many different tokens precede the
        n-gram). gram: the indices; -1 stands for an n-gram that does not occur and has count 0.
        """
        return self.counts[kind, gram.clamp(min=0)].where(gram >= 0, 0) if len(self.keys) else torch.zeros_like(gram)

    def kinds(self) -> Tensor:
        """Return `_OCCURRENCES` and `_CONTINUATIONS` as a column (2, 1), for indexing."""
        return torch.tensor([[_OCCURRENCES], [_CONTINUATIONS]], device=self.keys.device)

    def discount(self, kind: Tensor | int, count: Tensor) -> Tensor:
        """Return the discount that is subtracted from each count.

        The subtracted amounts are redistributed by the probabilities after the shorter context.
        """
        return self.discounts[kind, count.clamp(max=3)]

    def add_discounted(self, p: Tensor, rows: Tensor, kind: Tensor, context: Tensor, weight: Tensor) -> None:
        """Add weighted discounted counts to rows of the probabilities p (N, V).

        rows: the indices of the rows. kind, context, weight: for each of these rows, the kind of count (as in
        `count_of`), the index of the context, and the factor by which the counts are multiplied. A row gets the counts
        of all tokens that follow its context.
        """
        V = p.shape[1]
        if len(self.first) == 2:  # all rows have the empty context, which nearly every token follows
            counts = torch.zeros(2, V, device=p.device, dtype=p.dtype)
            counts[:, self.keys] = self.counts - self.discount(self.kinds(), self.counts)
            p[rows] += counts[kind] * weight[:, None]
            return
        first, n_grams = self.first[context], self.first[context + 1] - self.first[context]
        row = torch.repeat_interleave(n_grams)  # (K,), for all K n-grams after the rows' contexts
        gram = torch.arange(len(row), device=p.device) + (first - n_grams.cumsum(0) + n_grams)[row]
        count = self.counts[kind[row], gram]
        p[rows[row], self.keys[gram] % V] += (count - self.discount(kind[row], count)) * weight[row]

    def interpolate(self, kind: int, context: Tensor, gram: Tensor, shorter: Tensor) -> Tensor:
        """Interpolate the probabilities of n-grams with those after shorter contexts.

        kind: as in `count_of`. context, gram: the indices of the contexts and of the n-grams. shorter: the probability
        of each n-gram's last token after the context without its first token. Returns `shorter` where a context does
        not occur.
        """
        if len(self.keys) == 0:
            return shorter
        count, total = self.count_of(kind, gram), self.totals[kind, context.clamp(min=0)]
        p = (count - self.discount(kind, count) + self.spare[kind, context.clamp(min=0)] * shorter) / total
        return p.where((context >= 0) & (total > 0), shorter)


class Ngram(LanguageModel):
    """An n-gram model with modified Kneser-Ney smoothing, interpolated.

    The longest context consists of the last order - 1 tokens. At the start of a block, where fewer tokens are
    available, it consists of all of them. Each probability is interpolated with the probability after the context
    without its first token, down to the empty context, which is interpolated with the uniform distribution.

    The count of a token after the longest context is the number of its occurrences there. After a shorter context, it
    is the number of different tokens that precede context and token, because the longer contexts already take the
    number of occurrences into account (Kneser and Ney 1995).
    """

    def __init__(self, *, vocab_size: int, block_size: int, order: int) -> None:
        super().__init__(vocab_size=vocab_size, block_size=block_size)
        self.grams = nn.ModuleList(Grams() for _ in range(order))  # n-grams of length 1 to order

    def fit_counts(self, train: Tensor) -> bool:
        """Count the n-grams of lengths 1 to order in the training tokens (N,).

        Returns True. Raises UserError if there are more than MAX_COUNTED_TOKENS tokens.
        """
        require(
            len(train) <= MAX_COUNTED_TOKENS,
            f"the training text has {len(train):,} tokens, but an n-gram model counts in memory and therefore supports "
            f"at most {MAX_COUNTED_TOKENS:,}; choose a shorter text, or a model without n-gram counts",
        )
        train, shorter = train.long(), None
        ends = torch.zeros_like(train)  # the index of the n-gram that ends at each token; at first, n is 0
        for length, grams in enumerate(self._grams(), start=1):
            context, suffixes = (ends, ends) if length == 1 else (ends[:-1], ends[1:])
            keys, ends, occurrences = (context * self.vocab_size + train[length - 1 :]).unique(
                return_inverse=True, return_counts=True
            )
            grams.keys, grams.counts = keys, torch.stack((occurrences, torch.zeros_like(occurrences))).int()
            if shorter is not None:
                # An n-gram without its first token (its suffix) is an n-gram of the previous length. Each distinct
                # n-gram adds one to the continuation count of its suffix.
                suffix = torch.empty_like(keys).index_copy_(0, ends, suffixes)
                shorter.counts[_CONTINUATIONS] = suffix.bincount(minlength=len(shorter.keys))
            shorter = grams
        contexts = 1
        for grams in self._grams():
            grams.derive_tables(contexts, self.vocab_size)
            contexts = len(grams.keys)
        return True

    def forward(
        self, idx: Tensor, targets: Tensor | None = None, cache: Cache | None = None
    ) -> tuple[Tensor, Tensor | None]:
        logits = self.next_log_probabilities(idx if cache is None else cache.append(idx), idx.shape[1])
        return logits, cross_entropy(logits, targets)

    def new_cache(self) -> Cache:
        return Cache(n_layer=0, block_size=self.block_size)

    def next_log_probabilities(self, tokens: Tensor, n_new: int, leave_out: Tensor | None = None) -> Tensor:
        """Compute the log-probabilities of the next token after each of the last tokens.

        tokens: token ids (B, S), of which the last n_new are the positions to compute and the earlier ones are their
        context. leave_out: as in `log_probabilities`; requires n_new = S. Returns (B, n_new, V).
        """
        return self.log_probabilities(tokens[:, -(n_new + len(self.grams) - 1) :], leave_out)[:, -n_new:]

    @torch.no_grad()
    def log_probabilities(self, idx: Tensor, leave_out: Tensor | None = None) -> Tensor:
        """Compute next-token log-probabilities (B, T, V) for token ids idx (B, T).

        leave_out: the tokens (B, T) that follow idx in the text, if idx is from the counted text. The counts that
        predict a position then exclude the occurrence at this position.
        """
        V, last = self.vocab_size, len(self.grams) - 1
        contexts = [context.flatten() for context in self._contexts(idx)]  # (N,) each, where N is B*T
        position = torch.arange(idx.shape[1], device=idx.device).repeat(len(idx))  # (N,)
        p = torch.full((idx.numel(), V), 1 / V, device=idx.device, dtype=self._dtype)  # (N, V)
        if leave_out is not None:
            leave_out = leave_out.flatten()
            found = [grams.find(context, leave_out, V) for grams, context in zip(self._grams(), contexts, strict=True)]
        for n, grams in enumerate(self._grams()):  # after contexts of n tokens
            rows = (contexts[n] >= 0).nonzero().flatten()
            if len(rows) == 0 or len(grams.keys) == 0:
                break
            context, longest = contexts[n][rows], (position[rows] == n - 1) | (n == last)
            kind = torch.where(longest, _OCCURRENCES, _CONTINUATIONS)
            total, spare = grams.totals[kind, context], grams.spare[kind, context]
            if leave_out is not None:
                # The occurrence count decreases by one. The continuation count decreases by one only if the n-gram that
                # starts one token earlier occurs once.
                own_count = grams.count_of(kind, found[n][rows])
                counts_here = longest | (self._count(n + 1, found[n + 1][rows]) == 1) if n < last else longest
                remaining = own_count - (counts_here & (own_count > 0)).int()
                total = total - own_count + remaining
                spare = spare - grams.discount(kind, own_count) + grams.discount(kind, remaining)
            weight = torch.where(total > 0, 1 / total, 0.0)
            p[rows] *= torch.where(total > 0, spare * weight, 1.0)[:, None]
            if leave_out is None:
                grams.add_discounted(p, rows, kind, context, weight)
            else:  # assigned instead of corrected by subtraction, because rounding could give a negative probability
                own_share = p[rows, leave_out[rows]] + (remaining - grams.discount(kind, remaining)) * weight
                grams.add_discounted(p, rows, kind, context, weight)
                p[rows, leave_out[rows]] = own_share
        return p.log().view(*idx.shape, V)

    def losses(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Compute the summed cross-entropy in nats of n-gram models of orders 1 to order.

        idx, targets: token ids (B, T). Returns one sum over all targets for each order, (order,).
        """
        position = torch.arange(idx.shape[1], device=idx.device)
        shorter = p = torch.full(idx.shape, 1 / self.vocab_size, device=idx.device, dtype=self._dtype)
        sums = []
        for n, (grams, context) in enumerate(zip(self._grams(), self._contexts(idx), strict=True)):
            gram = grams.find(context, targets, self.vocab_size)
            p = torch.where(position >= n - 1, grams.interpolate(_OCCURRENCES, context, gram, shorter), p)
            shorter = grams.interpolate(_CONTINUATIONS, context, gram, shorter)
            sums.append(-p.log().sum())
        return torch.stack(sums)

    def check_counts(self) -> None:
        """Raise ValueError unless the tables, which may come from a file, fit each other."""
        contexts = 1
        for grams in self._grams():
            if any(table.numel() for table in grams.buffers()):  # a text has been counted
                grams.check(contexts, self.vocab_size)
            contexts = len(grams.keys)

    def reference_losses(self, train: Tensor, val: Tensor) -> dict[str, float]:
        return ngram_losses(train, val, vocab_size=self.vocab_size, block_size=self.block_size)

    def n_params(self) -> int:
        """Return the number of distinct n-grams of all lengths."""
        return sum(len(grams.keys) for grams in self._grams())

    def _contexts(self, idx: Tensor) -> Iterator[Tensor]:
        # Yields, for n = 0, 1, 2, ..., the index of the n-gram that ends at each token, (B, T). The index is -1 if the
        # n-gram does not occur.
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
        return grams.count_of(_OCCURRENCES, gram)


def _discounts(counts: Tensor) -> Tensor:
    # Returns the discounts of counts 0, 1, 2, and at least 3. They are estimated from how many counts are 1, 2, 3 and 4
    # (Chen and Goodman, equation 26). If the text is too short for an estimate, the discount is half of the count.
    n1, n2, n3, n4 = torch.bincount(counts.clamp(max=5), minlength=5)[1:5].tolist()
    if 0 in (n1, n2, n3, n4):
        return torch.tensor([0, 0.5, 1, 1.5], device=counts.device)
    y = n1 / (n1 + 2 * n2)
    estimated = (y, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    return torch.tensor([0, *(max(d, 0.1) for d in estimated)], device=counts.device)


@torch.no_grad()
def ngram_losses(train: Tensor, val: Tensor, *, vocab_size: int, block_size: int) -> dict[str, float]:
    """Compute the val losses in nats of n-gram models of orders 1 to 6.

    train: the token ids (N,) to count. val: the token ids (N,) to predict, in blocks of block_size tokens; contexts do
    not extend beyond the start of a block. Returns {} if the text is too long for reference losses.
    """
    if len(train) + len(val) > MAX_REFERENCE_TOKENS:
        return {}
    ngram = Ngram(vocab_size=vocab_size, block_size=block_size, order=6).to(train.device)
    ngram.fit_counts(train)
    idx, targets = val[:-1].long(), val[1:].long()
    whole = len(idx) // block_size * block_size
    sums = ngram.losses(idx[:whole].view(-1, block_size), targets[:whole].view(-1, block_size))
    if whole < len(idx):
        sums += ngram.losses(idx[None, whole:], targets[None, whole:])
    return {f"val/ngram_{order}": loss for order, loss in enumerate((sums / len(idx)).tolist(), start=1)}
