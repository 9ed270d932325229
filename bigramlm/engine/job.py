"""One run in its folder: the lock, the status, and the record of how the run ends."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
from dataclasses import replace

from omegaconf import DictConfig

from bigramlm.config.extensions import import_extensions, names_in
from bigramlm.config.overrides import Overrides
from bigramlm.config.run_config import RunConfig, config_hash, config_hashes, load, to_run_config
from bigramlm.engine.failures import as_user_error, is_out_of_memory, out_of_memory
from bigramlm.engine.run import RunContext, RunResult, run
from bigramlm.errors import UserError
from bigramlm.runs.folder import FINISHED, RunFolder
from bigramlm.runs.naming import labels
from bigramlm.utils import network, paths
from bigramlm.utils.console import relative
from bigramlm.utils.stop import Stopped, stop_signals

log = logging.getLogger(__name__)


def train(
    composed: DictConfig, folder: RunFolder, overrides: Overrides, context: RunContext, *, continues: bool = False
) -> RunResult | None:
    """Train a run, and record its outcome in the log and the summary.

    continues: if True and the folder already contains a run with this config, that run is resumed, or skipped if it is
    finished. The jobs of a sweep use this flag. A run that is refused before it trains leaves no folder, unless it is
    such a job, whose summary then says why it failed.

    Returns the result of a completed run. Returns None if the run was pruned, or was already finished. Raises UserError
    for an error that the user can fix, Stopped after a signal, and any other exception unchanged. Each of them has been
    logged when it is raised.
    """
    try:
        with network.typed(overrides.words):  # a job may run in a process of its own
            return _train(composed, folder, overrides, context, continues=continues)
    except UserError:
        if not continues:
            folder.discard()
        raise


def _train(
    composed: DictConfig, folder: RunFolder, overrides: Overrides, context: RunContext, *, continues: bool
) -> RunResult | None:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(folder.lock())
            import_extensions(names_in(composed.extensions))  # a job may run in a process that has none yet
            continuing = continues and folder.has_run_of(config_hashes(to_run_config(composed)), planned=context.asked)
            if composed.resume is None and not continuing:
                folder.claim()
            else:
                folder.reopen()
        except (UserError, OSError) as raised:
            error = as_user_error(raised, folder.path)
            log.error("error: %s", error)
            if continues:
                folder.keep_log()
            raise error from None
        if continuing and folder.summary.get("status") in FINISHED:
            return None
        try:
            with stop_signals() as stop:
                overrides = Overrides() if continuing else overrides
                cfg = _begin(composed, folder, overrides, context, continuing=continuing)
                return run(cfg, overrides, folder, replace(context, stop=stop))
        except BaseException as raised:  # also that of sys.exit() in an extension
            error = _record_failure(raised, composed, folder, is_job=continues)
            if error is raised:
                raise
            raise error from raised


def _begin(
    composed: DictConfig, folder: RunFolder, overrides: Overrides, context: RunContext, *, continuing: bool
) -> RunConfig:
    # Returns the config to run. The summary of a new run records that it has begun.
    if continuing:  # the saved config contains the device, threads and text that were resolved when the run began
        return replace(load(folder.config_file), resume=str(folder.path), base=composed.base)
    if composed.resume is not None:
        return to_run_config(composed)
    folder.begin(overrides.words)
    cfg = to_run_config(composed)
    is_job, values = context.swept is not None, overrides.values()
    values = {name: context.values.get(name, "") for name in context.swept or ()} if is_job else values
    named = labels(cfg, values, job=folder.path.name if is_job else None)
    folder.update_summary(asked=config_hash(cfg), **named)
    return cfg


def _record_failure(raised: BaseException, composed: DictConfig, folder: RunFolder, *, is_job: bool) -> BaseException:
    """Log the exception that ended a run, and return it.

    The returned exception is converted to UserError or Stopped where possible. If the run had begun, and its folder
    stays, the summary records the exception too. is_job: if True, the folder stays, and a stop is logged as information
    instead of a warning.
    """
    end = Stopped(signal.SIGINT) if isinstance(raised, KeyboardInterrupt) else as_user_error(raised, folder.path)
    if not isinstance(end, (Exception, Stopped)):  # it would end a whole sweep
        end = RuntimeError(f"the run was ended by {raised!r}")
    path = folder.config_file
    if is_out_of_memory(raised) and "vocab_size" in folder.summary and path.exists():
        cfg = load(path) if composed.resume is None else to_run_config(composed)
        n_params = folder.summary.get("n_params_total", folder.summary.get("n_params"))
        end = UserError(out_of_memory(cfg, vocab_size=folder.summary["vocab_size"], n_params=n_params))
    if isinstance(end, Stopped):
        hint = "training had not begun; the same command starts the run again and reuses the prepared data"
        if path.exists():
            hint = f"to resume: {paths.program('train')} {shlex.quote(f'resume={relative(folder.path)}')}"
        log.log(logging.INFO if is_job else logging.WARNING, "%s; %s", end, hint)
    elif isinstance(end, UserError):
        log.error("error: %s", end, exc_info=raised if os.environ.get("HYDRA_FULL_ERROR") else None)
    else:
        log.exception("the run failed", exc_info=raised)
    is_refused = isinstance(end, UserError) and folder.is_discardable
    if is_job or not is_refused:
        folder.keep_log()
    if folder.begun and (is_job or not is_refused):
        with contextlib.suppress(OSError):  # the run may have failed because the disk is full
            status = "stopped" if isinstance(end, Stopped) else "failed"
            folder.update_summary(status=status, error=str(end) or repr(end))
    return end
