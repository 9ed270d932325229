"""Tests of texts that are piped to a command."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bigramlm.data.piped import keep_piped
from bigramlm.utils import paths
from tests.helpers import SHORT, refuses, summary

TEXT = "To be, or not to be, that is the question.\n" * 60
OPTIONS = [option for option in SHORT if not option.startswith("data=")]


def piped(script: str, *words: str, content: bytes = TEXT.encode()) -> subprocess.CompletedProcess[bytes]:
    path = str(paths.home() / "scripts" / f"{script}.py")
    return subprocess.run([sys.executable, path, *words], input=content, capture_output=True, check=False)


def test_other_paths_are_unchanged(tmp_path: Path) -> None:
    for path in ("a.txt", "/dev/null", "/dev/fd/x", str(tmp_path), "stdin"):
        assert keep_piped(path, "data.path") == path


def test_a_pipe_is_kept_and_a_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "home", lambda: tmp_path)
    end, start = os.pipe()
    os.write(start, TEXT.encode())
    os.close(start)
    kept = Path(keep_piped(f"/dev/fd/{end}", "data.path"))
    os.close(end)
    assert kept.read_text("utf-8") == TEXT
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]
    with kept.open("rb") as file:
        assert keep_piped(f"/dev/fd/{file.fileno()}", "data.path") == str(kept)
    with Path("/dev/null").open("rb") as file, refuses("data.path=/dev/fd", "nothing is piped"):
        keep_piped(f"/dev/fd/{file.fileno()}", "data.path")
    end, start = os.pipe()
    os.close(start)
    before = sorted(kept.parent.iterdir())
    with refuses(f"data.path=/dev/fd/{end}: the pipe is empty"):
        keep_piped(f"/dev/fd/{end}", "data.path")
    os.close(end)
    assert sorted(kept.parent.iterdir()) == before
    with refuses("data.path=/dev/fd/987", "cannot be read"):
        keep_piped("/dev/fd/987", "data.path")


def test_a_piped_text_trains_resumes_and_is_swept(tmp_path: Path) -> None:
    run, words = tmp_path / "run", ["data=text", "++data.path=/dev/stdin"]
    done = piped("train", *OPTIONS, *words, f"hydra.run.dir={run}", content=gzip.compress(TEXT.encode()))
    assert done.returncode == 0, done.stderr
    done = piped("train", f"resume={run}", "trainer.steps=9", content=b"")
    assert done.returncode == 0, done.stderr
    assert summary(run)["step"] == 9
    sweep = tmp_path / "sweep"
    done = piped("train", "-m", *OPTIONS, *words, "seed=1,2", f"hydra.sweep.dir={sweep}")
    assert done.returncode == 0, done.stderr
    assert summary(sweep / "0")["data"] == summary(sweep / "1")["data"]
    done = piped("prepare", *words, "tokenizer=byte", f"output={tmp_path / 'tokens'}")
    assert done.returncode == 0, done.stderr
    assert b"2,580 characters" in done.stdout
    done = piped("train", *OPTIONS, *words, content=b"")
    assert (done.returncode, b"data.path=/dev/stdin: the pipe is empty" in done.stderr) == (2, True), done.stderr


def test_a_named_pipe_and_a_device_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", "/dev/null"):
        done = piped("train", *OPTIONS, "data=text", f"data.path={path}")
        assert (done.returncode, b"/dev/stdin" in done.stderr) == (2, True), done.stderr
