"""Tests of the export to transformers: round trips and refusals."""

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from bigramlm.cli import checkpoint as checkpoint_tool
from bigramlm.engine.load import load_model, open_checkpoint
from bigramlm.utils import paths
from tests.helpers import Cli, assert_refused, gpt2_folder

TEXT = paths.bundled_text().read_text("utf-8")
QUICK = ("data=bundled", "logger=none", "trainer.eval_batches=1", "sample.max_new_tokens=5", "data.batch_size=4")
VOCABULARY, POSITIONS = 300, 32  # of gpt2_folder


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.set_verbosity_warning()


def load_with_transformers(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def tokens(n: int = POSITIONS, rows: int = 3) -> torch.Tensor:
    return torch.randint(VOCABULARY, (rows, n), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model: Any, idx: torch.Tensor) -> torch.Tensor:
    out = model(idx)
    result: torch.Tensor = out[0] if isinstance(out, tuple) else out.logits
    return result


def test_round_trip_preserves_tensors_and_logits(cli: Cli, tool: Cli, tmp_path: Path) -> None:
    gpt2 = gpt2_folder(tmp_path / "gpt2")
    run = cli(*QUICK, f"init_from={gpt2}", "trainer.steps=0", "model=gpt2")
    assert run.code == 0, run.err
    assert f"weights: initialised from GPT-2 (custom) in {gpt2}" in run.err
    out = tmp_path / "out"
    exported = tool(checkpoint_tool.main, "export", str(run.folder), str(out))
    assert exported.code == 0, exported.err
    assert " 0.0e+00 " in exported.out
    before, after = load_file(gpt2 / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(logits(load_with_transformers(gpt2), tokens()), logits(load_with_transformers(out), tokens()))

    text = "But soft!\n\n  What light  <|endoftext|> \U0001f40d"
    model, tokenizer, _ = load_model(open_checkpoint(str(run.folder)))
    loaded = AutoTokenizer.from_pretrained(out)
    assert (
        loaded(text.replace("<|endoftext|>", "")).input_ids
        == tokenizer.encode(text.replace("<|endoftext|>", "")).tolist()
    )
    assert loaded.eos_token_id == tokenizer.end_of_text
    assert loaded.model_max_length == POSITIONS
    difference = logits(model.eval(), tokens()) - logits(load_with_transformers(out), tokens())
    assert difference.abs().max() <= 1e-4


def test_char_gpt_is_exported_with_its_tokenizer(cli: Cli, tool: Cli, tmp_path: Path) -> None:
    small = ("model.n_layer=2", "model.n_head=2", "model.n_embd=16", "data.block_size=32", "trainer.steps=5")
    run = cli(*QUICK, "model=nanogpt", *small)
    out = tmp_path / "out"
    assert tool(checkpoint_tool.main, "export", str(run.folder), str(out)).code == 0
    model, tokenizer, _ = load_model(open_checkpoint(str(run.folder)))
    idx = torch.randint(tokenizer.vocab_size, (2, 32))
    assert torch.allclose(logits(model.eval(), idx), logits(load_with_transformers(out), idx), atol=1e-5)
    loaded = AutoTokenizer.from_pretrained(out)
    text = TEXT[:500]
    assert loaded(text).input_ids == tokenizer.encode(text).tolist()
    assert loaded.decode(loaded(text).input_ids) == text
    with pytest.raises(Exception, match="UNK"):  # the char tokenizer has no unknown token
        loaded("日")

    again = cli(*QUICK, f"init_from={out}", "trainer.steps=0")
    assert again.code == 0, again.err
    assert f"vocabulary of {tokenizer.vocab_size}" in again.err
    assert "loses part of the text" not in again.err
    assert json.loads((again.folder / "summary.json").read_text())["tokenizer"]["lossless"] is True
    refused = cli(*QUICK, f"init_from={out}", "trainer.steps=0", "sample.prompt=日")
    assert_refused(refused, "日", field="sample.prompt")
    first, second = (json.loads((r.folder / "summary.json").read_text())["final"]["val/loss"] for r in (run, again))
    assert second == pytest.approx(first, abs=1e-5)


def test_refused_export_names_the_unsupported_fields(cli: Cli, tool: Cli, tmp_path: Path) -> None:
    small = ("model.n_layer=1", "model.n_head=2", "model.n_embd=16", "trainer.steps=0")
    run = cli(*QUICK, "model=gpt", *small)
    refused = tool(checkpoint_tool.main, "export", str(run.folder), str(tmp_path / "out"))
    assert_refused(refused, run.folder, "model.position=rotary", "model.norm=rms", "model.qk_norm=true")
    assert "model.bias" not in refused.err  # zeros are exported instead
    run = cli(*QUICK, "trainer.steps=0")
    refused = tool(checkpoint_tool.main, "export", str(run.folder), str(tmp_path / "out"))
    assert_refused(refused, run.folder, "model=bigram")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    refused = tool(checkpoint_tool.main, "export", str(run.folder), str(tmp_path / "out"))
    assert_refused(refused, tmp_path / "out")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask, and no limit on the size of files")
def test_an_export_obeys_the_umask_and_a_full_disk_is_one_line(cli: Cli, tool: Cli, tmp_path: Path) -> None:
    import resource

    small = ("model.n_layer=1", "model.n_head=2", "model.n_embd=32", "data.block_size=32", "trainer.steps=0")
    mask = os.umask(0o027)
    try:
        base = cli(*QUICK, "model=nanogpt", *small)
        run = cli(*QUICK, f"init_from={base.folder}", "adapter=lora", "trainer.steps=0")
        assert run.code == 0, run.err
        for command, out in (("export", "out"), ("merge", "merged"), ("export --adapter", "adapter")):
            ended = tool(checkpoint_tool.main, *command.split(), str(run.folder), str(tmp_path / out))
            assert ended.code == 0, ended.err
    finally:
        os.umask(mask)
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]
    assert sum(path.suffix == ".safetensors" for path in written) >= 7
    assert {oct(path.stat().st_mode & 0o777) for path in written} == {"0o640"}

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for command in ("export", "merge", "export --adapter"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
        try:
            ended = tool(checkpoint_tool.main, *command.split(), str(run.folder), str(tmp_path / "full"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert_refused(ended, f"{tmp_path / 'full'} cannot be written", os.strerror(errno.EFBIG), "free some space")
        assert not list(tmp_path.glob("*full*"))
