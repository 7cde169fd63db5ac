"""What list schedulers for placement read and give, and HEFT and CPOP, compiled. Baechi's are in ``baechi``.

All of them plan with the model of their papers. In HEFT's and CPOP's a tensor arrives ``latency_s + bytes /
bytes_per_s`` after its producer finishes, and transfers never wait for each other. In Baechi's a link carries one
transfer at a time, in the order in which consumers were planned, and what a device has received it keeps. The simulator
differs from both: links carry transfers in order of request, and a device runs its ready tasks first come, first
served. So a plan's own makespan is a prediction, not the simulated step time.

The papers place ops one by one. Here a *unit* is placed whole: a group of the problem, together with the groups of
nothing but parameters and inputs whose first reader it is (a parameter has no work by which a scheduler could place
it). The scheduler puts a unit where it puts the unit's first task; the others follow.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from graphopt_gym.compiled import kernel
from graphopt_gym.envs.placement.account import charge, least_overflow, open_account
from graphopt_gym.envs.placement.groups import storage_lifetimes
from graphopt_gym.simulator.orders import mean_transfer_s, upward_rank_s

if TYPE_CHECKING:
    from graphopt_gym.envs.placement.problem import PlacementProblem

NUM_BUCKETS = 64  # of the memory account's time axis


class Instance(NamedTuple):
    """What the schedulers read. D devices, K tasks, T tensors, U units, B buckets; arrays of the simulator's tasks."""

    durations_s: np.ndarray  # float64 [D, K]
    mean_s: np.ndarray  # float64 [K] over devices that are in use
    sequence: np.ndarray  # int32 [K] tasks in an order in which each follows those that it reads from
    latency_s: np.ndarray  # float64 [D, D], 0 on the diagonal
    bytes_per_s: np.ndarray  # float64 [D, D], inf on the diagonal
    link_of: np.ndarray  # int32 [D, D], -1 on the diagonal
    transfer_s: np.ndarray  # float64 [T] where it is stated, else -1: latency and bytes
    mean_transfer_s: np.ndarray  # float64 [T] over ordered pairs of devices that are in use
    rank_s: np.ndarray  # float64 [K] upward rank
    is_source: np.ndarray  # bool [K]
    tensor_ptr: np.ndarray  # int32 [K+1]
    tensor_bytes: np.ndarray  # int64 [T]
    tensor_task: np.ndarray  # int32 [T]
    reader_ptr: np.ndarray  # int32 [T+1]
    reader: np.ndarray
    input_ptr: np.ndarray  # int32 [K+1]
    input_tensor: np.ndarray
    unit_of_task: np.ndarray  # int32 [K]
    unit_ptr: np.ndarray  # int64 [U+1]
    unit_task: np.ndarray  # int32 [K] tasks of each unit, ascending
    bucket: np.ndarray  # int32 [K] when a task runs, in the graph's own order
    profile: np.ndarray  # int64 [U, B] bytes that a unit holds over that time: parameters, state, live outputs
    unit_bytes: np.ndarray  # int64 [U] parameters, optimiser state and all outputs
    unit_of_group: np.ndarray  # int32 [G]
    allowed: np.ndarray  # bool [U, D] the devices that a unit may be on
    fixed: np.ndarray  # int32 [U] of a unit of sources that could not join its reader: where it is; else -1


class Plan(NamedTuple):
    """A schedule in the scheduler's own model."""

    device_of_unit: np.ndarray  # int32 [U]
    start_s: np.ndarray  # float64 [K]
    finish_s: np.ndarray  # float64 [K]
    fits: bool  # whether every device stays within the given capacities, by the scheduler's account


def make_instance(problem: PlacementProblem) -> Instance:
    """The arrays of a placement problem."""
    simulator, tasks, cluster = problem.simulator, problem.simulator.tasks, problem.cluster
    devices = problem.num_devices
    latency_s = np.zeros((devices, devices))
    bytes_per_s = np.full((devices, devices), np.inf)
    for source in range(devices):
        for target in range(devices):
            if source != target:
                link = cluster.links[cluster.link_of[source, target]]
                latency_s[source, target], bytes_per_s[source, target] = link.latency_s, link.bytes_per_s
    use = problem.usable
    durations_s = np.ascontiguousarray(simulator.device_durations_s())
    unit_of_group = _units(problem)
    unit_of_task = unit_of_group[problem.group_of_task]
    units = int(unit_of_group.max()) + 1
    allowed, fixed = np.ones((units, devices), bool), np.full(units, -1, np.int32)
    if problem.allowed is not None:
        np.logical_and.at(allowed, unit_of_group, problem.allowed)
        computes = np.bincount(unit_of_task, ~tasks.is_source, units) > 0
        fixed = np.where(computes, -1, allowed.argmax(axis=1)).astype(np.int32)
    order = np.argsort(unit_of_task, kind="stable")
    unit_ptr = np.zeros(units + 1, np.int64)
    np.cumsum(np.bincount(unit_of_task, minlength=units), out=unit_ptr[1:])

    storage_task, begin, last = storage_lifetimes(tasks)
    unit_bytes = np.bincount(unit_of_task, tasks.persistent_bytes, units) + np.bincount(
        unit_of_task[storage_task], tasks.storage_bytes, units
    )
    buckets = min(NUM_BUCKETS, tasks.num_tasks)
    bucket = (np.arange(tasks.num_tasks) * buckets // tasks.num_tasks).astype(np.int32)
    change = np.zeros((units, buckets + 1), np.int64)
    np.add.at(change, (unit_of_task[storage_task], bucket[begin]), tasks.storage_bytes)
    np.add.at(change, (unit_of_task[storage_task], bucket[last] + 1), -tasks.storage_bytes)
    np.add.at(change[:, 0], unit_of_task, tasks.persistent_bytes)
    profile = np.ascontiguousarray(np.cumsum(change, axis=1)[:, :buckets])
    return Instance(
        durations_s=durations_s,
        mean_s=durations_s[use].mean(axis=0),
        sequence=tasks.sequence,
        latency_s=latency_s,
        bytes_per_s=bytes_per_s,
        link_of=np.array(cluster.link_of, np.int32, order="C"),
        transfer_s=tasks.transfer_s,
        mean_transfer_s=mean_transfer_s(tasks, cluster, use),
        rank_s=upward_rank_s(tasks, durations_s, cluster, use),
        is_source=tasks.is_source,
        tensor_ptr=tasks.tensor_ptr,
        tensor_bytes=tasks.tensor_bytes,
        tensor_task=tasks.tensor_task,
        reader_ptr=tasks.reader_ptr,
        reader=tasks.reader,
        input_ptr=tasks.input_ptr,
        input_tensor=tasks.input_tensor,
        unit_of_task=unit_of_task,
        unit_ptr=unit_ptr,
        unit_task=order.astype(np.int32),
        bucket=bucket,
        profile=profile,
        unit_bytes=unit_bytes.astype(np.int64),
        unit_of_group=unit_of_group,
        allowed=allowed,
        fixed=fixed,
    )


def _units(problem: PlacementProblem) -> np.ndarray:
    """int32 [G]: the unit of each group; units in the order of their first task that is not a source."""
    tasks, groups = problem.simulator.tasks, problem.num_groups
    computing = np.flatnonzero(~tasks.is_source)
    first = np.full(groups, tasks.num_tasks, np.int64)  # first computing task of each group
    np.minimum.at(first, problem.group_of_task[computing], computing)
    joins = np.arange(groups)
    only_sources = first == tasks.num_tasks
    read = np.flatnonzero(np.diff(tasks.reader_ptr) > 0)
    first_reader = np.full(groups, tasks.num_tasks, np.int64)
    np.minimum.at(first_reader, problem.group_of_task[tasks.tensor_task[read]], tasks.reader[tasks.reader_ptr[read]])
    follows = only_sources & (first_reader < tasks.num_tasks)
    joins[follows] = problem.group_of_task[first_reader[follows]]
    if problem.allowed is not None:  # not where it may not be wherever its reader may be
        apart = (problem.allowed[joins] & ~problem.allowed).any(axis=1)
        joins[apart] = np.flatnonzero(apart)
    roots = np.unique(joins)
    rank = np.empty(groups, np.int32)
    rank[roots[np.argsort(first[roots], kind="stable")]] = np.arange(len(roots))
    return rank[joins]


@kernel(inner=True, allocates=False)
def _arrival(instance, device_of_unit, finish, task, device):
    """When all inputs of a task are on a device. A source of a unit not yet placed is there at 0."""
    latest = 0.0
    for position in range(instance.input_ptr[task], instance.input_ptr[task + 1]):
        tensor = instance.input_tensor[position]
        producer = instance.tensor_task[tensor]
        home = device_of_unit[instance.unit_of_task[producer]]
        if home != -1:
            transfer = instance.transfer_s[tensor] if home != device else 0.0
            if transfer < 0.0:
                transfer = instance.latency_s[home, device] + (
                    instance.tensor_bytes[tensor] / instance.bytes_per_s[home, device]
                )
            latest = max(latest, finish[producer] + transfer)
    return latest


# ---- HEFT and CPOP


def heft(instance: Instance, capacity_bytes: np.ndarray | None = None) -> Plan:
    """HEFT: by falling upward rank, each task where it finishes first, gaps included (Topcuoglu et al. 2002, §4.1).

    Args:
        instance: what is placed.
        capacity_bytes: int64 [D]; a device that has no memory left for a unit is skipped, and a unit that fits nowhere
            goes where it overflows least. Without end where left out: the paper knows no memory.
    """
    order = instance.sequence[np.argsort(-instance.rank_s[instance.sequence], kind="stable")]
    return _plan_insertion(instance, order, np.full(len(order), -1, np.int32), capacity_bytes)


def cpop(instance: Instance, capacity_bytes: np.ndarray | None = None) -> Plan:
    """CPOP: a critical path on the device that runs it fastest, other tasks as HEFT does (Topcuoglu et al. 2002, §4.2).

    Of the ready tasks that with the longest path through it is next. A task of the critical path that may not be on its
    device, for memory or by what is allowed, goes where it finishes first. Arguments as of :func:`heft`.
    """
    path = critical_path(instance)
    units = instance.unit_of_task[path]
    device = int(np.lexsort((instance.durations_s[:, path].sum(axis=1), (~instance.allowed[units]).sum(axis=0)))[0])
    preferred = np.full(len(instance.rank_s), -1, np.int32)
    preferred[path] = device
    order = _ready_order(instance, instance.rank_s + downward_rank(instance))
    return _plan_insertion(instance, order, preferred, capacity_bytes)


def critical_path(instance: Instance) -> np.ndarray:
    """int64: the tasks of a longest path over mean times and mean transfers, from an entry to an exit."""
    computing = instance.sequence[~instance.is_source[instance.sequence]]
    path = [int(computing[np.argmax(instance.rank_s[computing])])] if len(computing) else []
    while path:
        first, end = instance.tensor_ptr[path[-1] : path[-1] + 2]
        tensor = np.repeat(np.arange(first, end), np.diff(instance.reader_ptr[first : end + 1]))
        if not len(tensor):
            break
        readers = instance.reader[instance.reader_ptr[first] : instance.reader_ptr[end]]
        path.append(int(readers[np.argmax(instance.mean_transfer_s[tensor] + instance.rank_s[readers])]))
    return np.array(path, np.int64)


def downward_rank(instance: Instance) -> np.ndarray:
    """float64 [K]: the longest path from an entry up to each task, without it (Topcuoglu et al. 2002, eq. 9)."""
    return _downward_rank(instance)


@kernel
def _downward_rank(instance):
    rank = np.zeros(instance.is_source.shape[0])
    for task in instance.sequence:
        for position in range(instance.input_ptr[task], instance.input_ptr[task + 1]):
            tensor = instance.input_tensor[position]
            producer = instance.tensor_task[tensor]
            if not instance.is_source[producer]:
                way = rank[producer] + instance.mean_s[producer] + instance.mean_transfer_s[tensor]
                rank[task] = max(rank[task], way)
    return rank


def _ready_order(instance: Instance, priority: np.ndarray) -> np.ndarray:
    """int32 [K]: sources, then of the tasks whose inputs are all taken that of highest priority, then lowest index."""
    is_input = ~instance.is_source[instance.tensor_task[instance.input_tensor]]
    waiting = np.diff(np.concatenate([[0], np.cumsum(is_input)])[instance.input_ptr])
    ends, readers = instance.reader_ptr[instance.tensor_ptr].tolist(), instance.reader.tolist()
    left, key, order = waiting.tolist(), (-priority).tolist(), np.flatnonzero(instance.is_source).tolist()
    ready = [(key[task], task) for task in np.flatnonzero((waiting == 0) & ~instance.is_source).tolist()]
    heapq.heapify(ready)
    while ready:
        task = heapq.heappop(ready)[1]
        order.append(task)
        for reader in readers[ends[task] : ends[task + 1]]:
            left[reader] -= 1
            if not left[reader]:
                heapq.heappush(ready, (key[reader], reader))
    return np.array(order, np.int32)


def _plan_insertion(
    instance: Instance, order: np.ndarray, preferred: np.ndarray, capacity_bytes: np.ndarray | None
) -> Plan:
    bounded = capacity_bytes is not None
    capacity = np.asarray(capacity_bytes if bounded else np.zeros(len(instance.durations_s)), np.int64)
    device_of_unit, start, finish, fits = _by_insertion(instance, order, preferred, capacity, bounded)
    return Plan(device_of_unit, start, finish, bool(fits))


@kernel(inner=True, allocates=False)
def _has_room(instance, account, device_of_unit, unit, device, bounded):
    """Whether a unit may be on a device, and the device has the memory for it."""
    if not instance.allowed[unit, device]:
        return False
    return not bounded or charge(instance, account, device_of_unit, unit, device, False) <= 0


@kernel
def _by_insertion(instance, order, preferred, capacity_bytes, bounded):
    """Tasks in order, each on its preferred device (-1: none) if that has room, else where it finishes first."""
    num_devices, num_tasks = instance.durations_s.shape
    account = open_account(instance, capacity_bytes)
    device_of_unit = np.full(instance.fixed.shape[0], -1, np.int32)
    fits = True
    for unit in range(device_of_unit.shape[0]):
        if instance.fixed[unit] != -1:
            if bounded:
                fits &= charge(instance, account, device_of_unit, unit, instance.fixed[unit], True) <= 0
            device_of_unit[unit] = instance.fixed[unit]
    start, finish = np.zeros(num_tasks), np.zeros(num_tasks)
    # busy intervals of each device, in order; those around a gap in which no task fits are one
    begins, ends = np.empty((num_devices, num_tasks)), np.empty((num_devices, num_tasks))
    count = np.zeros(num_devices, np.int64)
    shortest = np.full(num_devices, np.inf)
    for device in range(num_devices):
        for task in range(num_tasks):
            if not instance.is_source[task]:
                shortest[device] = min(shortest[device], instance.durations_s[device, task])
    for task in order:
        if instance.is_source[task]:
            continue
        unit = instance.unit_of_task[task]
        placed = device_of_unit[unit] != -1
        only = device_of_unit[unit] if placed else preferred[task]
        if not placed and only != -1 and not _has_room(instance, account, device_of_unit, unit, only, bounded):
            only = np.int32(-1)
        best, best_start, best_finish = -1, 0.0, np.inf
        while best == -1:
            for device in range(num_devices):
                if only != -1 and only != device:
                    continue
                if only == -1 and not _has_room(instance, account, device_of_unit, unit, device, bounded):
                    continue
                arrival = _arrival(instance, device_of_unit, finish, task, device)
                duration = instance.durations_s[device, task]
                begin = _earliest_gap(begins[device], ends[device], count[device], arrival, duration)
                if begin + duration < best_finish:
                    best, best_start, best_finish = device, begin, begin + duration
            if best == -1:  # nothing has room
                only = np.int32(least_overflow(instance, account, device_of_unit, unit))
        if bounded and not placed:
            fits &= charge(instance, account, device_of_unit, unit, best, True) <= 0
        device_of_unit[unit] = best
        start[task], finish[task] = best_start, best_finish
        count[best] = _occupy(begins[best], ends[best], count[best], best_start, best_finish, shortest[best])
    for unit in range(device_of_unit.shape[0]):  # sources that nothing reads
        if device_of_unit[unit] == -1:
            home = least_overflow(instance, account, device_of_unit, unit) if bounded else 0
            if bounded:
                fits &= charge(instance, account, device_of_unit, unit, home, True) <= 0
            device_of_unit[unit] = home
    return device_of_unit, start, finish, fits


@kernel(inner=True, allocates=False)
def _first_after(ends, count, when):
    """The first interval that ends after ``when``."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if ends[middle] > when:
            high = middle
        else:
            low = middle + 1
    return low


@kernel(inner=True, allocates=False)
def _earliest_gap(begins, ends, count, arrival, duration):
    candidate = arrival
    for position in range(_first_after(ends, count, arrival), count):
        if candidate + duration <= begins[position]:
            return candidate
        candidate = max(candidate, ends[position])
    return candidate


@kernel(inner=True, allocates=False)
def _occupy(begins, ends, count, begin, end, shortest):
    """Insert an interval that overlaps no other; returns the new count."""
    position = _first_after(ends, count, begin)
    joins_left = position > 0 and ends[position - 1] + shortest > begin
    joins_right = position < count and end + shortest > begins[position]
    if joins_left and joins_right:
        ends[position - 1] = ends[position]
        for other in range(position, count - 1):
            begins[other], ends[other] = begins[other + 1], ends[other + 1]
        return count - 1
    if joins_left:
        ends[position - 1] = end
        return count
    if joins_right:
        begins[position] = begin
        return count
    for other in range(count, position, -1):
        begins[other], ends[other] = begins[other - 1], ends[other - 1]
    begins[position], ends[position] = begin, end
    return count + 1
