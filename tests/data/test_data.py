"""Tests of reading and splitting a text."""

import gzip
import hashlib
import itertools
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigramlm.data.compression import zstd
from bigramlm.data.config import TextConfig
from bigramlm.data.text import Text, TextChanged, check_length, read_text, split_into_pieces
from tests.helpers import refuses


def read(
    *files: Path, name: str = "text", field: str = "text", train_fraction: float = 0.9, format: str = "auto"
) -> Text:
    kept_at = files[0].parent / "kept" / "text.json"
    return read_text(list(files), name=name, field=field, format=format, train_fraction=train_fraction, kept_at=kept_at)


def write(path: Path, content: bytes | str) -> Path:
    """Write a file, compressed according to its suffix, and return its path."""
    raw = content if isinstance(content, bytes) else content.encode()
    if path.suffix == ".gz":
        raw = gzip.compress(raw)
    if path.suffix == ".zst":
        raw = zstd.compress(raw)
    path.write_bytes(raw)
    return path


def documents(text: Text) -> list[str]:
    texts = [""]
    for piece in text.pieces():
        texts[-1] += piece.text
        if piece.ends:
            texts.append("")
    assert texts.pop() == ""
    return texts


def split_text(text: Text, split: str) -> str:
    return "".join(piece.text for piece in text.pieces() if piece.split == split)


def test_split_of_one_document_matches_the_tutorial(tmp_path: Path) -> None:
    text = read(write(tmp_path / "a.txt", "x" * 1_115_394))
    assert (len(split_text(text, "train")), len(split_text(text, "val"))) == (1_003_854, 111_540)
    assert text.split == 1_003_854


@pytest.mark.parametrize(
    ("lengths", "split"),
    [
        ([850, 55, 95], 905),  # the second document ends 5 characters after 900
        ([850, 60, 90], 910),
        ([850, 61, 89], 900),  # 11 after 900, and a hundredth of the text is 10
        ([900, 100], 900),
        ([899, 101], 900),
        ([895, 105], 900),  # the split never moves back
        ([950, 50], 900),
        ([1000], 900),
    ],
)
def test_split_moves_to_a_document_end_shortly_after(tmp_path: Path, lengths: list[int], split: int) -> None:
    lines = "".join(json.dumps({"text": "x" * n}) + "\n" for n in lengths)
    text = read(write(tmp_path / "a.jsonl", lines))
    assert text.split == split
    assert len(split_text(text, "train")) == split
    assert len(split_text(text, "val")) == 1000 - split


def test_split_moves_to_a_document_end_among_many_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigramlm.data.text.MAX_ENDS", 2000)
    lengths = [2 + n % 3 for n in range(10_000)]
    lines = "".join(json.dumps({"text": "x" * n}) + "\n" for n in lengths)
    text = read(write(tmp_path / "a.jsonl", lines))
    n, ends = sum(lengths), set(itertools.accumulate(lengths))
    assert (text.documents, text.n_characters) == (10_000, n)
    assert text.split in ends, "no document is cut"
    assert 0 <= text.split - int(0.9 * n) <= n // 1000


def test_split_never_moves_to_the_end_of_the_text(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": "x" * n}) + "\n" for n in [994, 6])
    assert read(write(tmp_path / "a.jsonl", lines), train_fraction=0.995).split == 995


@given(
    st.lists(st.text(st.sampled_from("ab \n\u65e5"), max_size=60), max_size=6),
    st.integers(1, 9),
    st.integers(1, 40),
)
@settings(max_examples=200)
def test_cuts_of_a_document_do_not_depend_on_its_blocks(blocks: list[str], size: int, every: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bigramlm.data.text.PIECE", size)
        whole = "".join(blocks)
        pieces = list(split_into_pieces(blocks))
        again = list(split_into_pieces(whole[at : at + every] for at in range(0, len(whole), every)))
    assert "".join(text for text, _ in pieces) == whole
    assert pieces == again
    assert [ends for _, ends in pieces] == [False] * (len(pieces) - 1) + [True] * bool(pieces)
    assert all(0 < len(text) <= 2 * size for text, _ in pieces)
    for (before, _), (after, _) in itertools.pairwise(pieces):
        assert len(before) == 2 * size or (re.search(r"\w\Z", before) and re.match(r" \w", after))


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_plain_files_and_jsonl_lines_are_documents(tmp_path: Path, suffix: str) -> None:
    a = write(tmp_path / f"a.txt{suffix}", "One,\r\nof two lines.\n")
    b = write(tmp_path / f"b.jsonl{suffix}", '{"text": "Two"}\n\n{"id": 3, "text": "Thr\\u00e9e\\n"}\n{"text": ""}')
    empty = write(tmp_path / f"c.txt{suffix}", "")
    text = read(a, b, empty)
    assert documents(text) == ["One,\r\nof two lines.\n", "Two", "Thrée\n"]
    assert (text.documents, text.n_characters) == (3, sum(map(len, documents(text))))
    assert text.characters == "".join(sorted(set("".join(documents(text)))))
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (a, b, empty)]
    assert [file.sha256 for file in text.files] == hashes
    assert text.sha256 == hashlib.sha256("".join(hashes).encode()).hexdigest()
    assert read(a).sha256 == hashes[0]


def test_text_field_of_jsonl_can_be_set(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": 1, "content": "To be"}')
    assert documents(read(path, field="content")) == ["To be"]


def test_archives_of_several_parts_are_read_whole(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one ") + gzip.compress(b"two"))
    (tmp_path / "a.txt.zst").write_bytes(zstd.compress(b"one ") + zstd.compress(b"two"))
    assert documents(read(tmp_path / "a.txt.gz", tmp_path / "a.txt.zst")) == ["one two", "one two"]


def test_long_text_is_not_kept_in_memory_and_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigramlm.data.text.IN_MEMORY_UP_TO", 1000)
    content = "".join(f"line {n}\n" for n in range(1000))
    path = write(tmp_path / "a.txt", content)
    first = read(path)
    assert first.kept is None
    assert documents(first) == [content]

    def fail(*given: object) -> None:
        raise AssertionError("the text was read again")

    with monkeypatch.context() as patch:
        patch.setattr("bigramlm.data.text.Reader.documents", fail)
        assert read(path) == first
        os.utime(path, (1, 1))  # a different time with the same content: the file is only hashed
        touched = read(path)
        assert touched.sha256 == first.sha256
        assert touched.files[0].mtime_ns == 1_000_000_000
    write(path, content.replace("line 7\n", "line 8\n"))
    os.utime(path, (2, 2))
    assert read(path).sha256 != first.sha256


def test_long_text_in_a_small_archive_is_not_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigramlm.data.text.IN_MEMORY_UP_TO", 10_000)
    path = write(tmp_path / "a.txt.gz", "x" * 100_000)
    assert path.stat().st_size < 1000
    assert read(path).kept is None
    assert documents(read(path)) == ["x" * 100_000]


def test_text_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigramlm.data.text.IN_MEMORY_UP_TO", 100)
    path = write(tmp_path / "a.txt", "x" * 1000)
    text = read(path)
    for content in (b"y" * 1000, b"\xff" * 1000):
        write(path, content)
        with pytest.raises(TextChanged, match=r"a\.txt"):
            list(text.pieces())
    path.unlink()
    with pytest.raises(TextChanged, match=r"a\.txt"):
        list(text.pieces())


def test_split_needs_one_token_more_than_a_block() -> None:
    check_length(9, split="val", block_size=8, text="t")
    with refuses("val", "8 of the 9", field="data.block_size", value=8):
        check_length(8, split="val", block_size=8, text="t")


def test_text_is_read_unchanged(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "line\r\nüber\ufeff\n")
    text = read(path)
    assert documents(text) == ["line\r\nüber\ufeff\n"]
    assert text.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_characters_across_read_blocks_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigramlm.data.reader.READ_SIZE", 3)
    content = "日本\n\U0001f40dé"
    assert documents(read(write(tmp_path / "a.txt", content))) == [content]
    with refuses("b.txt", "0xff", "offset 14", "line 2"):
        read(write(tmp_path / "b.txt", content.encode() + b" \xff"))


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("a.txt", b"", ("empty",)),
        ("a.jsonl", b"\n\n", ("empty",)),
        ("a.txt", b"good\nline \xff here", ("0xff", "offset 10", "line 2")),
        ("a.txt", b"cut short \xe6\x97", ("0xe6", "offset 10", "line 1")),
        ("a.txt.gz", b"good\nline \xff here", ("0xff", "offset 10", "line 2")),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b"', ("line 2", "JSON", "column 13")),
        ("a.jsonl.zst", b'{"text": "a"}\n\n{"text" "b"}', ("line 3", "JSON", "column 9")),
        ("a.jsonl", b'{"text": "\xff"}', ("line 1", "UTF-8", "0xff")),
        ("a.jsonl", b'["text"]', ("line 1", "object")),
        ("a.jsonl", b'{"text": ' + b"[" * 100_000, ("line 1", "JSON")),
        ("a.jsonl", b'{"id": 1, "content": "a"}', ("line 1", "'text'", "are: content;", "data.text_field=")),
        ("a.jsonl", b'{"text": 7}', ("line 1", "'text'", "not")),
        ("a.jsonl", b'{"text": "\\ud83d"}', ("line 1", "surrogate")),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, name: str, content: bytes, named: tuple[str, ...]) -> None:
    with refuses(tmp_path / name, *named):
        read(write(tmp_path / name, content))


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst", "a.jsonl.gz", "a.jsonl.zst"])
def test_truncated_archive_is_refused(tmp_path: Path, name: str) -> None:
    lines = [json.dumps({"text": f"{n} {n * n} {n**3}"}) + "\n" for n in range(2000)]
    path = write(tmp_path / name, "".join(lines))
    raw = path.read_bytes()
    for length in (len(raw) - 1, len(raw) // 2, 5):
        path.write_bytes(raw[:length])
        with refuses(path, "truncated"):
            read(path)
    path.write_bytes(b"no archive at all, but \xc3\x28")
    with refuses(path, "not a valid compressed file"):
        read(path)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with refuses(tmp_path / "none.txt", "data.path=FILE"):
        read(tmp_path / "none.txt")
    with refuses(tmp_path, "folder", f"data.path='{tmp_path}/*.txt'"):
        read(tmp_path)
    with refuses("data.path=:", "empty"):
        TextConfig(path="").prepare()


def test_glob_returns_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.txt", "a.txt", "c.md", "deep/d.txt", "[1].txt"):
        write(tmp_path / name, name)

    def found(path: str) -> list[str]:
        return [str(file.relative_to(tmp_path)) for file in TextConfig(path=str(tmp_path / path)).files()]

    assert found("*.txt") == ["[1].txt", "a.txt", "b.txt"]
    assert found("**/*.txt") == ["[1].txt", "a.txt", "b.txt", "deep/d.txt"]
    assert found("[1].txt") == ["[1].txt"], "an existing file takes precedence over the glob"
    with refuses(field="data.path", value=tmp_path / "*.tex"):
        found("*.tex")
    with refuses(tmp_path / "none.txt", "data.path=FILE"):
        TextConfig(path=str(tmp_path / "none.txt")).read()


def test_relative_path_is_saved_as_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.txt", "a text")
    prepared = TextConfig(path="a.txt").prepare()
    assert prepared.file() == tmp_path / "a.txt"
    assert isinstance(prepared, TextConfig)
    assert prepared.path == str(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        ("-", "write data.path=/dev/stdin"),
        ("file:///tmp/x.txt", "write data.path=/tmp/x.txt"),
        ("https://example.org/a.txt", "download the text first"),
        ("a.txt,b.txt", "give a pattern"),
        ("[a.txt,b.txt]", "give a pattern"),
        ("{a,b}.txt", "give a pattern"),
    ],
)
def test_what_is_no_path_is_recognised(path: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with refuses(advice, field="data.path", value=path):
        TextConfig(path=path).files()
    if "/" not in path:
        (tmp_path / path).touch()
        assert TextConfig(path=path).files() == [tmp_path / path], "a file of this name"


def test_a_folder_of_token_files_is_recognised(tmp_path: Path) -> None:
    for name in ("manifest.json", "train.bin"):
        (tmp_path / name).touch()
    with refuses(tmp_path, f"data=tokens data.path={tmp_path}"):
        TextConfig(path=str(tmp_path)).prepare()
