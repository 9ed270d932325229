"""The fields of the loggers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from bigramlm.errors import require_choice
from bigramlm.logger.base import Logger, LoggerContext


@dataclass
class LoggerConfig:
    """Destinations of metrics in addition to metrics.jsonl, which is always written."""

    use: list[str] = field(default_factory=lambda: ["tensorboard"])
    """The loggers: tensorboard, wandb, both or none; set by `logger=NAME`."""
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


def _tensorboard(cfg: LoggerConfig, origin: LoggerContext) -> Logger:
    from bigramlm.logger.tensorboard import TensorBoardLogger

    return TensorBoardLogger(cfg, origin)


def _wandb(cfg: LoggerConfig, origin: LoggerContext) -> Logger:
    from bigramlm.logger.wandb import WandbLogger

    return WandbLogger(cfg, origin)


LOGGERS: dict[str, Callable[[LoggerConfig, LoggerContext], Logger]] = {"tensorboard": _tensorboard, "wandb": _wandb}
"""The loggers: what makes each, for a run."""
