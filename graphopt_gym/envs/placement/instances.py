"""The graphs and clusters that an environment draws from, each pair with its constants."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.envs.core.features import logs
from graphopt_gym.envs.core.roster import Roster, instance_of
from graphopt_gym.envs.placement.features import (
    EXCHANGED,
    GROUP_COLUMNS,
    NODE_FEATURES,
    STATIC_DEVICE_FEATURES,
    Tables,
)
from graphopt_gym.envs.placement.moves import module_of_group, module_partitions
from graphopt_gym.envs.placement.problem import PlacementProblem
from graphopt_gym.envs.placement.workload import is_workload
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.graph import OP_CLASSES, PHASES, SOURCE, VIEW, ComputationGraph
from graphopt_gym.simulator.own_costs import read_cost_files

if TYPE_CHECKING:
    from graphopt_gym.hardware.cluster import Cluster
    from graphopt_gym.hardware.cost_model import CostModel

    GraphLike = str | os.PathLike[str] | ComputationGraph
    ClusterLike = str | os.PathLike[str] | Cluster


class Instance:
    """One graph on one cluster: the problem, its constants for the kernels, its starting placements."""

    def __init__(self, problem: PlacementProblem) -> None:
        if problem.with_levels:
            raise InputError(
                "order 'priority' decides on priorities beside devices, which environments and agents of placement do "
                "not: give 'rank', which it equals where all are of one level, 'fifo', 'stream' or 'program'"
            )
        self.problem = problem
        self.num_groups = problem.num_groups
        self.num_devices = problem.num_devices
        self.num_tasks = problem.simulator.num_tasks
        self.group_edges, self._exchange_in = _group_edges(problem)
        self.tables = self._build()
        self._starts: dict[str, tuple[np.ndarray, float, bool, np.ndarray]] = {}

    @property
    def num_edges(self) -> int:
        return len(self.group_edges)

    @cached_property
    def edge_features(self) -> np.ndarray:
        """float32 [edges]: log bytes that each group sends to each other, each tensor once, scaled to 0..1."""
        return logs(self._exchange_in[:, 0]).astype(np.float32)

    @property
    def allowed(self) -> np.ndarray:
        """bool [G, D]: the devices that each group may be on."""
        found = self.problem.allowed
        return np.ones((self.num_groups, self.num_devices), bool) if found is None else found

    @cached_property
    def link_features(self) -> np.ndarray:
        """float32 [D, D]: bandwidth from each device (row) to each other, to the fastest link; 0 on the diagonal."""
        rate = _bandwidth(self.problem.cluster)
        return (rate / max(rate.max(), 1e-300)).astype(np.float32)

    @cached_property
    def time_features(self) -> np.ndarray:
        """float32 [G, D]: squashed time of each group on each device to that of an average group."""
        ratio = self.tables.duration_s[:, : self.num_groups].T * self.tables.group_scale
        return (ratio / (1 + ratio)).astype(np.float32)

    @cached_property
    def memory_features(self) -> np.ndarray:
        """float32 [G, D]: what each group holds to the capacity of each device, times the groups, squashed.

        Times the groups, so that it does not vanish in large graphs: 0.5 where the whole graph would just fill the
        device if all its groups held as much as this one. Parameters and state, and activations as if all were held
        at once.
        """
        tables = self.tables
        held = (tables.persistent_bytes + tables.activation_bytes)[: self.num_groups, None]
        ratio = held * self.num_groups / tables.capacity_bytes
        return (ratio / (1 + ratio)).astype(np.float32)

    @cached_property
    def module_of_group(self) -> np.ndarray:
        """int64 [G]: the module that each group's first op belongs to; modules are numbered as they first occur."""
        return module_of_group(self.problem)

    @cached_property
    def module_partitions(self) -> list[np.ndarray]:
        """int64 [G] each: ways to part the groups by the paths of their modules, see :func:`module_partitions`."""
        return module_partitions(self.problem)

    def single_device(self) -> int:
        """The device that would run the whole graph alone the fastest; the first of equals."""
        return int(self.tables.duration_s.sum(axis=1).argmin())

    def start(self, start: str | np.ndarray) -> tuple[np.ndarray, float, bool, np.ndarray]:
        """(decision int32 [G], cost, valid, peak_bytes int64 [D]) of a starting placement that is not random."""
        key = start if isinstance(start, str) else f"array:{start.tobytes()!r}"
        if key not in self._starts:
            if isinstance(start, np.ndarray):
                decision = self.problem.check(start)
                for reason in self.problem.device_reasons(decision):
                    raise InputError(f"start: {reason}")
            elif start == "single":
                decision = np.full(self.num_groups, self.single_device(), np.int32)
                decision = self.problem.keep_to_allowed(decision)
            else:
                from graphopt_gym.search.solve import solve

                decision = solve(self.problem, start, budget=1000).decision
            seconds, peak = self.problem.simulated(self.problem.lowering.placement(decision[None]))
            cost, valid = self.problem.price(seconds, peak, decision[None])
            self._starts[key] = (decision, float(cost[0]), bool(valid[0]), peak[0])
        return self._starts[key]

    def _build(self) -> Tables:
        problem = self.problem
        graph, cluster, simulator = problem.graph, problem.cluster, problem.simulator
        tasks, group_of_task, groups = simulator.tasks, problem.group_of_task, problem.num_groups
        devices = cluster.num_devices
        durations = simulator.device_durations_s()
        duration = _exactly_addable(np.stack([np.bincount(group_of_task, row, groups) for row in durations]))
        best = duration.min(axis=0)
        total = float(best.sum())
        storage_task = np.repeat(np.arange(tasks.num_tasks), np.diff(tasks.storage_ptr))
        activation = np.bincount(group_of_task[storage_task], tasks.storage_bytes, groups)
        persistent = np.bincount(group_of_task, tasks.persistent_bytes, groups)

        edges, exchange = self.group_edges, self._exchange_in
        both = np.concatenate([edges[:, ::-1], edges])  # (group, other): what comes in, what goes out
        columns = np.zeros((len(both), 2 * EXCHANGED))
        columns[: len(edges), :EXCHANGED], columns[len(edges) :, EXCHANGED:] = exchange, exchange
        keys, inverse = np.unique(both[:, 0].astype(np.int64) * groups + both[:, 1], return_inverse=True)
        merged = np.zeros((len(keys), 2 * EXCHANGED))
        np.add.at(merged, inverse, columns)
        traffic_in = np.bincount(edges[:, 1], exchange[:, 0], groups)
        traffic_out = np.bincount(edges[:, 0], exchange[:, 0], groups)

        rate = _bandwidth(cluster)
        latency = np.array([link.latency_s for link in cluster.links] or [0.0])
        others = ~np.eye(devices, dtype=bool)
        device_features = np.ones((devices, len(STATIC_DEVICE_FEATURES)), np.float32)
        alone = duration.sum(axis=1)
        device_features[:, 1] = np.where(alone > 0, total / np.where(alone > 0, alone, 1), 1)
        device_features[:, 2] = simulator.capacity_bytes / simulator.capacity_bytes.max()
        if devices > 1:
            device_features[:, 3] = rate.sum(axis=1) / (devices - 1) / rate.max()

        whole = (persistent.sum() + activation.sum()) / simulator.capacity_bytes
        device_features[:, 4] = whole / (1 + whole)

        group_of_op = problem.group_of_op
        real = (graph.op_class != SOURCE) & (graph.op_class != VIEW)
        op_s = np.zeros(graph.num_ops)
        fastest = durations.min(axis=0)
        op_s[tasks.first_op] = fastest
        size = best[:, None]

        def by(codes: np.ndarray, count: int) -> np.ndarray:
            shares = np.zeros((groups, count))
            np.add.at(shares, (group_of_op, codes), op_s)
            return np.divide(shares, size, out=np.zeros_like(shares), where=size > 0).clip(0, 1)

        def summed(column: np.ndarray) -> np.ndarray:
            return np.bincount(group_of_op, column, groups)

        level = graph.level / max(1, int(graph.level.max()))
        first, last = np.ones(groups), np.zeros(groups)
        np.minimum.at(first, group_of_op, level)
        np.maximum.at(last, group_of_op, level)
        ratio = best * (groups / total if total > 0 else 0.0)
        share = best / total if total > 0 else np.full(groups, 1 / groups)
        before = np.minimum(1.0, np.append(0.0, np.cumsum(share)))
        in_module = np.bincount(self.module_of_group, share)
        module_place = np.cumsum(in_module) - in_module / 2
        classes = [code for code in range(len(OP_CLASSES)) if code not in (SOURCE, VIEW)]
        features = np.column_stack(
            [
                logs(summed(graph.flops)),
                logs(summed(graph.bytes_read + graph.bytes_written)),
                logs(summed(graph.param_bytes)),
                logs(summed(graph.state_bytes)),
                logs(activation),
                logs(traffic_in),
                logs(traffic_out),
                logs(summed(real.astype(np.float64))),
                ratio / (1 + ratio),
                first,
                last,
                before[:-1] + share / 2,
                module_place[self.module_of_group],
                by(graph.phase, len(PHASES)),
                by(graph.op_class, len(OP_CLASSES))[:, classes],
            ]
        )
        assert features.shape == (groups, len(NODE_FEATURES))
        own = features[:, GROUP_COLUMNS]
        order = np.argsort(group_of_task, kind="stable").astype(np.int32)
        return Tables(
            node_features=features.astype(np.float32),
            group_features=np.vstack([own, np.zeros(own.shape[1])]).astype(np.float32),
            device_features=device_features,
            duration_s=np.column_stack([duration, np.zeros(devices)]),
            persistent_bytes=np.append(persistent, 0.0),
            activation_bytes=np.append(activation, 0.0),
            capacity_bytes=simulator.capacity_bytes.astype(np.float64),
            allowed=np.vstack([self.allowed, np.ones((1, devices), bool)]),
            traffic_bytes=np.append(traffic_in + traffic_out, 0.0),
            decided_share=before,
            task_ptr=np.append(0, np.cumsum(np.bincount(group_of_task, minlength=groups))).astype(np.int32),
            task=order,
            neighbour_ptr=np.append(0, np.cumsum(np.bincount(keys // groups, minlength=groups + 1))).astype(np.int32),
            neighbour=(keys % groups).astype(np.int32),
            exchange=merged,
            latency_s=np.where(others, latency[cluster.link_of], 0.0),
            s_per_byte=np.divide(1.0, rate, out=np.zeros_like(rate), where=others),
            group_scale=groups / total if total > 0 else 0.0,
            load_scale=devices / total if total > 0 else 0.0,
        )


def _bandwidth(cluster: Cluster) -> np.ndarray:
    """float64 [D, D]: bytes/s from each device to each other; 0 on the diagonal."""
    rates = np.array([link.bytes_per_s for link in cluster.links] or [0.0])
    return np.where(cluster.link_of >= 0, rates[cluster.link_of], 0.0)


def _exactly_addable(values: np.ndarray) -> np.ndarray:
    """Rounded by at most 2**-50 of the largest row's sum, so that sums and differences of entries are exact.

    Loads that are kept by adding and subtracting then never drift, and do not depend on the order.
    """
    quantum = 2.0 ** (np.ceil(np.log2(max(values.sum(axis=1).max(), 1e-200))) - 50)
    return np.round(values / quantum) * quantum


def _group_edges(problem: PlacementProblem) -> tuple[np.ndarray, np.ndarray]:
    """(int32 [edges, 2] of (sending, reading group), float64 [edges, EXCHANGED] of what goes), each tensor once."""
    tasks, group = problem.simulator.tasks, problem.group_of_task.astype(np.int64)
    groups = problem.num_groups
    tensor = np.repeat(np.arange(tasks.num_tensors), np.diff(tasks.reader_ptr))
    pairs = np.unique(tensor * groups + group[tasks.reader])
    tensor, reader = pairs // groups, pairs % groups
    sender = group[tasks.tensor_task[tensor]]
    crossing = sender != reader
    tensor, reader, sender = tensor[crossing], reader[crossing], sender[crossing]
    keys, inverse = np.unique(sender * groups + reader, return_inverse=True)
    size, stated_s = tasks.tensor_bytes[tensor], tasks.transfer_s[tensor]
    by_link = stated_s < 0
    columns = (size, by_link, np.where(by_link, size, 0), np.where(by_link, 0.0, stated_s))
    exchange = np.column_stack([np.bincount(inverse, column, len(keys)) for column in columns])
    return np.column_stack([keys // groups, keys % groups]).astype(np.int32), exchange


def load_instance(
    graph: GraphLike, cluster: ClusterLike, grouping: str = "colocation", cost_model: str | CostModel | None = None
) -> Instance:
    """The instance of a graph on a cluster, shared between all environments of this process that ask for it."""
    return instance_of(PlacementProblem, Instance, graph, cluster, grouping=grouping, cost_model=cost_model)


class PlacementRoster(Roster[Instance]):
    """All graphs on all clusters that an environment may be asked for, and the padded sizes they share.

    Args:
        graph, cluster: see :class:`Roster`.
        grouping, order, cost_model, own, rules: see :class:`PlacementProblem`; ``own`` are own costs by argument,
            ``rules`` objective, overlap and transfers.
        max_devices, max_groups, max_edges: sizes to pad to, None: the largest of the roster.

    Raises:
        InputError: as :class:`Roster`, or a size smaller than what is there; own costs of graphs that are drawn.
    """

    measures = MappingProxyType({"max_devices": "num_devices", "max_groups": "num_groups", "max_edges": "num_edges"})

    def __init__(
        self,
        graph: GraphLike | Sequence[GraphLike],
        cluster: ClusterLike | Sequence[ClusterLike] | None,
        grouping: str,
        order: str,
        cost_model: str | CostModel | None,
        max_devices: int | None,
        max_groups: int | None,
        max_edges: int | None,
        own: Mapping[str, Any] = MappingProxyType({}),
        rules: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        # what is not given is left out, so that it is the same instance as one that was asked for without
        stated = {name: value for name, value in own.items() if value is not None}
        if stated == {"missing_op_times": "refuse"}:
            stated = {}
        of = {"grouping": grouping, "order": order, "cost_model": cost_model, **read_cost_files(stated)}
        of |= {name: value for name, value in rules.items() if value not in (None, "step")}
        its: Any = graph
        if is_workload(graph):
            its = PlacementProblem(its, cluster, **of)  # type: ignore[arg-type]
        super().__init__(PlacementProblem, Instance, its, "v100x4" if cluster is None else cluster, **of)
        if self.draws and stated:
            name = next(name for name in stated if name != "missing_op_times")
            raise InputError(f"{name} is of one graph on one cluster, but they are drawn; leave it out")
        groups, edges = ("groups", "group_edges") if grouping == "colocation" else ("ops", "edges")
        self.max_devices = self.room("max_devices", max_devices, "cluster", "devices")
        self.max_groups = self.room("max_groups", max_groups, "graph", groups)
        self.max_edges = self.room("max_edges", max_edges, "graph", edges)
        self.max_tasks = max((one.num_tasks for one in self.flat), default=1)  # of those that are there
        self.restricted = any(one.problem.allowed is not None for one in self.flat)
        self.sizes = {"G": self.max_groups, "D": self.max_devices, "E": self.max_edges}
