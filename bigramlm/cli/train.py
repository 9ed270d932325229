"""The command `train`: from what is typed to a trained model and a run folder that tells all of it.

Nothing here imports torch before a run begins, so that --help and tab completion answer at once.
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
from typing import TYPE_CHECKING, Any

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
from bigramlm.engine.run import JobContext, RunEnd
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

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)

# What runs sweeps and is not installed with the rest, by its class: how it is chosen, its extra, the module it needs.
EXTRAS = {
    "JoblibLauncher": ("hydra/launcher=joblib", "joblib", "joblib"),
    "LocalLauncher": ("hydra/launcher=submitit_local", "submitit", "hydra_plugins.hydra_submitit_launcher"),
    "SlurmLauncher": ("hydra/launcher=submitit_slurm", "submitit", "hydra_plugins.hydra_submitit_launcher"),
    "OptunaSweeper": ("hydra/sweeper=optuna", "optuna", "optuna"),
}


@command
def main() -> None:
    """Run the command line. Exit codes: 0 completed, 1 failed, 2 for the user to mend, 130 and 143 stopped."""
    set_up_hydra()
    if {"--help", "-h"} & set(sys.argv[1:]):
        show(help_text(Overrides.among(sys.argv[1:]).words))
    else:
        sys.argv[1:] = command_line(sys.argv[1:])
        _hydra_main()


def command_line(arguments: list[str]) -> list[str]:
    """Return what is typed as Hydra takes it: free text quoted, and what a saved run brings in front of the rest."""
    flags = {"-m", "--multirun"}
    sweeps = bool(flags & set(arguments))
    typed = Overrides.typed(arguments, sweeps=sweeps)
    if sweeps:  # Hydra takes the flag before all overrides or after them, and not in between
        typed = Overrides(["-m", *(word for word in typed.words if word not in flags)])
    typed += _sweep_folder(typed, sweeps=sweeps)
    presets = saved_presets(typed, sweeps=sweeps)
    if presets.has("model"):  # of model=gpt2 the weights' own shape is the better one
        typed = typed.without("model")
    # Behind what they stand for: of a field that is given twice the last one counts.
    first, rest = typed.after("resume", "init_from", "experiment")
    return (first + presets + rest).words


def _sweep_folder(typed: Overrides, *, sweeps: bool) -> Overrides:
    # What `sweep=` means to Hydra. UserError where it names no sweep, or contradicts the rest.
    subdir, sweep = typed.get("hydra.sweep.subdir"), typed.get("sweep", "null")
    if subdir is not None and sweeps:
        raise UserError(
            f"hydra.sweep.subdir={subdir}: the folders of a sweep's jobs are numbered, so that it can be continued"
        )
    if sweep in (None, "null"):
        return Overrides()
    require(sweeps, f"sweep={sweep}: continues a sweep; add -m, and what was swept")
    require(not typed.has("hydra.sweep.dir"), f"sweep={sweep}: contradicts hydra.sweep.dir; leave one out")
    folder = runs.find_sweep(str(sweep))
    require((folder / PLAN).exists(), f"sweep={sweep}: holds no sweep of bigramlm, which would have a {PLAN}")
    return Overrides([f"hydra.sweep.dir={quoted(str(folder))}"])


def set_up_hydra() -> None:
    """Make known to Hydra what the presets in conf/ refer to."""
    register_schemas()
    OmegaConf.register_new_resolver("home", lambda: str(paths.home()), replace=True)


def job(composed: DictConfig) -> float | None:
    """One run, alone or of a sweep: what Hydra calls. Returns the final val loss, as sweepers want it."""
    hydra_cfg = HydraConfig.get()
    folder = RunFolder(Path(hydra_cfg.runtime.output_dir))
    overrides = Overrides(hydra_cfg.overrides.task).without_choice(SAVED)
    if hydra_cfg.mode == RunMode.MULTIRUN:
        return _job_of_a_sweep(composed, folder, overrides.without("sweep"))
    came_to = train(composed, folder, overrides, _context(folder.path))
    if isinstance(came_to, Stopped):
        sys.exit(128 + came_to.signal)
    if isinstance(came_to, BaseException):
        sys.exit(2 if isinstance(came_to, UserError) else 1)
    if came_to is not None:
        try:
            print_end(came_to, folder)
        except UserError as error:  # the run is complete all the same
            log.warning("%s", error)
    return None


_hydra_main = hydra.main(version_base="1.3", config_path=str(paths.conf_dir()), config_name="train")(job)


def _context(folder: Path) -> JobContext:
    # What a sweep says of the job in this folder; nothing where that is none.
    with contextlib.suppress(Exception):  # a plan that is damaged must not cost a run
        sweep = Sweep(folder.parent)
        job = sweep.jobs.get(int(folder.name)) if folder.name.isdecimal() else None
        if job is not None:
            return JobContext(tuple(sweep.fields), job.values)
    return JobContext()


def _job_of_a_sweep(composed: DictConfig, folder: RunFolder, overrides: Overrides) -> float | None:
    from bigramlm.sweeps.search import pruner_of

    with console_filter(but=sweep_log.name):
        context = replace(_context(folder.path), should_prune=pruner_of(folder.path))
        came_to = train(composed, folder, overrides, context, continues=True)
    failure = came_to if isinstance(came_to, BaseException) else None
    del came_to
    results = Results(Sweep(folder.path.parent))
    with contextlib.suppress(OSError):  # a full disk; the sweep's end tries again
        results.write()
    row = results.row(folder.path.name)
    if row is not None:
        sweep_log.info("%s", results.line(row, failure))
    # The traceback is in the job's log; with it, the exception would keep the job's model in memory.
    message, stopped = str(failure) or repr(failure), failure.signal if isinstance(failure, Stopped) else None
    failed = failure is not None
    del failure
    give_back_memory()
    if stopped is not None:
        sys.exit(128 + stopped)  # ends a sweep in this process too
    if failed:
        raise RuntimeError(message)
    if row is None:
        return None
    if not row.counts:
        return None
    return row.final if row.final is not None else row.best


def give_back_memory() -> None:
    """Give a GPU's memory back, which PyTorch keeps for the process; the next job of it may be another's."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        if "torch._dynamo" in sys.modules:
            torch._dynamo.reset()  # its CUDA graphs hold memory too
        gc.collect()
        torch.cuda.empty_cache()
    elif torch is not None and torch.backends.mps.is_available():
        gc.collect()
        torch.mps.empty_cache()


class StartCallback(Callback):
    """Refuses what Hydra would meet with a traceback: a folder that cannot be written to, an extra not installed."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        _check_folder("hydra.run.dir", Path(config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        for part in (config.hydra.launcher, config.hydra.sweeper):
            what, extra, module = EXTRAS.get(part._target_.rpartition(".")[2], ("", "", "hydra"))
            if not _is_installed(module):
                how = f'-e ".[{extra}]"' if paths.IN_CHECKOUT else f'"bigramlm[{extra}]"'
                how = f"-c constraints.txt {how}" if paths.IN_CHECKOUT else how
                print(f"error: {what}: needs an extra that is not installed: pip install {how}", file=sys.stderr)
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
        print(f"error: {field}={folder}: cannot be made or written to: {error.strerror}", file=sys.stderr)
        sys.exit(2)


def train(
    composed: DictConfig, folder: RunFolder, overrides: Overrides, context: JobContext, *, continues: bool = False
) -> RunEnd | BaseException | None:
    """Train what Hydra composed. However it ends, the folder's log and summary say so.

    continues: as a job of a sweep does, resume the run that the folder holds already, or leave it if it is finished.
    Returns what a run that completed came to, or what ended it: a UserError for what the user can mend, Stopped after a
    signal, or any other exception; None where it was pruned, or was finished before.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(folder.lock())
            again = continues and folder.holds(config_hashes(to_run_config(composed)))
            if composed.resume is None and not again:
                folder.claim()
            else:
                folder.reopen()
        except (UserError, OSError) as error:
            log.error("error: %s", as_user_error(error, folder.path))
            return as_user_error(error, folder.path)
        if again and folder.summary.get("status") in FINISHED:
            return None
        try:
            with stop_signals() as stop:
                return _run(composed, folder, Overrides() if again else overrides, context, stop, again=again)
        except (Exception, KeyboardInterrupt, Stopped) as raised:
            return _ended(raised, composed, folder, quietly=continues)


def _run(
    composed: DictConfig,
    folder: RunFolder,
    overrides: Overrides,
    context: JobContext,
    stop: StopSignals,
    *,
    again: bool,
) -> RunEnd | None:
    from bigramlm.engine import run as recipe

    if again:  # as it was decided then: device, threads, the text
        cfg = replace(load(folder.path / "config.yaml"), resume=str(folder.path), base=composed.base)
    elif composed.resume is not None:
        cfg = to_run_config(composed)
    else:
        folder.begin(overrides.words)
        cfg = to_run_config(composed)
        folder.update_summary(asked=config_hash(cfg))
    return recipe.run(cfg, overrides, folder, stop, context)


def _ended(raised: BaseException, composed: DictConfig, folder: RunFolder, *, quietly: bool) -> BaseException:
    # What ended a run, as it is reported: in the log, and in the summary if the run had begun.
    end = Stopped(signal.SIGINT) if isinstance(raised, KeyboardInterrupt) else as_user_error(raised, folder.path)
    path = folder.path / "config.yaml"
    if is_out_of_memory(raised) and "vocab_size" in folder.summary and path.exists():
        cfg = load(path) if composed.resume is None else to_run_config(composed)
        end = UserError(out_of_memory(cfg, vocab_size=folder.summary["vocab_size"]))
    if isinstance(end, Stopped):
        how = "training had not begun; the same command starts again, with what was prepared"
        if path.exists():
            how = shlex.quote(f"resume={relative(folder.path)}") + " resumes it"
        log.log(logging.INFO if quietly else logging.WARNING, "%s; %s", end, how)
    elif isinstance(end, UserError):
        log.error("error: %s", end, exc_info=raised if os.environ.get("HYDRA_FULL_ERROR") else None)
    else:
        log.exception("the run failed", exc_info=raised)
    if folder.begun:
        with contextlib.suppress(OSError):  # a full disk may be the very reason
            status = "stopped" if isinstance(end, Stopped) else "failed"
            folder.update_summary(status=status, error=str(end) or repr(end))
    return end


def print_end(end: RunEnd, folder: RunFolder) -> None:
    """Print what a run ends with: its losses, its sample, what counting gives, and where it is.

    Where a token is not a character, also the loss in bits a character.
    """
    final, references = end.final, end.references
    lines = ["----", f"End of training. Loss: {final['train/loss']:.4f} (val {final['val/loss']:.4f})", end.sample, ""]
    if folder.summary["tokenizer"]["characters_per_token"]["val"] != 1:
        lines.append(
            f"Bits a character: {final['val/bpc']:.4f} on val, which compares tokenizers; a loss is of a token"
        )
    for name, loss in references.items():
        split, _, what = name.partition("/best_")
        if split == "train":
            val_loss = references[f"val/best_{what}"] + 0.0  # no minus before a zero
            lines.append(f"By counting: {loss + 0.0:.4f} over the whole training text (the loss above: over a part")
            lines.append(f"as long as val), where no {what} can do better; {val_loss:.4f} on val.")
    if ngrams := [loss for name, loss in references.items() if name.startswith("val/ngram_")]:
        lines.append(f"By counting, on val, orders 1 to {len(ngrams)}: {' '.join(f'{loss:.3f}' for loss in ngrams)}")
    lines.append(f"Run: {relative(folder.path)}")
    if "tensorboard" in end.cfg.logger.use:
        outputs = paths.home() / "outputs"
        where = relative(outputs if outputs in folder.path.parents else folder.path)
        lines.append(f"Look at it: tensorboard --logdir {shlex.quote(str(where))}")
    show("\n".join(lines))
