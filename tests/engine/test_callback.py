"""Tests of the checks before a run or a sweep: its folder and its launcher."""

from pathlib import Path

import pytest

from tests.helpers import SHORT, Cli, assert_refused


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["hydra.run.dir="], "is empty"),
        (["hydra.run.dir=''"], "is empty"),
        (["-m", "seed=1,2", "hydra.sweep.dir="], "is empty"),
        (["hydra.run.dir=${foo}"], "foo"),
        (["-m", "seed=1,2", "hydra.sweep.dir=${foo}"], "foo"),
    ],
)
def test_an_output_folder_without_a_name_is_refused(
    arguments: list[str], named: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = cli(*SHORT, *arguments, run_dir=False)
    assert_refused(ended, arguments[-1].partition("=")[0], named)
    assert ended.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_machine_without_slurm_is_refused_before_the_sweep_is_planned(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    folder = tmp_path / "sweep"
    ended = cli("-m", *SHORT, "seed=1,2", "hydra/launcher=submitit_slurm", f"hydra.sweep.dir={folder}", run_dir=False)
    assert_refused(ended, "hydra/launcher=submitit_slurm", "sbatch", "srun", "submitit_local")
    assert ended.err.count("\n") == 1
    assert not folder.exists()


def test_environment_variables_of_a_preset_are_announced(cli: Cli, tmp_path: Path) -> None:
    recipe = tmp_path / "presets" / "experiment" / "theirs.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text("# @package _global_\nhydra: {job: {env_set: {THEIRS: /a, MINE: /b}}}\n", "utf-8")
    command = (*SHORT, "trainer.steps=0", f"--config-dir={recipe.parents[1]}", "experiment=theirs")
    ended = cli(*command, "hydra.job.env_set.MINE=/c")
    assert ended.code == 0, ended.err
    assert "a preset sets the environment variable THEIRS=/a" in ended.err
    assert "MINE" not in ended.err, "it was typed"
