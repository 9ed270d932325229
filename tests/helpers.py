"""Helpers of all tests: configs, commands, refusals, run folders, models, servers."""

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
from bigramlm.engine.command_line import command_line, set_up_hydra
from bigramlm.engine.resolve import resolve_for_model
from bigramlm.errors import UserError
from bigramlm.logger.base import LoggerContext
from bigramlm.logger.config import LoggerConfig
from bigramlm.logger.metrics import Metrics
from bigramlm.model.base import LanguageModel
from bigramlm.model.bigram import Bigram
from bigramlm.model.config import GPTConfig
from bigramlm.optim.base import Schedule
from bigramlm.runs.folder import RunFolder
from bigramlm.runs.summary import RunSummary
from bigramlm.tokenizer.char import CharTokenizer
from bigramlm.tokenizer.subword import train_bpe
from bigramlm.trainer.trainer import Hooks, Trainer
from bigramlm.utils import paths

SCRIPT = paths.home() / "scripts" / "train.py"

# Overrides of a very short run.
SHORT = ("data=bundled", "trainer.steps=5", "trainer.eval_every=2", "logger=none", "sample.max_new_tokens=20")

# All model presets, listed from conf/ so that a new preset is tested too.
PRESETS = sorted(path.stem for path in (paths.conf_dir() / "model").glob("*.yaml"))

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the runs are forked, which is safe on Linux only")

# Text that a page must show literally, without executing any of it.
HOSTILE = (
    "<script>window.hacked = 1</script>\"'&amp;<b>bold</b></pre></script>--><img src=x onerror=hacked=1>${x}%{y}\u2028"
)


# Configs and commands in this process


@dataclass
class Ended:
    """The exit code and the output of a command that has ended."""

    code: int
    out: str
    err: str
    folder: Path


Cli = Callable[..., Ended]


def composed(*overrides: str) -> DictConfig:
    """Compose a config from overrides with Hydra."""
    set_up_hydra()
    with initialize_config_dir(str(paths.conf_dir()), version_base="1.3"):
        return compose("train", command_line(list(overrides), sweeps=False))


def run_config(*overrides: str) -> RunConfig:
    """Make a run config from overrides."""
    return to_run_config(composed(*overrides))


def resumed(cli: Cli, folder: Path, *overrides: str) -> Ended:
    return cli(f"resume={folder}", *overrides, run_dir=False)


def small(preset: str) -> list[str]:
    """Return the overrides that make the model of a preset small."""
    model = run_config(f"model={preset}").model
    if not isinstance(model, GPTConfig):
        return []
    return [f"model.n_embd={4 * model.n_head}", f"model.n_layer={min(2, model.n_layer)}"]


@functools.cache
def gpts() -> list[str]:
    """List the model presets that are GPTs."""
    return [preset for preset in PRESETS if isinstance(run_config(f"model={preset}").model, GPTConfig)]


# Refusals


def assert_refused(ended: Ended, *named: object, field: str = "", value: object = "", code: int = 2) -> None:
    """Check that a command ended with a one-line error with the field and the value.

    The line must also contain `named`, such as a file, a number or the way out. Other lines, from the work before the
    error, may precede the line; no line may follow, and there is no traceback. `code` is the exit code.
    """
    assert ended.code == code, ended.err
    *earlier, last = ended.err.splitlines() or [""]
    assert last.startswith("error: "), ended.err
    assert not [line for line in earlier if line.startswith(("error: ", "Traceback"))], ended.err
    _assert_contains(last, field, value, *named)
    assert ended.out == "", ended.out


@contextlib.contextmanager
def refuses(*named: object, field: str = "", value: object = "") -> Iterator[pytest.ExceptionInfo[UserError]]:
    """Check that the block raises a one-line UserError with the field and the value.

    The line must also contain `named`. After the block, the yielded object has the error as its `value`.
    """
    with pytest.raises(UserError) as raised:
        yield raised
    message = str(raised.value)
    assert message, "the message is empty"
    assert "\n" not in message, message
    _assert_contains(message, field, value, *named)


def _assert_contains(line: str, field: str, value: object, *named: object) -> None:
    for text in (field, value, *named):
        assert str(text) in line, line


# Commands in other processes, forked from a process that has imported torch, which saves a second or two each

# Seconds after which a process or a condition is considered to hang. Far more than a test takes.
TIMEOUT = 600.0

# A server that imports the commands' modules once for all tests, and runs no code before it forks: a process forked
# after a parallel region of torch would hang in its own first parallel region. Other systems spawn new processes.
_PROCESSES: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
if sys.platform == "linux":
    _PROCESSES.set_forkserver_preload(["tests.helpers", "bigramlm.cli.verify_resume"])


class Started:
    """A command that runs in another process, with its output in files.

    `main` is the command. `setup`, a module-level function, is called before `main` in the new process, e.g. to set
    limits or to replace functions. `env` contains environment variables to set.
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
        """The exit code; None while the process runs, -n if signal n ended it."""
        code: int | None = self.process.exitcode
        return code

    @property
    def out(self) -> str:
        """The text written to standard output so far."""
        return self._read("stdout")

    @property
    def err(self) -> str:
        """The text written to standard error so far."""
        return self._read("stderr")

    def send(self, number: int) -> None:
        """Send a signal to the process."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process and wait for its end."""
        if self.code is None:
            self.process.kill()
        self.process.join()

    def end(self, *, within: float = TIMEOUT) -> Ended:
        """Wait for the end of the process, for a number of seconds."""
        self.process.join(within)
        if self.code is None:
            self.kill()
            raise AssertionError(f"the command did not end:\n{self.err}")
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
    # Runs in the new process and makes it as similar as possible to one that a shell started.
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
    """Run a command in another process to its end; see Started."""
    return Started(main, *arguments, cwd=cwd, env=env, setup=setup).end()


def verified(*arguments: str, setup: Callable[[], object] | None = None) -> Ended:
    """Run verify_resume in another process, because it forks its runs."""
    return command(*arguments, main=verify_resume.main, setup=setup)


@contextlib.contextmanager
def started(
    *arguments: str,
    main: Callable[[], object] = train.main,
    env: dict[str, str] | None = None,
    setup: Callable[[], object] | None = None,
) -> Iterator[Started]:
    """Start a command in another process, which is killed at the end of the block."""
    process = Started(main, *arguments, env=env, setup=setup)
    try:
        yield process
    finally:
        process.kill()


def wait_for(condition: Callable[[], Any], *, of: Started | None = None) -> Any:
    """Wait for a condition, which the command `of` must bring about before it ends."""
    deadline = time.monotonic() + TIMEOUT
    while not (result := condition()):
        assert of is None or of.code is None or condition(), f"the command ended:\n{of.err}"
        assert time.monotonic() < deadline, "timeout"
        time.sleep(0.01)
    return result


# Run folders


def summary(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "summary.json").read_text("utf-8"))
    return found


def crashed_copy(run: Path, to: Path, step: int) -> Path:
    """Copy a run as a crash leaves it: all records, but no checkpoint after a step."""
    shutil.copytree(run, to)
    for path in (to / "checkpoints").glob("step_*"):
        if int(path.name.removeprefix("step_")) > step:
            shutil.rmtree(path)
    best = json.loads((to / "checkpoints" / f"step_{step}" / "state.json").read_text("utf-8"))["best"]["step"]
    (to / "checkpoints" / "last").write_text(f"step_{step}\n")
    (to / "checkpoints" / "best").write_text(f"step_{best}\n")
    (to / "samples.txt").unlink()
    content = json.loads((to / "summary.json").read_text("utf-8"))
    (to / "summary.json").write_text(json.dumps({**content, "status": "running"}), "utf-8")
    return to


def table(folder: Path, *, but: set[str] = frozenset()) -> list[dict[str, str]]:  # type: ignore[assignment]
    """Read the rows of results.csv without the columns in `but`."""
    with (folder / "results.csv").open(encoding="utf-8") as file:
        return [{name: value for name, value in row.items() if name not in but} for row in csv.DictReader(file)]


FILES = {"config": "config.yaml", "metrics": "metrics.jsonl", "summary": "summary.json", "samples": "samples.txt"}


def run_with(folder: Path, **files: object) -> RunSummary:
    """Return a run with some of these files: config, metrics, summary, samples."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / FILES[name]).write_text(text, "utf-8")
    return RunSummary.read(folder, typed={})


def study(folder: Path) -> optuna.Study:
    """Load the Optuna study in a sweep's folder."""
    return optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder / 'study.db'}")


def trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    """List the trials of the Optuna study in a sweep's folder."""
    return study(folder).get_trials()


# Models, trainers and tokens


def tokens(n: int, vocab_size: int, seed: int = 0) -> torch.Tensor:
    """Draw token ids (n,) from a random bigram model."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.rand(vocab_size, vocab_size, generator=generator) ** 4
    ids = [0]
    for _ in range(n - 1):
        ids.append(int(torch.multinomial(table[ids[-1]], 1, generator=generator)))
    return torch.tensor(ids, dtype=torch.int32)


TOKENS = torch.randint(11, (2000,), generator=torch.Generator().manual_seed(0)).int()


class Stub(LanguageModel):
    """A model with positions, dropout and tied weights, which records its dtype."""

    def __init__(self, *, vocab_size: int, block_size: int) -> None:
        super().__init__(vocab_size=vocab_size, block_size=block_size)
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
    """Build a Trainer of a small model on random tokens, with the given overrides."""
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
        Schedule(cfg.optim, cfg.trainer.steps),
        Hooks(RunFolder(folder).update_summary, should_stop),
    )


def fitted(folder: Path, *overrides: str, device: Device | None = None, kind: type[LanguageModel] = Bigram) -> Trainer:
    return fit(build(folder, *overrides, device=device, kind=kind))


def fit(trainer: Trainer) -> Trainer:
    step = trainer.progress.step if trainer.progress.step else None
    with Metrics(LoggerConfig(use=[]), LoggerContext(trainer.checkpoints.folder.parent, {}, "id", step)) as metrics:
        trainer.fit(metrics)
    return trainer


def count_saved_elements(forward: Callable[[], object]) -> int:
    """Count the tensor elements that autograd saves for the backward pass."""
    sizes: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(sizes)


def gpt2_folder(folder: Path, *, size: str = "narrow", **config: Any) -> Path:
    """Save a small random GPT-2 and a tokenizer in transformers' file format."""
    import transformers

    sizes = {"narrow": {"n_layer": 2, "n_head": 2, "n_embd": 16}, "wide": {"n_layer": 3, "n_head": 5, "n_embd": 40}}
    shared = {"vocab_size": 300, "n_positions": 32, "bos_token_id": None, "eos_token_id": None}
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**shared, **sizes[size], **config}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(_tokenizer_json(), "utf-8")
    return folder


@functools.cache
def _tokenizer_json() -> str:
    return train_bpe([paths.bundled_text().read_text("utf-8")[:20_000]], vocab_size=300, min_frequency=2).to_json()


class Hub(http.server.BaseHTTPRequestHandler):
    """A stand-in for the Hugging Face hub with one model, some/gpt2."""

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
    """Run a local HTTP server, whose handler has these attributes; yield its address."""
    handler_class = type("Handler", (handler,), attributes)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler_class) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
