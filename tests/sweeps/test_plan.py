"""Tests of the plan of a sweep: a damaged plan is rebuilt from the jobs."""

import json
import os
import shutil
from pathlib import Path

import pytest

from bigramlm.cli import runs
from bigramlm.sweeps.plan import Sweep
from tests.helpers import Cli, assert_refused, refuses, summary, table
from tests.sweeps.helpers import SHORT

DAMAGED = pytest.mark.parametrize("content", [b"", bytes(300), b'{"fields": ["see'], ids=["empty", "zeros", "cut off"])


@DAMAGED
def test_a_sweep_with_a_damaged_plan_continues(existing_sweep: Path, cli: Cli, content: bytes) -> None:
    before = table(existing_sweep, but={"folder"})
    plan = json.loads((existing_sweep / "sweep.json").read_text("utf-8"))
    done = {job: (existing_sweep / job / "summary.json").read_bytes() for job in "01"}
    (existing_sweep / "sweep.json").write_bytes(content)
    ended = cli("-m", *SHORT, "seed=1,2", f"sweep={existing_sweep}", run_dir=False)
    assert ended.code == 0, ended.err
    assert len([line for line in ended.err.splitlines() if "sweep.json" in line]) == 1
    assert done == {job: (existing_sweep / job / "summary.json").read_bytes() for job in "01"}, "no job runs again"
    assert table(existing_sweep, but={"folder"}) == before
    assert json.loads((existing_sweep / "sweep.json").read_text("utf-8")) == plan
    kept = [path.read_bytes() for path in existing_sweep.glob("damaged_sweep.json.*")]
    assert kept == ([content] if content.strip(b"\0") else [])


@DAMAGED
def test_results_and_report_need_no_plan(existing_sweep: Path, tool: Cli, content: bytes) -> None:
    expected = tool(runs.main, "results", str(existing_sweep)).out
    (existing_sweep / "sweep.json").write_bytes(content)
    ended = tool(runs.main, "results", str(existing_sweep))
    assert (ended.code, ended.out) == (0, expected), ended.err
    assert tool(runs.main, "report", str(existing_sweep)).code == 0
    assert (existing_sweep / "sweep.json").read_bytes() == content, "reading repairs nothing"


def test_a_job_that_had_not_begun_is_planned_again(existing_sweep: Path, cli: Cli) -> None:
    (existing_sweep / "sweep.json").write_text("")
    ended = cli("-m", *SHORT, "seed=1,2,3", f"sweep={existing_sweep}", run_dir=False)
    assert ended.code == 0, ended.err
    assert {row["seed"]: row["status"] for row in table(existing_sweep)} == dict.fromkeys("123", "completed")


def test_a_job_with_a_damaged_summary_is_not_lost(existing_sweep: Path, cli: Cli) -> None:
    before = summary(existing_sweep / "1")
    for path in (existing_sweep / "0" / "summary.json", existing_sweep / "1" / "summary.json"):
        path.write_text("")
    ended = cli("-m", *SHORT, "seed=1,2", f"sweep={existing_sweep}", run_dir=False)
    assert ended.code == 0, ended.err
    after = summary(existing_sweep / "1")
    assert (after["final"], after["id"]) == (before["final"], before["id"])
    assert sorted(path.name for path in existing_sweep.iterdir() if path.is_dir()) == ["0", "1"]


@pytest.mark.parametrize("content", ["", '{"of": "another program"}', "[]"])
def test_a_plan_that_cannot_be_rebuilt_is_refused(tmp_path: Path, cli: Cli, content: str) -> None:
    (tmp_path / "sweep.json").write_text(content)
    with refuses("sweep.json"):
        Sweep(tmp_path)
    assert_refused(cli("-m", *SHORT, "seed=1,2", f"sweep={tmp_path}", run_dir=False), tmp_path / "sweep.json")
    assert (tmp_path / "sweep.json").read_text() == content


@pytest.mark.parametrize("name", ["1000000000", "9" * 200, "007", "\u0663"])
def test_a_numbered_folder_that_no_sweep_makes_is_no_job(existing_sweep: Path, cli: Cli, tool: Cli, name: str) -> None:
    shutil.copytree(existing_sweep / "1", existing_sweep / name)
    ended = cli("-m", *SHORT, "seed=1,2,3", f"sweep={existing_sweep}", run_dir=False)
    assert ended.code == 0, ended.err
    assert sorted(row["job"] for row in table(existing_sweep)) == ["0", "1", "2"]
    (existing_sweep / "sweep.json").write_text("")
    assert "3 jobs" in tool(runs.main, "results", str(existing_sweep)).out


def test_a_sweep_without_a_free_number_is_refused(existing_sweep: Path, cli: Cli) -> None:
    (existing_sweep / "999999999").mkdir()
    ended = cli("-m", *SHORT, "seed=1,2,3", f"sweep={existing_sweep}", run_dir=False)
    assert_refused(ended, existing_sweep / "999999999", "move")


def test_a_plan_of_half_characters_is_saved(existing_sweep: Path, cli: Cli) -> None:
    plan = json.loads((existing_sweep / "sweep.json").read_text("utf-8"))
    (existing_sweep / "sweep.json").write_text(json.dumps({**plan, "fields": ["seed", "\ud800"]}))
    ended = cli("-m", *SHORT, "seed=1,2", f"sweep={existing_sweep}", run_dir=False)
    assert ended.code == 0, ended.err


@pytest.mark.parametrize("fields", [[f"f{n}" for n in range(10_000)], ["x" * 100_000]], ids=["many", "long"])
def test_a_plan_with_more_fields_than_any_config_is_refused(existing_sweep: Path, fields: list[str]) -> None:
    """A table would have as many columns."""
    path = existing_sweep / "sweep.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"fields": fields}), "utf-8")
    with refuses(path, "fields"):
        Sweep(existing_sweep)


@pytest.mark.skipif(os.name == "nt", reason="Windows does not let every user make links")
def test_a_plan_that_is_a_link_is_not_read(
    existing_sweep: Path, tool: Cli, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = (existing_sweep / "sweep.json").rename(tmp_path / "mine.json")
    plan = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(plan | {"fields": [*plan["fields"], "secret"]}), "utf-8")
    (existing_sweep / "sweep.json").symlink_to(path)
    ended = tool(runs.main, "results", str(existing_sweep))
    assert ended.code == 0, ended.err
    assert "is a link" in caplog.text
    assert "secret" not in ended.out + (existing_sweep / "results.md").read_text("utf-8")
