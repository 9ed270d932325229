"""A benchmark of long texts: preparation, time to the first step, and step time."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bigramlm.config.run_config import RunConfig
from bigramlm.data.config import TextConfig
from bigramlm.dev.bench.measure import Comparison, Figures, alternate
from bigramlm.dev.bench.steps import composed_config
from bigramlm.errors import require
from bigramlm.utils import paths

if TYPE_CHECKING:
    from torch import Tensor

# Steps per measurement. For the default run, this is the number of batches that are sampled at once.
_SLICES = {"the default run": 1024, "experiment=gpt_cpu": 25}
_TOKENIZER = "tokenizer=bpe"


class PreparationFigures:
    """The time and the memory that the preparation of a text takes."""

    def __init__(self, gigabytes: float, *, size: int, seconds: float, memory: int | None) -> None:
        """Store the measurements.

        gigabytes: the requested size of the text. size: the actual size of the text in bytes. memory: the peak memory
        of all processes together, in bytes; None if unknown.
        """
        self.gigabytes = gigabytes
        self.size = size
        self.seconds = seconds
        self.memory = memory

    def to_dict(self) -> dict[str, object]:
        return vars(self)

    def __str__(self) -> str:
        memory = "unknown on this system" if self.memory is None else f"at most {self.memory / 1e6:,.0f} MB"
        return (
            f"{self.gigabytes:g} GB of text prepared with {_TOKENIZER}: {self.seconds:.1f} s, "
            f"{self.size / 1e6 / self.seconds:.1f} MB per second\n  memory of all processes: {memory}"
        )


def data(pairs: int, *, sizes: tuple[float, ...] = (0.25, 1, 2)) -> Iterator[PreparationFigures | Comparison]:
    """Measure the preparation of texts of 0.25, 1 and 2 GB, and training on them.

    Compares the seconds to the first step, and the seconds per step, with those on a small text.
    """
    source = paths.home() / "sources" / "shakespeare.txt"
    require(source.is_file(), f"{source} does not exist: run `python scripts/train.py` to download it")
    small = (_TOKENIZER, "data=shakespeare")
    with tempfile.TemporaryDirectory(prefix="bigramlm-bench-") as folder:
        for gigabytes in sizes:
            text = Path(folder) / "long.txt"
            size = write_long_text(source.read_text("utf-8"), text, int(gigabytes * 1e9))
            long = (_TOKENIZER, "data=text", f"data.path={text}")
            try:
                yield _prepare(gigabytes, size, long)
                starts = alternate(pairs, lambda long=long: _startup(long), lambda: _startup(small))  # type: ignore[misc]
                title = f"seconds from start to the first step: {gigabytes:g} GB / Shakespeare"
                yield Comparison(title, *starts, "wall")
                for recipe, overrides in {"the default run": (), "experiment=gpt_cpu": ("experiment=gpt_cpu",)}.items():
                    n = 5 * pairs  # a slice takes about a second
                    long_steps, small_steps = _steps(n, (*overrides, *long), (*overrides, *small), _SLICES[recipe])
                    title = f"seconds per step, {recipe}: {gigabytes:g} GB / Shakespeare"
                    yield Comparison(title, long_steps, small_steps, "step")
            finally:
                shutil.rmtree(TextConfig(path=str(text)).kept_in(), ignore_errors=True)
                text.unlink()


def write_long_text(text: str, path: Path, size: int) -> int:
    """Write a long text that repeats the lines of `text`, reshuffled each time.

    Stops once the file has at least `size` bytes. Returns the size of the file in bytes.
    """
    lines, rng, n = text.splitlines(keepends=True), random.Random(0), 0
    with path.open("w", encoding="utf-8", newline="") as file:
        while n < size:
            rng.shuffle(lines)
            file.writelines(lines)
            n += len(text.encode())
    return path.stat().st_size


def _prepare(gigabytes: float, size: int, overrides: tuple[str, ...]) -> PreparationFigures:
    command = [sys.executable, str(paths.home() / "scripts" / "prepare.py"), *overrides]
    started, memory = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            memory = max(memory, _resident(process.pid))
            time.sleep(0.05)
        seconds = time.perf_counter() - started
        require(process.returncode == 0, f"bench data: prepare.py failed: {process.stderr and process.stderr.read()}")
    return PreparationFigures(gigabytes, size=size, seconds=seconds, memory=memory or None)


def _resident(pid: int) -> int:
    # Returns the resident memory of a process and its children in bytes; 0 without /proc.
    resident = 0
    try:
        status = Path(f"/proc/{pid}/status").read_text("ascii")
        resident = 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
    except (OSError, StopIteration):  # the process has ended, or there is no /proc
        return resident
    return resident + sum(_resident(int(child)) for child in children)


def _startup(overrides: tuple[str, ...]) -> Figures:
    from bigramlm.dev.bench.commands import time_to_first_step

    with tempfile.TemporaryDirectory(prefix="bigramlm-bench-") as folder:
        return time_to_first_step(Path(folder), *overrides)


def _steps(n: int, long: tuple[str, ...], small: tuple[str, ...], steps: int) -> tuple[list[Figures], list[Figures]]:
    """Measure seconds per step on a long and a small text, alternately.

    Takes n measurements of `steps` steps on each text. Only the text differs. Returns the figures of the long text and
    of the small text.
    """
    import torch

    long_cfg, small_cfg = composed_config(*long, "device.name=cpu"), composed_config(*small, "device.name=cpu")
    torch.manual_seed(long_cfg.seed)
    measure_long, measure_small = (_step(cfg, _train_split(cfg)) for cfg in (long_cfg, small_cfg))
    return alternate(n, lambda: measure_long(steps), lambda: measure_small(steps))


def _train_split(cfg: RunConfig) -> tuple[int, Tensor]:
    import torch

    from bigramlm.data.batches import on_device
    from bigramlm.data.corpus import tokenized

    corpus = tokenized(cfg.data.prepare().read(), cfg.tokenizer, None, cfg.data.kept_in())
    return corpus.tokenizer.vocab_size, on_device(corpus.ids["train"], torch.device("cpu"))


def _step(cfg: RunConfig, split: tuple[int, Tensor]) -> Callable[[int], Figures]:
    from bigramlm.data.batches import Batches, Stream
    from bigramlm.device.device import decide, set_up
    from bigramlm.trainer.step import TrainStep

    vocab_size, tokens = split
    data = cfg.data
    model = cfg.model.build(vocab_size=vocab_size, block_size=data.block_size)
    device = set_up(decide(cfg.device, n_params=model.n_params(), tokens=data.batch_size * data.block_size))
    optimizer = cfg.optim.build(model, compiled=False)
    train_step = TrainStep(model, optimizer, device, grad_clip=cfg.optim.grad_clip)
    batches = Batches(Stream(tokens, block_size=data.block_size), batch_size=data.batch_size, seed=cfg.seed)
    step = 0

    def measure(steps: int) -> Figures:
        nonlocal step
        started = time.perf_counter()
        for number in range(step, step + steps):
            train_step(batches[number], 1e-4)
        step += steps
        return {"step": (time.perf_counter() - started) / steps}

    return measure
