"""Recognition of the format of a text: plain text, JSON Lines, or other JSON."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bigramlm.data.compression import Lookahead, read_errors
from bigramlm.data.content import COMPRESSED, HEAD, is_utf8, open_content
from bigramlm.data.tables import columns_of

log = logging.getLogger(__name__)

_JSONL_SUFFIXES = (".jsonl", ".ndjson")
_JSON_SUFFIXES = (*_JSONL_SUFFIXES, ".json")

# The first object of a text is read up to this number of bytes.
_MAX_OBJECT = 1 << 24
# The number of characters after the first object in which the second is expected.
_NEXT = 1000


class _Json(NamedTuple):
    # What a text of JSON begins with.

    format: str | None
    """The format that reads its objects: jsonl or json. None for a single object over several lines or without the
    field, and for an array of other values: these are a text."""
    has_field: bool
    """True if the first object has the field."""
    names: tuple[str, ...] = ()
    """The fields of the first object that contain a string."""


def format_of(text: Lookahead, path: Path, field: str) -> str:
    """Return the format of a file: text, jsonl or json.

    text: the content as UTF-8, from its start. field: the name of the field that would contain the text. JSON Lines,
    other sequences of objects, and arrays of objects are recognised under any name if their first object has the field.
    Without the field, they are recognised only if the name is one of JSON (*.jsonl, *.ndjson, *.json), so that their
    reader refuses them.
    """
    return _format(_find_json(text, field), path)


def _format(found: _Json | None, path: Path) -> str:
    suffix = suffix_of(path)
    if found is not None and found.format is not None and (found.has_field or suffix in _JSON_SUFFIXES):
        return found.format
    return "jsonl" if suffix in _JSONL_SUFFIXES else "text"


def resolve_format(paths: Sequence[Path], field: str, *, warn: bool = True) -> str:
    """Return the common format of files, or auto if they differ.

    warn: if True, log a warning about files that look like tables or JSON, but are read as text. Raises
    UserError if a file is no text.
    """
    formats, tables, structured = set(), [], []
    for path in paths:
        with read_errors(path), path.open("rb", buffering=0) as file:
            text = open_content(io.BufferedReader(file, HEAD), path)
            found = _find_json(text, field)
            head = text.start(HEAD)
        formats.add(format := _format(found, path))
        if format == "text" and (found is not None or suffix_of(path) in _JSON_SUFFIXES):
            structured.append((path, found))
        elif format == "text" and is_utf8(head) and (columns := columns_of(head, suffix_of(path))):
            tables.append((path, columns))
    if tables and warn:
        path, columns = tables[0]
        log.warning(
            "%s is a table with %s, and is trained on as text, with its separators and quotes; to train on one column, "
            "write it to a JSON Lines file",
            *(_and_more(path, len(tables)), columns),
        )
    if structured and warn:
        path, found = structured[0]
        log.warning(
            "%s contains JSON, and is trained on as text, with its keys and brackets; %s",
            *(_and_more(path, len(structured)), _json_advice(found)),
        )
    format = formats.pop() if len(formats) == 1 else "auto"
    if format in ("jsonl", "json"):
        log.info("data.format: %s, recognised from the content", format)
    return format


def _json_advice(found: _Json | None) -> str:
    if found is None or not found.names:
        return 'to train on the strings in it, write them to a JSON Lines file, one {"text": "To be"} per line'
    names = ", ".join(found.names[:10])
    return (
        f"to train on one field of its objects, use data.format={found.format or 'json'} data.text_field=NAME "
        f"(fields with a string: {names})"
    )


def suffix_of(path: Path) -> str:
    """Return the suffix of a file name in lower case, without that of a compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return next((suffix for suffix in reversed(suffixes) if suffix not in COMPRESSED), "")


def _find_json(text: Lookahead, field: str) -> _Json | None:
    # Returns None if the text does not begin with JSON, or continues with something else.
    size = HEAD
    while True:
        head = text.start(size)
        is_whole = len(head) < size
        start = head.lstrip().decode("utf-8", "replace")
        opening = re.match(r'(\[\s*)?(?=\{\s*")', start)
        if opening is None:
            return _Json(None, False) if _is_array(start, is_whole=is_whole) else None
        found = _value(start, opening.end(), is_whole=is_whole)
        if found is None or is_whole or size >= _MAX_OBJECT or found[1] + _NEXT < len(start):
            break
        size *= 4
    if found is None:
        return None
    value, end = found
    if value is None:  # an object that is longer
        mentioned = re.search(re.escape(json.dumps(field, ensure_ascii=False)) + r"\s*:", start) is not None
        long = "json" if opening[1] or "\n" in start else "jsonl"
        return _Json(long if mentioned else None, mentioned)
    format = "json" if opening[1] else _format_of_objects(start, end, is_whole=is_whole)
    names = tuple(name for name, content in value.items() if isinstance(content, str))
    if not opening[1] and field not in value and start[end:].strip(", \t\r\n") == "":
        format = None  # a single object without the field, also on one line
    return None if format == "text" else _Json(format, field in value, names)


def _format_of_objects(start: str, end: int, *, is_whole: bool) -> str | None:
    # The format of the objects at the start of a text, of which the first ends at `end`: jsonl or json. None if there
    # is only one, over several lines; text if something else follows.
    gap = re.compile(r"\s*,?\s*").match(start, end)
    assert gap is not None
    is_line = "\n" not in start[:end]
    if gap.end() == len(start):
        return "jsonl" if is_line else None
    if not re.compile(r'\{\s*["}]').match(start, gap.end()):
        return "text"
    second = _value(start, gap.end(), is_whole=is_whole)
    is_second_line = second is None or "\n" not in start[gap.end() : second[1]]
    return "jsonl" if is_line and is_second_line and "\n" in gap[0] and "," not in gap[0] else "json"


def _is_array(start: str, *, is_whole: bool) -> bool:
    # True for a text that is a JSON array, or that begins with a long one.
    found = _value(start, 0, is_whole=is_whole) if start.startswith("[") else None
    return found is not None and found[0] != [] and start[found[1] :].strip() == ""


def _value(text: str, at: int, *, is_whole: bool) -> tuple[Any, int] | None:
    # Returns the JSON value at a position, and its end. The value is None if the text, of which more may follow, ends
    # before. Returns None if there is no JSON value.
    try:
        return json.JSONDecoder().raw_decode(text, at)
    except RecursionError:
        return None
    except ValueError as error:
        is_cut = isinstance(error, json.JSONDecodeError) and (
            error.pos > len(text) - 12 or error.msg.startswith("Unterminated string")
        )
        return (None, len(text)) if is_cut and not is_whole else None


def _and_more(path: Path, n: int) -> str:
    return str(path) + (f" and {n - 1:,} more" if n > 1 else "")
