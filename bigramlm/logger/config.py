"""Config of the loggers."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from bigramlm.errors import require, require_choice
from bigramlm.logger.base import Logger, LoggerContext

# W&B's rules for names, and the environment variables that it reads in addition to the fields. Those in the first group
# become part of a URL.
_NOT_IN_PROJECT = "/\\#?%:"
_LONGEST_NAME, _LONGEST_TAG = 128, 64
_PROJECT_VARIABLES, _NAME_VARIABLES = ("WANDB_PROJECT", "WANDB_ENTITY"), ("WANDB_RUN_GROUP", "WANDB_NAME")
# The values of WANDB_MODE, with the mode that each stands for: W&B still knows two former names.
_MODES = {name: name for name in ("online", "offline", "disabled", "shared")} | {"run": "online", "dryrun": "offline"}


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
    """W&B: the name of the run, if W&B should use another name than `name`."""
    tags: list[str] = field(default_factory=list)
    """W&B: the tags of the run, for filtering."""
    mode: str | None = None
    """W&B: online, offline (upload later with `wandb sync`) or disabled. The default is the value of the environment
    variable WANDB_MODE, or online if this variable is not set or empty."""

    def __post_init__(self) -> None:
        for name in self.use:
            require_choice("logger.use", name, tuple(LOGGERS))
        if self.mode is not None:
            self.mode = _MODES.get(self.mode.strip().lower(), self.mode)
            require_choice("logger.mode", self.mode, ("online", "offline", "disabled"))

    @property
    def wandb_mode(self) -> str:
        """The mode of W&B, from `logger.mode` or WANDB_MODE.

        Raises UserError if WANDB_MODE is unknown.
        """
        if self.mode is not None:
            return self.mode
        typed = os.environ.get("WANDB_MODE", "").strip().lower() or "online"
        require_choice("WANDB_MODE", typed, tuple(_MODES))
        return _MODES[typed]

    def check(self) -> None:
        """Raise UserError if W&B is used and would refuse a setting or a variable.

        W&B refuses the values of its environment variables too, even if a field takes precedence. This is not checked
        when a config is made: the config of an old run must load, even if W&B refused to record the run.
        """
        if "wandb" not in self.use or self.wandb_mode == "disabled":
            return
        names = {"logger.project": self.project, "logger.group": self.group, "logger.name": self.name}
        names |= {name: os.environ.get(name, "").strip() or None for name in (*_PROJECT_VARIABLES, *_NAME_VARIABLES)}
        for name, value in names.items():
            if value is not None:
                _check_name(name, value)
        self._check_tags()
        from bigramlm.logger.wandb import check_environment

        check_environment()

    def _check_tags(self) -> None:
        given = os.environ.get("WANDB_TAGS", "")
        for name, tags in {"logger.tags": self.tags, "WANDB_TAGS": given.split(",") if given.strip() else []}.items():
            for tag in tags:
                require(
                    1 <= len(tag) <= _LONGEST_TAG,
                    f"{name}: the tag {tag!r} has {len(tag)} characters, but W&B accepts 1 to {_LONGEST_TAG}; change "
                    "or remove this tag",
                )


def _check_name(name: str, value: str) -> None:
    require(
        bool(value.strip()) and len(value) <= _LONGEST_NAME,
        f"{name}={value}: has {len(value.strip())} characters, but W&B accepts 1 to {_LONGEST_NAME}; choose a "
        "different name",
    )
    found = [character for character in _NOT_IN_PROJECT if character in value]
    require(
        not found or name not in ("logger.project", *_PROJECT_VARIABLES),
        f"{name}={value}: contains {' '.join(found)}, but W&B accepts none of {' '.join(_NOT_IN_PROJECT)} in it; "
        "choose a different name",
    )


def _tensorboard(cfg: LoggerConfig, context: LoggerContext) -> Logger:
    from bigramlm.logger.tensorboard import TensorBoardLogger

    return TensorBoardLogger(cfg, context)


def _wandb(cfg: LoggerConfig, context: LoggerContext) -> Logger:
    from bigramlm.logger.wandb import WandbLogger

    return WandbLogger(cfg, context)


LOGGERS: dict[str, Callable[[LoggerConfig, LoggerContext], Logger]] = {"tensorboard": _tensorboard, "wandb": _wandb}
"""The function that creates each logger, by the name in `logger.use`."""
