"""The command `train`: starts, resumes and sweeps runs.

This module imports torch only when a run begins, so that --help and tab completion respond immediately.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import logging
import os
import shlex
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from bigramlm.cli.common import command
from bigramlm.cli.help import help_text
from bigramlm.config.overrides import Overrides, quoted
from bigramlm.config.run_config import config_hash, config_hashes, load, register_schemas, to_run_config
from bigramlm.engine.failures import as_user_error, is_out_of_memory, out_of_memory
from bigramlm.engine.resume import SAVED, saved_presets
from bigramlm.engine.run import JobContext, RunResult
from bigramlm.errors import UserError, require
from bigramlm.runs import find as runs
from bigramlm.runs.find import PLAN
from bigramlm.runs.folder import RunFolder
from bigramlm.sweeps.plan import FINISHED, Sweep
from bigramlm.sweeps.plan import log as sweep_log
from bigramlm.sweeps.results import Results
from bigramlm.utils import paths
from bigramlm.utils.console import console_filter, relative, show
from bigramlm.utils.stop import Stopped, StopSignals, stop_signals

log = logging.getLogger(__name__)

# The optional launchers and sweepers by class name: the override that selects them, their extra, the required module.
EXTRAS = {
    "JoblibLauncher": ("hydra/launcher=joblib", "joblib", "joblib"),
    "LocalLauncher": ("hydra/launcher=submitit_local", "submitit", "hydra_plugins.hydra_submitit_launcher"),
    "SlurmLauncher": ("hydra/launcher=submitit_slurm", "submitit", "hydra_plugins.hydra_submitit_launcher"),
    "OptunaSweeper": ("hydra/sweeper=optuna", "optuna", "optuna"),
}


@command
def main() -> None:
    """Run the command line: python scripts/train.py [overrides].

    The exit code is 0 if the run completed, 1 if it failed, 2 for an error that the user can fix, and 130 or 143 if it
    was stopped by Ctrl-C or SIGTERM.
    """
    set_up_hydra()
    if {"--help", "-h"} & set(sys.argv[1:]):
        show(help_text(Overrides.from_arguments(sys.argv[1:]).words))
    else:
        sys.argv[1:] = command_line(sys.argv[1:])
        _hydra_main()


def command_line(arguments: list[str]) -> list[str]:
    """Translate the command-line arguments into arguments for Hydra.

    Free text is quoted, and resume=, init_from= and sweep= are expanded into overrides.
    """
    flags = {"-m", "--multirun"}
    sweeps = bool(flags & set(arguments))
    overrides = Overrides.typed(arguments, sweeps=sweeps)
    if sweeps:  # Hydra accepts the flag before or after all overrides, but not between them
        overrides = Overrides(["-m", *(word for word in overrides.words if word not in flags)])
    overrides += _sweep_folder(overrides, sweeps=sweeps)
    presets = saved_presets(overrides, sweeps=sweeps)
    if presets.has("model"):  # the config of the weights is more exact than model=gpt2
        overrides = overrides.without("model")
    # The last override of a field wins: presets replace fields of an experiment, and later overrides those of presets.
    first, rest = overrides.split_after("resume", "init_from", "experiment")
    return (first + presets + rest).words


def _sweep_folder(overrides: Overrides, *, sweeps: bool) -> Overrides:
    """Translate `sweep=` into an override of `hydra.sweep.dir`, Hydra's sweep folder.

    Raises UserError if `sweep=` does not name a sweep, or cannot be combined with the other overrides.
    """
    subdir, sweep = overrides.get("hydra.sweep.subdir"), overrides.get("sweep", "null")
    if subdir is not None and sweeps:
        raise UserError(
            f"hydra.sweep.subdir={subdir}: cannot be set, because a sweep can only be continued if its job folders are "
            "numbered; omit hydra.sweep.subdir"
        )
    if sweep in (None, "null"):
        return Overrides()
    require(
        sweeps,
        f"sweep={sweep}: only a command with -m can continue a sweep; add -m and the swept fields",
    )
    require(
        not overrides.has("hydra.sweep.dir"),
        f"sweep={sweep}: cannot be combined with hydra.sweep.dir, because both set the sweep folder; omit one of them",
    )
    folder = runs.find_sweep(str(sweep))
    require((folder / PLAN).exists(), f"sweep={sweep}: the folder contains no sweep of bigramlm: there is no {PLAN}")
    return Overrides([f"hydra.sweep.dir={quoted(str(folder))}"])


def set_up_hydra() -> None:
    """Register the config schemas and resolvers that conf/ refers to."""
    register_schemas()
    OmegaConf.register_new_resolver("home", lambda: str(paths.home()), replace=True)


def job(composed: DictConfig) -> float | None:
    """Train a single run or a job of a sweep; Hydra calls this function.

    For a job, returns the loss that the sweeper compares. For a single run, returns None.
    """
    hydra_cfg = HydraConfig.get()
    folder = RunFolder(Path(hydra_cfg.runtime.output_dir))
    overrides = Overrides(hydra_cfg.overrides.task).without_choice(SAVED)
    if hydra_cfg.mode == RunMode.MULTIRUN:
        return _sweep_job(composed, folder, overrides.without("sweep"))
    result = train(composed, folder, overrides, _context(folder.path))
    if isinstance(result, Stopped):
        sys.exit(128 + result.signal)
    if isinstance(result, BaseException):
        sys.exit(2 if isinstance(result, UserError) else 1)
    if result is not None:
        try:
            print_end(result, folder)
        except UserError as error:  # the run itself is complete
            log.warning("%s", error)
    return None


_hydra_main = hydra.main(version_base="1.3", config_path=str(paths.conf_dir()), config_name="train")(job)


def _context(folder: Path) -> JobContext:
    """Return the context of the job in this folder.

    The context is empty if the folder does not belong to a job of a sweep.
    """
    with contextlib.suppress(Exception):  # a damaged plan must not stop a run
        sweep = Sweep(folder.parent)
        job = sweep.jobs.get(int(folder.name)) if folder.name.isdecimal() else None
        if job is not None:
            return JobContext(tuple(sweep.fields), job.values)
    return JobContext()


def _sweep_job(composed: DictConfig, folder: RunFolder, overrides: Overrides) -> float | None:
    """Train a job, log how it ended, and update the results of the sweep.

    Returns the final loss or, if there is none, the best loss. Returns None if the job has no loss that can be compared
    with other jobs. Raises RuntimeError if the job failed.
    """
    from bigramlm.sweeps.search import pruner_of

    with console_filter(logger=sweep_log.name):
        context = replace(_context(folder.path), should_prune=pruner_of(folder.path))
        result = train(composed, folder, overrides, context, continues=True)
    failure = result if isinstance(result, BaseException) else None
    del result
    results = Results(Sweep(folder.path.parent))
    with contextlib.suppress(OSError):  # the disk may be full; the results are written again when the sweep ends
        results.write()
    row = results.row(folder.path.name)
    if row is not None:
        sweep_log.info("%s", results.line(row, failure))
    # The exception's traceback would keep the job's model in memory; the job's log contains the traceback already.
    message, stopped = str(failure) or repr(failure), failure.signal if isinstance(failure, Stopped) else None
    failed = failure is not None
    del failure
    release_memory()
    if stopped is not None:
        sys.exit(128 + stopped)  # stops a sweep that runs in this process too
    if failed:
        raise RuntimeError(message)
    if row is None:
        return None
    if not row.is_comparable:
        return None
    return row.final if row.final is not None else row.best


def release_memory() -> None:
    """Release the GPU memory that PyTorch has cached.

    The next job may run in a different process, which could not use this memory otherwise.
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


class StartCallback(Callback):
    """A callback that checks the requirements of a run or a sweep before it starts.

    The output folder must be writable, and the packages of the launcher and the sweeper must be installed. Otherwise,
    the process exits with a one-line error instead of a traceback.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        _check_folder("hydra.run.dir", Path(config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        for part in (config.hydra.launcher, config.hydra.sweeper):
            override, extra, module = EXTRAS.get(part._target_.rpartition(".")[2], ("", "", "hydra"))
            if not _is_installed(module):
                package = f'-c constraints.txt -e ".[{extra}]"' if paths.IN_CHECKOUT else f'"bigramlm[{extra}]"'
                print(
                    f"error: {override} needs a package that is not installed: pip install {package}", file=sys.stderr
                )
                sys.exit(2)
        _check_folder("hydra.sweep.dir", Path(config.hydra.sweep.dir))


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def _check_folder(field: str, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        print(f"error: {field}={folder}: the folder cannot be created or written to: {error.strerror}", file=sys.stderr)
        sys.exit(2)


def train(
    composed: DictConfig, folder: RunFolder, overrides: Overrides, context: JobContext, *, continues: bool = False
) -> RunResult | BaseException | None:
    """Train a run, and record its outcome in the log and the summary.

    continues: if True and the folder already contains a run with this config, that run is resumed, or skipped if it is
    finished. The jobs of a sweep use this flag.

    Returns the result of a completed run. Returns None if the run was pruned, or was already finished. If an exception
    ended the run, returns the exception: UserError for an error that the user can fix, Stopped after a signal, or any
    other exception.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(folder.lock())
            continuing = continues and folder.has_run_of(config_hashes(to_run_config(composed)))
            if composed.resume is None and not continuing:
                folder.claim()
            else:
                folder.reopen()
        except (UserError, OSError) as error:
            log.error("error: %s", as_user_error(error, folder.path))
            return as_user_error(error, folder.path)
        if continuing and folder.summary.get("status") in FINISHED:
            return None
        try:
            with stop_signals() as stop:
                return _run(
                    composed, folder, Overrides() if continuing else overrides, context, stop, continuing=continuing
                )
        except (Exception, KeyboardInterrupt, Stopped) as raised:
            return _report_failure(raised, composed, folder, quiet=continues)


def _run(
    composed: DictConfig,
    folder: RunFolder,
    overrides: Overrides,
    context: JobContext,
    stop: StopSignals,
    *,
    continuing: bool,
) -> RunResult | None:
    from bigramlm.engine import run as recipe

    if continuing:  # the saved config contains the device, threads and text that were resolved when the run began
        cfg = replace(load(folder.path / "config.yaml"), resume=str(folder.path), base=composed.base)
    elif composed.resume is not None:
        cfg = to_run_config(composed)
    else:
        folder.begin(overrides.words)
        cfg = to_run_config(composed)
        folder.update_summary(asked=config_hash(cfg))
    return recipe.run(cfg, overrides, folder, stop, context)


def _report_failure(raised: BaseException, composed: DictConfig, folder: RunFolder, *, quiet: bool) -> BaseException:
    """Log the exception that ended a run, and return it.

    The returned exception is converted to UserError or Stopped where possible. If the run had begun, the summary
    records the exception too. quiet: if True, a stop is logged as information instead of a warning.
    """
    end = Stopped(signal.SIGINT) if isinstance(raised, KeyboardInterrupt) else as_user_error(raised, folder.path)
    path = folder.path / "config.yaml"
    if is_out_of_memory(raised) and "vocab_size" in folder.summary and path.exists():
        cfg = load(path) if composed.resume is None else to_run_config(composed)
        end = UserError(out_of_memory(cfg, vocab_size=folder.summary["vocab_size"]))
    if isinstance(end, Stopped):
        hint = "training had not begun; the same command starts the run again and reuses the prepared data"
        if path.exists():
            hint = shlex.quote(f"resume={relative(folder.path)}") + " resumes the run"
        log.log(logging.INFO if quiet else logging.WARNING, "%s; %s", end, hint)
    elif isinstance(end, UserError):
        log.error("error: %s", end, exc_info=raised if os.environ.get("HYDRA_FULL_ERROR") else None)
    else:
        log.exception("the run failed", exc_info=raised)
    if folder.begun:
        with contextlib.suppress(OSError):  # the run may have failed because the disk is full
            status = "stopped" if isinstance(end, Stopped) else "failed"
            folder.update_summary(status=status, error=str(end) or repr(end))
    return end


def print_end(end: RunResult, folder: RunFolder) -> None:
    """Print the losses, the sample and the folder of a completed run.

    For comparison, prints the losses of n-gram models that are fitted by counting, if these losses were computed. If
    the tokens are not single characters, prints the loss in bits per character too.
    """
    final, references = end.final, end.references
    lines = ["----", f"End of training. Loss: {final['train/loss']:.4f} (val {final['val/loss']:.4f})", end.sample, ""]
    if folder.summary["tokenizer"]["characters_per_token"]["val"] != 1:
        lines.append(
            f"Bits per character: {final['val/bpc']:.4f} on val (comparable between tokenizers; the loss is per token)"
        )
    for name, loss in references.items():
        split, _, model = name.partition("/best_")
        if split == "train":
            val_loss = references[f"val/best_{model}"] + 0.0  # turns -0.0 into 0.0
            lines.append(f"By counting: {loss + 0.0:.4f} on the whole training text, the minimum for any {model},")
            lines.append(f"and {val_loss:.4f} on val. The loss above covers a part of that text as long as val.")
    if ngrams := [loss for name, loss in references.items() if name.startswith("val/ngram_")]:
        lines.append(
            f"By counting n-grams, on val, orders 1 to {len(ngrams)}: {' '.join(f'{loss:.3f}' for loss in ngrams)}"
        )
    lines.append(f"Run: {relative(folder.path)}")
    if "tensorboard" in end.cfg.logger.use:
        outputs = paths.home() / "outputs"
        where = relative(outputs if outputs in folder.path.parents else folder.path)
        lines.append(f"Metrics: tensorboard --logdir {shlex.quote(str(where))}")
    show("\n".join(lines))
