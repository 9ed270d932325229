"""Every preset in conf/, and what it does; they are found, and none is left out."""

import functools
import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from bigramlm.checkpoint.checkpoint import Checkpoint
from bigramlm.checkpoint.manager import Checkpoints
from bigramlm.cli import checkpoint as checkpoint_tool
from bigramlm.cli import prepare, sample
from bigramlm.cli.help import choices_of_groups
from bigramlm.cli.verify_resume import compare
from bigramlm.config.run_config import GROUPS, KINDS, to_yaml
from bigramlm.device.device import Device
from bigramlm.engine.load import load_model
from bigramlm.model.base import is_count_table
from bigramlm.model.config import GPTConfig, ModelConfig
from bigramlm.optim.config import SGDConfig
from bigramlm.trainer.step import TrainStep
from bigramlm.utils import paths
from tests.helpers import (
    PRESETS,
    Cli,
    assert_refused,
    composed,
    cut_back,
    gpt2_folder,
    gpts,
    resumed,
    run_config,
    summary,
    table,
)

ALL = sorted((path.parent.name, path.stem) for path in paths.conf_dir().glob("*/*.yaml") if path.parent.name != "hydra")

# Groups whose presets go with any of each other: one run has the first of each, the next the second, and so on.
MIXED = ("tokenizer", "optim", "device", "trainer", "logger")
NAMES = {group: [name for of, name in ALL if of == group] for group in GROUPS}
MIXES = [
    {group: NAMES[group][n % len(NAMES[group])] for group in MIXED}
    for n in range(max(len(NAMES[group]) for group in MIXED))
]
ALONE = [(group, name) for group, name in ALL if group not in (*MIXED, "model")]

# A run of a model that is over soon, but has evaluations, a checkpoint to go on from, and a sample.
RUN = (
    *("data=bundled", "data.block_size=16", "data.batch_size=4", "logger=none", "device.threads=1"),
    *("trainer.steps=4", "trainer.eval_every=2", "trainer.eval_batches=2", "trainer.log_every=1"),
    *("trainer.checkpoint_every=2", "trainer.keep_checkpoints=99", "sample.max_new_tokens=20"),
)
# All that a model's training can have, where it has it.
HARDER = ("optim.schedule=cosine", "optim.warmup_steps=2", "optim.grad_clip=1", "trainer.grad_accumulation=2")
# What changes how a GPT is trained: one of these with each, in turn; all of them with all in long tests.
WAYS = (
    *(f"optim={name}" for name in KINDS["optim"]),
    *("model.ngram_order=3", "trainer.activation_checkpointing=true"),
)


@functools.cache
def model_of(preset: str) -> ModelConfig:
    return run_config(f"model={preset}").model


WAY = {**dict.fromkeys(PRESETS, WAYS[0]), **dict(zip(gpts(), itertools.cycle(WAYS), strict=False))}
# A preset of each class of model; the others are of the same classes.
A_CLASS = set({KINDS["model"].get(preset): preset for preset in PRESETS}.values())
SAMPLED = [pytest.param(preset, marks=[] if preset in A_CLASS else [pytest.mark.slow]) for preset in PRESETS]


def shrunk(model: Any) -> list[str]:
    """Return overrides that make a model of this config small."""
    if not hasattr(model, "n_embd"):
        return []
    return [f"model.n_embd={4 * model.n_head}", f"model.n_layer={min(2, model.n_layer)}"]


def overrides(preset: str, *more: str) -> list[str]:
    dropout = ["model.dropout=0.1"] if preset in gpts() else []
    return [*RUN, f"model={preset}", *shrunk(model_of(preset)), *dropout, *more]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for runs that several tests read."""
    return tmp_path_factory.mktemp("shared")


def trained(preset: str, place: Path, cli: Cli) -> Path:
    """Return the run of a preset that tests share: none may write to it."""
    folder = place / preset
    if not folder.exists():
        # What takes no steps needs no warmup, and may have any.
        longer = [] if model_of(preset).trains else ["optim.warmup_steps=100"]
        given = overrides(preset, WAY[preset], *HARDER, *longer)
        ended = cli(*given, f"hydra.run.dir={folder}", run_dir=False)
        assert ended.code == 0, ended.err
        assert "preflight: passed" in ended.err
    return folder


def newest(folder: Path) -> Checkpoint:
    found = Checkpoints(folder / "checkpoints").newest()
    assert found is not None
    return found


# Presets of all groups


def test_all_groups_are_found_and_offered() -> None:
    assert {group for group, _ in ALL} == set(GROUPS)
    for group, name in ALL:
        assert name in choices_of_groups()[group]


def test_every_kind_has_its_preset() -> None:
    for group, kinds in KINDS.items():
        assert set(kinds) <= {name for found, name in ALL if found == group}


def goes_on(experiment: str) -> bool:
    """Tell whether an experiment is of trained weights: it, or one that it stands on, names init_from somewhere."""
    path = paths.conf_dir() / "experiment" / f"{experiment}.yaml"
    preset = OmegaConf.load(path)
    assert isinstance(preset, DictConfig)
    on = [other for other in preset.get("defaults", []) if isinstance(other, str)]
    return "init_from" in path.read_text("utf-8") or any(goes_on(other) for other in on)


@pytest.fixture
def needed(text_file: Path, tool: Cli) -> Any:
    """Make what presets need besides: fields that have no default, trained weights.

    What is given back is all overrides, and what these compose but for those that had no default.
    """

    def of(*chosen: str) -> tuple[list[str], DictConfig]:
        trained, needs = [], set()
        if any(word.startswith("experiment=") and goes_on(word.partition("=")[2]) for word in chosen):
            trained.append(f"init_from={gpt2_folder(text_file.with_name('gpt2'))}")
        cfg, found = composed(*chosen, *trained), list(chosen)
        needs |= OmegaConf.missing_keys(cfg)
        if "path" in cfg.tokenizer and not trained:
            needs.add("tokenizer.path")
        for field in sorted(needs):
            if field == "tokenizer.vocab_size":
                found.append(f"{field}=300")
            elif field == "data.path" and cfg.data.name == "pairs":
                pairs = text_file.with_name("pairs.jsonl")
                pairs.write_text('{"prompt": "2 + 3 =", "completion": " 5"}\n' * 10, "utf-8")
                found.append(f"{field}={pairs}")
            elif field == "tokenizer.path" or cfg.data.name == "tokens":
                tokens = text_file.with_name("tokens")
                tool(prepare.main, f"data.path={text_file}", "tokenizer=byte", f"output={tokens}")
                found.append(f"{field}={tokens}")
            else:
                found.append(f"{field}={text_file}")
        if cfg.adapter.name != "none" and not trained:
            trained.append(f"init_from={gpt2_folder(text_file.with_name('gpt2'))}")
        return found + trained, cfg

    return of


def is_here(device: str) -> bool:
    """Tell whether this machine has a device."""
    return {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}.get(device, True)


def takes_a_step(cli: Cli, chosen: list[str], cfg: DictConfig) -> None:
    """Check that a run of these overrides, which make this config, takes a step."""
    given = [] if any(choice.startswith("data=") for choice in chosen) else ["data=bundled"]
    if cfg.data.name == "shakespeare" and not given:
        given.append("data.url=http://127.0.0.1:9/")  # no network in tests: the file, or else the bundled text
    short = ("trainer.steps=1", "optim.warmup_steps=0", "trainer.eval_batches=1", "sample.max_new_tokens=3")
    ended = cli(*given, *chosen, *short, "device.compile=false")
    assert ended.code == 0, ended.err
    told = summary(ended.folder)
    steps = 1 if KINDS["model"][cfg.model.name].trains else 0
    assert (told["status"], told["step"]) == ("completed", steps)


@pytest.mark.parametrize(("group", "name"), ALONE, ids=[f"{group}={name}" for group, name in ALONE])
def test_a_preset_takes_a_step(group: str, name: str, cli: Cli, needed: Any) -> None:
    chosen, cfg = needed(f"{group}={name}")
    if not any(choice.startswith("init_from=") for choice in chosen):  # which decides the shapes
        chosen += [*shrunk(cfg.model), "data.block_size=16"]
    takes_a_step(cli, [*chosen, "data.batch_size=2", "logger=none"], cfg)


@pytest.mark.parametrize("mix", MIXES, ids=[" ".join(mix.values()) for mix in MIXES])
def test_presets_take_a_step_together(mix: dict[str, str], cli: Cli, needed: Any) -> None:
    """With a model that all optimizers can train; a device that is not here is composed all the same."""
    chosen, cfg = needed(*(f"{group}={name}" for group, name in mix.items()), "model=gpt", "logger.mode=disabled")
    if not is_here(cfg.device.name):
        assert f"name: {cfg.device.name}" in to_yaml(run_config(*chosen))
        chosen.append("device=cpu")
    takes_a_step(cli, [*chosen, *shrunk(cfg.model), "data.block_size=16", "data.batch_size=2"], cfg)


@pytest.mark.slow
@pytest.mark.parametrize(("group", "name"), ALL, ids=[f"{group}={name}" for group, name in ALL])
def test_a_preset_takes_a_step_at_its_size(group: str, name: str, cli: Cli, needed: Any) -> None:
    """Each by itself, and as large as it is, but for the number of layers and the batch of the largest."""
    chosen, cfg = needed(f"{group}={name}", "logger.mode=offline")
    if not is_here(cfg.device.name):
        pytest.skip(f"this machine has no {cfg.device.name}")
    if group == "optim":
        chosen.append("model=gpt")  # which has matrices for Muon
    if not any(choice.startswith("init_from=") for choice in chosen) and cfg.model.get("n_embd", 0) > 128:
        chosen += ["model.n_layer=1", "data.batch_size=2"]
    takes_a_step(cli, chosen, cfg)


# Models: all that a run can do


def is_gone_on_with_to_the_bit_and_sampled_from(run: Path, cli: Cli, tool: Cli, tmp_path: Path) -> None:
    steps = summary(run)["step"]
    assert isinstance(steps, int)
    cut = cut_back(run, tmp_path / "cut", steps // 2)
    ended = resumed(cli, cut)
    assert ended.code == 0, ended.err
    assert compare(run, cut) is None

    written = tool(sample.main, f"run={run}", "max_new_tokens=20")
    assert written.code == 0, written.err
    # A run's sample and this one both start from token 0 with the same seed.
    assert (run / "samples.txt").read_text("utf-8") == f"---- step {steps}\n{written.out}"


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: f"{preset} {WAY[preset]}")
def test_a_run_is_gone_on_with_to_the_bit_and_sampled_from(
    preset: str, place: Path, cli: Cli, tool: Cli, tmp_path: Path
) -> None:
    run = trained(preset, place, cli)
    assert summary(run)["step"] == (4 if model_of(preset).trains else 0)
    is_gone_on_with_to_the_bit_and_sampled_from(run, cli, tool, tmp_path)


OTHERS = [(preset, way) for preset in gpts() for way in WAYS if way != WAY[preset]]


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "way"), OTHERS, ids=[f"{preset} {way}" for preset, way in OTHERS])
def test_a_run_trained_otherwise_is_gone_on_with_to_the_bit_and_sampled_from(
    preset: str, way: str, cli: Cli, tool: Cli, tmp_path: Path
) -> None:
    run = cli(*overrides(preset, way, *HARDER))
    assert run.code == 0, run.err
    is_gone_on_with_to_the_bit_and_sampled_from(run.folder, cli, tool, tmp_path)


@pytest.mark.parametrize("preset", SAMPLED)
def test_a_checkpoint_is_the_whole_model(preset: str, place: Path, cli: Cli, tool: Cli, tmp_path: Path) -> None:
    """It gives the same logits in another process's hands, stripped of what only training needs."""
    step = newest(trained(preset, place, cli))
    model, _, _ = load_model(step)
    stripped = tmp_path / "stripped"
    assert tool(checkpoint_tool.main, "strip", str(step.path), "--output", str(stripped)).code == 0
    again, _, cfg = load_model(Checkpoint(stripped))
    idx = torch.randint(model.vocab_size, (2, cfg.data.block_size))
    assert torch.equal(model.eval()(idx)[0], again.eval()(idx)[0])
    assert model.n_params() == again.n_params() > 0


@pytest.mark.parametrize("preset", SAMPLED)
def test_a_new_run_starts_from_its_weights(preset: str, place: Path, cli: Cli) -> None:
    first = trained(preset, place, cli)
    then = cli(*RUN, f"init_from={first}", "trainer.steps=0")
    assert then.code == 0, then.err
    assert summary(first)["final"] == summary(then.folder)["final"]


@pytest.mark.parametrize("preset", PRESETS)
def test_accumulation_is_the_update_of_the_whole_batch(preset: str) -> None:
    cfg = model_of(preset)
    if not cfg.trains:
        return
    if isinstance(cfg, GPTConfig):
        cfg = replace(cfg, n_embd=4 * cfg.n_head, n_layer=min(2, cfg.n_layer), dropout=0.0)
    ids = torch.randint(11, (8, 17), generator=torch.Generator().manual_seed(0))
    device = Device(torch.device("cpu"), "fp32", compile=False)

    def updated(steps: int, parts: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = cfg.build(vocab_size=11, block_size=16)
        optimizer = SGDConfig().build(model, compiled=False)
        take = TrainStep(model, optimizer, device, grad_accumulation=parts)
        for _ in range(steps):
            take((ids[:, :-1], ids[:, 1:]), 0.1)
        return model.state_dict()

    fresh, whole, parts = updated(0, 1), updated(1, 1), updated(1, 4)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert any(not torch.equal(fresh[name], value) for name, value in whole.items())


# Models that count


ON_COUNTS = (*RUN, "model=gpt", *shrunk(model_of("gpt")), "model.ngram_order=3", "trainer.steps=1")


def tables(folder: Path) -> dict[str, torch.Tensor]:
    """Load what the newest checkpoint of a run has counted."""
    return {name: value for name, value in load_model(newest(folder))[0].state_dict().items() if is_count_table(name)}


@pytest.fixture
def on_counts(place: Path, cli: Cli) -> Path:
    """Return a run of a model that stands on an n-gram, which tests share: none may write to it."""
    folder = place / "on counts"
    if not folder.exists():
        ended = cli(*ON_COUNTS, f"hydra.run.dir={folder}", run_dir=False)
        assert ended.code == 0, ended.err
        assert "model.ngram_order" not in ended.err
    return folder


def test_what_is_counted_is_of_the_text_that_is_trained_on(on_counts: Path, cli: Cli, tmp_path: Path) -> None:
    """With weights from elsewhere too; and a resumed run goes on with another text only where that is asked for."""
    text = tmp_path / "other.txt"
    text.write_text(paths.bundled_text().read_text("utf-8")[::-1], "utf-8")
    other = ("data=text", f"data.path={text}")
    anew = cli(*ON_COUNTS, *other)
    then = cli(*RUN, *other, f"init_from={on_counts}", "trainer.steps=1")
    assert then.code == 0, then.err
    of_this, of_other, of_then = tables(on_counts), tables(anew.folder), tables(then.folder)
    assert of_then.keys() == of_this.keys()
    assert all(torch.equal(value, of_other[name]) for name, value in of_then.items())
    assert any(not torch.equal(value, of_this[name]) for name, value in of_then.items())

    text.write_text(paths.bundled_text().read_text("utf-8"), "utf-8")
    ended = resumed(cli, anew.folder, f"data.path={text}", "trainer.steps=2")
    assert ended.code == 0, ended.err
    assert all(torch.equal(value, of_this[name]) for name, value in tables(anew.folder).items())


@pytest.mark.parametrize("order", [0, 2, 4])
def test_weights_from_elsewhere_stand_on_any_order(order: int, on_counts: Path, cli: Cli) -> None:
    then = cli(*RUN, f"init_from={on_counts}", f"model.ngram_order={order}", "trainer.steps=1")
    assert then.code == 0, then.err
    assert "model.ngram_order" in then.err, "a warning"


@pytest.mark.parametrize("preset", [name for name, kind in KINDS["model"].items() if not kind.trains])
def test_a_counted_run_says_that_there_is_nothing_to_go_on_with(preset: str, place: Path, cli: Cli) -> None:
    run = trained(preset, place, cli)
    assert_refused(resumed(cli, run, "trainer.steps=10"), run.name, field="model", value=preset)


# The ladder


LADDER = paths.conf_dir() / "experiment" / "ladder.yaml"


@pytest.mark.parametrize("rungs", ["first and last", pytest.param("all", marks=pytest.mark.slow)])
def test_the_ladder_is_one_line(rungs: str, cli: Cli, tmp_path: Path) -> None:
    """At full size, for two steps."""
    models = str(OmegaConf.load(LADDER).hydra.sweeper.params.model).split(",")
    assert set(models) <= set(PRESETS)
    cut = ["trainer.steps=2", "optim.warmup_steps=0", "trainer.eval_batches=1", "data.train_fraction=0.98"]
    if rungs != "all":
        models = [models[0], models[-1]]
        cut.append(f"hydra.sweeper.params.model='{','.join(models)}'")
    sweep = f"hydra.sweep.dir={tmp_path / 'sweep'}"
    ended = cli("-m", "experiment=ladder", "data=bundled", "logger=none", *cut, sweep, run_dir=False)
    assert ended.code == 0, ended.err
    rows = {row["model"]: row for row in table(tmp_path / "sweep")}
    assert set(rows) == set(models)
    for name, row in rows.items():
        assert row["status"] == "completed"
        assert int(row["n_params"]) > 0, name
        assert float(row["val/bpc"]) == pytest.approx(float(row["val/loss"]) / 0.693147, rel=1e-4), name
        assert float(row["seconds"]) > 0, name
    head, *shown = [line.removeprefix("*").split() for line in ended.out.splitlines() if line.startswith(("   ", "*"))]
    assert [column for column in head if column != "status"] == ["job", "model", "params", "val", "bpc", "s", "sample"]
    assert len(shown) == len(models)
    for line in shown:
        told = dict(zip(head, line, strict=False))  # the sample may be many words
        row = rows[told["model"]]
        assert int(told["params"].replace(",", "")) == int(row["n_params"])
        assert told["val"] == f"{float(row['val/loss']):.4f}"
        assert told["bpc"] == f"{float(row['val/bpc']):.3f}"
        assert told["s"] == f"{float(row['seconds']):.1f}"
    as_usual = ended.out.replace(str(tmp_path / "sweep"), "outputs/sweeps/2026-11-24_14-15-02-334871")
    assert max(len(line) for line in as_usual.splitlines() if not line.startswith("A page: ")) <= 80, "but for a path"
    page = (tmp_path / "sweep" / "results.md").read_text("utf-8")
    assert re.search(r"\| model \| status \| params \| val \| bpc \| .* \| sample \|", page)


def test_the_ladder_without_m_is_one_run(cli: Cli) -> None:
    ended = cli("experiment=ladder", "data=bundled", "logger=none", "trainer.steps=0", "model=attention")
    assert ended.code == 0, ended.err
    assert run_config("experiment=ladder").model.name == "bigram"
