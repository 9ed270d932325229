"""Tests of the command `train`: run folders, full disks, signals, sweeps."""

import errno
import functools
import hashlib
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from bigramlm.config.run_config import load, to_run_config
from bigramlm.logger import metrics
from bigramlm.trainer.trainer import Trainer
from bigramlm.utils import paths
from tests.helpers import SCRIPT, SHORT, Cli, Ended, assert_refused, command, composed, started, summary, wait_for

ENDLESS = ("data=bundled", "trainer.steps=100000000", "logger=none")


def test_a_run_from_any_folder_writes_all_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = command(
        "experiment=quick", "trainer.steps=300", "trainer.eval_every=100", f"hydra.run.dir={folder}", cwd=tmp_path
    )
    assert done.code == 0, done.err
    assert {path.name.partition(".tfevents")[0] for path in folder.iterdir()} == {
        *(
            "config.yaml",
            "metrics.jsonl",
            "summary.json",
            "samples.txt",
            "checkpoints",
            "train.log",
            "events.out",
            ".lock",
        ),
    }
    lines = done.out.splitlines()
    assert lines[0] == "----"
    end = re.fullmatch(r"End of training. Loss: (\d\.\d{4}) \(val (\d\.\d{4})\)", lines[1])
    assert end is not None, lines[1]
    saved = summary(folder)
    final = saved["final"]
    assert isinstance(final, dict)
    assert f"{final['train/loss']:.4f}" == end[1]
    assert f"{final['val/loss']:.4f}" == end[2]
    assert final["val/bpc"] == pytest.approx(final["val/loss"] / 0.6931471805599453)
    assert saved["status"] == "completed"
    assert saved["step"] == 300
    assert saved["device"] in ("cpu", "cuda", "mps")
    assert saved["overrides"] == ["experiment=quick", "trainer.steps=300", "trainer.eval_every=100"]
    digest = hashlib.sha256(paths.bundled_text().read_bytes()).hexdigest()
    assert saved["data"] == {"name": "bundled", "sha256": digest}
    assert set(saved) >= {"final", "best", "seconds", "tokens_per_second", "versions", "git"}
    sample = (folder / "samples.txt").read_text("utf-8").removeprefix("---- step 300\n").removesuffix("\n")
    assert len(sample) == 301, "token 0 and 300 new tokens"
    assert sample in done.out
    assert f"Run: {folder.name}" in done.out, "relative to the working folder"
    assert lines[-1] == f"Metrics: python scripts/runs.py tensorboard {folder.name}"
    assert_compared_with_counting(done.out, saved)
    assert "step 100/300" in done.err
    assert "\r" not in done.err, "no progress bar without a terminal"
    assert max(map(len, done.err.splitlines())) <= 110
    assert "step 100/300" in (folder / "train.log").read_text("utf-8")


def assert_compared_with_counting(out: str, saved: dict[str, Any]) -> None:
    """Check the last lines: each distance is one between losses of the same tokens."""
    final, references = saved["final"], saved["references"]
    (end,) = re.findall(
        r"^By counting: (\S+) on the whole training text, the minimum for any bigram;\n"
        r"yours is (\S+) above, with (\S+) there\. .*\n.*\nOn val, counting gives (\S+); yours is (\S+) (\w+)\.$",
        out,
        re.MULTILINE,
    )
    best, above, whole, val, distance, side = end
    shown = (references["train/best_bigram"], final["train/whole_loss"], references["val/best_bigram"])
    assert (best, whole, val) == tuple(f"{loss:.4f}" for loss in shown)
    assert float(above) == pytest.approx(float(whole) - float(best), abs=1e-9)
    assert float(above) > 0
    difference = float(f"{final['val/loss']:.4f}") - float(val)
    assert (float(distance), side) == (pytest.approx(abs(difference), abs=1e-9), "below" if difference < 0 else "above")


def test_results_can_be_recomputed_from_the_saved_files(cli: Cli) -> None:
    """Recompute the losses and the sample from the checkpoint, tokenizer and text."""
    training = ("data=bundled", "data.train_fraction=0.8", "trainer.steps=60", "trainer.eval_every=20", "optim.lr=0.1")
    ended = cli(*training, "seed=3", "sample.prompt=Joan", "sample.temperature=0.7", "sample.max_new_tokens=50")
    assert ended.code == 0, ended.err
    last = ended.folder / "checkpoints" / (ended.folder / "checkpoints" / "last").read_text("utf-8").strip()
    (table,) = load_file(last / "model.safetensors").values()
    chars = json.loads((last / "tokenizer.json").read_text("utf-8"))["chars"]
    text = paths.bundled_text().read_text("utf-8")
    assert chars == "".join(sorted(set(text)))
    ids = torch.tensor([chars.index(c) for c in text])
    train, val = ids[: int(0.8 * len(ids))], ids[int(0.8 * len(ids)) :]
    saved = summary(ended.folder)
    final, best = saved["final"], saved["best"]
    assert isinstance(final, dict)
    assert isinstance(best, dict)
    assert final["val/loss"] == pytest.approx(F.cross_entropy(table[val[:-1]], val[1:]).item(), rel=1e-6)
    train_loss = F.cross_entropy(table[train[:-1]], train[1:]).item()
    assert final["train/loss"] == pytest.approx(train_loss, rel=0.02), "an evenly spread part of train"
    assert final["train/whole_loss"] == pytest.approx(train_loss, rel=1e-6)
    assert final["val/bpc"] == pytest.approx(final["val/loss"] / math.log(2))

    generator = torch.Generator().manual_seed(3)
    written = [chars.index(c) for c in "Joan"]
    for _ in range(50):
        p = F.softmax((table[written[-1]] - table[written[-1]].max()) / 0.7, dim=-1)
        written.append(int(torch.multinomial(p, 1, generator=generator)))
    assert "".join(chars[i] for i in written) in ended.out

    lines = [json.loads(line) for line in (ended.folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    losses = {line["step"]: line["val/loss"] for line in lines if "val/loss" in line}
    assert best["val/loss"] == min(losses.values()) == losses[best["step"]]
    assert lines[-1]["final/val/loss"] == final["val/loss"]
    seconds, speed = float(str(saved["seconds"])), float(str(saved["tokens_per_second"]))
    # The seconds are rounded to thousandths, the speed to tenths.
    assert 60 * 256 / (seconds + 0.0006) - 0.06 <= speed <= 60 * 256 / max(1e-9, seconds - 0.0006) + 0.06


def test_a_fresh_model_depends_on_the_seed_and_samples_from_token_0(cli: Cli) -> None:
    samples = []
    for seed in (1, 2):
        ended = cli(*SHORT, "trainer.steps=0", f"seed={seed}")
        samples.append((ended.folder / "samples.txt").read_text("utf-8").removeprefix("---- step 0\n"))
        assert samples[-1].startswith("\n"), "token 0 of this text"
        torch.manual_seed(seed)
        last = ended.folder / "checkpoints" / "step_0" / "model.safetensors"
        (table,) = load_file(last).values()
        assert torch.equal(table, torch.nn.Embedding(62, 62).weight)
    assert samples[0] != samples[1]


def test_the_saved_config_is_complete_and_can_be_loaded(cli: Cli) -> None:
    ended = cli(*SHORT, "optim.lr=0.5", "device=auto", "sample.prompt=Who: 'a, b'?")
    assert ended.code == 0, ended.err
    saved = (ended.folder / "config.yaml").read_text("utf-8")
    assert "# typed: 'optim.lr=0.5'" in saved
    assert "auto" not in saved.replace("device=auto", "")
    cfg = load(ended.folder / "config.yaml")
    assert cfg.optim.lr == 0.5
    assert cfg.sample.prompt == "Who: 'a, b'?"
    expected = to_run_config(composed(*SHORT, "optim.lr=0.5", "sample.prompt=Who: 'a, b'?"))
    expected.device = cfg.device
    assert cfg == expected


def test_the_prompt_starts_the_sample(cli: Cli) -> None:
    ended = cli(*SHORT, "sample.prompt=Joan", "sample.temperature=0")
    sample = (ended.folder / "samples.txt").read_text("utf-8").split("\n", 1)[1]
    assert sample.startswith("Joan")
    assert len(sample.removesuffix("\n")) == 24


def test_an_unusable_run_folder_gives_a_one_line_error(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in ("file", "file/below"):
        ended = cli(*SHORT, f"hydra.run.dir={tmp_path / folder}", run_dir=False)
        assert_refused(ended, field="hydra.run.dir", value=tmp_path / folder)
        assert ended.err.count("\n") == 1
    ended = cli("-m", *SHORT, f"hydra.sweep.dir={tmp_path / 'file'}", run_dir=False)
    assert_refused(ended, field="hydra.sweep.dir", value=tmp_path / "file")
    assert ended.err.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_with_a_run_is_not_overwritten(cli: Cli) -> None:
    first = cli(*SHORT)
    changing = ("train.log", ".lock")  # some versions of filelock open the empty lock to write
    times = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*") if path.name not in changing}
    again = cli(*SHORT, f"hydra.run.dir={first.folder}", run_dir=False)
    assert_refused(again, first.folder, f"resume={first.folder}")
    assert again.err.count("\n") == 1
    found = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*") if path.name not in changing}
    assert found == times


def limit_files(size: int) -> None:
    """Limit the size of all files, as on a disk that fills up."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on file sizes, which simulates a full disk")
@pytest.mark.parametrize(
    ("limit", "log_every", "full"),
    [(10_000, 10, "checkpoints/step_0"), (30_000, 10, "checkpoints/step_1000"), (30_000, 2, "")],
    ids=["weights", "optimizer", "metrics"],
)
def test_a_full_disk_gives_a_one_line_error(tmp_path: Path, limit: int, log_every: int, full: str) -> None:
    # The limit applies to standard error too, which is a file; a single evaluation logs little.
    overrides = ("data=bundled", "trainer.steps=2000", "trainer.eval_every=2000", f"trainer.log_every={log_every}")
    folder = tmp_path / "run"
    ended = command(*overrides, f"hydra.run.dir={folder}", setup=functools.partial(limit_files, limit))
    assert_refused(ended, folder / full, os.strerror(errno.EFBIG))
    assert summary(folder)["status"] == "failed"


def test_the_traceback_of_a_bug_is_in_the_log(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigramlm.model.bigram.Bigram.forward", lambda *_: 1 / 0)
    ended = cli(*SHORT)
    assert ended.code == 1
    assert "ZeroDivisionError" in (ended.folder / "train.log").read_text("utf-8")
    saved = summary(ended.folder)
    assert (saved["status"], saved["error"]) == ("failed", "division by zero")


def stop_by_signal(number: signal.Signals, run: Path, *arguments: str) -> Ended:
    """Send a signal to an endless run once it has a checkpoint; wait for its end."""
    with started(*arguments, *ENDLESS) as process:
        wait_for((run / "checkpoints" / "last").exists, of=process)
        process.send(number)
        return process.end()


SIGNALS = pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to send")
@SIGNALS
def test_signals_stop_the_run_and_save_it(tmp_path: Path, number: signal.Signals, code: int) -> None:
    ended = stop_by_signal(number, tmp_path / "run", f"hydra.run.dir={tmp_path / 'run'}")
    assert ended.code == code, ended.err
    assert "Traceback" not in ended.err
    saved = summary(tmp_path / "run")
    assert saved["status"] == "stopped"
    last = (tmp_path / "run" / "checkpoints" / "last").read_text().strip()
    assert last == f"step_{saved['step']}"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to send")
@SIGNALS
def test_signals_stop_a_sweep(tmp_path: Path, number: signal.Signals, code: int) -> None:
    ended = stop_by_signal(number, tmp_path / "0", "-m", f"hydra.sweep.dir={tmp_path}", "seed=1,2")
    assert ended.code == code, ended.err
    assert "Traceback" not in ended.err
    assert summary(tmp_path / "0")["status"] == "stopped"
    assert not (tmp_path / "1").exists()


def test_a_signal_is_not_caught_with_the_failures_of_loggers(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setitem(metrics.LOGGERS, "tensorboard", interrupted)
    handler = signal.getsignal(signal.SIGINT)
    ended = cli(*SHORT, "logger=tensorboard")
    assert ended.code == 130
    assert summary(ended.folder)["status"] == "stopped"
    assert signal.getsignal(signal.SIGINT) == handler


def test_a_second_signal_stops_immediately(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the second signal did not stop the run")

    monkeypatch.setattr(Trainer, "fit", twice)
    assert cli(*SHORT).code == 130


@pytest.mark.skipif(os.name == "nt", reason="a closed pipe raises another error on Windows")
def test_a_closed_pipe_does_not_fail_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    line = f"{sys.executable} {SCRIPT} {' '.join(SHORT)} hydra.run.dir={folder} | true"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert summary(folder)["status"] == "completed"


@pytest.mark.parametrize("at", [0, 3, 6])
def test_the_sweep_flag_can_be_anywhere(cli: Cli, tmp_path: Path, at: int) -> None:
    arguments = [*SHORT, "seed=1,2", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    ended = cli(*arguments[:at], "-m" if at == 3 else "--multirun", *arguments[at:], run_dir=False)
    assert ended.code == 0, ended.err
    assert [summary(tmp_path / "sweep" / job)["status"] for job in "01"] == ["completed"] * 2


def set_home(folder: Path) -> None:
    """Set the folder below which runs are written by default."""
    paths.home = lambda: folder


def test_simultaneous_runs_get_different_folders(tmp_path: Path) -> None:
    setup = functools.partial(set_home, tmp_path)
    with started(*SHORT, setup=setup) as one, started(*SHORT, setup=setup) as other:
        assert [one.end().code, other.end().code] == [0, 0], one.err + other.err
    folders = list((tmp_path / "outputs" / "runs").glob("*/*"))
    assert [summary(folder)["status"] for folder in folders] == ["completed", "completed"]
