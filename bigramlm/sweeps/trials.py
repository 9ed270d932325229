"""The trials of a search, which run in batches."""

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


def search(executor: SweepExecutor, study: Search, fixed: Overrides, *, n_trials: int, at_once: int) -> None:
    """Run trials until the study contains n_trials trials.

    Trials that an earlier command left unfinished are resumed first. fixed: the overrides that all trials share.
    at_once: the number of concurrent trials.
    """
    sweep = executor.sweep
    unfinished = study.unfinished()
    sweep.planned = n_trials
    where, n_known = relative(sweep.folder), study.count()
    batch = [(sweep.jobs[number], trial) for number, trial in unfinished.items() if number in sweep.jobs]
    for job, trial in batch:  # what was typed now: the plan may come from someone else
        job.overrides = executor.resolve_job(fixed + study.overrides(trial))[0].words
    while batch or study.count() < n_trials:
        while len(batch) < at_once and study.count() < n_trials:
            trial = study.ask()
            overrides, error = fixed + study.overrides(trial), None
            hashes: tuple[str, ...] = ("",)
            try:
                overrides, cfg = executor.resolve_job(overrides)
                hashes = config_hashes(cfg)
            except (UserError, HydraException) as refused:
                if not executor.jobs:  # an error in the first trial is rarely caused by the values of the trial
                    raise
                error = str(refused)
            # A config that the search has trained already is not trained again: the new trial gets the same result. A
            # job without a trial is one of a command that was killed before the trial got the job.
            same, taken = [job for job in sweep.jobs.values() if job.asked and job.asked in hashes], study.jobs()
            found = (job for job in same if sweep.status(job) == "completed" or job.number not in taken)
            job = next(found, None) or executor.add(overrides, hashes[0])
            job.overrides = overrides.words
            sweep.save()
            trial.set_user_attr("job", job.number)
            if error is None:
                batch.append((job, trial))
            else:
                executor.fail(job, error)
                executor.jobs.append(job)
                study.tell(trial, "failed", None)
        if not executor.jobs:
            log.info("search in %s: %d trials exist; new trials run until there are %d", where, n_known, n_trials)
        executor.jobs += [job for job, _ in batch]
        executor.run([job for job, _ in batch], at_once)
        results = Results(sweep)
        for job, trial in batch:
            row = results.row(str(job.number))
            # A tokenizer that loses text must not win, so its trial fails.
            study.tell(trial, row.status if row else "failed", row.final if row and row.is_comparable else None)
        batch = []
    for number in sweep.jobs.keys() - {*study.jobs()}:
        if sweep.status(sweep.jobs[number]) == "pending":  # its trial was lost, and others have replaced it
            del sweep.jobs[number]
