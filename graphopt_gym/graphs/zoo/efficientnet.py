"""EfficientNet (Tan and Le, ICML 2019): mobile inverted bottlenecks with squeeze and excitation, scaled together."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphopt_gym.graphs.zoo.layers import ConvNorm, Pooled, of_images
from graphopt_gym.graphs.zoo.mobilenet_v2 import scaled

# table 1: expansion, kernel, stride, channels, blocks
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True)))))


class MbConv(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        expand = [ConvNorm(inputs, inner, 1, 1, "silu")] if expansion > 1 else []
        self.layers = nn.Sequential(
            *expand,
            ConvNorm(inner, inner, kernel, stride, "silu", groups=inner),
            SqueezeExcite(inner, max(1, inputs // 4)),
            ConvNorm(inner, outputs, 1, 1, None),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


def build(
    *,
    width: float = 1.0,
    depth: float = 1.0,
    classes: int = 1000,
    size: int = 224,
    batch: int = 1,
    device: str = "meta",
) -> dict[str, Any]:
    """Arguments of ``capture``; defaults are EfficientNet-B0."""
    with torch.device(device):
        inputs = scaled(32, width)
        layers: list[nn.Module] = [ConvNorm(3, inputs, 3, 2, "silu")]
        for expansion, kernel, stride, channels, count in STAGES:
            outputs = scaled(channels, width)
            for block in range(math.ceil(count * depth)):
                layers.append(MbConv(inputs, outputs, kernel, stride if block == 0 else 1, expansion))
                inputs = outputs
        last = scaled(1280, width)
        module = nn.Sequential(*layers, ConvNorm(inputs, last, 1, 1, "silu"), Pooled(last, classes))
        return of_images(module, size, batch)
