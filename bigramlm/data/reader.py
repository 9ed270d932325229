"""The documents of a file: plain text, JSON Lines, or other JSON."""

from __future__ import annotations

import codecs
import contextlib
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from bigramlm.data.compression import READ_SIZE, HashedFile, decompressed_by_name, is_jsonl_by_name, read_errors
from bigramlm.data.content import encoding_advice, open_content, refuse_nul
from bigramlm.data.formats import format_of, suffix_of
from bigramlm.errors import UserError, require

# The maximum number of characters of a value in a JSON array; an invalid value would be read up to the end of the file.
_MAX_VALUE = 100_000_000

Blocks = Iterable[str]
"""A document as consecutive strings."""


class Reader:
    """A reader of the documents in a file that also computes the file's SHA-256.

    A plain text file is one document. In JSON Lines, and in a JSON array or another sequence of objects, the text in
    `field` of each object is one document. All kinds of files may be compressed.
    """

    def __init__(
        self, path: Path, field: str, format: str, bar: tqdm[Any] | None = None, *, file: BinaryIO | None = None
    ) -> None:
        """Store the arguments.

        field: the name of the JSON field with the text. format: a value of `data.format`. bar: a progress bar in bytes.
        file: an open file to read instead of the path.
        """
        self.path = path
        self.file = file
        self.field = field
        self.format = format
        self.bar = bar
        self.sha256 = ""
        """The SHA-256 of the file's bytes, set after all documents or objects are read."""

    def documents(self) -> Iterator[Blocks]:
        """Yield the documents.

        The caller must read each document to its end before it requests the next one.
        """
        with self._open() as (content, format):
            if format == "text":
                yield self._blocks(content)
            else:
                for where, value in self._values(content, format):
                    yield (get_text(value, self.field, where, setting="text_field"),)

    def objects(self) -> Iterator[tuple[str, Any]]:
        """Yield the location (file and line or item) and the value of each JSON object.

        Raises UserError if the file is a plain text.
        """
        with self._open() as (content, format):
            require(
                format != "text",
                f'{self.path} is neither JSON Lines, with one object per line such as {{"{self.field}": "To be"}}, nor '
                "a JSON array of such objects; for plain text, use data=text",
            )
            yield from self._values(content, format)

    def lines(self) -> Iterator[tuple[str, Any]]:
        """Yield the location and value of each line of a text, or of each JSON object."""
        with self._open() as (content, format):
            # With a name of JSON, an array of strings is no line of text.
            head = content.peek() if isinstance(content, io.BufferedReader) else b""
            is_array = suffix_of(self.path) == ".json" and head.lstrip()[:1] == b"["
            if format == "text" and not is_array:
                text = io.StringIO("".join(self._blocks(content)), newline=None)
                for number, line in enumerate(text, start=1):
                    yield f"{self.path}, line {number:,}", line.removesuffix("\n")
            else:
                yield from self._values(content, "json" if is_array else format)

    @contextlib.contextmanager
    def _open(self) -> Iterator[tuple[io.BufferedIOBase, str]]:
        # Opens the file, and finds its format.
        with read_errors(self.path), contextlib.ExitStack() as stack:
            file = self.file or stack.enter_context(self.path.open("rb"))
            hashed = HashedFile(file, self.bar)
            raw = io.BufferedReader(hashed, READ_SIZE)
            if self.format == "suffix":
                yield decompressed_by_name(raw, self.path), "jsonl" if is_jsonl_by_name(self.path) else "text"
            else:
                text = open_content(raw, self.path)
                format = format_of(text, self.path, self.field) if self.format == "auto" else self.format
                yield io.BufferedReader(text, READ_SIZE), format
            while hashed.read(READ_SIZE):  # hash the rest of the file too
                pass
            self.sha256 = hashed.digest.hexdigest()

    def _blocks(self, content: io.BufferedIOBase) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")()
        offset = lines = 0  # the bytes and lines that are decoded
        has_multibyte = False
        while True:
            with read_errors(self.path):  # the handler in `_open` does not see errors of this generator
                block = content.read(READ_SIZE)
            if self.format != "suffix":
                refuse_nul(block, self.path, offset)
            pending = decoder.getstate()[0]
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raw = pending + block
                line = lines + raw.count(b"\n", 0, error.start) + 1
                raise UserError(
                    f"{self.path} is not UTF-8: byte 0x{raw[error.start]:02x} at offset "
                    f"{offset - len(pending) + error.start:,} (line {line:,}); "
                    f"{encoding_advice(raw, error.start, has_multibyte=has_multibyte)}"
                ) from None
            if text:
                yield text
            if not block:
                return
            offset += len(block)
            lines += block.count(b"\n")
            has_multibyte = has_multibyte or len(text) < len(block) - len(pending)

    def _values(self, content: io.BufferedIOBase, format: str) -> Iterator[tuple[str, Any]]:
        if format == "jsonl":
            yield from self._lines(content)
        else:
            for number, value in enumerate(iterate_values(content, self.path), start=1):
                yield f"{self.path}, item {number:,}", value

    def _lines(self, content: io.BufferedIOBase) -> Iterator[tuple[str, Any]]:
        is_first = True
        for number, line in enumerate(content, start=1):
            if not line.strip():
                continue
            where = f"{self.path}, line {number:,}"
            try:
                value = json.loads(line)
            except UnicodeDecodeError as error:
                advice = encoding_advice(line, error.start, has_multibyte=False)
                raise UserError(f"{where}: not UTF-8: byte 0x{line[error.start]:02x}; {advice}") from None
            except (ValueError, RecursionError) as error:
                place = f" (column {error.colno:,})" if isinstance(error, json.JSONDecodeError) else ""
                is_other = is_first and self.format == "jsonl"
                advice = _other_format(line) if is_other else f"fix or remove line {number:,}"
                raise UserError(f"{where}: the line is not valid JSON: {_reason(error)}{place}; {advice}") from None
            yield where, value
            is_first = False


def _other_format(line: bytes) -> str:
    kind, format = ("an array", "json") if line.lstrip().startswith(b"[") else ("plain text", "text")
    return f"fix the line, or, if the file is {kind}, use data.format={format}"


def _reason(error: ValueError | RecursionError) -> str:
    # Why a text is no JSON, without the terms of Python.
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    return "brackets are nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"


def get_text(value: Any, field: str, where: str, *, setting: str) -> str:
    """Return the text in a field of a JSON object.

    where: the file and line or item, for messages. setting: the config field under `data` that selects `field`, for
    messages. Raises UserError if `value` is not an object or its `field` is missing or contains no valid text.
    """
    array = ", or, for an array of objects, use data.format=json" if isinstance(value, list) else ""
    require(
        isinstance(value, dict), f'{where}: not a JSON object such as {{"{field}": "To be"}}; fix or remove it{array}'
    )
    if field not in value:
        names = [name for name, content in value.items() if isinstance(content, str)][:10]
        found = f"the fields with a string are: {', '.join(names)}" if names else "no field contains a string"
        select = f"select one of them with data.{setting}=NAME, or " if names else ""
        raise UserError(
            f"{where}: the field {field!r} is missing; {found}; {select}train on the file as it is with data=text "
            "data.format=text"
        )
    text = value[field]
    if not isinstance(text, str):
        raise UserError(f"{where}: the field {field!r} is not a string; fix or remove it")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: field {field!r} contains an unpaired surrogate; fix or remove it") from None
    return text


def iterate_values(content: io.BufferedIOBase, path: Path) -> Iterator[Any]:
    """Yield the values of a JSON array, or of JSON values that follow each other.

    Between the latter there may be a comma. content: the file, which is read in blocks. path: the file, for messages.
    Raises UserError for invalid JSON.
    """
    text, n = _JsonText(content, path), 0
    is_array = text.peek() == "["
    text.at += is_array
    while (character := text.peek()) not in ("", "]"):
        require(
            not is_array or n == 0 or character == ",",
            f"{path}, item {n:,}: no comma or bracket follows ({text.place(text.at)}); fix the file",
        )
        if n and character == ",":
            text.at += 1
            if not is_array and text.peek() == "":
                break
        n += 1
        yield text.value(n)
    text.at += is_array and character == "]"
    require(
        text.peek() == "" and (character == "]" or not is_array),
        f"{path}, after item {n:,}: the JSON array does not end here ({text.place(text.at)}); fix the file",
    )


class _JsonText:
    # A JSON text that is read in blocks.

    def __init__(self, content: io.BufferedIOBase, path: Path) -> None:
        self._content, self._path, self._size = content, path, READ_SIZE
        self._decoder, self._decode = codecs.getincrementaldecoder("utf-8")(), json.JSONDecoder().raw_decode
        self._text = ""
        self.at = 0
        self._lines = self._columns = 0  # before the text that is kept

    def peek(self) -> str:
        # Skips white space, and returns the next character. At the end of the file, returns "".
        while True:
            while self.at < len(self._text) and self._text[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self._text) or not self._fill():
                return self._text[self.at : self.at + 1]

    def value(self, number: int) -> Any:
        # Reads the next value; number: its position, for messages.
        self.peek()
        self._size = READ_SIZE
        while True:
            try:
                value, self.at = self._decode(self._text, self.at)
                return value
            except (ValueError, RecursionError) as error:
                is_long = len(self._text) - self.at > _MAX_VALUE
                within = error.pos - self.at if isinstance(error, json.JSONDecodeError) else None
                if within is None or is_long or not self._fill():
                    place = "" if within is None else f" ({self.place(self.at + within)})"
                    advice = "fix the file" + (", or, if it is plain text, use data.format=text" if number == 1 else "")
                    raise UserError(
                        f"{self._path}, item {number:,}: not valid JSON: {_reason(error)}{place}; {advice}"
                    ) from None

    def place(self, at: int) -> str:
        # The line and the column of a position in the text that is kept.
        line_start = self._text.rfind("\n", 0, at) + 1
        column = at - line_start + (0 if line_start else self._columns) + 1
        return f"line {self._lines + self._text.count(chr(10), 0, at) + 1:,}, column {column:,}"

    def _fill(self) -> bool:
        # Reads the next block. The blocks of a long value double, so that its time is linear in its length.
        with read_errors(self._path):
            block = self._content.read(self._size)
        self._size *= 2
        lines = self._text.count("\n", 0, self.at)
        self._columns = self.at - (self._text.rfind("\n", 0, self.at) + 1) + (0 if lines else self._columns)
        self._lines += lines
        try:
            self._text, self.at = self._text[self.at :] + self._decoder.decode(block, final=not block), 0
        except UnicodeDecodeError as error:
            advice = encoding_advice(block, error.start, has_multibyte=False)
            raise UserError(f"{self._path} is not UTF-8: {advice}") from None
        return bool(block)
