"""Tests of tokenizers: round trips, missing characters, vocabularies and files."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from bigramlm.cli.common import exit_codes
from bigramlm.errors import UserError
from bigramlm.tokenizer.base import END_OF_TEXT, Tokenizer, round_trip_difference, start_tokens
from bigramlm.tokenizer.byte import byte_characters
from bigramlm.tokenizer.char import CharTokenizer
from bigramlm.tokenizer.config import (
    TOKENIZERS,
    BPEConfig,
    ByteConfig,
    CharConfig,
    GPT2TokenizerConfig,
    TokenizerConfig,
    WordPieceConfig,
)
from bigramlm.tokenizer.subword import SubwordTokenizer
from bigramlm.utils import network, paths
from tests.helpers import Ended, Hub, assert_refused, command, refuses, serving

TEXT = paths.bundled_text().read_text("utf-8")
# Any text without halves of surrogate pairs, which UTF-8 cannot encode. White space and word boundaries are drawn more
# often than by chance.
ANY = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \n\t\r\x1c\x85\u00a0'sat1.,!é")))


def build(cfg: TokenizerConfig, text: str = TEXT, documents: int = 1) -> Tokenizer:
    return cfg.build(characters="".join(sorted(set(text))), documents=documents, train=lambda limit: iter([text]))


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return build(BPEConfig(vocab_size=600))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Build a tokenizer from files such as GPT-2's, with END_OF_TEXT last."""
    folder = tmp_path_factory.mktemp("gpt2")
    write_gpt2(folder)
    return build(GPT2TokenizerConfig(path=str(folder)))


def write_gpt2(folder: Path) -> None:
    saved = json.loads(build(BPEConfig(vocab_size=400)).to_json())
    merges = [" ".join(pair) for pair in saved["model"]["merges"]]
    words = [*byte_characters(), *(pair.replace(" ", "") for pair in merges), END_OF_TEXT]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", "utf-8")


class RecordingBackend:
    """A tokenizer of the library that records the texts passed to it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.library = tokenizers.Tokenizer.from_str(tokenizer.to_json())
        self.library.encode_special_tokens = True
        self.calls: list[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.library, name)

    def encode_batch_fast(self, texts: list[str], **how: Any) -> Any:
        self.calls.append(texts)
        return self.library.encode_batch_fast(texts, **how)


def recording(tokenizer: Tokenizer) -> tuple[SubwordTokenizer, list[list[str]]]:
    """Return the same tokenizer, and the list of the texts that its library encodes."""
    library: Any = RecordingBackend(tokenizer)
    copy = SubwordTokenizer(library)
    library.calls.clear()
    return copy, library.calls


# Round trips


@pytest.mark.parametrize("text", ["hello", "naïve café\n", "日本語 and \U0001f40d", "\x00\ttabs\r\n", "a"])
def test_round_trip_of_characters(text: str) -> None:
    tokenizer = build(CharConfig(), text)
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids.tolist()) == text
    assert tokenizer.vocab_size == len(set(text))


@given(ANY)
@settings(max_examples=300)
def test_round_trip_of_bytes(text: str) -> None:
    tokenizer = build(ByteConfig())
    ids = tokenizer.encode(text)
    assert ids.tolist() == list(text.encode())
    assert tokenizer.decode(ids.tolist()) == text


@pytest.mark.parametrize("which", ["bpe", "gpt2"])
def test_round_trip_of_byte_level_bpe(which: str, request: pytest.FixtureRequest) -> None:
    """Encode any text, with characters that the training text lacks.

    Words that are looked up one by one must have the tokens that the library gives them in the whole text.
    """
    tokenizer: SubwordTokenizer = request.getfixturevalue(which)
    copy, calls = recording(tokenizer)
    copy.encode("to be or not to be")
    assert calls == [["to", " be", " or", " not", " to"]], "otherwise the cache is not tested"
    library = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    library.encode_special_tokens = True

    @given(ANY)
    @settings(max_examples=500)
    def check(text: str) -> None:
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32
        assert tokenizer.decode(ids.tolist()) == text
        assert ids.tolist() == library.encode(text, add_special_tokens=False).ids

    check()
    assert tokenizer.lossless


@pytest.mark.parametrize("cfg", [BPEConfig(vocab_size=300), WordPieceConfig(vocab_size=300)], ids=lambda cfg: cfg.name)
def test_words_are_cached(cfg: TokenizerConfig) -> None:
    tokenizer, calls = recording(build(cfg))
    first = tokenizer.encode("to be or not to be").tolist()
    assert calls == [["to", " be", " or", " not", " to"]]
    assert tokenizer.encode("to be or not to be").tolist() == first
    tokenizer.encode("not to see")
    assert calls[1:] == [["not", " see"]]


def test_the_name_of_end_of_text_is_encoded_as_text(bpe: Tokenizer, gpt2: Tokenizer) -> None:
    for tokenizer in (bpe, gpt2, build(ByteConfig(), documents=2)):
        assert tokenizer.end_of_text is not None
        ids = tokenizer.encode(f"a{END_OF_TEXT}b").tolist()
        assert tokenizer.end_of_text not in ids
        assert tokenizer.decode(ids) == f"a{END_OF_TEXT}b"
        assert tokenizer.decode([*ids[:1], tokenizer.end_of_text]) == f"a{END_OF_TEXT}"


def test_the_word_cache_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigramlm.tokenizer.subword.MAX_CACHED_WORDS", 50)
    tokenizer, calls = recording(build(BPEConfig(vocab_size=300)))
    words = [f" word{number}" for number in range(500)]
    for word in words:
        tokenizer.encode(word)
    tokenizer.encode("".join(words))
    assert 0 < len(words) - len(calls[-1]) < 100
    for _ in range(2):
        tokenizer.encode("x" * 100_000)
        assert calls[-1] == ["x" * 100_000], "a long word is not cached"
        calls.append([])


# Characters and bytes


def test_character_ids_are_indices_into_the_sorted_characters() -> None:
    """Compare with the tutorial's mapping, which is a dictionary."""
    text = "The quick brown fox\njumps"
    chars = sorted(set(text))
    assert build(CharConfig(), text).encode(text).tolist() == [chars.index(c) for c in text]


def test_empty_text_has_no_tokens(bpe: Tokenizer) -> None:
    for tokenizer in (CharTokenizer("abc"), build(ByteConfig()), bpe):
        assert tokenizer.encode("").tolist() == []
        assert tokenizer.decode([]) == ""


@pytest.mark.parametrize(
    ("text", "named"),
    [("abz", "'z'"), ("日本", "'日', '本'"), ("a\u0000", r"'\x00'"), ("\U0010ffff", "10ffff"), ("a\udcff", r"\udcff")],
)
def test_missing_characters_are_named(text: str, named: str) -> None:
    with refuses(named, "3 characters"):
        CharTokenizer("abc").encode(text)
    with pytest.raises(UserError) as error:
        CharTokenizer("abc").encode(text)
    str(error.value).encode("utf-8")


def test_long_vocabularies_are_not_listed() -> None:
    with pytest.raises(UserError) as error:
        CharTokenizer("".join(map(chr, range(0x4E00, 0x5E00)))).encode("x")
    assert len(str(error.value)) < 200


def test_half_of_a_surrogate_pair_is_refused(bpe: Tokenizer) -> None:
    for tokenizer in (build(ByteConfig()), bpe):
        with refuses(r"'\udcff'", "UTF-8"):
            tokenizer.encode("a\udcff")


def test_several_documents_add_an_end_of_text_token() -> None:
    for cfg, size in ((CharConfig(), len(set(TEXT))), (ByteConfig(), 256)):
        single, several = build(cfg), build(cfg, documents=2)
        assert (single.vocab_size, single.end_of_text) == (size, None)
        assert (several.vocab_size, several.end_of_text) == (size + 1, size)
        assert several.decode([size]) == END_OF_TEXT
        restored = cfg.restore(several.to_json())
        assert (restored.vocab_size, restored.end_of_text) == (size + 1, size)


def test_generation_without_a_prompt_starts_from_a_newline(bpe: Tokenizer) -> None:
    assert start_tokens(CharTokenizer("\nab"), "") == [0], "the tutorial's token 0"
    assert start_tokens(CharTokenizer("\t\nab"), "") == [1]
    assert start_tokens(CharTokenizer("ab"), "") == [0], "there is no newline"
    assert start_tokens(build(ByteConfig()), "") == [10]
    assert bpe.decode(start_tokens(bpe, "")) == "\n"
    assert start_tokens(CharTokenizer("ab"), "ba") == [1, 0]
    with refuses("'c'"):
        start_tokens(CharTokenizer("ab"), "c")


# WordPiece


def test_wordpiece_is_lossy() -> None:
    tokenizer = build(WordPieceConfig(vocab_size=500))
    assert not tokenizer.lossless
    difference = round_trip_difference(tokenizer, "The king,\nand the queen")
    assert difference is not None
    at, original, result = difference
    assert (at, original[0], result[0]) == (9, "\n", " ")
    assert tokenizer.decode(tokenizer.encode("The king, and the queen").tolist()) == "The king, and the queen"
    assert tokenizer.decode(tokenizer.encode("日").tolist()) == "[UNK]"


def test_wordpiece_encodes_as_the_library_does() -> None:
    tokenizer = build(WordPieceConfig(vocab_size=500))
    library = tokenizers.Tokenizer.from_str(tokenizer.to_json())

    @given(ANY)
    @settings(max_examples=300)
    def check(text: str) -> None:
        assert tokenizer.encode(text).tolist() == library.encode(text, add_special_tokens=False).ids

    check()


# Vocabularies


@pytest.mark.parametrize("kind", [BPEConfig, WordPieceConfig])
def test_a_vocabulary_has_the_configured_size(kind: type[BPEConfig]) -> None:
    assert build(kind(vocab_size=512)).vocab_size == 512


@pytest.mark.parametrize("kind", [BPEConfig, WordPieceConfig])
def test_a_vocabulary_that_is_too_large_for_the_text_is_refused(kind: type[BPEConfig]) -> None:
    with pytest.raises(UserError) as error:
        build(kind(vocab_size=50_000))
    numbers = [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*\b", str(error.value))]
    (advised,) = {number for number in numbers if number not in (50_000, 2)}
    assert build(kind(vocab_size=advised)).vocab_size == advised, "the advised size works"
    for size in (50_000, advised + 1):
        with refuses(advised, "tokenizer.min_frequency=2", field="tokenizer.vocab_size", value=size):
            build(kind(vocab_size=size))


def test_a_vocabulary_that_is_too_small_for_the_characters_is_refused() -> None:
    with refuses("257", "tokenizer=byte", field="tokenizer.vocab_size", value=256):
        BPEConfig(vocab_size=256)
    with refuses("characters", field="tokenizer.vocab_size", value=20):
        build(WordPieceConfig(vocab_size=20))


def test_learning_is_deterministic() -> None:
    """Compare processes with different numbers of threads and string hashes."""
    code = (
        "from bigramlm.utils import paths\n"
        "from bigramlm.tokenizer.config import BPEConfig, WordPieceConfig\n"
        "text = paths.bundled_text().read_text('utf-8')\n"
        "for cfg in (BPEConfig(vocab_size=600), WordPieceConfig(vocab_size=400)):\n"
        "    print(cfg.build(characters='', documents=1, train=lambda limit: iter([text])).to_json())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONPATH": str(paths.home()), "RAYON_NUM_THREADS": n, "PYTHONHASHSEED": n, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for n in ("1", "2")
    }
    expected = (build(cfg).to_json() for cfg in (BPEConfig(vocab_size=600), WordPieceConfig(vocab_size=400)))
    assert found == {"".join(f"{saved}\n" for saved in expected)}


# Files


@pytest.mark.parametrize("cfg", [BPEConfig(vocab_size=400), WordPieceConfig(vocab_size=400), ByteConfig()])
def test_the_library_reads_saved_files(cfg: TokenizerConfig) -> None:
    tokenizer = build(cfg, documents=2)
    library = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    text = "To be, or not to be: that's the question.\nYes? 日本"
    assert library.encode(text).ids == tokenizer.encode(text).tolist()
    assert library.token_to_id(END_OF_TEXT) == tokenizer.end_of_text
    restored = cfg.restore(tokenizer.to_json())
    assert restored.encode(text).tolist() == tokenizer.encode(text).tolist()
    assert restored.to_json() == tokenizer.to_json()


def test_each_kind_refuses_the_files_of_other_kinds() -> None:
    kinds = {name: kind() for name, kind in TOKENIZERS.items() if name != "gpt2"}  # gpt2 accepts any file
    saved = {name: build(cfg).to_json() for name, cfg in kinds.items()}
    for name, cfg in kinds.items():
        for other, text in saved.items():
            if name == other or (name, other) == ("bpe", "byte"):
                assert cfg.restore(text).to_json() == text
                continue
            with pytest.raises((ValueError, KeyError)):
                cfg.restore(text)


def test_a_gpt2_tokenizer_is_read_from_a_folder_or_a_file(tmp_path: Path, gpt2: Tokenizer) -> None:
    assert gpt2.vocab_size == 400
    assert gpt2.end_of_text == 399
    write_gpt2(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tokenizer.json").write_text(gpt2.to_json(), "utf-8")
    text = "Who's there?\n\nNay, answer me:  stand"
    for path in (tmp_path, tmp_path / "vocab.json", tmp_path / "other", tmp_path / "other" / "tokenizer.json"):
        cfg = GPT2TokenizerConfig(path=str(path))
        assert build(cfg).encode(text).tolist() == gpt2.encode(text).tolist()
        assert cfg.path == str(path)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda folder: None, ("tokenizer.json", "vocab.json", "merges.txt")),
        (lambda folder: (folder / "vocab.json").write_text("{}"), ("tokenizer.json", "vocab.json", "merges.txt")),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), ()),
        (lambda folder: (folder / "tokenizer.json").write_bytes(b"\xff"), ("0xff",)),
    ],
)
def test_a_folder_without_a_tokenizer_is_refused(
    tmp_path: Path, make: Callable[[Path], Any], named: tuple[str, ...]
) -> None:
    make(tmp_path)
    with refuses(*named, field="tokenizer.path", value=tmp_path):
        build(GPT2TokenizerConfig(path=str(tmp_path)))


def test_a_missing_path_is_refused() -> None:
    with refuses("tokenizer.json", "vocab.json", field="tokenizer.path", value="./no/such/folder"):
        build(GPT2TokenizerConfig(path="./no/such/folder"))


@pytest.fixture(scope="module")
def hub(gpt2: Tokenizer) -> Iterator[str]:
    with serving(Hub, files={"tokenizer.json": gpt2.to_json().encode()}) as address:
        yield address


def fetch() -> None:
    """Print the vocabulary size and a round trip of a tokenizer from the hub."""
    with exit_codes(), network.typed(sys.argv):
        found = build(GPT2TokenizerConfig(path=sys.argv[1]))
        print(found.vocab_size, found.decode(found.encode("To be").tolist()))


def from_hub(name: str, endpoint: str, home: Path) -> Ended:
    """Run `fetch` in a new process.

    The hub's library reads its environment variables when it is imported.
    """
    env = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    return command(name, main=fetch, env={**env, "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"})


def test_a_tokenizer_comes_from_the_hub_and_later_from_the_cache(hub: str, tmp_path: Path) -> None:
    for endpoint in (hub, "http://127.0.0.1:9"):
        ended = from_hub("some/gpt2", endpoint, tmp_path)
        assert (ended.code, ended.out) == (0, "400 To be\n"), ended.err


@pytest.mark.parametrize(("name", "reason"), [("some/other", "404"), ("some/gpt2", "refused")])
def test_an_unknown_name_on_the_hub_or_no_network_is_refused(name: str, reason: str, hub: str, tmp_path: Path) -> None:
    ended = from_hub(name, hub if reason == "404" else "http://127.0.0.1:9", tmp_path)
    assert_refused(ended, reason, "tokenizer.json", field="tokenizer.path", value=name)
    assert ended.err.count("\n") == 1
