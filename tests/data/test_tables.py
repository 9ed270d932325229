"""Tests of the recognition of tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.helpers import resolved


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


ROWS = {
    "line breaks in quotes": "id,text,n\n" + '1,"first line\nsecond, ""quoted""\n\nlast",5\n' * 30,
    "long cells": "id,text,n\n" + ('1,"' + "many words,\n" * 900 + '",5\n') * 30,
    "bars": "id|title|year\n" + "1|some words, here|1984\n" * 30,
    "one column in quotes": "text\n" + '"some ""words"", here"\n' * 30,
    "one column over lines": '"text"\n' + '"some words\nhere"\n' * 30,
}


@pytest.mark.parametrize("name", ["a.csv", "a.txt"])
@pytest.mark.parametrize("content", ROWS.values(), ids=ROWS)
def test_other_tables_are_warned_about(
    content: str, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / name).write_text(content, "utf-8")
    assert resolved(tmp_path / name) == "text"
    assert ["is a table with" in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize("head", ["id,text\n1,", "text\n"])
def test_a_table_whose_first_cell_is_long_is_warned_about(
    head: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.csv").write_text(head + '"' + "many words,\n" * 9000 + '"\n', "utf-8")
    assert resolved(tmp_path / "a.csv") == "text"
    assert ["is a table with" in record.getMessage() for record in caplog.records] == [True]


NO_TABLES = {
    "poem": "Roses are red, violets are blue,\nsugar is sweet, and so are you,\n" * 9,
    "log": "2026-01-01 12:00:00|INFO|main|started\n" * 30,
    "padded log": "2026-01-01 12:00:00 | INFO     | main:1 - started\n" * 30,
    "level first": "INFO|main|started\n" * 30,
    "drawing": "+---+---+\n|   |   |\n+---+---+\n" * 9,
    "Markdown": "| name | value |\n|---|---|\n" + "| a | b |\n" * 30,
    "tight Markdown": "|name|value|\n|---|---|\n" + "|a|b|\n" * 30,
    "dialogue": "Scene\n" + '"Hello," he said.\n"Hello," she said.\n' * 30,
    "quotations": "Quotations\n" + '"To be, or not to be."\n' * 30,
    "shell": "cat a | sort | uniq\ncat b | sort | uniq\n" * 9,
    "code": 'f("a", "b", "c")\ng("a", "b", "c")\n' * 9,
}


@pytest.mark.parametrize("text", NO_TABLES.values(), ids=NO_TABLES)
def test_other_texts_are_no_tables(text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.txt").write_text(text, "utf-8")
    assert resolved(tmp_path / "a.txt") == "text"
    assert not caplog.records
