"""Reading a text, splitting it, and the batches and blocks that come of it."""

import gzip
import hashlib
import itertools
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bigramlm.data.batches import Batches, Stream, blocks, on_device
from bigramlm.data.config import TextConfig
from bigramlm.data.text import Text, TextChanged, check_length, in_pieces, read_text, zstd
from bigramlm.data.tokens import narrowest
from bigramlm.errors import UserError

TOKENS = torch.arange(5000, dtype=torch.int32)  # an id says where it stands


def batches(seed: int = 1, block_size: int = 8, batch_size: int = 4) -> Batches:
    return Batches(Stream(TOKENS, block_size=block_size), batch_size=batch_size, seed=seed)


def test_targets_are_the_inputs_one_token_on() -> None:
    x, y = batches()[0]
    assert x.shape == y.shape == (4, 8)
    assert x.dtype == y.dtype == torch.int64
    assert torch.equal(y, x + 1)
    assert torch.equal(x[:, 1:], x[:, :-1] + 1)


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    steps = [0, 1, 1023, 1024, 1025, 5000]
    forward = {step: batches()[step] for step in steps}
    one = batches()
    for step in reversed(steps):
        assert torch.equal(one[step][0], forward[step][0])
    in_order = batches()
    walked = [in_order[step][0] for step in range(1030)]
    assert torch.equal(walked[1025], forward[1025][0])
    assert not torch.equal(forward[0][0], forward[1][0])
    assert not torch.equal(forward[0][0], forward[1024][0])
    assert not torch.equal(forward[0][0], batches(seed=2)[0][0])


def test_batches_do_not_depend_on_how_many_are_gathered_together(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [batches()[step][0] for step in (0, 7, 1023, 1024, 2047)]
    for gathered in (1, 100, 1 << 20):
        monkeypatch.setattr("bigramlm.data.batches._GATHERED_TOKENS", gathered)
        found = [batches()[step][0] for step in (0, 7, 1023, 1024, 2047)]
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_every_place_is_drawn_up_to_the_last_token() -> None:
    tokens = torch.arange(12, dtype=torch.int32)
    drawn = Batches(Stream(tokens, block_size=8), batch_size=64, seed=0)
    starts = {int(start) for step in range(5) for start in drawn[step][0][:, 0]}
    assert starts == {0, 1, 2, 3}
    assert int(max(drawn[step][1].max() for step in range(5))) == 11


@pytest.mark.parametrize("n", [9, 16, 17, 18, 100])
def test_blocks_cover_each_target_exactly_once(n: int) -> None:
    covered = blocks(TOKENS[:n], block_size=8)
    targets = torch.cat([y.flatten() for _, y in covered])
    inputs = torch.cat([x.flatten() for x, _ in covered])
    assert torch.equal(targets, torch.arange(1, n))
    assert torch.equal(inputs, torch.arange(n - 1))


def test_limited_blocks_reach_from_the_first_token_to_the_last() -> None:
    ((x, y),) = blocks(TOKENS, block_size=8, limit=10)
    assert x.shape == (10, 8)
    assert torch.equal(y, x + 1)
    assert x[0, 0] == 0
    assert y[-1, -1] == len(TOKENS) - 1
    gaps = x[1:, 0] - x[:-1, 0]
    assert gaps.max() - gaps.min() <= 1, "spread evenly"
    assert torch.equal(x, blocks(TOKENS, block_size=8, limit=10)[0][0]), "always the same ones"


@pytest.mark.parametrize(
    ("vocab_size", "kind"),
    [(256, np.uint8), (257, np.int16), (32768, np.int16), (32769, np.uint16), (65536, np.uint16), (65537, np.int32)],
)
def test_ids_are_kept_in_the_narrowest_type(vocab_size: int, kind: type[np.generic]) -> None:
    assert narrowest(vocab_size) is kind
    ids = np.array([0, vocab_size - 1, 1], dtype=narrowest(vocab_size))
    kept = on_device(ids, torch.device("cpu"))
    assert kept.tolist() == [0, vocab_size - 1, 1]
    x, y = Batches(Stream(kept, block_size=1), batch_size=50, seed=0)[0]
    assert {(int(a), int(b)) for a, b in zip(x, y, strict=True)} == {(0, vocab_size - 1), (vocab_size - 1, 1)}
    ((inputs, targets),) = blocks(kept, block_size=2)
    assert inputs.long().tolist() == [[0, vocab_size - 1]]
    assert targets.long().tolist() == [[vocab_size - 1, 1]]


def test_blocks_are_views_that_copy_nothing() -> None:
    for x, y in blocks(TOKENS, block_size=8):
        assert x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr() == TOKENS.untyped_storage().data_ptr()


# Reading


def read(*files: Path, name: str = "text", field: str = "text", train_fraction: float = 0.9) -> Text:
    kept_at = files[0].parent / "kept" / "text.json"
    return read_text(list(files), name=name, field=field, train_fraction=train_fraction, kept_at=kept_at)


def written(path: Path, content: bytes | str) -> Path:
    """A file with this content, compressed as its name says."""
    raw = content if isinstance(content, bytes) else content.encode()
    if path.suffix == ".gz":
        raw = gzip.compress(raw)
    if path.suffix == ".zst":
        raw = zstd.compress(raw)
    path.write_bytes(raw)
    return path


def documents(text: Text) -> list[str]:
    found = [""]
    for piece in text.pieces():
        found[-1] += piece.text
        if piece.ends:
            found.append("")
    assert found.pop() == ""
    return found


def of_split(text: Text, split: str) -> str:
    return "".join(piece.text for piece in text.pieces() if piece.split == split)


def test_the_split_of_one_document_is_the_tutorials(tmp_path: Path) -> None:
    text = read(written(tmp_path / "a.txt", "x" * 1_115_394))
    assert (len(of_split(text, "train")), len(of_split(text, "val"))) == (1_003_854, 111_540)
    assert text.split == 1_003_854


@pytest.mark.parametrize(
    ("lengths", "split"),
    [
        ([850, 55, 95], 905),  # the second ends 5 behind 900
        ([850, 60, 90], 910),
        ([850, 61, 89], 900),  # a hundredth is 10
        ([900, 100], 900),
        ([899, 101], 900),
        ([895, 105], 900),  # not before it
        ([950, 50], 900),
        ([1000], 900),
    ],
)
def test_a_document_that_ends_soon_behind_the_split_is_not_cut(tmp_path: Path, lengths: list[int], split: int) -> None:
    lines = "".join(json.dumps({"text": "x" * n}) + "\n" for n in lengths)
    text = read(written(tmp_path / "a.jsonl", lines))
    assert text.split == split
    assert len(of_split(text, "train")) == split
    assert len(of_split(text, "val")) == 1000 - split


def test_of_very_many_documents_the_split_is_found_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigramlm.data.text._ENDS_AT_MOST", 2000)
    lengths = [2 + n % 3 for n in range(10_000)]
    lines = "".join(json.dumps({"text": "x" * n}) + "\n" for n in lengths)
    text = read(written(tmp_path / "a.jsonl", lines))
    n, ends = sum(lengths), set(itertools.accumulate(lengths))
    assert (text.documents, text.n_characters) == (10_000, n)
    assert text.split in ends, "none of them is cut"
    assert 0 <= text.split - int(0.9 * n) <= n // 1000


def test_no_split_falls_at_the_end(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": "x" * n}) + "\n" for n in [994, 6])
    assert read(written(tmp_path / "a.jsonl", lines), train_fraction=0.995).split == 995


@given(
    st.lists(st.text(st.sampled_from("ab \n\u65e5"), max_size=60), max_size=6),
    st.integers(1, 9),
    st.integers(1, 40),
)
@settings(database=None, deadline=None, max_examples=200)
def test_pieces_are_the_document_cut_the_same_way_however_it_came(blocks: list[str], size: int, every: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bigramlm.data.text.PIECE", size)
        whole = "".join(blocks)
        found = list(in_pieces(blocks))
        again = list(in_pieces(whole[at : at + every] for at in range(0, len(whole), every)))
    assert "".join(text for text, _ in found) == whole
    assert found == again
    assert [ends for _, ends in found] == [False] * (len(found) - 1) + [True] * bool(found)
    assert all(0 < len(text) <= 2 * size for text, _ in found)
    for (before, _), (after, _) in itertools.pairwise(found):
        assert len(before) == 2 * size or (re.search(r"\w\Z", before) and re.match(r" \w", after))


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_files_are_documents_and_lines_of_jsonl_are(tmp_path: Path, suffix: str) -> None:
    a = written(tmp_path / f"a.txt{suffix}", "One,\r\nof two lines.\n")
    b = written(tmp_path / f"b.jsonl{suffix}", '{"text": "Two"}\n\n{"id": 3, "text": "Thr\\u00e9e\\n"}\n{"text": ""}')
    empty = written(tmp_path / f"c.txt{suffix}", "")
    text = read(a, b, empty)
    assert documents(text) == ["One,\r\nof two lines.\n", "Two", "Thrée\n"]
    assert (text.documents, text.n_characters) == (3, sum(map(len, documents(text))))
    assert text.characters == "".join(sorted(set("".join(documents(text)))))
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (a, b, empty)]
    assert [file.sha256 for file in text.files] == hashes
    assert text.sha256 == hashlib.sha256("".join(hashes).encode()).hexdigest()
    assert read(a).sha256 == hashes[0]


def test_another_field_of_jsonl(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", '{"text": 1, "content": "To be"}')
    assert documents(read(path, field="content")) == ["To be"]


def test_archives_in_several_parts_are_read_whole(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one ") + gzip.compress(b"two"))
    (tmp_path / "a.txt.zst").write_bytes(zstd.compress(b"one ") + zstd.compress(b"two"))
    assert documents(read(tmp_path / "a.txt.gz", tmp_path / "a.txt.zst")) == ["one two", "one two"]


def test_a_long_text_is_not_kept_in_memory_and_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigramlm.data.text.IN_MEMORY_UP_TO", 1000)
    content = "".join(f"line {n}\n" for n in range(1000))
    path = written(tmp_path / "a.txt", content)
    first = read(path)
    assert first.kept is None
    assert documents(first) == [content]

    def no_reading(*given: object) -> None:
        raise AssertionError("it is read")

    with monkeypatch.context() as patch:
        patch.setattr("bigramlm.data.text.Reader.documents", no_reading)
        assert read(path) == first
        os.utime(path, (1, 1))  # another time, the same content: only its hash is looked at
        touched = read(path)
        assert touched.sha256 == first.sha256
        assert touched.files[0].mtime_ns == 1_000_000_000
    written(path, content.replace("line 7\n", "line 8\n"))
    os.utime(path, (2, 2))
    assert read(path).sha256 != first.sha256


def test_a_small_archive_of_a_long_text_is_not_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigramlm.data.text.IN_MEMORY_UP_TO", 10_000)
    path = written(tmp_path / "a.txt.gz", "x" * 100_000)
    assert path.stat().st_size < 1000
    assert read(path).kept is None
    assert documents(read(path)) == ["x" * 100_000]


def test_a_text_that_changes_while_it_is_read_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigramlm.data.text.IN_MEMORY_UP_TO", 100)
    path = written(tmp_path / "a.txt", "x" * 1000)
    text = read(path)
    for content in (b"y" * 1000, b"\xff" * 1000):
        written(path, content)
        with pytest.raises(TextChanged, match=r"a.txt: was changed while it was read"):
            list(text.pieces())
    path.unlink()
    with pytest.raises(TextChanged, match=r"a.txt: was changed while it was read"):
        list(text.pieces())


def test_length_is_checked_to_the_token() -> None:
    check_length(9, split="val", block_size=8, text="t")
    with pytest.raises(UserError, match=r"data.block_size=8: the val split of t has only 8 of the 9 tokens"):
        check_length(8, split="val", block_size=8, text="t")


def test_text_is_read_to_the_byte(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", "\ufeffline\r\nüber\n")
    text = read(path)
    assert documents(text) == ["\ufeffline\r\nüber\n"]
    assert text.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_characters_that_blocks_cut_are_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigramlm.data.text._BLOCK", 3)
    content = "日本\n\U0001f40dé"
    assert documents(read(written(tmp_path / "a.txt", content))) == [content]
    with pytest.raises(UserError, match=r"byte 0xff at offset 14 \(line 2\)"):
        read(written(tmp_path / "b.txt", content.encode() + b" \xff"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "a.txt: is empty"),
        ("a.jsonl", b"\n\n", "a.jsonl: is empty"),
        ("a.txt", b"good\nline \xff here", r"byte 0xff at offset 10 \(line 2\)"),
        ("a.txt", b"cut short \xe6\x97", r"byte 0xe6 at offset 10 \(line 1\)"),
        ("a.txt.gz", b"good\nline \xff here", r"byte 0xff at offset 10 \(line 2\)"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b"', r"a.jsonl, line 2: is not JSON: .* \(column 13\); mend the line"),
        ("a.jsonl.zst", b'{"text": "a"}\n\n{"text" "b"}', r"a.jsonl.zst, line 3: is not JSON: .* \(column 9\)"),
        ("a.jsonl", b'{"text": "\xff"}', r"a.jsonl, line 1: not UTF-8: byte 0xff"),
        ("a.jsonl", b'["text"]', r"a.jsonl, line 1: is not an object like"),
        ("a.jsonl", b'{"text": ' + b"[" * 100_000, r"a.jsonl, line 1: is not JSON"),
        (
            "a.jsonl",
            b'{"id": 1, "content": "a"}',
            r"line 1: has no field 'text'; it has id, content \(data",
        ),
        ("a.jsonl", b'{"text": 7}', r"a.jsonl, line 1: its field 'text' is not a text"),
        ("a.jsonl", b'{"text": "\\ud83d"}', r"a.jsonl, line 1: holds half of a surrogate pair"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read(written(tmp_path / name, content))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst", "a.jsonl.gz", "a.jsonl.zst"])
def test_an_archive_cut_short_is_refused(tmp_path: Path, name: str) -> None:
    lines = [json.dumps({"text": f"{n} {n * n} {n**3}"}) + "\n" for n in range(20_000)]
    path = written(tmp_path / name, "".join(lines))
    raw = path.read_bytes()
    for kept in (len(raw) - 1, len(raw) // 2, 5):
        path.write_bytes(raw[:kept])
        with pytest.raises(UserError, match=f"{name}: is cut short: the archive ends in the middle; get it again"):
            read(path)
    path.write_bytes(b"no archive at all")
    with pytest.raises(UserError, match=f"{name}: is no whole archive"):
        read(path)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file"):
        read(tmp_path / "none.txt")
    with pytest.raises(UserError, match=r"is a folder; give a text file in it, or several"):
        read(tmp_path)


def test_globs_take_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.txt", "a.txt", "c.md", "deep/d.txt", "[1].txt"):
        written(tmp_path / name, name)

    def found(path: str) -> list[str]:
        return [str(file.relative_to(tmp_path)) for file in TextConfig(path=str(tmp_path / path)).files()]

    assert found("*.txt") == ["[1].txt", "a.txt", "b.txt"]
    assert found("**/*.txt") == ["[1].txt", "a.txt", "b.txt", "deep/d.txt"]
    assert found("[1].txt") == ["[1].txt"], "a file of that name is meant, where there is one"
    with pytest.raises(UserError, match=r"data.path=.*\*.tex: matches no file"):
        found("*.tex")
    with pytest.raises(UserError, match="there is no such file"):
        TextConfig(path=str(tmp_path / "none.txt")).read()


def test_a_relative_path_is_saved_as_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prepared = TextConfig(path="a.txt").prepare()
    assert prepared.file() == tmp_path / "a.txt"
    assert isinstance(prepared, TextConfig)
    assert prepared.path == str(tmp_path / "a.txt")
