"""One GPT, whose switches are the ideas on the way from a single head of attention to a transformer of today.

Sources: Vaswani et al. 2017, "Attention Is All You Need"; Radford et al. 2019, "Language Models are Unsupervised
Multitask Learners" (GPT-2), whose names the parameters have.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bigramlm.model.base import LanguageModel, cross_entropy
from bigramlm.model.cache import Cache, KeyValues
from bigramlm.model.config import GPTConfig
from bigramlm.model.ngram import Ngram, ngram_losses


class ReluSquared(torch.autograd.Function):
    """max(x, 0) squared (So et al. 2021, "Primer: Searching for Efficient Transformers for Language Modeling").

    By hand, for what autograd makes of `relu(x).square()` reads and writes the widest activations twice as often.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        above = F.relu(x)
        ctx.save_for_backward(above)
        return above * above

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (above,) = ctx.saved_tensors
        of_x: Tensor = (gradient * above).mul_(2)
        return of_x


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    # GPT-2's approximation of it, from before there was a fast exact one.
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu_squared": lambda x: ReluSquared.apply(x),
}


class GPT(LanguageModel):
    """Blocks of attention and feed-forward layers, between an embedding of tokens and a head that makes logits.

    Shapes, here and below: B batch, T time, C channels (n_embd), H heads, D = C / H the width of a head, V vocabulary.
    """

    def __init__(self, cfg: GPTConfig, *, vocab_size: int, block_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.block_size = block_size
        self.wte = nn.Embedding(vocab_size, cfg.n_embd)
        self.wpe = nn.Embedding(block_size, cfg.n_embd) if cfg.position == "learned" else None
        self.drop = nn.Dropout(cfg.dropout)
        self.h = nn.ModuleList(Block(cfg, block_size) for _ in range(cfg.n_layer))
        self.ln_f = build_norm(cfg, cfg.n_embd)
        self.lm_head = nn.Linear(cfg.n_embd, vocab_size, bias=False)
        self._computes_again = False
        self._draw_weights(cfg)
        if cfg.tie_weights:
            self.lm_head.weight = self.wte.weight
        self.ngram = None
        if cfg.ngram_order:
            self.ngram = Ngram(vocab_size=vocab_size, block_size=block_size, order=cfg.ngram_order)

    def forward(
        self, idx: Tensor, targets: Tensor | None = None, cache: Cache | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """See LanguageModel; cache: what this kept of the tokens before idx, to which idx is added."""
        start = 0 if cache is None else cache.length
        x = self.wte(idx)  # (B, T, C)
        if self.wpe is not None:
            x = x + self.wpe(torch.arange(start, start + idx.shape[1], device=idx.device))
        x = self.drop(x)
        seen = idx if cache is None else cache.see(idx)
        again = self._computes_again and torch.is_grad_enabled()
        for n, block in enumerate(self.h):
            kept = None if cache is None else cache.layers[n]
            x = checkpoint(block, x, start, kept, use_reentrant=False) if again else block(x, start, kept)
        logits = self.lm_head(self.ln_f(x))  # (B, T, V)
        if self.ngram is not None:
            # In training every position's own occurrence is left out, or the GPT would learn to trust counts too far.
            logits = logits + self.ngram.following(seen, idx.shape[1], targets if self.training else None)
        return logits, cross_entropy(logits, targets)

    def fit_counts(self, train: Tensor) -> bool:
        return self.ngram is not None and self.ngram.fit_counts(train)

    def new_cache(self) -> Cache:
        return Cache(n_layer=len(self.h), block_size=self.block_size)

    def checkpoint_activations(self) -> None:
        self._computes_again = True

    def flops_per_token(self, length: int | None = None) -> int:
        # The head multiplies, the embeddings are looked up. Attention: two products of T queries with T keys or values,
        # counted whole, as is the custom, though half of each is masked.
        # Of a frozen matrix no gradient is computed, which is a third of it.
        matrices = [*self.hidden_matrices(), self.lm_head.weight]
        products = sum((6 if p.requires_grad else 4) * p.numel() for p in matrices)
        return products + 12 * len(self.h) * self.wte.weight.shape[1] * (length or self.block_size)

    def hidden_matrices(self) -> dict[nn.Parameter, int]:
        # Queries, keys and values are made by three matrices, one above the other.
        return {p: 3 if name.endswith("c_attn.weight") else 1 for name, p in self.h.named_parameters() if p.ndim == 2}

    def reference_losses(self, train: Tensor, val: Tensor) -> dict[str, float]:
        return ngram_losses(train, val, vocab_size=self.vocab_size, block_size=self.block_size)

    def _draw_weights(self, cfg: GPTConfig) -> None:
        for name, p in self.named_parameters():
            into_stream = cfg.residual and "c_proj" in name  # what is added to it, 2 n_layer times
            # A wide embedding would make wide logits where it is the head too.
            small = cfg.init == "gpt2" or (cfg.tie_weights and name == "wte.weight")
            if into_stream and cfg.zero_init:
                nn.init.zeros_(p)
            elif small and p.ndim == 2:
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * cfg.n_layer) if into_stream else 0.02)
            elif cfg.init == "gpt2" and name.endswith("bias"):
                nn.init.zeros_(p)


class Block(nn.Module):
    """Attention, in which positions exchange what they know, and a feed-forward layer, in which each thinks it over."""

    def __init__(self, cfg: GPTConfig, block_size: int) -> None:
        super().__init__()
        self.residual = cfg.residual
        self.ln_1 = build_norm(cfg, cfg.n_embd)
        self.attn = Attention(cfg, block_size)
        self.ln_2 = build_norm(cfg, cfg.n_embd) if cfg.feed_forward else None
        self.mlp = FeedForward(cfg) if cfg.feed_forward else None

    def forward(self, x: Tensor, start: int, kept: KeyValues | None) -> Tensor:
        """Map x (B, T, C) to the same shape; start: the position of its first token; kept: of the tokens before."""
        # The norms stand before each layer, not after ("pre-norm"; Xiong et al. 2020, "On Layer Normalization in the
        # Transformer Architecture"), and residual connections (He et al. 2016, "Deep Residual Learning for Image
        # Recognition") let the gradient pass by.
        y: Tensor = self.attn(self.ln_1(x), start, kept)
        x = x + y if self.residual else y
        if self.mlp is None or self.ln_2 is None:
            return x
        y = self.mlp(self.ln_2(x))
        return x + y if self.residual else y


class Attention(nn.Module):
    """Causal self-attention with H heads: every position takes from itself and those before it what it asks for."""

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

    def forward(self, x: Tensor, start: int, kept: KeyValues | None) -> Tensor:
        """Map x (B, T, C) to the same shape; start: the position of its first token; kept: of the tokens before."""
        B, T, C = x.shape
        qkv = self.c_attn(x).view(B, T, 3 * self.n_head, C // self.n_head).transpose(1, 2)
        qk, v = qkv.split((2 * self.n_head, self.n_head), dim=1)  # queries and keys, on which all is done alike, as one
        if self.qk_norm:  # (B, 2 H, T, D); Henry et al. 2020, "Query-Key Normalization for Transformers"
            qk = rms_norm(qk)
        if self.rotary is not None:
            qk = self.rotary(qk, start)
        q, k = qk.chunk(2, dim=1)  # (B, H, T, D) each
        if kept is not None:
            k, v = kept.extend(k, v)
        y = F.scaled_dot_product_attention(
            *(q, k, v),
            attn_mask=causal_mask(T, start, x.device) if start and T > 1 else None,
            is_causal=T > 1 and not start,
            dropout_p=self.dropout if self.training else 0.0,
        )  # softmax(q k^T / sqrt(D)) v: (B, H, T, D)
        y = y.transpose(1, 2).reshape(B, T, C)
        return F.dropout(self.c_proj(y), self.dropout, self.training)


class FeedForward(nn.Module):
    """A layer for each position by itself: up to four times the width, through a non-linearity, and back."""

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
    """Turns queries and keys by an angle that grows with the position, so that their product goes by their distance.

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
        """Turn x (B, H, T, D), of which channels i and i + D/2 make the pairs that are turned."""
        cos, sin = (table[start : start + x.shape[2]].to(x.dtype) for table in (self.cos, self.sin))  # (T, D)
        a, b = x.chunk(2, dim=-1)  # (B, H, T, D/2)
        return x * cos + torch.cat((b, a), dim=-1) * sin  # (a cos - b sin, b cos + a sin)


class RMSNorm(nn.Module):
    """Scales each position's channels to a mean square of 1, and learns nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x)


def rms_norm(x: Tensor) -> Tensor:
    """Scale x to a mean square of 1 over its last dimension.

    Zhang and Sennrich 2019, "Root Mean Square Layer Normalization".
    """
    return F.rms_norm(x, x.shape[-1:])


def build_norm(cfg: GPTConfig, width: int) -> nn.Module:
    """Build the norm of a stream of this width."""
    if cfg.norm == "layer":  # Ba et al. 2016, "Layer Normalization"
        return nn.LayerNorm(width, bias=cfg.bias)
    return RMSNorm() if cfg.norm == "rms" else nn.Identity()


def causal_mask(n_new: int, start: int, device: torch.device) -> Tensor:
    """Return which of start + T positions the last T may attend to, (T, start + T)."""
    return torch.ones(n_new, start + n_new, dtype=torch.bool, device=device).tril(start)
