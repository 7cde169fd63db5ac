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
from graphopt_gym.graphs.graph import OP_CLASSES, PHASES
from graphopt_gym.simulator.simulator import Batch, Simulator

if TYPE_CHECKING:
    from graphopt_gym.graphs.graph import ComputationGraph
    from graphopt_gym.hardware.cluster import Cluster
    from graphopt_gym.hardware.cost_model import CostModel
    from graphopt_gym.simulator.own_costs import OwnCosts
    from graphopt_gym.simulator.tasks import TaskGraph
    from graphopt_gym.simulator.timeline import Timeline

PARTS = ("forward", "input_gradient", "parameter_gradient")  # of a module call; the last with its update
GROUPINGS = ("colocation", "phase", "op")


class Lowering:
    """Decisions over the units of a graph, for the engine. N ops, U units, K tasks, D devices.

    Args:
        graph, cluster, cost_model, own: see :class:`Simulator`.
        grouping: what a unit is. ``"colocation"``: one of the graph's colocation groups (a module call with its
            backward ops, parameters and updates); ``"phase"``: of such a group the forward pass, the gradients of its
            inputs, and the gradients of its parameters with their update, each by itself; ``"op"``: an op by itself
            (views stay with their producer).
        order: see :class:`Simulator`. With ``"priority"`` a decision is int [2, U]: the device of each unit, and its
            level, higher first; within a level the longest way to the end is first.

    Attributes:
        unit_of_task: int32 [K]; units are numbered in the order of their first op.
        group_of_unit: int32 [U], the colocation group that a unit is of, or is a part of, numbered by first op.
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
        order: str = "fifo",
    ) -> None:
        choice("grouping", grouping, GROUPINGS)
        use = None if own is None or own.allowed is None else np.flatnonzero(own.allowed.any(axis=0))
        self.simulator = Simulator(graph, cluster, cost_model, own=own, order=order, use=use)
        tasks = self.simulator.tasks
        self.unit_of_task = _units(graph, tasks, grouping)
        self.num_units = int(self.unit_of_task.max()) + 1
        self.group_of_unit = np.empty(self.num_units, np.int32)
        self.group_of_unit[self.unit_of_task] = _units(graph, tasks, "colocation")
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

    def priorities(self, levels: np.ndarray | None) -> np.ndarray | None:
        """float64 [..., K]: the priority of each task, of the levels int [..., U] of units; None: as the order says."""
        if levels is None:
            return None
        rank = self.simulator.priorities
        return np.asarray(levels)[..., self.unit_of_task] * (rank.max(initial=0.0) + 1.0) + rank

    def timeline(self, devices: np.ndarray, levels: np.ndarray | None = None) -> Timeline:
        """What runs where and when: devices int [U], and levels int [U] where the order is ``priority``."""
        return self.simulator.run_tasks(self.placement(devices), self.priorities(levels))

    def costs(self, devices: np.ndarray, levels: np.ndarray | None = None) -> Batch:
        """Makespans and peaks of decisions int [B, U] (and levels int [B, U]), on all cores."""
        return self.simulator.run_many(self.placement(devices), self.priorities(levels))


def one_device_s(graph: ComputationGraph, cluster: Cluster, cost_model: str | CostModel | None = None) -> float:
    """Seconds of a step of a graph with every op on the first device."""
    simulator = Simulator(graph, cluster, cost_model)
    return simulator.run_tasks(np.zeros(simulator.num_tasks, np.int32)).makespan_s


def _units(graph: ComputationGraph, tasks: TaskGraph, grouping: str) -> np.ndarray:
    """int32 [K]: the unit of each task, units numbered by their first op."""
    if grouping == "op":
        return np.arange(tasks.num_tasks, dtype=np.int32)
    unit = graph.colocation[tasks.first_op].astype(np.int64)
    alone = unit < 0
    unit[alone] = unit.max(initial=0) + 1 + np.arange(int(alone.sum()))
    if grouping == "phase":
        unit = len(PARTS) * unit + np.where(alone, 0, parts_of_tasks(tasks))
    _, first, inverse = np.unique(unit, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int32)
    rank[np.argsort(first)] = np.arange(len(first))  # in the order of their first op
    return rank[inverse].astype(np.int32)


def parts_of_tasks(tasks: TaskGraph) -> np.ndarray:
    """int8 [K]: which of :data:`PARTS` of its module each task belongs to.

    A backward task belongs to the gradients of parameters where all that read it are updates, or belong to them in the
    same module call, or sum up such gradients (of a parameter that several calls share). A parameter is where it is
    updated, with its optimiser state, and is sent from there to the forward pass: so a step pays for the weights that
    it changed. One that nothing updates goes with the forward pass.
    """
    graph = tasks.graph
    phase, group = graph.phase[tasks.first_op], graph.colocation[tasks.first_op]
    forward, inputs, parameters = range(len(PARTS))
    part = np.where(phase == PHASES.index("forward"), forward, inputs)
    part[phase == PHASES.index("optimizer")] = parameters
    sums = _sums(tasks)
    for task in tasks.sequence[::-1].tolist():
        low, high = tasks.tensor_ptr[task], tasks.tensor_ptr[task + 1]
        readers = tasks.reader[tasks.reader_ptr[low] : tasks.reader_ptr[high]]
        updates = readers[phase[readers] == PHASES.index("optimizer")]
        if part[task] == inputs:
            near = (phase[readers] != phase[task]) | (group[readers] == group[task]) | sums[readers]
            part[task] = parameters if (near & (part[readers] == parameters)).all() else inputs
        elif tasks.is_source[task] and graph.param_bytes[tasks.first_op[task]] > 0:
            part[task] = parameters if (group[updates] == group[task]).any() else forward
    return part.astype(np.int8)


def _sums(tasks: TaskGraph) -> np.ndarray:
    """bool [K]: the elementwise tasks all of whose inputs are as large as what they make."""
    reader = np.repeat(np.arange(tasks.num_tasks), np.diff(tasks.input_ptr))
    differs = tasks.tensor_bytes[tasks.input_tensor] != tasks.graph.output_bytes[tasks.first_op[reader]]
    elementwise = tasks.graph.op_class[tasks.first_op] == OP_CLASSES.index("elementwise")
    return elementwise & (np.bincount(reader, differs, tasks.num_tasks) == 0)
