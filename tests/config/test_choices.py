"""Tests of presets that do not exist: what may be meant instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from bigramlm.config.choices import meant, presets
from tests.helpers import SHORT, Cli, assert_refused


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    """Return a folder of recipes with unusual names."""
    for name in ("1.yaml", "null.yaml", "deep2.yaml", "sub/deep.yaml", "short.yml"):
        path = tmp_path / "presets" / "experiment" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("# @package _global_\nseed: 7\n", "utf-8")
    return tmp_path / "presets"


def test_presets_in_subfolders_are_listed(recipes: Path) -> None:
    assert presets("experiment", [recipes, recipes]) == ["1", "deep2", "null", "sub/deep"]
    assert presets("model", [recipes]) == []


@pytest.mark.parametrize(
    "name", ["deep", "Deep", "sub/deep.yaml", "rec/experiment/sub/deep.yaml", "../deep", "sub/dep"]
)
def test_a_preset_is_recognised_in_a_path(name: str) -> None:
    assert meant(name, ["quick", "sub/deep"]) == "sub/deep"
    assert meant(name, ["quick"]) is None


@pytest.mark.parametrize(
    ("choice", "advice"),
    [
        ("deep", "did you mean experiment=sub/deep?"),
        ("short", "must be named *.yaml"),
        ("short.yml", "must be named *.yaml"),
        ("1", "write 'experiment=\"1\"'"),
        ("null", "write 'experiment=\"null\"'"),
        ("2", "choose one of 1, deep2"),
    ],
)
def test_a_recipe_of_the_users_is_proposed(choice: str, advice: str, recipes: Path, cli: Cli) -> None:
    assert_refused(cli(f"--config-dir={recipes}", f"experiment={choice}"), advice, field="experiment", value=choice)


@pytest.mark.parametrize("choice", ['"1"', "sub/deep"])
def test_the_proposed_spelling_works(choice: str, recipes: Path, cli: Cli) -> None:
    ended = cli(f"--config-dir={recipes}", f"experiment={choice}", *SHORT, "trainer.steps=0")
    assert ended.code == 0, ended.err
    assert "seed: 7" in (ended.folder / "config.yaml").read_text("utf-8")
