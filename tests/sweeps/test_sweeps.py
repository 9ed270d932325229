"""End-to-end tests of sweeps: failed, killed and continued."""

import functools
import gc
import importlib.util
import io
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
from bigramlm.data import shakespeare
from bigramlm.data import text as data_text
from bigramlm.engine import job as engine_job
from bigramlm.model.bigram import Bigram
from bigramlm.optim.base import Schedule
from bigramlm.runs import find as runs
from bigramlm.runs.folder import LOCK, RunFolder, read_summary
from bigramlm.sweeps import job as sweep_job
from bigramlm.sweeps import plan as sweep
from bigramlm.sweeps.plan import Sweep
from bigramlm.sweeps.results import Results
from bigramlm.trainer import trainer
from bigramlm.utils import paths, progress
from tests.helpers import Cli, Ended, assert_refused, command, refuses, table, wait_for
from tests.sweeps.helpers import SHORT, has_reached, kill_this_process_at, start_sweep

# A job takes some tenths of a second and saves several checkpoints.
LONGER = (
    *("data=bundled", "logger=none", "trainer.steps=6000", "trainer.eval_every=500"),
    *("trainer.checkpoint_every=500", "trainer.log_every=500"),
)

TIMES = {"tokens_per_second", "seconds", "folder"}


def state(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Return the modification time and content of every file below a folder.

    Locking changes the time of the lock file with some versions of filelock.
    """
    found = [path for path in folder.rglob("*") if path.is_file() and path.name != LOCK]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in found}


def test_each_job_is_complete_run_and_logs_one_line(swept: Callable[..., Ended], folder: Path) -> None:
    ended = swept(*SHORT, "logger=tensorboard", "seed=1,2")
    for job in ("0", "1"):
        files = {path.name for path in (folder / job).iterdir()}
        assert files >= {"config.yaml", "metrics.jsonl", "summary.json", "checkpoints", "samples.txt", "train.log"}
        assert any(name.startswith("events.out") for name in files)
        assert "final losses" in (folder / job / "train.log").read_text("utf-8")
        assert "sweep: null" in (folder / job / "config.yaml").read_text("utf-8")
    lines = ended.err.splitlines()
    assert lines[0].startswith("sweep: 2 jobs in ")
    assert [line.split(",")[0] for line in lines[1:]] == ["job 0: completed", "job 1: completed"]
    assert lines[2].endswith("(2 of 2): seed=2")
    assert "End of training" not in ended.out, "the final report of a single run; a sweep prints a table instead"


def test_the_bar_of_a_job_has_its_number(swept: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(trainer, "bar", functools.partial(progress.bar, file=terminal))
    assert swept(*SHORT, "seed=1,2,3").code == 0
    for job in range(3):
        assert f"job {job}/3:   0%" in terminal.getvalue()


def test_runs_that_wandb_kept_offline_are_uploaded_by_one_command(swept: Callable[..., Ended], folder: Path) -> None:
    assert "wandb sync" not in swept(*SHORT, "seed=1,2").out
    for job in ("0", "1"):
        (folder / job / "wandb" / "offline-run-20261127_091736-b500d7cb").mkdir(parents=True)
    lines = swept(*SHORT, "seed=1,2").out.splitlines()
    assert f"Upload to W&B: wandb sync {folder}/*/wandb/offline-run-*" in lines


def test_job_equals_single_run(swept: Callable[..., Ended], cli: Cli, folder: Path) -> None:
    """Earlier jobs leave no traces: seeds, threads, determinism."""
    ended = swept(*SHORT, "device.threads=1,2", "device.deterministic=true,false", "seed=5")
    assert ended.code == 0, ended.err
    alone = cli(*SHORT, "device.threads=1", "seed=5")
    for job in range(4):
        records = [(folder / str(job) / "metrics.jsonl"), alone.folder / "metrics.jsonl"]
        one, other = ([json.loads(line) for line in path.read_text().splitlines()] for path in records)
        assert [r.get("val/loss") for r in one] == [r.get("val/loss") for r in other], job
        assert [r.get("train/batch_loss") for r in one] == [r.get("train/batch_loss") for r in other], job


def test_job_listed_twice_runs_once(swept: Callable[..., Ended], folder: Path) -> None:
    ended = swept(*SHORT, "optim.lr=1e-2,0.01", "seed=1,1,2")
    assert ended.code == 0, ended.err
    assert sorted(row["seed"] for row in table(folder)) == ["1", "2"]
    assert "listed twice, but run only once" in ended.err


def test_foreign_job_folder_is_not_used(swept: Callable[..., Ended], folder: Path) -> None:
    (folder / "7").mkdir(parents=True)
    (folder / "7" / "mine.txt").write_text("mine")
    assert swept(*SHORT, "seed=1,2").code == 0
    assert sorted(row["job"] for row in table(folder)) == ["8", "9"]
    assert [path.name for path in (folder / "7").iterdir()] == ["mine.txt"]


def test_models_are_garbage_before_memory_is_freed(
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
    monkeypatch.setattr(sweep_job, "release_memory", give_back)
    assert swept(*SHORT, "seed=1,2").code == 1
    assert alive == [False, False]


def test_latest_sweep_is_most_recently_used(
    cli: Cli, tool: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "outputs", lambda: tmp_path)
    for name in ("by-name-the-last", "2026"):
        cli("-m", *SHORT, "seed=1", f"hydra.sweep.dir={tmp_path / 'sweeps' / name}", run_dir=False)
    assert runs.find_sweep("latest").name == "2026"


@pytest.mark.parametrize("n", [8, pytest.param(40, marks=pytest.mark.slow)])
def test_failures_of_all_kinds_do_not_affect_other_jobs(
    n: int, swept: Callable[..., Ended], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nan, late, broken, blocked = ({*fails} & {*range(n)} for fails in ([3, 13, 23], [4, 14], [5, 25], [6, 16, 36]))
    run, forward, check = engine_job.run, Bigram.forward, data_text.check_length

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
                patch.setattr(Schedule, "__call__", lambda *_: 1e38)
            if cfg.seed in late:
                patch.setattr(data_text, "check_length", lambda n, **words: check(n, **{**words, "block_size": 10**6}))
            return run(cfg, *arguments)

    monkeypatch.setattr(engine_job, "run", run_)
    ended = swept(*SHORT, "optim.lr=0.1", f"seed=range(0,{n})")
    assert ended.code == 1
    assert "Traceback" not in ended.err + ended.out
    n_failed = len(nan | late | broken | blocked)
    assert f"{n} jobs: {n - n_failed} completed, {n_failed} failed" in ended.out
    rows = {int(row["job"]): row for row in table(folder)}
    failed = nan | late | broken | blocked
    assert {number for number, row in rows.items() if row["status"] == "failed"} == failed
    assert len(rows) == n
    errors = [(nan, "learning rate"), (late, "block_size"), (broken, "the model broke"), (blocked, "cannot be created")]
    for numbers, words in errors:
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

    # Once the causes are fixed, the same command completes the sweep.
    monkeypatch.setattr(engine_job, "run", run)
    for number in blocked:
        (folder / str(number)).unlink()
    done = state(folder / "0")
    ended = swept(*SHORT, "optim.lr=0.1", f"seed=range(0,{n})")
    assert ended.code == 0, ended.err
    assert f"{n} jobs: {n} completed" in ended.out
    assert state(folder / "0") == done


def test_invalid_config_is_refused_before_any_job_runs(swept: Callable[..., Ended], folder: Path) -> None:
    for arguments, field, value in (
        (["optim.lr=0.1,-1,0.2"], "optim.lr", "-1.0"),
        (["seed=1,2", "optim.lr=interval(0,1)"], "optim.lr", "interval(0,1)"),
        (["seed=1,2", "+optim.lrr=1"], "optim.lrr", "optim.lr=1"),
        (["seed=1,2", "+data.path=x"], "data.path", "seed=1"),
        (["optim.lr=0.1,abc"], "optim.lr", "abc"),
        (["model=bigram,gtp"], "model", "gtp"),
    ):
        ended = swept(*SHORT, *arguments)
        assert_refused(ended, field=field, value=value)
        assert ended.err.count("\n") == 1, "no other output"
        assert not folder.exists()


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
def test_contradictory_arguments_are_refused_in_one_line(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = cli(*SHORT, *arguments, *([] if "hydra.sweep.dir=y" in arguments else ["hydra.sweep.dir=s"]), run_dir=False)
    if any(argument.startswith("sweep=") for argument in arguments):
        ended = cli(*SHORT, *arguments, run_dir=False)
    assert_refused(ended, *words.split())
    assert ended.err.count("\n") == 1, "no other output"


@pytest.mark.parametrize(
    ("choice", "extra"),
    [
        ("hydra/launcher=joblib", "joblib"),
        ("hydra/launcher=submitit_local", "submitit"),
        ("hydra/launcher=submitit_slurm", "submitit"),
        ("hydra/sweeper=optuna", "optuna"),
    ],
)
def test_missing_extra_is_named_with_install_command(
    swept: Callable[..., Ended], folder: Path, monkeypatch: pytest.MonkeyPatch, choice: str, extra: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: find(name) if name == "hydra" else None)
    ended = swept(*SHORT, "seed=1,2", choice)
    assert_refused(ended, f'pip install -c constraints.txt -e ".[{extra}]"')
    assert not folder.exists()


def test_help_imports_no_extras() -> None:
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


def test_groups_experiments_and_free_text_can_be_swept(
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


def test_text_with_comma_is_not_swept(swept: Callable[..., Ended], folder: Path) -> None:
    assert swept(*SHORT, "seed=1,2", "sample.prompt=To be, or not").code == 0
    assert len(table(folder)) == 2
    assert "To be, or not" in (folder / "0" / "samples.txt").read_text("utf-8")


def test_text_is_chosen_once_for_whole_sweep(
    swept: Callable[..., Ended], cli: Cli, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that recovers during the sweep must not change the text of later jobs."""
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
    # The continued sweep keeps the text.
    assert swept(*plain, "seed=1,2,3", "data.block_size=4,8", "data.timeout=1").code == 0
    assert len(tries) == 1
    assert len({row["status"] for row in table(folder)}) == 1
    assert len(table(folder)) == 6


def test_continued_sweep_runs_only_missing_jobs(swept: Callable[..., Ended], cli: Cli, folder: Path) -> None:
    swept(*SHORT, "optim.lr=1e-3,1e-1", "seed=1,2")
    shutil.rmtree(folder / "2")  # optim.lr=1e-1 seed=1
    before = {job: state(folder / job) for job in ("0", "1", "3")}
    ended = cli("-m", *SHORT, "seed=3,2,1", "optim.lr=1e-3,1e-1", f"sweep={folder}", run_dir=False)
    assert ended.code == 0, ended.err
    assert "3 done, 0 started, 3 not started" in ended.err
    assert {job: state(folder / job) for job in before} == before, "jobs are found by their config, in any order"
    jobs = {row["job"]: (row["optim.lr"], row["seed"]) for row in table(folder)}
    assert jobs["2"] == ("0.1", "1"), "it keeps its number"
    assert {jobs["4"], jobs["5"]} == {("0.001", "3"), ("0.1", "3")}
    assert "sweep=" not in (folder / "sweep.json").read_text()
    assert "sweep=" not in (folder / "4" / "summary.json").read_text()


def test_sweep_warns_if_all_jobs_are_new(swept: Callable[..., Ended], existing_sweep: Path) -> None:
    assert "none with the config of a job of this command" in swept(*SHORT, "seed=3").err
    shutil.rmtree(existing_sweep / "0")
    assert "none with the config of a job of this command" not in swept(*SHORT, "seed=1").err, (
        "job 0 is in the plan, but has not started"
    )


def test_changed_config_gets_new_folder(swept: Callable[..., Ended], existing_sweep: Path) -> None:
    before = [state(existing_sweep / job) for job in ("0", "1")]
    ended = swept(*SHORT, "trainer.steps=30", "seed=1,2")
    assert ended.code == 0, ended.err
    assert [state(existing_sweep / job) for job in ("0", "1")] == before
    assert sorted((row["job"], row["step"]) for row in table(existing_sweep)) == [
        *(("0", "20"), ("1", "20"), ("2", "30"), ("3", "30")),
    ]


def test_job_with_changed_text_runs_again(
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


def test_job_of_another_process_is_skipped(swept: Callable[..., Ended], existing_sweep: Path, folder: Path) -> None:
    summary = json.loads((folder / "0" / "summary.json").read_text())
    (folder / "0" / "summary.json").write_text(json.dumps({**summary, "status": "running"}))
    before = state(folder / "0")
    with RunFolder(folder / "0").lock():
        ended = swept(*SHORT, "seed=1,2")
    assert ended.code == 1
    assert "job 0 is skipped, because another process is training in its folder" in ended.err
    after = state(folder / "0")
    assert all(after[path] == before[path] for path in before if path.name != ".lock")


def test_refused_command_keeps_folder_of_other_command(swept: Callable[..., Ended], folder: Path) -> None:
    folder.mkdir()
    with FileLock(folder / LOCK):  # another command has just started, and has not written anything yet
        assert_refused(swept(*SHORT, "seed=1,2"))
        assert [path.name for path in folder.iterdir()] == [LOCK]


def test_second_command_in_same_sweep_is_refused(swept: Callable[..., Ended], folder: Path) -> None:
    folder.mkdir()
    with RunFolder(folder).lock():
        ended = swept(*SHORT, "seed=1,2")
    assert_refused(ended, folder, os.getpid())
    assert ended.err.count("\n") == 1, "no other output"
    assert not (folder / "0").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL to send")
def test_sweep_killed_three_times_gives_same_table(
    swept: Callable[..., Ended], cli: Cli, folder: Path, tmp_path: Path
) -> None:
    arguments = (*SHORT, "trainer.checkpoint_every=5", "optim.lr=1e-2,1e-1", "seed=1,2")
    whole = tmp_path / "whole"
    for job, nth, at, done in ((0, 0, 7, 0), (1, 1, 12, 1), (3, 2, 18, 3)):
        setup = functools.partial(kill_this_process_at, nth, at)
        ended = command("-m", *arguments, f"hydra.sweep.dir={folder}", setup=setup)
        assert ended.code == -signal.SIGKILL, ended.err
        left = {row.name: row.status for row in Results(Sweep(folder)).rows}
        assert list(left.values()).count("completed") == done
        assert left[str(job)] == "killed"
        assert has_reached(folder / str(job), at - 5)
        assert not has_reached(folder / str(job), at)
    ended = swept(*arguments)
    assert ended.code == 0, ended.err
    assert "3 done, 1 started, 0 not started" in ended.err
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
def test_sweep_killed_at_any_time_gives_same_table(tmp_path: Path, launcher: str) -> None:
    arguments = (*LONGER, "optim.lr=1e-2,1e-1", "seed=1,2", f"hydra/launcher={launcher}")
    with start_sweep(tmp_path / "whole", *arguments) as process:
        ended = process.end()
        assert ended.code == 0, ended.err
    folder = tmp_path / "killed"
    for job, step in ((0, 1000), (1, 2000), (2, 500)):
        with start_sweep(folder, *arguments) as process:
            wait_for(lambda job=job, step=step: has_reached(folder / str(job), step), of=process)  # type: ignore[misc]
            process.kill()
        left = Results(Sweep(folder))
        assert any(row.status != "completed" for row in left.rows)
        wait_for(lambda: all(row.status != "running" for row in Results(Sweep(folder)).rows))
    with start_sweep(folder, *arguments) as process:
        ended = process.end()
        assert ended.code == 0, ended.err
    assert "started" in ended.err
    assert table(folder, but=TIMES) == table(tmp_path / "whole", but=TIMES)
    assert "4 jobs: 4 completed" in ended.out


def test_damaged_plan_is_refused_in_one_line(tool: Callable[..., Ended], folder: Path) -> None:
    folder.mkdir()
    for content in ("", "{", "[]", '{"fields": [], "settled": {}, "planned": 0, "jobs": [{"no": 1}]}', "\xff"):
        (folder / sweep.PLAN).write_text(content, "latin-1")
        ended = tool(runs_command.main, "results", str(folder))
        assert_refused(ended, folder / sweep.PLAN)
        with refuses(folder / sweep.PLAN):
            Sweep(folder)
