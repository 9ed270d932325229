"""Tests of long texts: token files, interruptions, and mismatches."""

import contextlib
import errno
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigramlm.data import corpus, encoding
from bigramlm.data.config import TextConfig
from bigramlm.data.corpus import Corpus, tokenized
from bigramlm.data.encoding import Encoded, Encoder
from bigramlm.data.text import Text
from bigramlm.data.tokens import open_tokens
from bigramlm.report.results import RunTable
from bigramlm.runs.folder import read_summary
from bigramlm.runs.summary import RunSummary
from bigramlm.tokenizer.base import Tokenizer
from bigramlm.tokenizer.char import CharTokenizer
from bigramlm.tokenizer.config import BPEConfig, ByteConfig, CharConfig, TokenizerConfig, WordPieceConfig
from bigramlm.utils import paths
from tests.helpers import Cli, assert_refused, refuses, resumed, trials

TEXT = paths.bundled_text().read_text("utf-8")
SHORT = ("logger=none", "trainer.steps=4", "trainer.eval_every=2", "trainer.eval_batches=2", "sample.max_new_tokens=9")
BPE = ("tokenizer=bpe", "tokenizer.vocab_size=300")


@pytest.fixture
def long(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Treat texts of over 1,000 characters as long, in small parts, cached here."""
    monkeypatch.setattr("bigramlm.data.text.IN_MEMORY_UP_TO", 1000)
    monkeypatch.setattr("bigramlm.data.text.PIECE", 500)
    monkeypatch.setattr("bigramlm.data.encoding.UNIT", 3000)
    monkeypatch.setattr("bigramlm.data.corpus.KEPT_EVERY", 6000)
    monkeypatch.setattr("bigramlm.utils.paths.home", lambda: tmp_path)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Encode in this process, because worker processes take a second to start.

    Returns the number of pieces of each unit that was encoded.
    """
    units: list[int] = []

    def encoded(text: Text, cfg: TokenizerConfig, encoder: Encoder, *, skip: int) -> Iterator[Encoded]:
        for unit in encoding.units(text.pieces(), skip=skip):
            yield encoder(unit)
            units.append(len(unit))

    monkeypatch.setattr(corpus, "encode_on_all_cores", encoded)
    return units


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "long.txt"
    path.write_text(TEXT, "utf-8")
    return path


def corpus_of(path: str | Path, cfg: TokenizerConfig, given: Tokenizer | None = None) -> Corpus:
    data = TextConfig(path=str(path))
    return tokenized(data.read(), cfg, given, data.kept_in())


def files_of(found: Corpus) -> Path:
    (folder,) = {Path(str(ids.filename)).parent for ids in found.ids.values() if isinstance(ids, np.memmap)}
    return folder


def is_same(a: Corpus, b: Corpus) -> bool:
    ids = all(np.array_equal(a.ids[split], b.ids[split]) for split in ("train", "val"))
    fields = ("name", "sha256", "n_characters", "documents", "tokenizer_sha256", "characters")
    return ids and all(getattr(a, field) == getattr(b, field) for field in fields)


# The content of token files


@pytest.mark.parametrize(
    "cfg",
    [CharConfig(), ByteConfig(), BPEConfig(vocab_size=400), WordPieceConfig(vocab_size=300)],
    ids=lambda c: c.name,
)
@pytest.mark.parametrize("several", [False, True])
def test_token_files_match_a_corpus_in_memory(
    cfg: TokenizerConfig,
    several: bool,
    file: Path,
    tmp_path: Path,
    long: None,
    in_process: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Compare token files with a text in memory, and with a direct encoding."""
    path: str | Path = file
    documents = [TEXT]
    if several:
        documents = [TEXT[at : at + 700] for at in range(0, len(TEXT), 700)]
        path = tmp_path / "long.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), "utf-8")
    found = corpus_of(path, cfg)
    with monkeypatch.context() as patch:
        patch.setattr("bigramlm.data.text.IN_MEMORY_UP_TO", 10**9)
        in_memory = corpus_of(path, cfg)
    assert all(isinstance(ids, np.memmap) for ids in found.ids.values())
    assert not any(isinstance(ids, np.memmap) for ids in in_memory.ids.values())
    assert is_same(found, in_memory)
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


def test_vocabulary_is_learned_from_the_training_split_alone(file: Path, long: None, in_process: list[int]) -> None:
    cfg = BPEConfig(vocab_size=500)
    found = corpus_of(file, cfg)
    cut = int(0.9 * len(TEXT))
    expected = cfg.build(characters="", documents=1, train=lambda limit: iter([TEXT[:cut]]))
    assert found.tokenizer.to_json() == expected.to_json()
    changed = corpus_of_changed(file, TEXT[:cut] + "zyx " * ((len(TEXT) - cut) // 4), cfg)
    assert changed.tokenizer.to_json() == found.tokenizer.to_json()


def corpus_of_changed(file: Path, text: str, cfg: TokenizerConfig) -> Corpus:
    file.write_text(text[: len(TEXT)].ljust(len(TEXT), "z"), "utf-8")
    return corpus_of(file, cfg)


def test_vocabulary_is_learned_from_evenly_spaced_pieces(file: Path, long: None) -> None:
    text = TextConfig(path=str(file)).read()
    assert isinstance(text, Text)
    seen: list[str] = []

    class Learned(BPEConfig):
        def build(self, *, characters: str, documents: int, train: Callable[[int], Iterator[str]]) -> Tokenizer:
            seen.extend(train(self.train_characters))
            return CharTokenizer(characters)

    corpus.build(text, Learned(train_characters=10_000))
    positions = [TEXT.index(piece) for piece in seen]
    assert 9_000 < sum(map(len, seen)) < 11_000
    gaps = np.diff(positions)
    assert gaps.max() < 2 * gaps.min()
    assert positions[-1] > 0.8 * text.split
    assert positions[-1] + len(seen[-1]) <= text.split
    seen.clear()
    corpus.build(text, Learned(train_characters=text.split))
    assert "".join(seen) == TEXT[: text.split]


def test_lossy_tokenizer_is_warned_about(
    file: Path, long: None, in_process: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    corpus_of(file, WordPieceConfig(vocab_size=300))
    (line,) = (record.message for record in caplog.records if record.levelname == "WARNING")
    assert re.match(
        r"tokenizer: wordpiece loses part of the text: '.+' is decoded as '.+'\. val/bpc covers only the", line
    )


def test_several_documents_need_an_end_of_text_token(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("ab" * 50, "utf-8")
    with refuses("2 documents", "char", "<|endoftext|>"):
        corpus_of(tmp_path / "*.txt", CharConfig(), CharTokenizer("ab"))
    assert corpus_of(tmp_path / "*.txt", CharConfig()).documents == 2


# Reuse, interruption and refusal of token files


def test_token_files_are_made_once(file: Path, long: None, in_process: list[int]) -> None:
    cfg = BPEConfig(vocab_size=300)
    first = corpus_of(file, cfg)
    made = len(in_process)
    assert made > 5
    assert is_same(corpus_of(file, cfg), first)
    assert len(in_process) == made
    assert is_same(corpus_of(file, cfg, cfg.restore(first.tokenizer.to_json())), first), "given by a checkpoint"
    assert len(in_process) == made
    other = cfg.build(characters="", documents=1, train=lambda limit: iter([TEXT[:20_000]]))
    corpus_of(file, cfg, other)
    assert len(in_process) == 2 * made, "a tokenizer learned from another text has separate files"
    corpus_of(file, cfg, other)
    assert len(in_process) == 2 * made
    corpus_of(file, BPEConfig(vocab_size=301))
    assert len(in_process) == 3 * made


def test_token_files_of_a_changed_text_are_replaced(file: Path, long: None, in_process: list[int]) -> None:
    first = corpus_of(file, CharConfig())
    mapped = first.ids["train"]
    ids = mapped.tolist()
    file.write_text(TEXT[::-1], "utf-8")
    os.utime(file, (1, 1))
    second = corpus_of(file, CharConfig())
    assert files_of(second) == files_of(first)
    assert second.tokenizer.decode(second.ids["train"][:100].tolist()) == TEXT[::-1][:100]
    assert mapped.tolist() == ids, "a run that reads the old files keeps them"


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("after", [1, 2, 3, 9])
def test_interrupted_preparation_is_continued(
    after: int, file: Path, long: None, in_process: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cfg = BPEConfig(vocab_size=300)
    whole = corpus_of(file, cfg)
    units, folder = list(in_process), files_of(whole)
    contents = {path.name: path.read_bytes() for path in folder.glob("[!.]*")}
    shutil.rmtree(folder)
    in_process.clear()

    encoded = corpus.encode_on_all_cores

    def interrupted(*args: Any, skip: int) -> Iterator[Encoded]:
        yield from itertools.islice(encoded(*args, skip=skip), after)
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(corpus, "encode_on_all_cores", interrupted)
        with pytest.raises(Interrupted):
            corpus_of(file, cfg)
    with refuses(folder, "not finished"):
        open_tokens(folder)
    with (folder / "train.bin").open("ab") as more:  # written, but not yet recorded
        more.write(b"half of a unit")
    in_process.clear()

    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the vocabulary was already learned")

    monkeypatch.setattr("bigramlm.tokenizer.subword.train_bpe", fail)
    assert is_same(corpus_of(file, cfg), whole)
    assert sum(in_process) == sum(units[after:]), "finished units are not encoded again"
    assert {path.name: path.read_bytes() for path in folder.glob("[!.]*")} == contents


def test_text_that_changes_during_preparation_leaves_no_files(
    file: Path, long: None, in_process: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also encode the text again, in its new and in its old version."""
    cfg = ByteConfig()
    whole = corpus_of(file, cfg)
    folder = files_of(whole)
    shutil.rmtree(folder)
    text = TextConfig(path=str(file)).read()
    assert isinstance(text, Text)
    status = file.stat()
    file.write_text(TEXT.replace("the", "thy"), "utf-8")
    os.utime(file, ns=(status.st_mtime_ns, status.st_mtime_ns))  # size and time stay the same
    for _ in range(2):
        with refuses(file, "changed"):
            tokenized(text, cfg, None, folder.parent)
        assert not [path for path in folder.iterdir() if not path.name.startswith(".")]
    assert corpus_of(file, cfg).sha256 != whole.sha256, "the text is read again"
    file.write_text(TEXT, "utf-8")
    assert is_same(corpus_of(file, cfg), whole)


def test_preparation_killed_before_encoding_can_be_repeated(
    file: Path, in_process: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = TextConfig(path=str(file)).read()
    assert isinstance(text, Text)

    def killed(*args: Any, **kwargs: Any) -> Iterator[Encoded]:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(corpus, "encode_on_all_cores", killed)
        patch.setattr("bigramlm.data.tokens.TokenWriter.keep", lambda writer: None)  # no progress is recorded
        with pytest.raises(Interrupted):
            corpus.prepare(text, ByteConfig(), None, tmp_path / "made")
    assert corpus.prepare(text, ByteConfig(), None, tmp_path / "made").splits["train"].tokens == text.split


@contextlib.contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """Let writes beyond a file size fail, as on a full disk."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_preparation_on_a_full_disk_can_be_repeated(file: Path, in_process: list[int], tmp_path: Path) -> None:
    text, folder = TextConfig(path=str(file)).read(), tmp_path / "made"
    assert isinstance(text, Text)
    cfg = BPEConfig(vocab_size=300)
    for limit in (100, 700, 2000):  # fails at progress.json, at the tokenizer, at the tokens
        with refuses(folder, os.strerror(errno.EFBIG), "kept"), file_size_limit(limit):
            corpus.prepare(text, cfg, None, folder)
    corpus.prepare(text, cfg, None, folder).verify()
    assert open_tokens(folder).splits["train"].characters == text.split


# Training


def test_training_makes_and_reuses_token_files_of_a_long_text(
    file: Path, long: None, in_process: list[int], cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Check that the weights are bit-identical to training in memory."""
    arguments = (*SHORT, "data=text", f"data.path={file}", *BPE)
    first = cli(*arguments)
    assert first.code == 0, first.err
    made = len(in_process)
    assert made
    second = cli(*arguments)
    assert len(in_process) == made
    monkeypatch.setattr("bigramlm.data.text.IN_MEMORY_UP_TO", 10**9)
    third = cli(*arguments)
    assert (second.code, third.code) == (0, 0), second.err + third.err
    finals = [read_summary(ended.folder)["final"] for ended in (first, second, third)]  # type: ignore[index]
    assert finals[0] == finals[1] == finals[2]
    weights = {(e.folder / "checkpoints" / "step_4" / "model.safetensors").read_bytes() for e in (first, second, third)}
    assert len(weights) == 1


def test_resumed_run_reuses_token_files(file: Path, long: None, in_process: list[int], cli: Cli) -> None:
    run = cli(*SHORT, "data=text", f"data.path={file}", *BPE)
    made = len(in_process)
    again = resumed(cli, run.folder, "trainer.steps=6")
    assert again.code == 0, again.err
    assert len(in_process) == made, "nothing is encoded again"


def test_token_files_with_another_tokenizer_than_the_weights_are_refused(
    file: Path, long: None, in_process: list[int], cli: Cli
) -> None:
    run = cli(*SHORT, "data=bundled", *BPE)
    assert run.code == 0, run.err
    other = files_of(corpus_of(file, BPEConfig(vocab_size=301)))
    ended = cli(*SHORT, f"init_from={run.folder}", "data=tokens", f"data.path={other}")
    assert_refused(ended, other, "301", "300", "init_from=", "data=text")
    # Training makes token files with the tokenizer of the weights automatically, and data=tokens accepts those.
    ended = cli(*SHORT, f"init_from={run.folder}", "data=text", f"data.path={file}")
    assert ended.code == 0, ended.err
    tokenizer = (run.folder / "checkpoints" / "step_4" / "tokenizer.json").read_text("utf-8").strip()
    (theirs,) = (
        path.parent
        for path in file.parent.glob("outputs/prepared/long*/*/tokenizer.json")
        if path.read_text("utf-8") == tokenizer and path.parent != other
    )
    ended = cli(*SHORT, f"init_from={run.folder}", "data=tokens", f"data.path={theirs}")
    assert ended.code == 0, ended.err


def test_tokenizer_that_differs_from_the_checkpoint_is_refused(cli: Cli) -> None:
    run = cli(*SHORT, "data=bundled", *BPE)
    for typed, theirs in (
        ("tokenizer=char", "tokenizer=bpe"),
        ("tokenizer.vocab_size=301", "tokenizer.vocab_size=300"),
    ):
        ended = cli(*SHORT, "data=bundled", f"init_from={run.folder}", typed)
        assert_refused(ended, typed, theirs, "step_4")


def test_text_with_characters_unknown_to_the_checkpoint_is_refused(
    long: None, in_process: list[int], cli: Cli, tmp_path: Path
) -> None:
    run = cli(*SHORT, "data=bundled")
    path = tmp_path / "other.txt"
    for content in ("日本 " * 1000, "日本 " * 100):  # a long text, and one in memory
        path.write_text(content, "utf-8")
        ended = cli(*SHORT, f"init_from={run.folder}", "data=text", f"data.path={path}")
        assert_refused(ended, path, "'日', '本'")


def test_joblib_jobs_prepare_a_text_once(file: Path, tmp_path: Path) -> None:
    """Start encoding workers in joblib jobs, whose start method they do not know."""
    joblib = pytest.importorskip("joblib")
    text = TextConfig(path=str(file)).read()
    assert isinstance(text, Text)
    job = joblib.delayed(corpus.prepare)(text, ByteConfig(), None, tmp_path / "made")
    first, second = joblib.Parallel(n_jobs=2)([job, job])
    assert first == second
    first.verify()
    assert (first.ids("train").tobytes() + first.ids("val").tobytes()).decode() == TEXT


@pytest.mark.slow
def test_concurrent_jobs_prepare_a_long_text_once(cli: Cli, tmp_path: Path) -> None:
    """Use a really long text: other processes do not see the reduced limits."""
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


def test_sweep_over_tokenizers_is_compared_in_bits_per_character(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    ended = cli(
        *("-m", f"hydra.sweep.dir={folder}", "data=bundled", *SHORT, "tokenizer=char,byte,wordpiece,bpe"),
        run_dir=False,
    )
    assert ended.code == 0, ended.err
    assert "In bits per character (bpc)" in ended.out
    assert re.search(r"Not comparable: job 2, because bpc is too low", ended.out.replace("\n  ", " "))
    lines = [line for line in ended.out.splitlines() if re.search(r"\b(char|byte|wordpiece|bpe)\b.*\d\.\d{4}", line)]
    names = [re.search(r"char|byte|wordpiece|bpe", line)[0] for line in lines]  # type: ignore[index]
    assert names[-1] == "wordpiece", "the job without a comparable figure is last"
    assert names[0] != "wordpiece"
    summaries = [json.loads((folder / str(n) / "summary.json").read_text()) for n in range(4)]
    bpc = {s["tokenizer"]["name"]: s["final"]["val/bpc"] for s in summaries}
    assert min(bpc, key=bpc.__getitem__) == "wordpiece", "otherwise wordpiece would be last anyway"
    assert names[:3] == sorted(("char", "byte", "bpe"), key=bpc.__getitem__)
    assert f"{bpc[names[0]]:.4f}" in lines[0]
    assert {s["tokenizer"]["lossless"] for s in summaries} == {True, False}


def test_runs_without_a_recorded_tokenizer_are_compared_too(cli: Cli, tmp_path: Path) -> None:
    folders = [cli(*SHORT, "data=bundled", *typed).folder for typed in ([], list(BPE), ["tokenizer=byte"])]
    path = folders[0] / "summary.json"
    summary = json.loads(path.read_text("utf-8"))
    del summary["tokenizer"]
    path.write_text(json.dumps(summary), "utf-8")
    outcomes = RunTable([RunSummary.read(folder, str(n), {}) for n, folder in enumerate(folders)])
    assert outcomes.in_bits
    by_name = {row.name: row for row in outcomes.rows}
    assert by_name["0"].final == summary["final"]["val/bpc"]
    assert by_name["0"].is_comparable
    assert not [note for note in outcomes.notes() if "Not comparable" in note]


def test_search_over_tokenizers_is_not_won_by_a_lossy_one(cli: Cli, tmp_path: Path) -> None:
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
    found = {trial.params["tokenizer"]: trial for trial in trials(folder)}
    assert set(found) == {"wordpiece", "byte"}
    assert found["wordpiece"].state.name == "FAIL"
    summary = read_summary(folder / str(found["byte"].user_attrs["job"])) or {}
    assert found["byte"].value == summary["final"]["val/bpc"]
    assert not found["wordpiece"].intermediate_values


def test_end_of_run_reports_bits_per_character(cli: Cli) -> None:
    ended = cli(*SHORT, "data=bundled", *BPE)
    summary: dict[str, Any] = read_summary(ended.folder) or {}
    assert f"Bits per character: {summary['final']['val/bpc']:.4f} on val" in ended.out
    each = summary["tokenizer"]["characters_per_token"]["val"]
    assert summary["final"]["val/bpc"] == pytest.approx(summary["final"]["val/loss"] / np.log(2) / each)
    assert "Bits per character" not in cli(*SHORT, "data=bundled").out
    last = [json.loads(line) for line in (ended.folder / "metrics.jsonl").read_text().splitlines()][-1]
    assert last["val/bpc"] == pytest.approx(last["val/loss"] / np.log(2) / each)
