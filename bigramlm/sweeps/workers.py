"""Worker processes that run jobs of a sweep in parallel on one machine."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from bigramlm.config.extensions import import_extensions, names_in
from bigramlm.config.run_config import register_schemas
from bigramlm.sweeps.executor import failed
from bigramlm.utils.stop import Stopped, handle_sigterm_only

log = logging.getLogger(__name__)


class Workers:
    """Worker processes, each of which runs one job at a time.

    Each worker is a pool of one process. If the process is killed, only its current job fails, and the other workers
    continue.
    """

    def __init__(self, n_jobs: int, config: DictConfig, context: HydraContext, task: TaskFunction) -> None:
        """Prepare the workers; their processes start with the first jobs.

        n_jobs: the maximum number of workers. If it is -1, there is one worker per GPU if the jobs run on GPUs, else
        one worker per physical CPU core.
        """
        from joblib.externals import loky

        self._cores = loky.cpu_count()
        self._gpus = visible_gpus() if config.device.name.startswith(("auto", "cuda")) else []
        self.n = n_jobs if n_jobs > 0 else len(self._gpus) or loky.cpu_count(only_physical_cores=True)
        self._task = (context, config, task)
        self._workers: list[_Worker] = []

    def run(self, lines: Sequence[Sequence[str]], numbers: Sequence[int]) -> list[JobReturn]:
        """Run one job per list of overrides, and return the results in the same order.

        lines: the overrides of each job. numbers: the number of each job. Raises Stopped after a stop signal.
        """
        returns: list[JobReturn] = [failed(RuntimeError("the job did not start"))] * len(lines)
        waiting = deque(range(len(lines)))
        running: dict[Future[JobReturn], tuple[_Worker, int]] = {}
        if not self._workers:
            n = min(self.n, len(lines))
            self._workers = [
                _Worker(environment) for environment in environments(n, cores=self._cores, gpus=self._gpus)
            ]
        free = deque(self._workers)
        try:
            while waiting or running:
                while free and waiting:
                    worker, at = free.popleft(), waiting.popleft()
                    running[worker.submit(numbers[at], list(lines[at]), *self._task)] = (worker, at)
                # The timeout is needed on Windows, where wait() would otherwise block Ctrl-C.
                for future in wait(running, timeout=0.5, return_when=FIRST_COMPLETED).done:
                    worker, at = running.pop(future)
                    returns[at] = worker.result(future, numbers[at])
                    free.append(worker)
        except Stopped as stopped:
            self._stop(running, stopped)
            raise
        return returns

    def _stop(self, running: dict[Future[JobReturn], tuple[_Worker, int]], stopped: Stopped) -> None:
        # A worker saves its job after the current step and ends it; a second signal ends the job at once.
        name = signal.Signals(stopped.signal).name
        log.warning("%s: the jobs save and stop after the current step; repeat the signal to stop them at once", name)
        while running:
            for worker, _ in running.values():
                worker.stop()
            try:
                wait(running)
                return
            except Stopped as repeated:
                stopped.signal = repeated.signal

    def close(self) -> None:
        """Shut down the worker processes."""
        for worker in self._workers:
            worker.close()


class _Worker:
    """A process that runs jobs one after the other, and is replaced if it is killed."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self._pool: Any = None

    def submit(self, number: int, overrides: list[str], *task: Any) -> Future[JobReturn]:
        from joblib.externals.loky import BrokenProcessPool

        try:
            return self._submit(_run, number, overrides, *task)
        except BrokenProcessPool:  # killed while it was idle
            self._pool = None
            return self._submit(_run, number, overrides, *task)

    def _submit(self, *call: Any) -> Future[JobReturn]:
        from joblib.externals.loky import ProcessPoolExecutor

        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                max_workers=1,
                env=self._environment,
                initializer=_initialize,
                initargs=(os.getpid(), Singleton.get_state()),
            )
        # The new process inherits the ignored signal, so that a Ctrl-C does not end it while it starts.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            return self._pool.submit(*call)  # type: ignore[no-any-return]
        finally:
            signal.signal(signal.SIGINT, handler)

    def result(self, future: Future[JobReturn], number: int) -> JobReturn:
        from joblib.externals.loky import BrokenProcessPool

        try:
            return future.result()
        except BrokenProcessPool as error:
            self._pool.shutdown(wait=False)
            self._pool = None
            log.warning("job %d: its process was killed", number)
            return failed(error)
        except Exception as error:
            return failed(error)

    def stop(self) -> None:
        for pid in list(self._pool._processes or ()):  # loky may have replaced the first process
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True)


def environments(n: int, *, cores: int, gpus: Sequence[str]) -> list[dict[str, str]]:
    """Return the environment variables of each of n workers.

    The workers share the CPU cores equally. If there are GPUs, each worker uses one of them. gpus: the GPU names, in
    the form that CUDA_VISIBLE_DEVICES accepts.
    """
    threads = str(max(1, cores // n))
    shared = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TQDM_DISABLE": "1"}
    return [{**shared, **({"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {})} for i in range(n)]


def visible_gpus() -> list[str]:
    """Return the CUDA GPUs that this process may use, as in CUDA_VISIBLE_DEVICES.

    This function does not import torch, because the import would take longer than all other work at the start.
    """
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        names = [name.strip() for name in chosen.split(",")]
        return [name for name in names if name and not name.startswith("-")]  # -1 means no GPU
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return [str(i) for i, _ in enumerate(line for line in listed.splitlines() if line.startswith("GPU "))]


_job_lock = threading.Lock()


def _initialize(parent: int, state: Any) -> None:
    handle_sigterm_only()
    setup_globals()
    Singleton.set_state(state)
    register_schemas()
    threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()


def _exit_with_parent(parent: int) -> None:
    # If the sweep command is killed, its jobs must not continue unnoticed.
    while os.getppid() == parent:
        time.sleep(0.5)
    if _job_lock.locked():
        os.kill(os.getpid(), signal.SIGTERM)
    with _job_lock:  # waits until the job is saved
        os._exit(1)


def _run(number: int, overrides: list[str], context: HydraContext, config: DictConfig, task: TaskFunction) -> JobReturn:
    import_extensions(names_in(config.extensions))  # before the job's config is composed
    job = context.config_loader.load_sweep_config(config, overrides)
    with open_dict(job):
        job.hydra.job.id = f"{job.hydra.job.name}_{number}"
        job.hydra.job.num = number
    HydraConfig.instance().set_config(job)
    with _job_lock:
        try:
            return run_job(
                hydra_context=context,
                config=job,
                task_function=task,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )
        except SystemExit as exit_:  # the job was stopped, which its summary records
            return failed(RuntimeError(f"the job was stopped (exit code {exit_.code})"))
