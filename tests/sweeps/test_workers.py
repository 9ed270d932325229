"""Tests of joblib's workers: shares of cores and GPUs, signals and kills."""

import os
import signal
from pathlib import Path

import pytest

from bigramlm.runs import find as runs
from bigramlm.runs.folder import read_summary
from bigramlm.sweeps import workers
from bigramlm.sweeps.plan import Sweep
from bigramlm.sweeps.results import Results
from tests.helpers import Cli, wait_for
from tests.sweeps.helpers import has_reached, kill_at_step, start_sweep

# A job takes some tenths of a second and saves several checkpoints.
LONGER = (
    *("data=bundled", "logger=none", "trainer.steps=6000", "trainer.eval_every=500"),
    *("trainer.checkpoint_every=500", "trainer.log_every=500", "trainer.eval_batches=2", "sample.max_new_tokens=20"),
)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL to send")
def test_killed_worker_ends_its_job_only(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    arguments = (*LONGER, "trainer.steps=8000", "seed=1,2,3")
    with start_sweep(folder, *arguments, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2") as process:
        kill_at_step(folder / "0", 1000)
        ended = process.end()
        assert ended.code == 1
    assert "job 0: its process was killed" in ended.err
    assert "3 jobs: 2 completed, 1 killed" in ended.out
    ended = cli("-m", *arguments, f"sweep={folder}", run_dir=False)  # with the basic launcher
    assert ended.code == 0, ended.err
    assert "3 jobs: 3 completed" in ended.out
    resumed = read_summary(folder / "0")
    assert resumed is not None
    assert resumed["resumed"][0]["step"] >= 1000


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to send")
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_signal_saves_and_stops_jobs_of_workers(tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "sweep"
    arguments = (*LONGER, "trainer.steps=1000000", "seed=1,2,3", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    with start_sweep(folder, *arguments) as process:
        wait_for(lambda: all(has_reached(folder / job, 500) for job in "01"), of=process)
        process.send(number)
        ended = process.end()
    assert ended.code == 128 + number, ended.err
    assert "Traceback" not in ended.err
    assert "3 jobs: 2 stopped, 1 pending" in ended.out
    for job in "01":
        summary = read_summary(folder / job)
        assert summary is not None
        assert (folder / job / "checkpoints" / f"step_{summary['step']}").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL to send")
def test_workers_share_cores_and_exit_with_killed_command(tmp_path: Path) -> None:
    from joblib.externals import loky

    folder = tmp_path / "sweep"
    # The batches are too large for one thread, so device.threads=auto takes all threads that a worker may use.
    large = ("data.batch_size=4096", "data.block_size=64", "trainer.checkpoint_every=1")
    arguments = (*LONGER, *large, "trainer.steps=1000000", "seed=1,2", "hydra/launcher=joblib")
    with start_sweep(folder, *arguments, "hydra.launcher.n_jobs=2") as process:
        wait_for(lambda: all(has_reached(folder / job, 1) for job in "01"), of=process)
        process.kill()
    wait_for(lambda: statuses_now(folder) == ["stopped", "stopped"])
    shares = workers.environments(2, cores=loky.cpu_count(), gpus=[])
    for job, share in zip("01", shares, strict=True):
        run = runs.read_run(folder / job)
        assert run is not None
        assert run.get("device.threads") == share["OMP_NUM_THREADS"]


def statuses_now(folder: Path) -> list[str]:
    return [row.status for row in Results(Sweep(folder)).rows]


def test_workers_divide_cores_and_gpus() -> None:
    variables = workers.environments(2, cores=8, gpus=["0", "3"])
    assert [e["CUDA_VISIBLE_DEVICES"] for e in variables] == ["0", "3"], "one GPU per job"
    assert {e["OMP_NUM_THREADS"] for e in variables} == {"4"}
    assert [e["CUDA_VISIBLE_DEVICES"] for e in workers.environments(3, cores=2, gpus=["1"])] == ["1"] * 3
    assert {e["OMP_NUM_THREADS"] for e in workers.environments(3, cores=2, gpus=[])} == {"1"}
    assert "CUDA_VISIBLE_DEVICES" not in workers.environments(1, cores=2, gpus=[])[0]


def test_visible_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 5")
    assert workers.visible_gpus() == ["2", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert workers.visible_gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert workers.visible_gpus() == []
    if os.name != "nt":
        listing = tmp_path / "nvidia-smi"
        listing.write_text("#!/bin/sh\necho 'GPU 0: one'\necho '  MIG device'\necho 'GPU 1: two'\n")
        listing.chmod(0o755)
        assert workers.visible_gpus() == ["0", "1"]
