"""Tests of searches with Optuna: spaces, resumed studies and pruned trials."""

import contextlib
import functools
import itertools
import json
import os
import pickle
import shutil
import signal
import sqlite3
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from bigramlm.config.overrides import Overrides
from bigramlm.runs import find as runs
from bigramlm.runs.folder import read_summary
from bigramlm.sweeps import search
from bigramlm.sweeps.cmaes import SafeCmaEsSampler
from bigramlm.sweeps.plan import Job, Sweep
from bigramlm.sweeps.results import Results
from bigramlm.sweeps.search import Space, space_of
from tests.helpers import Cli, Ended, assert_refused, command, refuses, study, table, trials
from tests.sweeps.helpers import kill_this_process_at

SEARCH = (
    *("hydra/sweeper=optuna", "data=bundled", "logger=none", "trainer.steps=20", "sample.max_new_tokens=20"),
    *("trainer.eval_every=5", "trainer.log_every=5", "trainer.eval_batches=2"),
)
SPACE = "optim.lr=tag(log, interval(1e-4, 1))"


@pytest.fixture
def searched(cli: Cli, folder: Path) -> Callable[..., Ended]:
    """Return a function that runs a search with these arguments in the test's folder."""
    return lambda *arguments: cli("-m", *SEARCH, *arguments, f"hydra.sweep.dir={folder}", run_dir=False)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optim.lr=interval(1e-4, 1e-1)", FloatDistribution(1e-4, 1e-1)),
        ("optim.lr=tag(log, interval(1e-4, 1e-1))", FloatDistribution(1e-4, 1e-1, log=True)),
        ("optim.lr=interval(1, 3)", FloatDistribution(1, 3)),
        ("data.block_size=int(interval(1, 9))", IntDistribution(1, 9)),
        ("data.block_size=tag(log, int(interval(1, 64)))", IntDistribution(1, 64, log=True)),
        ("data.block_size=range(1, 9)", IntDistribution(1, 8)),
        ("data.block_size=range(1, 10, 4)", IntDistribution(1, 9, step=4)),
        ("data.block_size=range(1, 9, 4)", IntDistribution(1, 5, step=4)),
        ("optim.lr=range(0.5, 2, 0.5)", CategoricalDistribution([0.5, 1.0, 1.5])),
        ("data.block_size=choice(4, 8)", CategoricalDistribution([4, 8])),
        ("data.block_size=4,8", CategoricalDistribution([4, 8])),
        ("logger=none,tensorboard", CategoricalDistribution(["none", "tensorboard"])),
    ],
)
def test_space_syntax_is_that_of_hydras_plugin(override: str, expected: Any) -> None:
    name = override.partition("=")[0]
    assert space_of(OverridesParser.create().parse_overrides([override, "seed=3"])) == {name: expected}


def test_range_has_same_numbers_as_in_hydra() -> None:
    for text in ("range(1, 9)", "range(2, 11, 3)", "range(7)"):
        (override,) = OverridesParser.create().parse_overrides([f"seed={text}"])
        space = space_of([override])["seed"]
        assert isinstance(space, IntDistribution)
        assert list(range(space.low, space.high + 1, space.step)) == [int(str(x)) for x in override.sweep_iterator()]


@pytest.mark.parametrize("override", ["optim.lr=tag(log, interval(0, 1))", "optim.lr=interval(3, 1)"])
def test_invalid_space_is_refused(override: str) -> None:
    with refuses(field="optim.lr="):
        space_of(OverridesParser.create().parse_overrides([override]))


def test_trials_are_jobs(searched: Callable[..., Ended], folder: Path) -> None:
    ended = searched(SPACE, "data.block_size=choice(4,8)", "hydra.sweeper.n_trials=3", "hydra.sweeper.pruner=none")
    assert ended.code == 0, ended.err
    rows = {row["job"]: row for row in table(folder)}
    assert len(rows) == 3
    for trial in trials(folder):
        row = rows[str(trial.user_attrs["job"])]
        assert trial.value == float(row["val/loss"])
        assert trial.params == {"optim.lr": float(row["optim.lr"]), "data.block_size": int(row["data.block_size"])}
        run = runs.read_run(folder / row["job"])
        assert run is not None
        assert (run.get("optim.lr"), run.get("data.block_size")) == tuple(trial.params.values())
    assert study(folder).best_trial.user_attrs["job"] == int(table(folder)[0]["job"])
    assert "(3 of 3)" in ended.err
    assert "(1 of 3)" in ended.err
    assert Sweep(folder).log_fields == ["optim.lr"], "the report uses a logarithmic axis for it"


def test_bad_trials_are_pruned(searched: Callable[..., Ended], folder: Path) -> None:
    ended = searched(
        *(SPACE, "hydra.sweeper.n_trials=6", "hydra.sweeper.sampler=random"),
        *("hydra.sweeper.pruner=median", "hydra.sweeper.pruner_options={n_startup_trials: 2}"),
    )
    assert ended.code == 0, "a pruned trial is not a failure"
    states = {str(t.user_attrs["job"]): t for t in trials(folder)}
    pruned = [row for row in table(folder) if row["status"] == "pruned"]
    assert pruned
    assert f"{len(pruned)} pruned" in ended.out
    for row in table(folder):
        trial, summary = states[row["job"]], read_summary(folder / row["job"])
        assert summary is not None
        reported = [json.loads(line) for line in (folder / row["job"] / "metrics.jsonl").read_text().splitlines()]
        losses = {r["step"]: r["val/loss"] for r in reported if "val/loss" in r}
        if row["status"] == "pruned":
            assert trial.state.name == "PRUNED"
            assert summary["step"] < 20
            assert row["val/loss"] == ""
            assert (folder / row["job"] / "checkpoints" / f"step_{summary['step']}").exists(), "it can be resumed"
            assert "pruned: other trials were better" in (folder / row["job"] / "train.log").read_text()
            # The rule of the pruner: worse at this step than the median of the earlier trials.
            before = [t for t in trials(folder) if t.number < trial.number and t.state.name == "COMPLETE"]
            others = sorted(min(v for s, v in t.intermediate_values.items() if s <= summary["step"]) for t in before)
            assert min(losses[s] for s in losses if 0 < s <= summary["step"]) > others[(len(others) - 1) // 2]
        else:
            assert (trial.state.name, row["step"]) == ("COMPLETE", "20")
        assert trial.intermediate_values == {s: losses[s] for s in losses if 0 < s <= min(summary["step"], 15)}


def test_resumed_search_equals_uninterrupted_search(
    searched: Callable[..., Ended], cli: Cli, folder: Path, tmp_path: Path
) -> None:
    """The same seed draws the same values, and existing trials are not repeated."""
    assert searched(SPACE, "hydra.sweeper.n_trials=2").code == 0
    before = {t.number: t.params for t in trials(folder)}
    assert searched(SPACE, "hydra.sweeper.n_trials=2").code == 0
    assert len(trials(folder)) == 2, "the study has n_trials already"
    ended = searched(SPACE, "hydra.sweeper.n_trials=4")
    assert ended.code == 0, ended.err
    after = {t.number: t.params for t in trials(folder)}
    assert {number: after[number] for number in before} == before
    assert len({params["optim.lr"] for params in after.values()}) == 4, "no value is tried twice"
    one = tmp_path / "one"
    cli("-m", *SEARCH, SPACE, "hydra.sweeper.n_trials=4", f"hydra.sweep.dir={one}", run_dir=False)
    assert [t.params for t in trials(one)] == [t.params for t in trials(folder)]


def test_different_search_in_same_folder_is_refused(searched: Callable[..., Ended], folder: Path) -> None:
    searched(SPACE, "hydra.sweeper.n_trials=1")
    for change, field, value in (
        (["optim.lr=interval(0.1, 1)"], "space", "low=0.1"),
        ([SPACE, "trainer.grad_accumulation=2"], "fields", "trainer.grad_accumulation=2"),
    ):
        ended = searched(*change, "hydra.sweeper.n_trials=2")
        assert_refused(ended, folder, field=field, value=value)
        assert ended.err.count("\n") == 1, "no other output"
        assert len(trials(folder)) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["seed=1"], "hydra/sweeper"),
        (["seed=1,2"], "seed"),
        ([SPACE, "hydra.sweeper.sampler=best"], ", ".join(search.SAMPLERS)),
        ([SPACE, "hydra.sweeper.pruner=best"], ", ".join(search.PRUNERS)),
        ([SPACE, "hydra.sweeper.n_trials=0"], "n_trials=0"),
        ([SPACE, "hydra.sweeper.n_jobs=0"], "n_jobs=0"),
        ([SPACE, "hydra.sweeper.pruner_options={warm: 1}"], "pruner_options"),
        ([SPACE, "hydra.sweeper.sampler_options={warm: 1}"], "sampler_options"),
    ],
)
def test_invalid_options_are_refused_in_one_line(
    searched: Callable[..., Ended], folder: Path, arguments: list[str], words: str
) -> None:
    ended = searched(*arguments)
    assert_refused(ended, words)
    assert ended.err.count("\n") == 1, "no other output"
    assert not folder.exists()


def sampler_pruner_pairs() -> list[Any]:
    """Return all pairs of samplers and pruners.

    The pairs that are not marked as slow contain each sampler and each pruner at least once.
    """
    samplers, pruners = sorted(search.SAMPLERS), sorted(search.PRUNERS)
    few = {(samplers[n % len(samplers)], pruners[n % len(pruners)]) for n in range(max(len(samplers), len(pruners)))}
    pairs = itertools.product(samplers, pruners)
    return [pair if pair in few else pytest.param(*pair, marks=pytest.mark.slow) for pair in pairs]


@pytest.mark.parametrize(("sampler", "pruner"), sampler_pruner_pairs())
def test_every_sampler_with_every_pruner(
    searched: Callable[..., Ended], folder: Path, sampler: str, pruner: str
) -> None:
    typed = (f"hydra.sweeper.sampler={sampler}", f"hydra.sweeper.pruner={pruner}", "hydra.sweeper.n_trials=3")
    ended = searched(SPACE, "optim.weight_decay=interval(0, 0.1)", *typed)
    assert ended.code == 0, ended.err
    assert len(table(folder)) == 3
    assert "Warning" not in ended.err


def test_search_continues_after_failed_trial(searched: Callable[..., Ended], folder: Path) -> None:
    ended = searched("data.block_size=choice(8,1000000)", "hydra.sweeper.n_trials=4", "hydra.sweeper.sampler=random")
    found = {row["data.block_size"]: row["status"] for row in table(folder)}
    assert found == {"8": "completed", "1000000": "failed"}
    assert ended.code == 1
    assert {t.state.name for t in trials(folder)} == {"COMPLETE", "FAIL"}
    assert len(trials(folder)) == 4


def test_locked_study_does_not_end_run(searched: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(*_: Any) -> None:
        raise RuntimeError("database is locked")

    monkeypatch.setattr(optuna.trial.Trial, "report", locked)
    ended = searched(SPACE, "hydra.sweeper.n_trials=2")
    assert ended.code == 0, ended.err
    assert "database is locked" in ended.err


def test_trials_run_concurrently_with_joblib(searched: Callable[..., Ended], folder: Path) -> None:
    ended = searched(SPACE, "hydra.sweeper.n_trials=4", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert ended.code == 0, ended.err
    pids = {(read_summary(folder / row["job"]) or {})["pid"] for row in table(folder)}
    assert len(table(folder)) == 4
    assert os.getpid() not in pids
    assert len(pids) == 2, "the same processes run all batches"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL to send")
def test_killed_search_resumes_its_trials(searched: Callable[..., Ended], folder: Path) -> None:
    arguments = (SPACE, "trainer.checkpoint_every=5", "hydra.sweeper.pruner=none", "hydra.sweeper.n_trials=3")
    setup = functools.partial(kill_this_process_at, 1, 13)
    ended = command("-m", *SEARCH, *arguments, f"hydra.sweep.dir={folder}", setup=setup)
    assert ended.code == -signal.SIGKILL, ended.err
    values = {t.number: t.params for t in trials(folder)}
    assert [t.state.name for t in trials(folder)] == ["COMPLETE", "RUNNING"]
    ended = searched(*arguments)
    assert ended.code == 0, ended.err
    assert [t.state.name for t in trials(folder)] == ["COMPLETE"] * 3
    assert {t.number: t.params for t in trials(folder)[:2]} == values
    summary = read_summary(folder / "1")
    assert summary is not None
    assert summary["resumed"][0]["step"] == 10
    assert [row.status for row in Results(Sweep(folder)).rows] == ["completed"] * 3


def test_invalid_values_fail_only_their_trials(searched: Callable[..., Ended], folder: Path) -> None:
    ended = searched("optim.lr=choice(0.1,-1)", "hydra.sweeper.n_trials=6", "hydra.sweeper.sampler=random")
    if "error:" in ended.err:  # the very first trial drew -1
        ended = searched(
            "optim.lr=choice(0.1,-1)", "hydra.sweeper.n_trials=6", "hydra.sweeper.sampler=random", "seed=2"
        )
    assert ended.code == 1, ended.err
    assert {row["optim.lr"]: row["status"] for row in table(folder)} == {"0.1": "completed", "-1": "failed"}
    assert "optim.lr=-1.0: must be a finite number above 0" in ended.out
    assert len(trials(folder)) == 6


def test_search_refuses_wrong_field_at_start(searched: Callable[..., Ended], folder: Path) -> None:
    assert_refused(searched(SPACE, "optim.lrr=3"), "optim.lr=3", field="optim.lrr", value="3")
    assert_refused(searched(SPACE, "optim.weight_decay=-1"), field="optim.weight_decay", value="-1.0")
    assert not folder.exists()


def test_sweep_and_search_cannot_share_folder(searched: Callable[..., Ended], cli: Cli, folder: Path) -> None:
    plain = [word for word in SEARCH if not word.startswith("hydra/")]
    searched(SPACE, "hydra.sweeper.n_trials=1")
    ended = cli("-m", *plain, "seed=1,2", f"hydra.sweep.dir={folder}", run_dir=False)
    assert_refused(ended, folder, "hydra/sweeper=optuna")
    other = folder.with_name("other")
    cli("-m", *plain, "seed=1", f"hydra.sweep.dir={other}", run_dir=False)
    ended = cli("-m", *SEARCH, SPACE, f"hydra.sweep.dir={other}", run_dir=False)
    assert_refused(ended, other)
    assert not (other / "study.db").exists()


def test_repeated_config_is_not_trained_again(searched: Callable[..., Ended], folder: Path) -> None:
    ended = searched("data.block_size=choice(4,8)", "hydra.sweeper.n_trials=7", "hydra.sweeper.pruner=none")
    assert ended.code == 0, ended.err
    assert len(table(folder)) == 2
    found = [(t.params["data.block_size"], t.value) for t in trials(folder)]
    assert len(found) == 7
    assert len(set(found)) == 2


def test_trial_without_job_and_job_without_trial_are_cleaned_up(searched: Callable[..., Ended], folder: Path) -> None:
    """A killed command may leave either of them."""
    searched(SPACE, "hydra.sweeper.n_trials=1")
    study(folder).ask()
    plan = Sweep(folder)
    plan.jobs[9] = Job(9, ["optim.lr=0.5"])
    plan.save()
    assert searched(SPACE, "hydra.sweeper.n_trials=2").code == 0
    assert [t.state.name for t in trials(folder)] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert len(table(folder)) == 2


def test_values_outside_of_the_typed_space_are_not_run(searched: Callable[..., Ended], folder: Path) -> None:
    """The values of an unfinished trial become overrides."""
    assert searched(SPACE, "hydra.sweeper.n_trials=1").code == 0
    theirs: tuple[dict[str, Any], ...] = (
        {"optim.lr": FloatDistribution(2, 9, log=True)},
        {"optim.lr": FloatDistribution(1e-4, 1, log=True), "data": CategoricalDistribution(["text"])},
        {"+hydra.job.env_set.THEIRS": CategoricalDistribution(["1"])},
    )
    plan = Sweep(folder)
    for job, space in enumerate(theirs, start=1):
        study(folder).ask(space).set_user_attr("job", job)
        plan.jobs[job] = Job(job, ["optim.lr=5"])
    plan.save()
    ended = searched(SPACE, "hydra.sweeper.n_trials=5")
    assert ended.code == 0, ended.err
    assert "THEIRS" not in ended.err
    assert [t.state.name for t in trials(folder)] == ["COMPLETE", "FAIL", "FAIL", "FAIL", "COMPLETE"]
    assert [path.name for path in sorted(folder.glob("[0-9]"))] == ["0", "4"], "the other jobs never ran"


def test_unfinished_trial_runs_what_was_typed(searched: Callable[..., Ended], folder: Path) -> None:
    assert searched(SPACE, "hydra.sweeper.n_trials=1").code == 0
    shutil.rmtree(folder / "0")
    with sqlite3.connect(folder / "study.db") as database:
        database.execute("UPDATE trials SET state = 'RUNNING'")
    database.close()
    plan = Sweep(folder)
    plan.jobs[0].overrides += ["+hydra.job.env_set.THEIRS=1", "trainer.steps=1"]
    plan.save()
    ended = searched(SPACE, "hydra.sweeper.n_trials=1")
    assert ended.code == 0, ended.err
    assert "THEIRS" not in ended.err
    assert [row["step"] for row in table(folder)] == ["20"]


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\0" + bytes(500), None])
def test_damaged_study_is_refused_in_one_line(
    content: bytes | None, searched: Callable[..., Ended], folder: Path
) -> None:
    assert searched(SPACE, "hydra.sweeper.n_trials=1").code == 0
    if content is None:
        with sqlite3.connect(folder / "study.db") as database:
            database.execute("UPDATE trial_params SET distribution_json = '{'")
        database.close()
    else:
        (folder / "study.db").write_bytes(content)
    ended = searched(SPACE, "hydra.sweeper.n_trials=2")
    if content == b"":  # SQLite takes an empty file for a new database
        assert ended.code == 0, ended.err
    else:
        assert_refused(ended, "study.db", "start a new search")


@pytest.mark.skipif(os.name == "nt", reason="Windows has other names for files")
def test_a_journal_that_names_another_file_is_refused(searched: Callable[..., Ended], folder: Path) -> None:
    """SQLite would delete the file, after it has rolled back the transaction."""
    assert searched(SPACE, "hydra.sweeper.n_trials=1").code == 0
    mine, mark = folder.parent / "mine.txt", bytes.fromhex("d9d505f920a163d7")
    mine.write_text("mine")
    database, name = (folder / "study.db").read_bytes(), str(mine).encode()
    size = int.from_bytes(database[16:18], "big")
    header = mark + struct.pack(">5I", 0, 0, len(database) // size, 512, size)
    tail = struct.pack(">I", 2**30 // size + 1) + name + struct.pack(">2I", len(name), sum(name)) + mark
    (folder / "study.db-journal").write_bytes(header.ljust(512, b"\0") + tail)
    assert_refused(searched(SPACE, "hydra.sweeper.n_trials=2"), "study.db", "journal", "start a new search")
    assert mine.read_text() == "mine"


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE VIEW theirs AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n",
        "CREATE TRIGGER theirs BEFORE INSERT ON trials BEGIN SELECT RAISE(FAIL, 'no'); END",
    ],
    ids=["view", "trigger"],
)
def test_a_study_that_computes_is_refused(searched: Callable[..., Ended], folder: Path, statement: str) -> None:
    assert searched(SPACE, "hydra.sweeper.n_trials=1").code == 0
    with contextlib.closing(sqlite3.connect(folder / "study.db")) as database:
        database.execute(statement)
    assert_refused(searched(SPACE, "hydra.sweeper.n_trials=2"), "study.db", "theirs", "start a new search")


@pytest.mark.parametrize("option", ["popsize", "use_separable_cma", "with_margin", "lr_adapt"])
def test_cma_es_continues_with_its_stored_state(option: str) -> None:
    """The values are those of Optuna's own sampler, although each trial has a new one."""
    space: Space = {"a": FloatDistribution(0, 1), "b": FloatDistribution(1e-3, 1, log=True)}
    options: dict[str, Any] = {option: 5 if option == "popsize" else True}
    values = []
    for kind in (optuna.samplers.CmaEsSampler, SafeCmaEsSampler):
        found = optuna.create_study()
        for seed in range(20):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found.sampler = kind(seed=seed, n_startup_trials=2, **options)
            trial = found.ask(space)
            found.tell(trial, trial.params["a"] + trial.params["b"])
        assert any("cma" in name for trial in found.trials for name in trial.system_attrs), "a state is stored"
        values.append([trial.params for trial in found.trials])
    assert values[0] == values[1]


@pytest.mark.parametrize(
    "stored",
    [*map(pickle.dumps, (print, Path("a"), 5, np.zeros(3))), b"no pickle", pickle.dumps(5)[:3]],
    ids=["a function", "a path", "a number", "an array", "no pickle", "truncated"],
)
def test_state_of_cma_es_that_would_run_code_is_refused(stored: bytes) -> None:
    found = optuna.create_study(sampler=SafeCmaEsSampler(n_startup_trials=1, warn_independent_sampling=False))
    space: Space = {"a": FloatDistribution(0, 1), "b": FloatDistribution(0, 1)}
    attributes = {"cma:optimizer:0": stored.hex()}
    params = {"a": 0.5, "b": 0.5}
    found.add_trial(
        optuna.trial.create_trial(params=params, distributions=dict(space), value=1.0, system_attrs=attributes)
    )
    with refuses("study.db", "start a new search"):
        found.ask(space)


def without(state: Any, name: str) -> Any:
    del state.__dict__[name]
    return state


def having(state: Any, **attributes: Any) -> Any:
    state.__dict__.update(attributes)
    return state


TAMPERED: dict[str, Callable[[Any], Any]] = {
    "no mean": lambda state: without(state, "_mean"),
    "no bounds": lambda state: without(state, "_bounds"),
    "another attribute": lambda state: having(state, more=1),
    "another dimension": lambda state: having(state, _mean=np.zeros(3)),
    "a text": lambda state: having(state, _sigma="x"),
    "NaN": lambda state: having(state, _mean=state.mean * float("nan")),
    "endless attempts": lambda state: having(state, _n_max_resampling=10**18),
    "an endless population": lambda state: having(state, _popsize=10**12),
    "a negative generation": lambda state: having(state, _g=-5),
}


@pytest.mark.parametrize("change", TAMPERED.values(), ids=TAMPERED)
def test_tampered_state_of_cma_es_is_refused(change: Callable[[Any], Any]) -> None:
    space: Space = {"a": FloatDistribution(0, 1), "b": FloatDistribution(0, 1)}
    found = optuna.create_study(sampler=SafeCmaEsSampler(n_startup_trials=1, warn_independent_sampling=False, seed=1))
    while not (states := [t for t in found.trials if any("optimizer" in name for name in t.system_attrs)]):
        trial = found.ask(space)
        found.tell(trial, trial.params["a"])
    stored = {name: value for name, value in states[0].system_attrs.items() if "optimizer" in name}
    state = change(pickle.loads(bytes.fromhex("".join(stored[f"cma:optimizer:{n}"] for n in range(len(stored))))))
    other = optuna.create_study(sampler=SafeCmaEsSampler(n_startup_trials=1, warn_independent_sampling=False, seed=1))
    params, attributes = {"a": 0.5, "b": 0.5}, {"cma:optimizer:0": pickle.dumps(state).hex()}
    other.add_trial(
        optuna.trial.create_trial(params=params, distributions=dict(space), value=1.0, system_attrs=attributes)
    )
    with warnings.catch_warnings(), refuses("study.db", "start a new search"):
        warnings.simplefilter("ignore")
        other.ask(space)


def test_default_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options_by_kind: dict[str, dict[str, Any]] = {}

    def recording(kind: Callable[..., Any], name: str) -> Callable[..., Any]:
        def make(**options: Any) -> Any:
            options_by_kind[name] = options
            return kind(**options)

        return make

    monkeypatch.setattr(optuna.pruners, "PercentilePruner", recording(optuna.pruners.PercentilePruner, "pruner"))
    monkeypatch.setattr(optuna.samplers, "TPESampler", recording(optuna.samplers.TPESampler, "sampler"))
    options: dict[str, Any] = {"sampler_options": {}, "pruner": "percentile", "pruner_options": {}, "seed": 1}
    study_ = search.Search(tmp_path, {"a": FloatDistribution(0, 1)}, Overrides(), sampler="tpe", at_once=2, **options)
    study_.ask()
    assert options_by_kind["pruner"] == {"percentile": 33.0}
    assert options_by_kind["sampler"]["constant_liar"]
