"""Benchmarks of whole commands, each a process of its own."""

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

# The tutorial's program as its followers have it: slices stacked for a batch, unfused AdamW, no evaluation.
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

# The command `train` without its checkpoints.
NOT_SAVING = """
from bigramlm.checkpoint.manager import CheckpointManager
from bigramlm.cli.train import main

CheckpointManager.save = lambda *arguments, **keywords: None
main()
"""

Curve = list[tuple[float, float]]  # val losses, each with the seconds at which an evaluation found it

SCRIPT = paths.home() / "scripts" / "train.py"


def bigram(pairs: int) -> Iterator[Comparison]:
    """Compare the default run with the tutorial's loop, 10,000 steps each: steps a second, and whole processes."""
    with workplace() as place:
        ours, loop = alternate(pairs, lambda: _train(place), lambda: _tutorial(place))
    yield Comparison("steps a second: the Trainer, evaluating, logging and saving / the loop", ours, loop, "steps")
    yield Comparison("seconds from the command to its end: train.py / the loop's script", ours, loop, "wall")


def compiled(pairs: int) -> Iterator[Comparison]:
    """device.compile=true, once compiled, against the tutorial's loop: steps a second."""
    options = (
        "device.compile=true",
        "trainer.steps=30000",
        "trainer.eval_every=30000",
        "trainer.checkpoint_every=30000",
    )
    with workplace() as place:
        ours, loop = alternate(pairs, lambda: _train(place, *options), lambda: _tutorial(place))
    yield Comparison("steps a second: the compiled step, once compiled / the loop", ours, loop, "steady", "steps")


def startup(pairs: int) -> Iterator[Comparison]:
    """From the command to the first step, against importing torch: seconds."""
    with workplace() as place:
        ours, bare = alternate(pairs, lambda: first_step(place), lambda: {"wall": _process("-c", "import torch")[0]})
    yield Comparison("seconds from the command to the first step / import torch", ours, bare, "wall")


def gpt(pairs: int) -> Iterator[Comparison]:
    """gpt_cpu against nanogpt_cpu (on CUDA gpt_gpu, nanogpt_gpu): seconds to the other's final val loss, and losses.

    Both evaluate 20 times, over the whole of val. Each pair has a seed of its own.
    """
    import torch

    place = "gpu" if torch.cuda.is_available() else "cpu"
    ours, theirs = f"gpt_{place}", f"nanogpt_{place}"
    seed_of = _in_pairs(range(1, 10**6))
    curves: dict[str, list[Curve]] = {ours: [], theirs: []}

    def trained(recipe: str) -> Figures:
        chosen = f"experiment={recipe}"
        wall, place = run(folder, chosen, f"seed={seed_of()}", *looking_alike(chosen, times=20))
        curves[recipe].append([(r["val/loss"], r["seconds"]) for r in _records(place) if "val/loss" in r])
        return _figures(wall, place)

    with workplace() as folder:
        a, b = alternate(pairs, lambda: trained(ours), lambda: trained(theirs), warm=False)
    for figures, curve, other in zip(a, curves[ours], b, strict=True):
        figures["reached"] = min((seconds for loss, seconds in curve if loss <= other["val"]), default=math.inf)
    yield Comparison(f"seconds: {ours} to the final val loss of {theirs} / {theirs}", a, b, "reached", "seconds")
    yield Comparison(f"seconds, all of it: {ours} / {theirs}", a, b, "seconds")
    yield Comparison(f"final val loss: {ours} / {theirs}", a, b, "val")


def checkpoint(pairs: int) -> Iterator[Comparison]:
    """Compare the default run, which saves every 1,000 steps, with one that saves nothing: seconds of training."""
    with workplace() as place:
        saving, not_saving = alternate(pairs, lambda: _train(place), lambda: _train(place, program=("-c", NOT_SAVING)))
    yield Comparison("seconds of training: saving every 1,000 steps / saving nothing", saving, not_saving, "seconds")


def sweep(pairs: int) -> Iterator[Comparison]:
    """32 jobs of 200 steps against one run of as many steps, and jobs of some 10 s two at a time against one by one."""
    n, short = 32, "trainer.eval_every=200"
    with workplace() as place:
        jobs, run = alternate(
            pairs,
            lambda: _sweep(place, "trainer.steps=200", short, f"seed=range(0,{n})"),
            lambda: _train(place, f"trainer.steps={200 * n}", "trainer.eval_every=100000"),
        )
        yield Comparison(
            "seconds from the command to its end: 32 jobs of 200 steps / 6,400 steps", jobs, run, "wall", each=n
        )
        long = ("trainer.steps=90000", "trainer.eval_every=10000", "device.threads=1", "seed=1,2,3,4")
        one, two = alternate(
            pairs,
            lambda: _sweep(place, *long),
            lambda: _sweep(place, *long, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
        )
    yield Comparison(
        "seconds for 4 jobs of some 10 s on one thread: one by one / joblib, two at a time", one, two, "wall"
    )


def search(pairs: int) -> Iterator[Comparison]:
    """30 trials over optim.lr with pruning against the same search without, each pair with a seed of its own."""
    steps, seed_of = ("trainer.steps=2000", "trainer.eval_every=100"), _in_pairs(range(100, 10**6))
    space = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=30", "optim.lr=tag(log, interval(1e-4, 1))")

    def trials(place: Path, pruner: str) -> Figures:
        return _sweep(place, *space, *steps, f"hydra.sweeper.pruner={pruner}", f"hydra.sweeper.seed={seed_of()}")

    with workplace() as place:
        pruned, whole = alternate(pairs, lambda: trials(place, "percentile"), lambda: trials(place, "none"))
        seeds_alone = _sweep(place, "optim.lr=0.02", *steps, "seed=1,2,3,4,5,6,7,8")
    yield Comparison("steps taken: with pruning / without", pruned, whole, "steps")
    yield Comparison("lowest final val loss found: with pruning / without", pruned, whole, "best")
    noise = {"std": seeds_alone["std"]}
    gained = [{"std": a["best"] - b["best"]} for a, b in zip(pruned, whole, strict=True)]
    yield Comparison("val loss lost by pruning / standard deviation over 8 seeds", gained, [noise] * pairs, "std")


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """Make a folder that is deleted afterwards, with the tutorial's script in it. UserError without Shakespeare."""
    text = paths.home() / "sources" / "shakespeare.txt"
    require(text.is_file(), f"{text}: is not there; `python scripts/train.py` downloads it")
    with tempfile.TemporaryDirectory(prefix="bigramlm-bench-") as folder:
        place = Path(folder)
        (place / "tutorial.py").write_text(TUTORIAL, "utf-8")
        yield place


def _process(*arguments: str) -> tuple[float, str]:
    # (seconds from start to end, standard output)
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    require(done.returncode == 0, f"{' '.join(arguments[:2])[:200]} failed:\n{done.stderr}")
    return seconds, done.stdout


def _train(place: Path, *overrides: str, program: tuple[str, ...] = (str(SCRIPT),)) -> Figures:
    return _figures(*run(place, *overrides, program=program))


def run(place: Path, *overrides: str, program: tuple[str, ...] = (str(SCRIPT),)) -> tuple[float, Path]:
    """Train in a folder of this place; returns seconds from start to end, and the run's folder."""
    folder = Path(tempfile.mkdtemp(dir=place)) / "run"
    return _process(*program, f"hydra.run.dir={folder}", *overrides)[0], folder


def _records(run: Path) -> list[dict[str, Any]]:
    return list(read_records(run / "metrics.jsonl"))


def _figures(wall: float, run: Path) -> Figures:
    summary, records = json.loads((run / "summary.json").read_text("utf-8")), _records(run)
    per_step = 32 * 8  # of the default run
    # Steady: the median record of the run's second half.
    rates = [r["tokens_per_second"] for r in records[len(records) // 2 :] if "tokens_per_second" in r]
    return {
        "wall": wall,
        "seconds": summary["seconds"],
        "steps": summary["step"] / summary["seconds"],
        "steady": statistics.median(rates) / per_step,
        "val": summary["final"]["val/loss"],
    }


def _in_pairs(seeds: Iterable[int]) -> Callable[[], int]:
    # What gives each seed twice: two runs in a row are a pair.
    twice = (seed for seed in seeds for _ in range(2))
    return lambda: next(twice)


def looking_alike(*recipe: str, times: int) -> list[str]:
    """Return overrides that make a run evaluate so many times, over the whole of val, and over as much of train."""
    cfg = composed_config(*recipe)
    text = cfg.data.prepare().read()
    assert isinstance(text, Text)
    n_val = text.n_characters - text.split - 1
    batches = -(-n_val // (cfg.data.batch_size * cfg.data.block_size))
    return [f"trainer.eval_every={-(-cfg.trainer.steps // times)}", f"trainer.eval_batches={batches}"]


def _sweep(place: Path, *overrides: str) -> Figures:
    folder = Path(tempfile.mkdtemp(dir=place)) / "sweep"
    wall, _ = _process(str(SCRIPT), "-m", f"hydra.sweep.dir={folder}", *overrides)
    with (folder / "results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["val/loss"]) for row in rows if row["val/loss"]]
    std = statistics.stdev(losses) if len(losses) > 1 else 0.0
    return {"wall": wall, "steps": float(sum(int(row["step"]) for row in rows)), "best": min(losses), "std": std}


def _tutorial(place: Path) -> Figures:
    wall, output = _process(str(place / "tutorial.py"), str(paths.home() / "sources" / "shakespeare.txt"))
    return {"wall": wall, "steps": 10_000 / float(output.split()[1])}


def first_step(place: Path, *overrides: str) -> Figures:
    """Seconds from the command to the first step; place: a folder for the run."""
    # The record of step 0 is written when the first update is done.
    run = Path(tempfile.mkdtemp(dir=place)) / "run"
    command = [sys.executable, str(SCRIPT), f"hydra.run.dir={run}", "trainer.steps=1", *overrides]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        metrics = run / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size):
            require(process.poll() is None, "bench startup: the run ended without a step")
            time.sleep(0.002)
        return {"wall": time.perf_counter() - started}
