"""LoRA: the layers that it can adapt, and refusals before training."""

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bigramlm.adapter.config import LoRAConfig
from bigramlm.checkpoint.format import write_manifest
from bigramlm.cli import checkpoint, sample
from bigramlm.model.config import BigramConfig, GPTConfig
from bigramlm.utils import paths
from tests.helpers import Cli, assert_refused, command, gpt2_folder, refuses, resumed, run_config

SHORT = ("data=bundled", "logger=none", "trainer.eval_batches=1", "sample.max_new_tokens=5", "data.batch_size=4")
SMALL = ("model=nanogpt", "model.n_layer=2", "model.n_head=2", "model.n_embd=16", "model.bias=true")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run of a GPT that adapters are attached to."""
    folder = tmp_path_factory.mktemp("base") / "run"
    done = command(*SHORT, *SMALL, "data.block_size=16", "trainer.steps=0", f"hydra.run.dir={folder}")
    assert done.code == 0, done.err
    return folder


LAYERS = ("all-linear", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj", "lm_head")


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("adapter.targets=[query]", ("adapter.targets", "query", *LAYERS)),
        ("adapter.targets=[c_attn,fc]", ("adapter.targets", "fc", *LAYERS)),
        ("adapter.targets=[]", ("adapter.targets=[]", "all-linear")),
        ("adapter.targets=[lm_head]", ("adapter.targets", "lm_head and wte", "model.tie_weights=true", "all-linear")),
        ("adapter.targets=[wte]", ("adapter.targets", "wte and lm_head", "model.tie_weights=true", "all-linear")),
        ("adapter.r=17", ("adapter.r=17", "h.0.attn.c_attn", "48 x 16")),
        ("adapter.r=0", ("adapter.r=0", "1")),
        ("adapter.alpha=0", ("adapter.alpha=0.0",)),
        ("adapter.dropout=1", ("adapter.dropout=1.0", "0", "1")),
        ("from_scratch=true", ("adapter=lora", "from_scratch=true")),
    ],
)
def test_invalid_adapters_are_refused(cli: Cli, base: Path, override: str, named: tuple[str, ...]) -> None:
    refused = cli(*SHORT, f"init_from={base}", "adapter=lora", override)
    assert_refused(refused, *named)
    assert not (refused.folder / "checkpoints").exists()


def test_fresh_weights_and_models_without_linear_layers_are_refused(cli: Cli) -> None:
    assert_refused(cli(*SHORT, *SMALL, "adapter=lora"), "init_from=RUN", field="adapter", value="lora")
    bigram = cli(*SHORT, "trainer.steps=0")
    refused = cli(*SHORT, f"init_from={bigram.folder}", "adapter=lora")
    assert_refused(refused, "adapter.targets", "all-linear", "token_embedding_table")
    counted = cli(*SHORT, *SMALL, "model.ngram_order=2", "trainer.steps=0")
    refused = cli(*SHORT, f"init_from={counted.folder}", "adapter=lora")
    assert_refused(refused, "adapter=lora", field="model.ngram_order", value=2)


def test_missing_extra_is_refused_before_anything_else(cli: Cli, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else find(name))
    refused = cli(*SHORT, f"init_from={base}", "adapter=lora")
    assert_refused(refused, "pip install", "[lora]", field="adapter", value="lora")
    assert refused.err.count("\n") == 1, "the error must be the only output"


def test_frozen_matrices_need_a_third_fewer_flops() -> None:
    model = GPTConfig(n_layer=2, n_head=2, n_embd=16).build(vocab_size=11, block_size=8)
    full_flops = model.flops_per_token()
    frozen = sum(p.numel() for p in model.hidden_matrices()) + model.lm_head.weight.numel()  # type: ignore[union-attr,operator]
    adapter = LoRAConfig(r=1).attach(model)
    assert adapter is not None
    assert model.flops_per_token() == full_flops - 2 * frozen + 6 * adapter.n_trained


def test_bigram_can_be_adapted_by_layer_name() -> None:
    model = BigramConfig().build(vocab_size=11, block_size=8)
    idx = torch.arange(8)[None]
    before = model(idx)[0]
    adapter = LoRAConfig(r=2, targets=["token_embedding_table"]).attach(model)
    assert adapter is not None
    assert torch.equal(model(idx)[0], before)
    with refuses("all-linear", "token_embedding_table", field="adapter.targets"):
        LoRAConfig(targets=["all-linear"]).attach(BigramConfig().build(vocab_size=11, block_size=8))


def test_recipes_require_weights_to_start_from() -> None:
    assert "init_from: openai-community/gpt2" in (paths.conf_dir() / "experiment" / "finetune_gpt2.yaml").read_text()
    with refuses("init_from=", field="adapter", value="lora"):
        run_config("experiment=finetune_lora")


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_an_adapter_that_is_not_finite_is_refused_everywhere(
    cli: Cli, tool: Cli, base: Path, tmp_path: Path, value: float
) -> None:
    run = cli(*SHORT, f"init_from={base}", "adapter=lora", "trainer.steps=1").folder
    step = run / "checkpoints" / "step_1"
    file = step / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "lora_B" in name)
    tensors[name].view(-1)[0] = value
    save_file(tensors, file, metadata={"format": "pt"})
    (step / "manifest.json").unlink()
    write_manifest(step, 1)
    for ended in (
        tool(sample.main, f"run={run}"),
        resumed(cli, run, "trainer.steps=3"),
        cli(*SHORT, f"init_from={run}"),
        cli(*SHORT, f"init_from={run}", "adapter=lora"),
        tool(checkpoint.main, "merge", str(run), str(tmp_path / "merged")),
    ):
        assert_refused(ended, file, name, "NaN" if value != value else "inf", "damaged")
    assert not (tmp_path / "merged").exists()


def test_an_exported_adapter_is_no_base_and_no_start(cli: Cli, tool: Cli, tmp_path: Path) -> None:
    gpt2 = gpt2_folder(tmp_path / "gpt2")
    run = cli(*SHORT, f"init_from={gpt2}", "adapter=lora", "trainer.steps=1").folder
    exported = tmp_path / "adapter"
    assert tool(checkpoint.main, "export", str(run), str(exported), "--adapter").code == 0
    for ended in (
        cli(*SHORT, f"init_from={exported}"),
        cli(*SHORT, f"init_from={run}", f"base={exported}"),
        resumed(cli, run, "trainer.steps=3", f"base={exported}"),
        tool(sample.main, f"run={exported}"),
        tool(sample.main, f"run={run}", f"base={exported}"),
        tool(checkpoint.main, "merge", str(run), str(tmp_path / "merged"), "--base", str(exported)),
    ):
        assert_refused(ended, exported, "is a peft adapter", f"base {gpt2}", "resume=RUN", "merge RUN NEW")


@pytest.mark.parametrize(("old", "new"), [("r: 8", "r: 4"), ("n_layer: 2", "n_layer: 100000000")])
def test_sizes_that_do_not_fit_an_adapter_are_refused_before_anything_is_built(
    old: str, new: str, cli: Cli, tool: Cli, base: Path, tmp_path: Path
) -> None:
    run = cli(*SHORT, f"init_from={base}", "adapter=lora", "trainer.steps=1").folder
    step = run / "checkpoints" / "step_1"
    config = (step / "config.yaml").read_text("utf-8")
    assert config.count(f"  {old}\n") == 1
    (step / "config.yaml").write_text(config.replace(f"  {old}\n", f"  {new}\n"), "utf-8")
    shutil.copy(step / "config.yaml", run / "config.yaml")
    (step / "manifest.json").unlink()
    write_manifest(step, 1)
    for ended in (
        tool(sample.main, f"run={run}"),
        cli(*SHORT, f"init_from={run}", "trainer.steps=1"),
        tool(checkpoint.main, "merge", str(run), str(tmp_path / "merged")),
    ):
        assert_refused(ended, step / "config.yaml", "unchanged copy")
