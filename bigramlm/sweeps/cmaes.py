"""Optuna's CMA-ES sampler, without running code from a study.

Optuna stores the state of this sampler in the study as a pickle, which could contain calls of any function.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

from optuna.samplers import CmaEsSampler
from optuna.trial import FrozenTrial

from bigramlm.errors import UserError

# What the state consists of: an optimizer of the package cmaes, and arrays and numbers of NumPy.
_CLASSES = {"cmaes": {"CMA", "SepCMA", "CMAwM"}, "numpy": {"_frombuffer", "_reconstruct", "dtype", "ndarray", "scalar"}}
_MODULES = {
    *("cmaes._cma", "cmaes._sepcma", "cmaes._cmawm", "numpy"),
    *(f"numpy.{core}.{module}" for core in ("core", "_core") for module in ("multiarray", "numeric")),
}


class SafeCmaEsSampler(CmaEsSampler):
    """A CMA-ES sampler that restores nothing but its own state."""

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> Any:
        for trial in reversed(completed_trials):
            prefix = self._attr_key_optimizer
            stored = {name: value for name, value in trial.system_attrs.items() if name.startswith(prefix)}
            if stored:
                return _load(self._concat_optimizer_attrs(stored))
        return None


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module in _MODULES and name in _CLASSES[module.partition(".")[0]]:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no part of it")


def _load(stored: str) -> Any:
    try:
        state = _Unpickler(io.BytesIO(bytes.fromhex(stored))).load()
        if type(state).__name__ not in _CLASSES["cmaes"]:
            raise ValueError(f"it is of the type {type(state).__name__}")
        return state
    except Exception as error:  # damaged bytes raise many types
        raise UserError(
            f"study.db does not contain the state of a CMA-ES sampler where Optuna stores it ({error}), so that the "
            "search cannot be continued; start a new search in a different folder"
        ) from None
