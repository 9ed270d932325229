"""Tests of reading texts with a byte-order mark, and of files that cannot be used."""

import codecs
from pathlib import Path

import pytest

from bigramlm.utils.files import LFS_POINTER, MARKS, is_lfs_pointer, read_text, refuse_dangling, require_new
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
