"""U-Net (Ronneberger, Fischer, Brox, MICCAI 2015), with padded convolutions and batch norm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graphopt_gym.graphs.zoo.layers import ConvNorm, of_images


class Unet(nn.Module):
    """Logits a pixel [batch, classes, size, size] of images [batch, 3, size, size]."""

    def __init__(self, levels: int, width: int, classes: int) -> None:
        super().__init__()
        widths = [width << level for level in range(levels)]
        self.down = nn.ModuleList(
            nn.Sequential(ConvNorm(inputs, outputs), ConvNorm(outputs, outputs))
            for inputs, outputs in zip([3, *widths], widths)
        )
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, 2) for w in widths[-2::-1])
        self.join = nn.ModuleList(nn.Sequential(ConvNorm(2 * w, w), ConvNorm(w, w)) for w in widths[-2::-1])
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        kept = []
        x = images
        for level, block in enumerate(self.down):
            x = block(self.pool(x) if level else x)
            kept.append(x)
        kept.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([kept.pop(), up(x)], 1))
        return self.head(x)


def build(
    *, levels: int = 5, width: int = 64, classes: int = 2, size: int = 256, batch: int = 1, device: str = "meta"
) -> dict[str, Any]:
    """Arguments of ``capture``."""
    with torch.device(device):
        return of_images(Unet(levels, width, classes), size, batch)
