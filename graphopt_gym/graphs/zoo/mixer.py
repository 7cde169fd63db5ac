"""Networks of linear layers over patches: MLP-Mixer (Tolstikhin et al. 2021) and gMLP (Liu, Dai, So, Le 2021)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphopt_gym.graphs.zoo.layers import of_images


class Mlp(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.expand, self.project = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(F.gelu(self.expand(x)))


class MixerBlock(nn.Module):
    def __init__(self, length: int, width: int, token_inner: int, inner: int) -> None:
        super().__init__()
        self.norm1, self.tokens = nn.LayerNorm(width), Mlp(length, token_inner)
        self.norm2, self.channels = nn.LayerNorm(width), Mlp(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class GatedBlock(nn.Module):
    """Spatial gating (Liu et al., figure 1)."""

    def __init__(self, length: int, width: int, inner: int) -> None:
        super().__init__()
        self.norm, self.expand = nn.LayerNorm(width), nn.Linear(width, inner)
        self.gate_norm, self.gate = nn.LayerNorm(inner // 2), nn.Conv1d(length, length, 1)
        self.project = nn.Linear(inner // 2, width)

    def forward(self, x: Tensor) -> Tensor:
        kept, gate = F.gelu(self.expand(self.norm(x))).chunk(2, -1)
        return x + self.project(kept * self.gate(self.gate_norm(gate)))


class Mixer(nn.Module):
    """Logits of images [batch, 3, size, size]."""

    def __init__(self, blocks: list[nn.Module], width: int, patch: int, classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.blocks = nn.Sequential(*blocks)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(self.patches(images).flatten(2).transpose(1, 2))
        return self.head(self.norm(x).mean(1))


def build(
    *,
    gated: bool = False,
    layers: int = 8,
    width: int = 512,
    token_inner: int = 256,
    inner: int = 2048,
    patch: int = 16,
    classes: int = 1000,
    size: int = 224,
    batch: int = 1,
    device: str = "meta",
) -> dict[str, Any]:
    """Arguments of ``capture``; defaults are Mixer-S/16."""
    length = (size // patch) ** 2
    with torch.device(device):
        blocks: list[nn.Module] = [
            GatedBlock(length, width, inner) if gated else MixerBlock(length, width, token_inner, inner)
            for _ in range(layers)
        ]
        return of_images(Mixer(blocks, width, patch, classes), size, batch)
