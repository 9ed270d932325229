"""Tests of the examples: each runs as a user runs it."""

import runpy
import sys
from pathlib import Path

import pytest

import bigramlm
from bigramlm.utils import paths
from tests.helpers import SHORT

EXAMPLES = sorted((paths.home() / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(paths, "home", lambda: tmp_path)
    monkeypatch.setattr(sys, "argv", [str(example)])
    bigramlm.train(*SHORT)
    runpy.run_path(str(example), run_name="__main__")
    captured = capfd.readouterr()
    assert "status='completed'" in captured.out
    assert captured.err == ""
