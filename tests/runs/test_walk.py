"""Tests of how commands find runs: links, loops, runs in runs, their order."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bigramlm.cli import runs as runs_command
from bigramlm.cli import sample
from bigramlm.runs.find import find, find_sweep
from bigramlm.utils import paths
from tests.helpers import SHORT, Cli

LINKS = pytest.mark.skipif(os.name == "nt", reason="Windows does not let every user make links")


@pytest.fixture(autouse=True)
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the test's outputs, which contains no run yet."""
    monkeypatch.setattr(paths, "home", lambda: tmp_path)
    folder = tmp_path / "outputs"
    folder.mkdir()
    return folder


def add_run(folder: Path, started: str | None) -> Path:
    folder.mkdir(parents=True)
    saved = {"status": "completed", "step": 1} | ({} if started is None else {"started": started})
    (folder / "summary.json").write_text(json.dumps(saved))
    (folder / "config.yaml").write_text("model:\n  name: bigram\n")
    return folder


def add_runs(outputs: Path) -> None:
    """Add two runs, and a sweep of two jobs that has begun last."""
    add_run(outputs / "runs" / "day" / "a", "2026-01-01T00:00:00+00:00")
    add_run(outputs / "runs" / "day" / "b", "2026-01-02T00:00:00+00:00")
    for number in (0, 1):
        add_run(outputs / "sweeps" / "s" / str(number), f"2026-01-03T00:00:0{number}+00:00")
    jobs = [{"number": number, "overrides": [f"seed={number}"]} for number in (0, 1)]
    plan = {"fields": ["seed"], "settled": {}, "planned": 0, "jobs": jobs}
    (outputs / "sweeps" / "s" / "sweep.json").write_text(json.dumps(plan))


def listed(tool: Cli, *arguments: str) -> list[str]:
    """Return the folders in the list of runs."""
    done = tool(runs_command.main, "list", "--json", *arguments)
    assert done.code == 0, done.err
    return [json.loads(line)["folder"] for line in done.out.splitlines()]


def move_and_link(path: Path, to: Path) -> None:
    path.rename(to)
    path.symlink_to(to)


LAYOUTS: dict[str, Callable[[Path, Path], object]] = {
    "no link": lambda outputs, disk: None,
    "outputs": move_and_link,
    "the folder of runs": lambda outputs, disk: move_and_link(outputs / "runs", disk),
    "the folder of sweeps": lambda outputs, disk: move_and_link(outputs / "sweeps", disk),
    "a day": lambda outputs, disk: move_and_link(outputs / "runs" / "day", disk),
    "a run": lambda outputs, disk: move_and_link(outputs / "runs" / "day" / "a", disk),
    "a sweep": lambda outputs, disk: move_and_link(outputs / "sweeps" / "s", disk),
    "a job": lambda outputs, disk: move_and_link(outputs / "sweeps" / "s" / "1", disk),
    "a second name": lambda outputs, disk: (outputs / "alias").symlink_to(outputs / "runs"),
    "a second name of a run": lambda outputs, disk: (outputs / "0").symlink_to(outputs / "runs" / "day" / "a"),
    "a loop": lambda outputs, disk: (outputs / "runs" / "loop").symlink_to(outputs),
    "a link to itself": lambda outputs, disk: (outputs / "runs" / "self").symlink_to(outputs / "runs" / "self"),
    "a dangling link": lambda outputs, disk: (outputs / "runs" / "gone").symlink_to(disk),
}


@LINKS
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_command_finds_each_run_once(
    outputs: Path, tmp_path: Path, tool: Cli, layout: Callable[[Path, Path], object]
) -> None:
    add_runs(outputs)
    layout(outputs, tmp_path / "disk")
    names = ["runs/day/a", "runs/day/b", "sweeps/s/0", "sweeps/s/1"]
    assert listed(tool) == [str(outputs / name) for name in names]
    assert find("latest") == outputs / "sweeps" / "s" / "1"
    assert find_sweep("latest") == outputs / "sweeps" / "s"
    for arguments, found in (
        (("report", str(outputs)), "4 runs: 4 completed"),
        (("report", str(outputs / "runs" / "day")), "2 runs: 2 completed"),
        (("report", "latest"), "2 jobs: 2 completed"),
        (("results", "latest"), "2 jobs: 2 completed"),
        (("diff", "latest", "day/a"), "s/1"),
    ):
        done = tool(runs_command.main, *arguments)
        assert done.code == 0, done.err
        assert found in done.out


@LINKS
def test_runs_behind_a_link_are_trained_sampled_and_resumed(outputs: Path, tmp_path: Path, cli: Cli, tool: Cli) -> None:
    (tmp_path / "disk").mkdir()
    (outputs / "runs").symlink_to(tmp_path / "disk")
    for _ in range(2):
        ended = cli(*SHORT, run_dir=False)
        assert ended.code == 0, ended.err
    found = listed(tool)
    assert len(found) == 2
    assert found[1] in tool(sample.main, "max_new_tokens=3").err
    assert cli("resume=latest", "trainer.steps=7", run_dir=False).code == 0
    assert (Path(found[1]) / "checkpoints" / "step_7").is_dir()


def test_runs_in_runs_are_found(outputs: Path, tool: Cli) -> None:
    """Earlier versions let a run begin in such folders."""
    add_runs(outputs)
    add_run(outputs / "runs" / "day" / "a" / "inside", "2026-01-05T00:00:00+00:00")
    for name in ("summary.json", "config.yaml"):
        shutil.copy(outputs / "runs" / "day" / "a" / name, outputs / "runs")
    assert find("latest") == outputs / "runs" / "day" / "a" / "inside"
    assert len(listed(tool)) == 6
    assert "6 runs" in tool(runs_command.main, "report", str(outputs)).out


@LINKS
@pytest.mark.parametrize("name", ["runs/day/a/link", "runs/day/a/inside/link", "sweeps/s/2"])
def test_a_link_in_a_run_leads_to_no_further_folders(outputs: Path, tmp_path: Path, tool: Cli, name: str) -> None:
    """It may lead to all files of the disk."""
    add_runs(outputs)
    add_run(tmp_path / "disk" / "deep" / "run", "2026-01-05T00:00:00+00:00")
    (outputs / name).parent.mkdir(exist_ok=True)
    (outputs / name).symlink_to(tmp_path / "disk")
    assert len(listed(tool)) == 4
    add_run(tmp_path / "moved", "2026-01-05T00:00:00+00:00")
    (outputs / name).unlink()
    (outputs / name).symlink_to(tmp_path / "moved")
    assert listed(tool)[-1] == str(outputs / name)


def test_a_sweep_beside_other_runs_hides_none_of_them(outputs: Path, tool: Cli) -> None:
    add_runs(outputs)
    shutil.copy(outputs / "sweeps" / "s" / "sweep.json", outputs / "runs")
    add_run(outputs / "runs" / "0", "2026-01-05T00:00:00+00:00")
    assert "4 runs: 3 completed, 1 pending" in tool(runs_command.main, "report", str(outputs / "runs")).out


# Names and starts of runs in the order of starting.
ORDERS: dict[str, list[tuple[str, str | None]]] = {
    "microseconds": [
        ("runs/b", "2026-01-01T00:00:00.000001+00:00"),
        ("runs/a", "2026-01-01T00:00:00.000002+00:00"),
    ],
    "job numbers": [(f"sweeps/s/{number}", "2026-01-01T00:00:00+00:00") for number in (0, 2, 9, 10, 11, 100)],
    "an old summary before a new one": [
        ("runs/b", "2026-01-01T00:00:00+00:00"),
        ("runs/a", "2026-01-01T00:00:00.500000+00:00"),
    ],
    "time zones": [("runs/b", "2026-01-01T09:00:00+09:00"), ("runs/a", "2026-01-01T01:00:00+00:00")],
    "an unknown start": [("runs/c", None), ("runs/d", "soon"), ("runs/a", "2026-01-01T00:00:00+00:00")],
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_runs_are_in_the_order_of_starting(outputs: Path, tool: Cli, order: list[tuple[str, str | None]]) -> None:
    folders = [add_run(outputs / name, started) for name, started in order]
    assert find("latest") == folders[-1]
    assert listed(tool) == [str(folder) for folder in folders]
    assert listed(tool, "--sort", "when", "--reverse") == [str(folder) for folder in reversed(folders)]
    assert listed(tool, "--sort", "model") == [str(folder) for folder in folders], "ties are in the order of starting"


def test_a_start_is_recorded_to_the_microsecond(cli: Cli, tool: Cli) -> None:
    ended = cli("-m", *SHORT, "trainer.steps=1", "seed=1,2,3", run_dir=False)
    assert ended.code == 0, ended.err
    assert [Path(folder).name for folder in listed(tool)] == ["0", "1", "2"]
    starts = [json.loads(line)["when"] for line in tool(runs_command.main, "list", "--json").out.splitlines()]
    assert len(set(starts)) == 3
    assert {len(start) for start in starts} == {len("2026-01-01T00:00:00.000000+00:00")}
