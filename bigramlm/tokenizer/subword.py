"""Subword tokenizers (BPE and WordPiece), based on Hugging Face's `tokenizers`."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from bigramlm.errors import UserError, require
from bigramlm.tokenizer.base import END_OF_TEXT, round_trip_difference
from bigramlm.utils import files, hub, paths

log = logging.getLogger(__name__)

# Names of the token that ends a document, here and in other vocabularies.
_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
_UNKNOWN = "[UNK]"
# The files of other kinds of tokenizers: SentencePiece and BERT.
_CONVERTIBLE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.txt")

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
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # the name of a special token in a text is plain text
        self.sampling = _switch_off_sampling(backend)
        about = json.loads(backend.to_str())
        self._backend, self._inner = backend, _without_start(backend, about)
        self._by_words = _splits_before_space(about)
        self._cache: dict[str, bytes] = {}
        self.unknown: int | None = _unknown(backend, about["model"])
        self.vocab_size = max(backend.get_vocab().values()) + 1
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
            new = dict(zip(unknown, self._encode(unknown), strict=True))
            found = [new[word] if ids is None else ids for word, ids in zip(words, found, strict=True)]
            if len(self._cache) > MAX_CACHED_WORDS:
                self._cache.clear()
            self._cache |= {word: ids for word, ids in new.items() if len(word) <= _MAX_WORD_LENGTH}
        return np.frombuffer(b"".join(ids for ids in found if ids is not None), dtype=np.int32)

    def _encode(self, texts: list[str]) -> Iterator[bytes]:
        # A tokenizer that changes the start of a text has a single text here, because it does not split by words.
        backend = self._inner if _CONTINUES.match(texts[0]) else self._backend
        try:
            encoded = backend.encode_batch_fast(texts, add_special_tokens=False)
        except TypeError:  # half of a surrogate pair, which a command line can contain
            bad = next((c for text in texts for c in text if 0xD800 <= ord(c) < 0xE000), None)
            if bad is None:
                raise
            raise UserError(f"{bad!a} cannot be encoded as UTF-8; remove this character") from None
        except Exception as error:  # the vocabulary has no token for unknown characters
            missing = sorted({c for text in texts for c in text if self._backend.token_to_id(c) is None})
            named = ", ".join(map(repr, missing[:10])) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
            problem = f"lacks {named}" if named else "does not cover part of the text"
            raise UserError(f"the vocabulary {problem} ({error})") from None
        return (np.array(encoding.ids, dtype=np.int32).tobytes() for encoding in encoded)

    def decode(self, ids: Iterable[int]) -> str:
        """Decode token ids; bytes that are not valid UTF-8 become U+FFFD."""
        return str(self._backend.decode(list(ids), skip_special_tokens=False))

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


def _unknown(backend: Backend, model: dict[str, Any]) -> int | None:
    # The id of the token of unknown words or characters. A Unigram model contains the id, other models the name.
    if model.get("unk_id") is not None:
        return int(model["unk_id"])
    name = model.get("unk_token")
    return None if name is None else backend.token_to_id(name)


def _without_start(backend: Backend, about: dict[str, Any]) -> Backend:
    # The tokenizer for a piece of a longer text that does not start the text: it neither adds something in front of the
    # piece nor strips its first space. (A pre-tokenizer that adds a space leaves a piece that starts with one as is.)
    normalizer = _without_start_of(about["normalizer"])
    if normalizer == about["normalizer"]:
        return backend
    inner = Backend.from_str(json.dumps({**about, "normalizer": normalizer}))
    inner.encode_special_tokens = True
    return inner


def _without_start_of(normalizer: dict[str, Any] | None) -> dict[str, Any] | None:
    kind = None if normalizer is None else normalizer["type"]
    if normalizer is None or kind == "Prepend":
        return None
    if kind == "Strip":
        return {**normalizer, "strip_left": False}
    if kind == "Sequence":
        parts = [part for each in normalizer["normalizers"] if (part := _without_start_of(each)) is not None]
        return {**normalizer, "normalizers": parts}
    return normalizer


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
        return SubwordTokenizer(Backend.from_str(text), text.strip())
    except UserError:
        raise
    except Exception as error:  # the library raises Exception itself
        raise ValueError(f"contains no tokenizer: {str(error).splitlines()[0]}") from None


def from_path(path: str) -> tuple[SubwordTokenizer, str]:
    """Open a tokenizer in a file, in a folder or on the Hugging Face hub.

    path: a file, a folder, or the name of a model on the hub. A folder contains tokenizer.json, or vocab.json and
    merges.txt as released with GPT-2. Returns the tokenizer, and the absolute path or the name on the hub. Raises
    UserError if there is no tokenizer.
    """
    local = paths.typed(path, "tokenizer.path")
    if not local.exists():
        local, path = _from_hub(path), path
    else:
        path = str(local)
    try:
        tokenizer = _open(local, field=f"tokenizer.path={path}")
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"tokenizer.path={path}: {str(error).splitlines()[0]}") from None
    if tokenizer.sampling is not None:
        log.info(
            "tokenizer: %s in %s is switched off, because a text must always have the same tokens",
            *(tokenizer.sampling, path),
        )
    return tokenizer, path


def _open(path: Path, *, field: str) -> SubwordTokenizer:
    file = path / "tokenizer.json" if path.is_dir() else path
    vocab, merges = (file.with_name(name) for name in ("vocab.json", "merges.txt"))
    if file.name not in ("vocab.json", "merges.txt") and file.exists():
        return from_json(files.read_text(file))
    if not (vocab.is_file() and merges.is_file()):
        other = next((name for name in _CONVERTIBLE if file.with_name(name).is_file()), None)
        convert = (
            f'; {other} is converted by: python -c "import transformers; transformers.AutoTokenizer.from_pretrained('
            f"'FOLDER').save_pretrained('NEW')\", then tokenizer.path=NEW"
        )
        raise UserError(
            f"{field} contains no tokenizer; give a tokenizer.json, or a folder with a tokenizer.json or with both "
            f"vocab.json and merges.txt{convert if other else ''}"
        )
    backend = _byte_level(_bpe(vocab, merges))
    if backend.token_to_id(END_OF_TEXT) is not None:
        backend.add_special_tokens([END_OF_TEXT])
    return SubwordTokenizer(backend)


def _bpe(vocab: Path, merges: Path) -> models.BPE:
    # Read here and not by the library, which does not drop a byte-order mark. The first line may be "#version: 0.2".
    lines = files.read_text(merges).split("\n")
    pairs = [line.rstrip("\r").split(" ") for line in lines if line.strip() and not line.startswith("#version")]
    return models.BPE(json.loads(files.read_text(vocab)), [(left, right) for left, right in pairs])


def _from_hub(name: str) -> Path:
    require(
        hub.is_name(name),
        f"tokenizer.path={name}: no such file or folder; give a tokenizer.json, a folder with a tokenizer.json or with "
        "both vocab.json and merges.txt, or the name of a model on the Hugging Face hub",
    )
    try:
        return hub.fetch_first(name, ("tokenizer.json",), ("vocab.json", "merges.txt"))[0]
    except hub.FetchError as reason:
        raise UserError(
            f"tokenizer.path={name}: no such file or folder, and the Hugging Face hub did not provide it ({reason}); "
            f"download the tokenizer.json of {name}, or its vocab.json and merges.txt, on a machine with network "
            "access, and set tokenizer.path to the folder of these files"
        ) from None
