"""Layers that several convolutional families share, and what ``capture`` is given for a network of images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
}


class ConvNorm(nn.Sequential):
    """Convolution that keeps the size (but for its stride), batch norm, activation (None: no activation)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        activation: str | None = "relu",
        *,
        groups: int = 1,
        dilation: int = 1,
    ) -> None:
        pad = dilation * (kernel - 1) // 2
        layers: list[nn.Module] = [
            nn.Conv2d(inputs, outputs, kernel, stride, pad, groups=groups, dilation=dilation, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        if activation:
            layers.append(ACTIVATIONS[activation]())
        super().__init__(*layers)


class Pooled(nn.Module):
    """Global average pooling and a linear classifier."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


def of_images(module: nn.Module, size: int, batch: int, channels: int = 3) -> dict[str, Any]:
    """Arguments of ``capture``, to be called where the default device is the wanted one."""
    return {"module": module, "example_inputs": (torch.randn(batch, channels, size, size),), "metadata": {}}
