"""Fixtures of all tests: commands in this process, folders, texts, a browser."""

import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Two tests run at a time: a waiting thread of one must yield the core to the other. Torch reads this when imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from hydra._internal.hydra import Hydra
from hypothesis import HealthCheck, settings

from bigramlm.cli import train
from bigramlm.dev.browser import Browser, browser
from tests.helpers import Cli, Ended

os.environ.pop("HYDRA_FULL_ERROR", None)

# Hypothesis draws the same examples in every run, and no test has a time limit.
settings.register_profile("bigramlm", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("bigramlm")


def pytest_collection_finish() -> None:
    """Exclude imported objects from garbage collection.

    Collecting them takes a tenth of the time of the tests.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _process_state() -> Iterator[None]:
    """Restore the global state that a run changes, after each test."""
    threads = torch.get_num_threads()
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    torch.set_num_threads(threads)
    if torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(False)
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers, root.level = handlers, level


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    """Make a function that runs `train` with arguments in this process.

    The run folder of its n-th call is tmp_path/run<n>.
    """
    runs = 0

    def call(*arguments: str, run_dir: bool = True) -> Ended:
        nonlocal runs
        runs += 1
        folder = tmp_path / f"run{runs}"
        defaults = [f"hydra.run.dir={folder}"] if run_dir else []
        return run_in_process(train.main, [*defaults, *arguments], monkeypatch, capfd, folder)

    return call


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    """Make a function that runs a `main` with arguments in this process."""
    return lambda main, *arguments: run_in_process(main, list(arguments), monkeypatch, capfd, tmp_path)


def run_in_process(
    main: Callable[[], None],
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    folder: Path,
) -> Ended:
    monkeypatch.setattr(sys, "argv", ["the command", *arguments])
    if not any(argument.startswith("hydra.mode") for argument in arguments):
        # Hydra composes every config twice, the first time to find its mode, which takes a third of the time of a run
        # here. Commands in other processes do both.
        monkeypatch.setattr(Hydra, "get_mode", lambda *_, **__: None)
    code = 0
    try:
        main()
    except SystemExit as exit:
        code = int(exit.code or 0)
    captured = capfd.readouterr()
    return Ended(code, captured.out, captured.err, folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the path of a sweep's folder, which does not exist yet."""
    return tmp_path / "sweep"


@pytest.fixture
def swept(cli: Cli, folder: Path) -> Callable[..., Ended]:
    """Make a function that runs `train -m` with arguments in the sweep's folder.

    The arguments are overrides, such as "seed=1,2".
    """
    return lambda *arguments: cli("-m", *arguments, f"hydra.sweep.dir={folder}", run_dir=False)


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """Return a small text that is long enough for a train and a val split."""
    path = tmp_path / "text.txt"
    path.write_text("A bird in the hand is worth two in the bush.\nStill waters run deep.\n" * 20, "utf-8")
    return path


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    """Open a window of a browser."""
    with browser(width=1280, height=2400) as opened:
        yield opened
