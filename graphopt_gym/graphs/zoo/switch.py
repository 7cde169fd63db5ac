"""Switch Transformer (Fedus, Zoph, Shazeer 2021), encoder and decoder, operators as in Hugging Face's version.

Routing depends on values, a graph has fixed shapes: here the first expert of a sparse layer takes ``capacity``
tokens of each sequence and the others take none. That is what happens where all tokens of the input are equal, as
in the measurements this graph is for: attention over equal values keeps them equal, so one expert is chosen for
all, and it takes as many as its capacity. The auxiliary router losses (some thirty kernels on a few thousand
numbers) are left out.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphopt_gym.graphs.zoo.losses import constant_token_loss


class RmsNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        variance = x.pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(variance + 1e-6))


class FeedForward(nn.Module):
    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.wi, self.act = nn.Linear(width, inner, bias=False), nn.ReLU()
        self.dropout, self.wo = nn.Dropout(dropout), nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(self.dropout(self.act(self.wi(x))))


class Router(nn.Module):
    def __init__(self, width: int, experts: int, capacity: int) -> None:
        super().__init__()
        self.experts, self.capacity = experts, capacity
        self.classifier = nn.Linear(width, experts, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        probabilities = F.softmax(self.classifier(x), dim=-1)
        chosen = torch.argmax(probabilities, dim=-1, keepdim=True)
        one_hot = torch.zeros_like(probabilities, dtype=torch.long).scatter(-1, chosen, 1)
        one_hot = one_hot * (torch.cumsum(one_hot, dim=-2) <= self.capacity)
        return one_hot, torch.max(probabilities, dim=-1).values.unsqueeze(-1)


class SparseFeedForward(nn.Module):
    def __init__(self, width: int, inner: int, experts: int, capacity: int, dropout: float) -> None:
        super().__init__()
        self.router = Router(width, experts, capacity)
        self.experts = nn.ModuleList(FeedForward(width, inner, dropout) for _ in range(experts))

    def forward(self, x: Tensor) -> Tensor:
        mask, probability = self.router(x)
        batch, length, width = x.shape
        taken = min(self.router.capacity, length)
        # finding an expert's tokens is a kernel over the mask, and so are gathering them and putting them back
        order = torch.argsort(mask[:, :, 0], dim=1, descending=True)[:, :taken]
        index = order.unsqueeze(-1).expand(batch, taken, width)
        chosen = torch.gather(x, 1, index).view(batch * taken, width)
        result = self.experts[0](chosen).view(batch, taken, width)
        return probability * x.clone().scatter(1, index, result)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, head_width: int, dropout: float, bidirectional: bool | None) -> None:
        """``bidirectional`` None: no relative position bias of its own."""
        super().__init__()
        self.heads, self.head_width, self.dropout, self.bidirectional = heads, head_width, dropout, bidirectional
        inner = heads * head_width
        self.q, self.k = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.v, self.o = nn.Linear(width, inner, bias=False), nn.Linear(inner, width, bias=False)
        if bidirectional is not None:
            self.relative_attention_bias = nn.Embedding(32, heads)

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1, self.heads, self.head_width).transpose(1, 2)

    def bias(self, length: int, keys: int, like: Tensor) -> Tensor:
        if self.bidirectional is None:
            return torch.zeros(1, self.heads, length, keys, device=like.device, dtype=like.dtype)
        steps = torch.arange(keys, device=like.device)[None, :] - torch.arange(length, device=like.device)[:, None]
        buckets, offset = 32, torch.zeros_like(steps)
        if self.bidirectional:
            buckets //= 2
            offset = offset + (steps > 0).to(torch.long) * buckets
            steps = torch.abs(steps)
        else:
            steps = -torch.min(steps, torch.zeros_like(steps))
        exact = buckets // 2
        large = exact + (torch.log(steps.float() / exact) / math.log(128 / exact) * (buckets - exact)).to(torch.long)
        large = torch.min(large, torch.full_like(large, buckets - 1))
        bucket = offset + torch.where(steps < exact, steps, large)
        return self.relative_attention_bias(bucket).permute(2, 0, 1).unsqueeze(0)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        query, key, value = self.split(self.q(x)), self.split(self.k(memory)), self.split(self.v(memory))
        scores = torch.matmul(query, key.transpose(3, 2))
        if bias is None:
            bias = self.bias(x.shape[1], memory.shape[1], scores) + mask
        weights = F.dropout(F.softmax(scores + bias, dim=-1), p=self.dropout, training=self.training)
        context = torch.matmul(weights, value).transpose(1, 2).contiguous()
        return self.o(context.view(*x.shape[:2], -1)), bias


class Block(nn.Module):
    def __init__(self, decoder: bool, first: bool, sparse: bool, sizes: dict[str, Any]) -> None:
        super().__init__()
        width, dropout = sizes["width"], sizes["dropout"]
        attention = (width, sizes["heads"], sizes["head_width"], dropout)
        self.self_norm = RmsNorm(width)
        self.self_attention = Attention(*attention, bidirectional=(not decoder) if first else None)
        self.decoder = decoder
        if decoder:
            self.cross_norm, self.cross_attention = RmsNorm(width), Attention(*attention, bidirectional=None)
        self.ff_norm = RmsNorm(width)
        self.ff: nn.Module = (
            SparseFeedForward(width, sizes["inner"], sizes["experts"], sizes["capacity"], dropout)
            if sparse
            else FeedForward(width, sizes["inner"], dropout)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        bias: Tensor | None,
        memory: Tensor | None = None,
        cross_mask: Tensor | None = None,
        cross_bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        normed = self.self_norm(x)
        y, bias = self.self_attention(normed, normed, mask, bias)
        x = x + self.dropout(y)
        if self.decoder:
            assert memory is not None
            assert cross_mask is not None
            y, cross_bias = self.cross_attention(self.cross_norm(x), memory, cross_mask, cross_bias)
            x = x + self.dropout(y)
        return x + self.dropout(self.ff(self.ff_norm(x))), bias, cross_bias


class Stack(nn.Module):
    def __init__(self, decoder: bool, layers: int, sparse_step: int, sizes: dict[str, Any]) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            Block(decoder, first=i == 0, sparse=i % sparse_step == 1, sizes=sizes) for i in range(layers)
        )
        self.final_norm, self.dropout = RmsNorm(sizes["width"]), nn.Dropout(sizes["dropout"])

    def forward(
        self, x: Tensor, mask: Tensor, memory: Tensor | None = None, cross_mask: Tensor | None = None
    ) -> Tensor:
        bias = cross_bias = None
        x = self.dropout(x)
        for block in self.block:
            x, bias, cross_bias = block(x, mask, bias, memory, cross_mask, cross_bias)
        return self.dropout(self.final_norm(x))


class Switch(nn.Module):
    def __init__(self, layers: int, sparse_step: int, vocabulary: int, **sizes: Any) -> None:
        super().__init__()
        self.width = sizes["width"]
        self.shared = nn.Embedding(vocabulary, self.width)
        self.encoder = Stack(False, layers, sparse_step, sizes)
        self.decoder = Stack(True, layers, sparse_step, sizes)
        self.lm_head = nn.Linear(self.width, vocabulary, bias=False)
        self.lm_head.weight = self.shared.weight

    def forward(self, tokens: Tensor, decoder_tokens: Tensor, given: Tensor) -> Tensor:
        x, lowest = self.shared(tokens), torch.finfo(torch.float32).min
        mask = (1.0 - given[:, None, None, :].to(x.dtype)) * lowest
        memory = self.encoder(x, mask)
        length = decoder_tokens.shape[1]
        steps = torch.arange(length, device=x.device)
        causal = (steps[None, None, :].repeat(tokens.shape[0], length, 1) <= steps[None, :, None]).to(x.dtype)
        causal = causal[:, None] * torch.ones(decoder_tokens.shape, device=x.device)[:, None, None, :]
        cross_mask = (1.0 - given[:, None, None, :].to(x.dtype)) * lowest
        y = self.decoder(self.shared(decoder_tokens), (1.0 - causal) * lowest, memory, cross_mask)
        return self.lm_head(y * self.width**-0.5)


def build(
    *,
    layers: int = 24,
    width: int = 1024,
    heads: int = 32,
    head_width: int = 128,
    inner: int = 16384,
    experts: int = 4,
    capacity: int = 64,
    sparse_step: int = 2,
    vocabulary: int = 32128,
    dropout: float = 0.1,
    sequence: int = 512,
    batch: int = 1,
    train: bool = False,
    optimizer: str | None = None,
    device: str = "meta",
) -> dict[str, Any]:
    """Arguments of ``capture``: ``layers`` in the encoder and as many in the decoder."""
    sizes = {"width": width, "heads": heads, "head_width": head_width, "inner": inner}
    with torch.device(device):
        module = Switch(layers, sparse_step, vocabulary, experts=experts, capacity=capacity, dropout=dropout, **sizes)
        shape = (batch, sequence)
        inputs = {
            "tokens": torch.randint(2, vocabulary, shape),
            "decoder_tokens": torch.randint(2, vocabulary, shape),
            "given": torch.ones(shape, dtype=torch.long),
        }

    parts = [(part, i) for part in ("encoder", "decoder") for i in range(layers)]
    stages = [
        {"name": "embedding", "part": "encoder", "modules": ["shared"]},
        *({"name": f"{part} {i}", "part": part, "modules": [f"{part}.block.{i}"]} for part, i in parts),
        {"name": "head", "part": "decoder", "modules": ["encoder", "decoder", "lm_head", "loss"]},
    ]
    return {
        "module": module,
        "example_inputs": inputs,
        "loss": constant_token_loss(vocabulary) if train else None,
        "train": train,
        "optimizer": optimizer,
        "metadata": {"stages": stages},
    }
