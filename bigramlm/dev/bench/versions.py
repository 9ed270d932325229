"""Comparisons of two versions of bigramlm: bit-equality of runs, and speed."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bigramlm.dev.bench.measure import Comparison, Figures, alternate
from bigramlm.errors import UserError, require
from bigramlm.utils import paths

# Overrides of short runs that still evaluate, save checkpoints and log records.
_SHORT = ("data=bundled", "logger=none", "trainer.eval_batches=20", "sample.max_new_tokens=100")
_STEPS = (*_SHORT, "trainer.steps=60", "trainer.eval_every=20", "trainer.checkpoint_every=20", "trainer.log_every=10")
_SMALL = ("model.n_layer=2", "model.n_head=2", "model.n_embd=32", "model.dropout=0.1", "data.block_size=32")
_CUT = ("logger=none", "trainer.steps=60", "trainer.eval_every=30", "trainer.checkpoint_every=30")


@dataclass(frozen=True)
class Case:
    """A run or sweep that both versions execute."""

    overrides: tuple[str, ...]
    """The command-line overrides. {runs} is replaced by the folder of the version's runs, and {pairs} by the path of a
    file of prompts and completions."""
    is_sweep: bool = False
    kill_at: int | None = None
    """The run is killed once the checkpoint of this step is saved, and is then resumed. None: the run is not killed."""


_BPE = ("model=gpt", "tokenizer=bpe", "tokenizer.vocab_size=300", *_SMALL, *_STEPS)
_GRID = ("optim.lr=1e-3,1e-2", "seed=1,2,3", *_STEPS)
_SEARCH = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=8", "optim.lr=tag(log, interval(1e-4, 1))", *_STEPS)
_LONGER = ("trainer.steps=400", "trainer.eval_every=50", "trainer.checkpoint_every=50")

CASES: dict[str, Case] = {
    "bigram": Case(()),
    "gpt_cpu": Case(("experiment=gpt_cpu", *_CUT)),
    "gpt_ngram_cpu": Case(("experiment=gpt_ngram_cpu", *_CUT)),
    "gpt": Case(("model=gpt", *_SMALL, *_STEPS)),
    "bpe": Case(_BPE),
    "pairs": Case((*_BPE, "data=pairs", "data.path={pairs}")),
    "lora": Case(("init_from={runs}/gpt", "adapter=lora", "adapter.r=4", *_STEPS)),
    "ngram": Case(("model=ngram", *_STEPS)),
    "compiled": Case(("device.compile=true", *_SHORT, "trainer.steps=400", "trainer.eval_every=150")),
    "killed": Case(("model=gpt", *_SMALL, *_SHORT, *_LONGER), kill_at=200),
    "sweep": Case(_GRID, is_sweep=True),
    "sweep_joblib": Case((*_GRID, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"), is_sweep=True),
    "search": Case(_SEARCH, is_sweep=True),
}
# Columns of results.csv that differ between equal runs, because they contain times and paths.
_NOT_COMPARED = {"folder", "seconds", "tokens_per_second"}


class BitComparison:
    """The first difference, in bits, between the results of two versions."""

    def __init__(self, title: str, difference: str | None) -> None:
        """Store the first difference; None if the results are bit-equal."""
        self.title = title
        self.difference = difference

    @property
    def ok(self) -> bool:
        return self.difference is None

    def to_dict(self) -> dict[str, object]:
        return {"title": self.title, "difference": self.difference}

    def __str__(self) -> str:
        return f"{self.title}: {self.difference or 'bit-equal'}"


class Version:
    """A version of bigramlm: a source tree, and a folder for the runs of its train.py."""

    def __init__(self, tree: Path, runs: Path) -> None:
        """Store the source tree and the folder for its runs."""
        self.tree = tree
        self.runs = runs
        self.env = {**os.environ, "PYTHONPATH": str(tree)}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start this version's train.py with these arguments."""
        command = [sys.executable, str(self.tree / "scripts" / "train.py"), *arguments]
        # The output goes to a file, because a pipe that is not read would fill up and block the process.
        with (self.runs / "output.txt").open("w") as output:
            return subprocess.Popen(command, cwd=self.runs, env=self.env, stdout=output, stderr=output, text=True)

    def train(self, *arguments: str) -> float:
        """Run this version's train.py and return its duration in seconds.

        Raises UserError if the command fails.
        """
        began = time.perf_counter()
        process = self.start(*arguments)
        code = process.wait()
        output = (self.runs / "output.txt").read_text("utf-8", "replace")
        require(code == 0, f"{self.tree}: train.py {' '.join(arguments)} failed with exit code {code}: {output[-500:]}")
        return time.perf_counter() - began

    def run_case(self, name: str, case: Case, pairs: Path) -> Path:
        """Run a case and return the run folder or the sweep folder.

        Raises UserError if the case fails, or if the run completes before it can be killed.
        """
        folder = self.runs / name
        overrides = [override.format(runs=self.runs, pairs=pairs) for override in case.overrides]
        if case.is_sweep:
            self.train("-m", f"hydra.sweep.dir={folder}", *overrides)
        elif case.kill_at is None:
            self.train(f"hydra.run.dir={folder}", *overrides)
        else:
            process = self.start(f"hydra.run.dir={folder}", *overrides)
            while process.poll() is None and not (folder / "checkpoints" / f"step_{case.kill_at}").exists():
                time.sleep(0.001)
            process.kill()
            require(process.wait() != 0, f"{self.tree}: the run completed before it could be killed")
            self.train(f"resume={folder}")
        return folder


def bits(pairs: int, *versions: str) -> Iterator[BitComparison]:  # noqa: ARG001 - one comparison is enough
    """Compare runs of two versions bit by bit.

    Requires two arguments, OLD and NEW. Each is a commit or the folder of a checkout. Compares the weights, optimizer
    states, random states, records (except for times, and fields that only NEW records), samples and results of many
    kinds of runs and sweeps.
    """
    from bigramlm.cli.verify_resume import compare

    with _both(versions) as (old, new):
        pairs_file = old.runs.parent.parent / "pairs.jsonl"
        texts = paths.bundled_text().read_text("utf-8").split("\n\n")[:200]
        lines = [json.dumps({"prompt": text[:12], "completion": text[12:60] or "-"}) + "\n" for text in texts]
        pairs_file.write_text("".join(lines), "utf-8")
        for name, case in CASES.items():
            a, b = (version.run_case(name, case, pairs_file) for version in (old, new))
            yield BitComparison(name, _compare_sweeps(a, b) if case.is_sweep else compare(a, b, may_add=True))


def _compare_sweeps(old: Path, new: Path) -> str | None:
    from bigramlm.cli.verify_resume import compare

    tables = []
    for folder in (old, new):
        with (folder / "results.csv").open(encoding="utf-8") as file:
            tables.append(
                [
                    {name: value for name, value in row.items() if name not in _NOT_COMPARED}
                    for row in csv.DictReader(file)
                ]
            )
    if tables[0] != tables[1]:
        return "results.csv differs"
    for row in tables[0]:
        if difference := compare(old / row["job"], new / row["job"], may_add=True):
            return f"job {row['job']}: {difference}"
    return None


def versions(pairs: int, *names: str) -> Iterator[Comparison]:
    """Compare the speed of two versions.

    Requires two arguments, OLD and NEW. Each is a commit or the folder of a checkout. The figures are the seconds of
    training in the default run, per step, to the first step, for --help, for an error message and for a sweep.
    """
    with _both(names) as (old, new):

        def compared(measure: Callable[[Version], Figures], title: str, figure: str, n: int = pairs) -> Comparison:
            new_figures, old_figures = alternate(n, partial(measure, new), partial(measure, old))
            return Comparison(f"{title}: new / old", new_figures, old_figures, figure)

        yield compared(_bigram, "seconds of training, the default run of 10,000 steps", "seconds")
        yield compared(_step, "seconds per step, experiment=gpt_cpu", "seconds")
        yield compared(_first_step, "seconds from start to the first step", "seconds", 3 * pairs)
        yield compared(partial(_printed, "--help"), "seconds for --help", "seconds", 3 * pairs)
        yield compared(partial(_printed, "optim.lr=-1"), "seconds for an error message", "seconds", 3 * pairs)
        yield compared(_sweep, "seconds from start to exit, 32 jobs of 200 steps", "seconds")


def _bigram(version: Version) -> Figures:
    folder = _folder(version)
    version.train(f"hydra.run.dir={folder}")
    return {"seconds": json.loads((folder / "summary.json").read_text("utf-8"))["seconds"]}


def _step(version: Version) -> Figures:
    folder = _folder(version)
    version.train(
        *(f"hydra.run.dir={folder}", "experiment=gpt_cpu", "trainer.steps=201", "trainer.log_every=50", "logger=none"),
        *("trainer.eval_every=1000", "trainer.checkpoint_every=1000", "trainer.eval_batches=1"),
    )
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    rates = [record["tokens_per_second"] for record in map(json.loads, lines) if "tokens_per_second" in record]
    return {"seconds": 8 * 128 / max(rates)}


def _first_step(version: Version) -> Figures:
    folder = _folder(version)
    began = time.perf_counter()
    process = version.start(f"hydra.run.dir={folder}", "trainer.steps=1")
    metrics = folder / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size):
        require(process.poll() is None, f"{version.tree}: the run ended before its first step")
        time.sleep(0.002)
    seconds = time.perf_counter() - began
    process.wait()
    return {"seconds": seconds}


def _printed(argument: str, version: Version) -> Figures:
    began = time.perf_counter()
    version.start(argument).wait()
    return {"seconds": time.perf_counter() - began}


def _sweep(version: Version) -> Figures:
    arguments = (
        f"hydra.sweep.dir={_folder(version)}",
        "trainer.steps=200",
        "trainer.eval_every=200",
        "seed=range(0,32)",
    )
    return {"seconds": version.train("-m", *arguments)}


def _folder(version: Version) -> Path:
    return Path(tempfile.mkdtemp(dir=version.runs)) / "run"


@contextlib.contextmanager
def _both(versions: Sequence[str]) -> Iterator[tuple[Version, Version]]:
    require(
        len(versions) == 2,
        f"{' '.join(versions) or 'no arguments'}: two versions are required, OLD NEW: commits or folders of checkouts",
    )
    with tempfile.TemporaryDirectory(prefix="bigramlm-versions-") as folder:
        both = []
        for name, side in zip(versions, ("old", "new"), strict=True):
            version_folder = Path(folder) / side
            (version_folder / "runs").mkdir(parents=True)
            both.append(Version(_tree(name, version_folder / "tree"), version_folder / "runs"))
        yield both[0], both[1]


def _tree(version: str, to: Path) -> Path:
    # Copies the files of a commit or folder, and the text that both versions train on.
    folder = Path(version)
    if (folder / "scripts" / "train.py").is_file():
        ignore = shutil.ignore_patterns(".*", "outputs", "tests", "__pycache__", "*.egg-info")
        shutil.copytree(folder, to, ignore=ignore)
    else:
        to.mkdir()
        git = ["git", "-C", str(paths.home()), "archive", version]
        archive = subprocess.run(git, capture_output=True, check=False)
        if archive.returncode != 0:
            raise UserError(
                f"{version} is neither a commit nor the folder of a checkout: {archive.stderr.decode().strip()}"
            )
        subprocess.run(["tar", "-x", "-C", str(to)], input=archive.stdout, check=True)
    text = paths.home() / "sources" / "shakespeare.txt"
    if text.is_file():
        shutil.copy(text, to / "sources")
    return to
