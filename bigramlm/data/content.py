"""The text of a file as UTF-8: compression and encodings, and what is no text."""

from __future__ import annotations

import codecs
import io
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

from bigramlm.data.binaries import refuse_binary
from bigramlm.data.compression import READ_SIZE, Lookahead, decompressed
from bigramlm.errors import UserError, require
from bigramlm.utils.files import MARKS, mark_of

HEAD = 1 << 16
"""The number of bytes at the start of a text that its kind is recognised from."""

COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
"""The suffixes of compressed files."""

# Encodings whose bytes are all ASCII: the bytes that switch to other characters.
_SEVEN_BITS = {
    "iso-2022-jp": rb"\x1b\$[@B]",
    "iso-2022-kr": rb"\x1b\$\)C",
    # Characters end with a hyphen; at the end of a word it may be missing, which is usual for alphabets (A to I) and
    # long words only: +foo is plain ASCII.
    "utf-7": (rb"(\+([A-Za-z0-9+/]{3,200}-|[A-I][A-Za-z0-9+/]{2,200}(?![A-Za-z0-9+/])|[A-Za-z0-9+/]{16})[\s\S]*?){3}"),
    "hz": rb"~\{([!-}][!-~])+~\}",
}

# Encodings of Europe for texts that are ASCII but for a few letters, by their names for iconv, the likeliest first.
_EUROPEAN = {"windows-1252": "windows-1252", "cp850": "cp850", "macintosh": "mac-roman"}
# Their letters, the capitals among them at the start of a word, and punctuation, most of it beside a space.
_PLAUSIBLE = re.compile(
    r"[äöüßáàâãåæçéèêëíìîïñóòôõøœúùûý]|(?<![a-z])[ÄÖÜÁÀÂÃÅÆÇÉÈÊËÍÌÎÏÑÓÒÔÕØŒÚÙÛÝ]"
    r"|[\u2013\u2014\u2019\u2026\xa0°§€£]|(?<!\w)[\u2018\u201c\u201d\u201e«»¡¿]|[\u201c\u201d«»](?!\w)"
)

# A character beyond U+FFFF in CESU-8, which Java and Oracle write: two surrogates of three bytes each.
_CESU_8 = re.compile(rb"\xed[\xa0-\xaf][\x80-\xbf]\xed[\xb0-\xbf][\x80-\xbf]")


def open_content(raw: io.BufferedReader[Any], path: Path) -> Lookahead:
    """Return a reader of a file's text as UTF-8 bytes, without a byte-order mark.

    The file may be compressed. UTF-16 and UTF-32 with a byte-order mark are converted. Raises UserError if the file is
    an archive, a binary file, or a text in a different encoding.
    """
    content = decompressed(raw)
    text = Lookahead(content)
    head = text.start(HEAD)
    mark = mark_of(head)
    if mark == codecs.BOM_UTF8:
        text.read(len(mark))
    elif mark:
        return Lookahead(_Converted(text, MARKS[mark], path))
    else:
        is_damaged = content is raw and path.suffix.lower() in COMPRESSED and not is_utf8(head)
        refuse_binary(head, path)
        _refuse_encoding(head, path)
        require(
            not is_damaged,
            f"{path}: not a valid compressed file; download it again, or give the decompressed file",
        )
    return text


class _Converted(io.RawIOBase):
    # A reader that converts a text to UTF-8. The byte-order mark is dropped.

    def __init__(self, content: io.RawIOBase, encoding: str, path: Path) -> None:
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


def encoding_advice(raw: bytes, at: int, *, has_multibyte: bool) -> str:
    """Return how to convert a text that is not UTF-8.

    raw: a part of the text, with the invalid byte at index `at`. has_multibyte: True if characters of several bytes
    were decoded before this part.
    """
    if _CESU_8.match(raw, at):
        return f"the file is CESU-8, which Java and Oracle write; convert it with {_converter('cesu-8')}"
    high = [byte for byte in raw if byte >= 0x80]
    is_cut = at >= len(raw) - 3 and raw[at] >= 0xC2
    # In other encodings too, some bytes are valid UTF-8 by chance.
    n_invalid = raw.decode("utf-8", "replace").count("\ufffd")
    is_mostly_valid = len(high) > 20 * n_invalid and not raw[:at].isascii()
    if is_mostly_valid or (has_multibyte and is_cut):
        return "the file is damaged UTF-8; drop the invalid bytes with iconv -c -f utf-8 -t utf-8"
    if len(high) > len(raw) // 4:
        return "convert the file to UTF-8 first, with iconv -f ENCODING -t utf-8, e.g. gb18030, shift_jis or koi8-r"
    encoding = next((name for name, codec in _EUROPEAN.items() if _is_plausible(raw.decode(codec, "replace"))), None)
    if encoding is None:
        return "convert the file to UTF-8 first, with iconv -f ENCODING -t utf-8, e.g. windows-1250, cp850 or macintosh"
    if encoding == "windows-1252" and min(high) >= 0xA0:
        encoding = "latin1"
    return f"convert the file to UTF-8 first, e.g. with iconv -f {encoding} -t utf-8"


def _is_plausible(text: str) -> bool:
    # True if nearly all characters beyond ASCII are letters of the west of Europe, or punctuation in its place.
    others = sum(not character.isascii() for character in text)
    return len(_PLAUSIBLE.findall(text)) >= 0.9 * others


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


def _refuse_encoding(head: bytes, path: Path) -> None:
    if b"\0" in head and (encoding := _unmarked_encoding(head)):
        raise UserError(
            f"{path} is {encoding.upper()} without a byte-order mark; convert the file to UTF-8 first, with "
            f"iconv -f {iconv_name(encoding)} -t utf-8"
        )
    for encoding, pattern in _SEVEN_BITS.items():
        if head.isascii() and re.search(pattern, head) and _is_encoded_in(encoding, head):
            raise UserError(
                f"{path} is {encoding.upper()}; convert the file to UTF-8 first, with {_converter(encoding)}"
            )


def _converter(encoding: str) -> str:
    decode = {  # encodings that iconv does not know
        "hz": "decode('hz')",
        "cesu-8": "decode('utf-8', 'surrogatepass').encode('utf-16', 'surrogatepass').decode('utf-16')",
    }.get(encoding)
    if decode is None:
        return f"iconv -f {encoding} -t utf-8"
    content = f"open('FILE', 'rb').read().{decode}.encode()"
    return f"python -c \"import pathlib; pathlib.Path('NEW').write_bytes({content})\""


def _is_encoded_in(encoding: str, head: bytes) -> bool:
    # True if all bytes are valid, and stand for some letters or marks beyond ASCII.
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        return False
    others = [character for character in text if not character.isascii()]
    return len(others) >= 3 and all(unicodedata.category(character)[0] in "LMNPSZ" for character in others)


def is_utf8(head: bytes) -> bool:
    """Return True if the start of a file is UTF-8, and has no NUL byte."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return b"\0" not in head


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
