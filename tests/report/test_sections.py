"""Tests of the parts of a report page: texts, failures, names and facts."""

import json
from pathlib import Path
from typing import Any

from bigramlm.report.gather import chart_fields, points_per_series, samples_of
from bigramlm.report.page import page
from bigramlm.report.results import RunTable
from bigramlm.report.sections import facts, heading, labels, sections, sweep_command, title, without_results
from bigramlm.runs.summary import RunSummary
from tests.helpers import run_with


def made(folder: Path, overrides: list[str], loss: float | None = None, text: str = "", **more: Any) -> RunSummary:
    """Return a run with these overrides, final loss and hash of its text."""
    summary = {"status": "failed" if loss is None else "completed", "overrides": overrides, **more}
    summary |= {} if loss is None else {"final": {"val/loss": loss}, "best": {"val/loss": loss}}
    run_with(folder, summary=summary | ({"data": {"name": "text", "sha256": text}} if text else {}))
    return RunSummary.read(folder)


def mixed(folder: Path) -> RunTable:
    """Return a table of runs on two texts and one that failed without a text."""
    return RunTable(
        [
            made(folder / "a", ["optim.lr=0.1", "seed=1", "sample.prompt=To be"], 1.0, "a" * 64),
            made(folder / "b", ["optim.lr=0.1", "seed=1", "model=gpt"], 3.0, "b" * 64),
            made(folder / "c", ["optim.lr=0.2", "seed=1", "model=gpt"], 2.0, "b" * 64, name="mine", note="why"),
            made(folder / "d", ["optim.lr=0.2", "seed=2", "sample.prompt=x y"], 2.5, "b" * 64),
            made(folder / "e", ["data.path=gone", "optim.lrr=1"], error="gone: there is no such file\nmore"),
        ]
    )


def test_runs_are_divided_by_text_and_compared_within_it(tmp_path: Path) -> None:
    table = mixed(tmp_path)
    found = sections(table)
    assert [[run.folder.name for run in part.table.rows] for part in found] == [["c", "d", "b"], ["a"]]
    assert [part.title for part in found] == ["text (bbbbbbbb)", "text (aaaaaaaa)"]
    assert [part.table.best and part.table.best.folder.name for part in found] == ["c", "a"]
    assert not any("different texts" in note for part in found for note in part.table.notes(failures=False))
    assert table.best is None, "there is no best run across texts"


def test_a_single_text_has_one_section_without_a_title(tmp_path: Path) -> None:
    runs = [made(tmp_path / str(n), [f"seed={n}"], 2.0 + n, "a" * 64) for n in range(2)]
    (part,) = sections(table := RunTable(runs))
    assert (part.title, part.table) == ("", table)


def test_failed_runs_are_folded_away(tmp_path: Path) -> None:
    table = mixed(tmp_path)
    (failed,) = found = without_results(table, sections(table))
    assert (failed["error"], failed["status"]) == ("gone: there is no such file", "failed")
    assert failed["command"].endswith("train.py data.path=gone optim.lrr=1")
    assert heading(found) == "Failed (1)"
    before, _, folded = page(table).partition('<details class="failed">')
    assert "there is no such file" not in before
    assert "there is no such file" in folded
    assert "optim.lrr" not in before, "it is no column of the other runs"


def test_charts_of_fields_are_for_numbers_and_choices_only(tmp_path: Path) -> None:
    runs = [
        made(
            tmp_path / str(n),
            [
                *(f"optim.lr={0.1 ** (n + 1):g}", f"model=m{n % 3}", f"sample.prompt=p{n % 3}", f"data.path=d{n % 3}"),
                *(
                    f"optim.schedule=s{n}",
                    f"model.source=x{n % 3}",
                    "trainer.steps=5",
                    f"model.norm={'rms,layer'[n % 2 :]}",
                ),
                *(["model.n_head=2"] if n else []),
            ],
            2.0,
            "a" * 64,
        )
        for n in range(9)
    ]
    runs.append(made(tmp_path / "failed", ["trainer.steps=7"], text="a" * 64))
    table = RunTable(runs)
    assert {"sample.prompt", "data.path", "trainer.steps"} <= set(table.fields)
    found = {field["name"]: field["numeric"] for field in chart_fields(table)}
    assert found == {"optim.lr": True, "model": False}


def test_names_are_different_and_those_that_were_given(tmp_path: Path) -> None:
    runs = [
        made(tmp_path / "a", ["optim.lr=0.1"], 2.0),
        made(tmp_path / "b", ["optim.lr=0.1"], 3.0),
        made(tmp_path / "c", ["optim.lr=0.2"], 4.0, name="mine", note="why <b>"),
    ]
    table = RunTable(runs)
    assert labels(table) == ["lr=0.1 (a)", "lr=0.1 (b)", "mine"]
    text = page(table)
    values = json.loads(text.rpartition('id="data">')[2].partition("</script>")[0])
    assert [run["label"] for run in values["sections"][0]["runs"]] == labels(table)
    assert '<button type="button" class="pick">mine</button>' in text
    assert "why &lt;b&gt;" in text


def test_facts_at_the_top(tmp_path: Path) -> None:
    more: dict[str, Any] = {"host": "h", "device": "cpu", "git": {"commit": "a" * 40, "dirty": True}}
    times = ("2026-11-27T10:00:00", "2026-11-27T11:30:00")
    runs = [
        made(tmp_path / str(n), ["note=to be"], 2.0, started=start, seconds=1000 * (n + 1), note="to be", **more)
        for n, start in enumerate(times)
    ]
    one, both = dict(facts(RunTable(runs[:1]))), dict(facts(RunTable(runs)))
    assert (one["Note"], one["Duration"], one["Machine"]) == ("to be", "16 min 40 s", "h, cpu")
    assert one["Code"] == "aaaaaaaaaa with uncommitted changes"
    assert (both["Started"], both["Total duration"]) == ("2026-11-27 10:00 to 11:30", "50 min 0 s")
    assert title(RunTable(runs)) == "2 runs of 2026-11-27"
    assert "train.py &#39;note=to be&#39;</code>" in page(RunTable(runs[:1]))


def test_the_command_of_a_sweep_lists_its_values(tmp_path: Path) -> None:
    grid = [("0.1", "1"), ("0.1", "2"), ("0.2", "1"), ("0.2", "2")]
    runs = [
        made(tmp_path / str(n), ["data=bundled", f"optim.lr={a}", f"seed={b}"], 2.0) for n, (a, b) in enumerate(grid)
    ]
    table = RunTable(runs, ["optim.lr", "seed"])
    assert sweep_command(table) == "", "runs that are no jobs"
    table.kind = "job"
    assert sweep_command(table).endswith("train.py -m data=bundled optim.lr=0.1,0.2 seed=1,2")
    assert title(table) == "Sweep of optim.lr and seed"
    part = RunTable(runs[:3], ["optim.lr", "seed"])
    part.kind = "job"
    assert sweep_command(part) == "", "not all combinations"


def test_samples_of_several_steps_are_in_the_data(tmp_path: Path) -> None:
    lines = "".join(f"---- step {step}\nsample {step}\n" for step in range(100))
    many = run_with(tmp_path / "a", summary={"status": "completed"}, samples=lines)
    one = run_with(tmp_path / "b", summary={"status": "completed"}, samples="---- step 5\nalone\n")
    text = page(table := RunTable([many, one]))
    (section,) = json.loads(text.rpartition('id="data">')[2].partition("</script>")[0])["sections"]
    found = {run["name"]: run.get("samples") for run in section["runs"]}
    assert (found["a"][0], found["a"][-1]) == ([0, "sample 0"], [99, "sample 99"])
    assert len(found["a"]) == 40
    assert found["b"] is None, "nothing to slide"
    assert "sample 99</pre>" in text, "the last sample needs no JavaScript"
    assert 'class="switches steps"' in text
    assert len(samples_of(table.rows)) == 2


def test_series_and_samples_are_shorter_on_large_pages(tmp_path: Path) -> None:
    assert [points_per_series(n) for n in (1, 50, 2000, 10**6)] == [1000, 1000, 28, 20]
    run = run_with(tmp_path / "a", samples=f"---- step 1\n{'x' * 5000}\n")
    assert [len(samples_of([run] * n)[0][0][1]) for n in (1, 2000)] == [4002, 1502]
