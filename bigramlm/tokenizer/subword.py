"""Tokenizers of parts of words: BPE and WordPiece, by Hugging Face's `tokenizers`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from bigramlm.errors import UserError, require
from bigramlm.tokenizer.base import END_OF_TEXT
from bigramlm.utils import hub

# What others call the end of a document.
_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
_UNKNOWN = "[UNK]"

# A word with the white space before it; of that Python has four characters more than others.
_WORD = re.compile(r"[^\S\x1c-\x1f]*[\S\x1c-\x1f]+|[^\S\x1c-\x1f]+")
# How many words are kept with their tokens, and how long they may be.
WORDS_KEPT, _SHORT = 1 << 17, 64

# What a tokenizer that loses nothing gives back: white space of all sorts, cases, accents, other scripts, controls.
_PROBE = "x  A\tbc\r\n\n it's 1,234 \u00e9e\u0301 \u65e5\u672c \U0001f40d\x00 <|endoftext|> x "


class SubwordTokenizer:
    """A tokenizer of Hugging Face's `tokenizers`, with its words kept: text repeats them, and splitting takes long."""

    def __init__(self, backend: Backend, saved: str | None = None) -> None:
        """Take the file that the backend was read from, if any, which `to_json` returns unchanged."""
        self._saved = saved
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # in a text their names are text
        self._backend = backend
        self._by_words = _splits_before_space(json.loads(backend.to_str()))
        self._words: dict[str, bytes] = {}
        self.vocab_size = max(backend.get_vocab().values()) + 1
        self.end_of_text: int | None = next(
            (id_ for name in _ENDS if (id_ := backend.token_to_id(name)) is not None), None
        )
        try:
            self.lossless = self.decode(self.encode(_PROBE).tolist()) == _PROBE
        except UserError:  # what it lacks it says, and does not lose
            has = "".join(c for c in _PROBE if backend.token_to_id(c) is not None)
            self.lossless = bool(has) and self.decode(self.encode(has).tolist()) == has

    def encode(self, text: str) -> NDArray[np.int32]:
        """Encode the text as token ids, shape (N,)."""
        words = _WORD.findall(text) if self._by_words else [text]
        found = list(map(self._words.get, words))
        if None in found:
            unknown = list(dict.fromkeys(word for word, ids in zip(words, found, strict=True) if ids is None))
            new = dict(zip(unknown, self._encode(unknown), strict=True))
            found = [new[word] if ids is None else ids for word, ids in zip(words, found, strict=True)]
            if len(self._words) > WORDS_KEPT:
                self._words.clear()
            self._words |= {word: ids for word, ids in new.items() if len(word) <= _SHORT}
        return np.frombuffer(b"".join(ids for ids in found if ids is not None), dtype=np.int32)

    def _encode(self, texts: list[str]) -> Iterator[bytes]:
        try:
            encoded = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        except TypeError:  # half of a surrogate pair, as a command line can bring it
            bad = next((c for text in texts for c in text if 0xD800 <= ord(c) < 0xE000), None)
            if bad is None:
                raise
            raise UserError(f"{bad!a} is no character that UTF-8 can hold") from None
        except Exception as error:  # a vocabulary without a token for what it does not know
            lacks = sorted({c for text in texts for c in text if self._backend.token_to_id(c) is None})
            named = ", ".join(map(repr, lacks[:10])) + (f" and {len(lacks) - 10} more" if len(lacks) > 10 else "")
            raise UserError(f"the vocabulary lacks {named or 'part of the text'} ({error})") from None
        return (np.array(one.ids, dtype=np.int32).tobytes() for one in encoded)

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids; bytes that make no character become U+FFFD."""
        return str(self._backend.decode(list(ids), skip_special_tokens=False))

    def to_json(self) -> str:
        """Return the file format of `tokenizers`, which transformers and others read too."""
        return str(self._backend.to_str()) if self._saved is None else self._saved


def _splits_before_space(about: dict[str, object]) -> bool:
    # Whether no token spans the place where a word ends and white space begins, so that words can be looked up one by
    # one. Of the splitting that GPT-2 and BERT do this is known.
    splitting = about["pre_tokenizer"]
    assert isinstance(splitting, (dict, type(None)))
    added = about["added_tokens"]
    assert isinstance(added, list)
    if splitting is None or about["normalizer"] is not None or not all(token["special"] for token in added):
        return False
    gpt2 = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    return splitting["type"] == "BertPreTokenizer" or gpt2.items() <= splitting.items()


def train_bpe(texts: Iterable[str], *, vocab_size: int, min_frequency: int) -> SubwordTokenizer:
    """Learn a byte-level BPE, split as GPT-2's (Sennrich et al.

    2016, Radford et al. 2019). UserError if the texts don't have as many tokens in them.
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
    """Learn a WordPiece vocabulary, split as BERT's, cases and accents kept (Devlin et al.

    2019). UserError where the texts do not have as many tokens in them, or more characters.
    """

    def learned(first: list[str], size: int) -> Backend:
        backend = _bert(models.WordPiece(unk_token=_UNKNOWN))
        trainer = trainers.WordPieceTrainer(
            vocab_size=size, min_frequency=min_frequency, special_tokens=first, show_progress=False
        )
        backend.train_from_iterator(texts(), trainer)
        return backend

    # The library numbers characters inside words as it meets them, in an order that is another every time, and breaks
    # ties by these numbers. So they are found first, and numbered here.
    special = [END_OF_TEXT, _UNKNOWN]
    characters = sorted(set(learned(special, 0).get_vocab()) - set(special))
    backend = learned([*special, *characters], vocab_size)
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
        f"tokenizer.vocab_size={vocab_size}: the training text supports only {found:,} tokens, since no other pair of "
        f"them occurs tokenizer.min_frequency={min_frequency} times; take {found} at the most, or a longer text",
    )
    require(
        found == vocab_size,
        f"tokenizer.vocab_size={vocab_size}: the training text has so many characters that they alone, and what stands "
        f"inside words, take {found:,} tokens; take more than that",
    )


def from_json(text: str) -> SubwordTokenizer:
    """Read the tokenizer in a `tokenizer.json`. ValueError if it holds none."""
    try:
        return SubwordTokenizer(Backend.from_str(text), text.strip())
    except UserError:
        raise
    except Exception as error:  # what the library raises is an Exception, and no more
        raise ValueError(f"holds no tokenizer: {str(error).splitlines()[0]}") from None


def from_path(path: str) -> tuple[SubwordTokenizer, str]:
    """Open the tokenizer in a file or a folder, or of a name on the Hugging Face hub; also returns its absolute path.

    A folder holds tokenizer.json, or vocab.json and merges.txt as GPT-2 came with. UserError where there is none.
    """
    here = Path(path).expanduser().absolute()
    if not here.exists():
        here, path = _from_hub(path), path
    else:
        path = str(here)
    where = f"tokenizer.path={path}"
    file = here / "tokenizer.json" if here.is_dir() else here
    vocab, merges = (file.with_name(name) for name in ("vocab.json", "merges.txt"))
    try:
        if file.name not in ("vocab.json", "merges.txt") and file.exists():
            return from_json(file.read_text("utf-8")), path
        require(
            vocab.is_file() and merges.is_file(),
            f"{where}: holds no tokenizer, which would be a tokenizer.json, or a vocab.json and a merges.txt",
        )
        backend = _byte_level(models.BPE.from_file(str(vocab), str(merges)))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{where}: {str(error).splitlines()[0]}") from None
    if backend.token_to_id(END_OF_TEXT) is not None:
        backend.add_special_tokens([END_OF_TEXT])
    return SubwordTokenizer(backend), path


def _from_hub(name: str) -> Path:
    require(
        hub.is_name(name),
        f"tokenizer.path={name}: there is no such file or folder; give a folder with a tokenizer.json, or with a "
        "vocab.json and a merges.txt, or a name on the Hugging Face hub",
    )
    try:
        return hub.fetch(name, "tokenizer.json")
    except hub.NotFetched as reason:
        raise UserError(
            f"tokenizer.path={name}: there is no such file or folder here, and the Hugging Face hub did not give it "
            f"({reason}); download the tokenizer.json of {name}, or its vocab.json and merges.txt, where there "
            "is a network, and give the folder that they are in"
        ) from None
