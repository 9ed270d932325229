"""Tests of a whole run: its config is resolved once and then only read."""

import contextlib
import copy
import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from bigramlm.cli.verify_resume import compare
from bigramlm.config.overrides import Overrides
from bigramlm.config.run_config import RunConfig, load, to_dict
from bigramlm.engine import run as engine
from bigramlm.logger.metrics import read_records
from bigramlm.runs.folder import LOCK, RunFolder, is_locked
from bigramlm.runs.samples import read_samples
from bigramlm.trainer.trainer import Trainer
from bigramlm.utils.stop import Stopped, StopSignals
from tests.helpers import SHORT, Cli, Ended, assert_refused, run_config, summary, verified

TINY = (*SHORT, "model=gpt", "model.n_layer=1", "model.n_head=2", "model.n_embd=16", "data.block_size=16")


def run_in(
    folder: Path, *words: str, context: engine.RunContext | None = None
) -> tuple[RunConfig, engine.RunResult | None]:
    """Run a config in this folder; return the unresolved config and the outcome.

    The unresolved config must not change.
    """
    requested = run_config(*words)
    before = copy.deepcopy(requested)
    run = RunFolder(folder)
    folder.mkdir(exist_ok=True)
    run.claim() if requested.resume is None else run.reopen()
    outcome = engine.run(requested, Overrides(words), run, context or engine.RunContext())
    assert requested == before, "the unresolved config is not modified"
    return requested, outcome


@pytest.mark.parametrize("words", [SHORT, (*SHORT, "model=ngram"), (*TINY, "device.precision=fp32")])
def test_the_saved_config_is_resolved_and_independent_of_the_start(words: tuple[str, ...], tmp_path: Path) -> None:
    requested, outcome = run_in(tmp_path / "run", *words)
    assert outcome is not None
    assert outcome.final.keys() - {"train/whole_loss"} == {"train/loss", "val/loss", "val/bpc"}
    saved = load(tmp_path / "run" / "config.yaml")
    assert "auto" not in (saved.device.name, saved.device.precision, saved.device.threads)
    assert (saved.resume, saved.sweep, saved.base) == (None, None, None)
    assert saved.trainer.steps == (requested.trainer.steps if saved.model.trains else 0)
    same = {name: part for name, part in to_dict(saved).items() if name not in ("device", "trainer")}
    assert same == {name: to_dict(requested)[name] for name in same}


def test_the_saved_config_contains_fields_from_the_weights(tmp_path: Path) -> None:
    run_in(tmp_path / "base", *TINY)
    words = (*SHORT, "model=gpt", f"init_from={tmp_path / 'base'}", "model.n_layer=1", "model.n_head=2")
    requested, _ = run_in(tmp_path / "run", *words, "model.n_embd=16")
    saved = load(tmp_path / "run" / "config.yaml")
    assert (requested.data.block_size, saved.data.block_size) == (8, 16)
    assert str(saved.init_from).endswith("step_5")


def test_a_resumed_run_saves_its_resolved_config(tmp_path: Path) -> None:
    run_in(tmp_path / "run", *SHORT)
    _, outcome = run_in(tmp_path / "run", f"resume={tmp_path / 'run'}", "trainer.steps=8")
    assert outcome is not None
    saved = load(tmp_path / "run" / "config.yaml")
    assert (saved.trainer.steps, saved.resume) == (8, None)


def test_the_pruning_callback_of_a_sweep_ends_the_run(tmp_path: Path) -> None:
    evaluated: list[int] = []

    def prunes(step: int, found: object) -> bool:
        evaluated.append(step)
        return step == 2

    _, outcome = run_in(
        tmp_path / "run", *SHORT, context=engine.RunContext(("seed",), {"seed": "1"}, should_prune=prunes)
    )
    assert outcome is None
    assert evaluated == [0, 2]


def test_a_stop_request_saves_a_checkpoint_and_raises(tmp_path: Path) -> None:
    class Stops(StopSignals):
        def requested(self) -> bool:
            self.received = 15
            return True

    cfg, run = run_config(*SHORT), RunFolder(tmp_path)
    run.claim()
    with pytest.raises(Stopped) as stopped:
        engine.run(cfg, Overrides(SHORT), run, engine.RunContext(stop=Stops()))
    assert stopped.value.signal == 15
    assert (tmp_path / "checkpoints" / "step_0").is_dir()


def test_a_split_shorter_than_a_block_names_its_cause(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("to be or not to be, that is the question. " * 50, "utf-8")
    for tokenizer, size, is_cause in (
        (("tokenizer=bpe", "tokenizer.vocab_size=270"), 200, True),  # the 210 characters of val are enough
        (("tokenizer=bpe", "tokenizer.vocab_size=270"), 300, False),
        (("tokenizer=char",), 210, False),
    ):
        refused = cli(*SHORT, "data=text", f"data.path={path}", *tokenizer, f"data.block_size={size}")
        assert_refused(refused, "val split", path, field="data.block_size", value=size)
        last = refused.err.splitlines()[-1]
        named = (tokenizer[0] in last, "210 characters" in last, "tokenizer=byte" in last)
        assert named == (is_cause,) * 3, last
    assert cli(*SHORT, "data=text", f"data.path={path}", "data.block_size=200").code == 0


class Ending(BaseException):
    """An exception that is no Exception, such as that of a Rust package."""


@pytest.mark.parametrize("error", [SystemExit(0), SystemExit("bye"), SystemExit(3), Ending("gone")])
@pytest.mark.parametrize("sweeps", [False, True])
def test_code_that_ends_the_process_only_ends_its_run(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, sweeps: bool
) -> None:
    original = engine.find_prompt

    def ends(cfg: Any, *arguments: Any) -> Any:
        if cfg.seed == 1:
            raise error
        return original(cfg, *arguments)

    monkeypatch.setattr(engine, "find_prompt", ends)
    sweep = tmp_path / "sweep"
    words = ("-m", "seed=0,1,2", f"hydra.sweep.dir={sweep}") if sweeps else ("seed=1",)
    ended = cli(*SHORT, *words)
    assert ended.code == 1
    jobs = [sweep / job for job in "012"] if sweeps else [ended.folder]
    states = [summary(job)["status"] for job in jobs]
    assert states == (["completed", "failed", "completed"] if sweeps else ["failed"])
    failed = summary(jobs[len(jobs) // 2])
    assert repr(error) in str(failed["error"])
    assert (repr(error) if sweeps else type(error).__name__) in ended.out + ended.err


NOT_WINDOWS = pytest.mark.skipif(os.name == "nt", reason="Windows has other locks, and keeps open files")


@NOT_WINDOWS
def test_a_run_on_a_file_system_without_locks_is_refused(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    ended = cli(*SHORT)
    assert_refused(ended, ended.folder, "No locks available", "local disk")
    assert not ended.folder.exists()


@NOT_WINDOWS
@pytest.mark.parametrize("is_taken", [False, True])
def test_a_deleted_lock_is_noticed_at_the_next_save(
    is_taken: bool, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, lock, saved = Trainer.update, tmp_path / "run1" / LOCK, dict[str, bytes]()

    def deleting(trainer: Trainer) -> Any:
        if trainer.progress.step == 3:
            lock.unlink()
            if is_taken:
                other.enter_context(RunFolder(lock.parent).lock())
            saved["summary"] = (lock.parent / "summary.json").read_bytes()
        return update(trainer)

    monkeypatch.setattr(Trainer, "update", deleting)
    with contextlib.ExitStack() as other:
        ended = cli(*SHORT)
        assert is_locked(ended.folder) is is_taken
    assert ended.err.count(f"{lock} was deleted") == 1
    if is_taken:
        assert_refused(ended, ended.folder, "another process")
        assert (ended.folder / "summary.json").read_bytes() == saved["summary"]
        assert not (ended.folder / "checkpoints" / "step_4").exists()
    else:
        assert ended.code == 0, ended.err
        assert summary(ended.folder)["status"] == "completed"


def test_samples_while_training_leave_the_bits_unchanged(cli: Cli) -> None:
    words = (
        *TINY,
        "trainer.steps=12",
        "trainer.eval_every=6",
        "trainer.log_every=2",
        "model.dropout=0.1",
        "optim.lr=0.03",
    )
    plain, sampled = cli(*words), cli(*words, "trainer.sample_every=5")
    assert (plain.code, sampled.code) == (0, 0), sampled.err
    found = read_samples(sampled.folder)
    assert [step for step, _ in found] == [0, 5, 10, 12]
    assert len({text for _, text in found}) == 4, "the model learns"
    assert found[-1] == read_samples(plain.folder)[-1]
    (sampled.folder / "samples.txt").write_bytes((plain.folder / "samples.txt").read_bytes())
    assert compare(plain.folder, sampled.folder) is None
    assert "step  5/12  sample:" in sampled.err
    assert "  | " in sampled.err


@pytest.mark.parametrize("every", [1, 5])
def test_vital_signs_leave_the_bits_unchanged(cli: Cli, every: int) -> None:
    words = (*TINY, "trainer.steps=12", "trainer.eval_every=6", "trainer.log_every=1", "model.dropout=0.1")
    plain, measured = cli(*words), cli(*words, f"trainer.vitals_every={every}", "logger=tensorboard")
    assert (plain.code, measured.code) == (0, 0), measured.err
    found = [any(name.startswith("vitals/") for name in record) for record in read_records(metrics_of(measured))]
    assert found == [step % every == 0 for step in range(12)] + [False], "the last state has no update"
    assert compare(plain.folder, measured.folder, may_add=True) is None
    assert not any("vitals" in name for record in read_records(metrics_of(plain)) for name in record)


def test_a_resumed_run_has_the_vital_signs_of_an_uninterrupted_run() -> None:
    ended = verified(*TINY, "trainer.steps=12", "trainer.vitals_every=4", "model.dropout=0.1", "optim.lr=0.5")
    assert ended.code == 0, ended.out + ended.err
    assert "bit-equal" in ended.out


def metrics_of(ended: Ended) -> Path:
    return ended.folder / "metrics.jsonl"


def test_a_resumed_run_writes_no_sample_twice(cli: Cli) -> None:
    words = (*TINY, "trainer.steps=8", "trainer.checkpoint_every=4", "trainer.sample_every=2")
    whole, part = cli(*words), cli(*words)
    before = read_samples(part.folder)
    for step in ("step_8", "last"):  # as if the run had been killed after step 6
        path = part.folder / "checkpoints" / step
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (part.folder / "checkpoints" / "best").unlink(missing_ok=True)
    resumed = cli(f"resume={part.folder}", run_dir=False)
    assert resumed.code == 0, resumed.err
    assert read_samples(part.folder) == before == read_samples(whole.folder)
