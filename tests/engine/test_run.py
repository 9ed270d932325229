"""The recipe: a config is resolved once, and then only read."""

import copy
from pathlib import Path

import pytest

from bigramlm.config.overrides import Overrides
from bigramlm.config.run_config import RunConfig, load, to_dict
from bigramlm.engine import run as recipe
from bigramlm.runs.folder import RunFolder
from bigramlm.utils.stop import Stopped, StopSignals
from tests.helpers import SHORT, run_config

TINY = (*SHORT, "model=gpt", "model.n_layer=1", "model.n_head=2", "model.n_embd=16", "data.block_size=16")


def ran(folder: Path, *words: str, job: recipe.JobContext | None = None) -> tuple[RunConfig, recipe.RunEnd | None]:
    """Run a config in this folder; returns what was asked for, which is as it was, and what it came to."""
    asked = run_config(*words)
    before = copy.deepcopy(asked)
    run = RunFolder(folder)
    folder.mkdir(exist_ok=True)
    run.claim() if asked.resume is None else run.reopen()
    end = recipe.run(asked, Overrides(words), run, StopSignals(), job or recipe.JobContext())
    assert asked == before, "nobody wrote a field of what was asked for"
    return asked, end


@pytest.mark.parametrize("words", [SHORT, (*SHORT, "model=ngram"), (*TINY, "device.precision=fp32")])
def test_what_is_saved_leaves_nothing_open_and_says_nothing_of_how_it_came_about(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    asked, end = ran(tmp_path / "run", *words)
    assert end is not None
    assert end.final.keys() == {"train/loss", "val/loss", "val/bpc"}
    saved = load(tmp_path / "run" / "config.yaml")
    assert "auto" not in (saved.device.name, saved.device.precision, saved.device.threads)
    assert (saved.resume, saved.sweep, saved.base) == (None, None, None)
    assert saved.trainer.steps == (asked.trainer.steps if saved.model.trains else 0)
    same = {name: part for name, part in to_dict(saved).items() if name not in ("device", "trainer")}
    assert same == {name: to_dict(asked)[name] for name in same}


def test_what_weights_decide_is_in_what_is_saved(tmp_path: Path) -> None:
    ran(tmp_path / "base", *TINY)
    words = (*SHORT, "model=gpt", f"init_from={tmp_path / 'base'}", "model.n_layer=1", "model.n_head=2")
    asked, _ = ran(tmp_path / "run", *words, "model.n_embd=16")
    saved = load(tmp_path / "run" / "config.yaml")
    assert (asked.data.block_size, saved.data.block_size) == (8, 16)
    assert str(saved.init_from).endswith("step_5")


def test_a_resumed_run_reads_its_config_too(tmp_path: Path) -> None:
    ran(tmp_path / "run", *SHORT)
    _, end = ran(tmp_path / "run", f"resume={tmp_path / 'run'}", "trainer.steps=8")
    assert end is not None
    saved = load(tmp_path / "run" / "config.yaml")
    assert (saved.trainer.steps, saved.resume) == (8, None)


def test_a_sweep_passes_down_whether_to_prune(tmp_path: Path) -> None:
    asked_at: list[int] = []

    def prunes(step: int, found: object) -> bool:
        asked_at.append(step)
        return step == 2

    _, end = ran(tmp_path / "run", *SHORT, job=recipe.JobContext(("seed",), {"seed": "1"}, prunes))
    assert end is None
    assert asked_at == [0, 2]


def test_a_run_that_is_to_stop_saves_and_says_so(tmp_path: Path) -> None:
    class Stops(StopSignals):
        def requested(self) -> bool:
            self.received = 15
            return True

    asked, run = run_config(*SHORT), RunFolder(tmp_path)
    run.claim()
    with pytest.raises(Stopped) as stopped:
        recipe.run(asked, Overrides(SHORT), run, Stops(), recipe.JobContext())
    assert stopped.value.signal == 15
    assert (tmp_path / "checkpoints" / "step_0").is_dir()
