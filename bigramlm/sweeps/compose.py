"""Fast composition of job configs."""

from __future__ import annotations

import copy
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig

from bigramlm.config.overrides import Overrides, sets_a_field


class CachedConfigLoader(ConfigLoaderImpl):
    """A config loader that composes once for all jobs with the same group choices.

    Hydra's composition is slow. Jobs with the same group choices differ only in the values of fields, so these values
    are set on a copy of the config that was composed once. A test checks that the result equals the config that Hydra
    composes.
    """

    def __init__(self, loader: ConfigLoader) -> None:
        vars(self).update(vars(loader))
        self._bases: dict[tuple[str, ...], DictConfig] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_bases": {}}  # a job in a different process composes its own configs

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        parsed = Overrides(sweep_overrides).parsed(self)
        single = [override for override in parsed if sets_a_field(override)]
        groups = tuple(str(override.input_line) for override in parsed if override not in single)
        if groups not in self._bases:
            self._bases[groups] = super().load_sweep_config(master_config, list(groups))
        composed = copy.deepcopy(self._bases[groups])
        self._apply_overrides_to_config(single, composed)
        hydra = composed.hydra
        hydra.overrides.hydra = list(master_config.hydra.overrides.hydra)
        hydra.overrides.task = []
        for override in parsed:
            kind = hydra.overrides.hydra if override.is_hydra_override() else hydra.overrides.task
            kind.append(override.input_line)
        form = hydra.job.config.override_dirname
        hydra.job.override_dirname = get_overrides_dirname(
            [override for override in parsed if not override.is_hydra_override()],
            exclude_keys=form.exclude_keys,
            item_sep=form.item_sep,
            kv_sep=form.kv_sep,
        )
        return composed
