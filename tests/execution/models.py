"""Small models with what makes running on several devices hard: views, writes in place, tied parameters."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Tangled(nn.Module):
    """A training step with writes in place, slices of one tensor, a buffer built piece by piece, a tied embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.mix, self.norm = nn.Embedding(11, 8), nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.cell, self.out = nn.LSTMCell(8, 8), nn.Linear(8, 11)
        self.out.weight = self.embedding.weight

    def forward(self, tokens):
        x = torch.relu_(self.mix(self.embedding(tokens)))
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        first, second, third = x.chunk(3, dim=1)
        state = torch.zeros(len(tokens), 8), torch.zeros(len(tokens), 8)
        for step in range(2):
            state = self.cell(first[:, step], state)
        pieces = torch.zeros(3, len(tokens), 8)
        pieces[0].copy_(second[:, 0])
        before = pieces.sum()  # reads what is overwritten next
        pieces[1] += third[:, 1]
        pieces[2].add_(state[0])
        return self.out(pieces.sum(0) + state[1]) + before


def tangled() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(3)
    return Tangled(), torch.randint(0, 11, (4, 6))


def loss_of(output: torch.Tensor) -> torch.Tensor:
    return output.pow(2).mean()


def step() -> dict[str, object]:
    """For ``--model``."""
    net, tokens = tangled()
    return {"module": net, "example_inputs": (tokens,), "loss": loss_of, "target": "cpu", "name": "tangled"}


class Pieces(nn.Module):
    """Inference with several outputs, views whose strides matter, an input that is written, a mask of one type only."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.conv = nn.Linear(12, 36), nn.Conv2d(2, 4, 3, padding=1)
        self.register_buffer("scale", torch.tensor([0.5, 2.0]))

    def forward(self, x, image):
        x.mul_(2.0)
        heads = self.qkv(x).view(2, 5, 3, 3, 4).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)
        mixed = F.scaled_dot_product_attention(query * 1.5, key, value, is_causal=True)
        flat = mixed.transpose(1, 2).reshape(2, 5, 12)
        window = torch.as_strided(flat, (2, 3, 12), (60, 24, 1))
        mask = torch.zeros_like(flat, dtype=torch.bool)
        mask[:, 0] = True
        wide = self.scale[None, :, None, None].expand(2, 2, 6, 6)
        picture = self.conv(image * wide).to(memory_format=torch.channels_last)
        values, where = flat.masked_fill(mask, -1.0).topk(3, dim=-1)
        return {"window": window.sum(1), "top": (values, where), "picture": F.gelu(picture).flatten(2)[:, 1:3]}


def pieces() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(5)
    return Pieces().eval(), (torch.randn(2, 5, 12), torch.randn(2, 2, 6, 6))
