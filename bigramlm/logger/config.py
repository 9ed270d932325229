"""Config of the loggers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from bigramlm.errors import require_choice
from bigramlm.logger.base import Logger, LoggerContext


@dataclass
class LoggerConfig:
    """The loggers that receive metrics in addition to metrics.jsonl.

    metrics.jsonl is always written.
    """

    use: list[str] = field(default_factory=lambda: ["tensorboard"])
    """The loggers: tensorboard, wandb, both or none. The presets `logger=NAME` set this field."""
    project: str = "bigramlm"
    """W&B: the project of the run."""
    group: str | None = None
    """W&B: the group of the run. By default, the jobs of a sweep are in a group named after the sweep folder, and other
    runs are in no group."""
    name: str | None = None
    """W&B: the name of the run. By default, a sweep job is named after its number and its swept values, and W&B chooses
    a name for any other run."""
    tags: list[str] = field(default_factory=list)
    """W&B: the tags of the run, for filtering."""
    mode: str | None = None
    """W&B: online, offline (upload later with `wandb sync`) or disabled. The default is the value of the environment
    variable WANDB_MODE, or online if this variable is not set."""

    def __post_init__(self) -> None:
        for name in self.use:
            require_choice("logger.use", name, tuple(LOGGERS))
        if self.mode is not None:
            require_choice("logger.mode", self.mode, ("online", "offline", "disabled"))


def _tensorboard(cfg: LoggerConfig, context: LoggerContext) -> Logger:
    from bigramlm.logger.tensorboard import TensorBoardLogger

    return TensorBoardLogger(cfg, context)


def _wandb(cfg: LoggerConfig, context: LoggerContext) -> Logger:
    from bigramlm.logger.wandb import WandbLogger

    return WandbLogger(cfg, context)


LOGGERS: dict[str, Callable[[LoggerConfig, LoggerContext], Logger]] = {"tensorboard": _tensorboard, "wandb": _wandb}
"""The function that creates each logger, by the name in `logger.use`."""
