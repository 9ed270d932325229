"""The run config: what it refuses, and what it reads back."""

from pathlib import Path

import pytest

from bigramlm.config import TrainerConfig, load, to_dict, to_yaml
from bigramlm.data.config import ShakespeareConfig
from bigramlm.optim.config import AdamWConfig
from tests.helpers import refuses, run_config


def test_the_defaults_are_the_tutorials() -> None:
    cfg = run_config()
    assert isinstance(cfg.data, ShakespeareConfig)
    assert (cfg.data.block_size, cfg.data.batch_size, cfg.data.train_fraction) == (8, 32, 0.9)
    assert isinstance(cfg.optim, AdamWConfig)
    assert (cfg.optim.lr, cfg.trainer.steps, cfg.sample.max_new_tokens) == (1e-3, 10_000, 300)


def test_code_sees_plain_dataclasses() -> None:
    cfg = run_config("optim.betas=[0.5,0.6]")
    assert type(cfg.trainer) is TrainerConfig
    assert isinstance(cfg.optim, AdamWConfig)
    assert type(cfg.optim.betas) is list


def test_yaml_is_read_back(tmp_path: Path) -> None:
    cfg = run_config("data=bundled", "logger.tags=[a,b]", "seed=5", "trainer.eval_batches=all")
    (tmp_path / "config.yaml").write_text(to_yaml(cfg), "utf-8")
    again = load(tmp_path / "config.yaml")
    assert again == cfg
    assert type(again.data) is type(cfg.data)
    assert to_dict(again) == to_dict(cfg)


@pytest.mark.parametrize(
    "content", ["", "- a list", "model: {name: nosuch}", "seed: 1", "a: [1", "model: {name: bigram, width: 3}"]
)
def test_what_no_run_saved_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content, "utf-8")
    with refuses(path):
        load(path)


@pytest.mark.parametrize(
    ("override", "field", "there_are"),
    [
        ("+optim.lrr=1", "optim.lrr", "lr, "),
        ("++optim.lrr=1", "optim.lrr", "lr, "),
        ("+foo=1", "foo", "optim, "),
        ("+foo.bar=1", "foo", "optim, "),
        ("+data.path=a", "data.path", "block_size, "),
    ],
)
def test_fields_that_nothing_would_read_are_refused(override: str, field: str, there_are: str) -> None:
    with refuses(there_are, field=field):
        run_config(override)


def test_a_value_that_is_missing_is_named() -> None:
    with refuses("data.path=", field="data.path"):
        run_config("data=text")
