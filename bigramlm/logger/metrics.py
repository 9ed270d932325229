"""Where a run's metrics go: always to metrics.jsonl, and to the loggers that were chosen."""

from __future__ import annotations

import contextlib
import html
import io
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bigramlm.errors import require_choice
from bigramlm.utils import files

log = logging.getLogger(__name__)


@dataclass
class LoggerConfig:
    """Where metrics go besides metrics.jsonl, which is always written."""

    use: list[str] = field(default_factory=lambda: ["tensorboard"])
    """Which loggers: tensorboard, wandb, both or none; set by `logger=NAME`."""
    project: str = "bigramlm"
    """W&B: the project."""
    group: str | None = None
    """W&B: the group that the run belongs to; null is the sweep of a job, and no group for a run of no sweep."""
    name: str | None = None
    """W&B: the run's name; null is its number and what was swept for a job of a sweep, else one that W&B makes up."""
    tags: list[str] = field(default_factory=list)
    """W&B: tags to filter by."""
    mode: str | None = None
    """W&B: online, offline (upload later with `wandb sync`) or disabled; null is what WANDB_MODE says, else online."""

    def __post_init__(self) -> None:
        for name in self.use:
            require_choice("logger.use", name, tuple(LOGGERS))
        if self.mode is not None:
            require_choice("logger.mode", self.mode, ("online", "offline", "disabled"))


class Logger(Protocol):
    """A place for metrics. Whatever it raises costs a warning, never the run."""

    def log(self, step: int, metrics: dict[str, float]) -> None: ...

    def text(self, step: int, name: str, text: str) -> None: ...

    def close(self, *, completed: bool) -> None: ...


@dataclass(frozen=True)
class Origin:
    """The run that metrics are of."""

    folder: Path
    config: dict[str, Any]
    """The whole config as plain dictionaries, for loggers that show it."""
    run_id: str
    """Stays the same when the run is resumed."""
    resumed_at: int | None = None
    """The step that a resumed run goes on from; None for a new run."""
    swept: dict[str, str] | None = None
    """Of a job of a sweep, what was swept: its own value by field. Its folder is named by its number, and stands in the
    sweep's. None for a run of no sweep."""


class Metrics:
    """One record a step, to metrics.jsonl and to every logger.

    Records that a resumed run left behind from the step on that it goes on from are dropped: that step is measured
    again, and so are those after it, which a crash may have left without a checkpoint.
    """

    def __init__(self, cfg: LoggerConfig, origin: Origin) -> None:
        path = origin.folder / "metrics.jsonl"
        if origin.resumed_at is not None and path.exists():
            keep_before(origin.resumed_at, path)
        self._jsonl = path.open("a", encoding="utf-8", buffering=1)
        self._loggers: dict[str, Logger] = {}
        for name in cfg.use:
            with self._guarded(name):
                self._loggers[name] = LOGGERS[name](cfg, origin)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Close what is open; an exception says that the run did not come to its end."""
        self.close(completed=kind is None)

    def log(self, step: int, seconds: float, metrics: dict[str, float]) -> None:
        """Record metrics by name for a step; seconds: training time since the start."""
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}  # JSON has no NaN
        self._jsonl.write(json.dumps({"step": step, "seconds": round(seconds, 4), **finite}) + "\n")
        for name, logger in list(self._loggers.items()):
            with self._guarded(name):
                logger.log(step, metrics)

    def text(self, step: int, name: str, text: str) -> None:
        """Show a text, such as a sample, in the loggers."""
        for logger_name, logger in list(self._loggers.items()):
            with self._guarded(logger_name):
                logger.text(step, name, text)

    def close(self, *, completed: bool = True) -> None:
        """Finish everything that is open; completed: whether the run came to its end."""
        for name, logger in list(self._loggers.items()):
            with self._guarded(name):
                logger.close(completed=completed)
        self._loggers.clear()
        self._jsonl.close()

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._loggers.pop(name, None)
            log.warning(
                "the %s logger failed and is left out from here on; the run goes on, metrics.jsonl has it all (%s: %s)",
                *(name, type(error).__name__, error),
            )


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a metrics.jsonl; a line that a crash cut short is none."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict) and isinstance(record.get("step"), int):
                    yield record


def keep_before(step: int, path: Path) -> None:
    """Leave in a file of records those of the steps before this one."""
    files.write(path, ((json.dumps(r) + "\n").encode() for r in read_records(path) if r["step"] < step))


class TensorBoardLogger:
    """Writes an event file into the run's folder: `tensorboard --logdir outputs`."""

    def __init__(self, cfg: LoggerConfig, origin: Origin) -> None:  # noqa: ARG002
        from tensorboard.compat.proto.summary_pb2 import Summary
        from torch.utils.tensorboard import SummaryWriter

        self._summary = Summary
        # With a step to purge from, TensorBoard drops what earlier event files have from there on.
        self._writer = SummaryWriter(str(origin.folder), purge_step=origin.resumed_at)
        self._events: Any = self._writer.file_writer
        # The Custom Scalars tab draws a split's loss and what counting gives in one chart. The same layout in all runs,
        # whose models have other references: TensorBoard would draw a chart for each layout that differs.
        charts = {
            f"{split} loss": ["Multiline", [f"^{split}/loss$", f"^{split}/(best|ngram)_"]] for split in ("val", "train")
        }
        self._writer.add_custom_scalars({"loss and what counting gives": charts})
        self._end_of_session = self._begin_session(origin.swept) if origin.swept else None

    def log(self, step: int, metrics: dict[str, float]) -> None:
        # One event a record: add_scalar makes one a number, and each wakes the writer's thread.
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._events.add_summary(self._summary(value=values), step)

    def text(self, step: int, name: str, text: str) -> None:
        # Four spaces make it code in Markdown, which keeps its lines and marks as they are.
        self._writer.add_text(name, "\n".join("    " + line for line in text.split("\n")), step)

    def close(self, *, completed: bool) -> None:
        if self._end_of_session is not None and completed:  # the first end that is told stays; others may go on
            self._events.add_summary(self._end_of_session)
        self._writer.close()

    def _begin_session(self, swept: dict[str, str]) -> Any:
        # A row of the HParams tab, in the run's own events, where add_hparams would make a run of its own for it. Of
        # the three summaries that TensorBoard knows the first, which lists the columns, is left out: it takes the list
        # of whichever run comes first, and without one all that any run has. Returns the one that says it has ended.
        from torch.utils.tensorboard.summary import hparams

        _, begin, end = hparams({field: _plain(value) for field, value in swept.items()}, {})
        self._events.add_summary(begin)
        return end


class WandbLogger:
    """Sends metrics to W&B; goes offline within seconds where there is no network or key."""

    def __init__(self, cfg: LoggerConfig, origin: Origin) -> None:
        import wandb

        group, name = cfg.group, cfg.name
        if origin.swept is not None:
            typed = " ".join(f"{field}={value}" for field, value in origin.swept.items())
            group = group or origin.folder.parent.name
            name = name or f"{origin.folder.name} {typed}".strip()[:128]  # W&B takes no longer one

        def start(mode: Any) -> Any:
            return wandb.init(
                project=cfg.project,
                group=group,
                name=name,
                tags=cfg.tags,
                mode=mode,
                dir=origin.folder,
                config=origin.config,
                id=origin.run_id,
                resume=None if origin.resumed_at is None else "allow",
                allow_val_change=origin.resumed_at is not None,  # what was typed on resuming
                reinit="finish_previous",
                # Without a network the default time-out is a minute and a half.
                settings=wandb.Settings(init_timeout=8, console="off", silent=True, x_disable_stats=True),
            )

        mode = cfg.mode or os.environ.get("WANDB_MODE", "online")
        stdin, sys.stdin = sys.stdin, io.StringIO()  # at a terminal wandb.init would ask for a key, and wait for ever
        try:
            self._run = start(mode)
        except (wandb.errors.CommError, wandb.errors.UsageError) as error:
            if mode != "online":
                raise
            log.warning("W&B: not online (%s); the run is kept offline", str(error).partition("\n")[0])
            wandb.teardown()
            mode = "offline"
            self._run = start(mode)
        finally:
            sys.stdin = stdin
        if mode == "online":
            log.info("W&B: %s", self._run.url)
        if mode == "offline":
            log.info("W&B: offline; upload it later with: wandb sync %s", Path(self._run.settings.sync_dir))
        # Our own step axis: W&B's own drops records that come out of order, as they do after a resume.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log({"step": step, **metrics})

    def text(self, step: int, name: str, text: str) -> None:
        import wandb

        self._run.log({"step": step, name: wandb.Html(f"<pre>{html.escape(text)}</pre>", inject=False)})

    def close(self, *, completed: bool) -> None:
        self._run.finish(exit_code=0 if completed else 1)


def _plain(value: str) -> bool | float | str:
    # A field's value as what it is: TensorBoard sorts and draws numbers as such.
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    try:
        return float(value)
    except ValueError:
        return value


LOGGERS: dict[str, Callable[[LoggerConfig, Origin], Logger]] = {
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
}
