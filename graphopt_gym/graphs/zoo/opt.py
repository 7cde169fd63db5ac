"""OPT (Zhang et al. 2022): decoder-only transformer with ReLU, operators as in the Hugging Face implementation.

Its eager attention adds a full mask and clamps the sum to the lowest float, two kernels over the scores.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphopt_gym.graphs.zoo.losses import constant_token_loss


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.head_width, self.dropout = heads, width // heads, dropout
        self.k_proj, self.v_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.q_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def split(self, x: Tensor, batch: int) -> Tensor:
        return x.view(batch, -1, self.heads, self.head_width).transpose(1, 2).contiguous()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, length, width = x.shape
        folded = (batch * self.heads, -1, self.head_width)
        query = self.q_proj(x) * self.head_width**-0.5
        key = self.split(self.k_proj(x), batch).view(*folded)
        value = self.split(self.v_proj(x), batch).view(*folded)
        scores = torch.bmm(self.split(query, batch).view(*folded), key.transpose(1, 2))
        scores = scores.view(batch, self.heads, length, length) + mask
        scores = torch.max(scores, torch.tensor(torch.finfo(scores.dtype).min, device=scores.device))
        weights = F.softmax(scores.view(batch * self.heads, length, length), dim=-1)
        weights = F.dropout(weights, p=self.dropout, training=self.training)
        context = torch.bmm(weights, value).view(batch, self.heads, length, self.head_width).transpose(1, 2)
        return self.out_proj(context.reshape(batch, length, width))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.self_attn = Attention(width, heads, 0.0)
        self.self_attn_layer_norm, self.final_layer_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.fc1, self.activation, self.fc2 = nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        shape = x.shape
        y = self.self_attn(self.self_attn_layer_norm(x), mask)
        x = (x + F.dropout(y, p=self.dropout, training=self.training)).reshape(-1, shape[-1])
        y = self.fc2(self.activation(self.fc1(self.final_layer_norm(x))))
        return (x + F.dropout(y, p=self.dropout, training=self.training)).view(shape)


class Opt(nn.Module):
    def __init__(
        self, layers: int, width: int, heads: int, inner: int, vocabulary: int, positions: int, dropout: float
    ) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, width, padding_idx=1)
        self.embed_positions = nn.Embedding(positions + 2, width)  # the first two are never used
        self.layers = nn.ModuleList(Layer(width, heads, inner, dropout) for _ in range(layers))
        self.final_layer_norm = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.lm_head.weight = self.embed_tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed_tokens(tokens)
        given = torch.ones(tokens.shape, device=x.device)
        mask = self.causal_mask(given, x.dtype)
        whole = given.long()
        positions = (torch.cumsum(whole, dim=1).type_as(whole) * whole).long() - 1
        x = x + self.embed_positions(positions + 2)
        for layer in self.layers:
            x = layer(x, mask)
        return self.lm_head(self.final_layer_norm(x))

    @staticmethod
    def causal_mask(given: Tensor, dtype: torch.dtype) -> Tensor:
        """[batch, 1, length, length]: 0 where a position may attend, the lowest float elsewhere."""
        (batch, length), lowest = given.shape, torch.finfo(dtype).min
        steps = torch.arange(length, device=given.device)
        causal = torch.full((length, length), lowest, device=given.device)
        causal = causal.masked_fill(steps < (steps + 1).view(length, 1), 0)
        padding = 1.0 - given[:, None, None, :].expand(batch, 1, length, length).to(dtype)
        padding = padding.masked_fill(padding.to(torch.bool), lowest)
        return causal[None, None].expand(batch, 1, length, length).masked_fill(padding.bool(), lowest)


def build(
    *,
    layers: int = 24,
    width: int = 2048,
    heads: int = 32,
    inner: int = 8192,
    vocabulary: int = 50272,
    positions: int = 2048,
    dropout: float = 0.1,
    sequence: int = 2048,
    batch: int = 2,
    train: bool = False,
    optimizer: str | None = None,
    device: str = "meta",
) -> dict[str, Any]:
    """Arguments of ``capture``; defaults are OPT-1.3B."""
    with torch.device(device):
        module = Opt(layers, width, heads, inner, vocabulary, positions, dropout)
        inputs = {"tokens": torch.randint(2, vocabulary, (batch, sequence))}

    stages = [
        {"name": "embeddings", "part": "", "modules": ["embed_tokens", "embed_positions"]},
        *({"name": f"layer {i}", "part": "", "modules": [f"layers.{i}"]} for i in range(layers)),
        {"name": "head", "part": "", "modules": ["final_layer_norm", "lm_head", "loss"]},
    ]
    return {
        "module": module,
        "example_inputs": inputs,
        "loss": constant_token_loss(vocabulary) if train else None,
        "train": train,
        "optimizer": optimizer,
        "metadata": {"stages": stages},
    }
