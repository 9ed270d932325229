"""Encoding a long text on all cores, in an order that does not depend on them."""

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
    narrowest,
)
from bigramlm.errors import UserError
from bigramlm.tokenizer.base import Tokenizer
from bigramlm.tokenizer.config import TokenizerConfig

# How many characters a worker is handed at once, and after how many more what is written is put on the disk.
UNIT = 2_000_000


# Each has a tokenizer with its words in memory; the disk has enough of so many.
_WORKERS_AT_MOST = 8


def encode_piece(tokenizer: Tokenizer, piece: Piece, where: str, *, ends: bool) -> Ids:
    try:
        ids = tokenizer.encode(piece.text)
    except UserError as error:  # the tokenizer is of a run with another text
        raise UserError(f"{where}: {error}") from None
    return np.append(ids, [np.int32(tokenizer.end_of_text or 0)]) if ends and piece.ends else ids


@dataclass(frozen=True)
class Encoded:
    """Some pieces of a text in a tokenizer's ids: by split, as they stand in token files."""

    ids: dict[str, bytes]
    characters: dict[str, int]
    pieces: int


@dataclass(frozen=True)
class Encoder:
    """An encoder of pieces into ids; where: of the text, for errors; ends: whether documents end with a token."""

    tokenizer: Tokenizer
    where: str
    ends: bool

    def __call__(self, unit: Sequence[Piece]) -> Encoded:
        """UserError where the tokenizer lacks what is in the text."""
        kind = narrowest(self.tokenizer.vocab_size)
        ids: dict[str, list[Ids]] = {split: [] for split in SPLITS}
        for piece in unit:
            ids[piece.split].append(encode_piece(self.tokenizer, piece, self.where, ends=self.ends))
        return Encoded(
            ids={split: np.concatenate(parts).astype(kind).tobytes() for split, parts in ids.items() if parts},
            characters={split: sum(len(piece.text) for piece in unit if piece.split == split) for split in ids},
            pieces=len(unit),
        )


def units(pieces: Iterable[Piece], *, skip: int) -> Iterator[list[Piece]]:
    """Group a text's pieces, without the first ones, into lists of at least UNIT characters."""
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
    """Encode a text without its first pieces, in order, in processes that are a little ahead of what is asked for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(_WORKERS_AT_MOST, cores)
    given = (cfg, encoder.tokenizer.to_json(), encoder.where, encoder.ends)
    if multiprocessing.get_start_method() not in multiprocessing.get_all_start_methods():
        # In a worker of joblib it is joblib's own, which the processes that are started here would not know.
        multiprocessing.set_start_method("spawn", force=True)
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_begin_worker, initargs=given)
    try:
        ahead: deque[Future[Encoded]] = deque()
        for unit in units(text.pieces(), skip=skip):
            with _ignored_by_children():
                ahead.append(pool.submit(_encode_unit, unit))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _ignored_by_children() -> Iterator[None]:
    # A process inherits what is ignored: no Ctrl-C meets a worker while it starts.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_encoder: Encoder  # of a worker


def _begin_worker(cfg: TokenizerConfig, tokenizer: str, where: str, ends: bool) -> None:
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it reaches all of a terminal, and the parent ends its workers
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a worker for each core
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _encoder = Encoder(cfg.restore(tokenizer), where, ends)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_unit(unit: Sequence[Piece]) -> Encoded:
    return _encoder(unit)
