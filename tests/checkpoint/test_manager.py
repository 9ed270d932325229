"""Tests of the files in checkpoints/ that a run deletes or leaves."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigramlm.checkpoint.checkpoint import Checkpoint
from bigramlm.checkpoint.manager import Checkpoints
from bigramlm.cli.verify_resume import compare
from tests.helpers import SHORT, Cli, assert_refused, command, crashed_copy, fitted, resumed, summary

RANDOM = "0123456789abcdef" * 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a completed run of 5 steps."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    done = command(*SHORT, f"hydra.run.dir={folder}")
    assert done.code == 0, done.err
    return folder


# Names of files that a user or another program may keep among the checkpoints.
FILES = (
    *(".gitignore", ".DS_Store", ".hidden", "notes.txt", "step_007", "step_x", "step_9.bak", "last.txt", "step_"),
    *("step_99", ".last", ".last.abc", f".last.{RANDOM}0", f".last.{RANDOM.upper()}", f".notes.{RANDOM}", ".step_2"),
    *(f"step_2.{RANDOM}", f".step_02.{RANDOM}", f".step_2.{RANDOM}.txt", f".step_2.old.{RANDOM}", f"..last.{RANDOM}"),
    *(f".step_x.kept.{RANDOM}", f".kept.{RANDOM}", f".{RANDOM}"),
)
FOLDERS = (
    *(".stversions", ".git", "step_008", "step_1e3", "step_+1", "mine", ".step_3", f".mine.{RANDOM}", ".step_3.abc"),
    *("damaged_step_3.abcdef", f".best.{RANDOM}"),
)


def add_files(folder: Path) -> dict[str, bytes | None]:
    """Add files and folders of a user; return their contents by name."""
    for name in FILES:
        (folder / name).write_text("mine")
    for name in FOLDERS:
        (folder / name).mkdir()
        (folder / name / "x").write_text("mine")
    return contents_of(folder, {*FILES, *FOLDERS})


def contents_of(folder: Path, names: set[str]) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if path.relative_to(folder).parts[0] in names
    }


def test_a_resumed_run_leaves_the_files_of_others(trained: Path, tmp_path: Path, cli: Cli) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    mine = {where: add_files(where) for where in (run, run / "checkpoints")}
    ended = resumed(cli, run, "trainer.steps=20", "trainer.checkpoint_every=2", "trainer.keep_checkpoints=1")
    assert ended.code == 0, ended.err
    for where, before in mine.items():
        assert contents_of(where, {*FILES, *FOLDERS}) == before
    assert (run / "checkpoints" / "step_20" / "model.safetensors").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows does not let every user make links")
def test_links_are_not_followed_or_deleted(trained: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints"))
    target = Path(shutil.copytree(folder / "step_5", tmp_path / "target"))
    links = [folder / f".{name}.{RANDOM}" for name in ("step_9", "last")]
    for link, to in zip(links, (target, target / "state.json"), strict=True):
        link.symlink_to(to)
    Checkpoints(folder).clean_up()
    assert all(link.is_symlink() for link in links)
    Checkpoint(target)


def add_foreign(folder: Path, kind: str) -> None:
    """Put something that is no part of a checkpoint into a folder."""
    folder.mkdir(exist_ok=True)
    if kind == "run":
        (folder / "runs" / "0").mkdir(parents=True)
        (folder / "runs" / "0" / "summary.json").write_text("{}")
    elif kind == "link":
        (folder / "mine").symlink_to(folder.parent, target_is_directory=True)
    else:
        (folder / "notes.txt").write_text("mine")


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("kind", ["file", "run", "link"])
def test_a_checkpoint_with_a_foreign_file_is_not_deleted(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = fitted(tmp_path, "trainer.keep_checkpoints=1")
    folder = trainer.checkpoints.folder
    for step in (40, 50, 60, 70):
        trainer.progress.step = step
        trainer.save()
        if step == 50:
            add_foreign(folder / "step_50", kind)
            before = tree(folder / "step_50")
    assert tree(folder / "step_50") == before
    assert trainer.checkpoints.steps()[-2:] == [50, 70]
    Checkpoint(folder / "step_50")  # it is still complete
    assert sum("is not deleted" in message for message in caplog.messages) == 1


def test_a_checkpoint_that_a_window_of_its_folder_showed_is_deleted(tmp_path: Path) -> None:
    trainer = fitted(tmp_path, "trainer.keep_checkpoints=1")
    for step in (40, 50, 60):
        trainer.progress.step = step
        trainer.save()
        (trainer.checkpoints.folder / f"step_{step}" / ".DS_Store").touch()
    assert 40 not in trainer.checkpoints.steps()


def test_a_linked_checkpoint_is_not_deleted(tmp_path: Path) -> None:
    trainer = fitted(tmp_path, "trainer.keep_checkpoints=1")
    folder = trainer.checkpoints.folder
    for step in (40, 50, 60):
        trainer.progress.step = step
        trainer.save()
        if step == 40:
            (folder / "step_40").rename(tmp_path / "elsewhere")
            (folder / "step_40").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert (folder / "step_40").is_symlink()
    assert Checkpoint(folder / "step_40").step == 40


@pytest.mark.parametrize("kind", ["file", "run"])
def test_a_foreign_folder_with_the_name_of_a_checkpoint_is_left(
    trained: Path, tmp_path: Path, cli: Cli, kind: str
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    folder = run / "checkpoints"
    for name in ("step_1", "step_8", "step_1000"):
        add_foreign(folder / name, kind)
    before = {name: tree(folder / name) for name in ("step_1", "step_8", "step_1000")}
    ended = resumed(cli, run, "trainer.steps=9", "trainer.checkpoint_every=1", "trainer.keep_checkpoints=1")
    assert ended.code == 0, ended.err
    for name in ("step_1", "step_1000"):
        assert tree(folder / name) == before[name]
    (renamed,) = folder.glob("damaged_step_8.*")  # in the way of the run's own checkpoint
    assert tree(renamed) == before["step_8"]
    assert "step_8" in ended.err


def test_temporary_files_of_a_crash_are_deleted(trained: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints"))
    before = sorted(path.name for path in folder.iterdir())
    for name in ("last", "best", "step_5.kept"):
        (folder / f".{name}.{RANDOM}").write_text("step_")
    for name in ("step_0", "step_5", "step_12"):
        (folder / f".{name}.{RANDOM}").mkdir()
        (folder / f".{name}.{RANDOM}" / "state.json").write_text("{")
    Checkpoints(folder).clean_up()
    assert sorted(path.name for path in folder.iterdir()) == before


def test_the_file_that_safetensors_was_writing_is_deleted(tmp_path: Path) -> None:
    leftover = tmp_path / f".step_9.{RANDOM}"
    leftover.mkdir()
    for name in ("model.safetensors", ".tmpAbC123"):
        (leftover / name).touch()
    Checkpoints(tmp_path).clean_up()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("function", ["unlink", "rmdir", "rename"])
def test_a_leftover_that_cannot_be_deleted_fails_no_run(
    trained: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    leftovers = [run / "checkpoints" / f".{name}.{RANDOM}" for name in ("last", "step_9", "step_5")]
    leftovers[0].write_text("step_")
    leftovers[1].mkdir()
    (leftovers[1] / "state.json").write_text("{")
    shutil.copytree(run / "checkpoints" / "step_5", leftovers[2])
    original: Callable[..., Any] = getattr(os, function)

    def refuse(path: Any, *arguments: Any, **keywords: Any) -> Any:
        if RANDOM in str(path) or (keywords.get("dir_fd") is not None and "dir_fd" in keywords):
            raise PermissionError(1, "Operation not permitted", str(path))
        return original(path, *arguments, **keywords)

    monkeypatch.setattr(os, function, refuse)
    ended = resumed(cli, run, "trainer.steps=9")
    assert ended.code == 0, ended.err
    assert summary(run)["status"] == "completed"
    assert Checkpoints(run / "checkpoints").path("last").name == "step_9"


def test_an_old_checkpoint_that_stays_when_its_step_is_saved_again_fails_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = fitted(tmp_path)
    trainer.progress.step, trainer.progress.best = 5, {"step": 5, "val/loss": 0.0}
    trainer.save()
    original = os.unlink

    def refuse(path: Any, *arguments: Any, **keywords: Any) -> None:
        if Path(str(path)).name == "state.json":
            raise PermissionError(1, "Operation not permitted", str(path))
        original(path, *arguments, **keywords)

    monkeypatch.setattr(os, "unlink", refuse)
    trainer.save()
    Checkpoint(trainer.checkpoints.path("last"))


def test_log_spaced_checkpoints_are_kept_beside_the_newest(cli: Cli, tmp_path: Path) -> None:
    words = ("trainer.checkpoint_at=log", "trainer.keep_checkpoints=1", "trainer.checkpoint_every=30")
    config = (*SHORT, *words, "trainer.steps=30", "trainer.eval_every=30")
    whole = cli(*config).folder
    kept = [0, 1, 2, 5, 10, 20, 30]
    assert Checkpoints(whole / "checkpoints").steps() == kept
    run = crashed_copy(whole, tmp_path / "run", 10)
    assert resumed(cli, run).code == 0
    assert compare(whole, run) is None
    assert Checkpoints(run / "checkpoints").steps() == kept
    assert_refused(cli(*SHORT, "trainer.checkpoint_at=all"), "trainer.checkpoint_at=all", "must be log or null")
