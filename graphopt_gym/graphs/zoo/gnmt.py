"""GNMT (Wu et al. 2016): LSTM encoder and decoder with attention, unrolled in time.

Sections 3 and 3.1-3.3: the first encoder layer is bidirectional; layers from the third on add their input to their
output; the bottom decoder layer's output asks the attention (one hidden layer), whose context goes to that layer at
the next step and to the layers above at this one. Each cell and each attention step is one call of a module.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphopt_gym.graphs.zoo.rnnlm import LstmWeights

FIRST_RESIDUAL = 2  # "residual connections start from the layer third from the bottom"


class Cell(LstmWeights):
    """One layer at one step: the inputs side by side, dropout, LSTM, and the first input added to the result."""

    def __init__(self, inputs: int, width: int, layer: int, dropout: float) -> None:
        super().__init__(inputs, width)
        self.residual, self.dropout = layer >= FIRST_RESIDUAL, dropout

    def forward(self, inputs: tuple[Tensor, ...], hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The layer's output [batch, width], and its next state."""
        x = F.dropout(inputs[0], self.dropout, self.training)
        x = torch.cat([x, *inputs[1:]], 1) if len(inputs) > 1 else x
        hidden, cell = self.step(x, hidden, cell)
        return hidden + inputs[0] if self.residual else hidden, hidden, cell


class Attention(nn.Module):
    """Attention with one hidden layer (Bahdanau et al. 2015), a step of the decoder over all encoder states."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(width, width).uniform_(-(width**-0.5), width**-0.5))
        self.score = nn.Parameter(torch.empty(width).uniform_(-(width**-0.5), width**-0.5))

    def forward(self, query: Tensor, keys: Tensor, memory: Tensor) -> Tensor:
        """Context [batch, width] for query [batch, width] over keys and memory [batch, source steps, width]."""
        hidden = torch.tanh(keys + F.linear(query, self.query)[:, None])
        weights = F.softmax(hidden @ self.score, dim=1)
        return torch.bmm(weights[:, None], memory)[:, 0]


class Gnmt(nn.Module):
    """Loss of source tokens [source steps, batch], target tokens and labels [target steps, batch].

    Without labels the logits.
    """

    def __init__(self, layers: int, width: int, vocabulary: int, dropout: float) -> None:
        super().__init__()
        self.width = width
        self.source_embedding, self.target_embedding = nn.Embedding(vocabulary, width), nn.Embedding(vocabulary, width)
        self.backward_cell = Cell(width, width, 0, dropout)
        self.encoder = nn.ModuleList(
            Cell(2 * width if layer == 1 else width, width, layer, dropout) for layer in range(layers)
        )
        self.keys = nn.Linear(width, width, bias=False)
        self.attention = Attention(width)
        self.decoder = nn.ModuleList(Cell(2 * width, width, layer, dropout) for layer in range(layers))
        self.projection = nn.Linear(width, vocabulary)

    def encode(self, tokens: Tensor, start: Tensor) -> Tensor:
        """Encoder states [batch, source steps, width]."""
        words = self.source_embedding(tokens).unbind(0)
        from_the_end = []
        state = (start, start)
        for word in reversed(words):
            output, *state = self.backward_cell((word,), *state)
            from_the_end.append(output)
        states = [(start, start)] * len(self.encoder)
        outputs = []
        for word, other in zip(words, reversed(from_the_end), strict=True):
            x: tuple[Tensor, ...] = (word,)
            for layer, cell in enumerate(self.encoder):
                output, *states[layer] = cell(x, *states[layer])
                x = (output, other) if layer == 0 else (output,)
            outputs.append(x[0])
        return torch.stack(outputs, 1)

    def forward(self, source: Tensor, target: Tensor, labels: Tensor | None = None) -> Tensor:
        start = torch.zeros(source.shape[1], self.width, device=source.device)
        memory = self.encode(source, start)
        keys = self.keys(memory)
        states, context = [(start, start)] * len(self.decoder), start
        outputs = []
        for x in self.target_embedding(target).unbind(0):
            for layer, cell in enumerate(self.decoder):
                x, *states[layer] = cell((x, context), *states[layer])
                if layer == 0:
                    context = self.attention(x, keys, memory)
            outputs.append(x)
        logits = self.projection(torch.cat(outputs))
        return logits if labels is None else F.cross_entropy(logits, labels.reshape(-1))


def build(
    *,
    layers: int = 2,
    width: int = 1024,
    vocabulary: int = 32000,
    source_steps: int = 60,
    target_steps: int = 60,
    batch: int = 128,
    dropout: float = 0.2,
    optimizer: str | None = "adam",
    device: str = "meta",
) -> dict[str, Any]:
    """Arguments of ``capture``."""
    with torch.device(device):
        module = Gnmt(layers, width, vocabulary, dropout)
        inputs = {
            "source": torch.randint(0, vocabulary, (source_steps, batch)),
            "target": torch.randint(0, vocabulary, (target_steps, batch)),
            "labels": torch.randint(0, vocabulary, (target_steps, batch)),
        }
    beside = {("encoder", 0): ["backward_cell"], ("decoder", 0): ["keys", "attention"]}
    stages: list[dict[str, Any]] = []
    for part, embedding in (("encoder", "source_embedding"), ("decoder", "target_embedding")):
        stages.append({"name": f"{part} embedding", "part": part, "modules": [embedding]})
        for layer in range(layers):
            modules = [f"{part}.{layer}", *beside.get((part, layer), [])]
            stages.append({"name": f"{part} layer {layer}", "part": part, "modules": modules})
    stages.append({"name": "head", "part": "decoder", "modules": ["projection", "loss"]})
    return {"module": module, "example_inputs": inputs, "optimizer": optimizer, "metadata": {"stages": stages}}
