"""What the networks see: one graph on one cluster, as tensors without padding."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from graphopt_gym.envs.placement.features import NODE_FEATURES, STATIC_DEVICE_FEATURES

if TYPE_CHECKING:
    from graphopt_gym.envs.placement.instances import Instance

NODE_WIDTH = len(NODE_FEATURES)
OUT_OF_REACH = -1e9  # finite, so that entropies and divergences are; its exponential is 0
_WAVES = 3  # frequencies that tell the places of devices apart
DEVICE_WIDTH = len(STATIC_DEVICE_FEATURES) + 2 + 1 + 2 * _WAVES + 1 + 1
PAIR_WIDTH = 6
MEMORY_COLUMN = STATIC_DEVICE_FEATURES.index("whole_graph_memory")
TIME_COLUMNS = [NODE_FEATURES.index(name) for name in ("time", "time_place", "module_time_place")]
# where in the graph a group is, by depth and by time
PLACE_COLUMNS = [NODE_FEATURES.index(n) for n in ("first_level", "last_level", "time_place", "module_time_place")]


@dataclass(frozen=True)
class GraphInput:
    """A graph of G groups of ops (or ops) and E edges on D devices; see ``PlacementOneShot-v0`` for the features."""

    nodes: Tensor  # float32 [G, NODE_WIDTH], groups in the order of their first op
    edge_index: Tensor  # int64 [2, E] sending, reading group
    edge_bytes: Tensor  # float32 [E]
    times: Tensor  # float32 [G, D]
    memory: Tensor  # float32 [G, D]
    devices: Tensor  # float32 [D, 5]
    links: Tensor  # float32 [D, D]
    allowed: Tensor | None = None  # bool [G, D] the devices that each group may be on; None: all

    @property
    def num_groups(self) -> int:
        return self.nodes.shape[0]

    @property
    def num_devices(self) -> int:
        return self.devices.shape[0]

    @classmethod
    def from_instance(cls, instance: Instance) -> GraphInput:
        """The input of a problem, as the environment's observation has it."""
        return cls(
            nodes=torch.from_numpy(instance.tables.node_features.copy()),
            edge_index=torch.from_numpy(instance.group_edges.T.copy()).long(),
            edge_bytes=torch.from_numpy(instance.edge_features),
            times=torch.from_numpy(instance.time_features),
            memory=torch.from_numpy(instance.memory_features),
            devices=torch.from_numpy(instance.tables.device_features),
            links=torch.from_numpy(instance.link_features),
            allowed=torch.from_numpy(instance.allowed),
        )

    @classmethod
    def from_observation(cls, observation: Mapping[str, Tensor]) -> GraphInput:
        """The input in one (flat or shaped) observation of ``PlacementOneShot-v0``: padding is cut away here."""
        max_groups, max_devices = observation["node_mask"].numel(), math.isqrt(observation["links"].numel())
        groups = int(observation["node_mask"].sum())
        devices = int((observation["devices"].reshape(max_devices, -1)[:, 0] > 0).sum())
        edge_index = observation["edge_index"].reshape(2, -1).long()
        edges = int((edge_index[0] >= 0).sum())
        # of one device each, or, where groups may not be everywhere, of each group
        mask = observation["action_mask"].reshape(-1, max_devices).expand(max_groups, max_devices)
        allowed = mask[:groups, :devices].bool()
        return cls(
            nodes=observation["nodes"].reshape(max_groups, -1)[:groups].float(),
            edge_index=edge_index[:, :edges],
            edge_bytes=observation["edge_bytes"][:edges].float(),
            times=observation["times"].reshape(max_groups, max_devices)[:groups, :devices].float(),
            memory=observation["memory"].reshape(max_groups, max_devices)[:groups, :devices].float(),
            devices=observation["devices"].reshape(max_devices, -1)[:devices].float(),
            links=observation["links"].reshape(max_devices, max_devices)[:devices, :devices].float(),
            allowed=allowed,
        )

    def masked(self, scores: Tensor) -> Tensor:
        """float32 [G, D]: logits or log-probabilities, out of reach where a group may not be."""
        return scores if self.allowed is None else scores.masked_fill(~self.allowed, OUT_OF_REACH)

    def node_features(self, use_times: bool, waves: int) -> Tensor:
        """float32 [G, node_width(waves)]: the features, mean memory to capacity, sines and cosines of the places.

        Without ``use_times`` no cost of an op is among them (the papers' configuration, recalled). ``waves`` is the
        number of frequencies, each twice the one before; 0 leaves the places as they are.
        """
        nodes = self.nodes
        if not use_times:
            nodes = nodes.clone()
            nodes[:, TIME_COLUMNS] = 0
        held = self.memory.mean(dim=1, keepdim=True)
        return torch.cat([nodes, held, *waves_of(nodes[:, PLACE_COLUMNS], waves)], dim=1)

    def device_features(self) -> Tensor:
        """float32 [D, DEVICE_WIDTH]: speed, capacity, bandwidths, memory, and the device's place among the others.

        Equal devices have equal figures, and a network that saw nothing else could never put two ops apart: the place
        (d + 1/2) / D, with sines and cosines, breaks the tie, and means the same for 2, 4 and 8 devices.
        """
        count = self.num_devices
        place = self.device_places()
        columns = [
            self.links.mean(dim=1),
            self.links.mean(dim=0),
            place,
            *waves_of(place, _WAVES),
            torch.full_like(place, 1 / count),
            self.cluster_memory().expand(count),
        ]
        return torch.cat([self.devices, torch.stack(columns, dim=1)], dim=1)

    def cluster_memory(self) -> Tensor:
        """float32, a scalar: what the graph holds to the memory of all devices together, squashed."""
        whole = self.devices[:, MEMORY_COLUMN]
        return 1 / (1 + ((1 - whole) / whole).sum())  # a device's capacity to what the graph holds: (1 - x) / x

    def pair_features(self, use_times: bool) -> Tensor:
        """float32 [G, D, PAIR_WIDTH]: of each group on each device.

        Time and memory there, both also to their means over devices, and how near the group's place in the graph's
        time is to the device's place among the devices, 1 / (1 + D |difference|), by groups and by modules: whoever
        follows the last alone puts the modules in order onto the devices, an even share of the time on each. A policy
        can learn to, and that holds on any graph (ours).
        """
        times = self.times if use_times else torch.zeros_like(self.times)
        parts = [part for one in (times, self.memory) for part in (one, one - one.mean(dim=1, keepdim=True))]
        for column in TIME_COLUMNS[1:]:
            apart = self.num_devices * (self.nodes[:, column, None] - self.device_places()).abs()
            parts.append(1 / (1 + apart) if use_times else torch.zeros_like(apart))
        return torch.stack(parts, dim=2)

    def device_places(self) -> Tensor:
        """float32 [D]: (d + 1/2) / D, the place of each device among the others."""
        return (torch.arange(self.num_devices, dtype=torch.float32, device=self.devices.device) + 0.5) / (
            self.num_devices
        )

    def graph_features(self, use_times: bool) -> Tensor:
        """float32 [GRAPH_WIDTH]: what superposition conditions on: means and maxima over groups, sizes, the cluster."""
        nodes = self.node_features(use_times, 0)
        sizes = torch.tensor([math.log1p(self.num_groups) / 12, 1 / self.num_devices], device=nodes.device)
        cluster = [self.devices.mean(0), self.devices.amin(0), self.links.mean().view(1), self.cluster_memory().view(1)]
        return torch.cat([nodes.mean(0), nodes.amax(0), *cluster, sizes])


def waves_of(places: Tensor, count: int) -> list[Tensor]:
    """Sines and cosines of places at ``count`` frequencies, each twice the one before, all of the places' shape."""
    angles = [math.pi * 2**wave * places for wave in range(count)]
    return [wave for angle in angles for wave in (angle.sin(), angle.cos())]


GRAPH_WIDTH = 2 * (NODE_WIDTH + 1) + 2 * len(STATIC_DEVICE_FEATURES) + 2 + 2


def node_width(waves: int) -> int:
    """Columns of :meth:`GraphInput.node_features`."""
    return NODE_WIDTH + 1 + 2 * len(PLACE_COLUMNS) * waves
