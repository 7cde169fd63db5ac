"""A sequence tagger: bidirectional LSTM layers (Graves and Schmidhuber 2005; Huang, Xu, Yu 2015), unrolled in time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graphopt_gym.graphs.zoo.rnnlm import LstmCell


class Tagger(nn.Module):
    """Tag scores [steps, batch, tags] of tokens [steps, batch]."""

    def __init__(self, layers: int, width: int, vocabulary: int, tags: int) -> None:
        super().__init__()
        self.width = width
        self.embedding = nn.Embedding(vocabulary, width)
        self.forward_cells = nn.ModuleList(LstmCell(2 * width if i else width, width) for i in range(layers))
        self.backward_cells = nn.ModuleList(LstmCell(2 * width if i else width, width) for i in range(layers))
        self.scores = nn.Linear(2 * width, tags)

    def run(self, cell: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
        hidden = memory = torch.zeros(inputs[0].shape[0], self.width, device=inputs[0].device)
        outputs = []
        for x in inputs:
            hidden, memory = cell(x, hidden, memory)
            outputs.append(hidden)
        return outputs

    def forward(self, tokens: Tensor) -> Tensor:
        inputs = list(self.embedding(tokens).unbind(0))
        for along, against in zip(self.forward_cells, self.backward_cells, strict=True):
            there, back = self.run(along, inputs), self.run(against, inputs[::-1])[::-1]
            inputs = [torch.cat(pair, 1) for pair in zip(there, back)]
        return self.scores(torch.stack(inputs))


def build(
    *,
    layers: int = 1,
    width: int = 300,
    vocabulary: int = 20_000,
    tags: int = 45,
    steps: int = 10,
    batch: int = 8,
    device: str = "meta",
) -> dict[str, Any]:
    """Arguments of ``capture``."""
    with torch.device(device):
        module = Tagger(layers, width, vocabulary, tags)
        inputs = {"tokens": torch.randint(0, vocabulary, (steps, batch))}
    return {"module": module, "example_inputs": inputs, "metadata": {}}
