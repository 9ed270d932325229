"""Tests of tokenizers from elsewhere: randomness, added spaces, unknown words."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from bigramlm.data.config import TextConfig
from bigramlm.data.encoding import encode_piece
from bigramlm.data.text import Text, split_into_pieces
from bigramlm.errors import UserError
from bigramlm.tokenizer.base import Tokenizer, lost_share, round_trip_difference
from bigramlm.tokenizer.config import BPEConfig, GPT2TokenizerConfig
from bigramlm.tokenizer.subword import SubwordTokenizer
from bigramlm.utils import paths
from tests.engine.helpers import weights
from tests.helpers import SHORT, Cli, assert_refused

TEXT = paths.bundled_text().read_text("utf-8")


def learned(model: Any, trainer: Any, **parts: Any) -> Backend:
    backend = Backend(model)
    for name, part in parts.items():
        setattr(backend, name, part)
    backend.train_from_iterator([TEXT], trainer)
    return backend


def bpe(**parts: Any) -> Backend:
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        show_progress=False,
        special_tokens=["<unk>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    return learned(models.BPE(unk_token="<unk>"), trainer, **parts)


def unigram(**parts: Any) -> Backend:
    trainer = trainers.UnigramTrainer(vocab_size=300, show_progress=False, unk_token="<unk>", special_tokens=["<unk>"])
    return learned(models.Unigram(), trainer, **parts)


def words(**parts: Any) -> Backend:
    backend = Backend(models.WordLevel({"[UNK]": 0, "the": 1, "and": 2, "of": 3}, unk_token="[UNK]"))
    for name, part in parts.items():
        setattr(backend, name, part)
    return backend


def saved(backend: Backend, folder: Path, **model: Any) -> Path:
    """Save a tokenizer, with these values in the fields of its model."""
    content = json.loads(backend.to_str())
    content["model"] |= model
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(content), "utf-8")
    return path


def opened(path: Path) -> Tokenizer:
    return GPT2TokenizerConfig(path=str(path)).build(characters="", documents=1, train=lambda _: iter(()))


# Randomness


@pytest.mark.parametrize("dropout", [0.1, 0.9, 1.0])
def test_dropout_is_switched_off_and_said_once(
    dropout: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    backend = bpe(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False), decoder=decoders.ByteLevel())
    path = saved(backend, tmp_path, dropout=dropout)
    tokenizer = opened(path)
    assert [record.getMessage() for record in caplog.records if f"dropout={dropout:g}" in record.getMessage()]
    assert len(caplog.records) == 1
    expected = backend.encode(TEXT, add_special_tokens=False).ids
    restored = GPT2TokenizerConfig().restore(tokenizer.to_json())
    for found in (tokenizer, opened(path), restored):
        assert found.encode(TEXT).tolist() == expected


def test_no_dropout_is_not_mentioned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for dropout in (None, 0.0):
        opened(saved(bpe(pre_tokenizer=pre_tokenizers.Whitespace()), tmp_path, dropout=dropout))
    assert not caplog.records


def test_sampling_of_unigrams_is_switched_off() -> None:
    backend = unigram(pre_tokenizer=pre_tokenizers.Metaspace())
    if not hasattr(backend.model, "alpha"):
        pytest.skip("this version of tokenizers cannot sample unigrams")
    expected = backend.encode(TEXT[:5000]).ids
    backend.model.alpha, backend.model.nbest_size = 0.1, 64
    drawn = {tuple(backend.encode(TEXT[:5000]).ids) for _ in range(3)}
    assert len(drawn) > 1, "otherwise nothing is tested"
    tokenizer = SubwordTokenizer(backend)
    assert [tokenizer.encode(TEXT[:5000]).tolist() for _ in range(2)] == [expected] * 2


def test_runs_with_dropout_in_the_tokenizer_are_equal(cli: Cli, tmp_path: Path) -> None:
    backend = bpe(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False), decoder=decoders.ByteLevel())
    path = saved(backend, tmp_path, dropout=0.5)
    first, second = (cli(*SHORT, "tokenizer=gpt2", f"tokenizer.path={path}") for _ in range(2))
    assert first.code == 0, first.err
    assert first.err.count("dropout=0.5") == 1
    assert weights(first.folder).equal(weights(second.folder))


# Spaces that a tokenizer adds in front of a text

TO_SPACE = normalizers.Replace(" ", "▁")
FROM_SPACE = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
WORDS = pre_tokenizers.Split("▁", "merged_with_next")
ADDING: dict[str, Callable[[], Backend]] = {
    "ByteLevel": lambda: bpe(
        pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True), decoder=decoders.ByteLevel()
    ),
    "Metaspace, always": lambda: bpe(
        pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="always"),
        decoder=decoders.Metaspace(prepend_scheme="always"),
    ),
    "Metaspace, first": lambda: bpe(
        pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first"),
        decoder=decoders.Metaspace(prepend_scheme="first"),
    ),
    "Metaspace, unigrams, stripped": lambda: unigram(
        normalizer=normalizers.Sequence([normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]),
        pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="always"),
    ),
    "Prepend": lambda: bpe(
        normalizer=normalizers.Sequence([normalizers.Prepend("▁"), TO_SPACE]),
        pre_tokenizer=WORDS,
        decoder=FROM_SPACE,
    ),
    "Prepend, nested": lambda: bpe(
        normalizer=normalizers.Sequence(
            [normalizers.Sequence([normalizers.NFC(), normalizers.Prepend("▁")]), TO_SPACE]
        ),
        pre_tokenizer=WORDS,
    ),
    "Prepend alone": lambda: bpe(normalizer=normalizers.Prepend("x"), pre_tokenizer=pre_tokenizers.Whitespace()),
    "Strip": lambda: bpe(
        normalizer=normalizers.Strip(), pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False)
    ),
}


@pytest.mark.parametrize("make", ADDING.values(), ids=ADDING)
def test_a_text_in_pieces_has_the_tokens_of_the_whole(
    make: Callable[[], Backend], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bigramlm.data.text.PIECE", 1000)
    backend = make()
    tokenizer = opened(saved(backend, tmp_path))
    text = TEXT.strip()
    pieces = [piece for piece, _ in split_into_pieces([text])]
    assert len(pieces) > 20
    found = np.concatenate([tokenizer.encode(piece) for piece in pieces]).tolist()
    assert found == backend.encode(text, add_special_tokens=False).ids


# Splitting after which each word is encoded alone. A piece that is cut within a word has other tokens than the whole.
AFTER_WORDS = {
    "Metaspace, first, of words": lambda: bpe(
        pre_tokenizer=pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="first")]
        )
    ),
    "Metaspace, nested": lambda: bpe(
        pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Digits()])
    ),
}


@pytest.mark.parametrize("make", [*ADDING.values(), *AFTER_WORDS.values()], ids=[*ADDING, *AFTER_WORDS])
def test_nothing_is_added_within_a_document_without_spaces(
    make: Callable[[], Backend], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bigramlm.data.text.PIECE", 1000)
    backend = make()
    tokenizer = opened(saved(backend, tmp_path))
    document = TEXT[:20_000].replace(" ", "").replace("\n", ",")
    path = tmp_path / "a.txt"
    path.write_text(document, "utf-8")
    text = TextConfig(path=str(path)).read()
    assert isinstance(text, Text)
    pieces = [piece for piece in text.pieces() if piece.split == "train"]
    assert len(pieces) > 5
    found = np.concatenate([encode_piece(tokenizer, piece, "", ends=False) for piece in pieces]).tolist()
    whole = backend.encode(document[: text.split], add_special_tokens=False)
    # At a cut a token may be divided into a few, which have the same characters.
    assert "".join(str(backend.id_to_token(id_)) for id_ in found) == "".join(whole.tokens)


@pytest.mark.parametrize("name", ["ByteLevel", "Metaspace, always", "Metaspace, first", "Prepend"])
def test_a_space_in_front_is_no_loss(name: str, cli: Cli, tmp_path: Path) -> None:
    """Accept excerpts that begin with a space, as in the preflight check."""
    path = saved(ADDING[name](), tmp_path)
    tokenizer = opened(path)
    for text in ("To be", " To be", "\nTo be "):
        assert round_trip_difference(tokenizer, text) is None
    assert round_trip_difference(tokenizer, "To be") is None
    ended = cli(*SHORT, "tokenizer=gpt2", f"tokenizer.path={path}")
    assert ended.code == 0, ended.err


# Vocabularies that do not cover the text


def test_lost_share_counts_unknown_and_dropped_characters(tmp_path: Path) -> None:
    split = {"pre_tokenizer": pre_tokenizers.Whitespace()}
    unknown = opened(saved(words(**split), tmp_path))
    assert lost_share(unknown, "the king and the men of Rome") == pytest.approx(11 / 22)
    assert lost_share(unknown, "the  and\nof") == 0, "white space is not counted"
    fused = opened(saved(words(), tmp_path))  # without a pre-tokenizer the whole text is one word
    assert lost_share(fused, "the king and the men of Rome") == 1
    dropped = opened(saved(Backend(models.BPE({"a": 0, "b": 1}, [])), tmp_path))
    assert lost_share(dropped, "aabbcccc") == 0.5
    assert lost_share(dropped, "") == 0
    lower = words(normalizer=normalizers.Lowercase(), **split)
    assert lost_share(opened(saved(lower, tmp_path)), "THE and Of") == 0, "a change of case is no loss"
    assert (
        lost_share(BPEConfig(vocab_size=300).build(characters="", documents=1, train=lambda _: iter([TEXT])), "日") == 0
    )


@pytest.mark.parametrize(
    ("backend", "named"),
    [
        (words(pre_tokenizer=pre_tokenizers.Whitespace()), ("preflight", "%", "train split", "'[UNK]'")),
        (Backend(models.BPE({c: i for i, c in enumerate("aeiou ")}, [])), ("preflight", "%", "train split")),
        (words(), ("tokenizer=gpt2", "62,536 characters", "only 1 ", "train split", "data.block_size=8")),
        (words(pre_tokenizer=pre_tokenizers.Split("xyz", "isolated")), ("tokenizer=gpt2", "data.block_size=8")),
    ],
    ids=["unknown words", "dropped characters", "no pre-tokenizer", "a pre-tokenizer that never splits"],
)
def test_a_vocabulary_that_does_not_cover_the_text_is_the_named_cause(
    backend: Backend, named: tuple[str, ...], cli: Cli, tmp_path: Path
) -> None:
    refused = cli(*SHORT, "tokenizer=gpt2", f"tokenizer.path={saved(backend, tmp_path)}")
    assert_refused(refused, *named, "tokenizer=byte")


def test_a_small_loss_is_a_warning_with_its_share(cli: Cli, tmp_path: Path) -> None:
    known = {char: number for number, char in enumerate(sorted(set(TEXT) - set("Ee")))}
    path = saved(Backend(models.BPE(known, [])), tmp_path)
    ended = cli(*SHORT, "tokenizer=gpt2", f"tokenizer.path={path}")
    assert ended.code == 0, ended.err
    lost = 100 * sum(char in "Ee" for char in TEXT) / len("".join(TEXT.split()))
    assert f"{lost:.0f}%" in ended.err or f"{lost - 1:.0f}%" in ended.err or f"{lost + 1:.0f}%" in ended.err


# Files of other kinds of tokenizers


@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model", "vocab.txt"])
def test_other_tokenizer_files_come_with_the_command_that_converts_them(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match="AutoTokenizer") as raised:
        opened(tmp_path)
    assert name in str(raised.value)
    assert f"tokenizer.path={tmp_path}" in str(raised.value)


def test_special_tokens_are_text_in_every_piece(tmp_path: Path) -> None:
    backend = ADDING["Prepend"]()
    backend.add_special_tokens([AddedToken("</s>", special=True)])
    tokenizer = opened(saved(backend, tmp_path))
    for text in ("a </s>", " a </s>"):
        assert tokenizer.end_of_text not in tokenizer.encode(text).tolist()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_files_with_a_byte_order_mark_are_read(encoding: str, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    path = saved(bpe(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False)), whole)
    expected = opened(path).encode(TEXT[:500]).tolist()
    model = json.loads(path.read_text("utf-8"))["model"]
    parts = tmp_path / "parts"
    parts.mkdir()
    path.write_text(path.read_text("utf-8"), encoding)
    assert opened(path).encode(TEXT[:500]).tolist() == expected
    (parts / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding)
    merges = "\r\n".join(["#version: 0.2", *(" ".join(pair) for pair in model["merges"]), ""])
    (parts / "merges.txt").write_text(merges, encoding, newline="")
    assert opened(parts).encode(TEXT[:500]).tolist() == expected
