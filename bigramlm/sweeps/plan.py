"""The plan of a sweep: which jobs there are. How each stands is told by the summary in its own folder."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bigramlm.config.overrides import Overrides
from bigramlm.errors import UserError
from bigramlm.runs.find import PLAN
from bigramlm.runs.folder import read_summary, status
from bigramlm.utils import files

log = logging.getLogger(__name__)

FINISHED = ("completed", "pruned")
"""The statuses of a job that has nothing left to do."""


@dataclass
class Job:
    """One run of a sweep."""

    number: int
    overrides: list[str]
    """The words that are typed for this job."""
    asked: str = ""
    """The hash of the config that these words make (`config_hash`)."""
    error: str | None = None
    """Why it could not leave a summary, where it could not."""

    @property
    def values(self) -> dict[str, str]:
        """The overrides by field: {"optim.lr": "0.01", ...}."""
        return Overrides(self.overrides).values()


class Sweep:
    """The folder of a sweep: sweep.json says which jobs there are, and the folder of each what came of it."""

    def __init__(self, folder: Path) -> None:
        """Read the plan; a folder without one has no jobs yet, or was not made by a sweep of bigramlm."""
        self.folder = folder
        self.fields: list[str] = []  # what is swept
        self.log_fields: list[str] = []  # what a search was given on a logarithmic scale
        self.jobs: dict[int, Job] = {}
        self.settled: dict[str, str] = {}  # what the first command decided for all that go on with the sweep
        self.planned = 0  # how many jobs there will be at least, where a search makes them as it goes
        try:
            plan = json.loads((folder / PLAN).read_text("utf-8"))
            self.fields, self.settled, self.planned = plan["fields"], plan["settled"], plan["planned"]
            self.log_fields = plan.get("log_fields", [])
            self.jobs = {job["number"]: Job(**job) for job in plan["jobs"]}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{folder / PLAN}: not the plan of a sweep: {type(error).__name__}: {error}") from None

    def save(self) -> None:
        plan = {
            "fields": self.fields,
            "log_fields": self.log_fields,
            "settled": self.settled,
            "planned": self.planned,
            "jobs": [asdict(self.jobs[number]) for number in sorted(self.jobs)],
        }
        files.write(self.folder / PLAN, [json.dumps(plan, indent=1, ensure_ascii=False).encode()], durable=False)

    def all_jobs(self) -> list[Job]:
        """List the jobs by number; without a plan, those that another sweeper of Hydra's made."""
        return [self.jobs[number] for number in sorted(self.jobs)] or _jobs_of_a_stranger(self.folder)

    def path(self, job: Job) -> Path:
        """Return the job's folder."""
        return self.folder / str(job.number)

    def status(self, job: Job) -> str:
        """As in the job's summary; `killed` where it was, `failed` where it could not leave one, else `pending`."""
        return self.outcome(job)[0]

    def outcome(self, job: Job) -> tuple[str, dict[str, Any]]:
        """Return the job's status, and its summary, empty if it has left none."""
        summary = read_summary(self.path(job))
        if summary is None:
            return "failed" if job.error else "pending", {}
        return status(self.path(job), summary), summary


def _jobs_of_a_stranger(folder: Path) -> list[Job]:
    found = []
    for path in folder.iterdir() if folder.is_dir() else []:
        summary = read_summary(path)
        if summary is not None and path.name.isdecimal():
            found.append(Job(int(path.name), summary.get("overrides", [])))
    return sorted(found, key=lambda job: job.number)
