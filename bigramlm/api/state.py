"""The state of the interpreter that a run changes, and its restoration."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.version import VersionBase
from omegaconf.basecontainer import BaseContainer
from tqdm import TqdmWarning

from bigramlm.config.run_config import register_schemas
from bigramlm.engine.failures import normalise_full_error
from bigramlm.errors import UserError
from bigramlm.utils.console import muted, open_streams

# Held while a run is in progress: Hydra, logging and PyTorch have one state per process.
_lock = threading.Lock()
_owner = {"pid": os.getpid()}


@contextlib.contextmanager
def exclusive(name: str) -> Iterator[None]:
    """Run the block as the only call in this process, and restore its state.

    name: the name of the public function, for messages. Raises UserError if another call is in progress in this
    process, or if the process was forked during a call.
    """
    if not _lock.acquire(blocking=False):
        if _owner["pid"] != os.getpid():
            raise UserError(
                f"bigramlm.{name}(): this process was forked while process {_owner['pid']} was training, and PyTorch's "
                "threads do not survive a fork; start the process with multiprocessing's spawn method"
            )
        raise UserError(
            f"bigramlm.{name}(): another call is in progress in this process; wait until it has returned, use "
            "bigramlm.sweep() for several runs, or use another process"
        )
    try:
        _owner["pid"] = os.getpid()
        with open_streams(), preserved(), muted():
            normalise_full_error()
            yield
    finally:
        _lock.release()


@contextlib.contextmanager
def preserved() -> Iterator[None]:
    """Restore Hydra, logging, the environment and warnings after the block.

    PyTorch is restored by `torch_state`, which imports it.
    """
    with _hydra(), _logging(), warnings.catch_warnings(), _environment():
        warnings.simplefilter("ignore", TqdmWarning)  # in a notebook without ipywidgets, a library would warn
        yield


@contextlib.contextmanager
def _hydra() -> Iterator[None]:
    # Neither Hydra nor OmegaConf offers a public copy of this state.
    Plugins.instance()  # registers presets when it is made for the first time, which must not be undone
    config, store, version_base = HydraConfig.instance(), ConfigStore.instance(), VersionBase.instance()
    hydra, cfg, version = GlobalHydra.instance().hydra, config.cfg, version_base.version_base
    repo, resolvers = _copied(store.repo), dict(BaseContainer._resolvers)
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = hydra
        config.cfg, version_base.version_base = cfg, version
        store.repo = repo
        register_schemas.cache_clear()
        BaseContainer._resolvers.clear()
        BaseContainer._resolvers.update(resolvers)


def _copied(tree: dict[str, Any]) -> dict[str, Any]:
    return {name: _copied(node) if isinstance(node, dict) else node for name, node in tree.items()}


@contextlib.contextmanager
def _logging() -> Iterator[None]:
    # Hydra configures logging with dictConfig, which closes all handlers that are listed in the module.
    root = logging.getLogger()
    handlers, filters, level = list(root.handlers), list(root.filters), root.level
    loggers = {
        logger: (logger.level, logger.propagate, logger.disabled, list(logger.handlers))
        for logger in logging.Logger.manager.loggerDict.values()
        if isinstance(logger, logging.Logger)
    }
    named, listed = dict(logging._handlers), list(logging._handlerList)  # type: ignore[attr-defined]
    logging._handlers.clear()  # type: ignore[attr-defined]
    logging._handlerList.clear()  # type: ignore[attr-defined]
    root.handlers = []
    try:
        yield
    finally:
        for handler in root.handlers:
            handler.close()
        root.handlers, root.filters = handlers, filters
        root.setLevel(level)
        for logger in logging.Logger.manager.loggerDict.values():
            if isinstance(logger, logging.Logger):
                values = loggers.get(logger, (logging.NOTSET, True, False, []))
                logger.level, logger.propagate, logger.disabled, logger.handlers = values
        logging.Logger.manager._clear_cache()  # type: ignore[attr-defined]
        logging._handlers.clear()  # type: ignore[attr-defined]
        logging._handlers.update(named)  # type: ignore[attr-defined]
        logging._handlerList[:] = listed  # type: ignore[attr-defined]


@contextlib.contextmanager
def torch_state() -> Iterator[None]:
    """Restore PyTorch's process-wide state after the block.

    This is the random states, threads, determinism, matmul precision and gradient mode.
    """
    import torch

    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    precision, is_training = torch.get_float32_matmul_precision(), torch.is_grad_enabled()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.set_float32_matmul_precision(precision)
        torch.set_grad_enabled(is_training)
        if mps is not None:
            torch.mps.set_rng_state(mps)


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        for name, value in before.items():
            if os.environ.get(name) != value:
                os.environ[name] = value
