"""Tests of all commands: free text, one-line errors, exit codes."""

import importlib
import os
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from bigramlm import __main__ as entry_point
from bigramlm.__main__ import COMMANDS
from bigramlm.cli import common as shared
from bigramlm.config.run_config import load, to_run_config, to_yaml
from bigramlm.engine.command_line import command_line
from bigramlm.utils import console, paths
from tests.helpers import SHORT, TIMEOUT, Cli, Ended, assert_refused, command, composed, summary, wait_for

ENDLESS = ("data=bundled", "trainer.steps=100000000", "logger=none")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a completed run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    done = command(*SHORT, f"hydra.run.dir={folder}")
    assert done.code == 0, done.err
    return folder


def needs_signal(number: int) -> pytest.MarkDecorator:
    """Return a mark that skips a test on Windows, which cannot send this signal."""
    name = signal.Signals(number).name
    return pytest.mark.skipif(os.name == "nt", reason=f"Windows has no {name} to send to a process")


@pytest.mark.parametrize(
    ("script", "arguments", "code"),
    [
        ("train", [*SHORT, "hydra.run.dir={new}"], 0),
        ("train", ["optim.lrr=1"], 1),
        ("sample", ["run={run}", "max_new_tokens=5"], 0),
        ("prepare", ["data.path={text}", "tokenizer=byte", "output={new}"], 0),
        ("runs", ["diff", "{run}", "{new}"], 2),
        ("checkpoint", ["verify", "{run}"], 0),
        pytest.param("train", [*ENDLESS, "hydra.run.dir={new}"], 130, marks=needs_signal(signal.SIGINT)),
        pytest.param("train", [*ENDLESS, "hydra.run.dir={new}"], 143, marks=needs_signal(signal.SIGTERM)),
    ],
)
def test_scripts_end_with_the_documented_exit_codes(
    run: Path, tmp_path: Path, script: str, arguments: list[str], code: int
) -> None:
    """Check each script and each exit code once in a newly started process.

    All other tests fork the commands, which is faster.
    """
    new = tmp_path / "new"
    values = {"run": str(run), "new": str(new), "text": str(paths.bundled_text())}
    line = [sys.executable, str(paths.home() / "scripts" / f"{script}.py"), *(a.format(**values) for a in arguments)]
    with subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        if code > 128:
            wait_for(lambda: (new / "checkpoints" / "last").exists() or process.poll() is not None)
            process.send_signal(code - 128)
        out, err = process.communicate(timeout=TIMEOUT)
    ended = Ended(process.returncode, out, err, new)
    assert ended.code == code, err
    assert "Traceback" not in err
    if code == 0:
        assert out
    elif code == 2:
        assert_refused(ended, new)
    else:
        assert out == ""
        assert err


def test_an_interrupt_ends_a_command_with_code_130() -> None:
    with pytest.raises(SystemExit) as ended, shared.exit_codes():
        raise KeyboardInterrupt
    assert ended.value.code == 130


def test_hydra_full_error_adds_the_traceback(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    ended = cli(*SHORT, "trainer.steps=-1")
    assert ended.code == 2
    assert "Traceback" in ended.err


TEXTS = """
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
TEXTS += ["", "line\nbreak", "tab\t", " padded "]


@pytest.mark.parametrize("text", TEXTS)
def test_free_text_is_taken_literally_and_saved_unchanged(text: str, tmp_path: Path) -> None:
    path = ["data=text", f"data.path={text}"] if text else ["data=bundled"]
    cfg = to_run_config(composed(*path, f"sample.prompt={text}"))
    assert cfg.sample.prompt == text
    assert vars(cfg.data).get("path", "") == text
    (tmp_path / "config.yaml").write_text(to_yaml(cfg), "utf-8")
    assert load(tmp_path / "config.yaml") == cfg


def test_other_overrides_are_passed_to_hydra_unchanged() -> None:
    assert command_line(["optim.lr=1,2"]) == ["optim.lr=1,2"]


# Invalid overrides, and the parts that the error message must contain.
BAD_VALUES = {
    "data.block_size=0": ["data.block_size=0"],
    "data.block_size=-4": ["data.block_size=-4"],
    "data.batch_size=0": ["data.batch_size=0"],
    "trainer.steps=-1": ["trainer.steps=-1"],
    "trainer.eval_every=0": ["trainer.eval_every=0"],
    "trainer.eval_batches=none": ["trainer.eval_batches=none"],
    "optim.lr=-1": ["optim.lr=-1.0"],
    "optim.lr=0": ["optim.lr=0.0"],
    "optim.lr=nan": ["optim.lr=nan"],
    "optim.lr=inf": ["optim.lr=inf"],
    "data.train_fraction=0": ["data.train_fraction=0.0"],
    "data.train_fraction=1": ["data.train_fraction=1.0"],
    "data.train_fraction=1.5": ["data.train_fraction=1.5"],
    "optim.betas=[0.9]": ["optim.betas=[0.9]"],
    "optim.betas=[0.9,2]": ["optim.betas=[0.9, 2.0]"],
    "device.name=tpu": ["device.name=tpu", "cpu, cuda"],
    "device.precision=fp8": ["device.precision=fp8", "auto, fp32, bf16, fp16"],
    "sample.temperature=-1": ["sample.temperature=-1.0"],
    "sample.max_new_tokens=-1": ["sample.max_new_tokens=-1"],
    "sample.prompt=日本": ["sample.prompt=", "'日', '本'"],
    "seed=-1": ["seed=-1"],
    "device.threads=20000": ["device.threads=20000"],
    "+optim.lrr=1": ["optim.lrr", "name, lr, "],
    "data=text": ["data.path", "data.path="],
    "model.name=gpt": ["model.name=gpt", "model=", "bigram"],
    "data.train_fraction=0.9999": ["data.block_size=8", "val", "bundled.txt", "7", "9"],
    "data.train_fraction=0.00001": ["data.block_size=8", "train", "bundled.txt", "0", "9"],
}


@pytest.mark.parametrize(("override", "named"), BAD_VALUES.items(), ids=BAD_VALUES)
def test_invalid_values_give_a_one_line_error_and_exit_code_2(cli: Cli, override: str, named: list[str]) -> None:
    ended = cli(*SHORT, override)
    assert_refused(ended, *named)
    assert ended.err.count("\n") == 1, "the error is the only output"
    assert {path.name for path in ended.folder.iterdir()} - {"config.yaml"} == {".lock", "summary.json", "train.log"}
    saved = summary(ended.folder)
    assert saved["status"] == "failed"
    assert f"error: {saved['error']}\n" == ended.err


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_missing_device_gives_a_one_line_error(cli: Cli, name: str) -> None:
    if {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}[name]:
        pytest.skip(f"this machine has {name}")
    ended = cli(*SHORT, f"device={name}")
    assert_refused(ended, f"device.name={name}", "cpu")
    assert ended.err.count("\n") == 1


def test_unusable_files_give_a_one_line_error(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "latin1.txt").write_bytes("Müller".encode("latin1") * 100)
    (tmp_path / "short.txt").write_text("a few words")
    for name, named in {
        "none.txt": ["data.path="],
        ".": ["folder", f"data.path='{tmp_path / '*.txt'}'"],
        "empty.txt": ["is empty"],
        "latin1.txt": ["0xfc", "offset 1", "line 1", "iconv"],
        "short.txt": ["val", "data.block_size=8", "2", "9"],
    }.items():
        ended = cli("data=text", f"data.path={tmp_path / name}", "trainer.steps=1")
        assert_refused(ended, tmp_path / name, *named)
        assert ended.err.count("\n") == 1, "the error is the only output"


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
def test_errors_of_hydra_keep_their_text_and_exit_code(cli: Cli, override: str, message: str) -> None:
    ended = cli(*SHORT, override)
    assert ended.code == 1
    assert message in ended.err
    assert not ended.folder.exists()


def test_table_columns_are_aligned() -> None:
    rows = [("a", "1"), ("bcd", "100")]
    assert console.table(("name", "n"), rows).splitlines() == ["name    n", "a       1", "bcd   100"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_prints_its_version(name: str, tool: Cli) -> None:
    module = importlib.import_module(COMMANDS[name][0])
    ended = tool(module.main, "--version")
    assert (ended.code, ended.out) == (0, f"bigramlm {metadata.version('bigramlm')}\n")


def test_the_package_lists_all_commands(tool: Cli) -> None:
    listed = tool(entry_point.main)
    assert listed.code == 0
    assert all(f"  {name} " in listed.out for name in COMMANDS)
    assert max(map(len, listed.out.splitlines())) <= 80
    assert tool(entry_point.main, "--help").out == listed.out
    assert_refused(tool(entry_point.main, "trian"), "trian", *COMMANDS)
    scripts = {path.stem for path in (paths.home() / "scripts").glob("*.py")}
    assert set(COMMANDS) | {"config_reference", "pictures"} == scripts


def test_the_package_runs_a_command(tmp_path: Path) -> None:
    overrides = [*SHORT, f"hydra.run.dir={tmp_path / 'run'}"]
    done = subprocess.run([sys.executable, "-m", "bigramlm", "train", *overrides], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"End of training" in done.stdout
