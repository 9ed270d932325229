"""Tests of tokenizers that other programs wrote, or that are damaged."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigramlm.tokenizer.config import BPEConfig, ByteConfig, CharConfig, GPT2TokenizerConfig
from bigramlm.tokenizer.opening import from_path
from bigramlm.tokenizer.subword import train_bpe
from bigramlm.utils import paths
from tests.helpers import SHORT, Cli, assert_refused, refuses

TEXT = paths.bundled_text().read_text("utf-8")[:20_000]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
About = dict[str, Any]


@pytest.fixture(scope="module")
def about() -> About:
    """Return the content of a tokenizer.json."""
    content: About = json.loads(train_bpe([TEXT], vocab_size=300, min_frequency=2).to_json())
    return content


def changed(about: About, file: Path, **parts: Any) -> Path:
    """Write a tokenizer.json with other parts."""
    file.write_text(json.dumps({**about, **parts}), "utf-8")
    return file


def replacing(*pairs: tuple[str, str]) -> About:
    parts = [{"type": "Replace", "pattern": {"String": old}, "content": new} for old, new in pairs]
    return {"type": "Sequence", "normalizers": parts}


def charsmap(content: str) -> About:
    return {"normalizer": {"type": "Precompiled", "precompiled_charsmap": content}}


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        *(({part: {"type": "New"}}, (part, "'New'")) for part in ("decoder", "normalizer", "pre_tokenizer", "model")),
        (charsmap("AAAAAA=="), ("damaged",)),
        (charsmap("x"), ("damaged",)),
        ({"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []}, ("vocabulary is empty",)),
        ({"normalizer": replacing(*(("abcdef"[i], "bcdefg"[i] * 10) for i in range(6)))}, ("4,000,000", "normalizer")),
        ({"version": "9"}, ("version", "different copy")),
    ],
)
def test_a_part_that_cannot_be_used_is_named_in_one_line(
    parts: About, named: tuple[str, ...], about: About, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = changed(about, tmp_path / "tokenizer.json", **parts)
    with refuses(*named, field="tokenizer.path", value=file):
        from_path(str(file))
    assert capfd.readouterr().err == "", "the library writes nothing itself"


@pytest.mark.parametrize("number", [5_000, 10**9, 2**31 - 1, 2**31, 2**32 - 1])
def test_ids_with_a_large_gap_are_refused(number: int, about: About, tmp_path: Path) -> None:
    vocab = about["model"]["vocab"]
    last = max(vocab, key=lambda token: vocab[token])
    model = {**about["model"], "vocab": {**vocab, last: number}}
    file = changed(about, tmp_path / "tokenizer.json", model=model)
    with refuses(repr(last), f"{number:,}", "300", field="tokenizer.path", value=file):
        from_path(str(file))
    model["vocab"][last] = 700
    assert from_path(str(changed(about, file, model=model)))[0].vocab_size == 701


def test_a_few_replacements_pass(about: About, tmp_path: Path) -> None:
    normalizer = replacing(("\t", "<tab>"), ("\n", "<line>"), ("  ", " "))
    file = changed(about, tmp_path / "tokenizer.json", normalizer=normalizer)
    assert not from_path(str(file))[0].lossless


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "merges.txt"])
def test_pointers_of_git_lfs_are_named(name: str, about: About, tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps(about["model"]["vocab"]), "utf-8")
    (tmp_path / "merges.txt").write_text("", "utf-8")
    (tmp_path / name).write_text(POINTER, "utf-8")
    with refuses(tmp_path / name, "git lfs pull", field="tokenizer.path", value=tmp_path):
        from_path(str(tmp_path))


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir], ids=["a pipe", "a folder"])
def test_what_is_no_file_is_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "tokenizer.json")
    with refuses("regular file", field="tokenizer.path", value=tmp_path):
        from_path(str(tmp_path))
    with refuses("/dev/zero", "regular file", field="tokenizer.path"):
        from_path("/dev/zero")


@pytest.mark.parametrize(
    ("vocab", "merges", "named"),
    [
        ("[1]", "", ("vocab.json", "JSON object")),
        ("{", "", ("vocab.json", "JSON")),
        ('{"a": "x"}', "", ("vocab.json", "'a'", "'x'")),
        ('{"a": -1}', "", ("vocab.json", "'a'", "-1")),
        ("{}", "", ("vocabulary is empty",)),
        ('{"a": 0}', "#version: 0.2\na b c\n", ("merges.txt", "line 2", "3 tokens")),
        ('{"a": 0}', "a b\n", ("`b`", "different copy")),
    ],
)
def test_a_damaged_vocabulary_is_named(vocab: str, merges: str, named: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(vocab, "utf-8")
    (tmp_path / "merges.txt").write_text(merges, "utf-8")
    with refuses(*named, field="tokenizer.path", value=tmp_path):
        from_path(str(tmp_path))


@pytest.mark.parametrize("inside", ["checkpoint-500", "checkpoints/step_5", "snapshots/abc"])
def test_the_folder_of_a_tokenizer_inside_is_named(inside: str, about: About, tmp_path: Path) -> None:
    (tmp_path / inside).mkdir(parents=True)
    changed(about, tmp_path / inside / "tokenizer.json")
    with refuses(f"tokenizer.path={tmp_path / inside}", field="tokenizer.path", value=tmp_path):
        from_path(str(tmp_path))
    assert from_path(str(tmp_path / inside))[0].vocab_size == 300


def test_the_tokenizer_of_characters_is_called_one(tmp_path: Path) -> None:
    saved = CharConfig().build(characters="abc", documents=1, train=lambda _: iter(())).to_json()
    (tmp_path / "tokenizer.json").write_text(saved, "utf-8")
    with refuses("tokenizer=char", field="tokenizer.path", value=tmp_path):
        GPT2TokenizerConfig(path=str(tmp_path)).build(characters="", documents=1, train=lambda _: iter(()))


def test_a_tokenizer_that_is_unusable_for_a_text_is_refused(about: About, tmp_path: Path, cli: Cli) -> None:
    everything = {"type": "Replace", "pattern": {"Regex": r"[\s\S]"}, "content": ""}
    for parts, named in (
        ({"normalizer": everything}, ("tokenizer=gpt2", "no token", "normalizer", "tokenizer=byte")),
        ({"decoder": None}, ("preflight", "decoder", "Ġ")),
    ):
        file = changed(about, tmp_path / "tokenizer.json", **parts)
        assert_refused(cli(*SHORT, "tokenizer=gpt2", f"tokenizer.path={file}"), *named)


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("tokenizer.model", b"\n\x05\xff\xfe", "is converted by"),
        ("config.json", b'{"model_type": "gpt2"}', "settings"),
        ("tokenizer_config.json", b"{}", "settings"),
        ("special_tokens_map.json", b"{}", "special tokens"),
        ("cl100k_base.tiktoken", b"IQ== 0\n", "tiktoken"),
        ("tokenizer.json.gz", b"\x1f\x8b\x08\xff", "decompressed"),
        ("model.safetensors", b"\xff\x00\x00", "weights"),
    ],
)
def test_a_single_file_of_another_kind_is_named(name: str, content: bytes, named: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with refuses(named, "tokenizer.json", field="tokenizer.path", value=file):
        from_path(str(file))
    if name.endswith("config.json"):
        (tmp_path / "tokenizer.json").touch()
        with refuses(f"tokenizer.path={tmp_path}"):
            from_path(str(file))


@pytest.mark.parametrize(
    "about",
    [
        *({"chars": chars} for chars in (None, 5, ["a", "b"], ["abc"], "", "aa", "a\ud800")),
        {"chars": "ab", "end_of_text": "yes"},
    ],
    ids=ascii,
)
def test_damaged_characters_are_refused(about: About) -> None:
    with pytest.raises(ValueError, match="each character occurs once"):
        CharConfig().restore(json.dumps({"name": "char", **about}))


def test_deep_nesting_in_a_saved_tokenizer_is_refused() -> None:
    for cfg in (CharConfig(), ByteConfig(), BPEConfig()):
        with pytest.raises(ValueError, match="nested too deeply"):
            cfg.restore("[" * 200_000)


def test_a_panic_of_the_library_is_one_line(about: About, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    splitting = {"type": "Split", "pattern": {"Regex": r"(a+)+\d"}, "behavior": "Isolated", "invert": False}
    tokenizer, _ = from_path(str(changed(about, tmp_path / "tokenizer.json", pre_tokenizer=splitting)))
    with refuses("part of the text", "retry-limit", "different copy"):
        tokenizer.encode("a" * 64)
    assert capfd.readouterr().err == "", "the library writes nothing itself"
