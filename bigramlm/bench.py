"""Benchmarks that compare two things in one run, in alternating pairs: machines are noisy, ratios less so.

What is printed is the median over the pairs, with the least and the greatest.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from bigramlm import paths
from bigramlm.errors import UserError, require

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
from bigramlm.checkpoint import Checkpoints
from bigramlm.train import main

Checkpoints.save = lambda *arguments, **keywords: None
main()
"""

SCRIPT = paths.home() / "scripts" / "train.py"

Figures = dict[str, float]


def bigram(pairs: int) -> Iterator[Comparison]:
    """the default run against the tutorial's loop, 10,000 steps each: steps a second, and whole processes"""
    with _workplace() as place:
        ours, loop = _alternate(pairs, lambda: _train(place), lambda: _tutorial(place))
    yield Comparison("steps a second: the Trainer, evaluating, logging and saving / the loop", ours, loop, "steps")
    yield Comparison("seconds from the command to its end: train.py / the loop's script", ours, loop, "wall")


def compiled(pairs: int) -> Iterator[Comparison]:
    """device.compile=true, once compiled, against the tutorial's loop: steps a second"""
    options = (
        "device.compile=true",
        "trainer.steps=30000",
        "trainer.eval_every=30000",
        "trainer.checkpoint_every=30000",
    )
    with _workplace() as place:
        ours, loop = _alternate(pairs, lambda: _train(place, *options), lambda: _tutorial(place))
    yield Comparison("steps a second: the compiled step, once compiled / the loop", ours, loop, "steady")


def startup(pairs: int) -> Iterator[Comparison]:
    """from the command to the first step, against importing torch: seconds"""
    with _workplace() as place:
        ours, bare = _alternate(pairs, lambda: _first_step(place), lambda: {"wall": _process("-c", "import torch")[0]})
    yield Comparison("seconds from the command to the first step / import torch", ours, bare, "wall")


def checkpoint(pairs: int) -> Iterator[Comparison]:
    """the default run, which saves every 1,000 steps, against the same run that saves nothing: seconds of training"""
    with _workplace() as place:
        saving, not_saving = _alternate(pairs, lambda: _train(place), lambda: _train(place, program=("-c", NOT_SAVING)))
    yield Comparison("seconds of training: saving every 1,000 steps / saving nothing", saving, not_saving, "seconds")


def sweep(pairs: int) -> Iterator[Comparison]:
    """32 jobs of 200 steps against one run of as many steps, and jobs of some 10 s two at a time against one by one"""
    n, short = 32, "trainer.eval_every=200"
    with _workplace() as place:
        jobs, run = _alternate(
            pairs,
            lambda: _sweep(place, "trainer.steps=200", short, f"seed=range(0,{n})"),
            lambda: _train(place, f"trainer.steps={200 * n}", "trainer.eval_every=100000"),
        )
        yield Comparison(
            "seconds from the command to its end: 32 jobs of 200 steps / 6,400 steps", jobs, run, "wall", n
        )
        long = ("trainer.steps=90000", "trainer.eval_every=10000", "device.threads=1", "seed=1,2,3,4")
        one, two = _alternate(
            pairs,
            lambda: _sweep(place, *long),
            lambda: _sweep(place, *long, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
        )
    yield Comparison(
        "seconds for 4 jobs of some 10 s on one thread: one by one / joblib, two at a time", one, two, "wall"
    )


def search(pairs: int) -> Iterator[Comparison]:
    """30 trials over optim.lr with pruning against the same search without, each pair with a seed of its own"""
    steps, seeds = ("trainer.steps=2000", "trainer.eval_every=100"), iter(range(100, 10**6))
    space = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=30", "optim.lr=tag(log, interval(1e-4, 1))")
    order: list[int] = []

    def trials(place: Path, pruner: str) -> Figures:
        # Two searches in a row have the same seed.
        order.append(order[-1] if len(order) % 2 else next(seeds))
        return _sweep(place, *space, *steps, f"hydra.sweeper.pruner={pruner}", f"hydra.sweeper.seed={order[-1]}")

    with _workplace() as place:
        pruned, whole = _alternate(pairs, lambda: trials(place, "percentile"), lambda: trials(place, "none"))
        seeds_alone = _sweep(place, "optim.lr=0.02", *steps, "seed=1,2,3,4,5,6,7,8")
    yield Comparison("steps taken: with pruning / without", pruned, whole, "steps")
    yield Comparison("lowest final val loss found: with pruning / without", pruned, whole, "best")
    noise = {"std": seeds_alone["std"]}
    gained = [{"std": a["best"] - b["best"]} for a, b in zip(pruned, whole, strict=True)]
    yield Comparison("val loss lost by pruning / standard deviation over 8 seeds", gained, [noise] * pairs, "std")


def generate(pairs: int) -> Iterator[Comparison]:
    """1,000 characters from a fresh GPT of 6 layers, 384 wide, block 256: with the key/value cache against without"""
    import torch

    from bigramlm.device.config import DeviceConfig
    from bigramlm.device.device import decide, set_up
    from bigramlm.generate import generate as write
    from bigramlm.model.config import GPTConfig

    cfg = GPTConfig(n_layer=6, n_head=6, n_embd=384)
    model = cfg.build(vocab_size=65, block_size=256)
    device = set_up(decide(DeviceConfig(), n_params=model.n_params(), tokens=model.block_size))
    model.to(device.torch)
    start = torch.zeros((1, 1), dtype=torch.long, device=device.torch)

    def rate(*, cached: bool) -> Figures:
        started = time.perf_counter()
        write(model, start, 1000, temperature=1.0, seed=0, device=device, cached=cached)
        device.synchronize()
        return {"rate": 1000 / (time.perf_counter() - started)}

    with_, without = _alternate(pairs, lambda: rate(cached=True), lambda: rate(cached=False))
    yield Comparison("characters a second: with the cache / without", with_, without, "rate")


def threads(pairs: int) -> Iterator[Comparison]:
    """one thread against all cores, for steps of several sizes, on a quiet and on a busy machine: steps a second"""
    import torch

    from bigramlm.device.device import is_small

    cores = torch.get_num_threads()
    require(cores > 1, "bench threads: this machine has one core, and nothing to compare")
    for busy in (False, True):
        with _busy(1 if busy else 0):
            for width in (16, 32, 64, 128, 256):
                step, n_params, tokens = _sized_step(width)
                one, all_ = _alternate(pairs, partial(_rate, step, 1), partial(_rate, step, cores))
                auto = "1" if is_small(n_params=n_params, tokens=tokens) else "all"
                yield Comparison(
                    f"steps a second: 1 thread / {cores} threads; {6 * n_params * tokens:.1e} operations a step, "
                    f"{'one other process busy' if busy else 'nothing else running'}; auto takes {auto}",
                    *(one, all_, "steps"),
                )


BENCHMARKS: dict[str, Callable[[int], Iterator[Comparison]]] = {
    "bigram": bigram,
    "compiled": compiled,
    "startup": startup,
    "checkpoint": checkpoint,
    "generate": generate,
    "threads": threads,
    "sweep": sweep,
    "search": search,
}


class Comparison:
    """Two things measured in pairs, and the ratio of one figure of theirs, pair by pair."""

    def __init__(self, title: str, a: list[Figures], b: list[Figures], figure: str, each: int | None = None) -> None:
        """each: what the difference is shared among, where it is to be told too."""
        self.title = title
        self.each = each
        self.a = [figures[figure] for figures in a]
        self.b = [figures.get(figure, figures.get("steps", 0.0)) for figures in b]
        self.ratios = [a / b for a, b in zip(self.a, self.b, strict=True)]

    def to_dict(self) -> dict[str, object]:
        return {"title": self.title, "a": self.a, "b": self.b, "ratios": self.ratios}

    def __str__(self) -> str:
        def spread(values: list[float]) -> str:
            return f"{statistics.median(values):.4g} ({min(values):.4g} to {max(values):.4g})"

        lines = [
            self.title,
            f"{spread(self.a)} / {spread(self.b)}",
            f"ratio {spread(self.ratios)}, {len(self.a)} pairs",
        ]
        if self.each:
            lines.append(f"difference, for each of {self.each}: {spread(self.differences)}")
        return "\n  ".join(lines)

    @property
    def differences(self) -> list[float]:
        return [(a - b) / (self.each or 1) for a, b in zip(self.a, self.b, strict=True)]


def main() -> None:
    """Run the command line: python scripts/bench.py NAME"""
    about = "\n".join(f"  {name:<10}{benchmark.__doc__}" for name, benchmark in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        "bench.py", description=f"{__doc__}\n{about}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=BENCHMARKS, help="what to compare")
    parser.add_argument("--pairs", type=int, default=7, help="how many pairs to measure (7)")
    parser.add_argument("--json", action="store_true", help="print every figure as JSON, a line a comparison")
    arguments = parser.parse_args()
    try:
        require(arguments.pairs >= 1, f"--pairs={arguments.pairs}: must be 1 or more")
        for comparison in BENCHMARKS[arguments.name](arguments.pairs):
            print(json.dumps(comparison.to_dict()) if arguments.json else comparison, flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _alternate(pairs: int, a: Callable[[], Figures], b: Callable[[], Figures]) -> tuple[list[Figures], list[Figures]]:
    # A B, B A, A B, ...: what drifts hits both alike. The first of each warms the caches and is not counted.
    a(), b()
    measured: tuple[list[Figures], list[Figures]] = ([], [])
    for pair in range(pairs):
        for which in (0, 1) if pair % 2 == 0 else (1, 0):
            measured[which].append((a, b)[which]())
    return measured


@contextlib.contextmanager
def _workplace() -> Iterator[Path]:
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
    run = Path(tempfile.mkdtemp(dir=place)) / "run"
    wall, _ = _process(*program, f"hydra.run.dir={run}", *overrides)
    summary = json.loads((run / "summary.json").read_text("utf-8"))
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    per_step = 32 * 8
    # Steady: the median record of the run's second half.
    rates = [r["tokens_per_second"] for r in records[len(records) // 2 :] if "tokens_per_second" in r]
    return {
        "wall": wall,
        "seconds": summary["seconds"],
        "steps": summary["step"] / summary["seconds"],
        "steady": statistics.median(rates) / per_step,
    }


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


def _first_step(place: Path) -> Figures:
    # The record of step 0 is written when the first update is done.
    run = Path(tempfile.mkdtemp(dir=place)) / "run"
    command = [sys.executable, str(SCRIPT), f"hydra.run.dir={run}", "trainer.steps=1"]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        metrics = run / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size):
            require(process.poll() is None, "bench startup: the run ended without a step")
            time.sleep(0.002)
        return {"wall": time.perf_counter() - started}


def _sized_step(width: int) -> tuple[Callable[[], None], int, int]:
    # An update of two transformer layers of this width, 12 sequences of 64, standing in for models to come.
    import torch

    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, 2)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    x = torch.randn(12, 64, width)

    def step() -> None:
        loss = model(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step, sum(p.numel() for p in model.parameters()), x.shape[0] * x.shape[1]


def _rate(step: Callable[[], None], n_threads: int) -> Figures:
    import torch

    torch.set_num_threads(n_threads)
    step()
    started, n = time.perf_counter(), 0
    while time.perf_counter() - started < 0.5:
        step()
        n += 1
    return {"steps": n / (time.perf_counter() - started)}


def _spin() -> None:
    while True:
        pass


@contextlib.contextmanager
def _busy(n: int) -> Iterator[None]:
    spinning = [multiprocessing.get_context("spawn").Process(target=_spin, daemon=True) for _ in range(n)]
    for process in spinning:
        process.start()
    try:
        yield
    finally:
        for process in spinning:
            process.terminate()
            process.join()
