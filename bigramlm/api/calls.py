"""The public functions: train, sweep, load and compose."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose as hydra_compose
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from bigramlm.api.arguments import extensions_in, path_in, require_model
from bigramlm.api.run import Run, Sweep
from bigramlm.api.state import exclusive, torch_state
from bigramlm.config.extensions import import_extensions
from bigramlm.config.mistakes import CONFIG_ERRORS
from bigramlm.config.overrides import Overrides, quoted
from bigramlm.config.run_config import RunConfig, to_run_config
from bigramlm.data.piped import kept_text
from bigramlm.engine.command_line import command_line, job_overrides, open_hydra, refuse_ranks, set_up_hydra
from bigramlm.engine.failures import CommandExit, as_user_error
from bigramlm.engine.job import train as train_run
from bigramlm.engine.resume import SAVED
from bigramlm.errors import UserError, require
from bigramlm.model.config import PythonConfig
from bigramlm.runs import find
from bigramlm.runs.folder import RunFolder
from bigramlm.sweeps.job import run_context, run_job
from bigramlm.utils import network
from bigramlm.utils.stop import Stopped

if TYPE_CHECKING:
    from torch import nn

    from bigramlm.model.python import ModelFactory

# The presets that keep the console quiet; before the overrides, so that these can choose others.
_QUIET = ("hydra/job_logging=python", "hydra/hydra_logging=python")


def train(
    *overrides: str,
    model: nn.Module | ModelFactory | None = None,
    text: str | None = None,
    data: str | os.PathLike[str] | None = None,
    **unknown: Any,
) -> Run:
    """Train a model or resume a run: `train("model=gpt", "optim.lr=1e-3")`.

    overrides: the overrides of the command line. model: a network of your own: a module, of which a copy is
    trained, or a function or class that makes one from vocab_size and block_size. Its forward takes token ids (B, T)
    and returns logits (B, T, V). text: the text to train on. data: the file of the text to train on.

    Returns the run, whether it completed, was pruned, or was stopped by Ctrl-C. Raises UserError for an error that the
    user can fix, and any other exception unchanged.
    """
    _check(overrides, unknown, "train")
    refuse_ranks()
    with _translated("train", overrides):
        words = _words(overrides, model=model, text=text, data=data)
        folder, stopped_by = _train(words, model)
    _pass_on(stopped_by)
    return Run(folder, model=model)


def sweep(
    *overrides: str,
    model: ModelFactory | None = None,
    text: str | None = None,
    data: str | os.PathLike[str] | None = None,
    **unknown: Any,
) -> Sweep:
    """Run a sweep: `sweep("optim.lr=1e-3,1e-2", "seed=1,2")`.

    The override `sweep=FOLDER` continues a sweep. The arguments are those of `train`, but `model` must be a
    function or class, because each run needs a new model. Returns the sweep, also if some runs failed, or if it was
    stopped by Ctrl-C. Raises UserError if no run could start.
    """
    _check(overrides, unknown, "sweep")
    refuse_ranks()
    from torch import nn

    require(
        not isinstance(model, nn.Module),
        f"model={type(model).__name__}: is a module, but each run of a sweep needs a new one; pass a function or class "
        "that makes it from vocab_size and block_size",
    )
    with _translated("sweep", overrides):
        folder, stopped_by = _sweep(_words(overrides, model=model, text=text, data=data, sweeps=True), model)
    _pass_on(stopped_by)
    return Sweep(folder, model=model)


def load(
    where: str | os.PathLike[str] = "latest",
    *,
    checkpoint: str | int = "last",
    model: nn.Module | ModelFactory | None = None,
    extensions: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
) -> Run:
    """Load a run, to read its results and to use its model.

    where: the folder of a run or of a checkpoint, or `latest` for the run that was started last. checkpoint: the
    checkpoint to load the model from: `last`, `best` or a step. model: the network that was passed to `train`, if there
    was one. extensions: the Python files with the model or tokenizer of the run, if it was trained with any. Raises
    UserError if there is no such run; a checkpoint is read when it is used.
    """
    import_extensions(extensions_in(extensions))
    folder = find.find(path_in("where", where), containing="config.yaml")
    find.saved_config(folder)
    return Run(folder, checkpoint=checkpoint, model=model)


def compose(*overrides: str) -> RunConfig:
    """Return the config that these overrides give, without training.

    Raises UserError for an invalid config.
    """
    _check(overrides, {}, "compose")
    with _translated("compose", overrides):
        words = _words(overrides)
        with open_hydra():
            return to_run_config(hydra_compose("train", words))


def _check(overrides: Sequence[object], unknown: dict[str, Any], name: str) -> None:
    # Refuses what is neither an override nor a known argument.
    if unknown:
        argument, value = next(iter(unknown.items()))
        raise UserError(
            f"{name}({argument}={value!r}): unknown argument; overrides are strings, such as "
            f'{name}("optim.lr=1e-3"), and the arguments are model, text and data'
        )
    for override in overrides:
        if not isinstance(override, str):
            raise UserError(f'{name}({override!r}): overrides are strings, such as {name}("optim.lr=1e-3")')
        flag = override.startswith("-")
        advice = "bigramlm.sweep() runs a sweep" if override in ("-m", "--multirun") else "flags are for the shell"
        require(not flag, f"{override}: not an override; {advice}")
        require(
            not override.startswith("hydra.mode="),
            f"{override}: cannot be set here; bigramlm.train() makes one run, and bigramlm.sweep() many",
        )


@contextmanager
def _translated(name: str, overrides: Sequence[str]) -> Iterator[None]:
    # Errors that the user can fix become UserError, whoever raises them.
    try:
        with exclusive(name), network.typed(overrides):
            set_up_hydra(overrides)
            yield
    except CommandExit as ended:
        if ended.error is None:  # `_sweep` handles the exit of a sweep that has reported its results
            raise
        raise as_user_error(ended.error) from ended.error
    except CONFIG_ERRORS as error:
        raise as_user_error(error) from error


def _words(
    overrides: Sequence[str],
    *,
    model: nn.Module | ModelFactory | None = None,
    text: str | None = None,
    data: str | os.PathLike[str] | None = None,
    sweeps: bool = False,
) -> list[str]:
    """Return the overrides for Hydra.

    Those that implement the other arguments precede those of the user.
    """
    typed = Overrides.typed(overrides, sweeps=sweeps)
    is_resumed = typed.get("resume", "null") != "null"
    first: list[str] = []
    if text is not None or data is not None:
        require(text is None or data is None, "text= data=: both give the text to train on; omit one of them")
        argument = "text" if data is None else "data"
        require(
            not typed.has("data", "data.path"),
            f"{argument}=: cannot be combined with data={typed.get('data', '...')}; omit one of them",
        )
        path = _stored(text) if data is None else path_in("data", data)
        # A resumed run has its data config, and checks the text.
        first += [f"data.path={path}"] if is_resumed else ["data=text", f"data.path={path}"]
    require_model(model)
    if model is not None and not is_resumed:
        require(
            not typed.has("model"),
            f"model=: cannot be combined with the override model={typed.get('model')}; omit one of them",
        )
        from bigramlm.model.python import name_of, require_factory

        require_factory(model)
        config = OmegaConf.structured(PythonConfig(source=name_of(model)))
        ConfigStore.instance().store(SAVED, config, group="model")
        first.append(f"model={SAVED}")
    words = command_line([*first, *overrides], sweeps=sweeps, has_model=model is not None)
    several = [str(override.input_line) for override in Overrides(words).parsed() if override.is_sweep_override()]
    require(
        sweeps or not several,
        f"{', '.join(several)}: gives several values for one run; bigramlm.sweep() makes a run for each of them",
    )
    return [*_QUIET, *words]


def _stored(text: object) -> Path:
    # A text is kept in a file that is named after its content, so that the run can be resumed and continued.
    if not isinstance(text, str):
        raise UserError(f"text={type(text).__name__}: must be a str that contains the text; use data= for a file")
    try:
        return kept_text(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise UserError(
            f"text=: character {error.start:,} is {text[error.start]!r}, half of a surrogate pair, which is no "
            'character; remove such characters with text.encode(errors="ignore").decode()'
        ) from None


def _train(words: list[str], model: nn.Module | ModelFactory | None) -> tuple[Path, int | None]:
    # Returns the run folder, and the signal that stopped the run, if any.
    folders: list[Path] = []
    raised: list[Exception] = []

    def job(composed: DictConfig) -> None:
        folder = RunFolder(Path(HydraConfig.get().runtime.output_dir))
        folders.append(folder.path)
        try:
            train_run(composed, folder, job_overrides(), replace(run_context(folder.path), model=model))
        except Exception as error:  # Hydra would print it
            raised.append(error)

    try:
        with torch_state(), open_hydra() as hydra:
            hydra.run("train", job, words)
    except Stopped as stopped:
        return folders[0], stopped.signal
    for error in raised:
        raise error
    return folders[0], None


def _sweep(words: list[str], model: ModelFactory | None) -> tuple[Path, int | None]:
    # Returns the sweep folder, and the signal that stopped the sweep, if any.
    with torch_state(), open_hydra() as hydra:
        config = hydra.compose_config("train", words, RunMode.MULTIRUN, with_log_configuration=False)
        folder = Path(config.hydra.sweep.dir).absolute()
        try:
            # The default folder contains the time, so it must not be composed again.
            hydra.multirun("train", partial(_job, model=model), [*words, f"hydra.sweep.dir={quoted(str(folder))}"])
        except CommandExit as ended:
            if ended.error is not None:
                raise
            code = int(ended.code or 0)
            return folder, code - 128 if code > 128 else None
    return folder, None


def _job(composed: DictConfig, model: ModelFactory | None = None) -> float | None:
    # A job of a sweep, perhaps in another process.
    folder = RunFolder(Path(HydraConfig.get().runtime.output_dir))
    return run_job(composed, folder, job_overrides().without("sweep"), model=model)


def _pass_on(number: int | None) -> None:
    # Ctrl-C ends the run only. Any other signal was meant for the process, which would not have survived it.
    if number is not None and number != signal.SIGINT:
        signal.raise_signal(number)
