"""Tests of a sweep's results: table, groups over seeds, verdict and notes."""

import json
import math
import random
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from bigramlm.cli import runs as runs_command
from bigramlm.report.results import RunTable
from bigramlm.report.statistics import Group, t_95, verdict
from bigramlm.runs.folder import read_summary
from bigramlm.runs.summary import RunSummary
from bigramlm.sweeps.plan import Job, Sweep
from bigramlm.sweeps.results import Results
from tests.helpers import Cli, Ended, assert_refused, table
from tests.sweeps.helpers import SHORT


def fake_results(folder: Path, *summaries: dict[str, Any], typed: Sequence[Sequence[str]] = ()) -> Results:
    """Return the results of a sweep with these summaries.

    typed: the overrides of each job; by default seed=0, seed=1, ...
    """
    sweep = Sweep(folder)
    for number, summary in enumerate(summaries):
        sweep.jobs[number] = Job(number, list(typed[number]) if typed else [f"seed={number}"])
        (folder / str(number)).mkdir(parents=True)
        (folder / str(number) / "summary.json").write_text(json.dumps(summary))
    sweep.fields = list(sweep.jobs[0].values)
    sweep.save()
    return Results(Sweep(folder))


DONE = {"status": "completed", "final": {"val/loss": 3.0, "val/bpc": 4.3}, "best": {"val/loss": 2.9}, "step": 20}


def test_sweep_ends_with_table_best_first(swept: Callable[..., Ended], folder: Path) -> None:
    ended = swept(*SHORT, "optim.lr=1e-3,1e-1", "seed=1,2")
    assert ended.code == 0, ended.err
    rows = table(folder)
    assert list(rows[0]) == [
        *("job", "optim.lr", "seed", "status", "val/loss", "best val/loss", "val/bpc", "n_params", "step"),
        *("tokens_per_second", "seconds", "folder", "error"),
    ]
    losses = [float(row["val/loss"]) for row in rows]
    assert losses == sorted(losses)
    for row in rows:
        summary = read_summary(folder / row["job"])
        assert summary is not None
        assert float(row["val/loss"]) == summary["final"]["val/loss"], "every digit"
        assert float(row["best val/loss"]) == summary["best"]["val/loss"]
        assert f"seed={row['seed']}" in summary["overrides"]
        assert f"optim.lr={row['optim.lr']}" in summary["overrides"]
        assert Path(row["folder"]) == folder / row["job"]
    page, shown = (folder / "results.md").read_text("utf-8"), ended.out
    for text in (page, shown):
        assert "4 jobs: 4 completed" in text
        for lr in ("0.1", "0.001"):
            of_lr = [float(row["val/loss"]) for row in rows if float(row["optim.lr"]) == float(lr)]
            (line,) = (line for line in text.splitlines() if f"optim.lr={lr} " in line and "ahead of" not in line)
            figures = [word for word in line.replace("|", " ").split() if not word.startswith("optim")]
            assert figures == [f"{statistics.fmean(of_lr):.4f}", f"{statistics.stdev(of_lr):.4f}", "2"]
        assert "optim.lr=0.1 is ahead of optim.lr=0.001" in text
    best = [line.split()[1] for line in shown.splitlines() if line.startswith("*")]
    assert best == [rows[0]["job"]]
    as_usual = shown.replace(str(folder), "outputs/sweeps/2026-11-24_14-15-02-334871")
    assert max(len(line) for line in as_usual.splitlines() if not line.startswith("HTML report: ")) <= 80, (
        "except for paths"
    )
    assert f"\nHTML report: python scripts/runs.py report {folder}\n" in shown


def test_single_seeds_are_noted(folder: Path) -> None:
    results = fake_results(
        folder, DONE, {**DONE, "final": {"val/loss": 2.0}}, typed=[["optim.lr=0.1"], ["optim.lr=0.2"]]
    )
    assert "which differences are due to chance" in " ".join(results.text().split())


def test_different_texts_are_noted(existing_sweep: Path) -> None:
    assert "texts" not in Results(Sweep(existing_sweep)).text()
    summary = json.loads((existing_sweep / "1" / "summary.json").read_text())
    summary["data"]["sha256"] = "another"
    (existing_sweep / "1" / "summary.json").write_text(json.dumps(summary))
    assert "2 different texts" in Results(Sweep(existing_sweep)).text()


def test_verdict_has_error_rates_of_welchs_test() -> None:
    """Equal groups have a winner in about 5% of cases, different groups nearly always."""
    draw = random.Random(0)

    def called(distance: float, std: float, n: int) -> float:
        found = 0
        for _ in range(2000):
            groups = [
                Group("a", [draw.gauss(0, 1) for _ in range(4)]),
                Group("b", [draw.gauss(distance, std) for _ in range(n)]),
            ]
            groups.sort(key=lambda group: group.mean)
            found += verdict(groups).endswith(": a winner.")
        return found / 2000

    assert 0.02 < called(0, 1, 4) < 0.07
    assert 0.02 < called(0, 3, 12) < 0.07
    assert called(5, 1, 4) > 0.95


def test_verdict_text() -> None:
    # The means are 1 and 2. Both variances are 1/6, so the spread is the square root of 1/6.
    a, b = Group("a", [0.5, 1.0, 1.0, 1.5]), Group("b", [1.5, 2.0, 2.0, 2.5])
    spread = math.sqrt(statistics.variance(a.losses))
    needed = 2.447 * math.sqrt(2 * spread**2 / 4) / spread  # 6 degrees of freedom
    assert verdict([a, b]) == (
        f"a is ahead of b by 1.0000 ({1 / spread:.1f} standard deviations over seeds; chance alone stays below "
        f"{needed:.1f} in 95% of cases): a winner."
    )
    near = Group("c", [loss + 0.1 for loss in a.losses])
    assert "inside the noise, no winner" in verdict([a, near])
    assert "only one seed" in verdict([a, Group("d", [9.0])])
    assert "makes no difference" in verdict([Group("e", [1.0, 1.0]), Group("f", [2.0, 2.0])])


def test_values_with_same_short_form_are_separate_groups(folder: Path) -> None:
    typed = [[f"optim.lr={lr}", f"seed={seed}"] for lr in ("0.01000001", "0.01000002") for seed in (1, 2)]
    losses = (2.0, 2.1, 2.2, 2.3)
    results = fake_results(folder, *({**DONE, "final": {"val/loss": loss}} for loss in losses), typed=typed)
    groups = [line for line in results.text().splitlines() if line.startswith("optim.lr=0.0100000")]
    assert len({line.split()[0] for line in groups}) == 2
    assert "  4" not in "".join(line[-3:] for line in groups)


def test_differing_field_gets_column_even_if_not_swept(swept: Callable[..., Ended], existing_sweep: Path) -> None:
    ended = swept(*SHORT, "seed=1,2", "optim.lr=0.1", "data.batch_size=64")
    rows = table(existing_sweep)
    assert {(row["data.batch_size"], row["optim.lr"], row["seed"]) for row in rows} == {
        *(("32", "0.001", "1"), ("32", "0.001", "2"), ("64", "0.1", "1"), ("64", "0.1", "2"))
    }, "jobs without the override show the value of their config"
    assert "optim.lr=0.1 data.batch_size=64" in ended.out
    assert "data.batch_size=32" in ended.out


def test_job_resumed_with_change_is_run_again(
    swept: Callable[..., Ended], cli: Cli, existing_sweep: Path, folder: Path
) -> None:
    assert cli(f"resume={existing_sweep / '0'}", "trainer.steps=30", run_dir=False).code == 0
    ended = swept(*SHORT, "seed=1,2")
    assert ended.code == 0, ended.err
    steps = {row["job"]: row["step"] for row in table(folder)}
    assert steps == {"0": "30", "1": "20", "2": "20"}


def test_wide_table_drops_least_important_columns(folder: Path) -> None:
    typed = [
        [f"optim.lr={lr}", f"data.batch_size={size}", f"optim.weight_decay={decay}"]
        for lr in ("1e-2", "1e-1")
        for size in (8, 16)
        for decay in ("0.01", "0.02")
    ]
    summary = {**DONE, "tokens_per_second": 123456.7, "seconds": 1.2, "n_params": 4225}
    results = fake_results(folder, *(summary for _ in typed), typed=typed)
    head, *_ = (line for line in results.text().splitlines() if "status" in line)
    assert len(head) <= 80
    assert "tok/s" not in head
    assert "val" in head.split()
    assert "tok/s" in results.markdown()


def test_models_of_equal_size_have_no_size_column(two_jobs: Ended) -> None:
    for text in (two_jobs.out, (two_jobs.folder / "results.md").read_text("utf-8")):
        assert "status" in text
        assert "params" not in text
        assert "sample" not in text


SAMPLES = {
    "the first line that is long enough": (
        "ROMEO:\nBut soft, what light is this?\nIt is the east of something.\n",
        "But",
    ),
    "else the longest line": ("a\nabcdef\nabc\n", "abcdef"),
    "of the last sample": (
        "of the first sample, a line\n---- step 9\nof the last one, another line\n",
        "of the last one",
    ),
    "without control characters": ("a line with \x1b[31m a colour in it\n", "a line with  [31m"),
    "nothing": ("", ""),
}


@pytest.mark.parametrize(("text", "shown"), SAMPLES.values(), ids=SAMPLES)
def test_sample_column(text: str, shown: str, folder: Path) -> None:
    done = {"status": "completed", "final": {"val/loss": 3.0, "val/bpc": 4.328}, "seconds": 1.0}
    results = fake_results(folder, {**done, "n_params": 10_000_000}, {**done, "n_params": 4225})
    for name in ("0", "1"):
        (results.folder / name / "samples.txt").write_text(f"---- step 5\n{text}", "utf-8")
    lines = results.text().splitlines()
    head = next(line for line in lines if "params" in line)
    assert head.split()[-1] == "sample"
    assert max(map(len, lines)) <= 80
    cell = next(line for line in lines if "10,000,000" in line)[head.index("sample") :]
    assert cell.startswith(shown)
    assert bool(cell) == bool(shown)
    assert "4.328" in results.markdown()


def test_verdict_with_unequal_spreads_and_group_sizes() -> None:
    """Welch's degrees of freedom are 2.0 here; the pooled test would have 5."""
    a, b = Group("a", [1.0, 1.01, 1.02, 1.03]), Group("b", [1.2, 1.6, 2.0])
    errors = (a.std**2 / 4, b.std**2 / 3)
    freedom = sum(errors) ** 2 / (errors[0] ** 2 / 3 + errors[1] ** 2 / 2)
    assert freedom == pytest.approx(2.0, abs=0.05)
    needed = t_95(freedom) * math.sqrt(sum(errors)) / math.sqrt((a.std**2 + b.std**2) / 2)
    assert f"stays below {needed:.1f} in 95% of cases): inside the noise" in verdict([a, b])


def test_rows_are_sorted_by_final_then_best_loss(folder: Path) -> None:
    results = fake_results(
        folder,
        {"status": "stopped", "best": {"val/loss": 1.0}, "error": "stopped by SIGINT"},
        {"status": "completed", "final": {"val/loss": 3.0}, "best": {"val/loss": 1.5}},
        {"status": "failed", "error": "early"},
        {"status": "completed", "final": {"val/loss": 2.0}, "best": {"val/loss": 1.9}},
        {"status": "pruned", "best": {"val/loss": 0.5}},
        {"status": "failed", "final": {"val/loss": 0.1}, "best": {"val/loss": 4.0}, "error": "late"},
    )
    assert [row.name for row in results.rows] == ["3", "1", "4", "0", "5", "2"]
    assert results.best is not None
    assert results.best.name == "3"
    assert "all  2.5000  0.7071      2" in results.text(), "only completed runs count"
    results.write()
    assert {row["job"]: row["error"] for row in table(folder) if row["error"]} == {"2": "early", "5": "late"}


def seeded(folder: Path, *runs_: tuple[str, str, float, str]) -> RunTable:
    """Return a table of completed runs.

    Each run is given by its learning rate, seed, final val loss and start.
    """
    entries = []
    for number, (lr, seed, loss, start) in enumerate(runs_):
        path = folder / str(number)
        path.mkdir(parents=True)
        done = {"status": "completed", "final": {"val/loss": loss}, "started": start}
        (path / "summary.json").write_text(json.dumps(done))
        entries.append(RunSummary.read(path, str(number), {"optim.lr": lr, "seed": seed}))
    return RunTable(entries)


def test_repeated_seed_counts_once_with_newest_run(folder: Path) -> None:
    outcomes = seeded(
        folder,
        *(("0.011", "1", 2.5, "2026-11-01"), ("0.011", "1", 2.7, "2026-11-03"), ("0.011", "1", 2.6, "2026-11-02")),
        *(("0.02", "1", 3.0, "2026-11-01"), ("0.02", "2", 3.2, "2026-11-01"), ("0.02", "2", 3.4, "2026-11-01")),
    )
    one, two = outcomes.groups()
    assert (one.losses, two.losses) == ([2.7], [3.0, 3.4])
    assert [row.name for row in one.rows] == ["1"]
    assert math.isnan(one.std)
    notes = outcomes.notes()
    assert "one of them has only one seed" in notes[0]
    assert "optim.lr=0.011: 1 seed, run 3 times; the newest run counts." in notes
    assert "optim.lr=0.02: 2 seeds, 3 runs; the newest run of each seed counts." in notes


def test_repeated_seed_is_noted_without_swept_seed(folder: Path) -> None:
    """Three runs each of two learning rates, all with seed 1, are not six samples."""
    outcomes = seeded(
        folder, *((lr, "1", loss, "") for lr, loss in (("0.011", 2.5), ("0.0108", 2.6)) for _ in range(3))
    )
    assert outcomes.groups() == []
    notes = " ".join(outcomes.notes())
    assert "optim.lr=0.011: 1 seed, run 3 times" in notes
    assert "optim.lr=0.0108: 1 seed, run 3 times" in notes
    assert "makes no difference" not in notes


def test_seeds_that_run_once_are_not_noted(folder: Path) -> None:
    outcomes = seeded(folder, *((lr, seed, 2.5, "") for lr in ("0.1", "0.2") for seed in "12"))
    assert not any("run" in note and "seed," in note for note in outcomes.notes())


def test_students_t() -> None:
    values = [t_95(n / 8) for n in range(8, 800)]
    assert values == sorted(values, reverse=True), "no jump at the end of the table"
    assert t_95(1) == 12.706
    assert t_95(1e9) == pytest.approx(1.960)
    assert t_95(3.95) == pytest.approx(2.790, abs=0.01), "between 3.182 and 2.776"
    assert t_95(60) == pytest.approx(2.000, abs=0.002)
    assert t_95(120) == pytest.approx(1.980, abs=0.002)


def test_long_table_is_cut_on_terminal_only(folder: Path) -> None:
    results = fake_results(
        folder,
        *(
            {"status": "completed", "final": {"val/loss": 2 + number / 1000}, "best": {"val/loss": 2.0}}
            for number in range(100)
        ),
    )
    results.write()
    assert "and 60 more" in results.text()
    assert len(table(folder)) == 100
    assert (folder / "results.md").read_text("utf-8").count("| completed |") == 100


def test_results_of_sweep_without_plan(cli: Cli, tool: Callable[..., Ended], folder: Path) -> None:
    """Other sweepers of Hydra's leave folders, but no plan."""
    for number, lr in enumerate(("0.1", "0.01")):
        cli(*SHORT, f"optim.lr={lr}", f"hydra.run.dir={folder / str(number)}", run_dir=False)
    ended = tool(runs_command.main, "results", str(folder))
    assert ended.code == 0, ended.err
    assert "2 jobs: 2 completed" in ended.out
    assert ended.out.splitlines()[2].split() == ["job", "optim.lr", "status", "val", "best", "step", "tok/s", "s"]


def test_results_command_takes_folder(existing_sweep: Path, tool: Callable[..., Ended], folder: Path) -> None:
    assert tool(runs_command.main, "results", str(folder)).code == 0, "this writes the files with the paths of the copy"
    before = (folder / "results.csv").read_text()
    for name in ("results.csv", "results.md"):
        (folder / name).unlink()
    ended = tool(runs_command.main, "results", str(folder), "--csv")
    assert ended.out == before == (folder / "results.csv").read_text()
    for where in (folder / "no", folder / "0" / "checkpoints"):
        ended = tool(runs_command.main, "results", str(where))
        assert_refused(ended, where)


def test_the_best_job_is_searched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of a sweep of 10,000 jobs would take minutes."""
    results, n_searches = fake_results(tmp_path, *[DONE] * 30), 0

    def count(_: Results) -> int:
        nonlocal n_searches
        n_searches += 1
        return 1

    monkeypatch.setattr(Results, "n_texts", property(count))
    assert results.markdown().count("| * |") <= 1
    assert results.text()
    assert n_searches < 10
