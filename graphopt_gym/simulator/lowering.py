"""The one place where a decision becomes what the engine runs.

Tasks decide on *units*: groups of ops that go together. Their decisions, whole or in batches, become arrays over the
engine's tasks here, and come back as timelines or costs. (The kernels of a sequential environment keep the same arrays
up to date one unit at a time.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt_gym.errors import InputError
from graphopt_gym.fields import choice
from graphopt_gym.simulator.simulator import Batch, Simulator

if TYPE_CHECKING:
    from graphopt_gym.graphs.graph import ComputationGraph
    from graphopt_gym.hardware.cluster import Cluster
    from graphopt_gym.hardware.cost_model import CostModel
    from graphopt_gym.simulator.own_costs import OwnCosts
    from graphopt_gym.simulator.tasks import TaskGraph
    from graphopt_gym.simulator.timeline import Timeline

GROUPINGS = ("colocation", "op")


class Lowering:
    """Decisions over the units of a graph, for the engine. N ops, U units, K tasks, D devices.

    Args:
        graph, cluster, cost_model, own: see :class:`Simulator`.
        grouping: what a unit is. ``"colocation"``: one of the graph's colocation groups (a module call with its
            backward ops, parameters and updates); ``"op"``: an op by itself (views stay with their producer).

    Attributes:
        unit_of_task: int32 [K]; units are numbered in the order of their first op.
        allowed: bool [U, D], the devices that all ops of a unit may be on; None: all of them.

    Raises:
        InputError: another grouping; a unit whose ops have no allowed device in common; what :class:`Simulator` raises.
    """

    def __init__(
        self,
        graph: ComputationGraph,
        cluster: Cluster,
        grouping: str = "colocation",
        cost_model: str | CostModel | None = None,
        own: OwnCosts | None = None,
    ) -> None:
        choice("grouping", grouping, GROUPINGS)
        self.simulator = Simulator(graph, cluster, cost_model, own=own)
        self.unit_of_task = _units(graph, self.simulator.tasks, grouping)
        self.num_units = int(self.unit_of_task.max()) + 1
        self.allowed = None if own is None or own.allowed is None else self._allowed(own.allowed)

    @property
    def unit_of_op(self) -> np.ndarray:
        """int32 [N]: the unit of each op (views: of their root)."""
        return self.unit_of_task[self.simulator.tasks.task_of_op]

    def _allowed(self, of_op: np.ndarray) -> np.ndarray:
        unit_of_op, graph = self.unit_of_op, self.simulator.graph
        allowed = np.ones((self.num_units, of_op.shape[1]), bool)
        np.logical_and.at(allowed, unit_of_op, of_op)
        nowhere = np.flatnonzero(~allowed.any(axis=1))
        if len(nowhere):
            members = np.flatnonzero(unit_of_op == nowhere[0])
            # the two that say it best: the strictest, and the first that shares no device with it, or else the next
            strict = members[of_op[members].sum(axis=1).argmin()]
            apart = members[~(of_op[members] & of_op[strict]).any(axis=1)]
            others = [*apart, *members[(of_op[members] != of_op[strict]).any(axis=1)]]
            told = "; ".join(
                f"{graph.label(op)} may be on {', '.join(map(str, np.flatnonzero(of_op[op]).tolist()))}"
                for op in (strict, *others[:1])
            )
            raise InputError(
                f"allowed_devices: the {len(members)} ops of group {nowhere[0]} go together and have no device in "
                f"common: {told}; allow one for all, or place op by op (grouping='op')"
            )
        return allowed

    def placement(self, devices: np.ndarray) -> np.ndarray:
        """int32 [..., K]: the device of each task, of the devices int [..., U] of units."""
        return np.asarray(devices)[..., self.unit_of_task]

    def timeline(self, devices: np.ndarray) -> Timeline:
        """What runs where and when, of one decision int [U]."""
        return self.simulator.run_tasks(self.placement(devices))

    def costs(self, devices: np.ndarray) -> Batch:
        """Makespans and peaks of decisions int [B, U], on all cores."""
        return self.simulator.run_many(self.placement(devices))


def one_device_s(graph: ComputationGraph, cluster: Cluster, cost_model: str | CostModel | None = None) -> float:
    """Seconds of a step of a graph with every op on the first device."""
    simulator = Simulator(graph, cluster, cost_model)
    return simulator.run_tasks(np.zeros(simulator.num_tasks, np.int32)).makespan_s


def _units(graph: ComputationGraph, tasks: TaskGraph, grouping: str) -> np.ndarray:
    if grouping == "op":
        return np.arange(tasks.num_tasks, dtype=np.int32)
    colocation = graph.colocation[tasks.first_op].astype(np.int64)
    alone = colocation < 0
    colocation[alone] = colocation.max(initial=0) + 1 + np.arange(int(alone.sum()))
    _, first, inverse = np.unique(colocation, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int32)
    rank[np.argsort(first)] = np.arange(len(first))  # in the order of their first op
    return rank[inverse].astype(np.int32)
