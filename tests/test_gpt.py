"""The GPT against plain second implementations, and against what must hold of every rung that is built with it."""

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bigramlm.device.config import DeviceConfig
from bigramlm.device.device import decide, set_up
from bigramlm.errors import UserError
from bigramlm.generate import generate, stream
from bigramlm.model.base import LanguageModel
from bigramlm.model.config import GPTConfig
from bigramlm.model.gpt import GPT, ReluSquared, Rotary
from tests.helpers import PRESETS, Cli, gpts, kept_for_the_gradient, run_config, small

DEVICE = set_up(decide(DeviceConfig(name="cpu"), n_params=1, tokens=1))
V, BLOCK = 11, 8


def build(*overrides: str, moved: bool = True, seed: int = 0) -> LanguageModel:
    """A rung in double precision; moved: with weights that are all far from zero, as after some training."""
    torch.manual_seed(seed)
    model = run_config(*overrides).model.build(vocab_size=V, block_size=BLOCK).double()
    if moved:
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.3 * torch.randn_like(p))
    model.count(torch.randint(V, (200,), generator=torch.Generator().manual_seed(1)))
    return model


def plainly(model: GPT, cfg: GPTConfig, idx: torch.Tensor) -> torch.Tensor:
    """The logits for token ids (T,), from the weights alone: position by position, head by head."""
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
    overrides = [f"model={preset}", *small(preset), "model.rotary_base=50"]
    cfg = run_config(*overrides).model
    assert isinstance(cfg, GPTConfig)
    model = build(*overrides).eval()
    assert isinstance(model, GPT)
    idx = torch.randint(V, (2, BLOCK))
    logits, _ = model(idx)
    for row in range(2):
        torch.testing.assert_close(logits[row], plainly(model, cfg, idx[row]))


@pytest.mark.parametrize("preset", PRESETS)
def test_shapes_types_and_loss(preset: str) -> None:
    model = build(f"model={preset}", *small(preset)).float().eval()
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
    model = build(f"model={preset}", *small(preset)).eval()
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
    model = build(f"model={preset}", *small(preset)).eval()
    idx = torch.randint(V, (3, BLOCK))
    whole, _ = model(idx)
    for cuts in ([1] * BLOCK, [3, 1, 1, 3], [BLOCK]):
        cache = model.new_cache()
        if cache is None:
            assert preset == "bigram"
            return
        pieces = [model(piece, cache=cache)[0] for piece in idx.split(cuts, dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), whole)


def test_logits_with_a_cache_and_an_ngram_below_are_those_without() -> None:
    model = build("model=gpt", "model.ngram_order=3", *small("gpt")).eval()
    idx = torch.randint(V, (2, BLOCK))
    cache = model.new_cache()
    pieces = [model(piece, cache=cache)[0] for piece in idx.split([2, 1, 1, 4], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(idx)[0])


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_written_with_a_cache_is_what_is_written_without(preset: str) -> None:
    model = build(f"model={preset}", *small(preset))
    start = torch.randint(V, (2, 3))
    for temperature in (0.0, 1.0):
        settings: dict[str, Any] = {"temperature": temperature, "seed": 5, "device": DEVICE}
        assert torch.equal(
            generate(model, start, 4 * BLOCK, **settings), generate(model, start, 4 * BLOCK, cached=False, **settings)
        )


@pytest.mark.parametrize("cached", [True, False])
def test_a_full_window_starts_again_from_its_last_half(cached: bool) -> None:
    seen: list[int] = []

    class Noting(GPT):
        def forward(self, idx: torch.Tensor, targets: Any = None, cache: Any = None) -> Any:
            found = super().forward(idx, targets, cache)
            seen.append(cache.length if cache else idx.shape[1])
            return found

    cfg = run_config("model=gpt", *small("gpt")).model
    assert isinstance(cfg, GPTConfig)
    model = Noting(cfg, vocab_size=V, block_size=BLOCK)
    for _ in stream(model, torch.zeros(1, 6).long(), 9, temperature=1.0, seed=0, device=DEVICE, cached=cached):
        pass
    assert seen == [6, 7, 8, 4, 5, 6, 7, 8, 4]
    seen.clear()
    for _ in stream(model, torch.zeros(1, 20).long(), 2, temperature=1.0, seed=0, device=DEVICE, cached=cached):
        pass
    assert seen == [8, 4]


@pytest.mark.parametrize("block_size", [1, 2, 3])
def test_the_shortest_windows_write_too(block_size: int) -> None:
    model = run_config("model=gpt", *small("gpt")).model.build(vocab_size=V, block_size=block_size)
    seen: list[int] = []
    model.get_submodule("wte").register_forward_pre_hook(lambda module, given: seen.append(given[0].shape[1]))
    for cached in (True, False):
        ids = generate(model, torch.zeros(1, 1).long(), 7, temperature=1.0, seed=0, device=DEVICE, cached=cached)
        assert ids.shape == (1, 8)
    assert max(seen) <= block_size


def test_parameter_counts_are_the_known_ones() -> None:
    with torch.device("meta"):
        nanogpt = run_config("model=nanogpt").model.build(vocab_size=65, block_size=64)
        gpt2 = run_config("model=gpt2").model.build(vocab_size=50_257, block_size=1024)
    assert nanogpt.n_params() - 64 * 128 == 795_904  # 0.80M, as nanoGPT prints it, positions not counted
    assert gpt2.n_params() == 124_439_808


def test_gpt2s_parameters_have_gpt2s_names() -> None:
    model = run_config("model=gpt2", *small("gpt2")).model.build(vocab_size=V, block_size=BLOCK)
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
    model = build("model=gpt", *small("gpt"), moved=False)
    assert isinstance(model, GPT)
    x = torch.randn(2, BLOCK, model.wte.embedding_dim, dtype=torch.double)
    assert torch.equal(model.h[0](x, 0, None), x)


def test_without_a_stream_to_add_to_nothing_starts_at_zero() -> None:
    model = build("model=gpt", "model.residual=false", *small("gpt"), moved=False)
    assert all(p.any() for p in model.parameters())


def test_a_tied_embedding_is_small_enough_to_be_a_head(cli: Cli) -> None:
    short = ("trainer.steps=0", "trainer.eval_batches=1", "logger=none", "sample.max_new_tokens=1")
    wide = cli("data=bundled", "model=gpt", "model.tie_weights=true", "model.n_layer=1", *short)
    assert wide.code == 0, wide.err  # the preflight looks at the fresh loss


def test_nothing_that_follows_from_the_config_is_saved() -> None:
    """So a model with rotary positions can go on with longer blocks."""
    model = build("model=gpt", *small("gpt"))
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_rotary_products_go_by_the_distance() -> None:
    rotary = Rotary(6, 20, 100.0).double()
    q, k = torch.randn(1, 1, 1, 6, dtype=torch.double), torch.randn(1, 1, 1, 6, dtype=torch.double)
    products = [(rotary(q, t + 3) * rotary(k, t)).sum().item() for t in range(17)]
    assert products == pytest.approx([products[0]] * 17)
    assert (rotary(q, 4) * rotary(k, 0)).sum().item() != pytest.approx(products[0])
    assert rotary(q, 7).norm().item() == pytest.approx(q.norm().item())


def test_dropout_is_drawn_in_training_and_off_in_evaluation() -> None:
    overrides = ["model=transformer", "model.dropout=0.5", *small("transformer")]
    model = build(*overrides)
    idx = torch.randint(V, (2, BLOCK))
    assert not torch.equal(model(idx)[0], model(idx)[0])
    model.eval()
    assert torch.equal(model(idx)[0], model(idx)[0])


def test_every_place_drops_that_should() -> None:
    """Half of what leaves the embedding and each layer is zero in training, and none in evaluation."""
    model = build("model=transformer", "model.dropout=0.5", *small("transformer"))
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
    model = build("model=transformer", "model.dropout=0.5", *small("transformer"))
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
    tied = run_config("model=nanogpt", *small("nanogpt")).model.build(vocab_size=V, block_size=BLOCK)
    assert isinstance(tied, GPT)
    assert tied.lm_head.weight is tied.wte.weight
    loose = run_config("model=nanogpt", "model.tie_weights=false", *small("nanogpt")).model
    assert loose.build(vocab_size=V, block_size=BLOCK).n_params() - tied.n_params() == tied.wte.weight.numel()


@pytest.mark.parametrize("preset", gpts())
def test_hidden_matrices_are_all_matrices_but_embeddings_and_head(preset: str) -> None:
    model = build(f"model={preset}", *small(preset))
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
    model = build(f"model={preset}", *small(preset)).float()
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
    overrides = [f"model={preset}", "model.n_embd=96", "model.n_layer=2"]
    cfg = run_config(*overrides).model
    model = build(*overrides).float()
    n_params, in_blocks, around = cfg.numbers(vocab_size=V, block_size=BLOCK)
    assert n_params == pytest.approx(model.n_params(), rel=0.05)
    idx = torch.randint(V, (4, BLOCK))
    counted = kept_for_the_gradient(lambda: model(idx, idx)) - model.n_params()  # weights are kept too
    assert (in_blocks + around) * idx.numel() == pytest.approx(counted, rel=0.5)


@pytest.mark.parametrize("base", [0.0, 1.0, -3.0, float("nan"), float("inf")])
def test_a_rotary_base_that_turns_nothing_is_refused(base: float) -> None:
    with pytest.raises(UserError, match=r"model.rotary_base="):
        GPTConfig(rotary_base=base)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["model.n_embd=30"], "model.n_embd=30: cannot be shared by model.n_head=4 heads; take a multiple, such as 32"),
        (["model.n_embd=12"], "makes heads of 3 channels"),
        (["model.n_embd=29"], "take a multiple, such as 32"),
        (["model.dropout=1"], "model.dropout=1.0: must be 0 or more, and below 1"),
        (["model.dropout=-0.1"], "model.dropout=-0.1"),
        (["model.dropout=nan"], "model.dropout=nan"),
        (["model.n_layer=0"], "model.n_layer=0"),
        (["model.n_head=0"], "model.n_head=0"),
        (["model.position=absolute"], "model.position=absolute: unknown; choose one of learned, rotary"),
        (["model.norm=batch"], "choose one of none, layer, rms"),
        (["model.activation=swish"], "choose one of relu, gelu, gelu_tanh, relu_squared"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_in_one_line(typed: list[str], said: str, cli: Cli) -> None:
    ended = cli("data=bundled", "model=gpt", *typed)
    assert ended.code == 2
    assert said in ended.err
    assert ended.err.count("\n") == 1


def test_odd_heads_are_fine_with_learned_positions() -> None:
    assert run_config("model=nanogpt", "model.n_embd=12").model.build(vocab_size=V, block_size=BLOCK)
    with pytest.raises(UserError, match="rotary"):
        run_config("model=nanogpt", "model.n_embd=12", "model.position=rotary")
