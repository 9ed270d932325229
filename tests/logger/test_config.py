"""Tests of W&B's rules for names, tags and modes, which are checked before a run."""

import subprocess
import sys
from pathlib import Path

import pytest

from bigramlm.engine.load import load_model, open_checkpoint
from bigramlm.logger.config import LoggerConfig
from tests.helpers import SHORT, Cli, assert_refused, refuses, resumed

# Values that W&B refuses, by the field: in a field, and in the variable that W&B reads.
REFUSED = {
    **{f"logger.project={value}": value for value in ("a/b", "a\\b", "a#b", "a?b", "a%b", "a:b", "x" * 129, "", " ")},
    "logger.group": "g" * 129,
    "logger.name": "n" * 129,
}
VARIABLES = {"project": "WANDB_PROJECT", "group": "WANDB_RUN_GROUP", "name": "WANDB_NAME"}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES.values(), "WANDB_ENTITY", "WANDB_TAGS", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("field", "value"), [(field.partition("=")[0], value) for field, value in REFUSED.items()])
def test_names_are_checked_in_fields_and_in_the_environment(
    field: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = field.removeprefix("logger.")
    with refuses("W&B", field=field, value=value):
        LoggerConfig(use=["wandb"], **{name: value}).check()  # type: ignore[arg-type]
    LoggerConfig(use=["tensorboard"], **{name: value}).check()  # type: ignore[arg-type]
    LoggerConfig(use=["wandb"], mode="disabled", **{name: value}).check()  # type: ignore[arg-type]
    if not value.strip():  # an empty variable is unset
        return
    monkeypatch.setenv(VARIABLES[name], value)
    with refuses("W&B", field=VARIABLES[name], value=value):
        LoggerConfig(use=["wandb"]).check()
    LoggerConfig().check()


@pytest.mark.parametrize("tag", ["", "t" * 65])
def test_tags_have_1_to_64_characters(tag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with refuses(len(tag), "64", field="logger.tags"):
        LoggerConfig(use=["tensorboard", "wandb"], tags=["a", tag]).check()
    monkeypatch.setenv("WANDB_TAGS", f"a,{tag}")
    with refuses(len(tag), "64", field="WANDB_TAGS"):
        LoggerConfig(use=["wandb"]).check()


def test_valid_names_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    free = "a/b#c: 100% 日本"
    longest = {"project": "p" * 128, "name": free, "group": "g" * 128}
    LoggerConfig(use=["wandb"], tags=["t" * 64, free], **longest).check()
    for name in (*VARIABLES.values(), "WANDB_TAGS", "WANDB_ENTITY"):
        monkeypatch.setenv(name, "")
    LoggerConfig(use=["wandb"]).check()
    for name, value in {"WANDB_NAME": free, "WANDB_RUN_GROUP": free, "WANDB_TAGS": "a,b", "WANDB_ENTITY": "us"}.items():
        monkeypatch.setenv(name, value)
    LoggerConfig(use=["wandb"]).check()
    monkeypatch.setenv("WANDB_ENTITY", "us/them")
    with refuses("W&B", field="WANDB_ENTITY", value="us/them"):
        LoggerConfig(use=["wandb"]).check()


@pytest.mark.parametrize(
    ("typed", "mode"),
    [
        *(("online", "online"), ("OFFLINE", "offline"), (" Offline ", "offline"), ("Disabled\n", "disabled")),
        *(("", "online"), ("  ", "online"), ("dryrun", "offline"), ("RUN", "online")),
    ],
)
def test_wandb_mode_is_understood(typed: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", typed)
    assert LoggerConfig(use=["wandb"]).wandb_mode == mode
    assert LoggerConfig(use=["wandb"], mode="offline").wandb_mode == "offline", "the field takes precedence"


@pytest.mark.parametrize(("typed", "mode"), [("Offline", "offline"), (" DISABLED ", "disabled"), ("dryrun", "offline")])
def test_the_field_is_understood_like_the_variable(typed: str, mode: str) -> None:
    assert LoggerConfig(use=["wandb"], mode=typed).mode == mode
    with refuses("online", "offline", "disabled", field="logger.mode", value="Ofline"):
        LoggerConfig(mode="Ofline")


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("WANDB_RUN_ID", "a/b", "characters"),
        ("WANDB_BASE_URL", "foo", "URL"),
        ("WANDB_CONSOLE", "foo", "redirect"),
        ("WANDB_INIT_TIMEOUT", "x", "number"),
        ("WANDB_RESUME", "x", "allow"),
        ("WANDB_SILENT", "perhaps", "boolean"),
    ],
)
def test_variables_that_wandb_refuses_are_refused(
    name: str, value: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "")
    LoggerConfig(use=["wandb"]).check()
    monkeypatch.setenv(name, value)
    with refuses("W&B", named, "unset", field=name, value=value):
        LoggerConfig(use=["wandb"]).check()
    LoggerConfig(use=["tensorboard"]).check()
    LoggerConfig(use=["wandb"], mode="disabled").check()


def test_an_unknown_wandb_mode_is_refused_only_if_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with refuses("online", "offline", "disabled", field="WANDB_MODE", value="ofline"):
        LoggerConfig(use=["wandb"]).check()
    LoggerConfig(use=["wandb"], mode="offline").check()
    LoggerConfig(use=["tensorboard"]).check()


def test_a_run_and_a_sweep_are_refused_before_they_begin(cli: Cli, tmp_path: Path) -> None:
    refused = cli(*SHORT, "logger=wandb", "logger.project=a:b")
    assert_refused(refused, "/ \\ # ? % :", field="logger.project", value="a:b")
    assert not (refused.folder / "metrics.jsonl").exists()
    folder = tmp_path / "sweep"
    swept = cli("-m", *SHORT, "logger=wandb", "logger.tags=[a],['']", f"hydra.sweep.dir={folder}", run_dir=False)
    assert_refused(swept, "64", field="logger.tags")
    assert not (folder / "0" / "metrics.jsonl").exists(), "no job has begun"


def test_a_run_with_such_a_name_still_loads_and_resumes_with_another(cli: Cli) -> None:
    """Change a run to one as earlier versions made it: W&B failed with a warning."""
    run = cli(*SHORT).folder
    for path in (run / "config.yaml", run / "checkpoints" / "step_5" / "config.yaml"):
        text = path.read_text("utf-8")
        path.write_text(text.replace("use: []", "use: [wandb]").replace("project: bigramlm", "project: a/b"), "utf-8")
    step = run / "checkpoints" / "step_5"
    (step / "manifest.json").unlink()
    from bigramlm.checkpoint.format import write_manifest

    write_manifest(step, 5)
    _, _, cfg = load_model(open_checkpoint(str(run)))
    assert cfg.logger.project == "a/b"
    assert_refused(resumed(cli, run, "trainer.steps=8"), field="logger.project", value="a/b")
    again = resumed(cli, run, "trainer.steps=8", "logger.project=ab", "logger.mode=disabled")
    assert again.code == 0, again.err


CODE = """
import sys
from pathlib import Path
from bigramlm.logger.base import LoggerContext
from bigramlm.logger.config import LoggerConfig
from bigramlm.logger.wandb import WandbLogger
WandbLogger(LoggerConfig(use=["wandb"]), LoggerContext(Path(sys.argv[1]), {}, "id")).close(completed=True)
"""


@pytest.mark.parametrize("mode", [" Offline ", "DRYRUN"])
def test_wandb_itself_starts_with_such_an_environment(mode: str, tmp_path: Path) -> None:
    empty = dict.fromkeys(("WANDB_PROJECT", "WANDB_TAGS", "WANDB_NAME", "WANDB_RUN_GROUP", "WANDB_ENTITY"), "")
    env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "WANDB_MODE": mode, **empty}
    subprocess.run([sys.executable, "-c", CODE, str(tmp_path)], env=env, check=True, cwd=Path(__file__).parents[2])
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
