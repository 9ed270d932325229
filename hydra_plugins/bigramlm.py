"""Plugins for Hydra: the sweepers and launchers that conf/hydra/ refers to.

Hydra finds plugins only in the namespace `hydra_plugins`. Hydra imports all modules in this namespace at every start,
so this module imports no large packages at the top level.
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


def _require_integer(field: str, value: Any, *, minimum: int = 1, or_null: bool = False) -> None:
    from bigramlm.errors import require

    is_valid = (isinstance(value, int) and value >= minimum) or (value is None and or_null)
    null = "null or " if or_null else ""
    require(is_valid, f"hydra.sweeper.{field}={value}: must be {null}a whole number of at least {minimum}")


def _plain(options: Any) -> Any:
    return {} if options is None else OmegaConf.to_container(options) if OmegaConf.is_config(options) else options


class GridSweeper(BasicSweeper):
    """A sweeper that runs every combination of the swept values.

    The combinations are the same as in Hydra's basic sweeper. Unlike there, finished jobs do not run again.
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        super().setup(hydra_context=_with_cached_loader(hydra_context), task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> None:
        from bigramlm.config.overrides import Overrides
        from bigramlm.engine.failures import errors_as_exits
        from bigramlm.errors import require
        from bigramlm.sweeps.executor import open_executor

        assert self.config is not None
        assert self.hydra_context is not None
        assert self.launcher is not None
        with errors_as_exits(), open_executor(self.config, self.hydra_context, self.launcher) as executor:
            _require_integer("max_batch_size", self.max_batch_size, or_null=True)
            typed = Overrides([*self._parse_config(), *arguments])
            overrides = typed.parsed(self.hydra_context.config_loader)
            swept = [override for override in overrides if override.is_sweep_override()]
            for override in swept:
                require(
                    override.is_discrete_sweep(),
                    f"{override.input_line} is a search space, not a list; to search it, add hydra/sweeper=optuna",
                )
                require(
                    next(override.sweep_iterator(), None) is not None,
                    f"{override.input_line}: gives no value, so there is nothing to run; correct the range or pattern",
                )
            executor.add_swept_fields([override.get_key_element() for override in swept])
            executor.plan(self.split_arguments(overrides, None)[0])
            executor.run(executor.jobs, self.max_batch_size)


class OptunaSweeper(Sweeper):
    """A sweeper whose jobs are trials that Optuna chooses from a search space."""

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
        from bigramlm.config.overrides import Overrides
        from bigramlm.engine.failures import errors_as_exits
        from bigramlm.errors import require
        from bigramlm.sweeps.executor import open_executor
        from bigramlm.sweeps.search import Search, space_of
        from bigramlm.sweeps.trials import search

        assert self.config is not None
        assert self.hydra_context is not None
        assert self.launcher is not None
        with errors_as_exits(), open_executor(self.config, self.hydra_context, self.launcher) as executor:
            _require_integer("n_trials", self.n_trials)
            _require_integer("n_jobs", self.n_jobs, or_null=True)
            _require_integer("seed", self.options["seed"], minimum=0)
            for name in ("sampler_options", "pruner_options"):
                require(
                    isinstance(self.options[name], dict),
                    f"hydra.sweeper.{name}={self.options[name]}: must be a dictionary, {{NAME: VALUE}}",
                )
            words = [*(f"{name}={value}" for name, value in self.params.items()), *arguments]
            typed = Overrides(words).without("sweep")
            overrides = typed.parsed(self.hydra_context.config_loader)
            fixed = Overrides(w for w, o in zip(typed.words, overrides, strict=True) if not o.is_sweep_override())
            space = space_of(overrides)
            log_names = [name for name, part in space.items() if getattr(part, "log", False)]
            executor.add_swept_fields(list(space), log_names=log_names)
            at_once = self.n_jobs or int(getattr(self.launcher, "at_once", 1))
            study = Search(executor.sweep.folder, space, fixed, at_once=at_once, **self.options)
            search(executor, study, fixed, n_trials=self.n_trials, at_once=at_once)


class _Launcher(Launcher):
    """A base class of launchers, with the setup method that they share."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.hydra_context = hydra_context
        self.task_function = task_function


class JoblibLauncher(_Launcher):
    """A launcher that runs jobs in parallel on this machine, in worker processes."""

    def __init__(self, n_jobs: int = -1) -> None:
        self.n_jobs = n_jobs
        self._workers: Workers | None = None

    @property
    def workers(self) -> Workers:
        """The worker processes, which all launches reuse because they start slowly."""
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
        """Check n_jobs before the first launch.

        Raises UserError if n_jobs is invalid.
        """
        from bigramlm.errors import require

        is_valid = isinstance(self.n_jobs, int) and (self.n_jobs >= 1 or self.n_jobs == -1)
        require(is_valid, f"hydra.launcher.n_jobs={self.n_jobs}: must be a whole number of at least 1, or -1")

    def close(self) -> None:
        """Shut down the worker processes."""
        if self._workers is not None:
            self._workers.close()


with contextlib.suppress(ImportError):
    from hydra_plugins.hydra_submitit_launcher import submitit_launcher as _submitit

    def _errors_as_results() -> contextlib.AbstractContextManager[Any]:
        # submitit raises an exception for the first killed job, and would not wait for the other jobs.
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
        """A launcher that runs all jobs at once on this machine, through submitit."""

        def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
            with _errors_as_results():
                return super().launch(job_overrides, initial_job_idx)  # type: ignore[no-any-return]

    class SlurmLauncher(_submitit.SlurmLauncher):
        """A launcher that runs all jobs as one Slurm job array, through submitit."""

        def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
            with _errors_as_results():
                return super().launch(job_overrides, initial_job_idx)  # type: ignore[no-any-return]
