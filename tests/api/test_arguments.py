"""Tests of arguments of wrong types, which are refused in one line."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import bigramlm
from bigramlm.api import register
from bigramlm.utils import paths
from tests.helpers import SHORT, refuses, run_with


@pytest.fixture(autouse=True)
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bigramlm.Run:
    """Return a run without a model; outputs are kept in the folder of the test."""
    monkeypatch.setattr(paths, "home", lambda: tmp_path)
    run_with(tmp_path / "run", summary={"status": "completed"}, config="seed: 1", metrics='{"step": 3}\n')
    return bigramlm.Run(tmp_path / "run")


@pytest.mark.parametrize("call", [bigramlm.train, bigramlm.sweep])
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"model": 5}, ("model=5", "torch.nn.Module")),
        ({"model": [nn.Identity]}, ("model=[", "torch.nn.Module")),
        ({"model": dict}, ("model=builtins.dict", "vocab_size")),
        ({"model": len}, ("model=builtins.len", "vocab_size")),
        ({"text": b"a text"}, ("text=bytes", "str")),
        ({"text": "a\ud800"}, ("text=", "character 1 is '\\ud800'")),
        ({"data": 5}, ("data=5", "path")),
        ({"data": b"a.txt"}, ("data=b'a.txt'", "path")),
        ({"data": ["a.txt"]}, ("data=['a.txt']", "path")),
        ({"data": ""}, ("data=''", "empty")),
    ],
    ids=str,
)
def test_networks_and_texts_of_other_types(
    call: Callable[..., Any], arguments: dict[str, Any], named: tuple[str, ...]
) -> None:
    with refuses(*named):
        call(*SHORT["model" not in arguments :], **arguments)
    assert not list(paths.home().glob("outputs/*/*")), "nothing is left of a refused call"


@pytest.mark.parametrize("call", [bigramlm.train, bigramlm.sweep, bigramlm.compose])
@pytest.mark.parametrize("overrides", [(5,), (["optim.lr=1"],), ("seed=1", None), (b"seed=1",)], ids=str)
def test_overrides_of_other_types(call: Callable[..., Any], overrides: tuple[Any, ...]) -> None:
    with refuses(f"({overrides[-1]!r})", "overrides are strings"):
        call(*overrides)


def test_messages_are_one_line_whatever_was_given() -> None:
    for override in ("\n", "optim.lr=1\nseed=2", "\x1b[31m=1"):
        with refuses() as raised:
            bigramlm.compose(override)
        assert str(raised.value).isprintable()


@pytest.mark.parametrize("call", [bigramlm.load, bigramlm.Run, bigramlm.Sweep])
@pytest.mark.parametrize("where", [5, None, b"run", ["run"], ""], ids=str)
def test_folders_of_other_types(call: Callable[..., Any], where: object) -> None:
    with refuses(f"={where!r}: ", "path"):
        call(where)


def test_a_run_is_opened_by_a_str_and_only_where_there_is_one(
    run: bigramlm.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("run", tmp_path / "run"):
        assert [record["step"] for record in bigramlm.Run(folder).metrics()] == [3]
        with refuses("model='gpt'"):
            bigramlm.Run(folder, model="gpt")  # type: ignore[arg-type]
    for none in (tmp_path, "nowhere", "run/config.yaml"):
        with refuses("folder=", "contains no run", "bigramlm.load()"):
            bigramlm.Run(none)
    with refuses("run/config.yaml is a file"):
        bigramlm.load("run/config.yaml")


@pytest.mark.parametrize("extensions", [5, [5], b"a.py", {"a.py": 1}], ids=str)
def test_extensions_of_other_types(run: bigramlm.Run, extensions: Any) -> None:
    with refuses("extensions="):
        bigramlm.load(run.folder, extensions=extensions)


def test_extensions_may_be_paths(run: bigramlm.Run, tmp_path: Path) -> None:
    (tmp_path / "one_extension.py").write_text("")
    for extensions in (tmp_path / "one_extension.py", [tmp_path / "one_extension.py"]):
        assert bigramlm.load(run.folder, extensions=extensions).folder == run.folder
    with refuses("extensions=", "nowhere.py", "does not exist"):
        bigramlm.load(run.folder, extensions=[Path("nowhere.py")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": 5}, "prompt=5: must be a str"),
        ({"prompt": b"a"}, "prompt=b'a': must be a str"),
        ({"max_new_tokens": "3"}, "max_new_tokens='3': must be a whole number"),
        ({"max_new_tokens": 3.5}, "max_new_tokens=3.5: must be a whole number"),
        ({"temperature": "x"}, "temperature='x': must be a number"),
        ({"temperature": math.nan}, "temperature=nan: must be a finite number"),
        ({"temperature": -1}, "temperature=-1: must be a finite number"),
        ({"top_k": 1.5}, "top_k=1.5: must be a whole number"),
        ({"top_p": None}, "top_p=None: must be a number"),
        ({"top_p": math.nan}, "top_p=nan: must be above 0"),
        ({"stop_at_end": "no"}, "stop_at_end='no': must be True or False"),
        ({"seed": 1.5}, "seed=1.5: must be a whole number"),
        ({"seed": -1}, "seed=-1: must be 0 or more"),
        ({"seed": 2**70}, "seed=1180591620717411303424: must be 0 or more"),
    ],
    ids=str,
)
def test_settings_of_a_sample_of_other_types(run: bigramlm.Run, arguments: dict[str, Any], message: str) -> None:
    with refuses(message):
        run.sample(**arguments)


def test_logits_of_something_other_than_a_text(run: bigramlm.Run) -> None:
    for text in (5, b"ab", None, [1, 2]):
        with refuses(f"text={text!r}: must be a str"):
            run.logits(text)  # type: ignore[arg-type]


def test_registering_something_other_than_a_class() -> None:
    for group, name in ((["model"], "x"), ("model", 5), ("model", "")):
        with refuses(f"register({group!r}"):
            register(group, name)  # type: ignore[arg-type]
    for group in ("model", "logger"):
        with refuses(f"{group}=x: 5 must be a class"):
            register(group, "x")(5)  # type: ignore[type-var]
