"""Going on: resume gives the bits of a run that nothing interrupted, and refuses what would be another run."""

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
from bigramlm.logger import metrics
from bigramlm.runs import find as runs
from bigramlm.trainer.trainer import Trainer
from bigramlm.utils import paths
from tests.engine.helpers import records, weights
from tests.helpers import Cli, assert_refused, command, cut_back, resumed, started, summary, wait_for

RUN = (
    *("data=bundled", "logger=none", "trainer.steps=40", "trainer.eval_every=10", "trainer.log_every=2"),
    *("trainer.checkpoint_every=5", "trainer.keep_checkpoints=99", "sample.max_new_tokens=20"),
)


def left_alone(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("train.log", ".lock")
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of 40 steps that nothing interrupted, with TensorBoard's events."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = command(*RUN, "logger=tensorboard", f"hydra.run.dir={folder}")
    assert done.code == 0, done.err
    return folder


@pytest.mark.parametrize("step", [0, 5, 30, 40])
def test_each_step_is_there_once_after_a_resume(whole: Path, tmp_path: Path, cli: Cli, step: int) -> None:
    """In metrics.jsonl and TensorBoard, also where the crash came in the middle of a later record."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = cut_back(whole, tmp_path / "run", step)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 42, "secon')
    events = next(run.glob("events*"))
    # An hour ago: TensorBoard sorts the files of a run by the second and, within one, by a counter of the process.
    began = int(events.name.split(".")[3])
    events = events.rename(events.with_name(events.name.replace(str(began), str(began - 3600))))
    events.write_bytes(events.read_bytes()[:-7])
    ended = resumed(cli, run)
    assert ended.code == 0, ended.err
    assert compare(whole, run) is None
    seconds = [json.loads(line)["seconds"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert seconds == sorted(seconds), "resumed parts are added up"
    assert summary(run)["status"] == "completed"

    one, two = (EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload() for folder in (whole, run))
    assert set(one.Tags()["scalars"]) == set(two.Tags()["scalars"])
    for tag in one.Tags()["scalars"]:
        if tag not in ("tokens_per_second", "mfu"):
            assert [(e.step, e.value) for e in one.Scalars(tag)] == [(e.step, e.value) for e in two.Scalars(tag)], tag
    assert len(two.Tensors("sample/text_summary")) == 1


def stops_at_17() -> None:
    update = Trainer.update

    def stops(trainer: Trainer) -> Any:
        if trainer.progress.step == 17:
            os.kill(os.getpid(), signal.SIGINT)
        return update(trainer)

    mock.patch.object(Trainer, "update", stops).start()


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(whole: Path, tmp_path: Path, cli: Cli) -> None:
    run = tmp_path / "run"
    done = command(*RUN, f"hydra.run.dir={run}", setup=stops_at_17)
    assert done.code == 130, done.err
    assert f"resume={run}" in done.err.splitlines()[-1], "how to go on"
    assert Checkpoints(run / "checkpoints").path("last").name == "step_18"
    assert resumed(cli, run).code == 0
    shutil.rmtree(run / "checkpoints" / "step_18")
    assert compare(whole, run) is None


def test_a_longer_run_is_the_run_that_was_meant_to_be_longer(whole: Path, tmp_path: Path, cli: Cli) -> None:
    run = tmp_path / "run"
    assert cli(*RUN, "trainer.steps=20", f"hydra.run.dir={run}", run_dir=False).code == 0
    ended = resumed(cli, run, "trainer.steps=40")
    assert ended.code == 0, ended.err
    assert re.search(r"trainer\.steps=40\b.*\b20\b", ended.err), "what was changed is told"
    assert torch.equal(weights(run), weights(whole))
    assert records(run) == records(whole)
    saved = (run / "config.yaml").read_text("utf-8")
    assert "# typed: 'trainer.steps=20'\n" in saved
    assert "# typed on resuming at step 20: 'trainer.steps=40'\n" in saved
    assert "\n  steps: 40\n" in saved
    assert "resume: null" in saved
    told: Any = summary(run)
    assert told["resumed"][0]["step"] == 20
    assert told["resumed"][0]["overrides"][1] == "trainer.steps=40"
    assert told["overrides"] == [*RUN, "trainer.steps=20"]


def test_a_new_learning_rate_takes_effect_at_once(whole: Path, tmp_path: Path, cli: Cli) -> None:
    run = cut_back(whole, tmp_path / "run", 20)
    assert resumed(cli, run, "optim.lr=0.5", "optim.betas=[0.8,0.9]").code == 0
    rates = {record["step"]: record["lr"] for record in records(run) if "lr" in record}
    assert rates[18] == 1e-3
    assert rates[20] == 0.5
    assert not torch.equal(weights(run), weights(whole))
    assert torch.equal(weights(run, "step_20"), weights(whole, "step_20"))


def test_groups_that_are_not_the_run_itself_can_be_changed(whole: Path, tmp_path: Path, cli: Cli) -> None:
    run = cut_back(whole, tmp_path / "run", 20)
    ended = resumed(cli, run, "logger=none", "device=cpu")
    assert ended.code == 0, ended.err
    assert re.search(r"logger\.use=\[\].*\['tensorboard'\]", ended.err), "what was changed is told"
    assert len(list(run.glob("events*"))) == 1


def test_latest_is_the_run_that_was_started_last(
    whole: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runs, "outputs", lambda: tmp_path / "outputs")
    ended = cli("resume=latest", run_dir=False)
    assert_refused(ended, tmp_path / "outputs", "config.yaml", "scripts/train.py")
    assert ended.err.count("\n") == 1, "nothing else is said"
    older = cut_back(whole, tmp_path / "outputs" / "runs" / "2020-01-02" / "10", 20)
    newer = cut_back(whole, tmp_path / "outputs" / "sweeps" / "2020-01-01" / "0", 20)
    for run, began in ((older, "2020-01-01T00:00:00+00:00"), (newer, "2020-01-03T00:00:00+00:00")):
        before = json.loads((run / "summary.json").read_text("utf-8"))
        (run / "summary.json").write_text(json.dumps({**before, "started": began}), "utf-8")
    (tmp_path / "outputs" / "runs" / "refused").mkdir()
    (tmp_path / "outputs" / "runs" / "refused" / "summary.json").write_text('{"started": "2030"}')
    assert cli("resume=latest", run_dir=False).code == 0
    (told,) = [line for line in caplog.messages if str(Path("runs") / "refused") in line]
    assert "config.yaml" in told, "it says what it passes over, and what is not there"
    assert (summary(older)["status"], summary(newer)["status"]) == ("running", "completed")


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_at_step_0(
    whole: Path, tmp_path: Path, cli: Cli
) -> None:
    run = cut_back(whole, tmp_path / "run", 20)
    shutil.rmtree(run / "checkpoints")
    ended = resumed(cli, run)
    assert ended.code == 0, ended.err
    assert "step 0" in ended.err
    assert compare(whole, run) is None


def ends_before_training() -> None:
    # Its config is saved before torch is imported, which takes a second; checkpoints there are none yet.
    mock.patch("bigramlm.engine.build.Trainer", side_effect=lambda *_, **__: os._exit(9)).start()


def test_a_run_that_was_killed_while_it_started_can_be_resumed(whole: Path, tmp_path: Path, cli: Cli) -> None:
    run = tmp_path / "run"
    assert command(*RUN, "logger=tensorboard", f"hydra.run.dir={run}", setup=ends_before_training).code == 9
    assert (run / "config.yaml").exists()
    assert not (run / "checkpoints").exists()
    assert resumed(cli, run).code == 0
    assert compare(whole, run) is None


def test_a_signal_before_anything_began_promises_nothing(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigramlm.cli.train.to_run_config", lambda _: signal.raise_signal(signal.SIGINT))
    ended = cli(*RUN)
    assert ended.code == 130
    assert ended.err.count("\n") == 1
    assert "SIGINT" in ended.err
    assert "resume=" not in ended.err


def test_a_damaged_checkpoint_is_passed_over(whole: Path, tmp_path: Path, cli: Cli) -> None:
    run = cut_back(whole, tmp_path / "run", 30)
    (run / "checkpoints" / "step_30" / "training.safetensors").write_bytes(b"")
    ended = resumed(cli, run)
    assert ended.code == 0, ended.err
    assert re.search(r"step_30.training\.safetensors", ended.err)
    assert "step 25" in ended.err
    assert len(list((run / "checkpoints").glob("damaged_step_30.*"))) == 1, "nothing is thrown away"
    assert torch.equal(weights(run), weights(whole))
    assert records(run) == records(whole)


def test_where_no_checkpoint_is_whole_nothing_is_touched(whole: Path, tmp_path: Path, cli: Cli) -> None:
    run = cut_back(whole, tmp_path / "run", 5)
    for path in (run / "checkpoints").glob("step_*"):
        (path / "manifest.json").unlink()
    before = left_alone(run)
    ended = resumed(cli, run)
    assert_refused(ended, run / "checkpoints", 2)
    assert left_alone(run) == before


# What is typed with resume=, and what the refusal names.
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
def test_what_cannot_go_on_is_one_line_and_changes_nothing(
    whole: Path, cli: Cli, overrides: tuple[str, ...], named: tuple[str, ...]
) -> None:
    before = left_alone(whole)
    assert_refused(resumed(cli, whole, *overrides), *named)
    assert left_alone(whole) == before


@pytest.mark.parametrize(
    ("where", "named"),
    [
        ("", "runs.py list"),
        ("none", "runs.py list"),
        ("{tmp}", "config.yaml"),
        ("{whole}/checkpoints/step_40", "init_from="),
    ],
)
def test_what_holds_no_run_is_one_line(whole: Path, tmp_path: Path, cli: Cli, where: str, named: str) -> None:
    where = where.format(tmp=tmp_path, whole=whole)
    ended = cli(f"resume={where}", run_dir=False)
    assert_refused(ended, where, named)
    assert ended.err.count("\n") == 1, "nothing else is said"


def test_hydra_checks_what_is_typed_against_the_saved_run(whole: Path, cli: Cli) -> None:
    ended = resumed(cli, whole, "optim.lrr=1")
    assert ended.code == 1
    assert "'lrr'" in ended.err


def test_another_text_than_then_is_refused(tmp_path: Path, text_file: Path, cli: Cli) -> None:
    first = cli(*RUN, "data=text", f"data.path={text_file}")
    assert first.code == 0, first.err
    told: Any = summary(first.folder)
    trained_on = told["data"]["sha256"]
    text_file.write_text(text_file.read_text() * 2)
    ended = resumed(cli, first.folder, "trainer.steps=50")
    assert_refused(ended, text_file, trained_on[:12], "data.path=")
    assert summary(first.folder)["status"] == "completed"
    ended = resumed(cli, first.folder, "trainer.steps=50", f"data.path={text_file}")
    assert ended.code == 0, "asked for it goes on"


def test_no_other_text_takes_the_place_of_one_that_is_gone(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tutorial's text is moved away, and there is no network: a new run would take the bundled one."""
    (tmp_path / "sources").mkdir()
    text = tmp_path / "sources" / "shakespeare.txt"
    shutil.copy(paths.bundled_text(), text)
    bundled = paths.bundled_text()
    monkeypatch.setattr(paths, "home", lambda: tmp_path)
    monkeypatch.setattr(paths, "bundled_text", lambda: bundled)
    first = cli(*RUN[1:], "data.url=http://127.0.0.1:9/")
    assert first.code == 0, first.err
    text.unlink()
    before = left_alone(first.folder)
    for typed in ((), ("data.batch_size=8",)):
        ended = resumed(cli, first.folder, "trainer.steps=80", *typed)
        assert_refused(ended, text)
        assert "NOT SHAKESPEARE" not in ended.err
    assert left_alone(first.folder) == before


def test_a_stripped_run_is_not_resumed(whole: Path, tmp_path: Path, cli: Cli) -> None:
    run = cut_back(whole, tmp_path / "run", 20)
    last = Checkpoint(run / "checkpoints" / "step_20")
    last.strip(last.path)
    before = left_alone(run)
    ended = resumed(cli, run)
    assert_refused(ended, f"init_from={last.path}")
    assert left_alone(run) == before


def test_free_text_survives_a_resume(tmp_path: Path, cli: Cli) -> None:
    refused = cli(*RUN, "sample.prompt=Who: ${x}, 'a'?")
    assert_refused(refused, "$", field="sample.prompt")  # the bundled text has none
    first = cli(*RUN, "trainer.steps=5", "sample.prompt=Who: 'a, b'?")
    folder = first.folder.rename(tmp_path / "it's = a, folder")
    ended = resumed(cli, folder, "trainer.steps=6")
    assert ended.code == 0, ended.err
    assert (folder / "samples.txt").read_text("utf-8").count("Who: 'a, b'?") == 2


def test_a_second_process_is_told_who_trains_in_the_folder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    endless = ("data=bundled", "trainer.steps=100000000", "logger=none", f"hydra.run.dir={run}")
    with started(*endless) as process:
        wait_for((run / "checkpoints" / "last").exists, of=process)
        with started(f"resume={run}") as resumes, started(f"hydra.run.dir={run}", "data=bundled") as begins:
            for refused in (resumes.end(), begins.end()):
                assert_refused(refused, run, f"pid {process.pid} ")
                assert refused.err.count("\n") == 1, "nothing else is said"
        assert runs.read_run(run).status == "running"  # type: ignore[union-attr]
        process.kill()
        assert runs.read_run(run).status == "killed"  # type: ignore[union-attr]
        if os.name != "nt":
            assert process.code == -signal.SIGKILL


def test_wandb_goes_on_in_the_same_run(whole: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_early_stopping_ends_where_the_val_loss_does_not_fall(tmp_path: Path, cli: Cli) -> None:
    """At a learning rate this high it falls, and then rises; the same where the run was interrupted."""
    hot = (*RUN, "optim.lr=3", "trainer.steps=120", "trainer.early_stopping_patience=2")
    ended = cli(*hot)
    assert ended.code == 0, ended.err
    told: Any = summary(ended.folder)
    assert told["status"] == "completed"
    assert told["step"] == told["best"]["step"] + 20 < 120
    assert re.search(rf"early stopping.* step {told['best']['step']}\b", ended.err), "why it ended"
    assert "final" in told
    losses = [record["val/loss"] for record in records(ended.folder) if "val/loss" in record]
    assert min(losses) == losses[-3]
    run = cut_back(ended.folder, tmp_path / "cut", told["step"] - 5)
    assert resumed(cli, run).code == 0
    assert compare(ended.folder, run) is None
    for typed in ((), ("trainer.steps=150",), ("optim.lr=1e-3",)):
        refused = resumed(cli, run, *typed)
        assert_refused(refused, f"step {told['step']}", "trainer.early_stopping_patience=0", "above 2")
    assert resumed(cli, run, "trainer.early_stopping_patience=0").code == 0
    told = summary(run)
    assert (told["step"], told.get("early_stopped")) == (120, None)


def test_nothing_that_is_not_finite_is_saved(tmp_path: Path, cli: Cli) -> None:
    """At steps that are saved, and neither recorded nor evaluated."""
    rare = ("trainer.eval_every=1000", "trainer.log_every=1000", "trainer.checkpoint_every=1")
    ended = cli("data=bundled", "logger=none", "optim.lr=1e38", *rare, "trainer.keep_checkpoints=99")
    ways_out = ("optim.lr=0.001", "optim.grad_clip=1", f"resume={ended.folder}")
    assert_refused(ended, "learning rate", "1e+38", *ways_out)
    told: Any = summary(ended.folder)
    assert told["status"] == "failed"
    assert ended.err.endswith(f"error: {told['error']}\n")
    assert re.match(r"step \d+\b.*\b(nan|inf)\b.*\bresume=.*\bstep \d+\b", told["error"]), told["error"]
    saved = Checkpoints(ended.folder / "checkpoints")
    assert saved.steps()
    for step in saved.steps():
        for name in ("model", "training"):
            tensors = load_file(saved.folder / f"step_{step}" / f"{name}.safetensors")
            assert all(tensor.isfinite().all() for tensor in tensors.values()), (step, name)
    again = resumed(cli, ended.folder, "optim.lr=1e-3", "trainer.steps=20")
    assert again.code == 0, again.err


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigramlm.trainer.trainer.get_total_norm", lambda _: torch.tensor(float("inf")))
    assert_refused(cli(*RUN), "step 0", "inf", "0.001", field="grad_norm")


def test_a_folder_with_checkpoints_holds_a_run(whole: Path, tmp_path: Path, cli: Cli) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    (run / "metrics.jsonl").unlink()
    ended = cli(*RUN, f"hydra.run.dir={run}", run_dir=False)
    assert_refused(ended, f"resume={run}")
    assert (run / "checkpoints" / "step_40").exists()


def test_what_a_crash_left_aside_is_used(whole: Path, tmp_path: Path, cli: Cli) -> None:
    run = cut_back(whole, tmp_path / "run", 30)
    (run / "checkpoints" / "step_30").rename(run / "checkpoints" / ".step_30.abc")
    ended = resumed(cli, run)
    assert "step 30" in ended.err
    assert compare(whole, run) is None


def test_the_summary_tells_of_every_part_and_of_no_error_that_is_over(whole: Path, tmp_path: Path, cli: Cli) -> None:
    run = cut_back(whole, tmp_path / "run", 20)
    told: Any = summary(run)
    (run / "summary.json").write_text(json.dumps({**told, "status": "failed", "error": "the disk was full"}))
    assert resumed(cli, run).code == 0
    assert resumed(cli, run, "trainer.steps=44").code == 0
    told = summary(run)
    assert "error" not in told
    assert [part["step"] for part in told["resumed"]] == [20, 40]
    assert (run / "samples.txt").read_text("utf-8").count("---- step") == 2
    cut_back(run, tmp_path / "again", 40)
    shutil.copy(run / "samples.txt", tmp_path / "again")
    assert resumed(cli, tmp_path / "again").code == 0
    assert (tmp_path / "again" / "samples.txt").read_text("utf-8").count("---- step 44") == 1, "the same one, once"


def test_a_damaged_summary_is_told_and_costs_nothing(whole: Path, tmp_path: Path, cli: Cli) -> None:
    run = cut_back(whole, tmp_path / "run", 20)
    (run / "summary.json").write_text('{"status": "runn')
    ended = resumed(cli, run)
    assert ended.code == 0
    assert "summary.json" in ended.err
    assert compare(whole, run) is None


def test_a_completed_run_that_lost_its_last_checkpoint_makes_it_again(whole: Path, tmp_path: Path, cli: Cli) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    (run / "checkpoints" / "step_40" / "model.safetensors").unlink()
    ended = resumed(cli, run)
    assert ended.code == 0, ended.err
    assert torch.equal(weights(run), weights(whole))
    assert records(run) == records(whole)
