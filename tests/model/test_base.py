"""The interface of all models: what must hold for every preset."""

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.helpers import PRESETS, gpts
from tests.model.helpers import BLOCK, V, build, config


@pytest.mark.parametrize("preset", PRESETS)
def test_shapes_dtypes_and_loss(preset: str) -> None:
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
            bf16_logits, _ = model(idx)
        assert (bf16_logits.float().argmax(-1) == logits.argmax(-1)).float().mean() > 0.6
    assert model.double()(idx)[0].dtype == torch.float64


@pytest.mark.parametrize("preset", PRESETS)
def test_a_token_changes_no_earlier_logits(preset: str) -> None:
    model = build(preset).eval()
    idx = torch.randint(V, (1, BLOCK))
    logits, _ = model(idx)
    for t in range(BLOCK):
        changed, _ = model(idx.index_fill(1, torch.tensor([t]), (int(idx[0, t]) + 1) % V))
        torch.testing.assert_close(changed[:, :t], logits[:, :t])
        assert not torch.allclose(changed[:, t], logits[:, t])


@pytest.mark.parametrize("preset", PRESETS)
def test_logits_are_the_same_with_and_without_a_cache(preset: str) -> None:
    model = build(preset).eval()
    idx = torch.randint(V, (3, BLOCK))
    whole, _ = model(idx)
    for cuts in ([1] * BLOCK, [3, 1, 1, 3], [BLOCK]):
        cache = model.new_cache()
        if cache is None:  # generation calls such a model with all tokens
            assert preset not in gpts()
            continue
        pieces = [model(piece, cache=cache)[0] for piece in idx.split(cuts, dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), whole)


@pytest.mark.parametrize("preset", PRESETS)
def test_hidden_matrices_are_trainable_matrices(preset: str) -> None:
    model = build(preset)
    parameters = {id(p) for p in model.parameters() if p.requires_grad and p.ndim == 2}
    for p, parts in model.hidden_matrices().items():
        assert id(p) in parameters
        assert p.shape[0] % parts == 0


@pytest.mark.parametrize("preset", PRESETS)
def test_flops_match_the_count_of_pytorch(preset: str) -> None:
    model = build(preset).float()
    if not model.flops_per_token():  # a model without matrix products, or one that does not count them
        assert preset not in gpts()
        return
    for length in (BLOCK, BLOCK // 2):
        idx = torch.randint(V, (2, length))
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            _, loss = model(idx, idx)
            assert loss is not None
            loss.backward()
        assert model.flops_per_token(length) * idx.numel() == counter.get_total_flops()
    assert model.flops_per_token() == model.flops_per_token(BLOCK)


@pytest.mark.parametrize("preset", PRESETS)
def test_estimated_weights_are_roughly_right(preset: str) -> None:
    """The out-of-memory error uses this estimate."""
    fields: dict[str, Any] = {"n_embd": 96, "n_layer": 2} if preset in gpts() else {}
    size = config(preset, **fields).estimate_size(vocab_size=V, block_size=BLOCK)
    if size is not None:
        assert size[0] == pytest.approx(build(preset, **fields).n_params(), rel=0.05)


@pytest.mark.parametrize("preset", PRESETS)
def test_hidden_units_get_the_activations_of_every_position(preset: str) -> None:
    model = build(preset).eval()
    found: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _module, arguments: found.update({name: arguments[0]})

    for name, module in model.hidden_units().items():
        module.register_forward_pre_hook(keep(name))
    model(torch.randint(V, (2, 5)))
    assert found.keys() == model.hidden_units().keys()
    assert all(units.shape[:2] == (2, 5) for units in found.values())
    embedding = model.token_embedding()
    assert (embedding is None) == (preset == "ngram")
    assert embedding is None or len(embedding.get_parameter("weight")) >= V
