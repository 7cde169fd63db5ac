"""T5 (Raffel et al., JMLR 2020): encoder-decoder transformer with relative position biases, attention unfused."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RmsNorm(nn.Module):
    """Layer norm without mean and bias, as its separate kernels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.out = nn.Linear(inner, width, bias=False)

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor, memory: Tensor, bias: Tensor | None) -> Tensor:
        query, key, value = self.split(self.query(x)), self.split(self.key(memory)), self.split(self.value(memory))
        scores = query @ key.transpose(-1, -2)
        weights = F.softmax(scores if bias is None else scores + bias, -1)
        return self.out((weights @ value).transpose(1, 2).reshape(*x.shape[:2], -1))


class FeedForward(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.expand, self.project = nn.Linear(width, inner, bias=False), nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(F.relu(self.expand(x)))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, head_width: int, inner: int, cross: bool) -> None:
        super().__init__()
        self.self_norm, self.self_attention = RmsNorm(width), Attention(width, heads, head_width)
        self.cross = cross
        if cross:
            self.cross_norm, self.cross_attention = RmsNorm(width), Attention(width, heads, head_width)
        self.norm, self.feed_forward = RmsNorm(width), FeedForward(width, inner)

    def forward(self, x: Tensor, bias: Tensor, memory: Tensor | None = None) -> Tensor:
        y = self.self_norm(x)
        x = x + self.self_attention(y, y, bias)
        if memory is not None:
            x = x + self.cross_attention(self.cross_norm(x), memory, None)
        return x + self.feed_forward(self.norm(x))


class T5(nn.Module):
    """Logits of target tokens [batch, length], given source tokens [batch, length].

    The bias of each bucket of distances is looked up, one table a side (section 2.1); the decoder's mask is added.
    """

    source_bucket: Tensor
    target_bucket: Tensor

    def __init__(
        self,
        layers: int,
        width: int,
        heads: int,
        head_width: int,
        inner: int,
        vocabulary: int,
        source: int,
        target: int,
        buckets: int,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.source_bias, self.target_bias = nn.Embedding(buckets, heads), nn.Embedding(buckets, heads)
        for name, length in (("source_bucket", source), ("target_bucket", target)):
            distance = torch.arange(length)[None] - torch.arange(length)[:, None]
            self.register_buffer(name, distance.abs().clamp(max=buckets - 1), persistent=False)
        sizes = (width, heads, head_width, inner)
        self.encoder = nn.ModuleList(Layer(*sizes, cross=False) for _ in range(layers))
        self.encoder_norm = RmsNorm(width)
        self.decoder = nn.ModuleList(Layer(*sizes, cross=True) for _ in range(layers))
        self.decoder_norm, self.head = RmsNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        x = self.embedding(source)
        bias = self.source_bias(self.source_bucket).permute(2, 0, 1)
        for layer in self.encoder:
            x = layer(x, bias)
        memory = self.encoder_norm(x)
        x = self.embedding(target)
        length = target.shape[1]
        mask = torch.full((length, length), torch.finfo(x.dtype).min, dtype=x.dtype, device=x.device).triu(1)
        bias = self.target_bias(self.target_bucket).permute(2, 0, 1) + mask
        for layer in self.decoder:
            x = layer(x, bias, memory)
        return self.head(self.decoder_norm(x))


def build(
    *,
    layers: int = 6,
    width: int = 512,
    heads: int = 8,
    head_width: int = 64,
    inner: int = 2048,
    vocabulary: int = 8192,
    source: int = 64,
    target: int = 64,
    buckets: int = 32,
    batch: int = 1,
    device: str = "meta",
) -> dict[str, Any]:
    """Arguments of ``capture``; layers and widths are T5-small's."""
    with torch.device(device):
        module = T5(layers, width, heads, head_width, inner, vocabulary, source, target, buckets)
        inputs = {
            "source": torch.randint(0, vocabulary, (batch, source)),
            "target": torch.randint(0, vocabulary, (batch, target)),
        }
    return {"module": module, "example_inputs": inputs, "metadata": {}}
