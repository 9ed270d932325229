"""The model configs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from omegaconf import MISSING

from bigramlm.errors import UserError, require, require_choice

if TYPE_CHECKING:
    from bigramlm.model.base import LanguageModel


@dataclass
class ModelConfig:
    """The base class of the model configs, with their common fields."""

    name: str = MISSING
    """The name of the model, set by `model=NAME`."""

    trains: ClassVar[bool] = True  # False for a model that takes no training steps
    has_blocks: ClassVar[bool] = False  # True for a model that can recompute activations block by block

    def estimate_size(self, *, vocab_size: int, block_size: int) -> tuple[int, int, int] | None:  # noqa: ARG002
        """Estimate the number of weights, and of activations stored per token.

        The activations are those that the backward pass needs. Returns three numbers: the weights, the activations in
        the blocks, and the activations outside the blocks. Returns None if the model has no estimate.
        """
        return None

    def how_to_shrink(self) -> str:
        """Return a phrase for error messages that names a smaller model.

        An example is "a model.order below 5".
        """
        return "a smaller model"

    def build(self, *, vocab_size: int, block_size: int) -> LanguageModel:
        """Build the model on the CPU with newly initialised weights.

        The weights are sampled with torch's global random generator.
        """
        raise NotImplementedError


@dataclass
class BigramConfig(ModelConfig):
    """A bigram: a table with the next-token logits for each current token."""

    name: str = "bigram"

    def estimate_size(self, *, vocab_size: int, block_size: int) -> tuple[int, int, int]:  # noqa: ARG002
        return vocab_size**2, 0, 3 * vocab_size

    def how_to_shrink(self) -> str:
        return "a smaller vocabulary"

    def build(self, *, vocab_size: int, block_size: int) -> LanguageModel:
        from bigramlm.model.bigram import Bigram

        return Bigram(vocab_size=vocab_size, block_size=block_size)


@dataclass
class NgramConfig(ModelConfig):
    """An n-gram: next-token probabilities from counts, without training steps."""

    name: str = "ngram"
    order: int = 5
    """The length of an n-gram in tokens: `order - 1` context tokens, and the token that follows them."""

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
class MLPConfig(ModelConfig):
    """A feed-forward network over the embeddings of the last tokens.

    Bengio et al. 2003, "A Neural Probabilistic Language Model".
    """

    name: str = "mlp"
    context_size: int = 8
    """The number of tokens that a prediction depends on: the current token and those before it. At the start of a
    sequence, a padding token stands for those that are missing."""
    n_embd: int = 32
    """The number of channels of an embedding. The embeddings of the context are concatenated."""
    n_hidden: int = 256
    """The number of hidden units."""
    direct: bool = False
    """If true, a matrix also connects the embeddings with the logits directly."""

    def __post_init__(self) -> None:
        for name in ("context_size", "n_embd", "n_hidden"):
            require(getattr(self, name) >= 1, f"model.{name}={getattr(self, name)}: must be at least 1")

    def estimate_size(self, *, vocab_size: int, block_size: int) -> tuple[int, int, int]:  # noqa: ARG002
        width = self.context_size * self.n_embd
        weights = (vocab_size + 1) * self.n_embd + width * self.n_hidden + self.n_hidden * vocab_size
        return weights + (width * vocab_size if self.direct else 0), 0, width + self.n_hidden + 3 * vocab_size

    def how_to_shrink(self) -> str:
        return f"a model.n_hidden below {self.n_hidden}, or a model.context_size below {self.context_size}"

    def build(self, *, vocab_size: int, block_size: int) -> LanguageModel:
        from bigramlm.model.mlp import MLP

        return MLP(self, vocab_size=vocab_size, block_size=block_size)


@dataclass
class GPTConfig(ModelConfig):
    """A transformer whose features can be switched on one by one.

    With all features off, one block with one head is a single attention head. Each step that docs/ladder.md explains
    has a preset of these fields.
    """

    name: str = "gpt"
    n_layer: int = 4
    """The number of blocks."""
    n_head: int = 4
    """The number of attention heads per block. The channels are divided equally among the heads."""
    n_embd: int = 128
    """The embedding dimension: the number of channels at each position between the embedding and the head."""
    dropout: float = 0.0
    """The dropout probability of activations. Dropout is applied in training only."""
    position: str = "rotary"
    """The position encoding: learned (an embedding for each position) or rotary (queries and keys are rotated by an
    angle proportional to the position)."""
    rotary_base: float = 10_000.0
    """The base of the rotary frequencies. The slowest pair of channels makes a full turn in about 6 x rotary_base
    tokens. In a short context, a lower base, such as 200, distinguishes nearby positions better."""
    norm: str = "rms"
    """The normalisation before each attention layer, each feed-forward layer and the head: none, layer (LayerNorm) or
    rms (RMSNorm)."""
    qk_norm: bool = True
    """If true, queries and keys are normalised to the same length, so that attention logits stay bounded."""
    feed_forward: bool = True
    """If true, a feed-forward layer with 4 x n_embd hidden channels follows the attention layer of each block."""
    activation: str = "relu_squared"
    """The activation function of the feed-forward layers: relu, gelu, gelu_tanh (the approximation of gelu in GPT-2) or
    relu_squared."""
    residual: bool = True
    """If true, the output of each layer is added to its input (a residual connection). If false, the output replaces
    the input."""
    bias: bool = False
    """If true, the linear layers of the blocks and the layer norms have learned biases."""
    tie_weights: bool = False
    """If true, the embedding and the head share one matrix."""
    init: str = "pytorch"
    """The initialisation of the weights. pytorch uses PyTorch's defaults: embeddings from N(0, 1), and matrices with
    smaller values the more inputs they have. gpt2 samples all weights with standard deviation 0.02, but projections
    into the residual stream with a smaller one the more layers there are."""
    zero_init: bool = True
    """If true, projections into the residual stream are initialised to zero, so that an untrained block returns its
    input."""
    ngram_order: int = 0
    """The order of an n-gram model whose log-probabilities are added to the logits; 0 means no n-gram model."""

    has_blocks: ClassVar[bool] = True

    def estimate_size(self, *, vocab_size: int, block_size: int) -> tuple[int, int, int]:
        matrices = 12 if self.feed_forward else 4  # of n_embd x n_embd, per block
        weights = self.n_layer * matrices * self.n_embd**2 + (1 if self.tie_weights else 2) * vocab_size * self.n_embd
        # The stored activations are the outputs of norms, the queries, keys and values, and the output of attention.
        # With a feed-forward layer, they include the widest activations, before and after the activation function.
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
            f"model.n_embd={self.n_embd} is not divisible by model.n_head={self.n_head}, the number of heads; choose "
            f"a multiple of {divisor}, such as {nearest}",
        )
        require_choice("model.position", self.position, ("learned", "rotary"))
        require_choice("model.norm", self.norm, ("none", "layer", "rms"))
        require_choice("model.init", self.init, ("pytorch", "gpt2"))
        require_choice("model.activation", self.activation, ("relu", "gelu", "gelu_tanh", "relu_squared"))
        require(
            self.position != "rotary" or head_width % 2 == 0,
            f"model.n_embd={self.n_embd} model.n_head={self.n_head}: the head dimension is {head_width}, but "
            f"model.position=rotary requires an even head dimension; for example, use model.n_embd={nearest}",
        )
        require(
            math.isfinite(self.rotary_base) and self.rotary_base > 1,
            f"model.rotary_base={self.rotary_base}: must be a finite number above 1",
        )
        require(0 <= self.dropout < 1, f"model.dropout={self.dropout}: must be at least 0 and below 1")
        require(
            self.ngram_order >= 0, f"model.ngram_order={self.ngram_order}: must be at least 0; 0 means no n-gram model"
        )

    def build(self, *, vocab_size: int, block_size: int) -> LanguageModel:
        from bigramlm.model.gpt import GPT

        return GPT(self, vocab_size=vocab_size, block_size=block_size)


# The numbers of layers, heads and channels in each size of GPT-2 (Radford et al. 2019, table 2; the numbers of heads
# are from its code).
GPT2_SIZES = {"small": (12, 12, 768), "medium": (24, 16, 1024), "large": (36, 20, 1280), "xl": (48, 25, 1600)}


def gpt2_size(size: str, field: str) -> int:
    """Return the value of `n_layer`, `n_head` or `n_embd` in a size of GPT-2.

    conf/model/gpt2.yaml calls this function. An unknown size returns the value of small, because GPT2Config reports the
    error later.
    """
    return GPT2_SIZES.get(size, GPT2_SIZES["small"])[("n_layer", "n_head", "n_embd").index(field)]


@dataclass
class GPT2Config(GPTConfig):
    """GPT-2, in one of its four sizes or with a custom shape.

    Radford et al. 2019, "Language Models are Unsupervised Multitask Learners". With `init_from=`, trained weights are
    loaded, and their config determines the shape. Without it, the weights are newly initialised.
    """

    name: str = "gpt2"
    size: str = "small"
    """The size of GPT-2, which sets `model.n_layer`, `model.n_head` and `model.n_embd`: small (124 million parameters
    with GPT-2's vocabulary), medium (355 million), large (774 million) or xl (1,558 million). Any other combination of
    these three fields is custom."""
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


@dataclass
class PythonConfig(ModelConfig):
    """A model that was passed from Python: `bigramlm.train(..., model=MyModel)`."""

    name: str = "python"
    source: str = MISSING
    """The name of the module or factory that was passed."""

    def build(self, *, vocab_size: int, block_size: int) -> LanguageModel:  # noqa: ARG002
        raise UserError(
            f"model=python: the model {self.source} was passed from Python, so only Python can build it; use "
            f"bigramlm.train(..., model={self.variable})"
        )

    @property
    def variable(self) -> str:
        """The name of the model in a line of Python to paste."""
        return self.source.rpartition(".")[2]


# The presets of GPTConfig, each with its own model.name, from a single attention head to a modern transformer.
RUNGS = ("attention", "multihead", "feedforward", "residual", "transformer", "nanogpt", "gpt")

MODELS: dict[str, type[ModelConfig]] = {
    "bigram": BigramConfig,
    **dict.fromkeys(RUNGS, GPTConfig),
    "gpt2": GPT2Config,
    "ngram": NgramConfig,
    "mlp": MLPConfig,
    "python": PythonConfig,
}
