"""A reimplementation of nanoGPT's CPU training loop, as a baseline.

Source: A. Karpathy, nanoGPT, github.com/karpathy/nanoGPT. The model and the loop compute the same as nanoGPT.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from bigramlm.trainer.trainer import Trainer

# nanoGPT's recipe for a laptop.
LAYERS, HEADS, WIDTH, BLOCK, BATCH, STEPS, WARMUP, LR, MIN_LR = 4, 4, 128, 64, 12, 2000, 100, 1e-3, 1e-4


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (WIDTH,), self.weight, None, 1e-5)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = Norm(), Norm()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Any:
        B, T, C = x.shape
        parts = self.qkv(self.attention_norm(x)).split(C, dim=2)
        q, k, v = (part.view(B, T, HEADS, C // HEADS).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).contiguous().view(B, T, C))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x))))


class Model(nn.Module):
    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocab_size, WIDTH), nn.Embedding(BLOCK, WIDTH)
        self.layers, self.final_norm = nn.ModuleList(Layer() for _ in range(LAYERS)), Norm()
        for p in self.parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.token(x) + self.position(torch.arange(x.shape[1]))
        for layer in self.layers:
            h = layer(h)
        logits: Tensor = F.linear(self.final_norm(h), self.token.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), y.view(-1))


def loop(trainer: Trainer) -> Callable[[int], None]:
    """Return a function that runs step n of nanoGPT's loop on the Trainer's text."""
    model = Model(trainer.model.vocab_size)
    data = trainer.evaluator.splits["train"].tokens.numpy().astype(np.uint16)
    matrices, vectors = ([p for p in model.parameters() if (p.ndim == 2) == is_matrix] for is_matrix in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.99))

    def sample_batch() -> tuple[Tensor, Tensor]:
        starts = torch.randint(len(data) - BLOCK, (BATCH,))
        x, y = (
            torch.stack([torch.from_numpy(data[i + offset : i + offset + BLOCK].astype(np.int64)) for i in starts])
            for offset in (0, 1)
        )
        return x, y

    def learning_rate(n: int) -> float:
        if n < WARMUP:
            return LR * (n + 1) / (WARMUP + 1)
        progress = min(1.0, (n - WARMUP) / (STEPS - WARMUP))
        return MIN_LR + 0.5 * (1 + math.cos(math.pi * progress)) * (LR - MIN_LR)

    def take_step(n: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(n)
        x, y = sample_batch()
        model(x, y).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return take_step
