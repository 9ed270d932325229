"""A sweep at work: which jobs there are, which of them are left to run, and what is said at the end.

Shared by the sweepers (`hydra_plugins/bigramlm.py`), whatever launcher runs the jobs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict

from bigramlm.config.overrides import Overrides, quoted
from bigramlm.config.run_config import RunConfig, config_hashes, to_run_config
from bigramlm.data.config import DataConfig
from bigramlm.engine.failures import as_user_error
from bigramlm.errors import UserError, require
from bigramlm.runs.folder import HOLDER, LOCK, RunFolder, holder, read_summary
from bigramlm.sweeps.plan import FINISHED, Job, Sweep
from bigramlm.sweeps.results import Results
from bigramlm.sweeps.search import STUDY
from bigramlm.utils.console import relative, show
from bigramlm.utils.stop import Stopped, stop_signals

log = logging.getLogger(__name__)

# How long a job that its launcher reports as completed has to appear so on this machine's disk, in seconds.
WRITTEN_WITHIN = 60.0

_OF_EVERY_TEXT = {field.name for field in fields(DataConfig)}


class SweepExecutor:
    """One command that runs jobs of a sweep."""

    def __init__(self, sweep: Sweep, config: DictConfig, context: HydraContext, launcher: Launcher) -> None:
        """config: what Hydra composed for the sweep."""
        self.sweep = sweep
        self.config = config
        self.context = context
        self.launcher = launcher
        self.jobs: list[Job] = []  # of this command
        self.has_launched = False
        self._hashes: dict[str, str] = {}  # of texts, SHA-256
        self._texts: dict[str, str] = {}  # the text that is used, by the fields of the one that is asked for

    def sweeps(self, names: Sequence[str], *, log_names: Sequence[str] = ()) -> None:
        """Say which fields are swept; log_names: those of them that are searched on a logarithmic scale."""
        self.sweep.fields = list(dict.fromkeys([*self.sweep.fields, *names]))
        self.sweep.log_fields = list(dict.fromkeys([*self.sweep.log_fields, *log_names]))

    def plan(self, lines: Sequence[Sequence[str]]) -> None:
        """Settle the jobs that these lines of overrides make: one of the sweep so far where it is asked for again.

        Asked for again is a job with the same config and, where it has begun, the same text. UserError for a config
        that cannot be: nothing has run then.
        """
        require(
            not (self.sweep.folder / STUDY).exists(),
            f"{relative(self.sweep.folder)}: holds a search; hydra/sweeper=optuna continues it",
        )
        free = list(self.sweep.jobs.values())
        known = len(free)
        for line in lines:
            overrides, cfg = self.resolve_job(Overrides(line).without("sweep"))
            hashes = config_hashes(cfg)
            if any(job.asked in hashes for job in self.jobs):
                log.warning("asked for twice, and run once: %s", " ".join(overrides.words))
                continue
            job = next((job for job in free if job.asked in hashes and self._is_still(job, cfg)), None)
            if job is None:
                job = self.add(overrides, hashes[0])
            else:
                free.remove(job)
                # Where something is now is no matter of what the job is.
                job.overrides = (Overrides(job.overrides).without("base") + overrides.only("base")).words
            self.jobs.append(job)
        self.sweep.save()
        states = [self.sweep.status(job) for job in self.jobs]
        done = sum(state in FINISHED for state in states)
        begun = sum(state not in (*FINISHED, "pending") for state in states)
        n = len(self.jobs)
        before = f": {done} done already, {begun} begun, {n - done - begun} to begin" if known else ""
        log.info("sweep: %d %s, in %s%s", n, "job" if n == 1 else "jobs", relative(self.sweep.folder), before)
        if known and len(free) == known:
            log.warning("none of these jobs was in that sweep before: all are new in it")
        if not self.sweep.fields:
            log.warning("nothing is swept; FIELD=A,B would try both")

    def add(self, overrides: Overrides, asked: str) -> Job:
        """Add a new job, in a folder of its own."""
        number = max([-1, *self.sweep.jobs, *_numbers(self.sweep.folder)]) + 1
        self.sweep.jobs[number] = job = Job(number, overrides.words, asked)
        return job

    def resolve_job(self, overrides: Overrides) -> tuple[Overrides, RunConfig]:
        """Return the overrides of a job and the config that they make, with the text that all jobs are to have.

        UserError for a config that cannot be.
        """
        # The text is seen to once for the whole sweep: jobs at the same time would each download it, and one that
        # falls back to another text beside one that does not would make a table that compares nothing.
        cfg = self.compose(overrides)
        asked = cfg.data.name
        before = self.sweep.settled.get(asked)
        own = {name: value for name, value in vars(cfg.data).items() if name not in _OF_EVERY_TEXT}
        key = f"{asked} {own}"
        if key not in self._texts and before in (None, asked):
            self._texts[key] = cfg.data.prepare(the_same=before is not None).name
        elif key not in self._texts:
            log.warning("data=%s: as when the sweep began, data=%s stands in for it", asked, before)
            self._texts[key] = str(before)
        kept = self.sweep.settled[asked] = self._texts[key]
        if kept == asked:
            return overrides, cfg
        shared = {f"data.{name}" for name in _OF_EVERY_TEXT - {"name"}}
        of_this_text = [word.field for word in overrides if word.field.split(".")[0] == "data"]
        overrides = overrides.without(*set(of_this_text) - shared) + Overrides([f"data={kept}"])
        return overrides, self.compose(overrides)

    def compose(self, overrides: Overrides) -> RunConfig:
        """Compose the config of a job. UserError, naming the job, if it cannot be."""
        composed = self.context.config_loader.load_sweep_config(self.config, overrides.words)
        with open_dict(composed):
            del composed["hydra"]
        try:
            return to_run_config(composed)
        except UserError as error:
            values = [f"{name}={value}" for name, value in overrides.values().items() if name in self.sweep.fields]
            raise UserError(f"{error} (in the job with {' '.join(values)})") from None

    def _is_still(self, job: Job, cfg: RunConfig) -> bool:
        summary = read_summary(self.sweep.path(job)) or {}
        if summary.get("asked", job.asked) not in config_hashes(cfg):  # it was resumed alone, with something changed
            return False
        before = summary.get("data", {}).get("sha256")
        return before is None or before == self._sha256(cfg.data)

    def _sha256(self, data: DataConfig) -> str:
        own = f"{data.name} {data.file()}"
        if own not in self._hashes:
            try:
                self._hashes[own] = data.read().sha256
            except UserError:  # the job will say so
                self._hashes[own] = ""
        return self._hashes[own]

    def run(self, jobs: Sequence[Job], at_once: int | None = None) -> None:
        """Run those of the jobs that are left; at_once: the most that the launcher is handed together, None for all."""
        due = [job for job in jobs if self._is_due(job)]
        # In this process jobs are launched one by one: what breaks one of them is then the end of that one only.
        size = 1 if self._is_basic() else at_once or max(1, len(due))
        for first in range(0, len(due), size):
            self._launch(due[first : first + size])

    def _is_basic(self) -> bool:
        return str(self.config.hydra.launcher._target_).endswith(".BasicLauncher")

    def _is_due(self, job: Job) -> bool:
        state = self.sweep.status(job)
        if state == "running":
            log.warning("job %d: another process trains in it, and is left to it", job.number)
        return state not in (*FINISHED, "running")

    def _can_be_written(self, job: Job) -> bool:
        # Hydra makes the folder itself, and where it cannot, ends the launch of all.
        folder, job.error = self.sweep.path(job), None
        try:
            folder.mkdir(exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            self.fail(job, f"{folder}: cannot be made or written to: {error.strerror}")
        return job.error is None

    def fail(self, job: Job, error: str) -> None:
        """Note why a job could not even begin."""
        job.error = error
        log.warning("job %d: failed: %s", job.number, error)

    def _launch(self, jobs: Sequence[Job]) -> None:
        jobs = [job for job in jobs if self._can_be_written(job)]
        if not jobs:
            return
        place = f"hydra.sweep.dir={quoted(str(self.sweep.folder))}"
        lines = [[*job.overrides, place, f"hydra.sweep.subdir={job.number}"] for job in jobs]
        self.sweep.save()
        self.has_launched = True
        try:
            returns = self.launcher.launch(lines, initial_job_idx=jobs[0].number)
        except Exception as error:
            if os.environ.get("HYDRA_FULL_ERROR"):
                raise
            if not self._is_basic():
                raise UserError(f"the launcher failed: {_brief(as_user_error(error))}") from error
            returns = [failed(error)]
        self.wait_until_written(jobs, returns)
        for job, returned in zip(jobs, returns, strict=True):
            if returned.status is not JobStatus.COMPLETED and read_summary(self.sweep.path(job)) is None:
                ended = returned._return_value
                self.fail(job, _brief(as_user_error(ended)))
        self.sweep.save()

    def wait_until_written(
        self, jobs: Sequence[Job], returns: Sequence[JobReturn], *, within: float = WRITTEN_WITHIN
    ) -> None:
        """Wait until the folders of jobs that a launcher reports as ended say how they ended.

        A launcher may know of an end before the job's process has written it, or before a shared disk shows it, and
        Slurm's accounting may be ahead of both. A job whose process still holds its folder is waited for as long as
        that lasts; one that was reported as completed and that nobody holds, for at most `within` seconds.
        """
        if self._is_basic():  # whose jobs ran in this process
            return
        completed = {job.number for job, r in zip(jobs, returns, strict=True) if r.status is JobStatus.COMPLETED}
        told: set[int] = set()
        until = time.monotonic() + within
        while True:
            states = {job.number: self.sweep.status(job) for job in jobs}
            held = {number for number, state in states.items() if state == "running"}
            late = {n for n in completed - held if states[n] in ("pending", "killed") and time.monotonic() < until}
            if not held | late:
                return
            for number in sorted(held - told):
                log.info("job %d: reported as ended, and its process still works; waiting for it", number)
            told |= held
            time.sleep(0.05)

    def wait_for_others(self, stopped: Stopped, seconds: float = 30) -> None:
        """Give jobs in other processes of this machine, which the launcher left, the time to save."""
        if not str(self.config.hydra.launcher._target_).endswith(".LocalLauncher"):
            return
        told: set[int] = set()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            running = [job for job in self.jobs if self.sweep.status(job) == "running"]
            if not running:
                return
            for pid in filter(None, (holder(self.sweep.path(job)) for job in running)):
                if stopped.signal != signal.SIGINT and pid not in told:  # a Ctrl-C has reached them already
                    os.kill(pid, signal.SIGINT)  # submitit has a handler of its own for SIGTERM
                    told.add(pid)
            time.sleep(0.1)

    def report(self) -> bool:
        """Write the results and show them; whether something of this command is left undone."""
        results = Results(self.sweep)
        try:
            self.sweep.save()
            results.write()
        except OSError as error:
            log.warning("%s", as_user_error(error, self.sweep.folder))
        where = relative(self.sweep.folder)
        states = [self.sweep.status(job) for job in self.jobs]
        left = any(state not in FINISHED for state in states)
        lines = ["----", results.count(), "", results.text(), "", f"Sweep: {where}"]
        if any(state not in (*FINISHED, *(["failed"] if self.sweep.planned else [])) for state in states):
            lines.append(f"The same command with {shlex.quote(f'sweep={where}')} runs what is left.")
        loggers = self.config.logger.use
        if "tensorboard" in loggers:
            lines.append(f"Look at it: tensorboard --logdir {shlex.quote(str(where))}")
        lines.append(f"A page: python scripts/runs.py report {shlex.quote(str(where))}")
        show("\n".join(lines))
        return left


@contextlib.contextmanager
def open_executor(config: DictConfig, context: HydraContext, launcher: Launcher) -> Iterator[SweepExecutor]:
    """Hold the sweep's folder, yield a SweepExecutor to work with, and report what came of it, however the work ends.

    Ends the process with exit code 1 where jobs are left undone, 130 or 143 after a signal.
    """
    folder, code, left = Path(config.hydra.sweep.dir).absolute(), 0, False
    try:
        if hasattr(launcher, "check"):
            launcher.check()
        with RunFolder(folder).lock():
            try:
                launch = SweepExecutor(Sweep(folder), config, context, launcher)
                try:
                    with stop_signals():
                        yield launch
                except Stopped as stopped:
                    code = 128 + stopped.signal
                    launch.wait_for_others(stopped)
                except SystemExit as ended:  # a job that was stopped in this process
                    code = int(ended.code or 0)
                except Exception:
                    if launch.has_launched:
                        launch.report()
                    raise
                finally:
                    if hasattr(launcher, "close"):
                        launcher.close()
                left = launch.report() if launch.sweep.jobs else False
            finally:
                _remove_empty(folder, but={LOCK, HOLDER, STUDY})
    finally:
        _remove_empty(folder, but=set())  # a lock in it is another command's
    if code or left:
        sys.exit(code or 1)


def _remove_empty(folder: Path, *, but: set[str]) -> None:
    # Refused before anything began a sweep's folder holds nothing.
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= but:
        shutil.rmtree(folder, ignore_errors=True)


def failed(error: BaseException) -> JobReturn:
    """Return what a launcher returns of a job that an exception ended."""
    return JobReturn(status=JobStatus.FAILED, _return_value=error)


def _brief(error: BaseException | Any) -> str:
    # Of what a launcher quotes, such as a traceback, the last line tells.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
    return lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1]}"


def _numbers(folder: Path) -> list[int]:
    # Folders that are there already, whosesoever they are.
    return [int(path.name) for path in folder.glob("*") if path.name.isdecimal()]
