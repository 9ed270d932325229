"""The trials of a search, run batch by batch."""

from __future__ import annotations

import logging

from hydra.errors import HydraException

from bigramlm.config.overrides import Overrides
from bigramlm.config.run_config import config_hashes
from bigramlm.errors import UserError
from bigramlm.sweeps.executor import SweepExecutor
from bigramlm.sweeps.results import Results
from bigramlm.sweeps.search import Search
from bigramlm.utils.console import relative

log = logging.getLogger(__name__)


def search(launch: SweepExecutor, study: Search, fixed: Overrides, *, n_trials: int, at_once: int) -> None:
    """Run trials until the study has so many; those that had begun resume first."""
    sweep = launch.sweep
    open_ = study.unfinished()
    sweep.planned = n_trials
    log.info("search: up to %d trials, %d so far, in %s", n_trials, study.count(), relative(sweep.folder))
    for number, job in list(sweep.jobs.items()):
        if sweep.status(job) == "pending" and number not in open_:  # killed before the study knew of it
            del sweep.jobs[number]
    batch = [(sweep.jobs[number], trial) for number, trial in open_.items() if number in sweep.jobs]
    while batch or study.count() < n_trials:
        while len(batch) < at_once and study.count() < n_trials:
            trial, values = study.ask()
            overrides, error = fixed + Overrides(values), None
            hashes: tuple[str, ...] = ("",)
            try:
                overrides, cfg = launch.resolve_job(overrides)
                hashes = config_hashes(cfg)
            except (UserError, HydraException) as refused:
                if not launch.jobs:  # with the very first it is no matter of the values
                    raise
                error = str(refused)
            # What has been trained already is not trained once more: to Optuna it is another trial with that outcome.
            same = (job for job in sweep.jobs.values() if job.asked and job.asked in hashes)
            done = next((job for job in same if sweep.status(job) == "completed"), None)
            job = done or launch.add(overrides, hashes[0])
            sweep.save()
            trial.set_user_attr("job", job.number)
            if error is None:
                batch.append((job, trial))
            else:
                launch.fail(job, error)
                launch.jobs.append(job)
                study.tell(trial, "failed", None)
        launch.jobs += [job for job, _ in batch]
        launch.run([job for job, _ in batch], at_once)
        results = Results(sweep)
        for job, trial in batch:
            row = results.row(str(job.number))
            # What a tokenizer leaves out must not win: its trial fails.
            study.tell(trial, row.status if row else "failed", row.final if row and row.counts else None)
        batch = []
