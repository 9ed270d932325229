"""Going on: resume gives the bits of a run that nothing interrupted, init_from starts anew from trained weights."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bigramlm import metrics, paths, runs
from bigramlm.checkpoint import Checkpoint, Checkpoints
from bigramlm.verify_resume import compare
from tests.helpers import LINUX, SCRIPT, Cli, command, cut_back, resumed, summary, verified

VERIFY = paths.home() / "scripts" / "verify_resume.py"
RUN = (
    *("data=bundled", "logger=none", "trainer.steps=40", "trainer.eval_every=10", "trainer.log_every=2"),
    *("trainer.checkpoint_every=5", "trainer.keep_checkpoints=99", "sample.max_new_tokens=20"),
)


def weights(folder: Path, step: str = "last") -> torch.Tensor:
    path = Checkpoints(folder / "checkpoints").path("last") if step == "last" else folder / "checkpoints" / step
    (table,) = load_file(path / "model.safetensors").values()
    return table


def records(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "tokens_per_second", "mfu")} for line in lines]


def left_alone(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("train.log", ".lock")
    }


@pytest.mark.slow
@LINUX
def test_fifty_runs_killed_at_random_moments_and_resumed_are_bit_equal() -> None:
    done = verified("--kills", "50", "data=bundled", "optim.grad_clip=0.5", "optim.warmup_steps=10")
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.fullmatch(r"50 of 50 bit-equal; (\d+) of them were killed in the middle of a save\n", done.stdout)
    assert found is not None, done.stdout
    assert int(found[1]) > 0


def test_the_verifier_is_a_script(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(VERIFY), "data=bundled", "trainer.steps=20"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "bit-equal: 20 steps, and 10, a kill, and 10 more\n"), done.stderr


MISTAKES = {
    "the optimizer starts anew": (
        "from bigramlm.checkpoint import Checkpoint\n"
        "Checkpoint.restore = lambda self, model, *_: self.load_weights(model)",
        r"step 12: model.safetensors: token_embedding_table.weight differs",
    ),
    "the batches start anew": (
        "from bigramlm import trainer\n"
        "taken = trainer.Trainer.resume\n"
        "class Anew:\n"
        "    def __init__(self, batches, first): self.batches, self.first = batches, first\n"
        "    def __getitem__(self, n): return self.batches[n - self.first]\n"
        "def resume(self, checkpoint):\n"
        "    taken(self, checkpoint)\n"
        "    self.batches = Anew(self.batches, self.step)\n"
        "trainer.Trainer.resume = resume",
        r"step 12: model.safetensors: token_embedding_table.weight differs",
    ),
    "records stay that the crash came after": (
        "from bigramlm import metrics\nmetrics._keep_before = lambda step, path: None",
        r"step \d+: the records differ in step|2\d records in the",
    ),
}


@LINUX
@pytest.mark.parametrize(("setup", "found"), MISTAKES.values(), ids=MISTAKES)
def test_the_verifier_says_where_runs_part(setup: str, found: str) -> None:
    """Each mistake is put in. The kill after step 10 finds a checkpoint of step 8, and records that are later."""
    every = ("trainer.checkpoint_every=4", "trainer.eval_every=4")
    done = verified("data=bundled", "trainer.steps=20", *every, setup=setup)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(found, done.stdout), done.stdout


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 40 steps that nothing interrupted, with TensorBoard's events."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = command(*RUN, "logger=tensorboard", f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("step", [0, 5, 30, 40])
def test_each_step_is_there_once_after_a_resume(whole: Path, tmp_path: Path, cli: Cli, step: int) -> None:
    """In metrics.jsonl and TensorBoard, also where the crash came in the middle of a later record."""
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


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(whole: Path, tmp_path: Path, cli: Cli) -> None:
    run = tmp_path / "run"
    code = f"""
import os, signal, sys
from bigramlm import train
from bigramlm.trainer import Trainer
update = Trainer.update
def stops(self):
    if self.step == 17:
        os.kill(os.getpid(), signal.SIGINT)
    return update(self)
Trainer.update = stops
sys.argv[1:] = {[*RUN, f"hydra.run.dir={run}"]!r}
train.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 130, done.stderr
    assert f"resume={run} goes on with it" in done.stderr
    assert Checkpoints(run / "checkpoints").path("last").name == "step_18"
    assert resumed(cli, run).code == 0
    shutil.rmtree(run / "checkpoints" / "step_18")
    assert compare(whole, run) is None


def test_a_longer_run_is_the_run_that_was_meant_to_be_longer(whole: Path, tmp_path: Path, cli: Cli) -> None:
    run = tmp_path / "run"
    assert cli(*RUN, "trainer.steps=20", f"hydra.run.dir={run}", run_dir=False).code == 0
    ended = resumed(cli, run, "trainer.steps=40")
    assert ended.code == 0, ended.err
    assert "changed: trainer.steps=40, it was 20" in ended.err
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
    assert "changed: logger.use=[], it was ['tensorboard']" in ended.err
    assert len(list(run.glob("events*"))) == 1


def test_latest_is_the_run_that_was_started_last(
    whole: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runs, "outputs", lambda: tmp_path / "outputs")
    ended = cli("resume=latest", run_dir=False)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "there is no run yet" in ended.err
    older = cut_back(whole, tmp_path / "outputs" / "runs" / "2020-01-02" / "10", 20)
    newer = cut_back(whole, tmp_path / "outputs" / "sweeps" / "2020-01-01" / "0", 20)
    for run, started in ((older, "2020-01-01T00:00:00+00:00"), (newer, "2020-01-03T00:00:00+00:00")):
        told = json.loads((run / "summary.json").read_text("utf-8"))
        (run / "summary.json").write_text(json.dumps({**told, "started": started}), "utf-8")
    (tmp_path / "outputs" / "runs" / "refused").mkdir()
    (tmp_path / "outputs" / "runs" / "refused" / "summary.json").write_text('{"started": "2030"}')
    assert cli("resume=latest", run_dir=False).code == 0
    assert "refused, a newer run, holds no config.yaml" in caplog.text, "it says what it passes over"
    assert (summary(older)["status"], summary(newer)["status"]) == ("running", "completed")


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_at_step_0(
    whole: Path, tmp_path: Path, cli: Cli
) -> None:
    run = cut_back(whole, tmp_path / "run", 20)
    shutil.rmtree(run / "checkpoints")
    ended = resumed(cli, run)
    assert ended.code == 0, ended.err
    assert "from step 0" in ended.err
    assert compare(whole, run) is None


def test_a_run_that_was_killed_while_it_started_can_be_resumed(whole: Path, tmp_path: Path, cli: Cli) -> None:
    """Torch takes a second to import: by then the folder has the config."""
    run = tmp_path / "run"
    with subprocess.Popen([sys.executable, str(SCRIPT), *RUN, "logger=tensorboard", f"hydra.run.dir={run}"]) as process:
        while not (run / "config.yaml").exists():
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
    assert not (run / "checkpoints").exists()
    assert resumed(cli, run).code == 0
    assert compare(whole, run) is None


def test_a_signal_before_anything_began_promises_nothing(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigramlm.train.to_run_config", lambda _: signal.raise_signal(signal.SIGINT))
    ended = cli(*RUN)
    assert ended.code == 130
    assert (
        ended.err
        == "stopped by SIGINT; training had not begun; the same command starts again, with what was prepared\n"
    )


def test_a_damaged_checkpoint_is_passed_over(whole: Path, tmp_path: Path, cli: Cli) -> None:
    run = cut_back(whole, tmp_path / "run", 30)
    (run / "checkpoints" / "step_30" / "training.safetensors").write_bytes(b"")
    ended = resumed(cli, run)
    assert ended.code == 0, ended.err
    assert re.search(r"passed over: .*step_30.training.safetensors: damaged", ended.err)
    assert "from step 25" in ended.err
    assert len(list((run / "checkpoints").glob("damaged_step_30.*"))) == 1, "nothing is thrown away"
    assert torch.equal(weights(run), weights(whole))
    assert records(run) == records(whole)


def test_where_no_checkpoint_is_whole_nothing_is_touched(whole: Path, tmp_path: Path, cli: Cli) -> None:
    run = cut_back(whole, tmp_path / "run", 5)
    for path in (run / "checkpoints").glob("step_*"):
        (path / "manifest.json").unlink()
    before = left_alone(run)
    ended = resumed(cli, run)
    assert ended.code == 2
    assert ended.err.splitlines()[-1].startswith("error: ")
    assert "none of the 2 checkpoints is whole" in ended.err
    assert left_alone(run) == before


REFUSED = {
    ("model=bigram",): "a run goes on with its own model",
    ("experiment=quick",): "a run goes on with its own experiment",
    ("init_from=x",): "contradict each other",
    ("hydra.run.dir=x",): "contradict each other",
    ("-m", "seed=1,2"): "leave -m out",
    ("trainer.steps=10",): "is at step 40 already",
    (): "is at step 40 already; trainer.steps=80 goes further",
    ("optim.lr=-1",): "optim.lr=-1.0",
    ("data.train_fraction=1.5",): "data.train_fraction",
    ("data.block_size=90000", "trainer.steps=80"): "data.block_size=90000",
}


@pytest.mark.parametrize(("overrides", "message"), REFUSED.items(), ids=[" ".join(o) or "nothing" for o in REFUSED])
def test_what_cannot_go_on_is_one_line_and_changes_nothing(
    whole: Path, cli: Cli, overrides: tuple[str, ...], message: str
) -> None:
    before = left_alone(whole)
    ended = resumed(cli, whole, *overrides)
    assert ended.code == 2
    errors = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, ended.err
    assert message in errors[0]
    assert left_alone(whole) == before


@pytest.mark.parametrize("where", ["", "none", "{tmp}", "{whole}/checkpoints/step_40"])
def test_what_holds_no_run_is_one_line(whole: Path, tmp_path: Path, cli: Cli, where: str) -> None:
    ended = cli(f"resume={where.format(tmp=tmp_path, whole=whole)}", run_dir=False)
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err


def test_hydra_checks_what_is_typed_against_the_saved_run(whole: Path, cli: Cli) -> None:
    ended = resumed(cli, whole, "optim.lrr=1")
    assert ended.code == 1
    assert "Key 'lrr' not in 'AdamWConfig'" in ended.err


def test_another_text_than_then_is_refused(tmp_path: Path, text_file: Path, cli: Cli) -> None:
    first = cli(*RUN, "data=text", f"data.path={text_file}")
    assert first.code == 0, first.err
    text_file.write_text(text_file.read_text() * 2)
    ended = resumed(cli, first.folder, "trainer.steps=50")
    assert ended.code == 2
    assert "is not the text that the run was trained on" in ended.err
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
        assert (ended.code, "NOT SHAKESPEARE" in ended.err) == (2, False)
        assert f"{text} is not there" in ended.err
    assert left_alone(first.folder) == before


def test_a_stripped_run_is_not_resumed(whole: Path, tmp_path: Path, cli: Cli) -> None:
    run = cut_back(whole, tmp_path / "run", 20)
    last = Checkpoint(run / "checkpoints" / "step_20")
    last.strip(last.path)
    before = left_alone(run)
    ended = resumed(cli, run)
    assert ended.code == 2
    assert "is stripped of what training needs" in ended.err
    assert left_alone(run) == before


def test_free_text_survives_a_resume(tmp_path: Path, cli: Cli) -> None:
    first = cli(*RUN, "trainer.steps=5", "sample.prompt=Who: ${x}, 'a'?", "data.train_fraction=0.5")
    assert first.code == 2, "the bundled text has no $"
    first = cli(*RUN, "trainer.steps=5", "sample.prompt=Who: 'a, b'?")
    folder = first.folder.rename(tmp_path / "it's = a, folder")
    ended = resumed(cli, folder, "trainer.steps=6")
    assert ended.code == 0, ended.err
    assert (folder / "samples.txt").read_text("utf-8").count("Who: 'a, b'?") == 2


def test_a_second_process_is_told_who_trains_in_the_folder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    endless = [sys.executable, str(SCRIPT), f"hydra.run.dir={run}", "data=bundled", "trainer.steps=100000000"]
    with subprocess.Popen([*endless, "logger=none"], stderr=subprocess.PIPE) as process:
        while not (run / "checkpoints" / "last").exists():
            assert process.poll() is None
            time.sleep(0.05)
        try:
            for arguments in (f"resume={run}",), (f"hydra.run.dir={run}", "data=bundled"):
                refused = command(*arguments)
                assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
                assert f"another process trains in it: pid {process.pid} on " in refused.stderr
            assert runs.read_run(run).status == "running"  # type: ignore[union-attr]
        finally:
            process.kill()
            process.communicate()
    assert runs.read_run(run).status == "killed"  # type: ignore[union-attr]
    if os.name != "nt":
        assert process.returncode == -signal.SIGKILL


def test_wandb_goes_on_in_the_same_run(whole: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    origins = []

    class Stub:
        def __init__(self, cfg: metrics.LoggerConfig, origin: metrics.Origin) -> None:
            origins.append(origin)

        def log(self, step: int, metrics: dict[str, float]) -> None: ...

        def text(self, step: int, name: str, text: str) -> None: ...

        def close(self, *, completed: bool) -> None: ...

    monkeypatch.setitem(metrics.LOGGERS, "wandb", Stub)
    first = cli(*RUN, "logger=wandb")
    resumed(cli, first.folder, "trainer.steps=50")
    assert [origin.resumed_at for origin in origins] == [None, 40]
    assert len({origin.run_id for origin in origins}) == 1


def test_init_from_takes_the_weights_and_nothing_else(whole: Path, tmp_path: Path, cli: Cli) -> None:
    ended = cli("data=bundled", "logger=none", "trainer.steps=3", f"init_from={whole}")
    assert ended.code == 0, ended.err
    assert torch.equal(weights(ended.folder, "step_0"), weights(whole))
    first = records(ended.folder)[0]
    assert first["val/loss"] == records(whole)[-1]["val/loss"], "the same weights on the same blocks"
    assert load_file(ended.folder / "checkpoints" / "step_0" / "training.safetensors").keys() == {"rng/cpu"}
    assert summary(ended.folder)["id"] != summary(whole)["id"]
    saved = (ended.folder / "config.yaml").read_text("utf-8")
    assert f"init_from: {whole / 'checkpoints' / 'step_40'}" in saved, "which one it really was"
    shutil.rmtree(ended.folder / "checkpoints")
    again = resumed(cli, ended.folder, "trainer.steps=4")
    assert again.code == 0, again.err
    assert torch.equal(weights(ended.folder, "step_0"), weights(whole))


def test_init_from_brings_model_tokenizer_and_block_size(tmp_path: Path, text_file: Path, cli: Cli) -> None:
    source = cli(*RUN, "data.block_size=4")
    ended = cli("data=text", f"data.path={text_file}", "logger=none", "trainer.steps=2", f"init_from={source.folder}")
    assert ended.code == 0, ended.err
    chars = [
        json.loads((folder / "checkpoints" / "step_0" / "tokenizer.json").read_text("utf-8"))["chars"]
        for folder in (source.folder, ended.folder)
    ]
    assert chars[0] == chars[1], "and not that of the new text, which has fewer characters"
    assert "block_size: 4" in (ended.folder / "config.yaml").read_text("utf-8")
    typed = cli(*RUN, f"init_from={source.folder}/checkpoints/best", "data.block_size=6", "trainer.steps=2")
    assert "block_size: 6" in (typed.folder / "config.yaml").read_text("utf-8")
    text_file.write_text("日本" * 1000, "utf-8")
    lacks = cli("data=text", f"data.path={text_file}", f"init_from={source.folder}")
    assert lacks.code == 2
    assert "lacks '日', '本'" in lacks.err


def test_init_from_can_be_swept(whole: Path, tmp_path: Path, cli: Cli) -> None:
    arguments = ("data=bundled", "logger=none", "trainer.steps=2", f"init_from={whole}", "optim.lr=0.1,0.2")
    ended = cli("-m", *arguments, f"hydra.sweep.dir={tmp_path / 'sweep'}", run_dir=False)
    assert ended.code == 0, ended.err
    for job in "01":
        assert torch.equal(weights(tmp_path / "sweep" / job, "step_0"), weights(whole))
        assert "_saved" not in (tmp_path / "sweep" / job / "config.yaml").read_text("utf-8")


@pytest.mark.parametrize("where", ["none", "{tmp}", ""])
def test_init_from_nothing_is_one_line(tmp_path: Path, cli: Cli, where: str) -> None:
    ended = cli(*RUN, f"init_from={where.format(tmp=tmp_path)}")
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err


def test_early_stopping_ends_where_the_val_loss_does_not_fall(tmp_path: Path, cli: Cli) -> None:
    """At a learning rate this high it falls, and then rises; the same where the run was interrupted."""
    hot = (*RUN, "optim.lr=3", "trainer.steps=200", "trainer.early_stopping_patience=2")
    ended = cli(*hot)
    assert ended.code == 0, ended.err
    told: Any = summary(ended.folder)
    assert told["status"] == "completed"
    assert told["step"] == told["best"]["step"] + 20 < 200
    assert f"no lower val loss than step {told['best']['step']}'s in 2 evaluations" in ended.err
    assert "final" in told
    losses = [record["val/loss"] for record in records(ended.folder) if "val/loss" in record]
    assert min(losses) == losses[-3]
    run = cut_back(ended.folder, tmp_path / "cut", told["step"] - 5)
    assert resumed(cli, run).code == 0
    assert compare(ended.folder, run) is None
    for typed in ((), ("trainer.steps=300",), ("optim.lr=1e-3",)):
        refused = resumed(cli, run, *typed)
        assert refused.code == 2
        assert "trainer.early_stopping_patience=0, or above 2, goes on" in refused.err
    assert resumed(cli, run, "trainer.early_stopping_patience=0").code == 0
    told = summary(run)
    assert (told["step"], told.get("early_stopped")) == (200, None)


def test_nothing_that_is_not_finite_is_saved(tmp_path: Path, cli: Cli) -> None:
    """At steps that are saved, and neither recorded nor evaluated."""
    rare = ("trainer.eval_every=1000", "trainer.log_every=1000", "trainer.checkpoint_every=1")
    ended = cli("data=bundled", "logger=none", "optim.lr=1e38", *rare, "trainer.keep_checkpoints=99")
    assert ended.code == 2
    told: Any = summary(ended.folder)
    assert told["status"] == "failed"
    assert re.match(
        r"step \d+: .* is (nan|-?inf), with a learning rate of 1e\+38; try a lower one, such as optim.lr=0.001, or "
        r"optim.grad_clip=1; resume=.* with it goes on from step \d+$",
        told["error"],
    ), told["error"]
    saved = Checkpoints(ended.folder / "checkpoints")
    assert saved.steps()
    for step in saved.steps():
        for name in ("model", "training"):
            tensors = load_file(saved.folder / f"step_{step}" / f"{name}.safetensors")
            assert all(tensor.isfinite().all() for tensor in tensors.values()), (step, name)
    again = resumed(cli, ended.folder, "optim.lr=1e-3", "trainer.steps=20")
    assert again.code == 0, again.err


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigramlm.trainer.get_total_norm", lambda _: torch.tensor(float("inf")))
    ended = cli(*RUN)
    assert ended.code == 2
    assert "step 0: grad_norm is inf, with a learning rate of 0.001" in ended.err


def test_init_from_a_trained_model_passes_the_checks_of_a_fresh_one(cli: Cli) -> None:
    """Its loss is far below ln V, as it should be."""
    source = cli("data=bundled", "logger=none", "trainer.steps=300", "optim.lr=0.1", "sample.max_new_tokens=1")
    ended = cli("data=bundled", "logger=none", "trainer.steps=1", f"init_from={source.folder}")
    assert ended.code == 0, ended.err
    assert records(ended.folder)[0]["val/loss"] < 3


def test_latest_is_the_same_for_every_job_of_a_sweep(
    whole: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = tmp_path / "outputs"
    monkeypatch.setattr(runs, "outputs", lambda: outputs)
    source = shutil.copytree(whole, outputs / "runs" / "source")
    arguments = ("data=bundled", "logger=none", "trainer.steps=2", "init_from=latest", "optim.lr=0.1,0.2,0.3")
    ended = cli("-m", *arguments, f"hydra.sweep.dir={outputs / 'sweeps' / 'x'}", run_dir=False)
    assert ended.code == 0, ended.err
    for job in "012":
        config = (outputs / "sweeps" / "x" / job / "config.yaml").read_text("utf-8")
        assert f"init_from: {source / 'checkpoints' / 'step_40'}" in config


def test_a_typed_block_size_holds_where_a_run_from_weights_is_resumed_at_step_0(whole: Path, cli: Cli) -> None:
    ended = cli(*RUN, f"init_from={whole}", "data.block_size=5", "trainer.steps=2")
    shutil.rmtree(ended.folder / "checkpoints")
    assert resumed(cli, ended.folder, "trainer.steps=3").code == 0
    assert "block_size: 5" in (ended.folder / "config.yaml").read_text("utf-8")


def test_a_folder_with_checkpoints_holds_a_run(whole: Path, tmp_path: Path, cli: Cli) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    (run / "metrics.jsonl").unlink()
    ended = cli(*RUN, f"hydra.run.dir={run}", run_dir=False)
    assert ended.code == 2
    assert f"holds a run already, and nothing is written over; resume={run} goes on with it" in ended.err
    assert (run / "checkpoints" / "step_40").exists()


def test_what_a_crash_left_aside_is_used(whole: Path, tmp_path: Path, cli: Cli) -> None:
    run = cut_back(whole, tmp_path / "run", 30)
    (run / "checkpoints" / "step_30").rename(run / "checkpoints" / ".step_30.abc")
    ended = resumed(cli, run)
    assert "from step 30" in ended.err
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
    assert "its summary.json cannot be read" in ended.err
    assert compare(whole, run) is None


def test_a_completed_run_that_lost_its_last_checkpoint_makes_it_again(whole: Path, tmp_path: Path, cli: Cli) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    (run / "checkpoints" / "step_40" / "model.safetensors").unlink()
    ended = resumed(cli, run)
    assert ended.code == 0, ended.err
    assert torch.equal(weights(run), weights(whole))
    assert records(run) == records(whole)


@LINUX
def test_the_kill_comes_at_the_middle_however_seldom_is_saved() -> None:
    done = verified("data=bundled", "trainer.checkpoint_every=1000", "trainer.eval_every=1000")
    assert (done.returncode, done.stdout) == (0, "bit-equal: 40 steps, and 20, a kill, and 20 more\n"), done.stderr


@pytest.mark.parametrize("argument", ["optim.lrr=1", "optim.lr=-1", "resume=latest", "trainer.steps=1"])
def test_what_the_verifier_cannot_run_is_one_line(argument: str) -> None:
    done = verified("data=bundled", argument)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert argument.partition("=")[0] in done.stderr
