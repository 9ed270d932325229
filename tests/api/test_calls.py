"""Tests of the Python API: train, sweep, load and compose."""

from __future__ import annotations

import importlib
import json
import logging
import multiprocessing
import os
import pkgutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from safetensors.torch import load_file
from torch import nn

import bigramlm
from bigramlm.model.base import LanguageModel
from bigramlm.model.bigram import Bigram
from bigramlm.utils import paths
from tests.helpers import SHORT, Cli, refuses

PUBLIC = {"Run", "Sweep", "UserError", "compose", "load", "sweep", "train"}


@pytest.fixture(autouse=True)
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the outputs of the test in its folder, as an installed package does."""
    monkeypatch.setattr(paths, "home", lambda: tmp_path)
    return tmp_path / "outputs"


class Recurrent(nn.Module):
    """A network that knows nothing of bigramlm."""

    def __init__(self, vocab_size: int, block_size: int) -> None:
        super().__init__()
        self.embedding, self.gru = nn.Embedding(vocab_size, 16), nn.GRU(16, 16, batch_first=True)
        self.head = nn.Linear(16, vocab_size)

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.gru(self.embedding(idx))[0])
        return logits


class WrongShape(Recurrent):
    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        return super().forward(idx)[:, -1]


class SeesTheFuture(Recurrent):
    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        return super().forward(idx.flip(1)).flip(1)


class Shifted(Bigram):
    """A language model of its own kind."""


def weights(folder: Path) -> dict[str, torch.Tensor]:
    name = (folder / "checkpoints" / "last").read_text("utf-8").strip()
    found: dict[str, torch.Tensor] = load_file(folder / "checkpoints" / name / "model.safetensors")
    return found


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("model=gpt", "model.n_embd=16", "model.n_layer=1", "optim=muon", "trainer.steps=3"),
        ("tokenizer=bpe", "tokenizer.vocab_size=300", "optim.schedule=cosine"),
        ("model=ngram", "data.block_size=16"),
        ("model=transformer", "model.n_embd=16", "model.n_layer=1", "data.batch_size=4", "trainer.grad_accumulation=2"),
    ],
    ids=["bigram", "muon", "bpe", "ngram", "dropout"],
)
def test_python_and_shell_have_the_same_bits(overrides: tuple[str, ...], cli: Cli) -> None:
    shell = cli(*SHORT, *overrides)
    assert shell.code == 0, shell.err
    run = bigramlm.train(*SHORT, *overrides)
    assert run.status == "completed"
    assert equal(weights(run.folder), weights(shell.folder))
    assert run.final == json.loads((shell.folder / "summary.json").read_text("utf-8"))["final"]
    names = [sorted(path.name for path in folder.iterdir()) for folder in (run.folder, shell.folder)]
    assert names[0] == names[1]
    for name in ("samples.txt", "config.yaml"):
        assert (run.folder / name).read_text("utf-8") == (shell.folder / name).read_text("utf-8"), name
    summaries = [json.loads((folder / "summary.json").read_text("utf-8")) for folder in (run.folder, shell.folder)]
    assert summaries[0].keys() == summaries[1].keys()
    for name in ("overrides", "asked", "final", "data", "tokenizer"):
        assert summaries[0][name] == summaries[1][name], name
    logs = [(folder / "train.log").read_text("utf-8").splitlines() for folder in (run.folder, shell.folder)]
    assert len(logs[0]) == len(logs[1])


def test_a_run_shows_its_results(outputs: Path) -> None:
    run = bigramlm.train(*SHORT)
    assert run.folder.parent.parent == outputs / "runs"
    assert repr(run) == f"<bigramlm.Run {run.folder} status='completed' val_loss={run.final['val/loss']:.4f}>"
    assert (run.best["step"], run.summary["step"]) == (5, 5)
    assert run.config.trainer.steps == 5
    records = run.metrics()
    assert [record["step"] for record in records] == [0, 2, 4, 5]
    assert records[-1]["final/val/loss"] == run.final["val/loss"]
    assert isinstance(run.model, LanguageModel)
    assert run.tokenizer.vocab_size == run.model.vocab_size
    last = (run.folder / "samples.txt").read_text("utf-8")
    assert run.sample(max_new_tokens=20) in last, "the run's own sample has the same seed"
    logits = run.logits("The")
    assert logits.shape == (3, run.model.vocab_size)
    table = next(run.model.parameters())
    assert torch.equal(logits, table[run.tokenizer.encode("The")].detach().cpu())
    found = bigramlm.load(run.folder)
    assert (found.final, found.folder) == (run.final, run.folder)
    assert bigramlm.load().folder == run.folder
    earlier = bigramlm.train(*SHORT, "trainer.steps=4")
    assert torch.equal(bigramlm.load(run.folder, checkpoint=4).logits("a"), earlier.logits("a"))
    assert bigramlm.load(run.folder / "checkpoints").folder == run.folder
    assert torch.equal(bigramlm.Run(str(run.folder), checkpoint=4).logits("a"), earlier.logits("a"))
    with refuses("checkpoint=3", "last, best, 4, 5"):
        bigramlm.load(run.folder, checkpoint=3).sample()
    assert bigramlm.load(run.folder / "checkpoints" / "step_5").sample(max_new_tokens=5) == run.sample(max_new_tokens=5)


def test_records_become_a_data_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    run = bigramlm.train(*SHORT)
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = run.metrics().to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame["step"]) == [0, 2, 4, 5]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with refuses("pandas", "pip install"):
        run.metrics().to_pandas()


def test_a_sweep_has_runs_a_best_run_and_a_table() -> None:
    sweep = bigramlm.sweep(*SHORT, "optim.lr=1e-3,1e-1", "seed=1,2")
    assert [run.status for run in sweep.runs] == ["completed"] * 4
    assert sweep.best.final["val/loss"] == min(run.final["val/loss"] for run in sweep.runs)
    table = sweep.table()
    assert [row["optim.lr"] for row in table] == ["0.1", "0.1", "0.001", "0.001"]
    assert table[0]["val/loss"] == sweep.best.final["val/loss"]
    assert "standard deviations over seeds" in " ".join(repr(table).split())
    assert "4 completed" in repr(sweep)
    more = bigramlm.sweep(*SHORT, "optim.lr=1e-3,1e-1", "seed=1,2,3", f"sweep={sweep.folder}")
    assert more.folder == sweep.folder == bigramlm.Sweep().folder
    assert len(more.runs) == 6


def test_a_sweep_with_a_failed_run_is_returned() -> None:
    sweep = bigramlm.sweep(*SHORT, "optim.lr=1e38,1e-3", "trainer.log_every=1")
    assert [run.status for run in sweep.runs] == ["failed", "completed"]
    assert sweep.best.folder == sweep.runs[1].folder


def test_an_own_network_trains_resumes_samples_and_is_swept(cli: Cli) -> None:
    torch.manual_seed(5)
    run = bigramlm.train(*SHORT, model=Recurrent)
    whole = bigramlm.train(*SHORT, "trainer.steps=9", model=Recurrent)
    resumed = bigramlm.train(f"resume={run.folder}", "trainer.steps=9", model=Recurrent)
    assert resumed.folder == run.folder
    assert equal(weights(resumed.folder), weights(whole.folder))
    assert resumed.sample("The", max_new_tokens=9) == whole.sample("The", max_new_tokens=9)
    assert run.config.model.name == "python"
    sweep = bigramlm.sweep(*SHORT, "seed=1,2", model=Recurrent)
    assert [run.status for run in sweep.runs] == ["completed"] * 2
    assert sweep.best.logits("a").shape == (1, run.tokenizer.vocab_size)
    # Commands that meet such a run name the line of Python that continues it.
    call = f"bigramlm.train('resume={run.folder}', model=Recurrent)"
    shell = cli(f"resume={run.folder}", run_dir=False)
    assert (shell.code, call in shell.err) == (2, True), shell.err
    assert f"bigramlm.train('init_from={run.folder}', model=Recurrent)" in cli(f"init_from={run.folder}").err
    with refuses(f"bigramlm.load('{run.folder / 'checkpoints' / 'step_9'}', model=Recurrent)"):
        _ = bigramlm.load(run.folder).model


def test_a_module_is_copied() -> None:
    vocab_size = bigramlm.train(*SHORT).tokenizer.vocab_size
    module = Recurrent(vocab_size, 8)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    one, two = (bigramlm.train(*SHORT, model=module) for _ in range(2))
    assert equal(dict(module.state_dict()), before)
    assert one.folder != two.folder
    assert equal(weights(one.folder), weights(two.folder))
    assert not torch.equal(weights(one.folder)["module.head.weight"], before["head.weight"])
    own = bigramlm.train(*SHORT, model=Shifted)
    assert isinstance(own.model, Shifted)
    assert equal(weights(own.folder), weights(bigramlm.train(*SHORT).folder)), "a LanguageModel is used as it is"


def test_a_text_trains_and_resumes() -> None:
    text, options = "A bird in the hand is worth two in the bush.\r\n" * 40, SHORT[1:]
    run = bigramlm.train(*options, text=text)
    assert Path(str(getattr(run.config.data, "path"))).read_bytes() == text.encode()  # noqa: B009 - of one kind of data
    resumed = bigramlm.train(f"resume={run.folder}", "trainer.steps=7", text=text)
    assert (resumed.folder, resumed.summary["step"]) == (run.folder, 7)
    with refuses("text"):
        bigramlm.train(f"resume={run.folder}", "trainer.steps=9", text=text + "More.")


def test_a_file_trains(text_file: Path) -> None:
    assert bigramlm.train(*SHORT[1:], data=text_file).summary["data"]["name"] == "text"


@pytest.mark.parametrize(
    ("overrides", "arguments", "named"),
    [
        (SHORT, {"lr": 0.1}, ("lr=0.1", '"optim.lr=1e-3"')),
        ((1,), {}, ("1", "strings")),
        (("-m", "seed=1,2"), {}, ("-m", "bigramlm.sweep()")),
        (("--config-dir=x",), {}, ("--config-dir=x",)),
        (("hydra.mode=MULTIRUN",), {}, ("hydra.mode",)),
        (("seed=1,2",), {}, ("seed=1,2", "sweep()")),
        (("optim.lrr=1",), {}, ("optim.lrr=1", "did you mean optim.lr=1?")),
        (("+optim.lrr=1",), {}, ("optim.lrr=1", "did you mean optim.lr=1?")),
        (("optim.lr=x",), {}, ("optim.lr=x", "number")),
        (("model=none",), {}, ("model=none", "transformer")),
        (("model=gtp",), {}, ("model=gtp", "did you mean model=gpt?")),
        (("optim.lr",), {}, ("optim.lr=VALUE",)),
        (("optim.lr 0.1",), {}, ("optim.lr=0.1",)),
        (("trainer.steps=-1",), {}, ("trainer.steps=-1",)),
        (("resume=nowhere",), {}, ("nowhere",)),
        (SHORT, {"model": WrongShape}, ("WrongShape", "(32, 8, ", "(B, T, V)")),
        (SHORT, {"model": SeesTheFuture}, ("preflight", "position")),
        (SHORT, {"model": nn.Identity()}, ("Identity", "no parameters")),
        (SHORT, {"model": "gpt"}, ("model='gpt'", 'override "model=gpt"')),
        (SHORT, {"model": nn.Embedding(10, 61)}, ("Embedding", "index out of range", "vocab_size=")),
        (SHORT, {"model": nn.Bilinear(2, 3, 4)}, ("Bilinear", "forward", "input2")),
        (SHORT, {"model": lambda size: size}, ("vocab_size", "block_size")),
        (SHORT, {"model": lambda vocab_size, block_size: "x"}, ("torch.nn.Module", "str")),
        (SHORT, {"model": Bigram(vocab_size=3, block_size=8)}, ("vocab_size=3",)),
        ((*SHORT, "model=gpt"), {"model": Recurrent}, ("model=gpt",)),
        (SHORT, {"text": "abc" * 100}, ("text=", "data=bundled")),
        (SHORT[1:], {"text": "abc" * 100, "data": "x.txt"}, ("text=", "data=")),
        (SHORT[1:], {"text": 3}, ("int", "str")),
        (SHORT[1:], {"text": ""}, ("empty",)),
        (SHORT[1:], {"data": "nowhere.txt"}, ("nowhere.txt",)),
    ],
)
def test_bad_input_is_a_user_error(
    overrides: tuple[Any, ...], arguments: dict[str, Any], named: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(bigramlm.UserError) as raised:
        bigramlm.train(*overrides, **arguments)
    message = str(raised.value)
    assert "\n" not in message
    for part in named:
        assert part.lower() in message.lower(), message
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_processes_of_torchrun_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for call in (bigramlm.train, bigramlm.sweep):
        with refuses("torchrun", field="WORLD_SIZE", value=2):
            call(*SHORT, "seed=1,2")
    assert bigramlm.compose("seed=3").seed == 3


def test_refusals_of_sweeps_and_loading() -> None:
    with refuses("each run of a sweep", "Recurrent"):
        bigramlm.sweep(*SHORT, "seed=1,2", model=Recurrent(9, 8))
    with refuses("optim.lr=-1"):
        bigramlm.sweep(*SHORT, "optim.lr=1e-3,-1")
    assert not list(paths.home().glob("outputs/sweeps/*"))
    with refuses("nowhere"):
        bigramlm.load("nowhere")
    with refuses("nowhere"):
        bigramlm.Sweep("nowhere")
    (paths.home() / "sweep").mkdir()
    (paths.home() / "sweep" / "sweep.json").write_text("{}")
    with refuses("is a sweep", paths.home() / "sweep" / "0"):
        bigramlm.load(paths.home() / "sweep")
    with refuses("optim.lr=-1"):
        bigramlm.compose("optim.lr=-1")
    run = bigramlm.train(*SHORT)
    with refuses("é"):
        run.sample("é")
    with refuses("temperature=-1"):
        run.sample(temperature=-1)
    for text in ("", "T" * 9):
        with refuses("block size", len(text)):
            run.logits(text)
    with refuses("model=", "bigram"):
        bigramlm.train(f"resume={run.folder}", "trainer.steps=9", model=Recurrent)


def test_the_original_exception_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(*_: Any) -> Any:
        raise ZeroDivisionError("in the model")

    monkeypatch.setattr(Recurrent, "forward", forward)
    with pytest.raises(ZeroDivisionError, match="in the model"):
        bigramlm.train(*SHORT, model=Recurrent)
    assert bigramlm.load().status == "failed"


def test_compose_gives_the_config() -> None:
    cfg = bigramlm.compose("model=gpt", "optim.lr=0.5")
    assert (cfg.model.name, cfg.optim.lr, cfg.device.name) == ("gpt", 0.5, "auto")


# The interpreter


def interpreter_state() -> dict[str, Any]:
    root = logging.getLogger()
    return {
        "hydra": GlobalHydra.instance().is_initialized(),
        "schemas": "run_schema.yaml" in ConfigStore.instance().repo,
        "handlers": list(root.handlers),
        "levels": (root.level, logging.getLogger("torch").level, logging.getLogger("hydra").level),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "random": torch.get_rng_state().tolist(),
        "environment": dict(os.environ),
        "folder": Path.cwd(),
        "argv": list(sys.argv),
    }


def test_the_state_of_the_interpreter_is_restored(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    handler = logging.FileHandler(tmp_path / "own.log", mode="w")
    logging.getLogger().addHandler(handler)
    torch.manual_seed(3)
    before = interpreter_state()
    threads = "1" if torch.get_num_threads() != 1 else "2"
    options = (*SHORT, f"device.threads={threads}", "device.deterministic=true", "hydra.job.chdir=true")
    run = bigramlm.train(*options)
    run.sample()
    bigramlm.sweep(*SHORT, "seed=1,2")
    with pytest.raises(bigramlm.UserError):
        bigramlm.train("model=none")
    assert interpreter_state() == before
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    logging.getLogger().warning("still here")
    logging.getLogger().removeHandler(handler)
    handler.close()
    assert (tmp_path / "own.log").read_text("utf-8") == "still here\n", "the handler was not closed"


def test_warnings_are_shown_and_the_log_is_in_the_folder(capfd: pytest.CaptureFixture[str]) -> None:
    run = bigramlm.train(*SHORT, "trainer.steps=0", "optim.warmup_steps=0")
    log = (run.folder / "train.log").read_text("utf-8")
    assert " INFO " in log
    sweep = bigramlm.sweep(*SHORT)
    assert len(sweep.runs) == 1
    assert capfd.readouterr().err == "no field is swept; to sweep a field, list its values: FIELD=A,B\n"


def test_an_interrupt_ends_the_run_as_stopped() -> None:
    def interrupt() -> None:
        deadline = 600
        while deadline and not list(paths.home().glob("outputs/runs/*/*/checkpoints/step_0")):
            deadline -= 1
            threading.Event().wait(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    run = bigramlm.train(*SHORT, "trainer.steps=100000000", "trainer.eval_every=100000")
    thread.join()
    assert run.status == "stopped"
    assert run.summary["step"] > 0
    assert bigramlm.train(f"resume={run.folder}", f"trainer.steps={run.summary['step'] + 1}").status == "completed"


class Waits(Recurrent):
    """A network that waits in its first forward until it is released."""

    started, released = threading.Event(), threading.Event()

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        self.started.set()
        assert self.released.wait(60)
        return super().forward(idx)


def call_in_fork(results: Any) -> None:
    try:
        bigramlm.train(*SHORT)
    except bigramlm.UserError as error:
        results.put(str(error))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_one_call_at_a_time() -> None:
    """Call from a thread and, during that call, from a second one and a fork."""
    Waits.started.clear()
    Waits.released.clear()
    runs: list[bigramlm.Run] = []
    thread = threading.Thread(target=lambda: runs.append(bigramlm.train(*SHORT, model=Waits)))
    thread.start()
    assert Waits.started.wait(60)
    for call in (bigramlm.train, bigramlm.sweep, bigramlm.compose):
        with refuses("in progress"):
            call(*SHORT)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=call_in_fork, args=(results,))
    process.start()
    message = results.get(timeout=60)
    process.join()
    Waits.released.set()
    thread.join()
    assert "forked" in message
    assert "spawn" in message
    assert [run.status for run in runs] == ["completed"]


def test_the_import_is_light_and_names_are_not_replaced() -> None:
    code = """
import sys, bigramlm
heavy = [name for name in ("torch", "hydra", "omegaconf", "numpy") if name in sys.modules]
assert not heavy, heavy
assert set(bigramlm.__all__) <= set(dir(bigramlm))
assert bigramlm.compose("optim.lr=0.5").optim.lr == 0.5
assert "torch" not in sys.modules, "composing trains nothing"
try:
    bigramlm.nothing
except AttributeError as error:
    assert "nothing" in str(error)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(bigramlm.__all__) == PUBLIC
    for module in pkgutil.walk_packages(bigramlm.__path__, "bigramlm."):
        if module.name != "bigramlm.__main__":
            importlib.import_module(module.name)
    for name in PUBLIC:
        assert callable(getattr(bigramlm, name)), name
    top_level = {module.name for module in pkgutil.iter_modules(bigramlm.__path__)}
    assert not top_level & PUBLIC
