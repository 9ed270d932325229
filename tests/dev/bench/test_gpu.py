"""Tests of the benchmark of a GPU, at toy size."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigramlm.dev import gpu_table
from bigramlm.dev.bench import gpu, main
from bigramlm.dev.bench.gpu_parts import PARTS
from tests.helpers import Cli, assert_refused


def run(tool: Cli, path: Path, *words: str) -> tuple[Any, dict[str, Any]]:
    ended = tool(main.main, "gpu", "--output", str(path), *words)
    return ended, json.loads(path.read_text("utf-8"))


def test_chosen_parts_run_at_toy_size_without_a_gpu(tool: Cli, tmp_path: Path) -> None:
    ended, result = run(tool, tmp_path / "new" / "card.json", "--parts", "batches, sampling")
    assert ended.code == 0, ended.err
    assert "toy size" in ended.err
    assert list(result["parts"]) == ["sampling", "batches"]
    for part in result["parts"].values():
        assert part["problem"] == ""
        assert all(value > 0 and math.isfinite(value) for value in part["figures"].values())
        for name in part["figures"]:
            assert name in ended.out
    assert {"card", "kind", "driver", "torch", "commit", "date"} <= result.keys()


@pytest.mark.slow
def test_every_part_runs_and_gives_the_figures_of_the_table(tool: Cli, tmp_path: Path) -> None:
    ended, result = run(tool, tmp_path / "card.json")
    assert ended.code == 0, ended.out + ended.err
    assert list(result["parts"]) == list(PARTS)
    missing = {f"{part}: {name}" for part, name, _, _ in gpu_table.ROWS if name not in result["parts"][part]["figures"]}
    of_a_gpu = ("1.47", "peak GB", "tf32", "1M ", "3M ", "10M ", "gpt: ratio")  # or of a model above toy size
    assert not [name for name in missing if not any(word in name for word in of_a_gpu)]


def failing(kind: str) -> list[str]:
    """Return the command of a part that prints a figure, and then fails or hangs."""
    end = {"fails": "print('x\\nerror: no memory', file=sys.stderr); sys.exit(2)", "hangs": "time.sleep(600)"}[kind]
    return [sys.executable, "-c", f"import sys, time; print('{{\"a\": 1.5}}', flush=True); {end}"]


@pytest.mark.parametrize("kind", ["fails", "hangs"])
def test_the_figures_of_a_part_that_ends_early_stay(
    kind: str, tool: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original: Callable[..., Any] = gpu.subprocess.Popen

    def start(command: list[str], **options: Any) -> Any:
        return original(failing(kind) if command[-2] == "gpt2" else command, **options)

    monkeypatch.setattr(gpu.subprocess, "Popen", start)
    monkeypatch.setitem(gpu.SECONDS, "gpt2", (0, 1))
    monkeypatch.setattr(gpu, "describe", lambda kind: {"card": "made up"})
    words = ["--parts", "gpt2,batches", "--minutes", "0.05" if kind == "hangs" else "9"]
    ended, result = run(tool, tmp_path / "card.json", *words)
    assert ended.code == (1 if kind == "fails" else 0)
    assert result["parts"]["gpt2"]["figures"] == {"a": 1.5}
    assert ("no memory" if kind == "fails" else "stopped") in result["parts"]["gpt2"]["problem"]
    assert "gpt2: " in ended.out
    assert list(result["parts"]) == ["gpt2", "batches"]
    if kind == "fails":
        assert result["parts"]["batches"]["problem"] == "", "the other parts go on"


def test_a_part_is_skipped_if_the_time_is_too_short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(gpu, "describe", lambda kind: {"card": "made up", "kind": kind})
    parts = list(gpu.gpu(1, minutes=0.1, output=tmp_path / "card.json"))
    assert [part.name for part in parts] == list(PARTS)
    assert all("skipped" in part.problem and part.ok for part in parts)
    assert [line for line in str(parts[0]).splitlines() if "skipped" in line]


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (("gpu", "--parts", "gpt2,none"), "--parts"),
        (("gpu", "--minutes", "0"), "--minutes"),
        (("gpu", "--minutes", "nan"), "--minutes"),
        (("step", "--parts", "gpt2"), "--parts"),
        (("mps", "optim.lr=1"), "optim.lr"),
    ],
)
def test_invalid_options_are_refused(words: tuple[str, ...], field: str, tool: Cli) -> None:
    assert_refused(tool(main.main, *words), field)
