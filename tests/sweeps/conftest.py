"""Fixtures of the tests of sweeps: an existing sweep."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers import Ended, command
from tests.sweeps.helpers import SHORT


@pytest.fixture(scope="session")
def two_jobs(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """Return a completed sweep of two jobs, seed=1 and seed=2.

    Tests must not change its folder, `.folder`.
    """
    folder = tmp_path_factory.mktemp("two") / "sweep"
    ended = command("-m", *SHORT, "seed=1,2", f"hydra.sweep.dir={folder}")
    assert ended.code == 0, ended.err
    return replace(ended, folder=folder)


@pytest.fixture
def existing_sweep(two_jobs: Ended, folder: Path) -> Path:
    """Return a copy of this sweep in the test's folder, which the test may change."""
    shutil.copytree(two_jobs.folder, folder)
    return folder
