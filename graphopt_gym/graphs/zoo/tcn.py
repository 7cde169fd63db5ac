"""Temporal convolutional network (Bai, Kolter, Koltun 2018): dilated causal convolutions in residual blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Causal(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.pad = (kernel - 1) * dilation
        self.conv = nn.Conv1d(inputs, outputs, kernel, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(F.pad(x, (self.pad, 0))))


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Causal(inputs, outputs, kernel, dilation), Causal(outputs, outputs, kernel, dilation)
        )
        self.beside = nn.Identity() if inputs == outputs else nn.Conv1d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layers(x) + self.beside(x))


class Tcn(nn.Module):
    """Outputs a step [batch, length, outputs] of sequences [batch, inputs, length]."""

    def __init__(self, layers: int, inputs: int, width: int, kernel: int, outputs: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(width if i else inputs, width, kernel, 1 << i) for i in range(layers)))
        self.head = nn.Linear(width, outputs)

    def forward(self, sequence: Tensor) -> Tensor:
        return self.head(self.blocks(sequence).transpose(1, 2))


def build(
    *,
    layers: int = 8,
    inputs: int = 88,
    width: int = 150,
    kernel: int = 5,
    outputs: int = 88,
    length: int = 256,
    batch: int = 8,
    device: str = "meta",
) -> dict[str, Any]:
    """Arguments of ``capture``; inputs and outputs are those of its polyphonic music."""
    with torch.device(device):
        module = Tcn(layers, inputs, width, kernel, outputs)
        return {"module": module, "example_inputs": {"sequence": torch.randn(batch, inputs, length)}, "metadata": {}}
