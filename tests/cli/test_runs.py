"""Tests of the command `runs`: the list of runs and the comparison of two."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bigramlm.cli import runs as runs_command
from bigramlm.runs import find as runs
from tests.helpers import Cli, assert_refused

SHORT = ("data=bundled", "logger=none", "trainer.steps=20", "trainer.eval_every=10", "trainer.log_every=5")


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an outputs/ folder with hand-written runs: three runs and a sweep job."""
    folder = tmp_path / "outputs"
    for module in (runs, runs_command):
        monkeypatch.setattr(module, "outputs", lambda: folder)
    for name, started, val, status, lr in (
        ("runs/2026-01-01/a", "2026-01-01T00:00:00+00:00", 2.5, "completed", 0.1),
        ("runs/2026-01-02/b", "2026-01-02T00:00:00+00:00", 2.25, "stopped", 0.01),
        ("runs/2026-01-03/c", "2026-01-03T00:00:00+00:00", None, "running", 0.001),
        ("sweeps/2026/0", "2026-01-04T00:00:00+00:00", 2.75, "completed", 0.1),
    ):
        run = folder / name
        run.mkdir(parents=True)
        saved: dict[str, Any] = {
            "status": status,
            "step": 100,
            "started": started,
            "best": {"step": 9, "val/loss": val},
        }
        (run / "summary.json").write_text(json.dumps(saved if val else {**saved, "best": {}}))
        (run / "config.yaml").write_text(f"model:\n  name: bigram\ndata:\n  name: text\noptim:\n  lr: {lr}\n")
    (folder / "runs" / "refused").mkdir()
    (folder / "runs" / "refused" / "summary.json").write_text('{"status": "failed"}')
    (folder / "runs" / "broken").mkdir()
    (folder / "runs" / "broken" / "summary.json").write_text("{")
    return folder


def rows(out: str) -> list[str]:
    """Return the column `folder` of the printed table."""
    return column(out, "folder")


def column(out: str, name: str) -> list[str]:
    """Return a column of the printed table."""
    head, *lines = [re.split(r"\s\s+", line.strip()) for line in out.splitlines()]
    return [line[head.index(name)] for line in lines]


def test_the_list_has_all_runs_with_the_newest_last(outputs: Path, tool: Cli) -> None:
    done = tool(runs_command.main, "list")
    assert done.code == 0, done.err
    assert done.out.splitlines()[0].split() == [
        *("when", "model", "data", "steps", "val", "status", "folder", "name"),
    ]
    assert rows(done.out) == ["refused", "2026-01-01/a", "2026-01-02/b", "2026-01-03/c", "2026/0"]
    assert "killed" in done.out, "the summary says running, but no process has locked the folder"
    assert "2.2500" in done.out
    assert max(map(len, done.out.splitlines())) <= 80


def test_a_damaged_run_is_left_out_with_one_warning(outputs: Path, tool: Cli, caplog: pytest.LogCaptureFixture) -> None:
    assert tool(runs_command.main, "list").code == 0
    (warning,) = caplog.messages
    assert str(outputs / "runs" / "broken") in warning


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["status=completed"], ["2026-01-01/a", "2026/0"]),
        (["optim.lr=1e-1", "val=2.5"], ["2026-01-01/a"]),
        (["model.name=BIGRAM", "status=killed"], ["2026-01-03/c"]),
        (["val<2.6", "status!=completed"], ["2026-01-02/b"]),
        (["val>=2.5"], ["2026-01-01/a", "2026/0"]),
        (["lr<=0.01"], ["2026-01-02/b", "2026-01-03/c"]),
        (["folder~2026-01-0", "name~GRAM"], ["2026-01-01/a", "2026-01-02/b", "2026-01-03/c"]),
        (["val=null", "data=text"], ["2026-01-03/c"]),
        (["when>2026-01-02T12:00+00:00"], ["2026-01-03/c", "2026/0"]),
        (["--last", "2"], ["2026-01-03/c", "2026/0"]),
        (["--last", "1", "status=completed"], ["2026/0"]),
        (["--since", "2026-01-03T00:00+00:00"], ["2026-01-03/c", "2026/0"]),
        (["--sort", "val", "data=text"], ["2026-01-02/b", "2026-01-01/a", "2026/0", "2026-01-03/c"]),
        (["--sort", "optim.lr", "--reverse", "data=text", "status=completed"], ["2026-01-01/a", "2026/0"]),
        (
            ["--sort", "when", "--reverse", "data=text"],
            ["2026/0", "2026-01-03/c", "2026-01-02/b", "2026-01-01/a"],
        ),
    ],
)
def test_the_list_can_be_filtered_and_sorted(
    outputs: Path, tool: Cli, arguments: list[str], expected: list[str]
) -> None:
    out = tool(runs_command.main, "list", *arguments).out
    if "optim.lr" in arguments:
        assert out.splitlines()[0].split()[-1] == "optim.lr", "the sort key is shown"
    assert rows(out) == expected


def test_the_json_list_has_unrounded_values(outputs: Path, tool: Cli) -> None:
    found = [json.loads(line) for line in tool(runs_command.main, "list", "--json", "status=stopped").out.splitlines()]
    (run,) = found
    expected = {
        "when": "2026-01-02T00:00:00+00:00",
        "model": "bigram",
        "data": "text",
        "steps": 100,
        "val": 2.25,
        "status": "stopped",
        "folder": str(outputs / "runs" / "2026-01-02" / "b"),
    }
    assert list(run.items())[:7] == list(expected.items()), "the keys of earlier versions come first"
    assert run["summary"]["best"] == {"step": 9, "val/loss": 2.25}
    assert run["config"]["optim"] == {"lr": 0.01}


def test_invalid_filters_give_a_one_line_error(outputs: Path, tool: Cli) -> None:
    for arguments, named in (
        (["colour=red"], ["colour=red", "did you mean "]),
        (["red"], ["red", "FIELD=VALUE"]),
        (["--sort", "colour"], ["--sort colour"]),
        (["--sort", "optim.lr=1"], ["--sort optim.lr=1", "did you mean optim.lr"]),
        ([""], ["''", "FIELD=VALUE"]),
        (["val<low"], ["val<low", "is a number"]),
        (["name"], ["name", "quote < and >"]),
        (["--columns", "val,colour"], ["--columns val,colour", "did you mean "]),
        (["--last", "0"], ["--last 0", "must be 1 or more"]),
        (["--since", "soon"], ["--since soon", "today"]),
    ):
        done = tool(runs_command.main, "list", *arguments)
        assert_refused(done, *named)
        assert done.err.count("\n") == 1, "the error is the only output"
    assert tool(runs_command.main, "list", "status=pruned").out == "no run matches these filters\n"
    shutil.rmtree(outputs)
    assert_refused(tool(runs_command.main, "list"), outputs, "python scripts/train.py")


def test_the_list_shows_names_and_chosen_columns(
    tool: Cli, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, *rest in (["a", "optim.lr=1e-2"], ["b", "name=mine", "note=why, because"]):
        assert cli(*SHORT, *rest, f"hydra.run.dir={tmp_path / 'outputs' / name}", run_dir=False).code == 0
    for module in (runs, runs_command):
        monkeypatch.setattr(module, "outputs", lambda: tmp_path / "outputs")
    out = tool(runs_command.main, "list").out
    assert column(out, "name") == ["lr=0.01 data=bundled steps=20 eval_every=10 log_every=5", "mine"]
    out = tool(runs_command.main, "list", "--columns", "name,lr,note", "name=mine").out
    assert out.splitlines()[0].split() == ["name", "optim.lr", "note"]
    assert column(out, "note") == ["why, because"]
    out = tool(runs_command.main, "list", "--columns", "+note,params").out
    assert out.splitlines()[0].split()[-3:] == ["name", "note", "params"]


@pytest.mark.parametrize("width", [30, 50, 79, 80, 120])
def test_the_list_fits_the_terminal(outputs: Path, tool: Cli, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    path = outputs / "runs" / "2026-01-01" / "a" / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "name": "a name that is longer than the others " * 3}))
    monkeypatch.setattr(runs_command, "is_terminal", lambda _: True)
    monkeypatch.setenv("COLUMNS", str(width))
    lines = tool(runs_command.main, "list").out.splitlines()
    assert max(map(len, lines)) <= width
    assert {"val", "name"} <= {*lines[0].split()}
    assert any(line.endswith("…") for line in lines)


def test_runs_are_found_by_their_names_in_the_list(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert runs.find("2026-01-01/a") == outputs / "runs" / "2026-01-01" / "a"
    assert runs.find("2026/0") == outputs / "sweeps" / "2026" / "0"
    assert runs.find("sweeps/2026/0") == outputs / "sweeps" / "2026" / "0"
    assert runs.find("latest") == outputs / "sweeps" / "2026" / "0"
    monkeypatch.chdir(outputs)
    assert runs.find("runs/2026-01-01/a") == outputs / "runs" / "2026-01-01" / "a"


def test_diff_shows_differences_and_where_losses_diverge(tool: Cli, cli: Cli) -> None:
    a, same, b = (cli(*SHORT, *rest).folder for rest in ([], [], ["optim.warmup_steps=10", "data.train_fraction=0.8"]))
    done = tool(runs_command.main, "diff", str(a), str(b))
    assert done.code == 0, done.err
    assert [line.split() for line in done.out.splitlines() if line.startswith(("optim", "data."))] == [
        ["data.train_fraction", "0.9", "0.8"],
        ["optim.warmup_steps", "0", "10"],
    ]
    assert "losses: first difference at step 0, " in done.out
    assert "no earlier common step" in done.out
    warm = cli(*SHORT, "optim.warmup_steps=10").folder
    assert (
        "losses: first difference at step 5, train/batch_loss" in tool(runs_command.main, "diff", str(a), str(warm)).out
    )
    equal = tool(runs_command.main, "diff", str(a), str(same)).out
    assert "identical: config, data, code, environment" in equal
    assert "losses: equal at all 5 steps that both runs recorded" in equal


def test_names_are_shown_and_not_obeyed(outputs: Path, tool: Cli) -> None:
    name = "na\nme\x1b[31m"
    (outputs / "runs" / "2026-01-01" / "a").rename(outputs / "runs" / name)
    shown = name.encode("unicode_escape").decode()
    for arguments in (["list"], ["diff", name, name]):
        done = tool(runs_command.main, *arguments)
        assert done.code == 0, done.err
        assert shown in done.out
        assert "\x1b" not in done.out
    refused = tool(runs_command.main, "diff", f"{name}x", name)
    assert_refused(refused, f"{shown}x: this folder does not exist")


def test_diff_of_damaged_runs(outputs: Path, tool: Cli) -> None:
    a, b = (outputs / "runs" / name for name in ("2026-01-01/a", "2026-01-02/b"))
    damaged = {"data": [1], "git": 5, "versions": 3, "final": None, "step": "x", "started": 7}
    (a / "summary.json").write_text(json.dumps(damaged))
    for folder, loss in ((a, '"x"'), (b, "2.5")):
        (folder / "metrics.jsonl").write_text(f'{{"step": 1, "val/loss": {loss}}}\n')
    done = tool(runs_command.main, "diff", "2026-01-01/a", "2026-01-02/b")
    assert (done.code, done.err) == (0, "")
    assert "losses: equal at the only step in common" in done.out, "a loss that is no number is not compared"
    (a / "metrics.jsonl").unlink()
    (a / "metrics.jsonl").mkdir()
    assert "losses: no step in common" in tool(runs_command.main, "diff", "2026-01-01/a", "2026-01-02/b").out


@pytest.mark.parametrize("started", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "0001-01-01"])
def test_a_run_of_an_impossible_time_is_listed(outputs: Path, tool: Cli, started: str) -> None:
    n_rows = len(rows(tool(runs_command.main, "list").out))
    path = outputs / "sweeps" / "2026" / "0" / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"started": started}), "utf-8")
    ended = tool(runs_command.main, "list")
    assert ended.code == 0, ended.err
    assert len(rows(ended.out)) == n_rows


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_no_command_waits_for_a_pipe_in_a_run(outputs: Path, tool: Cli, tmp_path: Path) -> None:
    folder = outputs / "runs" / "2026-01-01" / "a"
    (folder / "config.yaml").unlink()
    for name in ("config.yaml", "metrics.jsonl", "samples.txt"):
        os.mkfifo(folder / name)
    os.mkfifo(outputs / "runs" / "refused" / "pipe")
    (outputs / "runs" / "refused" / "pipe").replace(outputs / "runs" / "refused" / "summary.json")
    assert rows(tool(runs_command.main, "list").out) == ["2026-01-01/a", "2026-01-02/b", "2026-01-03/c", "2026/0"]
    assert tool(runs_command.main, "diff", "2026-01-01/a", "2026-01-02/b").code == 0
    assert tool(runs_command.main, "report", "2026-01-01/a", "-o", str(tmp_path / "page.html")).code == 0


def test_a_file_in_place_of_a_folder(outputs: Path, tool: Cli) -> None:
    for arguments in (["diff", "2026-01-01/a/config.yaml", "latest"], ["results", "2026-01-01/a/config.yaml"]):
        assert_refused(tool(runs_command.main, *arguments), "2026-01-01/a/config.yaml is a file; give the folder of")
    for name in ("lastest", "Latest"):
        assert_refused(tool(runs_command.main, "diff", name, "latest"), name, "did you mean latest?")


def test_diff_without_a_run_gives_a_one_line_error(tmp_path: Path, tool: Cli) -> None:
    done = tool(runs_command.main, "diff", str(tmp_path), str(tmp_path))
    assert_refused(done, tmp_path, "summary.json")
    assert done.err.count("\n") == 1, "the error is the only output"


def test_diff_shows_different_texts_code_and_environments(outputs: Path, tool: Cli) -> None:
    for name, sha, commit, torch in (("a", "1", "x", "2.12"), ("b", "2", "y", "2.13")):
        path = outputs / "runs" / f"2026-01-0{'ab'.index(name) + 1}" / name / "summary.json"
        saved = json.loads(path.read_text())
        saved |= {
            "data": {"sha256": sha},
            "git": {"commit": commit, "dirty": name == "a"},
            "versions": {"torch": torch},
        }
        path.write_text(json.dumps(saved))
    out = tool(runs_command.main, "diff", "2026-01-01/a", "2026-01-02/b").out
    for field in ("sha256", "commit", "torch", "optim.lr"):
        assert any(line.startswith(field) for line in out.splitlines()), out
    assert "uncommitted changes" in out
    assert "losses: no step in common" in out


def test_listing_does_not_import_torch() -> None:
    code = "import sys, bigramlm.runs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_loss_of_a_run_without_final_losses_has_its_step(outputs: Path, tool: Cli) -> None:
    path = outputs / "runs" / "2026-01-01" / "a" / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"final": {"val/loss": 2.4}}), "utf-8")
    assert column(tool(runs_command.main, "list", "name~gram").out, "val") == ["2.4000", "2.2500@9", "-"]


def test_groups_are_filters_as_they_are_typed_for_training(outputs: Path, tool: Cli) -> None:
    path = outputs / "runs" / "2026-01-01" / "a"
    (path / "config.yaml").write_text("model: {name: bigram}\ndata: {name: text}\noptim: {name: muon, lr: 1}\n")
    words = json.dumps(json.loads((path / "summary.json").read_text()) | {"overrides": ["experiment=quick"]})
    (path / "summary.json").write_text(words, "utf-8")
    for condition in ("optim=muon", "experiment=quick"):
        assert rows(tool(runs_command.main, "list", condition).out) == ["2026-01-01/a"]
    assert_refused(tool(runs_command.main, "list", "status=faild"), "status=faild", "failed")


def test_added_columns_stay_when_the_table_gets_narrow(outputs: Path, tool: Cli, monkeypatch: Any) -> None:
    path = outputs / "runs" / "2026-01-02" / "b" / "summary.json"
    summary = {**json.loads(path.read_text("utf-8")), "status": "failed", "error": "the disk is full " * 9}
    path.write_text(json.dumps(summary), "utf-8")
    monkeypatch.setattr(runs_command, "is_terminal", lambda _: True)
    monkeypatch.setenv("COLUMNS", "80")
    out = tool(runs_command.main, "list", "--columns", "+error,note,lr").out
    assert max(map(len, out.splitlines())) <= 80
    assert {"error", "note", "optim.lr"} <= {*out.splitlines()[0].split()}
    assert len(next(cell for cell in column(out, "error") if cell.startswith("the disk"))) >= 12


def test_a_run_is_found_by_its_name_if_no_other_has_it(outputs: Path, tool: Cli) -> None:
    path = outputs / "runs" / "2026-01-02" / "b" / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"name": "a first GPT"}), "utf-8")
    done = tool(runs_command.main, "diff", "a first GPT", "c")
    assert done.code == 0, done.err
    assert "2026-01-02/b" in done.out
    assert "2026-01-03/c" in done.out, "by the name of its folder"
    assert_refused(tool(runs_command.main, "diff", "bigram", "c"), "bigram: 2 runs have this name", "2026-01-03/c")


def test_failed_jobs_that_match_a_filter_are_named_and_stay(outputs: Path, tool: Cli) -> None:
    (outputs / "sweeps" / "2026" / "sweep.json").write_text("{}", "utf-8")
    done = tool(runs_command.main, "rm", "status=completed")
    assert done.code == 0, done.err
    assert rows(done.out.rpartition("\n1 folder")[0]) == ["2026-01-01/a"]
    assert "stays: 1 job of 2026, because a job is deleted only with its sweep" in done.err
