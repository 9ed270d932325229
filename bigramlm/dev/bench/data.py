"""The benchmark of long texts: how they are prepared, and how training on them starts and goes."""

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

# Steps that are timed together; of the default run as many as it takes from one draw of its batches.
_SLICES = {"the default run": 1024, "experiment=gpt_cpu": 25}
_TOKENIZER = "tokenizer=bpe"


class Prepared:
    """The cost of preparing a text."""

    def __init__(self, gigabytes: float, *, size: int, seconds: float, memory: int | None) -> None:
        """size: the text's bytes; memory: the most that all processes held together, in bytes, where it is known."""
        self.gigabytes = gigabytes
        self.size = size
        self.seconds = seconds
        self.memory = memory

    def to_dict(self) -> dict[str, object]:
        return vars(self)

    def __str__(self) -> str:
        memory = "unknown here" if self.memory is None else f"{self.memory / 1e6:,.0f} MB at the most"
        return (
            f"{self.gigabytes:g} GB of text prepared with {_TOKENIZER}: {self.seconds:.1f} s, "
            f"{self.size / 1e6 / self.seconds:.1f} MB a second\n  memory of all its processes: {memory}"
        )


def data(pairs: int, *, sizes: tuple[float, ...] = (0.25, 1, 2)) -> Iterator[Prepared | Comparison]:
    """Texts of 0.25, 1 and 2 GB: preparing them, and how training on them starts and steps against a small text."""
    source = paths.home() / "sources" / "shakespeare.txt"
    require(source.is_file(), f"{source}: is not there; `python scripts/train.py` downloads it")
    small = (_TOKENIZER, "data=shakespeare")
    with tempfile.TemporaryDirectory(prefix="bigramlm-bench-") as folder:
        for gigabytes in sizes:
            text = Path(folder) / "long.txt"
            size = write_long(source.read_text("utf-8"), text, int(gigabytes * 1e9))
            long = (_TOKENIZER, "data=text", f"data.path={text}")
            try:
                yield _prepare(gigabytes, size, long)
                starts = alternate(pairs, lambda long=long: _first_step(long), lambda: _first_step(small))  # type: ignore[misc]
                title = f"seconds from the command to the first step: {gigabytes:g} GB / Shakespeare"
                yield Comparison(title, *starts, "wall")
                for what, overrides in {"the default run": (), "experiment=gpt_cpu": ("experiment=gpt_cpu",)}.items():
                    n = 5 * pairs  # a slice takes a second
                    ours, theirs = _steps(n, (*overrides, *long), (*overrides, *small), _SLICES[what])
                    title = f"seconds a step, {what}: from {gigabytes:g} GB / from Shakespeare"
                    yield Comparison(title, ours, theirs, "step")
            finally:
                shutil.rmtree(TextConfig(path=str(text)).kept_in(), ignore_errors=True)
                text.unlink()


def write_long(text: str, path: Path, size: int) -> int:
    """Write the text's lines again and again, each time in another order, until there are so many bytes; how many."""
    lines, rng, n = text.splitlines(keepends=True), random.Random(0), 0
    with path.open("w", encoding="utf-8", newline="") as file:
        while n < size:
            rng.shuffle(lines)
            file.writelines(lines)
            n += len(text.encode())
    return path.stat().st_size


def _prepare(gigabytes: float, size: int, overrides: tuple[str, ...]) -> Prepared:
    command = [sys.executable, str(paths.home() / "scripts" / "prepare.py"), *overrides]
    started, memory = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            memory = max(memory, _resident(process.pid))
            time.sleep(0.05)
        seconds = time.perf_counter() - started
        require(process.returncode == 0, f"bench data: prepare.py failed: {process.stderr and process.stderr.read()}")
    return Prepared(gigabytes, size=size, seconds=seconds, memory=memory or None)


def _resident(pid: int) -> int:
    # What a process and its children hold in memory, in bytes; 0 where there is no /proc.
    held = 0
    try:
        status = Path(f"/proc/{pid}/status").read_text("ascii")
        held = 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
    except (OSError, StopIteration):  # it has ended
        return held
    return held + sum(_resident(int(child)) for child in children)


def _first_step(overrides: tuple[str, ...]) -> Figures:
    from bigramlm.dev.bench.commands import first_step

    with tempfile.TemporaryDirectory(prefix="bigramlm-bench-") as place:
        return first_step(Path(place), *overrides)


def _steps(n: int, long: tuple[str, ...], small: tuple[str, ...], steps: int) -> tuple[list[Figures], list[Figures]]:
    """Seconds a step of n slices of steps, each with batches of its own text; all else alike."""
    import torch

    cfg, other = composed_config(*long, "device.name=cpu"), composed_config(*small, "device.name=cpu")
    torch.manual_seed(cfg.seed)
    takes = [_step(one, _train_split(one)) for one in (cfg, other)]
    ours, theirs = alternate(n, lambda: takes[0](steps), lambda: takes[1](steps))
    return ours, theirs


def _train_split(cfg: RunConfig) -> tuple[int, Tensor]:
    import torch

    from bigramlm.data.batches import on_device
    from bigramlm.data.corpus import tokenized

    found = tokenized(cfg.data.prepare().read(), cfg.tokenizer, None, cfg.data.kept_in())
    return found.tokenizer.vocab_size, on_device(found.ids["train"], torch.device("cpu"))


def _step(cfg: RunConfig, split: tuple[int, Tensor]) -> Callable[[int], Figures]:
    from bigramlm.data.batches import Batches, Stream
    from bigramlm.device.device import decide, set_up
    from bigramlm.trainer.step import TrainStep

    vocab_size, tokens = split
    data = cfg.data
    model = cfg.model.build(vocab_size=vocab_size, block_size=data.block_size)
    device = set_up(decide(cfg.device, n_params=model.n_params(), tokens=data.batch_size * data.block_size))
    optimizer = cfg.optim.build(model, compiled=False)
    take = TrainStep(model, optimizer, device, grad_clip=cfg.optim.grad_clip)
    batches = Batches(Stream(tokens, block_size=data.block_size), batch_size=data.batch_size, seed=cfg.seed)
    at = 0

    def measured(steps: int) -> Figures:
        nonlocal at
        started = time.perf_counter()
        for number in range(at, at + steps):
            take(batches[number], 1e-4)
        at += steps
        return {"step": (time.perf_counter() - started) / steps}

    return measured
