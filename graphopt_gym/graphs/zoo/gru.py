"""A language model of gated recurrent units (Cho et al., EMNLP 2014), its cells unrolled in time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GruCell(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.from_input, self.from_hidden = nn.Linear(inputs, 3 * width), nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        reset, update, new = self.from_input(x).chunk(3, 1)
        old_reset, old_update, old_new = self.from_hidden(hidden).chunk(3, 1)
        update = torch.sigmoid(update + old_update)
        new = torch.tanh(new + torch.sigmoid(reset + old_reset) * old_new)
        return new + update * (hidden - new)


class GruLm(nn.Module):
    """Logits of tokens [steps, batch]; with ``every`` False those of the last step only."""

    def __init__(self, layers: int, width: int, vocabulary: int, every: bool) -> None:
        super().__init__()
        self.width, self.every = width, every
        self.embedding = nn.Embedding(vocabulary, width)
        self.cells = nn.ModuleList(GruCell(width, width) for _ in range(layers))
        self.projection = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        states = [torch.zeros(tokens.shape[1], self.width, device=tokens.device)] * len(self.cells)
        outputs = []
        for x in self.embedding(tokens).unbind(0):
            for layer, cell in enumerate(self.cells):
                x = states[layer] = cell(x, states[layer])
            outputs.append(x)
        return F.log_softmax(self.projection(torch.cat(outputs) if self.every else x), -1)


def build(
    *,
    layers: int = 1,
    width: int = 512,
    vocabulary: int = 10_000,
    steps: int = 10,
    every: bool = True,
    batch: int = 8,
    device: str = "meta",
) -> dict[str, Any]:
    """Arguments of ``capture``."""
    with torch.device(device):
        module = GruLm(layers, width, vocabulary, every)
        inputs = {"tokens": torch.randint(0, vocabulary, (steps, batch))}
    return {"module": module, "example_inputs": inputs, "metadata": {}}
