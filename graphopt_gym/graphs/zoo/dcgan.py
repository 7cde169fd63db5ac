"""DCGAN (Radford, Metz, Chintala, ICLR 2016): generator, and discriminator on what it makes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


class Gan(nn.Module):
    """Images of noise [batch, noise, 1, 1], and their scores where there is a discriminator."""

    def __init__(self, noise: int, width: int, stages: int, discriminator: bool) -> None:
        super().__init__()
        widths = [width << stage for stage in range(stages)]
        layers: list[nn.Module] = [nn.ConvTranspose2d(noise, widths[-1], 4, bias=False)]
        for inputs, outputs in zip(widths[::-1], widths[-2::-1]):
            layers += [nn.BatchNorm2d(inputs), nn.ReLU(), nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False)]
        layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.ConvTranspose2d(width, 3, 4, 2, 1, bias=False), nn.Tanh()]
        self.generator = nn.Sequential(*layers)
        layers = [nn.Conv2d(3, width, 4, 2, 1, bias=False), nn.LeakyReLU(0.2)]
        for inputs, outputs in pairwise(widths):
            layers += [nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2)]
        layers += [nn.Conv2d(widths[-1], 1, 4, bias=False), nn.Sigmoid()]
        self.discriminator = nn.Sequential(*layers) if discriminator else None

    def forward(self, noise: Tensor) -> tuple[Tensor, ...]:
        images = self.generator(noise)
        return (images,) if self.discriminator is None else (images, self.discriminator(images))


def build(
    *,
    noise: int = 100,
    width: int = 64,
    stages: int = 4,
    discriminator: bool = False,
    batch: int = 16,
    device: str = "meta",
) -> dict[str, Any]:
    """Arguments of ``capture``; defaults make 64x64 images."""
    with torch.device(device):
        module = Gan(noise, width, stages, discriminator)
        return {"module": module, "example_inputs": {"noise": torch.randn(batch, noise, 1, 1)}, "metadata": {}}
