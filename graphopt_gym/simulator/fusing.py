"""Which tasks become one kernel: fusions tried in an order, each where it is legal.

A producer is fused into all of its consumers that it may go into, or into none. As in production compilers (XLA's
instruction fusion visits producers by priority; TVM's classes of operators, Chen et al., OSDI 2018, §3):

- loops (elementwise ops, copies) fuse into loops, and into what works row by row (reductions, softmax, norms);
- a product (matmul, convolution) takes loops over its output as its epilogue, and so do rows; nothing fuses into a
  product, a kernel has one product or one row-wise op at most, and no op is computed twice;
- all that a kernel ends with has one iteration space; a kernel is of one device, of at most :data:`MOST_MEMBERS` tasks,
  and reads and writes at most :data:`MOST_OPERANDS` tensors; what stays inside it is held by rows where its row-wise op
  goes over them twice (softmax, norms), and must fit into the device's last-level cache, a row a compute unit;
- kernels never make a cycle. Kernels keep a topological order (as in Pearce and Kelly, ACM JEA 11, 2006), so a search
  looks only at what lies between the two; one that takes more than :data:`MOST_STEPS` edges leaves them apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from graphopt_gym.compiled import kernel
from graphopt_gym.graphs.graph import OP_CLASSES

if TYPE_CHECKING:
    from graphopt_gym.hardware.cluster import Cluster
    from graphopt_gym.simulator.tasks import TaskGraph

OPAQUE, LOOP, PRODUCT, ROWS = range(4)  # what an op is to fusion
MOST_MEMBERS = 64
MOST_OPERANDS = 64
MOST_STEPS = 256

CLASSES = {
    "elementwise": LOOP, "copy": LOOP, "matmul": PRODUCT, "conv": PRODUCT, "reduction": ROWS, "softmax": ROWS,
    "norm": ROWS,
}  # fmt: skip
_CLASS = np.array([CLASSES.get(name, OPAQUE) for name in OP_CLASSES], np.int8)
_TWICE = np.isin(np.array(OP_CLASSES), ("softmax", "norm"))


class FusionTables(NamedTuple):
    """What fusing takes of K tasks, T tensors and D devices; edges are distinct pairs of tasks, without sources."""

    fusion_class: np.ndarray  # int8 [K]
    elements: np.ndarray  # int64 [K] of the output
    space: np.ndarray  # int64 [K] of the iteration space: what a row-wise op reads, or else the output
    rows: np.ndarray  # int64 [K] of a row-wise op that goes over them twice; 0 of all others
    output_bytes: np.ndarray  # int64 [K]
    succ_ptr: np.ndarray  # int32 [K+1]
    succ: np.ndarray  # int32
    succ_ok: np.ndarray  # bool: whether the pair may be in one kernel
    pred_ptr: np.ndarray  # int32 [K+1]
    pred: np.ndarray  # int32
    pred_ok: np.ndarray  # bool
    tensor_ptr: np.ndarray  # int32 [K+1]
    reader_ptr: np.ndarray  # int32 [T+1]
    reader: np.ndarray  # int32
    input_ptr: np.ndarray  # int32 [K+1]
    input_tensor: np.ndarray  # int32
    tensor_task: np.ndarray  # int32 [T]
    cache_bytes: np.ndarray  # int64 [D]; a device whose cache is not known has no limit
    compute_units: np.ndarray  # int64 [D]
    most: np.ndarray  # int64 [3]: members, operands, steps


def fusion_tables(
    tasks: TaskGraph,
    cluster: Cluster,
    most_members: int = MOST_MEMBERS,
    most_operands: int = MOST_OPERANDS,
    most_steps: int = MOST_STEPS,
) -> FusionTables:
    """Of a graph's tasks, none of them fused yet."""
    graph, op = tasks.graph, tasks.first_op
    fusion_class = _CLASS[graph.op_class[op]]
    fusion_class[tasks.is_source] = OPAQUE
    elements = np.maximum(graph.output_shape, 1).prod(axis=1)[op].astype(np.int64)
    last = graph.output_shape[op, np.maximum((graph.output_shape[op] >= 0).sum(axis=1) - 1, 0)]
    twice = _TWICE[graph.op_class[op]] & ~tasks.is_source
    rows = np.where(twice, elements // np.maximum(last, 1), 0)
    producer = np.repeat(tasks.tensor_task, np.diff(tasks.reader_ptr)).astype(np.int64)
    consumer = tasks.reader.astype(np.int64)
    size = np.maximum(graph.output_shape, 1).prod(axis=1)[tasks.tensor_op]
    read = np.zeros(tasks.num_tasks, np.int64)  # elements of the largest input
    np.maximum.at(read, consumer, np.repeat(size, np.diff(tasks.reader_ptr)))
    space = np.where(fusion_class == ROWS, np.maximum(read, elements), elements)
    pairs = np.unique((producer * tasks.num_tasks + consumer)[~tasks.is_source[producer]])
    source, target = pairs // tasks.num_tasks, pairs % tasks.num_tasks
    of_source, of_target = fusion_class[source], fusion_class[target]
    same = elements[source] == elements[target]
    ok = np.where(of_source == LOOP, (of_target == LOOP) | (of_target == ROWS), (of_target == LOOP) & same)
    ok &= of_source != OPAQUE
    by_target = np.lexsort((source, target))
    return FusionTables(
        fusion_class, elements, space, rows, graph.output_bytes[op].astype(np.int64),
        _pointers(source, tasks.num_tasks), target.astype(np.int32), ok,
        _pointers(target, tasks.num_tasks), source[by_target].astype(np.int32), ok[by_target],
        tasks.tensor_ptr, tasks.reader_ptr, tasks.reader, tasks.input_ptr, tasks.input_tensor, tasks.tensor_task,
        np.array([device.cache_bytes for device in cluster.devices], np.int64),
        np.array([max(1, device.compute_units) for device in cluster.devices], np.int64),
        np.array([most_members, most_operands, most_steps], np.int64),
    )  # fmt: skip


def may_begin(tables: FusionTables) -> np.ndarray:
    """bool [K]: the tasks that may be fused into at least one consumer, as far as classes and sizes say."""
    pairs = np.repeat(np.arange(len(tables.elements)), np.diff(tables.succ_ptr))
    return np.bincount(pairs, tables.succ_ok, len(tables.elements)) > 0


def _pointers(rows: np.ndarray, n: int) -> np.ndarray:
    pointers = np.zeros(n + 1, np.int32)
    np.cumsum(np.bincount(rows, minlength=n), out=pointers[1:])
    return pointers


@kernel(inner=True, allocates=False)
def _holds(tables, device, members, count, mark, stamp, seen, tensor_seen):
    """Whether so many tasks, all marked ``stamp``, may be one kernel but for cycles; ``members`` int32 [.]."""
    anchor, inside_bytes, operands = -1, 0, 0
    for index in range(count):
        task = members[index]
        if tables.fusion_class[task] != LOOP:
            if anchor >= 0:
                return False
            anchor = task
    for index in range(count):
        task = members[index]
        for at in range(tables.pred_ptr[task], tables.pred_ptr[task + 1]):
            if mark[tables.pred[at]] == stamp and not tables.pred_ok[at]:
                return False
        for at in range(tables.input_ptr[task], tables.input_ptr[task + 1]):
            tensor = tables.input_tensor[at]
            if tensor_seen[tensor] != stamp and mark[tables.tensor_task[tensor]] != stamp:
                tensor_seen[tensor] = stamp
                operands += 1
        inside = False
        for tensor in range(tables.tensor_ptr[task], tables.tensor_ptr[task + 1]):
            leaves = False
            for at in range(tables.reader_ptr[tensor], tables.reader_ptr[tensor + 1]):
                if mark[tables.reader[at]] == stamp:
                    inside = True
                else:
                    leaves = True
            operands += leaves
        seen[index] = inside
        if tables.tensor_ptr[task] == tables.tensor_ptr[task + 1]:
            operands += 1  # an output of the step
        if inside:
            inside_bytes += tables.output_bytes[task]
    if operands > tables.most[1]:
        return False
    widest = 0
    for index in range(count):
        if not seen[index]:
            widest = max(widest, tables.space[members[index]])
    for index in range(count):
        task = members[index]
        if not seen[index] and tables.space[task] != widest:
            after_rows = anchor >= 0 and tables.fusion_class[anchor] == ROWS
            if not after_rows or tables.elements[task] != tables.elements[anchor]:
                return False
    if anchor >= 0 and tables.rows[anchor] > 0 and tables.cache_bytes[device] > 0:
        row_bytes = inside_bytes / tables.rows[anchor]
        return row_bytes * tables.compute_units[device] <= tables.cache_bytes[device]
    return True


@kernel
def _alone_holds(tables, device, members):
    mark = np.zeros(tables.fusion_class.shape[0], np.int64)
    for task in members:
        mark[task] = 1
    seen = np.empty(members.shape[0], np.bool_)
    tensor_seen = np.zeros(tables.tensor_task.shape[0], np.int64)
    return _holds(tables, device, members, members.shape[0], mark, 1, seen, tensor_seen)


def holds(tables: FusionTables, members: np.ndarray, placement: np.ndarray) -> bool:
    """Whether tasks, int [M] ascending, of one device may be one kernel, but for cycles; placement int [K]."""
    device = np.uint32(placement[members[0]])
    return bool(_alone_holds(tables, device, np.ascontiguousarray(members, np.int32)))


@kernel(inner=True, allocates=False)
def _between(tables, kernels, count, kernel_of, first, following, position, mark, stamp, reached, before, after):
    """Whether kernels, all of whose tasks are marked ``stamp``, can be one without a cycle, and what lies between.

    Returns (whether, number before, number after): ``before`` and ``after`` are filled with the kernels between them
    that lead to them, and that they lead to. ``reached`` int64 [K] holds stamps.
    """
    low, high = position[kernels[0]], position[kernels[0]]
    for index in range(1, count):
        low, high = min(low, position[kernels[index]]), max(high, position[kernels[index]])
    steps, num_after = 0, 0
    for backward in range(2):
        found = before if backward else after
        ptr, others = (tables.pred_ptr, tables.pred) if backward else (tables.succ_ptr, tables.succ)
        number, place = 0, 0
        while place < count + number:
            task = first[kernels[place] if place < count else found[place - count]]
            while task >= 0:
                for at in range(ptr[task], ptr[task + 1]):
                    steps += 1
                    if steps > tables.most[2]:
                        return False, 0, 0
                    if mark[others[at]] == stamp:
                        if place >= count:  # out of them, and back
                            return False, 0, 0
                        continue
                    there = kernel_of[others[at]]
                    if reached[there] != 2 * stamp + backward and (
                        position[there] > low if backward else position[there] < high
                    ):
                        reached[there] = 2 * stamp + backward
                        found[number] = there
                        number += 1
                task = following[task]
            place += 1
        if not backward:
            if number == 0:  # nothing comes between: the last of their places is that of the whole
                return True, 0, 0
            num_after = number
    return True, number, num_after


@kernel(inner=True, allocates=False)
def _sort_by(values, count, key):
    for index in range(1, count):
        value = values[index]
        at = index
        while at > 0 and key[values[at - 1]] > key[value]:
            values[at] = values[at - 1]
            at -= 1
        values[at] = value


@kernel(inner=True, allocates=False)
def _join(kernels, count, kernel_of, first, last, size, following, position, before, num_before, after, num_after,
          slots):  # fmt: skip
    """Makes kernels one, the first of them, in the topological order."""
    total = 0
    for index in range(num_before):
        slots[total] = position[before[index]]
        total += 1
    for index in range(num_after):
        slots[total] = position[after[index]]
        total += 1
    for index in range(count):
        slots[total] = position[kernels[index]]
        total += 1
    for index in range(1, total):
        value = slots[index]
        at = index
        while at > 0 and slots[at - 1] > value:
            slots[at] = slots[at - 1]
            at -= 1
        slots[at] = value
    _sort_by(before, num_before, position)
    _sort_by(after, num_after, position)
    for index in range(num_before):
        position[before[index]] = slots[index]
    for index in range(num_after):
        position[after[index]] = slots[total - num_after + index]
    whole = kernels[0]
    position[whole] = slots[total - num_after - 1]
    for index in range(1, count):
        part = kernels[index]
        following[last[whole]] = first[part]
        last[whole] = last[part]
        size[whole] += size[part]
        task = first[part]
        while task >= 0:
            kernel_of[task] = whole
            task = following[task]


@kernel
def fuse(levels, devices, tables):
    """The kernel of each task, int32 [K], named by one of its tasks.

    Args:
        levels: int32 [K]: tasks are tried as producers from the highest level down, of one level the last first; those
            of level 0 are not tried.
        devices: uint32 [K]: the device of each task.
        tables: FusionTables.
    """
    count = levels.shape[0]
    kernel_of = np.arange(count).astype(np.int32)
    first, last = kernel_of.copy(), kernel_of.copy()
    position, size = np.arange(count), np.ones(count, np.int32)
    following, anchored = np.full(count, -1, np.int32), tables.fusion_class != LOOP
    mark, reached = np.zeros(count, np.int64), np.full(count, -1, np.int64)
    tensor_seen = np.zeros(tables.tensor_task.shape[0], np.int64)
    most_members, most_steps = tables.most[0], tables.most[2]
    members, seen = np.empty(most_members, np.int32), np.empty(most_members, np.bool_)
    before, after = np.empty(most_steps + 1, np.int32), np.empty(most_steps + 1, np.int32)
    slots = np.empty(2 * most_steps + 2 + most_members, np.int64)
    pair, together = np.empty(2, np.int32), np.empty(most_members + 1, np.int32)
    wanted, verdict = np.empty(most_members + 1, np.int32), np.zeros(count, np.int64)

    # by level, of one level the last first
    highest = 0
    for task in range(count):
        highest = max(highest, levels[task])
    begin = np.zeros(highest + 2, np.int64)
    for task in range(count):
        begin[highest - levels[task] + 1] += 1
    for level in range(highest + 1):
        begin[level + 1] += begin[level]
    order = np.empty(count, np.int32)
    for task in range(count - 1, -1, -1):
        at = begin[highest - levels[task]]
        order[at] = task
        begin[highest - levels[task]] += 1

    stamp = 0
    for place in range(count):
        producer = order[place]
        if levels[producer] <= 0:
            break
        if tables.fusion_class[producer] == OPAQUE:
            continue
        low, high = tables.succ_ptr[producer], tables.succ_ptr[producer + 1]
        if low == high:
            continue
        home, device = kernel_of[producer], devices[producer]
        # kernels that have a consumer which it may not go into
        for at in range(low, high):
            if not tables.succ_ok[at] or devices[tables.succ[at]] != device:
                verdict[kernel_of[tables.succ[at]]] = -(place + 1)
        number, looked_at, num_before, num_after = 0, -1, 0, 0
        for at in range(low, high):
            there = kernel_of[tables.succ[at]]
            if there == home or abs(verdict[there]) == place + 1:
                continue
            verdict[there] = place + 1
            if size[home] + size[there] > most_members or (anchored[home] and anchored[there]):
                continue
            stamp += 1
            total = 0
            pair[0], pair[1] = home, there
            for index in range(2):
                task = first[pair[index]]
                while task >= 0:
                    members[total] = task
                    mark[task] = stamp
                    total += 1
                    task = following[task]
            if not _holds(tables, device, members, total, mark, stamp, seen, tensor_seen):
                continue
            looked_at = there
            legal, num_before, num_after = _between(
                tables, pair, 2, kernel_of, first, following, position, mark, stamp, reached, before, after
            )
            if legal and number < most_members:
                wanted[number] = there
                number += 1
        if number == 0:
            continue
        together[0] = home
        total = size[home]
        for index in range(number):
            together[index + 1] = wanted[index]
            total += size[wanted[index]]
        if number > 1 or looked_at != wanted[0]:  # else what lies between the two is known
            if total > most_members:
                continue
            stamp += 1
            total = 0
            for index in range(number + 1):
                task = first[together[index]]
                while task >= 0:
                    members[total] = task
                    mark[task] = stamp
                    total += 1
                    task = following[task]
            if number > 1 and not _holds(tables, device, members, total, mark, stamp, seen, tensor_seen):
                continue
            legal, num_before, num_after = _between(
                tables, together, number + 1, kernel_of, first, following, position, mark, stamp, reached, before, after
            )
            if not legal:
                continue
        for index in range(1, number + 1):
            anchored[home] |= anchored[together[index]]
        _join(
            together, number + 1, kernel_of, first, last, size, following, position, before, num_before, after,
            num_after, slots,
        )  # fmt: skip
    return kernel_of
