"""Tests of texts of others on a terminal, in a pipe and in a log."""

import io
import logging
from pathlib import Path

import pytest

from bigramlm.errors import visible
from bigramlm.utils.console import PlainFormatter, note, open_streams, show

# A colour, a title, a mark that reverses the text, and a line end as on Windows.
OBEYED = "\x1b[31m\x1b]0;title\x07\u202eright\u2069\x9b5m\r\n"
SHOWN = "\\x1b[31m\\x1b]0;title\\x07\\u202eright\\u2069\\x9b5m\\r\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_what_it_would_obey_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, expected in ((Terminal(), SHOWN), (io.StringIO(), OBEYED)):
        monkeypatch.setattr("sys.stdout", stream)
        show(OBEYED, end="")
        assert stream.getvalue() == expected


def test_standard_error_gets_what_a_terminal_would_obey_escaped(capfd: pytest.CaptureFixture[str]) -> None:
    note(OBEYED)
    assert capfd.readouterr().err == SHOWN + "\n"


def test_other_characters_stay_as_they_are() -> None:
    text = "é 日本\u3000語 \U0001f469\u200d\U0001f467 \xa0 \ttab\n عربي\n"
    assert visible(text) == text


def test_a_name_in_the_log_is_one_line(tmp_path: Path) -> None:
    name = "a\nerror: all is lost \x1b[2J"
    shown = "a\\nerror: all is lost \\x1b[2J"
    for argument in (name, tmp_path / name, ValueError(name)):
        record = logging.LogRecord("log", logging.INFO, "", 0, "first\nnot %s: %d", (argument, 3), None)
        assert PlainFormatter("%(message)s").format(record) == f"first\nnot {str(argument).replace(name, shown)}: 3"
        assert record.args == (argument, 3), "other handlers get the record itself"


class Tee:
    """An object that the user has put in place of a stream."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


def test_an_object_that_can_only_write_is_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = Tee(), Tee()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    with open_streams():
        assert show(OBEYED, end="")
        note("a note")
    assert (out.text, err.text) == (OBEYED, "a note\n")
