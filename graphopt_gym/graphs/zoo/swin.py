"""Swin Transformer (Liu et al., ICCV 2021): attention in windows that shift from block to block, attention unfused."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphopt_gym.graphs.zoo.layers import of_images


class WindowAttention(nn.Module):
    index: Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        at = torch.arange(window * window)
        row, column = at // window, at % window
        down, right = row[:, None] - row[None] + window - 1, column[:, None] - column[None] + window - 1
        self.register_buffer("index", (down * (2 * window - 1) + right).flatten(), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x [windows, window * window, width]; mask [windows of an image, length, length]."""
        count, length, width = x.shape
        parts = self.qkv(x).view(count, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        scores = query @ key.transpose(-1, -2) * (width // self.heads) ** -0.5
        scores = scores + F.embedding(self.index, self.bias_table).view(length, length, self.heads).permute(2, 0, 1)
        if mask is not None:
            scores = scores.view(-1, len(mask), self.heads, length, length) + mask[None, :, None]
            scores = scores.view(count, self.heads, length, length)
        return self.out((F.softmax(scores, -1) @ value).transpose(1, 2).reshape(count, length, width))


class Block(nn.Module):
    mask: Tensor

    def __init__(self, width: int, heads: int, window: int, shift: int, side: int) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1, self.attention = nn.LayerNorm(width), WindowAttention(width, heads, window)
        self.norm2, self.expand = nn.LayerNorm(width), nn.Linear(width, 4 * width)
        self.project = nn.Linear(4 * width, width)
        windows = (side // window) ** 2
        if shift:
            self.register_buffer("mask", torch.zeros(windows, window**2, window**2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, side, _, width = x.shape
        w, n = self.window, side // self.window
        y = self.norm1(x)
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
        y = y.view(batch, n, w, n, w, width).transpose(2, 3).reshape(-1, w * w, width)
        y = self.attention(y, self.mask if self.shift else None)
        y = y.view(batch, n, n, w, w, width).transpose(2, 3).reshape(batch, side, side, width)
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        x = x + y
        return x + self.project(F.gelu(self.expand(self.norm2(x))))


class Merge(nn.Module):
    """Four neighbours side by side, to twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduce = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.reduce(self.norm(torch.cat(parts, -1)))


class Swin(nn.Module):
    """Logits of images [batch, 3, size, size]."""

    def __init__(
        self, blocks: tuple[int, ...], width: int, heads: tuple[int, ...], window: int, size: int, classes: int
    ) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, width, 4, 4), nn.LayerNorm(width)
        layers: list[nn.Module] = []
        side = size // 4
        for stage, count in enumerate(blocks):
            if stage:
                layers.append(Merge(width))
                width, side = 2 * width, side // 2
            for block in range(count):
                shift = window // 2 if block % 2 and side > window else 0
                layers.append(Block(width, heads[stage], window, shift, side))
        self.layers = nn.Sequential(*layers)
        self.last_norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.layers(self.norm(self.patches(images).permute(0, 2, 3, 1)))
        return self.head(self.last_norm(x).mean((1, 2)))


def build(
    *,
    blocks: tuple[int, ...] = (2, 2, 6, 2),
    width: int = 96,
    heads: tuple[int, ...] = (3, 6, 12, 24),
    window: int = 7,
    classes: int = 1000,
    size: int = 224,
    batch: int = 1,
    device: str = "meta",
) -> dict[str, Any]:
    """Arguments of ``capture``; defaults are Swin-T."""
    with torch.device(device):
        return of_images(Swin(tuple(blocks), width, tuple(heads), window, size, classes), size, batch)
