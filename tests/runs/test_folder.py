"""Tests of the run folder and its summary."""

import contextlib
import json
import os
import shutil
from pathlib import Path

import pytest

from bigramlm.cli import runs
from bigramlm.runs.folder import HOLDER, LOCK, RunFolder, holder, is_locked, versions
from bigramlm.utils import files
from tests.helpers import SHORT, Cli, assert_refused, refuses, resumed


def test_update_summary_keeps_other_values(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.update_summary(status="running", step=0)
    folder.update_summary(status="completed")
    assert json.loads((tmp_path / "summary.json").read_text("utf-8")) == {"status": "completed", "step": 0}
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_summary_records_a_failure_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path)
    folder.update_summary(status="running", note="a long value that must be removed completely")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write", full)
    folder.update_summary(status="failed", note="")
    assert json.loads((tmp_path / "summary.json").read_text("utf-8")) == {"status": "failed", "note": ""}


@pytest.mark.skipif(os.name == "nt", reason="a file size limit simulates a full disk; Windows has none")
def test_summary_is_restored_if_it_cannot_grow(tmp_path: Path) -> None:
    """A partly overwritten summary would be neither the old nor the new one."""
    import resource

    folder = RunFolder(tmp_path)
    folder.update_summary(status="running", overrides=["a" * 50])
    before = (tmp_path / "summary.json").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limits[1]))
    try:
        with pytest.raises(OSError, match=r"space|large"):
            folder.update_summary(error="b" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "summary.json").read_bytes() == before


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("old")

    def fails(self: Path, target: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(OSError, match="Input/output"):
        files.write(path, [b"new"], durable=False)
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_versions_match_the_running_packages() -> None:
    import torch

    assert versions()["torch"] == torch.__version__


def put(path: Path, kind: str, target: Path) -> None:
    """Put a link or a pipe in the place of a file or folder."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(target)


@pytest.mark.skipif(os.name == "nt", reason="Windows does not let every user make links")
@pytest.mark.parametrize("kind", ["link", "pipe"])
@pytest.mark.parametrize(
    "name",
    [
        *("checkpoints", "checkpoints/step_5", "checkpoints/step_5/state.json", "checkpoints/last", "checkpoints/.x"),
        *("samples.txt", "metrics.jsonl", "summary.json", "config.yaml", "train.log", ".lock", ".lock.json", "mine"),
    ],
)
def test_nothing_is_written_to_a_folder_with_links_or_pipes(cli: Cli, tmp_path: Path, name: str, kind: str) -> None:
    run = cli(*SHORT, "sample.prompt=A").folder
    mine = tmp_path / "mine"
    shutil.copytree(run / "checkpoints", mine)
    (mine / ".hidden").write_text("mine")
    target = mine if "." not in name else mine / ".hidden"
    put(run / name, kind, target)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()}
    refused = resumed(cli, run, "trainer.steps=9")
    assert_refused(refused)
    assert name in refused.err or "config.yaml" in name  # which is read first
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()}
    assert after == before


@pytest.mark.skipif(os.name == "nt", reason="Windows does not let every user make links")
@pytest.mark.parametrize("name", ["summary.json", "config.yaml", "metrics.jsonl", "samples.txt"])
def test_a_link_in_a_run_folder_is_not_read(cli: Cli, tool: Cli, tmp_path: Path, name: str) -> None:
    """A run of someone else could put a private file of this machine into a report."""
    run = cli(*SHORT).folder
    private = tmp_path / "private"
    shutil.copyfile(run / name, private)
    private.write_bytes(
        private.read_bytes().replace(b"bundled", b"mysecret").replace(b"---- step 5\n", b"---- step 5\nmysecret\n")
        + (b'{"step": 6, "seconds": 1, "val/loss": 48151.62}\n' if name == "metrics.jsonl" else b"")
    )
    put(run / name, "link", private)
    page = tmp_path / "report.html"
    ended = tool(runs.main, "report", str(run), "--output", str(page))
    assert ended.code == 0, ended.err
    assert len([line for line in ended.err.splitlines() if name in line]) == 1, ended.err
    shown = page.read_text("utf-8") + ended.out + tool(runs.main, "diff", str(run), str(run)).out
    found = [word for word in ("mysecret", "48151.6") if word in shown]  # a diff of the whole page would take minutes
    assert found == []


@pytest.mark.skipif(os.name == "nt", reason="Windows does not let every user make links")
def test_files_with_a_second_name_elsewhere_are_not_changed(cli: Cli, tmp_path: Path) -> None:
    """A backup may consist of hard links, and a run of somebody else too."""
    run = cli(*SHORT).folder
    copies = {path.name: tmp_path / path.name for path in run.iterdir() if path.is_file()}
    for name, copy in copies.items():
        os.link(run / name, copy)
    before = {name: copy.read_bytes() for name, copy in copies.items()}
    ended = resumed(cli, run, "trainer.steps=9")
    assert ended.code == 0, ended.err
    assert {name: copy.read_bytes() for name, copy in copies.items()} == before
    assert (run / "train.log").read_bytes().startswith(before["train.log"])


@pytest.mark.skipif(os.name == "nt", reason="Windows writes the holes of a file")
@pytest.mark.parametrize("name", ["samples.txt", "config.yaml"])
def test_a_file_without_end_is_set_aside(cli: Cli, name: str) -> None:
    run = cli(*SHORT).folder
    with (run / name).open("wb") as file:
        file.truncate(1 << 40)
    ended = resumed(cli, run, "trainer.steps=9")
    assert ended.code == 0, ended.err
    assert (run / name).stat().st_size < 10_000
    assert [path.stat().st_size for path in run.glob(f"damaged_{name}.*")] == [1 << 40]


@pytest.mark.skipif(os.name == "nt", reason="Windows does not let every user make links")
def test_links_to_a_run_folder_are_followed(cli: Cli, tmp_path: Path) -> None:
    run = cli(*SHORT).folder
    (tmp_path / "link").symlink_to(run)
    (tmp_path / "above").symlink_to(tmp_path)
    for number, folder in enumerate((tmp_path / "link", tmp_path / "above" / run.name), start=1):
        ended = resumed(cli, folder, f"trainer.steps={5 + number}")
        assert ended.code == 0, ended.err


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps an open file")
def test_a_deleted_lock_is_replaced_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = RunFolder(tmp_path)
    with folder.lock():
        for name in (LOCK, HOLDER):
            (tmp_path / name).unlink()
        assert not is_locked(tmp_path)
        folder.keep_lock()
        folder.keep_lock()
        assert is_locked(tmp_path)
        assert holder(tmp_path) == os.getpid()
    (warning,) = caplog.messages
    assert str(tmp_path / LOCK) in warning
    assert not is_locked(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps an open file")
def test_a_run_that_lost_its_lock_to_another_process_writes_nothing_more(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with contextlib.ExitStack() as other:
        with folder.lock():
            folder.begin([])
            (tmp_path / LOCK).unlink()
            other.enter_context(RunFolder(tmp_path).lock())
            with refuses(tmp_path, "another process", f"pid {os.getpid()}"):
                folder.keep_lock()
            assert not folder.begun, "the end of the run is not recorded in the summary of the other one"
        assert is_locked(tmp_path)
        assert holder(tmp_path) == os.getpid(), "the file that names the other process stays"


def test_a_folder_that_is_deleted_during_a_run_is_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    with folder.lock():
        shutil.rmtree(folder.path)
        with refuses(folder.path, "was deleted"):
            folder.keep_lock()
    assert not folder.path.exists()


@pytest.mark.parametrize("name", ["checkpoints/last", "checkpoints/best", "samples.txt", "metrics.jsonl"])
def test_a_folder_in_place_of_a_file_is_refused_before_training(name: str, cli: Cli) -> None:
    run = cli(*SHORT, "tokenizer=byte").folder
    (run / name).unlink()
    (run / name).mkdir()
    before = (run / "summary.json").read_bytes()
    assert_refused(resumed(cli, run, "trainer.steps=9"), run / name, "is a folder")
    assert (run / "summary.json").read_bytes() == before


def test_a_log_that_no_run_has_written_is_kept(cli: Cli, tmp_path: Path) -> None:
    for name, options in (("train.log", []), ("other.log", ["hydra.job.name=other"])):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text("mine\n", "utf-8")
        ended = cli(*SHORT, *options, f"hydra.run.dir={folder}", run_dir=False)
        assert_refused(ended, folder / name, "was not written by a run")
        assert [path.name for path in folder.iterdir()] == [name]
        assert (folder / name).read_text("utf-8") == "mine\n"
