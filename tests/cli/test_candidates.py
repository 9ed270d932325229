"""Tests of the words that TAB completion offers."""

import importlib
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

from bigramlm.cli import COMMANDS, checkpoint, runs
from bigramlm.cli.candidates import NEWEST, complete
from bigramlm.config.choices import presets
from bigramlm.config.names import names_of
from bigramlm.config.run_config import GROUPS, KINDS
from bigramlm.utils import paths
from tests.helpers import Cli


def offered(line: str) -> list[str]:
    """Complete the last word of a line, such as `train model=g`."""
    command, *before, word = line.split(" ")
    return complete(command, before, word)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use an empty folder as the one of outputs/, and as the working folder."""
    monkeypatch.setattr(paths, "home", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_run(folder: Path, *steps: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(f'{{"started": "{folder.parent.name}T10:00:00+00:00"}}')
    for step in steps:
        (folder / "checkpoints" / f"step_{step}").mkdir(parents=True)
    return folder


def make_sweep(folder: Path, jobs: int) -> None:
    for job in range(jobs):
        make_run(folder / str(job))
    (folder / "sweep.json").write_text("{}")


@pytest.mark.parametrize("group", GROUPS)
def test_every_preset_is_offered(group: str) -> None:
    assert offered(f"train {group}=") == [f"{group}={name} " for name in presets(group, [paths.conf_dir()])]


@pytest.mark.parametrize("name", [name for name in names_of() if name not in GROUPS])
def test_every_field_is_offered(name: str) -> None:
    """Check each field with a preset that has it.

    The name of a part is set by its group.
    """
    group, _, field = name.rpartition(".")
    lines = [f"train {group}={kind} {name}" for kind in KINDS.get(group, {})] or [f"train {name}"]
    found = {text for line in lines for text in offered(line)}
    if field == "name" and group in KINDS:
        assert f"{name}=" not in found
    else:
        assert found & {f"{name}=", f"{name}."}


@pytest.mark.parametrize(
    ("line", "some"),
    [
        ("train ", ["model=", "model.", "experiment=", "seed=", "resume=", "sample."]),
        ("train opt", ["optim=", "optim."]),
        ("train +opt", ["+optim=", "+optim."]),
        ("train model.", []),
        ("train model=gpt model.po", ["model.position="]),
        ("train model=bigram,ngram model.", ["model.order="]),
        ("train experiment=quick_gpt model.n_l", ["model.n_layer="]),
        ("train model=gpt model.position=", ["model.position=learned ", "model.position=rotary "]),
        ("train optim.schedule=c", ["optim.schedule=constant ", "optim.schedule=cosine "]),
        ("train device.precision=t", ["device.precision=tf32 "]),
        ("train logger.mode=o", ["logger.mode=online ", "logger.mode=offline "]),
        ("train device.compile=", ["device.compile=true ", "device.compile=false "]),
        ("train optim.lr=", []),
        ("train sample.prompt=", []),
        ("train nosuch=", []),
        ("train nosuch.", []),
        ("train -m optim=adamw,", ["optim=adamw,muon", "optim=adamw,sgd"]),
        ("train optim=adamw,s", ["optim=adamw,sgd "]),
        ("train --mu", ["--multirun "]),
        ("train --cfg j", ["job "]),
        ("train --cfg=j", ["--cfg=job "]),
        ("train hydra/launcher=j", ["hydra/launcher=joblib "]),
        ("train hydra/launcher=joblib hydra.launcher.n", ["hydra.launcher.n_jobs="]),
        ("sample t", ["temperature=", "top_k=", "top_p="]),
        ("sample stop_at_end=f", ["stop_at_end=false "]),
        ("sample --", ["--help ", "--version "]),
        ("sample model=", []),
        ("prepare tokenizer=w", ["tokenizer=wordpiece "]),
        ("prepare data.te", ["data.text_field="]),
        ("verify_resume --k", ["--kills "]),
        ("verify_resume --kills 3 model=tr", ["model=transformer "]),
        ("verify_resume --kills ", []),
        ("runs li", ["list "]),
        ("runs nosuch ", []),
        ("runs list status=com", ["status=completed "]),
        ("runs list optim.l", ["optim.lr="]),
        ("runs list model=gpt ", ["status=", "val=", "model.", "seed="]),
        ("runs list --sort optim.l", ["optim.lr "]),
        ("runs list --columns val,sta", ["val,status"]),
        ("runs list --rev", ["--reverse "]),
        ("runs list --reverse --sort=va", ["--sort=val "]),
        ("checkpoint ex", ["export "]),
        ("checkpoint export latest folder --a", ["--adapter "]),
        ("completion ", ["bash ", "zsh ", "fish "]),
    ],
)
def test_what_is_offered(line: str, some: Sequence[str]) -> None:
    found = offered(line)
    assert set(some) <= set(found)
    assert bool(found) is bool(some)
    assert len(found) == len(set(found))
    if "," in line.split(" ")[-1]:
        assert found == list(some), "no value twice"


@pytest.mark.parametrize("module", [runs, checkpoint], ids=["runs", "checkpoint"])
def test_every_subcommand_and_option_is_offered(module: ModuleType, tool: Cli) -> None:
    command = module.__name__.rpartition(".")[2]
    found = re.search(r"{([\w,]+)}", module.parser().format_usage())
    assert found is not None
    assert offered(f"{command} ") == [f"{name} " for name in found[1].split(",")]
    for name in found[1].split(","):
        options = re.findall(r"^  (?:-\w(?: \w+)?, )?(--\w+)", tool(module.main, name, "--help").out, re.MULTILINE)
        assert options
        assert {f"{option} " for option in options} <= {*offered(f"{command} {name} --")}


def test_presets_of_the_user_are_offered(home: Path) -> None:
    for name in ("experiment/mine", "experiment/old/first", "optim/quick"):
        (home / "my conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (home / "my conf" / f"{name}.yaml").write_text("seed: 1\n")
    for flag in (["--config-dir", "my conf"], ["--config-dir=my conf"], ["hydra.searchpath=[my conf]"]):
        assert complete("train", flag, "experiment=mi") == ["experiment=mine "]
        assert complete("train", flag, "experiment=old") == ["experiment=old/first "]
        assert "experiment=quick " in complete("train", flag, "experiment=")
        assert "optim.momentum=" in complete("train", [*flag, "optim=quick"], "optim."), "its class is not known"
    assert complete("train", ["--config-dir", "nosuch"], "experiment=quick_") == ["experiment=quick_gpt "]
    assert complete("train", ["--config-dir"], "my") == ["my conf/"]


def test_the_newest_runs_come_first(home: Path) -> None:
    for day in ("2026-11-21", "2026-11-22"):
        for second in range(NEWEST):
            make_run(home / "outputs" / "runs" / day / f"14-04-{second:02}-970214")
    make_sweep(home / "outputs" / "sweeps" / "2026-11-21_23-00-00-000001", jobs=11)
    newest = [f"2026-11-22/14-04-{second:02}-970214 " for second in reversed(range(NEWEST))]
    for line in ("train resume=", "train init_from=", "sample run="):
        name = line.split(" ")[1]
        assert offered(line) == [f"{name}latest ", *(name + run for run in newest)]
    for line in ("runs diff ", "runs diff latest ", "checkpoint verify ", "checkpoint export "):
        assert offered(line) == ["latest ", *newest]
    assert offered("runs diff a b ") == []
    assert offered("sample run=2026-11-21/14-04-07") == ["run=2026-11-21/14-04-07-970214 "]
    # A sweep is followed by its jobs.
    sweep = "2026-11-21_23-00-00-000001"
    assert offered("train resume=2026-11-21_") == [f"resume={sweep}/"]
    assert offered(f"train resume={sweep}/") == [f"resume={sweep}/{job} " for job in reversed(range(11))]
    assert offered("train -m sweep=") == ["sweep=latest ", f"sweep={sweep} "]
    assert offered("runs results ") == ["latest ", f"{sweep} "]
    assert {f"{sweep} ", "latest "} <= {*offered("runs report "), *offered("runs report 2026-11-21_")}


def test_folders_are_offered_for_runs(home: Path) -> None:
    make_run(home / "elsewhere" / "run")
    assert offered("train resume=el") == ["resume=elsewhere/"]
    assert offered("runs diff elsewhere/") == ["elsewhere/run/"]


def test_the_checkpoints_of_the_chosen_run_are_offered(home: Path) -> None:
    make_run(home / "outputs" / "runs" / "2026-11-21" / "10-00-00-000000", 5)
    run = make_run(home / "outputs" / "runs" / "2026-11-20" / "10-00-00-000000", 10, 9, 100)
    for where in (str(run), "2026-11-20/10-00-00-000000"):
        found = offered(f"sample run={where} checkpoint=")
        assert found == [f"checkpoint={name} " for name in ("last", "best", "100", "10", "9")]
    assert offered("sample run=nosuch checkpoint=") == ["checkpoint=last ", "checkpoint=best "]
    assert offered("sample checkpoint=5") == ["checkpoint=5 "], "of the newest run"


def test_files_are_offered_for_paths(home: Path) -> None:
    (home / "texts").mkdir()
    for name in ("texts/my play.txt", "texts/.hidden", "a.py"):
        (home / name).write_text("x")
    for line in ("train data.path=", "prepare output=", "sample prompts_file=", "train tokenizer.path="):
        name = line.split(" ")[1]
        assert offered(line) == [f"{name}a.py ", f"{name}texts/"]
    assert offered("train data.path=texts/") == ["data.path=texts/my play.txt "]
    assert offered("train data.path=./texts/.h") == ["data.path=./texts/.hidden "]
    assert offered("train extensions=") == ["extensions=a.py ", "extensions=texts/"]
    assert offered("runs report latest -o a") == ["a.py "]
    assert offered("checkpoint strip latest --output=te") == ["--output=texts/"]
    assert offered("train --config-dir ") == ["texts/"]
    assert offered("train data.path=nosuch/") == offered("train data.path=~nosuchuser/") == []


@pytest.mark.parametrize("line", ["train model=", "train --", "runs list ", "checkpoint ", "sample run=", "prepare "])
def test_nothing_slow_is_imported(line: str) -> None:
    code = (
        "import sys; from bigramlm.cli.candidates import complete; command, *before, word = sys.argv[1].split(' '); "
        "found = complete(command, before, word); sys.exit(not found or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, line], check=False).returncode == 0


def test_the_commands_without_a_parser_have_a_config() -> None:
    for command, (name, _) in COMMANDS.items():
        if name.startswith("bigramlm.cli.") and command != "train":
            module = importlib.import_module(name)
            assert hasattr(module, "parser") or hasattr(module, f"{command.capitalize()}Command"), command
