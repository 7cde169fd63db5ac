"""The network of chiplet partition as a Stable-Baselines3 policy."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from graphopt_agents.networks.chiplet import ChipletConfig, ChipletInput, ChipletNetwork
from graphopt_agents.whole_graph_policy import WholeGraphPolicy
from graphopt_gym.envs.chiplet.features import CHIP_FEATURES, OP_FEATURES


class ChipletPolicy(WholeGraphPolicy):
    """:class:`ChipletNetwork` as the policy of Stable-Baselines3's PPO and A2C on ``ChipletPartition-v0``.

    The environment's ``mode`` is ``"fix"``: the action is a whole candidate, each op's chip drawn by itself, and the
    environment corrects it. (In ``"sample"`` mode the environment draws, so a policy's action has no probability.)

    Args:
        network: fields of :class:`ChipletConfig`.
        ratio: see :class:`WholeGraphPolicy`.

    Raises:
        InputError: spaces that are not those of ``ChipletPartition-v0`` in ``"fix"`` mode, an unknown field or ratio.
    """

    keys = ("node_mask", "action_mask", "nodes", "edge_index", "edge_bytes", "chips")
    config_class = ChipletConfig
    network_class = ChipletNetwork
    graph_width = 2 * len(OP_FEATURES) + len(CHIP_FEATURES)
    wrong_environment = "ChipletPolicy proposes whole partitions; give it ChipletPartition-v0 with mode='fix'"

    def graph_input(self, observation: Mapping[str, Tensor]) -> ChipletInput:
        return ChipletInput.from_observation(observation)

    def logits(self, graph: ChipletInput) -> Tensor:
        logits: Tensor = self.network(graph)
        return logits

    def graph_features(self, graph: ChipletInput) -> Tensor:
        return torch.cat([graph.nodes.mean(0), graph.nodes.amax(0), graph.chips.mean(0)])
