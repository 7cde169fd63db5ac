"""GDP's policy: how placements are drawn, and the same network as a Stable-Baselines3 policy.

The policy is one categorical over devices for each group, all groups decided together (Zhou et al., GDP, 2019).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from gymnasium import spaces
from torch import Tensor

from graphopt_agents.networks import GraphInput, NetworkConfig, PlacementNetwork
from graphopt_agents.networks.inputs import GRAPH_WIDTH
from graphopt_agents.whole_graph_policy import WholeGraphPolicy
from graphopt_gym.fields import share

if TYPE_CHECKING:
    from graphopt_gym.envs.placement.instances import Instance

_KEYS = ("node_mask", "action_mask", "nodes", "times", "memory", "edge_index", "edge_bytes", "links", "devices")


@dataclass(frozen=True)
class Blocks:
    """What blocks of groups are drawn from, which go to a device together.

    Args:
        groups: how many, G.
        orders: int64 [G] each, permutations of the groups; their own where none is given.
        partitions: int64 [G] each, the part of each group, such as its module.
    """

    groups: int
    orders: tuple[Tensor, ...] = ()
    partitions: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, instance: Instance) -> Blocks:
        """Of a problem: the groups' own order and, where it is another one, module after module; its modules.

        In an unrolled network the groups' own order is that of time and visits all layers in each step; sorted by the
        module that a group comes from (modules as they first occur), a layer is in one piece.
        """
        own, by_module = (
            torch.arange(instance.num_groups),
            torch.from_numpy(instance.module_of_group).argsort(stable=True),
        )
        orders = (own,) if torch.equal(own, by_module) else (own, by_module)
        return cls(instance.num_groups, orders, tuple(map(torch.from_numpy, instance.module_partitions)))

    def draw(self, generator: torch.Generator | None) -> Tensor:
        """int64 [G]: the block of each group. One of the partitions every other time, where there are any; else one of
        the orders, cut into blocks of a mean length that is drawn too, log-uniformly from 1 to G."""
        if self.partitions and int(torch.randint(2, (), generator=generator)):
            return self.partitions[int(torch.randint(len(self.partitions), (), generator=generator))]
        length = float(self.groups) ** float(torch.rand((), generator=generator))
        block = (torch.rand(self.groups, generator=generator) < 1 / length).cumsum(0)
        if not self.orders:
            return block
        order = self.orders[int(torch.randint(len(self.orders), (), generator=generator))]
        return torch.empty_like(block).scatter_(0, order, block)


def draw_placements(
    log_probs: Tensor, count: int, generator: torch.Generator | None, blocks: Blocks, independent: float = 0.0
) -> Tensor:
    """Draw placements from a policy: int64 [count, G], of ``log_probs`` float32 [G, D].

    The share ``independent`` of them draws each group by itself. The others draw blocks: the groups of a block share
    their noise, ``argmax(log_probs[g] + gumbel[block(g)])``. Each group still follows the policy exactly (its marginal
    is the categorical), but neighbours tend to land on the same device, as in any placement worth having; from
    independent draws over hundreds of groups, learning hardly finds such placements. Ours.
    """
    groups, devices = log_probs.shape
    alone = round(count * independent)
    rows = []
    for row in range(count):
        block = torch.arange(groups) if row < alone else blocks.draw(generator)
        uniform = torch.rand(int(block.max()) + 1, devices, generator=generator)
        # 24 bits of the uniform can be 0; never infinite noise
        noise = -(-(uniform.clamp(1e-7, 1 - 1e-7).log())).log()
        rows.append((log_probs + noise[block]).argmax(1))
    return torch.stack(rows)


def mutate_placements(
    placements: Tensor, log_probs: Tensor, count: int, generator: torch.Generator | None, blocks: Blocks
) -> Tensor:
    """int64 [count, G]: placements out of int64 [K, G], each with one block drawn anew as a whole.

    The block lies around a random group; its device is drawn from the policy's mean over the block, mixed half and
    half with the uniform distribution. Ours.
    """
    groups, devices = log_probs.shape
    rows = []
    for _ in range(count):
        row = placements[int(torch.randint(len(placements), (), generator=generator))].clone()
        block = blocks.draw(generator)
        inside = block == block[int(torch.randint(groups, (), generator=generator))]
        weights = log_probs[inside].exp().mean(0) + 1 / devices
        row[inside] = torch.multinomial(weights, 1, generator=generator)
        rows.append(row)
    return torch.stack(rows)


class GDPPolicy(WholeGraphPolicy):
    """The placement network as the policy of Stable-Baselines3's PPO and A2C on ``PlacementOneShot-v0``.

    Args:
        network: fields of :class:`NetworkConfig`.
        ratio: see :class:`WholeGraphPolicy`.
        independent: share of placements drawn group by group, the others in blocks, see :func:`draw_placements`.

    Raises:
        InputError: spaces that are not those of ``PlacementOneShot-v0``, an unknown field or ratio.
    """

    keys = _KEYS
    config_class = NetworkConfig
    network_class = PlacementNetwork
    graph_width = GRAPH_WIDTH
    wrong_environment = "GDPPolicy places whole graphs; give it an environment of PlacementOneShot-v0"

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Any,
        network: Mapping[str, Any] | None = None,
        ratio: str = "mean",
        independent: float = 0.3,
        **unused: Any,
    ) -> None:
        self.independent = share("independent", independent)
        super().__init__(observation_space, action_space, lr_schedule, network, ratio, **unused)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"independent": self.independent}

    def graph_input(self, observation: Mapping[str, Tensor]) -> GraphInput:
        return GraphInput.from_observation(observation)

    def logits(self, graph: GraphInput) -> Tensor:
        return self.network(graph)

    def graph_features(self, graph: GraphInput) -> Tensor:
        return graph.graph_features(self.network_config.use_times)

    def draw(self, log_probs: Tensor) -> Tensor:
        alone = torch.rand(len(log_probs)) < self.independent
        blocks = Blocks(log_probs.shape[1])
        return torch.cat(
            [draw_placements(row, 1, None, blocks, float(one)) for row, one in zip(log_probs, alone, strict=True)]
        )
