"""The commit of the code that runs, as git reports it."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

from bigramlm.utils import paths

# Found when the program starts, before a preset can change the environment.
_GIT, _ENVIRONMENT = shutil.which("git") or "git", {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_NO_LAZY_FETCH": "1"}
# Settings of a repository that would start programs: a monitor of files, hooks, a connection, filters of contents.
_OFF = ("core.fsmonitor=false", f"core.hooksPath={os.devnull}", "protocol.allow=never")
_FILTERS = r"^filter\..*\.(clean|process|required)$"
# The folders in which a new file can change what a run does. Elsewhere, e.g. a text of the user's own, it cannot.
_CODE = ("bigramlm", "conf", "hydra_plugins", "scripts")


@functools.cache  # the process keeps running the code that it started with
def git_state() -> dict[str, Any] | None:
    """Return the checked-out commit, and whether the code differs from that commit.

    The code differs if a tracked file was changed, or if there is a new file in a folder of code or presets. Returns
    None if the package does not run from a git checkout.
    """
    if not paths.IN_CHECKOUT:
        return None  # the installed package may be inside an unrelated repository
    try:
        commit = _git("rev-parse", "HEAD")
        filters = _git("config", "--name-only", "--get-regexp", _FILTERS, codes=(0, 1)).splitlines()
        if any("=" in name for name in filters):  # such a setting cannot be switched off on the command line
            return None
        settings = [f"{name}=" for name in filters]
        changed = _git("status", "--porcelain", "--untracked-files=no", "--ignore-submodules=dirty", settings=settings)
        new = _git("ls-files", "--others", "--exclude-standard", "--", *_CODE, settings=settings)
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.strip(), "dirty": bool(changed.strip() or new.strip())}


def _git(*arguments: str, settings: Sequence[str] = (), codes: Sequence[int] = (0,)) -> str:
    # Run git on the repository of the package, so that the settings of the repository start no program.
    options = [part for setting in (*_OFF, *settings) for part in ("-c", setting)]
    ended = subprocess.run(
        [_GIT, *options, "-C", str(paths.home()), *arguments],
        env=_ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=5,
        check=False,
    )
    if ended.returncode not in codes:
        raise subprocess.SubprocessError(ended.stderr)
    return ended.stdout
