"""A text encoded as token ids, split into train and val.

The ids are in memory or, for a long text, in token files that later runs reuse.
"""

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
    delete_token_files,
    narrowest_dtype,
    open_tokens,
    read_about,
)
from bigramlm.errors import UserError, require
from bigramlm.tokenizer.base import Tokenizer, round_trip_difference, start_tokens
from bigramlm.tokenizer.config import LearnedConfig, TokenizerConfig
from bigramlm.utils.console import relative
from bigramlm.utils.files import make_folder, sha256_of
from bigramlm.utils.locks import Lock
from bigramlm.utils.progress import bar

log = logging.getLogger(__name__)

# The number of characters after which the token files are synced to disk, and the progress is recorded.
KEPT_EVERY = 16_000_000
_LOCK = ".lock"

# The errors of restoring a tokenizer from a file with unexpected content.
_RESTORE_ERRORS = (ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True)
class Corpus:
    """A tokenized text and its tokenizer."""

    name: str
    sha256: str
    """The SHA-256 of the text."""
    n_characters: int
    documents: int
    tokenizer: Tokenizer
    ids: dict[str, Ids]
    """The token ids of the splits train and val, (N,) each."""
    characters: dict[str, int]
    """The number of characters in each split; for pairs, only the characters of the completions."""
    texts: dict[str, str]
    """The text of each split. The dict is empty if the text is not in memory."""
    bounds: dict[str, Bounds] = field(default_factory=dict)
    """For pairs, the bounds of the M examples in the ids of each split, (M, 3). For other texts, the dict is empty."""

    @property
    def tokenizer_sha256(self) -> str:
        """The SHA-256 of the tokenizer's JSON."""
        return sha256_of(self.tokenizer.to_json())


def tokenized(text: Text | TokenFiles | Pairs, cfg: TokenizerConfig, given: Tokenizer | None, kept_in: Path) -> Corpus:
    """Encode a text as token ids.

    The token ids of a long text are read from its token files, which are made first if they are missing.
    given: the tokenizer; if None, cfg determines the tokenizer. kept_in: the cache folder for the text's token files.
    Raises UserError if the text and the tokenizer do not match.
    """
    if isinstance(text, TokenFiles):
        if given is not None:
            require(
                sha256_of(given.to_json()) == text.about.tokenizer_sha256,
                f"{text.folder}: the tokenizer of these token files ({text.about.tokenizer['name']}, "
                f"{text.about.vocab_size:,} tokens) differs from the tokenizer of the weights ({given.vocab_size:,} "
                "tokens); to use init_from=, replace data=tokens by data=text, so that the text is encoded with the "
                "tokenizer of the weights",
            )
        return _corpus_from_files(text, cfg, given)
    if isinstance(text, Pairs):
        return _corpus_from_pairs(text, cfg, given)
    if text.kept is None:
        return _corpus_from_files(prepare_cached(text, cfg, given, kept_in), cfg, given)
    tokenizer = given or build(text, cfg)
    check(text, tokenizer, cfg.name)
    ids: dict[str, list[Ids]] = {split: [] for split in SPLITS}
    texts: dict[str, list[str]] = {split: [] for split in SPLITS}
    for piece in text.pieces():
        ids[piece.split].append(encode_piece(tokenizer, piece, text.where, ends=text.documents > 1))
        texts[piece.split].append(piece.text)
    dtype = narrowest_dtype(tokenizer.vocab_size)
    empty = [np.empty(0, dtype=np.int32)]
    return Corpus(
        name=text.name,
        sha256=text.sha256,
        n_characters=text.n_characters,
        documents=text.documents,
        tokenizer=tokenizer,
        ids={split: np.concatenate(parts or empty).astype(dtype) for split, parts in ids.items()},
        characters={split: sum(map(len, parts)) for split, parts in texts.items()},
        texts={split: "".join(parts) for split, parts in texts.items()},
    )


def _corpus_from_files(token_files: TokenFiles, cfg: TokenizerConfig, given: Tokenizer | None) -> Corpus:
    token_files.verify_once()
    about, tokenizer = token_files.about, given
    if tokenizer is None:
        try:
            tokenizer = cfg.restore(token_files.tokenizer())
        except _RESTORE_ERRORS as error:
            raise UserError(
                f"{token_files.folder / TOKENIZER} cannot be loaded as tokenizer={cfg.name}: {error}"
            ) from None
        require(
            about.vocab_size <= tokenizer.vocab_size,
            f"{token_files.folder / MANIFEST} gives a vocabulary of {about.vocab_size:,} tokens, but {TOKENIZER} has "
            f"only {tokenizer.vocab_size:,}; prepare the text again",
        )
    return Corpus(
        name=about.name,
        sha256=about.sha256,
        n_characters=about.n_characters,
        documents=about.documents,
        tokenizer=tokenizer,
        ids={split: token_files.ids(split) for split in SPLITS},
        characters={split: token_files.splits[split].characters for split in SPLITS},
        texts={},
    )


def _corpus_from_pairs(pairs: Pairs, cfg: TokenizerConfig, given: Tokenizer | None) -> Corpus:
    tokenizer = given or build(pairs, cfg)
    if tokenizer.end_of_text is None:
        log.warning(
            "tokenizer: %s has no end-of-text token, so the model cannot learn where a completion ends",
            cfg.name,
        )
    _warn_if_lossy(pairs, tokenizer, cfg.name)
    dtype = narrowest_dtype(tokenizer.vocab_size)
    ends = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    ids: dict[str, Ids] = {}
    bounds: dict[str, Bounds] = {}
    for split in SPLITS:
        parts: list[Ids] = []
        for example in pairs.examples(split):
            try:
                parts.append(np.array(start_tokens(tokenizer, example.prompt), dtype=dtype))
                parts.append(np.array([*tokenizer.encode(example.completion), *ends], dtype=dtype))
            except UserError as error:  # a tokenizer from a run on other pairs may lack characters of these
                raise UserError(f"{example.where}: {error}") from None
            require(
                len(parts[-1]) > 0,
                f"{example.where}: tokenizer={cfg.name} encodes the completion as no tokens; change or remove the line",
            )
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
    """Build the tokenizer for a text.

    Raises UserError if the text is too small for the vocabulary.
    """

    def training_text(limit: int) -> Iterator[str]:
        share, due = min(1.0, limit / max(1, text.split)), 0.0
        with _bar("learning", total=min(limit, text.split), hidden=text.kept is not None) as progress:
            for piece in text.pieces():
                if piece.split == "val":
                    return
                due += share * len(piece.text)  # of a text longer than the limit, evenly spaced pieces
                if due >= len(piece.text):
                    due -= len(piece.text)
                    yield piece.text
                    progress.update(len(piece.text))

    started = time.perf_counter()
    if isinstance(cfg, LearnedConfig) and text.kept is None:
        log.info("tokenizer: learning a vocabulary of %s tokens from the training split", f"{cfg.vocab_size:,}")
    tokenizer = cfg.build(characters=text.characters, documents=text.documents, train=training_text)
    if isinstance(cfg, LearnedConfig):
        log.info("tokenizer: %s, learned in %.1f s", cfg.name, time.perf_counter() - started)
    return tokenizer


def _bar(desc: str, *, total: int, done: int = 0, hidden: bool = False) -> tqdm[Any]:
    return bar(total, initial=done, hidden=hidden, desc=desc, unit=" chars", unit_scale=True)


def check(text: Text, tokenizer: Tokenizer, name: str) -> None:
    """Check that a tokenizer can encode a text, and warn if the tokenizer is lossy.

    Raises UserError if the text has several documents and the tokenizer has no end-of-text token.
    """
    require(
        text.documents == 1 or tokenizer.end_of_text is not None,
        f"the text has {text.documents:,} documents, but the tokenizer ({name}) has no end-of-text token to separate "
        "them; use a text of one document, or a tokenizer with the token <|endoftext|>",
    )
    _warn_if_lossy(text, tokenizer, name)


def _warn_if_lossy(text: Text | Pairs, tokenizer: Tokenizer, name: str) -> None:
    if not tokenizer.lossless:
        excerpt = next(text.pieces()).text[:4096]
        lost = round_trip_difference(tokenizer, excerpt)
        example = f": {lost[1]!r} is decoded as {lost[2]!r}" if lost else ""
        log.warning(
            "tokenizer: %s loses part of the text%s. val/bpc covers only the remaining text, so val/bpc is too low to "
            "be compared with other tokenizers",
            name,
            example,
        )


def prepare_cached(text: Text, cfg: TokenizerConfig, given: Tokenizer | None, kept_in: Path) -> TokenFiles:
    """Return the cached token files of a long text, and make them if they are missing.

    An interrupted preparation is continued. kept_in: the cache folder of the text, which contains a subfolder of token
    files for each tokenizer. Raises UserError if the token files cannot be made.
    """

    def folder(key: str) -> Path:
        return kept_in / f"{cfg.name}-{sha256_of(key)[:12]}"

    given = given or _build_unlearned(text, cfg)
    learned = folder(json.dumps(asdict(cfg)))
    about = read_about(learned)
    # The tokenizer of a checkpoint may be the one that was learned from this text.
    if given is None or (about is not None and _matches(about, text, cfg, given)):
        return prepare(text, cfg, given, learned, replace=True)
    return prepare(text, cfg, given, folder(given.to_json()), replace=True)


def prepare(
    text: Text, cfg: TokenizerConfig, given: Tokenizer | None, folder: Path, *, replace: bool = False
) -> TokenFiles:
    """Return the token files of a text in a folder, and make them if they are missing.

    An interrupted preparation is continued. replace: if True, token files of a different text or tokenizer in the
    folder are deleted; if False, they raise UserError. Also raises UserError if the token files cannot be made.
    """
    given = given or _build_unlearned(text, cfg)
    try:
        make_folder(folder)
        foreign = read_about(folder) is None and any(not path.name.startswith(".") for path in folder.iterdir())
        require(
            not foreign,
            f"{folder} contains other files than token files; choose a different folder, or delete it",
        )
        with _folder_lock(folder):
            about = read_about(folder)
            same = about is not None and _matches(about, text, cfg, given)
            require(
                same or replace or about is None,
                f"{folder} contains the token files of a different text or tokenizer; choose a different folder, or "
                "delete it",
            )
            if same and (folder / MANIFEST).exists():
                token_files = open_tokens(folder)
                log.info("tokens: using the token files in %s", relative(folder))
                return token_files
            if given is None and same:  # already learned before an interruption
                given = _restore_learned(folder, cfg)
            tokenizer = given or build(text, cfg)
            check(text, tokenizer, cfg.name)
            return _write(text, cfg, tokenizer, folder)
    except TextChanged:
        delete_token_files(folder)  # the tokens may belong to neither version of the text
        raise
    except OSError as error:
        raise UserError(
            f"{folder}: the token files could not be written: {error.strerror or error}; the tokens written so far are "
            "kept, so fix the cause (e.g. free disk space) and run the same command again to continue"
        ) from error
    except BrokenProcessPool:
        raise UserError(
            f"{folder}: a worker process that encodes the text ended unexpectedly, perhaps because memory ran out; the "
            "tokens written so far are kept, so run the same command again to continue"
        ) from None


def _build_unlearned(text: Text, cfg: TokenizerConfig) -> Tokenizer | None:
    # Return the tokenizer if it needs no learning; its JSON then identifies the token files.
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
        dtype=np.dtype(narrowest_dtype(tokenizer.vocab_size)).name,
    )
    started = time.perf_counter()
    with TokenWriter(folder, about, tokenizer.to_json()) as writer:
        resumed_at = sum(counts.characters for counts in writer.counts.values())
        if resumed_at:
            log.info(
                "tokens: continuing after %s characters, which are already encoded in %s",
                f"{resumed_at:,}",
                relative(folder),
            )
        kept, done = resumed_at, resumed_at
        with _bar("encoding", total=text.n_characters, done=resumed_at) as progress:
            for encoded in encode_on_all_cores(text, cfg, encoder, skip=writer.pieces):
                writer.write(encoded.ids, encoded.characters, encoded.pieces)
                done += sum(encoded.characters.values())
                progress.update(sum(encoded.characters.values()))
                if done - kept >= KEPT_EVERY:
                    writer.keep()
                    kept = done
        token_files = writer.finish()
    seconds = time.perf_counter() - started
    log.info(
        "tokens: %s train, %s val, made in %.1f s (%.1f million characters per second), stored in %s",
        *(f"{token_files.splits[split].tokens:,}" for split in SPLITS),
        seconds,
        (text.n_characters - resumed_at) / 1e6 / seconds,
        relative(folder),
    )
    return token_files


def _matches(about: About, text: Text, cfg: TokenizerConfig, given: Tokenizer | None) -> bool:
    same_text = (about.sha256, about.split, about.documents) == (text.sha256, text.split, text.documents)
    return same_text and (
        about.tokenizer == asdict(cfg) if given is None else about.tokenizer_sha256 == sha256_of(given.to_json())
    )


def _restore_learned(folder: Path, cfg: TokenizerConfig) -> Tokenizer | None:
    try:
        return cfg.restore((folder / TOKENIZER).read_text("utf-8"))
    except (OSError, *_RESTORE_ERRORS):
        return None


@contextlib.contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    # Other processes that prepare the same text wait for this one.
    lock = Lock(folder / _LOCK)
    if not lock.acquire(timeout=0.5):
        log.info(
            "tokens: another process is preparing the token files in %s; waiting until they are complete",
            relative(folder),
        )
        lock.acquire(timeout=-1)
    try:
        yield
    finally:
        lock.release()
