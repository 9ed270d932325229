"""What the tests share: composed configs, the command line in this process, small texts."""

import functools
import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Tests run two at a time: a thread of one that waits must leave the core to the other. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from bigramlm import paths, train
from bigramlm.config import RunConfig, to_run_config
from bigramlm.model.config import GPTConfig
from bigramlm.tokenizer.subword import train_bpe

os.environ.pop("HYDRA_FULL_ERROR", None)


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


def composed(*overrides: str) -> DictConfig:
    """What Hydra composes from these overrides."""
    train.set_up_hydra()
    with initialize_config_dir(str(paths.conf_dir()), version_base="1.3"):
        return compose("train", train.command_line(list(overrides)))


def run_config(*overrides: str) -> RunConfig:
    """The run config that these overrides make."""
    return to_run_config(composed(*overrides))


@dataclass
class Ended:
    """How a command line ended."""

    code: int
    out: str
    err: str
    folder: Path


Cli = Callable[..., Ended]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    """Runs `train` with arguments in this process: cli("optim.lr=1") -> Ended. Its run folder is tmp_path/run<n>."""
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
    """Runs another command with arguments in this process: tool(sample.main, "prompt=To be") -> Ended."""
    return lambda main, *arguments: ended(main, list(arguments), monkeypatch, capfd, tmp_path)


def ended(
    main: Callable[[], None],
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    folder: Path,
) -> Ended:
    monkeypatch.setattr(sys, "argv", ["the command", *arguments])
    code = 0
    try:
        main()
    except SystemExit as exit:
        code = int(exit.code or 0)
    captured = capfd.readouterr()
    return Ended(code, captured.out, captured.err, folder)


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """A small text with enough in it to split."""
    path = tmp_path / "text.txt"
    path.write_text("A bird in the hand is worth two in the bush.\nStill waters run deep.\n" * 20, "utf-8")
    return path


def gpt2_folder(folder: Path, *, size: str = "narrow", **config: Any) -> Path:
    """A small GPT-2 as transformers saves it, with random weights, biases and gains too, and a tokenizer."""
    import transformers

    sizes = {"narrow": {"n_layer": 2, "n_head": 2, "n_embd": 16}, "wide": {"n_layer": 3, "n_head": 5, "n_embd": 40}}
    given = {"vocab_size": 300, "n_positions": 32, "bos_token_id": None, "eos_token_id": None}
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**given, **sizes[size], **config}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(_learned(), "utf-8")
    return folder


@functools.cache
def _learned() -> str:
    return train_bpe([paths.bundled_text().read_text("utf-8")[:20_000]], vocab_size=300, min_frequency=2).to_json()


def kept_for_the_gradient(forward: Callable[[], object]) -> int:
    """How many numbers autograd keeps of what is computed here."""
    sizes: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(sizes)


def small(preset: str) -> list[str]:
    """Overrides that make a model of `model=PRESET` small: a test is about what it does, and not about how well."""
    model = run_config(f"model={preset}").model
    if not isinstance(model, GPTConfig):
        return []
    return [f"model.n_embd={4 * model.n_head}", f"model.n_layer={min(2, model.n_layer)}"]
