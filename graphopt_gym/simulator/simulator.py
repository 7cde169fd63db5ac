"""Run placements through the engine: one with its full timeline, or many for their costs."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.errors import InputError
from graphopt_gym.fields import check_integers, check_numbers, choice
from graphopt_gym.simulator import engine
from graphopt_gym.simulator.orders import ORDERS, PRIORITY, engine_order, fixed_priorities
from graphopt_gym.simulator.own_costs import OwnCosts
from graphopt_gym.simulator.tasks import TaskGraph, check_seconds, compile_tasks, task_times
from graphopt_gym.simulator.timeline import Timeline

if TYPE_CHECKING:
    from graphopt_gym.graphs.graph import ComputationGraph
    from graphopt_gym.hardware.cluster import Cluster
    from graphopt_gym.hardware.cost_model import CostModel


@dataclass(frozen=True, eq=False)
class Batch:
    """Costs of B decisions."""

    makespan_s: np.ndarray  # float64 [B]
    peak_bytes: np.ndarray  # int64 [B, D]
    peak_time_s: np.ndarray  # float64 [B, D] when each device first reached its peak
    busy_s: np.ndarray  # float64 [B, D]


_NO_TIMES = np.empty((2, 0))


class Simulator:
    """The engine, bound to one graph (with its fused groups) and one cluster.

    Args:
        graph: the computation graph, N ops.
        cluster: D devices.
        cost_model: prices ops: an object with ``op_times``, or how a step is run, see :func:`cost_model_of`; the fitted
            roofline, eager, where left out.
        fusion: int [N] fused groups, see :func:`compile_tasks`.
        op_times_s: exact seconds in place of the cost model's, see :meth:`OwnCosts.of`. Not together with ``fusion``.
        own: all own costs, in place of ``op_times_s``.
        order: what a free device takes next, one of :data:`graphopt_gym.simulator.orders.ORDERS`.
        use: int64, the devices whose times are averaged where tasks are ranked; all where left out.

    Attributes:
        priorities: float64 [K], of the order, where a decision states none; empty where the order needs none.

    Raises:
        InputError: from :func:`compile_tasks`; times of another shape or type, or that no op takes (NaN, infinite,
            negative), given or from the cost model.
    """

    def __init__(
        self,
        graph: ComputationGraph,
        cluster: Cluster,
        cost_model: str | CostModel | None = None,
        fusion: np.ndarray | None = None,
        op_times_s: Any = None,
        own: OwnCosts | None = None,
        order: str = "fifo",
        use: np.ndarray | None = None,
    ) -> None:
        choice("order", order, ORDERS)
        from graphopt_gym.hardware.cost_model import cost_model_of

        model = cost_model_of(cost_model)
        self.graph = graph
        self.cluster = cluster
        if op_times_s is not None:
            own = OwnCosts.of(graph, cluster, op_times_s=op_times_s)
        self.own = own
        self.tasks: TaskGraph = compile_tasks(graph, fusion, own)
        kinds = list(dict.fromkeys(cluster.devices))
        self.device_type = np.array([kinds.index(device) for device in cluster.devices], np.int32)
        own_times = None if own is None else own.op_times_s
        if own_times is not None and fusion is not None:
            raise InputError("op_times_s and fusion cannot be given together")
        kind_of, row_of = self.device_type, np.zeros(0, np.int64)
        if own_times is not None:  # devices of one kind whose times are the same are of one type
            types: dict[tuple[int, bytes], int] = {}
            keys = (
                (int(kind), row[self.tasks.first_op].tobytes()) for kind, row in zip(kind_of, own_times, strict=True)
            )
            self.device_type = np.array([types.setdefault(key, len(types)) for key in keys], np.int32)
            row_of = np.unique(self.device_type, return_index=True)[1]
            own_times = own_times[row_of][:, self.tasks.first_op]
        self.cost_model = None  # what prices ops, as far as their times are not one's own
        if own_times is None or np.isnan(own_times).any():
            self.cost_model = model
            times = np.stack([task_times(self.tasks, model, device) for device in kinds])
            if own_times is not None:
                own_times = np.where(np.isnan(own_times), times[kind_of[row_of]], own_times)
        if own_times is not None:
            times = own_times
        self.durations_s = np.ascontiguousarray(np.where(self.tasks.is_source, 0.0, times))  # [types, K]
        check_seconds(self.durations_s, graph, self.tasks.first_op)
        self.capacity_bytes = np.array([device.memory_bytes for device in cluster.devices], np.int64)
        tasks = self.tasks
        self._links = (
            np.array(cluster.link_of, np.int32, order="C").view(
                np.uint32
            ),  # a copy: one that cannot be written is of another type
            np.array([link.latency_s for link in cluster.links], np.float64),
            np.array([link.bytes_per_s for link in cluster.links], np.float64),
        )
        self._device_type = self.device_type.view(np.uint32)
        columns = (
            tasks.sequence,
            tasks.is_source,
            tasks.persistent_bytes,
            tasks.storage_ptr,
            tasks.storage_bytes,
            tasks.tensor_ptr,
            tasks.tensor_bytes,
            tasks.tensor_storage,
            tasks.tensor_task,
            tasks.reader_ptr,
            tasks.reader,
            tasks.input_ptr,
            tasks.input_tensor,
            tasks.input_of_reader,
            tasks.transfer_s,
        )
        self._columns = tuple(one.view(np.uint32) if one.dtype == np.int32 else one for one in columns)
        self.order = order
        self._engine_order = engine_order(order)
        ranked = order in ("rank", "priority")
        durations_s = self.device_durations_s() if ranked else self.durations_s  # the first may be very large
        self.priorities = fixed_priorities(order, tasks, durations_s, cluster, use)

    @property
    def costs_version(self) -> str:
        """The version of the costs that times are from, see :func:`costs_version`; empty where they were given."""
        from graphopt_gym.hardware.cost_model import costs_version

        return "" if self.cost_model is None else costs_version(self.cost_model, self.cluster.devices)

    @property
    def num_tasks(self) -> int:
        return self.tasks.num_tasks

    @property
    def num_devices(self) -> int:
        return self.cluster.num_devices

    def device_durations_s(self) -> np.ndarray:
        """float64 [D, K]: seconds of each task on each device."""
        return self.durations_s[self.device_type]

    def _run(
        self,
        placements: np.ndarray,
        priorities: np.ndarray,
        out: Batch,
        record: bool = False,
        times_s: np.ndarray | None = None,
    ) -> tuple[np.ndarray, int]:
        """Fill ``out`` with the costs of B placements, and ``times_s``, float64 [2, K], with the last one's times.

        Returns (transfers, tasks done) of the last one.
        """
        start, finish = _NO_TIMES if times_s is None else times_s
        order = PRIORITY if priorities.shape[1] else self._engine_order
        return engine.run(
            placements.view(np.uint32), priorities, order, *self.columns[1:], record, start, finish,
            out.makespan_s, out.peak_bytes, out.peak_time_s, out.busy_s,
        )  # fmt: skip

    @property
    def columns(self) -> tuple[Any, ...]:
        """What the engine takes of this graph and cluster, from ``order`` (that of the simulator) to ``transfer_s``."""
        return (self._engine_order, self.durations_s, self._device_type, *self._links, *self._columns)

    def _batch(self, batch: int) -> Batch:
        shape = (batch, self.num_devices)
        return Batch(np.empty(batch), np.empty(shape, np.int64), np.empty(shape), np.empty(shape))

    def _priorities(self, priority: np.ndarray | None) -> np.ndarray:
        if priority is None:
            return self.priorities
        given = check_numbers("priority", priority, (self.graph.num_ops,))
        if np.isnan(given).any():
            raise InputError(f"priority of {self.graph.label(int(np.isnan(given).argmax()))} is nan; give a number")
        return np.ascontiguousarray(given[self.tasks.first_op])

    def run(self, placement: np.ndarray, priority: np.ndarray | None = None) -> Timeline:
        """The whole timeline of one decision.

        Args:
            placement: int [N], the device of each op. Of a fused group and of views only the first op's counts.
            priority: float [N]: higher first in the device's ready queue, then the earliest ready, whatever the order
                is; None: as the order says.

        Raises:
            InputError: arrays of another shape or type; a device that the cluster has not; a priority that is NaN.
        """
        given = check_integers(placement, (self.graph.num_ops,), self.num_devices, "device", "placement")
        return self.run_tasks(given[self.tasks.first_op], self._priorities(priority))

    def run_tasks(self, placement: np.ndarray, priority: np.ndarray | None = None) -> Timeline:
        """As :meth:`run`, for a placement (and priorities) of tasks: int [K], float [K]."""
        placement = np.ascontiguousarray(placement, np.int32)
        priority = self.priorities if priority is None else priority
        out, times_s = self._batch(1), np.zeros((2, self.num_tasks))
        transfers, done = self._run(placement[None], priority[None], out, True, times_s)
        assert done == self.num_tasks, "the task graph has a cycle"
        return Timeline(
            graph=self.graph,
            cluster=self.cluster,
            tasks=self.tasks,
            task_device=placement,
            start_s=times_s[0],
            finish_s=times_s[1],
            makespan_s=float(out.makespan_s[0]),
            transfers=transfers,
            peak_bytes=out.peak_bytes[0],
            peak_time_s=out.peak_time_s[0],
            busy_s=out.busy_s[0],
        )

    def cost(self, placement: np.ndarray, priority: np.ndarray | None = None) -> tuple[float, np.ndarray]:
        """(makespan_s, peak_bytes int64 [D]) of one placement of tasks, int32 [K]; the fast path of a step."""
        out = self._batch(1)
        priority = self.priorities if priority is None else priority
        self._run(np.ascontiguousarray(placement, np.int32)[None], priority[None], out)
        return float(out.makespan_s[0]), out.peak_bytes[0]

    def run_many(self, placements: np.ndarray, priorities: np.ndarray | None = None) -> Batch:
        """Costs of many placements of tasks, on all cores.

        Args:
            placements: int [B, K], the device of each task.
            priorities: float [B, K]; None: as the order says.
        """
        placements = np.ascontiguousarray(placements, np.int32)
        batch = len(placements)
        given = self.priorities[None] if priorities is None else np.ascontiguousarray(priorities, np.float64)
        out = self._batch(batch)

        def rows(low: int, high: int) -> None:
            at = slice(low, high)
            part = Batch(out.makespan_s[at], out.peak_bytes[at], out.peak_time_s[at], out.busy_s[at])
            self._run(placements[at], given if len(given) == 1 else given[at], part)

        on_all_cores(rows, batch)
        return out


def simulate(
    graph: str | os.PathLike[str] | ComputationGraph,
    cluster: str | os.PathLike[str] | Cluster,
    placement: np.ndarray,
    *,
    priority: np.ndarray | None = None,
    fusion: np.ndarray | None = None,
    cost_model: str | CostModel | None = None,
    op_times_s: Any = None,
    missing_op_times: str = "refuse",
    tensor_bytes: Any = None,
    transfer_s: Any = None,
    static_bytes: Any = None,
    order: str = "fifo",
) -> Timeline:
    """One step of a graph on a cluster, by name, path or object. Arguments as in :class:`Simulator`,
    :meth:`Simulator.run` and :meth:`OwnCosts.of`; so are the errors."""
    from graphopt_gym.graphs.zoo import load_graph
    from graphopt_gym.hardware.cluster import load_cluster

    graph, cluster = load_graph(graph), load_cluster(cluster)
    own = OwnCosts.of(
        graph, cluster, op_times_s=op_times_s, missing_op_times=missing_op_times, tensor_bytes=tensor_bytes,
        transfer_s=transfer_s, static_bytes=static_bytes,
    )  # fmt: skip
    return Simulator(graph, cluster, cost_model, fusion, own=own, order=order).run(placement, priority)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def on_all_cores(rows: Callable[[int, int], None], count: int) -> None:
    """Call ``rows(low, high)`` for parts of ``range(count)``, one a core: for work that gives the GIL back."""
    parts = min(cores(), count)
    if parts <= 1:
        rows(0, count)
        return
    cuts = np.linspace(0, count, parts + 1).astype(int).tolist()
    waits = [_pool().submit(rows, low, high) for low, high in itertools.pairwise(cuts[1:])]
    rows(cuts[0], cuts[1])  # this thread takes the first part
    for wait in waits:
        wait.result()


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, cores() - 1), thread_name_prefix="simulator")


if hasattr(os, "register_at_fork"):  # threads do not survive a fork; a child starts its own pool
    os.register_at_fork(after_in_child=_pool.cache_clear)
