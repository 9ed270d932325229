"""The configs of the models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from omegaconf import MISSING

from bigramlm.errors import require, require_choice

if TYPE_CHECKING:
    from bigramlm.model.base import LanguageModel


@dataclass
class ModelConfig:
    """The fields that all models have."""

    name: str = MISSING
    """The name of the model, set by `model=NAME`."""

    trains: ClassVar[bool] = True  # False for a model that takes no training steps
    has_blocks: ClassVar[bool] = False  # True for a model that can recompute activations block by block

    def estimate_size(self, *, vocab_size: int, block_size: int) -> tuple[int, int, int]:  # noqa: ARG002
        """Estimate the number of weights, and of activations kept per token.

        Returns the weights, the activations in the blocks, and the activations outside the blocks.
        """
        return vocab_size**2, 0, 3 * vocab_size

    def how_to_shrink(self) -> str:
        """Describe the change of the config that gives fewer weights."""
        return "a smaller vocabulary"

    def build(self, *, vocab_size: int, block_size: int) -> LanguageModel:
        """Build the model on the CPU, with fresh weights.

        The weights are drawn from torch's global random state.
        """
        raise NotImplementedError


@dataclass
class BigramConfig(ModelConfig):
    """A bigram: a V x V table of logits for the next token given the current token."""

    name: str = "bigram"

    def build(self, *, vocab_size: int, block_size: int) -> LanguageModel:
        from bigramlm.model.bigram import Bigram

        return Bigram(vocab_size=vocab_size, block_size=block_size)


@dataclass
class NgramConfig(ModelConfig):
    """An n-gram: next-token probabilities from counts, without training steps."""

    name: str = "ngram"
    order: int = 5
    """The length of an n-gram in tokens: `order - 1` tokens of context, and the token that follows."""

    trains: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(
            self.order >= 1,
            f"model.order={self.order}: must be at least 1; order 2 uses one token of context, as a bigram does",
        )

    def how_to_shrink(self) -> str:
        return f"a model.order below {self.order}"

    def build(self, *, vocab_size: int, block_size: int) -> LanguageModel:
        from bigramlm.model.ngram import Ngram

        return Ngram(vocab_size=vocab_size, block_size=block_size, order=self.order)


@dataclass
class GPTConfig(ModelConfig):
    """A transformer with a switch for each idea that leads to it.

    The presets are the rungs of docs/ladder.md.
    """

    name: str = "gpt"
    n_layer: int = 4
    """The number of blocks."""
    n_head: int = 4
    """The number of attention heads in a block, which share its channels."""
    n_embd: int = 128
    """The width: the number of channels at each position between the embedding and the head."""
    dropout: float = 0.0
    """The fraction of activations that are set to zero in training, drawn anew at every step."""
    position: str = "rotary"
    """The position encoding: learned (an embedding for each position) or rotary (queries and keys are rotated by an
    angle that grows with the position)."""
    rotary_base: float = 10_000.0
    """The base of the rotary frequencies: the slowest pair of channels makes a full turn in about 6 times as many
    tokens. In a short context, a lower base, such as 200, distinguishes nearby positions better."""
    norm: str = "rms"
    """The normalisation before each layer and before the head: none, layer or rms."""
    qk_norm: bool = True
    """Normalisation of queries and keys to the same length, so that attention logits stay bounded."""
    feed_forward: bool = True
    """A feed-forward layer, four times as wide inside, after the attention of each block."""
    activation: str = "relu_squared"
    """The activation function of the feed-forward layers: relu, gelu, gelu_tanh (GPT-2's) or relu_squared."""
    residual: bool = True
    """Residual connections: the output of a layer is added to its input, instead of replacing the input."""
    bias: bool = False
    """Learned biases in the linear layers of the blocks and in layer norms."""
    tie_weights: bool = False
    """One matrix for both the embedding and the head."""
    init: str = "pytorch"
    """The initial weights: pytorch (PyTorch's defaults: embeddings from N(0, 1), matrices smaller the more inputs they
    have) or gpt2 (all from N(0, 0.02), but projections into the residual stream smaller the more layers there are)."""
    zero_init: bool = True
    """Projections into the residual stream start at zero, so that a fresh block returns its input."""
    ngram_order: int = 0
    """The order of an n-gram whose log-probabilities are added to the logits; 0 adds none."""

    has_blocks: ClassVar[bool] = True

    def estimate_size(self, *, vocab_size: int, block_size: int) -> tuple[int, int, int]:
        matrices = 12 if self.feed_forward else 4  # of n_embd x n_embd, per block
        weights = self.n_layer * matrices * self.n_embd**2 + (1 if self.tie_weights else 2) * vocab_size * self.n_embd
        # Kept are the outputs of norms, queries, keys, values and the output of attention; with a feed-forward layer
        # also the widest activations, before and after the activation function.
        kept = self.n_layer * self.n_embd * (18 if self.feed_forward else 8)
        return weights + (block_size * self.n_embd if self.position == "learned" else 0), kept, 3 * vocab_size

    def how_to_shrink(self) -> str:
        return f"a model.n_embd below {self.n_embd}, or a model.n_layer below {self.n_layer}"

    def __post_init__(self) -> None:
        for name in ("n_layer", "n_head", "n_embd"):
            require(getattr(self, name) >= 1, f"model.{name}={getattr(self, name)}: must be at least 1")
        head_width, remainder = divmod(self.n_embd, self.n_head)
        divisor = self.n_head * (2 if self.position == "rotary" else 1)
        nearest = divisor * max(1, round(self.n_embd / divisor))
        require(
            remainder == 0,
            f"model.n_embd={self.n_embd}: cannot be divided among model.n_head={self.n_head} heads; choose a multiple "
            f"of {divisor}, such as {nearest}",
        )
        require_choice("model.position", self.position, ("learned", "rotary"))
        require_choice("model.norm", self.norm, ("none", "layer", "rms"))
        require_choice("model.init", self.init, ("pytorch", "gpt2"))
        require_choice("model.activation", self.activation, ("relu", "gelu", "gelu_tanh", "relu_squared"))
        require(
            self.position != "rotary" or head_width % 2 == 0,
            f"model.n_embd={self.n_embd} model.n_head={self.n_head}: gives heads of {head_width} channels, but "
            f"model.position=rotary needs an even number; choose for example model.n_embd={nearest}",
        )
        require(
            math.isfinite(self.rotary_base) and self.rotary_base > 1,
            f"model.rotary_base={self.rotary_base}: must be a finite number above 1",
        )
        require(0 <= self.dropout < 1, f"model.dropout={self.dropout}: must be at least 0 and below 1")
        require(self.ngram_order >= 0, f"model.ngram_order={self.ngram_order}: must be 0 (no n-gram) or more")

    def build(self, *, vocab_size: int, block_size: int) -> LanguageModel:
        from bigramlm.model.gpt import GPT

        return GPT(self, vocab_size=vocab_size, block_size=block_size)


# Layers, heads and channels of GPT-2's sizes (Radford et al. 2019, table 2; numbers of heads from its code).
GPT2_SIZES = {"small": (12, 12, 768), "medium": (24, 16, 1024), "large": (36, 20, 1280), "xl": (48, 25, 1600)}


def gpt2_size(size: str, field: str) -> int:
    """Return `n_layer`, `n_head` or `n_embd` of one of GPT-2's sizes, for the preset.

    An unknown size returns the value of small.
    """
    return GPT2_SIZES.get(size, GPT2_SIZES["small"])[("n_layer", "n_head", "n_embd").index(field)]


@dataclass
class GPT2Config(GPTConfig):
    """GPT-2, in one of its four sizes or with another shape.

    Radford et al. 2019, "Language Models are Unsupervised Multitask Learners". With `init_from=`, the weights are
    loaded and their config decides the shape; otherwise the weights are fresh.
    """

    name: str = "gpt2"
    size: str = "small"
    """The number of layers, heads and channels: small (124 million parameters with GPT-2's vocabulary), medium
    (355 million), large (774 million) or xl (1,558 million); custom for any other combination of
    `model.n_layer`, `model.n_head` and `model.n_embd`."""
    n_layer: int = GPT2_SIZES["small"][0]
    n_head: int = GPT2_SIZES["small"][1]
    n_embd: int = GPT2_SIZES["small"][2]
    dropout: float = 0.1
    position: str = "learned"
    norm: str = "layer"
    qk_norm: bool = False
    activation: str = "gelu_tanh"
    bias: bool = True
    tie_weights: bool = True
    init: str = "gpt2"
    zero_init: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("model.size", self.size, (*GPT2_SIZES, "custom"))
        shape = (self.n_layer, self.n_head, self.n_embd)
        self.size = next((size for size, known in GPT2_SIZES.items() if known == shape), "custom")


# The presets of GPTConfig, each with its own model.name: from a single attention head upwards.
RUNGS = ("attention", "multihead", "feedforward", "residual", "transformer", "nanogpt", "gpt")

MODELS: dict[str, type[ModelConfig]] = {
    "bigram": BigramConfig,
    **dict.fromkeys(RUNGS, GPTConfig),
    "gpt2": GPT2Config,
    "ngram": NgramConfig,
}
