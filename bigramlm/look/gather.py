"""The content of the page: everything that is shown of a model."""

from __future__ import annotations

import base64
import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bigramlm.data.batches import Stream
from bigramlm.data.corpus import Corpus
from bigramlm.errors import UserError, visible
from bigramlm.look import heads, layers, tables
from bigramlm.look.compare import differences
from bigramlm.look.subject import Subject, earlier_subjects, read_corpus, split_of
from bigramlm.look.surprise import NGRAM_ORDER, Passage, ngram_surprise, predict, token_losses
from bigramlm.tokenizer.base import Tokenizer

MAX_TOKENS = 4096
"""The maximum number of tokens of a passage."""
_DEFAULT_TOKENS = 512
# The most surprising places are searched in at most so many tokens of val, evenly spread.
_MAX_SEARCHED = 200_000
_N_PLACES = 20
_CONTEXT = 40
# The attention maps take at most so many bytes, and the passage is cut for them.
_MAX_WEIGHTS = 1 << 20
_N_SAMPLED = 100
_N_TAIL_BINS = 16
_MAX_STEPS = 40
_LENS_LIKELIEST = 3


@dataclass
class Content:
    """The values for the page, and the sentences about what is not on it."""

    values: dict[str, Any]
    notes: list[str]
    passage: Passage


class Tokens:
    """The tokens that the page mentions, numbered in the order of their first use."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._local: dict[int, int] = {}

    def local(self, token: int) -> int:
        """Return the number of a token on the page."""
        return self._local.setdefault(int(token), len(self._local))

    def locals(self, tokens: Iterable[int]) -> list[int]:
        """Return the numbers of several tokens."""
        return [self.local(token) for token in tokens]

    def texts(self) -> list[str]:
        """Return the text of each token."""
        return [text_of(self._tokenizer, token) for token in self._local]


def text_of(tokenizer: Tokenizer, token: int) -> str:
    """Return the text of a token, or its id in brackets if it is no whole character."""
    text = tokenizer.decode([token])
    return visible(text) if text and "\N{REPLACEMENT CHARACTER}" not in text else f"[{token}]"


def kind_of(text: str) -> str:
    """Return the kind of a token's text, by its first character that is no space."""
    first = next((character for character in text if not character.isspace()), "")
    if not first:
        return "space"
    letter = unicodedata.normalize("NFKD", first)[0]
    if first.isalpha():
        return "vowel" if letter in "aeiou" else "capital" if first.isupper() else "consonant"
    return "digit" if first.isdigit() else "punctuation" if unicodedata.category(first)[0] in "PS" else "other"


def gather(subject: Subject, ids: list[int] | None, other: Subject | None = None) -> Content:
    """Compute everything that the page shows.

    ids: the tokens of the passage; None for a passage of the val split. other: a model to compare with. Raises
    UserError if there is no passage.
    """
    notes: list[str] = []
    corpus = _corpus(subject, notes)
    if ids is None:
        if corpus is None:
            raise UserError(f"{notes[-1]} give a passage with prompt=TEXT or text=FILE")
        ids = [int(token) for token in corpus.ids["val"][:_DEFAULT_TOKENS]]
    train = None if corpus is None else split_of(subject, corpus, "train")
    tokens = Tokens(subject.tokenizer)
    passage = predict(subject, ids)
    if len(passage.starts) > 1:
        n = subject.model.block_size
        notes.append(
            f"The passage is longer than the block of {n} tokens, so its context begins anew every {n} tokens."
        )
    idx = torch.tensor(ids[: subject.model.block_size])[None]
    values: dict[str, Any] = {
        "passage": _passage(subject, passage, train, tokens, notes),
        "compare": None,
        "worst": None if corpus is None else _worst(subject, corpus),
        "attention": _attention(subject, idx, tokens, notes),
        "lens": _lens(subject, idx, ids, tokens, notes),
        "weights": [_histogram(found) for found in layers.weights(subject.model)] or None,
        "activations": _activations(subject, idx),
        "sampling": _sampling(subject, idx, tokens),
    }
    if other is not None:
        values["passage"]["difference"], values["compare"] = _comparison(subject, other, passage)
    shown = _shown_tokens(subject, train, ids)
    values["table"] = _table(subject, train, shown[: tables.MAX_ROWS], tokens)
    values["embedding"], axes = _embedding(subject, shown, tokens)
    values["history"] = _history(subject, ids, shown, axes, has_table=values["table"] is not None)
    values["tokens"] = tokens.texts()
    values["kinds"] = [kind_of(text) for text in values["tokens"]]
    return Content(values, notes, passage)


def _corpus(subject: Subject, notes: list[str]) -> Corpus | None:
    try:
        return read_corpus(subject)
    except (UserError, OSError) as error:
        notes.append(f"Without the text of the run, counts and places of val are left out: {error}.")
        return None


def _passage(subject: Subject, passage: Passage, train: Any, tokens: Tokens, notes: list[str]) -> dict[str, Any]:
    ngram = None
    if isinstance(train, Stream):
        ngram = ngram_surprise(subject, train.tokens, passage.ids)
        if ngram is None:
            notes.append("The training text is too long to be counted in a moment, so no n-gram is compared.")
    likeliest = zip(passage.likeliest.tolist(), passage.probabilities.tolist(), strict=True)
    top = [[[tokens.local(token), rounded(p)] for token, p in zip(*row, strict=True)] for row in likeliest]
    return {
        "ids": tokens.locals(passage.ids),
        "windows": passage.starts,
        "surprise": _numbers(passage.surprise),
        "rank": [None, *passage.rank[1:].tolist()],
        "top": [None, *top[1:]],
        "ngram": None if ngram is None else _numbers(ngram),
        "ngram_order": NGRAM_ORDER,
        "difference": None,
    }


def _comparison(subject: Subject, other: Subject, passage: Passage) -> tuple[list[float | None], dict[str, Any]]:
    theirs = predict(other, other.tokenizer.encode(subject.tokenizer.decode(passage.ids)).tolist())
    difference = differences(subject.tokenizer, passage, other.tokenizer, theirs)
    own, their = (float(found.surprise[1:].sum()) for found in (passage, theirs))
    return _numbers(difference), {"label": other.label, "loss": rounded(their), "own_loss": rounded(own)}


def _worst(subject: Subject, corpus: Corpus) -> dict[str, Any] | None:
    val = split_of(subject, corpus, "val")
    if not isinstance(val, Stream):
        return None
    limit = _MAX_SEARCHED // val.block_size if val.n_tokens > _MAX_SEARCHED else None
    blocks = list(val.blocks(limit=limit))
    losses = token_losses(subject, blocks)
    inputs = torch.cat([x.flatten().cpu().long() for x, _ in blocks])
    targets = torch.cat([y.flatten().cpu().long() for _, y in blocks])
    places = []
    for at in losses.topk(min(_N_PLACES, len(losses))).indices.tolist():
        before = inputs[at - at % val.block_size : at + 1].tolist()
        row = subject.logits(torch.tensor([before]))[0, -1].softmax(-1)
        expected = int(row.argmax())
        decode = subject.tokenizer.decode
        places.append(
            {
                "before": visible(decode(before[-_CONTEXT:])),
                "token": text_of(subject.tokenizer, int(targets[at])),
                "after": visible(decode(targets[at + 1 : at + 1 + _CONTEXT // 2].tolist())),
                "surprise": rounded(float(losses[at])),
                "expected": text_of(subject.tokenizer, expected),
                "p": rounded(float(row[expected])),
            }
        )
    return {"n_tokens": len(losses), "mean": float(losses.double().mean()), "places": places}


def _attention(subject: Subject, idx: Tensor, tokens: Tokens, notes: list[str]) -> dict[str, Any] | None:
    maps = heads.attention(subject, idx)
    if not maps:
        notes.append(f"model={subject.cfg.model.name} has no attention.")
        return None
    n_heads = sum(weights.shape[1] for weights in maps)
    length = min(idx.shape[1], max(2, math.isqrt(_MAX_WEIGHTS // n_heads)))
    if length < idx.shape[1]:
        notes.append(f"Attention is shown for the first {length} tokens.")
    scores = heads.scores(subject)
    if not scores:
        notes.append("The block is too short to measure the kinds of the heads.")
    return {
        "ids": tokens.locals(idx[0, :length].tolist()),
        "layers": len(maps),
        "heads": maps[0].shape[1],
        "weights": [[_bytes(head[:length, :length]) for head in layer[0]] for layer in maps],
        "kinds": [[_kind(head) for head in layer] for layer in scores] or None,
    }


def _kind(scores: Tensor) -> dict[str, Any]:
    named = dict(zip(heads.KINDS, map(rounded, scores.tolist()), strict=True))
    return {"name": heads.kind_of(scores), "scores": named}


def _lens(subject: Subject, idx: Tensor, ids: list[int], tokens: Tokens, notes: list[str]) -> dict[str, Any] | None:
    read = layers.lens(subject, idx)
    if not read:
        notes.append(f"model={subject.cfg.model.name} has no layers to read out.")
        return None
    n = idx.shape[1]
    following = torch.tensor([*ids[1 : n + 1], *([0] if len(ids) <= n else [])])
    top, surprise = [], []
    for logits in read:
        log_p = logits.log_softmax(-1)
        best = log_p.topk(min(_LENS_LIKELIEST, log_p.shape[1]), dim=1)
        rows = zip(best.indices.tolist(), best.values.exp().tolist(), strict=True)
        top.append([[[tokens.local(token), rounded(p)] for token, p in zip(*row, strict=True)] for row in rows])
        own = -log_p.gather(1, following[:, None])[:, 0]
        surprise.append([*_numbers(own)[: len(ids) - 1], *([None] if len(ids) <= n else [])])
    return {
        "ids": tokens.locals(idx[0].tolist()),
        "layers": layers.state_names(len(read)),
        "top": top,
        "surprise": surprise,
    }


def _activations(subject: Subject, idx: Tensor) -> dict[str, Any] | None:
    units = [
        {**_histogram(found.histogram), "never": rounded(found.never)} for found in layers.hidden_units(subject, idx)
    ]
    norms = layers.stream_norms(subject, idx)
    stream = {"layers": layers.state_names(len(norms)), "norm": list(map(rounded, norms))} if norms else None
    return {"units": units, "stream": stream} if units or stream else None


def _sampling(subject: Subject, idx: Tensor, tokens: Tokens) -> dict[str, Any]:
    logits = subject.logits(idx)[0].cpu()  # (T, V)
    ranked = logits.sort(dim=1, descending=True, stable=True)
    shown = ranked.values[:, :_N_SAMPLED]
    tails = [_tail(row[_N_SAMPLED:]) for row in ranked.values]
    return {
        "ids": tokens.locals(idx[0].tolist()),
        "logits": [list(map(rounded, row)) for row in shown.tolist()],
        "tokens": [tokens.locals(row) for row in ranked.indices[:, :_N_SAMPLED].tolist()],
        "tail": tails,
    }


def _tail(logits: Tensor) -> list[list[float]]:
    # The other logits in bins: the value that has the bin's mean probability, and the number of tokens.
    parts = [part for part in logits.tensor_split(_N_TAIL_BINS) if len(part)]
    return [[rounded(float(part.logsumexp(0) - math.log(len(part)))), len(part)] for part in parts]


def _shown_tokens(subject: Subject, train: Any, ids: list[int]) -> list[int]:
    # The tokens of the table and the plane, most used first; those that are never used come last.
    V = subject.model.vocab_size
    used = tables.use(torch.tensor(ids) if train is None else train.tokens, V)
    return [int(token) for token in used.argsort(descending=True, stable=True)[: tables.MAX_POINTS]]


def _table(subject: Subject, train: Any, shown: list[int], tokens: Tokens) -> dict[str, Any]:
    predicted, counted, lacking = tables.predicted_pairs(subject, shown), None, []
    if isinstance(train, Stream):
        counted = tables.counted_pairs(train.tokens, shown, subject.model.vocab_size)
        used = tables.use(train.tokens, subject.model.vocab_size)[torch.tensor(shown)]
        lacking = tables.lacking(predicted, counted, used, shown)
    texts = [text_of(subject.tokenizer, token) for token in shown]
    return {
        "size": len(shown),
        "tokens": tokens.locals(shown),
        "alphabet": sorted(range(len(shown)), key=lambda at: (texts[at].casefold(), texts[at])),
        "model": _bytes(predicted.sqrt()),
        "counts": None if counted is None else _bytes(counted.sqrt()),
        "missing": [
            [tokens.local(pair.first), tokens.local(pair.second), rounded(pair.counted), rounded(pair.predicted)]
            for pair in lacking
        ],
    }


def _embedding(subject: Subject, shown: list[int], tokens: Tokens) -> tuple[dict[str, Any] | None, Tensor | None]:
    found = tables.token_embeddings(subject, shown)
    if found is None:
        return None, None
    points, axes, share = tables.plane(found)
    values = {"tokens": tokens.locals(shown), **_points(points), "share": list(map(rounded, share))}
    return values, axes


def _points(points: Tensor) -> dict[str, Any]:
    return {"x": _numbers(points[:, 0]), "y": _numbers(points[:, 1])}


def _history(
    subject: Subject, ids: list[int], shown: list[int], axes: Tensor | None, *, has_table: bool
) -> dict[str, Any] | None:
    steps = _spread(subject.earlier(), _MAX_STEPS)
    if len(steps) < 2 or subject.checkpoint.is_adapter:
        return None
    values: dict[str, Any] = {
        "steps": steps,
        "surprise": [],
        "table": [],
        "embedding": [] if axes is not None else None,
    }
    for then in earlier_subjects(subject, steps):
        values["surprise"].append(_numbers(predict(then, ids).surprise))
        if has_table:
            values["table"].append(_bytes(tables.predicted_pairs(then, shown[: tables.MAX_ROWS]).sqrt()))
        embeddings = tables.token_embeddings(then, shown)
        if axes is not None and embeddings is not None:
            values["embedding"].append(_points(tables.plane(embeddings, axes)[0]))
    return values


def _spread(steps: Sequence[int], n: int) -> list[int]:
    if len(steps) <= n:
        return list(steps)
    return [steps[round(at * (len(steps) - 1) / (n - 1))] for at in range(n)]


def _histogram(found: layers.Histogram) -> dict[str, Any]:
    edges = [rounded(found.low), rounded(found.high)]
    return {"name": found.name, "edges": edges, "counts": found.counts, "std": rounded(found.std)}


def _bytes(values: Tensor) -> str:
    # Numbers between 0 and 1, each as a byte.
    return base64.b64encode((values.clamp(0, 1) * 255).round().to(torch.uint8).numpy().tobytes()).decode()


def _numbers(values: Tensor) -> list[float | None]:
    return [None if math.isnan(value) else rounded(value) for value in values.tolist()]


def rounded(value: float) -> float:
    """Round a number to four significant digits, and an infinite one to a large one."""
    return float(f"{max(-1e30, min(value, 1e30)):.4g}")
