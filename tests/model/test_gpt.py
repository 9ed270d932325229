"""The GPT: comparison with plain implementations, and properties of every preset."""

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from bigramlm.model.config import GPTConfig
from bigramlm.model.gpt import GPT, ReluSquared, Rotary
from tests.helpers import Cli, assert_refused, count_saved_elements, gpts, refuses, run_config
from tests.model.helpers import BLOCK, V, build, config


def plain_logits(model: GPT, cfg: GPTConfig, idx: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Compute the logits (T, V) for token ids (T,), one position and head at a time.

    Returns the attention weights (H, T, T) of each layer too.
    """
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

    def rotate(x: torch.Tensor, t: int) -> torch.Tensor:
        if cfg.position != "rotary":
            return x
        pairs = torch.complex(x[: D // 2], x[D // 2 :])
        angle = t * cfg.rotary_base ** (-2 * torch.arange(D // 2, dtype=torch.double) / D)
        pairs = pairs * torch.polar(torch.ones_like(angle), angle)
        return torch.cat((pairs.real, pairs.imag))

    def normalise(x: torch.Tensor) -> torch.Tensor:
        return x / (x.pow(2).mean() + torch.finfo(x.dtype).eps).sqrt() if cfg.qk_norm else x

    x = torch.stack([w["wte.weight"][i] + (w["wpe.weight"][t] if "wpe.weight" in w else 0) for t, i in enumerate(idx)])
    attention = []
    for layer in range(cfg.n_layer):
        attention.append(torch.zeros(cfg.n_head, T, T, dtype=x.dtype))
        q, k, v = linear(norm(x, f"h.{layer}.ln_1"), f"h.{layer}.attn.c_attn").split(C, dim=-1)
        out = torch.zeros(T, C, dtype=x.dtype)
        for head in range(cfg.n_head):
            part = slice(head * D, (head + 1) * D)
            for t in range(T):
                query = rotate(normalise(q[t, part]), t)
                keys = torch.stack([rotate(normalise(k[s, part]), s) for s in range(t + 1)])
                weights = (keys @ query / math.sqrt(D)).exp()
                attention[-1][head, t, : t + 1] = weights / weights.sum()
                out[t, part] = attention[-1][head, t, : t + 1] @ v[: t + 1, part]
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
    return norm(x, "ln_f") @ w["lm_head.weight"].T, attention


@pytest.mark.parametrize("preset", gpts())
def test_logits_match_a_plain_implementation(preset: str) -> None:
    cfg = config(preset, rotary_base=50.0)
    assert isinstance(cfg, GPTConfig)
    model = build(preset, rotary_base=50.0).eval()
    assert isinstance(model, GPT)
    idx = torch.randint(V, (2, BLOCK))
    logits, _ = model(idx)
    attention = model.attention(idx)
    for row in range(2):
        plain, weights = plain_logits(model, cfg, idx[row])
        torch.testing.assert_close(logits[row], plain)
        torch.testing.assert_close([layer[row] for layer in attention], weights)
    for layer in attention:
        torch.testing.assert_close(layer.sum(-1), torch.ones_like(layer[..., 0]))


@pytest.mark.parametrize("preset", gpts())
@pytest.mark.parametrize("order", [0, 3])
def test_the_last_state_of_the_stream_is_read_out_as_the_logits_bit_by_bit(preset: str, order: int) -> None:
    model = build(preset, ngram_order=order).float().eval()
    idx = torch.randint(V, (2, BLOCK))
    states = model.stream(idx)
    assert len(states) == 1 + len(model.get_submodule("h"))  # type: ignore[arg-type]
    logits = [model.read_out(state, idx) for state in states]
    assert torch.equal(logits[-1], model(idx)[0])
    assert not torch.allclose(logits[0], logits[-1], atol=1e-3)


@pytest.mark.parametrize("preset", gpts())
def test_logits_do_not_depend_on_later_tokens(preset: str) -> None:
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


def test_logits_with_an_ngram_are_the_same_with_and_without_a_cache() -> None:
    model = build("gpt", ngram_order=3).eval()
    idx = torch.randint(V, (2, BLOCK))
    cache = model.new_cache()
    pieces = [model(piece, cache=cache)[0] for piece in idx.split([2, 1, 1, 4], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(idx)[0])


def test_parameter_counts_match_published_counts() -> None:
    with torch.device("meta"):
        nanogpt = run_config("model=nanogpt").model.build(vocab_size=65, block_size=64)
        gpt2 = run_config("model=gpt2").model.build(vocab_size=50_257, block_size=1024)
    assert nanogpt.n_params() - 64 * 128 == 795_904  # nanoGPT prints 0.80M, without position embeddings
    assert gpt2.n_params() == 124_439_808


def test_gpt2_parameters_have_gpt2_names() -> None:
    model = config("gpt2").build(vocab_size=V, block_size=BLOCK)
    layer = ("ln_1", "ln_2", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    expected = {f"h.{n}.{part}.{kind}" for n in range(2) for part in layer for kind in ("weight", "bias")}
    assert {name for name, _ in model.named_parameters()} == expected | {
        *("wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias"),
    }


def test_gpt2_initialisation() -> None:
    torch.manual_seed(0)
    model = run_config("model=gpt2", "model.n_layer=2", "model.n_embd=192").model.build(vocab_size=65, block_size=64)
    for name, p in model.named_parameters():
        if p.ndim == 2:
            assert p.std().item() == pytest.approx(0.01 if name.endswith("c_proj.weight") else 0.02, rel=0.05), name
        else:
            assert torch.equal(p, torch.ones_like(p) if name.endswith("weight") else torch.zeros_like(p)), name


def test_fresh_block_with_zero_init_returns_its_input() -> None:
    model = build("gpt", moved=False)
    assert isinstance(model, GPT)
    x = torch.randn(2, BLOCK, model.wte.embedding_dim, dtype=torch.double)
    assert torch.equal(model.h[0](x, 0, None), x)


def test_no_weights_are_zero_without_residual_connections() -> None:
    model = build("gpt", residual=False, moved=False)
    assert all(p.any() for p in model.parameters())


def test_tied_embedding_gives_small_initial_logits(cli: Cli) -> None:
    short = ("trainer.steps=0", "trainer.eval_batches=1", "logger=none", "sample.max_new_tokens=1")
    wide = cli("data=bundled", "model=gpt", "model.tie_weights=true", "model.n_layer=1", *short)
    assert wide.code == 0, wide.err  # the preflight checks the initial loss


def test_state_contains_parameters_only() -> None:
    """A run with rotary positions can resume with a longer block size."""
    model = build("gpt")
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_rotary_products_depend_on_the_distance() -> None:
    rotary = Rotary(6, 20, 100.0).double()
    q, k = torch.randn(1, 1, 1, 6, dtype=torch.double), torch.randn(1, 1, 1, 6, dtype=torch.double)
    products = [(rotary(q, t + 3) * rotary(k, t)).sum().item() for t in range(17)]
    assert products == pytest.approx([products[0]] * 17)
    assert (rotary(q, 4) * rotary(k, 0)).sum().item() != pytest.approx(products[0])
    assert rotary(q, 7).norm().item() == pytest.approx(q.norm().item())


def test_dropout_is_random_in_training_and_off_in_evaluation() -> None:
    model = build("transformer", dropout=0.5)
    idx = torch.randint(V, (2, BLOCK))
    assert not torch.equal(model(idx)[0], model(idx)[0])
    model.eval()
    assert torch.equal(model(idx)[0], model(idx)[0])


def test_dropout_applies_to_the_embedding_and_each_layer() -> None:
    """With dropout 0.5, half of each output is zero in training, none in evaluation."""
    model = build("transformer", dropout=0.5)
    assert isinstance(model, GPT)
    zeros: list[float] = []
    block = model.h[1]
    for module in (model.drop, block.get_submodule("attn"), block.get_submodule("mlp")):
        module.register_forward_hook(lambda _, arguments, output: zeros.append((output == 0).double().mean()))
    idx = torch.randint(V, (8, BLOCK))
    model(idx)
    assert [float(z) for z in zeros] == pytest.approx([0.5, 0.5, 0.5], abs=0.1)
    zeros.clear()
    model.eval()(idx)
    assert zeros == [0, 0, 0]


def test_dropout_applies_to_attention_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("transformer", dropout=0.5)
    rates: list[float] = []
    attention = F.scaled_dot_product_attention

    def recording(*arguments: Any, **options: Any) -> Any:
        rates.append(options["dropout_p"])
        return attention(*arguments, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", recording)
    model(torch.randint(V, (1, 4)))
    model.eval()(torch.randint(V, (1, 4)))
    assert rates == [0.5, 0.5, 0.0, 0.0]


def test_tied_weights_are_one_matrix() -> None:
    tied = config("nanogpt").build(vocab_size=V, block_size=BLOCK)
    assert isinstance(tied, GPT)
    assert tied.lm_head.weight is tied.wte.weight
    untied = config("nanogpt", tie_weights=False)
    assert untied.build(vocab_size=V, block_size=BLOCK).n_params() - tied.n_params() == tied.wte.weight.numel()


@pytest.mark.parametrize("preset", gpts())
def test_hidden_matrices_exclude_only_embeddings_and_head(preset: str) -> None:
    model = build(preset)
    names = {id(p): name for name, p in model.named_parameters()}
    hidden = {names[id(p)] for p in model.hidden_matrices()}
    others = {name for name, p in model.named_parameters() if p.ndim == 2} - hidden
    assert hidden
    assert all(name.startswith("h.") for name in hidden)
    assert others <= {"wte.weight", "wpe.weight", "lm_head.weight"}


def test_gradient_of_relu_squared() -> None:
    x = torch.randn(3, 40, dtype=torch.double).requires_grad_()
    assert torch.autograd.gradcheck(ReluSquared.apply, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert ReluSquared.apply(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("preset", gpts())
def test_estimated_activations_are_roughly_right(preset: str) -> None:
    """The out-of-memory error uses this estimate to suggest what to lower."""
    cfg = config(preset, n_embd=96, n_layer=2)
    model = build(preset, n_embd=96, n_layer=2).float()
    size = cfg.estimate_size(vocab_size=V, block_size=BLOCK)
    assert size is not None
    _, in_blocks, around = size
    idx = torch.randint(V, (4, BLOCK))
    saved = count_saved_elements(lambda: model(idx, idx)) - model.n_params()  # the weights are saved too
    assert (in_blocks + around) * idx.numel() == pytest.approx(saved, rel=0.5)


@pytest.mark.parametrize("base", [0.0, 1.0, -3.0, float("nan"), float("inf")])
def test_invalid_rotary_base_is_refused(base: float) -> None:
    with refuses(field="model.rotary_base", value=base):
        GPTConfig(rotary_base=base)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("n_embd", 30, ("model.n_head=4", "32")),
        ("n_embd", 12, ("model.n_head=4", "head dimension is 3", "model.position=rotary", "model.n_embd=")),
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
def test_invalid_fields_are_refused(field: str, value: Any, named: tuple[str, ...]) -> None:
    with refuses(*named, field=f"model.{field}", value=value):
        GPTConfig(**{field: value})


def test_invalid_override_is_refused_in_one_line(cli: Cli) -> None:
    ended = cli("data=bundled", "model=gpt", "model.n_embd=30")
    assert_refused(ended, "model.n_head=4", "32", field="model.n_embd", value=30)
    assert ended.err.count("\n") == 1


def test_odd_head_width_requires_learned_positions() -> None:
    assert config("nanogpt", n_embd=12, position="learned").build(vocab_size=V, block_size=BLOCK)
    with refuses("model.position=rotary", field="model.n_embd", value=12):
        config("nanogpt", n_embd=12, position="rotary")
