"""Optuna's CMA-ES sampler, without running code from a study.

Optuna stores the state of this sampler in the study as a pickle, which could contain calls of any function.
"""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
from optuna import Study
from optuna._transform import _SearchSpaceTransform
from optuna.distributions import BaseDistribution
from optuna.samplers import CmaEsSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from bigramlm.errors import UserError

# What the state consists of: an optimizer of the package cmaes, and arrays and numbers of NumPy.
_CLASSES = {"cmaes": {"CMA", "SepCMA", "CMAwM"}, "numpy": {"_frombuffer", "_reconstruct", "dtype", "ndarray", "scalar"}}
_MODULES = {
    *("cmaes._cma", "cmaes._sepcma", "cmaes._cmawm", "numpy"),
    *(f"numpy.{core}.{module}" for core in ("core", "_core") for module in ("multiarray", "numeric")),
}


# The largest population that a stored state may have.
_MAX_POPULATION = 100_000


class SafeCmaEsSampler(CmaEsSampler):
    """A CMA-ES sampler that restores nothing but its own state."""

    # A function that makes a state without trials for the current space, like a given state.
    _fresh: Callable[[Any], Any]

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Sample values as the base class does.

        Raises UserError if the state in the study is not one of a sampler of this space.
        """
        self._fresh = lambda state: self._fresh_state(state, search_space, study.direction)
        has_state = any(self._stored(trial) for trial in self._get_trials(study))
        try:
            return super().sample_relative(study, trial, search_space)
        except UserError:
            raise
        except Exception as error:  # damaged numbers raise many types
            if not has_state:
                raise
            raise _refusal(error) from error

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> Any:
        stored = next(filter(None, map(self._stored, reversed(completed_trials))), None)
        if stored is None:
            return None
        try:
            state = _load(self._concat_optimizer_attrs(stored))
            _compare(state, self._fresh(state))
            return state
        except Exception as error:
            raise _refusal(error) from None

    def _stored(self, trial: FrozenTrial) -> dict[str, Any]:
        prefix = self._attr_key_optimizer
        return {name: value for name, value in trial.system_attrs.items() if name.startswith(prefix)}

    def _fresh_state(self, state: Any, space: dict[str, BaseDistribution], direction: StudyDirection) -> Any:
        # The options of an earlier command may have been others, so those of the state count.
        other, kind = copy.copy(self), type(state).__name__
        other._popsize, other._lr_adapt = state.population_size, getattr(state, "_lr_adapt", False) is True
        if type(other._popsize) is not int or not 0 < other._popsize <= _MAX_POPULATION:
            raise ValueError(f"its population has the size {other._popsize!r:.20}")
        other._use_separable_cma, other._with_margin = kind == "SepCMA", kind == "CMAwM"
        other._cma_rng = copy.deepcopy(self._cma_rng)  # whose next number is that of the trial
        transform = _SearchSpaceTransform(space, transform_step=not self._with_margin, transform_0_1=True)
        return other._init_optimizer(transform, direction)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module in _MODULES and name in _CLASSES[module.partition(".")[0]]:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no part of it")


def _load(stored: str) -> Any:
    state = _Unpickler(io.BytesIO(bytes.fromhex(stored))).load()
    if type(state).__name__ not in _CLASSES["cmaes"]:
        raise ValueError(f"it is of the type {type(state).__name__}")
    return state


def _compare(state: Any, fresh: Any) -> None:
    # Raise ValueError if a state has other attributes than a fresh one, or attributes of other types, shapes or sizes.
    # Only numbers in arrays, other floats, and the number of the generation may differ.
    if type(state) is not type(fresh) or vars(state).keys() != vars(fresh).keys():
        raise ValueError("it has other attributes")
    for name, expected in vars(fresh).items():
        value = vars(state)[name]
        if isinstance(expected, np.ndarray):
            is_same = isinstance(value, np.ndarray) and (value.shape, value.dtype) == (expected.shape, expected.dtype)
            # The history of the losses contains any values until it is full.
            is_same = is_same and (name == "_funhist_values" or bool(np.isfinite(value).all()))
        elif isinstance(expected, float):
            is_same = isinstance(value, float) and math.isfinite(value)
        elif expected is None:  # computed from the other attributes when it is needed
            is_same = value is None
        elif name == "_g":
            is_same = type(value) is int and value >= 0
        elif hasattr(expected, "__dict__"):
            _compare(value, expected)
            continue
        else:
            is_same = type(value) is type(expected) and (isinstance(value, np.random.RandomState) or value == expected)
        if not is_same:
            raise ValueError(f"its {name} is none")


def _refusal(error: Exception) -> UserError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return UserError(
        f"study.db does not contain the state of a CMA-ES sampler where Optuna stores it ({reason}), so that the "
        "search cannot be continued; start a new search in a different folder"
    )
