"""A text as token ids: its two splits, in memory or, for a long text, in files that are kept for the next time."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from bigramlm.data.encoding import Encoder, encode_on_all_cores, encode_piece
from bigramlm.data.pairs import Bounds, Pairs
from bigramlm.data.text import Text, TextChanged
from bigramlm.data.tokens import (
    MANIFEST,
    SPLITS,
    TOKENIZER,
    About,
    Ids,
    TokenFiles,
    TokenWriter,
    about_of,
    discard,
    narrowest,
    open_tokens,
)
from bigramlm.errors import UserError, require
from bigramlm.tokenizer.base import Tokenizer, not_given_back, start_tokens
from bigramlm.tokenizer.config import LearnedConfig, TokenizerConfig
from bigramlm.utils.console import relative
from bigramlm.utils.files import sha256_of
from bigramlm.utils.progress import bar

log = logging.getLogger(__name__)

KEPT_EVERY = 16_000_000
_LOCK = ".lock"

# What a tokenizer's file brings that is not what it should be.
_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True)
class Corpus:
    """The token ids of a text, with the tokenizer that they are of."""

    name: str
    sha256: str
    """The SHA-256 of the text."""
    n_characters: int
    documents: int
    tokenizer: Tokenizer
    ids: dict[str, Ids]
    """The token ids of the splits train and val, each (N,)."""
    characters: dict[str, int]
    """The characters of the splits; for pairs, of their completions."""
    texts: dict[str, str]
    """The splits themselves, where they are in memory."""
    bounds: dict[str, Bounds] = field(default_factory=dict)
    """For pairs, the bounds of the examples in each split's ids; else empty."""

    @property
    def tokenizer_sha256(self) -> str:
        """The SHA-256 of the tokenizer's JSON."""
        return sha256_of(self.tokenizer.to_json())


def tokenized(text: Text | TokenFiles | Pairs, cfg: TokenizerConfig, given: Tokenizer | None, kept_in: Path) -> Corpus:
    """Turn a text into token ids; those of a long text come from the files that were kept for it, or are made and kept.

    given: the tokenizer where there is one already, else cfg says which. kept_in: the text's folder for what is made
    of it. UserError where text and tokenizer do not go together.
    """
    if isinstance(text, TokenFiles):
        if given is not None:
            require(
                sha256_of(given.to_json()) == text.about.tokenizer_sha256,
                f"{text.folder}: these token files were made with another tokenizer ({text.about.tokenizer['name']}, "
                f"{text.about.vocab_size:,} tokens) than the weights were trained with ({given.vocab_size:,} tokens); "
                "prepare the text with theirs: init_from= with data=text does it",
            )
        return _of_files(text, cfg, given)
    if isinstance(text, Pairs):
        return _of_pairs(text, cfg, given)
    if text.kept is None:
        return _of_files(prepared(text, cfg, given, kept_in), cfg, given)
    tokenizer = given or build(text, cfg)
    check(text, tokenizer, cfg.name)
    ids: dict[str, list[Ids]] = {split: [] for split in SPLITS}
    texts: dict[str, list[str]] = {split: [] for split in SPLITS}
    for piece in text.pieces():
        ids[piece.split].append(encode_piece(tokenizer, piece, text.where, ends=text.documents > 1))
        texts[piece.split].append(piece.text)
    kind = narrowest(tokenizer.vocab_size)
    none = [np.empty(0, dtype=np.int32)]
    return Corpus(
        name=text.name,
        sha256=text.sha256,
        n_characters=text.n_characters,
        documents=text.documents,
        tokenizer=tokenizer,
        ids={split: np.concatenate(parts or none).astype(kind) for split, parts in ids.items()},
        characters={split: sum(map(len, parts)) for split, parts in texts.items()},
        texts={split: "".join(parts) for split, parts in texts.items()},
    )


def _of_files(found: TokenFiles, cfg: TokenizerConfig, given: Tokenizer | None) -> Corpus:
    about, tokenizer = found.about, given
    if tokenizer is None:
        try:
            tokenizer = cfg.restore(found.tokenizer())
        except _UNREADABLE as error:
            raise UserError(f"{found.folder / TOKENIZER}: cannot be used for tokenizer={cfg.name}: {error}") from None
    return Corpus(
        name=about.name,
        sha256=about.sha256,
        n_characters=about.n_characters,
        documents=about.documents,
        tokenizer=tokenizer,
        ids={split: found.ids(split) for split in SPLITS},
        characters={split: found.splits[split].characters for split in SPLITS},
        texts={},
    )


def _of_pairs(pairs: Pairs, cfg: TokenizerConfig, given: Tokenizer | None) -> Corpus:
    tokenizer = given or build(pairs, cfg)
    if tokenizer.end_of_text is None:
        log.warning(
            "tokenizer: %s has no token for where a text ends, so the model cannot learn where a completion does",
            cfg.name,
        )
    _warn_of_loss(pairs, tokenizer, cfg.name)
    kind = narrowest(tokenizer.vocab_size)
    ends = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    ids: dict[str, Ids] = {}
    bounds: dict[str, Bounds] = {}
    for split in SPLITS:
        parts: list[Ids] = []
        for example in pairs.examples(split):
            try:
                parts.append(np.array(start_tokens(tokenizer, example.prompt), dtype=kind))
                parts.append(np.array([*tokenizer.encode(example.completion), *ends], dtype=kind))
            except UserError as error:  # the tokenizer is of a run with other pairs
                raise UserError(f"{example.where}: {error}") from None
            require(len(parts[-1]) > 0, f"{example.where}: this tokenizer ({cfg.name}) has no token for its completion")
        at = np.cumsum([0, *map(len, parts)])
        bounds[split] = np.stack([at[:-1:2], at[1::2], at[2::2]], axis=1)
        ids[split] = np.concatenate(parts)
    return Corpus(
        name=pairs.name,
        sha256=pairs.sha256,
        n_characters=pairs.n_characters,
        documents=pairs.documents,
        tokenizer=tokenizer,
        ids=ids,
        characters={split: sum(len(example.completion) for example in pairs.examples(split)) for split in SPLITS},
        texts={split: "".join(piece.text for piece in pairs.pieces() if piece.split == split) for split in SPLITS},
        bounds=bounds,
    )


def build(text: Text | Pairs, cfg: TokenizerConfig) -> Tokenizer:
    """Build the tokenizer for a text. UserError if the text does not suffice for it."""

    def train(most: int) -> Iterator[str]:
        share, due = min(1.0, most / max(1, text.split)), 0.0
        with _bar("learning", total=min(most, text.split), hidden=text.kept is not None) as shown:
            for piece in text.pieces():
                if piece.split == "val":
                    return
                due += share * len(piece.text)  # every piece of a text that is not too long, else as it becomes due
                if due >= len(piece.text):
                    due -= len(piece.text)
                    yield piece.text
                    shown.update(len(piece.text))

    began = time.perf_counter()
    if isinstance(cfg, LearnedConfig) and text.kept is None:
        log.info("tokenizer: learning %s tokens from the training split", f"{cfg.vocab_size:,}")
    tokenizer = cfg.build(characters=text.characters, documents=text.documents, train=train)
    if isinstance(cfg, LearnedConfig):
        log.info("tokenizer: %s, learned in %.1f s", cfg.name, time.perf_counter() - began)
    return tokenizer


def _bar(what: str, *, total: int, done: int = 0, hidden: bool = False) -> tqdm[Any]:
    return bar(total, initial=done, hidden=hidden, desc=what, unit=" chars", unit_scale=True)


def check(text: Text, tokenizer: Tokenizer, name: str) -> None:
    """UserError where a text cannot be had in this tokenizer's tokens; a warning where not all of it can."""
    require(
        text.documents == 1 or tokenizer.end_of_text is not None,
        f"the text has {text.documents:,} documents, and this tokenizer ({name}) no token for where one ends; give one "
        "file of plain text, or a tokenizer that has <|endoftext|>",
    )
    _warn_of_loss(text, tokenizer, name)


def _warn_of_loss(text: Text | Pairs, tokenizer: Tokenizer, name: str) -> None:
    if not tokenizer.lossless:
        stretch = next(text.pieces()).text[:4096]
        lost = not_given_back(tokenizer, stretch)
        example = f": {lost[1]!r} comes back as {lost[2]!r}" if lost else ""
        log.warning(
            "tokenizer: %s loses part of the text%s. val/bpc counts what is left alone, and is too low to compare",
            *(name, example),
        )


def prepared(text: Text, cfg: TokenizerConfig, given: Tokenizer | None, kept_in: Path) -> TokenFiles:
    """Return the token files of a long text; make them if they are missing, from where an interruption left off.

    UserError where that cannot be.
    """

    def folder(key: str) -> Path:
        return kept_in / f"{cfg.name}-{sha256_of(key)[:12]}"

    given = given or _at_hand(text, cfg)
    learned = folder(json.dumps(asdict(cfg)))
    about = about_of(learned)
    # What a checkpoint brings may be just what was learned for this text.
    if given is None or (about is not None and _is_of(about, text, cfg, given)):
        return prepare(text, cfg, given, learned, replace=True)
    return prepare(text, cfg, given, folder(given.to_json()), replace=True)


def prepare(
    text: Text, cfg: TokenizerConfig, given: Tokenizer | None, folder: Path, *, replace: bool = False
) -> TokenFiles:
    """Return a text's token files in this folder, as `prepared`. With replace, those of another text are deleted."""
    given = given or _at_hand(text, cfg)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        foreign = about_of(folder) is None and any(not path.name.startswith(".") for path in folder.iterdir())
        require(not foreign, f"{folder}: holds something else; name another folder, or delete it")
        with _held(folder):
            about = about_of(folder)
            same = about is not None and _is_of(about, text, cfg, given)
            require(
                same or replace or about is None,
                f"{folder}: holds token files of another text or tokenizer; name another folder, or delete it",
            )
            if same and (folder / MANIFEST).exists():
                found = open_tokens(folder)
                log.info("tokens: %s", relative(folder))
                return found
            if given is None and same:  # learned before the interruption
                given = _restored(folder, cfg)
            tokenizer = given or build(text, cfg)
            check(text, tokenizer, cfg.name)
            return _write(text, cfg, tokenizer, folder)
    except TextChanged:
        discard(folder)  # what was read in between may be of neither text
        raise
    except OSError as error:
        raise UserError(
            f"{folder}: preparing the text failed: {error.strerror or error}; what is done is kept: mend it (make "
            "room, for instance), and the same command continues"
        ) from error
    except BrokenProcessPool:
        raise UserError(
            f"{folder}: a process that encodes ended before its time, perhaps for lack of memory; what is done is "
            "kept, and the same command continues"
        ) from None


def _at_hand(text: Text, cfg: TokenizerConfig) -> Tokenizer | None:
    # The tokenizer, where nothing has to be learned for it.
    return None if isinstance(cfg, LearnedConfig) else build(text, cfg)


def _write(text: Text, cfg: TokenizerConfig, tokenizer: Tokenizer, folder: Path) -> TokenFiles:
    encoder = Encoder(tokenizer, text.where, text.documents > 1)
    about = About(
        name=text.name,
        sha256=text.sha256,
        n_characters=text.n_characters,
        documents=text.documents,
        split=text.split,
        tokenizer=asdict(cfg),
        tokenizer_sha256=sha256_of(tokenizer.to_json()),
        vocab_size=tokenizer.vocab_size,
        dtype=np.dtype(narrowest(tokenizer.vocab_size)).name,
    )
    began = time.perf_counter()
    with TokenWriter(folder, about, tokenizer.to_json()) as writer:
        before = sum(counts.characters for counts in writer.counts.values())
        if before:
            log.info("tokens: continuing after %s characters, in %s", f"{before:,}", relative(folder))
        kept, done = before, before
        with _bar("encoding", total=text.n_characters, done=before) as shown:
            for encoded in encode_on_all_cores(text, cfg, encoder, skip=writer.pieces):
                writer.write(encoded.ids, encoded.characters, encoded.pieces)
                done += sum(encoded.characters.values())
                shown.update(sum(encoded.characters.values()))
                if done - kept >= KEPT_EVERY:
                    writer.keep()
                    kept = done
        found = writer.finish()
    seconds = time.perf_counter() - began
    log.info(
        "tokens: %s train, %s val, made in %.1f s (%.1f million characters a second), kept in %s",
        *(f"{found.splits[split].tokens:,}" for split in SPLITS),
        *(seconds, (text.n_characters - before) / 1e6 / seconds, relative(folder)),
    )
    return found


def _is_of(about: About, text: Text, cfg: TokenizerConfig, given: Tokenizer | None) -> bool:
    of_text = (about.sha256, about.split, about.documents) == (text.sha256, text.split, text.documents)
    return of_text and (
        about.tokenizer == asdict(cfg) if given is None else about.tokenizer_sha256 == sha256_of(given.to_json())
    )


def _restored(folder: Path, cfg: TokenizerConfig) -> Tokenizer | None:
    try:
        return cfg.restore((folder / TOKENIZER).read_text("utf-8"))
    except (OSError, *_UNREADABLE):
        return None


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    # Who else prepares the same waits for it.
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0.5)
    except Timeout:
        log.info("tokens: another process prepares them in %s; waiting for it", relative(folder))
        lock.acquire(timeout=-1)
    try:
        yield
    finally:
        lock.release()
