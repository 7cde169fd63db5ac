"""ShuffleNet V2 (Ma, Zhang, Zheng, Sun, ECCV 2018): channels split in two halves, and shuffled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graphopt_gym.graphs.zoo.layers import ConvNorm, Pooled, of_images

# table 5: channels of the three stages and the last convolution, by width
WIDTHS = {"0.5": (48, 96, 192, 1024), "1.0": (116, 232, 464, 1024), "1.5": (176, 352, 704, 1024)}
BLOCKS = (4, 8, 4)


class Unit(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        self.stride = stride
        given = inputs if stride > 1 else half
        self.main = nn.Sequential(
            ConvNorm(given, half, 1),
            ConvNorm(half, half, 3, stride, None, groups=half),
            ConvNorm(half, half, 1),
        )
        if stride > 1:
            self.beside = nn.Sequential(ConvNorm(given, given, 3, stride, None, groups=given), ConvNorm(given, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            x = torch.cat([self.beside(x), self.main(x)], 1)
        else:
            kept, changed = x.chunk(2, 1)
            x = torch.cat([kept, self.main(changed)], 1)
        batch, channels, height, width = x.shape
        return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(x.shape)


def build(
    *, width: str = "1.0", classes: int = 1000, size: int = 224, batch: int = 1, device: str = "meta"
) -> dict[str, Any]:
    """Arguments of ``capture``."""
    with torch.device(device):
        *stages, last = WIDTHS[width]
        layers: list[nn.Module] = [ConvNorm(3, 24, 3, 2), nn.MaxPool2d(3, 2, 1)]
        inputs = 24
        for outputs, count in zip(stages, BLOCKS, strict=True):
            for block in range(count):
                layers.append(Unit(inputs, outputs, 1 if block else 2))
                inputs = outputs
        module = nn.Sequential(*layers, ConvNorm(inputs, last, 1), Pooled(last, classes))
        return of_images(module, size, batch)
