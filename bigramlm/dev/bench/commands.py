"""Benchmarks of whole commands, each in a separate process."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from bigramlm.data.text import Text
from bigramlm.dev.bench.measure import Comparison, Figures, alternate
from bigramlm.dev.bench.steps import composed_config
from bigramlm.errors import require
from bigramlm.logger.metrics import read_records
from bigramlm.utils import paths

# The program that the tutorial ends with: batches stacked from slices, unfused AdamW, no evaluation.
TUTORIAL = """
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(1337)
with open(sys.argv[1], encoding="utf-8") as file:
    text = file.read()
chars = sorted(set(text))
ids = {c: i for i, c in enumerate(chars)}
data = torch.tensor([ids[c] for c in text], dtype=torch.long)
train = data[: int(0.9 * len(data))]


class Bigram(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(len(chars), len(chars))

    def forward(self, idx, targets=None):
        logits = self.table(idx)
        if targets is None:
            return logits, None
        B, T, C = logits.shape
        return logits, F.cross_entropy(logits.view(B * T, C), targets.view(B * T))


def draw():
    at = torch.randint(len(train) - 8, (32,))
    return torch.stack([train[i : i + 8] for i in at]), torch.stack([train[i + 1 : i + 9] for i in at])


model = Bigram()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
started = time.perf_counter()
for _ in range(10000):
    x, y = draw()
    _, loss = model(x, y)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
print("seconds:", time.perf_counter() - started)
print("Loss:", loss.item())
idx = torch.zeros((1, 1), dtype=torch.long)
for _ in range(300):
    probabilities = F.softmax(model(idx)[0][:, -1], dim=-1)
    idx = torch.cat((idx, torch.multinomial(probabilities, num_samples=1)), dim=1)
print("".join(chars[i] for i in idx[0].tolist()))
"""

# The command `train` without checkpoints.
NOT_SAVING = """
from bigramlm.checkpoint.manager import CheckpointManager
from bigramlm.cli.train import main

CheckpointManager.save = lambda *arguments, **keywords: None
main()
"""

Curve = list[tuple[float, float]]  # (val loss, seconds into the run) of each evaluation

SCRIPT = paths.home() / "scripts" / "train.py"


def bigram(pairs: int) -> Iterator[Comparison]:
    """Compare the default run with the tutorial's loop, 10,000 steps each.

    The figures are steps per second, and the seconds from the start of the process to its exit.
    """
    with temporary_folder() as folder:
        ours, loop = alternate(pairs, lambda: train(folder), lambda: _tutorial(folder))
    yield Comparison(
        "steps per second: the Trainer with evaluation, logging and checkpoints / the tutorial's loop",
        ours,
        loop,
        "steps",
    )
    yield Comparison("seconds from start to exit: train.py / the tutorial's script", ours, loop, "wall")


def compiled(pairs: int) -> Iterator[Comparison]:
    """Compare the compiled step (device.compile=true) with the tutorial's loop.

    The figure is steps per second, measured after the compilation.
    """
    options = (
        "device.compile=true",
        "trainer.steps=30000",
        "trainer.eval_every=30000",
        "trainer.checkpoint_every=30000",
    )
    with temporary_folder() as folder:
        ours, loop = alternate(pairs, lambda: train(folder, *options), lambda: _tutorial(folder))
    yield Comparison(
        "steps per second: the compiled step, after compilation / the tutorial's loop", ours, loop, "steady", "steps"
    )


def startup(pairs: int) -> Iterator[Comparison]:
    """Compare the seconds to the first step with the seconds of `import torch`."""
    with temporary_folder() as folder:
        ours, bare = alternate(
            pairs, lambda: time_to_first_step(folder), lambda: {"wall": _process("-c", "import torch")[0]}
        )
    yield Comparison("seconds from start to the first step / import torch", ours, bare, "wall")


def gpt(pairs: int) -> Iterator[Comparison]:
    """Compare the recipes gpt_cpu and nanogpt_cpu (on CUDA gpt_gpu and nanogpt_gpu).

    The figures are the seconds that the gpt recipe takes to reach the final val loss of the nanogpt recipe, the seconds
    of the whole runs, and the final val losses. Both runs evaluate 20 times, on all of val. Each pair has a different
    seed.
    """
    import torch

    kind = "gpu" if torch.cuda.is_available() else "cpu"
    ours, theirs = f"gpt_{kind}", f"nanogpt_{kind}"
    next_seed = _each_twice(range(1, 10**6))
    curves: dict[str, list[Curve]] = {ours: [], theirs: []}

    def trained(recipe: str) -> Figures:
        override = f"experiment={recipe}"
        wall, run_folder = run(folder, override, f"seed={next_seed()}", *evaluation_overrides(override, times=20))
        curves[recipe].append([(r["val/loss"], r["seconds"]) for r in _records(run_folder) if "val/loss" in r])
        return _figures(wall, run_folder)

    with temporary_folder() as folder:
        a, b = alternate(pairs, lambda: trained(ours), lambda: trained(theirs), warm_up=False)
    for figures, curve, other in zip(a, curves[ours], b, strict=True):
        figures["reached"] = min((seconds for loss, seconds in curve if loss <= other["val"]), default=math.inf)
    yield Comparison(f"seconds: {ours} to the final val loss of {theirs} / {theirs}", a, b, "reached", "seconds")
    yield Comparison(f"seconds, whole run: {ours} / {theirs}", a, b, "seconds")
    yield Comparison(f"final val loss: {ours} / {theirs}", a, b, "val")


def checkpoint(pairs: int) -> Iterator[Comparison]:
    """Compare the default run with a run that saves no checkpoints.

    The default run saves every 1,000 steps. The figure is seconds of training.
    """
    with temporary_folder() as folder:
        saving, not_saving = alternate(pairs, lambda: train(folder), lambda: train(folder, program=("-c", NOT_SAVING)))
    yield Comparison(
        "seconds of training: a checkpoint every 1,000 steps / no checkpoints", saving, not_saving, "seconds"
    )


def sweep(pairs: int) -> Iterator[Comparison]:
    """Compare sweeps with a single run, and parallel jobs with sequential jobs.

    Measures 32 jobs of 200 steps and one run of 6,400 steps, then 4 jobs of about 10 s sequentially and 2 at a time.
    """
    n, short = 32, "trainer.eval_every=200"
    with temporary_folder() as folder:
        jobs, run = alternate(
            pairs,
            lambda: _sweep(folder, "trainer.steps=200", short, f"seed=range(0,{n})"),
            lambda: train(folder, f"trainer.steps={200 * n}", "trainer.eval_every=100000"),
        )
        yield Comparison("seconds from start to exit: 32 jobs of 200 steps / 6,400 steps", jobs, run, "wall", n_items=n)
        long = ("trainer.steps=90000", "trainer.eval_every=10000", "device.threads=1", "seed=1,2,3,4")
        sequential, parallel = alternate(
            pairs,
            lambda: _sweep(folder, *long),
            lambda: _sweep(folder, *long, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
        )
    yield Comparison(
        "seconds for 4 jobs of about 10 s on one thread: sequential / joblib, 2 at a time", sequential, parallel, "wall"
    )


def search(pairs: int) -> Iterator[Comparison]:
    """Compare a search over optim.lr with pruning and without.

    Each search has 30 trials. Each pair has a different seed.
    """
    steps, next_seed = ("trainer.steps=2000", "trainer.eval_every=100"), _each_twice(range(100, 10**6))
    space = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=30", "optim.lr=tag(log, interval(1e-4, 1))")

    def trials(folder: Path, pruner: str) -> Figures:
        return _sweep(folder, *space, *steps, f"hydra.sweeper.pruner={pruner}", f"hydra.sweeper.seed={next_seed()}")

    with temporary_folder() as folder:
        pruned, unpruned = alternate(pairs, lambda: trials(folder, "percentile"), lambda: trials(folder, "none"))
        over_seeds = _sweep(folder, "optim.lr=0.02", *steps, "seed=1,2,3,4,5,6,7,8")
    yield Comparison("steps taken: with pruning / without", pruned, unpruned, "steps")
    yield Comparison("lowest final val loss found: with pruning / without", pruned, unpruned, "best")
    noise = {"std": over_seeds["std"]}
    increase = [{"std": a["best"] - b["best"]} for a, b in zip(pruned, unpruned, strict=True)]
    yield Comparison("val loss increase by pruning / standard deviation over 8 seeds", increase, [noise] * pairs, "std")


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a temporary folder that contains the tutorial's script.

    Raises UserError if the Shakespeare text has not been downloaded.
    """
    text = paths.home() / "sources" / "shakespeare.txt"
    require(text.is_file(), f"{text} does not exist: run `python scripts/train.py` to download it")
    with tempfile.TemporaryDirectory(prefix="bigramlm-bench-") as name:
        folder = Path(name)
        (folder / "tutorial.py").write_text(TUTORIAL, "utf-8")
        yield folder


def _process(*arguments: str) -> tuple[float, str]:
    # Returns (seconds from start to exit, standard output).
    started = time.perf_counter()
    result = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    require(result.returncode == 0, f"{' '.join(arguments[:2])[:200]} failed:\n{result.stderr}")
    return seconds, result.stdout


def train(folder: Path, *overrides: str, program: tuple[str, ...] = (str(SCRIPT),)) -> Figures:
    """Train in a new run folder inside `folder`; return the figures of the run."""
    return _figures(*run(folder, *overrides, program=program))


def run(folder: Path, *overrides: str, program: tuple[str, ...] = (str(SCRIPT),)) -> tuple[float, Path]:
    """Train in a new run folder inside `folder`.

    Returns the seconds from start to exit and the run folder.
    """
    run_folder = Path(tempfile.mkdtemp(dir=folder)) / "run"
    return _process(*program, f"hydra.run.dir={run_folder}", *overrides)[0], run_folder


def _records(run_folder: Path) -> list[dict[str, Any]]:
    return list(read_records(run_folder / "metrics.jsonl"))


def _figures(wall: float, run_folder: Path) -> Figures:
    summary, records = json.loads((run_folder / "summary.json").read_text("utf-8")), _records(run_folder)
    tokens_per_step = 32 * 8  # in the default run
    # The steady rate is the median over the second half of the records, i.e. after compilation.
    rates = [r["tokens_per_second"] for r in records[len(records) // 2 :] if "tokens_per_second" in r]
    return {
        "wall": wall,
        "seconds": summary["seconds"],
        "steps": summary["step"] / summary["seconds"],
        "steady": statistics.median(rates) / tokens_per_step,
        "val": summary["final"]["val/loss"],
    }


def _each_twice(seeds: Iterable[int]) -> Callable[[], int]:
    # Returns a function that returns each seed twice, because two consecutive runs are a pair.
    twice = (seed for seed in seeds for _ in range(2))
    return lambda: next(twice)


def evaluation_overrides(*recipe: str, times: int) -> list[str]:
    """Return overrides that make a run evaluate `times` times on all of val.

    Each evaluation uses the same number of train tokens.
    """
    cfg = composed_config(*recipe)
    text = cfg.data.prepare().read()
    assert isinstance(text, Text)
    n_val = text.n_characters - text.split - 1
    batches = -(-n_val // (cfg.data.batch_size * cfg.data.block_size))
    return [f"trainer.eval_every={-(-cfg.trainer.steps // times)}", f"trainer.eval_batches={batches}"]


def _sweep(folder: Path, *overrides: str) -> Figures:
    sweep_folder = Path(tempfile.mkdtemp(dir=folder)) / "sweep"
    wall, _ = _process(str(SCRIPT), "-m", f"hydra.sweep.dir={sweep_folder}", *overrides)
    with (sweep_folder / "results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["val/loss"]) for row in rows if row["val/loss"]]
    std = statistics.stdev(losses) if len(losses) > 1 else 0.0
    return {"wall": wall, "steps": float(sum(int(row["step"]) for row in rows)), "best": min(losses), "std": std}


def _tutorial(folder: Path) -> Figures:
    wall, output = _process(str(folder / "tutorial.py"), str(paths.home() / "sources" / "shakespeare.txt"))
    return {"wall": wall, "steps": 10_000 / float(output.split()[1])}


def time_to_first_step(folder: Path, *overrides: str) -> Figures:
    """Measure the seconds from start to the first step of a run inside `folder`."""
    # The record of step 0 is written after the first update.
    run_folder = Path(tempfile.mkdtemp(dir=folder)) / "run"
    command = [sys.executable, str(SCRIPT), f"hydra.run.dir={run_folder}", "trainer.steps=1", *overrides]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        metrics = run_folder / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size):
            require(process.poll() is None, "bench startup: the run ended before its first step")
            time.sleep(0.002)
        return {"wall": time.perf_counter() - started}
