"""Shared by the tests: configs, commands in this process and in others, refusals, small models, texts and servers."""

from __future__ import annotations

import atexit
import contextlib
import csv
import functools
import hashlib
import http.server
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch.nn import functional as F

from bigramlm.cli import train, verify_resume
from bigramlm.config.run_config import RunConfig, to_run_config
from bigramlm.data.batches import Split, Stream
from bigramlm.data.corpus import Corpus
from bigramlm.device.device import Device, set_up
from bigramlm.engine import build as parts
from bigramlm.engine.resolve import resolve_for_model
from bigramlm.errors import UserError
from bigramlm.logger.base import LoggerContext
from bigramlm.logger.config import LoggerConfig
from bigramlm.logger.metrics import Metrics
from bigramlm.model.base import LanguageModel
from bigramlm.model.bigram import Bigram
from bigramlm.model.config import GPTConfig
from bigramlm.runs.folder import RunFolder
from bigramlm.runs.summary import RunSummary
from bigramlm.tokenizer.char import CharTokenizer
from bigramlm.tokenizer.subword import train_bpe
from bigramlm.trainer.trainer import Hooks, Trainer
from bigramlm.utils import paths

SCRIPT = paths.home() / "scripts" / "train.py"

# A run that is over at once.
SHORT = ("data=bundled", "trainer.steps=5", "trainer.eval_every=2", "logger=none", "sample.max_new_tokens=20")

# Every preset of a model, and those that make a GPT of some kind; found, so that a new one is tested too.
PRESETS = sorted(path.stem for path in (paths.conf_dir() / "model").glob("*.yaml"))

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="runs are forked, to be short, which is safe on Linux only")

# Text that a page must show as it stands, and must not run.
HOSTILE = (
    "<script>window.hacked = 1</script>\"'&amp;<b>bold</b></pre></script>--><img src=x onerror=hacked=1>${x}%{y}\u2028"
)


# Configs and commands in this process


@dataclass
class Ended:
    """A command line that has ended: how, and what it printed."""

    code: int
    out: str
    err: str
    folder: Path


Cli = Callable[..., Ended]


def composed(*overrides: str) -> DictConfig:
    """Compose these overrides as Hydra does."""
    train.set_up_hydra()
    with initialize_config_dir(str(paths.conf_dir()), version_base="1.3"):
        return compose("train", train.command_line(list(overrides)))


def run_config(*overrides: str) -> RunConfig:
    """Make the run config of these overrides."""
    return to_run_config(composed(*overrides))


def resumed(cli: Cli, folder: Path, *overrides: str) -> Ended:
    return cli(f"resume={folder}", *overrides, run_dir=False)


def small(preset: str) -> list[str]:
    """Return overrides that make a model of `model=PRESET` small: a test is about what it does, not how well."""
    model = run_config(f"model={preset}").model
    if not isinstance(model, GPTConfig):
        return []
    return [f"model.n_embd={4 * model.n_head}", f"model.n_layer={min(2, model.n_layer)}"]


@functools.cache
def gpts() -> list[str]:
    """Find the presets that make a GPT of some kind."""
    return [preset for preset in PRESETS if isinstance(run_config(f"model={preset}").model, GPTConfig)]


# Refusals


def assert_refused(ended: Ended, *named: object, field: str = "", value: object = "", code: int = 2) -> None:
    """Check that a command refused what it was given, in one line that names the field and the value.

    named: whatever else the line must tell, such as a file, a number, the way out. code: of its exit. Before the line
    there may be others, of what was done until then; after it there is none, and a traceback is nowhere.
    """
    assert ended.code == code, ended.err
    *before, last = ended.err.splitlines() or [""]
    assert last.startswith("error: "), ended.err
    assert not [line for line in before if line.startswith(("error: ", "Traceback"))], ended.err
    _names(last, field, value, *named)
    assert ended.out == "", ended.out


@contextlib.contextmanager
def refuses(*named: object, field: str = "", value: object = "") -> Iterator[pytest.ExceptionInfo[UserError]]:
    """Check that a UserError is raised in the block, in one line that names the field, the value and the rest.

    What it yields has the error, after the block, as its `value`.
    """
    with pytest.raises(UserError) as raised:
        yield raised
    message = str(raised.value)
    assert message, "it says nothing"
    assert "\n" not in message, message
    _names(message, field, value, *named)


def _names(line: str, field: str, value: object, *named: object) -> None:
    for text in (field, value, *named):
        assert str(text) in line, line


# Commands in processes of their own, forked from one that has imported torch: a second or two less each

# Seconds after which something that ends, or comes to pass, is taken to hang: no test is about how long it takes.
PATIENCE = 600.0

# A server that imports what commands import, once for all tests, and does nothing else before it forks: a fork after a
# parallel region of torch would hang in its first one. Where there is no fork, processes are started anew.
_PROCESSES: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
if sys.platform == "linux":
    _PROCESSES.set_forkserver_preload(["tests.helpers", "bigramlm.cli.verify_resume"])


class Started:
    """A command in a process of its own, with its output in files.

    main: a command of the package. setup: called before it, in its process; a function of a module, such as limits to
    set and functions to replace. env: variables to set.
    """

    def __init__(
        self,
        main: Callable[[], object],
        *arguments: str,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        setup: Callable[[], object] | None = None,
    ) -> None:
        self.cwd = cwd or Path.cwd()
        self.files = tempfile.TemporaryDirectory(prefix="command-")
        call = (main, list(arguments), self.cwd, {**os.environ, **(env or {})}, Path(self.files.name), setup)
        self.process = _PROCESSES.Process(target=_call, args=call)
        self.process.start()
        self.pid = int(self.process.pid)

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs, -n where signal n ended it."""
        code: int | None = self.process.exitcode
        return code

    @property
    def out(self) -> str:
        """Read what it has written to standard output."""
        return self._read("stdout")

    @property
    def err(self) -> str:
        """Read what it has written to standard error."""
        return self._read("stderr")

    def send(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it without a warning, and wait for that."""
        if self.code is None:
            self.process.kill()
        self.process.join()

    def end(self) -> Ended:
        """Wait for its end."""
        self.process.join(PATIENCE)
        if self.code is None:
            self.kill()
            raise AssertionError(f"it did not end:\n{self.err}")
        return Ended(self.code, self.out, self.err, self.cwd)

    def _read(self, name: str) -> str:
        path = Path(self.files.name) / name
        return path.read_text("utf-8") if path.exists() else ""


def _call(
    main: Callable[[], object],
    arguments: list[str],
    cwd: Path,
    env: dict[str, str],
    folder: Path,
    setup: Callable[[], object] | None,
) -> None:
    # In the new process: as much like a command that a shell started as a fork can be.
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for name, number in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
        setattr(sys, name, os.fdopen(number, "w", buffering=1, encoding="utf-8", closefd=False))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["the command", *arguments]
    try:
        if setup is not None:
            setup()
        main()
    finally:
        atexit._run_exitfuncs()


def command(
    *arguments: str,
    main: Callable[[], object] = train.main,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    setup: Callable[[], object] | None = None,
) -> Ended:
    """Run a command in a process of its own, to its end; see Started."""
    return Started(main, *arguments, cwd=cwd, env=env, setup=setup).end()


def verified(*arguments: str, setup: Callable[[], object] | None = None) -> Ended:
    """Run verify_resume, which forks its runs, in a process of its own."""
    return command(*arguments, main=verify_resume.main, setup=setup)


@contextlib.contextmanager
def started(
    *arguments: str,
    main: Callable[[], object] = train.main,
    env: dict[str, str] | None = None,
    setup: Callable[[], object] | None = None,
) -> Iterator[Started]:
    """Start a command in a process of its own, which is ended at the latest when the block is."""
    process = Started(main, *arguments, env=env, setup=setup)
    try:
        yield process
    finally:
        process.kill()


def wait_for(there: Callable[[], Any], *, of: Started | None = None) -> Any:
    """Wait for what `there` returns to be true; of: the command that brings it about, and must not end before."""
    until = time.monotonic() + PATIENCE
    while not (found := there()):
        assert of is None or of.code is None or there(), f"it ended:\n{of.err}"
        assert time.monotonic() < until, "it never came"
        time.sleep(0.01)
    return found


# Run folders


def summary(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "summary.json").read_text("utf-8"))
    return found


def cut_back(run: Path, to: Path, step: int) -> Path:
    """Leave what a crash does that came after the records of later steps: all records, checkpoints up to this step."""
    shutil.copytree(run, to)
    for path in (to / "checkpoints").glob("step_*"):
        if int(path.name.removeprefix("step_")) > step:
            shutil.rmtree(path)
    best = json.loads((to / "checkpoints" / f"step_{step}" / "state.json").read_text("utf-8"))["best"]["step"]
    (to / "checkpoints" / "last").write_text(f"step_{step}\n")
    (to / "checkpoints" / "best").write_text(f"step_{best}\n")
    (to / "samples.txt").unlink()
    told = json.loads((to / "summary.json").read_text("utf-8"))
    (to / "summary.json").write_text(json.dumps({**told, "status": "running"}), "utf-8")
    return to


def table(folder: Path, *, but: set[str] = frozenset()) -> list[dict[str, str]]:  # type: ignore[assignment]
    """results.csv, by column, without some of them."""
    with (folder / "results.csv").open(encoding="utf-8") as file:
        return [{name: value for name, value in row.items() if name not in but} for row in csv.DictReader(file)]


def came_to(job: Path, step: int) -> bool:
    """Tell whether a job has a checkpoint of this step, or a later one."""
    return any(int(path.name[5:]) >= step for path in job.glob("checkpoints/step_*"))


FILES = {"config": "config.yaml", "metrics": "metrics.jsonl", "summary": "summary.json", "samples": "samples.txt"}


def run_with(folder: Path, **files: object) -> RunSummary:
    """Return a run that left only these files: config, metrics, summary, samples."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / FILES[name]).write_text(text, "utf-8")
    return RunSummary.read(folder, typed={})


def study(folder: Path) -> optuna.Study:
    """Load the study of the search in a folder."""
    return optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder / 'study.db'}")


def trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    """List the trials of the search in a folder."""
    return study(folder).get_trials()


# Models, trainers and tokens


def tokens(n: int, vocab_size: int, seed: int = 0) -> torch.Tensor:
    """Token ids with some order in them: each depends on the one before."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.rand(vocab_size, vocab_size, generator=generator) ** 4
    ids = [0]
    for _ in range(n - 1):
        ids.append(int(torch.multinomial(table[ids[-1]], 1, generator=generator)))
    return torch.tensor(ids, dtype=torch.int32)


TOKENS = torch.randint(11, (2000,), generator=torch.Generator().manual_seed(0)).int()


class Stub(LanguageModel):
    """A model with what the bigram lacks: positions, dropout, a matrix product, a tied weight; it notes its dtype."""

    def __init__(self, *, vocab_size: int, block_size: int) -> None:
        super().__init__()
        self.vocab_size, self.block_size = vocab_size, block_size
        self.token = torch.nn.Embedding(vocab_size, 16)
        self.position = torch.nn.Embedding(block_size, 16)
        self.dropout = torch.nn.Dropout(0.5)
        self.head = torch.nn.Linear(16, vocab_size, bias=False)
        self.head.weight = self.token.weight
        self.dtype: torch.dtype | None = None

    def forward(self, idx: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
        x = self.dropout(self.token(idx) + self.position(torch.arange(idx.shape[1])))
        logits = self.head(x)
        self.dtype = logits.dtype
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def build(
    folder: Path,
    *overrides: str,
    device: Device | None = None,
    kind: type[LanguageModel] = Bigram,
    should_stop: Callable[[], bool] = lambda: False,
) -> Trainer:
    """Return a Trainer of a small model on random tokens; everything else as the overrides say."""
    cfg = run_config("trainer.steps=30", "trainer.log_every=10", "trainer.eval_every=10", *overrides)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(cfg.seed)
    model = kind(vocab_size=11, block_size=cfg.data.block_size)
    if cfg.trainer.activation_checkpointing:
        model.checkpoint_activations()
    cfg = resolve_for_model(cfg, model, 8)
    device = device or set_up(cfg.device)
    splits: dict[str, Split] = {
        "train": Stream(TOKENS[:1800], block_size=cfg.data.block_size),
        "val": Stream(TOKENS[1800:], block_size=cfg.data.block_size),
    }
    corpus = Corpus("random", "", 2000, 1, CharTokenizer("abcdefghijk"), {}, {"train": 1800, "val": 200}, {})
    step = parts.train_step(cfg, model, splits["train"], device)
    return Trainer(
        cfg.trainer,
        step,
        parts.batches(cfg, splits["train"], device),
        parts.evaluator(cfg, model, splits, corpus, device),
        parts.checkpoints(cfg, step, corpus, None, RunFolder(folder)),
        parts.schedule(cfg),
        Hooks(RunFolder(folder).update_summary, should_stop),
    )


def fitted(folder: Path, *overrides: str, device: Device | None = None, kind: type[LanguageModel] = Bigram) -> Trainer:
    return fit(build(folder, *overrides, device=device, kind=kind))


def fit(trainer: Trainer) -> Trainer:
    at = trainer.progress.step if trainer.progress.step else None
    with Metrics(LoggerConfig(use=[]), LoggerContext(trainer.checkpoints.folder.parent, {}, "id", at)) as metrics:
        trainer.fit(metrics)
    return trainer


def kept_for_the_gradient(forward: Callable[[], object]) -> int:
    """Count the numbers that autograd keeps of what is computed here."""
    sizes: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(sizes)


def gpt2_folder(folder: Path, *, size: str = "narrow", **config: Any) -> Path:
    """Return a small GPT-2 as transformers saves it, with random weights, biases and gains too, and a tokenizer."""
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


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as it takes to download the files of its one model, some/gpt2."""

    files: Mapping[str, bytes]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        model = "/some/gpt2/resolve/main/"
        content = b"" if self.path == "/" else self.files.get(self.path.removeprefix(model))
        self.send_response(404 if content is None else 200)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound" if self.path.startswith(model) else "RepoNotFound")
        else:
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0123456789abcdef0123456789abcdef01234567")
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if body and content:
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextlib.contextmanager
def serving(handler: type[http.server.BaseHTTPRequestHandler], **attributes: object) -> Iterator[str]:
    """Serve on this machine, with these attributes of the handler; yields the address."""
    made = type("Handler", (handler,), attributes)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), made) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
