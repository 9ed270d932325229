"""Two versions of bigramlm on this machine: whether their runs have the same bits, and which is faster."""

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

# Runs that end soon, and evaluate, save and record on the way.
_SHORT = ("data=bundled", "logger=none", "trainer.eval_batches=20", "sample.max_new_tokens=100")
_STEPS = (*_SHORT, "trainer.steps=60", "trainer.eval_every=20", "trainer.checkpoint_every=20", "trainer.log_every=10")
_SMALL = ("model.n_layer=2", "model.n_head=2", "model.n_embd=32", "model.dropout=0.1", "data.block_size=32")
_CUT = ("logger=none", "trainer.steps=60", "trainer.eval_every=30", "trainer.checkpoint_every=30")


@dataclass(frozen=True)
class Case:
    """A run, or a sweep, that both versions make."""

    words: tuple[str, ...]
    """The words to type. {runs} is the version's folder of runs, {pairs} a file of pairs."""
    sweeps: bool = False
    killed_at: int | None = None
    """The step whose checkpoint is there when the run is killed, and resumed."""


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
    "killed": Case(("model=gpt", *_SMALL, *_SHORT, *_LONGER), killed_at=200),
    "sweep": Case(_GRID, sweeps=True),
    "sweep_joblib": Case((*_GRID, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"), sweeps=True),
    "search": Case(_SEARCH, sweeps=True),
}
# Columns of results.csv that tell of the clock or the place.
_APART = {"folder", "seconds", "tokens_per_second"}


class Same:
    """The first difference between two versions in the bits of a run or sweep, if there is one."""

    def __init__(self, title: str, difference: str | None) -> None:
        """difference: the first one that was found."""
        self.title = title
        self.difference = difference

    @property
    def ok(self) -> bool:
        return self.difference is None

    def to_dict(self) -> dict[str, object]:
        return {"title": self.title, "difference": self.difference}

    def __str__(self) -> str:
        return f"{self.title}: {self.difference or 'the same bits'}"


class Version:
    """A version of bigramlm in a folder, whose commands are run there."""

    def __init__(self, tree: Path, runs: Path) -> None:
        """Take a folder for what its runs leave."""
        self.tree = tree
        self.runs = runs
        self.env = {**os.environ, "PYTHONPATH": str(tree)}

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start its train.py with these overrides."""
        command = [sys.executable, str(self.tree / "scripts" / "train.py"), *words]
        # Its output goes to a file: a pipe that nobody reads would fill.
        with (self.runs / "output.txt").open("w") as output:
            return subprocess.Popen(command, cwd=self.runs, env=self.env, stdout=output, stderr=output, text=True)

    def train(self, *words: str) -> float:
        """Run its train.py with these overrides, and return the seconds. UserError where it fails."""
        began = time.perf_counter()
        process = self.start(*words)
        code = process.wait()
        said = (self.runs / "output.txt").read_text("utf-8", "replace")
        require(code == 0, f"{self.tree}: train.py {' '.join(words)}: ended with exit code {code}: {said[-500:]}")
        return time.perf_counter() - began

    def make(self, name: str, case: Case, pairs: Path) -> Path:
        """Make a case, and return its folder. UserError where it fails, or is over before it could be killed."""
        folder = self.runs / name
        words = [word.format(runs=self.runs, pairs=pairs) for word in case.words]
        if case.sweeps:
            self.train("-m", f"hydra.sweep.dir={folder}", *words)
        elif case.killed_at is None:
            self.train(f"hydra.run.dir={folder}", *words)
        else:
            process = self.start(f"hydra.run.dir={folder}", *words)
            while process.poll() is None and not (folder / "checkpoints" / f"step_{case.killed_at}").exists():
                time.sleep(0.001)
            process.kill()
            require(process.wait() != 0, f"{self.tree}: the run was complete before it could be killed")
            self.train(f"resume={folder}")
        return folder


def bits(pairs: int, *versions: str) -> Iterator[Same]:  # noqa: ARG001 - once is enough
    """OLD NEW: whether runs of two versions (commits, or checkouts) have the same bits.

    Weights, optimizers, random states, records but for the clock, samples and tables, of runs of many kinds.
    """
    from bigramlm.cli.verify_resume import compare

    with _both(versions) as (old, new):
        examples = old.runs.parent.parent / "pairs.jsonl"
        texts = paths.bundled_text().read_text("utf-8").split("\n\n")[:200]
        lines = [json.dumps({"prompt": text[:12], "completion": text[12:60] or "-"}) + "\n" for text in texts]
        examples.write_text("".join(lines), "utf-8")
        for name, case in CASES.items():
            a, b = (version.make(name, case, examples) for version in (old, new))
            yield Same(name, _compare_sweeps(a, b) if case.sweeps else compare(a, b))


def _compare_sweeps(old: Path, new: Path) -> str | None:
    from bigramlm.cli.verify_resume import compare

    tables = []
    for folder in (old, new):
        with (folder / "results.csv").open(encoding="utf-8") as file:
            tables.append([{n: value for n, value in row.items() if n not in _APART} for row in csv.DictReader(file)])
    if tables[0] != tables[1]:
        return "results.csv differs"
    for row in tables[0]:
        if difference := compare(old / row["job"], new / row["job"]):
            return f"job {row['job']}: {difference}"
    return None


def versions(pairs: int, *names: str) -> Iterator[Comparison]:
    """OLD NEW: two versions (commits, or checkouts): seconds of the default run, a step, the start, a sweep."""
    with _both(names) as (old, new):

        def compared(measure: Callable[[Version], Figures], title: str, figure: str, n: int = pairs) -> Comparison:
            of_new, of_old = alternate(n, partial(measure, new), partial(measure, old))
            return Comparison(f"{title}: new / old", of_new, of_old, figure)

        yield compared(_bigram, "seconds of training, the default run of 10,000 steps", "seconds")
        yield compared(_step, "seconds for a step, experiment=gpt_cpu", "seconds")
        yield compared(_started, "seconds from the command to the first step", "seconds", 3 * pairs)
        yield compared(partial(_printed, "--help"), "seconds for --help", "seconds", 3 * pairs)
        yield compared(partial(_printed, "optim.lr=-1"), "seconds for a refusal", "seconds", 3 * pairs)
        yield compared(_swept, "seconds from the command to its end, 32 jobs of 200 steps", "seconds")


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


def _started(version: Version) -> Figures:
    folder = _folder(version)
    began = time.perf_counter()
    process = version.start(f"hydra.run.dir={folder}", "trainer.steps=1")
    metrics = folder / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size):
        require(process.poll() is None, f"{version.tree}: the run ended without a step")
        time.sleep(0.002)
    seconds = time.perf_counter() - began
    process.wait()
    return {"seconds": seconds}


def _printed(word: str, version: Version) -> Figures:
    began = time.perf_counter()
    version.start(word).wait()
    return {"seconds": time.perf_counter() - began}


def _swept(version: Version) -> Figures:
    words = (f"hydra.sweep.dir={_folder(version)}", "trainer.steps=200", "trainer.eval_every=200", "seed=range(0,32)")
    return {"seconds": version.train("-m", *words)}


def _folder(version: Version) -> Path:
    return Path(tempfile.mkdtemp(dir=version.runs)) / "run"


@contextlib.contextmanager
def _both(versions: Sequence[str]) -> Iterator[tuple[Version, Version]]:
    require(
        len(versions) == 2, f"{' '.join(versions) or 'nothing'}: must be two versions, OLD NEW: commits, or folders"
    )
    with tempfile.TemporaryDirectory(prefix="bigramlm-versions-") as folder:
        made = []
        for name, side in zip(versions, ("old", "new"), strict=True):
            place = Path(folder) / side
            (place / "runs").mkdir(parents=True)
            made.append(Version(_tree(name, place / "tree"), place / "runs"))
        yield made[0], made[1]


def _tree(version: str, to: Path) -> Path:
    # The files of a commit, or of a folder as it stands, with the same text to train on.
    given = Path(version)
    if (given / "scripts" / "train.py").is_file():
        kept_out = shutil.ignore_patterns(".*", "outputs", "tests", "__pycache__", "*.egg-info")
        shutil.copytree(given, to, ignore=kept_out)
    else:
        to.mkdir()
        git = ["git", "-C", str(paths.home()), "archive", version]
        archive = subprocess.run(git, capture_output=True, check=False)
        if archive.returncode != 0:
            raise UserError(f"{version}: is no commit, and no folder of a checkout: {archive.stderr.decode().strip()}")
        subprocess.run(["tar", "-x", "-C", str(to)], input=archive.stdout, check=True)
    text = paths.home() / "sources" / "shakespeare.txt"
    if text.is_file():
        shutil.copy(text, to / "sources")
    return to
