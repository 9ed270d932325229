"""The feed-forward network: comparison with the equations of its paper."""

from typing import Any

import pytest
import torch

from bigramlm.model.config import MLPConfig
from bigramlm.model.mlp import MLP
from tests.helpers import count_saved_elements, refuses
from tests.model.helpers import BLOCK, V, build, config


def plain_logits(model: MLP, cfg: MLPConfig, idx: torch.Tensor) -> torch.Tensor:
    """Compute y = b + W x + U tanh(d + H x), one position at a time."""
    w = {name: value.detach() for name, value in model.named_parameters()}
    rows = []
    for t in range(len(idx)):
        window = [int(idx[s]) if s >= 0 else V for s in range(t - cfg.context_size + 1, t + 1)]
        x = torch.cat([w["embedding.weight"][token] for token in window])
        y = w["head.bias"] + w["head.weight"] @ torch.tanh(w["hidden.bias"] + w["hidden.weight"] @ x)
        rows.append(y + w["direct.weight"] @ x if cfg.direct else y)
    return torch.stack(rows)


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("context_size", [1, 3, BLOCK + 4])
def test_logits_match_the_equations_of_the_paper(context_size: int, direct: bool) -> None:
    fields: dict[str, Any] = {"context_size": context_size, "n_embd": 5, "n_hidden": 7, "direct": direct}
    cfg, model = config("mlp", **fields), build("mlp", **fields)
    assert isinstance(cfg, MLPConfig)
    assert isinstance(model, MLP)
    for T in (1, 2, BLOCK):
        idx = torch.randint(V, (2, T))
        logits, _ = model(idx)
        for row in range(2):
            torch.testing.assert_close(logits[row], plain_logits(model, cfg, idx[row]))


def test_a_token_reaches_the_positions_of_its_window() -> None:
    model = build("mlp", context_size=3)
    idx = torch.randint(V, (1, BLOCK))
    logits, _ = model(idx)
    for s in range(BLOCK):
        changed, _ = model(idx.index_fill(1, torch.tensor([s]), (int(idx[0, s]) + 1) % V))
        differs = (changed != logits).any(-1)[0]
        assert differs.tolist() == [s <= t < s + 3 for t in range(BLOCK)]


@pytest.mark.parametrize("direct", [False, True])
def test_the_number_of_parameters_is_that_of_the_paper(direct: bool) -> None:
    n, m, h = 4, 5, 7  # of a 4-gram, whose context has three tokens
    model = config("mlp", context_size=n - 1, n_embd=m, n_hidden=h, direct=direct).build(vocab_size=V, block_size=BLOCK)
    papers = V * (1 + n * m + h) + h * (1 + (n - 1) * m)  # with direct connections
    padding = m
    assert model.n_params() == papers + padding - (0 if direct else V * (n - 1) * m)


def test_a_longer_block_has_the_same_weights() -> None:
    """A run can be sampled and resumed with any block size."""
    shapes = [
        {name: value.shape for name, value in config("mlp").build(vocab_size=V, block_size=n).state_dict().items()}
        for n in (2, 64)
    ]
    assert shapes[0] == shapes[1]


def test_estimated_activations_are_roughly_right() -> None:
    """The out-of-memory error uses this estimate to suggest what to lower."""
    model = build("mlp").float()
    size = config("mlp").estimate_size(vocab_size=V, block_size=BLOCK)
    assert size is not None
    _, in_blocks, outside = size
    idx = torch.randint(V, (64, BLOCK))
    saved = count_saved_elements(lambda: model(idx, idx)) - model.n_params()  # the weights are saved too
    assert (in_blocks + outside) * idx.numel() == pytest.approx(saved, rel=0.5)


@pytest.mark.parametrize("field", ["context_size", "n_embd", "n_hidden"])
def test_invalid_fields_are_refused(field: str) -> None:
    fields: dict[str, Any] = {field: 0}
    with refuses("1", field=f"model.{field}", value=0):
        MLPConfig(**fields)
