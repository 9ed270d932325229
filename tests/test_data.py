"""Reading a text, splitting it, and the batches and blocks that come of it."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from bigramlm.data.batches import Batches, blocks, check_length, compact
from bigramlm.data.config import TextConfig
from bigramlm.data.text import read_text, split
from bigramlm.errors import UserError

TOKENS = torch.arange(5000, dtype=torch.int32)  # an id says where it stands


def batches(seed: int = 1, block_size: int = 8, batch_size: int = 4) -> Batches:
    return Batches(TOKENS, block_size=block_size, batch_size=batch_size, seed=seed)


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
    drawn = Batches(tokens, block_size=8, batch_size=64, seed=0)
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


@pytest.mark.parametrize(("vocab_size", "kind"), [(256, torch.uint8), (257, torch.int16), (32769, torch.int32)])
def test_ids_are_kept_in_the_narrowest_type(vocab_size: int, kind: torch.dtype) -> None:
    ids = np.array([0, vocab_size - 1, 1], dtype=np.int32)
    kept = compact(ids, vocab_size=vocab_size)
    assert kept.dtype == kind
    assert kept.tolist() == ids.tolist()
    x, y = Batches(kept, block_size=1, batch_size=50, seed=0)[0]
    assert {(int(a), int(b)) for a, b in zip(x, y, strict=True)} == {(0, vocab_size - 1), (vocab_size - 1, 1)}


def test_split_is_the_tutorials() -> None:
    text = "x" * 1_115_394
    train, val = split(text, 0.9)
    assert (len(train), len(val)) == (1_003_854, 111_540)


def test_length_is_checked_to_the_token() -> None:
    check_length(9, split="val", block_size=8, text="t")
    with pytest.raises(UserError, match=r"data.block_size=8: the val split of t has only 8 of the 9 tokens"):
        check_length(8, split="val", block_size=8, text="t")


def test_text_is_read_to_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffline\r\nüber\n".encode())
    text = read_text(path, "text")
    assert text.text == "\ufeffline\r\nüber\n"
    assert text.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"good\nline \xff here", r"byte 0xff at offset 10 \(line 2\)"),
        (b"cut short \xe6\x97", r"byte 0xe6 at offset 10 \(line 1\)"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_text(path, "text")


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file"):
        read_text(tmp_path / "none.txt", "text")
    with pytest.raises(UserError, match="is a folder"):
        read_text(tmp_path, "text")


def test_a_relative_path_is_saved_as_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prepared = TextConfig(path="a.txt").prepare()
    assert prepared.file() == tmp_path / "a.txt"
    assert isinstance(prepared, TextConfig)
    assert prepared.path == str(tmp_path / "a.txt")
