"""Tests of all commands: free text, one-line errors, exit codes."""

import functools
import importlib
import json
import os
import shutil
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
from tests.helpers import (
    LINUX,
    SCRIPT,
    SHORT,
    TIMEOUT,
    Cli,
    Ended,
    assert_refused,
    command,
    composed,
    summary,
    verified,
    wait_for,
)

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
        ("train", ["optim.lrr=1", "hydra.run.dir={new}"], 2),
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
        assert_refused(ended, *(["optim.lr=1"] if script == "train" else [new]))
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
    assert command_line(["optim.lr=1,2"]) == ["optim.lr=1,2", "hydra.mode=RUN"]


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
    "device.precision=fp8": ["device.precision=fp8", "auto, fp32, tf32, bf16, fp16"],
    "sample.temperature=-1": ["sample.temperature=-1.0"],
    "sample.max_new_tokens=-1": ["sample.max_new_tokens=-1"],
    "sample.prompt=日本": ["sample.prompt=", "'日', '本'"],
    "seed=-1": ["seed=-1"],
    "device.threads=20000": ["device.threads=20000"],
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
    assert not ended.folder.exists()


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
    assert set(COMMANDS) | {"config_reference", "install", "pictures"} == scripts


def test_the_package_runs_a_command(tmp_path: Path) -> None:
    overrides = [*SHORT, f"hydra.run.dir={tmp_path / 'run'}"]
    done = subprocess.run([sys.executable, "-m", "bigramlm", "train", *overrides], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"End of training" in done.stdout


@pytest.mark.parametrize(
    ("module", "meant"),
    [
        *[(name, name) for name in ("train", "runs", "sample", "prepare", "checkpoint", "verify_resume")],
        *[("checkpoint_tool", "checkpoint"), ("errors", "lists the commands"), ("cli", "lists the commands")],
        ("engine.run", "lists the commands"),
    ],
)
def test_modules_that_are_no_commands_say_what_to_type(module: str, meant: str, tmp_path: Path) -> None:
    line = [sys.executable, "-m", f"bigramlm.{module}", "data=bundled"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=tmp_path)
    ended = Ended(done.returncode, done.stdout, done.stderr, tmp_path)
    assert_refused(ended, f"bigramlm.{module}", f"python -m bigramlm {meant}")
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "bench"])
def test_the_modules_of_the_commands_can_be_run(name: str, tmp_path: Path) -> None:
    module = paths.home() / "bigramlm" / "cli" / f"{name}.py"
    for line in (["-m", f"bigramlm.cli.{name}"], [str(module)]):
        done = subprocess.run([sys.executable, *line, "--version"], capture_output=True, check=False, cwd=tmp_path)
        assert (done.returncode, done.stdout[:8]) == (0, b"bigramlm"), line


@pytest.mark.parametrize(
    ("value", "full"),
    [
        *[(value, True) for value in ("1", "true", "Yes")],
        *[(value, False) for value in ("0", "false", "No", "off", "")],
    ],
)
def test_hydra_full_error_understands_yes_and_no(value: str, full: bool) -> None:
    ended = command(*SHORT, "trainer.steps=-1", env={"HYDRA_FULL_ERROR": value})
    assert ended.code == 2
    assert ("Traceback" in ended.err) is full


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("runs", ["diff", "nosuch", "nosuch"]),
        ("sample", ["run=nosuch"]),
        ("checkpoint", ["verify", "nosuch"]),
        ("prepare", ["data.path=nosuch"]),
    ],
)
def test_hydra_full_error_is_the_same_for_every_command(
    name: str, arguments: list[str], tool: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    ended = tool(importlib.import_module(COMMANDS[name][0]).main, *arguments)
    assert ended.code == 2
    assert "Traceback" in ended.err
    assert ended.err.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(
    ("name", "arguments", "named"),
    [
        ("runs", [], "command"),
        ("runs", ["foo"], "foo"),
        ("runs", ["diff", "a"], "b"),
        ("runs", ["list", "--foo"], "--foo"),
        ("checkpoint", ["export"], "path, folder"),
        ("verify_resume", ["--kills", "x"], "x"),
        ("verify_resume", ["-m"], "-m"),
        ("bench", ["foo"], "foo"),
    ],
)
def test_wrong_arguments_give_one_line(name: str, arguments: list[str], named: str, tool: Cli) -> None:
    ended = tool(importlib.import_module(COMMANDS[name][0]).main, *arguments)
    assert_refused(ended, named, "--help")
    assert ended.err.count("\n") == 1


@LINUX
def test_a_working_folder_that_was_deleted_gives_one_line(
    tool: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, (module, _) in COMMANDS.items():
        (tmp_path / name).mkdir()
        os.chdir(tmp_path / name)
        (tmp_path / name).rmdir()
        ended = tool(importlib.import_module(module).main)
        os.chdir(tmp_path)
        assert_refused(ended, "the working folder was deleted")
        assert ended.err.count("\n") == 1


def close_streams(numbers: tuple[int, ...]) -> None:
    """Close standard streams, as a shell does for 2>&-."""
    for number in numbers:
        os.close(number)
        setattr(sys, ("stdin", "stdout", "stderr")[number], None)


CLOSED = [(0,), (1,), (2,), (0, 1, 2)]


@LINUX
@pytest.mark.parametrize("numbers", CLOSED, ids=str)
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("train", [*SHORT, "hydra.run.dir={new}"]),
        ("train", ["-m", *SHORT, "seed=1,2", "hydra.sweep.dir={new}"]),
        ("sample", ["run={run}", "max_new_tokens=5"]),
        ("prepare", ["data=bundled", "tokenizer=byte", "output={new}"]),
        ("runs", ["diff", "{run}", "{run}"]),
        ("checkpoint", ["verify", "{run}"]),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_closed_streams_do_not_fail_a_command(
    name: str, arguments: list[str], numbers: tuple[int, ...], run: Path, tmp_path: Path
) -> None:
    words = [argument.format(run=run, new=tmp_path / "new") for argument in arguments]
    main = importlib.import_module(COMMANDS[name][0]).main
    ended = command(*words, main=main, setup=functools.partial(close_streams, numbers))
    assert ended.code == 0, ended.err
    assert bool(ended.out) is (1 not in numbers)
    for path in tmp_path.glob("new/**/summary.json"):
        assert summary(path.parent)["status"] == "completed"


@LINUX
@pytest.mark.parametrize("numbers", CLOSED, ids=str)
def test_closed_streams_do_not_fail_a_resumed_run(numbers: tuple[int, ...], run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "copy")
    setup = functools.partial(close_streams, numbers)
    ended = command(f"resume={tmp_path / 'copy'}", "trainer.steps=7", setup=setup)
    assert ended.code == 0, ended.err
    assert summary(tmp_path / "copy")["step"] == 7


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize("numbers", [*CLOSED, (0, 2), (1, 2)], ids=str)
def test_closed_streams_do_not_fail_other_processes(numbers: tuple[int, ...], tmp_path: Path) -> None:
    """Check workers, which inherit the streams, and runs that are forked."""
    setup = functools.partial(close_streams, numbers)
    workers = ("-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=1,2", f"hydra.sweep.dir={tmp_path}")
    assert command(*SHORT, *workers, setup=setup).code == 0
    assert verified(*SHORT, "trainer.steps=4", setup=setup).code == 0


@pytest.mark.skipif(os.name == "nt", reason="cmd.exe cannot close a stream")
def test_a_shell_may_close_the_streams(tmp_path: Path) -> None:
    line = f"{sys.executable} {SCRIPT} {' '.join(SHORT)} hydra.run.dir={tmp_path / 'run'} <&- >&- 2>&-"
    assert subprocess.run(["bash", "-c", line], check=False).returncode == 0
    assert summary(tmp_path / "run")["status"] == "completed"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_below_standard_error_does_not_fail_a_command(run: Path) -> None:
    script = paths.home() / "scripts" / "sample.py"
    line = f"{sys.executable} {script} run={run} max_new_tokens=5 2>/dev/full"
    done = subprocess.run(["bash", "-c", line], capture_output=True, check=False)
    assert (done.returncode, bool(done.stdout)) == (0, True)


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [("train", SHORT), ("train", ["-m", *SHORT, "seed=1,2"]), ("prepare", ["data=bundled"]), ("verify_resume", SHORT)],
)
def test_processes_that_run_beside_others_are_refused(
    name: str, arguments: list[str], variable: str, tool: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "16")
    monkeypatch.setattr(paths, "home", lambda: tmp_path)
    ended = tool(importlib.import_module(COMMANDS[name][0]).main, *arguments)
    assert_refused(ended, f"{variable}=16", "prepare" if name == "prepare" else "run of its own", "without ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("processes", ["1", "0", "", "two", "9" * 5000])
def test_other_values_of_world_size_do_not_matter(processes: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", processes)
    monkeypatch.setenv("SLURM_NTASKS", "8")  # a batch script is a single process
    assert cli(*SHORT).code == 0


def test_a_comment_behind_a_command_is_ignored(cli: Cli) -> None:
    """Check what zsh makes of a command that was pasted with its comment."""
    ended = cli(*SHORT, "#", "a", "first=look")
    assert ended.code == 0, ended.err
    assert "first" not in str(json.loads((ended.folder / "summary.json").read_text())["overrides"])


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_threads_spin_briefly_unless_the_user_decides(given: dict[str, str], expected: str | None) -> None:
    code = (
        "import os; from bigramlm.cli.common import command; command(lambda: print(os.environ.get('GOMP_SPINCOUNT')))()"
    )
    environment = {
        name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment | given, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(expected)
