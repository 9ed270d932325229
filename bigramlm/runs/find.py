"""Runs on the disk: finding them, listing them, telling two apart, what came of a sweep, and a page of any of them."""

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
"""The file that makes a folder a sweep's."""


def read_run(folder: Path) -> RunSummary | None:
    """Read the run in a folder, None if there is none."""
    run = RunSummary.read(folder)
    return run if run.has_summary else None


def folders(below: Path) -> Iterator[Path]:
    """Yield the folders of all runs below a folder, that one included."""
    for folder, inner, files in os.walk(below):
        if "summary.json" in files:
            inner.clear()
            yield Path(folder)


def outputs() -> Path:
    """Return the folder that runs are written to."""
    return paths.home() / "outputs"


def find(where: str, *, holding: str = "summary.json") -> Path:
    """Find the folder of a run or a checkpoint. UserError if there is none.

    where: `latest`, or a folder: from the working folder, or from outputs/, outputs/runs/ or outputs/sweeps/, as the
    list has it. `latest` is the run that was started last of those whose folder holds what is asked for.
    """
    if where == "latest":
        return _latest(holding)
    folder = _existing(where)
    if folder.is_file() and folder.name in ("last", "best"):  # RUN/checkpoints/best: holds a checkpoint's name
        name = folder.read_text("utf-8", "replace").strip()
        require(paths.step_of(name) is not None, f"{where}: names no checkpoint: {name[:60]!r}")
        return folder.with_name(name)
    return folder


def find_sweep(where: str) -> Path:
    """Find the folder of a sweep: `latest`, or a folder as `find` takes it. UserError if there is none."""
    if where == "latest":
        found = [path for path in (outputs() / "sweeps").glob("*") if (path / PLAN).exists()]
        require(bool(found), f"{outputs() / 'sweeps'}: there is no sweep yet; python scripts/train.py -m makes one")
        return max(found, key=lambda path: (path / PLAN).stat().st_mtime_ns)  # the one worked on last
    folder = _existing(where)
    is_sweep = (folder / PLAN).exists() or any(folder.glob("*/summary.json"))
    require(folder.is_dir() and is_sweep, f"{where}: holds no sweep, which would be a folder with a {PLAN}")
    return folder


def find_pretrained(where: str) -> Pretrained | None:
    """GPT-2's weights that `init_from=` names: a folder in Hugging Face's layout, or a name on its hub.

    None where it names something else. UserError where they cannot be had, or are another model's.
    """
    if where == "latest":
        return None
    folder = _found(where)
    if folder is not None:
        return open_pretrained(str(folder)) if is_pretrained(folder) else None
    on_hub = hub.is_name(where) and ("/" in where or where in _HUB_NAMES)
    return open_pretrained(where) if on_hub else None


# What models are called on the hub that have no owner's name before theirs.
_HUB_NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")


def _existing(where: str) -> Path:
    folder = _found(where)
    if folder is None:
        raise UserError(f"{where or repr('')}: there is no such folder; python scripts/runs.py list shows the runs")
    return folder


def _found(where: str) -> Path | None:
    candidates = [Path(where).expanduser().absolute(), *(parent / where for parent in places())]
    return next((candidate for candidate in candidates if where and candidate.exists()), None)


def _latest(holding: str) -> Path:
    found = sorted((str((read_summary(run) or {}).get("started", "")), run) for run in folders(outputs()))
    for _, run in reversed(found):
        if (run / holding).exists():
            return run
        log.warning("skipped: %s, a newer run, has no %s", relative(run), holding)
    raise UserError(f"{outputs()}: there is no run yet that holds {holding}; python scripts/train.py makes one")


def places() -> tuple[Path, ...]:
    return outputs() / "runs", outputs() / "sweeps", outputs()


def saved_config(folder: Path) -> Path:
    """Return the config.yaml of a run's folder or a checkpoint's. UserError if there is none."""
    path = folder / "config.yaml"
    weights = next((file.name for file in folder.glob("*") if file.suffix in (".safetensors", ".bin")), None)
    require(
        path.is_file() or weights is None,
        f"{folder}: holds {weights}, and no config.json, which says what model that is; get it from where the weights "
        "are from",
    )
    require(path.is_file(), f"{folder}: holds no run and no checkpoint: there is no config.yaml")
    return path
