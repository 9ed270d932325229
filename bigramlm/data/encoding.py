"""The encoding of a long text in parallel, with results in text order."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np

from bigramlm.data.text import Piece, Text
from bigramlm.data.tokens import (
    SPLITS,
    Ids,
    narrowest_dtype,
)
from bigramlm.errors import UserError
from bigramlm.tokenizer.base import Tokenizer
from bigramlm.tokenizer.config import TokenizerConfig

# The least number of characters that a worker receives at once.
UNIT = 2_000_000

# Each worker keeps a tokenizer with its vocabulary in memory, and more workers than this would wait for the disk.
_MAX_WORKERS = 8


def encode_piece(tokenizer: Tokenizer, piece: Piece, where: str, *, ends: bool) -> Ids:
    """Encode a piece of a text as token ids (N,).

    ends: if True, the end-of-text token is appended to the last piece of a document. where: the files of the text, for
    the error message. Raises UserError if the tokenizer lacks a character of the piece.
    """
    # A tokenizer of the user's own may only have `encode`.
    encode = getattr(tokenizer, "encode_continued", tokenizer.encode) if piece.continues else tokenizer.encode
    try:
        ids = encode(piece.text)
    except UserError as error:  # a tokenizer from a run on another text may lack characters of this one
        raise UserError(f"{where}: {error}") from None
    return np.append(ids, [np.int32(tokenizer.end_of_text or 0)]) if ends and piece.ends else ids


@dataclass(frozen=True)
class Encoded:
    """The token ids of consecutive pieces of a text, ready for the token files."""

    ids: dict[str, bytes]
    """The token ids in each split, as bytes of the dtype of the token files."""
    characters: dict[str, int]
    """The number of characters in each split."""
    pieces: int
    """The number of pieces."""


@dataclass(frozen=True)
class Encoder:
    """A callable that encodes pieces of a text as token ids.

    where: the files of the text, for error messages. ends: if True, the end-of-text token is appended to each document.
    """

    tokenizer: Tokenizer
    where: str
    ends: bool

    def __call__(self, unit: Sequence[Piece]) -> Encoded:
        """Encode pieces; raise UserError if the tokenizer lacks a character of a piece."""
        dtype = narrowest_dtype(self.tokenizer.vocab_size)
        ids: dict[str, list[Ids]] = {split: [] for split in SPLITS}
        for piece in unit:
            ids[piece.split].append(encode_piece(self.tokenizer, piece, self.where, ends=self.ends))
        return Encoded(
            ids={split: np.concatenate(parts).astype(dtype).tobytes() for split, parts in ids.items() if parts},
            characters={split: sum(len(piece.text) for piece in unit if piece.split == split) for split in ids},
            pieces=len(unit),
        )


def units(pieces: Iterable[Piece], *, skip: int) -> Iterator[list[Piece]]:
    """Group the pieces of a text into lists of at least UNIT characters.

    skip: the number of pieces to skip at the start. The last list may have fewer than UNIT characters.
    """
    unit: list[Piece] = []
    size = 0
    for number, piece in enumerate(pieces):
        if number < skip:
            continue
        unit.append(piece)
        size += len(piece.text)
        if size >= UNIT:
            yield unit
            unit, size = [], 0
    if unit:
        yield unit


def encode_on_all_cores(text: Text, cfg: TokenizerConfig, encoder: Encoder, *, skip: int) -> Iterator[Encoded]:
    """Encode a text in worker processes, and yield the results in text order.

    There is one worker per core, but at most 8. The workers encode a few results ahead of the caller. skip: the number
    of pieces to skip at the start.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(_MAX_WORKERS, cores)
    worker_args = (cfg, encoder.tokenizer.to_json(), encoder.where, encoder.ends)
    if multiprocessing.get_start_method() not in multiprocessing.get_all_start_methods():
        # In a joblib worker the start method is joblib's own, which is unknown to the processes that are started here.
        multiprocessing.set_start_method("spawn", force=True)
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_init_worker, initargs=worker_args)
    try:
        pending: deque[Future[Encoded]] = deque()
        for unit in units(text.pieces(), skip=skip):
            with _sigint_ignored_by_children():
                pending.append(pool.submit(_encode_unit, unit))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _sigint_ignored_by_children() -> Iterator[None]:
    # A child process inherits ignored signals, so Ctrl-C cannot interrupt a worker while it starts.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


_encoder: Encoder  # of this worker process


def _init_worker(cfg: TokenizerConfig, tokenizer: str, where: str, ends: bool) -> None:
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends its workers
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each core already has a worker
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _encoder = Encoder(cfg.restore(tokenizer), where, ends)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_unit(unit: Sequence[Piece]) -> Encoded:
    return _encoder(unit)
