"""Tests of the report: its data, the command and the escaping of all texts."""

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bigramlm.cli import runs as runs_command
from bigramlm.dev.bench.report import write_synthetic_sweep
from bigramlm.report.differences import differences
from bigramlm.report.gather import data, is_geometric, read_curves, references, thinned, tokens_per_step
from bigramlm.report.page import page, write
from bigramlm.report.results import RunTable, csv_cell, markdown_table, markdown_text
from bigramlm.runs import find as runs
from bigramlm.runs.summary import RunSummary
from bigramlm.sweeps.plan import Sweep
from bigramlm.sweeps.results import Results
from tests.helpers import FILES, HOSTILE, Cli, assert_refused, run_with


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a synthetic sweep: ten learning rates, four block sizes, two seeds."""
    folder = tmp_path_factory.mktemp("sweeps") / "made-up"
    folder.mkdir()
    write_synthetic_sweep(folder, records=20, seeds=2)
    return folder


def test_thinned_series_keeps_ends_and_outliers() -> None:
    losses = [2.0] * 10_000
    losses[4321], losses[7000], losses[0], losses[-1] = 9.0, 0.5, 3.0, 1.0
    series = {"step": [float(n) for n in range(10_000)], "seconds": [n / 10 for n in range(10_000)], "value": losses}
    kept = thinned(series, 100)
    assert len(kept["step"]) <= 100
    points = dict(zip(kept["step"], kept["value"], strict=True))
    assert {step: points.get(step) for step in (0, 4321, 7000, 9999)} == {0: 3.0, 4321: 9.0, 7000: 0.5, 9999: 1.0}
    assert kept["step"] == sorted(kept["step"])
    assert kept["seconds"] == [step / 10 for step in kept["step"]]
    assert thinned(series, 10_000) is series


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1e-3, 1e-2, 1e-1], True),
        ([8, 16, 32, 64], True),
        ([1e-3, 3e-3, 1e-2, 3e-2], True),
        ([1, 2, 3], False),
        ([0.1, 0.2, 0.3, 0.4], False),
        ([8, 16], False),
        ([0.01, 0.1], True),
        ([0, 0.1, 1], False),
        ([-1, 1, 10], False),
        ([5], False),
        ([0.01] * 9, False),
    ],
)
def test_field_swept_by_factors_has_logarithmic_axis(values: list[float], expected: bool) -> None:
    assert is_geometric(values) is expected


def test_log_field_of_search_has_logarithmic_axis_for_any_values(sweep: Path) -> None:
    entries = [RunSummary.read(sweep / "0", str(lr), {"optim.lr": lr}) for lr in ("0.1", "0.2", "0.3")]
    outcomes = RunTable(entries)
    curves = [read_curves(run) for run in outcomes.rows]
    for fields, log in (([], False), (["optim.lr"], True)):
        (field,) = data(outcomes, curves, fields)["fields"]
        assert field == {"name": "optim.lr", "numeric": True, "log": log}


def test_incomplete_runs_are_read(tmp_path: Path) -> None:
    records = [
        {"step": 0, "seconds": 0.0, "val/loss": 4.0, "train/batch_loss": 4.1, "val/best_bigram": 2.5},
        {"step": 10, "seconds": 1.0, "train/batch_loss": None, "val/loss": None},
        {"step": 20, "seconds": 2.0, "val/loss": 3.0, "val/best_bigram": 2.5},
    ]
    metrics = "\n".join([*map(json.dumps, records), '{"step": 30, "val/l'])
    run = run_with(
        tmp_path / "a",
        config="data: {batch_size: 4, block_size: 8}\ntrainer: {grad_accumulation: 2}",
        metrics=metrics,
        summary={"status": "stopped"},
        samples="---- step 10\nearly\n---- step 20\n\nlate\n",
    )
    curves = read_curves(run)
    assert curves.series["val"] == {"step": [0, 20], "seconds": [0.0, 2.0], "value": [4.0, 3.0]}
    assert curves.series["batch"]["value"] == [4.1], "values that are not finite are null in JSON"
    assert (curves.references, tokens_per_step(run), run.sample) == ({"val/best_bigram": 2.5}, 64, "\nlate")
    bare = run_with(tmp_path / "b")
    assert (bare.status, bare.config, tokens_per_step(bare), bare.sample) == ("pending", {}, None, None)
    broken = run_with(tmp_path / "c", config="{", summary="[]", metrics="no")
    assert (broken.config, read_curves(broken).series["val"]["step"]) == ({}, [])
    page(RunTable([RunSummary.read(tmp_path / name, name, {}) for name in "abc"]), title="incomplete runs")


@pytest.mark.parametrize(
    "damaged",
    [
        {"summary": {"status": "completed", "data": None, "versions": None, "git": 5, "final": [], "overrides": "x"}},
        {"summary": {"status": "completed", "resumed": [None, {"overrides": None}], "final": {"val/loss": "low"}}},
        {"summary": {"status": "completed", "step": float("nan"), "n_params": float("inf")}},
        {"metrics": {"step": 1, "seconds": "x", "val/loss": 2.0}},
        {"metrics": '{"step": 1, "val/best_bigram": NaN, "val/loss": Infinity}\n{"step": 2, "val/ngram_2": "x"}'},
        {"summary": {"status": "completed", "overrides": ["sample.prompt=\ud800"]}, "samples": "---- step 1\n\ud83d"},
    ],
)
def test_page_of_damaged_folder(tmp_path: Path, damaged: dict[str, object]) -> None:
    files = {name: json.dumps(content) if isinstance(content, dict) else content for name, content in damaged.items()}
    (tmp_path / "run").mkdir()
    for name, content in files.items():
        (tmp_path / "run" / FILES[name]).write_bytes(str(content).encode("utf-8", "surrogatepass"))
    entries = [
        RunSummary.read(tmp_path / "run", "\udcff", {"a": "\udcff"}),
        RunSummary.read(tmp_path / "none", "none", {}),
    ]
    write(RunTable(entries), tmp_path / "report.html", title="\udcff")
    assert "</html>" in (tmp_path / "report.html").read_text("utf-8")


@pytest.mark.parametrize("overrides", [None, "x", [None, 5]])
def test_report_command_on_damaged_summary(tmp_path: Path, tool: Cli, overrides: object) -> None:
    run_with(tmp_path / "run", summary={"status": "completed", "overrides": overrides})
    done = tool(runs_command.main, "report", str(tmp_path / "run"))
    assert (done.code, done.out.splitlines()[0]) == (0, "1 run: 1 completed")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no folders with such names")
def test_the_name_of_a_folder_reverses_no_line(tmp_path: Path) -> None:
    run = run_with(tmp_path / "a\x1b\u202eb", summary={"status": "completed"})
    shown = page(RunTable([run]), title="title")
    assert "\u202e" not in shown
    assert "a\\x1b\\u202eb" in shown


def test_unreadable_metrics_give_no_curve(tmp_path: Path) -> None:
    (tmp_path / "run" / "metrics.jsonl").mkdir(parents=True)
    assert read_curves(RunSummary.read(tmp_path / "run")).series["val"]["value"] == []


def test_equal_values_are_equal_in_any_notation(tmp_path: Path) -> None:
    """A value set for one run and equal to the default of another is no difference."""
    config = "device: {compile: false}\noptim: {grad_clip: null, weight_decay: 0.0, lr: 0.01}\ntrainer: {steps: 3}"
    for name in "ab":
        run_with(tmp_path / name, config=config)
    typed = {
        "device.compile": "false",
        "optim.grad_clip": "null",
        "optim.weight_decay": "0",
        "optim.lr": "1e-2",
        "trainer.steps": "4",
        "logger": "none",
    }
    outcomes = RunTable([RunSummary.read(tmp_path / "a", "a", typed), RunSummary.read(tmp_path / "b", "b", {})])
    assert outcomes.fields == ["trainer.steps"]
    assert {row.name: row.values["trainer.steps"] for row in outcomes.rows} == {"a": "4", "b": "3"}


def test_resumed_run_has_latest_values(tmp_path: Path) -> None:
    resumed = [{"step": 3, "overrides": ["resume=x", "trainer.steps=5"]}, {"step": 5, "overrides": ["trainer.steps=9"]}]
    run_with(tmp_path / "a", summary={"status": "completed", "resumed": resumed})
    run_with(tmp_path / "b", summary={"status": "completed"})
    outcomes = RunTable([RunSummary.read(tmp_path / name, name, {"trainer.steps": "3"}) for name in "ab"])
    assert outcomes.fields == ["trainer.steps"]
    assert {row.name: row.values["trainer.steps"] for row in outcomes.rows} == {"a": "9", "b": "3"}


def test_no_run_is_best_without_comparable_losses(tmp_path: Path) -> None:
    for name, sha, loss in (("a", "0", 2.0), ("b", "1", 1.0), ("c", "1", float("nan"))):
        run_with(
            tmp_path / name,
            summary={
                "status": "completed",
                "data": {"sha256": sha},
                "final": {"val/loss": loss},
                "git": {"dirty": True},
            },
        )
    both = RunTable([RunSummary.read(tmp_path / name, name, {"data": name}) for name in "ab"])
    assert both.best is None
    assert any("Not comparable: these runs were trained on 2 different texts." in note for note in both.notes())
    text = page(both, title="t")
    assert "best: " not in text
    assert "Not comparable" not in text, "each text has its own section instead"
    assert "there were uncommitted changes, which are not recorded" in text
    same = RunTable([RunSummary.read(tmp_path / name, name, {"seed": name}) for name in "cb"])
    assert same.best is not None
    assert same.best.name == "b", "not the run whose loss is nan"


def test_runs_share_reference_lines(tmp_path: Path) -> None:
    runs_ = [
        run_with(tmp_path / str(n), metrics={"step": 0, "val/best_bigram": bigram, "val/ngram_2": 2.25})
        for n, bigram in enumerate((2.4801, 2.4802, 2.6))
    ]
    assert references([read_curves(run) for run in runs_]) == [
        {"split": "val", "name": "2-gram", "loss": 2.25, "runs": [0, 1, 2]},
        {"split": "val", "name": "best bigram", "loss": 2.48, "runs": [0, 1]},
        {"split": "val", "name": "best bigram", "loss": 2.6, "runs": [2]},
    ]


def test_differences_in_config_text_and_code(tmp_path: Path) -> None:
    runs_ = [
        run_with(
            tmp_path / str(n),
            config=f"optim: {{lr: {lr}, name: adamw}}\npreflight: true\nsample: {{prompt: null}}",
            summary={
                "data": {"sha256": sha},
                "git": {"commit": "abc", "dirty": n == 2},
                "versions": {"torch": "2.13.0"},
            },
        )
        for n, (lr, sha) in enumerate(((0.1, "f" * 64), (0.01, "f" * 64), (0.1, "0" * 64)))
    ]
    found = {difference.field: difference for difference in differences(runs_)}
    assert set(found) == {"optim.lr", "text", "code"}
    assert found["optim.lr"].values == ["0.1", "0.01", "0.1"]
    assert found["optim.lr"].counts == [("0.01", 1), ("0.1", 2)], "numbers are sorted by size"
    assert found["text"].counts == [("f" * 12, 2), ("0" * 12, 1)]
    assert found["code"].values == ["abc", "abc", "abc with changes"]


def test_data_follows_table_order_and_groups_seeds(sweep: Path) -> None:
    outcomes = Results(Sweep(sweep))
    values = data(outcomes, [read_curves(run) for run in outcomes.rows], [])
    finals = [run["final"] for run in values["runs"]]
    assert finals == sorted(finals)
    assert {field["name"]: field["log"] for field in values["fields"]} == {
        "optim.lr": True,
        "data.block_size": True,
        "seed": False,
    }
    assert len(values["groups"]) == 40
    for group in values["groups"]:
        members = [values["runs"][at] for at in group["runs"]]
        assert len({(run["values"]["optim.lr"], run["values"]["data.block_size"]) for run in members}) == 1
        assert group["mean"] == pytest.approx(sum(run["final"] for run in members) / len(members), rel=1e-5)
    assert values["runs"][0]["tokensPerStep"] == 32 * int(values["runs"][0]["values"]["data.block_size"])


class Elements(HTMLParser):
    """The elements of a page that could run scripts or fetch files."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.scripts = self.images = 0
        self.handlers: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.images += tag in ("img", "iframe", "object", "link", "base")
        self.handlers += [name for name, _ in attributes if name.startswith("on")]
        self.addresses += [str(value) for name, value in attributes if name in ("src", "href", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_hostile_texts_are_escaped(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_with(
        folder,
        config=json.dumps({"sample": {"prompt": HOSTILE}, "data": {"path": HOSTILE}}),
        summary={
            "status": "failed",
            "error": HOSTILE,
            "overrides": [f"sample.prompt={HOSTILE}"],
            "git": {"commit": HOSTILE},
        },
        samples=f"---- step 1\n{HOSTILE}\n",
    )
    entries = [
        RunSummary.read(folder, HOSTILE, {HOSTILE: HOSTILE}, HOSTILE),
        RunSummary.read(tmp_path / "none", "other", {HOSTILE: "1"}),
    ]
    found = Elements(page(RunTable(entries, [HOSTILE]), title=HOSTILE))
    assert (found.scripts, found.images, found.handlers, found.addresses) == (3, 0, [], [])
    assert found.text.count("<img src=x onerror=hacked=1>") >= 8, "title, head, table, sample, prompt, differences"


def test_page_is_self_contained_and_has_policy(sweep: Path) -> None:
    text = page(Results(Sweep(sweep)), title="A sweep")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; script-src 'sha256-")
    assert policy[1].count("sha256-") == 2
    assert "unsafe-inline'; img" in policy[1], "inline styles only"
    assert "script-src 'unsafe-inline'" not in policy[1]
    assert not re.search(r"<(link|img|iframe|script src)", text[: text.index("plotly.js v")])


def test_report_of_run_sweep_or_several(
    sweep: Path, tool: Cli, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = tmp_path / "outputs"
    for module in (runs, runs_command):
        monkeypatch.setattr(module, "outputs", lambda: outputs)
    done = tool(runs_command.main, "report", str(sweep))
    assert done.code == 0, done.err
    assert done.out.splitlines()[0] == "80 jobs: 80 completed"
    assert re.fullmatch(r"Report: .*/made-up/report.html \(\d\.\d MB\)", done.out.splitlines()[1])
    assert "<title>Sweep of optim.lr, data.block_size and seed</title>" in (sweep / "report.html").read_text("utf-8")

    folder = outputs / "runs" / "day" / "time"
    assert cli("data=bundled", "trainer.steps=4", "logger=none", f"hydra.run.dir={folder}", run_dir=False).code == 0
    alone = tool(runs_command.main, "report", "latest")
    assert alone.out.startswith("1 run: 1 completed\n")
    assert "<title>data=bundled steps=4</title>" in (folder / "report.html").read_text("utf-8")
    assert tool(runs_command.main, "report", "latest").code == 0, "it overwrites its own page"

    one = tool(runs_command.main, "report", str(sweep / "3"))
    assert one.out.startswith("1 run: 1 completed\n"), "the other jobs of the sweep are left out"
    assert (sweep / "3" / "report.html").exists()

    both = tool(runs_command.main, "report", "day/time", str(sweep), "day", "-o", str(tmp_path / "both.html"))
    assert both.out.startswith("81 runs: 81 completed\n"), "each run once"
    text = (tmp_path / "both.html").read_text("utf-8")
    assert "made-up/79" in text
    assert "day/time" in text


def test_report_of_latest_job_covers_its_sweep(
    tool: Cli, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (runs, runs_command):
        monkeypatch.setattr(module, "outputs", lambda: tmp_path)
    folder = tmp_path / "sweeps" / "new"
    typed = ("-m", "data=bundled", "trainer.steps=2", "logger=none", f"hydra.sweep.dir={folder}")
    cli(*typed, "seed=1,2", "data.block_size=8,99999999", run_dir=False)
    done = tool(runs_command.main, "report", "latest")
    assert done.out.startswith("4 jobs: 2 completed, 2 failed\n")
    text = (folder / "report.html").read_text("utf-8")
    header, _, failed = text.partition('<details class="failed">')
    assert "the train split" not in header, "the errors are folded away below the results"
    assert failed.count("data.block_size=99999999: the train split") == 2
    assert ">Failed (2)</h2>" in failed


def test_invalid_report_arguments_are_refused_in_one_line(sweep: Path, tool: Cli, tmp_path: Path) -> None:
    (tmp_path / "notes.html").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "gone.html")
    for arguments, named in (
        (["nowhere"], ["nowhere", "python scripts/runs.py list"]),
        ([str(tmp_path / "empty")], [tmp_path / "empty", "python scripts/runs.py list"]),
        ([str(tmp_path / "notes.html")], [tmp_path / "notes.html"]),
        ([str(sweep), "-o", str(tmp_path / "notes.html")], [tmp_path / "notes.html", "report"]),
        ([str(sweep), "-o", str(tmp_path / "empty")], [tmp_path / "empty", tmp_path / "empty" / "report.html"]),
        ([str(sweep), "-o", str(tmp_path / "no" / "page.html")], [f"{tmp_path / 'no'} does not exist"]),
        ([str(sweep), "-o", str(tmp_path / "link")], [tmp_path / "link", "link", tmp_path / "gone.html"]),
        ([str(sweep), "-o", str(tmp_path / ("x" * 300))], ["too long"]),
        ([str(sweep), "-o", os.devnull], [os.devnull, "is not a report"]),
        ([str(sweep), "-o", ""], ["''", "path"]),
        (["lastest"], ["lastest", "did you mean latest?"]),
    ):
        done = tool(runs_command.main, "report", *arguments)
        assert_refused(done, *named)
        assert done.err.count("\n") == 1, "no other output"
    assert (tmp_path / "notes.html").read_text() == "mine"
    assert (tmp_path / "link").is_symlink()


def test_a_report_is_written_to_the_target_of_a_link(tmp_path: Path) -> None:
    table = RunTable([run_with(tmp_path / "run", summary={"status": "completed"})])
    write(table, tmp_path / "page.html", title="first")
    (tmp_path / "link").symlink_to("page.html")
    write(table, tmp_path / "link", title="second")
    assert (tmp_path / "link").is_symlink()
    assert "<title>second</title>" in (tmp_path / "page.html").read_text("utf-8")


def test_values_are_one_line_in_every_table(tmp_path: Path) -> None:
    values = [f"a\n{HOSTILE}\x1b[31m{n}|" for n in range(2)]
    entries = [RunSummary.read(tmp_path / "none", "job", {"sample.prompt": value}) for value in values]
    table = RunTable(entries, ["sample.prompt"])
    assert len({run.values["sample.prompt"] for run in table.rows}) == 2
    cells = table.columns(table.rows)["sample.prompt"]
    assert all(cell.isprintable() for cell in cells)
    assert [cell[-2:] for cell in cells] == ["0|", "1|"], "the values differ in their ends"
    page_text = markdown_table(["prompt"], [[value] for value in values])
    assert len(page_text.splitlines()) == 4
    assert "<" not in page_text
    assert [line.count("|") for line in page_text.splitlines()] == [2] * 4, "each line is one cell"


def test_a_page_shows_marks_that_would_reverse_its_text(tmp_path: Path) -> None:
    mark = "\u202e"
    run_with(
        tmp_path / "run",
        config={"data": {"path": mark}, mark: 1},
        summary={"status": "failed", "error": mark, "overrides": [f"sample.prompt={mark}"], "host": mark},
        samples=f"---- step 1\n{mark}\n",
    )
    entries = [RunSummary.read(tmp_path / "run", mark), RunSummary.read(tmp_path / "none", "other")]
    text = page(RunTable(entries, ["sample.prompt"]), title=mark)
    text = text[: text.index("plotly.js v")]
    assert mark not in text
    assert text.count("\\u202e") > 5
    (section,) = json.loads(text.rpartition('id="data">')[2].partition("</script>")[0])["sections"]
    assert section["runs"][0]["name"] == "\\u202e"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((formula, f"'{formula}") for formula in ("=cmd|' /C calc'!A0", "@SUM(1)", "+1+cmd|x", "-1+cmd|x", "\uff1d1")),
        *((text, text) for text in ("-1e-3", "+2", "0.5", "", "a=b", "'=1")),
        *((number, number) for number in (-1.5, 3)),
        *(("\t=1", "\\t=1"), ("a\r\n=1", "a\\r\\n=1"), (None, None)),
    ],
)
def test_no_cell_is_a_formula(value: object, expected: object) -> None:
    assert csv_cell(value) == expected


def test_no_text_is_markup_in_markdown() -> None:
    assert markdown_text("<img src=x> ![a](b) `c` | &lt; \\|") == (
        "&#60;img src=x> !&#91;a&#93;(b) &#96;c&#96; &#124; &#38;lt; &#92;&#124;"
    )
    assert markdown_text("http://a.b WWW.a www.a step: 3") == "http&#58;//a.b WWW&#46;a www&#46;a step: 3"


def test_the_report_links_the_page_of_each_run_that_has_one(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    runs = [run_with(folder / name, summary={"status": "completed", "final": {"val/loss": 2.0}}) for name in "ab"]
    (folder / "b" / "look.html").write_text("", "utf-8")
    write(RunTable(runs), folder / "report.html")
    text = (folder / "report.html").read_text("utf-8")
    assert text.count("What it has learned") == 1
    assert '<a href="b/look.html">' in text
    write(RunTable(runs), tmp_path / "report.html")
    assert '<a href="a%20folder/b/look.html">' in (tmp_path / "report.html").read_text("utf-8")
