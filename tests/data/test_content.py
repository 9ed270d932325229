"""Tests of the encodings of texts, and of compressed texts."""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bigramlm.data.compression import zstd
from tests.data.helpers import LINES, OBJECTS, PROSE, read, resolved
from tests.helpers import refuses

GERMAN = "Schon die Männer hören früher von Straßen und Wegen, die über den Berg führen.\n" * 40
FRENCH = "Il était une fois une reine : « j\u2019aime le thé », disait-elle\xa0! Et le roi aimait le café.\n"

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
        (GERMAN.encode("cp850"), "iconv -f cp850"),
        (GERMAN.encode("cp437"), "iconv -f cp850"),
        (GERMAN.encode("mac-roman"), "iconv -f macintosh"),
        ((FRENCH * 9).encode("windows-1252"), "iconv -f windows-1252"),
        ((FRENCH * 9).encode("mac-roman"), "iconv -f macintosh"),
        (("Witamy na stronie, gdzie może się to znaleźć. " * 9).encode("cp1250"), "iconv -f ENCODING"),
        (b"beyond: \xed\xa0\xbd\xed\xb8\x80, " * 9, "is CESU-8"),
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


SEVEN_BITS = {
    "iso-2022-jp": "吾輩は猫である。名前はまだ無い。\n",
    "iso-2022-kr": "모든 사람은 평등하다.\n",
    "utf-7": "Übung macht größere Meister: 1 + 1.\n",
}


@pytest.mark.parametrize("encoding", SEVEN_BITS)
def test_an_encoding_in_seven_bits_is_refused_by_name(encoding: str, tmp_path: Path) -> None:
    with refuses("a.txt", f"is {encoding.upper()}", f"iconv -f {encoding} -t utf-8"):
        read(tmp_path / "a.txt", (SEVEN_BITS[encoding] * 5000).encode(encoding))


@pytest.mark.parametrize(
    "text", ["Dû\nOù\nVoilà un café\n", "Съешь ещё этих булок\n", "模型,训练,需要大量的文本数据\n我们去公园\n"]
)
def test_utf_7_without_its_last_hyphens_is_refused_by_name(text: str, tmp_path: Path) -> None:
    assert b"-" not in text.encode("utf-7"), "as Python's encoder writes it"
    with refuses("a.txt", "is UTF-7", "iconv"):
        read(tmp_path / "a.txt", (text * 300).encode("utf-7"))


def test_an_encoding_that_iconv_does_not_know_is_converted_by_python(tmp_path: Path) -> None:
    text = "模型,训练,需要\n" * 300
    (tmp_path / "FILE").write_bytes(text.encode("hz"))
    with refuses("FILE is HZ") as refused:
        read(tmp_path / "FILE", text.encode("hz"))
    subprocess.run(str(refused.value).partition("with ")[2], shell=True, cwd=tmp_path, check=True)
    assert (tmp_path / "NEW").read_text("utf-8") == text
    (tmp_path / "FILE").write_bytes(b"beyond: \xed\xa0\xbd\xed\xb8\x80")
    with refuses("is CESU-8") as refused:
        read(tmp_path / "FILE", (tmp_path / "FILE").read_bytes())
    subprocess.run(str(refused.value).partition("with ")[2], shell=True, cwd=tmp_path, check=True)
    assert (tmp_path / "NEW").read_text("utf-8") == "beyond: \U0001f600"


@pytest.mark.parametrize(
    "text",
    [
        "\x1b[1mbold\x1b[0m \x1b(B text $B\n" * 50,
        "call +18005551-23 or +49123456-7, a+b-c, C++-like, +foo -bar\n" * 50,
        "--- a\n+++ b\n+the new line\n-the old line\n+import os\n+Are we\n+If so:\n" * 50,
        "set -- ~{a,b}~ $~{x}\n" * 50,
    ],
)
def test_plain_ascii_is_no_other_encoding(text: str, tmp_path: Path) -> None:
    assert read(tmp_path / "a.txt", text) == [text]


def test_the_encoding_is_named_before_the_table(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("模型,训练,需要\n".encode("gbk") * 50)
    assert resolved(path) == "text"
    assert not caplog.records
    with refuses("a.txt", "not UTF-8", "iconv"):
        read(path, path.read_bytes())


def test_short_members_of_an_archive_do_not_hide_its_format(tmp_path: Path) -> None:
    members = [gzip.compress(part.encode()) for part in ('{"te', 'xt": "a"}\n', '{"text": "b"}\n')]
    assert read(tmp_path / "a.gz", b"".join(members)) == ["a", "b"]
