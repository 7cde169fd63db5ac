"""WaveNet (van den Oord et al. 2016): dilated causal convolutions over raw audio, unconditioned.

Section 2: kernels of two samples; the dilation doubles from layer to layer and starts again after a cycle; gated
activations (2.3), residual and skip connections (2.4), a softmax over 256 mu-law levels (2.2).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CausalConv(nn.Module):
    """Each sample from itself and the one ``dilation`` before it."""

    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 2) * (2 * inputs) ** -0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(F.pad(x, (self.dilation, 0)), self.weight, self.bias, dilation=self.dilation)


class AddedConv(nn.Module):
    """A 1x1 convolution added to a running sum."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 1) * inputs**-0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, total: Tensor) -> Tensor:
        return total + F.conv1d(x, self.weight, self.bias)


class Layer(nn.Module):
    """Figure 4: the residual stream and the sum of skip connections, both one layer further."""

    def __init__(self, width: int, skip: int, dilation: int) -> None:
        super().__init__()
        self.conv = CausalConv(width, 2 * width, dilation)
        self.skip, self.residual = AddedConv(width, skip), AddedConv(width, width)

    def forward(self, x: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        signal, gate = self.conv(x).chunk(2, 1)
        signal = torch.tanh(signal) * torch.sigmoid(gate)
        return self.residual(signal, x), self.skip(signal, total)


class WaveNet(nn.Module):
    """Loss of predicting samples [batch, length] (mu-law levels), each from those before it.

    In evaluation mode the logits.
    """

    def __init__(self, stacks: int, layers: int, cycle: int, width: int, skip: int, levels: int) -> None:
        super().__init__()
        self.skip_width = skip
        self.embedding = nn.Embedding(levels, width)
        self.first = CausalConv(width, width, 1)
        self.stacks = nn.ModuleList(
            nn.ModuleList(Layer(width, skip, 1 << layer % cycle) for layer in range(layers)) for _ in range(stacks)
        )
        self.head_in, self.head_out = nn.Conv1d(skip, skip, 1), nn.Conv1d(skip, levels, 1)

    def forward(self, samples: Tensor) -> Tensor:
        # the first convolution of one-hot levels is a look-up
        x = self.first(self.embedding(samples[:, :-1]).transpose(1, 2))
        total = torch.zeros(x.shape[0], self.skip_width, x.shape[2], device=x.device)
        for stack in self.stacks:
            for layer in stack:  # type: ignore[attr-defined]
                x, total = layer(x, total)
        logits = self.head_out(F.relu(self.head_in(F.relu(total))))
        return F.cross_entropy(logits, samples[:, 1:]) if self.training else logits


def build(
    *,
    stacks: int = 2,
    layers: int = 18,
    cycle: int = 9,
    width: int = 128,
    skip: int = 256,
    levels: int = 256,
    length: int = 8192,
    batch: int = 8,
    optimizer: str | None = "adam",
    device: str = "meta",
) -> dict[str, Any]:
    """Arguments of ``capture``."""
    with torch.device(device):
        module = WaveNet(stacks, layers, cycle, width, skip, levels)
        inputs = {"samples": torch.randint(0, levels, (batch, length + 1))}
    stages = [
        {"name": "input", "part": "", "modules": ["embedding", "first"]},
        *({"name": f"stack {i}", "part": "", "modules": [f"stacks.{i}"]} for i in range(stacks)),
        {"name": "head", "part": "", "modules": ["head_in", "head_out", "loss"]},
    ]
    return {"module": module, "example_inputs": inputs, "optimizer": optimizer, "metadata": {"stages": stages}}
