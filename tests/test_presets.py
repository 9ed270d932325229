"""Every preset in conf/, found by itself, composes and takes a step where this machine can."""

import json
from pathlib import Path

import pytest
import torch

from bigramlm import paths, prepare
from bigramlm.config import GROUPS, KINDS, to_yaml
from bigramlm.help import choices_of_groups
from tests.helpers import Cli, gpt2_folder, run_config

PRESETS = sorted(
    (path.parent.name, path.stem) for path in paths.conf_dir().glob("*/*.yaml") if path.parent.name != "hydra"
)
# What a preset needs besides: a field that has no default, a model with matrices, less of what is large.
NEEDS = {
    ("data", "text"): ["data.path={text_file}"],
    ("data", "pairs"): ["data.path={pairs}"],
    ("data", "tokens"): ["data.path={tokens}"],
    ("tokenizer", "bpe"): ["tokenizer.vocab_size=300"],
    ("tokenizer", "wordpiece"): ["tokenizer.vocab_size=300"],
    ("tokenizer", "gpt2"): ["tokenizer.path={tokens}"],
    ("optim", "muon"): ["model=gpt"],
    ("adapter", "lora"): ["init_from={gpt2}"],
    ("experiment", "finetune"): ["init_from={gpt2}"],
    ("experiment", "finetune_lora"): ["init_from={gpt2}"],
    ("experiment", "finetune_scratch"): ["init_from={gpt2}"],
    ("experiment", "finetune_gpt2"): ["init_from={gpt2}"],
    ("experiment", "finetune_gpt2_lora"): ["init_from={gpt2}"],
    ("experiment", "finetune_gpt2_scratch"): ["init_from={gpt2}"],
    ("model", "gpt2"): ["model.n_layer=1"],
    ("experiment", "nanogpt_gpu"): ["model.n_layer=1", "data.batch_size=2", "device.compile=false"],
    ("experiment", "gpt_gpu"): ["model.n_layer=1", "data.batch_size=2", "device.compile=false"],
}


def test_all_groups_are_found_and_offered() -> None:
    assert {group for group, _ in PRESETS} == set(GROUPS)
    for group, name in PRESETS:
        assert name in choices_of_groups()[group]


def test_every_kind_has_its_preset() -> None:
    for group, kinds in KINDS.items():
        assert set(kinds) <= {name for found, name in PRESETS if found == group}


@pytest.mark.parametrize(("group", "name"), PRESETS, ids=[f"{group}={name}" for group, name in PRESETS])
def test_preset_takes_a_step(
    group: str, name: str, cli: Cli, text_file: Path, tool: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    needs = NEEDS.get((group, name), [])
    tokens, gpt2 = text_file.with_name("tokens"), text_file.with_name("gpt2")
    if any("{gpt2}" in need for need in needs):
        gpt2_folder(gpt2)
    if any("{tokens}" in need for need in needs):
        tool(prepare.main, f"data.path={text_file}", "tokenizer=byte", f"output={tokens}")
    pairs = text_file.with_name("pairs.jsonl")
    pairs.write_text('{"prompt": "2 + 3 =", "completion": " 5"}\n' * 10, "utf-8")
    made = {"text_file": text_file, "tokens": tokens, "pairs": pairs, "gpt2": gpt2}
    overrides = [f"{group}={name}", *(need.format(**made) for need in needs)]
    cfg = run_config(*overrides)
    assert to_yaml(cfg)
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(cfg.device.name, True):
        pytest.skip(f"this machine has no {cfg.device.name}")
    if group != "data":
        overrides.insert(0, "data=bundled")
    if (group, name) == ("data", "shakespeare"):
        overrides.append("data.url=http://127.0.0.1:9/")  # no network in tests: the file, or else the bundled text
    one = ("trainer.steps=1", "optim.warmup_steps=0", "trainer.eval_batches=1")
    ended = cli(*overrides, *one, "logger.mode=offline", "sample.max_new_tokens=3")
    assert ended.code == 0, ended.err
    told = json.loads((ended.folder / "summary.json").read_text("utf-8"))
    assert (told["status"], told["step"]) == ("completed", 0 if name == "ngram" else 1)  # which is counted
