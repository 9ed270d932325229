"""Fixtures of the tests of the page of a model: small trained runs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bigramlm.device.config import DeviceConfig
from bigramlm.engine.load import open_checkpoint
from bigramlm.look.subject import Subject, open_subject
from tests.helpers import command, small
from tests.look.helpers import WORDS


@pytest.fixture(scope="session")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that trains a small model of a preset, and returns its folder.

    Tests must not change the folder.
    """
    found: dict[tuple[str, ...], Path] = {}

    def train(preset: str, *overrides: str) -> Path:
        key = (preset, *overrides)
        if key not in found:
            folder = tmp_path_factory.mktemp(preset) / "run"
            size = [] if preset == "mlp" else small(preset)
            ended = command(f"model={preset}", *WORDS, *size, *overrides, f"hydra.run.dir={folder}")
            assert ended.code == 0, ended.err
            found[key] = folder
        return found[key]

    return train


@pytest.fixture
def subject_of(run_of: Callable[..., Path]) -> Callable[..., Subject]:
    """Return a function that opens the model of such a run."""

    def opened(preset: str, *overrides: str) -> Subject:
        return open_subject(open_checkpoint(str(run_of(preset, *overrides))), DeviceConfig(name="cpu"))

    return opened
