"""The graphs and clusters that an environment draws from, each with what it shows of ops, groups and devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphopt_gym.envs.core.levels import check_decides
from graphopt_gym.envs.core.roster import Roster, padded_size
from graphopt_gym.envs.fusion import instances as fusion
from graphopt_gym.envs.joint.problem import TASKS, GraphOptimizationProblem
from graphopt_gym.envs.placement.instances import Instance as PlacementInstance
from graphopt_gym.envs.scheduling import orders
from graphopt_gym.errors import InputError

STARTS = ("default", "plain")
OP_FEATURES = (
    *fusion.OP_FEATURES,
    "head",  # the longest way up to it, as a share of the longest of all
    "tail",  # the longest way from its start to the end, as a share
)


class Instance:
    """One problem, the entries of its decisions that matter, and the features of what they are of.

    M entries that are decided on, in the order of a decision; K tasks, E edges between them, G groups, D devices.
    """

    reward_unit = 1.0  # seconds

    def __init__(self, problem: GraphOptimizationProblem) -> None:
        self.problem = problem
        self.placing = PlacementInstance(problem.placing)
        self.length, self.num_devices, self.num_levels = (
            problem.decision_shape[0], problem.num_devices, problem.levels,
        )  # fmt: skip
        self.num_tasks, self.num_groups = problem.num_tasks, problem.num_groups
        # which entries of each task's part matter
        self.decided = {
            task: one
            for task, one in zip(TASKS, (np.arange(self.num_groups), problem.producers, problem.scheduled), strict=True)
            if task in problem.tasks
        }
        self.entry = np.concatenate([problem.slices[task].start + one for task, one in self.decided.items()])
        self.num_ops = len(self.entry)
        # int8 [M] which of TASKS an entry is of; int64 [M] the simulator's task, of a group its first
        self.task_of_entry = np.repeat(
            [TASKS.index(task) for task in self.decided], [len(one) for one in self.decided.values()]
        ).astype(np.int8)
        first = np.full(self.num_groups, self.num_tasks, np.int64)
        np.minimum.at(first, problem.group_of_task, np.arange(self.num_tasks))
        self.op_of_entry = np.concatenate(
            [first if task == "placement" else one for task, one in self.decided.items()]
        ).astype(np.int64)
        self.choices = problem.entry_choices[self.entry]
        self.features = op_features(problem)
        self.group_features = self.placing.tables.node_features[: self.num_groups]
        members = np.bincount(problem.group_of_task, minlength=self.num_groups)
        self.group_means = np.zeros((self.num_groups, self.features.shape[1]), np.float32)
        np.add.at(self.group_means, problem.group_of_task, self.features)
        self.group_means /= members[:, None]
        tables = problem.fused.tables
        source = np.repeat(np.arange(self.num_tasks), np.diff(tables.succ_ptr))
        self.edges = np.stack([source, tables.succ], axis=1).astype(np.int32)
        self.num_edges = len(self.edges)
        self.around_ptr, self.around = _neighbours(self.placing.group_edges, self.num_groups)

    def start(self, name: str) -> np.ndarray:
        """int32 [length]: the default stack, or everything on device 0, nothing fused, first come first served."""
        problem = self.problem
        return problem.decision_of(problem.default) if name == "default" else np.zeros(self.length, np.int32)


def op_features(problem: GraphOptimizationProblem) -> np.ndarray:
    """float32 [K, F] in 0 to 1: :data:`OP_FEATURES` of each task, where the default stack has it."""
    placed = problem.placed_by_default
    head = orders.placed_heads_s(placed.simulator, placed.placement)
    tail = orders.placed_rank(placed.simulator, placed.placement)
    ways = np.stack([head, tail], axis=1) / max(float((head + tail).max(initial=0.0)), 1e-300)
    return np.column_stack([fusion.op_features(placed), ways.astype(np.float32)])


def _neighbours(edges: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each group, those that it exchanges tensors with: (int64 [G+1], int64)."""
    both = np.concatenate([edges, edges[:, ::-1]]).astype(np.int64) if len(edges) else np.zeros((0, 2), np.int64)
    both = both[np.argsort(both[:, 0], kind="stable")]
    return np.concatenate([[0], np.cumsum(np.bincount(both[:, 0], minlength=count))]), both[:, 1]


class JointRoster(Roster[Instance]):
    """All graphs on all clusters that an environment may be asked for, and the padded sizes they share."""

    def __init__(
        self, graph: Any, cluster: Any, max_ops: int | None, max_edges: int | None, max_groups: int | None,
        max_devices: int | None, tasks: str | Sequence[str] | None = None, **options: Any,
    ) -> None:  # fmt: skip
        stated = {name: value for name, value in options.items() if value is not None}
        if tasks is not None:  # one name for one set of tasks: environments that are alike share their instances
            stated["tasks"] = tasks if isinstance(tasks, str) else "+".join(map(str, tasks))
        super().__init__(GraphOptimizationProblem, Instance, graph, cluster, **stated)
        check_decides(self.flat)
        first = self.flat[0]
        for one in self.flat:
            if (one.problem.tasks, one.num_levels) != (first.problem.tasks, first.num_levels):
                raise InputError("the problems differ in tasks or levels; give those with the same")

        def most(what: str) -> int:
            return max(1, *(getattr(one, what) for one in self.flat), 1)

        ops = padded_size("max_ops", max_ops, most("num_tasks"))
        groups = padded_size("max_groups", max_groups, most("num_groups"))
        self.sizes = {
            "K": ops,
            "E": padded_size("max_edges", max_edges, most("num_edges")),
            "G": groups,
            "D": padded_size("max_devices", max_devices, most("num_devices")),
            "P": first.num_levels,
            "M": most("num_ops"),
        }
        self.tasks = first.problem.tasks
        decides = [task in self.tasks for task in TASKS]
        self.sizes["C"] = max(self.sizes["D"] * decides[0], self.sizes["P"] * any(decides[1:]))
        # entries that an action of a whole decision has of each task, and how many choices each
        self.blocks = {
            task: (groups, self.sizes["D"]) if task == "placement" else (ops, self.sizes["P"]) for task in self.tasks
        }
