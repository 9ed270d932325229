"""Sweeps as a user runs them: what fails, what is killed, what is gone on with, and what the table says."""

import gc
import json
import math
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from omegaconf import OmegaConf

from bigramlm import launch, paths, runs, stop, sweep, train, trainer, workers
from bigramlm.data import shakespeare
from bigramlm.data import text as data_text
from bigramlm.errors import UserError
from bigramlm.model.bigram import Bigram
from bigramlm.results import Entry, Group, Outcomes, Results, t_95, verdict
from bigramlm.run import RunFolder, holder, read_summary
from bigramlm.sweep import Job, Sweep
from tests.helpers import Cli, Ended, came_to, composed, started, table, wait_for

SHORT = ("data=bundled", "logger=none", "trainer.steps=20", "trainer.eval_every=10", "trainer.log_every=5")
# Some tenths of a second a job, with a checkpoint now and then.
LONGER = (
    *("data=bundled", "logger=none", "trainer.steps=6000", "trainer.eval_every=500"),
    *("trainer.checkpoint_every=500", "trainer.log_every=500"),
)
TIMES = {"tokens_per_second", "seconds", "folder"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "sweep"


@pytest.fixture
def swept(cli: Cli, folder: Path) -> Callable[..., Ended]:
    """Runs `train -m` with these arguments in one folder: swept("seed=1,2") -> Ended."""
    return lambda *arguments: cli("-m", *arguments, f"hydra.sweep.dir={folder}", run_dir=False)


def statuses(folder: Path) -> dict[str, str]:
    return {row["job"]: row["status"] for row in table(folder)}


def state(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Every file below a folder, as it is."""
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def kill_when_it_came_to(job: Path, step: int) -> None:
    """Kill the process that trains in a folder, without a warning."""
    wait_for(lambda: came_to(job, step))
    pid = holder(job)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


# The table


def test_a_sweep_ends_with_a_table_the_best_first(swept: Callable[..., Ended], folder: Path) -> None:
    ended = swept(*SHORT, "optim.lr=1e-3,1e-1", "seed=1,2,3")
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
        assert "6 jobs: 6 completed" in text
        for lr in ("0.1", "0.001"):
            of_lr = [float(row["val/loss"]) for row in rows if float(row["optim.lr"]) == float(lr)]
            (line,) = (line for line in text.splitlines() if f"optim.lr={lr} " in line and "before" not in line)
            figures = [word for word in line.replace("|", " ").split() if not word.startswith("optim")]
            assert figures == [f"{statistics.fmean(of_lr):.4f}", f"{statistics.stdev(of_lr):.4f}", "3"]
        assert "optim.lr=0.1 before optim.lr=0.001" in text
    best = [line.split()[1] for line in shown.splitlines() if line.startswith("*")]
    assert best == [rows[0]["job"]]
    as_usual = shown.replace(str(folder), "outputs/sweeps/2026-11-24_14-15-02-334871")
    assert max(len(line) for line in as_usual.splitlines() if not line.startswith("A page: ")) <= 80, "but for a path"
    assert f"\nA page: python scripts/runs.py report {folder}\n" in shown


def test_each_job_is_a_complete_run_and_one_line(swept: Callable[..., Ended], folder: Path) -> None:
    ended = swept(*SHORT, "logger=tensorboard", "seed=1,2")
    for job in ("0", "1"):
        files = {path.name for path in (folder / job).iterdir()}
        assert files >= {"config.yaml", "metrics.jsonl", "summary.json", "checkpoints", "samples.txt", "train.log"}
        assert any(name.startswith("events.out") for name in files)
        assert "final losses" in (folder / job / "train.log").read_text("utf-8")
        assert "sweep: null" in (folder / job / "config.yaml").read_text("utf-8")
    lines = ended.err.splitlines()
    assert lines[0].startswith("sweep: 2 jobs, in ")
    assert [line.split(",")[0] for line in lines[1:]] == ["job 0: completed", "job 1: completed"]
    assert lines[2].endswith("(2 of 2): seed=2")
    assert "End of training" not in ended.out, "of one run; here there is a table"


def test_without_seeds_nothing_is_called_better_than_chance(swept: Callable[..., Ended]) -> None:
    assert "how much of the differences is chance" in " ".join(swept(*SHORT, "optim.lr=1e-3,1e-1").out.split())


def test_a_job_is_the_same_alone(swept: Callable[..., Ended], cli: Cli, folder: Path) -> None:
    """Nothing of the jobs before it is left: seeds, threads, determinism."""
    ended = swept(*SHORT, "device.threads=1,2", "device.deterministic=true,false", "seed=5")
    assert ended.code == 0, ended.err
    alone = cli(*SHORT, "device.threads=1", "seed=5")
    for job in range(4):
        records = [(folder / str(job) / "metrics.jsonl"), alone.folder / "metrics.jsonl"]
        one, other = ([json.loads(line) for line in path.read_text().splitlines()] for path in records)
        assert [r.get("val/loss") for r in one] == [r.get("val/loss") for r in other], job
        assert [r.get("train/batch_loss") for r in one] == [r.get("train/batch_loss") for r in other], job


def test_what_is_in_the_way_of_a_comparison_is_said(swept: Callable[..., Ended], folder: Path) -> None:
    swept(*SHORT, "seed=1,2")
    summary = json.loads((folder / "1" / "summary.json").read_text())
    summary["data"]["sha256"] = "another"
    (folder / "1" / "summary.json").write_text(json.dumps(summary))
    assert "2 different texts" in Results(Sweep(folder)).text()


def test_the_verdict_is_welchs_test() -> None:
    """Of two groups that are alike a winner is called in some 5% of cases, of two that are not nearly always."""
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


def test_the_verdict_in_numbers() -> None:
    # By hand: means 1 and 2, both variances 1/6, so the spread is their root.
    a, b = Group("a", [0.5, 1.0, 1.0, 1.5]), Group("b", [1.5, 2.0, 2.0, 2.5])
    spread = math.sqrt(statistics.variance(a.losses))
    needed = 2.447 * math.sqrt(2 * spread**2 / 4) / spread  # 6 degrees of freedom
    assert verdict([a, b]) == (
        f"a before b by 1.0000, {1 / spread:.1f} standard deviations over seeds, where {needed:.1f} would tell at 95%: "
        "a winner."
    )
    near = Group("c", [loss + 0.1 for loss in a.losses])
    assert "inside the noise, no winner" in verdict([a, near])
    assert "one seed only" in verdict([a, Group("d", [9.0])])
    assert "changes nothing" in verdict([Group("e", [1.0, 1.0]), Group("f", [2.0, 2.0])])


def test_values_that_look_alike_are_not_one_group(swept: Callable[..., Ended], folder: Path) -> None:
    ended = swept(*SHORT, "optim.lr=0.01000001,0.01000002", "seed=1,2")
    groups = [line for line in ended.out.splitlines() if line.startswith("optim.lr=0.0100000")]
    assert len({line.split()[0] for line in groups}) == 2
    assert "  4" not in "".join(line[-3:] for line in groups)


def test_what_differs_gets_a_column_also_where_it_was_not_swept(swept: Callable[..., Ended], folder: Path) -> None:
    swept(*SHORT, "optim.lr=1e-2,1e-1", "seed=1,2")
    ended = swept(*SHORT, "optim.lr=1e-2,1e-1", "seed=1,2", "data.batch_size=64")
    rows = table(folder)
    assert {(row["data.batch_size"], row["optim.lr"], row["seed"]) for row in rows} == {
        (size, lr, seed) for size in ("32", "64") for lr in ("0.01", "0.1") for seed in ("1", "2")
    }, "of those that it was not typed for, what their config says"
    assert "optim.lr=0.1 data.batch_size=64" in ended.out
    assert "data.batch_size=32" in ended.out


def test_what_is_asked_for_twice_runs_once(swept: Callable[..., Ended], folder: Path) -> None:
    ended = swept(*SHORT, "optim.lr=1e-2,0.01", "seed=1,1,2")
    assert ended.code == 0, ended.err
    assert sorted(row["seed"] for row in table(folder)) == ["1", "2"]
    assert "asked for twice, and run once" in ended.err


def test_a_job_that_was_resumed_with_a_change_is_none_of_the_sweeps(
    swept: Callable[..., Ended], cli: Cli, folder: Path
) -> None:
    swept(*SHORT, "seed=1,2")
    assert cli(f"resume={folder / '0'}", "trainer.steps=30", run_dir=False).code == 0
    ended = swept(*SHORT, "seed=1,2")
    assert ended.code == 0, ended.err
    steps = {row["job"]: row["step"] for row in table(folder)}
    assert steps == {"0": "30", "1": "20", "2": "20"}


def test_a_wide_table_leaves_out_what_is_least_needed(swept: Callable[..., Ended], folder: Path) -> None:
    ended = swept(*SHORT, "optim.lr=1e-2,1e-1", "seed=1", "data.batch_size=8,16", "optim.weight_decay=0.01,0.02")
    head, *_ = (line for line in ended.out.splitlines() if "status" in line)
    assert len(head) <= 80
    assert "tok/s" not in head
    assert "val" in head.split()
    assert "tok/s" in (folder / "results.md").read_text("utf-8")


def test_models_of_one_size_are_not_told_apart_by_it(swept: Callable[..., Ended], folder: Path) -> None:
    ended = swept(*SHORT, "seed=1,2")
    for text in (ended.out, (folder / "results.md").read_text("utf-8")):
        assert "status" in text
        assert "params" not in text
        assert "sample" not in text


SAMPLES = {
    "the first line that is long enough": (
        "ROMEO:\nBut soft, what light is this?\nIt is the east of something.\n",
        "But",
    ),
    "else the longest": ("a\nabcdef\nabc\n", "abcdef"),
    "of the last sample": (
        "of the first sample, a line\n---- step 9\nof the last one, another line\n",
        "of the last one",
    ),
    "what no terminal may get": ("a line with \x1b[31m a colour in it\n", "a line with  [31m"),
    "nothing": ("", ""),
}


@pytest.mark.parametrize(("text", "shown"), SAMPLES.values(), ids=SAMPLES)
def test_a_line_of_sample(text: str, shown: str, folder: Path) -> None:
    done = {"status": "completed", "final": {"val/loss": 3.0, "val/bpc": 4.328}, "seconds": 1.0}
    results = forged(folder, {**done, "n_params": 10_000_000}, {**done, "n_params": 4225})
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


def test_the_verdict_with_unequal_spreads_and_numbers() -> None:
    """By hand: Welch's degrees of freedom are 2.0 here, where as many as all losses would give 5."""
    a, b = Group("a", [1.0, 1.01, 1.02, 1.03]), Group("b", [1.2, 1.6, 2.0])
    errors = (a.std**2 / 4, b.std**2 / 3)
    freedom = sum(errors) ** 2 / (errors[0] ** 2 / 3 + errors[1] ** 2 / 2)
    assert freedom == pytest.approx(2.0, abs=0.05)
    needed = t_95(freedom) * math.sqrt(sum(errors)) / math.sqrt((a.std**2 + b.std**2) / 2)
    assert f"where {needed:.1f} would tell at 95%: inside the noise" in verdict([a, b])


def forged(folder: Path, *summaries: dict[str, Any]) -> Results:
    """The results of a sweep over seeds with these summaries."""
    made = Sweep(folder)
    made.fields = ["seed"]
    for number, summary in enumerate(summaries):
        made.jobs[number] = Job(number, [f"seed={number}"])
        (folder / str(number)).mkdir(parents=True)
        (folder / str(number) / "summary.json").write_text(json.dumps(summary))
    made.save()
    return Results(Sweep(folder))


def test_the_order_is_by_final_loss_then_by_the_best_so_far(folder: Path) -> None:
    results = forged(
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
    assert "all  2.5000  0.7071      2" in results.text(), "of the completed ones"
    results.write()
    assert {row["job"]: row["error"] for row in table(folder) if row["error"]} == {"2": "early", "5": "late"}


def seeded(folder: Path, *runs_: tuple[str, str, float, str]) -> Outcomes:
    """Completed runs, each with its learning rate, seed, final val loss and start."""
    entries = []
    for number, (lr, seed, loss, started) in enumerate(runs_):
        path = folder / str(number)
        path.mkdir(parents=True)
        done = {"status": "completed", "final": {"val/loss": loss}, "started": started}
        (path / "summary.json").write_text(json.dumps(done))
        entries.append(Entry(str(number), path, {"optim.lr": lr, "seed": seed}))
    return Outcomes(entries)


def test_a_seed_that_was_run_several_times_counts_once_by_its_newest_run(folder: Path) -> None:
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
    assert "one of them has one seed only" in notes[0]
    assert "optim.lr=0.011: 1 seed, run 3 times; the newest run counts." in notes
    assert "optim.lr=0.02: 2 seeds, 3 runs; of each seed the newest run counts." in notes


def test_one_seed_run_several_times_is_told_where_no_other_was_run(folder: Path) -> None:
    """Three runs of one learning rate and three of another, all with seed 1, are no six draws."""
    outcomes = seeded(
        folder, *((lr, "1", loss, "") for lr, loss in (("0.011", 2.5), ("0.0108", 2.6)) for _ in range(3))
    )
    assert outcomes.groups() == []
    notes = " ".join(outcomes.notes())
    assert "optim.lr=0.011: 1 seed, run 3 times" in notes
    assert "optim.lr=0.0108: 1 seed, run 3 times" in notes
    assert "changes nothing" not in notes


def test_each_seed_once_is_not_remarked_on(folder: Path) -> None:
    outcomes = seeded(folder, *((lr, seed, 2.5, "") for lr in ("0.1", "0.2") for seed in "12"))
    assert not any("run" in note and "seed," in note for note in outcomes.notes())


def test_a_folder_of_somebody_elses_is_not_taken(swept: Callable[..., Ended], folder: Path) -> None:
    (folder / "7").mkdir(parents=True)
    (folder / "7" / "mine.txt").write_text("mine")
    assert swept(*SHORT, "seed=1,2").code == 0
    assert sorted(row["job"] for row in table(folder)) == ["8", "9"]
    assert [path.name for path in (folder / "7").iterdir()] == ["mine.txt"]


def test_memory_is_given_back_when_nothing_holds_the_model(
    swept: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[weakref.ref[Bigram]] = []
    alive = []

    def forward(self: Bigram, *_: Any) -> Any:
        models.append(weakref.ref(self))
        raise RuntimeError("the model broke")

    def give_back() -> None:
        gc.collect()
        alive.append(any(model() is not None for model in models))

    monkeypatch.setattr(Bigram, "forward", forward)
    monkeypatch.setattr(train, "_give_back_memory", give_back)
    assert swept(*SHORT, "seed=1,2").code == 1
    assert alive == [False, False]


def test_the_latest_sweep_is_the_one_worked_on_last(
    cli: Cli, tool: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "outputs", lambda: tmp_path)
    for name in ("by-name-the-last", "2026"):
        cli("-m", *SHORT, "seed=1,2", f"hydra.sweep.dir={tmp_path / 'sweeps' / name}", run_dir=False)
    assert runs.find_sweep("latest").name == "2026"


def test_students_t() -> None:
    values = [t_95(n / 8) for n in range(8, 800)]
    assert values == sorted(values, reverse=True), "no jump where the table ends"
    assert t_95(1) == 12.706
    assert t_95(1e9) == pytest.approx(1.960)
    assert t_95(3.95) == pytest.approx(2.790, abs=0.01), "between 3.182 and 2.776"
    assert t_95(60) == pytest.approx(2.000, abs=0.002)
    assert t_95(120) == pytest.approx(1.980, abs=0.002)


def test_a_long_table_shows_the_best_and_is_whole_on_the_page(folder: Path) -> None:
    results = forged(
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


def test_results_of_a_sweep_that_is_not_ours(cli: Cli, tool: Callable[..., Ended], folder: Path) -> None:
    """As another of Hydra's sweepers leaves it: folders, and no plan."""
    for number, lr in enumerate(("0.1", "0.01")):
        cli(*SHORT, f"optim.lr={lr}", f"hydra.run.dir={folder / str(number)}", run_dir=False)
    ended = tool(runs.main, "results", str(folder))
    assert ended.code == 0, ended.err
    assert "2 jobs: 2 completed" in ended.out
    assert ended.out.splitlines()[2].split() == ["job", "optim.lr", "status", "val", "best", "step", "tok/s", "s"]


def test_results_are_found_by_name(swept: Callable[..., Ended], tool: Callable[..., Ended], folder: Path) -> None:
    swept(*SHORT, "seed=1,2")
    before = (folder / "results.csv").read_text()
    for name in ("results.csv", "results.md"):
        (folder / name).unlink()
    ended = tool(runs.main, "results", str(folder), "--csv")
    assert ended.out == before == (folder / "results.csv").read_text()
    for where in (folder / "no", folder / "0" / "checkpoints"):
        ended = tool(runs.main, "results", str(where))
        assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err


# Failures


def test_of_forty_jobs_ten_fail_and_thirty_complete(
    swept: Callable[..., Ended], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nan, late, broken, blocked = {3, 13, 23}, {5, 15}, {7, 27}, {9, 19, 39}
    run, forward, check = train.run, Bigram.forward, data_text.check_length

    def run_(cfg: Any, *arguments: Any, **keywords: Any) -> None:
        if cfg.seed == 0:
            for number in blocked:
                (folder / str(number)).write_text("mine")
        breaks = cfg.seed in broken

        def forward_(self: Bigram, idx: Any, targets: Any = None) -> Any:
            if breaks:
                raise RuntimeError("the model broke")
            return forward(self, idx, targets)

        with monkeypatch.context() as patch:
            patch.setattr(Bigram, "forward", forward_)
            if cfg.seed in nan:
                patch.setattr(trainer, "learning_rate", lambda *_: 1e38)
            if cfg.seed in late:
                patch.setattr(data_text, "check_length", lambda n, **words: check(n, **{**words, "block_size": 10**6}))
            run(cfg, *arguments, **keywords)

    monkeypatch.setattr(train, "run", run_)
    ended = swept(*SHORT, "optim.lr=0.1", "seed=range(0,40)")
    assert ended.code == 1
    assert "Traceback" not in ended.err + ended.out
    assert "40 jobs: 30 completed, 10 failed" in ended.out
    rows = {int(row["job"]): row for row in table(folder)}
    failed = nan | late | broken | blocked
    assert {number for number, row in rows.items() if row["status"] == "failed"} == failed
    assert len(rows) == 40
    said = [(nan, "learning rate"), (late, "block_size"), (broken, "the model broke"), (blocked, "cannot be made")]
    for numbers, words in said:
        for number in numbers:
            assert words in rows[number]["error"], number
            assert f"job {number} failed:" in ended.out
            assert f"job {number} failed: " in (folder / "results.md").read_text("utf-8")
            if numbers is not blocked:
                summary = read_summary(folder / str(number))
                assert summary is not None
                assert summary["status"] == "failed"
    for number in broken:
        assert "Traceback" in (folder / str(number) / "train.log").read_text("utf-8")
    assert all((folder / str(number)).read_text() == "mine" for number in blocked)

    # Mended, the same command completes it.
    monkeypatch.setattr(train, "run", run)
    for number in blocked:
        (folder / str(number)).unlink()
    done = state(folder / "0")
    ended = swept(*SHORT, "optim.lr=0.1", "seed=range(0,40)")
    assert ended.code == 0, ended.err
    assert "40 jobs: 40 completed" in ended.out
    assert state(folder / "0") == done


def test_a_config_that_cannot_be_is_refused_before_any_job_runs(swept: Callable[..., Ended], folder: Path) -> None:
    for arguments in (["optim.lr=0.1,-1,0.2"], ["seed=1,2", "optim.lr=interval(0,1)"], ["seed=1,2", "+optim.lrr=1"]):
        ended = swept(*SHORT, *arguments)
        assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
        assert not folder.exists()
    assert swept(*SHORT, "optim.lr=0.1,abc").code == 1, "Hydra's own refusal"
    assert not any(folder.glob("*/summary.json"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sweep=latest"], "add -m"),
        (["-m", "sweep=nowhere", "seed=1,2"], "no such folder"),
        (["-m", "sweep=.", "seed=1,2"], "holds no sweep"),
        (["-m", "sweep=x", "hydra.sweep.dir=y", "seed=1,2"], "contradicts"),
        (["-m", "hydra.sweep.subdir=y", "seed=1,2"], "numbered"),
        (["-m", "resume=latest", "seed=1,2"], "sweep="),
        (["-m", "seed=1,2", "hydra.sweeper.max_batch_size=0"], "max_batch_size=0"),
        (["-m", "seed=1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=0"], "n_jobs=0"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = cli(*SHORT, *arguments, *([] if "hydra.sweep.dir=y" in arguments else ["hydra.sweep.dir=s"]), run_dir=False)
    if any(argument.startswith("sweep=") for argument in arguments):
        ended = cli(*SHORT, *arguments, run_dir=False)
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
    assert words in ended.err


@pytest.mark.parametrize(
    ("choice", "extra"),
    [
        ("hydra/launcher=joblib", "joblib"),
        ("hydra/launcher=submitit_local", "submitit"),
        ("hydra/launcher=submitit_slurm", "submitit"),
        ("hydra/sweeper=optuna", "optuna"),
    ],
)
def test_an_extra_that_is_not_installed_is_named_with_its_command(
    swept: Callable[..., Ended], folder: Path, monkeypatch: pytest.MonkeyPatch, choice: str, extra: str
) -> None:
    monkeypatch.setattr(train, "_is_installed", lambda module: module == "hydra")
    ended = swept(*SHORT, "seed=1,2", choice)
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
    assert f'pip install -c constraints.txt -e ".[{extra}]"' in ended.err
    assert not folder.exists()


def test_what_help_needs_imports_none_of_the_extras() -> None:
    code = f"""
import sys
sys.argv = ["train.py", "--help"]
from bigramlm.train import main
main()
sys.exit(any(name in sys.modules for name in {("torch", "optuna", "joblib", "submitit", "sqlalchemy")}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "joblib" in done.stdout


# Composing


@pytest.mark.parametrize(
    "overrides",
    [
        ["seed=3", "optim.lr=0.3"],
        ["experiment=quick", "seed=3", "optim.lr=0.3", 'sample.prompt="a, b"'],
        ["data=text", 'data.path="x y"', "++data.batch_size=7", "logger=none", "hydra.sweep.subdir=9"],
        ["optim.lr=1e-3", "optim.lr=1e-4", "optim.betas=[0.1,0.2]", "logger.tags=[a,b]"],
    ],
)
def test_composing_fast_gives_what_hydra_composes(overrides: list[str]) -> None:
    train.set_up_hydra()
    with initialize_config_dir(str(paths.conf_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        assert loader is not None
        typed = ["hydra.mode=MULTIRUN", "hydra.sweep.dir=/somewhere", "seed=1,2"]
        master = loader.load_configuration("train", typed, run_mode=RunMode.MULTIRUN)
        composer = launch.Composer(loader)
        # The second comes from what is kept of the first.
        first = [word for word in overrides if not word.startswith(("seed=", "optim.lr="))]
        composer.load_sweep_config(master, first)
        for one in (overrides, overrides[::-1]):
            ours, hydras = (of.load_sweep_config(master, one) for of in (composer, loader))
            assert OmegaConf.to_container(ours) == OmegaConf.to_container(hydras)
            assert ours.hydra.sweep.dir == "/somewhere"


# Over anything


def test_groups_experiments_and_free_text_are_swept_too(
    swept: Callable[..., Ended], folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\noptim:\n  lr: 0.03\n")
    ended = swept(
        *("trainer.steps=20", "trainer.eval_every=10", "data=bundled", f"hydra.searchpath=[file://{tmp_path}]"),
        *("experiment=mine,quick", 'sample.prompt="To be, or","not, \'to\'"', "logger=none,tensorboard"),
    )
    assert ended.code == 0, ended.err
    found = {(row["experiment"], row["sample.prompt"], row["logger"]): row["job"] for row in table(folder)}
    assert len(found) == 8
    for (experiment, prompt, logger), job in found.items():
        run = runs.read_run(folder / job)
        assert run is not None
        assert run.get("optim.lr") == {"mine": 0.03, "quick": 0.01}[experiment]
        assert prompt in (folder / job / "samples.txt").read_text("utf-8")
        assert any((folder / job).glob("events.out*")) == (logger == "tensorboard")


def test_one_text_with_a_comma_is_no_sweep(swept: Callable[..., Ended], folder: Path) -> None:
    assert swept(*SHORT, "seed=1,2", "sample.prompt=To be, or not").code == 0
    assert len(table(folder)) == 2
    assert "To be, or not" in (folder / "0" / "samples.txt").read_text("utf-8")


# The text


def test_the_text_is_settled_once_for_the_whole_sweep(
    swept: Callable[..., Ended], cli: Cli, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that comes back in the middle must not give the other jobs another text."""
    tries = []

    def download(*_: Any) -> bytes:
        tries.append(1)
        if len(tries) == 1:
            raise OSError("no network")
        return b"First Citizen:\n" * 200

    (tmp_path / "home" / "sources").mkdir(parents=True)
    shutil.copy(paths.bundled_text(), tmp_path / "home" / "sources")
    monkeypatch.setattr(shakespeare, "download", download)
    monkeypatch.setattr(paths, "home", lambda: tmp_path / "home")
    plain = [argument for argument in SHORT if argument != "data=bundled"]
    ended = swept(*plain, "seed=1,2", "data.block_size=4,8", "data.timeout=1")
    assert ended.code == 0, ended.err
    assert len(tries) == 1
    assert ended.err.count("NOT SHAKESPEARE") == 1
    for job in range(4):
        config = runs.read_run(folder / str(job))
        assert config is not None
        assert (config.get("data.name"), config.get("data.block_size")) == ("bundled", 4 if job in (0, 2) else 8)
    # Gone on with, it stays at that.
    assert swept(*plain, "seed=1,2,3", "data.block_size=4,8", "data.timeout=1").code == 0
    assert len(tries) == 1
    assert len({row["status"] for row in table(folder)}) == 1
    assert len(table(folder)) == 6


# Going on


def test_going_on_runs_what_is_left_and_touches_nothing_else(
    swept: Callable[..., Ended], cli: Cli, folder: Path
) -> None:
    swept(*SHORT, "optim.lr=1e-3,1e-1", "seed=1,2")
    shutil.rmtree(folder / "2")  # optim.lr=1e-1 seed=1
    before = {job: state(folder / job) for job in ("0", "1", "3")}
    ended = cli("-m", *SHORT, "seed=3,2,1", "optim.lr=1e-3,1e-1", f"sweep={folder}", run_dir=False)
    assert ended.code == 0, ended.err
    assert "3 done already, 0 begun, 3 to begin" in ended.err
    assert {job: state(folder / job) for job in before} == before, "found by their config, whatever the order"
    jobs = {row["job"]: (row["optim.lr"], row["seed"]) for row in table(folder)}
    assert jobs["2"] == ("0.1", "1"), "in its old place"
    assert {jobs["4"], jobs["5"]} == {("0.001", "3"), ("0.1", "3")}
    assert "sweep=" not in (folder / "sweep.json").read_text()
    assert "sweep=" not in (folder / "4" / "summary.json").read_text()


def test_a_sweep_that_knows_none_of_the_jobs_says_so(swept: Callable[..., Ended], folder: Path) -> None:
    swept(*SHORT, "seed=1,2")
    assert "all are new in it" in swept(*SHORT, "seed=3,4").err
    shutil.rmtree(folder / "0")
    assert "all are new in it" not in swept(*SHORT, "seed=1").err, "it is in the plan, and has not begun"


def test_another_config_gets_a_folder_of_its_own(swept: Callable[..., Ended], folder: Path) -> None:
    swept(*SHORT, "seed=1,2")
    before = [state(folder / job) for job in ("0", "1")]
    ended = swept(*SHORT, "trainer.steps=30", "seed=1,2")
    assert ended.code == 0, ended.err
    assert [state(folder / job) for job in ("0", "1")] == before
    assert sorted((row["job"], row["step"]) for row in table(folder)) == [
        *(("0", "20"), ("1", "20"), ("2", "30"), ("3", "30")),
    ]


def test_a_job_whose_text_has_changed_runs_anew(
    swept: Callable[..., Ended], folder: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (*SHORT, "data=text", f"data.path={text_file}", "seed=1,2")
    swept(*arguments)
    before = state(folder / "0")
    assert swept(*arguments).code == 0
    assert len(table(folder)) == 2
    text_file.write_text(text_file.read_text("utf-8") + "Another line.\n", "utf-8")
    ended = swept(*arguments)
    assert ended.code == 0, ended.err
    assert len(table(folder)) == 4
    assert state(folder / "0") == before
    assert "2 different texts" in ended.out


def test_a_job_that_another_process_trains_in_is_left_to_it(swept: Callable[..., Ended], folder: Path) -> None:
    swept(*SHORT, "seed=1,2")
    summary = json.loads((folder / "0" / "summary.json").read_text())
    (folder / "0" / "summary.json").write_text(json.dumps({**summary, "status": "running"}))
    before = state(folder / "0")
    with RunFolder(folder / "0").lock():
        ended = swept(*SHORT, "seed=1,2")
    assert ended.code == 1
    assert "job 0: another process trains in it" in ended.err
    after = state(folder / "0")
    assert all(after[path] == before[path] for path in before if path.name != ".lock")


def test_two_commands_at_once_in_one_sweep_are_refused(swept: Callable[..., Ended], folder: Path) -> None:
    folder.mkdir()
    with RunFolder(folder).lock():
        ended = swept(*SHORT, "seed=1,2")
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
    assert not (folder / "0").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL to send")
@pytest.mark.parametrize("launcher", ["basic", pytest.param("joblib", marks=pytest.mark.slow)])
def test_killed_three_times_and_gone_on_with_it_has_the_same_table(tmp_path: Path, launcher: str) -> None:
    arguments = (*LONGER, "optim.lr=1e-2,1e-1", "seed=1,2", f"hydra/launcher={launcher}")
    with started(tmp_path / "whole", *arguments) as process:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    folder = tmp_path / "killed"
    for job, step in ((0, 1000), (1, 2000), (3, 500)):
        with started(folder, *arguments) as process:
            wait_for(lambda job=job, step=step: came_to(folder / str(job), step))  # type: ignore[misc]
            process.kill()
            process.communicate()
        left = Results(Sweep(folder))
        assert any(row.status != "completed" for row in left.rows)
        wait_for(lambda: all(row.status != "running" for row in Results(Sweep(folder)).rows), 10)
    with started(folder, *arguments) as process:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert "begun" in err
    assert table(folder, but=TIMES) == table(tmp_path / "whole", but=TIMES)
    assert "4 jobs: 4 completed" in out


# Launchers


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL to send")
def test_a_worker_that_is_killed_costs_its_job_only(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    arguments = (*LONGER, "trainer.steps=12000", "seed=1,2,3,4", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    with started(folder, *arguments) as process:
        kill_when_it_came_to(folder / "0", 1000)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 1
    assert "job 0: its process was killed" in err
    assert "4 jobs: 3 completed, 1 killed" in out
    with started(folder, *arguments) as process:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert "4 jobs: 4 completed" in out
    resumed = read_summary(folder / "0")
    assert resumed is not None
    assert resumed["resumed"][0]["step"] >= 1000


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to send")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_jobs_in_other_processes_with_a_save(tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "sweep"
    arguments = (*LONGER, "trainer.steps=1000000", "seed=1,2,3", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    with started(folder, *arguments) as process:
        wait_for(lambda: all(came_to(folder / job, 500) for job in "01"))
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err
    assert "3 jobs: 2 stopped, 1 pending" in out
    for job in "01":
        summary = read_summary(folder / job)
        assert summary is not None
        assert (folder / job / "checkpoints" / f"step_{summary['step']}").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL to send")
def test_with_the_command_killed_no_worker_trains_on(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    arguments = (*LONGER, "trainer.steps=1000000", "seed=1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    with started(folder, *arguments) as process:
        wait_for(lambda: came_to(folder / "0", 500) and holder(folder / "1"))
        process.kill()
    wait_for(lambda: statuses_now(folder) == ["stopped", "stopped"], 20)


def statuses_now(folder: Path) -> list[str]:
    return [row.status for row in Results(Sweep(folder)).rows]


def test_each_worker_has_its_share_of_cores_and_gpus() -> None:
    made = workers.environments(2, cores=8, gpus=["0", "3"])
    assert [e["CUDA_VISIBLE_DEVICES"] for e in made] == ["0", "3"], "one GPU a job"
    assert {e["OMP_NUM_THREADS"] for e in made} == {"4"}
    assert [e["CUDA_VISIBLE_DEVICES"] for e in workers.environments(3, cores=2, gpus=["1"])] == ["1"] * 3
    assert {e["OMP_NUM_THREADS"] for e in workers.environments(3, cores=2, gpus=[])} == {"1"}
    assert "CUDA_VISIBLE_DEVICES" not in workers.environments(1, cores=2, gpus=[])[0]


def test_gpus_are_those_that_may_be_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 5")
    assert workers.visible_gpus() == ["2", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert workers.visible_gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert workers.visible_gpus() == []
    if os.name != "nt":
        listing = tmp_path / "nvidia-smi"
        listing.write_text("#!/bin/sh\necho 'GPU 0: one'\necho '  MIG device'\necho 'GPU 1: two'\n")
        listing.chmod(0o755)
        assert workers.visible_gpus() == ["0", "1"]


def test_the_jobs_of_joblib_share_the_cores(swept: Callable[..., Ended], folder: Path) -> None:
    # Too large for one thread on auto, so it takes all that it is given.
    large = ("data.batch_size=4096", "data.block_size=64", "trainer.steps=1")
    n = max(2, os.cpu_count() or 1)
    ended = swept(*SHORT, *large, "seed=1,2", "hydra/launcher=joblib", f"hydra.launcher.n_jobs={n}")
    assert ended.code == 0, ended.err
    for job in "01":
        run = runs.read_run(folder / job)
        assert run is not None
        assert run.get("device.threads") == "1"


def test_ctrl_c_is_left_to_the_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {number: signal.getsignal(number) for number in stop._STOP_SIGNALS}
    heeded = list(stop._STOP_SIGNALS)
    try:
        stop.leave_to_parent()
        with stop.stop_signals():
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(stop.Stopped):
                signal.raise_signal(signal.SIGTERM)
    finally:
        stop._STOP_SIGNALS[:] = heeded
        for number, handler in before.items():
            signal.signal(number, handler)


def test_submitit_runs_each_job_in_a_process(swept: Callable[..., Ended], folder: Path) -> None:
    ended = swept(*SHORT, "seed=1,2,3", "hydra/launcher=submitit_local", "hydra.sweeper.max_batch_size=2")
    assert ended.code == 0, ended.err
    pids = set()
    for job in "012":
        summary = read_summary(folder / job)
        assert summary is not None
        pids.add(summary["pid"])
    assert len(pids) == 3
    assert "3 jobs: 3 completed" in ended.out


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL to send")
def test_a_job_of_submitits_that_is_killed_costs_itself_only(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    arguments = (*LONGER, "trainer.steps=20000", "seed=1,2", "hydra/launcher=submitit_local")
    with started(folder, *arguments) as process:
        kill_when_it_came_to(folder / "0", 500)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 1
    assert "2 jobs: 1 completed, 1 killed" in out, err
    with started(folder, *arguments) as process:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err


# Stand-ins for Slurm's programs: sbatch starts the array's tasks, a moment after it has answered.
SLURM = {
    "sbatch": """#!/bin/sh
cp "$1" "$SLURM_STAND_IN/submitted.sh"
echo "Submitted batch job 4242"
(
  sleep 1
  for task in $(seq 0 $(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")); do
    SLURM_JOB_ID=4242 SLURM_ARRAY_JOB_ID=4242 SLURM_ARRAY_TASK_ID=$task SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 \\
      SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_JOB_NODELIST=node sh "$SLURM_STAND_IN/submitted.sh"
    touch "$SLURM_STAND_IN/ended_$task"
  done
) > "$SLURM_STAND_IN/tasks.log" 2>&1 &
""",
    "srun": """#!/bin/sh
while [ "${1#-}" != "$1" ]; do case "$1" in --output|--error) shift;; esac; shift; done
exec "$@"
""",
    "sacct": """#!/bin/sh
echo "JobID|State|NodeList"
for task in 0 1 2 3; do
  state=RUNNING
  [ -e "$SLURM_STAND_IN/ended_$task" ] && state=COMPLETED
  echo "4242_$task|$state|node"
done
""",
    "scancel": "#!/bin/sh\n",
    "squeue": "#!/bin/sh\n",
}


@pytest.mark.skipif(os.name == "nt", reason="Slurm is not for Windows")
def test_a_sweep_goes_through_slurm(
    swept: Callable[..., Ended], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through stand-ins: there is no cluster here."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, script in SLURM.items():
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_STAND_IN", str(tmp_path))
    fields = ("partition=gpu", "account=lab", "timeout_min=90", "gpus_per_node=2", "cpus_per_task=3", "mem_gb=5")
    typed = [f"hydra.launcher.{field}" for field in (*fields, "array_parallelism=2", "'setup=[echo ready]'"[1:-1])]
    ended = swept(*SHORT, "seed=1,2,3", "hydra/launcher=submitit_slurm", *typed)
    assert ended.code == 0, ended.err
    assert "3 jobs: 3 completed" in ended.out
    asked = (tmp_path / "submitted.sh").read_text()
    for line in (
        *("--partition=gpu", "--account=lab", "--time=90", "--gpus-per-node=2", "--cpus-per-task=3", "--mem=5GB"),
        *("--array=0-2%2", "--nodes=1", "--signal=USR2@120"),
    ):
        assert f"#SBATCH {line}\n" in asked
    assert "\necho ready\n" in asked


def watching(folder: Path) -> launch.Launch:
    """A sweep at work through a launcher that only watches its jobs."""
    config = OmegaConf.create({"hydra": {"launcher": {"_target_": "elsewhere.SlurmLauncher"}}})
    return launch.Launch(Sweep(folder), config, None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("reported", [JobReturn(status=JobStatus.COMPLETED), launch.failed(RuntimeError("no output"))])
def test_what_is_reported_as_ended_is_waited_for_while_it_works(folder: Path, reported: JobReturn) -> None:
    """As where Slurm's accounting is ahead of the job's own process."""
    forged(folder, {"status": "running"}, {"status": "completed"})
    sweep_ = watching(folder)
    returns = [reported, JobReturn(status=JobStatus.COMPLETED)]
    waiting = threading.Thread(target=sweep_.wait_until_written, args=(list(sweep_.sweep.jobs.values()), returns))
    with RunFolder(folder / "0").lock():
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive(), "job 0 still works"
        (folder / "0" / "summary.json").write_text('{"status": "completed"}')
    waiting.join(60)
    assert not waiting.is_alive()
    assert Results(Sweep(folder)).count() == "2 jobs: 2 completed"


def test_what_is_reported_as_completed_has_some_time_to_be_seen(folder: Path) -> None:
    """As on a disk that several machines share."""
    forged(folder, {"status": "completed"})
    (folder / "0" / "summary.json").rename(folder / "late")
    sweep_ = watching(folder)
    (job,) = sweep_.sweep.jobs.values()
    sweep_.wait_until_written([job], [JobReturn(status=JobStatus.COMPLETED)], within=0.0)
    assert sweep_.sweep.status(job) == "pending", "and no longer than that"
    sweep_.wait_until_written([job], [launch.failed(RuntimeError("it never began"))])
    waiting = threading.Thread(
        target=sweep_.wait_until_written, args=([job], [JobReturn(status=JobStatus.COMPLETED)]), kwargs={"within": 60.0}
    )
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive()
    (folder / "late").rename(folder / "0" / "summary.json")
    waiting.join(30)
    assert not waiting.is_alive()


def test_a_launcher_that_fails_is_one_line(swept: Callable[..., Ended], folder: Path, tmp_path: Path) -> None:
    """There is no Slurm here."""
    ended = swept(*SHORT, "seed=1,2,3", "hydra/launcher=submitit_slurm")
    assert ended.code == 2, ended.err
    assert [line for line in ended.err.splitlines() if line.startswith("error: ")] == ended.err.splitlines()[-1:]
    assert "Traceback" not in ended.err
    assert "the launcher failed" in ended.err


def test_a_job_that_is_started_again_goes_on_or_is_done(tmp_path: Path) -> None:
    """As Slurm does with one that ran out of time: the same job, called once more in its folder."""
    folder, config = tmp_path / "0", composed(*SHORT, "trainer.checkpoint_every=10", "seed=1")
    folder.mkdir()

    def hopeless_at_10(step: int, _: Mapping[str, float]) -> bool:
        if step == 10:
            raise KeyboardInterrupt
        return False

    def again(is_hopeless: Callable[[int, Mapping[str, float]], bool] | None = None) -> BaseException | None:
        return train.train(config, RunFolder(folder), [], in_sweep=True, is_hopeless=is_hopeless)

    assert isinstance(again(hopeless_at_10), stop.Stopped)
    assert again() is None
    summary = read_summary(folder)
    assert summary is not None
    assert (summary["status"], summary["resumed"][0]["step"]) == ("completed", 0)
    before = state(folder)
    assert again() is None
    assert state(folder) == before
    # Another config is another run, and has no business here.
    failure = train.train(composed(*SHORT, "seed=2"), RunFolder(folder), [], in_sweep=True)
    assert "holds a run already" in str(failure)


def test_a_plan_that_is_damaged_is_one_line(tool: Callable[..., Ended], folder: Path) -> None:
    folder.mkdir()
    for content in ("", "{", "[]", '{"fields": [], "settled": {}, "planned": 0, "jobs": [{"no": 1}]}', "\xff"):
        (folder / sweep.PLAN).write_text(content, "latin-1")
        ended = tool(runs.main, "results", str(folder))
        assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
        with pytest.raises(UserError):
            Sweep(folder)
