"""Tests of the examples: each runs as a user runs it."""

import runpy
import sys
from pathlib import Path

import nbformat
import pytest

import bigramlm
from bigramlm.dev.notebook import NOTEBOOK, executed, local_paths
from bigramlm.utils import paths
from tests.helpers import SHORT

EXAMPLES = sorted((paths.home() / "examples").glob("*.py"))


def test_the_notebook_runs(tmp_path: Path) -> None:
    notebook = executed(steps=20, cwd=tmp_path)
    assert sum(bool(cell.get("outputs")) for cell in notebook.cells) >= 7


def test_the_saved_notebook_has_outputs_without_paths() -> None:
    content = NOTEBOOK.read_text("utf-8")
    assert len(content) <= 1_000_000
    notebook = nbformat.reads(content, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "executed from top to bottom"
    assert sum("image/png" in str(cell.outputs) for cell in cells) == 3
    assert not local_paths(notebook)
    assert "Error" not in str([cell.outputs for cell in cells])
    cells[0].outputs = [{"text": "in /home/someone/x.py"}]
    assert local_paths(notebook) == ["/home/someone/x.py"]


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
