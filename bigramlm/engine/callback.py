"""The callback through which Hydra checks the requirements of a run or a sweep."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from bigramlm.config.overrides import Overrides
from bigramlm.engine.failures import errors_as_exits
from bigramlm.errors import UserError, require
from bigramlm.runs.discard import discard, remember
from bigramlm.utils import files, paths

log = logging.getLogger(__name__)

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
    CommandExit otherwise. Each job announces the environment variables that presets set for it.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        with errors_as_exits():  # Hydra would turn an exception into a warning
            _check_folder("hydra.run.dir", config.hydra.run.dir)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        with errors_as_exits():
            for part in (config.hydra.launcher, config.hydra.sweeper):
                _check_part(part._target_.rpartition(".")[2])
            _check_folder("hydra.sweep.dir", config.hydra.sweep.dir)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ARG002
        typed = Overrides(config.hydra.overrides.hydra)
        for name, value in config.hydra.job.env_set.items():
            if not typed.has("hydra.job.env_set", f"hydra.job.env_set.{name}"):
                log.warning("a preset sets the environment variable %s=%s for the run", name, value)


def _check_part(name: str) -> None:
    # name: the class of the launcher or the sweeper.
    override, extra, module = EXTRAS.get(name, ("", "", "hydra"))
    package = f'-c constraints.txt -e ".[{extra}]"' if paths.IN_CHECKOUT else f'"bigramlm[{extra}]"'
    require(_is_installed(module), f"{override} needs a package that is not installed: pip install {package}")
    missing = [program for program in ("sbatch", "srun") if name == "SlurmLauncher" and shutil.which(program) is None]
    require(
        not missing,
        f"{override}: this machine has no {' and no '.join(missing)}, so it is not part of a Slurm cluster; start the "
        "command on a login node, or choose hydra/launcher=submitit_local",
    )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def _check_folder(field: str, value: str) -> None:
    require(value.strip() != "", f"{field}={value}: is empty; give a folder, or omit {field}=")
    folder = Path(value)
    try:
        remember(folder)
        files.make_folder(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        discard(folder, [])
        raise UserError(f"{field}={folder}: the folder cannot be created or written to: {error.strerror}") from error
