"""The whole network: from a graph on a cluster to a logit for each op on each device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from graphopt_agents.networks.attention import SegmentAttention
from graphopt_agents.networks.heads import DeviceHead
from graphopt_agents.networks.inputs import DEVICE_WIDTH, GRAPH_WIDTH, PAIR_WIDTH, GraphInput, node_width
from graphopt_agents.networks.sage import GraphNetwork
from graphopt_gym.errors import InputError
from graphopt_gym.fields import check_fields

CONTEXT_WIDTH = 32  # of what the gates are computed from
SAVE_MEMORY_ABOVE = 4096  # ops: from here on the backward pass computes segments and layers again


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes and switches. All sizes are ours; the papers do not give theirs."""

    width: int = 64
    sage_layers: int = 3  # 0: no graph network (ablation)
    attention: bool = True  # False: a feed-forward head (ablation)
    recurrence: bool = True  # False: a segment does not see the one before it (ablation)
    superposition: bool = True  # False: no gates (ablation)
    blocks: int = 2
    heads: int = 4
    segment: int = 256  # ops attended to together
    use_times: bool = True  # the simulated time of each op among its features; the papers have none (recalled)
    waves: int = 4  # frequencies of an op's level in the graph; 0: the level itself only
    logit_limit: float = 10.0

    def __post_init__(self) -> None:
        least = {"width": 1, "sage_layers": 0, "blocks": 0, "heads": 1, "segment": 1, "waves": 0}
        check_fields(self, least, above=("logit_limit",))
        if self.attention and self.width % self.heads:
            raise InputError(f"width is {self.width}, which {self.heads} heads cannot share; give a multiple")


class PlacementNetwork(nn.Module):
    """Graph network, segment attention, device head; gates on the dense layers of the last two."""

    def __init__(self, config: NetworkConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or NetworkConfig()
        condition = CONTEXT_WIDTH if config.superposition else None
        self.graph = GraphNetwork(node_width(config.waves), config.width, config.sage_layers)
        self.context = nn.Sequential(nn.Linear(GRAPH_WIDTH, CONTEXT_WIDTH), nn.Tanh()) if condition else None
        self.trunk = SegmentAttention(
            config.width,
            config.blocks,
            config.heads if config.attention else 0,
            config.segment,
            config.recurrence,
            condition,
        )
        self.head = DeviceHead(config.width, DEVICE_WIDTH, PAIR_WIDTH, condition, config.logit_limit)

    def forward(self, graph: GraphInput) -> Tensor:
        """Logits float32 [G, D], out of reach where a group may not be."""
        use_times = self.config.use_times
        save_memory = graph.num_groups > SAVE_MEMORY_ABOVE
        features = graph.node_features(use_times, self.config.waves)
        state = self.graph(features, graph.edge_index, graph.edge_bytes, save_memory)
        context = None if self.context is None else self.context(graph.graph_features(use_times))
        state = self.trunk(state, context, save_memory)
        return graph.masked(self.head(state, graph.device_features(), graph.pair_features(use_times), context))

    @torch.no_grad()
    def probabilities(self, graph: GraphInput, temperature: float = 1.0) -> Tensor:
        """float32 [G, D]: the policy's distribution over devices of each group; 0 temperature is no distribution."""
        return (self(graph) / temperature).softmax(-1)
