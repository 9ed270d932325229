"""Recognition of files that are no texts: archives, documents, tables, weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from bigramlm.errors import UserError
from bigramlm.utils.files import LFS_POINTER

_UNPACK = "unpack it, and give its text files"
_AS_TEXT = "save its content as plain text first"
_EXPORT = "write its text column to a JSON Lines file first"
_WEIGHTS = (
    "give a text file; init_from= starts from weights, but only those of a run, or of a GPT-2 in safetensors files"
)

# The first bytes of files that are no texts, with their names and advice.
_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (LFS_POINTER, "a Git LFS pointer, which stands for a file that is not downloaded", "fetch it with git lfs pull"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (b"!<arch>\n", "an ar archive", _UNPACK),
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
    (b"{\\rtf", "an RTF document", _AS_TEXT),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document", _AS_TEXT),
    (b"\x89PNG\r\n\x1a\n", "a PNG picture", "give a text file"),
    (b"\xff\xd8\xff", "a JPEG picture", "give a text file"),
    (b"GIF8", "a GIF picture", "give a text file"),
    (b"\x7fELF", "a program", "give a text file"),
)

# An entry of a ZIP file: its signature, 26 bytes, its name.
_ENTRY = rb"PK\x03\x04[\s\S]{26}"

# The formats that are ZIP files, by the names of their entries.
_ZIPPED: tuple[tuple[bytes, str, str], ...] = (
    (rb"\A" + _ENTRY + rb"[^\0\n]{1,80}/data\.pkl", "a PyTorch checkpoint", _WEIGHTS),
    (rb"\A" + _ENTRY + rb"[^\0\n]{1,80}\.npy", "a file of NumPy arrays (.npz)", _EXPORT),
    (rb"\A" + _ENTRY + rb"mimetypeapplication/epub", "an e-book (EPUB)", _AS_TEXT),
    (rb"\A" + _ENTRY + rb"mimetypeapplication/vnd\.oasis", "an OpenDocument file", _AS_TEXT),
    (_ENTRY + rb"word/", "a Word document", _AS_TEXT),
    (_ENTRY + rb"xl/", "an Excel workbook", _EXPORT),
    (_ENTRY + rb"ppt/", "a PowerPoint presentation", _AS_TEXT),
    (rb"\A" + _ENTRY + rb"(\[Content_Types\]\.xml|mimetype|_rels/|docProps/)", "an Office document", _AS_TEXT),
    (rb"\APK(\x03\x04|\x05\x06)", "a ZIP archive", _UNPACK),
)

# The start of a pickle of protocol 0, which is ASCII: a container or a string, or the class of an object.
_PICKLE_0 = re.compile(rb"\([dl]p\d+\n|[SV][^\n]*\np\d+\n|(c|\(i)[\w.]+\n\w+\n(p\d+\n|q\0)|\([\s\S]*\ntp\d+\n\.$")


def refuse_binary(head: bytes, path: Path) -> None:
    """Raise UserError if a file is no text but of a known kind.

    head: the first bytes of the file.
    """
    for signature, name, advice in _SIGNATURES:
        # A text may begin with "ORC" or "GIF8", but it contains no NUL byte.
        is_word = signature.isalnum() and signature.isascii()
        if head.startswith(signature) and (not is_word or b"\0" in head):
            raise UserError(f"{path} is {name}; {advice}")
    for pattern, name, advice in _ZIPPED if head.startswith(b"PK") else ():
        if re.search(pattern, head):
            raise UserError(f"{path} is {name}; {advice}")
    for is_kind, name, advice in _KINDS:
        if is_kind(head):
            raise UserError(f"{path} is {name}; {advice}")


def _is_tar(head: bytes) -> bool:
    # The header's checksum counts its own eight bytes as spaces.
    if len(head) < 512 or not head[0]:
        return False
    try:
        checksum = int(head[148:156].strip(b"\0 ") or b"x", 8)
    except ValueError:
        return False
    return checksum == sum(head[:148]) + 8 * 32 + sum(head[156:512])


def _is_pdf(head: bytes) -> bool:
    # The mark may stand anywhere within the first 1,024 bytes; a text that mentions it has no objects.
    has_object = re.search(rb"[\r\n]\d+ \d+ obj\b", head) is not None
    return head.startswith(b"%PDF-") or (b"%PDF-" in head[:1024] and has_object)


def _is_safetensors(head: bytes) -> bool:
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and 2 <= length <= 100_000_000 and b"\0" in head[:8]


def _is_pickle(head: bytes) -> bool:
    # A protocol number, then the frame or the first object. Protocols 0 and 1 have no number.
    if _PICKLE_0.match(head) or head.startswith((b"}q\0", b"]q\0")):
        return True
    return head[:1] == b"\x80" and 2 <= int.from_bytes(head[1:2], "little") <= 5 and head[2:3] in b"\x95}](ccX\x8c\x8aK"


_KINDS: tuple[tuple[Callable[[bytes], bool], str, str], ...] = (
    (_is_tar, "a tar archive", _UNPACK),
    (_is_pdf, "a PDF document", "extract its text first, e.g. with pdftotext"),
    (_is_safetensors, "a safetensors file with the weights of a model", _WEIGHTS),
    (_is_pickle, "a pickle", "loading one may run code; write its text to a file first"),
)
