"""BERT (Devlin, Chang, Lee, Toutanova, NAACL 2019) in primitive ops, as the graphs of older frameworks spell it out.

Formulas are those of the authors' TensorFlow release: layer norm by moments and a batch normalisation, the tanh
approximation of GELU, token types by a product with one-hot vectors, positions by a slice of their table. A linear
layer is a product and a sum. Each attention head is apart: its slices of queries, keys and values are copies, its
softmax maximum, difference, exponential, sum and quotient.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class Linear(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs) * 0.02), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.mm(x, self.weight) + self.bias


class LayerNorm(nn.Module):
    """x * s + (beta - mean * s) with s = gamma / sqrt(variance + epsilon)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        variance = torch.square(x - mean).mean(-1, keepdim=True)
        scale = torch.rsqrt(variance + 1e-12) * self.gamma
        return x * scale + (self.beta - mean * scale)


def gelu(x: Tensor) -> Tensor:
    return x * (0.5 * (1.0 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3)))))


class Head(nn.Module):
    """One attention head's context [batch, length, head width] of its slices, each of that shape."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = query.clone(), key.transpose(1, 2).clone(), value.clone()
        scores = torch.bmm(query, key) * (1.0 / math.sqrt(query.shape[-1]))
        exponential = torch.exp(scores - scores.amax(-1, keepdim=True))
        return torch.bmm(exponential / exponential.sum(-1, keepdim=True), value)


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.query, self.key, self.value = Linear(width, width), Linear(width, width), Linear(width, width)
        self.heads = nn.ModuleList(Head() for _ in range(heads))
        self.output, self.output_norm = Linear(width, width), LayerNorm(width)
        self.expand, self.project, self.norm = Linear(width, inner), Linear(inner, width), LayerNorm(width)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        """x [batch * length, width]."""
        shape = (batch, len(x) // batch, len(self.heads), x.shape[1] // len(self.heads))
        parts = [linear(x).view(shape).unbind(2) for linear in (self.query, self.key, self.value)]
        contexts = [head(*slices) for head, *slices in zip(self.heads, *parts, strict=True)]
        context = torch.cat(contexts, -1).view(x.shape)
        x = self.output_norm(self.output(context) + x)
        return self.norm(self.project(gelu(self.expand(x))) + x)


class Bert(nn.Module):
    """Pooled output [batch, width] of tokens [batch, length] and one-hot token types [batch * length, 2]."""

    def __init__(self, layers: int, width: int, heads: int, inner: int, vocabulary: int, positions: int) -> None:
        super().__init__()
        self.word = nn.Embedding(vocabulary, width)
        self.token_type = nn.Parameter(torch.randn(2, width) * 0.02)
        self.position = nn.Parameter(torch.randn(positions, width) * 0.02)
        self.norm = LayerNorm(width)
        self.layers = nn.ModuleList(Layer(width, heads, inner) for _ in range(layers))
        self.pooler = Linear(width, width)

    def forward(self, tokens: Tensor, types: Tensor) -> Tensor:
        batch, length = tokens.shape
        x = self.word(tokens) + torch.mm(types, self.token_type).view(batch, length, -1)
        x = self.norm(x + self.position[:length]).view(batch * length, -1)
        for layer in self.layers:
            x = layer(x, batch)
        return torch.tanh(self.pooler(x.view(batch, length, -1)[:, 0]))


def build(
    *,
    layers: int = 12,
    width: int = 768,
    heads: int = 12,
    inner: int = 3072,
    vocabulary: int = 30522,
    positions: int = 512,
    sequence: int = 128,
    batch: int = 1,
    device: str = "meta",
) -> dict[str, Any]:
    """Arguments of ``capture``; defaults are BERT-base."""
    with torch.device(device):
        module = Bert(layers, width, heads, inner, vocabulary, positions)
        inputs = {"tokens": torch.randint(0, vocabulary, (batch, sequence)), "types": torch.zeros(batch * sequence, 2)}
    return {"module": module, "example_inputs": inputs, "metadata": {}}
