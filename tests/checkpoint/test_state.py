"""Tests of the state of an optimizer in a checkpoint that someone has edited."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from bigramlm.checkpoint.format import write_manifest
from tests.helpers import SHORT, Cli, assert_refused, resumed

GPT = ("model=gpt", "model.n_layer=1", "model.n_head=2", "model.n_embd=8", "data.block_size=8", "tokenizer=byte")


@pytest.mark.parametrize("value", [0.5, "x", [1], None])
def test_a_plain_value_in_place_of_a_tensor_is_refused(cli: Cli, value: object) -> None:
    # Muon cannot be tried on small parameters, because it knows the shapes of its matrices.
    run: Path = cli(*SHORT, *GPT, "optim=muon").folder
    step = run / "checkpoints" / "step_5"
    path = step / "training.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("/momentum_buffer"))
    del tensors[name]
    _, parameter, key = name.split("/")
    save_file(tensors, path, metadata={"optimizer": json.dumps({parameter: {key: value}})})
    (step / "manifest.json").unlink()
    write_manifest(step, 5)
    assert_refused(resumed(cli, run, "trainer.steps=9"), path, parameter, "momentum_buffer", "instead of a tensor")
