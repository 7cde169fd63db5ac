"""Baechi's memory-aware schedulers, compiled: m-TOPO, m-ETF and m-SCT.

B. Jeon, L. Cai, P. Srivastava, J. Jiang, X. Ke, Y. Meng, C. Xie, I. Gupta, "Baechi: Fast Device Placement of Machine
Learning Graphs", SoCC 2020, and the code released with it. They place units, and plan with a model of their own, see
``list_scheduling``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from graphopt_gym.compiled import kernel
from graphopt_gym.envs.placement.account import charge, least_overflow, open_account
from graphopt_gym.envs.placement.list_scheduling import Instance, Plan

# The linear program of m-SCT takes about 10 s at this many edges; above it favourite children are chosen by rule.
MAX_LP_EDGES = 50_000
FAVOURITE_THRESHOLD = 0.5  # of the relaxed variable; the value in Baechi's released code


# ---- m-TOPO


def m_topo(instance: Instance, capacity_bytes: np.ndarray, slack: float = 1.0, order: np.ndarray | None = None) -> Plan:
    """m-TOPO: fill one device after the other in topological order (Jeon et al. 2020; m_topo.py of the released code).

    A device is full at ``total / D + largest unit`` bytes of parameters, state and outputs, or at its capacity. A unit
    that fits nowhere goes where it overflows least. Unequal devices, of which the paper has none, get shares of the
    total by their speed.

    Args:
        instance: what is placed.
        capacity_bytes: int64 [D].
        slack: how much of the largest unit a device may get beyond its even share; 1 is Baechi's, less is ours, for
            tight memory; ``inf`` fills devices to their capacity.
        order: int [D], in which devices are filled; by index, as in the paper, where left out.
    """
    alone_s = instance.durations_s.sum(axis=1)
    use = instance.allowed.any(axis=0)
    speed = np.where(use, alone_s[use].min() / np.maximum(alone_s, 1e-300), 0.0) if alone_s.min() > 0 else use * 1.0
    extra = slack * max(int(instance.unit_bytes.max()), 1)
    shares = instance.unit_bytes.sum() * speed / speed.sum() + extra
    device_of_unit, fits = _m_topo(
        instance, np.asarray(capacity_bytes, np.int64), shares, np.arange(len(shares)) if order is None else order
    )
    zeros = np.zeros(instance.is_source.shape[0])  # m-TOPO knows no times
    return Plan(device_of_unit, zeros, zeros, bool(fits))


@kernel
def _m_topo(instance, capacity_bytes, shares, order):
    num_devices, num_units = capacity_bytes.shape[0], instance.unit_bytes.shape[0]
    account = open_account(instance, capacity_bytes)
    device_of_unit = np.full(num_units, -1, np.int32)
    turn, filled, fits = 0, np.int64(0), True
    for unit in range(num_units):
        size = instance.unit_bytes[unit]
        if turn < num_devices and not instance.allowed[unit, order[turn]]:  # it goes elsewhere, and the filling goes on
            target = least_overflow(instance, account, device_of_unit, unit)
            fits &= charge(instance, account, device_of_unit, unit, target, True) <= 0
            continue
        while turn < num_devices and (
            filled + size > shares[order[turn]]
            or charge(instance, account, device_of_unit, unit, order[turn], False) > 0
        ):
            turn, filled = turn + 1, np.int64(0)
        if turn < num_devices and instance.allowed[unit, order[turn]]:
            target = order[turn]
            filled += size
        else:
            target = least_overflow(instance, account, device_of_unit, unit)
        fits &= charge(instance, account, device_of_unit, unit, target, True) <= 0
    return device_of_unit, fits


# ---- m-ETF and m-SCT


def m_etf(instance: Instance, capacity_bytes: np.ndarray, slack: float = np.inf, by_finish: bool = False) -> Plan:
    """m-ETF: the (ready task, device) pair that can start first, among devices with the memory (Jeon et al. 2020).

    After Hwang et al. 1989. Ties go to the earlier finish, then to the higher upward rank. Memory is counted over the
    graph's own order, not over the plan's time: parameters, state, outputs and copies, see :func:`charge`. A unit
    that fits nowhere goes where it overflows least.

    Args:
        instance: what is placed.
        capacity_bytes: int64 [D].
        slack: ours, for tight memory: a unit may only go to devices where it adds at most ``1 + slack`` times the bytes
            that it adds where it adds least. Copies of tensors on several devices are what fills them.
        by_finish: ours, for devices of unequal speed: the pair that can *finish* first, ties to the earlier start.
    """
    return _plan_etf(instance, capacity_bytes, np.zeros(0, np.int32), slack, by_finish)


def m_sct(instance: Instance, capacity_bytes: np.ndarray, slack: float = np.inf, by_finish: bool = False) -> Plan:
    """m-SCT: m-ETF, but a device keeps itself free for the favourite child of its last task (Jeon et al. 2020).

    After Hanen and Munier 1995. Where the device can start the favourite child earliest, it takes only that, or an
    *urgent* task, which is one whose inputs have arrived on every device. Arguments as of :func:`m_etf`.
    """
    return _plan_etf(instance, capacity_bytes, favourite_children(instance), slack, by_finish)


def _plan_etf(
    instance: Instance, capacity_bytes: np.ndarray, favourite: np.ndarray, slack: float, by_finish: bool
) -> Plan:
    capacity = np.asarray(capacity_bytes, np.int64)
    device_of_unit, start, finish, fits = _etf(instance, capacity, favourite, float(slack), bool(by_finish))
    return Plan(device_of_unit, start, finish, bool(fits))


def favourite_children(instance: Instance) -> np.ndarray:
    """int32 [K]: the favourite child of each task, or -1; a task is that of one parent at most.

    The relaxed linear program of Hanen and Munier (in Jeon et al. 2020), solved by HiGHS: start times s, and x of
    an edge, 0 where the consumer is the favourite child (no transfer), 1 otherwise; least makespan. Edges whose x is
    below the threshold are taken by rising x, then falling upward rank, so that no task gets two. Above
    :data:`MAX_LP_EDGES` edges, or where HiGHS gives up, x is 0 everywhere: each task gets its most urgent child.
    """
    source = np.repeat(instance.tensor_task, np.diff(instance.reader_ptr)).astype(np.int64)
    transfer_s = np.repeat(instance.mean_transfer_s, np.diff(instance.reader_ptr))
    keep = ~instance.is_source[source]
    source, target, transfer_s = source[keep], instance.reader[keep].astype(np.int64), transfer_s[keep]
    order = np.lexsort((-transfer_s, target, source))  # of several tensors on one edge the largest
    source, target, transfer_s = source[order], target[order], transfer_s[order]
    first = np.ones(len(source), bool)
    first[1:] = (source[1:] != source[:-1]) | (target[1:] != target[:-1])
    source, target, transfer_s = source[first], target[first], transfer_s[first]
    x = None
    if 0 < len(source) <= MAX_LP_EDGES:
        x = _relaxed_favourites(instance.mean_s, source, target, transfer_s)
    if x is None:
        x = np.zeros(len(source))
    favourite = np.full(instance.is_source.shape[0], -1, np.int32)
    has_parent = np.zeros(len(favourite), bool)
    urgency = transfer_s + instance.rank_s[target]
    for edge in np.lexsort((-urgency, np.round(x, 6))).tolist():
        if x[edge] >= FAVOURITE_THRESHOLD:
            break
        if favourite[source[edge]] == -1 and not has_parent[target[edge]]:
            favourite[source[edge]] = target[edge]
            has_parent[target[edge]] = True
    return favourite


def _relaxed_favourites(
    times_s: np.ndarray, source: np.ndarray, target: np.ndarray, transfer_s: np.ndarray
) -> np.ndarray | None:
    """x float64 [E] of the relaxed program, or None where HiGHS finds no optimum."""
    from scipy.optimize import linprog
    from scipy.sparse import coo_array

    edges, count = len(source), len(times_s)
    scale = 1.0 / max(float(times_s.max()), float(transfer_s.max()), 1e-30)
    times, transfers = times_s * scale, transfer_s * scale
    edge, one = np.arange(edges), np.ones(edges)
    tasks = np.arange(count)
    fan_out, fan_in = np.bincount(source, minlength=count), np.bincount(target, minlength=count)
    # columns: x of each edge, start of each task, makespan
    rows = [
        (edge, edge, transfers),  # s_i + p_i + c_ij x_ij <= s_j
        (edge, edges + source, one),
        (edge, edges + target, -one),
        (edges + source, edge, -one),  # at most one favourite child: sum_j x_ij >= children - 1
        (edges + count + target, edge, -one),  # at most one favourite parent
        (edges + 2 * count + tasks, edges + tasks, np.ones(count)),  # s_i + p_i <= makespan
        (edges + 2 * count + tasks, np.full(count, edges + count), -np.ones(count)),
    ]
    row, column, value = (np.concatenate([part[i] for part in rows]) for i in range(3))
    limits = np.concatenate([-times[source], 1.0 - fan_out, 1.0 - fan_in, -times])
    matrix = coo_array((value, (row, column)), shape=(edges + 3 * count, edges + count + 1)).tocsr()
    used = np.concatenate([np.ones(edges, bool), fan_out > 0, fan_in > 0, np.ones(count, bool)])
    objective = np.zeros(edges + count + 1)
    objective[-1] = 1.0
    upper = np.concatenate([np.ones(edges), np.full(count + 1, np.inf)])
    bounds = np.stack([np.zeros(edges + count + 1), upper], axis=1)
    result = linprog(objective, A_ub=matrix[np.flatnonzero(used)], b_ub=limits[used], bounds=bounds, method="highs")
    return result.x[:edges] if result.status == 0 else None


@kernel(inner=True, allocates=False)
def _push(heap, keys, ranks, size, task):
    """Into a heap of tasks: least key first, then highest rank, then lowest index. Returns the new size."""
    position = size
    while position > 0:
        parent = (position - 1) // 2
        if not _precedes(keys, ranks, task, heap[parent]):
            break
        heap[position] = heap[parent]
        position = parent
    heap[position] = task
    return size + 1


@kernel(inner=True, allocates=False)
def _pop(heap, keys, ranks, size):
    size -= 1
    task, position = heap[size], 0
    while 2 * position + 1 < size:
        child = 2 * position + 1
        if child + 1 < size and _precedes(keys, ranks, heap[child + 1], heap[child]):
            child += 1
        if not _precedes(keys, ranks, heap[child], task):
            break
        heap[position] = heap[child]
        position = child
    heap[position] = task
    return size


@kernel(inner=True, allocates=False)
def _precedes(keys, ranks, a, b):
    if keys[a] != keys[b]:
        return keys[a] < keys[b]
    if ranks[a] != ranks[b]:
        return ranks[a] > ranks[b]
    return a < b


class Transfers(NamedTuple):
    """Transfers planned so far. Each goes on its link after those planned before it, and a copy is kept."""

    link_free_s: np.ndarray  # float64 [D * D], of which links use the first L
    received_s: np.ndarray  # float64 [D, T] when a copy arrives, inf where none is sent
    undo_link: np.ndarray  # int64 scratch
    undo_free_s: np.ndarray  # float64 scratch


@kernel(inner=True, allocates=False)
def _receive(instance, transfers, device_of_unit, finish, task, device, keep):
    """When all inputs of a task are on a device, each transfer waiting for its link. With ``keep`` they are planned."""
    latest = 0.0
    undone = 0
    for position in range(instance.input_ptr[task], instance.input_ptr[task + 1]):
        tensor = instance.input_tensor[position]
        producer = instance.tensor_task[tensor]
        home = device_of_unit[instance.unit_of_task[producer]]
        arrival = finish[producer]
        if home != -1 and home != device:
            arrival = transfers.received_s[device, tensor]
            if arrival == np.inf:
                link = instance.link_of[home, device]
                takes = instance.transfer_s[tensor]
                if takes < 0.0:
                    takes = (
                        instance.latency_s[home, device]
                        + instance.tensor_bytes[tensor] / instance.bytes_per_s[home, device]
                    )
                arrival = max(finish[producer], transfers.link_free_s[link]) + takes
                transfers.undo_link[undone], transfers.undo_free_s[undone] = link, transfers.link_free_s[link]
                undone += 1
                transfers.link_free_s[link] = arrival
                if keep:
                    transfers.received_s[device, tensor] = arrival
        latest = max(latest, arrival)
    if not keep:
        for row in range(undone - 1, -1, -1):
            transfers.link_free_s[transfers.undo_link[row]] = transfers.undo_free_s[row]
    return latest


@kernel
def _etf(instance, capacity_bytes, favourite, slack, by_finish):
    num_devices, num_tasks = instance.durations_s.shape
    account = open_account(instance, capacity_bytes)
    device_of_unit = np.full(instance.unit_bytes.shape[0], -1, np.int32)
    start, finish = np.zeros(num_tasks), np.zeros(num_tasks)
    most_inputs = 0
    for task in range(num_tasks):
        most_inputs = max(most_inputs, instance.input_ptr[task + 1] - instance.input_ptr[task])
    transfers = Transfers(
        np.zeros(num_devices * num_devices),
        np.full((num_devices, instance.tensor_bytes.shape[0]), np.inf),
        np.empty(most_inputs, np.int64),
        np.empty(most_inputs),
    )
    done, is_ready = np.zeros(num_tasks, np.bool_), np.zeros(num_tasks, np.bool_)
    waiting = np.zeros(num_tasks, np.int64)
    available = np.zeros(num_devices)
    last = np.full(num_devices, -1, np.int64)
    # of a ready task on each device; never too late, since links only fill up: looked at again when it comes up
    arrival = np.zeros((num_devices, num_tasks))
    everywhere = np.zeros(num_tasks)  # when it would have arrived on every device that it may run on, once it is ready
    num_units = instance.unit_bytes.shape[0]
    refused = np.zeros((num_devices, num_units), np.bool_)  # no memory; for good, since accounts only grow; not allowed
    for unit in range(num_units):
        for device in range(num_devices):
            refused[device, unit] = not instance.allowed[unit, device]
        if instance.fixed[unit] != -1:
            charge(instance, account, device_of_unit, unit, instance.fixed[unit], True)
    weighed = np.zeros(num_units, np.bool_)  # whether the slack has been applied
    adds = np.zeros(num_devices)
    no_key = np.zeros(num_tasks)
    # three heaps a device: not yet arrived, by arrival; arrived, by rank; all, by `everywhere` (for m-SCT)
    width = 2 * num_tasks  # a task is in a heap once, and once more where its unit was refused
    later, now, urgent = (
        np.empty((num_devices, width), np.int32),
        np.empty((num_devices, width), np.int32),
        np.empty((num_devices, width), np.int32),
    )
    sizes = np.zeros((3, num_devices), np.int64)
    keeps_free = favourite.shape[0] > 0
    fits = True
    left = 0
    fresh = np.empty(num_tasks, np.int32)  # tasks that have become ready and are in no heap yet
    num_fresh = 0
    for task in range(num_tasks):
        if instance.is_source[task]:
            done[task] = True
            continue
        left += 1
        for position in range(instance.input_ptr[task], instance.input_ptr[task + 1]):
            waiting[task] += not instance.is_source[instance.tensor_task[instance.input_tensor[position]]]
        if waiting[task] == 0:
            fresh[num_fresh] = task
            num_fresh += 1
    while left > 0:
        for index in range(num_fresh):
            task = fresh[index]
            is_ready[task] = True
            unit = instance.unit_of_task[task]
            home = device_of_unit[unit]
            if home == -1 and slack < np.inf and not weighed[unit]:
                weighed[unit] = True
                least = np.inf
                for device in range(num_devices):
                    refused[device, unit] |= charge(instance, account, device_of_unit, unit, device, False) > 0
                    adds[device] = account.added[0]
                    if not refused[device, unit]:
                        least = min(least, adds[device])
                for device in range(num_devices):
                    refused[device, unit] |= adds[device] > (1 + slack) * least
            for device in range(num_devices):
                if home == -1 or home == device:
                    when = _receive(instance, transfers, device_of_unit, finish, task, device, False)
                    arrival[device, task] = when
                    if instance.allowed[unit, device]:
                        everywhere[task] = max(everywhere[task], when)
            for device in range(num_devices):
                if home == -1 or home == device:
                    sizes[0, device] = _push(later[device], arrival[device], instance.rank_s, sizes[0, device], task)
                    if keeps_free:
                        sizes[2, device] = _push(urgent[device], everywhere, instance.rank_s, sizes[2, device], task)
        num_fresh = 0

        best, best_task, best_start, best_finish = -1, -1, np.inf, np.inf
        forced = -1
        for device in range(num_devices):
            # the first task that may run here, by its true arrival
            candidate = -1
            while candidate == -1 and forced == -1:
                while sizes[0, device] > 0 and arrival[device, later[device, 0]] <= available[device]:
                    task = later[device, 0]
                    sizes[0, device] = _pop(later[device], arrival[device], instance.rank_s, sizes[0, device])
                    sizes[1, device] = _push(now[device], no_key, instance.rank_s, sizes[1, device], task)
                kind = 1 if sizes[1, device] > 0 else 0
                if sizes[kind, device] == 0:
                    break
                task = now[device, 0] if kind == 1 else later[device, 0]
                state = _may_run(instance, account, device_of_unit, done, refused, task, device)
                when = arrival[device, task]
                if state == 1:
                    when = _receive(instance, transfers, device_of_unit, finish, task, device, False)
                    if when <= max(arrival[device, task], available[device]):
                        candidate = task
                        break
                if state == 2:
                    forced = task
                if kind == 1:
                    sizes[1, device] = _pop(now[device], no_key, instance.rank_s, sizes[1, device])
                else:
                    sizes[0, device] = _pop(later[device], arrival[device], instance.rank_s, sizes[0, device])
                if state == 1:
                    arrival[device, task] = when
                    sizes[0, device] = _push(later[device], arrival[device], instance.rank_s, sizes[0, device], task)
            if forced != -1:
                break
            if candidate == -1:
                continue
            if keeps_free and last[device] != -1:
                child = favourite[last[device]]
                if child != -1 and is_ready[child] and not done[child]:
                    when = _receive(instance, transfers, device_of_unit, finish, child, device, False)
                    here = max(available[device], when)
                    mine = here + (instance.durations_s[device, child] if by_finish else 0.0)
                    earliest = _may_run(instance, account, device_of_unit, done, refused, child, device) == 1
                    home = device_of_unit[instance.unit_of_task[child]]
                    for other in range(num_devices):
                        if home == -1 and not refused[other, instance.unit_of_task[child]]:
                            when = _receive(instance, transfers, device_of_unit, finish, child, other, False)
                            theirs = max(available[other], when)
                            earliest &= mine <= theirs + (instance.durations_s[other, child] if by_finish else 0.0)
                    if earliest:
                        candidate = child
                        while sizes[2, device] > 0:
                            task = urgent[device, 0]
                            if _may_run(instance, account, device_of_unit, done, refused, task, device) == 1:
                                if max(available[device], everywhere[task]) <= here:
                                    candidate = task
                                break
                            sizes[2, device] = _pop(urgent[device], everywhere, instance.rank_s, sizes[2, device])
            when = _receive(instance, transfers, device_of_unit, finish, candidate, device, False)
            begin = max(available[device], when)
            end = begin + instance.durations_s[device, candidate]
            if by_finish:
                better = end < best_finish or (end == best_finish and begin < best_start)
            else:
                better = begin < best_start or (begin == best_start and end < best_finish)
            if begin == best_start and end == best_finish:
                better = instance.rank_s[candidate] > instance.rank_s[best_task]
            if better:
                best, best_task, best_start, best_finish = device, candidate, begin, end

        if forced != -1:  # its unit is refused everywhere: it goes where it overflows least, with its ready tasks
            unit = instance.unit_of_task[forced]
            home = least_overflow(instance, account, device_of_unit, unit)
            fits &= charge(instance, account, device_of_unit, unit, home, True) <= 0
            for position in range(instance.unit_ptr[unit], instance.unit_ptr[unit + 1]):
                task = instance.unit_task[position]
                if is_ready[task] and not done[task]:  # it may be in the heaps twice now, which does no harm
                    sizes[0, home] = _push(later[home], arrival[home], instance.rank_s, sizes[0, home], task)
                    if keeps_free:
                        sizes[2, home] = _push(urgent[home], everywhere, instance.rank_s, sizes[2, home], task)
            continue

        assert best != -1
        unit = instance.unit_of_task[best_task]
        if device_of_unit[unit] == -1:
            charge(instance, account, device_of_unit, unit, best, True)
        _receive(instance, transfers, device_of_unit, finish, best_task, best, True)
        start[best_task], finish[best_task] = best_start, best_finish
        done[best_task] = True
        available[best] = best_finish
        last[best] = best_task
        left -= 1
        for tensor in range(instance.tensor_ptr[best_task], instance.tensor_ptr[best_task + 1]):
            for position in range(instance.reader_ptr[tensor], instance.reader_ptr[tensor + 1]):
                task = instance.reader[position]
                waiting[task] -= 1
                if waiting[task] == 0:
                    fresh[num_fresh] = task
                    num_fresh += 1
    for unit in range(device_of_unit.shape[0]):  # sources that nothing reads
        if device_of_unit[unit] == -1:
            home = least_overflow(instance, account, device_of_unit, unit)
            fits &= charge(instance, account, device_of_unit, unit, home, True) <= 0
    return device_of_unit, start, finish, fits


@kernel(inner=True, allocates=False)
def _may_run(instance, account, device_of_unit, done, refused, task, device):
    """1: a ready task may run on a device; 0: it may not; 2: nor on any other, its unit has no memory anywhere."""
    if done[task]:
        return 0
    unit = instance.unit_of_task[task]
    home = device_of_unit[unit]
    if home != -1:
        return 1 if home == device else 0
    if not refused[device, unit]:
        if account.fitted[device, unit] == account.placed[0]:
            return 1
        if charge(instance, account, device_of_unit, unit, device, False) <= 0:
            account.fitted[device, unit] = account.placed[0]
            return 1
        refused[device, unit] = True
    for other in range(refused.shape[0]):
        if not refused[other, unit]:
            return 0
    return 2
