"""Tests of the recognition of file contents: encodings, archives and formats."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import logging
import lzma
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from bigramlm.data.compression import zstd
from bigramlm.data.config import PairsConfig, TextConfig
from bigramlm.data.reader import Reader, iterate_array
from tests.helpers import refuses

PROSE = "Übung macht den Meister.\nSo sagt man, “immer” und \u2013 überall.\n" * 40
OBJECTS = [{"text": f"Nummer {i}: ü\n", "id": i} for i in range(30)]
LINES = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in OBJECTS)


def read(path: Path, content: bytes | str, *, format: str = "auto", field: str = "text") -> list[str]:
    """Write a file, and return its documents."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return ["".join(blocks) for blocks in Reader(path, field, format).documents()]


def resolved(path: Path, **fields: Any) -> str:
    prepared = TextConfig(path=str(path), **fields).prepare()
    assert isinstance(prepared, TextConfig)
    return prepared.format


MARKS = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


@pytest.mark.parametrize("encoding", MARKS)
@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_byte_order_mark_decides_the_encoding(
    encoding: str, compress: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    def encoded(text: str) -> bytes:
        return compress(MARKS[encoding] + text.encode(encoding))

    assert read(tmp_path / "a.txt", encoded(PROSE)) == [PROSE]
    assert read(tmp_path / "a.jsonl", encoded(LINES)) == [value["text"] for value in OBJECTS]
    assert read(tmp_path / "a.json", encoded(json.dumps(OBJECTS))) == [value["text"] for value in OBJECTS]


@pytest.mark.parametrize("encoding", list(MARKS)[1:])
def test_an_encoding_without_a_mark_is_refused_by_name(encoding: str, tmp_path: Path) -> None:
    for text in (PROSE, "Съешь же ещё этих мягких французских булок,\nда выпей чаю. " * 20):  # noqa: RUF001
        with refuses(
            "a.txt",
            f"{encoding.upper()} without a byte-order mark",
            f"iconv -f {encoding[:-3]}{encoding[-2:]} -t utf-8",
        ):
            read(tmp_path / "a.txt", text.encode(encoding))


def test_a_damaged_converted_text_is_refused(tmp_path: Path) -> None:
    with refuses("a.txt", "UTF-16-LE", "damaged"):
        read(tmp_path / "a.txt", codecs.BOM_UTF16_LE + "ab".encode("utf-16-le") + b"\x00\xd8a\x00")
    with refuses("a.txt", "UTF-16-LE", "damaged"):
        read(tmp_path / "a.txt", codecs.BOM_UTF16_LE + b"a\x00b")


@pytest.mark.parametrize(
    ("raw", "advice"),
    [
        (PROSE.encode("windows-1252"), "iconv -f windows-1252"),
        (PROSE.replace("“", "").replace("”", "").replace("\u2013", "").encode("latin1"), "iconv -f latin1"),
        (("Широкая электрификация южных губерний. " * 9).encode("koi8-r"), "iconv -f ENCODING"),
        (("春眠不觉晓处处闻啼鸟" * 9).encode("gb18030"), "iconv -f ENCODING"),
        (("模型训练需要大量的文本数据,语言模型可以生成新的文本。" * 9).encode("gbk"), "iconv -f ENCODING"),
        (PROSE.encode() + b"\xff" + PROSE.encode(), "iconv -c -f utf-8"),
        (PROSE.encode()[:-3] + "ü".encode()[:1], "iconv -c -f utf-8"),
    ],
)
def test_the_advice_names_the_encoding(raw: bytes, advice: str, tmp_path: Path) -> None:
    with refuses("a.txt", "not UTF-8", "0x", "offset", advice):
        read(tmp_path / "a.txt", raw)


@pytest.mark.parametrize("at", [0, 10, 1 << 20, (1 << 20) + 5])
def test_a_nul_byte_is_refused_wherever_it_is(at: int, tmp_path: Path) -> None:
    with refuses("a.txt", "NUL", f"offset {at:,}"):
        read(tmp_path / "a.txt", b"x" * at + b"\0" + b"x" * 20)


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


def office() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("[Content_Types].xml", "<Types/>")
    return buffer.getvalue()


def numpy_array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.arange(5))
    return buffer.getvalue()


BINARIES: dict[str, tuple[bytes, str]] = {
    "tar": (archive("USTAR"), "a tar archive; unpack it"),
    "gnu tar": (archive("GNU"), "a tar archive; unpack it"),
    "pax tar": (archive("PAX"), "a tar archive; unpack it"),
    "tar.gz": (gzip.compress(archive("USTAR")), "a tar archive; unpack it"),
    "tar.xz": (lzma.compress(archive("USTAR")), "a tar archive; unpack it"),
    "tar.bz2": (bz2.compress(archive("USTAR")), "a tar archive; unpack it"),
    "zip": (archive("zip"), "a ZIP archive; unpack it"),
    "gz of gz": (gzip.compress(gzip.compress(b"text")), "compressed twice"),
    "docx": (office(), "Office"),
    "7z": (b"7z\xbc\xaf\x27\x1c\0\4", "7-Zip"),
    "rar": (b"Rar!\x1a\x07\x01\0", "RAR"),
    "parquet": (b"PAR1\x15\x04\x15\0\xff", "a Parquet file"),
    "arrow": (b"ARROW1\0\0\xff", "an Arrow file"),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "a PDF document; extract its text"),
    "rtf": (b"{\\rtf1\\ansi text}", "RTF"),
    "safetensors": (save({"a": np.zeros(3)}), "safetensors"),
    "numpy": (numpy_array(), "a NumPy array"),
    **{f"pickle {p}": (pickle.dumps({"a": [1, "b"]}, protocol=p), "a pickle") for p in (2, 3, 4, 5)},
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


@pytest.mark.parametrize("compress", [gzip.compress, zstd.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("name", ["a.txt", "a.TXT.GZ", "a", "a.zst"])
def test_compressed_files_are_read_under_any_name(
    name: str, compress: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    assert read(tmp_path / name, compress(PROSE.encode())) == [PROSE]
    assert read(tmp_path / name, compress(LINES.encode()))[:2] == [value["text"] for value in OBJECTS[:2]]
    assert read(tmp_path / name, compress(b"")) in ([""], [])
    for cut in (12, 40):
        with refuses(name, "truncated"):
            read(tmp_path / name, compress(PROSE.encode())[:cut])


def test_a_text_under_the_name_of_an_archive_is_read(tmp_path: Path) -> None:
    assert read(tmp_path / "a.txt.gz", PROSE) == [PROSE]
    for beginning in ("ORCHARDS bloom: ü", "PAR1 and GIF8 are names", "BZh4 too", "Rar! he cried"):
        assert read(tmp_path / "a.txt", beginning) == [beginning]


TEXTS = {
    "code.py": 'import json\n\nrow = {"text": "x"}\nprint(json.dumps([row]))\n' * 9,
    "set.json": '{\n  "name": "x",\n  "text": "y"\n}\n',
    "poem.txt": "Roses are red, violets are blue,\nsugar is sweet, and so are you,\nso, so, so.\n\n" * 5,
    "app.log": "2026-01-01 12:00:00,123 INFO started, in 3 s\n2026-01-01 12:00:01,456 ERROR x\n" * 9,
    "braces.txt": '{"text": "the first line is JSON"}\nbut the second is not\n',
    "list.txt": '["text", "is", "not", "an", "object"]\n',
    "numbers.json": "[1, 2, 3]",
    "tabs.c": "\tif (a) {\n\t\treturn 1;\n\t}\n}\n" * 9,
}


@pytest.mark.parametrize("name", TEXTS)
def test_other_texts_are_plain_text(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / name
    assert read(path, TEXTS[name]) == [TEXTS[name]]
    assert resolved(path) == "text"
    assert ["JSON" in record.getMessage() for record in caplog.records] == [True] * name.endswith(".json")


NAMES = ("a.jsonl", "a.JSONL", "a.json", "a.txt", "a", "a.ndjson", "a.Json.gz")


@pytest.mark.parametrize("name", NAMES)
def test_json_is_recognised_under_any_name(name: str, tmp_path: Path) -> None:
    expected = [value["text"] for value in OBJECTS]
    contents = {
        "jsonl": [LINES, "\n\n" + LINES.replace("\n", "\r\n"), LINES.strip()],
        "json": [json.dumps(OBJECTS), json.dumps(OBJECTS, indent=1), "\n " + json.dumps(OBJECTS, ensure_ascii=False)],
    }
    for format, variants in contents.items():
        for content in variants:
            assert read(tmp_path / name, content) == expected
            assert resolved(tmp_path / name) == format
            assert read(tmp_path / name, content, format="text") == [content]
            assert read(tmp_path / name, content, format=format) == expected
    one = json.dumps({"other": 1, "text": "x" * 200_000})
    assert read(tmp_path / name, one + "\n" + one) == ["x" * 200_000] * 2
    assert read(tmp_path / name, f"[{one}, {one}]") == ["x" * 200_000] * 2


def test_json_without_the_field_is_refused_or_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    for content, where in ((LINES, "line 1"), (json.dumps(OBJECTS), "item 1")):
        for name in ("a.json", "a.jsonl", "a.JSON"):
            with refuses(f"{name}, {where}", "'body'", "text, id", "data.text_field=", "data.format=text"):
                read(tmp_path / name, content, field="body")
        assert read(tmp_path / "a.log", content, field="body") == [content]
    path = tmp_path / "a.log"
    path.write_text(LINES, "utf-8")
    assert resolved(path, text_field="body") == "text"
    assert "a.log contains JSON" in caplog.text
    assert "data.format=jsonl" in caplog.text


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ('[{"text": "a"}, {"text": }]', "item 2: not valid JSON"),
        ('[{"text": "a"}', "after item 1"),
        ('[{"text": "a"},', "item 2"),
        ('[{"text": "a"}] more', "after item 1"),
        ('[{"text": "a"} {"text": "b"}]', "not one JSON array"),
        ('[{"text": "a"}, 5]', "item 2: not a JSON object"),
        ('[{"text": "a"}, {"text": 5}]', "item 2: the field 'text' is not a string"),
        ('[{"text": "a"}, {"text": "\\ud83d"}]', "item 2: field 'text' contains an unpaired surrogate"),
        ('[{"text": "a"}, {"text": ' + "[" * 100_000, "item 2: not valid JSON"),
    ],
)
def test_a_damaged_array_is_refused(content: str, named: str, tmp_path: Path) -> None:
    with refuses("a.json", named):
        read(tmp_path / "a.json", content)
    with refuses("data.format=jsonl"):
        read(tmp_path / "a.json", LINES, format="json")


@given(
    st.lists(st.fixed_dictionaries({"text": st.text(max_size=30), "x": st.integers() | st.none()}), max_size=8),
    st.sampled_from([None, 0, 2]),
    st.integers(1, 50),
)
@settings(max_examples=150)
def test_an_array_is_read_in_blocks_of_any_size(values: list[dict[str, Any]], indent: int | None, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bigramlm.data.reader.READ_SIZE", size)
        path = Path("unused.json")
        content = json.dumps(values, indent=indent, ensure_ascii=False).encode("utf-8", "surrogatepass")
        assert list(iterate_array(io.BytesIO(content), path)) == values


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("name", ["a.csv", "a.txt", "a.TSV"])
def test_a_table_is_trained_on_as_text_with_one_warning(
    name: str, delimiter: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [delimiter.join(("id", "title", '"a, quoted; text"'))] * 30
    for at in range(3):
        (tmp_path / f"{at}{name}").write_text("\n".join(rows), "utf-8")
    assert resolved(tmp_path / "*") == "text"
    (record,) = caplog.records
    assert "0" + name in record.getMessage()
    assert "and 2 more" in record.getMessage()
    assert "table" in record.getMessage()


def test_formats_that_differ_are_recognised_file_by_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(PROSE, "utf-8")
    (tmp_path / "b.txt").write_text(LINES, "utf-8")
    assert resolved(tmp_path / "*.txt") == "auto"
    assert resolved(tmp_path / "*.txt", format="text") == "text"


def test_pairs_are_read_under_any_name(tmp_path: Path) -> None:
    pairs = [{"prompt": f"{i} + 1 =", "completion": f" {i + 1}"} for i in range(20)]
    for name, content in {
        "a.txt": "".join(json.dumps(pair) + "\n" for pair in pairs),
        "b.JSONL": codecs.BOM_UTF8.decode() + "".join(json.dumps(pair) + "\n" for pair in pairs),
        "c.json": json.dumps(pairs, indent=2),
    }.items():
        (tmp_path / name).write_text(content, "utf-8")
        prepared = PairsConfig(path=str(tmp_path / name)).prepare()
        assert isinstance(prepared, PairsConfig)
        assert [example.completion for example in prepared.read().kept] == [pair["completion"] for pair in pairs]
        assert prepared.format == ("json" if name == "c.json" else "jsonl")
    (tmp_path / "d.csv").write_text("a,b,c\n" * 9, "utf-8")
    prepared = PairsConfig(path=str(tmp_path / "d.csv")).prepare()
    with refuses("d.csv", "JSON Lines", "prompt", "data=text"):
        prepared.read()
    with refuses(field="data.format", value="text"):
        PairsConfig(path="x", format="text")
    with refuses(field="data.format", value="csv"):
        TextConfig(path="x", format="csv")


def test_the_format_suffix_reads_files_as_earlier_versions_did(tmp_path: Path) -> None:
    marked = "\ufeff" + LINES
    assert read(tmp_path / "a.json", marked, format="suffix") == [marked]
    assert read(tmp_path / "a.JSONL", LINES, format="suffix") == [LINES]
    assert read(tmp_path / "a.jsonl", LINES, format="suffix") == [value["text"] for value in OBJECTS]
    assert read(tmp_path / "a.txt", "a\0b", format="suffix") == ["a\0b"]
    assert read(tmp_path / "a.txt.gz", gzip.compress(b"a"), format="suffix") == ["a"]
