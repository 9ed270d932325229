"""Checks before training: mistakes that would cost hours, found in milliseconds.

A model can train with each of these mistakes, and its loss will even fall. They are looked for on a few sequences of
the first batch, where the model is, and change neither the model nor the random state.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from bigramlm.data.batches import IGNORED
from bigramlm.errors import UserError, require
from bigramlm.model.base import LanguageModel
from bigramlm.tokenizer.base import Tokenizer, not_given_back

# About how many tokens of the first batch are looked at.
_TOKENS = 1024
# How many characters are encoded and decoded again at the start, in the middle and at the end of each split.
_CHARACTERS = 4096
# With a smaller vocabulary chance alone can part a fresh model's loss from ln V by as much as is allowed.
_LOSS_FROM_VOCABULARY = 16

_ANYWAY = "preflight=false trains all the same"


def preflight(
    model: LanguageModel,
    tokenizer: Tokenizer,
    texts: Mapping[str, str],
    batch: tuple[Tensor, Tensor],
    *,
    fresh: bool,
) -> None:
    """Raise UserError for the first check that fails, with what it means.

    texts: the splits by name, where they are in memory and the tokenizer is to give them back; batch: inputs and
    targets (B, T) of the first step, on the model's device; fresh: whether the model knows nothing yet.
    """
    x, y = batch
    check_targets(x, y)
    for split, text in texts.items():
        check_round_trip(tokenizer, text, split)
    rows = max(2, _TOKENS // x.shape[1])
    x, y = x[:rows], y[:rows]
    with torch.random.fork_rng([] if x.device.type == "cpu" else [x.device], device_type=x.device.type):
        if fresh and model.vocab_size >= _LOSS_FROM_VOCABULARY:
            check_fresh_loss(model, x, whole(x, y))
        # What is frozen stays as it is, and need not be copied.
        throw_away = copy.deepcopy(model, {id(p): p for p in model.parameters() if not p.requires_grad})
        if list(model.parameters()):  # a model that is counted has none
            check_gradients(throw_away, x, y)
        check_causality(throw_away, x)


def check_targets(x: Tensor, y: Tensor) -> None:
    """Targets, where they count, are the inputs one step on."""
    require(
        x.shape == y.shape and bool(((x[:, 1:] == y[:, :-1]) | (y[:, :-1] == IGNORED)).all()),
        "preflight: the targets of the first batch are not its inputs one step on: the model would learn to predict "
        f"something else than the next token; {_ANYWAY}",
    )


def whole(x: Tensor, y: Tensor) -> Tensor:
    """Return the targets with those of prompts: a completion may be one token, which says little of a fresh model."""
    upto = (y != IGNORED).flip(1).cumsum(1).flip(1) > 0  # and padding stays out
    return torch.where(upto & (y == IGNORED), x.roll(-1, dims=1), y)


def check_round_trip(tokenizer: Tokenizer, text: str, split: str) -> None:
    """decode(encode(text)) is the text."""
    for start in sorted({0, max(0, (len(text) - _CHARACTERS) // 2), max(0, len(text) - _CHARACTERS)}):
        if lost := not_given_back(tokenizer, text[start : start + _CHARACTERS]):
            at, was, back = lost
            raise UserError(
                f"preflight: the tokenizer does not give back the text of {split}: {was!r} at character {start + at:,} "
                f"comes back as {back!r}, and the model would learn that; {_ANYWAY}"
            )


@torch.inference_mode()
def check_fresh_loss(model: LanguageModel, x: Tensor, y: Tensor) -> None:
    """In eval mode, the loss of a model that knows nothing is near ln V, that of a guess among V tokens."""
    was_training = model.training
    _, loss = model.eval()(x, y)
    model.train(was_training)
    assert loss is not None
    guess = math.log(model.vocab_size)
    require(
        abs(loss.item() - guess) <= 1,
        f"preflight: the fresh model's loss is {loss.item():.3f}, where a guess among {model.vocab_size} tokens has "
        f"{guess:.3f}: higher, its first weights are too large, or the loss is summed; lower, it sees what it is to "
        f"predict; {_ANYWAY}",
    )


def check_gradients(model: LanguageModel, x: Tensor, y: Tensor) -> None:
    """Every trainable tensor gets a gradient within two steps, which this takes: the model is changed.

    Two, because behind a projection that starts at zero every gradient is exactly zero at first.
    """
    model.train()
    without = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    require(bool(without), f"preflight: the model has nothing to train: no parameter requires a gradient; {_ANYWAY}")
    trained = dict(without)
    for _ in range(2):
        _, loss = model(x, y)
        assert loss is not None
        require(loss.requires_grad, f"preflight: the loss depends on no parameter: nothing would be trained; {_ANYWAY}")
        gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        with torch.no_grad():
            for (name, parameter), gradient in zip(trained.items(), gradients, strict=True):
                if gradient is not None and gradient.any():
                    without.pop(name, None)
                    parameter.sub_(0.01 * gradient.sign())
    require(
        not without,
        f"preflight: no gradient reaches {', '.join(list(without)[:3])}{' and more' if len(without) > 3 else ''}: "
        f"unused in the forward pass, or cut off by a detach; {_ANYWAY}",
    )


@torch.inference_mode()
def check_causality(model: LanguageModel, x: Tensor) -> None:
    """Check that changing a later token changes no earlier logit."""
    block_size = x.shape[1]
    changed = sorted({block_size // 2, block_size - 1} - {0})
    rows = x[:1].repeat(1 + len(changed), 1)
    for row, position in enumerate(changed, start=1):
        rows[row, position] = (rows[row, position] + 1) % model.vocab_size
    logits, _ = model.eval()(rows)  # (1 + changed, T, V)
    allowed = 1e-5 * max(1.0, logits.abs().max().item())  # rounding
    for row, position in enumerate(changed, start=1):
        moved = (logits[row, :position] - logits[0, :position]).abs().amax(dim=-1)  # (position,)
        require(
            moved.max().item() <= allowed,
            f"preflight: changing the token at position {position} changes the logits at position "
            f"{int(moved.argmax())}: the model sees the tokens that it is to predict, and its losses mean nothing; "
            f"mask attention to the past, for instance; {_ANYWAY}",
        )
