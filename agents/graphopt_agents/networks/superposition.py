"""Superposition: one set of dense layers serves unlike graphs, each through its own gates.

From GDP (recalled): the input of each dense layer is multiplied elementwise by a gate computed from the graph's
features, ``x' = g(c(x0) * x)``, where ``g`` is the dense layer and ``c`` a conditioning layer. Ours: ``x0`` is a
pooled description of graph and cluster (``GraphInput.graph_features``), and ``c(x0) = 2 sigmoid(W x0 + b)`` with W and
b zero at first, so that training starts from the network without gates.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SuperposedLinear(nn.Linear):
    """A dense layer g with gated input: ``y = g(c(x0) * x)``; without ``condition`` it is ``g(x)``."""

    def __init__(self, inputs: int, outputs: int, condition: int | None) -> None:
        super().__init__(inputs, outputs)
        self.conditioner: nn.Linear | None = None
        if condition is not None:
            self.conditioner = nn.Linear(condition, inputs)
            nn.init.zeros_(self.conditioner.weight)
            nn.init.zeros_(self.conditioner.bias)

    def gate(self, context: Tensor) -> Tensor:
        """c(x0): float32 [condition] -> [inputs], each in 0 to 2."""
        assert self.conditioner is not None
        return 2 * torch.sigmoid(self.conditioner(context))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """``x`` float32 [..., inputs], ``context`` float32 [condition] -> [..., outputs]."""
        if self.conditioner is not None:
            assert context is not None
            # g(gate * x) = (W diag(gate)) x + b: gating the weight is cheaper than gating every row
            return F.linear(x, self.weight * self.gate(context), self.bias)
        return F.linear(x, self.weight, self.bias)
