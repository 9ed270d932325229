"""Tests of recipes in folders of the user's: they are read as those in conf/."""

from pathlib import Path

import pytest
from hydra.types import RunMode

from bigramlm.config.run_config import load
from bigramlm.engine.command_line import open_hydra, parse_flags, set_up_hydra
from bigramlm.engine.recipes import check_recipes, field_of_recipes, preset_folders
from bigramlm.utils import paths
from tests.helpers import SHORT, Cli, assert_refused, command, refuses, summary

RECIPES = {
    "mine": "init_from: RUN",
    "child": "defaults: [mine]\nseed: 3",
    "overrides": "defaults: [mine]\ninit_from: other",
    "deep/nested": "init_from: nested",
    "damaged": "init_from: [",
    "other": "seed: 4",
    "of v2.0": "init_from: RUN",
    "absolute": "defaults: [/experiment/mine]",
    "packaged": "defaults: [mine@_global_]",
    "grouped": "defaults: [{/experiment@_global_: mine}, {override /optim: sgd}]",
    "several": "defaults: [{/experiment@_global_: [mine, deep/nested]}]",
    "last": "defaults: [mine, _self_]\ninit_from: null",
    "first": "defaults: [_self_, mine]\ninit_from: null",
    "unsaid": "defaults: [mine]\ninit_from: null",
    "two": "defaults: [mine, last]",
    "optional": "defaults: [{optional /experiment@_global_: mine}]",
    "deep/beside": "defaults: [deep/nested]",
    "elsewhere": "defaults: [mine@sample]",
    "circle": "defaults: [circle2]",
    "circle2": "defaults: [circle]",
}


@pytest.fixture
def presets(tmp_path: Path) -> Path:
    folder = tmp_path / "presets with a space"
    for name, content in RECIPES.items():
        path = folder / "experiment" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# @package _global_\n{content}\n", "utf-8")
    return folder


@pytest.mark.parametrize("name", [name for name in RECIPES if not name.startswith("circle")])
def test_a_field_is_found_in_a_recipe_or_its_defaults(name: str, presets: Path) -> None:
    expected = {"mine": "RUN", "child": "RUN", "overrides": "other", "deep/nested": "nested"}
    expected |= {"of v2.0": "RUN", "absolute": "RUN", "packaged": "RUN", "grouped": "RUN", "several": "nested"}
    expected |= {"first": "RUN", "optional": "RUN", "deep/beside": "nested"}
    folders = [paths.conf_dir(), presets]
    assert field_of_recipes("init_from", name, folders) == [expected.get(name)]
    assert field_of_recipes("init_from", f"{name}.yaml", folders) == [expected.get(name)]
    assert field_of_recipes("init_from", f"[{name},mine]", folders) == [expected.get(name), "RUN"]


HYDRAS = ["last", "first", "unsaid", "two", "packaged", "grouped", "several", "optional", "deep/beside", "deep/nested"]


@pytest.mark.parametrize("name", HYDRAS)
def test_a_field_has_the_value_that_hydra_composes(name: str, presets: Path) -> None:
    set_up_hydra()
    with open_hydra(parse_flags([f"--config-dir={presets}"])) as hydra:
        composed = hydra.compose_config("train", [f"experiment={name}"], RunMode.RUN)
    assert field_of_recipes("init_from", name, [presets]) == [composed.init_from]


@pytest.mark.parametrize("group", ["experiment", "/experiment"])
def test_a_recipe_in_the_defaults_needs_no_group(group: str, presets: Path) -> None:
    (presets / "experiment" / "wrong.yaml").write_text(f"# @package _global_\ndefaults: [{{{group}: mine}}]\n", "utf-8")
    assert_refused(command("--config-dir", str(presets), "experiment=wrong"), "experiment=wrong", "write - mine")


def test_a_circle_of_recipes_is_refused_in_one_line(presets: Path) -> None:
    assert_refused(command("--config-dir", str(presets), *SHORT, "experiment=circle"), "experiment=circle", "circle2")
    assert_refused(command("--config-dir", "x" * 300, *SHORT), "--config-dir=", "too long")
    assert_refused(command(*SHORT, "sample.prompt=\udcff"), "not UTF-8")


def test_folders_are_found_in_the_arguments(tmp_path: Path) -> None:
    for arguments in (
        ["--config-dir", str(tmp_path)],
        [f"--config-dir={tmp_path}", "seed=1"],
        ["-cd", str(tmp_path)],
        [f"hydra.searchpath=[file://{tmp_path},pkg://somewhere]"],
    ):
        assert preset_folders(parse_flags(arguments)) == [tmp_path, paths.conf_dir()]
    for argument in ("--config-dir=nosuch", "hydra.searchpath=[nosuch]", "hydra.searchpath=['file:///nosuch']"):
        with refuses(argument.partition("=")[0], "nosuch", "no such folder"):
            preset_folders(parse_flags([argument]))


REFUSED = {
    "\N{ZERO WIDTH NO-BREAK SPACE}# @package _global_\nseed: 3\n": ["byte-order mark"],
    "# @package _global_\nresume: a\n": ["resume=a", "command line"],
    "# @package _global_\nsweep: latest\n": ["sweep=latest", "command line"],
    "# @package _global_\n- a\n": ["is a list"],
    "- a\n": ["is a list"],
}


@pytest.mark.parametrize("content", REFUSED)
@pytest.mark.parametrize("names", ["wrong", "wrong.yaml", "[other,wrong]", "other,wrong"])
def test_a_recipe_that_would_be_ignored_is_refused(content: str, names: str, presets: Path) -> None:
    path = presets / "experiment" / "wrong.yaml"
    path.write_text(content, "utf-8")
    with refuses(path, *REFUSED[content]):
        check_recipes(names, [presets, paths.conf_dir()])


@pytest.mark.parametrize(
    "form", ["--config-dir=FOLDER", "hydra.searchpath=[FOLDER]", "hydra.searchpath=[file://FOLDER]"]
)
def test_a_preset_of_the_users_replaces_one_of_the_same_name(form: str, tmp_path: Path) -> None:
    folder = tmp_path / "presets"
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment" / "quick.yaml").write_text("# @package _global_\nseed: 99\n", "utf-8")
    arguments = [form.replace("FOLDER", str(folder)), "experiment=quick"]
    assert "seed: 99" in command("--help", *arguments).out
    assert "seed: 99" in command("--cfg", "job", *arguments).out
    ended = command(*SHORT, *arguments, "trainer.steps=1", f"hydra.run.dir={tmp_path / 'run'}")
    assert ended.code == 0, ended.err
    assert load(tmp_path / "run" / "config.yaml").seed == 99


@pytest.mark.parametrize("form", ["--config-dir", "hydra.searchpath"])
def test_a_recipe_elsewhere_sets_the_initial_weights(form: str, presets: Path, tmp_path: Path, cli: Cli) -> None:
    first = cli(*SHORT, "model=gpt", "model.n_layer=1", "model.n_embd=16", "model.n_head=2", "tokenizer=byte").folder
    path = presets / "experiment" / "mine.yaml"
    path.write_text(path.read_text("utf-8").replace("RUN", str(first)), "utf-8")
    folder = ["--config-dir", str(presets)] if form == "--config-dir" else [f'{form}=["file://{presets}"]']
    run = tmp_path / "second"
    for recipe in ("mine", "child"):
        ended = command(*folder, *SHORT, f"experiment={recipe}", f"hydra.run.dir={run}_{recipe}")
        assert ended.code == 0, ended.err
        assert summary(Path(f"{run}_{recipe}"))["vocab_size"] == 256
    shown = command("--help", *folder, f"experiment={recipe}").out
    assert " child " in shown
    assert "seed: 3" in shown
