"""Sweeps as a user runs them: what fails, what is killed, what is gone on with."""

import functools
import gc
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from bigramlm.cli import runs as runs_command
from bigramlm.cli import train
from bigramlm.data import shakespeare
from bigramlm.data import text as data_text
from bigramlm.engine import run as recipe
from bigramlm.model.bigram import Bigram
from bigramlm.optim import base as optim
from bigramlm.runs import find as runs
from bigramlm.runs.folder import LOCK, RunFolder, read_summary
from bigramlm.sweeps import plan as sweep
from bigramlm.sweeps.plan import Sweep
from bigramlm.sweeps.results import Results
from bigramlm.utils import paths
from tests.helpers import Cli, Ended, assert_refused, came_to, command, refuses, table, wait_for
from tests.sweeps.helpers import SHORT, dies_in, sweeping

# Some tenths of a second a job, with a checkpoint now and then.
LONGER = (
    *("data=bundled", "logger=none", "trainer.steps=6000", "trainer.eval_every=500"),
    *("trainer.checkpoint_every=500", "trainer.log_every=500"),
)

TIMES = {"tokens_per_second", "seconds", "folder"}


def state(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Every file below a folder, as it is."""
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_each_job_is_a_complete_run_and_one_line(swept: Callable[..., Ended], folder: Path) -> None:
    ended = swept(*SHORT, "logger=tensorboard", "seed=1,2")
    for job in ("0", "1"):
        files = {path.name for path in (folder / job).iterdir()}
        assert files >= {"config.yaml", "metrics.jsonl", "summary.json", "checkpoints", "samples.txt", "train.log"}
        assert any(name.startswith("events.out") for name in files)
        assert "final losses" in (folder / job / "train.log").read_text("utf-8")
        assert "sweep: null" in (folder / job / "config.yaml").read_text("utf-8")
    lines = ended.err.splitlines()
    assert lines[0].startswith("sweep: 2 jobs, in ")
    assert [line.split(",")[0] for line in lines[1:]] == ["job 0: completed", "job 1: completed"]
    assert lines[2].endswith("(2 of 2): seed=2")
    assert "End of training" not in ended.out, "of one run; here there is a table"


def test_a_job_is_the_same_alone(swept: Callable[..., Ended], cli: Cli, folder: Path) -> None:
    """Nothing of the jobs before it is left: seeds, threads, determinism."""
    ended = swept(*SHORT, "device.threads=1,2", "device.deterministic=true,false", "seed=5")
    assert ended.code == 0, ended.err
    alone = cli(*SHORT, "device.threads=1", "seed=5")
    for job in range(4):
        records = [(folder / str(job) / "metrics.jsonl"), alone.folder / "metrics.jsonl"]
        one, other = ([json.loads(line) for line in path.read_text().splitlines()] for path in records)
        assert [r.get("val/loss") for r in one] == [r.get("val/loss") for r in other], job
        assert [r.get("train/batch_loss") for r in one] == [r.get("train/batch_loss") for r in other], job


def test_what_is_asked_for_twice_runs_once(swept: Callable[..., Ended], folder: Path) -> None:
    ended = swept(*SHORT, "optim.lr=1e-2,0.01", "seed=1,1,2")
    assert ended.code == 0, ended.err
    assert sorted(row["seed"] for row in table(folder)) == ["1", "2"]
    assert "asked for twice, and run once" in ended.err


def test_a_folder_of_somebody_elses_is_not_taken(swept: Callable[..., Ended], folder: Path) -> None:
    (folder / "7").mkdir(parents=True)
    (folder / "7" / "mine.txt").write_text("mine")
    assert swept(*SHORT, "seed=1,2").code == 0
    assert sorted(row["job"] for row in table(folder)) == ["8", "9"]
    assert [path.name for path in (folder / "7").iterdir()] == ["mine.txt"]


def test_memory_is_given_back_when_nothing_holds_the_model(
    swept: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[weakref.ref[Bigram]] = []
    alive = []

    def forward(self: Bigram, *_: Any) -> Any:
        models.append(weakref.ref(self))
        raise RuntimeError("the model broke")

    def give_back() -> None:
        gc.collect()
        alive.append(any(model() is not None for model in models))

    monkeypatch.setattr(Bigram, "forward", forward)
    monkeypatch.setattr(train, "give_back_memory", give_back)
    assert swept(*SHORT, "seed=1,2").code == 1
    assert alive == [False, False]


def test_the_latest_sweep_is_the_one_worked_on_last(
    cli: Cli, tool: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "outputs", lambda: tmp_path)
    for name in ("by-name-the-last", "2026"):
        cli("-m", *SHORT, "seed=1", f"hydra.sweep.dir={tmp_path / 'sweeps' / name}", run_dir=False)
    assert runs.find_sweep("latest").name == "2026"


@pytest.mark.parametrize("n", [8, pytest.param(40, marks=pytest.mark.slow)])
def test_some_jobs_fail_each_in_its_way_and_the_rest_complete(
    n: int, swept: Callable[..., Ended], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nan, late, broken, blocked = ({*fails} & {*range(n)} for fails in ([3, 13, 23], [4, 14], [5, 25], [6, 16, 36]))
    run, forward, check = recipe.run, Bigram.forward, data_text.check_length

    def run_(cfg: Any, *arguments: Any) -> Any:
        if cfg.seed == 0:
            for number in blocked:
                (folder / str(number)).write_text("mine")
        breaks = cfg.seed in broken

        def forward_(self: Bigram, idx: Any, targets: Any = None) -> Any:
            if breaks:
                raise RuntimeError("the model broke")
            return forward(self, idx, targets)

        with monkeypatch.context() as patch:
            patch.setattr(Bigram, "forward", forward_)
            if cfg.seed in nan:
                patch.setattr(optim, "learning_rate", lambda *_: 1e38)
            if cfg.seed in late:
                patch.setattr(data_text, "check_length", lambda n, **words: check(n, **{**words, "block_size": 10**6}))
            return run(cfg, *arguments)

    monkeypatch.setattr(recipe, "run", run_)
    ended = swept(*SHORT, "optim.lr=0.1", f"seed=range(0,{n})")
    assert ended.code == 1
    assert "Traceback" not in ended.err + ended.out
    n_failed = len(nan | late | broken | blocked)
    assert f"{n} jobs: {n - n_failed} completed, {n_failed} failed" in ended.out
    rows = {int(row["job"]): row for row in table(folder)}
    failed = nan | late | broken | blocked
    assert {number for number, row in rows.items() if row["status"] == "failed"} == failed
    assert len(rows) == n
    said = [(nan, "learning rate"), (late, "block_size"), (broken, "the model broke"), (blocked, "cannot be made")]
    for numbers, words in said:
        for number in numbers:
            assert words in rows[number]["error"], number
            assert f"job {number} failed:" in ended.out
            assert f"job {number} failed: " in (folder / "results.md").read_text("utf-8")
            if numbers is not blocked:
                summary = read_summary(folder / str(number))
                assert summary is not None
                assert summary["status"] == "failed"
    for number in broken:
        assert "Traceback" in (folder / str(number) / "train.log").read_text("utf-8")
    assert all((folder / str(number)).read_text() == "mine" for number in blocked)

    # Mended, the same command completes it.
    monkeypatch.setattr(recipe, "run", run)
    for number in blocked:
        (folder / str(number)).unlink()
    done = state(folder / "0")
    ended = swept(*SHORT, "optim.lr=0.1", f"seed=range(0,{n})")
    assert ended.code == 0, ended.err
    assert f"{n} jobs: {n} completed" in ended.out
    assert state(folder / "0") == done


def test_a_config_that_cannot_be_is_refused_before_any_job_runs(swept: Callable[..., Ended], folder: Path) -> None:
    for arguments, field, value in (
        (["optim.lr=0.1,-1,0.2"], "optim.lr", "-1.0"),
        (["seed=1,2", "optim.lr=interval(0,1)"], "optim.lr", "interval(0,1)"),
        (["seed=1,2", "+optim.lrr=1"], "optim.lrr", "seed=1"),
    ):
        ended = swept(*SHORT, *arguments)
        assert_refused(ended, field=field, value=value)
        assert ended.err.count("\n") == 1, "and nothing else"
        assert not folder.exists()
    assert swept(*SHORT, "optim.lr=0.1,abc").code == 1, "Hydra's own refusal"
    assert not any(folder.glob("*/summary.json"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sweep=latest"], "sweep=latest -m"),
        (["-m", "sweep=nowhere", "seed=1,2"], "nowhere"),
        (["-m", "sweep=.", "seed=1,2"], "sweep.json"),
        (["-m", "sweep=x", "hydra.sweep.dir=y", "seed=1,2"], "sweep=x hydra.sweep.dir"),
        (["-m", "hydra.sweep.subdir=y", "seed=1,2"], "hydra.sweep.subdir=y"),
        (["-m", "resume=latest", "seed=1,2"], "resume=latest sweep="),
        (["-m", "seed=1,2", "hydra.sweeper.max_batch_size=0"], "max_batch_size=0"),
        (["-m", "seed=1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=0"], "n_jobs=0"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = cli(*SHORT, *arguments, *([] if "hydra.sweep.dir=y" in arguments else ["hydra.sweep.dir=s"]), run_dir=False)
    if any(argument.startswith("sweep=") for argument in arguments):
        ended = cli(*SHORT, *arguments, run_dir=False)
    assert_refused(ended, *words.split())
    assert ended.err.count("\n") == 1, "and nothing else"


@pytest.mark.parametrize(
    ("choice", "extra"),
    [
        ("hydra/launcher=joblib", "joblib"),
        ("hydra/launcher=submitit_local", "submitit"),
        ("hydra/launcher=submitit_slurm", "submitit"),
        ("hydra/sweeper=optuna", "optuna"),
    ],
)
def test_an_extra_that_is_not_installed_is_named_with_its_command(
    swept: Callable[..., Ended], folder: Path, monkeypatch: pytest.MonkeyPatch, choice: str, extra: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: find(name) if name == "hydra" else None)
    ended = swept(*SHORT, "seed=1,2", choice)
    assert_refused(ended, f'pip install -c constraints.txt -e ".[{extra}]"')
    assert not folder.exists()


def test_what_help_needs_imports_none_of_the_extras() -> None:
    code = f"""
import sys
sys.argv = ["train.py", "--help"]
from bigramlm.cli.train import main
main()
sys.exit(any(name in sys.modules for name in {("torch", "optuna", "joblib", "submitit", "sqlalchemy")}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "joblib" in done.stdout


def test_groups_experiments_and_free_text_are_swept_too(
    swept: Callable[..., Ended], folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\noptim:\n  lr: 0.03\n")
    ended = swept(
        *("trainer.steps=2", "trainer.eval_every=2", "data=bundled", f"hydra.searchpath=[file://{tmp_path}]"),
        *("experiment=mine,quick", 'sample.prompt="To be, or","not, \'to\'"', "logger=none,tensorboard"),
    )
    assert ended.code == 0, ended.err
    found = {(row["experiment"], row["sample.prompt"], row["logger"]): row["job"] for row in table(folder)}
    assert len(found) == 8
    for (experiment, prompt, logger), job in found.items():
        run = runs.read_run(folder / job)
        assert run is not None
        assert run.get("optim.lr") == {"mine": 0.03, "quick": 0.01}[experiment]
        assert prompt in (folder / job / "samples.txt").read_text("utf-8")
        assert any((folder / job).glob("events.out*")) == (logger == "tensorboard")


def test_one_text_with_a_comma_is_no_sweep(swept: Callable[..., Ended], folder: Path) -> None:
    assert swept(*SHORT, "seed=1,2", "sample.prompt=To be, or not").code == 0
    assert len(table(folder)) == 2
    assert "To be, or not" in (folder / "0" / "samples.txt").read_text("utf-8")


def test_the_text_is_settled_once_for_the_whole_sweep(
    swept: Callable[..., Ended], cli: Cli, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that comes back in the middle must not give the other jobs another text."""
    tries = []

    def download(*_: Any) -> bytes:
        tries.append(1)
        if len(tries) == 1:
            raise OSError("no network")
        return b"First Citizen:\n" * 200

    (tmp_path / "home" / "sources").mkdir(parents=True)
    shutil.copy(paths.bundled_text(), tmp_path / "home" / "sources")
    monkeypatch.setattr(shakespeare, "download", download)
    monkeypatch.setattr(paths, "home", lambda: tmp_path / "home")
    plain = [argument for argument in SHORT if argument != "data=bundled"]
    ended = swept(*plain, "seed=1,2", "data.block_size=4,8", "data.timeout=1")
    assert ended.code == 0, ended.err
    assert len(tries) == 1
    assert ended.err.count("NOT SHAKESPEARE") == 1
    for job in range(4):
        config = runs.read_run(folder / str(job))
        assert config is not None
        assert (config.get("data.name"), config.get("data.block_size")) == ("bundled", 4 if job in (0, 2) else 8)
    # Gone on with, it stays at that.
    assert swept(*plain, "seed=1,2,3", "data.block_size=4,8", "data.timeout=1").code == 0
    assert len(tries) == 1
    assert len({row["status"] for row in table(folder)}) == 1
    assert len(table(folder)) == 6


def test_going_on_runs_what_is_left_and_touches_nothing_else(
    swept: Callable[..., Ended], cli: Cli, folder: Path
) -> None:
    swept(*SHORT, "optim.lr=1e-3,1e-1", "seed=1,2")
    shutil.rmtree(folder / "2")  # optim.lr=1e-1 seed=1
    before = {job: state(folder / job) for job in ("0", "1", "3")}
    ended = cli("-m", *SHORT, "seed=3,2,1", "optim.lr=1e-3,1e-1", f"sweep={folder}", run_dir=False)
    assert ended.code == 0, ended.err
    assert "3 done already, 0 begun, 3 to begin" in ended.err
    assert {job: state(folder / job) for job in before} == before, "found by their config, whatever the order"
    jobs = {row["job"]: (row["optim.lr"], row["seed"]) for row in table(folder)}
    assert jobs["2"] == ("0.1", "1"), "in its old place"
    assert {jobs["4"], jobs["5"]} == {("0.001", "3"), ("0.1", "3")}
    assert "sweep=" not in (folder / "sweep.json").read_text()
    assert "sweep=" not in (folder / "4" / "summary.json").read_text()


def test_a_sweep_that_knows_none_of_the_jobs_says_so(swept: Callable[..., Ended], begun: Path) -> None:
    assert "all are new in it" in swept(*SHORT, "seed=3").err
    shutil.rmtree(begun / "0")
    assert "all are new in it" not in swept(*SHORT, "seed=1").err, "it is in the plan, and has not begun"


def test_another_config_gets_a_folder_of_its_own(swept: Callable[..., Ended], begun: Path) -> None:
    before = [state(begun / job) for job in ("0", "1")]
    ended = swept(*SHORT, "trainer.steps=30", "seed=1,2")
    assert ended.code == 0, ended.err
    assert [state(begun / job) for job in ("0", "1")] == before
    assert sorted((row["job"], row["step"]) for row in table(begun)) == [
        *(("0", "20"), ("1", "20"), ("2", "30"), ("3", "30")),
    ]


def test_a_job_whose_text_has_changed_runs_anew(
    swept: Callable[..., Ended], folder: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (*SHORT, "data=text", f"data.path={text_file}", "seed=1,2")
    swept(*arguments)
    before = state(folder / "0")
    assert swept(*arguments).code == 0
    assert len(table(folder)) == 2
    text_file.write_text(text_file.read_text("utf-8") + "Another line.\n", "utf-8")
    ended = swept(*arguments)
    assert ended.code == 0, ended.err
    assert len(table(folder)) == 4
    assert state(folder / "0") == before
    assert "2 different texts" in ended.out


def test_a_job_that_another_process_trains_in_is_left_to_it(
    swept: Callable[..., Ended], begun: Path, folder: Path
) -> None:
    summary = json.loads((folder / "0" / "summary.json").read_text())
    (folder / "0" / "summary.json").write_text(json.dumps({**summary, "status": "running"}))
    before = state(folder / "0")
    with RunFolder(folder / "0").lock():
        ended = swept(*SHORT, "seed=1,2")
    assert ended.code == 1
    assert "job 0: another process trains in it" in ended.err
    after = state(folder / "0")
    assert all(after[path] == before[path] for path in before if path.name != ".lock")


def test_who_is_refused_a_folder_leaves_it_to_who_has_it(swept: Callable[..., Ended], folder: Path) -> None:
    folder.mkdir()
    with FileLock(folder / LOCK):  # has just begun, and has written nothing yet
        assert_refused(swept(*SHORT, "seed=1,2"))
        assert [path.name for path in folder.iterdir()] == [LOCK]


def test_two_commands_at_once_in_one_sweep_are_refused(swept: Callable[..., Ended], folder: Path) -> None:
    folder.mkdir()
    with RunFolder(folder).lock():
        ended = swept(*SHORT, "seed=1,2")
    assert_refused(ended, folder, os.getpid())
    assert ended.err.count("\n") == 1, "and nothing else"
    assert not (folder / "0").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL to send")
def test_killed_three_times_and_gone_on_with_it_has_the_same_table(
    swept: Callable[..., Ended], cli: Cli, folder: Path, tmp_path: Path
) -> None:
    arguments = (*SHORT, "trainer.checkpoint_every=5", "optim.lr=1e-2,1e-1", "seed=1,2")
    whole = tmp_path / "whole"
    for job, nth, at, done in ((0, 0, 7, 0), (1, 1, 12, 1), (3, 2, 18, 3)):
        setup = functools.partial(dies_in, nth, at)
        ended = command("-m", *arguments, f"hydra.sweep.dir={folder}", setup=setup)
        assert ended.code == -signal.SIGKILL, ended.err
        left = {row.name: row.status for row in Results(Sweep(folder)).rows}
        assert list(left.values()).count("completed") == done
        assert left[str(job)] == "killed"
        assert came_to(folder / str(job), at - 5)
        assert not came_to(folder / str(job), at)
    ended = swept(*arguments)
    assert ended.code == 0, ended.err
    assert "3 done already, 1 begun, 0 to begin" in ended.err
    assert "4 jobs: 4 completed" in ended.out
    for job, steps in enumerate(([5], [10], [], [15])):
        summary = read_summary(folder / str(job))
        assert summary is not None
        assert [time["step"] for time in summary.get("resumed", [])] == steps
    ended = cli("-m", *arguments, f"hydra.sweep.dir={whole}", run_dir=False)
    assert ended.code == 0, ended.err
    assert table(folder, but=TIMES) == table(whole, but=TIMES)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL to send")
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_killed_at_any_moment_and_gone_on_with_it_has_the_same_table(tmp_path: Path, launcher: str) -> None:
    arguments = (*LONGER, "optim.lr=1e-2,1e-1", "seed=1,2", f"hydra/launcher={launcher}")
    with sweeping(tmp_path / "whole", *arguments) as process:
        ended = process.end()
        assert ended.code == 0, ended.err
    folder = tmp_path / "killed"
    for job, step in ((0, 1000), (1, 2000), (2, 500)):
        with sweeping(folder, *arguments) as process:
            wait_for(lambda job=job, step=step: came_to(folder / str(job), step), of=process)  # type: ignore[misc]
            process.kill()
        left = Results(Sweep(folder))
        assert any(row.status != "completed" for row in left.rows)
        wait_for(lambda: all(row.status != "running" for row in Results(Sweep(folder)).rows))
    with sweeping(folder, *arguments) as process:
        ended = process.end()
        assert ended.code == 0, ended.err
    assert "begun" in ended.err
    assert table(folder, but=TIMES) == table(tmp_path / "whole", but=TIMES)
    assert "4 jobs: 4 completed" in ended.out


def test_a_plan_that_is_damaged_is_one_line(tool: Callable[..., Ended], folder: Path) -> None:
    folder.mkdir()
    for content in ("", "{", "[]", '{"fields": [], "settled": {}, "planned": 0, "jobs": [{"no": 1}]}', "\xff"):
        (folder / sweep.PLAN).write_text(content, "latin-1")
        ended = tool(runs_command.main, "results", str(folder))
        assert_refused(ended, folder / sweep.PLAN)
        with refuses(folder / sweep.PLAN):
            Sweep(folder)
