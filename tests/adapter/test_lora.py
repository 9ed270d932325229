"""LoRA: beside what it can be put, and what is refused before anything is trained."""

import importlib.util
from pathlib import Path

import pytest
import torch

from bigramlm.adapter.config import LoRAConfig
from bigramlm.model.config import BigramConfig, GPTConfig
from bigramlm.utils import paths
from tests.helpers import Cli, assert_refused, command, refuses, run_config

SHORT = ("data=bundled", "logger=none", "trainer.eval_batches=1", "sample.max_new_tokens=5", "data.batch_size=4")
SMALL = ("model=nanogpt", "model.n_layer=2", "model.n_head=2", "model.n_embd=16", "model.bias=true")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a GPT of our own, for adapters to stand beside."""
    folder = tmp_path_factory.mktemp("base") / "run"
    done = command(*SHORT, *SMALL, "data.block_size=16", "trainer.steps=0", f"hydra.run.dir={folder}")
    assert done.code == 0, done.err
    return folder


LAYERS = ("all-linear", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj", "lm_head")


@pytest.mark.parametrize(
    ("typed", "named"),
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
def test_what_cannot_be_adapted_is_refused(cli: Cli, base: Path, typed: str, named: tuple[str, ...]) -> None:
    refused = cli(*SHORT, f"init_from={base}", "adapter=lora", typed)
    assert_refused(refused, *named)
    assert not (refused.folder / "checkpoints").exists()


def test_fresh_weights_and_models_without_such_layers_are_refused(cli: Cli) -> None:
    assert_refused(cli(*SHORT, *SMALL, "adapter=lora"), "init_from=RUN", field="adapter", value="lora")
    bigram = cli(*SHORT, "trainer.steps=0")
    refused = cli(*SHORT, f"init_from={bigram.folder}", "adapter=lora")
    assert_refused(refused, "adapter.targets", "all-linear", "token_embedding_table")
    counted = cli(*SHORT, *SMALL, "model.ngram_order=2", "trainer.steps=0")
    refused = cli(*SHORT, f"init_from={counted.folder}", "adapter=lora")
    assert_refused(refused, "adapter=lora", field="model.ngram_order", value=2)


def test_the_extra_is_asked_for_before_anything_is_done(cli: Cli, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else find(name))
    refused = cli(*SHORT, f"init_from={base}", "adapter=lora")
    assert_refused(refused, "pip install", "[lora]", field="adapter", value="lora")
    assert refused.err.count("\n") == 1, "nothing else is said"


def test_flops_of_frozen_matrices_are_a_third_less() -> None:
    model = GPTConfig(n_layer=2, n_head=2, n_embd=16).build(vocab_size=11, block_size=8)
    whole = model.flops_per_token()
    frozen = sum(p.numel() for p in model.hidden_matrices()) + model.lm_head.weight.numel()  # type: ignore[union-attr,operator]
    adapter = LoRAConfig(r=1).attach(model)
    assert adapter is not None
    assert model.flops_per_token() == whole - 2 * frozen + 6 * adapter.n_trained


def test_a_bigram_can_be_adapted_by_name() -> None:
    model = BigramConfig().build(vocab_size=11, block_size=8)
    idx = torch.arange(8)[None]
    before = model(idx)[0]
    adapter = LoRAConfig(r=2, targets=["token_embedding_table"]).attach(model)
    assert adapter is not None
    assert torch.equal(model(idx)[0], before)
    with refuses("all-linear", "token_embedding_table", field="adapter.targets"):
        LoRAConfig(targets=["all-linear"]).attach(BigramConfig().build(vocab_size=11, block_size=8))


def test_recipes_start_from_the_weights_that_they_name() -> None:
    assert "init_from: openai-community/gpt2" in (paths.conf_dir() / "experiment" / "finetune_gpt2.yaml").read_text()
    with refuses("init_from=", field="adapter", value="lora"):
        run_config("experiment=finetune_lora")
