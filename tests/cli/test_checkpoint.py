"""Tests of the command `checkpoint`: inspect, verify and strip."""

import errno
import functools
import os
import shutil
from pathlib import Path

import pytest

from bigramlm.checkpoint.checkpoint import Checkpoint
from bigramlm.cli import checkpoint as checkpoint_tool
from bigramlm.engine.load import load_model
from tests.helpers import Cli, assert_refused, build, command, fitted, refuses


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run folder with checkpoints of steps 0, 2, 4 and 5."""
    folder = tmp_path_factory.mktemp("run")
    often = ("trainer.eval_every=2", "trainer.log_every=2", "trainer.checkpoint_every=2", "trainer.keep_checkpoints=9")
    trainer = fitted(folder, *often, "trainer.steps=5")
    assert trainer.checkpoints.steps() == [0, 2, 4, 5]
    return folder


def steps(run: Path) -> Path:
    return run / "checkpoints"


def test_inspect_prints_the_contents(run: Path, tool: Cli) -> None:
    done = tool(checkpoint_tool.main, "inspect", str(steps(run) / "step_4"))
    assert done.code == 0, done.err
    for part in ("step        4", "char, 11 tokens", "token_embedding_table.weight", "(11, 11)", "resume      yes"):
        assert part in done.out, done.out
    assert max(map(len, done.out.splitlines())) <= 120


def test_verify_finds_damaged_checkpoints(run: Path, tmp_path: Path, tool: Cli) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "copy"))
    good = tool(checkpoint_tool.main, "verify", str(folder))
    assert (good.code, good.out.count("intact  ")) == (0, 4)
    (steps(folder) / "step_2" / "tokenizer.json").write_text("{}")
    bad = tool(checkpoint_tool.main, "verify", str(folder))
    assert bad.code == 2
    assert bad.out.count("intact  ") == 3
    assert f"damaged {steps(folder) / 'step_2' / 'tokenizer.json'}: " in bad.out
    assert tool(checkpoint_tool.main, "verify", str(steps(folder) / "step_2")).code == 2
    again = tool(checkpoint_tool.main, "verify", str(steps(folder)))
    assert (again.code, again.out) == (2, bad.out), "the folder of the checkpoints stands for its run"
    none = tool(checkpoint_tool.main, "verify", str(tmp_path / "none"))
    assert_refused(none, tmp_path / "none")
    assert none.err.count("\n") == 1, "the error is the only output"


@pytest.mark.skipif(os.name == "nt", reason="Windows does not let every user make links")
@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/step_5"])
def test_nothing_is_stripped_through_a_link(run: Path, tmp_path: Path, tool: Cli, name: str) -> None:
    theirs = tmp_path / "theirs"
    (theirs / name).parent.mkdir(parents=True)
    mine = Path(shutil.copytree(run / name, tmp_path / "mine"))
    (theirs / name).symlink_to(mine)
    before = {path: path.read_bytes() for path in mine.rglob("*") if path.is_file()}
    assert_refused(tool(checkpoint_tool.main, "strip", str(theirs)), theirs / name, "link")
    assert {path: path.read_bytes() for path in mine.rglob("*") if path.is_file()} == before


def test_paths_that_are_no_checkpoints(run: Path, tmp_path: Path, tool: Cli) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for arguments, named in (
        (["verify", str(tmp_path)], f"{tmp_path} is not a checkpoint and contains none"),
        (["verify", str(tmp_path / "notes.txt")], "notes.txt is a file"),
        (["verify", str(steps(run) / "step_5" / "state.json")], "state.json is a file"),
        (["verify", "lastest"], "did you mean latest?"),
        (["strip", str(tmp_path)], f"{tmp_path} is not a checkpoint and contains none"),
        (["strip", str(run), "--output", ""], "''"),
        (["strip", str(run), "--output", str(tmp_path / "link")], "link"),
        (["strip", str(run), "--output", "x" * 300], "too long"),
    ):
        assert_refused(tool(checkpoint_tool.main, *arguments), named)
    assert (tmp_path / "link").is_symlink()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_verify_reports_that_it_cannot_print(run: Path) -> None:
    done = command("verify", str(run), main=verify_into_a_full_disk)
    assert_refused(done, "standard output cannot be written")


def verify_into_a_full_disk() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    checkpoint_tool.main()


def test_strip_deletes_the_optimizer_state(run: Path, tmp_path: Path, tool: Cli) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "copy"))
    path = steps(folder) / "step_5"
    weights, size = (path / "model.safetensors").read_bytes(), sum(file.stat().st_size for file in path.iterdir())
    assert tool(checkpoint_tool.main, "strip", str(path), "--output", str(tmp_path / "mine")).code == 0
    assert not Checkpoint(path).stripped, "stripping into another folder does not change the checkpoint"
    again = tool(checkpoint_tool.main, "strip", str(path), "--output", str(tmp_path / "mine"))
    assert_refused(again, tmp_path / "mine")
    (folder / "summary.json").write_text('{"status": "stopped"}')
    refused = tool(checkpoint_tool.main, "strip", str(folder))
    assert_refused(refused, folder, "stopped", "--output")
    assert_refused(tool(checkpoint_tool.main, "strip", str(steps(folder))), steps(folder), "stopped", "--output")
    (folder / "summary.json").write_text('{"status": "completed"}')
    done = tool(checkpoint_tool.main, "strip", str(folder))
    assert done.code == 0, done.err
    assert done.out.count("a run can no longer be resumed from it") == 4
    assert tool(checkpoint_tool.main, "strip", str(folder)).out.count("is already stripped") == 4
    nowhere = tool(checkpoint_tool.main, "strip", str(path), "--output", "/proc/x")
    assert_refused(nowhere, "/proc/x")
    assert max(ended.err.count("\n") for ended in (again, refused, nowhere)) == 1, "the error is the only output"
    for stripped in (path, tmp_path / "mine"):
        checkpoint = Checkpoint(stripped)
        assert checkpoint.stripped
        assert sum(file.stat().st_size for file in stripped.iterdir()) < size / 2
        assert (stripped / "model.safetensors").read_bytes() == weights
        load_model(checkpoint)
        with refuses(f"init_from={stripped}"):
            build(tmp_path / "other").start(checkpoint)
    assert not [path for path in steps(folder).iterdir() if path.name.startswith(".")]


def limit_files(size: int) -> None:
    """Limit the size of all files, as on a disk that fills up."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.skipif(os.name == "nt", reason="a limit on the size of files stands in for a full disk; Windows has none")
def test_a_full_disk_is_one_line_and_leaves_the_checkpoint_as_it_was(run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "copy"))
    saved = [path for path in folder.rglob("*") if path.is_file()]
    before = [path.read_bytes() for path in saved]
    small = steps(folder) / "step_5"
    for arguments, named in ((["strip", str(small), "--output", "mine"], "mine"), (["strip", str(small)], small)):
        setup = functools.partial(limit_files, 400)  # bytes; the manifest has more, the message fewer
        ended = command(*arguments, main=checkpoint_tool.main, cwd=tmp_path, setup=setup)
        assert_refused(ended, f"{named} cannot be written", os.strerror(errno.EFBIG), "free some space")
        assert [path.read_bytes() for path in saved] == before
        assert not list(folder.rglob(".*.*"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]
