"""The graph network: GraphSAGE with the papers' aggregator.

From GDP (recalled): a layer takes the maximum over neighbours of ``sigmoid(W h_u + b)``, then a dense layer over the
op's own state and that aggregate. Ours: producers and consumers are aggregated apart, each with its own ``W`` (an op
is to know what it waits for from what waits for it); the bytes of the edge enter the message as one more column of
``h_u``; a residual connection and layer normalisation, so that layers can be stacked.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch_geometric.nn import MessagePassing


class NeighbourMax(MessagePassing):
    """max over edges u -> v of sigmoid(W [h_u, bytes] + b); 0 for an op without such edges."""

    def __init__(self, width: int, flow: str) -> None:
        super().__init__(aggr="max", flow=flow)
        self.dense = nn.Linear(width + 1, width)

    def forward(self, state: Tensor, edge_index: Tensor, edge_bytes: Tensor) -> Tensor:
        """``state`` float32 [G, width], ``edge_index`` int64 [2, E], ``edge_bytes`` float32 [E] -> [G, width]."""
        # W [h, e] = W_h h + W_e e: the product over ops, not over edges
        weight = self.dense.weight
        projected = state @ weight[:, :-1].t() + self.dense.bias
        return self.propagate(edge_index, projected=projected, edge_bytes=edge_bytes.unsqueeze(1), size=None)

    def message(self, projected_j: Tensor, edge_bytes: Tensor) -> Tensor:
        return torch.sigmoid(projected_j + edge_bytes * self.dense.weight[:, -1])


class SageLayer(nn.Module):
    """h' = norm(h + relu(dense([h, from producers, from consumers])))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.producers = NeighbourMax(width, "source_to_target")
        self.consumers = NeighbourMax(width, "target_to_source")
        self.dense = nn.Linear(3 * width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, state: Tensor, edge_index: Tensor, edge_bytes: Tensor) -> Tensor:
        """float32 [G, width] -> [G, width]."""
        before = self.producers(state, edge_index, edge_bytes)
        after = self.consumers(state, edge_index, edge_bytes)
        return self.norm(state + torch.relu(self.dense(torch.cat([state, before, after], dim=1))))


class GraphNetwork(nn.Module):
    """Embeds each op (or group) from its features and its neighbourhood of ``layers`` hops.

    With ``layers=0`` (the ablation "no graph network") an op's embedding depends on its own features alone.
    """

    def __init__(self, features: int, width: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width), nn.LayerNorm(width))
        self.layers = nn.ModuleList(SageLayer(width) for _ in range(layers))

    def forward(self, features: Tensor, edge_index: Tensor, edge_bytes: Tensor, save_memory: bool = False) -> Tensor:
        """float32 [G, features], int64 [2, E], float32 [E] -> float32 [G, width].

        ``save_memory``: keep only the layers' inputs for the backward pass and compute the rest again.
        """
        state = self.embed(features)
        for layer in self.layers:
            if save_memory and torch.is_grad_enabled():
                state = checkpoint(layer, state, edge_index, edge_bytes, use_reentrant=False, preserve_rng_state=False)
            else:
                state = layer(state, edge_index, edge_bytes)
        return state
