"""The fixtures of all tests: commands in this process, small texts, a process that is left as it was found."""

import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Tests run two at a time: a thread of one that waits must leave the core to the other. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from hydra._internal.hydra import Hydra
from hypothesis import HealthCheck, settings

from bigramlm.cli import train
from tests.helpers import Cli, Ended

os.environ.pop("HYDRA_FULL_ERROR", None)

# What is drawn is the same every time, and no test is about how long it takes.
settings.register_profile("bigramlm", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("bigramlm")


def pytest_collection_finish() -> None:
    """Spare the garbage collector what was imported: a tenth of the time of a run."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _process_state() -> Iterator[None]:
    """Whatever a run sets for the whole process is put back after each test."""
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
    """Make a function that runs `train` with arguments in this process; its run folder is tmp_path/run<n>."""
    runs = 0

    def call(*arguments: str, run_dir: bool = True) -> Ended:
        nonlocal runs
        runs += 1
        folder = tmp_path / f"run{runs}"
        given = [f"hydra.run.dir={folder}"] if run_dir else []
        return ended(train.main, [*given, *arguments], monkeypatch, capfd, folder)

    return call


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    """Make a function that runs another command in this process, given its main and arguments."""
    return lambda main, *arguments: ended(main, list(arguments), monkeypatch, capfd, tmp_path)


def ended(
    main: Callable[[], None],
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    folder: Path,
) -> Ended:
    monkeypatch.setattr(sys, "argv", ["the command", *arguments])
    if not any(argument.startswith("hydra.mode") for argument in arguments):
        # For its mode alone Hydra composes every config once more, a third of the time of a run here. Commands in
        # processes of their own do so.
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
    """Return a sweep's folder, which is not there yet."""
    return tmp_path / "sweep"


@pytest.fixture
def swept(cli: Cli, folder: Path) -> Callable[..., Ended]:
    """Make a function that runs `train -m` with arguments, such as "seed=1,2", in one folder."""
    return lambda *arguments: cli("-m", *arguments, f"hydra.sweep.dir={folder}", run_dir=False)


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """Return a small text with enough in it to split."""
    path = tmp_path / "text.txt"
    path.write_text("A bird in the hand is worth two in the bush.\nStill waters run deep.\n" * 20, "utf-8")
    return path
