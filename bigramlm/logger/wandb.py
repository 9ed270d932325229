"""Weights & Biases."""

from __future__ import annotations

import html
import io
import logging
import os
import sys
from pathlib import Path
from typing import Any

from bigramlm.logger.base import LoggerContext
from bigramlm.logger.config import LoggerConfig

log = logging.getLogger(__name__)


class WandbLogger:
    """Sends metrics to W&B; goes offline within seconds where there is no network or key."""

    def __init__(self, cfg: LoggerConfig, origin: LoggerContext) -> None:
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
