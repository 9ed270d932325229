"""Plugins for Hydra: the sweepers and launchers that conf/hydra/ names.

Hydra takes plugins from the namespace `hydra_plugins` only, and imports every module in it at every start, so nothing
heavy is imported here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from bigramlm.sweeps.workers import Workers


def _with_cached_loader(context: HydraContext) -> HydraContext:
    from bigramlm.sweeps.compose import CachedConfigLoader

    return HydraContext(config_loader=CachedConfigLoader(context.config_loader), callbacks=context.callbacks)


def _require_whole(field: str, value: Any, *, least: int = 1, or_null: bool = False) -> None:
    from bigramlm.errors import require

    ok = (isinstance(value, int) and value >= least) or (value is None and or_null)
    null = ", or null" if or_null else ""
    require(ok, f"hydra.sweeper.{field}={value}: must be a whole number, {least} or more{null}")


def _plain(options: Any) -> Any:
    return {} if options is None else OmegaConf.to_container(options) if OmegaConf.is_config(options) else options


class GridSweeper(BasicSweeper):
    """Every combination of what is swept, as Hydra's own sweeper makes them; but what is done is not done again."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        super().setup(hydra_context=_with_cached_loader(hydra_context), task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> None:
        from bigramlm.cli.common import exit_codes
        from bigramlm.config.overrides import Overrides
        from bigramlm.errors import require
        from bigramlm.sweeps.executor import open_executor

        assert self.config is not None
        assert self.hydra_context is not None
        assert self.launcher is not None
        with exit_codes(), open_executor(self.config, self.hydra_context, self.launcher) as launch:
            _require_whole("max_batch_size", self.max_batch_size, or_null=True)
            typed = Overrides([*self._parse_config(), *arguments])
            overrides = typed.parsed(self.hydra_context.config_loader)
            swept = [override for override in overrides if override.is_sweep_override()]
            for override in swept:
                require(
                    override.is_discrete_sweep(),
                    f"{override.input_line}: is a space to search, and no list; hydra/sweeper=optuna searches it",
                )
            launch.sweeps([override.get_key_element() for override in swept])
            launch.plan(self.split_arguments(overrides, None)[0])
            launch.run(launch.jobs, self.max_batch_size)


class OptunaSweeper(Sweeper):
    """Trials that Optuna chooses from a space, each a job."""

    def __init__(
        self,
        n_trials: int,
        n_jobs: int | None,
        sampler: str,
        sampler_options: dict[str, Any] | None,
        pruner: str,
        pruner_options: dict[str, Any] | None,
        seed: int,
        params: dict[str, str] | None,
    ) -> None:
        self.n_trials = n_trials
        self.n_jobs = n_jobs
        self.options: dict[str, Any] = {
            "sampler": sampler,
            "sampler_options": _plain(sampler_options),
            "pruner": pruner,
            "pruner_options": _plain(pruner_options),
            "seed": seed,
        }
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.hydra_context = _with_cached_loader(hydra_context)
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self.hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        from bigramlm.cli.common import exit_codes
        from bigramlm.config.overrides import Overrides
        from bigramlm.errors import require
        from bigramlm.sweeps.executor import open_executor
        from bigramlm.sweeps.search import Search, space_of
        from bigramlm.sweeps.trials import search

        assert self.config is not None
        assert self.hydra_context is not None
        assert self.launcher is not None
        with exit_codes(), open_executor(self.config, self.hydra_context, self.launcher) as launch:
            _require_whole("n_trials", self.n_trials)
            _require_whole("n_jobs", self.n_jobs, or_null=True)
            _require_whole("seed", self.options["seed"], least=0)
            for name in ("sampler_options", "pruner_options"):
                require(
                    isinstance(self.options[name], dict),
                    f"hydra.sweeper.{name}={self.options[name]}: must be {{NAME: VALUE}}",
                )
            given = [*(f"{name}={value}" for name, value in self.params.items()), *arguments]
            typed = Overrides(given).without("sweep")
            overrides = typed.parsed(self.hydra_context.config_loader)
            fixed = Overrides(w for w, o in zip(typed.words, overrides, strict=True) if not o.is_sweep_override())
            space = space_of(overrides)
            launch.sweeps(list(space), log_names=[name for name, part in space.items() if getattr(part, "log", False)])
            at_once = self.n_jobs or int(getattr(self.launcher, "at_once", 1))
            study = Search(launch.sweep.folder, space, fixed, at_once=at_once, **self.options)
            search(launch, study, fixed, n_trials=self.n_trials, at_once=at_once)


class _Launcher(Launcher):
    """The setup that launchers share."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.hydra_context = hydra_context
        self.task_function = task_function


class JoblibLauncher(_Launcher):
    """Several jobs at a time on this machine, in processes of joblib's."""

    def __init__(self, n_jobs: int = -1) -> None:
        self.n_jobs = n_jobs
        self._workers: Workers | None = None

    @property
    def workers(self) -> Workers:
        """The processes, kept from one launch to the next: they take seconds to start."""
        from bigramlm.sweeps.workers import Workers

        if self._workers is None:
            self._workers = Workers(self.n_jobs, self.config, self.hydra_context, self.task_function)
        return self._workers

    @property
    def at_once(self) -> int:
        """The number of jobs that run at a time."""
        return self.workers.n

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from bigramlm.config.overrides import Overrides

        subdirs = [str(Overrides(line).get("hydra.sweep.subdir")) for line in job_overrides]
        numbers = [int(name) if name.isdecimal() else initial_job_idx + i for i, name in enumerate(subdirs)]
        return self.workers.run(job_overrides, numbers)

    def check(self) -> None:
        """UserError where it cannot launch, before anything is launched."""
        from bigramlm.errors import require

        ok = isinstance(self.n_jobs, int) and (self.n_jobs >= 1 or self.n_jobs == -1)
        require(ok, f"hydra.launcher.n_jobs={self.n_jobs}: must be a whole number, 1 or more, or -1")

    def close(self) -> None:
        """End the processes."""
        if self._workers is not None:
            self._workers.close()


with contextlib.suppress(ImportError):
    from hydra_plugins.hydra_submitit_launcher import submitit_launcher as _submitit

    def _each_for_itself() -> contextlib.AbstractContextManager[Any]:
        # submitit raises at the first job that was killed, and would leave the others unwatched.
        from unittest import mock

        import submitit

        from bigramlm.sweeps.executor import failed

        original = submitit.Job.results

        def results(job: Any) -> list[JobReturn]:
            try:
                return original(job)
            except Exception as error:
                return [failed(error)]

        return mock.patch.object(submitit.Job, "results", results)

    class LocalLauncher(_submitit.LocalLauncher):
        """Every job at once, in a process of its own on this machine, by submitit."""

        def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
            with _each_for_itself():
                return super().launch(job_overrides, initial_job_idx)  # type: ignore[no-any-return]

    class SlurmLauncher(_submitit.SlurmLauncher):
        """Every job as one of an array of Slurm's, by submitit."""

        def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
            with _each_for_itself():
                return super().launch(job_overrides, initial_job_idx)  # type: ignore[no-any-return]
