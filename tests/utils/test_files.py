"""Tests of whole-file writes, of byte-order marks, and of unusable files."""

import codecs
import os
from pathlib import Path

import pytest

from bigramlm.utils import files
from bigramlm.utils.files import (
    LFS_POINTER,
    MARKS,
    atomic_folder,
    is_lfs_pointer,
    read_text,
    refuse_dangling,
    require_new,
    temporary_path,
)
from tests.helpers import refuses

TEXT = "Ü, „quoted“\r\n\ufeff日\n"


@pytest.mark.parametrize("mark", MARKS)
def test_the_mark_gives_the_encoding_and_is_dropped(mark: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(mark + TEXT.encode(MARKS[mark]))
    assert read_text(path) == TEXT
    path.write_text(TEXT, "utf-8", newline="")
    assert read_text(path) == TEXT


def test_a_text_that_is_damaged_is_a_value_error(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(codecs.BOM_UTF16_LE + b"\x00\xd8")
    with pytest.raises(ValueError, match="utf-16-le"):
        read_text(path)


def test_a_git_lfs_pointer_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for content, expected in ((LFS_POINTER + b"\noid sha256:4d7a\n", True), (b"version 1", False), (b"", False)):
        path.write_bytes(content)
        assert is_lfs_pointer(path) is expected


def test_a_link_that_leads_nowhere_is_refused_by_its_name(tmp_path: Path) -> None:
    link, loop = tmp_path / "link", tmp_path / "loop"
    link.symlink_to("gone/a.txt")
    loop.symlink_to("loop")
    for path in (link, link / "b" / "*.txt"):
        with refuses(f"{link} is a link that leads nowhere, to gone/a.txt"):
            refuse_dangling(path)
    with refuses(loop, "leads nowhere"):
        refuse_dangling(loop)
    with refuses(link, "leads nowhere"):
        require_new(link)
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "a.txt").touch()
    for path in (link, tmp_path / "none.txt"):
        refuse_dangling(path)


def test_what_a_killed_process_left_is_deleted_at_the_next_write(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    left = temporary_path(folder)
    kept = [temporary_path(tmp_path / "other"), tmp_path / ".out.mine", tmp_path / f".out.{'z' * 32}"]
    for path in (left, *kept):
        path.mkdir()
        (path / "model.safetensors").touch()
    link = temporary_path(folder)
    link.symlink_to(kept[0], target_is_directory=True)
    with atomic_folder(folder) as aside:
        (aside / "new").touch()
    assert sorted(tmp_path.iterdir()) == sorted([folder, link, *kept])
    assert all((path / "model.safetensors").exists() for path in kept)


def test_an_error_names_the_file_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "notes.txt"
    with pytest.raises(OSError, match="No such file") as raised:
        files.write(tmp_path / "none" / "notes.txt", [b"a"])
    assert raised.value.filename == str(tmp_path / "none" / "notes.txt")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as raised:
        files.write(path, [b"a"])
    assert raised.value.filename == str(path)
    assert not list(tmp_path.iterdir())
    with refuses(tmp_path / "out", "No space", "free some space"), atomic_folder(tmp_path / "out"):
        pass


def test_new_folders_are_synced_with_the_folders_above_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(files, "sync", synced.append)
    for _ in range(2):  # the second call does nothing
        files.make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    assert synced == [tmp_path / "a", tmp_path]


def test_a_damaged_file_is_set_aside_beside_it(tmp_path: Path) -> None:
    for content in ("one", "two"):
        (tmp_path / "a.json").write_text(content)
        assert files.set_aside(tmp_path / "a.json").read_text() == content
    assert len(list(tmp_path.glob("damaged_a.json.*"))) == 2
