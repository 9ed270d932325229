"""Tests of models that other programs wrote, given to each command."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bigramlm.cli import checkpoint, runs, sample
from bigramlm.utils.foreign import describe
from tests.helpers import SHORT, Cli, assert_refused, gpt2_folder


def config(folder: Path, **fields: object) -> None:
    (folder / "config.json").write_text(json.dumps(fields), "utf-8")


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}', "utf-8")
    save_file({"lora_A": torch.ones(2)}, folder / "adapter_model.safetensors")


MAKERS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "a peft adapter": (adapter, ("peft adapter", "some/base", "resume=RUN", "merge")),
    "nanoGPT's checkpoint": (
        lambda f: torch.save({"model": {}}, f / "ckpt.pt"),
        ("ckpt.pt", "nanoGPT", "model=nanogpt"),
    ),
    "a pickle": (lambda f: torch.save({}, f / "weights.pth"), ("weights.pth", "run code", "model.safetensors")),
    "a pickle of transformers": (lambda f: torch.save({}, f / "pytorch_model.bin"), ("pytorch_model.bin", "run code")),
    "GGUF": (lambda f: (f / "model-q4.gguf").write_bytes(b"GGUF\3\0"), ("GGUF", "model-q4.gguf", "model.safetensors")),
    "GGUF without its suffix": (lambda f: (f / "blob").write_bytes(b"GGUF\3\0"), ("GGUF", "blob")),
    "TensorFlow": (lambda f: (f / "tf_model.h5").write_bytes(b"x"), ("TensorFlow", "tf_model.h5")),
    "llama": (lambda f: config(f, model_type="llama"), ("'llama'", "gpt2", "model=gpt")),
    "bert": (lambda f: config(f, model_type="bert"), ("'bert'", "gpt2", "model=gpt")),
    "weights without a config": (lambda f: save_file({"a": torch.ones(1)}, f / "x.safetensors"), ("config.json",)),
}


@pytest.mark.parametrize(("make", "named"), MAKERS.values(), ids=MAKERS)
def test_every_command_says_what_a_foreign_folder_is(
    cli: Cli, tool: Cli, tmp_path: Path, make: Callable[[Path], object], named: tuple[str, ...]
) -> None:
    folder = tmp_path / "foreign"
    folder.mkdir()
    make(folder)
    for ended in (
        cli(*SHORT, f"init_from={folder}"),
        cli(f"resume={folder}", run_dir=False),
        tool(sample.main, f"run={folder}"),
        tool(checkpoint.main, "verify", str(folder)),
        tool(checkpoint.main, "inspect", str(folder)),
        tool(runs.main, "report", str(folder)),
    ):
        assert_refused(ended, folder, *named)
        assert ended.err.count("\n") == 1


@pytest.mark.parametrize("name", ["ckpt.pt", "weights.pth", "model-q4.gguf"])
def test_a_foreign_file_is_recognised_like_its_folder(cli: Cli, tool: Cli, tmp_path: Path, name: str) -> None:
    for make, _ in MAKERS.values():
        make(tmp_path)
    for ended in (cli(*SHORT, f"init_from={tmp_path / name}"), tool(sample.main, f"run={tmp_path / name}")):
        assert_refused(ended, tmp_path / name, "model")


def test_a_model_in_place_of_a_run_comes_with_the_command_to_use_it(cli: Cli, tool: Cli, tmp_path: Path) -> None:
    folder = gpt2_folder(tmp_path / "gpt2")
    for ended in (
        cli(f"resume={folder}", run_dir=False),
        tool(sample.main, f"run={folder}"),
        tool(checkpoint.main, "verify", str(folder)),
        tool(checkpoint.main, "strip", str(folder)),
        tool(runs.main, "diff", str(folder), str(folder)),
    ):
        assert_refused(ended, folder, "GPT-2", "init_from=")
    typed = re.search(r"train\.py (init_from=\S+) (trainer\.steps=0)", ended.err)
    assert typed is not None
    run = cli("data=bundled", "logger=none", "sample.max_new_tokens=5", *typed.groups())
    assert run.code == 0, run.err
    assert tool(sample.main, f"run={run.folder}", "max_new_tokens=3").code == 0
    assert_refused(cli(*SHORT, f"init_from={folder / 'model.safetensors'}"), folder, "folder")
    weights = run.folder / "checkpoints" / "step_0" / "model.safetensors"
    assert_refused(tool(sample.main, f"run={weights}"), weights.parent, "folder")


@pytest.mark.parametrize("name", ["gpt2", "distilgpt2", "openai-community/gpt2-large"])
def test_the_name_of_a_model_on_the_hub_is_no_run(cli: Cli, tool: Cli, name: str) -> None:
    for ended in (
        cli(f"resume={name}", run_dir=False),
        tool(sample.main, f"run={name}"),
        tool(checkpoint.main, "inspect", name),
    ):
        assert_refused(ended, name, "GPT-2", f"init_from={name}")


def test_own_folders_are_not_foreign(cli: Cli, tmp_path: Path) -> None:
    run = cli(*SHORT, "trainer.steps=0")
    for folder in (run.folder, run.folder / "checkpoints", run.folder / "checkpoints" / "step_0", tmp_path / "none"):
        assert describe(folder) is None
    (tmp_path / "train.bin").write_bytes(b"\0" * 9)  # token files are no weights
    assert describe(tmp_path) is None
    torch.save({}, run.folder.parent / "notes.pt")
    torch.save({}, run.folder / "notes.pt")
    assert describe(run.folder) is None


def test_a_folder_of_runs_may_contain_other_files(cli: Cli, tool: Cli) -> None:
    run = cli(*SHORT, "trainer.steps=0")
    torch.save({}, run.folder.parent / "notes.pt")
    assert tool(runs.main, "report", str(run.folder.parent)).code == 0
