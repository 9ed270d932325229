"""Checks for common mistakes before training.

A model with one of these mistakes can be trained for hours, and its loss even decreases. The checks take milliseconds.
They use a few sequences of the first batch, on the model's device. They change neither the model nor the random state.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping
from statistics import fmean

import torch
from torch import Tensor

from bigramlm.data.batches import IGNORED
from bigramlm.errors import UserError, require
from bigramlm.model.base import LanguageModel
from bigramlm.tokenizer.base import Tokenizer, added_share, lost_share, round_trip_difference

log = logging.getLogger(__name__)

# The approximate number of tokens of the first batch that the model is checked on.
_TOKENS = 1024
# The number of characters that are encoded and decoded at the start, in the middle and at the end of each split.
_CHARACTERS = 4096
# The minimum number of different targets for checking the loss: with fewer, the loss of an untrained model can differ
# from ln V by more than the tolerance by chance.
_MIN_TARGETS_FOR_LOSS = 16
# The shares of the text that a tokenizer may lose without a warning, and at all.
_LOST_UNNOTICED, _LOST_AT_MOST = 0.01, 0.5
# The largest share of characters in a decoded text that the text itself does not contain.
_ADDED_AT_MOST = 0.05
# The largest loss of weights that are not untrained. Even confident weights on a text of another kind stay far below.
_HIGHEST_LOSS = 1e4

_TRAIN_ANYWAY = "set preflight=false to train anyway"


def preflight(
    model: LanguageModel,
    tokenizer: Tokenizer,
    texts: Mapping[str, str],
    batch: tuple[Tensor, Tensor],
    *,
    fresh: bool,
) -> None:
    """Run all checks, and raise UserError for the first check that fails.

    texts: the texts of the splits, by name, on which the tokenizer is checked; empty for a text that is not in memory.
    batch: the inputs and targets of the first step, each (B, T), on the
    model's device. fresh: if True, the model is untrained, and its loss is checked; otherwise its weights were loaded.
    """
    x, y = batch
    check_targets(x, y)
    if tokenizer.lossless:
        for split, text in texts.items():
            check_round_trip(tokenizer, text, split)
    else:
        check_coverage(tokenizer, texts, x)
    check_vocabulary(model, tokenizer)
    rows = max(2, _TOKENS // x.shape[1])
    x, y = x[:rows], y[:rows]
    with torch.random.fork_rng([] if x.device.type == "cpu" else [x.device], device_type=x.device.type):
        if not fresh:
            check_loaded_weights(model, x, y)
        check_logits(model, x)
        targets = unmask_prompts(x, y)
        if fresh and len(targets.unique()) >= _MIN_TARGETS_FOR_LOSS:
            check_fresh_loss(model, x, targets)
        # Frozen parameters do not change, so the copy shares them.
        model_copy = copy.deepcopy(model, {id(p): p for p in model.parameters() if not p.requires_grad})
        if list(model.parameters()):  # a model that is fitted by counting has no parameters
            check_gradients(model_copy, x, y)
        check_causality(model_copy, x)
        check_lengths(model_copy, x)


def check_targets(x: Tensor, y: Tensor) -> None:
    """Check that each target is the next input token, unless the target is ignored."""
    require(
        x.shape == y.shape and bool(((x[:, 1:] == y[:, :-1]) | (y[:, :-1] == IGNORED)).all()),
        "preflight: the targets of the first batch are not the inputs shifted by one token, so the model would not "
        f"learn to predict the next token; {_TRAIN_ANYWAY}",
    )


def unmask_prompts(x: Tensor, y: Tensor) -> Tensor:
    """Return targets (B, T) that include the tokens of the prompts.

    The padding is still ignored. Without the prompts, the targets might be too few to check the loss of an untrained
    model, because a completion can be a single token.
    """
    is_unpadded = (y != IGNORED).flip(1).cumsum(1).flip(1) > 0
    return torch.where(is_unpadded & (y == IGNORED), x.roll(-1, dims=1), y)


def check_vocabulary(model: LanguageModel, tokenizer: Tokenizer) -> None:
    """Check that there is more than one token, so that there is something to predict."""
    require(
        model.vocab_size > 1 or not list(model.parameters()),
        f"preflight: the text has only one character, {tokenizer.decode([0])!r}, so that the vocabulary has one token "
        f"and there is nothing to predict; choose a different text; {_TRAIN_ANYWAY}, with a loss of 0",
    )


def check_coverage(tokenizer: Tokenizer, texts: Mapping[str, str], x: Tensor) -> None:
    """Check that a tokenizer which is not lossless covers most of the text.

    Logs a warning if it loses more than one character in a hundred. x: the tokens (B, T) of the first batch, on which a
    text that is not in memory is judged.
    """
    for text in texts.values():
        check_decoder(tokenizer, text[:_CHARACTERS])
    lost = {
        f"characters in the {split} split": fmean(
            lost_share(tokenizer, text[start : start + _CHARACTERS]) for start in _excerpts(text)
        )
        for split, text in texts.items()
    }
    unknown = getattr(tokenizer, "unknown", None)
    if not lost and unknown is not None:
        lost["tokens of the first batch"] = (x == unknown).float().mean().item()
    name = "" if unknown is None else f", which become {tokenizer.decode([unknown])!r}"
    for what, share in lost.items():
        problem = f"the vocabulary of the tokenizer does not cover {share:.0%} of the {what}{name}"
        require(
            share <= _LOST_AT_MOST,
            f"preflight: {problem}; choose a tokenizer that was made for such a text, e.g. tokenizer=bpe or "
            f"tokenizer=byte; {_TRAIN_ANYWAY}",
        )
        if share > _LOST_UNNOTICED:
            log.warning("tokenizer: %s", problem)


def check_decoder(tokenizer: Tokenizer, text: str) -> None:
    """Check that a decoded text consists of characters of the text.

    A byte-level tokenizer without a decoder, for instance, decodes a space as a letter.
    """
    result = tokenizer.decode(tokenizer.encode(text).tolist())
    require(
        added_share(tokenizer, text) <= _ADDED_AT_MOST,
        f"preflight: the tokenizer decodes {text[:20]!r} as {result[:40]!r}: its decoder is missing or does not match "
        "its other parts, so samples could not be read; add the decoder that the tokenizer was trained with to "
        f"tokenizer.json, e.g. ByteLevel or Metaspace; {_TRAIN_ANYWAY}",
    )


def _excerpts(text: str) -> list[int]:
    # The first characters of the excerpts on which the tokenizer is checked.
    return sorted({0, max(0, (len(text) - _CHARACTERS) // 2), max(0, len(text) - _CHARACTERS)})


def check_round_trip(tokenizer: Tokenizer, text: str, split: str) -> None:
    """Check that decoding the encoded text of a split returns the original text."""
    for start in _excerpts(text):
        if difference := round_trip_difference(tokenizer, text[start : start + _CHARACTERS]):
            at, original, result = difference
            raise UserError(
                f"preflight: the tokenizer changes the text of the {split} split: {original!r} at character "
                f"{start + at:,} is decoded as {result!r}, so the model would be trained on an altered text; "
                f"{_TRAIN_ANYWAY}"
            )


@torch.inference_mode()
def check_loaded_weights(model: LanguageModel, x: Tensor, y: Tensor) -> None:
    """Check that the loss of loaded weights is not too high for any weights.

    Weights that are not finite are left to check_logits.
    """
    sizes = {name: p.abs().max().item() for name, p in model.named_parameters() if p.numel()}
    if not all(map(math.isfinite, sizes.values())):
        return
    was_training = model.training
    _, loss = model.eval()(x, y)
    model.train(was_training)
    assert loss is not None
    largest = max(sizes, key=lambda name: sizes[name], default="")
    require(
        loss.item() <= _HIGHEST_LOSS,
        f"preflight: the loss of the loaded weights is {loss.item():.3g}, and their largest value is "
        f"{sizes.get(largest, 0):.3g} in {largest}; if this value is too large, use a different copy of the weights, "
        f"otherwise look for 0/0, inf-inf or the log of 0 in forward; {_TRAIN_ANYWAY}",
    )


@torch.inference_mode()
def check_logits(model: LanguageModel, x: Tensor) -> None:
    """Check that the model returns logits, not NaN and not probabilities.

    NaN would make the model fail the other checks for the wrong reason. Trained on probabilities, a model learns slowly
    and never becomes certain.
    """
    was_training = model.training
    logits, _ = model.eval()(x)  # (B, T, V)
    if logits.isnan().any():
        broken = next((name for name, tensor in model.named_parameters() if not tensor.isfinite().all()), None)
        cause = (
            f"its parameter {broken} is not finite" if broken else "look for 0/0, inf-inf or the log of 0 in forward"
        )
        raise UserError(f"preflight: the model returns logits that are NaN: {cause}; {_TRAIN_ANYWAY}")
    are_probabilities = bool((logits >= 0).all()) and bool(((logits.sum(dim=-1) - 1).abs() < 1e-3).all())
    require(
        not are_probabilities or model.vocab_size == 1,
        "preflight: the model returns probabilities, which sum to 1, but the loss needs logits; return the scores "
        f"before the softmax; {_TRAIN_ANYWAY}",
    )
    model.train(was_training)


@torch.inference_mode()
def check_fresh_loss(model: LanguageModel, x: Tensor, y: Tensor) -> None:
    """Check that the loss of an untrained model in eval mode is near ln V.

    ln V is the loss of a model that gives all V tokens the same probability. The tolerance is 1 nat.
    """
    was_training = model.training
    _, loss = model.eval()(x, y)
    model.train(was_training)
    assert loss is not None
    guess = math.log(model.vocab_size)
    require(
        abs(loss.item() - guess) <= 1,
        f"preflight: the untrained model's loss is {loss.item():.3f}, but it should be near {guess:.3f}, the loss of "
        f"guessing among {model.vocab_size} tokens; a higher loss means that the initial weights are too large or that "
        "the loss is summed instead of averaged, and a lower loss means that the model sees its targets; "
        f"{_TRAIN_ANYWAY}",
    )


def check_gradients(model: LanguageModel, x: Tensor, y: Tensor) -> None:
    """Check that every trainable parameter gets a gradient within two steps.

    The steps change the model. Two steps are necessary, because a projection that is initialised to zero makes the
    gradients of all earlier layers exactly zero in the first step.
    """
    model.train()
    missing = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    require(
        bool(missing),
        f"preflight: no parameter of the model requires a gradient, so nothing would be trained; {_TRAIN_ANYWAY}",
    )
    trainable = dict(missing)
    for _ in range(2):
        _, loss = model(x, y)
        assert loss is not None
        require(
            loss.requires_grad,
            f"preflight: the loss depends on no parameter, so nothing would be trained; {_TRAIN_ANYWAY}",
        )
        require(
            bool(loss.isfinite()),
            f"preflight: the loss of the first batch is {loss.item()} in training mode; look for 0/0, inf-inf or the "
            f"log of 0 in what the model computes in training mode only; {_TRAIN_ANYWAY}",
        )
        gradients = torch.autograd.grad(loss, list(trainable.values()), allow_unused=True)
        with torch.no_grad():
            for (name, parameter), gradient in zip(trainable.items(), gradients, strict=True):
                if gradient is not None and gradient.any():
                    require(
                        not gradient.isnan().any(),
                        f"preflight: the gradient of {name} is NaN, although the loss is a number; look for sqrt or "
                        f"norm at 0, or a where() that hides NaN; {_TRAIN_ANYWAY}",
                    )
                    missing.pop(name, None)
                    parameter.sub_(0.01 * gradient.sign())
    require(
        not missing,
        f"preflight: no gradient reaches {', '.join(list(missing)[:3])}{' and more' if len(missing) > 3 else ''}: "
        f"the forward pass does not use these parameters, or a detach() stops their gradients; {_TRAIN_ANYWAY}",
    )


@torch.inference_mode()
def check_causality(model: LanguageModel, x: Tensor) -> None:
    """Check that changing a token does not change the logits of earlier positions.

    Checked in eval mode and in training mode, where some layers compute differently, e.g. BatchNorm.
    """
    block_size = x.shape[1]
    for position in sorted({block_size // 2, block_size - 1} - {0}):
        changed = x[:1].clone()
        changed[0, position] = (changed[0, position] + 1) % model.vocab_size
        for mode in ("eval", "training"):
            model.train(mode == "training")
            logits = _logits(model, x[:1])
            allowed = 1e-5 * max(1.0, logits.abs().max().item())  # tolerance for rounding
            if (_logits(model, x[:1]) - logits).abs().max() > allowed:
                continue  # the model has its own source of randomness, so nothing can be compared
            change = (_logits(model, changed) - logits)[:position].abs().amax(dim=-1)  # (position,)
            require(
                change.max().item() <= allowed,
                f"preflight: changing the token at position {position} changes the logits at position "
                f"{int(change.argmax())} in {mode} mode: the model sees the tokens that it should predict, so its "
                f"losses are meaningless; {_CAUSAL[mode]}; {_TRAIN_ANYWAY}",
            )


@torch.inference_mode()
def check_lengths(model: LanguageModel, x: Tensor) -> None:
    """Check that the model accepts sequences that are shorter than a row of the batch.

    A sample starts with a single token.
    """
    block_size = x.shape[1]
    for length in sorted({1, max(1, block_size - 1)}):
        cause = ""
        try:
            logits, _ = model.eval()(x[:1, :length])
            if logits.shape != (1, length, model.vocab_size):
                cause = f"it returns logits of shape {tuple(logits.shape)}"
        except Exception as error:
            cause = (str(error) or repr(error)).splitlines()[0]
        require(
            not cause,
            f"preflight: the model accepts a sequence of {block_size} tokens, but fails for {length} ({cause}), and a "
            "sample starts with one token; compute positions from the length of the sequence, e.g. "
            f"torch.arange(idx.shape[1]); {_TRAIN_ANYWAY}",
        )


_CAUSAL = {
    "eval": "make the mask of an attention causal, and pad a convolution on the left only",
    "training": "replace BatchNorm, whose statistics include later tokens, by LayerNorm",
}


def _logits(model: LanguageModel, x: Tensor) -> Tensor:
    # The logits (T, V) of one sequence (1, T). The seed is fixed, so that dropout is the same at each call.
    torch.manual_seed(0)
    logits: Tensor = model(x)[0]  # (1, T, V)
    return logits[0]
