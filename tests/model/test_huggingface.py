"""GPT-2 in Hugging Face's layout: the logits of transformers, and refusals."""

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
    path.unlink()  # a model of transformers may read the file later, and keeps the one that it has opened
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def without_prefix(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}


def with_masks(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # Causal masks, as in GPT-2 on the hub and in older files.
    layers = {match[0]: match[1] for name in tensors if (match := re.search(r"((?:transformer\.)?h\.\d+)\.", name))}
    mask = torch.ones(POSITIONS, POSITIONS).tril().view(1, 1, POSITIONS, POSITIONS)
    masks = {f"{layer}.attn.bias": mask.clone() for layer in layers.values()}
    return {**tensors, **masks, **{f"{layer}.attn.masked_bias": torch.tensor(-1e4) for layer in layers.values()}}


def bigramlm_model(folder: Path) -> LanguageModel:
    found = open_pretrained(str(folder))
    model = found.model_config().build(vocab_size=found.vocab_size, block_size=found.block_size)
    found.load_weights(model)
    return model.eval()


def transformers_model(folder: Path) -> Any:
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
            # Two of the combinations contain each value once; the others are slow tests.
            marks=[] if (size == "wide") == prefix != masks else pytest.mark.slow,
        )
        for size, prefix, masks in itertools.product(("narrow", "wide"), (False, True), (False, True))
    ],
)
def test_logits_and_generated_tokens_match_transformers(tmp_path: Path, size: str, prefix: bool, masks: bool) -> None:
    folder = gpt2_folder(tmp_path / "gpt2", size=size)
    reference = transformers_model(folder)
    if not prefix:
        rewrite(folder, without_prefix)
    if masks:
        rewrite(folder, with_masks)
    else:  # as torch.compile and DistributedDataParallel save a model
        rewrite(folder, lambda tensors: {f"module._orig_mod.{name}": tensor for name, tensor in tensors.items()})
    model = bigramlm_model(folder)
    difference = (logits(model, tokens()) - logits(reference, tokens())).abs().max()
    assert difference <= 1e-4

    start = tokens(1, rows=1)
    length = POSITIONS - 1  # up to here both have the same context
    expected = reference.generate(start, max_new_tokens=length, do_sample=False, pad_token_id=0)
    device = set_up(decide(DeviceConfig(name="cpu"), n_params=1, tokens=1))
    assert generate(model, start, length, temperature=0, seed=0, device=device).tolist() == expected.tolist()


def test_fifty_generated_tokens_match_transformers(tmp_path: Path) -> None:
    folder = gpt2_folder(tmp_path / "gpt2", size="wide", n_positions=64)
    start = tokens(3, rows=2)
    device = set_up(decide(DeviceConfig(name="cpu"), n_params=1, tokens=1))
    expected = transformers_model(folder).generate(start, max_new_tokens=50, do_sample=False, pad_token_id=0)
    assert expected.shape == (2, 53)
    assert (
        generate(bigramlm_model(folder), start, 50, temperature=0, seed=0, device=device).tolist() == expected.tolist()
    )


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
def test_fields_of_config_json_are_applied(tmp_path: Path, config: dict[str, Any]) -> None:
    folder = gpt2_folder(tmp_path, **config)
    assert torch.allclose(
        logits(bigramlm_model(folder), tokens()), logits(transformers_model(folder), tokens()), atol=1e-4
    )


def test_weights_in_several_files_and_in_bf16(tmp_path: Path) -> None:
    folder = gpt2_folder(tmp_path)
    whole = logits(bigramlm_model(folder), tokens())
    transformers_model(folder).save_pretrained(folder / "parts", max_shard_size="10KB")
    assert len(list((folder / "parts").glob("*.safetensors"))) > 1
    assert torch.equal(logits(bigramlm_model(folder / "parts"), tokens()), whole)
    rewrite(folder, lambda tensors: {name: tensor.bfloat16() for name, tensor in tensors.items()})
    assert torch.allclose(logits(bigramlm_model(folder), tokens()), whole, atol=0.5)


def train(cli: Cli, folder: Path | str, *overrides: str) -> Ended:
    return cli(*QUICK, f"init_from={folder}", "trainer.steps=0", *overrides)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a GPT-2 that tests only read."""
    return gpt2_folder(tmp_path_factory.mktemp("weights") / "gpt2")


@pytest.fixture
def weights(gpt2: Path, tmp_path: Path) -> Path:
    """Return a copy of the folder of a GPT-2, for a test to change."""
    return Path(shutil.copytree(gpt2, tmp_path / "gpt2"))


def test_sizes_have_the_published_shapes() -> None:
    for size, shape in GPT2_SIZES.items():
        model = run_config("model=gpt2", f"model.size={size}").model
        assert isinstance(model, GPT2Config)
        assert (model.size, (model.n_layer, model.n_head, model.n_embd)) == (size, shape)
        reference = transformers.GPT2Config(n_layer=model.n_layer, n_head=model.n_head, n_embd=model.n_embd)
        with torch.device("meta"):
            n_params = sum(p.numel() for p in GPT2LMHeadModel(reference).parameters())
        assert round(n_params / 1e6) == {"small": 124, "medium": 355, "large": 774, "xl": 1558}[size]
    model = run_config("model=gpt2", "model.size=medium", "model.n_layer=2").model
    assert isinstance(model, GPT2Config)
    assert (model.size, model.n_layer, model.n_embd) == ("custom", 2, 1024)
    with refuses(*GPT2_SIZES, "custom", field="model.size", value="huge"):
        run_config("model=gpt2", "model.size=huge")


def block_size(run: Ended) -> int:
    return int(
        open_checkpoint(str(run.folder)).path.joinpath("config.yaml").read_text().split("block_size: ")[1].split()[0]
    )


def test_block_size_is_limited_to_the_positions_of_the_weights(cli: Cli, gpt2: Path, tmp_path: Path) -> None:
    assert block_size(train(cli, gpt2)) == POSITIONS
    shorter = train(cli, gpt2, "data.block_size=16")
    assert block_size(shorter) == 16
    model, _, _ = load_model(open_checkpoint(str(shorter.folder)))
    assert torch.equal(logits(model.eval(), tokens(16)), logits(bigramlm_model(gpt2), tokens(16)))
    recipe = train(cli, gpt2, "experiment=finetune_gpt2")  # the recipe's block size is larger, and is reduced
    assert block_size(recipe) == POSITIONS
    assert re.search(rf"block size\b.*\b{POSITIONS}\b.*\b{POSITIONS}\b", recipe.err), "the reduction must be logged"
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "What", "completion": " light"}\n' * 20)
    pairs_recipe = ("data=pairs", f"data.path={pairs}", "experiment=finetune_gpt2")
    assert block_size(train(cli, gpt2, *pairs_recipe, "data.block_size=20")) == 20
    assert block_size(train(cli, gpt2, *pairs_recipe)) == POSITIONS  # the recipe's block size is larger
    assert_refused(train(cli, gpt2, "data.block_size=33"), gpt2, 32, field="data.block_size", value=33)


def test_block_size_is_limited_to_the_positions_of_a_run(cli: Cli, gpt2: Path) -> None:
    run = train(cli, gpt2)
    shorter = cli(*QUICK, f"init_from={run.folder}", "trainer.steps=0", "data.block_size=16")
    model, _, _ = load_model(open_checkpoint(str(shorter.folder)))
    assert torch.equal(logits(model.eval(), tokens(16)), logits(bigramlm_model(gpt2), tokens(16)))
    refused = cli(*QUICK, f"init_from={run.folder}", "trainer.steps=0", "data.block_size=64")
    assert_refused(refused, run.folder, 32, field="data.block_size", value=64)


def test_sweep_over_recipes_with_different_weights_is_refused(cli: Cli) -> None:
    refused = cli("-m", "experiment=quick_gpt,finetune_gpt2", run_dir=False)
    assert_refused(refused, "experiment=quick_gpt,finetune_gpt2", "none", "openai-community/gpt2", "init_from=")


@pytest.mark.parametrize(
    ("override", "actual"),
    [
        ("model.size=medium", "model.size=custom"),
        ("model.bias=false", "model.bias=true"),
        ("model.ngram_order=2", "model.ngram_order=0"),
        ("model.n_head=4", "model.n_head=2"),
        ("model=gpt", "model=gpt2"),
        ("tokenizer=byte", "tokenizer=gpt2"),
    ],
)
def test_overrides_that_contradict_the_weights_are_refused(cli: Cli, gpt2: Path, override: str, actual: str) -> None:
    assert_refused(train(cli, gpt2, override), override, gpt2, actual)


def test_recipe_of_another_model_and_base_without_adapter_are_refused(cli: Cli, gpt2: Path) -> None:
    assert_refused(train(cli, gpt2, "experiment=gpt_cpu"), "model.", gpt2)
    assert_refused(train(cli, gpt2, "base=x"), "adapter", field="base", value="x")


def test_overrides_that_do_not_contradict_the_weights_are_kept(cli: Cli, gpt2: Path) -> None:
    run = train(cli, gpt2, "model.dropout=0.3", "model.n_head=2", "model.bias=1")
    assert run.code == 0, run.err
    assert "dropout: 0.3" in (run.folder / "config.yaml").read_text()


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
            id="transposed",
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
def test_missing_surplus_and_misshapen_tensors_are_named(
    weights: Path, change: Callable[[Tensors], Tensors], named: list[str]
) -> None:
    rewrite(weights, change)
    with refuses(weights, *named):
        bigramlm_model(weights)


@pytest.mark.parametrize(
    ("name", "value"),
    [("n_layer", 100_000_000), ("n_layer", 1), ("n_embd", 10**12), ("vocab_size", 10**12), ("n_positions", 10**9)],
)
def test_sizes_that_the_weights_do_not_have_are_refused(cli: Cli, weights: Path, name: str, value: int) -> None:
    about = json.loads((weights / "config.json").read_text("utf-8"))
    (weights / "config.json").write_text(json.dumps({**about, name: value}), "utf-8")
    assert_refused(train(cli, weights), weights, about[name], field=name, value=f"{value:,}")


@pytest.mark.parametrize("name", ["wte.weight", "ln_f.weight"])
def test_weights_of_zero_are_refused(weights: Path, name: str) -> None:
    rewrite(weights, lambda tensors: {key: x * (not key.endswith(name)) for key, x in tensors.items()})
    with refuses(weights, f"transformer.{name}", "0"):
        bigramlm_model(weights)


def test_quantised_weights_are_refused(weights: Path) -> None:
    rewrite(weights, lambda tensors: {name: x.to(torch.int8) for name, x in tensors.items()})
    with refuses(weights / "model.safetensors", "int8", "quantised"):
        bigramlm_model(weights)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("value", [NAN, INF, -INF], ids=str)
@pytest.mark.parametrize("name", ["h.0.attn.c_attn.weight", "wte.weight", "h.1.mlp.c_fc.bias", "ln_f.weight"])
def test_weights_that_are_not_finite_are_named(cli: Cli, weights: Path, name: str, value: float) -> None:
    def change(tensors: Tensors) -> Tensors:
        tensors[f"transformer.{name}"].view(-1)[-1] = value
        return tensors

    rewrite(weights, change)
    with refuses(weights / "model.safetensors", f"transformer.{name}", "NaN" if value != value else "inf", "damaged"):
        bigramlm_model(weights)
    refused = train(cli, weights, "preflight=false")
    assert_refused(refused, weights, name)
    assert "learning rate" not in refused.err


def test_the_part_with_the_damage_is_named(weights: Path) -> None:
    transformers_model(weights).save_pretrained(weights / "parts", max_shard_size="10KB")
    part = next(
        path for path in (weights / "parts").glob("*.safetensors") if any("mlp" in name for name in load_file(path))
    )
    tensors = load_file(part)
    name = next(name for name in tensors if "mlp" in name)
    tensors[name].view(-1)[0] = NAN
    save_file(tensors, part, metadata={"format": "pt"})
    with refuses(part, name, "NaN"):
        bigramlm_model(weights / "parts")


def test_masks_of_any_value_are_ignored(weights: Path) -> None:
    before = logits(bigramlm_model(weights), tokens())
    rewrite(weights, with_masks)
    rewrite(weights, lambda t: {n: x * -INF if n.endswith((".attn.bias", "masked_bias")) else x for n, x in t.items()})
    assert torch.equal(logits(bigramlm_model(weights), tokens()), before)


def test_head_equal_to_the_tied_embedding_is_accepted(weights: Path) -> None:
    before = logits(bigramlm_model(weights), tokens())
    rewrite(weights, lambda t: {**t, "lm_head.weight": t["transformer.wte.weight"].clone()})
    assert torch.equal(logits(bigramlm_model(weights), tokens()), before)


def convert_to_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def test_pickle_is_refused_with_a_command_that_converts_it(weights: Path, tmp_path: Path) -> None:
    before = logits(bigramlm_model(weights), tokens())
    convert_to_pickle(weights)
    with refuses(weights, "pytorch_model.bin", "init_from="):
        bigramlm_model(weights)
    with pytest.raises(UserError) as error:
        bigramlm_model(weights)
    conversion = re.search(r'python -c "(.*?)"', str(error.value))
    assert conversion is not None
    exec(conversion[1].replace("FOLDER", str(weights)).replace("NEW", str(tmp_path / "new")), {})
    assert torch.equal(logits(bigramlm_model(tmp_path / "new"), tokens()), before)


@pytest.mark.parametrize(
    ("fields", "named"),
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
def test_unsupported_config_json_is_refused(weights: Path, fields: dict[str, Any], named: list[object]) -> None:
    config = json.loads((weights / "config.json").read_text())
    (weights / "config.json").write_text(json.dumps({**config, **fields}))
    with refuses(weights, *named):
        bigramlm_model(weights)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a truncated config": (lambda f: (f / "config.json").write_text("{"), "config.json"),
    "a config that is a list": (lambda f: (f / "config.json").write_text("[]"), "config.json"),
    "an empty config": (lambda f: (f / "config.json").write_text("{}"), "config.json"),
    "weights that are not safetensors": (lambda f: (f / "model.safetensors").write_bytes(b"x" * 99), "weights"),
    "no config": (lambda f: (f / "config.json").unlink(), "model.safetensors but no config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json"),
    "a truncated tokenizer": (lambda f: (f / "tokenizer.json").write_text("{"), "tokenizer"),
}


@pytest.mark.parametrize(("damage", "named"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_folder_is_refused_in_one_line(
    cli: Cli, weights: Path, damage: Callable[[Path], object], named: str
) -> None:
    damage(weights)
    assert_refused(train(cli, weights), weights, named)


def test_tokenizer_fits_the_weights_apart_from_padding(cli: Cli, tmp_path: Path) -> None:
    padded = gpt2_folder(tmp_path / "padded", vocab_size=384)
    run = train(cli, padded)
    assert run.code == 0, run.err
    model, _, _ = load_model(open_checkpoint(str(run.folder)))
    assert torch.equal(logits(model.eval(), tokens()), logits(bigramlm_model(padded), tokens())[..., :VOCABULARY])
    other = gpt2_folder(tmp_path / "other", vocab_size=1000)
    assert_refused(train(cli, other), other, "1,000", "300", "tokenizer=gpt2", "tokenizer.path=")


def test_from_scratch_uses_everything_except_the_weights(cli: Cli, gpt2: Path) -> None:
    run = train(cli, gpt2, "from_scratch=true")
    assert run.code == 0, run.err
    assert f"the tokenizer come from GPT-2 (custom) in {gpt2}" in run.err
    model, tokenizer, cfg = load_model(open_checkpoint(str(run.folder)))
    assert (tokenizer.vocab_size, cfg.data.block_size) == (VOCABULARY, POSITIONS)
    assert not torch.allclose(logits(model.eval(), tokens()), logits(bigramlm_model(gpt2), tokens()), atol=0.1)
    assert_refused(cli(*QUICK, "from_scratch=true"), "init_from", field="from_scratch", value="true")


def test_resume_and_sample_do_not_need_the_folder_of_the_weights(cli: Cli, tool: Cli, weights: Path) -> None:
    run = train(cli, weights, "trainer.steps=2")
    weights.rename(weights.with_name("gone"))
    resumed = cli(f"resume={run.folder}", "trainer.steps=4", run_dir=False)
    assert resumed.code == 0, resumed.err
    assert tool(sample.main, f"run={run.folder}", "max_new_tokens=3").code == 0


# An address at which no server listens.
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def files(gpt2: Path) -> dict[str, bytes]:
    """Return the files of the model on the hub, by name."""
    return {name: (gpt2 / name).read_bytes() for name in ("config.json", "model.safetensors", "tokenizer.json")}


def from_hub(name: str, endpoint: str, home: Path, *overrides: str) -> Ended:
    # A proxy cannot reach a server on this machine.
    env = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "NO_PROXY": "*", "no_proxy": "*"}
    folder = f"hydra.run.dir={tempfile.mkdtemp(dir=home)}/run"
    return command(*QUICK, "trainer.steps=0", *overrides, f"init_from={name}", folder, env=env)


def test_weights_are_downloaded_from_the_hub_and_then_cached(files: dict[str, bytes], tmp_path: Path) -> None:
    with serving(Hub, files=files) as hub:
        first = from_hub("some/gpt2", hub, tmp_path)
    assert first.code == 0, first.err
    assert "weights: initialised from GPT-2 (custom) in some/gpt2" in first.err
    offline = from_hub("some/gpt2", NOWHERE, tmp_path, "model=gpt2")
    assert offline.code == 0, offline.err
    assert offline.out.splitlines()[1] == first.out.splitlines()[1]


def test_failed_download_is_refused_with_instructions(files: dict[str, bytes], tmp_path: Path) -> None:
    needed = ("config.json", "model.safetensors", "tokenizer.json", "init_from=FOLDER")
    with serving(Hub, files=files) as hub:
        for name, endpoint, reason in (
            ("openai-community/gpt2", NOWHERE, "refused"),
            ("gpt2-medium", NOWHERE, "refused"),
            ("some/other", hub, "404"),
        ):
            ended = from_hub(name, endpoint, tmp_path)
            assert_refused(ended, reason, *needed, field="init_from", value=name)
            assert ended.err.count("\n") == 1, "the error must be the only output"


def test_hub_model_with_only_a_pickle_is_refused(files: dict[str, bytes], tmp_path: Path) -> None:
    files["pytorch_model.bin"] = files.pop("model.safetensors")
    with serving(Hub, files=files) as hub:
        assert_refused(from_hub("some/gpt2", hub, tmp_path), "some/gpt2", "pytorch_model.bin", "init_from=")
    assert not list(tmp_path.rglob("pytorch_model.bin"))  # the pickle must not be downloaded


def test_files_with_a_byte_order_mark_are_read(weights: Path, cli: Cli) -> None:
    for name, encoding in (("config.json", "utf-16"), ("tokenizer.json", "utf-8-sig")):
        path = weights / name
        if path.exists():
            path.write_text(path.read_text("utf-8"), encoding)
    assert train(cli, weights).code == 0
