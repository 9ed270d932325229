"""Tests of loading: init_from, and weights that are not finite."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bigramlm.checkpoint.format import write_manifest
from bigramlm.cli import checkpoint, sample
from bigramlm.engine.load import load_model, open_checkpoint
from bigramlm.runs import find as runs
from tests.engine.helpers import records, weights
from tests.helpers import Cli, assert_refused, command, resumed, summary

RUN = (
    *("data=bundled", "logger=none", "trainer.steps=10", "trainer.eval_every=5", "trainer.log_every=5"),
    *("trainer.keep_checkpoints=99", "sample.max_new_tokens=5"),
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a trained run."""
    folder = tmp_path_factory.mktemp("source") / "run"
    done = command(*RUN, f"hydra.run.dir={folder}")
    assert done.code == 0, done.err
    return folder


def test_init_from_takes_only_the_weights(source: Path, tmp_path: Path, cli: Cli) -> None:
    ended = cli("data=bundled", "logger=none", "trainer.steps=3", f"init_from={source}")
    assert ended.code == 0, ended.err
    assert torch.equal(weights(ended.folder, "step_0"), weights(source))
    first = records(ended.folder)[0]
    assert first["val/loss"] == records(source)[-1]["val/loss"], "the same weights on the same blocks"
    assert load_file(ended.folder / "checkpoints" / "step_0" / "training.safetensors").keys() == {"rng/cpu"}
    assert summary(ended.folder)["id"] != summary(source)["id"]
    saved = (ended.folder / "config.yaml").read_text("utf-8")
    assert f"init_from: {source / 'checkpoints' / 'step_10'}" in saved, "init_from is resolved to the checkpoint"
    shutil.rmtree(ended.folder / "checkpoints")
    again = resumed(cli, ended.folder, "trainer.steps=4")
    assert again.code == 0, again.err
    assert torch.equal(weights(ended.folder, "step_0"), weights(source))


def test_init_from_brings_model_tokenizer_and_block_size(tmp_path: Path, text_file: Path, cli: Cli) -> None:
    first = cli(*RUN, "data.block_size=4")
    ended = cli("data=text", f"data.path={text_file}", "logger=none", "trainer.steps=2", f"init_from={first.folder}")
    assert ended.code == 0, ended.err
    chars = [
        json.loads((folder / "checkpoints" / "step_0" / "tokenizer.json").read_text("utf-8"))["chars"]
        for folder in (first.folder, ended.folder)
    ]
    assert chars[0] == chars[1], "the tokenizer is not rebuilt from the new text, which has fewer characters"
    assert "block_size: 4" in (ended.folder / "config.yaml").read_text("utf-8")
    overridden = cli(*RUN, f"init_from={first.folder}/checkpoints/best", "data.block_size=6", "trainer.steps=2")
    assert "block_size: 6" in (overridden.folder / "config.yaml").read_text("utf-8")
    text_file.write_text("日本" * 1000, "utf-8")
    refused = cli("data=text", f"data.path={text_file}", f"init_from={first.folder}")
    assert_refused(refused, "日", "本")


def test_init_from_can_be_swept(source: Path, tmp_path: Path, cli: Cli) -> None:
    arguments = ("data=bundled", "logger=none", "trainer.steps=2", f"init_from={source}", "optim.lr=0.1,0.2")
    ended = cli("-m", *arguments, f"hydra.sweep.dir={tmp_path / 'sweep'}", run_dir=False)
    assert ended.code == 0, ended.err
    for job in "01":
        assert torch.equal(weights(tmp_path / "sweep" / job, "step_0"), weights(source))
        assert "_saved" not in (tmp_path / "sweep" / job / "config.yaml").read_text("utf-8")


@pytest.mark.parametrize(
    ("where", "named"), [("none", "runs.py list"), ("{tmp}", "config.yaml"), ("", "omit init_from=")]
)
def test_init_from_without_weights_is_refused_in_one_line(tmp_path: Path, cli: Cli, where: str, named: str) -> None:
    where = where.format(tmp=tmp_path)
    ended = cli(*RUN, f"init_from={where}")
    assert_refused(ended, where, named)
    assert ended.err.count("\n") == 1, "nothing else is printed"


def test_preflight_accepts_a_trained_model(cli: Cli) -> None:
    """The loss of a trained model is far below ln V."""
    trained = cli("data=bundled", "logger=none", "trainer.steps=300", "optim.lr=0.1", "sample.max_new_tokens=1")
    ended = cli("data=bundled", "logger=none", "trainer.steps=1", f"init_from={trained.folder}")
    assert ended.code == 0, ended.err
    assert records(ended.folder)[0]["val/loss"] < 3


def test_latest_is_the_same_for_every_job_of_a_sweep(
    source: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = tmp_path / "outputs"
    monkeypatch.setattr(runs, "outputs", lambda: outputs)
    copy = shutil.copytree(source, outputs / "runs" / "source")
    arguments = ("data=bundled", "logger=none", "trainer.steps=2", "init_from=latest", "optim.lr=0.1,0.2")
    ended = cli("-m", *arguments, f"hydra.sweep.dir={outputs / 'sweeps' / 'x'}", run_dir=False)
    assert ended.code == 0, ended.err
    for job in "01":
        config = (outputs / "sweeps" / "x" / job / "config.yaml").read_text("utf-8")
        assert f"init_from: {copy / 'checkpoints' / 'step_10'}" in config


def test_overridden_block_size_survives_a_resume_at_step_0(source: Path, cli: Cli) -> None:
    ended = cli(*RUN, f"init_from={source}", "data.block_size=5", "trainer.steps=2")
    shutil.rmtree(ended.folder / "checkpoints")
    assert resumed(cli, ended.folder, "trainer.steps=3").code == 0
    assert "block_size: 5" in (ended.folder / "config.yaml").read_text("utf-8")


def damage(run: Path, file: str, name: str, value: float) -> Path:
    """Set one element of a tensor in the newest checkpoint, and seal it again."""
    folder = run / "checkpoints" / "step_10"
    with safe_open(folder / file, "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(folder / file)
    tensors[name].view(-1)[0] = value
    save_file(tensors, folder / file, metadata=metadata)
    (folder / "manifest.json").unlink()
    write_manifest(folder, 10)
    return folder / file


TABLE = "token_embedding_table.weight"


@pytest.mark.parametrize(("value", "named"), [(float("nan"), "NaN"), (float("inf"), "inf"), (float("-inf"), "inf")])
def test_weights_that_are_not_finite_are_refused_everywhere(
    source: Path, tmp_path: Path, cli: Cli, tool: Cli, value: float, named: str
) -> None:
    run = Path(shutil.copytree(source, tmp_path / "damaged"))
    file = damage(run, "model.safetensors", TABLE, value)
    for ended in (
        cli("data=bundled", "logger=none", f"init_from={run}"),
        cli("data=bundled", "logger=none", f"init_from={run}", "preflight=false"),
        resumed(cli, run, "trainer.steps=20"),
        tool(sample.main, f"run={run}"),
        tool(sample.main, f"run={run}", "temperature=0"),
    ):
        assert_refused(ended, file, TABLE, named, "damaged")
        assert "learning rate" not in ended.err
        assert "attention" not in ended.err
    scratch = cli(*RUN, f"init_from={run}", "from_scratch=true")
    assert scratch.code == 0, scratch.err


def test_an_optimizer_state_that_is_not_finite_is_refused(source: Path, tmp_path: Path, cli: Cli) -> None:
    run = Path(shutil.copytree(source, tmp_path / "damaged"))
    name = f"optimizer/{TABLE}/exp_avg"
    file = damage(run, "training.safetensors", name, float("nan"))
    assert_refused(resumed(cli, run, "trainer.steps=20"), file, name, "NaN", "damaged")
    assert cli(*RUN, f"init_from={run}").code == 0, "a new run needs the weights only"


def test_weights_of_another_tokenizer_are_refused_in_one_line(source: Path, cli: Cli) -> None:
    ended = cli(*RUN, f"init_from={source}", "tokenizer=byte")
    assert_refused(ended, "tokenizer=byte", "trained with tokenizer=char", "omit tokenizer=")
    assert ended.err.count("\n") == 1


def test_counts_are_not_checked(tmp_path: Path, cli: Cli) -> None:
    run = cli("data=bundled", "logger=none", "model=ngram", "sample.max_new_tokens=5").folder
    step = run / "checkpoints" / "step_0"
    tensors = load_file(step / "model.safetensors")
    changed = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    for tensor in changed.values():
        tensor.view(-1)[0] = float("-inf")
    save_file(tensors, step / "model.safetensors")
    (step / "manifest.json").unlink()
    write_manifest(step, 0)
    load_model(open_checkpoint(str(run)))


def test_a_gpt_that_is_not_finite_is_not_exported(tmp_path: Path, cli: Cli, tool: Cli) -> None:
    gpt = ("model=nanogpt", "model.n_layer=1", "model.n_head=2", "model.n_embd=16")
    run = cli(*RUN, *gpt).folder
    file = damage(run, "model.safetensors", "h.0.attn.c_attn.weight", float("nan"))
    refused = tool(checkpoint.main, "export", str(run), str(tmp_path / "exported"))
    assert_refused(refused, file, "h.0.attn.c_attn.weight", "NaN")
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize("field", ["n_layer: 1", "block_size: 8"])
def test_a_config_that_describes_a_huge_model_is_refused_before_it_is_built(
    tmp_path: Path, cli: Cli, tool: Cli, field: str
) -> None:
    small = ("model=gpt", "model.n_layer=1", "model.n_head=2", "model.n_embd=8", "data.block_size=8")
    run = cli("data=bundled", "logger=none", *small, "trainer.steps=1").folder
    step = run / "checkpoints" / "step_1"
    config = (step / "config.yaml").read_text("utf-8")
    assert field in config
    (step / "config.yaml").write_text(config.replace(field, f"{field.split()[0]} 100000000"), "utf-8")
    (step / "manifest.json").unlink()
    write_manifest(step, 1)
    named = (step / "config.yaml", "100,000,000" if "block" in field else "weights")
    assert_refused(tool(sample.main, f"run={run}"), *named)
    if field == "n_layer: 1":
        shutil.copy(step / "config.yaml", run / "config.yaml")
        assert_refused(resumed(cli, run, "trainer.steps=2"), *named)
        assert_refused(cli("data=bundled", "logger=none", f"init_from={run}"), *named)
