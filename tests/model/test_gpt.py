"""The GPT against plain second implementations, and against what must hold of every rung that is built with it."""

import functools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bigramlm.model.base import LanguageModel
from bigramlm.model.config import GPTConfig, ModelConfig
from bigramlm.model.gpt import GPT, ReluSquared, Rotary
from tests.helpers import PRESETS, Cli, assert_refused, gpts, kept_for_the_gradient, refuses, run_config

V, BLOCK = 11, 8


preset_of = functools.cache(lambda preset: run_config(f"model={preset}").model)


def config(preset: str, **fields: Any) -> ModelConfig:
    """Return the config of a preset: small, and with these fields."""
    cfg: ModelConfig = preset_of(preset)
    if isinstance(cfg, GPTConfig):
        fields = {"n_embd": 4 * cfg.n_head, "n_layer": min(2, cfg.n_layer), **fields}
    return replace(cfg, **fields)


def build(preset: str, *, moved: bool = True, **fields: Any) -> LanguageModel:
    """Return a rung in double precision; moved: with weights that are all far from zero, as after some training."""
    torch.manual_seed(0)
    model = config(preset, **fields).build(vocab_size=V, block_size=BLOCK).double()
    if moved:
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.3 * torch.randn_like(p))
    model.fit_counts(torch.randint(V, (200,), generator=torch.Generator().manual_seed(1)))
    return model


def plainly(model: GPT, cfg: GPTConfig, idx: torch.Tensor) -> torch.Tensor:
    """Return the logits for token ids (T,), from the weights alone: position by position, head by head."""
    w = {name: value.detach() for name, value in model.named_parameters(remove_duplicate=False)}
    T, C, D = len(idx), cfg.n_embd, cfg.n_embd // cfg.n_head

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        if cfg.norm == "none":
            return x
        if cfg.norm == "rms":
            return x / (x.pow(2).mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt()
        centred = x - x.mean(-1, keepdim=True)
        y = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"]
        return y + w[f"{name}.bias"] if cfg.bias else y

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        y = x @ w[f"{name}.weight"].T
        return y + w[f"{name}.bias"] if cfg.bias else y

    def turned(x: torch.Tensor, t: int) -> torch.Tensor:
        if cfg.position != "rotary":
            return x
        pairs = torch.complex(x[: D // 2], x[D // 2 :])
        angle = t * cfg.rotary_base ** (-2 * torch.arange(D // 2, dtype=torch.double) / D)
        pairs = pairs * torch.polar(torch.ones_like(angle), angle)
        return torch.cat((pairs.real, pairs.imag))

    def same_length(x: torch.Tensor) -> torch.Tensor:
        return x / (x.pow(2).mean() + torch.finfo(x.dtype).eps).sqrt() if cfg.qk_norm else x

    x = torch.stack([w["wte.weight"][i] + (w["wpe.weight"][t] if "wpe.weight" in w else 0) for t, i in enumerate(idx)])
    for layer in range(cfg.n_layer):
        q, k, v = linear(norm(x, f"h.{layer}.ln_1"), f"h.{layer}.attn.c_attn").split(C, dim=-1)
        out = torch.zeros(T, C, dtype=x.dtype)
        for head in range(cfg.n_head):
            part = slice(head * D, (head + 1) * D)
            for t in range(T):
                query = turned(same_length(q[t, part]), t)
                keys = torch.stack([turned(same_length(k[s, part]), s) for s in range(t + 1)])
                weights = (keys @ query / math.sqrt(D)).exp()
                out[t, part] = (weights / weights.sum()) @ v[: t + 1, part]
        y = linear(out, f"h.{layer}.attn.c_proj")
        x = x + y if cfg.residual else y
        if cfg.feed_forward:
            hidden = linear(norm(x, f"h.{layer}.ln_2"), f"h.{layer}.mlp.c_fc")
            hidden = {
                "relu": hidden.clamp(min=0),
                "relu_squared": hidden.clamp(min=0) ** 2,
                "gelu": 0.5 * hidden * (1 + (hidden / math.sqrt(2)).erf()),
                "gelu_tanh": 0.5 * hidden * (1 + (math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)).tanh()),
            }[cfg.activation]
            y = linear(hidden, f"h.{layer}.mlp.c_proj")
            x = x + y if cfg.residual else y
    return norm(x, "ln_f") @ w["lm_head.weight"].T


@pytest.mark.parametrize("preset", gpts())
def test_logits_are_those_of_a_plain_second_implementation(preset: str) -> None:
    cfg = config(preset, rotary_base=50.0)
    assert isinstance(cfg, GPTConfig)
    model = build(preset, rotary_base=50.0).eval()
    assert isinstance(model, GPT)
    idx = torch.randint(V, (2, BLOCK))
    logits, _ = model(idx)
    for row in range(2):
        torch.testing.assert_close(logits[row], plainly(model, cfg, idx[row]))


@pytest.mark.parametrize("preset", PRESETS)
def test_shapes_types_and_loss(preset: str) -> None:
    model = build(preset).float().eval()
    assert (model.vocab_size, model.block_size) == (V, BLOCK)
    for T in (1, 5, BLOCK):
        idx, targets = torch.randint(V, (3, T)), torch.randint(V, (3, T))
        logits, loss = model(idx, targets)
        assert logits.shape == (3, T, V)
        assert logits.dtype == torch.float32
        assert loss is not None
        torch.testing.assert_close(loss, -logits.log_softmax(-1).gather(-1, targets[..., None]).mean())
        assert model(idx)[1] is None
        with torch.autocast("cpu", torch.bfloat16):
            rough, _ = model(idx)
        assert (rough.float().argmax(-1) == logits.argmax(-1)).float().mean() > 0.6
    assert model.double()(idx)[0].dtype == torch.float64


@pytest.mark.parametrize("preset", gpts())
def test_no_gradient_comes_from_a_later_token(preset: str) -> None:
    model = build(preset).eval()
    embedded: list[torch.Tensor] = []

    def keep(module: Any, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    model.get_submodule("wte").register_forward_hook(keep)
    logits, _ = model(torch.randint(V, (1, BLOCK)))
    for t in range(BLOCK):
        (gradient,) = torch.autograd.grad(logits[0, t].square().sum(), embedded, retain_graph=True)
        reached = gradient[0].abs().sum(dim=-1) > 0
        assert reached.tolist() == [s <= t for s in range(BLOCK)]


@pytest.mark.parametrize("preset", PRESETS)
def test_logits_with_a_cache_are_those_without(preset: str) -> None:
    model = build(preset).eval()
    idx = torch.randint(V, (3, BLOCK))
    whole, _ = model(idx)
    for cuts in ([1] * BLOCK, [3, 1, 1, 3], [BLOCK]):
        cache = model.new_cache()
        if cache is None:  # as where nothing before the last token counts
            assert preset not in gpts()
            torch.testing.assert_close(model(idx[:, -1:])[0], whole[:, -1:])
            continue
        pieces = [model(piece, cache=cache)[0] for piece in idx.split(cuts, dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), whole)


def test_logits_with_a_cache_and_an_ngram_below_are_those_without() -> None:
    model = build("gpt", ngram_order=3).eval()
    idx = torch.randint(V, (2, BLOCK))
    cache = model.new_cache()
    pieces = [model(piece, cache=cache)[0] for piece in idx.split([2, 1, 1, 4], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(idx)[0])


def test_parameter_counts_are_the_known_ones() -> None:
    with torch.device("meta"):
        nanogpt = run_config("model=nanogpt").model.build(vocab_size=65, block_size=64)
        gpt2 = run_config("model=gpt2").model.build(vocab_size=50_257, block_size=1024)
    assert nanogpt.n_params() - 64 * 128 == 795_904  # 0.80M, as nanoGPT prints it, positions not counted
    assert gpt2.n_params() == 124_439_808


def test_gpt2s_parameters_have_gpt2s_names() -> None:
    model = config("gpt2").build(vocab_size=V, block_size=BLOCK)
    layer = ("ln_1", "ln_2", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    expected = {f"h.{n}.{part}.{kind}" for n in range(2) for part in layer for kind in ("weight", "bias")}
    assert {name for name, _ in model.named_parameters()} == expected | {
        *("wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias"),
    }


def test_fresh_weights_are_gpt2s() -> None:
    torch.manual_seed(0)
    model = run_config("model=gpt2", "model.n_layer=2", "model.n_embd=192").model.build(vocab_size=65, block_size=64)
    for name, p in model.named_parameters():
        if p.ndim == 2:
            assert p.std().item() == pytest.approx(0.01 if name.endswith("c_proj.weight") else 0.02, rel=0.05), name
        else:
            assert torch.equal(p, torch.ones_like(p) if name.endswith("weight") else torch.zeros_like(p)), name


def test_with_zero_init_a_fresh_block_passes_on_what_it_gets() -> None:
    model = build("gpt", moved=False)
    assert isinstance(model, GPT)
    x = torch.randn(2, BLOCK, model.wte.embedding_dim, dtype=torch.double)
    assert torch.equal(model.h[0](x, 0, None), x)


def test_without_a_stream_to_add_to_nothing_starts_at_zero() -> None:
    model = build("gpt", residual=False, moved=False)
    assert all(p.any() for p in model.parameters())


def test_a_tied_embedding_is_small_enough_to_be_a_head(cli: Cli) -> None:
    short = ("trainer.steps=0", "trainer.eval_batches=1", "logger=none", "sample.max_new_tokens=1")
    wide = cli("data=bundled", "model=gpt", "model.tie_weights=true", "model.n_layer=1", *short)
    assert wide.code == 0, wide.err  # the preflight looks at the fresh loss


def test_nothing_that_follows_from_the_config_is_saved() -> None:
    """So a model with rotary positions can go on with longer blocks."""
    model = build("gpt")
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_rotary_products_go_by_the_distance() -> None:
    rotary = Rotary(6, 20, 100.0).double()
    q, k = torch.randn(1, 1, 1, 6, dtype=torch.double), torch.randn(1, 1, 1, 6, dtype=torch.double)
    products = [(rotary(q, t + 3) * rotary(k, t)).sum().item() for t in range(17)]
    assert products == pytest.approx([products[0]] * 17)
    assert (rotary(q, 4) * rotary(k, 0)).sum().item() != pytest.approx(products[0])
    assert rotary(q, 7).norm().item() == pytest.approx(q.norm().item())


def test_dropout_is_drawn_in_training_and_off_in_evaluation() -> None:
    model = build("transformer", dropout=0.5)
    idx = torch.randint(V, (2, BLOCK))
    assert not torch.equal(model(idx)[0], model(idx)[0])
    model.eval()
    assert torch.equal(model(idx)[0], model(idx)[0])


def test_every_place_drops_that_should() -> None:
    """Half of what leaves the embedding and each layer is zero in training, and none in evaluation."""
    model = build("transformer", dropout=0.5)
    assert isinstance(model, GPT)
    zeros: list[float] = []
    block = model.h[1]
    for place in (model.drop, block.get_submodule("attn"), block.get_submodule("mlp")):
        place.register_forward_hook(lambda module, arguments, output: zeros.append((output == 0).double().mean()))
    idx = torch.randint(V, (8, BLOCK))
    model(idx)
    assert [float(z) for z in zeros] == pytest.approx([0.5, 0.5, 0.5], abs=0.1)
    zeros.clear()
    model.eval()(idx)
    assert zeros == [0, 0, 0]


def test_attention_drops_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("transformer", dropout=0.5)
    asked: list[float] = []
    attention = F.scaled_dot_product_attention

    def noting(*arguments: Any, **options: Any) -> Any:
        asked.append(options["dropout_p"])
        return attention(*arguments, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noting)
    model(torch.randint(V, (1, 4)))
    model.eval()(torch.randint(V, (1, 4)))
    assert asked == [0.5, 0.5, 0.0, 0.0]


def test_tied_weights_are_one_matrix() -> None:
    tied = config("nanogpt").build(vocab_size=V, block_size=BLOCK)
    assert isinstance(tied, GPT)
    assert tied.lm_head.weight is tied.wte.weight
    loose = config("nanogpt", tie_weights=False)
    assert loose.build(vocab_size=V, block_size=BLOCK).n_params() - tied.n_params() == tied.wte.weight.numel()


@pytest.mark.parametrize("preset", gpts())
def test_hidden_matrices_are_all_matrices_but_embeddings_and_head(preset: str) -> None:
    model = build(preset)
    names = {id(p): name for name, p in model.named_parameters()}
    hidden = {names[id(p)] for p in model.hidden_matrices()}
    others = {name for name, p in model.named_parameters() if p.ndim == 2} - hidden
    assert hidden
    assert all(name.startswith("h.") for name in hidden)
    assert others <= {"wte.weight", "wpe.weight", "lm_head.weight"}


def test_squared_relu_has_the_gradient_that_it_should() -> None:
    x = torch.randn(3, 40, dtype=torch.double).requires_grad_()
    assert torch.autograd.gradcheck(ReluSquared.apply, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert ReluSquared.apply(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("preset", gpts())
def test_flops_are_those_that_pytorch_counts(preset: str) -> None:
    model = build(preset).float()
    for length in (BLOCK, BLOCK // 2):
        idx = torch.randint(V, (2, length))
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            _, loss = model(idx, idx)
            assert loss is not None
            loss.backward()
        assert model.flops_per_token(length) * idx.numel() == counter.get_total_flops()
    assert model.flops_per_token() == model.flops_per_token(BLOCK)


@pytest.mark.parametrize("preset", gpts())
def test_what_a_config_says_of_its_size_is_about_right(preset: str) -> None:
    """By which an error tells what to lower when memory runs out."""
    cfg = config(preset, n_embd=96, n_layer=2)
    model = build(preset, n_embd=96, n_layer=2).float()
    n_params, in_blocks, around = cfg.estimate_size(vocab_size=V, block_size=BLOCK)
    assert n_params == pytest.approx(model.n_params(), rel=0.05)
    idx = torch.randint(V, (4, BLOCK))
    counted = kept_for_the_gradient(lambda: model(idx, idx)) - model.n_params()  # weights are kept too
    assert (in_blocks + around) * idx.numel() == pytest.approx(counted, rel=0.5)


@pytest.mark.parametrize("base", [0.0, 1.0, -3.0, float("nan"), float("inf")])
def test_a_rotary_base_that_turns_nothing_is_refused(base: float) -> None:
    with refuses(field="model.rotary_base", value=base):
        GPTConfig(rotary_base=base)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("n_embd", 30, ("model.n_head=4", "32")),
        ("n_embd", 12, ("model.n_head=4", "heads of 3", "model.position=rotary", "model.n_embd=")),
        ("n_embd", 29, ("model.n_head=4", "32")),
        ("dropout", 1.0, ("0", "1")),
        ("dropout", -0.1, ()),
        ("dropout", math.nan, ()),
        ("n_layer", 0, ("1",)),
        ("n_head", 0, ("1",)),
        ("position", "absolute", ("learned", "rotary")),
        ("norm", "batch", ("none", "layer", "rms")),
        ("activation", "swish", ("relu", "gelu", "gelu_tanh", "relu_squared")),
        ("init", "zeros", ("pytorch", "gpt2")),
        ("ngram_order", -1, ("0",)),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(field: str, value: Any, named: tuple[str, ...]) -> None:
    with refuses(*named, field=f"model.{field}", value=value):
        GPTConfig(**{field: value})


def test_what_cannot_be_is_refused_where_it_is_typed(cli: Cli) -> None:
    ended = cli("data=bundled", "model=gpt", "model.n_embd=30")
    assert_refused(ended, "model.n_head=4", "32", field="model.n_embd", value=30)
    assert ended.err.count("\n") == 1


def test_odd_heads_are_fine_with_learned_positions() -> None:
    assert config("nanogpt", n_embd=12, position="learned").build(vocab_size=V, block_size=BLOCK)
    with refuses("model.position=rotary", field="model.n_embd", value=12):
        config("nanogpt", n_embd=12, position="rotary")
