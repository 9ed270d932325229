"""A hyperparameter search with Optuna: `hydra/sweeper=optuna`.

The study is stored in the sweep folder, as the SQLite database study.db. Each trial of the study is a job of the sweep.
A job opens the study in its own process, reports its evaluations, and is pruned if the study's pruner decides so.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sqlite3
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Transformer

from bigramlm.config.overrides import Overrides
from bigramlm.errors import UserError, require, require_choice
from bigramlm.report.results import compares_tokenizers
from bigramlm.sweeps.plan import Sweep
from bigramlm.utils.console import relative

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

log = logging.getLogger(__name__)

STUDY = "study.db"

# The end of a journal of SQLite that names a file.
_JOURNAL_MARK = bytes.fromhex("d9d505f920a163d7")

# The available samplers and pruners, each with its class in Optuna.
SAMPLERS = {"tpe": "TPESampler", "random": "RandomSampler", "cmaes": "CmaEsSampler"}
PRUNERS = {
    "median": "MedianPruner",
    "percentile": "PercentilePruner",
    "successive_halving": "SuccessiveHalvingPruner",
    "hyperband": "HyperbandPruner",
    "none": "NopPruner",
}

Space = dict[str, "BaseDistribution"]


def space_of(overrides: Sequence[Override]) -> Space:
    """Return the search space in the sweep overrides, as one distribution per field.

    The syntax is that of Hydra's Optuna plugin: `choice(a, b)` or `a,b`; `range(1, 9, 2)`, whose end is excluded;
    `interval(0, 1)`; `int(...)` for whole numbers; `tag(log, ...)` for a logarithmic scale. Overrides that assign a
    single value are skipped. Raises UserError for an invalid space.
    """
    found: Space = {}
    for override in overrides:
        if override.is_sweep_override():
            try:
                found[override.get_key_element()] = _distribution(override)
            except ValueError as error:
                raise UserError(f"{override.input_line} is not a valid search space: {error}") from None
    return found


def _distribution(override: Override) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if isinstance(value, IntervalSweep):
        scale = "log" in value.tags
        assert value.start is not None
        assert value.end is not None
        if isinstance(value.start, int) and isinstance(value.end, int):
            return IntDistribution(value.start, value.end, log=scale)
        return FloatDistribution(value.start, value.end, log=scale)
    if isinstance(value, RangeSweep) and not value.shuffle:
        numbers = list(value.range())
        require(bool(numbers), f"{override.input_line}: the range contains no values")
        scale, step = "log" in value.tags, value.step
        if all(isinstance(number, int) for number in numbers) and isinstance(step, int) and step > 0:
            return IntDistribution(int(numbers[0]), int(numbers[-1]), step=1 if scale else step, log=scale)
        return CategoricalDistribution(numbers)
    choices: list[Any] = list(override.sweep_iterator(transformer=Transformer.encode))
    return CategoricalDistribution(choices)


class Search:
    """An Optuna study, which suggests the values of trials and receives their results."""

    def __init__(
        self,
        folder: Path,
        space: Space,
        fixed: Overrides,
        *,
        sampler: str,
        sampler_options: dict[str, Any],
        pruner: str,
        pruner_options: dict[str, Any],
        seed: int,
        at_once: int,
    ) -> None:
        """Open the study in the sweep folder, or create a new study.

        fixed: the overrides that all trials share. at_once: the number of concurrent trials. Raises UserError if an
        option is invalid, or if the study in the folder belongs to a different search.
        """
        import optuna

        example = "'optim.lr=tag(log, interval(1e-4, 1e-1))'"
        require(bool(space), f"hydra/sweeper=optuna: no field has a search space; add one, such as {example}")
        require_choice("hydra.sweeper.sampler", sampler, tuple(SAMPLERS))
        require_choice("hydra.sweeper.pruner", pruner, tuple(PRUNERS))
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space = space
        require(
            "seed" not in space,
            "seed cannot be searched, because the best seed is a matter of chance; search the other fields, then "
            "sweep the best values over seeds",
        )
        require(
            (folder / STUDY).exists() or not any(folder.glob("*/summary.json")),
            f"{relative(folder)} contains a sweep that is not a search; choose a different folder for the search",
        )
        self.study = _open(folder, pruner=_make_pruner(pruner, pruner_options))
        dimensions = [f"{name}={part}" for name, part in sorted(space.items())]
        about: dict[str, Any] = {"space": dimensions, "fields": sorted(fixed.words), "pruner": [pruner, pruner_options]}
        for name, new in about.items():
            old = self.study.user_attrs.get(name)
            if old is None:
                self.study.set_user_attr(name, new)
            elif name != "pruner" and json.dumps(old, sort_keys=True) != json.dumps(new, sort_keys=True):
                removed, added = ([part for part in a if part not in b] for a, b in ((old, new), (new, old)))
                label = {"space": "search space", "fields": "set of fixed fields"}[name]
                raise UserError(
                    f"{relative(folder)} contains a search with a different {label} (only in that search: "
                    f"{_brief(removed)}; only in this command: {_brief(added)}); start the new search in a different "
                    "folder"
                )
        options = {"seed": seed, **sampler_options}
        if sampler == "tpe" and at_once > 1:
            options.setdefault("constant_liar", True)  # new trials avoid the values of running trials
        self._sampler = (sampler, options)
        _make_sampler(*self._sampler)  # raises UserError for invalid options

    def unfinished(self) -> dict[int, Trial]:
        """Return the unfinished trials by job number.

        Unfinished trials that have no job, or no values of the search space, are marked as failed.
        """
        import optuna

        found = {}
        for frozen in self.study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING]):
            number = frozen.user_attrs.get("job")
            if type(number) is int and self._is_in_space(frozen):
                found[number] = optuna.trial.Trial(self.study, frozen._trial_id)
            else:
                self.study.tell(frozen.number, state=optuna.trial.TrialState.FAIL)
        return found

    def _is_in_space(self, trial: FrozenTrial) -> bool:
        # The study may come from someone else, and its values become overrides.
        return trial.distributions == self.space and all(
            part._contains(part.to_internal_repr(trial.params[name])) for name, part in self.space.items()
        )

    def jobs(self) -> list[int]:
        """Return the job numbers of all trials that have a job."""
        numbers = (trial.user_attrs.get("job") for trial in self.study.get_trials(deepcopy=False))
        return [number for number in numbers if type(number) is int]

    def count(self) -> int:
        """Return the number of trials that have a job."""
        return len(self.jobs())

    def ask(self) -> Trial:
        """Create a trial."""
        # Each trial has its own seed, so that a resumed search samples the same values as an uninterrupted search. A
        # trial that got no job, because the command was killed, does not count: the next one replaces it.
        name, options = self._sampler
        self.study.sampler = _make_sampler(name, {**options, "seed": options["seed"] + self.count()})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna warns of experimental features
            return self.study.ask(self.space)

    def overrides(self, trial: Trial) -> Overrides:
        """Return the values of a trial as overrides."""
        return Overrides(f"{name}={value}" for name, value in trial.params.items())

    def tell(self, trial: Trial, status: str, val_loss: float | None) -> None:
        """Report the result of a trial to the study.

        status: the status of the trial's job. A completed job without a finite loss counts as failed. If the job was
        interrupted, nothing is reported, so that the trial can be resumed.
        """
        from optuna.trial import TrialState

        if status == "completed" and val_loss is not None and math.isfinite(val_loss):
            self.study.tell(trial, val_loss)
        elif status in ("completed", "pruned", "failed"):
            self.study.tell(trial, state=TrialState.PRUNED if status == "pruned" else TrialState.FAIL)


def pruner_of(folder: Path) -> Callable[[int, Mapping[str, float]], bool] | None:
    """Return a function that decides whether to prune the job in this folder.

    The arguments of the function are the step and the metrics of an evaluation. Returns None if the job is not part of
    a search, or if the search does not prune.
    """
    path = folder.parent / STUDY
    if not path.exists():
        return None
    try:
        return _pruner_of(folder)
    except Exception as error:
        log.warning(
            "cannot access the Optuna study (%s: %s); the trial runs without pruning", type(error).__name__, error
        )
        return None


def _pruner_of(folder: Path) -> Callable[[int, Mapping[str, float]], bool] | None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = _open(folder.parent)
    name, options = study.user_attrs["pruner"]
    number = int(folder.name)
    frozen = next((t for t in study.get_trials(deepcopy=False) if t.user_attrs.get("job") == number), None)
    if frozen is None or name == "none":
        return None
    study.pruner = _make_pruner(name, options)
    trial = optuna.trial.Trial(study, frozen._trial_id)
    reported = set(frozen.intermediate_values)

    metric = "val/bpc" if compares_tokenizers(Sweep(folder.parent).fields) else "val/loss"

    def should_prune(step: int, metrics: Mapping[str, float]) -> bool:
        if step == 0:  # before the first update, the losses say nothing about the trials
            return False
        if metric not in metrics:  # the bits per character of a lossy tokenizer cannot be compared
            return False
        try:
            if step not in reported:  # a resumed job repeats the evaluation at its checkpoint
                trial.report(metrics[metric], step)
            return trial.should_prune()
        except Exception as error:  # e.g. a database that stays locked, which must not end the run
            log.warning(
                "step %d: cannot access the Optuna study (%s: %s); the trial continues without pruning",
                step,
                type(error).__name__,
                error,
            )
            return False

    return should_prune


def _open(folder: Path, pruner: BasePruner | None = None) -> Study:
    import optuna
    from sqlalchemy.engine import URL

    _check_database(folder / STUDY)
    # Concurrent jobs wait for each other's writes.
    url = URL.create("sqlite", database=str(folder.absolute() / STUDY)).render_as_string()
    try:
        storage = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})
        study = optuna.create_study(
            study_name="sweep", storage=storage, pruner=pruner, direction="minimize", load_if_exists=True
        )
        study.get_trials(deepcopy=False)  # reads all
    except Exception as error:  # SQLite, SQLAlchemy and Optuna raise many types
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{relative(folder / STUDY)} cannot be used as the Optuna study of the search ({reason}); restore the "
            "file, or start a new search in a different folder"
        ) from error
    return study


def _check_database(path: Path) -> None:
    """Raise UserError if SQLite would run or delete something when it opens a study.

    A view may compute without end, and a trigger acts when a trial is saved. The journal of an interrupted transaction
    over several databases ends with the path of a file, which SQLite deletes afterwards. Optuna creates neither.
    """
    reason = None
    try:
        with path.with_name(f"{path.name}-journal").open("rb") as file:
            file.seek(-len(_JOURNAL_MARK), os.SEEK_END)
            reason = "its journal names another file" if file.read() == _JOURNAL_MARK else None
    except OSError:  # there is no journal, or it is empty
        pass
    if reason is None and path.exists():
        with contextlib.closing(sqlite3.connect(path, timeout=60)) as database, contextlib.suppress(sqlite3.Error):
            found = database.execute("SELECT name FROM sqlite_master WHERE type IN ('view', 'trigger') LIMIT 1")
            reason = next((f"it contains the view or trigger {name}" for (name,) in found), None)
    require(
        reason is None,
        f"{relative(path)} is not the Optuna study of a search: {reason}; start a new search in a different folder",
    )


def _make_sampler(name: str, options: dict[str, Any]) -> BaseSampler:
    import optuna

    kind = getattr(optuna.samplers, SAMPLERS[name])
    if name == "cmaes":
        from bigramlm.sweeps.cmaes import SafeCmaEsSampler as kind
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _make(kind, "sampler", options)  # type: ignore[no-any-return]


def _make_pruner(name: str, options: dict[str, Any]) -> BasePruner:
    import optuna

    defaults = {"percentile": {"percentile": 33.0}}  # docs/log.md compares others
    kind = getattr(optuna.pruners, PRUNERS[name])
    return _make(kind, "pruner", {**defaults.get(name, {}), **options})  # type: ignore[no-any-return]


def _make(kind: Callable[..., Any], what: str, options: dict[str, Any]) -> Any:
    try:
        return kind(**options)
    except (TypeError, ValueError) as error:
        raise UserError(f"hydra.sweeper.{what}_options={options}: {error}") from None


def _brief(value: list[str]) -> str:
    text = ", ".join(value) or "none"
    return text if len(text) <= 120 else f"{text[:119]}…"
