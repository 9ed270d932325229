"""The fixtures of the tests of sweeps: a sweep that is there."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers import Ended, command
from tests.sweeps.helpers import SHORT


@pytest.fixture(scope="session")
def two(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """Return a sweep of two jobs, seed=1 and seed=2, to look at; its folder is .folder."""
    folder = tmp_path_factory.mktemp("two") / "sweep"
    ended = command("-m", *SHORT, "seed=1,2", f"hydra.sweep.dir={folder}")
    assert ended.code == 0, ended.err
    return replace(ended, folder=folder)


@pytest.fixture
def begun(two: Ended, folder: Path) -> Path:
    """Return the same sweep in the test's own folder, to continue."""
    shutil.copytree(two.folder, folder)
    return folder
