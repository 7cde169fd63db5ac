"""Orders that need little memory: those of the field for one device, and a greedy one for many. K tasks, D devices.

What the engine holds on one device while tasks run in some order: parameters and state all the time; what sources
give, from the beginning; what a task gives, from its start; each until its last reader has finished (what nobody
reads, until its producer has). So a task adds its outputs, memory peaks, and then it takes away what it was the last to
read: inputs and outputs are held together, as in the pebble game without sliding. Durations do not matter.

Sethi and Ullman (1970), Liu (1986) and Liu (1987) are about trees: each task has one reader. Here *in-forest* means
that all that a task gives is read by one task, and what a source gives, too (see :func:`is_in_forest`). Sources are no
tasks of an order, they only make what a task takes away larger. That can be more than the task adds, so a subtree may
end with less than it began with, which Liu's trees cannot: pieces are put in order by the rule of Abdel-Wahab and
Kameda for cumulative costs of any sign (Operations Research 26(1), 1978), of which Liu's is the case without such ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from graphopt_gym.compiled import kernel
from graphopt_gym.envs.scheduling.orders import depth_first, placed_durations_s, post_order, priority_of
from graphopt_gym.simulator.engine import NONE, _meld, _without_root

if TYPE_CHECKING:
    from graphopt_gym.simulator.simulator import Simulator
    from graphopt_gym.simulator.tasks import TaskGraph

ROUNDS = 3  # how often a graph that is no forest is made one, each time by the last order


class Holdings(NamedTuple):
    """What takes memory under a placement: H storages at home and copies elsewhere."""

    num_bytes: np.ndarray  # int64 [H]
    device: np.ndarray  # int32 [H]
    producer: np.ndarray  # int32 [H]
    is_copy: np.ndarray  # bool [H]
    reader_ptr: np.ndarray  # int64 [H+1]
    reader: np.ndarray  # int32 tasks on that device that read it, ascending
    read_ptr: np.ndarray  # int64 [K+1]
    read: np.ndarray  # int64 what each task reads, ascending


def holdings(tasks: TaskGraph, placement: np.ndarray) -> Holdings:
    """What takes memory where; storages come first, numbered as in ``tasks``."""
    placement = np.asarray(placement)
    storages, k = len(tasks.storage_bytes), tasks.num_tasks
    tensor = np.repeat(np.arange(tasks.num_tensors), np.diff(tasks.reader_ptr))
    target = placement[tasks.reader].astype(np.int64)
    apart = target != placement[tasks.tensor_task[tensor]]
    devices = int(placement.max(initial=0)) + 1
    copies, copy = np.unique((tensor * devices + target)[apart], return_inverse=True)
    item = tasks.tensor_storage[tensor].astype(np.int64)
    item[apart] = storages + copy
    producer = np.repeat(np.arange(k), np.diff(tasks.storage_ptr))
    pairs = np.unique(item * k + tasks.reader)
    by_item, reader = pairs // max(k, 1), pairs % max(k, 1)
    count = storages + len(copies)
    return Holdings(
        num_bytes=np.concatenate([tasks.storage_bytes, tasks.tensor_bytes[copies // devices]]).astype(np.int64),
        device=np.concatenate([placement[producer], copies % devices]).astype(np.int32),
        producer=np.concatenate([producer, tasks.tensor_task[copies // devices]]).astype(np.int32),
        is_copy=np.arange(count) >= storages,
        reader_ptr=np.searchsorted(by_item, np.arange(count + 1)),
        reader=reader.astype(np.int32),
        read_ptr=np.searchsorted(np.sort(reader), np.arange(k + 1)),
        read=by_item[np.argsort(reader, kind="stable")],
    )


def is_in_forest(tasks: TaskGraph) -> bool:
    """Whether no task and no source has two readers: where :func:`liu` has the least peak of all orders."""
    if not len(tasks.reader):
        return True
    pairs = np.unique(np.repeat(tasks.tensor_task, np.diff(tasks.reader_ptr)).astype(np.int64) * tasks.num_tasks
                      + tasks.reader)  # fmt: skip
    return bool(np.bincount(pairs // tasks.num_tasks).max() <= 1)


# ---- trees


def sethi_ullman(simulator: Simulator, placement: np.ndarray) -> np.ndarray:
    """float64 [K]: one subtree after the other, in the best order of the subtrees.

    Sethi and Ullman (J. of the ACM 17(4), 1970) number the registers of an expression's tree and evaluate the subtree
    first that needs more; with outputs of any size that is Liu's best post-order (ACM TOMS 12(3), 1986). On an
    in-forest, on one device: the least peak of all post-orders; they can be far above the best order. On other graphs:
    see :func:`liu`.
    """
    return _by_trees(simulator, placement, True)


def liu(simulator: Simulator, placement: np.ndarray) -> np.ndarray:
    """float64 [K]: Liu's order of a tree by hills and valleys (SIAM J. Algebraic Discrete Methods 8(3), 1987).

    A subtree's order is cut where its memory is lowest, and the pieces of all subtrees are merged: those that end with
    less than they began with by rising peak, then the others by falling peak above their end. On an in-forest, on one
    device: the least peak of all orders.

    On other graphs it is a heuristic. A task belongs to one of its readers alone, the first or the last of them in an
    order that is known (depth-first, then the last order found), and what it gives is counted until the last; the other
    readers are seen to by bringing forward all that a task needs. Of the orders so found, and the depth-first one, that
    with the least peak in the simulator is taken (of the device with the largest peak; then the shortest step). On
    several devices the order is that of all tasks as if on one.
    """
    return _by_trees(simulator, placement, False)


def _by_trees(simulator: Simulator, placement: np.ndarray, whole: bool) -> np.ndarray:
    tasks, num_tasks = simulator.tasks, simulator.num_tasks
    placement = np.ascontiguousarray(placement, np.int32)
    held = holdings(tasks, np.zeros(num_tasks, np.int32))
    columns = (tasks.sequence, tasks.is_source, tasks.storage_ptr, held.num_bytes, held.reader_ptr, held.reader)
    if is_in_forest(tasks):  # one forest, and any known order gives it
        return priority_of(_with_inputs(simulator, forest_order(*columns, np.zeros(num_tasks), True, whole)))
    best = depth_first(simulator, placement)
    best_cost = _cost(simulator, placement, best)
    depth = best
    for last in (True, False):
        known = depth
        for _ in range(ROUNDS):
            found = priority_of(_with_inputs(simulator, forest_order(*columns, -known, last, whole)))
            cost = _cost(simulator, placement, found)
            if cost < best_cost:
                best, best_cost = found, cost
            if (found == known).all():
                break
            known = found
    return best


def _cost(simulator: Simulator, placement: np.ndarray, priority: np.ndarray) -> tuple[int, float]:
    batch = simulator.run_many(placement[None], priority[None])
    return int(batch.peak_bytes[0].max()), float(batch.makespan_s[0])


def _with_inputs(simulator: Simulator, order: np.ndarray) -> np.ndarray:
    """int32 [K]: the tasks in an order, int [K], each preceded by what it needs and was not there yet."""
    position = np.empty(len(order))
    position[order] = np.arange(len(order))
    return post_order(simulator, -position, order)


@kernel(inner=True, allocates=False)
def _set_key(task, hill, net, group, second, third):
    """Where a piece goes, by what comes *last*: pairing heaps give that first, as tasks are appended there."""
    third[task] = -np.int64(task)
    if net[task] <= 0:
        group[task] = 1
        second[task] = -hill[task]
    else:
        group[task] = 0
        second[task] = hill[task] - net[task]


@kernel
def forest_order(sequence, is_source, storage_ptr, num_bytes, reader_ptr, reader, position, last, whole):
    """int32 [K]: sources, then the tasks of a graph that is made an in-forest, in the order of :func:`liu`, or, where
    ``whole``, of :func:`sethi_ullman`.

    A piece is a run of tasks that stay together: how high memory goes in it, and what is left of that at its end, both
    above its beginning. A subtree is a heap of pieces. What a task must follow, but would go before, it is joined to,
    so only the end of a subtree's order changes: O(K log K). Pieces that go as well either way go by their last task.

    Args:
        storage_ptr ... reader: what takes memory, the storages of :class:`Holdings` alone.
        position: float64 [K], a known order; what a task gives is let go of by the last of its readers there.
        last: whether a task belongs to the last of its readers there, or to the first.
        whole: whether each subtree is one piece.
    """
    num_tasks = sequence.shape[0]
    parent = np.full(num_tasks, -1, np.int32)
    hill, net = np.zeros(num_tasks, np.int64), np.zeros(num_tasks, np.int64)
    for task in range(num_tasks):
        for item in range(storage_ptr[task], storage_ptr[task + 1]):
            final = -1
            for place in range(reader_ptr[item], reader_ptr[item + 1]):
                other = reader[place]
                if final == -1 or position[other] > position[final]:
                    final = other
                if parent[task] == -1 or (position[other] > position[parent[task]]) == last:
                    parent[task] = other
            if final != -1:
                net[final] -= num_bytes[item]
            if not is_source[task]:
                hill[task] += num_bytes[item]
                if final != -1:
                    net[task] += num_bytes[item]
    # pieces are named by their last task
    first = np.arange(num_tasks, dtype=np.int32)
    after = np.full(num_tasks, -1, np.int32)
    group = np.empty(num_tasks, np.int64)
    second, third = np.empty(num_tasks, np.int64), np.empty(num_tasks, np.int64)
    child, sibling = np.full(num_tasks, NONE, np.uint32), np.full(num_tasks, NONE, np.uint32)
    subtree = np.full(num_tasks + 1, NONE, np.uint32)  # a heap each; the last is that of all trees
    for index in range(num_tasks):
        task = sequence[index]
        if is_source[task]:
            continue
        _set_key(task, hill, net, group, second, third)
        root = subtree[task]
        while root != NONE:
            before = np.int64(root)
            # as it must follow, it may not go by its number where all else is the same
            early = group[task] > group[before] or (group[task] == group[before] and second[task] >= second[before])
            if not (whole or early):
                break
            root = _without_root(root, child, sibling, group, second, third)
            after[before] = first[task]
            first[task] = first[before]
            hill[task] = max(hill[before], net[before] + hill[task])
            net[task] += net[before]
            _set_key(task, hill, net, group, second, third)
        child[task] = sibling[task] = NONE
        root = _meld(root, np.uint32(task), child, sibling, group, second, third)
        above = parent[task] if parent[task] != -1 else num_tasks
        subtree[above] = _meld(subtree[above], root, child, sibling, group, second, third)
    order = np.empty(num_tasks, np.int32)
    count = 0
    for task in range(num_tasks):
        if is_source[task]:
            order[count] = task
            count += 1
    pieces = np.empty(num_tasks, np.int32)
    num_pieces = 0
    root = subtree[num_tasks]
    while root != NONE:
        pieces[num_pieces] = root
        num_pieces += 1
        root = _without_root(root, child, sibling, group, second, third)
    for index in range(num_pieces - 1, -1, -1):
        task = first[pieces[index]]
        while True:
            order[count] = task
            count += 1
            if task == pieces[index]:
                break
            task = after[task]
    return order


# ---- greedy


def memory_greedy(simulator: Simulator, placement: np.ndarray) -> np.ndarray:
    """float64 [K]: of the ready tasks of a device, that which adds least less what it frees; then that which adds
    least, then the lowest.

    The rule of XLA's list scheduler (``hlo_memory_scheduler.cc`` of OpenXLA), which knows one device and breaks ties by
    the number of readers. Here the next task is one of the device that has least work behind it, of those with ready
    tasks; a copy counts as freed by the last task there that reads it, and what only other devices read as freed at
    once.
    """
    tasks = simulator.tasks
    placement = np.ascontiguousarray(placement, np.int32)
    held = holdings(tasks, placement)
    order = _greedy(
        placement, placed_durations_s(simulator, placement), simulator.num_devices, tasks.is_source,
        tasks.storage_ptr, tasks.tensor_ptr, tasks.reader_ptr, tasks.reader, tasks.input_ptr,
        held.num_bytes, held.reader_ptr, held.reader, held.read_ptr, held.read,
    )  # fmt: skip
    return priority_of(order)


@kernel(inner=True, allocates=False)
def _frees_more(a, b, net, added):
    if net[a] != net[b]:
        return net[a] < net[b]
    if added[a] != added[b]:
        return added[a] < added[b]
    return a < b


@kernel(inner=True, allocates=False)
def _rise(heap, where, base, position, net, added):
    task = heap[base + position]
    while position > 0:
        parent = (position - 1) >> 1
        other = heap[base + parent]
        if not _frees_more(task, other, net, added):
            break
        heap[base + position] = other
        where[other] = position
        position = parent
    heap[base + position] = task
    where[task] = position


@kernel(inner=True, allocates=False)
def _sink(heap, where, base, size, net, added):
    task = heap[base]
    position = 0
    while True:
        below = 2 * position + 1
        if below >= size:
            break
        if below + 1 < size and _frees_more(heap[base + below + 1], heap[base + below], net, added):
            below += 1
        other = heap[base + below]
        if not _frees_more(other, task, net, added):
            break
        heap[base + position] = other
        where[other] = position
        position = below
    heap[base + position] = task
    where[task] = position


@kernel
def _greedy(
    placement, durations_s, num_devices, is_source, storage_ptr, tensor_ptr, tensor_reader_ptr, tensor_reader,
    input_ptr, num_bytes, reader_ptr, reader, read_ptr, read,
):  # fmt: skip
    num_tasks = placement.shape[0]
    num_items = num_bytes.shape[0]
    added, net = np.zeros(num_tasks, np.int64), np.zeros(num_tasks, np.int64)
    left, total = np.zeros(num_items, np.int64), np.zeros(num_items, np.int64)  # readers to come: how many, their sum
    for item in range(num_items):
        for place in range(reader_ptr[item], reader_ptr[item + 1]):
            left[item] += 1
            total[item] += reader[place]
        if left[item] == 1:
            net[total[item]] -= num_bytes[item]
    for task in range(num_tasks):
        for item in range(storage_ptr[task], storage_ptr[task + 1]):
            added[task] += num_bytes[item]
            if left[item] > 0:
                net[task] += num_bytes[item]
    begin = np.zeros(num_devices + 1, np.int64)
    for device in placement:
        begin[device + 1] += 1
    for device in range(num_devices):
        begin[device + 1] += begin[device]
    heap, where = np.empty(num_tasks, np.int32), np.full(num_tasks, -1, np.int64)
    size, work_s = np.zeros(num_devices, np.int64), np.zeros(num_devices)
    waiting = input_ptr[1:] - input_ptr[:-1]
    order = np.empty(num_tasks, np.int32)
    count = 0
    for task in range(num_tasks):
        if is_source[task]:
            order[count] = task
            count += 1
        elif waiting[task] == 0:
            base, position = begin[placement[task]], size[placement[task]]
            heap[base + position] = task
            size[placement[task]] += 1
            _rise(heap, where, base, position, net, added)
    done = 0
    while True:
        if done < count:
            task = order[done]
        else:
            chosen = -1
            for device in range(num_devices):
                if size[device] > 0 and (chosen == -1 or work_s[device] < work_s[chosen]):
                    chosen = device
            if chosen == -1:
                break
            base = begin[chosen]
            task = heap[base]
            where[task] = -1
            size[chosen] -= 1
            if size[chosen] > 0:
                heap[base] = heap[base + size[chosen]]
                _sink(heap, where, base, size[chosen], net, added)
            work_s[chosen] += durations_s[task]
            order[count] = task
            count += 1
        done += 1
        for place in range(read_ptr[task], read_ptr[task + 1]):
            item = read[place]
            left[item] -= 1
            total[item] -= task
            if left[item] == 1:
                final = total[item]
                net[final] -= num_bytes[item]
                if where[final] >= 0:
                    _rise(heap, where, begin[placement[final]], where[final], net, added)
        for tensor in range(tensor_ptr[task], tensor_ptr[task + 1]):
            for place in range(tensor_reader_ptr[tensor], tensor_reader_ptr[tensor + 1]):
                other = tensor_reader[place]
                waiting[other] -= 1
                if waiting[other] == 0:
                    base, position = begin[placement[other]], size[placement[other]]
                    heap[base + position] = other
                    size[placement[other]] += 1
                    _rise(heap, where, base, position, net, added)
    return order
