"""GPT-2 in Hugging Face's layout: the same logits as transformers has, and what is refused."""

import itertools
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from bigramlm.cli import sample
from bigramlm.device.config import DeviceConfig
from bigramlm.device.device import decide, set_up
from bigramlm.engine.load import load_model, open_checkpoint
from bigramlm.errors import UserError
from bigramlm.generate import generate
from bigramlm.model.base import LanguageModel
from bigramlm.model.config import GPT2_SIZES, GPT2Config
from bigramlm.model.huggingface import open_pretrained
from tests.helpers import Cli, Ended, Hub, assert_refused, command, gpt2_folder, refuses, run_config, serving

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


@pytest.mark.parametrize(
    ("size", "prefix", "masks"),
    [
        pytest.param(
            *(size, prefix, masks),
            id=f"{size}, {'prefix' if prefix else 'no prefix'}, {'masks' if masks else 'no masks'}",
            # Of all the combinations two have each value once.
            marks=[] if (size == "wide") == prefix != masks else pytest.mark.slow,
        )
        for size, prefix, masks in itertools.product(("narrow", "wide"), (False, True), (False, True))
    ],
)
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


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a GPT-2 that tests only read."""
    return gpt2_folder(tmp_path_factory.mktemp("weights") / "gpt2")


@pytest.fixture
def own(gpt2: Path, tmp_path: Path) -> Path:
    """Return a copy of it, for a test to change."""
    return Path(shutil.copytree(gpt2, tmp_path / "gpt2"))


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
    with refuses(*GPT2_SIZES, "custom", field="model.size", value="huge"):
        run_config("model=gpt2", "model.size=huge")


def block_size(run: Ended) -> int:
    return int(
        open_checkpoint(str(run.folder)).path.joinpath("config.yaml").read_text().split("block_size: ")[1].split()[0]
    )


def test_the_block_is_cut_to_the_positions_or_checked_against_them(cli: Cli, gpt2: Path, tmp_path: Path) -> None:
    assert block_size(train(cli, gpt2)) == POSITIONS
    shorter = train(cli, gpt2, "data.block_size=16")
    assert block_size(shorter) == 16
    model, _, _ = load_model(open_checkpoint(str(shorter.folder)))
    assert torch.equal(logits(model.eval(), tokens(16)), logits(ours(gpt2), tokens(16)))
    recipe = train(cli, gpt2, "experiment=finetune_gpt2")  # whose block is longer, and is cut
    assert block_size(recipe) == POSITIONS
    assert re.search(rf"block size\b.*\b{POSITIONS}\b.*\b{POSITIONS}\b", recipe.err), "it is told"
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "What", "completion": " light"}\n' * 20)
    given = ("data=pairs", f"data.path={pairs}", "experiment=finetune_gpt2")
    assert block_size(train(cli, gpt2, *given, "data.block_size=20")) == 20
    assert block_size(train(cli, gpt2, *given)) == POSITIONS  # and not more than the recipe's, which is longer
    assert_refused(train(cli, gpt2, "data.block_size=33"), gpt2, 32, field="data.block_size", value=33)


def test_learned_positions_of_our_own_are_cut_and_checked_too(cli: Cli, gpt2: Path) -> None:
    run = train(cli, gpt2)
    shorter = cli(*QUICK, f"init_from={run.folder}", "trainer.steps=0", "data.block_size=16")
    model, _, _ = load_model(open_checkpoint(str(shorter.folder)))
    assert torch.equal(logits(model.eval(), tokens(16)), logits(ours(gpt2), tokens(16)))
    refused = cli(*QUICK, f"init_from={run.folder}", "trainer.steps=0", "data.block_size=64")
    assert_refused(refused, run.folder, 32, field="data.block_size", value=64)


def test_recipes_from_different_weights_are_no_sweep(cli: Cli) -> None:
    refused = cli("-m", "experiment=quick_gpt,finetune_gpt2", run_dir=False)
    assert_refused(refused, "experiment=quick_gpt,finetune_gpt2", "none", "openai-community/gpt2", "init_from=")


@pytest.mark.parametrize(
    ("typed", "theirs"),
    [
        ("model.size=medium", "model.size=custom"),
        ("model.bias=false", "model.bias=true"),
        ("model.ngram_order=2", "model.ngram_order=0"),
        ("model.n_head=4", "model.n_head=2"),
        ("model=gpt", "model=gpt2"),
        ("tokenizer=byte", "tokenizer=gpt2"),
    ],
)
def test_what_contradicts_the_weights_is_refused(cli: Cli, gpt2: Path, typed: str, theirs: str) -> None:
    assert_refused(train(cli, gpt2, typed), typed, gpt2, theirs)


def test_a_recipe_of_another_model_and_a_base_of_none_are_refused(cli: Cli, gpt2: Path) -> None:
    assert_refused(train(cli, gpt2, "experiment=gpt_cpu"), "model.", gpt2)
    assert_refused(train(cli, gpt2, "base=x"), "adapter", field="base", value="x")


def test_what_the_weights_say_nothing_of_or_the_same_is_kept(cli: Cli, gpt2: Path) -> None:
    kept = train(cli, gpt2, "model.dropout=0.3", "model.n_head=2", "model.bias=1")
    assert kept.code == 0, kept.err
    assert "dropout: 0.3" in (kept.folder / "config.yaml").read_text()


def drop(name: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if not key.endswith(name)}


Tensors = dict[str, torch.Tensor]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        pytest.param(drop("h.1.attn.c_proj.bias"), ["h.1.attn.c_proj.bias"], id="one is missing"),
        pytest.param(drop("bias"), ["h.0.ln_1.bias", "h.0.attn.c_attn.bias", "more"], id="many are missing"),
        pytest.param(lambda t: {**t, "score.weight": torch.zeros(2)}, ["score.weight"], id="surplus"),
        pytest.param(
            lambda t: {**t, "transformer.h.2.ln_1.bias": torch.zeros(16)},
            ["transformer.h.2.ln_1.bias"],
            id="a surplus block",
        ),
        pytest.param(
            lambda t: {**t, "transformer.h.0.mlp.c_fc.weight": torch.zeros(64, 16)},
            ["transformer.h.0.mlp.c_fc.weight", "(64, 16)", "(16, 64)", "config.json"],
            id="turned",
        ),
        pytest.param(
            lambda t: {**t, "transformer.wte.weight": torch.zeros(200, 16)},
            ["transformer.wte.weight", "(200, 16)", "(300, 16)"],
            id="too short",
        ),
        pytest.param(
            lambda t: {**t, "lm_head.weight": torch.zeros(300, 16)},
            ["lm_head.weight", "tie_word_embeddings", "config.json"],
            id="another head",
        ),
    ],
)
def test_tensors_that_are_missing_surplus_or_of_another_shape_are_named(
    own: Path, change: Callable[[Tensors], Tensors], named: list[str]
) -> None:
    rewrite(own, change)
    with refuses(own, *named):
        ours(own)


def test_a_head_that_is_there_and_is_the_embedding_is_none_too_many(own: Path) -> None:
    before = logits(ours(own), tokens())
    rewrite(own, lambda t: {**t, "lm_head.weight": t["transformer.wte.weight"].clone()})
    assert torch.equal(logits(ours(own), tokens()), before)


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def test_a_pickle_is_refused_and_what_is_said_converts_it(own: Path, tmp_path: Path) -> None:
    before = logits(ours(own), tokens())
    pickled(own)
    with refuses(own, "pytorch_model.bin", "init_from="):
        ours(own)
    with pytest.raises(UserError) as error:
        ours(own)
    told = re.search(r'python -c "(.*?)"', str(error.value))
    assert told is not None
    exec(told[1].replace("FOLDER", str(own)).replace("NEW", str(tmp_path / "new")), {})
    assert torch.equal(logits(ours(tmp_path / "new"), tokens()), before)


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"model_type": "llama"}, ["'llama'", "config.json", "gpt2"]),
        ({"n_inner": 17}, ["n_inner=17", 64]),
        ({"activation_function": "silu"}, ["activation_function=silu", "gelu_new", "relu"]),
        ({"scale_attn_by_inverse_layer_idx": True}, ["scale_attn_by_inverse_layer_idx=True", "False"]),
        ({"layer_norm_epsilon": 1e-6}, ["layer_norm_epsilon=1e-06", "1e-05"]),
        ({"n_layer": "two"}, ["n_layer='two'", 1]),
        ({"resid_pdrop": None}, ["resid_pdrop=None"]),
        ({"resid_pdrop": 2}, ["model.dropout=2.0", 0, 1]),
        ({"tie_word_embeddings": "yes"}, ["tie_word_embeddings='yes'", "true", "false"]),
        ({"n_head": 3}, ["model.n_head=3", 16]),
    ],
    ids=str,
)
def test_a_config_of_something_else_is_refused(own: Path, said: dict[str, Any], named: list[object]) -> None:
    about = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps({**about, **said}))
    with refuses(own, *named):
        ours(own)


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a config cut short": (lambda f: (f / "config.json").write_text("{"), "config.json"),
    "a config that is a list": (lambda f: (f / "config.json").write_text("[]"), "config.json"),
    "a config that says nothing": (lambda f: (f / "config.json").write_text("{}"), "config.json"),
    "weights of no format": (lambda f: (f / "model.safetensors").write_bytes(b"x" * 99), "weights"),
    "no config": (lambda f: (f / "config.json").unlink(), "model.safetensors, and no config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json"),
    "a tokenizer cut short": (lambda f: (f / "tokenizer.json").write_text("{"), "tokenizer"),
}


@pytest.mark.parametrize(("spoil", "named"), SPOILED.values(), ids=SPOILED)
def test_a_folder_with_something_wrong_is_refused_in_a_line(
    cli: Cli, own: Path, spoil: Callable[[Path], object], named: str
) -> None:
    spoil(own)
    assert_refused(train(cli, own), own, named)


def test_the_tokenizer_is_that_of_the_weights_but_for_rows_that_only_pad(cli: Cli, tmp_path: Path) -> None:
    padded = gpt2_folder(tmp_path / "padded", vocab_size=384)
    run = train(cli, padded)
    assert run.code == 0, run.err
    model, _, _ = load_model(open_checkpoint(str(run.folder)))
    assert torch.equal(logits(model.eval(), tokens()), logits(ours(padded), tokens())[..., :VOCABULARY])
    other = gpt2_folder(tmp_path / "other", vocab_size=1000)
    assert_refused(train(cli, other), other, "1,000", "300", "tokenizer=gpt2", "tokenizer.path=")


def test_from_scratch_takes_all_but_the_weights(cli: Cli, gpt2: Path) -> None:
    run = train(cli, gpt2, "from_scratch=true")
    assert run.code == 0, run.err
    assert f"all but the weights: of GPT-2 (custom), from {gpt2}" in run.err
    model, tokenizer, cfg = load_model(open_checkpoint(str(run.folder)))
    assert (tokenizer.vocab_size, cfg.data.block_size) == (VOCABULARY, POSITIONS)
    assert not torch.allclose(logits(model.eval(), tokens()), logits(ours(gpt2), tokens()), atol=0.1)
    assert_refused(cli(*QUICK, "from_scratch=true"), "init_from", field="from_scratch", value="true")


def test_a_run_goes_on_and_is_sampled_from_without_the_folder(cli: Cli, tool: Cli, own: Path) -> None:
    run = train(cli, own, "trainer.steps=2")
    own.rename(own.with_name("gone"))
    again = cli(f"resume={run.folder}", "trainer.steps=4", run_dir=False)
    assert again.code == 0, again.err
    assert tool(sample.main, f"run={run.folder}", "max_new_tokens=3").code == 0


# Where nobody listens.
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def files(gpt2: Path) -> dict[str, bytes]:
    """Give the files of the model on the hub."""
    return {name: (gpt2 / name).read_bytes() for name in ("config.json", "model.safetensors", "tokenizer.json")}


def from_hub(name: str, endpoint: str, home: Path, *overrides: str) -> Ended:
    # Proxies have no way to this machine.
    env = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "NO_PROXY": "*", "no_proxy": "*"}
    folder = f"hydra.run.dir={tempfile.mkdtemp(dir=home)}/run"
    return command(*QUICK, "trainer.steps=0", *overrides, f"init_from={name}", folder, env=env)


def test_weights_come_from_the_hub_and_then_without_it(files: dict[str, bytes], tmp_path: Path) -> None:
    with serving(Hub, files=files) as hub:
        first = from_hub("some/gpt2", hub, tmp_path)
    assert first.code == 0, first.err
    assert "weights: of GPT-2 (custom), from some/gpt2" in first.err
    without = from_hub("some/gpt2", NOWHERE, tmp_path, "model=gpt2")
    assert without.code == 0, without.err
    assert without.out.splitlines()[1] == first.out.splitlines()[1]


def test_a_name_without_a_network_says_what_to_download_and_where_to_put_it(
    files: dict[str, bytes], tmp_path: Path
) -> None:
    needed = ("config.json", "model.safetensors", "tokenizer.json", "init_from=FOLDER")
    with serving(Hub, files=files) as hub:
        for name, endpoint, reason in (
            ("openai-community/gpt2", NOWHERE, "refused"),
            ("gpt2-medium", NOWHERE, "refused"),
            ("some/other", hub, "404"),
        ):
            ended = from_hub(name, endpoint, tmp_path)
            assert_refused(ended, reason, *needed, field="init_from", value=name)
            assert ended.err.count("\n") == 1, "nothing else is said"


def test_a_model_on_the_hub_that_has_a_pickle_alone(files: dict[str, bytes], tmp_path: Path) -> None:
    files["pytorch_model.bin"] = files.pop("model.safetensors")
    with serving(Hub, files=files) as hub:
        assert_refused(from_hub("some/gpt2", hub, tmp_path), "some/gpt2", "pytorch_model.bin", "init_from=")
    assert not list(tmp_path.rglob("pytorch_model.bin"))  # and it was not downloaded for that
