"""The event engine, compiled. One running slot a device, one transfer at a time a link.

Semantics (each stated once here; the plain twin in the tests follows the same words):

- Sources (parameters, inputs) are there at time 0.
- A task is ready when all tensors it reads are on its device. What a free device takes depends on the order. FIFO: of
  its ready tasks, the one with the earliest ready time. PRIORITY: the one with the highest priority, then the earliest
  ready time. Ties break by task index, which is the order of the lowest op. STREAM: the next of its tasks in the
  captured order, ready or not: until that one is ready, it waits.
- A tensor is pushed when its producer finishes, once to each other device that reads it. A link carries one transfer
  at a time, in order of request, ties by tensor (so by producer), then by destination; a transfer takes
  ``latency_s + bytes / bytes_per_s``, or the seconds that are stated of its tensor. Transfers overlap compute.
- At one instant every finish, of tasks and transfers, is taken in before anything starts. Work of no duration
  finishes at the instant it started, in a further round.
- Memory: parameters and optimiser state stay for the whole step. A storage is allocated on the producer's device when
  the producer starts, and freed when the last task there that reads it and the last transfer out of it have finished
  (when the producer finishes, where nobody reads it). A copy is allocated on the destination when its transfer
  starts, and freed when the last task there that reads it has finished. A source's storage is allocated at time 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt_gym.compiled import kernel
from graphopt_gym.simulator.orders import FIFO, PRIORITY, STREAM

# How far what ties is moved forward in a queue, which is a list; what would go farther is put into a heap beside it.
MOST_STEPS = 8
# Numbers of tasks, tensors, devices and so on are unsigned, as Numba looks at each signed index whether it counts from
# the end. What is added to one that a loop over such numbers gives must be unsigned, too.
NONE: Any = np.uint32(2**32 - 1)
ONE = np.uint64(1)


@kernel(inner=True, allocates=False)
def _goes_first(a, priority_a, b, priority_b, ready):
    if priority_a != priority_b:
        return priority_a > priority_b
    if ready[a] != ready[b]:
        return ready[a] < ready[b]
    return a < b


@kernel(inner=True, allocates=False)
def _heap_push(heap, key, base, size, task, priority, ready):
    """Puts a task into the heap of ``size`` tasks at ``base``; ``key`` has the priority of each."""
    position = size
    while position > 0:
        parent = (position - 1) >> 1
        other, other_key = heap[base + parent], key[base + parent]
        if _goes_first(other, other_key, task, priority, ready):
            break
        heap[base + position] = other
        key[base + position] = other_key
        position = parent
    heap[base + position] = task
    key[base + position] = priority


@kernel(inner=True, allocates=False)
def _heap_pop(heap, key, base, size, ready):
    """Takes the first task out of the heap of ``size + 1`` tasks at ``base``."""
    top = heap[base]
    task, priority = heap[base + size], key[base + size]
    position = 0
    while True:
        child = 2 * position + 1
        if child >= size:
            break
        if child + 1 < size and _goes_first(
            heap[base + child + 1], key[base + child + 1], heap[base + child], key[base + child], ready
        ):
            child += 1
        if _goes_first(task, priority, heap[base + child], key[base + child], ready):
            break
        heap[base + position] = heap[base + child]
        key[base + position] = key[base + child]
        position = child
    heap[base + position] = task
    key[base + position] = priority
    return top


@kernel(inner=True, allocates=False)
def _comes_before(a, b, first, second, third):
    if first[a] != first[b]:
        return first[a] < first[b]
    if second[a] != second[b]:
        return second[a] < second[b]
    return third[a] < third[b]


@kernel(inner=True, allocates=False)
def _meld(a, b, child, sibling, first, second, third):
    """Two pairing heaps (Fredman et al., Algorithmica 1, 1986) as one; NONE is an empty one. Returns its root."""
    if a == NONE or b == NONE:
        return min(a, b)
    if _comes_before(b, a, first, second, third):
        a, b = b, a
    sibling[b] = child[a]
    child[a] = b
    return a


@kernel(inner=True, allocates=False)
def _without_root(root, child, sibling, first, second, third):
    """What is left of a pairing heap without its root: its children melded in pairs, then the pairs."""
    node, pairs = child[root], NONE
    while node != NONE:
        other = sibling[node]
        after = NONE if other == NONE else sibling[other]
        sibling[node] = NONE
        if other != NONE:
            sibling[other] = NONE
        pair = _meld(node, other, child, sibling, first, second, third)
        sibling[pair] = pairs
        pairs, node = pair, after
    root = NONE
    while pairs != NONE:
        after = sibling[pairs]
        sibling[pairs] = NONE
        root = _meld(root, pairs, child, sibling, first, second, third)
        pairs = after
    return root


@kernel(inner=True, allocates=False)
def _event_push(times, whose, size, time, who):
    """Puts an event into the heap of ``size`` events."""
    position = size
    while position > 0:
        parent = (position - 1) >> 1
        if times[parent] <= time:
            break
        times[position] = times[parent]
        whose[position] = whose[parent]
        position = parent
    times[position] = time
    whose[position] = who


@kernel(inner=True, allocates=False)
def _event_pop(times, whose, size):
    """Takes the first event out of the heap of ``size + 1`` events. Returns whose it is."""
    who = whose[0]
    time, last = times[size], whose[size]
    position = 0
    while True:
        child = 2 * position + 1
        if child >= size:
            break
        child += child + 1 < size and times[child + 1] < times[child]
        if time <= times[child]:
            break
        times[position] = times[child]
        whose[position] = whose[child]
        position = child
    times[position] = time
    whose[position] = last
    return who


@kernel
def run(
    placements,  # uint32 [B, K] device of each task
    priorities,  # float64 [B, K], [1, K] for all rows, or [1, 0] where the order is not PRIORITY
    order,  # FIFO, PRIORITY or STREAM
    durations,  # float64 [types, K] seconds
    device_type,  # uint32 [D]
    link_of,  # uint32 [D, D]
    link_latency_s,  # float64 [L]
    link_bytes_per_s,  # float64 [L]
    sequence,  # uint32 [K] tasks in captured order; from here on the columns of TaskGraph, all int32 as uint32
    is_source,  # bool [K]
    persistent_bytes,
    storage_ptr,
    storage_bytes,
    tensor_ptr,
    tensor_bytes,
    tensor_storage,
    tensor_task,
    reader_ptr,
    reader,
    input_ptr,
    input_tensor,
    input_of_reader,
    transfer_s,
    record,  # bool: return the transfers, and fill start and finish
    start,  # float64 [K], filled: of the last decision; [0] where nothing is recorded
    finish,  # float64 [K], filled: of the last decision; [0] where nothing is recorded
    makespans,  # float64 [B], filled
    peaks,  # int64 [B, D], filled
    peak_times,  # float64 [B, D], filled
    busy,  # float64 [B, D], filled
):
    """Run a step for each of B decisions, one after the other. Returns (transfers, done) of the last one.

    Transfers are float64 [X, 6], rows of (tensor, source device, destination device, request, start, finish); none
    unless ``record``. ``done`` counts the tasks that finished: fewer than K where the task graph has a cycle.

    Calls with array arguments cost reference counts in a compiled loop, and every way in, and every function on the
    way, costs time to compile. So this is one long function on purpose, for one decision and for many.
    """
    transfers, done = np.empty((0, 6)), 0
    num_tasks = placements.shape[1]
    num_devices = device_type.shape[0]
    num_links = link_latency_s.shape[0]
    num_tensors = tensor_bytes.shape[0]
    num_storages = storage_bytes.shape[0]
    by_priority, in_stream = order == PRIORITY, order == STREAM

    # how many transfers at most: a tensor goes at most once to each other device that reads it
    most = 0
    for tensor in range(num_tensors):
        most += min(np.int64(reader_ptr[tensor + 1]) - np.int64(reader_ptr[tensor]), num_devices - 1)

    waiting = np.empty(num_tasks, np.int32)  # inputs not yet on the task's device
    ready = np.empty(num_tasks, np.float64)
    fresh = np.empty(num_tasks, np.uint32)  # tasks that became ready at this instant
    # the tasks of each device, from `begin` on: ready ones in order of time (first come), a heap of ready ones with
    # their priorities, or all of them in captured order (stream)
    queue = np.empty(num_tasks, np.uint32)
    key = np.empty(num_tasks if by_priority else 0, np.float64)
    begin = np.empty(num_devices + 1, np.int64)
    front = np.empty(num_devices, np.int64)
    back = np.empty(num_devices, np.int64)
    late = np.empty(num_devices, np.uint32)  # the pairing heap of those that tie with too many
    child = np.empty(num_tasks if order == FIFO else 0, np.uint32)
    sibling = np.empty(num_tasks if order == FIFO else 0, np.uint32)
    task_number = np.arange(num_tasks if order == FIFO else 0)
    running = np.empty(num_devices, np.uint32)
    try_devices = np.empty(num_devices, np.uint32)  # idle devices that may have something to start
    device_listed = np.empty(num_devices, np.bool_)  # in that list, or at work

    # transfers, numbered by request; the queue of a link is a linked list of them
    x_tensor = np.empty(most, np.uint32)
    x_target = np.empty(most, np.uint32)
    x_request = np.empty(most, np.float64)
    x_before = np.empty(most, np.uint32)
    x_after = np.empty(most, np.uint32)
    x_first = np.empty(most, np.uint32)  # the first reader of the copy that it makes, a position in `reader`
    x_start = np.empty(most if record else 0, np.float64)
    x_finish = np.empty(most if record else 0, np.float64)
    link_head = np.empty(num_links, np.uint32)
    link_tail = np.empty(num_links, np.uint32)
    link_late = np.empty(num_links, np.uint32)
    link_running = np.empty(num_links, np.uint32)
    try_links = np.empty(num_links, np.uint32)  # idle links that may have something to carry
    link_listed = np.empty(num_links, np.bool_)  # in that list, or at work

    # what ends next, a heap: of devices, then of links
    event_s = np.empty(num_devices + num_links, np.float64)
    event_of = np.empty(num_devices + num_links, np.uint32)

    memory = np.empty(num_devices, np.int64)
    # what takes memory: storages, then copies, each named by the first of its readers; the others follow that one
    held_by = np.empty(num_storages + reader.shape[0], np.int32)  # readers and transfers out of it
    holds = np.empty(input_tensor.shape[0], np.uint32)  # the one that each input of a task holds
    next_reader = np.empty(reader.shape[0], np.uint32)
    copied = np.empty(num_devices, np.uint32)  # the tensor that was last sent to each device
    first_reader = np.empty(num_devices, np.uint32)
    last_reader = np.empty(num_devices, np.uint32)

    for row in range(placements.shape[0]):
        placement, priority = placements[row], priorities[row if priorities.shape[0] > 1 else 0]
        peak_bytes, peak_time_s, busy_s = peaks[row], peak_times[row], busy[row]
        num_fresh = num_try_devices = num_try_links = num_transfers = num_events = 0
        for device in range(num_devices):
            busy_s[device] = 0.0
            peak_time_s[device] = 0.0
            memory[device] = 0
            begin[device + 1] = 0
            late[device] = NONE
            copied[device] = NONE
            device_listed[device] = False
        for link in range(num_links):
            link_head[link] = NONE
            link_tail[link] = NONE
            link_late[link] = NONE
            link_listed[link] = False
        for storage in range(num_storages):
            held_by[storage] = 0
        begin[0] = 0
        for task in range(num_tasks):
            waiting[task] = input_ptr[task + 1] - input_ptr[task]
            memory[placement[task]] += persistent_bytes[task]
            if not is_source[task]:
                begin[placement[task] + 1] += 1
                if waiting[task] == 0:
                    fresh[num_fresh] = task
                    num_fresh += 1
        for device in range(num_devices):
            front[device] = back[device] = begin[device]
            begin[device + 1] += begin[device]
        if in_stream:
            for position in range(num_tasks):
                task = sequence[position]
                if not is_source[task]:
                    device = placement[task]
                    queue[back[device]] = task
                    back[device] += 1

        now = 0.0
        done = 0
        makespan = 0.0
        # The first round takes in the sources; every later one takes in the finishes of its instant.
        first_round = True
        next_source = 0
        while True:
            # ---- what finishes now
            while True:
                if first_round:
                    while next_source < num_tasks and not is_source[next_source]:
                        next_source += 1
                    if next_source == num_tasks:
                        break
                    finished = np.uint32(next_source)
                    next_source += 1
                    home = placement[finished]
                    if record:
                        start[finished] = 0.0
                        finish[finished] = 0.0
                    for storage in range(storage_ptr[finished], storage_ptr[finished + 1]):
                        memory[home] += storage_bytes[storage]
                else:
                    if num_events == 0 or event_s[0] != now:
                        break
                    num_events -= 1
                    home = _event_pop(event_s, event_of, num_events)
                    if home >= num_devices:  # a transfer
                        link = home - num_devices
                        try_links[num_try_links] = link
                        num_try_links += 1
                        x = link_running[link]
                        tensor = x_tensor[x]
                        storage = tensor_storage[tensor]
                        held_by[storage] -= 1
                        if held_by[storage] == 0:
                            memory[placement[tensor_task[tensor]]] -= storage_bytes[storage]
                        position = x_first[x]
                        while position != NONE:
                            task = reader[position]
                            waiting[task] -= 1
                            if waiting[task] == 0:
                                fresh[num_fresh] = task
                                num_fresh += 1
                            position = next_reader[position]
                        continue
                    try_devices[num_try_devices] = home
                    num_try_devices += 1
                    finished = running[home]
                done += 1
                # let go of what it read
                for position in range(input_ptr[finished], input_ptr[finished + 1]):
                    held = holds[position]
                    held_by[held] -= 1
                    if held_by[held] == 0:
                        if held < num_storages:
                            memory[home] -= storage_bytes[held]
                        else:
                            memory[home] -= tensor_bytes[input_tensor[position]]
                # hand out what it made
                for tensor in range(tensor_ptr[finished], tensor_ptr[finished + 1]):
                    storage = tensor_storage[tensor]
                    for position in range(reader_ptr[tensor], reader_ptr[tensor + ONE]):
                        task = reader[position]
                        target = placement[task]
                        if target == home:
                            holds[input_of_reader[position]] = storage
                            held_by[storage] += 1
                            waiting[task] -= 1
                            if waiting[task] == 0:
                                fresh[num_fresh] = task
                                num_fresh += 1
                            continue
                        next_reader[position] = NONE
                        if copied[target] == tensor:  # requested for an earlier reader there
                            held = num_storages + first_reader[target]
                            holds[input_of_reader[position]] = held
                            held_by[held] += 1
                            next_reader[last_reader[target]] = position
                            last_reader[target] = position
                            continue
                        copied[target] = tensor
                        first_reader[target] = position
                        last_reader[target] = position
                        held = num_storages + first_reader[target]
                        holds[input_of_reader[position]] = held
                        held_by[held] = 1
                        held_by[storage] += 1
                        link = link_of[home, target]
                        x = np.uint32(num_transfers)
                        num_transfers += 1
                        x_tensor[x] = tensor
                        x_target[x] = target
                        x_request[x] = now
                        x_first[x] = position
                        # requests come in order of time, so only ties move one forward
                        other = link_tail[link]
                        steps = 0
                        while (
                            other != NONE
                            and x_request[other] == now
                            and (x_tensor[other] > tensor or (x_tensor[other] == tensor and x_target[other] > target))
                            and steps < MOST_STEPS
                        ):
                            other = x_before[other]
                            steps += 1
                        if steps == MOST_STEPS:
                            x_before[x] = x_after[x] = NONE  # child and sibling
                            link_late[link] = _meld(
                                link_late[link], x, x_before, x_after, x_request, x_tensor, x_target
                            )
                        else:
                            x_before[x] = other
                            if other == NONE:
                                x_after[x] = link_head[link]
                                link_head[link] = x
                            else:
                                x_after[x] = x_after[other]
                                x_after[other] = x
                            if x_after[x] == NONE:
                                link_tail[link] = x
                            else:
                                x_before[x_after[x]] = x
                        if not link_listed[link]:
                            link_listed[link] = True
                            try_links[num_try_links] = link
                            num_try_links += 1
                for storage in range(storage_ptr[finished], storage_ptr[finished + 1]):
                    if held_by[storage] == 0:
                        memory[home] -= storage_bytes[storage]

            if first_round:
                first_round = False
                for device in range(num_devices):
                    peak_bytes[device] = memory[device]

            # ---- queue what became ready
            for index in range(num_fresh):
                task = fresh[index]
                ready[task] = now
                device = placement[task]
                end = back[device]
                if by_priority:
                    _heap_push(queue, key, begin[device], end - begin[device], task, priority[task], ready)
                    back[device] = end + 1
                elif not in_stream:  # tasks come in order of ready time, so only ties move one forward
                    least = max(front[device], end - MOST_STEPS)
                    place = end
                    while place > least and queue[place - 1] > task and ready[queue[place - 1]] == now:
                        place -= 1
                    if place == end - MOST_STEPS:
                        child[task] = sibling[task] = NONE
                        late[device] = _meld(late[device], task, child, sibling, ready, task_number, task_number)
                    else:
                        while end > place:
                            queue[end] = queue[end - 1]
                            end -= 1
                        queue[place] = task
                        back[device] += 1
                if not device_listed[device]:
                    device_listed[device] = True
                    try_devices[num_try_devices] = device
                    num_try_devices += 1
            num_fresh = 0

            # ---- start what can start
            for index in range(num_try_devices):
                device = try_devices[index]
                device_listed[device] = False
                at = front[device]
                if by_priority:
                    size = back[device] - at - 1
                    if size < 0:
                        continue
                    task = _heap_pop(queue, key, at, size, ready)
                    back[device] -= 1
                elif in_stream:
                    if at == back[device] or waiting[queue[at]] > 0:
                        continue
                    task = queue[at]
                    front[device] = at + 1
                else:
                    task = NONE if at == back[device] else queue[at]
                    other = late[device]
                    if other != NONE and (task == NONE or _comes_before(other, task, ready, task_number, task_number)):
                        task = other
                        late[device] = _without_root(other, child, sibling, ready, task_number, task_number)
                    elif task == NONE:
                        continue
                    else:
                        front[device] = at + 1
                device_listed[device] = True
                running[device] = task
                duration = durations[device_type[device], task]
                ends = now + duration
                _event_push(event_s, event_of, num_events, ends, device)
                num_events += 1
                if record:
                    start[task] = now
                    finish[task] = ends
                busy_s[device] += duration
                makespan = max(makespan, ends)
                for storage in range(storage_ptr[task], storage_ptr[task + 1]):
                    memory[device] += storage_bytes[storage]
                if memory[device] > peak_bytes[device]:
                    peak_bytes[device] = memory[device]
                    peak_time_s[device] = now
            num_try_devices = 0
            for index in range(num_try_links):
                link = try_links[index]
                link_listed[link] = False
                x = link_head[link]
                other = link_late[link]
                if other != NONE and (x == NONE or _comes_before(other, x, x_request, x_tensor, x_target)):
                    x = other
                    link_late[link] = _without_root(other, x_before, x_after, x_request, x_tensor, x_target)
                elif x == NONE:
                    continue
                else:
                    link_head[link] = x_after[x]
                    if x_after[x] == NONE:
                        link_tail[link] = NONE
                    else:
                        x_before[x_after[x]] = NONE
                link_listed[link] = True
                link_running[link] = x
                tensor = x_tensor[x]
                target = x_target[x]
                takes = transfer_s[tensor]
                if takes < 0.0:
                    takes = link_latency_s[link] + tensor_bytes[tensor] / link_bytes_per_s[link]
                ends = now + takes
                _event_push(event_s, event_of, num_events, ends, num_devices + link)
                num_events += 1
                if record:
                    x_start[x] = now
                    x_finish[x] = ends
                memory[target] += tensor_bytes[tensor]
                if memory[target] > peak_bytes[target]:
                    peak_bytes[target] = memory[target]
                    peak_time_s[target] = now
            num_try_links = 0

            if num_events == 0:
                break
            now = event_s[0]

        if record:
            transfers = np.empty((num_transfers, 6), np.float64)
            for x in range(num_transfers):
                transfers[x, 0] = x_tensor[x]
                transfers[x, 1] = placement[tensor_task[x_tensor[x]]]
                transfers[x, 2] = x_target[x]
                transfers[x, 3] = x_request[x]
                transfers[x, 4] = x_start[x]
                transfers[x, 5] = x_finish[x]
        makespans[row] = makespan
    return transfers, done
