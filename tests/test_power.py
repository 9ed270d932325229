"""Tests of power cuts: every state that one can leave ends well.

POWER_STATES is the number of states for each kind of command. Commands are traced with strace if it is installed and
permitted, and otherwise from Python.
"""

import filecmp
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bigramlm.checkpoint.checkpoint import Checkpoint
from bigramlm.cli import prepare
from bigramlm.cli.verify_resume import compare
from bigramlm.errors import UserError
from bigramlm.utils import paths
from tests.helpers import assert_refused, command
from tests.power import Call, can_trace, disk_after, states, trace
from tests.power_calls import trace_calls

STATES = int(os.environ.get("POWER_STATES", "5"))
SHORT = (
    *("data=bundled", "trainer.steps=10", "trainer.eval_every=5", "trainer.log_every=2", "trainer.checkpoint_every=5"),
    *("trainer.eval_batches=2", "sample.max_new_tokens=20"),
)
SWEEP = ("-m", *SHORT, "logger=none", "seed=1,2")
SEARCH = (
    *("-m", *SHORT, "logger=none", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3"),
    "optim.lr=tag(log, interval(1e-3, 1e-1))",
)
TRAIN = "from bigramlm.cli import train; train.main()"
# Records its progress often.
PREPARE = (
    "from bigramlm.cli import prepare; from bigramlm.data import corpus, text; "
    "corpus.KEPT_EVERY, text.PIECE = 20_000, 5_000; prepare.main()"
)


def run_again(state: Path, whole: Path) -> None:
    """Resume a run, which may only be refused if no checkpoint is complete."""
    run = state / "run"
    ended = command(f"resume={run}")
    if ended.code != 0 and not any(is_complete(path) for path in run.glob("checkpoints/*step_*")):
        assert_refused(ended, run)
        return
    if ended.code != 0:
        assert_refused(ended, "already at step 10")
    assert compare(whole / "run", run) is None


def is_complete(checkpoint: Path) -> bool:
    try:
        Checkpoint(checkpoint)
    except UserError:
        return False
    return True


def sweep_again(state: Path, whole: Path, arguments: tuple[str, ...] = SWEEP) -> None:
    """Repeat the command of a sweep in the same folder."""
    sweep = state / "run"
    where = f"sweep={sweep}" if (sweep / "sweep.json").exists() else f"hydra.sweep.dir={sweep}"
    ended = command(*arguments, where)
    assert ended.code == 0, ended.err
    jobs, expected = (sorted(path.name for path in folder.glob("[0-9]")) for folder in (sweep, whole / "run"))
    assert jobs == expected
    for job in jobs:
        assert compare(whole / "run" / job, sweep / job) is None


def search_again(state: Path, whole: Path) -> None:
    sweep_again(state, whole, SEARCH)


def prepare_again(state: Path, whole: Path) -> None:
    """Repeat a preparation."""
    text = f"data.path={whole.parent / 'text.txt'}"
    ended = command(text, "tokenizer=char", f"output={state / 'run'}", main=prepare.main)
    assert ended.code == 0, ended.err
    names = ["train.bin", "val.bin", "tokenizer.json", "manifest.json"]
    assert filecmp.cmpfiles(whole / "run", state / "run", names, shallow=False)[0] == names


# Every way to change files, in several processes.
CHANGES = """
import multiprocessing, os, pathlib, shutil, sqlite3, subprocess, sys
import numpy as np
from safetensors.numpy import save_file

here = pathlib.Path.cwd()

def sync(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)

def add(path):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, b"more\\n")
    os.fsync(fd)
    os.write(fd, b"unsynced\\n")
    os.close(fd)

(here / "a/b").mkdir(parents=True)
with open(here / "a/log", "w") as log:
    print("one", file=log, flush=True)
    os.fdatasync(log.fileno())
    print("two", file=log)
(here / "new").mkdir()
save_file({"x": np.arange(1000)}, here / "new/native")
sync(here / "new/native")
sync(here / "new")
(here / "new").rename(here / "a/moved")
sync(here / "a")
sync(here)
(here / "renamed").write_text("old")
sync(here / "renamed")
(here / "tmp").write_bytes(bytes(10_000))
sync(here / "tmp")
os.replace(here / "tmp", here / "renamed")
os.link(here / "renamed", here / "linked")
sync(here)
(here / "a/moved/native").write_text("shorter")  # not synced
with open(here / "a/log", "r+b") as log:
    log.write(b"ONE")
    os.fsync(log)
    log.seek(1)
    log.write(b"n")
    log.truncate(5)
subprocess.run([sys.executable, "-c", f"open('{here}/a/b/child', 'w').write('child')"], check=True)
context = multiprocessing.get_context("fork")
for _ in range(2):
    process = context.Process(target=add, args=(here / "a/b/forked",))
    process.start()
    process.join()
sync(here / "a/b")
database = sqlite3.connect(here / "study.db")
for n in range(3):
    with database:
        database.execute("create table if not exists t (n)")
        database.execute("insert into t values (?)", (n,))
database.close()
(here / "linked").unlink()
(here / "gone/inner").mkdir(parents=True)
(here / "gone/inner/file").write_text("x")
shutil.rmtree(here / "gone")
(here / "old").write_text("old")
sync(here / "old")
(here / "old").unlink()
save_file({"y": np.arange(10)}, here / "native")  # may get the inode of old
sync(here)
"""


@pytest.mark.skipif(not can_trace(), reason="strace is not installed, or not permitted")
def test_a_trace_from_python_is_that_of_the_system_calls(tmp_path: Path) -> None:
    synced = []
    for tracer in (trace, trace_calls):
        folder, copy = tmp_path / tracer.__name__ / "folder", tmp_path / tracer.__name__ / "copy"
        folder.mkdir(parents=True)
        calls = tracer(folder, CHANGES, output=folder.parent / "output")
        disk = disk_after(calls, folder)
        disk.write(copy)
        assert_equal(copy, folder)
        synced.append(disk.synced())
    assert_equal(*(tmp_path / tracer.__name__ / "copy" for tracer in (trace, trace_calls)))
    system, python = ({name: content for name, content in kept.items() if "study" not in name} for kept in synced)
    assert python == system
    assert Call("ftruncate", str(folder / "a/moved/native"), offset=0) in calls  # it is empty for a moment
    assert synced[1]["study.db"] == (folder / "study.db").read_bytes()
    assert python["a/b/forked"] == b"more\nunsynced\nmore\n"


@pytest.mark.parametrize(
    ("code", "arguments", "again"),
    [
        pytest.param(TRAIN, [*SHORT, "logger=tensorboard", "hydra.run.dir={run}"], run_again, id="run"),
        pytest.param(PREPARE, ["data.path={text}", "tokenizer=char", "output={run}"], prepare_again, id="prepare"),
        pytest.param(TRAIN, [*SWEEP, "hydra.sweep.dir={run}"], sweep_again, id="sweep", marks=pytest.mark.slow),
        pytest.param(TRAIN, [*SEARCH, "hydra.sweep.dir={run}"], search_again, id="search", marks=pytest.mark.slow),
    ],
)
def test_every_state_after_a_power_cut_ends_well(
    tmp_path: Path, code: str, arguments: list[str], again: Callable[[Path, Path], None]
) -> None:
    for state, whole in cut_states(tmp_path, trace if can_trace() else trace_calls, code, arguments, STATES):
        again(state, whole)


def test_every_state_of_a_trace_from_python_ends_well(tmp_path: Path) -> None:
    arguments = ["data.path={text}", "tokenizer=char", "output={run}"]
    for state, whole in cut_states(tmp_path, trace_calls, PREPARE, arguments, 3):
        prepare_again(state, whole)


def cut_states(
    tmp_path: Path, tracer: Callable[..., list[Call]], code: str, arguments: list[str], n: int
) -> Iterator[tuple[Path, Path]]:
    """Trace a command, and yield folders after a power cut beside the whole one."""
    whole, text = tmp_path / "whole", tmp_path / "text.txt"
    whole.mkdir()
    text.write_text(3 * paths.bundled_text().read_text("utf-8"), "utf-8")
    filled = [argument.format(run=whole / "run", text=text) for argument in arguments]
    calls = tracer(whole, code, *filled, output=tmp_path / "tracer")
    disk_after(calls, whole).write(tmp_path / "copy")
    assert_equal(tmp_path / "copy", whole)  # the trace is complete
    for state in states(calls, whole, tmp_path, n=n):
        yield state, whole


def assert_equal(a: Path, b: Path) -> None:
    names, others = ({path.relative_to(folder): path for path in folder.rglob("*")} for folder in (a, b))
    assert names.keys() == others.keys()
    for name, path in names.items():
        other = others[name]
        assert other.is_dir() if path.is_dir() else path.read_bytes() == other.read_bytes(), name
