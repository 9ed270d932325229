"""Tests of the reading of files that anyone may have made."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from bigramlm.utils.documents import MAX_BYTES, no_link, open_own, read, read_json, read_yaml, read_yaml_text

POSIX = pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes in folders")


@POSIX
def test_a_pipe_or_a_device_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for name in ("pipe", "link"):
        with pytest.raises(ValueError, match="regular"):
            read(tmp_path / name)
    with pytest.raises(OSError):  # noqa: PT011 - a folder is refused by the system, in words of its own
        read(tmp_path)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="larger"):
        read(tmp_path / "sparse")
    (tmp_path / "full").write_bytes(b"x" * MAX_BYTES)
    assert len(read(tmp_path / "full")) == MAX_BYTES
    assert read(tmp_path / "full", limit=MAX_BYTES) == b"x" * MAX_BYTES


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 200_000, "{", "\ufeff{}", "", "1" * 5000, str(10**400)])
def test_json_that_is_deep_or_damaged_is_a_value_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text, "utf-8")
    with pytest.raises(ValueError):  # noqa: PT011 - in the words of the library
        read_json(tmp_path / "a.json")


ANCHORS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(f'*{before}' for _ in range(9))}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (ANCHORS, "alias"),
        ("a: &x 1\n", "anchor"),
        *((f"a: !!{tag}\n", "tag") for tag in ("timestamp 2001-01-01", "binary aGVs", "bool x", "int ''", "set {a}")),
        ("a: ! 5\n", "tag"),
        (f"a: 0x{'f' * 5000}\n", "digits"),
        (f"a: 1{':59' * 5000}\n", "digits"),
        ("[" * 60 + "]" * 60, "deep"),
        ("[" * 200_000, "deep|flow level"),
        ("a: [", "YAML"),
        ("a: 1\n\tb: 2", "YAML"),
        ("\0", "YAML"),
        ("x" * (1 << 22), "larger"),
    ],
    ids=[
        *("aliases", "anchor", "date", "bytes", "no truth value", "no integer", "set", "no tag", "hexadecimal"),
        *("sexagesimal", "deep", "very deep", "cut", "tab", "NUL", "long"),
    ],
)
def test_yaml_is_bounded(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "a.yaml").write_text(text, "utf-8")
    with pytest.raises(ValueError, match=problem):
        read_yaml_text(tmp_path / "a.yaml")


def test_yaml_runs_no_code(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: !!python/object/apply:os.mkdir [hacked]\n")
    with pytest.raises(ValueError, match="YAML"):
        read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "value",
    [1e-3, 1e-05, 1.0, 3, "1e-3", "true", True, None, "2026-11-26", "1:30", "a\nb", "é\u2028", [1, "x"], {"b": -2}],
)
def test_yaml_is_read_as_omegaconf_reads_it(tmp_path: Path, value: Any) -> None:
    text = OmegaConf.to_yaml(OmegaConf.create({"a": value}))
    (tmp_path / "a.yaml").write_text(text, "utf-8")
    found = read_yaml(tmp_path / "a.yaml")
    assert found == OmegaConf.to_container(OmegaConf.create(text)) == {"a": value}
    assert type(found["a"]) is type(value)
    assert json.dumps(found) == json.dumps({"a": value})


@POSIX
def test_nothing_is_appended_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "link").symlink_to("mine")
    with pytest.raises(OSError):  # noqa: PT011 - in the words of the system
        open_own(tmp_path / "link", "a")
    with open_own(tmp_path / "new", "a") as file:
        file.write("a\n")
    assert ((tmp_path / "mine").read_text(), (tmp_path / "new").read_bytes()) == ("mine", b"a\n")


@POSIX
def test_a_link_is_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "link").symlink_to("mine")
    for _ in range(2):
        with pytest.raises(ValueError, match="link"):
            no_link(tmp_path / "link")
    (warning,) = caplog.messages
    assert str(tmp_path / "link") in warning
    assert no_link(tmp_path / "mine") == tmp_path / "mine"
    assert no_link(tmp_path / "none") == tmp_path / "none"
