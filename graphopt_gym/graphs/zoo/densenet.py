"""DenseNet-BC (Huang, Liu, van der Maaten, Weinberger, CVPR 2017): each layer reads all before it in its block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphopt_gym.graphs.zoo.layers import Pooled, of_images


class Layer(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, *features: Tensor) -> Tensor:
        x = torch.cat(features, 1) if len(features) > 1 else features[0]
        return self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))


class Block(nn.Module):
    def __init__(self, inputs: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(inputs + growth * index, growth) for index in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(*features))
        return torch.cat(features, 1)


def build(
    *,
    blocks: tuple[int, ...] = (6, 12, 24, 16),
    growth: int = 32,
    first: int = 64,
    large: bool = True,
    classes: int = 1000,
    size: int = 224,
    batch: int = 1,
    device: str = "meta",
) -> dict[str, Any]:
    """Arguments of ``capture``; defaults are DenseNet-121. ``large``: the first layers of the ImageNet networks."""
    with torch.device(device):
        layers: list[nn.Module] = [nn.Conv2d(3, first, 3, padding=1, bias=False)]
        if large:
            layers = [
                nn.Conv2d(3, first, 7, 2, 3, bias=False),
                nn.BatchNorm2d(first),
                nn.ReLU(),
                nn.MaxPool2d(3, 2, 1),
            ]
        channels = first
        for index, count in enumerate(blocks):
            if index:
                transition = nn.Conv2d(channels, channels // 2, 1, bias=False)
                layers.append(nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), transition, nn.AvgPool2d(2)))
                channels //= 2
            layers.append(Block(channels, growth, count))
            channels += growth * count
        module = nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU(), Pooled(channels, classes))
        return of_images(module, size, batch)
