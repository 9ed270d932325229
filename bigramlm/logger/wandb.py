"""Weights & Biases logger."""

from __future__ import annotations

import contextlib
import html
import io
import logging
import os
import shlex
import sys
from collections.abc import Iterator
from typing import Any

from bigramlm.errors import UserError, printable, visible
from bigramlm.logger.base import LoggerContext
from bigramlm.logger.config import LoggerConfig

log = logging.getLogger(__name__)


class WandbLogger:
    """A logger that sends metrics to W&B.

    Without a network connection or an API key, the logger switches to offline mode within seconds.
    """

    def __init__(self, cfg: LoggerConfig, context: LoggerContext) -> None:
        import wandb

        group = cfg.group or (None if context.swept is None else context.folder.parent.name)
        name = cfg.name or printable(context.name)[:128] or None  # W&B's maximum length

        def start(mode: Any) -> Any:
            return wandb.init(
                project=cfg.project,
                group=group,
                name=name,
                notes=visible(context.note) or None,
                tags=cfg.tags,
                mode=mode,
                dir=context.folder,
                config=context.config,
                id=context.run_id,
                resume=None if context.resumed_at is None else "allow",
                allow_val_change=context.resumed_at is not None,  # overrides of a resume change the config
                reinit="finish_previous",
                # W&B's default timeout is 90 seconds.
                settings=wandb.Settings(init_timeout=8, console="off", silent=True, x_disable_stats=True),
            )

        mode = cfg.wandb_mode
        stdin, sys.stdin = sys.stdin, io.StringIO()  # at a terminal wandb.init would prompt for a key and block
        try:
            with _readable_environment(mode):
                self._run = start(mode)
        except (wandb.errors.CommError, wandb.errors.UsageError) as error:
            if mode != "online":
                raise
            log.warning("W&B: cannot connect (%s); the run is recorded offline", str(error).partition("\n")[0])
            wandb.teardown()
            mode = "offline"
            with _readable_environment(mode):
                self._run = start(mode)
        finally:
            sys.stdin = stdin
        if mode == "online":
            log.info("W&B: %s", self._run.url)
        if mode == "offline":
            log.info(
                "W&B: recording offline; upload the run later with: wandb sync %s",
                shlex.quote(str(self._run.settings.sync_dir)),
            )
        # A separate step metric as the axis: W&B's own step drops records that come out of order, as after a resume.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log({"step": step, **metrics})

    def text(self, step: int, name: str, text: str) -> None:
        import wandb

        self._run.log({"step": step, name: wandb.Html(f"<pre>{html.escape(visible(text))}</pre>", inject=False)})

    def close(self, *, completed: bool) -> None:
        self._run.finish(exit_code=0 if completed else 1)


def check_environment() -> None:
    """Raise UserError for an environment variable whose value W&B refuses.

    W&B reads its variables even if the setting is given otherwise.
    """
    import wandb
    from pydantic import ValidationError  # a part of W&B

    for name, value in _given().items():
        if name == "WANDB_MODE" or not value.strip():  # see _readable_environment
            continue
        try:
            wandb.Settings().update_from_env_vars({name: value})
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
        except wandb.errors.Error as error:
            reason = str(error)
        else:
            continue
        shown = "..." if "KEY" in name or "TOKEN" in name else value
        raise UserError(f"{name}={shown}: W&B refuses the value: {reason}; correct or unset the variable")


def _given() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}


@contextlib.contextmanager
def _readable_environment(mode: str) -> Iterator[None]:
    # W&B refuses empty variables, and a WANDB_MODE in capitals or with spaces, even if the mode is an argument too.
    changed = {name: value for name, value in _given().items() if name == "WANDB_MODE" or not value.strip()}
    try:
        for name in changed:
            del os.environ[name]
        if "WANDB_MODE" in changed:
            os.environ["WANDB_MODE"] = mode
        yield
    finally:
        os.environ.update(changed)
