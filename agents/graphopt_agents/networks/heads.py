"""The head: a logit for each op on each device, from the features of both.

Ours. The papers' networks end in a fixed number of outputs. Here a device is scored by what it is (speed, capacity,
links, its place among the others), so one network serves 2, 4 and 8 devices and unlike ones, and what is learned of a
slow device on one cluster holds on the next; a fixed head with masks would have to learn each output anew.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from graphopt_agents.networks.superposition import SuperposedLinear


class DeviceHead(nn.Module):
    """logit[g, d] = limit tanh((q_g . k_d / sqrt(width) + u_g . pair_gd) / limit).

    ``q_g`` and ``u_g`` are dense in the op's state, zero at first so that training starts from the uniform policy;
    ``k_d`` is a small network of the device's features; ``pair_gd`` are features of both, such as this op's time
    there. The bound keeps a probability from vanishing for good (HDP bounds its logits too).
    """

    def __init__(
        self, width: int, device_features: int, pair_features: int, condition: int | None, limit: float
    ) -> None:
        super().__init__()
        self.limit = limit
        self.query = SuperposedLinear(width, width + pair_features, condition)
        nn.init.zeros_(self.query.weight)
        nn.init.zeros_(self.query.bias)
        self.key = nn.Sequential(
            nn.Linear(device_features, width), nn.ReLU(), nn.Linear(width, width), nn.LayerNorm(width)
        )

    def forward(self, state: Tensor, devices: Tensor, pairs: Tensor, context: Tensor | None = None) -> Tensor:
        """float32 [G, width], [D, device_features], [G, D, pair_features] -> logits float32 [G, D]."""
        key = self.key(devices)
        width = key.shape[1]
        query = self.query(state, context)
        score = query[:, :width] @ key.t() / math.sqrt(width) + (pairs * query[:, None, width:]).sum(-1)
        return self.limit * (score / self.limit).tanh()
