"""Fast composition of job configs, and the command that a sweep was composed from."""

from __future__ import annotations

import copy
import shlex
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig

from bigramlm.config.overrides import Overrides, sets_a_field
from bigramlm.engine.resume import SAVED
from bigramlm.utils import paths


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


def continue_command(config: DictConfig, folder: Path) -> str:
    """Return the command that runs the unfinished jobs of a sweep, quoted for a shell.

    config: the composed config of the command that began or continued the sweep.
    """
    hydra = config.hydra
    words = Overrides(map(str, [*hydra.overrides.hydra, *hydra.overrides.task])).without_choice(SAVED)
    presets = [str(source.path) for source in hydra.runtime.config_sources if source.provider == "command-line"]
    flags = [word for path in presets for word in ("--config-dir", path)]
    typed_words = words.without("hydra.mode", "hydra.sweep.dir", "sweep").as_typed()
    return shlex.join([*paths.program("train").split(), "-m", *flags, *typed_words, f"sweep={folder}"])
