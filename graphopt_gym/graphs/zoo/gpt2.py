"""GPT-2 (Radford et al. 2019): decoder-only transformer, pre-norm, tied output embedding.

The operators are those of the Hugging Face implementation with eager attention: ``Conv1D`` as one addmm, the causal
mask as a ``where``, and the tanh approximation of GELU as its separate element-wise kernels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphopt_gym.graphs.zoo.losses import constant_token_loss


class Conv1D(nn.Module):
    """A linear layer with its weight stored [inputs, outputs]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs).normal_(std=0.02))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)
        return y.view(*x.shape[:-1], -1)


class NewGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


class Attention(nn.Module):
    causal: Tensor

    def __init__(self, width: int, heads: int, positions: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn, self.c_proj = Conv1D(width, 3 * width), Conv1D(width, width)
        self.attn_dropout, self.resid_dropout = nn.Dropout(dropout), nn.Dropout(dropout)
        mask = torch.ones(positions, positions, dtype=torch.bool).tril()
        self.register_buffer("causal", mask.view(1, 1, positions, positions), persistent=False)

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).permute(0, 2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (self.split(part) for part in self.c_attn(x).split(x.shape[-1], dim=2))
        scores = torch.matmul(query, key.transpose(-1, -2))
        scores = scores / torch.full([], value.shape[-1] ** 0.5, dtype=x.dtype, device=x.device)
        length = x.shape[1]
        lowest = torch.full([], torch.finfo(x.dtype).min, dtype=x.dtype, device=x.device)
        scores = torch.where(self.causal[:, :, :length, :length], scores, lowest)
        weights = self.attn_dropout(F.softmax(scores, dim=-1))
        context = torch.matmul(weights, value).permute(0, 2, 1, 3).contiguous().view(x.shape)
        return self.resid_dropout(self.c_proj(context))


class Mlp(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.c_fc, self.act, self.c_proj = Conv1D(width, 4 * width), NewGelu(), Conv1D(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(self.act(self.c_fc(x))))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, positions: int, dropout: float) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = Attention(width, heads, positions, dropout), Mlp(width, dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attn(self.ln_1(x)) + x
        return x + self.mlp(self.ln_2(x))


class Gpt2(nn.Module):
    """Logits, or the next-token loss where labels are given."""

    def __init__(self, layers: int, width: int, heads: int, vocabulary: int, positions: int, dropout: float) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(positions, width)
        self.drop = nn.Dropout(dropout)
        self.h = nn.ModuleList(Block(width, heads, positions, dropout) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, tokens: Tensor, labels: Tensor | None = None) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
        x = self.drop(self.wte(tokens) + self.wpe(positions))
        for block in self.h:
            x = block(x)
        logits = self.lm_head(self.ln_f(x))
        if labels is None:
            return logits
        shifted = logits[..., :-1, :].contiguous()
        return F.cross_entropy(shifted.view(-1, shifted.shape[-1]), labels[..., 1:].contiguous().view(-1))


def stages(layers: int) -> list[dict[str, Any]]:
    return [
        {"name": "embeddings", "part": "", "modules": ["wte", "wpe", "drop"]},
        *({"name": f"block {i}", "part": "", "modules": [f"h.{i}"]} for i in range(layers)),
        {"name": "head", "part": "", "modules": ["ln_f", "lm_head", "loss"]},
    ]


def build(
    *,
    layers: int = 12,
    width: int = 768,
    heads: int = 12,
    vocabulary: int = 50257,
    positions: int = 1024,
    dropout: float = 0.1,
    sequence: int = 1024,
    batch: int = 8,
    tokens_only: bool = False,
    train: bool = True,
    optimizer: str | None = "adam",
    device: str = "meta",
) -> dict[str, Any]:
    """Arguments of ``capture``. ``tokens_only``: no labels given, and (training) a loss over the logits."""
    with torch.device(device):
        module = Gpt2(layers, width, heads, vocabulary, positions, dropout)
        inputs = {"tokens": torch.randint(0, vocabulary, (batch, sequence))}
        if not tokens_only:
            inputs["labels"] = torch.randint(0, vocabulary, (batch, sequence))

    return {
        "module": module,
        "example_inputs": inputs,
        "loss": constant_token_loss(vocabulary) if tokens_only and train else None,
        "train": train,
        "optimizer": optimizer,
        "metadata": {"stages": stages(layers)},
    }
