"""The execution of a sweep: planning, launching and reporting on its jobs.

Both sweepers (`hydra_plugins/bigramlm.py`) use this module, with any launcher.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from bigramlm.config.overrides import FREE_TEXT, Overrides, quoted
from bigramlm.config.run_config import RunConfig, config_hashes, to_run_config
from bigramlm.data.config import BundledConfig, DataConfig
from bigramlm.engine.failures import CommandExit, as_user_error
from bigramlm.errors import UserError, require
from bigramlm.runs.discard import discard
from bigramlm.runs.find import PLAN, shortest_name
from bigramlm.runs.folder import FINISHED, HOLDER, LOCK, RunFolder, holder, read_summary, require_own_place
from bigramlm.sweeps.compose import continue_command
from bigramlm.sweeps.plan import Job, Sweep
from bigramlm.sweeps.results import Results
from bigramlm.sweeps.search import STUDY
from bigramlm.sweeps.weights import StartingWeights
from bigramlm.utils import files, paths
from bigramlm.utils.console import relative, show
from bigramlm.utils.stop import Stopped, stop_signals

log = logging.getLogger(__name__)

# Seconds to wait for the summary of a job that the launcher has reported as completed.
WRITTEN_WITHIN = 60.0

# The folders in which W&B keeps what it has not uploaded, in a run folder.
_OFFLINE = "wandb/offline-run-*"

# The settings of Hydra that apply to the whole sweep.
_OF_A_SWEEP = ("sweeper", "launcher", "sweep")

_COMMON_TEXT_FIELDS = {field.name for field in fields(DataConfig)}


class SweepExecutor:
    """An executor that runs the jobs of a sweep for a single command.

    A later command that continues the sweep creates a new executor.
    """

    def __init__(self, sweep: Sweep, config: DictConfig, context: HydraContext, launcher: Launcher) -> None:
        """Prepare to run the jobs of a sweep.

        config: the config that Hydra composed for the sweep.
        """
        self.sweep = sweep
        self.config = config
        self.context = context
        self.launcher = launcher
        self.jobs: list[Job] = []  # the jobs of this command, not of the whole sweep
        self.has_launched = False
        self._weights = StartingWeights(sweep)
        self._hashes: dict[str, str] = {}  # the SHA-256 of each text
        self._texts: dict[str, str] = {}  # the name of the text that is used, by the fields of the requested text

    def add_swept_fields(self, names: Sequence[str], *, log_names: Sequence[str] = ()) -> None:
        """Add to the fields that the sweep varies.

        names: all fields to add. log_names: those of them that are searched on a logarithmic scale.
        """
        self.sweep.fields = list(dict.fromkeys([*self.sweep.fields, *names]))
        self.sweep.log_fields = list(dict.fromkeys([*self.sweep.log_fields, *log_names]))

    def plan(self, lines: Sequence[Sequence[str]]) -> None:
        """Plan one job per list of overrides, and reuse jobs that already exist.

        lines: the overrides of each job. A job is reused if its config is unchanged and, if it has started, its
        training text is unchanged too. Raises UserError for an invalid config, before any job runs.
        """
        require(
            not (self.sweep.folder / STUDY).exists(),
            f"{relative(self.sweep.folder)} contains a search; add hydra/sweeper=optuna to continue the search, or "
            "choose a different folder",
        )
        unclaimed = list(self.sweep.jobs.values())
        n_known = len(unclaimed)
        for line in lines:
            overrides, cfg = self.resolve_job(Overrides(line).without("sweep"))
            hashes = config_hashes(cfg)
            if any(job.asked in hashes for job in self.jobs):
                log.warning("this job is listed twice, but run only once: %s", " ".join(overrides.words))
                continue
            job = next((job for job in unclaimed if job.asked in hashes and self._is_unchanged(job, cfg)), None)
            if job is None:
                job = self.add(overrides, hashes[0])
            else:
                unclaimed.remove(job)
                job.overrides = overrides.words  # what was typed now: the plan may come from someone else
            self.jobs.append(job)
        self.sweep.save()
        states = [self.sweep.status(job) for job in self.jobs]
        n_done = sum(state in FINISHED for state in states)
        n_started = sum(state not in (*FINISHED, "pending") for state in states)
        n = len(self.jobs)
        progress = f": {n_done} done, {n_started} started, {n - n_done - n_started} not started" if n_known else ""
        log.info("sweep: %d %s in %s%s", n, "job" if n == 1 else "jobs", relative(self.sweep.folder), progress)
        if n_known and len(unclaimed) == n_known:
            log.warning(
                "the sweep has jobs, but none with the config of a job of this command; to continue those jobs, repeat "
                "their overrides"
            )
        if not self.sweep.fields:
            texts = [w.field for line in lines for w in Overrides(line) if w.field in FREE_TEXT and "," in w.value]
            form = f"""{texts[0]}='"A","B"', with each text in quotes""" if texts else "FIELD=A,B"
            log.warning("no field is swept; to sweep a field, list its values: %s", form)

    def add(self, overrides: Overrides, config_hash: str) -> Job:
        """Add a new job, with a number that is not used yet."""
        number = self.sweep.unused_number()
        self.sweep.jobs[number] = job = Job(number, overrides.words, config_hash)
        return job

    def resolve_job(self, overrides: Overrides) -> tuple[Overrides, RunConfig]:
        """Return a job's overrides and config, after preparing its text and weights.

        If a different text was used instead of the requested text, the overrides select the text that was used, so that
        all jobs of the sweep train on the same text. Raises UserError for an invalid config.
        """
        # The text is prepared once for the whole sweep: concurrent jobs would each download it, and if only some of
        # them fell back to a different text, their losses could not be compared.
        cfg = self.compose(overrides)
        if (init_from := self._weights.settle(cfg.init_from)) != cfg.init_from:
            overrides = overrides.without("init_from") + Overrides([f"init_from={quoted(str(init_from))}"])
            cfg = self.compose(overrides)
        requested = cfg.data.name
        decided = self.sweep.settled.get(requested) if getattr(cfg.data, "fallback", False) else None
        specific = {name: value for name, value in vars(cfg.data).items() if name not in _COMMON_TEXT_FIELDS}
        key = f"{requested} {specific}"
        if key not in self._texts and decided in (None, requested):
            self._texts[key] = cfg.data.prepare(require_same=decided is not None).name
        elif key not in self._texts:
            self._texts[key] = BundledConfig.name  # the only text that replaces another
            log.warning(
                "data=%s is ignored: the sweep was started with data=%s and continues with it",
                *(requested, self._texts[key]),
            )
        used = self.sweep.settled[requested] = self._texts[key]
        if used == requested:
            return overrides, cfg
        common = {f"data.{name}" for name in _COMMON_TEXT_FIELDS - {"name"}}
        data_fields = [word.field for word in overrides if word.field.split(".")[0] == "data"]
        overrides = overrides.without(*set(data_fields) - common) + Overrides([f"data={used}"])
        return overrides, self.compose(overrides)

    def compose(self, overrides: Overrides) -> RunConfig:
        """Compose the config of a job.

        Raises UserError if the config is invalid, or contains settings of the sweep. The message contains the job's
        swept values.
        """
        composed = self.context.config_loader.load_sweep_config(self.config, overrides.words)
        values = [f"{name}={value}" for name, value in overrides.values().items() if name in self.sweep.fields]
        for name in _OF_A_SWEEP:
            # A recipe that is swept over is composed for its job only, when the sweep has begun with other settings.
            require(
                OmegaConf.to_container(composed.hydra[name]) == OmegaConf.to_container(self.config.hydra[name]),
                f"{' '.join(values)}: sets hydra.{name}, which has no effect in a job of a sweep; set it on the "
                "command line, or do not sweep over this preset",
            )
        with open_dict(composed):
            del composed["hydra"]
        try:
            cfg = to_run_config(composed)
            cfg.logger.check()
            return cfg
        except UserError as error:
            raise UserError(f"{error} (in the job with {' '.join(values)})") from None

    def _is_unchanged(self, job: Job, cfg: RunConfig) -> bool:
        summary = read_summary(self.sweep.path(job)) or {}
        if summary.get("asked", job.asked) not in config_hashes(cfg):  # resumed with changes, as a single run
            return False
        sha256 = summary.get("data", {}).get("sha256")
        return sha256 is None or sha256 == self._sha256(cfg.data)

    def _sha256(self, data: DataConfig) -> str:
        key = f"{data.name} {data.file()}"
        if key not in self._hashes:
            try:
                self._hashes[key] = data.read().sha256
            except UserError:  # the job will report the error
                self._hashes[key] = ""
        return self._hashes[key]

    def run(self, jobs: Sequence[Job], at_once: int | None = None) -> None:
        """Run those jobs that are neither finished nor running.

        at_once: the maximum number of jobs per launch; if None, all jobs are launched together.
        """
        due = [job for job in jobs if self._is_due(job)]
        # The basic launcher gets one job at a time, so that an exception ends that job only.
        size = 1 if self._is_basic() else at_once or max(1, len(due))
        for first in range(0, len(due), size):
            self._launch(due[first : first + size])

    def _is_basic(self) -> bool:
        return str(self.config.hydra.launcher._target_).endswith(".BasicLauncher")

    def _is_due(self, job: Job) -> bool:
        state = self.sweep.status(job)
        if state == "running":
            log.warning("job %d is skipped, because another process is training in its folder", job.number)
        return state not in (*FINISHED, "running")

    def _can_be_written(self, job: Job) -> bool:
        # Hydra creates the folder too, but ends the whole launch if it cannot.
        folder, job.error = self.sweep.path(job), None
        try:
            files.make_folder(folder)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            self.fail(job, f"the folder {folder} cannot be created or written to: {error.strerror}")
        return job.error is None

    def fail(self, job: Job, error: str) -> None:
        """Record the reason why a job could not start."""
        job.error = error
        log.warning("job %d failed: %s", job.number, error)

    def _launch(self, jobs: Sequence[Job]) -> None:
        jobs = [job for job in jobs if self._can_be_written(job)]
        if not jobs:
            return
        folder = f"hydra.sweep.dir={quoted(str(self.sweep.folder))}"
        lines = [[*job.overrides, folder, f"hydra.sweep.subdir={job.number}"] for job in jobs]
        self._weights.keep()
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
                failure = returned._return_value
                self.fail(job, _brief(as_user_error(failure)))
        self.sweep.save()

    def wait_until_written(
        self, jobs: Sequence[Job], returns: Sequence[JobReturn], *, within: float = WRITTEN_WITHIN
    ) -> None:
        """Wait until the summaries of ended jobs contain their final status.

        A launcher may report the end of a job before the job's process has written the summary, or before a shared disk
        shows the summary. Slurm's accounting may report it before both. As long as a process locks the job folder, the
        wait continues. If no process locks the folder, the wait for a job that was reported as completed ends after at
        most `within` seconds.
        """
        if self._is_basic():  # its jobs ran in this process
            return
        completed = {job.number for job, r in zip(jobs, returns, strict=True) if r.status is JobStatus.COMPLETED}
        logged: set[int] = set()
        deadline = time.monotonic() + within
        while True:
            states = {job.number: self.sweep.status(job) for job in jobs}
            running = {number for number, state in states.items() if state == "running"}
            late = {
                n for n in completed - running if states[n] in ("pending", "killed") and time.monotonic() < deadline
            }
            if not running | late:
                return
            for number in sorted(running - logged):
                log.info(
                    "job %d: the launcher reports that the job has ended, but its process is still running; waiting "
                    "for the process to end",
                    number,
                )
            logged |= running
            time.sleep(0.05)

    def wait_for_others(self, stopped: Stopped, seconds: float = 30) -> None:
        """Stop the jobs that submitit left running on this machine.

        Waits at most `seconds` for the jobs to save and end.
        """
        if not str(self.config.hydra.launcher._target_).endswith(".LocalLauncher"):
            return
        signalled: set[int] = set()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            running = [job for job in self.jobs if self.sweep.status(job) == "running"]
            if not running:
                return
            for pid in filter(None, (holder(self.sweep.path(job)) for job in running)):
                if stopped.signal != signal.SIGINT and pid not in signalled:  # Ctrl-C has reached the jobs already
                    os.kill(pid, signal.SIGINT)  # not SIGTERM, which submitit handles itself
                    signalled.add(pid)
            time.sleep(0.1)

    def report(self) -> bool:
        """Write and print the results of the sweep.

        Returns True if a job of this command is unfinished.
        """
        results = Results(self.sweep)
        try:
            self.sweep.save()
            results.write()
        except OSError as error:
            log.warning("%s", as_user_error(error, self.sweep.folder))
        folder, name = relative(self.sweep.folder), shlex.quote(shortest_name(self.sweep.folder))
        states = [self.sweep.status(job) for job in self.jobs]
        is_unfinished = any(state not in FINISHED for state in states)
        lines = ["----", results.count(), "", results.text(), "", f"Sweep: {folder}"]
        if any(state not in (*FINISHED, *(["failed"] if self.sweep.planned else [])) for state in states):
            lines.append(f"To run the unfinished jobs: {continue_command(self.config, folder)}")
        loggers = self.config.logger.use
        if "tensorboard" in loggers:
            lines.append(f"Metrics: {paths.program('runs')} tensorboard {name}")
        if any(self.sweep.folder.glob(f"*/{_OFFLINE}")):
            lines.append(f"Upload to W&B: wandb sync {shlex.quote(str(folder))}/*/{_OFFLINE}")
        lines.append(f"HTML report: {paths.program('runs')} report {name}")
        try:
            show("\n".join(lines))
        except UserError as error:  # the jobs themselves are complete
            log.warning("%s", error)
        return is_unfinished


@contextlib.contextmanager
def open_executor(config: DictConfig, context: HydraContext, launcher: Launcher) -> Iterator[SweepExecutor]:
    """Lock the sweep folder, yield a SweepExecutor, and report the results.

    The results are reported even if a signal stops the command, or if an exception is raised after the first launch.
    Exits with code 1 if a job of this command is unfinished. If a signal stopped the command, exits with 128 plus the
    number of the signal: 130 for SIGINT, 143 for SIGTERM.
    """
    folder, code, is_unfinished = Path(config.hydra.sweep.dir).absolute(), 0, False
    try:
        if hasattr(launcher, "check"):
            launcher.check()
        require_own_place(folder)
        Sweep(folder).require_free()
        with RunFolder(folder).lock():
            try:
                executor = SweepExecutor(Sweep(folder), config, context, launcher)
                try:
                    with stop_signals():
                        yield executor
                except Stopped as stopped:
                    code = 128 + stopped.signal
                    executor.wait_for_others(stopped)
                except SystemExit as exit_:  # a job was stopped in this process
                    code = int(exit_.code or 0)
                except Exception:
                    if executor.has_launched:
                        executor.report()
                    raise
                finally:
                    if hasattr(launcher, "close"):
                        launcher.close()
                is_unfinished = executor.report() if executor.sweep.jobs else False
            finally:
                if not (folder / PLAN).exists():
                    discard(folder, {LOCK, HOLDER, STUDY})
    finally:
        discard(folder, [])  # only what is empty, and so is in use by no other command
    if code or is_unfinished:
        raise CommandExit(code or 1)


def failed(error: BaseException) -> JobReturn:
    """Return the result that a launcher reports for a job that raised an exception."""
    return JobReturn(status=JobStatus.FAILED, _return_value=error)


def _brief(error: BaseException | Any) -> str:
    # Launchers quote tracebacks, whose last line contains the error.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
    return lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1]}"
