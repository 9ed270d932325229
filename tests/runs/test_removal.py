"""Tests of the deletion of runs and sweeps."""

import json
from pathlib import Path
from typing import Any

import pytest

from bigramlm.cli import runs as runs_command
from bigramlm.runs import find
from bigramlm.runs.folder import RunFolder
from tests.helpers import Cli, assert_refused


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an outputs/ folder: two runs, an adapter on one of them, and a sweep."""
    folder = tmp_path / "outputs"
    for module in (find, runs_command):
        monkeypatch.setattr(module, "outputs", lambda: folder)
    for name, status in (
        *(
            ("runs/2026-01-01/a", "completed"),
            ("runs/2026-01-01/b", "failed"),
            ("runs/2026-01-02/adapter", "completed"),
        ),
        *(("sweeps/s/0", "completed"), ("sweeps/s/1", "failed")),
    ):
        run = folder / name
        (run / "checkpoints" / "step_5").mkdir(parents=True)
        write_summary(run, status=status)
        for file in ("config.yaml", "metrics.jsonl", "events.out.tfevents.1.host.2.0", "checkpoints/last", "look.html"):
            (run / file).touch()
    write_summary(folder / "runs/2026-01-02/adapter", base={"place": str(folder / "runs/2026-01-01/a"), "sha256": "0"})
    plan: dict[str, Any] = {"fields": ["seed"], "settled": {}, "planned": 0}
    jobs = [{"number": number, "overrides": [f"seed={number}"], "asked": ""} for number in (0, 1)]
    (folder / "sweeps" / "s" / "sweep.json").write_text(json.dumps({**plan, "jobs": jobs}))
    return folder


def write_summary(run: Path, **values: Any) -> None:
    path = run / "summary.json"
    before = json.loads(path.read_text()) if path.exists() else {"id": run.name, "step": 5, "overrides": []}
    path.write_text(json.dumps({**before, **values}))


def test_nothing_is_deleted_without_yes(outputs: Path, tool: Cli) -> None:
    done = tool(runs_command.main, "rm", "2026-01-01/b")
    assert done.code == 0, done.err
    assert "2026-01-01/b" in done.out
    assert "nothing is deleted yet; add --yes" in done.out
    assert (outputs / "runs" / "2026-01-01" / "b" / "summary.json").exists()


def test_runs_and_sweeps_are_deleted(outputs: Path, tool: Cli) -> None:
    done = tool(runs_command.main, "rm", "2026-01-01/b", str(outputs / "sweeps" / "s"), "--yes")
    assert done.code == 0, done.err
    assert "2 folders" in done.out
    assert sorted(path.name for path in outputs.glob("*/*")) == ["2026-01-01", "2026-01-02"]
    assert [path.name for path in (outputs / "runs" / "2026-01-01").iterdir()] == ["a"]
    assert tool(runs_command.main, "rm", "2026-01-02/adapter", "2026-01-01/a", "--yes").code == 0
    assert not list((outputs / "runs").iterdir()), "an empty folder of a day is deleted"


def test_filters_select_runs_but_no_jobs(outputs: Path, tool: Cli) -> None:
    assert tool(runs_command.main, "rm", "status=failed", "--yes").code == 0
    assert not (outputs / "runs" / "2026-01-01" / "b").exists()
    assert (outputs / "sweeps" / "s" / "1").exists()
    assert_refused(tool(runs_command.main, "rm", "status=failed", "--yes"), "no run matches these filters")


def test_what_others_need_stays(outputs: Path, tool: Cli) -> None:
    """A job of a sweep, the base of an adapter, the weights that a run starts from."""
    refused = tool(runs_command.main, "rm", "s/1", "2026-01-01/a", "--yes")
    assert_refused(refused, "no run or sweep can be deleted")
    assert "s/1: it is a job of the sweep s" in refused.err
    assert "2026-01-01/a: the adapter" in refused.err
    write_summary(outputs / "sweeps" / "s" / "0", overrides=[f"init_from={outputs / 'runs/2026-01-01/b'}"])
    assert tool(runs_command.main, "rm", "2026-01-01/b").code == 0, "the job is completed"
    write_summary(outputs / "sweeps" / "s" / "0", status="stopped")
    jobs = outputs / "sweeps" / "s" / "sweep.json"
    jobs.write_text(jobs.read_text().replace('"seed=0"', json.dumps(f"init_from={outputs / 'runs/2026-01-01/b'}")))
    refused = tool(runs_command.main, "rm", "2026-01-01/b", "--yes")
    assert_refused(refused, "no run or sweep can be deleted")
    assert "the unfinished run" in refused.err
    both = tool(runs_command.main, "rm", "2026-01-01/b", "s", "--yes")
    assert both.code == 0, "they are deleted together"
    assert not (outputs / "sweeps" / "s").exists()


def test_a_kept_folder_keeps_what_it_needs(outputs: Path, tool: Cli) -> None:
    (outputs / "runs" / "2026-01-02" / "adapter" / "thesis.txt").write_text("mine")
    refused = tool(runs_command.main, "rm", "2026-01-01/a", "2026-01-02/adapter", "--yes")
    assert_refused(refused, "no run or sweep can be deleted")
    assert "it contains thesis.txt, which no run writes" in refused.err
    assert (outputs / "runs" / "2026-01-01" / "a").exists()


def test_a_run_that_trains_stays(outputs: Path, tool: Cli) -> None:
    folder = outputs / "runs" / "2026-01-01" / "b"
    with RunFolder(folder).lock():
        refused = tool(runs_command.main, "rm", str(folder), "--yes")
    assert_refused(refused, "no run or sweep can be deleted")
    assert "a process trains in it" in refused.err


def test_nothing_is_deleted_through_a_link(outputs: Path, tool: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file.txt").write_text("mine")
    folder = outputs / "runs" / "2026-01-01" / "b"
    (folder / "wandb").symlink_to(tmp_path / "mine", target_is_directory=True)
    refused = tool(runs_command.main, "rm", str(folder), "--yes")
    assert_refused(refused, "no run or sweep can be deleted")
    (folder / "wandb").unlink()
    (folder / "wandb").mkdir()
    (folder / "wandb" / "latest-run").symlink_to(tmp_path / "mine", target_is_directory=True)
    assert tool(runs_command.main, "rm", str(folder), "--yes").code == 0
    assert (tmp_path / "mine" / "file.txt").read_text() == "mine"


def test_an_interrupted_deletion_is_completed_later(outputs: Path, tool: Cli) -> None:
    day = outputs / "runs" / "2026-01-01"
    (day / "b").rename(day / ".deleted_b")
    assert "2026-01-01/b" not in tool(runs_command.main, "list").out
    assert ".deleted_b" not in tool(runs_command.main, "list").out
    (outputs / "runs" / "2026-01-02" / "adapter").rename(day / "c")
    assert tool(runs_command.main, "rm", "2026-01-01/c", "--yes").code == 0
    assert [path.name for path in day.iterdir()] == ["a"]


def test_other_folders_are_refused(outputs: Path, tool: Cli, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    for target in (str(tmp_path / "other"), "2026-01-01/a/checkpoints/step_5"):
        assert_refused(tool(runs_command.main, "rm", target, "--yes"), target, "neither a run folder nor a sweep")
    assert_refused(tool(runs_command.main, "rm"), "name runs or sweeps")
    assert_refused(tool(runs_command.main, "rm", "nosuch"), "nosuch: this folder does not exist")
    assert (tmp_path / "other").exists()
