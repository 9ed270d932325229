"""Tests of the run config: refusals, YAML and hashes."""

import dataclasses
import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from bigramlm.config import run_config as config
from bigramlm.config.run_config import (
    KINDS,
    RunConfig,
    SampleConfig,
    config_hash,
    config_hashes,
    default_of,
    load,
    to_dict,
    to_yaml,
)
from bigramlm.data.config import ShakespeareConfig
from bigramlm.optim.config import AdamWConfig
from bigramlm.trainer.config import TrainerConfig
from bigramlm.utils import paths
from tests.helpers import refuses, run_config


def test_defaults_match_the_tutorial() -> None:
    cfg = run_config()
    assert isinstance(cfg.data, ShakespeareConfig)
    assert (cfg.data.block_size, cfg.data.batch_size, cfg.data.train_fraction) == (8, 32, 0.9)
    assert isinstance(cfg.optim, AdamWConfig)
    assert (cfg.optim.lr, cfg.trainer.steps, cfg.sample.max_new_tokens) == (1e-3, 10_000, 300)


def test_configs_are_plain_dataclasses() -> None:
    cfg = run_config("optim.betas=[0.5,0.6]")
    assert type(cfg.trainer) is TrainerConfig
    assert isinstance(cfg.optim, AdamWConfig)
    assert type(cfg.optim.betas) is list


def test_yaml_round_trip(tmp_path: Path) -> None:
    cfg = run_config("data=bundled", "logger.tags=[a,b]", "seed=5", "trainer.eval_batches=all")
    (tmp_path / "config.yaml").write_text(to_yaml(cfg), "utf-8")
    again = load(tmp_path / "config.yaml")
    assert again == cfg
    assert type(again.data) is type(cfg.data)
    assert to_dict(again) == to_dict(cfg)


@pytest.mark.parametrize(
    "content", ["", "- a list", "model: {name: nosuch}", "seed: 1", "a: [1", "model: {name: bigram, width: 3}"]
)
def test_invalid_saved_config_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content, "utf-8")
    with refuses(path):
        load(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", "${oc.env:SEED}"),
        ("data.url", "http://host/?t=${oc.env:SECRET}"),
        ("sample.prompt", "${seed}"),
        ("extensions", [{"name": "${oc.env:HOME}", "sha256": ""}]),
    ],
)
def test_a_saved_config_has_no_interpolations(tmp_path: Path, field: str, value: object) -> None:
    """They would read the environment, or anything else that a resolver can."""
    content = OmegaConf.create(to_yaml(run_config("data=shakespeare")))
    OmegaConf.update(content, field, value)
    path = tmp_path / "config.yaml"
    path.write_text(OmegaConf.to_yaml(content), "utf-8")
    with refuses(path, "${", "interpolation"):
        load(path)


def test_escaped_references_are_text(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    for text in ("${seed}", "\\${seed}", "\\\\${seed}", "$ {", "a\\"):
        cfg = dataclasses.replace(run_config(), sample=SampleConfig(prompt=text))
        path.write_text(to_yaml(cfg), "utf-8")
        assert load(path).sample.prompt == text


@pytest.mark.parametrize("override", ["+data.path=a", "++data.path=a", "+model.n_layer=2"])
def test_fields_of_other_presets_are_refused(override: str) -> None:
    with refuses("the fields are name", field=override.lstrip("+").partition("=")[0]):
        run_config(override)


def test_missing_value_is_named() -> None:
    with refuses("data.path=", field="data.path"):
        run_config("data=text")


def test_hash_covers_fields_that_differ_from_their_defaults() -> None:
    plain = config_hash(run_config())
    assert config_hash(run_config("optim.lr=1e-3", "seed=1337", "data.block_size=8")) == plain
    changed = ["optim.lr=1e-2", "seed=1", "model=gpt", "data=bundled", "tokenizer=byte", "preflight=false"]
    assert len({plain, *(config_hash(run_config(override)) for override in changed)}) == 7
    for start in ({"resume": "a"}, {"sweep": "b"}, {"base": "c"}):
        cfg: RunConfig = dataclasses.replace(run_config(), **start)  # type: ignore[arg-type]
        assert config_hashes(cfg) == config_hashes(run_config())


def with_a_new_field(value: int) -> RunConfig:
    """Return a config of a later version, whose optimizer has an additional field."""
    newer = dataclasses.make_dataclass("Newer", [("extra", int, dataclasses.field(default=0))], bases=(AdamWConfig,))
    cfg = run_config("optim.lr=0.1")
    cfg.optim = newer(**vars(cfg.optim), extra=value)
    return cfg


def test_new_field_with_a_default_does_not_change_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    before = config_hashes(run_config("optim.lr=0.1"))
    monkeypatch.setattr(config, "ADDED", config.ADDED | {"optim.extra"})
    assert config_hashes(with_a_new_field(0)) == before
    (changed,) = config_hashes(with_a_new_field(1))
    assert changed not in before


def test_defaults_still_match_old_hashes() -> None:
    """A changed default would give old hashes another meaning."""
    known = json.loads((paths.home() / "tests" / "old" / "defaults.json").read_text("utf-8"))
    kinds = {f"{group}.{name}": kind for group, classes in KINDS.items() for name, kind in classes.items()}
    one_kind = {
        of.name: type(default_of(of))
        for of in dataclasses.fields(RunConfig)
        if dataclasses.is_dataclass(default_of(of))
    }
    added = set()
    for name, kind in {**kinds, **one_kind, "run": RunConfig}.items():
        if name not in known:  # no old hash is that of a kind that was added later
            continue
        now = {of.name: default_of(of) for of in dataclasses.fields(kind) if name == "run" or of.name != "name"}
        for field, default in known[name].items():
            assert json.loads(json.dumps(now[field], default=str)) == default, f"{name}: {field}"
        group = "" if name == "run" else name.split(".")[0] + "."
        added |= {f"{group}{field}" for field in now.keys() - known[name].keys() - {*KINDS, *one_kind}}
    assert added == config.ADDED, "ADDED lists the fields that old hashes lack"


def test_a_config_of_an_earlier_version_reads_its_text_as_then(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml(run_config("data=text", "data.path=a.json")), "utf-8")
    assert getattr(config.load(path).data, "format") == "auto"  # noqa: B009 - not every dataset has it
    path.write_text(path.read_text("utf-8").replace("  format: auto\n", ""), "utf-8")
    assert getattr(config.load(path).data, "format") == "suffix"  # noqa: B009
