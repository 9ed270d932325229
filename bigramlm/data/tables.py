"""Recognition of texts that are plainly tables, such as CSV."""

from __future__ import annotations

import csv
import io
import re

from bigramlm.data.content import HEAD

# The delimiters, with the least number of columns of a table under another name than *.csv or *.tsv.
_DELIMITERS = {"\t": ("tabs", 2), ",": ("commas", 3), ";": ("semicolons", 3), "|": ("vertical bars", 3)}
# The number of rows that are looked at.
_ROWS = 20

# A table of one column: its name, then a cell per row, in quotes that stand twice within it.
_QUOTED = r'"(?:[^"]|"")*"'
_ONE_COLUMN = re.compile(rf'"?\w[\w .-]*"?\r?\n((?:{_QUOTED}\r?\n){{4,}})(?:"(?:[^"]|"")*"?)?')
_ONE_COLUMN_NAMED = re.compile(rf'"?\w[\w .-]*"?\r?\n((?:(?:{_QUOTED}|[^"\n]*)\r?\n)*(?:"(?:[^"]|"")*"?)?)')


def columns_of(head: bytes, suffix: str) -> str | None:
    """Describe the columns of a text that is plainly a table; None for other texts.

    Each of its first rows has the same number of columns. Prose, poems, source code and logs have commas and bars too,
    so a text is no table if in doubt. head: the start of the text. suffix: that of its name.
    """
    text, is_named = head.decode("utf-8", "replace"), suffix in (".csv", ".tsv")
    is_whole = len(head) < HEAD
    for delimiter, (name, least) in _DELIMITERS.items():
        rows = _rows(text, delimiter, is_whole=is_whole)
        if _is_table(rows, delimiter, 2 if is_named else least, is_named, is_whole=is_whole):
            return f"columns separated by {name}"
    one = (_ONE_COLUMN_NAMED if is_named else _ONE_COLUMN).fullmatch(text)
    is_quoted = one is not None and ('"' in one[1] if is_named else re.search(r'""|[^"\r]\n[^"]', one[1]) is not None)
    return "one column, in quotes" if is_quoted else None


def _rows(text: str, delimiter: str, *, is_whole: bool) -> list[list[str]]:
    # The first rows that are complete. A cell in quotes may contain line breaks.
    rows: list[list[str]] = []
    for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter):
        if len(rows) == _ROWS:
            return rows
        if any(cell.strip() for cell in row):
            rows.append(row)
    return rows if is_whole else rows[:-1]


def _is_table(rows: list[list[str]], delimiter: str, least: int, is_named: bool, *, is_whole: bool) -> bool:
    least_rows = (2 if is_whole else 1) if is_named else 5  # the row below the header may be longer than the start
    if len(rows) < least_rows or len({len(row) for row in rows}) > 1 or len(rows[0]) < least:
        return False
    header, *others = rows
    if delimiter == "|" and not all(  # a log or a drawing has no header
        re.fullmatch(r"[^\W\d]([\w .-]*\w)?", cell) and all(cell != row[at] for row in others)
        for at, cell in enumerate(header)
    ):
        return False
    is_prose = any(cell.startswith(" ") for row in rows for cell in row[1:])
    return is_named or not is_prose
