"""Tests of refused runs, which leave nothing behind, and of refused folders."""

import os
import shutil
from pathlib import Path

import pytest
import torch

import bigramlm
from bigramlm.cli import runs as runs_command
from bigramlm.data.batches import Batches
from bigramlm.engine.load import open_checkpoint
from bigramlm.runs.folder import RunFolder
from bigramlm.utils import paths
from tests.helpers import SHORT, Cli, assert_refused, refuses, resumed, summary


def contents(folder: Path) -> dict[str, bytes | None]:
    """Return the contents of all files by path, and None for folders."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


REFUSALS = {
    "a value": ["optim.lr=-1"],
    "a prompt": ["sample.prompt=日"],
    "an unknown field": ["+optim.lrr=1"],
    "a missing file": ["data=text", "data.path=none.txt"],
    "a short text": ["data.train_fraction=0.9999"],
    "an unknown device": ["device.name=tpu"],
    "the current folder": ["optim.lr=-1", "hydra.job.chdir=true"],
}
REFUSED = pytest.mark.parametrize("overrides", REFUSALS.values(), ids=REFUSALS)


@REFUSED
def test_a_refused_run_leaves_nothing(cli: Cli, tmp_path: Path, overrides: list[str]) -> None:
    ended = cli(*SHORT, *overrides, f"hydra.run.dir={tmp_path / 'new' / 'day' / 'run'}", run_dir=False)
    assert_refused(ended)
    assert contents(tmp_path) == {}


@REFUSED
def test_a_refused_run_leaves_the_files_of_others(cli: Cli, tmp_path: Path, overrides: list[str]) -> None:
    for name in ("train.log", "notes.txt", ".hidden"):
        (tmp_path / name).write_text("mine\n")
    (tmp_path / "day" / "empty").mkdir(parents=True)
    before = contents(tmp_path)
    for folder in (tmp_path, tmp_path / "day" / "empty", tmp_path / "day" / "new"):
        assert_refused(cli(*SHORT, *overrides, f"hydra.run.dir={folder}", run_dir=False))
        assert contents(tmp_path) == before


def test_a_run_that_fails_its_preflight_leaves_nothing(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Batches.__getitem__

    def shifted_twice(self: Batches, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = original(self, step)
        return x, y.roll(-1, dims=1)

    monkeypatch.setattr(Batches, "__getitem__", shifted_twice)
    assert_refused(cli(*SHORT), field="preflight")
    assert contents(tmp_path) == {}


@REFUSED
def test_python_raises_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    monkeypatch.setattr(paths, "home", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(bigramlm.UserError):
        bigramlm.train(*SHORT, *overrides)
    assert contents(tmp_path) == {}


def test_the_day_of_another_run_stays(cli: Cli, tmp_path: Path, tool: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "home", lambda: tmp_path)
    assert cli(*SHORT, run_dir=False).code == 0
    before = contents(tmp_path)
    assert_refused(cli(*SHORT, "optim.lr=-1", run_dir=False))
    assert contents(tmp_path) == before
    assert len(tool(runs_command.main, "list").out.splitlines()) == 2, "the header and the first run"


def test_a_run_that_has_trained_stays_as_failed(cli: Cli) -> None:
    ended = cli(*SHORT, "optim.lr=1e38", "trainer.log_every=1")
    assert_refused(ended, "1e+38")
    assert summary(ended.folder)["status"] == "failed"
    assert "error: " in (ended.folder / "train.log").read_text("utf-8")


def test_a_run_that_meets_a_bug_stays_as_failed(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigramlm.engine.run.find_prompt", lambda *_: 1 / 0)
    ended = cli(*SHORT)
    assert ended.code == 1
    assert summary(ended.folder)["status"] == "failed"
    refused = cli(*SHORT, "optim.lr=-1", f"hydra.run.dir={ended.folder}", run_dir=False)
    assert_refused(refused)
    assert "optim.lr" in str(summary(ended.folder)["error"]), "the folder of the earlier run stays, with the new error"


def test_a_refused_resume_adds_no_file(cli: Cli, tmp_path: Path) -> None:
    run = cli(*SHORT).folder
    (run / ".lock").unlink()
    before = contents(tmp_path)
    for overrides in (["optim.lr=-1"], ["trainer.steps=1"], ["sample.prompt=日", "trainer.steps=9"]):
        assert_refused(resumed(cli, run, *overrides))
        assert contents(tmp_path) == before


def test_a_refused_sweep_leaves_only_what_it_did_not_make(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for folder in (tmp_path / "mine", tmp_path / "new" / "sweep"):
        refused = cli("-m", *SHORT, "optim.lr=-1,1", f"hydra.sweep.dir={folder}", run_dir=False)
        assert_refused(refused, field="optim.lr")
        assert contents(tmp_path) == {"mine": None}


@pytest.mark.parametrize("name", ["results.csv", "results.md"])
def test_a_sweep_overwrites_no_table_of_something_else(cli: Cli, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    words = ("-m", *SHORT, "seed=1,2", f"hydra.sweep.dir={tmp_path}")
    assert_refused(cli(*words, run_dir=False), tmp_path / name)
    assert contents(tmp_path) == {name: b"mine"}


def test_a_refused_job_stays_in_its_sweep(cli: Cli, tmp_path: Path) -> None:
    ended = cli("-m", *SHORT, "data.block_size=8,1000000", f"hydra.sweep.dir={tmp_path / 'sweep'}", run_dir=False)
    assert ended.code == 1
    assert [summary(tmp_path / "sweep" / job)["status"] for job in "01"] == ["completed", "failed"]
    assert "job 1 failed: data.block_size=1000000" in ended.out


def test_a_folder_that_cannot_be_made_leaves_no_parents(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "day" / ("x" * 300)
    assert_refused(cli(*SHORT, f"hydra.run.dir={folder}", run_dir=False), field="hydra.run.dir")
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("where", [".", "runs", "runs/day", "link"])
def test_a_folder_with_other_runs_is_refused(cli: Cli, tmp_path: Path, where: str) -> None:
    assert cli(*SHORT, f"hydra.run.dir={tmp_path / 'runs' / 'day' / 'run'}", run_dir=False).code == 0
    if where == "link":
        if os.name == "nt":
            pytest.skip("Windows does not let every user make links")
        (tmp_path / "link").symlink_to(tmp_path / "runs")
    before = contents(tmp_path)
    refused = cli(*SHORT, f"hydra.run.dir={tmp_path / where}", run_dir=False)
    assert_refused(refused, tmp_path / where, "hydra.run.dir")
    assert refused.err.count("\n") == 1, "nothing else is printed"
    assert contents(tmp_path) == before


@pytest.mark.parametrize("where", ["inside", "inside/checkpoints", "inside/of/it", "inside/step_3"])
def test_a_run_inside_a_run_is_found(
    cli: Cli, tool: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(paths, "home", lambda: tmp_path)
    run = tmp_path / "outputs" / "runs" / "run"
    for folder in (run, run / where):
        assert cli(*SHORT, f"hydra.run.dir={folder}", run_dir=False).code == 0
    rows = tool(runs_command.main, "list").out.splitlines()
    assert [row.split()[6] for row in rows[1:]] == ["run", str(Path("run") / where)]
    assert bigramlm.load("latest").folder == run / where
    assert open_checkpoint(str(run / where)).path.is_relative_to(run / where)


@pytest.mark.parametrize("where", ["checkpoints", "checkpoints/mine", "checkpoints/step_2/mine", "link/mine"])
def test_a_run_or_sweep_among_the_checkpoints_of_a_run_is_refused(cli: Cli, tmp_path: Path, where: str) -> None:
    run = cli(*SHORT).folder
    if where.startswith("link"):
        if os.name == "nt":
            pytest.skip("Windows does not let every user make links")
        (run / "link").symlink_to("checkpoints")
    before = contents(run)
    assert_refused(cli(*SHORT, f"hydra.run.dir={run / where}", run_dir=False), run / where)
    sweep = cli("-m", *SHORT, "seed=1,2", f"hydra.sweep.dir={run / where}", run_dir=False)
    assert_refused(sweep, run / where)
    assert contents(run) == before


@pytest.mark.parametrize("sweeps", [False, True])
def test_a_lock_of_something_else_is_not_overwritten(cli: Cli, tmp_path: Path, sweeps: bool) -> None:
    (tmp_path / ".lock.json").write_text("mine")
    words = ["-m", "seed=1,2", f"hydra.sweep.dir={tmp_path}"] if sweeps else [f"hydra.run.dir={tmp_path}"]
    assert_refused(cli(*SHORT, *words, run_dir=False), tmp_path / ".lock.json")
    assert contents(tmp_path) == {".lock.json": b"mine"}


def test_a_refused_sweep_leaves_no_lock_in_a_folder_that_is_not_empty(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert_refused(cli("-m", *SHORT, "optim.lr=-1,1", f"hydra.sweep.dir={tmp_path}", run_dir=False), field="optim.lr")
    assert contents(tmp_path) == {"notes.txt": b"mine"}


@pytest.mark.parametrize(
    "name",
    [
        "config.yaml",
        "summary.json",
        "samples.txt",
        "checkpoints",
        "metrics.jsonl",
        "checkpoints/last",
        "checkpoints/best",
    ],
)
def test_a_file_of_something_else_is_not_overwritten(cli: Cli, tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine: 1\n")
    named = tmp_path if name == "metrics.jsonl" else tmp_path / name
    assert_refused(cli(*SHORT, f"hydra.run.dir={tmp_path}", run_dir=False), named)
    assert contents(tmp_path) in ({name: b"mine: 1\n"}, {name: b"mine: 1\n", "checkpoints": None})


@pytest.mark.parametrize("name", ["loop", "loop/x", "x" * 300])
def test_a_folder_that_no_run_can_have_is_refused(cli: Cli, tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert_refused(cli(*SHORT, f"hydra.run.dir={tmp_path / name}", run_dir=False), "hydra.run.dir=", name)


def test_the_folder_of_a_running_run_is_not_touched(cli: Cli, tmp_path: Path) -> None:
    """A run that is refused because of the lock has made nothing in the folder."""
    run = cli(*SHORT).folder
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    before = contents(copy)
    with RunFolder(copy).lock(), refuses(copy, "another process"):
        bigramlm.train(*SHORT, f"hydra.run.dir={copy}")
    assert contents(copy) == before
