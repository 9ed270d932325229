"""The plan of a sweep: the list of its jobs.

The plan does not contain the status of a job, which is in the summary.json of the job folder.
"""

from __future__ import annotations

import functools
import json
import logging
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bigramlm.config.overrides import Overrides
from bigramlm.errors import UserError, require
from bigramlm.runs.find import PLAN
from bigramlm.runs.folder import read_summary, status
from bigramlm.runs.summary import RunSummary
from bigramlm.utils import documents, files

_MAX_NUMBER = 10**9 - 1
# The number of characters that the names of the fields of no config have; a table has a column for each field.
_MAX_FIELDS = 20_000

log = logging.getLogger(__name__)


@dataclass
class Job:
    """One run of a sweep."""

    number: int
    overrides: list[str]
    """The overrides of this job, in Hydra's grammar."""
    asked: str = ""
    """The hash of the config that results from the overrides, before it is resolved (`config_hash`)."""
    error: str | None = None
    """The error message of a job that failed before it could write a summary; None for any other job."""

    def __post_init__(self) -> None:
        is_valid = type(self.number) is int and 0 <= self.number <= _MAX_NUMBER and _is_list_of_texts(self.overrides)
        if not (is_valid and isinstance(self.asked, str) and isinstance(self.error, str | None)):
            raise ValueError(f"{self!r:.200}")

    @property
    def values(self) -> dict[str, str]:
        """The overridden values by field: {"optim.lr": "0.01", ...}."""
        return Overrides(self.overrides).values()


class Sweep:
    """A sweep folder, with the plan in sweep.json and one folder per job."""

    def __init__(self, folder: Path) -> None:
        """Read the plan, if the folder contains one.

        If there is no plan, either the sweep has no jobs yet, or a different sweeper of Hydra created the folder. A
        plan that cannot be read is rebuilt from the summaries of the jobs. Raises UserError if there are none, or if
        the plan is not one of a sweep.
        """
        self.folder = folder
        self._saved: str | None = None
        self._is_damaged = False
        self.fields: list[str] = []  # the swept fields
        self.log_fields: list[str] = []  # the fields that a search varies on a logarithmic scale
        self.jobs: dict[int, Job] = {}
        self.settled: dict[str, str] = {}  # the text that each requested text resolved to in the first command
        self.planned = 0  # the number of trials of a search, which adds its jobs gradually; 0 if not a search
        try:
            plan = self._read()
            self.fields, self.settled, self.planned = plan["fields"], plan["settled"], plan["planned"]
            self.log_fields = plan.get("log_fields", [])
            is_valid = _is_list_of_texts(self.fields) and _is_list_of_texts(self.log_fields)
            is_valid = is_valid and sum(len(field) + 1 for field in self.fields) < _MAX_FIELDS
            if not (is_valid and _is_list_of_texts(list(self.settled.values())) and type(self.planned) is int):
                raise ValueError("the fields, the texts or the number of trials are of another type")
            self.jobs = {job["number"]: Job(**job) for job in plan["jobs"]}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{folder / PLAN} is not a valid sweep plan ({type(error).__name__}: {error}); restore the file, or "
                "start a new sweep in a different folder"
            ) from None

    def _read(self) -> dict[str, Any]:
        try:
            return documents.read_json(documents.no_link(self.folder / PLAN))  # type: ignore[no-any-return]
        except ValueError as error:
            jobs = _jobs_without_plan(self.folder)
            if not jobs or not (self.folder / PLAN).is_file():
                raise
            _warn_of_rebuilding(self.folder / PLAN, str(error), len(jobs))
        self._is_damaged = True
        values = [job.values for job in jobs]
        names = dict.fromkeys(name for found in values for name in found)
        fields = [name for name in names if len({found.get(name) for found in values}) > 1]
        return {"fields": fields, "settled": {}, "planned": 0, "jobs": [asdict(job) for job in jobs]}

    def save(self) -> None:
        """Write the plan to sweep.json, and wait until the disk has written it.

        A damaged file is renamed first, because a person may have edited it.
        """
        plan = {
            "fields": self.fields,
            "log_fields": self.log_fields,
            "settled": self.settled,
            "planned": self.planned,
            "jobs": [asdict(self.jobs[number]) for number in sorted(self.jobs)],
        }
        content, path = json.dumps(plan, indent=1, ensure_ascii=False), self.folder / PLAN
        if content == self._saved:
            return
        if self._is_damaged and files.read_before_writing(path).strip(b"\0"):
            files.set_aside(path)
        files.write(path, [content.encode(errors="backslashreplace")])
        self._saved, self._is_damaged = content, False

    def require_free(self) -> None:
        """Raise UserError if a new sweep would overwrite results that it did not write."""
        for path in (self.folder / name for name in ("results.csv", "results.md")):
            require(
                (self.folder / PLAN).exists() or not path.exists(),
                f"{path} was not written by this sweep, and would be overwritten; choose a different folder",
            )

    def all_jobs(self) -> list[Job]:
        """Return the jobs, sorted by number.

        If there is no plan, returns the jobs that a different sweeper of Hydra created.
        """
        return [self.jobs[number] for number in sorted(self.jobs)] or _jobs_without_plan(self.folder)

    def unused_number(self) -> int:
        """Return the number for a new job.

        It is above those of all jobs, and of all numbered folders, which the sweep may not have created.
        """
        numbers = (job_number(path.name) for path in self.folder.glob("*"))
        last = max([-1, *self.jobs, *(number for number in numbers if number is not None)])
        require(
            last < _MAX_NUMBER,
            f"{self.folder}: there is no number for a new job above {last}; move {self.folder / str(last)} away, or "
            "choose a different folder",
        )
        return last + 1

    def path(self, job: Job) -> Path:
        """Return the job folder."""
        return self.folder / str(job.number)

    def status(self, job: Job) -> str:
        """Return the job's status.

        This is the status in the summary, or `killed` if the summary says `running` but no process is training in the
        folder. If there is no summary, the status is `failed` if the job could not start, else `pending`.
        """
        return self.outcome(job)[0]

    def outcome(self, job: Job) -> tuple[str, dict[str, Any]]:
        """Return the job's status and summary; a missing summary is returned as {}."""
        summary = read_summary(self.path(job))
        if summary is None:
            return "failed" if job.error else "pending", {}
        return status(self.path(job), summary), summary


@functools.cache  # a command may read the plan several times
def _warn_of_rebuilding(path: Path, reason: str, n_jobs: int) -> None:
    log.warning(
        "%s cannot be read (%s), so the plan is rebuilt from the summaries of its jobs: %d; a job that has not begun "
        "is missing until the command of the sweep is repeated",
        *(path, reason, n_jobs),
    )


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def _jobs_without_plan(folder: Path) -> list[Job]:
    found = []
    for path in folder.iterdir() if folder.is_dir() else []:
        summary = read_summary(path)
        if summary is not None and (number := job_number(path.name)) is not None:
            found.append(Job(number, RunSummary.read(path).overrides, summary.get("asked") or ""))
    return sorted(found, key=lambda job: job.number)


def job_number(name: str) -> int | None:
    """Return the number of the job with this folder name; None if no job has the name."""
    return int(name) if re.fullmatch(r"0|[1-9][0-9]{0,8}", name) else None
