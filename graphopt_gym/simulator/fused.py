"""The engine over kernels that each decision fuses anew: placement, fusion and schedule of a step, evaluated at once.

What :func:`compile_tasks` and :class:`Simulator` do for one fusion takes milliseconds; here compiled code derives the
same columns from those of the tasks that are not fused. They are equal exactly, times included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from graphopt_gym.compiled import kernel
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.graph import VIEW
from graphopt_gym.simulator import engine
from graphopt_gym.simulator.fusing import FusionTables, fuse, fusion_tables
from graphopt_gym.simulator.simulator import Batch, Simulator, on_all_cores
from graphopt_gym.simulator.tasks import _aliases

if TYPE_CHECKING:
    from graphopt_gym.simulator.timeline import Timeline


class TaskTables(NamedTuple):
    """What kernels are made of: K tasks, each with one storage, T tensors, types of devices."""

    is_source: np.ndarray  # bool [K]
    persistent_bytes: np.ndarray  # int64 [K]
    storage_bytes: np.ndarray  # int64 [K]
    unread: np.ndarray  # bool [K]: nobody reads what it makes, an output of the step
    tensor_ptr: np.ndarray
    tensor_bytes: np.ndarray
    tensor_task: np.ndarray
    tensor_op: np.ndarray
    input_ptr: np.ndarray
    input_tensor: np.ndarray
    transfer_s: np.ndarray
    durations: np.ndarray  # float64 [types, K] of a task by itself
    compute_s: np.ndarray  # float64 [types, K]
    bytes_per_s: np.ndarray  # float64 [types, K]
    launch_s: np.ndarray  # float64 [types, K]
    bytes_read: np.ndarray  # float64 [K]
    bytes_written: np.ndarray  # float64 [K]
    whole_bytes: np.ndarray  # int64 [K] of the output
    edge_ptr: np.ndarray  # int32 [K+1]: what a task's op reads, in the order of ops
    edge_task: np.ndarray  # int32: the task that it is from
    edge_alias: np.ndarray  # int32: the op that names the tensor
    edge_bytes: np.ndarray  # int64: of what is read


class Kernels(NamedTuple):
    """F kernels, the columns that the engine takes of them, and the tasks that they are made of."""

    kernel_of_task: np.ndarray  # int32 [K]
    member_ptr: np.ndarray  # int32 [F+1]
    member: np.ndarray  # int32 [K] the tasks of each kernel, ascending
    durations: np.ndarray  # float64 [types, F], filled for the type of the kernel's device
    is_source: np.ndarray  # bool [F]
    persistent_bytes: np.ndarray  # int64 [F]
    storage_ptr: np.ndarray  # uint32 [F+1]
    storage_bytes: np.ndarray
    tensor_ptr: np.ndarray
    tensor_bytes: np.ndarray
    tensor_storage: np.ndarray
    tensor_task: np.ndarray
    reader_ptr: np.ndarray
    reader: np.ndarray
    input_ptr: np.ndarray
    input_tensor: np.ndarray
    input_of_reader: np.ndarray
    transfer_s: np.ndarray


@kernel(inner=True, allocates=False)
def _seconds(tables, kind, member, low, high, kernel_of, kept, seen_alias, read_stamp, read_bytes):
    """Of one kernel of several tasks: one launch, the compute of all, the bytes that cross its border."""
    launch, compute, memory = 0.0, 0.0, 0.0
    this = kernel_of[member[low]]
    for index in range(low, high):
        task = member[index]
        saved = 0
        for at in range(tables.edge_ptr[task], tables.edge_ptr[task + 1]):
            source, size = tables.edge_task[at], tables.edge_bytes[at]
            if kernel_of[source] == this:
                saved += size
                continue
            most = tables.whole_bytes[source]  # a view that repeats what it views touches no more
            size = min(size, most)
            if read_stamp[source] != this:
                read_stamp[source] = this
                read_bytes[source] = 0
            before = read_bytes[source]
            if seen_alias[tables.edge_alias[at]] != this:
                seen_alias[tables.edge_alias[at]] = this
                read_bytes[source] += size
            saved += size - (min(read_bytes[source], most) - min(before, most))
        moved = max(tables.bytes_read[task] - saved, 0.0)
        if kept[task]:
            moved += tables.bytes_written[task]
        compute += tables.compute_s[kind, task]
        memory += moved / tables.bytes_per_s[kind, task]
        launch = max(launch, tables.launch_s[kind, task])
    return launch + max(compute, memory)


@kernel(inner=True)
def make_kernels(tables, name_of_task, devices, device_type):
    """:class:`Kernels` of tasks whose kernels are named by one of their tasks, int32 [K], on devices uint32 [K]."""
    num_tasks, num_tensors = name_of_task.shape[0], tables.tensor_task.shape[0]
    number = np.full(num_tasks, -1, np.int32)
    kernel_of = np.empty(num_tasks, np.int32)
    count = 0
    for task in range(num_tasks):
        if number[name_of_task[task]] < 0:
            number[name_of_task[task]] = count
            count += 1
        kernel_of[task] = number[name_of_task[task]]
    member_ptr, member = np.zeros(count + 1, np.int32), np.empty(num_tasks, np.int32)
    for task in range(num_tasks):
        member_ptr[kernel_of[task] + 1] += 1
    for this in range(count):
        member_ptr[this + 1] += member_ptr[this]
    fill = member_ptr[:count].copy()
    for task in range(num_tasks):
        member[fill[kernel_of[task]]] = task
        fill[kernel_of[task]] += 1

    # what crosses borders: how many kernels read each tensor, and how many tensors each kernel reads
    input_ptr, reads = np.zeros(count + 1, np.uint32), np.zeros(num_tensors, np.int32)
    seen = np.full(num_tensors, -1, np.int32)
    for this in range(count):
        for index in range(member_ptr[this], member_ptr[this + 1]):
            task = member[index]
            for at in range(tables.input_ptr[task], tables.input_ptr[task + 1]):
                tensor = tables.input_tensor[at]
                if seen[tensor] != this and kernel_of[tables.tensor_task[tensor]] != this:
                    seen[tensor] = this
                    reads[tensor] += 1
                    input_ptr[this + 1] += 1
    kept = tables.unread.copy()
    crossing = 0
    for tensor in range(num_tensors):
        if reads[tensor] > 0:
            kept[tables.tensor_task[tensor]] = True
            crossing += 1

    storage_ptr, tensor_ptr = np.zeros(count + 1, np.uint32), np.zeros(count + 1, np.uint32)
    storages = 0
    for task in range(num_tasks):
        storages += kept[task]
    storage_bytes, tensor_bytes = np.empty(storages, np.int64), np.empty(crossing, np.int64)
    tensor_storage, tensor_task = np.empty(crossing, np.uint32), np.empty(crossing, np.uint32)
    transfer_s, place_of = np.empty(crossing), np.empty(num_tensors, np.int32)
    reader_ptr = np.zeros(crossing + 1, np.uint32)
    is_source, persistent = np.empty(count, np.bool_), np.zeros(count, np.int64)
    durations = np.zeros((tables.durations.shape[0], count))
    storage_of = np.empty(num_tasks, np.uint32)
    mine = np.empty(crossing, np.int32)
    num_storages, num_crossing = 0, 0
    seen_alias = np.full(tables.edge_alias.max() + 1 if tables.edge_alias.shape[0] else 0, -1, np.int32)
    read_stamp, read_bytes = np.full(num_tasks, -1, np.int32), np.zeros(num_tasks, np.int64)
    for this in range(count):
        low, high = member_ptr[this], member_ptr[this + 1]
        is_source[this] = tables.is_source[member[low]]
        number_here = 0
        for index in range(low, high):
            task = member[index]
            persistent[this] += tables.persistent_bytes[task]
            if kept[task]:
                storage_of[task] = num_storages
                storage_bytes[num_storages] = tables.storage_bytes[task]
                num_storages += 1
            for tensor in range(tables.tensor_ptr[task], tables.tensor_ptr[task + 1]):
                if reads[tensor] > 0:  # in the order of their ops
                    at = number_here
                    while at > 0 and tables.tensor_op[mine[at - 1]] > tables.tensor_op[tensor]:
                        mine[at] = mine[at - 1]
                        at -= 1
                    mine[at] = tensor
                    number_here += 1
        for index in range(number_here):
            tensor = mine[index]
            place_of[tensor] = num_crossing
            tensor_bytes[num_crossing] = tables.tensor_bytes[tensor]
            tensor_storage[num_crossing] = storage_of[tables.tensor_task[tensor]]
            tensor_task[num_crossing] = this
            transfer_s[num_crossing] = tables.transfer_s[tensor]
            reader_ptr[num_crossing + 1] = reader_ptr[num_crossing] + np.uint32(reads[tensor])
            num_crossing += 1
        storage_ptr[this + 1], tensor_ptr[this + 1] = num_storages, num_crossing
        input_ptr[this + 1] += input_ptr[this]
        kind = device_type[devices[member[low]]]
        if high == low + 1:
            durations[kind, this] = tables.durations[kind, member[low]]
        else:
            durations[kind, this] = _seconds(
                tables, kind, member, low, high, kernel_of, kept, seen_alias, read_stamp, read_bytes
            )

    reader, input_of_reader = np.empty(reader_ptr[crossing], np.uint32), np.empty(reader_ptr[crossing], np.uint32)
    next_reader = reader_ptr[:crossing].copy()
    for tensor in range(num_tensors):
        seen[tensor] = -1
    for this in range(count):
        for index in range(member_ptr[this], member_ptr[this + 1]):
            task = member[index]
            for at in range(tables.input_ptr[task], tables.input_ptr[task + 1]):
                tensor = tables.input_tensor[at]
                if seen[tensor] != this and kernel_of[tables.tensor_task[tensor]] != this:
                    seen[tensor] = this
                    place = place_of[tensor]
                    reader[next_reader[place]] = this
                    next_reader[place] += np.uint32(1)
    input_tensor, next_input = np.empty(reader_ptr[crossing], np.uint32), input_ptr[:count].copy()
    for place in range(crossing):
        for at in range(reader_ptr[place], reader_ptr[place + 1]):
            this = reader[at]
            input_tensor[next_input[this]] = place
            input_of_reader[at] = next_input[this]
            next_input[this] += np.uint32(1)
    return Kernels(
        kernel_of, member_ptr, member, durations, is_source, persistent, storage_ptr, storage_bytes, tensor_ptr,
        tensor_bytes, tensor_storage, tensor_task, reader_ptr, reader, input_ptr, input_tensor, input_of_reader,
        transfer_s,
    )  # fmt: skip


@kernel
def run_fused(
    placements,  # uint32 [B, K]
    fusion_levels,  # int32 [B, K], or [1, K] for all
    priorities,  # float64 [B, K], [1, K] for all, or [1, 0] where the order is not PRIORITY
    order,
    device_type,
    link_of,
    link_latency_s,
    link_bytes_per_s,
    fusion_tables,
    task_tables,
    makespans,  # float64 [B], filled, as the next three
    peaks,
    peak_times,
    busy,
    num_kernels,  # int64 [B]
):
    """Fuse, derive the kernels' columns, and run a step, for each of B decisions."""
    nothing = np.empty(0)
    record = nothing.shape[0] > 0
    sequence = np.empty(0, np.uint32)  # of the orders that need none
    for row in range(placements.shape[0]):
        devices = placements[row]
        levels = fusion_levels[row if fusion_levels.shape[0] > 1 else 0]
        given = priorities[row if priorities.shape[0] > 1 else 0]
        made = make_kernels(task_tables, fuse(levels, devices, fusion_tables), devices, device_type)
        count = made.is_source.shape[0]
        num_kernels[row] = count
        placement = np.empty((1, count), np.uint32)
        priority = np.empty((1, count if given.shape[0] > 0 else 0))
        for this in range(count):
            low, high = made.member_ptr[this], made.member_ptr[this + 1]
            placement[0, this] = devices[made.member[low]]
            if given.shape[0] > 0:  # that of its most urgent member
                priority[0, this] = given[made.member[low]]
                for index in range(low + 1, high):
                    priority[0, this] = max(priority[0, this], given[made.member[index]])
        engine.run(
            placement, priority, order, made.durations, device_type, link_of, link_latency_s, link_bytes_per_s,
            sequence, made.is_source, made.persistent_bytes, made.storage_ptr, made.storage_bytes, made.tensor_ptr,
            made.tensor_bytes, made.tensor_storage, made.tensor_task, made.reader_ptr, made.reader, made.input_ptr,
            made.input_tensor, made.input_of_reader, made.transfer_s, record, nothing, nothing,
            makespans[row : row + 1], peaks[row : row + 1], peak_times[row : row + 1], busy[row : row + 1],
        )  # fmt: skip


def _own(values: np.ndarray, dtype: Any) -> np.ndarray:
    """Contiguous and writable: arrays that cannot be written are of another type, for which all is compiled anew."""
    found = np.ascontiguousarray(values, dtype)
    return found if found.flags.writeable else found.copy()


class FusedSimulator:
    """A graph on a cluster whose tasks are fused anew by each decision.

    Args:
        simulator: of the tasks that are not fused. Times of one's own have no parts, so they cannot be fused.

    Attributes:
        tables: what fusing takes.

    Raises:
        InputError: op times of one's own; an order other than first come, first served and priorities.
    """

    def __init__(self, simulator: Simulator) -> None:
        if simulator.own is not None and simulator.own.op_times_s is not None:
            raise InputError("op_times_s cannot be given where ops are fused: no part of them is known; leave them out")
        if simulator.order not in ("fifo", "priority"):
            raise InputError(f"order is {simulator.order!r}; where ops are fused it is 'fifo' or 'priority'")
        self.simulator = simulator
        tasks, graph = simulator.tasks, simulator.graph
        model: Any = simulator.cost_model
        kinds = list(dict.fromkeys(simulator.cluster.devices))
        op = tasks.first_op
        found = [[part[op] for part in model.components(graph, device)] for device in kinds]
        compute_s, bytes_per_s, launch_s = (np.ascontiguousarray(one) for one in np.swapaxes(found, 0, 1))
        assert (np.diff(tasks.storage_ptr) == 1).all()  # a task by itself has the storage of its op
        is_view = graph.op_class == VIEW
        real = ~is_view[graph.edge_dst]
        source, target = graph.edge_src[real], graph.edge_dst[real]
        order = np.lexsort((source, target))
        source, target = source[order], target[order]
        read = np.bincount(graph.view_root[source], minlength=graph.num_ops) > 0
        self.task_tables = TaskTables(
            tasks.is_source, tasks.persistent_bytes, tasks.storage_bytes, ~read[op], tasks.tensor_ptr,
            tasks.tensor_bytes, tasks.tensor_task, tasks.tensor_op, tasks.input_ptr, tasks.input_tensor,
            tasks.transfer_s, simulator.durations_s, compute_s, bytes_per_s, launch_s,
            graph.bytes_read[op].astype(np.float64), graph.bytes_written[op].astype(np.float64),
            graph.output_bytes[op], np.concatenate([[0], np.cumsum(np.bincount(tasks.task_of_op[target],
            minlength=tasks.num_tasks))]).astype(np.int32), tasks.task_of_op[source],
            _aliases(graph)[source].astype(np.int32), graph.output_bytes[source],
        )  # fmt: skip
        self.tables: FusionTables = fusion_tables(tasks, simulator.cluster)

    def kernel_of_task(self, placement: np.ndarray, levels: np.ndarray) -> np.ndarray:
        """int32 [K]: the kernel of each task, named by one of its tasks; see :func:`fusing.fuse`."""
        return fuse(_own(levels, np.int32), _own(placement, np.int32).view(np.uint32), self.tables)  # type: ignore[no-any-return]

    def fusion(self, placement: np.ndarray, levels: np.ndarray) -> np.ndarray:
        """int32 [N]: the fused group of each op, -1 for one that is a kernel by itself, as :class:`Simulator` takes."""
        named = self.kernel_of_task(placement, levels)
        alone = np.bincount(named, minlength=len(named))[named] == 1
        return np.where(alone, -1, named).astype(np.int32)[self.simulator.tasks.task_of_op]

    def timeline(self, placement: np.ndarray, levels: np.ndarray, priority: np.ndarray | None = None) -> Timeline:
        """What ran where and when: placement and levels int [K], priority float [K] or None: as the order says."""
        base = self.simulator
        fused = Simulator(
            base.graph, base.cluster, base.cost_model, self.fusion(placement, levels), own=base.own, order=base.order
        )
        of_task = fused.tasks.task_of_op[base.tasks.first_op]
        first = base.tasks.task_of_op[fused.tasks.first_op]
        urgent = None
        if priority is not None:
            urgent = np.full(fused.num_tasks, -np.inf)
            np.maximum.at(urgent, of_task, priority)
        return fused.run_tasks(placement[first], urgent)

    def run_many(
        self, placements: np.ndarray, levels: np.ndarray, priorities: np.ndarray | None = None
    ) -> tuple[Batch, np.ndarray]:
        """(costs, kernels int64 [B]) of decisions int [B, K], on all cores; levels and priorities [1, K] are of all."""
        base = self.simulator
        placements = _own(placements, np.int32).view(np.uint32)
        levels = _own(levels, np.int32)
        given = np.zeros((1, 0)) if priorities is None else _own(priorities, np.float64)
        if priorities is None and base.order == "priority":
            given = base.priorities[None]
        count = len(placements)
        shape = (count, base.num_devices)
        out = Batch(np.empty(count), np.empty(shape, np.int64), np.empty(shape), np.empty(shape))
        kernels = np.empty(count, np.int64)
        order = engine.PRIORITY if given.shape[1] else engine.FIFO
        _, _, device_type, *links = base.columns[:6]

        def rows(low: int, high: int) -> None:
            at = slice(low, high)
            run_fused(
                placements[at], levels if len(levels) == 1 else levels[at], given if len(given) == 1 else given[at],
                order, device_type, *links, self.tables, self.task_tables, out.makespan_s[at], out.peak_bytes[at],
                out.peak_time_s[at], out.busy_s[at], kernels[at],
            )  # fmt: skip

        on_all_cores(rows, count)
        return out, kernels


@kernel
def _one_kernel_s(tables, members, kind):
    num_tasks = tables.is_source.shape[0]
    kernel_of, kept = np.full(num_tasks, -1, np.int32), tables.unread.copy()
    for task in members:
        kernel_of[task] = 0
    for task in range(num_tasks):
        if kernel_of[task] != 0:
            for at in range(tables.input_ptr[task], tables.input_ptr[task + 1]):
                kept[tables.tensor_task[tables.input_tensor[at]]] = True
    seen_alias = np.full(tables.edge_alias.max() + 1, -1, np.int32)
    read_stamp, read_bytes = np.full(num_tasks, -1, np.int32), np.zeros(num_tasks, np.int64)
    return _seconds(tables, kind, members, 0, members.shape[0], kernel_of, kept, seen_alias, read_stamp, read_bytes)


def kernel_seconds(fused: FusedSimulator, members: np.ndarray, placement: np.ndarray) -> float:
    """Seconds of one kernel of several tasks, int [M] ascending, where all others are by themselves."""
    kind = fused.simulator.device_type[placement[members[0]]]
    return float(_one_kernel_s(fused.task_tables, np.ascontiguousarray(members, np.int32), int(kind)))
