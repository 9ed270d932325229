"""Tests of self-contained pages: scripts, data, and the files they replace."""

import base64
import hashlib
import json
import re
from pathlib import Path

import pytest

from bigramlm.errors import UserError
from bigramlm.utils.html import render, shown, to_json, write
from tests.helpers import HOSTILE

OWN = '<meta name="generator" content="bigramlm test">'


def written(path: Path, content: str = OWN) -> str:
    write(path, lambda: content, generator="bigramlm test", noun="test page")
    return path.read_text("utf-8")


def test_page_replaces_a_page_of_the_same_generator(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    assert written(path) == OWN
    assert written(path, OWN + "second") == OWN + "second"


@pytest.mark.parametrize("content", ["my notes", '<meta name="generator" content="bigramlm other">'])
def test_other_files_are_not_replaced(tmp_path: Path, content: str) -> None:
    path = tmp_path / "page.html"
    path.write_text(content, "utf-8")
    with pytest.raises(UserError, match="is not a test page, so it is not overwritten"):
        write(path, lambda: pytest.fail("the page is made in vain"), generator="bigramlm test", noun="test page")
    assert path.read_text("utf-8") == content


def test_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a folder: choose a file, such as .*test\.html"):
        written(tmp_path)
    with pytest.raises(UserError, match="does not exist: create this folder"):
        written(tmp_path / "missing" / "page.html")


def test_json_cannot_end_its_script_element() -> None:
    text = str(to_json({"name": HOSTILE}))
    assert "<" not in text
    assert json.loads(text) == {"name": HOSTILE}
    with pytest.raises(ValueError, match="JSON"):
        to_json([float("nan")])


def test_characters_that_a_browser_obeys_are_escaped_everywhere() -> None:
    assert shown({"a\u202e": ["b\u2028", 1, None], "c": Path("d\u200f")}) == {
        "a\\u202e": ["b\\u2028", 1, None],
        "c": "d\\u200f",
    }


def test_policy_names_the_hashes_of_the_two_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "own_page"
    package.mkdir()
    template = '{% extends "base.html" %}{% block body %}<main>{{ title }}</main>{% endblock %}'
    own = {"__init__.py": "", "page.html": template, "page.css": ".own { top: 0; }", "own.js": 'const own = "é";\r\n'}
    for name, content in own.items():
        (package / name).write_text(content, "utf-8", newline="")
    monkeypatch.syspath_prepend(tmp_path)
    text = render("own_page", scripts=["own.js"], generator="g", data={"a": HOSTILE}, title=HOSTILE, version="1")
    policy = re.search(r"script-src ([^;]*);", text)
    assert policy is not None
    scripts = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts]
    assert policy[1].split() == [*hashes, "'unsafe-eval'"]
    assert len(hashes) == 2
    assert scripts[1].endswith('const own = "é";\n'), "a parser normalizes line ends, which changes the hash"
    assert "<b>bold" not in text
    assert ".own { top: 0; }" in text
