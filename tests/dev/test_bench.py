"""Tests of the benchmarks: the correctness of the measurements, not the speed."""

import contextlib
import functools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from bigramlm.dev.bench import commands, gpt2, main, versions
from bigramlm.dev.bench.measure import Comparison, alternate
from bigramlm.device.peak import Peak
from bigramlm.utils import paths
from tests.helpers import SHORT, Cli, assert_refused, refuses

SMALL = ("data=bundled", "logger=none", "model=gpt", "model.n_embd=16", "model.n_layer=1", "device.threads=1")


def test_pairs_alternate_after_a_warm_up() -> None:
    calls: list[str] = []

    def measure(name: str) -> dict[str, float]:
        calls.append(name)
        return {"x": float(len(calls))}

    a, b = alternate(3, lambda: measure("a"), lambda: measure("b"))
    assert "".join(calls) == "ababbaab"
    assert [figures["x"] for figures in a] == [3, 6, 7]
    assert [figures["x"] for figures in b] == [4, 5, 8]
    calls.clear()
    alternate(1, lambda: measure("a"), lambda: measure("b"), warm_up=False)
    assert "".join(calls) == "ab"


def test_ratios_are_computed_within_pairs() -> None:
    comparison = Comparison("title", [{"x": 1}, {"x": 4}, {"x": 9}], [{"y": 1}, {"y": 2}, {"y": 3}], "x", "y")
    assert comparison.ratios == [1, 2, 3]
    assert str(comparison) == "title\n  4 (1 to 9) / 2 (1 to 3)\n  ratio 2 (1 to 3), 3 pairs"


def test_time_to_loss_is_the_time_of_the_first_evaluation_that_reaches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check the figures of two fake runs.

    Ours has val loss 2.0 at 3 s and 1.5 at 8 s, and takes 9 s. Theirs ends with 1.7 after 20 s.
    """
    seeds: list[str] = []

    def run(folder: Path, recipe: str, seed: str, *evaluation: str) -> tuple[float, Path]:
        seeds.append(seed)
        ours = recipe.startswith("experiment=gpt")
        losses = {0.5: 4.0, 3.0: 2.0, 8.0: 1.5} if ours else {1.0: 4.0, 20.0: 1.7}
        run_folder = tmp_path / str(len(seeds))
        run_folder.mkdir()
        lines = [
            {"step": n, "seconds": seconds, "val/loss": loss, "tokens_per_second": 1.0}
            for n, (seconds, loss) in enumerate(losses.items())
        ]
        (run_folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        summary = {"seconds": 9.0 if ours else 20.0, "step": 9, "final": {"val/loss": 1.5 if ours else 1.7}}
        (run_folder / "summary.json").write_text(json.dumps(summary))
        return 0.0, run_folder

    monkeypatch.setattr(commands, "run", run)
    monkeypatch.setattr(commands, "temporary_folder", lambda: contextlib.nullcontext(tmp_path))
    monkeypatch.setattr(commands, "evaluation_overrides", lambda *recipe, times: [])
    reached, whole, losses = commands.gpt(2)
    assert reached.ratios == [8 / 20] * 2
    assert whole.ratios == [9 / 20] * 2
    assert losses.ratios == [1.5 / 1.7] * 2
    assert seeds == ["seed=1", "seed=1", "seed=2", "seed=2"]


def test_compared_runs_evaluate_equally_often_on_all_of_val() -> None:
    for block_size, batch_size, n_steps in ((64, 12, 1999), (16, 4, 40)):
        shape = (f"data.block_size={block_size}", f"data.batch_size={batch_size}", f"trainer.steps={n_steps}")
        every, batches = commands.evaluation_overrides("data=bundled", *shape, times=20)
        assert math.ceil(n_steps / int(every.partition("=")[2])) == 20
        covered = int(batches.partition("=")[2]) * block_size * batch_size
        assert 0 <= covered - 6948 < block_size * batch_size


def test_step_compares_slices_of_one_run(tool: Cli) -> None:
    ended = tool(main.main, "step", *SMALL, "--pairs", "2", "--json")
    assert ended.code == 0, ended.err
    result = json.loads(ended.out.splitlines()[-1])
    assert "the Trainer / a bare loop" in result["title"]
    assert len(result["ratios"]) == 2
    assert all(a > 0 and b > 0 for a, b in zip(result["a"], result["b"], strict=True))


def test_profile_reports_phases_and_lower_bounds(tool: Cli) -> None:
    ended = tool(main.main, "profile", *SMALL, "optim.grad_clip=1", "--pairs", "1")
    assert ended.code == 0, ended.err
    for phase in ("batch", "forward", "backward", "clip", "optimizer", "at least"):
        assert f"\n  {phase}" in ended.out


SHAPE: dict[str, Any] = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 8, "batch_size": 2}


@pytest.fixture
def small_gpt2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the benchmark of GPT-2's shape small and short."""
    monkeypatch.setattr(gpt2, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(gpt2, "Workload", functools.partial(gpt2.Workload, **SHAPE))
    monkeypatch.setattr("bigramlm.device.peak.peak", lambda device: Peak(1e15, "made up"))


def test_gpt2_compares_the_compiled_with_the_uncompiled_step(small_gpt2: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the eager backend, which traces the step but does not compile it."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, *, mode, **k: compile_(function, **k, backend="eager"))
    rate, mfu = gpt2.gpt2(1)
    for a, b in ((rate.a, mfu.a), (rate.b, mfu.b)):
        assert b[0] / a[0] == pytest.approx(mfu.a[0] / rate.a[0])
        assert 0 < b[0] < 1


def test_gpt2_fails_if_the_step_does_not_compile(small_gpt2: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> object:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fails)
    with refuses("compile", field="bench gpt2"):
        next(gpt2.gpt2(1))


@pytest.mark.slow
def test_bits_reports_the_first_difference_between_two_versions(
    tool: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare a checkout with itself, then with a copy with another default seed."""
    monkeypatch.setattr(
        versions, "CASES", {"short": versions.Case(SHORT), "sweep": versions.Case(SHORT, is_sweep=True)}
    )
    unchanged = tool(main.main, "bits", str(paths.home()), str(paths.home()))
    assert (unchanged.code, unchanged.out) == (0, "short: bit-equal\nsweep: bit-equal\n"), unchanged.err
    changed_tree = tmp_path / "changed"
    for folder in ("bigramlm", "conf", "hydra_plugins", "scripts", "sources"):
        shutil.copytree(paths.home() / folder, changed_tree / folder)
    config = changed_tree / "bigramlm" / "config" / "run_config.py"
    config.write_text(config.read_text("utf-8").replace("seed: int = 1337", "seed: int = 1"), "utf-8")
    changed = tool(main.main, "bits", str(paths.home()), str(changed_tree))
    assert changed.code == 1
    assert [line.split(":")[0] for line in changed.out.splitlines()] == ["short", "sweep"]
    assert "model.safetensors" in changed.out


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (("bits", "HEAD"), "HEAD", "OLD NEW"),
        (("versions", "HEAD", "nosuch"), "nosuch", "is neither a commit"),
        (("bigram", "--pairs", "0"), "--pairs", "0"),
        (("startup", "optim.lr=1"), "optim.lr", "1"),
        (("step", "optim.lr=-1"), "optim.lr", "-1"),
    ],
    ids=str,
)
def test_invalid_arguments_are_refused_in_one_line(
    arguments: tuple[str, ...], field: str, value: str, tool: Cli
) -> None:
    ended = tool(main.main, *arguments)
    assert_refused(ended, field=field, value=value)
    assert ended.err.count("\n") == 1
