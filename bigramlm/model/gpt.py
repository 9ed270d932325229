"""A GPT with optional features, from one attention head to a modern transformer.

Sources: Vaswani et al. 2017, "Attention Is All You Need"; Radford et al. 2019, "Language Models are Unsupervised
Multitask Learners" (GPT-2). The parameters have the same names as in GPT-2.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bigramlm.model.base import LanguageModel, cross_entropy, matrix_flops
from bigramlm.model.cache import Cache, KeyValues
from bigramlm.model.config import GPTConfig
from bigramlm.model.ngram import Ngram, ngram_losses


class ReluSquared(torch.autograd.Function):
    """The square of max(x, 0), with an explicit gradient.

    So et al. 2021, "Primer: Searching for Efficient Transformers for Language Modeling". The gradient is explicit
    because automatic differentiation of `relu(x).square()` reads and writes the widest activations twice as often.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        rectified = F.relu(x)
        ctx.save_for_backward(rectified)
        return rectified * rectified

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (rectified,) = ctx.saved_tensors
        x_gradient: Tensor = (gradient * rectified).mul_(2)
        return x_gradient


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    # GPT-2's approximation of GELU, from before a fast exact version existed.
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu_squared": lambda x: ReluSquared.apply(x),
}


class GPT(LanguageModel):
    """Blocks of attention and feed-forward layers between an embedding and a head.

    Letters in shapes, here and below: B is the batch size, T the number of tokens, C the number of channels (n_embd), H
    the number of heads, D = C / H the head dimension, and V the vocabulary size.
    """

    def __init__(self, cfg: GPTConfig, *, vocab_size: int, block_size: int) -> None:
        super().__init__(vocab_size=vocab_size, block_size=block_size)
        self.wte = nn.Embedding(vocab_size, cfg.n_embd)
        self.wpe = nn.Embedding(block_size, cfg.n_embd) if cfg.position == "learned" else None
        self.drop = nn.Dropout(cfg.dropout)
        self.h = nn.ModuleList(Block(cfg, block_size) for _ in range(cfg.n_layer))
        self.ln_f = build_norm(cfg, cfg.n_embd)
        self.lm_head = nn.Linear(cfg.n_embd, vocab_size, bias=False)
        self._recomputes = False
        self._init_weights(cfg)
        if cfg.tie_weights:
            self.lm_head.weight = self.wte.weight
        self.ngram = None
        if cfg.ngram_order:
            self.ngram = Ngram(vocab_size=vocab_size, block_size=block_size, order=cfg.ngram_order)

    def forward(
        self, idx: Tensor, targets: Tensor | None = None, cache: Cache | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the logits (B, T, V) and the loss, as `LanguageModel.forward` does.

        cache: the tokens before idx, with their keys and values. The tokens of idx are appended to the cache.
        """
        start = 0 if cache is None else cache.length
        x = self._embed(idx, start)
        tokens = idx if cache is None else cache.append(idx)
        recompute = self._recomputes and torch.is_grad_enabled()
        for n, block in enumerate(self.h):
            past = None if cache is None else cache.layers[n]
            x = checkpoint(block, x, start, past, use_reentrant=False) if recompute else block(x, start, past)
        # In training, each position's own occurrence is left out, or the GPT would learn to trust counts too much.
        logits = self.read_out(x, tokens, targets if self.training else None)
        return logits, cross_entropy(logits, targets)

    def read_out(self, x: Tensor, idx: Tensor, leave_out: Tensor | None = None) -> Tensor:
        """Compute logits (B, T, V) as if the model ended at a state of the stream.

        x: the state (B, T, C), as in `LanguageModel.read_out`. idx: the token ids, of which the
        last T belong to x. leave_out: as in `Ngram.log_probabilities`.
        """
        logits: Tensor = self.lm_head(self.ln_f(x))  # (B, T, V)
        if self.ngram is not None:
            logits = logits + self.ngram.next_log_probabilities(idx, x.shape[1], leave_out)
        return logits

    def stream(self, idx: Tensor) -> list[Tensor]:
        states = [self._embed(idx)]
        for block in self.h:
            states.append(block(states[-1], 0, None))
        return states

    def attention(self, idx: Tensor) -> list[Tensor]:
        weights = []
        for block, x in zip(self.h, self.stream(idx), strict=False):  # the last state enters no block
            assert isinstance(block, Block)
            weights.append(block.attn.weights(block.ln_1(x)))
        return weights

    def hidden_units(self) -> dict[str, nn.Module]:
        names = {name: module for name, module in self.named_modules() if isinstance(module, FeedForward)}
        return {name: module.c_proj for name, module in names.items()}

    def fit_counts(self, train: Tensor) -> bool:
        return self.ngram is not None and self.ngram.fit_counts(train)

    def new_cache(self) -> Cache:
        return Cache(n_layer=len(self.h), block_size=self.block_size)

    def checkpoint_activations(self) -> None:
        self._recomputes = True

    def flops_per_token(self, length: int | None = None) -> int:
        # The head multiplies, the embeddings are looked up. Attention has two products, of T queries
        # with T keys or values. By convention they count in full, although half of each is masked.
        products = matrix_flops([*self.hidden_matrices(), self.lm_head.weight])
        return products + 12 * len(self.h) * self.wte.weight.shape[1] * (length or self.block_size)

    def hidden_matrices(self) -> dict[nn.Parameter, int]:
        # c_attn stacks the matrices of the queries, the keys and the values.
        return {p: 3 if name.endswith("c_attn.weight") else 1 for name, p in self.h.named_parameters() if p.ndim == 2}

    def reference_losses(self, train: Tensor, val: Tensor) -> dict[str, float]:
        return ngram_losses(train, val, vocab_size=self.vocab_size, block_size=self.block_size)

    def _embed(self, idx: Tensor, start: int = 0) -> Tensor:
        x = self.wte(idx)  # (B, T, C)
        if self.wpe is not None:
            x = x + self.wpe(torch.arange(start, start + idx.shape[1], device=idx.device))
        y: Tensor = self.drop(x)
        return y

    def _init_weights(self, cfg: GPTConfig) -> None:
        for name, p in self.named_parameters():
            into_stream = cfg.residual and "c_proj" in name  # added to the stream, 2 n_layer times
            # A tied embedding is the head too, so a wide distribution would give large logits.
            small = cfg.init == "gpt2" or (cfg.tie_weights and name == "wte.weight")
            if into_stream and cfg.zero_init:
                nn.init.zeros_(p)
            elif small and p.ndim == 2:
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * cfg.n_layer) if into_stream else 0.02)
            elif cfg.init == "gpt2" and name.endswith("bias"):
                nn.init.zeros_(p)


class Block(nn.Module):
    """Attention across positions, then a feed-forward layer at each position."""

    def __init__(self, cfg: GPTConfig, block_size: int) -> None:
        super().__init__()
        self.residual = cfg.residual
        self.ln_1 = build_norm(cfg, cfg.n_embd)
        self.attn = Attention(cfg, block_size)
        self.ln_2 = build_norm(cfg, cfg.n_embd) if cfg.feed_forward else None
        self.mlp = FeedForward(cfg) if cfg.feed_forward else None

    def forward(self, x: Tensor, start: int, past: KeyValues | None) -> Tensor:
        """Map x (B, T, C) to the same shape.

        start: the position of the first token of x. past: the cached keys and values of the earlier tokens; None
        without a cache.
        """
        # The norms come before each layer, not after it ("pre-norm"; Xiong et al. 2020, "On Layer Normalization in the
        # Transformer Architecture"), and residual connections (He et al. 2016, "Deep Residual Learning for Image
        # Recognition") give the gradient a direct path.
        y: Tensor = self.attn(self.ln_1(x), start, past)
        x = x + y if self.residual else y
        if self.mlp is None or self.ln_2 is None:
            return x
        y = self.mlp(self.ln_2(x))
        return x + y if self.residual else y


class Attention(nn.Module):
    """Causal self-attention with H heads: each position sees itself and earlier ones."""

    def __init__(self, cfg: GPTConfig, block_size: int) -> None:
        super().__init__()
        self.n_head = cfg.n_head
        self.dropout = cfg.dropout
        self.qk_norm = cfg.qk_norm
        self.c_attn = nn.Linear(cfg.n_embd, 3 * cfg.n_embd, bias=cfg.bias)
        self.c_proj = nn.Linear(cfg.n_embd, cfg.n_embd, bias=cfg.bias)
        self.rotary = None
        if cfg.position == "rotary":
            self.rotary = Rotary(cfg.n_embd // cfg.n_head, block_size, cfg.rotary_base)

    def forward(self, x: Tensor, start: int, past: KeyValues | None) -> Tensor:
        """Map x (B, T, C) to the same shape.

        start: the position of the first token of x. past: the cached keys and values of the earlier tokens; None
        without a cache.
        """
        B, T, C = x.shape
        q, k, v = self._queries_keys_values(x, start)
        if past is not None:
            k, v = past.extend(k, v)
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=causal_mask(T, start, x.device) if start and T > 1 else None,
            is_causal=T > 1 and not start,
            dropout_p=self.dropout if self.training else 0.0,
        )  # softmax(q k^T / sqrt(D)) v: (B, H, T, D)
        y = y.transpose(1, 2).reshape(B, T, C)
        return F.dropout(self.c_proj(y), self.dropout, self.training)

    def weights(self, x: Tensor) -> Tensor:
        """Compute the attention weights (B, H, T, T) for x (B, T, C).

        `forward` computes the same weights, but never stores them.
        """
        q, k, _ = self._queries_keys_values(x, 0)
        exact = torch.promote_types(q.dtype, torch.float32)
        scores = q.to(exact) @ k.to(exact).mT / math.sqrt(q.shape[-1])
        return scores.masked_fill(~causal_mask(x.shape[1], 0, x.device), -torch.inf).softmax(-1)

    def _queries_keys_values(self, x: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        B, T, C = x.shape
        qkv = self.c_attn(x).view(B, T, 3 * self.n_head, C // self.n_head).transpose(1, 2)
        qk, v = qkv.split((2 * self.n_head, self.n_head), dim=1)  # queries and keys are processed together
        if self.qk_norm:  # (B, 2 H, T, D); Henry et al. 2020, "Query-Key Normalization for Transformers"
            qk = rms_norm(qk)
        if self.rotary is not None:
            qk = self.rotary(qk, start)
        q, k = qk.chunk(2, dim=1)
        return q, k, v  # (B, H, T, D) each


class FeedForward(nn.Module):
    """A two-layer network at each position, with 4 C hidden channels."""

    def __init__(self, cfg: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(cfg.n_embd, 4 * cfg.n_embd, bias=cfg.bias)
        self.c_proj = nn.Linear(4 * cfg.n_embd, cfg.n_embd, bias=cfg.bias)
        self.activation = ACTIVATIONS[cfg.activation]
        self.dropout = cfg.dropout

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.c_proj(self.activation(self.c_fc(x)))  # (B, T, 4 C) in between
        return F.dropout(y, self.dropout, self.training)


class Rotary(nn.Module):
    """The rotary position embedding of queries and keys.

    Each pair of channels is rotated by an angle that is proportional to the position. The dot product of a query and a
    key therefore depends on the distance between their positions.

    Source: Su et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding", section 3.2.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, width: int, block_size: int, base: float) -> None:
        super().__init__()
        frequency = base ** -(torch.arange(0, width, 2) / width)  # (D/2,)
        angle = torch.outer(torch.arange(block_size), frequency)  # (block_size, D/2)
        self.register_buffer("cos", torch.cat((angle.cos(), angle.cos()), dim=1), persistent=False)  # (block_size, D)
        self.register_buffer("sin", torch.cat((-angle.sin(), angle.sin()), dim=1), persistent=False)

    def forward(self, x: Tensor, start: int) -> Tensor:
        """Rotate queries or keys x (B, H, T, D), and return the same shape.

        start: the position of the first token of x. Channels i and i + D/2 form a pair.
        """
        cos, sin = (table[start : start + x.shape[2]].to(x.dtype) for table in (self.cos, self.sin))  # (T, D)
        a, b = x.chunk(2, dim=-1)  # (B, H, T, D/2)
        return x * cos + torch.cat((b, a), dim=-1) * sin  # (a cos - b sin, b cos + a sin)


class RMSNorm(nn.Module):
    """Normalisation of each position to a mean square of 1, without parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x)


def rms_norm(x: Tensor) -> Tensor:
    """Scale x to a mean square of 1 over its last dimension.

    Zhang and Sennrich 2019, "Root Mean Square Layer Normalization".
    """
    return F.rms_norm(x, x.shape[-1:])


def build_norm(cfg: GPTConfig, width: int) -> nn.Module:
    """Build the normalisation layer that the config selects, for `width` channels."""
    if cfg.norm == "layer":  # Ba et al. 2016, "Layer Normalization"
        return nn.LayerNorm(width, bias=cfg.bias)
    return RMSNorm() if cfg.norm == "rms" else nn.Identity()


def causal_mask(n_new: int, start: int, device: torch.device) -> Tensor:
    """Return the attention mask for n_new tokens that follow `start` earlier tokens.

    The mask has the shape (n_new, start + n_new). It is True where the new token of a row may attend to the token of a
    column.
    """
    return torch.ones(n_new, start + n_new, dtype=torch.bool, device=device).tril(start)
