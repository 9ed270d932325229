"""The command `train`: starts, resumes and sweeps runs.

The calls from the command line to the update of the weights:

1. `main` translates the arguments (`engine/command_line.py`), and Hydra composes the config and calls `job`.
2. `job` calls `train` (`engine/job.py`), which locks the run folder and records how the run ends.
3. `train` calls `run` (`engine/run.py`), which builds all parts of the run and calls `Trainer.fit`.
4. `Trainer.fit` (`trainer/trainer.py`) is the training loop. It calls a `TrainStep` (`trainer/step.py`) per update.

This module imports torch only when a run begins, so that --help and tab completion respond immediately.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from bigramlm.cli.common import command
from bigramlm.cli.help import help_text
from bigramlm.engine.command_line import (
    command_line,
    job_overrides,
    open_hydra,
    parse_flags,
    refuse_ranks,
    set_up_hydra,
)
from bigramlm.engine.job import train
from bigramlm.engine.run import RunResult
from bigramlm.errors import UserError, require
from bigramlm.runs.find import outputs, shortest_name
from bigramlm.runs.folder import RunFolder
from bigramlm.sweeps.job import run_context, run_job
from bigramlm.utils import paths
from bigramlm.utils.console import relative, show
from bigramlm.utils.stop import Stopped

log = logging.getLogger(__name__)


@command
def main() -> None:
    """Run the command line: python scripts/train.py [overrides].

    The exit code is 0 if the run completed, 1 if it failed, 2 for an error that the user can fix, and 130 or 143 if it
    was stopped by Ctrl-C or SIGTERM.
    """
    arguments = sys.argv[1:]
    flags = parse_flags(arguments)
    set_up_hydra(arguments)
    if flags.help:
        show(help_text(arguments))
    elif flags.shell_completion or flags.hydra_help or flags.cfg or flags.info:
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):  # Hydra fails if its reader closes the pipe
                _answer(flags, arguments)
        finally:
            show(printed.getvalue(), end="")
    else:
        refuse_ranks()
        words = command_line(arguments)
        with open_hydra(flags) as hydra:
            start = hydra.multirun if words[-1] == "hydra.mode=MULTIRUN" else hydra.run
            start(flags.config_name or "train", job, words)


def _answer(flags: argparse.Namespace, arguments: list[str]) -> None:
    """Print what Hydra's own flags ask for, such as --cfg, -sc and --hydra-help."""
    name = flags.config_name or "train"
    if flags.shell_completion:
        given = dict(word.partition("=")[::2] for word in flags.overrides)
        actions = [action for action in ("install", "uninstall", "query") if action in given]
        require(
            len(actions) == 1 and given[actions[0]] in ("bash", "fish", "zsh"),
            f"-sc {shlex.join(flags.overrides)}: must be install=SHELL or uninstall=SHELL; SHELL is one of bash, fish, "
            "zsh",
        )
    shows_config = flags.cfg or flags.info
    words = command_line(arguments, sweeps=False)[:-1] if shows_config else flags.overrides  # without hydra.mode
    with open_hydra(flags) as hydra:
        if flags.shell_completion:
            hydra.shell_completion(name, words)
        elif flags.hydra_help:
            hydra.hydra_help(name, get_args_parser(), flags)
        elif flags.cfg:
            hydra.show_cfg(name, words, flags.cfg, flags.package, flags.resolve)
        else:
            hydra.compose_config(name, words, RunMode.RUN)  # refuses an invalid config in one line
            hydra.show_info(flags.info, name, words)


def job(composed: DictConfig) -> float | None:
    """Train a single run or a job of a sweep; Hydra calls this function.

    For a job, returns the loss that the sweeper compares. For a single run, returns None.
    """
    hydra_cfg = HydraConfig.get()
    folder = RunFolder(Path(hydra_cfg.runtime.output_dir))
    overrides = job_overrides()
    if hydra_cfg.mode == RunMode.MULTIRUN:
        return run_job(composed, folder, overrides.without("sweep"))
    try:
        result = train(composed, folder, overrides, run_context(folder.path))
    except Stopped as stopped:
        sys.exit(128 + stopped.signal)
    except Exception as error:  # it is logged already, and Hydra would print it again
        sys.exit(2 if isinstance(error, UserError) else 1)
    if result is not None:
        try:
            print_end(result, folder)
        except UserError as error:  # the run itself is complete
            log.warning("%s", error)
    return None


def print_end(end: RunResult, folder: RunFolder) -> None:
    """Print the losses, the sample and the folder of a completed run.

    For comparison, prints the losses of n-gram models that are fitted by counting, if these losses were computed. If
    the tokens are not single characters, prints the loss in bits per character too. The last lines are commands.
    """
    final = end.final
    lines = ["----", f"End of training. Loss: {final['train/loss']:.4f} (val {final['val/loss']:.4f})", end.sample, ""]
    if folder.summary["tokenizer"]["characters_per_token"]["val"] != 1:
        lines.append(f"Bits per character: {final['val/bpc']:.4f} on val, to compare tokenizers")
    lines += by_counting(final, end.references)
    lines.append(f"Run: {relative(folder.path)}")
    if "tensorboard" in end.cfg.logger.use:
        is_of_a_day = outputs() / "runs" in folder.path.parent.parents
        day = shortest_name(folder.path.parent if is_of_a_day else folder.path)
        lines.append(f"Metrics: {paths.program('runs')} tensorboard {shlex.quote(day)}")
    show("\n".join(lines))


def by_counting(final: Mapping[str, float], references: Mapping[str, float]) -> list[str]:
    """Compare the final losses with those of n-grams that are fitted by counting.

    Both losses of a comparison are of the same tokens. Returns lines to print; none if there is nothing to compare.
    """
    lines = []
    for name, loss in references.items():
        split, _, model = name.partition("/best_")
        if split == "train":
            lines.append(f"By counting: {loss + 0.0:.4f} on the whole training text, the minimum for any {model};")
            if (whole := final.get("train/whole_loss")) is not None:
                lines.append(f"yours is {_distance(whole, loss)}, with {whole:.4f} there. (The train loss above covers")
                lines.append("only a part of it, as long as val.)")
            val_loss = references[f"val/best_{model}"]
            distance = _distance(final["val/loss"], val_loss)
            lines.append(f"On val, counting gives {val_loss + 0.0:.4f}; yours is {distance}.")
    if ngrams := [loss for name, loss in references.items() if name.startswith("val/ngram_")]:
        counted = " ".join(f"{loss:.3f}" for loss in ngrams)
        lines.append(f"Val loss of counted n-grams, orders 1 to {len(ngrams)}: {counted}")
    return lines


def _distance(loss: float, reference: float) -> str:
    difference = round(round(loss, 4) - round(reference, 4), 4)  # of the figures that are shown
    return f"{abs(difference):.4f} {'below' if difference < 0 else 'above'}" if difference else "the same"


if __name__ == "__main__":
    main()
