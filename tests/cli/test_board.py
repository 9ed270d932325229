"""Tests of `runs.py tensorboard`, most of them with a stand-in for TensorBoard."""

import json
import os
import re
import signal
import tempfile
import urllib.request
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bigramlm.cli import board
from bigramlm.cli import runs as runs_command
from bigramlm.cli.board import link_name, run_tensorboard, unused_name
from bigramlm.runs import find as runs
from bigramlm.runs.summary import RunSummary
from tests.helpers import Cli, Ended, assert_refused, run_with, started, wait_for

TODAY = datetime.now().astimezone().replace(hour=14, minute=4)

# The stand-in writes its arguments and what it finds, does what a test has written into `action.py`, and ends.
STAND_IN = """
import json, os, pathlib, sys, time
here = pathlib.Path(__file__).parent
folder = pathlib.Path(sys.argv[sys.argv.index("--logdir") + 1])
found = {name: os.path.realpath(folder / name) for name in sorted(os.listdir(folder))}
(here / "started.tmp").write_text(json.dumps([sys.argv[1:], found, os.getpid()]))
(here / "started.tmp").rename(here / "started")
exec((here / "action.py").read_text())
"""

WAIT_UNTIL = """
deadline = time.monotonic() + 60
while not ({condition}):
    if time.monotonic() > deadline: sys.exit(9)
    time.sleep(0.01)
"""


class StandIn:
    """The stand-in for TensorBoard, a package in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "tensorboard"
        self.folder.mkdir(parents=True)
        (self.folder / "__init__.py").touch()
        (self.folder / "main.py").write_text(STAND_IN, "utf-8")
        self.do("")

    def do(self, code: str) -> None:
        """Set what it does after it has started."""
        (self.folder / "action.py").write_text(code, "utf-8")

    def was_started(self) -> tuple[list[str], dict[str, str], int] | None:
        """Return its arguments, its links and its process, once it has started."""
        path = self.folder / "started"
        return tuple(json.loads(path.read_text("utf-8"))) if path.exists() else None

    @property
    def names(self) -> list[str]:
        """The names of the runs that it found."""
        found = self.was_started()
        assert found is not None
        return sorted(found[1])


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return StandIn(tmp_path / "modules")


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an outputs/ folder with runs of two days, and a sweep between them."""
    folder = tmp_path / "outputs"
    monkeypatch.setattr(runs, "outputs", lambda: folder)
    monkeypatch.setattr(board, "outputs", lambda: folder)
    make_run(folder / "runs" / "first" / "a", "gpt", TODAY - timedelta(days=2))
    for job in range(3):
        make_run(folder / "sweeps" / "s" / str(job), f"{job} lr=0.{job}", TODAY - timedelta(days=1, hours=-job))
    (folder / "sweeps" / "s" / "sweep.json").write_text("{}")
    for name in ("b", "c"):
        make_run(folder / "runs" / "second" / name, "bigram", TODAY)
    return folder


def make_run(folder: Path, name: str, start: datetime, **entries: Any) -> RunSummary:
    run = run_with(folder, summary={"status": "completed", "name": name, "started": start.isoformat(), **entries})
    (folder / "events.out.tfevents.1").touch()
    return run


def show(tool: Cli, *arguments: str) -> Ended:
    return tool(runs_command.main, "tensorboard", *arguments)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ((), ["14:04 bigram", "14:04 bigram (2)"]),
        (("latest",), ["14:04 bigram (2)"]),
        (("s",), ["0 lr=0.0", "1 lr=0.1", "2 lr=0.2"]),
        (("s/1",), ["1 lr=0.1"]),
        (("second/b", "s/2"), ["14:04 bigram", "{yesterday} 16:04 2 lr=0.2"]),
        (("first",), ["{before} 14:04 gpt"]),
    ],
    ids=["default", "latest", "sweep", "job", "several", "day"],
)
def test_runs_have_their_names(
    arguments: tuple[str, ...], names: list[str], stand_in: StandIn, outputs: Path, tool: Cli
) -> None:
    if arguments == ("latest",):
        (outputs / "runs" / "second" / "b" / "events.out.tfevents.1").unlink()
        names = ["14:04 bigram"]
    ended = show(tool, *arguments, "--", "--port", "6007")
    assert ended.code == 0, ended.err
    days = {"yesterday": f"{TODAY - timedelta(days=1):%m-%d}", "before": f"{TODAY - timedelta(days=2):%m-%d}"}
    assert stand_in.names == sorted(name.format(**days) for name in names)
    started_with = stand_in.was_started()
    assert started_with is not None
    flags, found, _ = started_with
    assert flags[2:] == ["--port", "6007"]
    assert all((Path(run) / "summary.json").exists() for run in found.values())
    assert f"{len(names)} run" in ended.out
    assert "TOGGLE" not in ended.out


def test_the_newest_sweep_is_shown_if_its_job_began_last(stand_in: StandIn, outputs: Path, tool: Cli) -> None:
    make_run(outputs / "sweeps" / "s" / "3", "3 lr=0.3", TODAY + timedelta(days=1))
    for arguments in ((), ("latest",)):
        assert show(tool, *arguments).code == 0
        assert stand_in.names == ["0 lr=0.0", "1 lr=0.1", "2 lr=0.2", "3 lr=0.3"]


def test_nothing_is_left_but_the_runs(stand_in: StandIn, outputs: Path, tmp_path: Path, tool: Cli) -> None:
    before = {path: path.stat() for path in outputs.rglob("*")}
    stand_in.do("sys.exit(3)")
    assert show(tool).code == 3, "the exit code of TensorBoard"
    assert not list((tmp_path / "tmp").iterdir())
    assert {path: path.stat() for path in outputs.rglob("*")} == before


def test_runs_that_begin_and_runs_that_are_deleted(stand_in: StandIn, outputs: Path) -> None:
    new = outputs / "runs" / "second" / "d"
    begin = f"""
import shutil
shutil.copytree({str(outputs / "runs/second/b")!r}, {str(new)!r})
shutil.rmtree({str(outputs / "runs/second/c")!r})
"""
    condition = "[os.path.realpath(p) for p in sorted(folder.iterdir())] == " + repr(
        [str(outputs / "runs/second/b"), str(new)]
    )
    stand_in.do(begin + WAIT_UNTIL.format(condition=condition))
    with pytest.raises(SystemExit) as ended:
        run_tensorboard(["second"], [], seconds=0.05)
    assert ended.value.code == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_tensorboard_and_deletes_the_links(number: int, stand_in: StandIn, outputs: Path) -> None:
    stand_in.do("signal_ignored = __import__('signal').signal(2, lambda *_: None)\ntime.sleep(600)")
    with started("tensorboard", str(outputs / "sweeps" / "s"), main=runs_command.main) as process:
        arguments, _, pid = wait_for(stand_in.was_started, of=process)
        process.send(number)
        assert process.end().code == 128 + number
    assert not Path(arguments[1]).exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert (outputs / "sweeps" / "s" / "2" / "summary.json").exists()


def test_without_links_the_folder_itself_is_shown(
    stand_in: StandIn, outputs: Path, tmp_path: Path, tool: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("A required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    for arguments, folder in ((("s",), outputs / "sweeps" / "s"), (("s", "second"), outputs)):
        ended = show(tool, *arguments)
        assert ended.code == 0, ended.err
        found = stand_in.was_started()
        assert found is not None
        assert found[0] == ["--logdir", str(folder)]
        assert "privilege" in ended.err
        assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize(("n", "clicks"), [(40, 0), (41, 1), (501, 2)])
def test_what_to_click_is_said_for_many_runs(n: int, clicks: int, stand_in: StandIn, tmp_path: Path, tool: Cli) -> None:
    for number in range(n):
        make_run(tmp_path / "many" / str(number), "bigram", TODAY)
    ended = show(tool, str(tmp_path / "many"))
    assert ended.code == 0, ended.err
    assert len(stand_in.names) == n
    assert len(re.findall(r"\bclick\b", ended.out)) == clicks
    assert ("TOGGLE ALL RUNS" in ended.out) == (clicks > 0)
    assert max(map(len, ended.out.replace(str(tmp_path), "").splitlines())) <= 80


def test_refusals(stand_in: StandIn, outputs: Path, tmp_path: Path, tool: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_refused(show(tool, "--port", "6007"), "--port", "after --")
    assert_refused(show(tool, "--", "--logdir=x"), "--logdir=x", "PATH")
    assert_refused(show(tool, "nowhere"), "nowhere", "does not exist")
    run_with(tmp_path / "silent", summary={"status": "completed"})
    assert_refused(show(tool, str(tmp_path / "silent")), "silent", "logger=none")
    assert not list((tmp_path / "tmp").iterdir())
    monkeypatch.setattr(board.importlib.util, "find_spec", lambda name: None)
    assert_refused(show(tool), "TensorBoard is not installed", "pip install tensorboard")
    assert stand_in.was_started() is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("3 lr=0.01 seed=2", "3 lr=0.01 seed=2"),
        ("a/b\\c<d>?", "a_b_c_d__"),
        ("../../x", "_.._x"),
        ("line\nend\x1b", "line_nend_x1b"),
        ("ä" * 300, "ä" * 100),
        (" . ", "run"),
    ],
)
def test_a_name_is_a_name_of_a_file(name: str, expected: str, tmp_path: Path) -> None:
    found = link_name(run_with(tmp_path / "folder", summary={"name": name}), with_time=False)
    assert found == expected
    (tmp_path / found).mkdir()


def test_a_name_without_a_known_time_has_none(tmp_path: Path) -> None:
    assert link_name(run_with(tmp_path / "x", summary={"name": "gpt", "started": "?"}), with_time=True) == "gpt"


def test_equal_names_are_numbered() -> None:
    taken: set[str] = set()
    names = []
    for name in ("a", "A", "a", "b", "a (2)"):
        names.append(unused_name(name, taken))
        taken.add(names[-1].casefold())
    assert names == ["a", "A (2)", "a (3)", "b", "a (2) (2)"]


@pytest.mark.slow
def test_tensorboard_itself_shows_the_names(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = ("data=bundled", "trainer.steps=2", "sample.max_new_tokens=5")
    assert cli("-m", *short, "optim.lr=0.5,0.25", f"hydra.sweep.dir={tmp_path / 'sweep'}", run_dir=False).code == 0
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with started("tensorboard", str(tmp_path / "sweep"), "--", "--port", "0", main=runs_command.main) as process:
        address = wait_for(lambda: re.search(r"http://localhost:\d+/", process.err), of=process)[0]

        def get(path: str) -> Any:
            with urllib.request.urlopen(address + path, timeout=60) as answer:
                return json.load(answer)

        names = ["0 lr=0.5", "1 lr=0.25"]
        wait_for(lambda: get("data/runs") == names, of=process)
        tags = wait_for(lambda: get("data/plugin/scalars/tags").get(names[1]), of=process)
        assert min(tags) == "Loss/train"
        assert not [tag for tag in tags if tag.startswith("final/")]
        process.send(signal.SIGINT)
        assert process.end().code == 130
