"""The command `train`: from what is typed to a trained model and a run folder that tells all of it.

Nothing here imports torch before a run begins, so that --help and tab completion answer at once.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bigramlm import paths
from bigramlm.config import RunConfig, escape_references, register_schemas, to_dict, to_run_config, to_yaml
from bigramlm.errors import UserError
from bigramlm.help import help_text
from bigramlm.run import RunFolder, git_state, process, versions

if TYPE_CHECKING:
    from bigramlm.trainer import Trainer

log = logging.getLogger(__name__)

# Fields that hold free text: taken as typed, whatever Hydra's grammar would make of it.
FREE_TEXT = ("sample.prompt", "data.path")

# Ctrl-C, a request to end, and, where there is such a thing, the terminal that is closed.
_STOP_SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]

# Failures of the disk and its permissions that are the user's to mend.
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}


class Stopped(BaseException):
    """The run was ended by a signal. No Exception, like KeyboardInterrupt: what guards against failures lets it by."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = number


def main() -> None:
    """Run the command line. Exit codes: 0 completed, 1 failed, 2 for the user to mend, 130 and 143 stopped."""
    set_up_hydra()
    sys.argv[1:] = [quote_free_text(argument) for argument in sys.argv[1:]]
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a character of the sample still shows the rest
    try:
        if {"--help", "-h"} & set(sys.argv[1:]):
            show(help_text([argument for argument in sys.argv[1:] if re.match(r"~|[^-].*=", argument)]))
        else:
            _hydra_main()
    except (HydraException, OmegaConfBaseException) as error:
        print(error, error.__cause__ or "", sep="\n", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def set_up_hydra() -> None:
    """Make known to Hydra what the presets in conf/ refer to."""
    register_schemas()
    OmegaConf.register_new_resolver("home", lambda: str(paths.home()), replace=True)


@hydra.main(version_base="1.3", config_path=str(paths.conf_dir()), config_name="train")
def _hydra_main(composed: DictConfig) -> None:
    hydra_cfg = HydraConfig.get()
    folder = RunFolder(Path(hydra_cfg.runtime.output_dir))
    failure = train(composed, folder, list(hydra_cfg.overrides.task))
    if isinstance(failure, Stopped):
        sys.exit(128 + failure.signal)  # ends a sweep too
    if failure is not None and hydra_cfg.mode == RunMode.MULTIRUN:
        # The sweep goes on, and ends with exit code 1. The traceback is in the job's log; with it, the exception would
        # keep the job's model in memory for as long as the sweep lasts.
        message = f"job {hydra_cfg.job.num} failed ({failure}); see {folder.path / 'train.log'}"
        del failure
        raise RuntimeError(message)
    if failure is not None:
        sys.exit(2 if isinstance(failure, UserError) else 1)


class FolderCallback(Callback):
    """Refuses a folder that cannot be made or written to, in one line, before Hydra meets it."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        _check_folder("hydra.run.dir", Path(config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        _check_folder("hydra.sweep.dir", Path(config.hydra.sweep.dir))


def _check_folder(field: str, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        print(f"error: {field}={folder}: cannot be made or written to: {error.strerror}", file=sys.stderr)
        sys.exit(2)


def train(composed: DictConfig, folder: RunFolder, overrides: list[str]) -> BaseException | None:
    """Train what Hydra composed. However it ends, the folder's log and summary tell it.

    Returns None for a run that completed, else what ended it: a UserError for what the user can mend, Stopped after a
    signal, or any other exception.
    """
    try:
        folder.claim()
    except UserError as error:
        log.error("error: %s", error)
        return error
    try:
        with stop_signals() as stop:
            folder.update_summary(status="running", step=0, overrides=overrides, **process())
            run(to_run_config(composed), folder, overrides, stop)
        return None
    except (Exception, KeyboardInterrupt, Stopped) as raised:
        error_or_signal = _known(raised, folder.path)
        if isinstance(error_or_signal, Stopped):
            log.warning("%s; the run is in %s", error_or_signal, _relative(folder.path))
        elif isinstance(error_or_signal, UserError):
            log.error("error: %s", error_or_signal, exc_info=raised if os.environ.get("HYDRA_FULL_ERROR") else None)
        else:
            log.exception("the run failed")
        with contextlib.suppress(OSError):  # a full disk may be the very reason
            status = "stopped" if isinstance(error_or_signal, Stopped) else "failed"
            folder.update_summary(status=status, error=str(error_or_signal) or repr(error_or_signal))
        return error_or_signal


def run(cfg: RunConfig, folder: RunFolder, overrides: list[str], stop: StopSignals) -> None:
    """One run, from its config to its sample. Everything that can be refused is refused before training."""
    cfg.data = cfg.data.prepare()
    text = cfg.data.read()
    tokenizer = cfg.tokenizer.build(text.text)
    try:
        prompt = tokenizer.encode(cfg.sample.prompt)
    except UserError as error:
        raise UserError(f"sample.prompt={cfg.sample.prompt!r}: {error}") from None

    import torch

    from bigramlm.data.batches import check_length, compact
    from bigramlm.data.text import split
    from bigramlm.device.device import decide, set_up
    from bigramlm.generate import generate
    from bigramlm.metrics import Metrics
    from bigramlm.trainer import Trainer

    texts = dict(zip(("train", "val"), split(text.text, cfg.data.train_fraction), strict=True))
    vocab_size = tokenizer.vocab_size
    tokens = {name: compact(tokenizer.encode(part), vocab_size=vocab_size) for name, part in texts.items()}
    for name, ids in tokens.items():
        check_length(len(ids), split=name, block_size=cfg.data.block_size, text=str(cfg.data.file()))
    torch.manual_seed(cfg.seed)
    model = cfg.model.build(vocab_size=vocab_size, block_size=cfg.data.block_size)
    cfg.device = decide(cfg.device, n_params=model.n_params(), tokens=cfg.data.batch_size * cfg.data.block_size)
    device = set_up(cfg.device)

    log.info("data: %s, %s characters, vocabulary of %d", cfg.data.name, f"{len(text.text):,}", vocab_size)
    log.info("split: %s tokens train, %s val", *(f"{len(tokens[name]):,}" for name in ("train", "val")))
    log.info("model: %s, %s parameters", cfg.model.name, f"{model.n_params():,}")
    folder.save_config(to_yaml(cfg), overrides)
    folder.update_summary(
        device=cfg.device.name,
        n_params=model.n_params(),
        data={"name": text.name, "sha256": text.sha256},
        versions=versions(),
        git=git_state(),
    )

    metrics = Metrics(folder.path, cfg.logger, to_dict(cfg))
    completed = False
    try:
        trainer = Trainer(
            cfg,
            model=model.to(device.torch),
            train=tokens["train"].to(device.torch),
            val=tokens["val"].to(device.torch),
            val_characters=len(texts["val"]),
            tokenizer=tokenizer.to_dict(),
            device=device,
            metrics=metrics,
            folder=folder,
        )
        with stop.after_the_step(trainer):
            trainer.fit()
        if trainer.stop_signal is not None:
            raise Stopped(trainer.stop_signal)
        folder.update_summary(final=trainer.final, references=trainer.references)

        start = torch.from_numpy(prompt).long() if len(prompt) else torch.zeros(1, dtype=torch.long)
        ids = generate(
            model,
            start[None].to(device.torch),
            cfg.sample.max_new_tokens,
            temperature=cfg.sample.temperature,
            seed=cfg.seed,
            device=device,
        )
        sample = tokenizer.decode(ids[0].tolist())
        metrics.text(trainer.step, "sample", sample)
        folder.add_sample(trainer.step, sample)
        completed = True
    finally:
        metrics.close(completed=completed)
    folder.update_summary(status="completed")
    print_end(trainer.final, sample, trainer.references, folder.path, cfg.logger.use)


def print_end(
    final: dict[str, float], sample: str, references: dict[str, float], folder: Path, loggers: list[str]
) -> None:
    """What a run ends with on standard output."""
    lines = ["----", f"End of training. Loss: {final['train/loss']:.4f} (val {final['val/loss']:.4f})", sample, ""]
    for name, loss in references.items():
        split, _, what = name.partition("/best_")
        if split == "train":
            val_loss = references[f"val/best_{what}"] + 0.0  # no minus before a zero
            lines.append(f"By counting: {loss + 0.0:.4f} over the whole training text (the loss above: over a part")
            lines.append(f"as long as val), where no {what} can do better; {val_loss:.4f} on val.")
    lines.append(f"Run: {_relative(folder)}")
    if "tensorboard" in loggers:
        outputs = paths.home() / "outputs"
        lines.append(f"Look at it: tensorboard --logdir {_relative(outputs if outputs in folder.parents else folder)}")
    show("\n".join(lines))


def show(text: str) -> None:
    """Print on standard output, also where whoever reads it, `head` perhaps, has had enough of it."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def quote_free_text(argument: str) -> str:
    """The same override with its value quoted for Hydra's grammar, where the field holds free text."""
    match = re.fullmatch(rf"(\+{{0,2}}(?:{'|'.join(map(re.escape, FREE_TEXT))})=)(.*)", argument, re.DOTALL)
    if match is None:
        return argument
    field, text = match.groups()
    # Hydra's quotes end at a quote; the backslashes before one, and before the end, count double.
    text = escape_references(text)
    text = re.sub(r'(\\*)("|$(?![\s\S]))', lambda found: found[1] * 2 + ('\\"' if found[2] else ""), text)
    return f'{field}"{text}"'


class StopSignals:
    """What a signal to stop does: end the run at once or, while a Trainer is at work, after its step and a save."""

    def __init__(self) -> None:
        self._trainer: Trainer | None = None

    @contextlib.contextmanager
    def after_the_step(self, trainer: Trainer) -> Iterator[None]:
        """Let this Trainer finish its step at the first signal; a second one ends the run at once."""
        self._trainer = trainer
        try:
            yield
        finally:
            self._trainer = None

    def __call__(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self._trainer is None or self._trainer.stop_signal is not None:
            raise Stopped(number)
        self._trainer.stop_signal = number
        log.warning("%s: saving after this step; once more to stop at once", signal.Signals(number).name)


@contextlib.contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Take Ctrl-C, SIGTERM and SIGHUP while a run lasts."""
    stop = StopSignals()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may take signals
        yield stop
        return
    before = {number: signal.signal(number, stop) for number in _STOP_SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _known(error: BaseException, folder: Path) -> BaseException:
    # The error as one of the kinds that the command line tells apart.
    if isinstance(error, KeyboardInterrupt):
        return Stopped(signal.SIGINT)
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return UserError(
            f"{error.filename or folder}: cannot be written: {error.strerror}; make room there or choose another folder"
        )
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return UserError("out of memory: lower data.batch_size or data.block_size, or make the model smaller")
    return error


def _relative(path: Path) -> Path:
    # As short as can be from where the user is.
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
