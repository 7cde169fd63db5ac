"""VGG (Simonyan and Zisserman, ICLR 2015), with global average pooling in place of the first two linear layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from graphopt_gym.graphs.zoo.layers import ConvNorm, Pooled, of_images

# convolutions a stage, by depth (table 1: A, B, D, E)
STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
WIDTHS = (64, 128, 256, 512, 512)


def features(depth: int, norm: bool) -> list[nn.Module]:
    """The convolutional layers, each stage ending in a pooling."""
    layers: list[nn.Module] = []
    inputs = 3
    for count, width in zip(STAGES[depth], WIDTHS, strict=True):
        for _ in range(count):
            layers.append(
                ConvNorm(inputs, width) if norm else nn.Sequential(nn.Conv2d(inputs, width, 3, 1, 1), nn.ReLU())
            )
            inputs = width
        layers.append(nn.MaxPool2d(2))
    return layers


def build(
    *, depth: int = 16, norm: bool = False, classes: int = 1000, size: int = 224, batch: int = 1, device: str = "meta"
) -> dict[str, Any]:
    """Arguments of ``capture``."""
    with torch.device(device):
        module = nn.Sequential(*features(depth, norm), Pooled(WIDTHS[-1], classes))
        return of_images(module, size, batch)
