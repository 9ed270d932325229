"""The command line as a user types it."""

import hashlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from bigramlm import metrics, paths
from bigramlm.config import load, to_run_config, to_yaml
from bigramlm.train import command_line
from tests.helpers import SCRIPT, Cli, command, composed, summary

# A run that is over at once.
SHORT = ("data=bundled", "trainer.steps=5", "trainer.eval_every=2", "logger=none", "sample.max_new_tokens=20")


def test_a_run_from_any_folder_leaves_what_it_promises(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = command(
        "experiment=quick", "trainer.steps=300", "trainer.eval_every=100", f"hydra.run.dir={folder}", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
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
    lines = done.stdout.splitlines()
    assert lines[0] == "----"
    end = re.fullmatch(r"End of training. Loss: (\d\.\d{4}) \(val (\d\.\d{4})\)", lines[1])
    assert end is not None, lines[1]
    told = summary(folder)
    final = told["final"]
    assert isinstance(final, dict)
    assert f"{final['train/loss']:.4f}" == end[1]
    assert f"{final['val/loss']:.4f}" == end[2]
    assert final["val/bpc"] == pytest.approx(final["val/loss"] / 0.6931471805599453)
    assert told["status"] == "completed"
    assert told["step"] == 300
    assert told["device"] in ("cpu", "cuda", "mps")
    assert told["overrides"] == ["experiment=quick", "trainer.steps=300", "trainer.eval_every=100"]
    digest = hashlib.sha256(paths.bundled_text().read_bytes()).hexdigest()
    assert told["data"] == {"name": "bundled", "sha256": digest}
    assert set(told) >= {"final", "best", "seconds", "tokens_per_second", "versions", "git"}
    sample = (folder / "samples.txt").read_text("utf-8").removeprefix("---- step 300\n").removesuffix("\n")
    assert len(sample) == 301, "token zero and 300 more"
    assert sample in done.stdout
    assert f"Run: {folder.name}" in done.stdout, "short, from where the user is"
    assert "tensorboard --logdir" in done.stdout
    assert "where no bigram can do better" in done.stdout
    assert "step 100/300" in done.stderr
    assert "\r" not in done.stderr, "no bar where there is no terminal"
    assert max(map(len, done.stderr.splitlines())) <= 110
    assert "step 100/300" in (folder / "train.log").read_text("utf-8")


def test_what_a_run_tells_can_be_computed_again_from_what_it_saved(cli: Cli) -> None:
    """The final losses and the sample, written out anew from the checkpoint, the tokenizer, the config and the text."""
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
    told = summary(ended.folder)
    final, best = told["final"], told["best"]
    assert isinstance(final, dict)
    assert isinstance(best, dict)
    assert final["val/loss"] == pytest.approx(F.cross_entropy(table[val[:-1]], val[1:]).item(), rel=1e-6)
    whole = F.cross_entropy(table[train[:-1]], train[1:]).item()
    assert final["train/loss"] == pytest.approx(whole, rel=0.02), "a part of train, spread evenly"
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
    assert told["tokens_per_second"] == pytest.approx(60 * 256 / float(str(told["seconds"])), rel=0.05)


def test_a_fresh_model_starts_from_token_zero_and_the_seed(cli: Cli) -> None:
    samples = []
    for seed in (1, 2):
        ended = cli(*SHORT, "trainer.steps=0", f"seed={seed}")
        samples.append((ended.folder / "samples.txt").read_text("utf-8").removeprefix("---- step 0\n"))
        assert samples[-1].startswith("\n"), "token zero of this text"
        torch.manual_seed(seed)
        last = ended.folder / "checkpoints" / "step_0" / "model.safetensors"
        (table,) = load_file(last).values()
        assert torch.equal(table, torch.nn.Embedding(62, 62).weight)
    assert samples[0] != samples[1]


def test_the_saved_config_is_the_whole_one_and_loads_again(cli: Cli) -> None:
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


TYPED = """
To be, or not
What's
"quoted"
日本
a\\
a\\"b
$x ${y} \\${z}
${
\\${
[1,2]
{a: b}
a=b
!
null
true
1e3
\\\\
'
"
# no comment
a:b
(x)
%
""".strip().split("\n")
TYPED += ["", "line\nbreak", "tab\t", " padded "]


@pytest.mark.parametrize("text", TYPED)
def test_free_text_is_taken_as_typed_and_saved_so(text: str, tmp_path: Path) -> None:
    cfg = to_run_config(composed("data=bundled", f"sample.prompt={text}"))
    assert cfg.sample.prompt == text
    (tmp_path / "config.yaml").write_text(to_yaml(cfg), "utf-8")
    assert load(tmp_path / "config.yaml") == cfg
    if text:
        data = to_run_config(composed("data=text", f"data.path={text}")).data
        assert vars(data)["path"] == text
    assert command_line(["optim.lr=1,2"]) == ["optim.lr=1,2"]


BAD_VALUES = {
    "data.block_size=0": "data.block_size=0",
    "data.block_size=-4": "data.block_size=-4",
    "data.batch_size=0": "data.batch_size=0",
    "trainer.steps=-1": "trainer.steps=-1",
    "trainer.eval_every=0": "trainer.eval_every=0",
    "trainer.eval_batches=none": "trainer.eval_batches=none",
    "optim.lr=-1": "optim.lr=-1.0",
    "optim.lr=0": "optim.lr=0.0",
    "optim.lr=nan": "optim.lr=nan",
    "optim.lr=inf": "optim.lr=inf",
    "data.train_fraction=0": "data.train_fraction=0.0",
    "data.train_fraction=1": "data.train_fraction=1.0",
    "data.train_fraction=1.5": "data.train_fraction=1.5",
    "optim.betas=[0.9]": "optim.betas=[0.9]",
    "optim.betas=[0.9,2]": "optim.betas=[0.9, 2.0]",
    "device.name=tpu": "cpu, cuda",
    "device.precision=fp8": "auto, fp32, bf16, fp16",
    "sample.temperature=-1": "sample.temperature=-1.0",
    "sample.max_new_tokens=-1": "sample.max_new_tokens=-1",
    "sample.prompt=日本": "'日', '本'",
    "seed=-1": "seed=-1",
    "device.threads=20000": "device.threads=20000",
    "+optim.lrr=1": "optim.lrr: there is no such field",
    "data=text": "data.path: must be given",
    "model.name=gpt": "model=NAME",
    "data.train_fraction=0.9999": "the val split",
    "data.train_fraction=0.00001": "the train split",
}


@pytest.mark.parametrize(("override", "named"), BAD_VALUES.items(), ids=BAD_VALUES)
def test_bad_values_are_one_line_and_exit_code_2(cli: Cli, override: str, named: str) -> None:
    ended = cli(*SHORT, override)
    assert ended.code == 2
    assert ended.err.count("\n") == 1, ended.err
    assert ended.err.startswith("error: ")
    assert named in ended.err
    assert ended.out == ""
    assert {path.name for path in ended.folder.iterdir()} - {"config.yaml"} == {".lock", "summary.json", "train.log"}
    told = summary(ended.folder)
    assert told["status"] == "failed"
    assert f"error: {told['error']}\n" == ended.err


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_an_absent_device_is_one_line(cli: Cli, name: str) -> None:
    import torch

    if {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}[name]:
        pytest.skip(f"this machine has {name}")
    ended = cli(*SHORT, f"device={name}")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "it has: " in ended.err


def test_bad_files_are_one_line(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "latin1.txt").write_bytes("Müller".encode("latin1") * 100)
    (tmp_path / "short.txt").write_text("a few words")
    for name, message in {
        "none.txt": "no such file",
        ".": "is a folder",
        "empty.txt": "is empty",
        "latin1.txt": "offset 1 (line 1)",
        "short.txt": "split of",
    }.items():
        ended = cli("data=text", f"data.path={tmp_path / name}", "trainer.steps=1")
        assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
        assert message in ended.err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "Key 'lrr' not in 'AdamWConfig'"),
        ("model=nosuch", "bigram"),
        ("optim.lr=fast", "could not be converted to Float"),
        ("data.block_size=1.5", "could not be converted to Integer"),
        ("nonsense=1", "nonsense"),
    ],
)
def test_hydras_own_refusals_keep_its_text_and_code(cli: Cli, override: str, message: str) -> None:
    ended = cli(*SHORT, override)
    assert ended.code == 1
    assert message in ended.err
    assert not ended.folder.exists()


def test_a_run_folder_that_cannot_be_is_one_line(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in ("file", "file/below"):
        ended = cli(*SHORT, f"hydra.run.dir={tmp_path / folder}", run_dir=False)
        assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
        assert str(tmp_path / folder) in ended.err
    ended = cli("-m", *SHORT, f"hydra.sweep.dir={tmp_path / 'file'}", run_dir=False)
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_holds_a_run_is_not_written_over(cli: Cli) -> None:
    first = cli(*SHORT)
    before = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")}
    again = cli(*SHORT, f"hydra.run.dir={first.folder}", run_dir=False)
    assert (again.code, again.err.count("\n")) == (2, 1)
    assert "holds a run already" in again.err
    assert {path: path.stat().st_mtime_ns for path in first.folder.rglob("*") if path.name != "train.log"} == {
        path: time for path, time in before.items() if path.name != "train.log"
    }


@pytest.mark.skipif(os.name == "nt", reason="a limit on the size of files stands in for a full disk; Windows has none")
@pytest.mark.parametrize("limit", [2_000, 10_000, 30_000])
def test_a_full_disk_is_one_line(tmp_path: Path, limit: int) -> None:
    folder = tmp_path / "run"
    arguments = [f"hydra.run.dir={folder}", "data=bundled", "trainer.steps=2000", "trainer.log_every=10"]
    code = f"""
import resource, sys
from bigramlm.train import main
import torch, torch.utils.tensorboard
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
sys.argv[1:] = {arguments!r}
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "arge" in errors[0] or "space" in errors[0], errors
    assert summary(folder)["status"] == "failed"


def test_an_error_of_ours_leaves_its_traceback_in_the_log(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigramlm.model.bigram.Bigram.forward", lambda *_: 1 / 0)
    ended = cli(*SHORT)
    assert ended.code == 1
    assert "ZeroDivisionError" in (ended.folder / "train.log").read_text("utf-8")
    told = summary(ended.folder)
    assert (told["status"], told["error"]) == ("failed", "division by zero")


def test_full_errors_can_be_asked_for(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    ended = cli(*SHORT, "trainer.steps=-1")
    assert ended.code == 2
    assert "Traceback" in ended.err


def stopped(number: signal.Signals, run: Path, *arguments: str) -> tuple[int, str]:
    """The exit code and the log of a run without end, sent a signal once it has a checkpoint in this folder."""
    line = [sys.executable, str(SCRIPT), *arguments, "data=bundled", "trainer.steps=100000000", "logger=none"]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as process:
        while not (run / "checkpoints" / "last").exists():
            assert process.poll() is None, "the run ended by itself"
            time.sleep(0.05)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    return process.returncode, err


SIGNALS = pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to send")
@SIGNALS
def test_signals_stop_the_run_and_save_it(tmp_path: Path, number: signal.Signals, code: int) -> None:
    found, err = stopped(number, tmp_path / "run", f"hydra.run.dir={tmp_path / 'run'}")
    assert found == code
    assert "Traceback" not in err
    told = summary(tmp_path / "run")
    assert told["status"] == "stopped"
    last = (tmp_path / "run" / "checkpoints" / "last").read_text().strip()
    assert last == f"step_{told['step']}"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to send")
@SIGNALS
def test_signals_stop_a_sweep(tmp_path: Path, number: signal.Signals, code: int) -> None:
    found, err = stopped(number, tmp_path / "0", "-m", f"hydra.sweep.dir={tmp_path}", "seed=1,2")
    assert found == code
    assert "Traceback" not in err
    assert summary(tmp_path / "0")["status"] == "stopped"
    assert not (tmp_path / "1").exists()


def test_a_signal_gets_by_what_guards_against_failures(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setitem(metrics.LOGGERS, "tensorboard", interrupted)
    before = signal.getsignal(signal.SIGINT)
    ended = cli(*SHORT, "logger=tensorboard")
    assert ended.code == 130
    assert summary(ended.folder)["status"] == "stopped"
    assert signal.getsignal(signal.SIGINT) == before


def test_a_second_signal_stops_at_once(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from bigramlm.trainer import Trainer

    def twice(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the second signal did not stop the run")

    monkeypatch.setattr(Trainer, "fit", twice)
    assert cli(*SHORT).code == 130


@pytest.mark.skipif(os.name == "nt", reason="a closed pipe shows otherwise on Windows")
def test_a_reader_that_has_had_enough_does_not_fail_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    line = f"{sys.executable} {SCRIPT} {' '.join(SHORT)} hydra.run.dir={folder} | true"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert summary(folder)["status"] == "completed"


def test_help_says_what_there_is() -> None:
    done = command("--help")
    assert done.returncode == 0
    for group, choices in {
        "model": r"bigram attention multihead feedforward residual transformer\n +nanogpt gpt gpt2 ngram",
        "adapter": "none lora",
        "optim": "adamw sgd muon",
        "tokenizer": "char byte bpe wordpiece gpt2",
        "data": "shakespeare bundled text pairs tokens",
        "device": "auto cpu cuda mps",
        "logger": "all none tensorboard wandb",
        "experiment": r"finetune finetune_gpt2 finetune_gpt2_lora finetune_gpt2_scratch\n +finetune_lora "
        r"finetune_scratch gpt_cpu gpt_gpu gpt_ngram_cpu\n +ladder nanogpt_cpu nanogpt_gpu quick quick_gpt",
    }.items():
        assert re.search(rf"^ *{group} +{choices}$", done.stdout, re.MULTILINE), group
    assert done.stdout.count("  python scripts/train.py") == 12 + 1, "twelve examples, and Hydra's flags"
    assert "schema" not in done.stdout
    for field in ("lr: 0.001", "block_size: 8", "max_new_tokens: 300", "steps: 10000"):
        assert field in done.stdout


def test_help_shows_the_fields_as_they_would_be_and_refuses_what_cannot(cli: Cli) -> None:
    assert "lr: 7.0" in cli("--help", "optim.lr=7", run_dir=False).out
    ended = cli("-h", "optim.lrr=7", run_dir=False)
    assert ended.code == 1
    assert "Key 'lrr' not in" in ended.err
    assert "Traceback" not in ended.err


def test_help_and_refusals_do_not_import_torch() -> None:
    code = """
import sys
from bigramlm.train import main
try:
    main()
except SystemExit:
    pass
sys.exit("torch" in sys.modules)
"""
    for argument in ("--help", "optim.lrr=1"):
        done = subprocess.run([sys.executable, "-c", code, argument], capture_output=True, check=False)
        assert done.returncode == 0, argument


@pytest.mark.parametrize("at", [0, 3, 6])
def test_the_flag_for_a_sweep_can_stand_anywhere(cli: Cli, tmp_path: Path, at: int) -> None:
    arguments = [*SHORT, "seed=1,2", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    ended = cli(*arguments[:at], "-m" if at == 3 else "--multirun", *arguments[at:], run_dir=False)
    assert ended.code == 0, ended.err
    assert [summary(tmp_path / "sweep" / job)["status"] for job in "01"] == ["completed"] * 2


def test_two_runs_at_once_get_two_folders(tmp_path: Path) -> None:
    """In a copy of the checkout, since these are the run folders that nobody named."""
    for name in ("bigramlm", "conf", "scripts"):
        shutil.copytree(paths.home() / name, tmp_path / name)
    (tmp_path / "sources").mkdir()
    shutil.copy(paths.bundled_text(), tmp_path / "sources")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    line = [sys.executable, str(tmp_path / "scripts" / "train.py"), *SHORT]
    runs = [subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [run.wait(timeout=60) for run in runs] == [0, 0]
    folders = list((tmp_path / "outputs" / "runs").glob("*/*"))
    assert [summary(folder)["status"] for folder in folders] == ["completed", "completed"]
