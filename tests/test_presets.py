"""Tests of every preset in conf/, listed from the folder so that none is omitted."""

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
    crashed_copy,
    gpt2_folder,
    gpts,
    resumed,
    run_config,
    summary,
    table,
)

ALL = sorted((path.parent.name, path.stem) for path in paths.conf_dir().glob("*/*.yaml") if path.parent.name != "hydra")

# Groups whose presets can be combined freely: the first run has the first preset of each, and so on.
MIXED = ("tokenizer", "optim", "device", "trainer", "logger")
NAMES = {group: [name for of, name in ALL if of == group] for group in GROUPS}
MIXES = [
    {group: NAMES[group][n % len(NAMES[group])] for group in MIXED}
    for n in range(max(len(NAMES[group]) for group in MIXED))
]
ALONE = [(group, name) for group, name in ALL if group not in (*MIXED, "model")]

# Overrides of a short run with evaluations, a checkpoint to resume from, and a sample.
RUN = (
    *("data=bundled", "data.block_size=16", "data.batch_size=4", "logger=none", "device.threads=1"),
    *("trainer.steps=4", "trainer.eval_every=2", "trainer.eval_batches=2", "trainer.log_every=1"),
    *("trainer.checkpoint_every=2", "trainer.keep_checkpoints=99", "sample.max_new_tokens=20"),
)
# Optional features of training.
FEATURES = (
    "optim.schedule=cosine",
    "optim.warmup_steps=2",
    "optim.grad_clip=1",
    "trainer.grad_accumulation=2",
)
# Overrides that change how a GPT is trained. Each GPT is tested with one of them, in slow tests with all.
VARIANTS = (
    *(f"optim={name}" for name in KINDS["optim"]),
    *("model.ngram_order=3", "trainer.activation_checkpointing=true"),
)


@functools.cache
def model_of(preset: str) -> ModelConfig:
    return run_config(f"model={preset}").model


VARIANT = {**dict.fromkeys(PRESETS, VARIANTS[0]), **dict(zip(gpts(), itertools.cycle(VARIANTS), strict=False))}
# One preset for each class of models. Tests of other presets of the same class are slow tests.
ONE_PER_CLASS = set({KINDS["model"].get(preset): preset for preset in PRESETS}.values())
SAMPLED = [pytest.param(preset, marks=[] if preset in ONE_PER_CLASS else [pytest.mark.slow]) for preset in PRESETS]


def shrunk(model: Any) -> list[str]:
    """Return the overrides that make the model of a config small, if it is a GPT."""
    if not all(hasattr(model, field) for field in ("n_embd", "n_head", "n_layer")):
        return []
    return [f"model.n_embd={4 * model.n_head}", f"model.n_layer={min(2, model.n_layer)}"]


def overrides(preset: str, *more: str) -> list[str]:
    dropout = ["model.dropout=0.1"] if preset in gpts() else []
    return [*RUN, f"model={preset}", *shrunk(model_of(preset)), *dropout, *more]


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for runs that several tests read."""
    return tmp_path_factory.mktemp("shared")


def trained(preset: str, shared_folder: Path, cli: Cli) -> Path:
    """Return the shared, read-only run of a preset."""
    folder = shared_folder / preset
    if not folder.exists():
        # A model that takes no steps accepts a warmup of any length.
        warmup = [] if model_of(preset).trains else ["optim.warmup_steps=100"]
        all_overrides = overrides(preset, VARIANT[preset], *FEATURES, *warmup)
        ended = cli(*all_overrides, f"hydra.run.dir={folder}", run_dir=False)
        assert ended.code == 0, ended.err
        assert "preflight: passed" in ended.err
    return folder


def newest(folder: Path) -> Checkpoint:
    found = Checkpoints(folder / "checkpoints").newest()
    assert found is not None
    return found


# Presets of all groups


def test_all_presets_are_offered() -> None:
    assert {group for group, _ in ALL} == set(GROUPS)
    for group, name in ALL:
        assert name in choices_of_groups()[group]


def test_every_kind_has_its_preset() -> None:
    for group, kinds in KINDS.items():
        presets = {name for found, name in ALL if found == group}
        assert set(kinds) <= presets | {"python"}, "a model that is passed from Python needs no preset"


def uses_trained_weights(experiment: str) -> bool:
    """Check if an experiment, or one in its defaults, mentions init_from."""
    path = paths.conf_dir() / "experiment" / f"{experiment}.yaml"
    preset = OmegaConf.load(path)
    assert isinstance(preset, DictConfig)
    bases = [base for base in preset.get("defaults", []) if isinstance(base, str)]
    return "init_from" in path.read_text("utf-8") or any(uses_trained_weights(base) for base in bases)


@pytest.fixture
def complete(text_file: Path, tool: Cli) -> Any:
    """Make a function that adds the fields and weights that presets require.

    The function returns all overrides, and the config without the values of the added fields.
    """

    def add_overrides(*chosen: str) -> tuple[list[str], DictConfig]:
        weights, missing = [], set()
        if any(word.startswith("experiment=") and uses_trained_weights(word.partition("=")[2]) for word in chosen):
            weights.append(f"init_from={gpt2_folder(text_file.with_name('gpt2'))}")
        cfg, overrides = composed(*chosen, *weights), list(chosen)
        missing |= OmegaConf.missing_keys(cfg)
        if "path" in cfg.tokenizer and not weights:
            missing.add("tokenizer.path")
        for field in sorted(missing):
            if field == "tokenizer.vocab_size":
                overrides.append(f"{field}=300")
            elif field == "data.path" and cfg.data.name == "pairs":
                pairs = text_file.with_name("pairs.jsonl")
                pairs.write_text('{"prompt": "2 + 3 =", "completion": " 5"}\n' * 10, "utf-8")
                overrides.append(f"{field}={pairs}")
            elif field == "tokenizer.path" or cfg.data.name == "tokens":
                tokens = text_file.with_name("tokens")
                tool(prepare.main, f"data.path={text_file}", "tokenizer=byte", f"output={tokens}")
                overrides.append(f"{field}={tokens}")
            else:
                overrides.append(f"{field}={text_file}")
        if cfg.adapter.name != "none" and not weights:
            weights.append(f"init_from={gpt2_folder(text_file.with_name('gpt2'))}")
        return overrides + weights, cfg

    return add_overrides


def is_available(device: str) -> bool:
    """Check if this machine has a device."""
    return {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}.get(device, True)


def assert_takes_a_step(cli: Cli, chosen: list[str], cfg: DictConfig) -> None:
    """Check that a run with these overrides, which compose this config, takes a step."""
    is_chosen = any(choice.startswith("data=") for choice in chosen) or cfg.data.name == "text"  # by a recipe
    data = [] if is_chosen else ["data=bundled"]
    if cfg.data.name == "shakespeare" and not data:
        data.append("data.url=http://127.0.0.1:9/")  # tests use no network: the run takes the file or the bundled text
    short = ("trainer.steps=1", "optim.warmup_steps=0", "trainer.eval_batches=1", "sample.max_new_tokens=3")
    ended = cli(*data, *chosen, *short, "device.compile=false")
    assert ended.code == 0, ended.err
    content = summary(ended.folder)
    steps = 1 if KINDS["model"][cfg.model.name].trains else 0
    assert (content["status"], content["step"]) == ("completed", steps)


@pytest.mark.parametrize(("group", "name"), ALONE, ids=[f"{group}={name}" for group, name in ALONE])
def test_a_preset_takes_a_step(group: str, name: str, cli: Cli, complete: Any) -> None:
    chosen, cfg = complete(f"{group}={name}")
    if not any(choice.startswith("init_from=") for choice in chosen):  # the weights determine the shapes
        chosen += [*shrunk(cfg.model), "data.block_size=16"]
    assert_takes_a_step(cli, [*chosen, "data.batch_size=2", "logger=none"], cfg)


@pytest.mark.parametrize("mix", MIXES, ids=[" ".join(mix.values()) for mix in MIXES])
def test_combined_presets_take_a_step(mix: dict[str, str], cli: Cli, complete: Any) -> None:
    """Train a model that all optimizers support.

    A preset of a device that this machine lacks is composed only.
    """
    chosen, cfg = complete(*(f"{group}={name}" for group, name in mix.items()), "model=gpt", "logger.mode=disabled")
    if not is_available(cfg.device.name):
        assert f"name: {cfg.device.name}" in to_yaml(run_config(*chosen))
        chosen.append("device=cpu")
    assert_takes_a_step(cli, [*chosen, *shrunk(cfg.model), "data.block_size=16", "data.batch_size=2"], cfg)


@pytest.mark.slow
@pytest.mark.parametrize(("group", "name"), ALL, ids=[f"{group}={name}" for group, name in ALL])
def test_a_preset_takes_a_step_at_full_size(group: str, name: str, cli: Cli, complete: Any) -> None:
    """Test each preset alone; only the largest have fewer layers and smaller batches."""
    chosen, cfg = complete(f"{group}={name}", "logger.mode=offline")
    if not is_available(cfg.device.name):
        pytest.skip(f"this machine has no {cfg.device.name}")
    if group == "optim":
        chosen.append("model=gpt")  # Muon requires hidden layers
    if not any(choice.startswith("init_from=") for choice in chosen) and shrunk(cfg.model) and cfg.model.n_embd > 128:
        chosen += ["model.n_layer=1", "data.batch_size=2"]
    assert_takes_a_step(cli, chosen, cfg)


# Models: resume, sample, load and start from weights


def assert_resumes_and_samples(run: Path, cli: Cli, tool: Cli, tmp_path: Path) -> None:
    """Check that a resumed run equals an uninterrupted run and that a run samples."""
    steps = summary(run)["step"]
    assert isinstance(steps, int)
    cut = crashed_copy(run, tmp_path / "cut", steps // 2)
    ended = resumed(cli, cut)
    assert ended.code == 0, ended.err
    assert compare(run, cut) is None

    sampled = tool(sample.main, f"run={run}", "max_new_tokens=20")
    assert sampled.code == 0, sampled.err
    # Both samples start from token 0 with the same seed.
    assert (run / "samples.txt").read_text("utf-8") == f"---- step {steps}\n{sampled.out}"


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: f"{preset} {VARIANT[preset]}")
def test_a_run_resumes_bit_for_bit_and_samples(
    preset: str, shared_folder: Path, cli: Cli, tool: Cli, tmp_path: Path
) -> None:
    run = trained(preset, shared_folder, cli)
    assert summary(run)["step"] == (4 if model_of(preset).trains else 0)
    assert_resumes_and_samples(run, cli, tool, tmp_path)


OTHERS = [(preset, variant) for preset in gpts() for variant in VARIANTS if variant != VARIANT[preset]]


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "variant"), OTHERS, ids=[f"{preset} {variant}" for preset, variant in OTHERS])
def test_a_run_of_another_variant_resumes_bit_for_bit_and_samples(
    preset: str, variant: str, cli: Cli, tool: Cli, tmp_path: Path
) -> None:
    run = cli(*overrides(preset, variant, *FEATURES))
    assert run.code == 0, run.err
    assert_resumes_and_samples(run.folder, cli, tool, tmp_path)


@pytest.mark.parametrize("preset", SAMPLED)
def test_a_stripped_checkpoint_computes_the_same_logits(
    preset: str, shared_folder: Path, cli: Cli, tool: Cli, tmp_path: Path
) -> None:
    checkpoint = newest(trained(preset, shared_folder, cli))
    model, _, _ = load_model(checkpoint)
    stripped = tmp_path / "stripped"
    assert tool(checkpoint_tool.main, "strip", str(checkpoint.path), "--output", str(stripped)).code == 0
    loaded, _, cfg = load_model(Checkpoint(stripped))
    idx = torch.randint(model.vocab_size, (2, cfg.data.block_size))
    assert torch.equal(model.eval()(idx)[0], loaded.eval()(idx)[0])
    assert model.n_params() == loaded.n_params() > 0


@pytest.mark.parametrize("preset", SAMPLED)
def test_a_new_run_starts_from_the_weights_of_a_run(preset: str, shared_folder: Path, cli: Cli) -> None:
    first = trained(preset, shared_folder, cli)
    new = cli(*RUN, f"init_from={first}", "trainer.steps=0")
    assert new.code == 0, new.err
    assert summary(first)["final"] == summary(new.folder)["final"]


@pytest.mark.parametrize("preset", PRESETS)
def test_accumulated_gradients_give_the_update_of_the_whole_batch(preset: str) -> None:
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
        train_step = TrainStep(model, optimizer, device, grad_accumulation=parts)
        for _ in range(steps):
            train_step((ids[:, :-1], ids[:, 1:]), 0.1)
        return model.state_dict()

    fresh, whole, parts = updated(0, 1), updated(1, 1), updated(1, 4)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert any(not torch.equal(fresh[name], value) for name, value in whole.items())


# Models with counts


ON_COUNTS = (*RUN, "model=gpt", *shrunk(model_of("gpt")), "model.ngram_order=3", "trainer.steps=1")


def tables(folder: Path) -> dict[str, torch.Tensor]:
    """Load the count tables in the newest checkpoint of a run."""
    return {name: value for name, value in load_model(newest(folder))[0].state_dict().items() if is_count_table(name)}


@pytest.fixture
def on_counts(shared_folder: Path, cli: Cli) -> Path:
    """Return a shared, read-only run of a GPT on top of an n-gram model."""
    folder = shared_folder / "on counts"
    if not folder.exists():
        ended = cli(*ON_COUNTS, f"hydra.run.dir={folder}", run_dir=False)
        assert ended.code == 0, ended.err
        assert "model.ngram_order" not in ended.err
    return folder


def test_counts_are_those_of_the_training_text(on_counts: Path, cli: Cli, tmp_path: Path) -> None:
    """Change the text of a new run, a run that starts from weights, and a resumed run."""
    text = tmp_path / "other.txt"
    text.write_text(paths.bundled_text().read_text("utf-8")[::-1], "utf-8")
    other = ("data=text", f"data.path={text}")
    new = cli(*ON_COUNTS, *other)
    from_weights = cli(*RUN, *other, f"init_from={on_counts}", "trainer.steps=1")
    assert from_weights.code == 0, from_weights.err
    bundled, reversed_text, found = tables(on_counts), tables(new.folder), tables(from_weights.folder)
    assert found.keys() == bundled.keys()
    assert all(torch.equal(value, reversed_text[name]) for name, value in found.items())
    assert any(not torch.equal(value, bundled[name]) for name, value in found.items())

    text.write_text(paths.bundled_text().read_text("utf-8"), "utf-8")
    ended = resumed(cli, new.folder, f"data.path={text}", "trainer.steps=2")
    assert ended.code == 0, ended.err
    assert all(torch.equal(value, bundled[name]) for name, value in tables(new.folder).items())


@pytest.mark.parametrize("order", [0, 2, 4])
def test_a_run_from_weights_may_have_any_ngram_order(order: int, on_counts: Path, cli: Cli) -> None:
    new = cli(*RUN, f"init_from={on_counts}", f"model.ngram_order={order}", "trainer.steps=1")
    assert new.code == 0, new.err
    assert "model.ngram_order" in new.err, "a warning"


@pytest.mark.parametrize("preset", [name for name, kind in KINDS["model"].items() if not kind.trains])
def test_resuming_a_counted_model_is_refused(preset: str, shared_folder: Path, cli: Cli) -> None:
    run = trained(preset, shared_folder, cli)
    assert_refused(resumed(cli, run, "trainer.steps=10"), run.name, field="model", value=preset)


# The ladder


LADDER = paths.conf_dir() / "experiment" / "ladder.yaml"


@pytest.mark.parametrize("rungs", ["first and last", pytest.param("all", marks=pytest.mark.slow)])
def test_one_command_runs_the_ladder(rungs: str, cli: Cli, tmp_path: Path) -> None:
    """Train full-size models for two steps."""
    models = str(OmegaConf.load(LADDER).hydra.sweeper.params.model).split(",")
    assert set(models) <= set(PRESETS)
    short = ["trainer.steps=2", "optim.warmup_steps=0", "trainer.eval_batches=1", "data.train_fraction=0.98"]
    if rungs != "all":
        models = [models[0], models[-1]]
        short.append(f"hydra.sweeper.params.model='{','.join(models)}'")
    sweep = f"hydra.sweep.dir={tmp_path / 'sweep'}"
    ended = cli("-m", "experiment=ladder", "data=bundled", "logger=none", *short, sweep, run_dir=False)
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
        cells = dict(zip(head, line, strict=False))  # the sample may have many words
        row = rows[cells["model"]]
        assert int(cells["params"].replace(",", "")) == int(row["n_params"])
        assert cells["val"] == f"{float(row['val/loss']):.4f}"
        assert cells["bpc"] == f"{float(row['val/bpc']):.3f}"
        assert cells["s"] == f"{float(row['seconds']):.1f}"
    usual = ended.out.replace(str(tmp_path / "sweep"), "outputs/sweeps/2026-11-24_14-15-02-334871")
    # The line with the page's path may be longer.
    assert max(len(line) for line in usual.splitlines() if not line.startswith("HTML report: ")) <= 80
    page = (tmp_path / "sweep" / "results.md").read_text("utf-8")
    assert re.search(r"\| model \| status \| params \| val \| bpc \| .* \| sample \|", page)


def test_the_ladder_without_a_sweep_is_one_run(cli: Cli) -> None:
    ended = cli("experiment=ladder", "data=bundled", "logger=none", "trainer.steps=0", "model=attention")
    assert ended.code == 0, ended.err
    assert run_config("experiment=ladder").model.name == "bigram"
