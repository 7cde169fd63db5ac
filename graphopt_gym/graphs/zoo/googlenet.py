"""GoogLeNet (Szegedy et al., CVPR 2015) without its auxiliary classifiers, with batch norm as in later versions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graphopt_gym.graphs.zoo.layers import ConvNorm, Pooled, of_images

# table 1: 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection; None: a pooling
MODULES: tuple[tuple[int, ...] | None, ...] = (
    (64, 96, 128, 16, 32, 32),
    (128, 128, 192, 32, 96, 64),
    None,
    (192, 96, 208, 16, 48, 64),
    (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128),
    None,
    (256, 160, 320, 32, 128, 128),
    (384, 192, 384, 48, 128, 128),
)


class Inception(nn.Module):
    def __init__(self, inputs: int, one: int, reduce3: int, three: int, reduce5: int, five: int, pool: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [
                ConvNorm(inputs, one, 1),
                nn.Sequential(ConvNorm(inputs, reduce3, 1), ConvNorm(reduce3, three, 3)),
                nn.Sequential(ConvNorm(inputs, reduce5, 1), ConvNorm(reduce5, five, 5)),
                nn.Sequential(nn.MaxPool2d(3, 1, 1), ConvNorm(inputs, pool, 1)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def build(*, classes: int = 1000, size: int = 224, batch: int = 1, device: str = "meta") -> dict[str, Any]:
    """Arguments of ``capture``."""
    with torch.device(device):
        layers: list[nn.Module] = [ConvNorm(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1), ConvNorm(64, 64, 1)]
        layers += [ConvNorm(64, 192, 3), nn.MaxPool2d(3, 2, 1)]
        inputs = 192
        for sizes in MODULES:
            if sizes is None:
                layers.append(nn.MaxPool2d(3, 2, 1))
                continue
            layers.append(Inception(inputs, *sizes))
            inputs = sizes[0] + sizes[2] + sizes[4] + sizes[5]
        return of_images(nn.Sequential(*layers, Pooled(inputs, classes)), size, batch)
