"""Tests of reading texts with a byte-order mark."""

import codecs
from pathlib import Path

import pytest

from bigramlm.utils.files import MARKS, read_text

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
