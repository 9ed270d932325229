"""Metrics as they can be read back: from JSONL, by TensorBoard's own reader, from a real W&B run that is offline."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bigramlm.logger import metrics as module
from bigramlm.logger.base import LoggerContext
from bigramlm.logger.config import LoggerConfig
from bigramlm.logger.metrics import Metrics
from tests.helpers import Cli, refuses, summary

# A run that is over at once.
FEW = ("data=bundled", "trainer.steps=1", "trainer.eval_batches=1", "sample.max_new_tokens=5")


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]


def test_jsonl_is_always_written_a_line_a_record(tmp_path: Path) -> None:
    metrics = Metrics(LoggerConfig(use=[]), LoggerContext(tmp_path, {}, "id"))
    metrics.log(0, 0.5, {"train/loss": 4.25, "bad": float("nan")})
    assert records(tmp_path) == [{"step": 0, "seconds": 0.5, "train/loss": 4.25, "bad": None}], "at once"
    metrics.log(10, 1.0, {"train/loss": 3.0})
    metrics.close()
    assert [record["step"] for record in records(tmp_path)] == [0, 10]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_tensorboard_reads_what_jsonl_has(cli: Cli) -> None:
    ended = cli("data=bundled", "trainer.steps=40", "trainer.eval_every=20", "trainer.log_every=10")
    assert ended.code == 0
    events = EventAccumulator(str(ended.folder), size_guidance={"scalars": 0}).Reload()
    found: dict[int, dict[str, float]] = {}
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            found.setdefault(event.step, {})[tag] = event.value
    lines = records(ended.folder)
    assert [line["step"] for line in lines] == [0, 10, 20, 30, 40]
    assert set(lines[0]) == {
        *("step", "seconds", "train/loss", "val/loss", "val/bpc", "train/best_bigram", "val/best_bigram"),
        *("train/batch_loss", "lr", "grad_norm", "tokens_per_second"),
    }
    assert {"final/train/loss", "final/val/loss", "final/val/bpc"} <= set(lines[-1])
    for line in lines:
        expected = {name: value for name, value in line.items() if name not in ("step", "seconds")}
        assert found[line["step"]] == pytest.approx(expected, rel=1e-5)
    assert len({line["val/best_bigram"] for line in lines if "val/best_bigram" in line}) == 1, "a level line"
    assert "sample/text_summary" in events.Tags()["tensors"]
    layout = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    assert b"^val/loss$" in layout
    assert b"^val/(best|ngram)_" in layout


def hparams(folder: Path) -> tuple[Any, list[Any]]:
    """Return what TensorBoard's HParams tab makes of a folder: the experiment, and its rows."""
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams import api_pb2, backend_context, get_experiment, list_session_groups

    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    context = backend_context.Context(TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(folder))))
    request = api_pb2.GetExperimentRequest(include_metrics=True)
    experiment = get_experiment.Handler(RequestContext(), context, "", request).run()
    rows = api_pb2.ListSessionGroupsRequest(
        start_index=0,
        slice_size=100,
        include_metrics=True,
        allowed_statuses=[api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_SUCCESS, api_pb2.STATUS_RUNNING],
        col_params=[api_pb2.ColParams(metric=info.name) for info in experiment.metric_infos],
    )
    found = list_session_groups.Handler(RequestContext(), context, "", rows).run().session_groups
    return experiment, sorted(found, key=lambda group: str(group.name))


def test_hparams_of_tensorboard_has_a_row_a_job_and_no_run_more(cli: Cli, tmp_path: Path) -> None:
    sweep = ("-m", *FEW, f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert cli(*sweep, "optim.lr=0.5,0.25", "model=bigram,attention", run_dir=False).code == 0
    other = ("-m", *FEW, f"hydra.sweep.dir={tmp_path / 'other'}")
    assert cli(*other, "trainer.eval_batches=all,1", run_dir=False).code == 0
    experiment, rows = hparams(tmp_path)
    assert sorted(info.name for info in experiment.hparam_infos) == ["model", "optim.lr", "trainer.eval_batches"]
    (names,) = [[s.name for row in rows for s in row.sessions]]
    assert names == ["other/0", "other/1", "sweep/0", "sweep/1", "sweep/2", "sweep/3"]
    told = [{name: value.number_value or value.string_value for name, value in row.hparams.items()} for row in rows]
    assert told[:2] == [{"trainer.eval_batches": "all"}, {"trainer.eval_batches": 1.0}]
    assert [(row["optim.lr"], row["model"]) for row in told[2:]] == [
        *((0.5, "bigram"), (0.5, "attention"), (0.25, "bigram"), (0.25, "attention")),
    ]
    for row in rows:
        assert row.sessions[0].status == 1, "success"
        final = {value.name.tag: value.value for value in row.metric_values}
        folder = tmp_path / row.sessions[0].name
        for name, value in summary(folder)["final"].items():  # type: ignore[attr-defined]
            assert final[f"final/{name}"] == pytest.approx(value)
        assert len(list(folder.glob("events.out.tfevents.*"))) == 1
        assert not [path for path in folder.iterdir() if path.is_dir() and path.name not in ("checkpoints", ".hydra")]


def test_hparams_of_a_job_have_what_other_commands_of_its_sweep_varied(cli: Cli, tmp_path: Path) -> None:
    """Take a field that was not typed for a job from its config, which has only just been saved when the run begins."""
    shared = ("-m", *FEW, f"hydra.sweep.dir={tmp_path}")
    assert cli(*shared, "seed=1,2", run_dir=False).code == 0
    assert cli(*shared, "data.batch_size=8,16", run_dir=False).code == 0
    _, rows = hparams(tmp_path)
    told = [{name: value.number_value for name, value in row.hparams.items()} for row in rows]
    later = [{"seed": 1337.0, "data.batch_size": 8.0}, {"seed": 1337.0, "data.batch_size": 16.0}]
    assert told == [{"seed": 1.0}, {"seed": 2.0}, *later]


def test_a_run_of_no_sweep_is_no_row_of_hparams(cli: Cli) -> None:
    ended = cli("data=bundled", "trainer.steps=2")
    experiment, rows = hparams(ended.folder)
    assert (len(experiment.hparam_infos), len(rows)) == (0, 0)


def test_a_job_that_was_stopped_and_goes_on_is_one_row_that_ends(tmp_path: Path) -> None:
    folder = tmp_path / "sweep" / "3"
    folder.mkdir(parents=True)
    for resumed_at, completed in ((None, False), (2, True)):
        metrics = Metrics(LoggerConfig(), LoggerContext(folder, {}, "id", resumed_at, {"seed": "3"}))
        for step in range(resumed_at or 0, 4):
            metrics.log(step, 0.0, {"val/loss": 4.0 - step, **({"final/val/loss": 1.0} if step == 3 else {})})
        metrics.close(completed=completed)
        _, (row,) = hparams(tmp_path)
        assert row.sessions[0].status == int(completed), "unknown, then success"
    assert [(session.name, session.status) for session in row.sessions] == [("sweep/3", 1)]
    assert {value.name.tag: value.value for value in row.metric_values} == {"val/loss": 1.0, "final/val/loss": 1.0}


def test_bad_logger_fields_are_refused() -> None:
    with refuses("tensorboard", "wandb", field="logger.use", value="tensorbored"):
        LoggerConfig(use=["tensorbored"])
    with refuses("online", "offline", "disabled", field="logger.mode", value="on"):
        LoggerConfig(mode="on")


class Failing:
    """A logger that fails at its third record."""

    def __init__(self, *_: object) -> None:
        self.n = 0

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.n += 1
        if self.n == 3:
            raise OSError("the server is gone")

    def text(self, step: int, name: str, text: str) -> None: ...

    def close(self, *, completed: bool) -> None:
        raise RuntimeError("closed already")


def test_a_failing_logger_costs_one_warning_and_never_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(module.LOGGERS, "tensorboard", Failing)
    metrics = Metrics(LoggerConfig(), LoggerContext(tmp_path, {}, "id"))
    for step in range(5):
        metrics.log(step, 0.0, {"loss": 1.0})
    metrics.close()
    assert len(records(tmp_path)) == 5
    assert caplog.text.count("the server is gone") == 1
    assert "closed already" not in caplog.text


def test_a_logger_that_fails_to_start_or_to_close_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(module.LOGGERS, "tensorboard", Failing)
    monkeypatch.setitem(module.LOGGERS, "wandb", lambda *_: 1 / 0)
    metrics = Metrics(LoggerConfig(use=["tensorboard", "wandb"]), LoggerContext(tmp_path, {}, "id"))
    metrics.log(0, 0.0, {"loss": 1.0})
    metrics.close()
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == 2
    assert "wandb" in warned[0]
    assert "tensorboard" in warned[1]
    assert len(records(tmp_path)) == 1


@pytest.fixture
def _no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.usefixtures("_no_key")
def test_wandb_without_a_key_goes_offline_and_says_so(cli: Cli) -> None:
    """A real W&B run: without a network or a key it leaves its file, ready to be uploaded later."""
    ended = cli("data=bundled", "trainer.steps=2", "logger=all", "logger.tags=[a,b]", "logger.name=first")
    assert ended.code == 0
    assert "offline" in ended.err
    assert "wandb sync" in ended.err
    (written,) = ended.folder.glob("wandb/offline-run-*/run-*.wandb")
    assert written.stat().st_size > 0
    assert list(ended.folder.glob("events.out.tfevents.*")), "logger=all is both"
    assert len(records(ended.folder)) == 2


class StubWandb(types.ModuleType):
    """Keeps what would be sent to W&B."""

    def __init__(self, refuse_online: bool) -> None:
        super().__init__("wandb")
        self.refuse_online = refuse_online
        self.inits: list[dict[str, Any]] = []
        self.logged: list[dict[str, Any]] = []
        self.defined: list[tuple[str, str | None]] = []
        self.finished = 0
        self.torn_down = 0
        self.errors = types.SimpleNamespace(
            CommError=type("CommError", (Exception,), {}), UsageError=type("UsageError", (Exception,), {})
        )
        self.Settings = lambda **fields: types.SimpleNamespace(**fields, sync_dir="somewhere")
        self.Html = lambda text, inject: ("html", text)

    def init(self, **fields: Any) -> "StubWandb":
        self.inits.append(fields)
        assert not sys.stdin.isatty(), "W&B must not be able to ask at the keyboard"
        if self.refuse_online and fields["mode"] == "online":
            raise self.errors.CommError("timed out\nsecond line")
        self.settings = types.SimpleNamespace(sync_dir="somewhere")
        self.url = "https://example.org/p/runs/1"
        return self

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.defined.append((name, step_metric))

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code
        self.finished += 1

    def teardown(self) -> None:
        self.torn_down += 1


def test_wandb_is_given_the_same_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = StubWandb(refuse_online=False)
    monkeypatch.setitem(sys.modules, "wandb", stub)
    for resumed_at in (None, 40):
        Metrics(LoggerConfig(use=["wandb"]), LoggerContext(tmp_path, {}, "abc", resumed_at)).close()
    found = [{name: init[name] for name in ("id", "resume", "allow_val_change")} for init in stub.inits]
    assert found == [
        {"id": "abc", "resume": None, "allow_val_change": False},
        {"id": "abc", "resume": "allow", "allow_val_change": True},
    ]


def test_what_wandb_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    stub = StubWandb(refuse_online=False)
    monkeypatch.setitem(sys.modules, "wandb", stub)
    cfg = LoggerConfig(use=["wandb"], project="p", group="g", name="n", tags=["t"])
    metrics = Metrics(cfg, LoggerContext(tmp_path, {"seed": 1}, "id"))
    metrics.log(5, 1.0, {"val/loss": 2.5})
    metrics.text(5, "sample", "<b>O, & so</b>")
    metrics.close()
    (init,) = stub.inits
    given = {name: init[name] for name in ("project", "group", "name", "tags", "mode", "config")}
    assert given == {"project": "p", "group": "g", "name": "n", "tags": ["t"], "mode": "online", "config": {"seed": 1}}
    assert stub.logged[0] == {"step": 5, "val/loss": 2.5}
    assert stub.logged[1]["sample"] == ("html", "<pre>&lt;b&gt;O, &amp; so&lt;/b&gt;</pre>")
    assert ("*", "step") in stub.defined
    assert "https://example.org/p/runs/1" in caplog.text
    assert (stub.finished, stub.exit_code) == (1, 0)


def test_jobs_of_a_sweep_are_a_group_of_wandb_named_and_finished_each(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = StubWandb(refuse_online=False)
    monkeypatch.setitem(sys.modules, "wandb", stub)
    sweep = ("-m", *FEW, "logger=wandb", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert cli(*sweep, "optim.lr=0.5,0.25", "seed=1,2", run_dir=False).code == 0
    assert [init["group"] for init in stub.inits] == ["sweep"] * 4
    assert [init["name"] for init in stub.inits] == [
        *("0 optim.lr=0.5 seed=1", "1 optim.lr=0.5 seed=2", "2 optim.lr=0.25 seed=1", "3 optim.lr=0.25 seed=2")
    ]
    assert len({init["id"] for init in stub.inits}) == 4
    assert stub.finished == 4
    told = [{name for record in stub.logged[first : first + 3] for name in record} for first in (0, 3, 6, 9)]
    assert {"val/loss", "final/val/loss", "sample", "step"} <= told[0]
    assert told == [told[0]] * 4, "the same of each"
    again = cli(*sweep, "logger.group=mine", "logger.name=own", "seed=5", run_dir=False)
    assert again.code == 0, again.err
    assert (stub.inits[-1]["group"], stub.inits[-1]["name"]) == ("mine", "own"), "what is typed goes first"


def test_the_step_axis_of_wandb_is_right_after_a_resume(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = StubWandb(refuse_online=False)
    monkeypatch.setitem(sys.modules, "wandb", stub)
    typed = ("data=bundled", "logger=wandb", "trainer.log_every=1", "trainer.checkpoint_every=2")
    ended = cli(*typed, "trainer.steps=3")
    cli(f"resume={ended.folder}", "trainer.steps=5", run_dir=False)
    first, again = ([init["id"], init["resume"]] for init in stub.inits)
    assert first == [again[0], None]
    assert again[1] == "allow"
    assert [record["step"] for record in stub.logged if "sample" not in record] == [0, 1, 2, 3, 3, 4, 5]
    assert stub.defined[-2:] == [("step", None), ("*", "step")], "an axis of our own, of which W&B drops nothing"


def test_wandb_is_told_of_a_run_that_did_not_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = StubWandb(refuse_online=False)
    monkeypatch.setitem(sys.modules, "wandb", stub)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    Metrics(LoggerConfig(use=["wandb"]), LoggerContext(tmp_path, {}, "id")).close(completed=False)
    assert stub.exit_code == 1
    assert stub.inits[0]["mode"] == "disabled", "what the environment says, where the config says nothing"


def test_wandb_that_cannot_be_reached_goes_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stub = StubWandb(refuse_online=True)
    monkeypatch.setitem(sys.modules, "wandb", stub)
    Metrics(LoggerConfig(use=["wandb"]), LoggerContext(tmp_path, {}, "id")).close()
    assert [init["mode"] for init in stub.inits] == ["online", "offline"]
    assert all(init["settings"].init_timeout <= 10 for init in stub.inits)
    assert stub.torn_down == 1
    assert "timed out" in caplog.text
    assert "second line" not in caplog.text
