"""DeepLabv3 (Chen, Papandreou, Schroff, Adam 2017): a ResNet of basic blocks, its end dilated, and pyramid pooling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphopt_gym.graphs.zoo.layers import ConvNorm, of_images


class Basic(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ConvNorm(inputs, outputs, 3, stride, dilation=dilation),
            ConvNorm(outputs, outputs, 3, 1, None, dilation=dilation),
        )
        same = stride == 1 and inputs == outputs
        self.beside = nn.Identity() if same else ConvNorm(inputs, outputs, 1, stride, None)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layers(x) + self.beside(x))


class Pyramid(nn.Module):
    """Atrous spatial pyramid pooling with the image's mean (section 3.3)."""

    def __init__(self, inputs: int, width: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        self.branches = nn.ModuleList([ConvNorm(inputs, width, 1)])
        self.branches.extend(ConvNorm(inputs, width, 3, dilation=rate) for rate in rates)
        self.image, self.project = ConvNorm(inputs, width, 1), ConvNorm((2 + len(rates)) * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        image = self.image(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        return self.project(torch.cat([*(branch(x) for branch in self.branches), image], 1))


class DeepLab(nn.Module):
    """Logits a pixel of images [batch, 3, size, size]."""

    def __init__(self, blocks: tuple[int, ...], width: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [ConvNorm(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
        inputs = 64
        for stage, count in enumerate(blocks):
            for block in range(count):
                stride = 2 if stage in (1, 2) and block == 0 else 1
                layers.append(Basic(inputs, 64 << stage, stride, 2 if stage == 3 else 1))
                inputs = 64 << stage
        self.backbone = nn.Sequential(*layers)
        self.pyramid = Pyramid(inputs, width, (6, 12, 18))
        self.head = nn.Sequential(ConvNorm(width, width), nn.Conv2d(width, classes, 1))

    def forward(self, images: Tensor) -> Tensor:
        x = self.head(self.pyramid(self.backbone(images)))
        return F.interpolate(x, scale_factor=16.0, mode="nearest")


def build(
    *,
    blocks: tuple[int, ...] = (2, 2, 2, 2),
    width: int = 256,
    classes: int = 21,
    size: int = 256,
    batch: int = 1,
    device: str = "meta",
) -> dict[str, Any]:
    """Arguments of ``capture``."""
    with torch.device(device):
        return of_images(DeepLab(tuple(blocks), width, classes), size, batch)
