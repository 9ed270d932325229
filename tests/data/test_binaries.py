"""Tests of files that are no texts, which are refused by name."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from bigramlm.data.config import PairsConfig
from tests.data.helpers import PROSE, read
from tests.helpers import refuses


def archive(kind: str, content: bytes = PROSE.encode()) -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr("a.txt", content)
    else:
        with tarfile.open(fileobj=buffer, mode="w", format=getattr(tarfile, f"{kind}_FORMAT")) as tar:
            info = tarfile.TarInfo("a.txt")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zipped(*names: str, content: str = "content") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(name, content)
    return buffer.getvalue()


def arrays() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, np.arange(5))
    return buffer.getvalue()


def numpy_array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.arange(5))
    return buffer.getvalue()


PICKLED: list[Any] = ["a text\nof lines", [1, 2], ("a", 1), {1}, np.arange(3), Path("a")]

BINARIES: dict[str, tuple[bytes, str]] = {
    "tar": (archive("USTAR"), "a tar archive; unpack it"),
    "gnu tar": (archive("GNU"), "a tar archive; unpack it"),
    "pax tar": (archive("PAX"), "a tar archive; unpack it"),
    "tar.gz": (gzip.compress(archive("USTAR")), "a tar archive; unpack it"),
    "tar.xz": (lzma.compress(archive("USTAR")), "a tar archive; unpack it"),
    "tar.bz2": (bz2.compress(archive("USTAR")), "a tar archive; unpack it"),
    "zip": (archive("zip"), "a ZIP archive; unpack it"),
    "gz of gz": (gzip.compress(gzip.compress(b"text")), "compressed twice"),
    "npz": (arrays(), "a file of NumPy arrays"),
    "office": (zipped("[Content_Types].xml"), "an Office document"),
    "docx": (zipped("[Content_Types].xml", "_rels/.rels", "word/document.xml"), "a Word document"),
    "xlsx": (zipped("docProps/app.xml", "xl/workbook.xml"), "an Excel workbook"),
    "pptx": (zipped("[Content_Types].xml", "ppt/presentation.xml"), "a PowerPoint presentation"),
    "odt": (zipped("mimetype", content="application/vnd.oasis.opendocument.text"), "an OpenDocument file"),
    "epub": (zipped("mimetype", content="application/epub+zip"), "an e-book"),
    "zip with folders": (zipped("a/b.txt", "words/c.txt"), "a ZIP archive; unpack it"),
    "ar": (b"!<arch>\ndebian-binary   1410122664  0     0     100644  4         `\n2.0\n", "an ar archive; unpack it"),
    "git lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "a Git LFS pointer, which stands for a file that is not downloaded; fetch it with git lfs pull",
    ),
    "7z": (b"7z\xbc\xaf\x27\x1c\0\4", "7-Zip"),
    "rar": (b"Rar!\x1a\x07\x01\0", "RAR"),
    "parquet": (b"PAR1\x15\x04\x15\0\xff", "a Parquet file"),
    "arrow": (b"ARROW1\0\0\xff", "an Arrow file"),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "a PDF document; extract its text"),
    "rtf": (b"{\\rtf1\\ansi text}", "RTF"),
    "safetensors": (save({"a": np.zeros(3)}), "safetensors"),
    "numpy": (numpy_array(), "a NumPy array"),
    **{f"pickle {p}": (pickle.dumps({"a": [1, "b"]}, protocol=p), "a pickle") for p in range(6)},
    **{f"pickle 0 of {type(value)}": (pickle.dumps(value, 0), "a pickle") for value in PICKLED},
    "gguf": (b"GGUF\3\0\0\0", "GGUF"),
    "sqlite": (b"SQLite format 3\0\x10", "SQLite"),
    "png": (b"\x89PNG\r\n\x1a\n\0", "PNG"),
}


@pytest.mark.parametrize(("content", "named"), BINARIES.values(), ids=BINARIES)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.TXT.gz"])
def test_archives_and_binary_files_are_named(name: str, content: bytes, named: str, tmp_path: Path) -> None:
    with refuses(name, f"is {named}" if named.startswith("a ") else named) as raised:
        read(tmp_path / name, content)
    assert "iconv" not in str(raised.value)
    with refuses(name, named):
        PairsConfig(path=str(tmp_path / name)).prepare()


BEGINNINGS = (
    "ORCHARDS bloom: ü",
    "PAR1 and GIF8 are names",
    "BZh4 too",
    "Rar! he cried",
    "(dp) stands for data parallel\n.",
    "cats\ndogs\n(and more)\n",
    "Very good\nplot\n.",
    "PK is a name",
)


def test_a_text_under_the_name_of_an_archive_is_read(tmp_path: Path) -> None:
    assert read(tmp_path / "a.txt.gz", PROSE) == [PROSE]
    for beginning in BEGINNINGS:
        assert read(tmp_path / "a.txt", beginning) == [beginning]


def test_a_pdf_may_begin_with_other_bytes_and_a_text_may_mention_one(tmp_path: Path) -> None:
    objects = b"%PDF-1.4\n%\xe2\xe3\xcf\n1 0 obj\n<< /Type /Catalog >>\nendobj\n"
    for start in (b"", b"\r\n\n", b"\xff" * 1000):
        with refuses("a.txt is a PDF document", "pdftotext"):
            read(tmp_path / "a.txt", start + objects)
    text = "The first bytes are %PDF-1.4, then follow objects.\n" * 30
    assert read(tmp_path / "a.txt", text) == [text]
