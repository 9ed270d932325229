"""Long texts: token files, what goes on after an interruption, and what does not belong together."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bigramlm import corpus, paths, prepare
from bigramlm.corpus import Corpus, tokenized
from bigramlm.data.batches import Batches, Stream, on_device
from bigramlm.data.config import TextConfig
from bigramlm.data.text import Text
from bigramlm.data.tokens import About, Counts, TokenFiles, open_tokens
from bigramlm.errors import UserError
from bigramlm.results import Entry, Outcomes
from bigramlm.run import read_summary
from bigramlm.tokenizer.base import Tokenizer
from bigramlm.tokenizer.char import CharTokenizer
from bigramlm.tokenizer.config import BPEConfig, ByteConfig, CharConfig, TokenizerConfig, WordPieceConfig
from tests.helpers import Cli

TEXT = paths.bundled_text().read_text("utf-8")
SHORT = (
    "logger=none",
    "trainer.steps=20",
    "trainer.eval_every=10",
    "trainer.eval_batches=2",
    "sample.max_new_tokens=9",
)
BPE = ("tokenizer=bpe", "tokenizer.vocab_size=300")


@pytest.fixture
def long(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Texts of more than a thousand characters are long ones, worked on in small parts, and kept here."""
    monkeypatch.setattr("bigramlm.data.text.IN_MEMORY_UP_TO", 1000)
    monkeypatch.setattr("bigramlm.data.text.PIECE", 500)
    monkeypatch.setattr("bigramlm.corpus._UNIT", 3000)
    monkeypatch.setattr("bigramlm.corpus._KEPT_EVERY", 6000)
    monkeypatch.setattr("bigramlm.paths.home", lambda: tmp_path)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What encodes is this process: it takes a second to start others. How many pieces were encoded, by unit."""
    units: list[int] = []

    def encoded(text: Text, cfg: TokenizerConfig, tokenizer: Tokenizer, kind: type, *, skip: int) -> Iterator[Any]:
        worker = (tokenizer, kind, text.where, text.documents > 1)
        monkeypatch.setattr("bigramlm.corpus._worker", worker, raising=False)
        for unit in corpus._units(text.pieces(), skip=skip):
            yield corpus._encode_unit(unit)
            units.append(len(unit))

    monkeypatch.setattr("bigramlm.corpus._encoded", encoded)
    return units


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "long.txt"
    path.write_text(TEXT, "utf-8")
    return path


def of(path: str | Path, cfg: TokenizerConfig, given: Tokenizer | None = None) -> Corpus:
    data = TextConfig(path=str(path))
    return tokenized(data.read(), cfg, given, data.kept_in())


def files_of(found: Corpus) -> Path:
    (folder,) = {Path(str(ids.filename)).parent for ids in found.ids.values() if isinstance(ids, np.memmap)}
    return folder


def same(a: Corpus, b: Corpus) -> bool:
    ids = all(np.array_equal(a.ids[split], b.ids[split]) for split in ("train", "val"))
    fields = ("name", "sha256", "n_characters", "documents", "tokenizer_sha256", "characters")
    return ids and all(getattr(a, field) == getattr(b, field) for field in fields)


# What token files hold


@pytest.mark.parametrize(
    "cfg",
    [CharConfig(), ByteConfig(), BPEConfig(vocab_size=400), WordPieceConfig(vocab_size=300)],
    ids=lambda c: c.name,
)
@pytest.mark.parametrize("several", [False, True])
def test_token_files_hold_what_memory_would(
    cfg: TokenizerConfig,
    several: bool,
    file: Path,
    tmp_path: Path,
    long: None,
    in_process: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A second implementation: the text in memory, encoded as it stands."""
    path: str | Path = file
    documents = [TEXT]
    if several:
        documents = [TEXT[at : at + 700] for at in range(0, len(TEXT), 700)]
        path = tmp_path / "long.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), "utf-8")
    found = of(path, cfg)
    with monkeypatch.context() as patch:
        patch.setattr("bigramlm.data.text.IN_MEMORY_UP_TO", 10**9)
        in_memory = of(path, cfg)
    assert all(isinstance(ids, np.memmap) for ids in found.ids.values())
    assert not any(isinstance(ids, np.memmap) for ids in in_memory.ids.values())
    assert same(found, in_memory)
    assert found.ids["train"].dtype == in_memory.ids["train"].dtype
    tokenizer = found.tokenizer
    data = TextConfig(path=str(path)).read()
    assert isinstance(data, Text)
    expected: dict[str, list[int]] = {"train": [], "val": []}
    at = 0
    for text in documents:
        for split, part in (("train", text[: max(0, data.split - at)]), ("val", text[max(0, data.split - at) :])):
            expected[split] += tokenizer.encode(part).tolist()
        at += len(text)
        if several:
            assert tokenizer.end_of_text is not None
            expected["train" if at <= data.split else "val"].append(tokenizer.end_of_text)
    assert {split: ids.tolist() for split, ids in found.ids.items()} == expected
    assert found.characters == {"train": data.split, "val": len(TEXT) - data.split}


def test_a_vocabulary_is_learned_from_the_training_split_alone(file: Path, long: None, in_process: list[int]) -> None:
    cfg = BPEConfig(vocab_size=500)
    found = of(file, cfg)
    cut = int(0.9 * len(TEXT))
    alone = cfg.build(characters="", documents=1, train=lambda most: iter([TEXT[:cut]]))
    assert found.tokenizer.to_json() == alone.to_json()
    changed = of_changed(file, TEXT[:cut] + "zyx " * ((len(TEXT) - cut) // 4), cfg)
    assert changed.tokenizer.to_json() == found.tokenizer.to_json()


def of_changed(file: Path, text: str, cfg: TokenizerConfig) -> Corpus:
    file.write_text(text[: len(TEXT)].ljust(len(TEXT), "z"), "utf-8")
    return of(file, cfg)


def test_of_a_very_long_split_a_part_spread_over_all_of_it_is_learned_from(file: Path, long: None) -> None:
    text = TextConfig(path=str(file)).read()
    assert isinstance(text, Text)
    seen: list[str] = []

    class Learned(BPEConfig):
        def build(self, *, characters: str, documents: int, train: Callable[[int], Iterator[str]]) -> Tokenizer:
            seen.extend(train(self.train_characters))
            return CharTokenizer(characters)

    corpus.build(text, Learned(train_characters=10_000))
    places = [TEXT.index(piece) for piece in seen]
    assert 9_000 < sum(map(len, seen)) < 11_000
    gaps = np.diff(places)
    assert gaps.max() < 2 * gaps.min()
    assert places[-1] > 0.8 * text.split
    assert places[-1] + len(seen[-1]) <= text.split
    seen.clear()
    corpus.build(text, Learned(train_characters=text.split))
    assert "".join(seen) == TEXT[: text.split]


def test_a_lossy_tokenizer_says_so(
    file: Path, long: None, in_process: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    of(file, WordPieceConfig(vocab_size=300))
    (line,) = (record.message for record in caplog.records if record.levelname == "WARNING")
    assert re.match(
        r"tokenizer: wordpiece loses part of the text: '.+' comes back as '.+'\. val/bpc counts what is", line
    )


def test_documents_need_a_token_for_where_one_ends(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("ab" * 50, "utf-8")
    with pytest.raises(UserError, match=r"has 2 documents, and this tokenizer \(char\) no token for where one ends"):
        of(tmp_path / "*.txt", CharConfig(), CharTokenizer("ab"))
    assert of(tmp_path / "*.txt", CharConfig()).documents == 2


# Kept for the next time, gone on with, or refused


def test_token_files_are_made_once(file: Path, long: None, in_process: list[int]) -> None:
    cfg = BPEConfig(vocab_size=300)
    first = of(file, cfg)
    made = len(in_process)
    assert made > 5
    assert same(of(file, cfg), first)
    assert len(in_process) == made
    assert same(of(file, cfg, cfg.restore(first.tokenizer.to_json())), first), "with a checkpoint's tokenizer"
    assert len(in_process) == made
    other = cfg.build(characters="", documents=1, train=lambda most: iter([TEXT[:20_000]]))
    of(file, cfg, other)
    assert len(in_process) == 2 * made, "one that was learned from another text has files of its own"
    of(file, cfg, other)
    assert len(in_process) == 2 * made
    of(file, BPEConfig(vocab_size=301))
    assert len(in_process) == 3 * made


def test_files_of_a_text_that_has_changed_give_way(file: Path, long: None, in_process: list[int]) -> None:
    first = of(file, CharConfig())
    kept = first.ids["train"]
    before = kept.tolist()
    file.write_text(TEXT[::-1], "utf-8")
    os.utime(file, (1, 1))
    second = of(file, CharConfig())
    assert files_of(second) == files_of(first)
    assert second.tokenizer.decode(second.ids["train"][:100].tolist()) == TEXT[::-1][:100]
    assert kept.tolist() == before, "a run that reads the old ones goes on with them"


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("after", [1, 2, 3, 6, 9])
def test_what_was_interrupted_goes_on_where_it_was(
    after: int, file: Path, long: None, in_process: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cfg = BPEConfig(vocab_size=300)
    whole = of(file, cfg)
    units, folder = list(in_process), files_of(whole)
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(folder)
    in_process.clear()

    encode = corpus._encode_unit

    def interrupted(unit: Any) -> Any:
        if len(in_process) == after:
            raise Interrupted
        return encode(unit)

    with monkeypatch.context() as patch:
        patch.setattr("bigramlm.corpus._encode_unit", interrupted)
        with pytest.raises(Interrupted):
            of(file, cfg)
    with pytest.raises(UserError, match="preparing them was not finished; the same command goes on"):
        open_tokens(folder)
    with (folder / "train.bin").open("ab") as more:  # written, and not yet kept
        more.write(b"half of a unit")
    in_process.clear()

    def no_learning(*given: Any, **words: Any) -> None:
        raise AssertionError("it was learned before")

    monkeypatch.setattr("bigramlm.tokenizer.subword.train_bpe", no_learning)
    assert same(of(file, cfg), whole)
    assert sum(in_process) == sum(units[after:]), "what was done is not done again"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == contents


def test_a_text_that_changes_in_between_leaves_nothing_behind(
    file: Path, long: None, in_process: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is read the next time, also if that is what it was at first."""
    cfg = ByteConfig()
    whole = of(file, cfg)
    folder = files_of(whole)
    shutil.rmtree(folder)
    text = TextConfig(path=str(file)).read()
    assert isinstance(text, Text)
    status = file.stat()
    file.write_text(TEXT.replace("the", "thy"), "utf-8")
    os.utime(file, ns=(status.st_mtime_ns, status.st_mtime_ns))  # and neither size nor time tell
    for _ in range(2):
        with pytest.raises(UserError, match=r"long.txt: was changed while it was read; run this again"):
            tokenized(text, cfg, None, folder.parent)
        assert not [path for path in folder.iterdir() if not path.name.startswith(".")]
    assert of(file, cfg).sha256 != whole.sha256, "it is read again"
    file.write_text(TEXT, "utf-8")
    assert same(of(file, cfg), whole)


def test_two_at_once_do_it_once(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text(TEXT * 100, "utf-8")
    arguments = (f"data.path={tmp_path / 'long.txt'}", *BPE, f"output={tmp_path / 'made'}")
    processes = [prepared(tmp_path, *arguments) for _ in range(2)]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert sorted("made in" in err for err in errors) == [False, True]
    assert sum("another process prepares them" in err for err in errors) == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: cut(folder / "val.bin"),
            r"val.bin: has [\d,]+ bytes, and [\d,]+ were written: it is cut",
        ),
        (lambda folder: (folder / "train.bin").unlink(), r"train.bin: has 0 bytes, and [\d,]+ were written"),
        (
            lambda folder: (folder / "manifest.json").write_text("{}"),
            r"manifest.json: is not one that prepare",
        ),
        (lambda folder: (folder / "manifest.json").unlink(), r"holds no token files, .*: prepare.py makes them"),
        (
            lambda folder: (folder / "tokenizer.json").write_text("{}"),
            r"tokenizer.json: is not the tokenizer that",
        ),
        (lambda folder: (folder / "tokenizer.json").unlink(), r"tokenizer.json: cannot be read"),
    ],
)
def test_damaged_token_files_are_refused(
    damage: Callable[[Path], Any], message: str, file: Path, long: None, in_process: list[int], cli: Cli
) -> None:
    folder = files_of(of(file, BPEConfig(vocab_size=300)))
    damage(folder)
    ended = cli(*SHORT, "data=tokens", f"data.path={folder}")
    assert ended.code == 2
    assert re.search(message, ended.err), ended.err


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 3)


def test_a_flipped_bit_is_found_by_preparing_again(
    file: Path, long: None, in_process: list[int], tool: Cli, tmp_path: Path
) -> None:
    arguments = (f"data.path={file}", "tokenizer=byte")
    ended = tool(prepare.main, *arguments)
    assert ended.code == 0, ended.err
    (path,) = tmp_path.glob("outputs/prepared/*/*/train.bin")
    raw = bytearray(path.read_bytes())
    raw[100] ^= 1
    path.write_bytes(raw)
    ended = tool(prepare.main, *arguments)
    assert ended.code == 2
    assert "train.bin: damaged: it is not the file that was written; delete" in ended.err


# The command


def test_prepare_tells_what_it_made(
    file: Path, tool: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With workers, as a user runs it."""
    caplog.set_level("INFO")
    monkeypatch.setattr("bigramlm.corpus._UNIT", 3000)
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
    assert ended.out.splitlines()[-1] == "Train on them: python scripts/train.py data=tokens data.path=made"
    assert "verified: both files are as they were written" in caplog.messages
    caplog.clear()
    restored = BPEConfig().restore(found.tokenizer())
    assert restored.decode(found.ids("train").tolist()) + restored.decode(found.ids("val").tolist()) == TEXT
    again = tool(prepare.main, f"data.path={file}", *BPE, "output=made")
    assert again.out == ended.out
    assert "learned" not in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "data.path: must be given a value"),
        (["data.path=none.txt"], "none.txt: there is no such file"),
        (["data.path=*.none"], "*.none: matches no file"),
        (["data=tokens", "data.path=made"], "data=tokens: are token files already"),
        (["data=bundled", "output=a.txt"], "output=a.txt: is a file"),
        (["data=bundled", "output=other"], "other: holds something else; name another folder, or delete it"),
        (["data=bundled", "output=made"], "made: holds token files of another text or tokenizer"),
        (["data=bundled", "tokenizer=bpe", "tokenizer.vocab_size=99999"], "the training text supports only"),
        (["--fast"], "--fast: there is no such flag"),
    ],
)
def test_prepare_refuses(
    arguments: list[str], message: str, tool: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bigramlm.paths.home", lambda: tmp_path)
    (tmp_path / "a.txt").write_text("a\n" * 100)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text("mine")
    assert tool(prepare.main, "data.path=a.txt", "tokenizer=byte", "output=made").code == 0
    ended = tool(prepare.main, *arguments)
    assert ended.code == 2
    assert ended.err.splitlines()[-1].startswith("error: ")
    assert message in ended.err
    assert {path.name: path.read_text() for path in (tmp_path / "other").iterdir()} == {"manifest.json": "mine"}


PREPARE = """
import resource, sys
from bigramlm import corpus, prepare
from bigramlm.data import text
if __name__ == "__main__":
    corpus._UNIT, corpus._KEPT_EVERY, text.PIECE = 20_000, 40_000, 5_000
    limit = int(sys.argv.pop(1))
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    prepare.main()
"""


def prepared(folder: Path, *arguments: str, limit: int = 0) -> subprocess.Popen[str]:
    """The command in a process of its own, that can be killed, and may write files up to a limit."""
    script = folder / "prepare.py"
    script.write_text(PREPARE)
    command = [sys.executable, str(script), str(limit), *arguments]
    return subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(paths.home())}, stderr=subprocess.PIPE, text=True
    )


def test_a_full_disk_keeps_what_is_done(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text(TEXT * 10, "utf-8")
    arguments = (f"data.path={tmp_path / 'long.txt'}", "tokenizer=byte", f"output={tmp_path / 'made'}")
    full = prepared(tmp_path, *arguments, limit=300_000)
    _, err = full.communicate(timeout=60)
    assert full.returncode == 2, err
    assert re.search(r"made: preparing the text failed: File too large; what is done is kept: mend it .* goes on", err)
    progress = json.loads((tmp_path / "made" / "progress.json").read_text())
    assert 200_000 < progress["splits"]["train"]["tokens"] < 300_000
    again = prepared(tmp_path, *arguments)
    _, err = again.communicate(timeout=60)
    assert again.returncode == 0, err
    done = progress["splits"]["train"]["characters"]
    assert f"going on after {done:,} characters" in err
    made = open_tokens(tmp_path / "made")
    assert (made.ids("train").tobytes() + made.ids("val").tobytes()).decode() == TEXT * 10


def test_killed_before_anything_is_encoded_it_is_no_trap(
    file: Path, in_process: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = TextConfig(path=str(file)).read()
    assert isinstance(text, Text)

    def killed(unit: Any) -> Any:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr("bigramlm.corpus._encode_unit", killed)
        patch.setattr("bigramlm.data.tokens.TokenWriter.keep", lambda writer: None)  # nothing is said any more
        with pytest.raises(Interrupted):
            corpus.prepare(text, ByteConfig(), None, tmp_path / "made")
    assert corpus.prepare(text, ByteConfig(), None, tmp_path / "made").splits["train"].tokens == text.split


def test_a_disk_that_is_full_from_the_start_is_no_trap(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text(TEXT, "utf-8")
    arguments = (f"data.path={tmp_path / 'long.txt'}", *BPE, f"output={tmp_path / 'made'}")
    for limit in (100, 700, 2000):  # of progress.json, of the tokenizer, of the tokens
        _, err = (full := prepared(tmp_path, *arguments, limit=limit)).communicate(timeout=60)
        assert full.returncode == 2, err
        assert "what is done is kept" in err
    _, err = (again := prepared(tmp_path, *arguments)).communicate(timeout=60)
    assert again.returncode == 0, err
    open_tokens(tmp_path / "made").verify()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_it_leaves_no_process_behind_and_goes_on(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text(TEXT * 200, "utf-8")
    arguments = (f"data.path={tmp_path / 'long.txt'}", *BPE, f"output={tmp_path / 'made'}")
    process = prepared(tmp_path, *arguments)
    progress = tmp_path / "made" / "progress.json"
    deadline = time.monotonic() + 60
    while not (progress.exists() and json.loads(progress.read_text())["pieces"]):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.01)
    process.send_signal(number)
    # Standard error ends when nobody holds it any more: neither the command nor one of its workers.
    _, err = process.communicate(timeout=30)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    if number == signal.SIGINT:
        assert err.splitlines()[-1] == "stopped by SIGINT; what is done is kept, and the same command goes on"
    assert not (tmp_path / "made" / "manifest.json").exists()
    again = prepared(tmp_path, *arguments)
    _, err = again.communicate(timeout=60)
    assert again.returncode == 0, err
    assert "going on after" in err
    assert "learned" not in err
    made = open_tokens(tmp_path / "made")
    made.verify()
    tokenizer = BPEConfig().restore(made.tokenizer())
    assert sum(counts.characters for counts in made.splits.values()) == 200 * len(TEXT)
    assert tokenizer.decode(made.ids("val").tolist()) == (TEXT * 200)[int(0.9 * 200 * len(TEXT)) :]


# Training


def test_training_makes_and_keeps_token_files_of_a_long_text(
    file: Path, long: None, in_process: list[int], cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And comes to what it comes to in memory, to the bit."""
    arguments = (*SHORT, "data=text", f"data.path={file}", *BPE)
    first = cli(*arguments)
    assert first.code == 0, first.err
    made = len(in_process)
    assert made
    second = cli(*arguments)
    assert len(in_process) == made
    monkeypatch.setattr("bigramlm.data.text.IN_MEMORY_UP_TO", 10**9)
    third = cli(*arguments)
    finals = [read_summary(ended.folder)["final"] for ended in (first, second, third)]  # type: ignore[index]
    assert finals[0] == finals[1] == finals[2]
    weights = {
        (e.folder / "checkpoints" / "step_20" / "model.safetensors").read_bytes() for e in (first, second, third)
    }
    assert len(weights) == 1


def test_a_run_on_a_long_text_goes_on_with_its_token_files(
    file: Path, long: None, in_process: list[int], cli: Cli
) -> None:
    run = cli(*SHORT, "data=text", f"data.path={file}", *BPE)
    made = len(in_process)
    again = cli(f"resume={run.folder}", "trainer.steps=30", run_dir=False)
    assert again.code == 0, again.err
    assert len(in_process) == made, "nothing is encoded again"


def test_a_tokenizer_of_a_relative_path_is_the_same_the_next_time(
    tmp_path: Path, tool: Cli, cli: Cli, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tok").mkdir()
    saved = BPEConfig().build(characters="", documents=1, train=lambda most: iter([TEXT])).to_json()
    pretty = json.dumps(json.loads(saved), indent=2)
    (tmp_path / "tok" / "tokenizer.json").write_text(pretty + "\n", "utf-8")
    arguments = ("data=bundled", "tokenizer=gpt2", "tokenizer.path=tok", "output=made")
    first, second = (tool(prepare.main, *arguments) for _ in range(2))
    assert (first.code, second.code, first.out) == (0, 0, second.out), second.err
    assert (tmp_path / "made" / "tokenizer.json").read_text("utf-8") == pretty, "to the letter"
    other = BPEConfig().build(characters="", documents=1, train=lambda most: iter([TEXT[:40_000]])).to_json()
    (tmp_path / "tok" / "tokenizer.json").write_text(other, "utf-8")
    third = tool(prepare.main, *arguments)
    assert third.code == 2
    assert "holds token files of another text or tokenizer" in third.err


def test_a_run_on_token_files_needs_no_text(file: Path, long: None, in_process: list[int], cli: Cli, tool: Cli) -> None:
    folder = files_of(of(file, BPEConfig(vocab_size=300)))
    file.unlink()
    ended = cli(*SHORT, "data=tokens", f"data.path={folder}")
    assert ended.code == 0, ended.err
    config = (ended.folder / "config.yaml").read_text("utf-8")
    assert "vocab_size: 300" in config, "the tokenizer is that of the files"
    assert "vocabulary of 300" in ended.err + (ended.folder / "train.log").read_text("utf-8")
    again = cli(f"resume={ended.folder}", "trainer.steps=30", run_dir=False)
    assert again.code == 0, again.err
    from bigramlm import sample

    shown = tool(sample.main, f"run={ended.folder}", "max_new_tokens=20", "prompt=Who's 日本?")
    assert shown.code == 0, shown.err
    assert shown.out.startswith("Who's 日本?")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (
            ["tokenizer=char"],
            r"tokenizer=char: the token files in .* were made with tokenizer=bpe .*vocab_size=300",
        ),
        ([*BPE, "tokenizer.min_frequency=3"], r"tokenizer.min_frequency=3 .*: the token files in .* were made with"),
        (["data.train_fraction=0.5"], r"data.train_fraction=0.5: the token files in .* are split at 0.9"),
    ],
)
def test_token_files_of_another_tokenizer_or_split_are_refused(
    typed: list[str], message: str, file: Path, long: None, in_process: list[int], cli: Cli
) -> None:
    folder = files_of(of(file, BPEConfig(vocab_size=300)))
    ended = cli(*SHORT, "data=tokens", f"data.path={folder}", *typed)
    assert ended.code == 2
    assert re.search(message, ended.err), ended.err


def test_weights_and_token_files_of_different_tokenizers_are_refused(
    file: Path, long: None, in_process: list[int], cli: Cli
) -> None:
    run = cli(*SHORT, "data=bundled", *BPE)
    assert run.code == 0, run.err
    other = files_of(of(file, BPEConfig(vocab_size=301)))
    ended = cli(*SHORT, f"init_from={run.folder}", "data=tokens", f"data.path={other}")
    assert ended.code == 2
    assert "these token files were made with another tokenizer (bpe, 301 tokens) than the weights" in ended.err
    # With theirs it goes: training makes the files with it by itself, and they can be named too.
    ended = cli(*SHORT, f"init_from={run.folder}", "data=text", f"data.path={file}")
    assert ended.code == 0, ended.err
    tokenizer = (run.folder / "checkpoints" / "step_20" / "tokenizer.json").read_text("utf-8").strip()
    (theirs,) = (
        path.parent
        for path in file.parent.glob("outputs/prepared/long*/*/tokenizer.json")
        if path.read_text("utf-8") == tokenizer and path.parent != other
    )
    ended = cli(*SHORT, f"init_from={run.folder}", "data=tokens", f"data.path={theirs}")
    assert ended.code == 0, ended.err


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (
            ["tokenizer=char"],
            r"tokenizer=char: the weights in .*step_20 were trained with tokenizer=bpe",
        ),
        (["tokenizer.vocab_size=301"], r"tokenizer.vocab_size=301 .*: the weights in .* were trained with"),
    ],
)
def test_another_tokenizer_than_the_checkpoints_is_refused(typed: list[str], message: str, cli: Cli) -> None:
    run = cli(*SHORT, "data=bundled", *BPE)
    ended = cli(*SHORT, "data=bundled", f"init_from={run.folder}", *typed)
    assert ended.code == 2
    assert re.search(message, ended.err), ended.err
    assert "leave the tokenizer out" in ended.err


def test_a_text_with_characters_that_a_checkpoint_lacks_is_refused(
    long: None, in_process: list[int], cli: Cli, tmp_path: Path
) -> None:
    run = cli(*SHORT, "data=bundled")
    path = tmp_path / "other.txt"
    for content in ("日本 " * 1000, "日本 " * 100):  # long, and in memory
        path.write_text(content, "utf-8")
        ended = cli(*SHORT, f"init_from={run.folder}", "data=text", f"data.path={path}")
        assert ended.code == 2
        assert re.search(r"other.txt: the vocabulary of \d+ characters lacks '日', '本'", ended.err), ended.err


def test_batches_from_files_are_those_from_memory(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 50_257, 5000).astype(np.uint16)
    ids.tofile(tmp_path / "train.bin")
    about = About("t", "0", 5000, 1, 5000, {}, "0", 50_257, "uint16")
    found = TokenFiles(tmp_path, about, {"train": Counts(5000, 5000)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mapped = on_device(found.ids("train"), torch.device("cpu"))
    assert mapped.dtype == torch.uint16
    for step in (0, 5, 2000):
        one = Batches(Stream(mapped, block_size=7), batch_size=3, seed=1)[step]
        other = Batches(Stream(torch.from_numpy(ids.astype(np.int32)), block_size=7), batch_size=3, seed=1)[step]
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_what_is_counted_of_a_text_too_long_for_that_is_refused(
    file: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bigramlm.model.ngram.COUNTED_UP_TO", 1000)
    for model in (["model=ngram"], ["model=gpt", "model.ngram_order=3"]):
        ended = cli(*SHORT, "data=text", f"data.path={file}", *model)
        assert ended.code == 2
        assert "counts its n-grams in memory, of 1,000 tokens of training text at the most" in ended.err


def test_jobs_at_the_same_time_prepare_a_long_text_once(cli: Cli, tmp_path: Path) -> None:
    """A really long one: in a process of its own nothing can be made shorter."""
    pytest.importorskip("joblib")
    path, folder = tmp_path / "long.txt", tmp_path / "sweep"
    path.write_text(TEXT * 240, "utf-8")
    try:
        ended = cli(
            *("-m", f"hydra.sweep.dir={folder}", *SHORT, "data=text", f"data.path={path}", "tokenizer=byte"),
            *("seed=1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "model=bigram"),
            run_dir=False,
        )
        assert ended.code == 0, ended.err
        logs = [(folder / str(n) / "train.log").read_text("utf-8") for n in range(2)]
        assert sorted("made in" in log for log in logs) == [False, True]
    finally:
        shutil.rmtree(TextConfig(path=str(path)).kept_in(), ignore_errors=True)


def test_a_sweep_over_tokenizers_is_compared_in_bits_a_character(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    ended = cli(
        *("-m", f"hydra.sweep.dir={folder}", "data=bundled", *SHORT, "tokenizer=char,byte,wordpiece,bpe"),
        *("optim.lr=0.1", "trainer.steps=300"),
        run_dir=False,
    )
    assert ended.code == 0, ended.err
    assert "In bits a character (bpc)" in ended.out
    assert re.search(r"Not comparable: job 2, whose tokenizer loses part of the text", ended.out.replace("\n  ", " "))
    lines = [line for line in ended.out.splitlines() if re.search(r"\b(char|byte|wordpiece|bpe)\b.*\d\.\d{4}", line)]
    names = [re.search(r"char|byte|wordpiece|bpe", line)[0] for line in lines]  # type: ignore[index]
    assert names[-1] == "wordpiece", "whose figure says nothing is last"
    assert names[0] != "wordpiece"
    summaries = [json.loads((folder / str(n) / "summary.json").read_text()) for n in range(4)]
    bpc = {s["tokenizer"]["name"]: s["final"]["val/bpc"] for s in summaries}
    assert names[:3] == sorted(("char", "byte", "bpe"), key=bpc.__getitem__)
    assert f"{bpc[names[0]]:.4f}" in lines[0]
    assert {s["tokenizer"]["lossless"] for s in summaries} == {True, False}


def test_runs_from_before_tokenizers_are_compared_too(cli: Cli, tmp_path: Path) -> None:
    folders = [cli(*SHORT, "data=bundled", *typed).folder for typed in ([], list(BPE), ["tokenizer=byte"])]
    path = folders[0] / "summary.json"
    summary = json.loads(path.read_text("utf-8"))
    del summary["tokenizer"]
    path.write_text(json.dumps(summary), "utf-8")
    outcomes = Outcomes([Entry(str(n), folder, {}) for n, folder in enumerate(folders)])
    assert outcomes.in_bits
    by_name = {row.name: row for row in outcomes.rows}
    assert by_name["0"].final == summary["final"]["val/bpc"]
    assert by_name["0"].counts
    assert not [note for note in outcomes.notes() if "Not comparable" in note]


def test_a_search_over_tokenizers_is_not_won_by_one_that_loses_text(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    folder = tmp_path / "sweep"
    ended = cli(
        *(
            "-m",
            f"hydra.sweep.dir={folder}",
            "data=bundled",
            *SHORT,
            "hydra/sweeper=optuna",
            "hydra.sweeper.n_trials=4",
        ),
        *("hydra.sweeper.sampler=random", "tokenizer=wordpiece,byte", "optim.lr=interval(0.01, 0.1)"),
        run_dir=False,
    )
    assert ended.code == 0, ended.err
    from tests.helpers import trials

    found = {trial.params["tokenizer"]: trial for trial in trials(folder)}
    assert set(found) == {"wordpiece", "byte"}
    assert found["wordpiece"].state.name == "FAIL"
    summary = read_summary(folder / str(found["byte"].user_attrs["job"])) or {}
    assert found["byte"].value == summary["final"]["val/bpc"]
    assert not found["wordpiece"].intermediate_values


def test_the_end_of_a_run_tells_bits_a_character(cli: Cli) -> None:
    ended = cli(*SHORT, "data=bundled", *BPE)
    summary: dict[str, Any] = read_summary(ended.folder) or {}
    assert f"Bits a character: {summary['final']['val/bpc']:.4f} on val" in ended.out
    each = summary["tokenizer"]["characters_per_token"]["val"]
    assert summary["final"]["val/bpc"] == pytest.approx(summary["final"]["val/loss"] / np.log(2) / each)
    assert "Bits a character" not in cli(*SHORT, "data=bundled").out
    last = [json.loads(line) for line in (ended.folder / "metrics.jsonl").read_text().splitlines()][-1]
    assert last["val/bpc"] == pytest.approx(last["val/loss"] / np.log(2) / each)
