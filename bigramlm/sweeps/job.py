"""One job of a sweep: a run that reports to its sweep."""

from __future__ import annotations

import contextlib
import gc
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from bigramlm.config.overrides import Overrides
from bigramlm.engine.job import train
from bigramlm.engine.run import RunContext
from bigramlm.runs.folder import RunFolder
from bigramlm.runs.summary import RunSummary
from bigramlm.sweeps.plan import Sweep, job_number
from bigramlm.sweeps.plan import log as sweep_log
from bigramlm.sweeps.results import Results
from bigramlm.utils.console import console_filter
from bigramlm.utils.progress import labelled
from bigramlm.utils.stop import Stopped

if TYPE_CHECKING:
    from bigramlm.model.python import ModelFactory


def run_context(folder: Path) -> RunContext:
    """Return the context of the job in this folder.

    The context is empty if the folder does not belong to a job of a sweep.
    """
    with contextlib.suppress(Exception):  # a damaged plan must not stop a run
        sweep = Sweep(folder.parent)
        job = sweep.jobs.get(number) if (number := job_number(folder.name)) is not None else None
        if job is not None:
            return RunContext(tuple(sweep.fields), job.values, job.asked)
    return RunContext()


def run_job(
    composed: DictConfig, folder: RunFolder, overrides: Overrides, *, model: ModelFactory | None = None
) -> float | None:
    """Train a job, log how it ended, and update the results of the sweep.

    model: the factory of the model, if Python passed one.

    Returns the final loss or, if there is none, the best loss. Returns None if the job has no loss that can be compared
    with other jobs. Raises RuntimeError if the job failed.
    """
    from bigramlm.sweeps.search import pruner_of

    row, message, stopped = None, "", None
    try:
        with console_filter(logger=sweep_log.name), labelled(_place(folder.path)):
            context = replace(run_context(folder.path), should_prune=pruner_of(folder.path), model=model)
            train(composed, folder, overrides, context, continues=True)
    except (Exception, Stopped) as error:
        _report(folder, error)
        # The traceback of the exception would keep the job's model in memory; the job's log contains it already.
        message, stopped = str(error) or repr(error), error.signal if isinstance(error, Stopped) else None
    else:
        row = _report(folder)
    release_memory()
    if stopped is not None:
        sys.exit(128 + stopped)  # stops a sweep that runs in this process too
    if message:
        raise RuntimeError(message)
    if row is None or not row.is_comparable:
        return None
    return row.final if row.final is not None else row.best


def _place(folder: Path) -> str:
    # The number of the job and the number of jobs, for the progress bar.
    n_jobs = 0
    with contextlib.suppress(Exception):  # a damaged plan must not stop a run
        sweep = Sweep(folder.parent)
        n_jobs = max(sweep.planned, len(sweep.jobs))
    return f"job {folder.name}/{n_jobs}" if n_jobs else f"job {folder.name}"


def _report(folder: RunFolder, error: BaseException | None = None) -> RunSummary | None:
    """Update the results of the sweep, and log how the job ended.

    Returns the row of the job in the results.
    """
    results = Results(Sweep(folder.path.parent))
    with contextlib.suppress(OSError):  # the disk may be full; the results are written again when the sweep ends
        results.write()
    row = results.row(folder.path.name)
    if row is not None:
        for line in results.line(row, error).splitlines():
            sweep_log.info("%s", line)
    return row


def release_memory() -> None:
    """Release the GPU memory that PyTorch has cached.

    The next job may run in a different process, which otherwise could not use this memory.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        if "torch._dynamo" in sys.modules:
            torch._dynamo.reset()  # CUDA graphs occupy memory too
        gc.collect()
        torch.cuda.empty_cache()
    elif torch is not None and torch.backends.mps.is_available():
        gc.collect()
        torch.mps.empty_cache()
