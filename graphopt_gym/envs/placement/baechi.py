"""Baechi's memory-aware schedulers, compiled: m-TOPO, m-ETF and m-SCT.

B. Jeon, L. Cai, P. Srivastava, J. Jiang, X. Ke, Y. Meng, C. Xie, I. Gupta, "Baechi: Fast Device Placement of Machine
Learning Graphs", SoCC 2020, and the code released with it. They place units, and plan with a model of their own, see
``list_scheduling``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from graphopt_gym.compiled import kernel
from graphopt_gym.envs.placement.list_scheduling import Instance, Plan

# The linear program of m-SCT takes about 10 s at this many edges; above it favourite children are chosen by rule.
MAX_LP_EDGES = 50_000
FAVOURITE_THRESHOLD = 0.5  # of the relaxed variable; the value in Baechi's released code


# ---- the memory account of m-TOPO, m-ETF and m-SCT


class Account(NamedTuple):
    """What each device holds, over time."""

    capacity_bytes: np.ndarray  # int64 [D]
    used: np.ndarray  # int64 [D, B]
    extra: np.ndarray  # int64 [D, B] scratch: what one unit would add
    touched: np.ndarray  # bool [D] scratch
    copy_until: np.ndarray  # int32 [D, T] the last bucket in which a copy is counted, or -1
    undo: np.ndarray  # int64 [., 3] scratch: device, tensor, copy_until before
    fitted: np.ndarray  # int64 [D, U] how many units were placed when a unit was last found to fit
    placed: np.ndarray  # int64 [1] units placed
    added: np.ndarray  # float64 [1] bytes that the last unit looked at would add, over devices and time


@kernel(inner=True)
def _open_account(instance, capacity_bytes):
    num_devices, num_buckets = capacity_bytes.shape[0], instance.profile.shape[1]
    return Account(
        capacity_bytes,
        np.zeros((num_devices, num_buckets), np.int64),
        np.zeros((num_devices, num_buckets), np.int64),
        np.zeros(num_devices, np.bool_),
        np.full((num_devices, instance.tensor_bytes.shape[0]), -1, np.int32),
        np.empty((2 * instance.reader.shape[0] + 1, 3), np.int64),
        np.full((num_devices, instance.unit_bytes.shape[0]), -1, np.int64),
        np.zeros(1, np.int64),
        np.zeros(1),
    )


@kernel(inner=True, allocates=False)
def _copy(instance, account, device, tensor, until, undone):
    """Count a copy of a tensor on a device until a bucket, as far as it is not counted yet."""
    counted = account.copy_until[device, tensor]
    if until <= counted:
        return undone
    producer = instance.tensor_task[tensor]
    begin = counted + 1
    if counted == -1 and not instance.is_source[producer]:
        begin = instance.bucket[producer]
    for bucket in range(begin, until + 1):
        account.extra[device, bucket] += instance.tensor_bytes[tensor]
    account.touched[device] = True
    account.undo[undone, 0], account.undo[undone, 1], account.undo[undone, 2] = device, tensor, counted
    account.copy_until[device, tensor] = until
    return undone + 1


@kernel(inner=True, allocates=False)
def _charge(instance, account, device_of_unit, unit, device, keep):
    """Bytes above capacity (below: negative), at the worst time and device, were a unit placed on a device.

    Counts what the unit holds, the copies that it needs of tensors made elsewhere, and the copies that units placed
    elsewhere need of its tensors. With ``keep`` the unit is placed.
    """
    num_buckets = account.used.shape[1]
    for bucket in range(num_buckets):
        account.extra[device, bucket] = instance.profile[unit, bucket]
    account.touched[device] = True
    undone = 0
    for position in range(instance.unit_ptr[unit], instance.unit_ptr[unit + 1]):
        task = instance.unit_task[position]
        for place in range(instance.input_ptr[task], instance.input_ptr[task + 1]):
            tensor = instance.input_tensor[place]
            other = instance.unit_of_task[instance.tensor_task[tensor]]
            if other != unit and device_of_unit[other] != -1 and device_of_unit[other] != device:
                undone = _copy(instance, account, device, tensor, instance.bucket[task], undone)
        for tensor in range(instance.tensor_ptr[task], instance.tensor_ptr[task + 1]):
            for place in range(instance.reader_ptr[tensor], instance.reader_ptr[tensor + 1]):
                reader = instance.reader[place]
                other = instance.unit_of_task[reader]
                if other != unit and device_of_unit[other] != -1 and device_of_unit[other] != device:
                    target = device_of_unit[other]
                    undone = _copy(instance, account, target, tensor, instance.bucket[reader], undone)
    worst = np.int64(-(2**62))
    account.added[0] = 0.0
    for other in range(account.touched.shape[0]):
        if account.touched[other]:
            for bucket in range(num_buckets):
                total = account.used[other, bucket] + account.extra[other, bucket]
                worst = max(worst, total - account.capacity_bytes[other])
                account.added[0] += account.extra[other, bucket]
                if keep:
                    account.used[other, bucket] = total
                account.extra[other, bucket] = 0
            account.touched[other] = False
    if keep:
        device_of_unit[unit] = device
        account.placed[0] += 1
    else:
        for row in range(undone - 1, -1, -1):
            account.copy_until[account.undo[row, 0], account.undo[row, 1]] = account.undo[row, 2]
    return worst


@kernel(inner=True, allocates=False)
def _least_overflow(instance, account, device_of_unit, unit):
    best, least = -1, np.int64(2**62)
    for device in range(account.used.shape[0]):
        if not instance.allowed[unit, device]:
            continue
        overflow = _charge(instance, account, device_of_unit, unit, device, False)
        if best == -1 or overflow < least:
            best, least = device, overflow
    return best


# ---- m-TOPO


def m_topo(instance: Instance, capacity_bytes: np.ndarray, slack: float = 1.0) -> Plan:
    """m-TOPO: fill one device after the other in topological order (Jeon et al. 2020; m_topo.py of the released code).

    A device is full at ``total / D + largest unit`` bytes of parameters, state and outputs, or at its capacity. A unit
    that fits nowhere goes where it overflows least. Unequal devices, of which the paper has none, get shares of the
    total by their speed.

    Args:
        instance: what is placed.
        capacity_bytes: int64 [D].
        slack: how much of the largest unit a device may get beyond its even share; 1 is Baechi's, less is ours, for
            tight memory.
    """
    alone_s = instance.durations_s.sum(axis=1)
    use = instance.allowed.any(axis=0)
    speed = np.where(use, alone_s[use].min() / np.maximum(alone_s, 1e-300), 0.0) if alone_s.min() > 0 else use * 1.0
    shares = instance.unit_bytes.sum() * speed / speed.sum() + slack * instance.unit_bytes.max()
    device_of_unit, fits = _m_topo(instance, np.asarray(capacity_bytes, np.int64), shares)
    zeros = np.zeros(instance.is_source.shape[0])  # m-TOPO knows no times
    return Plan(device_of_unit, zeros, zeros, bool(fits))


@kernel
def _m_topo(instance, capacity_bytes, shares):
    num_devices, num_units = capacity_bytes.shape[0], instance.unit_bytes.shape[0]
    account = _open_account(instance, capacity_bytes)
    device_of_unit = np.full(num_units, -1, np.int32)
    device, filled, fits = 0, np.int64(0), True
    for unit in range(num_units):
        size = instance.unit_bytes[unit]
        if device < num_devices and not instance.allowed[unit, device]:  # it goes elsewhere, and the filling goes on
            target = _least_overflow(instance, account, device_of_unit, unit)
            fits &= _charge(instance, account, device_of_unit, unit, target, True) <= 0
            continue
        while device < num_devices and (
            filled + size > shares[device] or _charge(instance, account, device_of_unit, unit, device, False) > 0
        ):
            device, filled = device + 1, np.int64(0)
        target = device
        if device == num_devices or not instance.allowed[unit, device]:
            target = _least_overflow(instance, account, device_of_unit, unit)
        filled += size if target == device else 0
        fits &= _charge(instance, account, device_of_unit, unit, target, True) <= 0
    return device_of_unit, fits


# ---- m-ETF and m-SCT


def m_etf(instance: Instance, capacity_bytes: np.ndarray, slack: float = np.inf) -> Plan:
    """m-ETF: the (ready task, device) pair that can start first, among devices with the memory (Jeon et al. 2020).

    After Hwang et al. 1989. Ties go to the earlier finish, then to the higher upward rank. Memory is counted over the
    graph's own order, not over the plan's time: parameters, state, outputs and copies, see :func:`_charge`. A unit
    that fits nowhere goes where it overflows least.

    Args:
        instance: what is placed.
        capacity_bytes: int64 [D].
        slack: ours, for tight memory: a unit may only go to devices where it adds at most ``1 + slack`` times the bytes
            that it adds where it adds least. Copies of tensors on several devices are what fills them.
    """
    return _plan_etf(instance, capacity_bytes, np.zeros(0, np.int32), slack)


def m_sct(instance: Instance, capacity_bytes: np.ndarray, slack: float = np.inf) -> Plan:
    """m-SCT: m-ETF, but a device keeps itself free for the favourite child of its last task (Jeon et al. 2020).

    After Hanen and Munier 1995. Where the device can start the favourite child earliest, it takes only that, or an
    *urgent* task, which is one whose inputs have arrived on every device. Arguments as of :func:`m_etf`.
    """
    return _plan_etf(instance, capacity_bytes, favourite_children(instance), slack)


def _plan_etf(instance: Instance, capacity_bytes: np.ndarray, favourite: np.ndarray, slack: float) -> Plan:
    capacity = np.asarray(capacity_bytes, np.int64)
    device_of_unit, start, finish, fits = _etf(instance, capacity, favourite, float(slack))
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
        x = _relaxed_favourites(instance.durations_s.mean(axis=0), source, target, transfer_s)
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
def _etf(instance, capacity_bytes, favourite, slack):
    num_devices, num_tasks = instance.durations_s.shape
    account = _open_account(instance, capacity_bytes)
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
            _charge(instance, account, device_of_unit, unit, instance.fixed[unit], True)
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
                    refused[device, unit] |= _charge(instance, account, device_of_unit, unit, device, False) > 0
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
                    earliest = _may_run(instance, account, device_of_unit, done, refused, child, device) == 1
                    home = device_of_unit[instance.unit_of_task[child]]
                    for other in range(num_devices):
                        if home == -1 and not refused[other, instance.unit_of_task[child]]:
                            when = _receive(instance, transfers, device_of_unit, finish, child, other, False)
                            earliest &= here <= max(available[other], when)
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
            better = begin < best_start or (begin == best_start and end < best_finish)
            if begin == best_start and end == best_finish:
                better = instance.rank_s[candidate] > instance.rank_s[best_task]
            if better:
                best, best_task, best_start, best_finish = device, candidate, begin, end

        if forced != -1:  # its unit is refused everywhere: it goes where it overflows least, with its ready tasks
            unit = instance.unit_of_task[forced]
            home = _least_overflow(instance, account, device_of_unit, unit)
            fits &= _charge(instance, account, device_of_unit, unit, home, True) <= 0
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
            _charge(instance, account, device_of_unit, unit, best, True)
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
            home = _least_overflow(instance, account, device_of_unit, unit)
            fits &= _charge(instance, account, device_of_unit, unit, home, True) <= 0
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
        if _charge(instance, account, device_of_unit, unit, device, False) <= 0:
            account.fitted[device, unit] = account.placed[0]
            return 1
        refused[device, unit] = True
    for other in range(refused.shape[0]):
        if not refused[other, unit]:
            return 0
    return 2
