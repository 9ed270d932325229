"""Lookup of runs, sweeps, checkpoints and pretrained weights."""

from __future__ import annotations

import difflib
import logging
from pathlib import Path

from bigramlm.errors import UserError, require
from bigramlm.model.huggingface import Pretrained, is_pretrained, open_pretrained
from bigramlm.runs.folder import read_summary, start_order
from bigramlm.runs.recovery import config_file
from bigramlm.runs.summary import RunSummary
from bigramlm.runs.walk import run_folders, walk
from bigramlm.utils import documents, files, foreign, hub, paths
from bigramlm.utils.console import relative

log = logging.getLogger(__name__)

PLAN = "sweep.json"
"""The name of the file that every sweep folder contains."""


def read_run(folder: Path) -> RunSummary | None:
    """Read the run in a folder; return None if there is no readable summary."""
    run = RunSummary.read(folder)
    return run if run.has_summary else None


def outputs() -> Path:
    """Return the folder that contains all runs and sweeps."""
    return paths.home() / "outputs"


def find(where: str, *, containing: str = "summary.json") -> Path:
    """Find a run folder or a checkpoint folder.

    where: `latest`, an absolute path, or a path relative to the working folder, outputs/runs/, outputs/sweeps/ or
    outputs/. The paths that `runs.py list` prints are valid, and so is the name of a run that no other run has.
    `latest` is the most recently started run whose folder contains a file or folder with the name `containing`.
    RUN/checkpoints stands for its run. Raises UserError if there is no such folder.
    """
    if where == "latest":
        return _latest(containing)
    folder = _require_existing(where)
    if folder.is_file() and folder.name in ("last", "best"):  # RUN/checkpoints/best contains a checkpoint's name
        try:
            name = documents.read(folder).decode("utf-8", "replace").strip()
        except (OSError, ValueError) as error:
            raise UserError(f"{where} cannot be read ({error}); give the folder of a run or checkpoint") from None
        require(paths.step_of(name) is not None, f"{where} should name a checkpoint, but contains {name[:60]!r}")
        return folder.with_name(name)
    if not (folder / containing).exists():
        about = foreign.describe(folder)
        # A folder of runs may also contain the files of other programs.
        require(about is None or any(run_folders(folder)), f"{where} {about}")
    require(folder.is_dir(), f"{where} is a file; give the folder of a run or of a checkpoint")
    is_of_run = folder.name == "checkpoints" and any(paths.step_of(path.name) is not None for path in folder.iterdir())
    return folder.parent if is_of_run else folder


def find_sweep(where: str) -> Path:
    """Find a sweep folder.

    where: a path as for `find`, or `latest` for the most recently used sweep. Raises UserError if there is no such
    sweep.
    """
    if where == "latest":
        found = [folder for folder, names in walk(outputs()) if PLAN in names]
        require(bool(found), f"{outputs()} contains no sweep yet; start a sweep with {paths.program('train')} -m")
        return max(found, key=lambda path: (path / PLAN).stat().st_mtime_ns)  # the most recently used one
    folder = _require_existing(where)
    require(folder.is_dir(), f"{where} is a file; give the folder of a sweep")
    is_sweep = (folder / PLAN).exists() or any(folder.glob("*/summary.json"))
    require(is_sweep, f"{where} is not a sweep folder: it contains no {PLAN} and no jobs")
    return folder


def find_pretrained(where: str) -> Pretrained | None:
    """Find the pretrained GPT-2 weights that `init_from=` names.

    where: a folder in Hugging Face's layout, or the name of a model on the Hugging Face hub. Returns None if `where` is
    neither. Raises UserError if the weights cannot be read or downloaded, or if they are not those of a GPT-2.
    """
    if where == "latest":
        return None
    folder = _lookup(where)
    if folder is not None:
        return open_pretrained(str(folder)) if is_pretrained(folder) else None
    on_hub = hub.is_name(where) and ("/" in where or where in _HUB_NAMES or hub.cached_folder(where) is not None)
    return open_pretrained(where) if on_hub else None


# The GPT-2 models on the hub whose names have no owner, as in OWNER/NAME.
_HUB_NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")


def _require_existing(where: str) -> Path:
    folder = _lookup(where)
    if folder is None:
        files.refuse_dangling(paths.typed(where))
        about = _describe_on_hub(where)
        require(about is None, f"{where} {about}")
        if named := _find_named(where):
            return named
        meant = "did you mean latest? " if difflib.get_close_matches(where.lower(), ["latest"], cutoff=0.75) else ""
        name = hub.name_in(where) or next((name for name in _HUB_NAMES if name == where.lower()), None)
        on_hub = f"init_from={name} is the model on the Hugging Face hub; " if name else ""
        advice = f"{meant}{on_hub}{paths.program('runs')} list shows all runs"
        raise UserError(f"{where or repr('')}: this folder does not exist; {advice}")
    return folder


def _describe_on_hub(where: str) -> str | None:
    # Describes a well-known model, with or without its owner, and a model in the cache.
    if not hub.is_name(where):
        return None
    folder = hub.cached_folder(where)
    about = None if folder is None else foreign.describe(folder, given=where)
    is_known = where.rpartition("/")[2] in _HUB_NAMES
    return foreign.describe_model("gpt2", where) if about is None and is_known else about


def _lookup(where: str) -> Path | None:
    candidates = [paths.typed(where), *(parent / where for parent in search_folders())]
    return next((candidate for candidate in candidates if where and candidate.exists()), None)


def _find_named(where: str) -> Path | None:
    # Returns the run with this name, or whose folder has this name. Raises UserError if there are several.
    found = [folder for folder in run_folders(outputs()) if where in (folder.name, RunSummary.read(folder).label)]
    shown = ", ".join(shortest_name(folder) for folder in found[-3:])
    advice = f"give the folder of one of them, such as {shown}"
    require(len(found) <= 1, f"{where}: {len(found)} runs have this name; {advice}")
    return found[0] if found else None


def _latest(containing: str) -> Path:
    found = sorted(run_folders(outputs()), key=lambda run: start_order(run, read_summary(run) or {}))
    for run in reversed(found):
        if (run / containing).exists():
            return run
        log.warning("skipped: the run %s is newer but contains no %s", relative(run), containing)
    raise UserError(f"{outputs()} contains no run with {containing} yet; start a run with {paths.program('train')}")


def search_folders() -> tuple[Path, ...]:
    """Return the folders in which `find` looks up a relative path."""
    return outputs() / "runs", outputs() / "sweeps", outputs()


def shortest_name(folder: Path) -> str:
    """Return the shortest name by which `find` finds the folder."""
    for parent in search_folders():
        if parent in folder.parents:
            return str(folder.relative_to(parent))
    return str(relative(folder))


def saved_config(folder: Path) -> Path:
    """Return the path of the saved config of a run or a checkpoint.

    If config.yaml in a run folder is missing or damaged, it is the one in the newest complete checkpoint. Raises
    UserError if there is none.
    """
    path = config_file(folder)
    require(not (folder / PLAN).exists(), f"{folder} is a sweep; give the folder of a job, such as {folder / '0'}")
    about = None if path.is_file() else foreign.describe(folder)
    require(about is None, f"{folder} {about}")
    require(path.is_file(), f"{folder} is neither a run nor a checkpoint: it contains no config.yaml")
    return path
