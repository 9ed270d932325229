"""Lookup of runs, sweeps, checkpoints and pretrained weights on the disk."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from bigramlm.errors import UserError, require
from bigramlm.model.huggingface import Pretrained, is_pretrained, open_pretrained
from bigramlm.runs.folder import read_summary
from bigramlm.runs.summary import RunSummary
from bigramlm.utils import hub, paths
from bigramlm.utils.console import relative

log = logging.getLogger(__name__)

PLAN = "sweep.json"
"""The file that identifies the folder of a sweep."""


def read_run(folder: Path) -> RunSummary | None:
    """Read the run in a folder, None if there is none."""
    run = RunSummary.read(folder)
    return run if run.has_summary else None


def folders(below: Path) -> Iterator[Path]:
    """Yield the run folders in a folder, including the folder itself."""
    for folder, inner, files in os.walk(below):
        if "summary.json" in files:
            inner.clear()
            yield Path(folder)


def outputs() -> Path:
    """Return the folder that contains all runs and sweeps."""
    return paths.home() / "outputs"


def find(where: str, *, containing: str = "summary.json") -> Path:
    """Find the folder of a run or a checkpoint.

    where: `latest`, or a path relative to the working folder, outputs/, outputs/runs/ or outputs/sweeps/, as
    `runs.py list` shows it. `latest` is the most recently started run whose folder contains `containing`. Raises
    UserError if there is no such folder.
    """
    if where == "latest":
        return _latest(containing)
    folder = _require_existing(where)
    if folder.is_file() and folder.name in ("last", "best"):  # RUN/checkpoints/best: contains a checkpoint's name
        name = folder.read_text("utf-8", "replace").strip()
        require(paths.step_of(name) is not None, f"{where}: does not contain the name of a checkpoint: {name[:60]!r}")
        return folder.with_name(name)
    return folder


def find_sweep(where: str) -> Path:
    """Find the folder of a sweep.

    where: `latest`, or a path as for `find`. Raises UserError if there is no such sweep.
    """
    if where == "latest":
        found = [path for path in (outputs() / "sweeps").glob("*") if (path / PLAN).exists()]
        require(
            bool(found), f"{outputs() / 'sweeps'}: there is no sweep yet; start one with python scripts/train.py -m"
        )
        return max(found, key=lambda path: (path / PLAN).stat().st_mtime_ns)  # the most recently used one
    folder = _require_existing(where)
    is_sweep = (folder / PLAN).exists() or any(folder.glob("*/summary.json"))
    require(folder.is_dir() and is_sweep, f"{where}: is not the folder of a sweep, which contains a {PLAN}")
    return folder


def find_pretrained(where: str) -> Pretrained | None:
    """Find the pretrained GPT-2 weights that `init_from=` names.

    where: a folder in Hugging Face's layout, or a name on its hub. Returns None if it is neither. Raises UserError if
    the weights cannot be read or downloaded, or belong to another model.
    """
    if where == "latest":
        return None
    folder = _lookup(where)
    if folder is not None:
        return open_pretrained(str(folder)) if is_pretrained(folder) else None
    on_hub = hub.is_name(where) and ("/" in where or where in _HUB_NAMES)
    return open_pretrained(where) if on_hub else None


# Names of models on the hub without the prefix of an owner.
_HUB_NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")


def _require_existing(where: str) -> Path:
    folder = _lookup(where)
    if folder is None:
        raise UserError(f"{where or repr('')}: there is no such folder; python scripts/runs.py list shows all runs")
    return folder


def _lookup(where: str) -> Path | None:
    candidates = [Path(where).expanduser().absolute(), *(parent / where for parent in search_folders())]
    return next((candidate for candidate in candidates if where and candidate.exists()), None)


def _latest(containing: str) -> Path:
    found = sorted((str((read_summary(run) or {}).get("started", "")), run) for run in folders(outputs()))
    for _, run in reversed(found):
        if (run / containing).exists():
            return run
        log.warning("skipped: the newer run %s has no %s", relative(run), containing)
    raise UserError(f"{outputs()}: there is no run with a {containing} yet; start one with python scripts/train.py")


def search_folders() -> tuple[Path, ...]:
    """Return the folders in which `find` looks up a relative path."""
    return outputs() / "runs", outputs() / "sweeps", outputs()


def saved_config(folder: Path) -> Path:
    """Return the path of the config.yaml of a run or a checkpoint.

    Raises UserError if there is none.
    """
    path = folder / "config.yaml"
    weights = next((file.name for file in folder.glob("*") if file.suffix in (".safetensors", ".bin")), None)
    require(
        path.is_file() or weights is None,
        f"{folder}: contains {weights} and no config.json, which describes the model; copy config.json from the source "
        "of the weights",
    )
    require(path.is_file(), f"{folder}: is neither a run nor a checkpoint: there is no config.yaml")
    return path
