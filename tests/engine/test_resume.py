"""Tests of resume: bitwise equality with an uninterrupted run, and refusals."""

import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

from bigramlm.checkpoint.checkpoint import Checkpoint
from bigramlm.checkpoint.manager import Checkpoints
from bigramlm.cli.verify_resume import compare
from bigramlm.config.run_config import load
from bigramlm.logger import metrics
from bigramlm.runs import find as runs
from bigramlm.trainer.trainer import Trainer
from bigramlm.utils import paths
from tests.engine.helpers import records, weights
from tests.helpers import SHORT, Cli, assert_refused, command, crashed_copy, resumed, started, summary, wait_for

RUN = (
    *("data=bundled", "logger=none", "trainer.steps=40", "trainer.eval_every=10", "trainer.log_every=2"),
    *("trainer.checkpoint_every=5", "trainer.keep_checkpoints=99", "sample.max_new_tokens=20"),
)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return the contents of files that a refused command must not change, by path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("train.log", ".lock")
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an uninterrupted run of 40 steps, with TensorBoard events."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = command(*RUN, "logger=tensorboard", f"hydra.run.dir={folder}")
    assert done.code == 0, done.err
    return folder


@pytest.mark.parametrize("step", [0, 5, 30, 40])
def test_every_step_is_recorded_once_after_a_resume(whole: Path, tmp_path: Path, cli: Cli, step: int) -> None:
    """Check metrics.jsonl and TensorBoard events whose last record is incomplete."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = crashed_copy(whole, tmp_path / "run", step)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 42, "secon')
    events = next(run.glob("events*"))
    # Move the start back by an hour: TensorBoard sorts a run's files by second, then by a counter of the process.
    began = int(events.name.split(".")[3])
    events = events.rename(events.with_name(events.name.replace(str(began), str(began - 3600))))
    events.write_bytes(events.read_bytes()[:-7])
    ended = resumed(cli, run)
    assert ended.code == 0, ended.err
    assert compare(whole, run) is None
    seconds = [json.loads(line)["seconds"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert seconds == sorted(seconds), "the seconds of all parts are added up"
    assert summary(run)["status"] == "completed"

    one, two = (EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload() for folder in (whole, run))
    assert set(one.Tags()["scalars"]) == set(two.Tags()["scalars"])
    for tag in one.Tags()["scalars"]:
        if tag not in ("tokens_per_second", "mfu"):
            assert [(e.step, e.value) for e in one.Scalars(tag)] == [(e.step, e.value) for e in two.Scalars(tag)], tag
    assert len(two.Tensors("sample/text_summary")) == 1


def stop_at_17() -> None:
    update = Trainer.update

    def stopping_update(trainer: Trainer) -> Any:
        if trainer.progress.step == 17:
            os.kill(os.getpid(), signal.SIGINT)
        return update(trainer)

    mock.patch.object(Trainer, "update", stopping_update).start()


def test_a_stopped_run_resumes_to_the_same_bits(whole: Path, tmp_path: Path, cli: Cli) -> None:
    run = tmp_path / "run"
    done = command(*RUN, f"hydra.run.dir={run}", setup=stop_at_17)
    assert done.code == 130, done.err
    assert done.err.splitlines()[-1].endswith(f"to resume: python scripts/train.py resume={run}")
    assert Checkpoints(run / "checkpoints").path("last").name == "step_18"
    assert resumed(cli, run).code == 0
    shutil.rmtree(run / "checkpoints" / "step_18")
    assert compare(whole, run) is None


def test_an_extended_run_equals_an_uninterrupted_run(whole: Path, tmp_path: Path, cli: Cli) -> None:
    run = tmp_path / "run"
    assert cli(*RUN, "trainer.steps=20", f"hydra.run.dir={run}", run_dir=False).code == 0
    ended = resumed(cli, run, "trainer.steps=40")
    assert ended.code == 0, ended.err
    assert re.search(r"trainer\.steps=40\b.*\b20\b", ended.err), "the log lists the changed fields"
    assert torch.equal(weights(run), weights(whole))
    assert records(run) == records(whole)
    saved = (run / "config.yaml").read_text("utf-8")
    assert "# typed: 'trainer.steps=20'\n" in saved
    assert "# typed on resuming at step 20: 'trainer.steps=40'\n" in saved
    assert "\n  steps: 40\n" in saved
    assert "resume: null" in saved
    found: Any = summary(run)
    assert found["resumed"][0]["step"] == 20
    assert found["resumed"][0]["overrides"][1] == "trainer.steps=40"
    assert found["overrides"] == [*RUN, "trainer.steps=20"]


def test_a_new_learning_rate_takes_effect_at_once(whole: Path, tmp_path: Path, cli: Cli) -> None:
    run = crashed_copy(whole, tmp_path / "run", 20)
    assert resumed(cli, run, "optim.lr=0.5", "optim.betas=[0.8,0.9]").code == 0
    rates = {record["step"]: record["lr"] for record in records(run) if "lr" in record}
    assert rates[18] == 1e-3
    assert rates[20] == 0.5
    assert not torch.equal(weights(run), weights(whole))
    assert torch.equal(weights(run, "step_20"), weights(whole, "step_20"))


def test_logger_and_device_can_change_on_resume(whole: Path, tmp_path: Path, cli: Cli) -> None:
    run = crashed_copy(whole, tmp_path / "run", 20)
    ended = resumed(cli, run, "logger=none", "device=cpu")
    assert ended.code == 0, ended.err
    assert re.search(r"logger\.use=\[\].*\['tensorboard'\]", ended.err), "the log lists the changed fields"
    assert len(list(run.glob("events*"))) == 1


def test_latest_is_the_most_recently_started_run(
    whole: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runs, "outputs", lambda: tmp_path / "outputs")
    ended = cli("resume=latest", run_dir=False)
    assert_refused(ended, tmp_path / "outputs", "config.yaml", "scripts/train.py")
    assert ended.err.count("\n") == 1, "nothing else is printed"
    older = crashed_copy(whole, tmp_path / "outputs" / "runs" / "2020-01-02" / "10", 20)
    newer = crashed_copy(whole, tmp_path / "outputs" / "sweeps" / "2020-01-01" / "0", 20)
    for run, began in ((older, "2020-01-01T00:00:00+00:00"), (newer, "2020-01-03T00:00:00+00:00")):
        old = json.loads((run / "summary.json").read_text("utf-8"))
        (run / "summary.json").write_text(json.dumps({**old, "started": began}), "utf-8")
    (tmp_path / "outputs" / "runs" / "refused").mkdir()
    (tmp_path / "outputs" / "runs" / "refused" / "summary.json").write_text('{"started": "2030-01-01T00:00:00+00:00"}')
    assert cli("resume=latest", run_dir=False).code == 0
    (warning,) = [line for line in caplog.messages if str(Path("runs") / "refused") in line]
    assert "config.yaml" in warning, "the warning names the skipped run and the missing file"
    assert (summary(older)["status"], summary(newer)["status"]) == ("running", "completed")


def test_a_run_killed_before_its_first_checkpoint_restarts_at_step_0(whole: Path, tmp_path: Path, cli: Cli) -> None:
    run = crashed_copy(whole, tmp_path / "run", 20)
    shutil.rmtree(run / "checkpoints")
    ended = resumed(cli, run)
    assert ended.code == 0, ended.err
    assert "step 0" in ended.err
    assert compare(whole, run) is None


def exit_before_training() -> None:
    # At this point the config is saved, but there is no checkpoint yet.
    mock.patch("bigramlm.engine.build.Trainer", side_effect=lambda *_, **__: os._exit(9)).start()


def test_a_run_killed_during_startup_can_be_resumed(whole: Path, tmp_path: Path, cli: Cli) -> None:
    run = tmp_path / "run"
    assert command(*RUN, "logger=tensorboard", f"hydra.run.dir={run}", setup=exit_before_training).code == 9
    assert (run / "config.yaml").exists()
    assert not (run / "checkpoints").exists()
    assert resumed(cli, run).code == 0
    assert compare(whole, run) is None


def test_a_signal_before_the_run_starts_offers_no_resume(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigramlm.engine.job.to_run_config", lambda _: signal.raise_signal(signal.SIGINT))
    ended = cli(*RUN)
    assert ended.code == 130
    assert ended.err.count("\n") == 1
    assert "SIGINT" in ended.err
    assert "resume=" not in ended.err


def test_a_damaged_checkpoint_is_skipped(whole: Path, tmp_path: Path, cli: Cli) -> None:
    run = crashed_copy(whole, tmp_path / "run", 30)
    (run / "checkpoints" / "step_30" / "training.safetensors").write_bytes(b"")
    ended = resumed(cli, run)
    assert ended.code == 0, ended.err
    assert re.search(r"step_30.training\.safetensors", ended.err)
    assert "step 25" in ended.err
    assert len(list((run / "checkpoints").glob("damaged_step_30.*"))) == 1, "the damaged checkpoint is kept"
    assert torch.equal(weights(run), weights(whole))
    assert records(run) == records(whole)


def test_resume_without_an_intact_checkpoint_changes_nothing(whole: Path, tmp_path: Path, cli: Cli) -> None:
    run = crashed_copy(whole, tmp_path / "run", 5)
    for path in (run / "checkpoints").glob("step_*"):
        (path / "manifest.json").unlink()
    before = snapshot(run)
    ended = resumed(cli, run)
    assert_refused(ended, run / "checkpoints", 2)
    assert snapshot(run) == before


# The overrides given with resume=, and the parts of the error message.
REFUSED = {
    ("model=bigram",): ("model=bigram", "init_from="),
    ("experiment=quick",): ("experiment=quick", "init_from="),
    ("init_from=x",): ("init_from=x",),
    ("hydra.run.dir=x",): ("hydra.run.dir=x",),
    ("-m", "seed=1,2"): ("-m", "sweep="),
    ("trainer.steps=10",): ("trainer.steps=10", "step 40", "trainer.steps=80", "init_from="),
    (): ("trainer.steps=40", "step 40", "trainer.steps=80", "init_from="),
    ("optim.lr=-1",): ("optim.lr=-1.0",),
    ("data.train_fraction=1.5",): ("data.train_fraction=1.5",),
    ("data.block_size=90000", "trainer.steps=80"): ("data.block_size=90000",),
}


@pytest.mark.parametrize(("overrides", "named"), REFUSED.items(), ids=[" ".join(o) or "nothing" for o in REFUSED])
def test_a_refused_resume_is_one_line_and_changes_nothing(
    whole: Path, cli: Cli, overrides: tuple[str, ...], named: tuple[str, ...]
) -> None:
    before = snapshot(whole)
    assert_refused(resumed(cli, whole, *overrides), *named)
    assert snapshot(whole) == before


@pytest.mark.parametrize(
    ("where", "named"),
    [
        ("", "omit resume="),
        ("none", "runs.py list"),
        ("{tmp}", "config.yaml"),
        ("{whole}/checkpoints/step_40", "init_from="),
        ("{whole}/checkpoints/step_40", "resume={whole}"),
    ],
)
def test_resume_of_a_folder_without_a_run_is_refused_in_one_line(
    whole: Path, tmp_path: Path, cli: Cli, where: str, named: str
) -> None:
    where = where.format(tmp=tmp_path, whole=whole)
    ended = cli(f"resume={where}", run_dir=False)
    assert_refused(ended, where, named.format(whole=whole))
    assert ended.err.count("\n") == 1, "nothing else is printed"


def test_the_checkpoints_of_a_run_stand_for_the_run(whole: Path, cli: Cli) -> None:
    ended = cli(f"init_from={whole}/checkpoints", *SHORT, "trainer.steps=0")
    assert ended.code == 0, ended.err
    assert_refused(cli(f"resume={whole}/checkpoints", run_dir=False), "already at step 40")
    assert load(ended.folder / "config.yaml").init_from == str(whole / "checkpoints" / "step_40")


def test_hydra_checks_overrides_against_the_saved_config(whole: Path, cli: Cli) -> None:
    assert_refused(resumed(cli, whole, "optim.lrr=1"), "optim.lr=1", field="optim.lrr", value="1")
    assert_refused(resumed(cli, whole, "optim.lr=fast"), "number", field="optim.lr", value="fast")


def test_a_changed_text_is_refused(tmp_path: Path, text_file: Path, cli: Cli) -> None:
    first = cli(*RUN, "data=text", f"data.path={text_file}")
    assert first.code == 0, first.err
    found: Any = summary(first.folder)
    trained_on = found["data"]["sha256"]
    text_file.write_text(text_file.read_text() * 2)
    ended = resumed(cli, first.folder, "trainer.steps=50")
    assert_refused(ended, text_file, trained_on[:12], "data.path=")
    assert summary(first.folder)["status"] == "completed"
    ended = resumed(cli, first.folder, "trainer.steps=50", f"data.path={text_file}")
    assert ended.code == 0, "with data.path= the run resumes on the changed text"


def test_a_missing_text_is_not_replaced_by_the_bundled_one(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new run without the tutorial's text and a network would use the bundled text."""
    (tmp_path / "sources").mkdir()
    text = tmp_path / "sources" / "shakespeare.txt"
    shutil.copy(paths.bundled_text(), text)
    bundled = paths.bundled_text()
    monkeypatch.setattr(paths, "home", lambda: tmp_path)
    monkeypatch.setattr(paths, "bundled_text", lambda: bundled)
    first = cli(*RUN[1:], "data.url=http://127.0.0.1:9/")
    assert first.code == 0, first.err
    text.unlink()
    before = snapshot(first.folder)
    for overrides in ((), ("data.batch_size=8",)):
        ended = resumed(cli, first.folder, "trainer.steps=80", *overrides)
        assert_refused(ended, text)
        assert "NOT SHAKESPEARE" not in ended.err
    assert snapshot(first.folder) == before


def test_a_stripped_checkpoint_is_not_resumed(whole: Path, tmp_path: Path, cli: Cli) -> None:
    run = crashed_copy(whole, tmp_path / "run", 20)
    last = Checkpoint(run / "checkpoints" / "step_20")
    last.strip(last.path)
    before = snapshot(run)
    ended = resumed(cli, run)
    assert_refused(ended, f"init_from={last.path}")
    assert snapshot(run) == before


def test_free_text_survives_a_resume(tmp_path: Path, cli: Cli) -> None:
    refused = cli(*RUN, "sample.prompt=Who: ${x}, 'a'?")
    assert_refused(refused, "$", field="sample.prompt")  # the bundled text has none
    first = cli(*RUN, "trainer.steps=5", "sample.prompt=Who: 'a, b'?")
    folder = first.folder.rename(tmp_path / "it's = a, folder")
    ended = resumed(cli, folder, "trainer.steps=6")
    assert ended.code == 0, ended.err
    assert (folder / "samples.txt").read_text("utf-8").count("Who: 'a, b'?") == 2


def test_a_locked_folder_is_refused_with_the_process_id(tmp_path: Path) -> None:
    run = tmp_path / "run"
    endless = ("data=bundled", "trainer.steps=100000000", "logger=none", f"hydra.run.dir={run}")
    with started(*endless) as process:
        wait_for((run / "checkpoints" / "last").exists, of=process)
        with started(f"resume={run}") as resumes, started(f"hydra.run.dir={run}", "data=bundled") as begins:
            for refused in (resumes.end(), begins.end()):
                assert_refused(refused, run, f"pid {process.pid} ")
                assert refused.err.count("\n") == 1, "nothing else is printed"
        assert runs.read_run(run).status == "running"  # type: ignore[union-attr]
        process.kill()
        assert runs.read_run(run).status == "killed"  # type: ignore[union-attr]
        if os.name != "nt":
            assert process.code == -signal.SIGKILL


def test_wandb_resumes_the_same_run(whole: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    origins = []

    class Stub:
        def __init__(self, cfg: metrics.LoggerConfig, origin: metrics.LoggerContext) -> None:
            origins.append(origin)

        def log(self, step: int, metrics: dict[str, float]) -> None: ...

        def text(self, step: int, name: str, text: str) -> None: ...

        def close(self, *, completed: bool) -> None: ...

    monkeypatch.setitem(metrics.LOGGERS, "wandb", Stub)
    first = cli(*RUN, "logger=wandb")
    resumed(cli, first.folder, "trainer.steps=50")
    assert [origin.resumed_at for origin in origins] == [None, 40]
    assert len({origin.run_id for origin in origins}) == 1


def test_early_stopping_ends_the_run_when_the_val_loss_stops_falling(tmp_path: Path, cli: Cli) -> None:
    """At this high learning rate the val loss falls and then rises."""
    hot = (*RUN, "optim.lr=3", "trainer.steps=120", "trainer.early_stopping_patience=2")
    ended = cli(*hot)
    assert ended.code == 0, ended.err
    found: Any = summary(ended.folder)
    assert found["status"] == "completed"
    assert found["step"] == found["best"]["step"] + 20 < 120
    assert re.search(rf"early stopping.* step {found['best']['step']}\b", ended.err), "the log gives the reason"
    assert "final" in found
    losses = [record["val/loss"] for record in records(ended.folder) if "val/loss" in record]
    assert min(losses) == losses[-3]
    run = crashed_copy(ended.folder, tmp_path / "cut", found["step"] - 5)
    assert resumed(cli, run).code == 0
    assert compare(ended.folder, run) is None
    for overrides in ((), ("trainer.steps=150",), ("optim.lr=1e-3",)):
        refused = resumed(cli, run, *overrides)
        assert_refused(refused, f"step {found['step']}", "trainer.early_stopping_patience=0", "above 2")
    assert resumed(cli, run, "trainer.early_stopping_patience=0").code == 0
    found = summary(run)
    assert (found["step"], found.get("early_stopped")) == (120, None)


def test_non_finite_weights_are_not_saved(tmp_path: Path, cli: Cli) -> None:
    """Steps are saved here without being recorded or evaluated."""
    rare = ("trainer.eval_every=1000", "trainer.log_every=1000", "trainer.checkpoint_every=1")
    ended = cli("data=bundled", "logger=none", "optim.lr=1e38", *rare, "trainer.keep_checkpoints=99")
    advice = ("optim.lr=0.001", "optim.grad_clip=1", f"resume={ended.folder}")
    assert_refused(ended, "learning rate", "1e+38", *advice)
    found: Any = summary(ended.folder)
    assert found["status"] == "failed"
    assert ended.err.endswith(f"error: {found['error']}\n")
    assert re.match(r"step \d+\b.*\b(nan|inf)\b.*\bstep \d+\b.*\bresume=", found["error"]), found["error"]
    saved = Checkpoints(ended.folder / "checkpoints")
    assert saved.steps()
    for step in saved.steps():
        for name in ("model", "training"):
            tensors = load_file(saved.folder / f"step_{step}" / f"{name}.safetensors")
            assert all(tensor.isfinite().all() for tensor in tensors.values()), (step, name)
    again = resumed(cli, ended.folder, "optim.lr=1e-3", "trainer.steps=20")
    assert again.code == 0, again.err


def test_a_non_finite_gradient_stops_the_run(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigramlm.trainer.trainer.get_total_norm", lambda _: torch.tensor(float("inf")))
    assert_refused(cli(*RUN), "step 0", "inf", "0.001", field="grad_norm")


def test_a_folder_with_checkpoints_counts_as_a_run(whole: Path, tmp_path: Path, cli: Cli) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    (run / "metrics.jsonl").unlink()
    ended = cli(*RUN, f"hydra.run.dir={run}", run_dir=False)
    assert_refused(ended, f"resume={run}")
    assert (run / "checkpoints" / "step_40").exists()


def test_an_intact_temporary_checkpoint_is_recovered(whole: Path, tmp_path: Path, cli: Cli) -> None:
    run = crashed_copy(whole, tmp_path / "run", 30)
    (run / "checkpoints" / "step_30").rename(run / "checkpoints" / f".step_30.{'a' * 32}")
    ended = resumed(cli, run)
    assert "step 30" in ended.err
    assert compare(whole, run) is None


def test_the_summary_records_every_resume_and_drops_old_errors(whole: Path, tmp_path: Path, cli: Cli) -> None:
    run = crashed_copy(whole, tmp_path / "run", 20)
    found: Any = summary(run)
    (run / "summary.json").write_text(json.dumps({**found, "status": "failed", "error": "the disk was full"}))
    assert resumed(cli, run).code == 0
    assert resumed(cli, run, "trainer.steps=44").code == 0
    found = summary(run)
    assert "error" not in found
    assert [part["step"] for part in found["resumed"]] == [20, 40]
    assert (run / "samples.txt").read_text("utf-8").count("---- step") == 2
    crashed_copy(run, tmp_path / "again", 40)
    shutil.copy(run / "samples.txt", tmp_path / "again")
    assert resumed(cli, tmp_path / "again").code == 0
    assert (tmp_path / "again" / "samples.txt").read_text("utf-8").count("---- step 44") == 1, (
        "a repeated sample is stored once"
    )


def test_a_damaged_summary_is_reported_and_replaced(whole: Path, tmp_path: Path, cli: Cli) -> None:
    run = crashed_copy(whole, tmp_path / "run", 20)
    (run / "summary.json").write_text('{"status": "runn')
    ended = resumed(cli, run)
    assert ended.code == 0
    assert "summary.json" in ended.err
    assert compare(whole, run) is None


def test_a_lost_last_checkpoint_is_trained_again(whole: Path, tmp_path: Path, cli: Cli) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    (run / "checkpoints" / "step_40" / "model.safetensors").unlink()
    ended = resumed(cli, run)
    assert ended.code == 0, ended.err
    assert torch.equal(weights(run), weights(whole))
    assert records(run) == records(whole)


def test_a_config_that_was_edited_is_reported(whole: Path, tmp_path: Path, cli: Cli) -> None:
    run = crashed_copy(whole, tmp_path / "run", 20)
    edited = (run / "config.yaml").read_text("utf-8").replace("lr: 0.001\n", "lr: 0.5\n")
    (run / "config.yaml").write_text(edited, "utf-8")
    ended = resumed(cli, run)
    assert ended.code == 0, ended.err
    (line,) = [line for line in ended.err.splitlines() if "config.yaml was edited" in line]
    assert "optim.lr=0.5 (in the checkpoint 0.001)" in line
    assert {record["lr"] for record in records(run) if record["step"] >= 20 and "lr" in record} == {0.5}


def test_a_field_that_was_typed_on_a_resume_is_not_reported(whole: Path, tmp_path: Path, cli: Cli) -> None:
    run = crashed_copy(whole, tmp_path / "run", 20)
    assert resumed(cli, run, "optim.lr=0.5", "device=cpu").code == 0
    for step in (25, 30, 35, 40):  # as if the run had been killed before it saved anything
        shutil.rmtree(run / "checkpoints" / f"step_{step}")
    ended = resumed(cli, run)
    assert ended.code == 0, ended.err
    assert "edited" not in ended.err + resumed(cli, run, "trainer.steps=42").err


def test_a_checkpoint_of_another_run_is_reported(whole: Path, tmp_path: Path, cli: Cli) -> None:
    other = cli(*RUN, "seed=2", "trainer.steps=45")
    run = Path(shutil.copytree(whole, tmp_path / "mixed"))
    shutil.copytree(other.folder / "checkpoints" / "step_45", run / "checkpoints" / "step_45")
    ended = resumed(cli, run, "trainer.steps=50")
    assert ended.code == 0, ended.err
    (line,) = [line for line in ended.err.splitlines() if "another run" in line]
    for part in ("checkpoints/step_45", str(summary(other.folder)["id"]), "seed=1337 (in the checkpoint 2)"):
        assert part in line
