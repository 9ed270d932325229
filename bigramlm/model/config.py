"""The models, and their fields."""

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
    """The fields of every model."""

    name: str = MISSING
    """The name of the model; set by `model=NAME`."""

    trains: ClassVar[bool] = True  # whether it takes steps
    has_blocks: ClassVar[bool] = False  # whether it can compute activations again, a block at a time

    def estimate_size(self, *, vocab_size: int, block_size: int) -> tuple[int, int, int]:  # noqa: ARG002
        """Roughly how many weights it has, and how many activations it keeps of a token: in its blocks, and around."""
        return vocab_size**2, 0, 3 * vocab_size

    def how_to_shrink(self) -> str:
        """Say which choice has fewer weights."""
        return "a smaller vocabulary"

    def build(self, *, vocab_size: int, block_size: int) -> LanguageModel:
        """Build the model with fresh weights, drawn from torch's global random state, on the CPU."""
        raise NotImplementedError


@dataclass
class BigramConfig(ModelConfig):
    """A table of V x V logits: the next token given the current one, and nothing else."""

    name: str = "bigram"

    def build(self, *, vocab_size: int, block_size: int) -> LanguageModel:
        from bigramlm.model.bigram import Bigram

        return Bigram(vocab_size=vocab_size, block_size=block_size)


@dataclass
class NgramConfig(ModelConfig):
    """An n-gram: predicts by counting what followed the last tokens, and needs no step of training."""

    name: str = "ngram"
    order: int = 5
    """Tokens in a gram: the last `order - 1` tokens, and the one that follows."""

    trains: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(self.order >= 1, f"model.order={self.order}: must be 1 or more; 2 looks at one token, as a bigram does")

    def how_to_shrink(self) -> str:
        return f"a model.order below {self.order}"

    def build(self, *, vocab_size: int, block_size: int) -> LanguageModel:
        from bigramlm.model.ngram import Ngram

        return Ngram(vocab_size=vocab_size, block_size=block_size, order=self.order)


@dataclass
class GPTConfig(ModelConfig):
    """A transformer, whose switches are the ideas that lead to it; the presets are the rungs of docs/ladder.md."""

    name: str = "gpt"
    n_layer: int = 4
    """Blocks, one above the other."""
    n_head: int = 4
    """Heads of attention in a block, which share its width."""
    n_embd: int = 128
    """Width: channels that every position has between the embedding and the head."""
    dropout: float = 0.0
    """The share of activations that is set to zero in training, drawn anew at every step."""
    position: str = "rotary"
    """Positions in attention: learned (an embedding for each position) or rotary (queries and keys
    turned by an angle that grows with it)."""
    rotary_base: float = 10_000.0
    """The period of the slowest pair of channels: a full turn takes about 6 times as many tokens. For a short
    context lower ones, such as 200, tell near places apart better."""
    norm: str = "rms"
    """The norm before each layer: none, layer or rms."""
    qk_norm: bool = True
    """Scale queries and keys to one length, so that attention cannot run away."""
    feed_forward: bool = True
    """A feed-forward layer, four times as wide inside, after the attention of each block."""
    activation: str = "relu_squared"
    """The non-linearity inside it: relu, gelu, gelu_tanh (GPT-2's) or relu_squared."""
    residual: bool = True
    """Layers add to the stream, instead of taking its place."""
    bias: bool = False
    """Linear layers and layer norms add a learned constant."""
    tie_weights: bool = False
    """One matrix for the embedding and the head."""
    init: str = "pytorch"
    """Initial weights: pytorch (as its layers do: embeddings from N(0, 1), matrices the smaller the more they sum
    up) or gpt2 (all from N(0, 0.02), what layers add the smaller the more of them there are)."""
    zero_init: bool = True
    """The output of layers starts at zero: a fresh block passes on its input."""
    ngram_order: int = 0
    """Stand on an n-gram of this order: its log-probabilities are added to the logits; 0 stands alone."""

    has_blocks: ClassVar[bool] = True

    def estimate_size(self, *, vocab_size: int, block_size: int) -> tuple[int, int, int]:
        inside = 12 if self.feed_forward else 4  # matrices of width x width in a block
        weights = self.n_layer * inside * self.n_embd**2 + (1 if self.tie_weights else 2) * vocab_size * self.n_embd
        # Norms, queries, keys, values, what attention gives; and the widest ones before and behind the non-linearity.
        kept = self.n_layer * self.n_embd * (18 if self.feed_forward else 8)
        return weights + (block_size * self.n_embd if self.position == "learned" else 0), kept, 3 * vocab_size

    def how_to_shrink(self) -> str:
        return f"a model.n_embd below {self.n_embd}, or a model.n_layer below {self.n_layer}"

    def __post_init__(self) -> None:
        for name in ("n_layer", "n_head", "n_embd"):
            require(getattr(self, name) >= 1, f"model.{name}={getattr(self, name)}: must be 1 or more")
        width, rest = divmod(self.n_embd, self.n_head)
        unit = self.n_head * (2 if self.position == "rotary" else 1)
        near = unit * max(1, round(self.n_embd / unit))
        require(
            rest == 0,
            f"model.n_embd={self.n_embd}: cannot be shared by model.n_head={self.n_head} heads; take a multiple, such "
            f"as {near}",
        )
        require_choice("model.position", self.position, ("learned", "rotary"))
        require_choice("model.norm", self.norm, ("none", "layer", "rms"))
        require_choice("model.init", self.init, ("pytorch", "gpt2"))
        require_choice("model.activation", self.activation, ("relu", "gelu", "gelu_tanh", "relu_squared"))
        require(
            self.position != "rotary" or width % 2 == 0,
            f"model.n_embd={self.n_embd} model.n_head={self.n_head}: makes heads of {width} channels, and "
            f"model.position=rotary turns pairs of them; take an even number, with model.n_embd={near} for instance",
        )
        require(
            math.isfinite(self.rotary_base) and self.rotary_base > 1,
            f"model.rotary_base={self.rotary_base}: must be a finite number above 1",
        )
        require(0 <= self.dropout < 1, f"model.dropout={self.dropout}: must be 0 or more, and below 1")
        require(self.ngram_order >= 0, f"model.ngram_order={self.ngram_order}: must be 0 (none) or more")

    def build(self, *, vocab_size: int, block_size: int) -> LanguageModel:
        from bigramlm.model.gpt import GPT

        return GPT(self, vocab_size=vocab_size, block_size=block_size)


# Layers, heads and channels of GPT-2's sizes (Radford et al. 2019, table 2; the heads as its code has them).
GPT2_SIZES = {"small": (12, 12, 768), "medium": (24, 16, 1024), "large": (36, 20, 1280), "xl": (48, 25, 1600)}


def gpt2_size(size: str, field: str) -> int:
    """`n_layer`, `n_head` or `n_embd` of one of GPT-2's sizes, for the preset; of small where there is no such size."""
    return GPT2_SIZES.get(size, GPT2_SIZES["small"])[("n_layer", "n_head", "n_embd").index(field)]


@dataclass
class GPT2Config(GPTConfig):
    """GPT-2 (Radford et al.

    2019, "Language Models are Unsupervised Multitask Learners"). With `init_from=` its weights are taken, whose own
    config decides the shape; without, fresh ones.
    """

    name: str = "gpt2"
    size: str = "small"
    """The number of layers, heads and channels: small (124 million parameters with GPT-2's vocabulary), medium
    (355), large (774) or xl (1,558); custom where `model.n_layer`, `model.n_head` or `model.n_embd` say otherwise."""
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
        self.size = next((size for size, its in GPT2_SIZES.items() if its == shape), "custom")


# Presets of one class, each with a name of its own: from one head of attention upwards.
RUNGS = ("attention", "multihead", "feedforward", "residual", "transformer", "nanogpt", "gpt")

MODELS: dict[str, type[ModelConfig]] = {
    "bigram": BigramConfig,
    **dict.fromkeys(RUNGS, GPTConfig),
    "gpt2": GPT2Config,
    "ngram": NgramConfig,
}
