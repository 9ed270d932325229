"""Tests of the command `prepare`: output, errors, interruptions."""

import functools
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bigramlm.cli import prepare
from bigramlm.data import corpus, encoding, text
from bigramlm.data.config import TextConfig
from bigramlm.data.encoding import Encoded, Encoder
from bigramlm.data.text import Text
from bigramlm.data.tokens import open_tokens
from bigramlm.tokenizer.config import BPEConfig, ByteConfig, TokenizerConfig
from bigramlm.utils import paths
from tests.helpers import TIMEOUT, Cli, assert_refused, command, started, wait_for

TEXT = paths.bundled_text().read_text("utf-8")
BPE = ("tokenizer=bpe", "tokenizer.vocab_size=300")


def encode_in_process(text: Text, cfg: TokenizerConfig, encoder: Encoder, *, skip: int) -> Iterator[Encoded]:
    """Replace `encode_on_all_cores`, whose processes take a second to start."""
    return map(encoder, encoding.units(text.pieces(), skip=skip))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "encode_on_all_cores", encode_in_process)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "long.txt"
    path.write_text(TEXT, "utf-8")
    return path


def test_the_output_describes_the_token_files(
    file: Path, tool: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Prepare a text with worker processes, as a user does."""
    caplog.set_level("INFO")
    monkeypatch.setattr("bigramlm.data.encoding.UNIT", 3000)
    monkeypatch.chdir(tmp_path)
    ended = tool(prepare.main, f"data.path={file}", *BPE, "output=made")
    assert ended.code == 0, ended.err
    found = open_tokens(tmp_path / "made")
    n, tokens = len(TEXT), {split: counts.tokens for split, counts in found.splits.items()}
    assert ended.out.splitlines()[:2] == [
        f"Text: text, {n:,} characters, 1 document, 1 file",
        "Tokenizer: bpe, 300 tokens",
    ]
    assert f"Train: {tokens['train']:,} tokens, " in ended.out
    assert ended.out.splitlines()[-1] == "Train on these files: python scripts/train.py data=tokens data.path=made"
    assert "verified: both token files match their checksums" in caplog.messages
    caplog.clear()
    restored = BPEConfig().restore(found.tokenizer())
    assert restored.decode(found.ids("train").tolist()) + restored.decode(found.ids("val").tolist()) == TEXT
    again = tool(prepare.main, f"data.path={file}", *BPE, "output=made")
    assert again.out == ended.out
    assert "learned" not in caplog.text


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a text, its token files in made/ and a file in other/."""
    folder = tmp_path_factory.mktemp("root")
    (folder / "a.txt").write_text("a\n" * 100)
    (folder / "other").mkdir()
    (folder / "other" / "manifest.json").write_text("mine")
    found = TextConfig(path=str(folder / "a.txt")).read()
    assert isinstance(found, Text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "encode_on_all_cores", encode_in_process)
        corpus.prepare(found, ByteConfig(), None, folder / "made")
    return folder


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], ("data.path=VALUE",)),
        (["data.path=none.txt"], ("none.txt", "data.path=FILE")),
        (["data.path=*.none"], ("data.path=", "*.none")),
        (["data=tokens", "data.path=made"], ("data=tokens", "data.path=")),
        (["data=bundled", "output=a.txt"], ("output=a.txt",)),
        (["data=bundled", "output=other"], ("other", "delete")),
        (["data=bundled", "output=made"], ("made", "tokenizer", "delete")),
        (
            ["data=bundled", "tokenizer=bpe", "tokenizer.vocab_size=99999"],
            ("tokenizer.vocab_size=99999", "tokenizer.min_frequency=2"),
        ),
        (["--fast"], ("--fast", "--help")),
    ],
)
def test_invalid_arguments_are_refused(
    arguments: list[str], named: tuple[str, ...], tool: Cli, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    monkeypatch.setattr(paths, "home", lambda: root)
    contents = {path: path.read_bytes() for folder in ("made", "other") for path in (root / folder).iterdir()}
    assert_refused(tool(prepare.main, *arguments), *named)
    assert contents == {path: path.read_bytes() for folder in ("made", "other") for path in (root / folder).iterdir()}


def test_preparing_again_finds_a_flipped_bit(
    file: Path, in_process: None, tool: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bigramlm.data.text.IN_MEMORY_UP_TO", 1000)
    monkeypatch.setattr(paths, "home", lambda: tmp_path)
    arguments = (f"data.path={file}", "tokenizer=byte")
    ended = tool(prepare.main, *arguments)
    assert ended.code == 0, ended.err
    (path,) = tmp_path.glob("outputs/prepared/*/*/train.bin")
    raw = bytearray(path.read_bytes())
    raw[100] ^= 1
    path.write_bytes(raw)
    assert_refused(tool(prepare.main, *arguments), path, "delete")


def test_a_tokenizer_with_a_relative_path_is_recognised_again(
    tmp_path: Path, in_process: None, tool: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tok").mkdir()
    saved = BPEConfig().build(characters="", documents=1, train=lambda most: iter([TEXT])).to_json()
    pretty = json.dumps(json.loads(saved), indent=2)
    (tmp_path / "tok" / "tokenizer.json").write_text(pretty + "\n", "utf-8")
    arguments = ("data=bundled", "tokenizer=gpt2", "tokenizer.path=tok", "output=made")
    first, second = (tool(prepare.main, *arguments) for _ in range(2))
    assert (first.code, second.code, first.out) == (0, 0, second.out), second.err
    assert (tmp_path / "made" / "tokenizer.json").read_text("utf-8") == pretty, "an exact copy"
    other = BPEConfig().build(characters="", documents=1, train=lambda most: iter([TEXT[:40_000]])).to_json()
    (tmp_path / "tok" / "tokenizer.json").write_text(other, "utf-8")
    assert_refused(tool(prepare.main, *arguments), "made", "tokenizer", "delete")


# Interruptions and continuing


def use_small_parts(limit: int = 0, *, alone: bool = False) -> None:
    """Set small units in a process, and optionally limits.

    limit: the maximum size of files in bytes, 0 for none; alone: encode in this process, without workers.
    """
    encoding.UNIT, corpus.KEPT_EVERY, text.PIECE = 20_000, 40_000, 5_000
    if limit:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if alone:
        corpus.encode_on_all_cores = encode_in_process


SMALL_PARTS = functools.partial(use_small_parts, alone=True)


def wait_with_the_lock(go: Path) -> None:
    """Keep the folder locked, before any work, until the file exists."""
    use_small_parts(alone=True)
    check = corpus.check

    def wait_and_check(text: Text, tokenizer: corpus.Tokenizer, name: str) -> None:
        (go.parent / "locked").touch()
        wait_for(go.exists)
        check(text, tokenizer, name)

    corpus.check = wait_and_check


def test_two_simultaneous_commands_encode_once(file: Path, tmp_path: Path) -> None:
    arguments = (f"data.path={file}", *BPE, f"output={tmp_path / 'made'}")
    first = started(*arguments, main=prepare.main, setup=functools.partial(wait_with_the_lock, tmp_path / "go"))
    second = started(*arguments, main=prepare.main, setup=SMALL_PARTS)
    with first as one:
        wait_for((tmp_path / "locked").exists, of=one)
        with second as other:
            wait_for(lambda: "another process is preparing the token files" in other.err, of=other)
            assert not (tmp_path / "made" / "manifest.json").exists()
            (tmp_path / "go").touch()
            ends = [one.end(), other.end()]
    assert [ended.code for ended in ends] == [0, 0], ends
    assert ends[0].out == ends[1].out
    assert ["made in" in ended.err for ended in ends] == [True, False]
    assert "another process is preparing the token files" not in ends[0].err


def test_a_full_disk_keeps_the_finished_work(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text(TEXT * 3, "utf-8")
    arguments = (f"data.path={tmp_path / 'long.txt'}", "tokenizer=byte", f"output={tmp_path / 'made'}")
    full = command(*arguments, main=prepare.main, setup=functools.partial(use_small_parts, 100_000))
    assert_refused(full, tmp_path / "made", "File too large", "kept")
    progress = json.loads((tmp_path / "made" / "progress.json").read_text())
    assert 70_000 < progress["splits"]["train"]["tokens"] < 100_000
    again = command(*arguments, main=prepare.main, setup=SMALL_PARTS)
    assert again.code == 0, again.err
    done = progress["splits"]["train"]["characters"]
    assert f"continuing after {done:,} characters" in again.err
    made = open_tokens(tmp_path / "made")
    assert (made.ids("train").tobytes() + made.ids("val").tobytes()).decode() == TEXT * 3


# A script that pauses after the first tokens are on the disk, while its workers are running.
PAUSING_SCRIPT = f"""
import time
from bigramlm.cli import prepare
from bigramlm.data import corpus, encoding, text
from bigramlm.data.tokens import TokenWriter

keep = TokenWriter.keep

def keep_and_pause(writer):
    TokenWriter.keep = keep
    keep(writer)
    print("kept", flush=True)
    time.sleep({TIMEOUT})

if __name__ == "__main__":
    encoding.UNIT, corpus.KEPT_EVERY, text.PIECE = 20_000, 40_000, 5_000
    TokenWriter.keep = keep_and_pause
    prepare.main()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_command_leaves_no_process_and_can_be_continued(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text(TEXT * 2, "utf-8")
    arguments = (f"data.path={tmp_path / 'long.txt'}", *BPE, f"output={tmp_path / 'made'}")
    script = tmp_path / "prepare.py"
    script.write_text(PAUSING_SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(script), *arguments],
        cwd=paths.home(),
        env={"PYTHONPATH": str(paths.home()), "PATH": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "kept\n"
        process.send_signal(number)
        # The pipe closes only when the command and all of its workers have ended.
        _, err = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    if number == signal.SIGINT:
        assert err.splitlines()[-1].startswith("stopped by SIGINT")
    assert not (tmp_path / "made" / "manifest.json").exists()
    assert json.loads((tmp_path / "made" / "progress.json").read_text())["pieces"]
    again = command(*arguments, main=prepare.main, setup=SMALL_PARTS)
    assert again.code == 0, again.err
    assert "continuing after" in again.err
    assert "learned" not in again.err
    made = open_tokens(tmp_path / "made")
    made.verify()
    tokenizer = BPEConfig().restore(made.tokenizer())
    assert sum(counts.characters for counts in made.splits.values()) == 2 * len(TEXT)
    assert tokenizer.decode(made.ids("val").tolist()) == (TEXT * 2)[int(0.9 * 2 * len(TEXT)) :]


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ("tokenizer.vocab_siz=300", "did you mean tokenizer.vocab_size=300?"),
        ("tokenizer.vocab_size=300", "bpe"),
        ("optim.lr=1", "--help"),
        ("data=txt", "did you mean data=text?"),
        ("my.txt", "FIELD=VALUE"),
        ("data.path my.txt", "write data.path=my.txt"),
        ("data.path=my text.txt", "'data.path=my text.txt'"),
        ("--output there", "write output=there"),
        ("tokenizer=bpe,char", "single value"),
        ("data.train_fraction=most", "number"),
    ],
)
def test_mistakes_give_one_line_with_the_right_spelling(arguments: str, advice: str, tool: Cli) -> None:
    assert_refused(tool(prepare.main, *arguments.split()), arguments, advice)
