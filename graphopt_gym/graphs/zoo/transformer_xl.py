"""Transformer-XL (Dai et al., ACL 2019): relative attention over a cached memory of the previous segment."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RelativeAttention(nn.Module):
    """Multi-head attention of the current segment over memory and itself, with relative positions (section 3.3)."""

    def __init__(self, width: int, heads: int, head_width: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width
        inner = heads * head_width
        self.qkv = nn.Linear(width, 3 * inner, bias=False)
        self.relative = nn.Linear(width, inner, bias=False)
        self.output = nn.Linear(inner, width, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(heads, head_width))
        self.position_bias = nn.Parameter(torch.zeros(heads, head_width))
        self.attention_dropout, self.dropout = nn.Dropout(dropout), nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, positions: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        length, batch, _ = x.shape
        both = torch.cat([memory, x], 0)
        keys = both.shape[0]
        query, key, value = self.qkv(both).chunk(3, -1)
        shape = (batch, self.heads, self.head_width)
        query = query[-length:].reshape(length, *shape)
        key, value = key.reshape(keys, *shape), value.reshape(keys, *shape)
        relative = self.relative(positions).view(keys, self.heads, self.head_width)
        # [batch, heads, length, keys]
        content = torch.matmul((query + self.content_bias).permute(1, 2, 0, 3), key.permute(1, 2, 3, 0))
        place = torch.matmul((query + self.position_bias).permute(1, 2, 0, 3), relative.permute(1, 2, 0))
        scores = (content + self.shift(place)) * self.head_width**-0.5
        weights = self.attention_dropout(F.softmax(scores.masked_fill(mask, float("-inf")), dim=-1))
        context = torch.matmul(weights, value.permute(1, 2, 0, 3)).permute(2, 0, 1, 3)
        result = self.dropout(self.output(context.reshape(length, batch, -1)))
        return self.norm(x + result)

    @staticmethod
    def shift(x: Tensor) -> Tensor:
        """Row i moved left by length - 1 - i, so that a column is a key and not a distance (appendix B)."""
        batch, heads, length, keys = x.shape
        padded = torch.cat([x.new_zeros(batch, heads, length, 1), x], -1)
        return padded.view(batch, heads, keys + 1, length)[:, :, 1:].reshape(x.shape)


class FeedForward(nn.Module):
    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.dense_in, self.dense_out = nn.Linear(width, inner), nn.Linear(inner, width)
        self.dropout_in, self.dropout_out = nn.Dropout(dropout), nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.dropout_in(F.relu(self.dense_in(x)))
        return self.norm(x + self.dropout_out(self.dense_out(y)))


class TransformerXl(nn.Module):
    """Loss of a segment of tokens [length, batch], given the memory of each layer [memory, batch, width].

    Without labels (None) the logits.
    """

    frequency: Tensor

    def __init__(
        self, layers: int, width: int, heads: int, head_width: int, inner: int, vocabulary: int, dropout: float
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.dropout = nn.Dropout(dropout)
        self.attention = nn.ModuleList(RelativeAttention(width, heads, head_width, dropout) for _ in range(layers))
        self.feed_forward = nn.ModuleList(FeedForward(width, inner, dropout) for _ in range(layers))
        self.head = nn.Linear(width, vocabulary)
        self.head.weight = self.embedding.weight
        self.register_buffer("frequency", 1 / (10000 ** (torch.arange(0.0, width, 2.0) / width)), persistent=False)
        self.scale = width**0.5

    def forward(self, tokens: Tensor, labels: Tensor | None, *memories: Tensor) -> Tensor:
        length, past = tokens.shape[0], memories[0].shape[0]
        distance = torch.arange(past + length - 1, -1, -1, device=tokens.device, dtype=self.frequency.dtype)
        angle = distance[:, None] * self.frequency[None, :]
        positions = self.dropout(torch.cat([angle.sin(), angle.cos()], -1))
        mask = torch.ones(length, past + length, device=tokens.device, dtype=torch.bool).triu(1 + past)
        x = self.dropout(self.embedding(tokens) * self.scale)
        for attention, feed_forward, memory in zip(self.attention, self.feed_forward, memories, strict=True):
            x = feed_forward(attention(x, positions, memory, mask))
        logits = self.head(self.dropout(x))
        if labels is None:
            return logits
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), labels.reshape(-1))


def build(
    *,
    layers: int = 2,
    width: int = 1024,
    heads: int = 16,
    head_width: int = 64,
    inner: int = 4096,
    vocabulary: int = 32000,
    length: int = 384,
    memory: int = 384,
    batch: int = 64,
    dropout: float = 0.2,
    train: bool = True,
    optimizer: str | None = "adam",
    device: str = "meta",
) -> dict[str, Any]:
    """Arguments of ``capture``."""
    with torch.device(device):
        module = TransformerXl(layers, width, heads, head_width, inner, vocabulary, dropout)
        tokens, labels = (torch.randint(0, vocabulary, (length, batch)) for _ in range(2))
        inputs = (tokens, labels if train else None, *(torch.randn(memory, batch, width) for _ in range(layers)))
    stages = [
        {"name": "embedding", "part": "", "modules": ["embedding"]},
        *(
            {"name": f"layer {i}", "part": "", "modules": [f"attention.{i}", f"feed_forward.{i}"]}
            for i in range(layers)
        ),
        {"name": "head", "part": "", "modules": ["head", "dropout", "loss"]},
    ]
    return {"module": module, "example_inputs": inputs, "optimizer": optimizer, "metadata": {"stages": stages}}
