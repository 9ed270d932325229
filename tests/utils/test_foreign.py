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


def pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "utf-8")


def tensorflow(folder: Path) -> None:
    config(folder, model_type="gpt2")
    (folder / "tf_model.h5").write_bytes(b"x")


def pickles(folder: Path) -> None:
    for name in ("optimizer.pt", "pytorch_model.bin"):
        torch.save({}, folder / name)


def with_config(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Return a function that also writes GPT-2's config.json and a tokenizer."""

    def both(folder: Path) -> None:
        config(folder, model_type="gpt2")
        (folder / "tokenizer.json").write_text("{}", "utf-8")
        make(folder)

    return both


def trained_by_trainer(folder: Path) -> None:
    torch.save({}, folder / "training_args.bin")
    for part in ("checkpoint-500", "runs"):
        (folder / part).mkdir()
    config(folder / "checkpoint-500", model_type="gpt2")


def cached(folder: Path) -> None:
    (folder / "refs").mkdir()
    (folder / "snapshots" / "abc").mkdir(parents=True)
    config(folder / "snapshots" / "abc", model_type="gpt2")


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
    "GGUF beside a config": (
        with_config(lambda f: (f / "x.gguf").write_bytes(b"GGUF\3\0")),
        ("GGUF", "x.gguf", "model.safetensors"),
    ),
    "a pickle beside a config": (
        with_config(pickles),
        ("pytorch_model.bin", "run code", "save_pretrained"),
    ),
    "TensorFlow beside a config": (
        tensorflow,
        ("TensorFlow", "tf_model.h5"),
    ),
    "an adapter beside a config": (with_config(adapter), ("peft adapter", "some/base", "merge")),
    "a config alone": (with_config(lambda f: None), ("no weights", "model.safetensors")),
    "a part without its index": (
        with_config(lambda f: save_file({"a": torch.ones(1)}, f / "model-00001-of-00002.safetensors")),
        ("model-00001-of-00002.safetensors", "model.safetensors.index.json"),
    ),
    "a config that is a list": (lambda f: (f / "config.json").write_text("[1]"), ("config.json", "JSON object")),
    "a config that is damaged": (lambda f: (f / "config.json").write_text("{"), ("config.json", "JSON")),
    "a config that is too deep": (lambda f: (f / "config.json").write_text("[" * 100_000), ("config.json", "JSON")),
    "a pointer as config": (lambda f: pointer(f / "config.json"), ("config.json", "git lfs pull")),
    "a pointer as adapter": (lambda f: pointer(f / "adapter_config.json"), ("adapter_config.json", "git lfs pull")),
    "a pointer as pickle": (lambda f: pointer(f / "other.pt"), ("other.pt", "git lfs pull")),
    "the output of a Trainer": (trained_by_trainer, ("give its folder", "foreign/checkpoint-500")),
    "a folder of the hub's cache": (cached, ("give its folder", "foreign/snapshots/abc")),
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


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_file_of_a_model_comes_with_its_folder(cli: Cli, tool: Cli, tmp_path: Path, name: str) -> None:
    folder = gpt2_folder(tmp_path / "gpt2")
    for ended in (cli(*SHORT, f"init_from={folder / name}"), tool(sample.main, f"run={folder / name}")):
        assert_refused(ended, folder / name, f"give its folder, {folder}")


@pytest.mark.parametrize("inside", ["checkpoint-500", "snapshots/abc", "hub/models--me--tiny/snapshots/abc"])
def test_the_folder_of_a_model_inside_is_one_that_trains(cli: Cli, tmp_path: Path, inside: str) -> None:
    gpt2_folder(tmp_path / "outer" / inside)
    refused = cli(*SHORT, f"init_from={tmp_path / 'outer'}")
    assert_refused(refused, tmp_path / "outer" / inside)
    given = refused.err.strip().rpartition(" ")[2]
    trained = cli(*SHORT, f"init_from={given}", "trainer.steps=0")
    assert trained.code == 0, trained.err


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "model.safetensors.index.json"])
def test_pointers_of_git_lfs_are_named(cli: Cli, tmp_path: Path, name: str) -> None:
    folder = gpt2_folder(tmp_path / "gpt2")
    if name.endswith("index.json"):
        (folder / "model.safetensors").unlink()
    pointer(folder / name)
    assert_refused(cli(*SHORT, f"init_from={folder}"), folder / name, "git lfs pull")


def test_a_merged_model_with_the_rest_of_its_adapter_is_a_model(cli: Cli, tool: Cli, tmp_path: Path) -> None:
    folder = gpt2_folder(tmp_path / "gpt2")
    adapter(folder)
    assert_refused(tool(sample.main, f"run={folder}"), "GPT-2", f"init_from={folder}")
    assert cli(*SHORT, f"init_from={folder}", "trainer.steps=0").code == 0


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
