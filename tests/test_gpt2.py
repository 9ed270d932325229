"""GPT-2 in Hugging Face's layout: the same logits as transformers has, there and back, and what is refused."""

import http.server
import json
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

from bigramlm import checkpoint_tool, paths, sample
from bigramlm.device.config import DeviceConfig
from bigramlm.device.device import decide, set_up
from bigramlm.errors import UserError
from bigramlm.generate import generate
from bigramlm.load import load_model, open_checkpoint
from bigramlm.model.base import LanguageModel
from bigramlm.model.config import GPT2_SIZES, GPT2Config
from bigramlm.model.huggingface import open_pretrained
from tests.helpers import Cli, Ended, Hub, gpt2_folder, run_config

TEXT = paths.bundled_text().read_text("utf-8")
QUICK = ("data=bundled", "logger=none", "trainer.eval_batches=1", "sample.max_new_tokens=5", "data.batch_size=4")
VOCABULARY, POSITIONS = 300, 32  # of gpt2_folder


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.set_verbosity_warning()


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = folder / "model.safetensors"
    tensors = change(load_file(path))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def without_prefix(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}


def with_masks(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # As GPT-2 on the hub has them, and older files.
    layers = {match[0]: match[1] for name in tensors if (match := re.search(r"((?:transformer\.)?h\.\d+)\.", name))}
    mask = torch.ones(POSITIONS, POSITIONS).tril().view(1, 1, POSITIONS, POSITIONS)
    masks = {f"{layer}.attn.bias": mask.clone() for layer in layers.values()}
    return {**tensors, **masks, **{f"{layer}.attn.masked_bias": torch.tensor(-1e4) for layer in layers.values()}}


def ours(folder: Path) -> LanguageModel:
    found = open_pretrained(str(folder))
    model = found.model_config().build(vocab_size=found.vocab_size, block_size=found.block_size)
    found.load_weights(model)
    return model.eval()


def theirs(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def tokens(n: int = POSITIONS, rows: int = 3) -> torch.Tensor:
    return torch.randint(VOCABULARY, (rows, n), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model: Any, idx: torch.Tensor) -> torch.Tensor:
    out = model(idx)
    found: torch.Tensor = out[0] if isinstance(out, tuple) else out.logits
    return found


@pytest.mark.parametrize("masks", [False, True], ids=["no masks", "masks"])
@pytest.mark.parametrize("prefix", [False, True], ids=["no prefix", "prefix"])
@pytest.mark.parametrize("size", ["narrow", "wide"])
def test_the_logits_are_those_of_transformers_and_so_is_the_text(
    tmp_path: Path, size: str, prefix: bool, masks: bool
) -> None:
    folder = gpt2_folder(tmp_path / "gpt2", size=size)
    reference = theirs(folder)
    if not prefix:
        rewrite(folder, without_prefix)
    if masks:
        rewrite(folder, with_masks)
    model = ours(folder)
    apart = (logits(model, tokens()) - logits(reference, tokens())).abs().max()
    assert apart <= 1e-4

    start = tokens(1, rows=1)
    cut = POSITIONS - 1  # as far as both see the same context
    written = reference.generate(start, max_new_tokens=cut, do_sample=False, pad_token_id=0)
    device = set_up(decide(DeviceConfig(name="cpu"), n_params=1, tokens=1))
    assert generate(model, start, cut, temperature=0, seed=0, device=device).tolist() == written.tolist()


def test_fifty_tokens_are_the_same(tmp_path: Path) -> None:
    folder = gpt2_folder(tmp_path / "gpt2", size="wide", n_positions=64)
    start = tokens(3, rows=2)
    device = set_up(decide(DeviceConfig(name="cpu"), n_params=1, tokens=1))
    written = theirs(folder).generate(start, max_new_tokens=50, do_sample=False, pad_token_id=0)
    assert written.shape == (2, 53)
    assert generate(ours(folder), start, 50, temperature=0, seed=0, device=device).tolist() == written.tolist()


@pytest.mark.parametrize(
    "config",
    [
        {"activation_function": "gelu"},
        {"activation_function": "relu"},
        {"activation_function": "relu2"},
        {"tie_word_embeddings": False},
        {"resid_pdrop": 0.0},
    ],
    ids=str,
)
def test_what_a_config_says_is_computed(tmp_path: Path, config: dict[str, Any]) -> None:
    folder = gpt2_folder(tmp_path, **config)
    assert torch.allclose(logits(ours(folder), tokens()), logits(theirs(folder), tokens()), atol=1e-4)


def test_weights_in_several_files_and_in_half_precision(tmp_path: Path) -> None:
    folder = gpt2_folder(tmp_path)
    whole = logits(ours(folder), tokens())
    theirs(folder).save_pretrained(folder / "parts", max_shard_size="10KB")
    assert len(list((folder / "parts").glob("*.safetensors"))) > 1
    assert torch.equal(logits(ours(folder / "parts"), tokens()), whole)
    rewrite(folder, lambda tensors: {name: tensor.bfloat16() for name, tensor in tensors.items()})
    assert torch.allclose(logits(ours(folder), tokens()), whole, atol=0.5)


def train(cli: Cli, folder: Path | str, *overrides: str) -> Ended:
    return cli(*QUICK, f"init_from={folder}", "trainer.steps=0", *overrides)


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    return gpt2_folder(tmp_path / "gpt2")


def test_there_and_back_nothing_has_changed(cli: Cli, tool: Cli, gpt2: Path, tmp_path: Path) -> None:
    run = train(cli, gpt2, "model=gpt2")
    assert run.code == 0, run.err
    assert "weights: of GPT-2 (custom), from" in run.err
    out = tmp_path / "out"
    exported = tool(checkpoint_tool.main, "export", str(run.folder), str(out))
    assert exported.code == 0, exported.err
    assert "logits the same to 0.0e+00 of the largest" in exported.out
    before, after = load_file(gpt2 / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(logits(theirs(gpt2), tokens()), logits(theirs(out), tokens()))

    text = "But soft!\n\n  What light  <|endoftext|> \U0001f40d"
    model, tokenizer, _ = load_model(open_checkpoint(str(run.folder)))
    loaded = AutoTokenizer.from_pretrained(out)
    assert (
        loaded(text.replace("<|endoftext|>", "")).input_ids
        == tokenizer.encode(text.replace("<|endoftext|>", "")).tolist()
    )
    assert loaded.eos_token_id == tokenizer.end_of_text
    assert loaded.model_max_length == POSITIONS
    apart = logits(model.eval(), tokens()) - logits(theirs(out), tokens())
    assert apart.abs().max() <= 1e-4


def test_a_gpt_of_our_own_is_exported_with_its_characters(cli: Cli, tool: Cli, tmp_path: Path) -> None:
    small = ("model.n_layer=2", "model.n_head=2", "model.n_embd=16", "data.block_size=32", "trainer.steps=5")
    run = cli(*QUICK, "model=nanogpt", *small)
    out = tmp_path / "out"
    assert tool(checkpoint_tool.main, "export", str(run.folder), str(out)).code == 0
    model, tokenizer, _ = load_model(open_checkpoint(str(run.folder)))
    idx = torch.randint(tokenizer.vocab_size, (2, 32))
    assert torch.allclose(logits(model.eval(), idx), logits(theirs(out), idx), atol=1e-5)
    loaded = AutoTokenizer.from_pretrained(out)
    text = TEXT[:500]
    assert loaded(text).input_ids == tokenizer.encode(text).tolist()
    assert loaded.decode(loaded(text).input_ids) == text
    with pytest.raises(Exception, match="UNK"):  # which it has not, as ours has none
        loaded("日")

    again = cli(*QUICK, f"init_from={out}", "trainer.steps=0")
    assert again.code == 0, again.err
    assert f"vocabulary of {tokenizer.vocab_size}" in again.err
    assert "loses part of the text" not in again.err
    refused = cli(*QUICK, f"init_from={out}", "trainer.steps=0", "sample.prompt=日")
    assert refused.code == 2
    assert "the vocabulary lacks '日'" in refused.err
    first, second = (json.loads((r.folder / "summary.json").read_text())["final"]["val/loss"] for r in (run, again))
    assert second == pytest.approx(first, abs=1e-5)


def test_what_cannot_be_exported_says_which_of_its_fields(cli: Cli, tool: Cli, tmp_path: Path) -> None:
    small = ("model.n_layer=1", "model.n_head=2", "model.n_embd=16", "trainer.steps=0")
    run = cli(*QUICK, "model=gpt", *small)
    refused = tool(checkpoint_tool.main, "export", str(run.folder), str(tmp_path / "out"))
    assert refused.code == 2
    for field in ("model.position=rotary", "model.norm=rms", "model.qk_norm=true"):
        assert field in refused.err
    assert "model.bias" not in refused.err  # zeros do
    run = cli(*QUICK, "trainer.steps=0")
    refused = tool(checkpoint_tool.main, "export", str(run.folder), str(tmp_path / "out"))
    assert (refused.code, (tmp_path / "out").exists()) == (2, False)
    assert "model=bigram is no transformer" in refused.err
    (tmp_path / "out").mkdir()
    refused = tool(checkpoint_tool.main, "export", str(run.folder), str(tmp_path / "out"))
    assert "is there already, and nothing is written over" in refused.err


def test_sizes() -> None:
    for size, shape in GPT2_SIZES.items():
        model = run_config("model=gpt2", f"model.size={size}").model
        assert isinstance(model, GPT2Config)
        assert (model.size, (model.n_layer, model.n_head, model.n_embd)) == (size, shape)
        theirs = transformers.GPT2Config(n_layer=model.n_layer, n_head=model.n_head, n_embd=model.n_embd)
        with torch.device("meta"):
            counted = sum(p.numel() for p in GPT2LMHeadModel(theirs).parameters())
        assert round(counted / 1e6) == {"small": 124, "medium": 355, "large": 774, "xl": 1558}[size]
    model = run_config("model=gpt2", "model.size=medium", "model.n_layer=2").model
    assert isinstance(model, GPT2Config)
    assert (model.size, model.n_layer, model.n_embd) == ("custom", 2, 1024)
    with pytest.raises(UserError, match=r"model\.size=huge: unknown; choose one of small, medium, large, xl, custom"):
        run_config("model=gpt2", "model.size=huge")


def block_size(run: Ended) -> int:
    return int(
        open_checkpoint(str(run.folder)).path.joinpath("config.yaml").read_text().split("block_size: ")[1].split()[0]
    )


def test_the_block_is_cut_to_the_positions_or_checked_against_them(cli: Cli, gpt2: Path) -> None:
    assert block_size(train(cli, gpt2)) == POSITIONS
    shorter = train(cli, gpt2, "data.block_size=16")
    assert block_size(shorter) == 16
    model, _, _ = load_model(open_checkpoint(str(shorter.folder)))
    assert torch.equal(logits(model.eval(), tokens(16)), logits(ours(gpt2), tokens(16)))
    recipe = train(cli, gpt2, "experiment=finetune_gpt2")  # whose block is longer, and is cut
    assert block_size(recipe) == POSITIONS
    assert f"block size: {POSITIONS} of {POSITIONS} positions" in recipe.err
    pairs = gpt2.with_name("pairs.jsonl")
    pairs.write_text('{"prompt": "What", "completion": " light"}\n' * 20)
    given = ("data=pairs", f"data.path={pairs}", "experiment=finetune_gpt2")
    assert block_size(train(cli, gpt2, *given, "data.block_size=20")) == 20
    assert block_size(train(cli, gpt2, *given)) == POSITIONS  # and not more than the recipe's, which is longer
    refused = train(cli, gpt2, "data.block_size=33")
    assert refused.code == 2
    assert "data.block_size=33: the weights in" in refused.err
    assert "have 32 positions" in refused.err


def test_learned_positions_of_our_own_are_cut_and_checked_too(cli: Cli, gpt2: Path) -> None:
    run = train(cli, gpt2)
    shorter = cli(*QUICK, f"init_from={run.folder}", "trainer.steps=0", "data.block_size=16")
    model, _, _ = load_model(open_checkpoint(str(shorter.folder)))
    assert torch.equal(logits(model.eval(), tokens(16)), logits(ours(gpt2), tokens(16)))
    refused = cli(*QUICK, f"init_from={run.folder}", "trainer.steps=0", "data.block_size=64")
    assert refused.code == 2
    assert "have learned 32 positions, and know no token behind them; take 32 at the most" in refused.err


def test_recipes_from_different_weights_are_no_sweep(cli: Cli) -> None:
    refused = cli("-m", "experiment=quick_gpt,finetune_gpt2", run_dir=False)
    assert refused.code == 2
    assert "start from different weights (none, openai-community/gpt2); init_from= says which" in refused.err


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("model.size=medium", "model.size=medium: the weights in {gpt2} have model.size=custom"),
        ("model.bias=false", "model.bias=false: the weights in {gpt2} have model.bias=true, and their config.json"),
        ("model.ngram_order=2", "model.ngram_order=2: the weights in {gpt2} have model.ngram_order=0"),
        ("experiment=gpt_cpu", "the weights in {gpt2} have model."),
        ("model.n_head=4", "model.n_head=4: the weights in {gpt2} have model.n_head=2, and their config.json decides"),
        ("model=gpt", "model=gpt: the weights in {gpt2} are GPT-2's; take model=gpt2, or leave it out"),
        ("tokenizer=byte", "tokenizer=byte: the weights in {gpt2} were trained with tokenizer=gpt2"),
        ("base=x", "base=x: is where an adapter's base has moved to"),
    ],
)
def test_what_contradicts_the_weights_is_refused(cli: Cli, gpt2: Path, typed: str, message: str) -> None:
    refused = train(cli, gpt2, typed)
    assert refused.code == 2
    assert message.format(gpt2=gpt2) in refused.err.replace("\n", " ")
    kept = train(cli, gpt2, "model.dropout=0.3", "model.n_head=2", "model.bias=1")
    assert kept.code == 0
    assert "dropout: 0.3" in (kept.folder / "config.yaml").read_text()


def drop(name: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if not key.endswith(name)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("h.1.attn.c_proj.bias"), "lacks h.1.attn.c_proj.bias"),
        (drop("bias"), r"lacks h.0.ln_1.bias, h.0.attn.c_attn.bias, .* and \d+ more"),
        (lambda t: {**t, "score.weight": torch.zeros(2)}, "has, and GPT-2 has not, score.weight"),
        (
            lambda t: {**t, "transformer.h.2.ln_1.bias": torch.zeros(16)},
            "has, and GPT-2 has not, transformer.h.2.ln_1.bias",
        ),
        (
            lambda t: {**t, "transformer.h.0.mlp.c_fc.weight": torch.zeros(64, 16)},
            r"transformer.h.0.mlp.c_fc.weight is \(64, 16\) there, \(16, 64\) by its config.json",
        ),
        (
            lambda t: {**t, "transformer.wte.weight": torch.zeros(200, 16)},
            r"transformer.wte.weight is \(200, 16\) there, \(300, 16\)",
        ),
        (lambda t: {**t, "lm_head.weight": torch.zeros(300, 16)}, "lm_head.weight is another matrix than"),
    ],
)
def test_tensors_that_are_missing_surplus_or_of_another_shape_are_named(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], message: str
) -> None:
    folder = gpt2_folder(tmp_path)
    rewrite(folder, change)
    with pytest.raises(UserError, match=message) as error:
        ours(folder)
    assert "\n" not in str(error.value)


def test_a_head_that_is_there_and_is_the_embedding_is_none_too_many(tmp_path: Path) -> None:
    folder = gpt2_folder(tmp_path)
    before = logits(ours(folder), tokens())
    rewrite(folder, lambda t: {**t, "lm_head.weight": t["transformer.wte.weight"].clone()})
    assert torch.equal(logits(ours(folder), tokens()), before)


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def test_a_pickle_is_refused_and_what_is_said_converts_it(tmp_path: Path) -> None:
    folder = gpt2_folder(tmp_path / "old")
    before = logits(ours(folder), tokens())
    pickled(folder)
    with pytest.raises(UserError, match=r"its weights are in pytorch_model.bin, a pickle, which can run code") as error:
        ours(folder)
    told = re.search(r'python -c "(.*?)"', str(error.value))
    assert told is not None
    code = told[1].replace("FOLDER", str(folder)).replace("NEW", str(tmp_path / "new"))
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert torch.equal(logits(ours(tmp_path / "new"), tokens()), before)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"model_type": "llama"}, "is a model of type 'llama' by its config.json, and only gpt2 can be read"),
        ({"n_inner": 17}, "n_inner=17: the layers here are 4 n_embd = 64 wide inside"),
        ({"activation_function": "silu"}, "activation_function=silu: is none of those here: gelu_new"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True: only False is computed"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon=1e-06: only 1e-05 is computed here"),
        ({"n_layer": "two"}, "n_layer='two': must be a whole number, 1 or more"),
        ({"resid_pdrop": None}, "resid_pdrop=None: must be a number"),
        ({"resid_pdrop": 2}, "model.dropout=2.0: must be 0 or more, and below 1"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings='yes': must be true or false"),
        ({"n_head": 3}, "cannot be shared by model.n_head=3 heads"),
    ],
)
def test_a_config_of_something_else_is_refused(tmp_path: Path, said: dict[str, Any], message: str) -> None:
    folder = gpt2_folder(tmp_path)
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**about, **said}))
    with pytest.raises(UserError, match=re.escape(message)) as error:
        ours(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").write_text("{"), "not the config of a model"),
        (lambda f: (f / "config.json").write_text("[]"), "not the config of a model"),
        (lambda f: (f / "config.json").write_text("{}"), "not the config of a model"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 99), "its weights cannot be read"),
        (lambda f: (f / "config.json").unlink(), "holds model.safetensors, and no config.json, which says what model"),
        (lambda f: (f / "model.safetensors").unlink(), "holds no weights, which would be a model.safetensors"),
        (lambda f: (f / "tokenizer.json").unlink(), "holds no tokenizer, which would be a tokenizer.json"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "holds no tokenizer"),
    ],
)
def test_a_folder_with_something_wrong_is_refused_in_a_line(
    cli: Cli, gpt2: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    spoil(gpt2)
    refused = train(cli, gpt2)
    assert refused.code == 2
    (error,) = [line for line in refused.err.splitlines() if line.startswith("error: ")]
    assert message in error


def test_the_tokenizer_is_that_of_the_weights_but_for_rows_that_only_pad(cli: Cli, tmp_path: Path) -> None:
    padded = gpt2_folder(tmp_path / "padded", vocab_size=384)
    run = train(cli, padded)
    assert run.code == 0, run.err
    model, _, _ = load_model(open_checkpoint(str(run.folder)))
    assert torch.equal(logits(model.eval(), tokens()), logits(ours(padded), tokens())[..., :VOCABULARY])
    other = gpt2_folder(tmp_path / "other", vocab_size=1000)
    refused = train(cli, other)
    assert refused.code == 2
    assert "its weights are for 1,000 tokens, and the tokenizer has 300: it is another" in refused.err


def test_from_scratch_takes_all_but_the_weights(cli: Cli, gpt2: Path) -> None:
    run = train(cli, gpt2, "from_scratch=true")
    assert run.code == 0, run.err
    assert "all but the weights: of GPT-2 (custom), from" in run.err
    model, tokenizer, cfg = load_model(open_checkpoint(str(run.folder)))
    assert (tokenizer.vocab_size, cfg.data.block_size) == (VOCABULARY, POSITIONS)
    assert not torch.allclose(logits(model.eval(), tokens()), logits(ours(gpt2), tokens()), atol=0.1)
    refused = cli(*QUICK, "from_scratch=true")
    assert refused.code == 2
    assert "from_scratch=true: takes model, tokenizer and block size from init_from, which is not given" in refused.err


def test_a_run_goes_on_and_is_sampled_from_without_the_folder(cli: Cli, tool: Cli, gpt2: Path) -> None:
    run = train(cli, gpt2, "trainer.steps=2")
    gpt2.rename(gpt2.with_name("gone"))
    again = cli(f"resume={run.folder}", "trainer.steps=4", run_dir=False)
    assert again.code == 0, again.err
    assert tool(sample.main, f"run={run.folder}", "max_new_tokens=3").code == 0


@pytest.fixture
def hub(gpt2: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    names = ("config.json", "model.safetensors", "tokenizer.json")
    monkeypatch.setattr(Hub, "files", {name: (gpt2 / name).read_bytes() for name in names})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def from_hub(name: str, endpoint: str, home: Path, *overrides: str) -> "subprocess.CompletedProcess[str]":
    env = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "PATH": "", "PYTHONPATH": str(paths.home())}
    command = [sys.executable, str(paths.home() / "scripts" / "train.py"), *QUICK, "trainer.steps=0", *overrides]
    command += [f"init_from={name}", f"hydra.run.dir={tempfile.mkdtemp(dir=home)}/run"]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_weights_come_from_the_hub_and_then_without_it(hub: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    first = from_hub("some/gpt2", hub, home)
    assert first.returncode == 0, first.stderr
    assert "weights: of GPT-2 (custom), from some/gpt2" in first.stderr
    without = from_hub("some/gpt2", "http://127.0.0.1:9", home, "model=gpt2")
    assert without.returncode == 0, without.stderr
    assert without.stdout.splitlines()[1] == first.stdout.splitlines()[1]


def test_a_name_without_a_network_says_what_to_download_and_where_to_put_it(hub: str, tmp_path: Path) -> None:
    for name, endpoint, reason in (
        ("openai-community/gpt2", "http://127.0.0.1:9", "refused"),
        ("gpt2-medium", "http://127.0.0.1:9", "refused"),
        ("some/other", hub, "404"),
    ):
        ended = from_hub(name, endpoint, tmp_path)
        assert ended.returncode == 2
        (line,) = ended.stderr.strip().splitlines()
        assert f"init_from={name}: there is no such folder here, and the Hugging Face hub did not give config" in line
        assert reason in line
        assert "download config.json, model.safetensors and tokenizer.json of" in line
        assert "init_from=FOLDER" in line


def test_a_model_on_the_hub_that_has_a_pickle_alone(hub: str, tmp_path: Path) -> None:
    Hub.files["pytorch_model.bin"] = Hub.files.pop("model.safetensors")
    ended = from_hub("some/gpt2", hub, tmp_path)
    assert ended.returncode == 2
    assert "some/gpt2: its weights are in pytorch_model.bin, a pickle" in ended.stderr
    assert not list(tmp_path.rglob("pytorch_model.bin"))  # and it was not downloaded for that
