"""Subword tokenizers (BPE and WordPiece), based on Hugging Face's `tokenizers`."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from bigramlm.errors import UserError, require
from bigramlm.tokenizer.base import END_OF_TEXT, round_trip_difference
from bigramlm.tokenizer.cost import check_cost

# Names of the token that ends a document, here and in other vocabularies.
_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
_UNKNOWN = "[UNK]"

# A word with the white space before it. For Python \x1c to \x1f are white space too, for the library they are not.
_WORD = re.compile(r"[^\S\x1c-\x1f]*[\S\x1c-\x1f]+|[^\S\x1c-\x1f]+")
# The cache is cleared above this number of words, and words above this number of characters are not cached.
MAX_CACHED_WORDS, _MAX_WORD_LENGTH = 1 << 17, 64

# The start of a piece of a longer text, which is cut before a space between two words (`_CUT` in data/text.py).
_CONTINUES = re.compile(r" \w")

# A text that tests for losses: all sorts of white space, both cases, accents, other scripts, control characters.
_PROBE = "x  A\tbc\r\n\n it's 1,234 \u00e9e\u0301 \u65e5\u672c \U0001f40d\x00 <|endoftext|> x "


class SubwordTokenizer:
    """A wrapper of a Hugging Face tokenizer that caches the tokens of each word.

    The cache saves time because a text repeats its words and the library's splitting is slow.
    """

    def __init__(self, backend: Backend, saved: str | None = None) -> None:
        """Wrap a tokenizer of `tokenizers`.

        backend: the tokenizer to wrap. saved: the content of the file that the tokenizer is restored from; `to_json`
        returns this content unchanged.
        """
        self._saved = saved
        # First, because the library goes through all ids from 0 to the last when it writes its JSON.
        self.vocab_size = _vocab_size(backend.get_vocab())
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # the name of a special token in a text is plain text
        self.sampling = _switch_off_sampling(backend)
        about = json.loads(backend.to_str())
        check_cost(about)
        self._backend, self._inner = backend, _without_start(backend, about)
        self._by_words = _splits_before_space(about)
        self._cache: dict[str, bytes] = {}
        self.unknown: int | None = _unknown(backend, about["model"])
        self.end_of_text: int | None = next(
            (id_ for name in _ENDS if (id_ := backend.token_to_id(name)) is not None), None
        )
        try:
            self.lossless = round_trip_difference(self, _PROBE) is None
        except UserError:  # unknown characters are refused, not lost: test with the known ones
            known = "".join(c for c in _PROBE if backend.token_to_id(c) is not None)
            self.lossless = bool(known) and round_trip_difference(self, known) is None

    def encode(self, text: str) -> NDArray[np.int32]:
        """Encode a text as token ids (N,).

        Raises UserError if the vocabulary has no token for a part of the text.
        """
        words = _WORD.findall(text) if self._by_words else [text]
        found = list(map(self._cache.get, words))
        if None in found:
            unknown = list(dict.fromkeys(word for word, ids in zip(words, found, strict=True) if ids is None))
            # A tokenizer that changes the start of a text has a single text here, as it does not split by words.
            backend = self._inner if _CONTINUES.match(unknown[0]) else self._backend
            new = dict(zip(unknown, self._encode(unknown, backend), strict=True))
            found = [new[word] if ids is None else ids for word, ids in zip(words, found, strict=True)]
            if len(self._cache) > MAX_CACHED_WORDS:
                self._cache.clear()
            self._cache |= {word: ids for word, ids in new.items() if len(word) <= _MAX_WORD_LENGTH}
        return np.frombuffer(b"".join(ids for ids in found if ids is not None), dtype=np.int32)

    def encode_continued(self, text: str) -> NDArray[np.int32]:
        """Encode a piece of a longer text that follows another piece.

        Nothing is added in front of the piece, even if the tokenizer adds a space in front of a text. The result and
        the errors are those of `encode`.
        """
        if self._inner is self._backend:
            return self.encode(text)
        return np.frombuffer(next(self._encode([text], self._inner)), dtype=np.int32)

    def _encode(self, texts: list[str], backend: Backend) -> Iterator[bytes]:
        try:
            with _quiet():
                encoded = backend.encode_batch_fast(texts, add_special_tokens=False)
        except TypeError:  # half of a surrogate pair, which a command line can contain
            bad = next((c for text in texts for c in text if 0xD800 <= ord(c) < 0xE000), None)
            if bad is None:
                raise
            raise UserError(f"{bad!a} cannot be encoded as UTF-8; remove this character") from None
        except BaseException as error:  # the vocabulary has no token for unknown characters
            if is_panic(error):
                raise UserError(
                    f"the tokenizer fails at a part of the text ({error}): its file is damaged; use a different copy"
                ) from None
            if not isinstance(error, Exception):
                raise
            missing = sorted({c for text in texts for c in text if self._backend.token_to_id(c) is None})
            named = ", ".join(map(repr, missing[:10])) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
            problem = f"lacks {named}" if named else "does not cover part of the text"
            raise UserError(f"the vocabulary {problem} ({error})") from None
        return (np.array(encoding.ids, dtype=np.int32).tobytes() for encoding in encoded)

    def decode(self, ids: Iterable[int]) -> str:
        """Decode token ids; bytes that are not valid UTF-8 become U+FFFD."""
        try:
            with _quiet():
                return str(self._backend.decode(list(ids), skip_special_tokens=False))
        except BaseException as error:
            if is_panic(error):
                raise UserError(
                    f"the tokenizer fails to decode tokens ({error}): its file is damaged; use a different copy"
                ) from None
            raise

    def to_json(self) -> str:
        """Return the tokenizer in the file format of `tokenizers`.

        Hugging Face's transformers and other libraries also read this format.
        """
        return str(self._backend.to_str()) if self._saved is None else self._saved


def _switch_off_sampling(backend: Backend) -> str | None:
    # A text must always have the same tokens, but some tokenizers draw them at random, for training in other programs:
    # BPE-dropout (Provilkov et al. 2020) and subword regularisation (Kudo 2018). Returns the setting, if there is one.
    found = None
    for name in ("dropout", "alpha", "nbest_size"):
        if value := getattr(backend.model, name, None):
            setattr(backend.model, name, None)
            found = found or f"{name}={value:g}"
    return found


def _vocab_size(vocab: dict[str, int]) -> int:
    # The number of rows of an embedding, which must not be far larger than the number of tokens.
    require(bool(vocab), "the vocabulary is empty; use a different copy of the tokenizer")
    last = max(vocab, key=lambda token: vocab[token])
    require(
        vocab[last] < 2 * len(vocab) + 1000,
        f"the token {last!r} has the id {vocab[last]:,}, but there are only {len(vocab):,} tokens, and a model has a "
        "row for each id; number the tokens from 0 without large gaps",
    )
    return vocab[last] + 1


def _unknown(backend: Backend, model: dict[str, Any]) -> int | None:
    # The id of the token of unknown words or characters. A Unigram model contains the id, other models the name.
    if model.get("unk_id") is not None:
        return int(model["unk_id"])
    name = model.get("unk_token")
    return None if name is None else backend.token_to_id(name)


def _without_start(backend: Backend, about: dict[str, Any]) -> Backend:
    # The tokenizer for a piece of a longer text that does not start the text: it neither adds something in front of the
    # piece nor strips its first space.
    normalizer, splitting = _normalizer_inside(about["normalizer"]), _splitting_inside(about["pre_tokenizer"])
    if (normalizer, splitting) == (about["normalizer"], about["pre_tokenizer"]):
        return backend
    inner = Backend.from_str(json.dumps({**about, "normalizer": normalizer, "pre_tokenizer": splitting}))
    inner.encode_special_tokens = True
    return inner


def _normalizer_inside(normalizer: dict[str, Any] | None) -> dict[str, Any] | None:
    kind = None if normalizer is None else normalizer["type"]
    if normalizer is None or kind == "Prepend":
        return None
    if kind == "Strip":
        return {**normalizer, "strip_left": False}
    if kind == "Sequence":
        parts = [part for each in normalizer["normalizers"] if (part := _normalizer_inside(each)) is not None]
        return {**normalizer, "normalizers": parts}
    return normalizer


def _splitting_inside(splitting: dict[str, Any] | None, *, is_first: bool = True) -> dict[str, Any] | None:
    # A part that adds a space adds it to each word if another splitting comes before (is_first=False).
    kind = None if splitting is None else splitting["type"]
    if splitting is not None and kind == "Sequence":
        parts = enumerate(splitting["pretokenizers"])
        inside = [_splitting_inside(part, is_first=is_first and number == 0) for number, part in parts]
        return {**splitting, "pretokenizers": inside}
    if splitting is not None and kind == "Metaspace" and (is_first or splitting["prepend_scheme"] == "first"):
        return {**splitting, "prepend_scheme": "never"}
    if splitting is not None and kind == "ByteLevel" and is_first:
        return {**splitting, "add_prefix_space": False}
    return splitting


def _splits_before_space(about: dict[str, Any]) -> bool:
    # True if no token crosses from the end of a word into white space, so that words can be looked up one by one. This
    # is known for the splitting of GPT-2 and of BERT.
    splitting, added = about["pre_tokenizer"], about["added_tokens"]
    if splitting is None or about["normalizer"] is not None or not all(token["special"] for token in added):
        return False
    gpt2 = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    return bool(splitting["type"] == "BertPreTokenizer" or gpt2.items() <= splitting.items())


def train_bpe(texts: Iterable[str], *, vocab_size: int, min_frequency: int) -> SubwordTokenizer:
    """Learn a byte-level BPE vocabulary with GPT-2's splitting.

    Sources: Sennrich et al. 2016, Radford et al. 2019. Raises UserError if the texts are too short for vocab_size
    tokens.
    """
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend = _byte_level(models.BPE())
    backend.train_from_iterator(texts, trainer)
    _check_size(backend, vocab_size, min_frequency)
    return SubwordTokenizer(backend)


def train_wordpiece(texts: Callable[[], Iterable[str]], *, vocab_size: int, min_frequency: int) -> SubwordTokenizer:
    """Learn a WordPiece vocabulary with BERT's splitting.

    Case and accents are kept. texts: a function that returns the training texts; it is called twice. Source: Devlin et
    al. 2019. Raises UserError if the texts are too short for vocab_size tokens, or if their characters alone need more
    tokens.
    """

    def learn(first: list[str], size: int) -> Backend:
        backend = _bert(models.WordPiece(unk_token=_UNKNOWN))
        trainer = trainers.WordPieceTrainer(
            vocab_size=size, min_frequency=min_frequency, special_tokens=first, show_progress=False
        )
        backend.train_from_iterator(texts(), trainer)
        return backend

    # The library numbers the characters inside words in the order in which it finds them, which differs from run to
    # run, and breaks ties by these numbers. A first pass finds the characters, and sorting them fixes the numbers.
    special = [END_OF_TEXT, _UNKNOWN]
    characters = sorted(set(learn(special, 0).get_vocab()) - set(special))
    backend = learn([*special, *characters], vocab_size)
    _check_size(backend, vocab_size, min_frequency)
    backend = _bert(models.WordPiece(backend.get_vocab(), unk_token=_UNKNOWN))
    backend.add_special_tokens(special)
    return SubwordTokenizer(backend)


def _byte_level(model: models.BPE) -> Backend:
    backend = Backend(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _bert(model: models.WordPiece) -> Backend:
    backend = Backend(model)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend


def _check_size(backend: Backend, vocab_size: int, min_frequency: int) -> None:
    found = backend.get_vocab_size()
    require(
        found >= vocab_size,
        f"tokenizer.vocab_size={vocab_size}: the training text gives a vocabulary of only {found:,} tokens, because no "
        f"further pair of tokens occurs tokenizer.min_frequency={min_frequency} times; choose at most "
        f"{found}, or a longer text",
    )
    require(
        found == vocab_size,
        f"tokenizer.vocab_size={vocab_size}: the characters of the training text alone need {found:,} tokens, because "
        "a character has different tokens at the start of a word and inside a word; choose a larger vocabulary",
    )


def from_json(text: str) -> SubwordTokenizer:
    """Restore a tokenizer from the content of a `tokenizer.json`.

    Raises ValueError if the content is not a tokenizer.
    """
    try:
        # First, because the library normalizes the added tokens when it reads the file. It reports other damage itself.
        with contextlib.suppress(ValueError, RecursionError, KeyError, TypeError, AttributeError):
            check_cost(json.loads(text))
        with _panics_as_errors():
            return SubwordTokenizer(Backend.from_str(text), text.strip())
    except UserError:
        raise
    except Exception as error:  # the library raises Exception itself
        raise ValueError(f"contains no tokenizer: {_reason(text, str(error).partition(chr(10))[0])}") from None


def _reason(text: str, message: str) -> str:
    # Why the library reads no tokenizer in a text; its message names a part of an unknown kind by a type of Rust.
    with contextlib.suppress(ValueError, RecursionError, AttributeError, TypeError):
        about = json.loads(text)
        if about.get("name") == "char":
            return "it is that of a run with tokenizer=char, which only this run can use; choose tokenizer=char"
        if part := re.search(r"untagged enum (?:Py)?(\w+?)(?:Wrapper|Untagged)\b", message):
            name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", part[1]).lower()
            return f"the library does not know its {name} (type {about[name].get('type')!r}), or cannot read it"
    return message


@contextlib.contextmanager
def _panics_as_errors() -> Iterator[None]:
    # The library panics at some damaged files: it raises an exception that is no Exception.
    try:
        with _quiet():
            yield
    except BaseException as error:
        if not is_panic(error):
            raise
        raise ValueError(f"the library fails ({error}), so the file is damaged") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # The library writes a traceback of its own to standard error when it panics.
    kept = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(null)
        os.close(kept)


def is_panic(error: BaseException) -> bool:
    """Say whether an exception comes from a bug in the library's compiled code."""
    return type(error).__name__ == "PanicException"


def from_vocabulary(vocab: dict[str, int], merges: list[tuple[str, str]]) -> SubwordTokenizer:
    """Make a byte-level BPE, as GPT-2's, from its vocabulary and merges.

    vocab: the ids of the tokens. Raises Exception if the merges do not match the tokens.
    """
    backend = _byte_level(models.BPE(vocab, merges))
    if backend.token_to_id(END_OF_TEXT) is not None:
        backend.add_special_tokens([END_OF_TEXT])
    return SubwordTokenizer(backend)
