"""Tests of the recognition of plain text, JSON Lines and other JSON."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigramlm.data.config import PairsConfig, TextConfig
from bigramlm.data.reader import iterate_values
from tests.data.helpers import LINES, OBJECTS, PROSE, read, resolved
from tests.helpers import refuses

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
    is_json = name.endswith(".json") or name == "list.txt"
    assert ["JSON" in record.getMessage() for record in caplog.records] == [True] * is_json


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


SEQUENCES = {
    "pretty": "\n".join(json.dumps(value, indent=2, ensure_ascii=False) for value in OBJECTS),
    "adjacent": "".join(map(json.dumps, OBJECTS)),
    "with commas": ", ".join(map(json.dumps, OBJECTS)),
    "a comma per line": "".join(json.dumps(value) + ",\n" for value in OBJECTS),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("content", SEQUENCES.values(), ids=SEQUENCES)
def test_objects_that_follow_each_other_are_documents(name: str, content: str, tmp_path: Path) -> None:
    assert read(tmp_path / name, content) == [value["text"] for value in OBJECTS]
    assert resolved(tmp_path / name) == "json"


@pytest.mark.parametrize("name", NAMES)
def test_a_field_is_found_far_behind_the_start(name: str, tmp_path: Path) -> None:
    late = json.dumps({"other": "x" * 200_000, "text": "a"})
    for content, format in ((f"{late}\n{late}", "jsonl"), (f"[{late}, {late}]", "json"), (late + late, "json")):
        assert read(tmp_path / name, content) == ["a", "a"]
        assert resolved(tmp_path / name) == format


WARNED_ABOUT = {
    "strings": json.dumps(["To be", "Or not"]),
    "many strings": json.dumps(["To be"] * 20_000),
    "array": json.dumps(OBJECTS),
    "long array": json.dumps(OBJECTS * 1000),
    "lines": LINES,
    "objects": SEQUENCES["pretty"],
    "one object": json.dumps(OBJECTS[0], indent=1),
    "long lines": json.dumps({"text": "x" * 200_000}) + "\n" + json.dumps({"text": "x"}),
}


@pytest.mark.parametrize("content", WARNED_ABOUT.values(), ids=WARNED_ABOUT)
def test_json_as_text_is_warned_about(content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.txt"
    path.write_text(content, "utf-8")
    assert resolved(path, text_field="body") == "text"
    (record,) = caplog.records
    assert "a.txt contains JSON" in record.getMessage()
    assert ("fields with a string: text" in record.getMessage()) == ("text" in content)


def test_without_a_field_of_text_none_is_suggested(tmp_path: Path) -> None:
    with refuses("line 1", "no field contains a string; train on the file as it is") as raised:
        read(tmp_path / "a.jsonl", '{"id": 1}\n')
    assert "select" not in str(raised.value)


def test_json_without_the_field_is_refused_or_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    for content, where in ((LINES, "line 1"), (json.dumps(OBJECTS), "item 1")):
        for name in ("a.json", "a.jsonl", "a.JSON"):
            with refuses(
                f"{name}, {where}", "'body'", "with a string are: text;", "data.text_field=", "data.format=text"
            ):
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
        ('[{"text": "a"},\n {"text": }]', "item 2: not valid JSON: Expecting value (line 2, column 11)"),
        (
            '{"text": "a"} {"text": "b"}\n\n{"text" 5}',
            "item 3: not valid JSON: Expecting ':' delimiter (line 3, column 9)",
        ),
        ('{"text": "a"}\n\n{"text" 5}', "line 3: the line is not valid JSON: Expecting ':' delimiter (column 9)"),
        ('{"text":\n"a"}\n{"text": "b"} more', "item 3: not valid JSON"),
        ('[{"text": "a"}', "after item 1"),
        ('[{"text": "a"},', "item 2"),
        ('[{"text": "a"}] more', "after item 1"),
        ('[{"text": "a"} {"text": "b"}]', "item 1: no comma or bracket follows (line 1, column 16)"),
        ('[{"text": "a"}, 5]', "item 2: not a JSON object"),
        ('[{"text": "a"}, {"text": 5}]', "item 2: the field 'text' is not a string"),
        ('[{"text": "a"}, {"text": "\\ud83d"}]', "item 2: field 'text' contains an unpaired surrogate"),
        ('[{"text": "a"}, {"text": ' + "[" * 100_000, "item 2: not valid JSON"),
    ],
)
def test_a_damaged_array_is_refused(content: str, named: str, tmp_path: Path) -> None:
    with refuses("a.json", named):
        read(tmp_path / "a.json", content)


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
        assert list(iterate_values(io.BytesIO(content), path)) == values


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


@pytest.mark.parametrize(
    ("name", "content", "format", "advice"),
    [
        ("a.txt", "hello\n" * 5, "jsonl", "if the file is plain text, use data.format=text"),
        ("a.json", json.dumps(OBJECTS, indent=1), "jsonl", "if the file is an array, use data.format=json"),
        ("a.json", json.dumps(OBJECTS), "jsonl", "for an array of objects, use data.format=json"),
        ("a.txt", "hello\n" * 5, "json", "if it is plain text, use data.format=text"),
        ("a.jsonl", LINES + "oops\n", "auto", "line 31: the line is not valid JSON"),
        ("a.jsonl", LINES + "oops\n", "jsonl", "fix or remove line 31"),
        ("a.jsonl", LINES + f'{{"text": "a", "n": {"1" * 5000}}}\n', "auto", "too many digits; fix or remove line 31"),
        (
            "a.json",
            f'[{{"text": "a"}}, {{"text": "a", "n": {"1" * 5000}}}]',
            "auto",
            "item 2: not valid JSON: a number",
        ),
        ("a.jsonl", LINES + "[" * 100_000, "auto", "nested too deeply"),
    ],
)
def test_the_advice_names_the_right_format(name: str, content: str, format: str, advice: str, tmp_path: Path) -> None:
    with refuses(name, advice):
        read(tmp_path / name, content, format=format)


@pytest.mark.parametrize("indent", [None, 1])
def test_a_single_object_is_read_alike_on_one_line_and_on_several(
    indent: int | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = json.dumps({"data": OBJECTS}, indent=indent)
    assert read(tmp_path / "a.json", content) == [content]
    assert resolved(tmp_path / "a.json") == "text"
    assert ["JSON" in record.getMessage() for record in caplog.records] == [True]
