"""A word-level LSTM language model (Zaremba et al. 2014; Jozefowicz et al. 2016), its cells unrolled in time.

Each cell is matrix products and element-wise operators, one call of a module a layer and time step, as in the
unrolled graphs of the device-placement papers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LstmWeights(nn.Module):
    """A cell's parameters: gates in the order input, forget, candidate, output."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        bound = width**-0.5
        self.weight_input = nn.Parameter(torch.empty(4 * width, inputs).uniform_(-bound, bound))
        self.weight_hidden = nn.Parameter(torch.empty(4 * width, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(4 * width))

    def step(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """The next hidden state and cell, each [batch, width]."""
        gates = F.linear(x, self.weight_input, self.bias) + F.linear(hidden, self.weight_hidden)
        enter, forget, candidate, leave = gates.chunk(4, 1)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(candidate)
        return torch.sigmoid(leave) * torch.tanh(cell), cell


class LstmCell(LstmWeights):
    """One layer at one step."""

    def forward(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        return self.step(x, hidden, cell)


class Rnnlm(nn.Module):
    """Loss of tokens [steps, batch] against labels [steps, batch]; without labels the logits."""

    def __init__(self, layers: int, width: int, vocabulary: int) -> None:
        super().__init__()
        self.width = width
        self.embedding = nn.Embedding(vocabulary, width)
        self.cells = nn.ModuleList(LstmCell(width, width) for _ in range(layers))
        self.projection = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor, labels: Tensor | None = None) -> Tensor:
        states = [
            (torch.zeros(tokens.shape[1], self.width, device=tokens.device),) * 2 for _ in self.cells
        ]  # hidden, cell
        outputs = []
        for x in self.embedding(tokens).unbind(0):
            for layer, cell in enumerate(self.cells):
                states[layer] = cell(x, *states[layer])
                x = states[layer][0]
            outputs.append(x)
        logits = self.projection(torch.cat(outputs))
        return logits if labels is None else F.cross_entropy(logits, labels.reshape(-1))


def build(
    *,
    layers: int = 2,
    width: int = 2048,
    vocabulary: int = 40000,
    steps: int = 60,
    batch: int = 64,
    optimizer: str | None = "adam",
    device: str = "meta",
) -> dict[str, Any]:
    """Arguments of ``capture``."""
    with torch.device(device):
        module = Rnnlm(layers, width, vocabulary)
        inputs = {
            "tokens": torch.randint(0, vocabulary, (steps, batch)),
            "labels": torch.randint(0, vocabulary, (steps, batch)),
        }
    stages = [
        {"name": "embedding", "part": "", "modules": ["embedding"]},
        *({"name": f"layer {i}", "part": "", "modules": [f"cells.{i}"]} for i in range(layers)),
        {"name": "head", "part": "", "modules": ["projection", "loss"]},
    ]
    return {"module": module, "example_inputs": inputs, "optimizer": optimizer, "metadata": {"stages": stages}}
