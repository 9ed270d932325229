"""Recognition of the contents of files: archives, encodings and formats."""

from __future__ import annotations

import codecs
import csv
import io
import json
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bigramlm.data.compression import READ_SIZE, decompressed, read_errors
from bigramlm.errors import UserError, require
from bigramlm.utils.files import MARKS, mark_of

log = logging.getLogger(__name__)

HEAD = 1 << 16
"""The number of bytes at the start of a text that its format is recognised from."""

_COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
_JSONL_SUFFIXES = (".jsonl", ".ndjson")
_JSON_SUFFIXES = (*_JSONL_SUFFIXES, ".json")

_UNPACK = "unpack it, and give its text files, e.g. data.path='FOLDER/**/*.txt'"
_AS_TEXT = "save its content as plain text first"
_EXPORT = "write its text column to a JSON Lines file first"
_WEIGHTS = "to start from trained weights, use init_from="

# The first bytes of files that are no texts, with their names and advice.
_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (b"\x1f\x9d", "a file compressed with compress", "decompress it with gunzip, and give the decompressed file"),
    (b"\x04\x22\x4d\x18", "a file compressed with LZ4", "decompress it with lz4 -d, and give the decompressed file"),
    (b"\x1f\x8b", "a file that is compressed twice", "decompress it, and give the decompressed file"),
    (b"\x28\xb5\x2f\xfd", "a file that is compressed twice", "decompress it, and give the decompressed file"),
    (b"\xfd7zXZ\x00", "a file that is compressed twice", "decompress it, and give the decompressed file"),
    (b"BZh91AY&SY", "a file that is compressed twice", "decompress it, and give the decompressed file"),
    (b"PAR1", "a Parquet file", _EXPORT),
    (b"ARROW1", "an Arrow file", _EXPORT),
    (b"\xff\xff\xff\xff\x10\x00\x00\x00", "an Arrow file", _EXPORT),
    (b"Obj\x01", "an Avro file", _EXPORT),
    (b"ORC", "an ORC file", _EXPORT),
    (b"SQLite format 3\x00", "an SQLite database", _EXPORT),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", _EXPORT),
    (b"\x93NUMPY", "a NumPy array", _EXPORT),
    (b"GGUF", "a GGUF file with the weights of a model", _WEIGHTS),
    (b"%PDF-", "a PDF document", "extract its text first, e.g. with pdftotext"),
    (b"{\\rtf", "an RTF document", _AS_TEXT),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document", _AS_TEXT),
    (b"\x89PNG\r\n\x1a\n", "a PNG picture", "give a text file"),
    (b"\xff\xd8\xff", "a JPEG picture", "give a text file"),
    (b"GIF8", "a GIF picture", "give a text file"),
    (b"\x7fELF", "a program", "give a text file"),
)


def open_content(raw: io.BufferedReader[Any], path: Path) -> io.BufferedReader[Any]:
    """Return a reader of a file's text as UTF-8 bytes, without a byte-order mark.

    The file may be compressed. UTF-16 and UTF-32 with a byte-order mark are converted. Raises UserError if the file is
    an archive, a binary file, or a text in a different encoding.
    """
    content = decompressed(raw)
    head = content.peek(1)
    mark = mark_of(head)
    if mark == codecs.BOM_UTF8:
        content.read(len(mark))
    elif mark:
        content = io.BufferedReader(_Converted(content, MARKS[mark], path), READ_SIZE)
    else:
        is_damaged = content is raw and path.suffix.lower() in _COMPRESSED and not _is_utf8(head)
        _refuse_binary(head, path)
        require(
            not is_damaged,
            f"{path}: not a valid compressed file; download it again, or give the decompressed file",
        )
    return content


class _Converted(io.RawIOBase):
    # A reader that converts a text to UTF-8. The byte-order mark is dropped.

    def __init__(self, content: io.BufferedReader[Any], encoding: str, path: Path) -> None:
        content.read(4 if "32" in encoding else 2)
        self._content, self._encoding, self._path = content, encoding, path
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._pending = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._pending:
            block = self._content.read(READ_SIZE)
            try:
                self._pending = self._decoder.decode(block, final=not block).encode()
            except UnicodeError as error:
                name = self._encoding.upper()
                raise UserError(
                    f"{self._path} begins as {name}, but is damaged: {error}; convert the file to UTF-8 first, e.g. "
                    f"with iconv -c -f {iconv_name(self._encoding)} -t utf-8"
                ) from None
            if not block:
                break
        n = min(len(buffer), len(self._pending))
        buffer[:n], self._pending = self._pending[:n], self._pending[n:]
        return n


def format_of(head: bytes, path: Path, field: str) -> str:
    """Return the format of a file: text, jsonl or json.

    head: the start of the text, as UTF-8. field: the name of the field that would contain the text. JSON Lines and
    arrays of objects are recognised under any name if their first object has the field. Without the field, they are
    recognised only if the name is one of JSON (*.jsonl, *.ndjson, *.json), so that their reader refuses them.
    """
    head = head[:HEAD]
    start, suffix = head.lstrip(), suffix_of(path)
    if re.match(rb'\[\s*\{\s*"', start):
        first = _first_object(start[start.index(b"{") :])
        has_field = _mentions(head, field) if first is None else field in first
        return "json" if has_field or suffix in _JSON_SUFFIXES else "text"
    if suffix in _JSONL_SUFFIXES:
        return "jsonl"
    if not re.match(rb'\{\s*"', start):
        return "text"
    if b"\n" not in start and len(head) == HEAD:  # a long first line
        return "jsonl" if _mentions(head, field) else "text"
    first = _first_line_object(start)
    return "jsonl" if first is not None and (field in first or suffix in _JSON_SUFFIXES) else "text"


def resolve_format(paths: Sequence[Path], field: str, *, warn: bool = True) -> str:
    """Return the common format of files, or auto if they differ.

    warn: if True, log a warning about files that look like tables or JSON, but are read as text. Raises
    UserError if a file is no text.
    """
    formats, tables, structured = set(), [], []
    for path in paths:
        with read_errors(path), path.open("rb", buffering=0) as file:
            head = open_content(io.BufferedReader(file, HEAD), path).peek(1)[:HEAD]
        formats.add(found := format_of(head, path, field))
        if found == "text" and (delimiter := _delimiter(head, path)):
            tables.append((path, delimiter))
        elif found == "text" and (suffix_of(path) in _JSON_SUFFIXES or _first_line_object(head.lstrip()) is not None):
            structured.append(path)
    if tables and warn:
        path, delimiter = tables[0]
        log.warning(
            "%s is a table with columns separated by %s, and is trained on as text, with its separators; to train on "
            "one column, write it to a JSON Lines file",
            _and_more(path, len(tables)),
            {",": "commas", "\t": "tabs", ";": "semicolons"}[delimiter],
        )
    if structured and warn:
        log.warning(
            "%s contains JSON, and is trained on as text, with its keys and brackets; to train on a field of JSON "
            "Lines or of an array of objects, use data.text_field=NAME and data.format=jsonl or json",
            _and_more(structured[0], len(structured)),
        )
    format = formats.pop() if len(formats) == 1 else "auto"
    if format in ("jsonl", "json"):
        log.info("data.format: %s, recognised from the content", format)
    return format


def suffix_of(path: Path) -> str:
    """Return the suffix of a file name in lower case, without that of a compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return next((suffix for suffix in reversed(suffixes) if suffix not in _COMPRESSED), "")


def encoding_advice(raw: bytes, at: int, *, has_multibyte: bool) -> str:
    """Return how to convert a text that is not UTF-8.

    raw: a part of the text, with the invalid byte at index `at`. has_multibyte: True if characters of several bytes
    were decoded before this part.
    """
    high = [byte for byte in raw if byte >= 0x80]
    is_cut = at >= len(raw) - 3 and raw[at] >= 0xC2
    # In other encodings too, some bytes are valid UTF-8 by chance.
    n_invalid = raw.decode("utf-8", "replace").count("\ufffd")
    is_mostly_valid = len(high) > 20 * n_invalid and not raw[:at].isascii()
    if is_mostly_valid or (has_multibyte and is_cut):
        return "the file is damaged UTF-8; drop the invalid bytes with iconv -c -f utf-8 -t utf-8"
    if len(high) > len(raw) // 4:
        return "convert the file to UTF-8 first, with iconv -f ENCODING -t utf-8, e.g. gb18030, shift_jis or koi8-r"
    is_windows = any(byte < 0xA0 for byte in high)
    encoding = "windows-1252" if is_windows else "latin1"
    return f"convert the file to UTF-8 first, e.g. with iconv -f {encoding} -t utf-8"


def iconv_name(encoding: str) -> str:
    """Return the name of an encoding for iconv, e.g. utf-16le for utf-16-le."""
    return re.sub(r"-([lb]e)$", r"\1", encoding)


def refuse_nul(block: bytes, path: Path, offset: int) -> None:
    """Raise UserError if a part of a text contains a NUL byte.

    offset: the position of the part in the file.
    """
    at = block.find(b"\0")
    require(
        at < 0,
        f"{path} is not a text: it contains a NUL byte at offset {offset + at:,}; give a text file",
    )


def _refuse_binary(head: bytes, path: Path) -> None:
    for signature, name, advice in _SIGNATURES:
        # A text may begin with "ORC" or "GIF8", but it contains no NUL byte.
        is_word = signature.isalnum() and signature.isascii()
        if head.startswith(signature) and (not is_word or b"\0" in head):
            raise UserError(f"{path} is {name}; {advice}")
    for is_kind, name, advice in _KINDS:
        if is_kind(head):
            raise UserError(f"{path} is {name}; {advice}")
    if b"\0" in head and (encoding := _unmarked_encoding(head)):
        raise UserError(
            f"{path} is {encoding.upper()} without a byte-order mark; convert the file to UTF-8 first, with "
            f"iconv -f {iconv_name(encoding)} -t utf-8"
        )


def _is_utf8(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return b"\0" not in head


def _is_tar(head: bytes) -> bool:
    # The header's checksum counts its own eight bytes as spaces.
    if len(head) < 512 or not head[0]:
        return False
    try:
        checksum = int(head[148:156].strip(b"\0 ") or b"x", 8)
    except ValueError:
        return False
    return checksum == sum(head[:148]) + 8 * 32 + sum(head[156:512])


def _is_zip(head: bytes) -> bool:
    return head.startswith((b"PK\x03\x04", b"PK\x05\x06"))


def _is_office(head: bytes) -> bool:
    return _is_zip(head) and head[30:].startswith((b"[Content_Types].xml", b"mimetype", b"word/", b"_rels/"))


def _is_torch(head: bytes) -> bool:
    return _is_zip(head) and b"/data.pkl" in head[:128]


def _is_safetensors(head: bytes) -> bool:
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and 2 <= length <= 100_000_000 and b"\0" in head[:8]


def _is_pickle(head: bytes) -> bool:
    # A protocol number, then the frame or the first object.
    return head[:1] == b"\x80" and 2 <= int.from_bytes(head[1:2], "little") <= 5 and head[2:3] in b"\x95}](ccX\x8c\x8aK"


_KINDS: tuple[tuple[Callable[[bytes], bool], str, str], ...] = (
    (_is_office, "an Office document or an e-book", _AS_TEXT),
    (_is_torch, "a PyTorch checkpoint", _WEIGHTS),
    (_is_zip, "a ZIP archive", _UNPACK),
    (_is_tar, "a tar archive", _UNPACK),
    (_is_safetensors, "a safetensors file with the weights of a model", _WEIGHTS),
    (_is_pickle, "a pickle", "loading one may run code; write its text to a file first"),
)


def _unmarked_encoding(head: bytes) -> str | None:
    # The encoding in which the bytes contain by far the most spaces and line ends, and nothing that is unassigned.
    best, best_share = None, 0.02
    for encoding in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be"):
        text = codecs.getincrementaldecoder(encoding)("replace").decode(head[: 1 << 16])
        common = Counter(text)
        odd = sum(
            n for c, n in common.items() if c == "\ufffd" or (unicodedata.category(c)[0] == "C" and c not in "\n\r\t")
        )
        share = (common[" "] + common["\n"] + common["e"] / 4) / max(1, len(text))
        if share > best_share and odd <= len(text) // 50:
            best, best_share = encoding, share
    return best


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _first_line_object(start: bytes) -> dict[str, Any] | None:
    # The object in the first line; None if it or the second line is none.
    line, _, rest = start.partition(b"\n")
    second = rest.lstrip()
    is_cut = b"\n" not in second and len(start) >= HEAD - 100
    if second and not is_cut and _object(second.partition(b"\n")[0]) is None:
        return None
    return _object(line)


def _first_object(start: bytes) -> dict[str, Any] | None:
    # The object at the start of a text; None if it is incomplete.
    try:
        value, _ = json.JSONDecoder().raw_decode(start.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _mentions(head: bytes, field: str) -> bool:
    return re.search(re.escape(json.dumps(field, ensure_ascii=False).encode()) + rb"\s*:", head) is not None


def _delimiter(head: bytes, path: Path) -> str | None:
    # The delimiter of a text that is plainly a table: each of its first lines has as many columns.
    lines = head[: 1 << 14].decode("utf-8", "replace").splitlines()[:21]
    lines = [line for line in (lines[:-1] if len(lines) > 20 else lines) if line.strip()]
    is_named = suffix_of(path) in (".csv", ".tsv")
    for delimiter, least in (("\t", 2), (",", 3), (";", 3)):
        rows = [row for row in csv.reader(lines, delimiter=delimiter) if row]
        if not is_named and any(cell.startswith(" ") for row in rows for cell in row[1:]):  # punctuation
            continue
        widths = {len(row) for row in rows}
        if len(widths) == 1 and widths.pop() >= (2 if is_named else least) and len(lines) >= (2 if is_named else 5):
            return delimiter
    return None


def _and_more(path: Path, n: int) -> str:
    return str(path) + (f" and {n - 1:,} more" if n > 1 else "")
