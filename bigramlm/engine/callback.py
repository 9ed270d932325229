"""The callback through which Hydra checks the requirements of a run or a sweep."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from bigramlm.engine.failures import CommandExit
from bigramlm.errors import UserError
from bigramlm.runs.discard import discard, remember
from bigramlm.utils import paths

# The optional launchers and sweepers by class name: the override that selects them, their extra, the required module.
EXTRAS = {
    "JoblibLauncher": ("hydra/launcher=joblib", "joblib", "joblib"),
    "LocalLauncher": ("hydra/launcher=submitit_local", "submitit", "hydra_plugins.hydra_submitit_launcher"),
    "SlurmLauncher": ("hydra/launcher=submitit_slurm", "submitit", "hydra_plugins.hydra_submitit_launcher"),
    "OptunaSweeper": ("hydra/sweeper=optuna", "optuna", "optuna"),
}


class StartCallback(Callback):
    """A callback that checks the requirements of a run or a sweep before it starts.

    The output folder must be writable, and the packages of the launcher and the sweeper must be installed. Raises
    CommandExit otherwise.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        _check_folder("hydra.run.dir", Path(config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        for part in (config.hydra.launcher, config.hydra.sweeper):
            override, extra, module = EXTRAS.get(part._target_.rpartition(".")[2], ("", "", "hydra"))
            if not _is_installed(module):
                package = f'-c constraints.txt -e ".[{extra}]"' if paths.IN_CHECKOUT else f'"bigramlm[{extra}]"'
                raise CommandExit(
                    2, UserError(f"{override} needs a package that is not installed: pip install {package}")
                )
        _check_folder("hydra.sweep.dir", Path(config.hydra.sweep.dir))


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def _check_folder(field: str, folder: Path) -> None:
    try:
        remember(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        discard(folder, [])
        refusal = UserError(f"{field}={folder}: the folder cannot be created or written to: {error.strerror}")
        raise CommandExit(2, refusal) from error
