"""MobileNetV2 (Sandler et al., CVPR 2018): inverted residuals with linear bottlenecks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graphopt_gym.graphs.zoo.layers import ConvNorm, Pooled, of_images

# table 2: expansion, channels, blocks, stride of the first
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def scaled(channels: int, width: float, divisor: int = 8) -> int:
    """Channels at a width multiplier: a multiple of the divisor, not less than 90 % of what is asked."""
    wanted = channels * width
    rounded = max(divisor, int(wanted + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * wanted else rounded


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        expand = [ConvNorm(inputs, inner, 1, 1, "relu6")] if expansion > 1 else []
        self.layers = nn.Sequential(
            *expand, ConvNorm(inner, inner, 3, stride, "relu6", groups=inner), ConvNorm(inner, outputs, 1, 1, None)
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


def features(width: float) -> tuple[list[nn.Module], int]:
    """The layers before the last convolution, and their channels."""
    inputs = scaled(32, width)
    layers: list[nn.Module] = [ConvNorm(3, inputs, 3, 2, "relu6")]
    for expansion, channels, count, stride in STAGES:
        outputs = scaled(channels, width)
        for block in range(count):
            layers.append(InvertedResidual(inputs, outputs, stride if block == 0 else 1, expansion))
            inputs = outputs
    return layers, inputs


def build(
    *, width: float = 1.0, classes: int = 1000, size: int = 224, batch: int = 1, device: str = "meta"
) -> dict[str, Any]:
    """Arguments of ``capture``."""
    with torch.device(device):
        layers, inputs = features(width)
        last = max(1280, scaled(1280, width))
        module = nn.Sequential(*layers, ConvNorm(inputs, last, 1, 1, "relu6"), Pooled(last, classes))
        return of_images(module, size, batch)
