"""Tests of metrics, which are read back from each destination.

The tests read metrics.jsonl, use TensorBoard's own reader, and make a real W&B run that is offline.
"""

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bigramlm.logger import metrics as module
from bigramlm.logger.base import LoggerContext
from bigramlm.logger.config import LoggerConfig
from bigramlm.logger.metrics import Metrics
from tests.helpers import Cli, refuses

# Overrides of a very short run.
FEW = ("data=bundled", "trainer.steps=1", "trainer.eval_batches=1", "sample.max_new_tokens=5")


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]


def test_jsonl_has_one_line_per_record(tmp_path: Path) -> None:
    metrics = Metrics(LoggerConfig(use=[]), LoggerContext(tmp_path, {}, "id"))
    metrics.log(0, 0.5, {"train/loss": 4.25, "bad": float("nan")})
    assert records(tmp_path) == [{"step": 0, "seconds": 0.5, "train/loss": 4.25, "bad": None}], "written immediately"
    metrics.log(10, 1.0, {"train/loss": 3.0})
    metrics.close()
    assert [record["step"] for record in records(tmp_path)] == [0, 10]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_tensorboard_has_vital_signs_and_histograms(cli: Cli) -> None:
    words = ("data=bundled", "trainer.steps=40", "trainer.eval_every=20", "model=mlp", "model.n_hidden=16")
    ended = cli(*words, "trainer.vitals_every=10")
    assert ended.code == 0, ended.err
    events = EventAccumulator(str(ended.folder), size_guidance={"scalars": 0, "histograms": 0}).Reload()
    signs = {name for record in records(ended.folder) for name in record if name.startswith("vitals/")}
    assert {"vitals/hidden/dead", "vitals/hidden/update_ratio", "vitals/logits/max"} < signs
    assert signs <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("vitals/hidden/dead")] == [0, 10, 20, 30]
    sizes = {"embedding": 63 * 32, "hidden": 8 * 32 * 16, "head": 16 * 62}
    expected = {f"vitals/{layer}/weights" for layer in sizes} | {"vitals/hidden/activations"}
    assert set(events.Tags()["histograms"]) == expected
    for layer, size in sizes.items():
        found = events.Histograms(f"vitals/{layer}/weights")
        assert [event.step for event in found] == [0, 20], "at the steps of evaluations"
        assert found[0].histogram_value.num == size
    activations = events.Histograms("vitals/hidden/activations")[0].histogram_value
    assert (-1 <= activations.min < 0 < activations.max <= 1) is True


def test_a_logger_without_histograms_gets_the_metrics_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[dict[str, float]] = []

    class Plain:
        def __init__(self, *_: object) -> None: ...

        def log(self, step: int, metrics: dict[str, float]) -> None:
            received.append(metrics)

        def text(self, step: int, name: str, text: str) -> None: ...

        def close(self, *, completed: bool) -> None: ...

    monkeypatch.setitem(module.LOGGERS, "tensorboard", Plain)
    with Metrics(LoggerConfig(use=["tensorboard"]), LoggerContext(tmp_path, {}, "id")) as metrics:
        assert not metrics.draws_histograms
        metrics.histograms(0, {"weights": np.zeros(3)})
        metrics.log(0, 0.0, {"loss": 1.0})
    assert received == [{"loss": 1.0}]


def test_tensorboard_has_the_same_metrics_as_jsonl(cli: Cli) -> None:
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
        expected |= {f"Loss/{split}": line[f"{split}/loss"] for split in ("train", "val") if f"{split}/loss" in line}
        curves = {name: value for name, value in expected.items() if not name.startswith("final/")}
        assert found[line["step"]] == pytest.approx(curves, rel=1e-5)
    shown = events.Tensors("final losses/text_summary")[0].tensor_proto.string_val[0].decode()
    assert {name: float(value) for name, value in map(str.split, shown.splitlines())} == pytest.approx(
        {name[6:]: value for name, value in lines[-1].items() if name.startswith("final/")}, abs=1e-4
    )
    assert min(events.Tags()["scalars"]) == "Loss/train", "TensorBoard sorts charts by name"
    assert len({line["val/best_bigram"] for line in lines if "val/best_bigram" in line}) == 1, "a constant baseline"
    assert "sample/text_summary" in events.Tags()["tensors"]
    layout = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    assert b"^val/loss$" in layout
    assert b"^val/(best|ngram)_" in layout


def hparams(folder: Path) -> tuple[Any, list[Any]]:
    """Return the experiment and the rows that TensorBoard's HParams tab shows."""
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


def test_hparams_tab_has_one_row_per_job_and_no_extra_runs(cli: Cli, tmp_path: Path) -> None:
    sweep = ("-m", *FEW, f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert cli(*sweep, "optim.lr=0.5,0.25", "model=bigram,attention", run_dir=False).code == 0
    other = ("-m", *FEW, f"hydra.sweep.dir={tmp_path / 'other'}")
    assert cli(*other, "trainer.eval_batches=all,1", run_dir=False).code == 0
    experiment, rows = hparams(tmp_path)
    assert sorted(info.name for info in experiment.hparam_infos) == ["model", "optim.lr", "trainer.eval_batches"]
    (names,) = [[s.name for row in rows for s in row.sessions]]
    assert names == ["other/0", "other/1", "sweep/0", "sweep/1", "sweep/2", "sweep/3"]
    values = [{name: value.number_value or value.string_value for name, value in row.hparams.items()} for row in rows]
    assert values[:2] == [{"trainer.eval_batches": "all"}, {"trainer.eval_batches": 1.0}]
    assert [(row["optim.lr"], row["model"]) for row in values[2:]] == [
        *((0.5, "bigram"), (0.5, "attention"), (0.25, "bigram"), (0.25, "attention")),
    ]
    for row in rows:
        assert row.sessions[0].status == 1, "success"
        final = {value.name.tag: value.value for value in row.metric_values}
        folder = tmp_path / row.sessions[0].name
        last = records(folder)[-1]
        assert final["Loss/val"] == pytest.approx(last["val/loss"])
        assert sorted(final)[:2] == ["Loss/train", "Loss/val"], "the first columns"
        assert len(list(folder.glob("events.out.tfevents.*"))) == 1
        assert not [path for path in folder.iterdir() if path.is_dir() and path.name not in ("checkpoints", ".hydra")]


def test_hparams_of_a_job_include_fields_swept_by_other_commands(cli: Cli, tmp_path: Path) -> None:
    """Sweep two fields in one folder by two commands.

    The value of a field that is not among a job's overrides comes from the job's config, saved when the run begins.
    """
    shared = ("-m", *FEW, f"hydra.sweep.dir={tmp_path}")
    assert cli(*shared, "seed=1,2", run_dir=False).code == 0
    assert cli(*shared, "data.batch_size=8,16", run_dir=False).code == 0
    _, rows = hparams(tmp_path)
    values = [{name: value.number_value for name, value in row.hparams.items()} for row in rows]
    later = [{"seed": 1337.0, "data.batch_size": 8.0}, {"seed": 1337.0, "data.batch_size": 16.0}]
    assert values == [{"seed": 1.0}, {"seed": 2.0}, *later]


def test_a_run_without_a_sweep_has_no_hparams(cli: Cli) -> None:
    ended = cli("data=bundled", "trainer.steps=2")
    experiment, rows = hparams(ended.folder)
    assert (len(experiment.hparam_infos), len(rows)) == (0, 0)


def test_a_resumed_job_is_one_row_with_an_end(tmp_path: Path) -> None:
    folder = tmp_path / "sweep" / "3"
    folder.mkdir(parents=True)
    for resumed_at, completed in ((None, False), (2, True)):
        metrics = Metrics(LoggerConfig(), LoggerContext(folder, {}, "id", resumed_at, swept={"seed": "3"}))
        for step in range(resumed_at or 0, 4):
            metrics.log(step, 0.0, {"val/loss": 4.0 - step, **({"final/val/loss": 1.0} if step == 3 else {})})
        metrics.close(completed=completed)
        _, (row,) = hparams(tmp_path)
        assert row.sessions[0].status == int(completed), "unknown, then success"
    assert [(session.name, session.status) for session in row.sessions] == [("sweep/3", 1)]
    assert {value.name.tag: value.value for value in row.metric_values} == {"val/loss": 1.0, "Loss/val": 1.0}


def test_long_lines_are_wrapped_in_the_text_tab(tmp_path: Path) -> None:
    from tensorboard.plugins.text.text_plugin import text_array_to_html

    line = "  to be, " * 40 + "x" * 250
    with Metrics(LoggerConfig(), LoggerContext(tmp_path, {}, "id")) as metrics:
        metrics.text(3, "sample", f"a  short line\n\n{line}\n# end")
    events = EventAccumulator(str(tmp_path)).Reload()
    (markdown,) = events.Tensors("sample/text_summary")[0].tensor_proto.string_val
    html = text_array_to_html(np.array(markdown.decode()), enable_markdown=True)
    assert html.startswith("<pre><code>a  short line\n\n  to be,"), "spaces and empty lines are kept"
    shown = html.removeprefix("<pre><code>").removesuffix("\n</code></pre>").split("\n")
    assert max(map(len, shown)) == 100
    assert shown[-1] == "# end"
    assert "".join(shown[2:-1]) == line


def test_invalid_logger_fields_are_refused() -> None:
    with refuses("tensorboard", "wandb", field="logger.use", value="tensorbored"):
        LoggerConfig(use=["tensorbored"])
    with refuses("online", "offline", "disabled", field="logger.mode", value="on"):
        LoggerConfig(mode="on")


class FailingLogger:
    """A logger that fails at its third record and when it is closed."""

    def __init__(self, *_: object) -> None:
        self.n = 0

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.n += 1
        if self.n == 3:
            raise OSError("the server is gone")

    def text(self, step: int, name: str, text: str) -> None: ...

    def close(self, *, completed: bool) -> None:
        raise RuntimeError("closed already")


def test_a_failing_logger_costs_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(module.LOGGERS, "tensorboard", FailingLogger)
    metrics = Metrics(LoggerConfig(), LoggerContext(tmp_path, {}, "id"))
    for step in range(5):
        metrics.log(step, 0.0, {"loss": 1.0})
    metrics.close()
    assert len(records(tmp_path)) == 5
    assert caplog.text.count("the server is gone") == 1
    assert "closed already" not in caplog.text


def test_a_logger_that_fails_to_start_or_close_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(module.LOGGERS, "tensorboard", FailingLogger)
    monkeypatch.setitem(module.LOGGERS, "wandb", lambda *_: 1 / 0)
    metrics = Metrics(LoggerConfig(use=["tensorboard", "wandb"]), LoggerContext(tmp_path, {}, "id"))
    metrics.log(0, 0.0, {"loss": 1.0})
    metrics.close()
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 2
    assert "wandb" in warnings[0]
    assert "tensorboard" in warnings[1]
    assert len(records(tmp_path)) == 1


@pytest.fixture
def _no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.usefixtures("_no_key")
def test_wandb_without_a_key_goes_offline(cli: Cli) -> None:
    """Make a real W&B run without a key; its file can be uploaded later."""
    ended = cli("data=bundled", "trainer.steps=2", "logger=all", "logger.tags=[a,b]", "logger.name=first")
    assert ended.code == 0
    assert "offline" in ended.err
    assert "wandb sync" in ended.err
    (file,) = ended.folder.glob("wandb/offline-run-*/run-*.wandb")
    assert file.stat().st_size > 0
    assert list(ended.folder.glob("events.out.tfevents.*")), "logger=all also writes TensorBoard's events"
    assert len(records(ended.folder)) == 2


class StubWandb(types.ModuleType):
    """A stand-in for the wandb module that records all calls."""

    def __init__(self, refuse_online: bool) -> None:
        super().__init__("wandb")
        self.refuse_online = refuse_online
        self.inits: list[dict[str, Any]] = []
        self.logged: list[dict[str, Any]] = []
        self.defined: list[tuple[str, str | None]] = []
        self.finished = 0
        self.torn_down = 0
        self.errors = types.SimpleNamespace(
            **{name: type(name, (Exception,), {}) for name in ("Error", "CommError", "UsageError")}
        )
        shared = {"sync_dir": "somewhere", "update_from_env_vars": lambda variables: None}
        self.Settings = lambda **fields: types.SimpleNamespace(**fields, **shared)
        self.Html = lambda text, inject: ("html", text)

    def init(self, **fields: Any) -> "StubWandb":
        self.inits.append(fields)
        assert not sys.stdin.isatty(), "W&B must not be able to prompt for a key"
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


def test_wandb_resumes_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = StubWandb(refuse_online=False)
    monkeypatch.setitem(sys.modules, "wandb", stub)
    for resumed_at in (None, 40):
        Metrics(LoggerConfig(use=["wandb"]), LoggerContext(tmp_path, {}, "abc", resumed_at)).close()
    found = [{name: init[name] for name in ("id", "resume", "allow_val_change")} for init in stub.inits]
    assert found == [
        {"id": "abc", "resume": None, "allow_val_change": False},
        {"id": "abc", "resume": "allow", "allow_val_change": True},
    ]


def test_wandb_receives_config_metrics_and_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    stub = StubWandb(refuse_online=False)
    monkeypatch.setitem(sys.modules, "wandb", stub)
    cfg = LoggerConfig(use=["wandb"], project="p", group="g", name="n", tags=["t"])
    metrics = Metrics(cfg, LoggerContext(tmp_path, {"seed": 1}, "id"))
    metrics.log(5, 1.0, {"val/loss": 2.5})
    metrics.text(5, "sample", "<b>O, & so</b>\u202e")
    metrics.close()
    (init,) = stub.inits
    passed = {name: init[name] for name in ("project", "group", "name", "tags", "mode", "config")}
    assert passed == {"project": "p", "group": "g", "name": "n", "tags": ["t"], "mode": "online", "config": {"seed": 1}}
    assert stub.logged[0] == {"step": 5, "val/loss": 2.5}
    assert stub.logged[1]["sample"] == ("html", "<pre>&lt;b&gt;O, &amp; so&lt;/b&gt;\\u202e</pre>")
    assert ("*", "step") in stub.defined
    assert "https://example.org/p/runs/1" in caplog.text
    assert (stub.finished, stub.exit_code) == (1, 0)


def test_jobs_of_a_sweep_are_a_wandb_group(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = StubWandb(refuse_online=False)
    monkeypatch.setitem(sys.modules, "wandb", stub)
    sweep = ("-m", *FEW, "logger=wandb", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert cli(*sweep, "optim.lr=0.5,0.25", "seed=1,2", run_dir=False).code == 0
    assert [init["group"] for init in stub.inits] == ["sweep"] * 4
    assert [init["name"] for init in stub.inits] == [
        *("0 lr=0.5 seed=1", "1 lr=0.5 seed=2", "2 lr=0.25 seed=1", "3 lr=0.25 seed=2")
    ]
    assert len({init["id"] for init in stub.inits}) == 4
    assert stub.finished == 4
    names = [{name for record in stub.logged[first : first + 3] for name in record} for first in (0, 3, 6, 9)]
    assert {"val/loss", "final/val/loss", "sample", "step"} <= names[0]
    assert names == [names[0]] * 4, "the same metrics for each job"
    again = cli(*sweep, "logger.group=my_group", "logger.name=my_name", "seed=5", run_dir=False)
    assert again.code == 0, again.err
    assert (stub.inits[-1]["group"], stub.inits[-1]["name"]) == ("my_group", "my_name"), "overrides take precedence"


def test_wandb_has_a_step_axis_for_resumed_runs(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = StubWandb(refuse_online=False)
    monkeypatch.setitem(sys.modules, "wandb", stub)
    overrides = ("data=bundled", "logger=wandb", "trainer.log_every=1", "trainer.checkpoint_every=2")
    ended = cli(*overrides, "trainer.steps=3")
    cli(f"resume={ended.folder}", "trainer.steps=5", run_dir=False)
    first, again = ([init["id"], init["resume"]] for init in stub.inits)
    assert first == [again[0], None]
    assert again[1] == "allow"
    assert [record["step"] for record in stub.logged if "sample" not in record] == [0, 1, 2, 3, 3, 4, 5]
    assert stub.defined[-2:] == [("step", None), ("*", "step")], "a separate axis, of which W&B drops no record"


def test_wandb_reports_an_incomplete_run_as_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = StubWandb(refuse_online=False)
    monkeypatch.setitem(sys.modules, "wandb", stub)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    Metrics(LoggerConfig(use=["wandb"]), LoggerContext(tmp_path, {}, "id")).close(completed=False)
    assert stub.exit_code == 1
    assert stub.inits[0]["mode"] == "disabled", "WANDB_MODE is the default mode"


def test_wandb_without_a_network_goes_offline(
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
