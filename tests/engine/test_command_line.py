"""Tests of the translation of arguments: flags, sweeps, the mode."""

import subprocess
import sys
from pathlib import Path

import pytest

from bigramlm.engine.command_line import command_line, parse_flags, set_up_hydra
from bigramlm.engine.recipes import added_folders
from tests.helpers import SCRIPT, SHORT, Cli, assert_refused, command, refuses, summary

MODE = "# @package _global_\nhydra: {mode: MULTIRUN}\ntrainer: {steps: 1}\n"
TEXTS = 'sample.prompt="To be","Or not"'


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    """Return a folder with the recipe `sweeping`, which sets hydra.mode."""
    set_up_hydra()  # `command_line` composes to find the mode
    path = tmp_path / "presets" / "experiment" / "sweeping.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(MODE, "utf-8")
    return tmp_path / "presets"


SWEEPS = [["-m"], ["--multirun"], ["--multi"], ["hydra.mode=MULTIRUN"], ["--config-dir=PRESETS", "experiment=sweeping"]]


@pytest.mark.parametrize("flags", SWEEPS, ids=" ".join)
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_sweep_is_known_however_it_was_asked_for(flags: list[str], at: int, recipes: Path) -> None:
    words = ["seed=1,2", TEXTS]
    words[at:at] = [flag.replace("PRESETS", str(recipes)) for flag in flags]
    translated = command_line(words)
    assert translated[-1] == "hydra.mode=MULTIRUN"
    assert TEXTS in translated, "two texts, not one"


@pytest.mark.parametrize("flags", [[], ["-r"], ["hydra.mode=RUN"], ["experiment=ladder"]])
def test_other_commands_are_single_runs(flags: list[str]) -> None:
    translated = command_line([*flags, "seed=1", TEXTS])
    assert translated[-1] == "hydra.mode=RUN"
    assert TEXTS not in translated, "one text with quotes"


def test_the_caller_may_decide_whether_to_sweep(recipes: Path) -> None:
    arguments = [f"hydra.searchpath=[{recipes}]", "experiment=sweeping"]
    assert command_line(arguments)[-1] == "hydra.mode=MULTIRUN"
    assert command_line(arguments, sweeps=False)[-1] == "hydra.mode=RUN"
    assert command_line([], sweeps=True)[-1] == "hydra.mode=MULTIRUN"


@pytest.mark.parametrize("flags", [SWEEPS[3], SWEEPS[4]], ids=" ".join)
def test_a_sweep_without_the_flag_runs_and_continues(flags: list[str], recipes: Path, tmp_path: Path) -> None:
    given = [flag.replace("PRESETS", str(recipes)) for flag in flags]
    line = [*given, *SHORT, "tokenizer=byte", "optim.lr=1e-3,1e-2", TEXTS]
    ended = command(*line, f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert ended.code == 0, ended.err
    assert [summary(tmp_path / "sweep" / job)["status"] for job in "0123"] == ["completed"] * 4
    again = command(*line, f"sweep={tmp_path / 'sweep'}")
    assert again.code == 0, again.err
    assert "4 done, 0 started, 0 not started" in again.err


@pytest.mark.parametrize("flag", ["-m", "--multi", "hydra.mode=MULTIRUN"])
def test_a_sweep_cannot_resume_a_run(flag: str, cli: Cli) -> None:
    run = cli(*SHORT).folder
    assert_refused(command(flag, f"resume={run}", "seed=1,2"), f"resume={run}", "omit -m")


def test_flags_are_parsed_anywhere() -> None:
    flags = parse_flags(["seed=1", "-m", "optim.lr=2", "--config-dir", "x", "data.path=-y"])
    assert (flags.multirun, flags.config_dir) == (True, "x")
    assert flags.overrides == ["seed=1", "optim.lr=2", "data.path=-y"]


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--cfg", "job", "optim.lr=3", "-p", "optim"], "lr: 3.0"),
        (["optim.lr=3", "-c", "job", "--resolve"], "lr: 3.0"),
        (["--cfg=hydra", "hydra.run.dir=there"], "dir: there"),
        (["seed=4", "--cfg", "job", "--package=seed"], "4"),
        (["--info", "searchpath", "--config-dir", "."], "command-line"),
        (["-i", "defaults"], "Defaults List"),
        (["--hydra-help"], "== Flags =="),
        (["-sc", "install=bash"], "hydra_bash_completion"),
        (["--config-name=train", "--cfg", "job"], "block_size: 8"),
        (["--version"], "bigramlm "),
        (["--version", "optim.lrr=1"], "bigramlm "),
    ],
)
def test_flags_of_hydra_work(arguments: list[str], shown: str) -> None:
    ended = command(*arguments)  # --info configures logging
    assert (ended.code, ended.err) == (0, "")
    assert shown in ended.out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["-sc", "install=foo"], "bash, fish, zsh"),
        (["-sc", "foo"], "install=SHELL"),
        (["-sc"], "install=SHELL"),
        (["--experimental-rerun", "config.pickle"], "resume=RUN"),
        (["--cfg", "nosuch"], "nosuch"),
    ],
)
def test_wrong_flags_of_hydra_give_one_line(arguments: list[str], named: str, cli: Cli) -> None:
    ended = cli(*arguments, run_dir=False)
    assert_refused(ended, arguments[0].split()[0], named)
    assert ended.err.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("flag", ["--cfg job", "--hydra-help", "-sc install=bash", "--info searchpath"])
def test_flags_of_hydra_survive_a_reader_that_ends(flag: str) -> None:
    for redirection, code in (("| true", 0), (">/dev/full", 2)):
        line = f"{sys.executable} {SCRIPT} {flag} {redirection}"
        done = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (code, code // 2), done.stderr


@pytest.mark.parametrize("value", ["~/a/${now:%Y}", "'~/a/${now:%Y}'"])
@pytest.mark.parametrize("field", ["hydra.run.dir", "hydra.sweep.dir"])
def test_the_home_folder_can_be_part_of_an_output_folder(field: str, value: str) -> None:
    assert f"{field}={Path.home()}/a/${{now:%Y}}" in command_line([f"{field}={value}"])


@pytest.mark.parametrize("field", ["init_from", "resume", "data.path", "tokenizer.path"])
def test_a_reference_in_a_literal_path_is_refused(field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with refuses(field, "${hydra:runtime.cwd}/x", "literally"):
        command_line([field + "=${hydra:runtime.cwd}/x"])
    (tmp_path / "${hydra:x}").write_text("a text\n")
    assert 'data.path="\\${hydra:x}"' in command_line(["data=text", "data.path=${hydra:x}"])


def test_completion_suggests_fields(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMP_LINE", "train.py optim.l")
    monkeypatch.setenv("COMP_POINT", "16")
    assert cli("-sc", "query=bash", run_dir=False).out == "optim.lr=\n"


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_a_tilde_in_a_folder_is_the_home_folder(prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "rec").mkdir()
    flags = parse_flags([f"{prefix}hydra.run.dir=~/run", f"{prefix}hydra.searchpath=[~/rec, '~/rec',{tmp_path}]"])
    assert flags.overrides[0] == f"{prefix}hydra.run.dir={tmp_path}/run"
    assert added_folders(flags) == [tmp_path / "rec", tmp_path / "rec", tmp_path]
    assert command_line([f"{prefix}hydra.searchpath=[~/rec]"], sweeps=False)


def test_an_embedded_interpreter_has_no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [])
    assert parse_flags(["seed=1"]).overrides == ["seed=1"]
