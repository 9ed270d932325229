"""Tests of launches: composition of jobs, submitit, Slurm, and waiting for jobs."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from omegaconf import OmegaConf

from bigramlm.config.overrides import Overrides
from bigramlm.engine.command_line import set_up_hydra
from bigramlm.engine.job import train
from bigramlm.engine.run import RunContext, RunResult
from bigramlm.runs.find import PLAN
from bigramlm.runs.folder import LOCK, RunFolder, read_summary
from bigramlm.sweeps import compose
from bigramlm.sweeps import executor as launch
from bigramlm.sweeps.plan import Job, Sweep
from bigramlm.sweeps.results import Results
from bigramlm.utils import paths, stop
from tests.helpers import SCRIPT, TIMEOUT, Cli, Ended, assert_refused, composed, refuses, table
from tests.sweeps.helpers import SHORT, kill_at_step, start_sweep

# A job takes some tenths of a second and saves several checkpoints.
LONGER = (
    *("data=bundled", "logger=none", "trainer.steps=6000", "trainer.eval_every=500"),
    *("trainer.checkpoint_every=500", "trainer.log_every=500"),
)


def state(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Return the modification time and content of every file below a folder.

    Locking changes the time of the lock file with some versions of filelock.
    """
    found = [path for path in folder.rglob("*") if path.is_file() and path.name != LOCK]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in found}


def fake_results(folder: Path, *summaries: dict[str, Any]) -> Results:
    """Return the results of a sweep over seeds with these summaries."""
    sweep = Sweep(folder)
    sweep.fields = ["seed"]
    for number, summary in enumerate(summaries):
        sweep.jobs[number] = Job(number, [f"seed={number}"])
        (folder / str(number)).mkdir(parents=True)
        (folder / str(number) / "summary.json").write_text(json.dumps(summary))
    sweep.save()
    return Results(Sweep(folder))


@pytest.mark.parametrize(
    "overrides",
    [
        ["seed=3", "optim.lr=0.3"],
        ["experiment=quick", "seed=3", "optim.lr=0.3", 'sample.prompt="a, b"'],
        ["data=text", 'data.path="x y"', "++data.batch_size=7", "logger=none", "hydra.sweep.subdir=9"],
        ["optim.lr=1e-3", "optim.lr=1e-4", "optim.betas=[0.1,0.2]", "logger.tags=[a,b]"],
    ],
)
def test_cached_composition_equals_hydras(overrides: list[str]) -> None:
    set_up_hydra()
    with initialize_config_dir(str(paths.conf_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        assert loader is not None
        typed = ["hydra.mode=MULTIRUN", "hydra.sweep.dir=/somewhere", "seed=1,2"]
        master = loader.load_configuration("train", typed, run_mode=RunMode.MULTIRUN)
        composer = compose.CachedConfigLoader(loader)
        # The later calls reuse the composition of the first one.
        first = [word for word in overrides if not word.startswith(("seed=", "optim.lr="))]
        composer.load_sweep_config(master, first)
        for one in (overrides, overrides[::-1]):
            ours, hydras = (of.load_sweep_config(master, one) for of in (composer, loader))
            assert OmegaConf.to_container(ours) == OmegaConf.to_container(hydras)
            assert ours.hydra.sweep.dir == "/somewhere"


def test_submitit_runs_each_job_in_its_own_process(swept: Callable[..., Ended], folder: Path) -> None:
    ended = swept(*SHORT, "seed=1,2", "hydra/launcher=submitit_local", "hydra.sweeper.max_batch_size=1")
    assert ended.code == 0, ended.err
    pids = set()
    for job in "01":
        summary = read_summary(folder / job)
        assert summary is not None
        pids.add(summary["pid"])
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert "2 jobs: 2 completed" in ended.out


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL to send")
def test_killed_submitit_job_does_not_affect_others(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    arguments = (*LONGER, "trainer.steps=20000", "seed=1,2", "hydra/launcher=submitit_local")
    with start_sweep(folder, *arguments) as process:
        kill_at_step(folder / "0", 500)
        ended = process.end()
        assert ended.code == 1
    assert "2 jobs: 1 completed, 1 killed" in ended.out, ended.err
    with start_sweep(folder, *arguments) as process:
        ended = process.end()
        assert ended.code == 0, ended.err


# Substitutes for Slurm's programs. sbatch starts the tasks of the array shortly after it has answered.
SLURM = {
    "sbatch": """#!/bin/sh
cp "$1" "$SLURM_STAND_IN/submitted.sh"
echo "Submitted batch job 4242"
(
  sleep 1
  for task in $(seq 0 $(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")); do
    SLURM_JOB_ID=4242 SLURM_ARRAY_JOB_ID=4242 SLURM_ARRAY_TASK_ID=$task SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 \\
      SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_JOB_NODELIST=node sh "$SLURM_STAND_IN/submitted.sh"
    touch "$SLURM_STAND_IN/ended_$task"
  done
) > "$SLURM_STAND_IN/tasks.log" 2>&1 &
""",
    "srun": """#!/bin/sh
while [ "${1#-}" != "$1" ]; do case "$1" in --output|--error) shift;; esac; shift; done
exec "$@"
""",
    "sacct": """#!/bin/sh
echo "JobID|State|NodeList"
for task in 0 1 2 3; do
  state=RUNNING
  [ -e "$SLURM_STAND_IN/ended_$task" ] && state=COMPLETED
  echo "4242_$task|$state|node"
done
""",
    "scancel": "#!/bin/sh\n",
    "squeue": "#!/bin/sh\n",
}


def install_slurm(folder: Path, monkeypatch: pytest.MonkeyPatch, **programs: str) -> None:
    """Put the substitutes into a folder of PATH; some can be replaced by others."""
    folder.mkdir()
    for name, script in {**SLURM, **programs}.items():
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize("empty", ["seed=range(0,0)", "experiment=glob(nomatch*)", "seed=choice()"])
@pytest.mark.parametrize("sweeper", ["basic", "optuna"])
def test_an_empty_sweep_is_refused(empty: str, sweeper: str, swept: Callable[..., Ended], folder: Path) -> None:
    ended = swept(*SHORT, empty, f"hydra/sweeper={sweeper}")
    assert_refused(ended, empty)
    assert ended.err.count("\n") == 1
    assert not folder.exists()


def test_a_search_whose_first_trial_is_refused_prints_one_line(swept: Callable[..., Ended], folder: Path) -> None:
    ended = swept(*SHORT, "hydra/sweeper=optuna", "optim.lr=interval(-2,-1)")
    assert_refused(ended, "optim.lr=-")
    assert ended.err.count("\n") == 1
    assert not folder.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_below_standard_output_does_not_fail_a_sweep(folder: Path) -> None:
    overrides = " ".join([*SHORT, "trainer.steps=1", f"hydra.sweep.dir={folder}"])
    line = f"{sys.executable} {SCRIPT} -m seed=1,2 {overrides} >/dev/full"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "standard output cannot be written" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="Slurm does not run on Windows")
def test_sweep_runs_on_slurm(
    swept: Callable[..., Ended], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Substitutes take the place of Slurm's programs."""
    install_slurm(tmp_path / "bin", monkeypatch)
    monkeypatch.setenv("SLURM_STAND_IN", str(tmp_path))
    fields = ("partition=gpu", "account=lab", "timeout_min=90", "gpus_per_node=2", "cpus_per_task=3", "mem_gb=5")
    typed = [f"hydra.launcher.{field}" for field in (*fields, "array_parallelism=2", "'setup=[echo ready]'"[1:-1])]
    ended = swept(*SHORT, "seed=1,2", "hydra/launcher=submitit_slurm", *typed)
    assert ended.code == 0, ended.err
    assert "2 jobs: 2 completed" in ended.out
    script = (tmp_path / "submitted.sh").read_text()
    for line in (
        *("--partition=gpu", "--account=lab", "--time=90", "--gpus-per-node=2", "--cpus-per-task=3", "--mem=5GB"),
        *("--array=0-1%2", "--nodes=1", "--signal=USR2@120"),
    ):
        assert f"#SBATCH {line}\n" in script
    assert "\necho ready\n" in script


def remote_executor(folder: Path) -> launch.SweepExecutor:
    """Return an executor whose launcher does not run its jobs in this process."""
    config = OmegaConf.create({"hydra": {"launcher": {"_target_": "elsewhere.SlurmLauncher"}}})
    return launch.SweepExecutor(Sweep(folder), config, None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("reported", [JobReturn(status=JobStatus.COMPLETED), launch.failed(RuntimeError("no output"))])
def test_waits_for_running_job_that_is_reported_as_ended(folder: Path, reported: JobReturn) -> None:
    """Slurm's accounting may be ahead of the job's own process."""
    fake_results(folder, {"status": "running"}, {"status": "completed"})
    executor = remote_executor(folder)
    returns = [reported, JobReturn(status=JobStatus.COMPLETED)]
    waiting = threading.Thread(target=executor.wait_until_written, args=(list(executor.sweep.jobs.values()), returns))
    with RunFolder(folder / "0").lock():
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive(), "job 0 is still running"
        (folder / "0" / "summary.json").write_text('{"status": "completed"}')
    waiting.join(TIMEOUT)
    assert not waiting.is_alive()
    assert Results(Sweep(folder)).count() == "2 jobs: 2 completed"


def test_waits_for_summary_of_job_that_is_reported_as_completed(folder: Path) -> None:
    """A disk that several machines share may show files late."""
    fake_results(folder, {"status": "completed"})
    (folder / "0" / "summary.json").rename(folder / "late")
    executor = remote_executor(folder)
    (job,) = executor.sweep.jobs.values()
    executor.wait_until_written([job], [JobReturn(status=JobStatus.COMPLETED)], within=0.0)
    assert executor.sweep.status(job) == "pending", "the wait ends after `within` seconds"
    executor.wait_until_written([job], [launch.failed(RuntimeError("it never started"))])
    waiting = threading.Thread(
        target=executor.wait_until_written,
        args=([job], [JobReturn(status=JobStatus.COMPLETED)]),
        kwargs={"within": TIMEOUT},
    )
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive()
    (folder / "late").rename(folder / "0" / "summary.json")
    waiting.join(TIMEOUT)
    assert not waiting.is_alive()


@pytest.mark.skipif(os.name == "nt", reason="Slurm does not run on Windows")
def test_launcher_failure_is_reported_in_one_line(
    swept: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm refuses the job array."""
    install_slurm(tmp_path / "bin", monkeypatch, sbatch="#!/bin/sh\necho the partition is closed >&2\nexit 1\n")
    ended = swept(*SHORT, "seed=1,2,3", "hydra/launcher=submitit_slurm")
    assert "3 jobs: 3 pending" in ended.out, "the table includes jobs that have not started"
    assert_refused(replace(ended, out=""), "the partition is closed")
    assert "Error(" not in ended.err, "the message without the name of the exception"


def test_resubmitted_job_resumes_or_is_done(tmp_path: Path) -> None:
    """Slurm resubmits a job that ran out of time, in the same folder."""
    folder, config = tmp_path / "0", composed(*SHORT, "trainer.checkpoint_every=10", "seed=1")
    folder.mkdir()

    def interrupt_at_10(step: int, _: Mapping[str, float]) -> bool:
        if step == 10:
            raise KeyboardInterrupt
        return False

    def again(should_prune: Callable[[int, Mapping[str, float]], bool] | None = None) -> object:
        context = RunContext(should_prune=should_prune)
        return train(config, RunFolder(folder), Overrides(), context, continues=True)

    with pytest.raises(stop.Stopped):
        again(interrupt_at_10)
    assert isinstance(again(), RunResult)
    summary = read_summary(folder)
    assert summary is not None
    assert (summary["status"], summary["resumed"][0]["step"]) == ("completed", 0)
    before = state(folder)
    assert again() is None
    assert state(folder) == before
    # A different config is a different run, which may not use this folder.
    with refuses(folder):
        train(composed(*SHORT, "seed=2"), RunFolder(folder), Overrides(), RunContext(), continues=True)
    assert state(folder) == before


# What a recipe sets, and whether it applies to a sweep as a whole.
SETTINGS = {
    "hydra: {sweeper: {params: {seed: '1,2'}}}": "hydra.sweeper",
    "hydra: {sweep: {subdir: elsewhere}}": "hydra.sweep",
    "defaults: [override /hydra/launcher: joblib]": "hydra.launcher",
    "hydra: {job: {env_set: {BIGRAMLM_TEST: '1'}}}": "",
    "hydra: {mode: MULTIRUN}": "",
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_of_the_sweep_in_a_swept_recipe_are_refused(setting: str, cli: Cli, tmp_path: Path) -> None:
    presets, sweep = tmp_path / "presets", tmp_path / "sweep"
    (presets / "experiment").mkdir(parents=True)
    (presets / "experiment" / "a.yaml").write_text(f"# @package _global_\n{setting}\n", "utf-8")
    (presets / "experiment" / "b.yaml").write_text("# @package _global_\nseed: 3\n", "utf-8")
    line = ["-m", f"--config-dir={presets}", *SHORT, "experiment=b,a", f"hydra.sweep.dir={sweep}"]
    ended = cli(*line, run_dir=False)
    if SETTINGS[setting]:
        assert_refused(ended, "experiment=a", f"sets {SETTINGS[setting]}")
        assert not sweep.exists()
    else:
        assert ended.code == 0, ended.err
        assert "2 jobs: 2 completed" in ended.out


def test_settings_of_the_sweep_in_the_only_recipe_apply(cli: Cli, tmp_path: Path) -> None:
    presets, sweep = tmp_path / "presets", tmp_path / "sweep"
    (presets / "experiment").mkdir(parents=True)
    recipe = "# @package _global_\nhydra: {sweeper: {params: {seed: '1,2'}}}\n"
    (presets / "experiment" / "a.yaml").write_text(recipe, "utf-8")
    ended = cli("-m", f"--config-dir={presets}", *SHORT, "experiment=a", f"hydra.sweep.dir={sweep}", run_dir=False)
    assert ended.code == 0, ended.err
    assert "2 jobs: 2 completed" in ended.out


def test_a_continued_sweep_launches_what_was_typed(swept: Callable[..., Ended], folder: Path, tmp_path: Path) -> None:
    assert swept(*SHORT, "seed=1,2").code == 0
    shutil.rmtree(folder / "1")
    plan = Sweep(folder)
    plan.jobs[1].overrides += ["+hydra.job.env_set.THEIRS=1", "data=text", "data.path=/etc/passwd"]
    plan.settled = {"bundled": "text", f"init_from={tmp_path}": "/etc"}
    plan.save()
    ended = swept(*SHORT, "seed=1,2")
    assert ended.code == 0, ended.err
    assert "THEIRS" not in ended.err
    assert [row["seed"] for row in table(folder)] in (["1", "2"], ["2", "1"])
    assert "bundled" in (folder / "1" / "config.yaml").read_text("utf-8")
    assert "passwd" not in (folder / PLAN).read_text("utf-8")


@pytest.mark.parametrize(
    "change",
    [
        *({"number": number} for number in ("../../x", "/tmp/x", -1, 1.5, True, None, 2**40)),
        *({"overrides": overrides} for overrides in ("seed=1", [1], None, {"seed": 1})),
        *({"asked": 5}, {"error": ["\x1b"]}, {"more": 1}),
    ],
    ids=str,
)
def test_values_of_a_plan_are_checked(change: dict[str, object], folder: Path) -> None:
    folder.mkdir()
    job = {"number": 0, "overrides": ["seed=1"], "asked": "", "error": None, **change}
    plan = {"fields": ["seed"], "log_fields": [], "settled": {}, "planned": 0, "jobs": [job]}
    (folder / PLAN).write_text(json.dumps(plan), "utf-8")
    with refuses(folder / PLAN):
        Sweep(folder)


@pytest.mark.skipif(os.name == "nt", reason="Windows has other locks")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_a_sweep_on_a_file_system_without_locks_leaves_nothing(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    ended = cli("-m", *SHORT, "seed=1,2", f"hydra.sweep.dir={folder}", run_dir=False)
    assert_refused(ended, folder, os.strerror(number), "local disk")
    assert not folder.exists()
