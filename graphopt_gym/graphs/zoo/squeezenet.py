"""SqueezeNet (Iandola et al. 2016), versions 1.0 and 1.1 of its release."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphopt_gym.graphs.zoo.layers import of_images


class Fire(nn.Module):
    def __init__(self, inputs: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeeze, 1)
        self.expand1, self.expand3 = nn.Conv2d(squeeze, expand, 1), nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1(x)), F.relu(self.expand3(x))], 1)


def build(
    *, version: str = "1.1", classes: int = 1000, size: int = 224, batch: int = 1, device: str = "meta"
) -> dict[str, Any]:
    """Arguments of ``capture``."""
    first, kernel, pools = {"1.0": (96, 7, (3, 7)), "1.1": (64, 3, (2, 4))}[version]
    with torch.device(device):
        layers: list[nn.Module] = [nn.Conv2d(3, first, kernel, 2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True)]
        inputs = first
        for index, squeeze in enumerate((16, 16, 32, 32, 48, 48, 64, 64)):
            if index in pools:
                layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
            layers.append(Fire(inputs, squeeze, 4 * squeeze))
            inputs = 8 * squeeze
        layers += [nn.Dropout(), nn.Conv2d(inputs, classes, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return of_images(nn.Sequential(*layers), size, batch)
