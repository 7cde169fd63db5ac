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

import numpy as np

from graphopt_gym.compiled import kernel
from graphopt_gym.simulator.orders import FIFO, PRIORITY, STREAM

INFINITY = np.inf
# How far what ties is moved forward in a queue, which is a list; what would go farther is put into a heap beside it.
MOST_STEPS = 8


@kernel(inner=True, allocates=False)
def _goes_first(a, b, priority, ready):
    if priority[a] != priority[b]:
        return priority[a] > priority[b]
    if ready[a] != ready[b]:
        return ready[a] < ready[b]
    return a < b


@kernel(inner=True, allocates=False)
def _heap_push(heap, base, heap_size, device, task, priority, ready):
    position = heap_size[device]
    heap_size[device] += 1
    while position > 0:
        parent = (position - 1) // 2
        other = heap[base + parent]
        if _goes_first(other, task, priority, ready):
            break
        heap[base + position] = other
        position = parent
    heap[base + position] = task


@kernel(inner=True, allocates=False)
def _heap_pop(heap, base, heap_size, device, priority, ready):
    top = heap[base]
    heap_size[device] -= 1
    size = heap_size[device]
    if size > 0:
        task = heap[base + size]
        position = 0
        while True:
            child = 2 * position + 1
            if child >= size:
                break
            if child + 1 < size and _goes_first(heap[base + child + 1], heap[base + child], priority, ready):
                child += 1
            if _goes_first(task, heap[base + child], priority, ready):
                break
            heap[base + position] = heap[base + child]
            position = child
        heap[base + position] = task
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
    """Two pairing heaps (Fredman et al., Algorithmica 1, 1986) as one; -1 is an empty one. Returns its root."""
    if a == -1 or b == -1:
        return max(a, b)
    if _comes_before(b, a, first, second, third):
        a, b = b, a
    sibling[b] = child[a]
    child[a] = b
    return a


@kernel(inner=True, allocates=False)
def _without_root(root, child, sibling, first, second, third):
    """What is left of a pairing heap without its root: its children melded in pairs, then the pairs."""
    node, pairs = child[root], -1
    while node != -1:
        other = sibling[node]
        after = -1 if other == -1 else sibling[other]
        sibling[node] = -1
        if other != -1:
            sibling[other] = -1
        pair = _meld(node, other, child, sibling, first, second, third)
        sibling[pair] = pairs
        pairs, node = pair, after
    root = -1
    while pairs != -1:
        after = sibling[pairs]
        sibling[pairs] = -1
        root = _meld(root, pairs, child, sibling, first, second, third)
        pairs = after
    return root


@kernel
def run(
    placements,  # int32 [B, K] device of each task
    priorities,  # float64 [B, K], [1, K] for all rows, or [1, 0] where the order is not PRIORITY
    order,  # FIFO, PRIORITY or STREAM
    durations,  # float64 [types, K] seconds
    device_type,  # int32 [D]
    link_of,  # int32 [D, D]
    link_latency_s,  # float64 [L]
    link_bytes_per_s,  # float64 [L]
    sequence,  # int32 [K] tasks in captured order; from here on the columns of TaskGraph
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
    transfer_s,
    record,  # bool: return the transfers
    start,  # float64 [K], filled: of the last decision
    finish,  # float64 [K], filled: of the last decision
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
    # where the readers of a tensor say what each task reads
    reader_of_input = np.empty(input_tensor.shape[0], np.int32)
    seen = np.zeros(input_ptr.shape[0], np.int32)
    for position in range(reader.shape[0]):  # by tensor: as a task's inputs are
        task = reader[position]
        reader_of_input[input_ptr[task] + seen[task]] = position
        seen[task] += 1
    for row in range(placements.shape[0]):
        placement, priority = placements[row], priorities[row if priorities.shape[0] > 1 else 0]
        peak_bytes, peak_time_s, busy_s = peaks[row], peak_times[row], busy[row]
        num_tasks = placement.shape[0]
        num_devices = device_type.shape[0]
        num_links = link_latency_s.shape[0]
        num_tensors = tensor_bytes.shape[0]
        by_priority, in_stream = order == PRIORITY, order == STREAM

        # how many transfers at most: a tensor goes at most once to each other device that reads it
        most = 0
        for tensor in range(num_tensors):
            most += min(reader_ptr[tensor + 1] - reader_ptr[tensor], num_devices - 1)

        waiting = np.empty(num_tasks, np.int32)  # inputs not yet on the task's device
        ready = np.empty(num_tasks, np.float64)
        fresh = np.empty(num_tasks, np.int32)  # tasks that became ready at this instant
        num_fresh = 0
        # the ready queue of a device: a linked list, or, by priority, a heap
        before = np.full(num_tasks, -1, np.int32)
        after = np.full(num_tasks, -1, np.int32)
        head = np.full(num_devices, -1, np.int32)
        tail = np.full(num_devices, -1, np.int32)
        late = np.full(num_devices, -1, np.int32)  # the heap of those that tie with too many
        task_number = np.arange(num_tasks if order == FIFO else 0)
        # (in a stream: the tasks of each device in captured order, and how far it is)
        heap = np.empty(num_tasks if by_priority or in_stream else 0, np.int32)
        heap_start = np.zeros(num_devices + 1, np.int64)
        heap_size = np.zeros(num_devices, np.int64)
        running = np.full(num_devices, -1, np.int32)
        at_work = np.empty(num_devices, np.int32)  # devices that run something now
        until = np.empty(num_devices, np.float64)  # when each of these is done
        num_at_work = 0
        try_devices = np.empty(num_devices, np.int32)  # devices that may have something to start
        device_listed = np.zeros(num_devices, np.bool_)
        num_try_devices = 0

        # transfers, numbered by request; the queue of a link is a linked list of them
        x_tensor = np.empty(most, np.int32)
        x_target = np.empty(most, np.int32)
        x_request = np.empty(most, np.float64)
        x_before = np.empty(most, np.int32)
        x_after = np.empty(most, np.int32)
        x_first = np.empty(most, np.int32)  # the copy that it makes
        x_start = np.empty(most if record else 0, np.float64)
        x_finish = np.empty(most if record else 0, np.float64)
        num_transfers = 0
        link_head = np.full(num_links, -1, np.int32)
        link_tail = np.full(num_links, -1, np.int32)
        link_late = np.full(num_links, -1, np.int32)
        link_running = np.full(num_links, -1, np.int32)
        active = np.empty(num_links, np.int32)  # links that carry something now
        active_until = np.empty(num_links, np.float64)
        num_active = 0
        try_links = np.empty(num_links, np.int32)  # idle links that may have something to carry
        link_listed = np.zeros(num_links, np.bool_)
        num_try_links = 0
        ending = np.empty(num_devices + num_links + 1, np.int32)  # what ends now: devices, then positions in `active`
        num_ending = 0
        num_ending_devices = 0

        memory = np.zeros(num_devices, np.int64)
        storage_left = np.zeros(storage_bytes.shape[0], np.int32)  # readers and transfers that hold it
        # a copy is named by the first of its readers (a position in `reader`), the others follow it
        copy_of = np.full(reader.shape[0], -1, np.int32)  # -1: the reader is where the tensor is made
        next_reader = np.empty(reader.shape[0], np.int32)
        copy_left = np.empty(reader.shape[0], np.int32)  # readers that hold it
        copied = np.full(num_devices, -1, np.int32)  # the tensor that was last sent to each device
        last_reader = np.empty(num_devices, np.int32)

        for device in range(num_devices):
            busy_s[device] = 0.0
            peak_time_s[device] = 0.0
        for task in range(num_tasks):
            waiting[task] = input_ptr[task + 1] - input_ptr[task]
            memory[placement[task]] += persistent_bytes[task]
            if by_priority or (in_stream and not is_source[task]):
                heap_start[placement[task] + 1] += 1
            if waiting[task] == 0 and not is_source[task]:
                fresh[num_fresh] = task
                num_fresh += 1
        for device in range(num_devices):
            heap_start[device + 1] += heap_start[device]
        if in_stream:
            for position in range(num_tasks):
                task = sequence[position]
                if not is_source[task]:
                    device = placement[task]
                    heap[heap_start[device] + heap_size[device]] = task
                    heap_size[device] += 1
            for device in range(num_devices):
                heap_size[device] = 0

        now = 0.0
        done = 0
        makespan = 0.0
        # The first round takes in the sources; every later one takes in the finishes of its instant.
        first_round = True
        next_source = 0
        while True:
            # ---- tasks that finish now
            turn = 0
            while True:
                if first_round:
                    while next_source < num_tasks and not is_source[next_source]:
                        next_source += 1
                    if next_source == num_tasks:
                        break
                    finished = next_source
                    next_source += 1
                    start[finished] = 0.0
                    finish[finished] = 0.0
                    home = placement[finished]
                    for storage in range(storage_ptr[finished], storage_ptr[finished + 1]):
                        memory[home] += storage_bytes[storage]
                else:
                    if turn == num_ending_devices:
                        break
                    home = ending[turn]
                    turn += 1
                    finished = running[home]
                    running[home] = -1
                    if not device_listed[home]:
                        device_listed[home] = True
                        try_devices[num_try_devices] = home
                        num_try_devices += 1
                done += 1
                # let go of what it read
                for position in range(input_ptr[finished], input_ptr[finished + 1]):
                    tensor = input_tensor[position]
                    copy = copy_of[reader_of_input[position]]
                    if copy != -1:
                        copy_left[copy] -= 1
                        if copy_left[copy] == 0:
                            memory[home] -= tensor_bytes[tensor]
                    else:
                        storage = tensor_storage[tensor]
                        storage_left[storage] -= 1
                        if storage_left[storage] == 0:
                            memory[home] -= storage_bytes[storage]
                # hand out what it made
                for tensor in range(tensor_ptr[finished], tensor_ptr[finished + 1]):
                    storage = tensor_storage[tensor]
                    for position in range(reader_ptr[tensor], reader_ptr[tensor + 1]):
                        task = reader[position]
                        target = placement[task]
                        if target == home:
                            storage_left[storage] += 1
                            waiting[task] -= 1
                            if waiting[task] == 0:
                                fresh[num_fresh] = task
                                num_fresh += 1
                            continue
                        next_reader[position] = -1
                        if copied[target] == tensor:  # requested for an earlier reader there
                            copy_of[position] = copy_of[last_reader[target]]
                            copy_left[copy_of[position]] += 1
                            next_reader[last_reader[target]] = position
                            last_reader[target] = position
                            continue
                        copied[target] = tensor
                        last_reader[target] = position
                        copy_of[position] = position
                        copy_left[position] = 1
                        storage_left[storage] += 1
                        link = link_of[home, target]
                        x = num_transfers
                        num_transfers += 1
                        x_tensor[x] = tensor
                        x_target[x] = target
                        x_request[x] = now
                        x_first[x] = position
                        # requests come in order of time, so only ties move one forward
                        other = link_tail[link]
                        steps = 0
                        while (
                            other != -1
                            and x_request[other] == now
                            and (x_tensor[other] > tensor or (x_tensor[other] == tensor and x_target[other] > target))
                            and steps < MOST_STEPS
                        ):
                            other = x_before[other]
                            steps += 1
                        if steps == MOST_STEPS:
                            x_before[x] = x_after[x] = -1  # child and sibling
                            link_late[link] = _meld(
                                link_late[link], x, x_before, x_after, x_request, x_tensor, x_target
                            )
                        else:
                            x_before[x] = other
                            if other == -1:
                                x_after[x] = link_head[link]
                                link_head[link] = x
                            else:
                                x_after[x] = x_after[other]
                                x_after[other] = x
                            if x_after[x] == -1:
                                link_tail[link] = x
                            else:
                                x_before[x_after[x]] = x
                        if link_running[link] == -1 and not link_listed[link]:
                            link_listed[link] = True
                            try_links[num_try_links] = link
                            num_try_links += 1
                for storage in range(storage_ptr[finished], storage_ptr[finished + 1]):
                    if storage_left[storage] == 0:
                        memory[home] -= storage_bytes[storage]

            # ---- transfers that finish now
            for turn in range(
                num_ending - 1, num_ending_devices - 1, -1
            ):  # last first: a removal moves the last one up
                position = ending[turn]
                link = active[position]
                num_active -= 1
                active[position] = active[num_active]
                active_until[position] = active_until[num_active]
                x = link_running[link]
                link_running[link] = -1
                if not link_listed[link]:
                    link_listed[link] = True
                    try_links[num_try_links] = link
                    num_try_links += 1
                tensor = x_tensor[x]
                storage = tensor_storage[tensor]
                storage_left[storage] -= 1
                if storage_left[storage] == 0:
                    memory[placement[tensor_task[tensor]]] -= storage_bytes[storage]
                position = x_first[x]
                while position != -1:
                    task = reader[position]
                    waiting[task] -= 1
                    if waiting[task] == 0:
                        fresh[num_fresh] = task
                        num_fresh += 1
                    position = next_reader[position]

            if first_round:
                first_round = False
                for device in range(num_devices):
                    peak_bytes[device] = memory[device]

            # ---- queue what became ready
            for position in range(num_fresh):
                task = fresh[position]
                ready[task] = now
                device = placement[task]
                if by_priority:
                    _heap_push(heap, heap_start[device], heap_size, device, task, priority, ready)
                elif not in_stream:  # tasks come in order of ready time, so only ties move one forward
                    other = tail[device]
                    steps = 0
                    while other != -1 and ready[other] == now and other > task and steps < MOST_STEPS:
                        other = before[other]
                        steps += 1
                    if steps == MOST_STEPS:
                        before[task] = after[task] = -1  # child and sibling
                        late[device] = _meld(late[device], task, before, after, ready, task_number, task_number)
                    else:
                        before[task] = other
                        if other == -1:
                            after[task] = head[device]
                            head[device] = task
                        else:
                            after[task] = after[other]
                            after[other] = task
                        if after[task] == -1:
                            tail[device] = task
                        else:
                            before[after[task]] = task
                if running[device] == -1 and not device_listed[device]:
                    device_listed[device] = True
                    try_devices[num_try_devices] = device
                    num_try_devices += 1
            num_fresh = 0

            # ---- start what can start
            for position in range(num_try_devices):
                device = try_devices[position]
                device_listed[device] = False
                if by_priority:
                    if heap_size[device] == 0:
                        continue
                    task = _heap_pop(heap, heap_start[device], heap_size, device, priority, ready)
                elif in_stream:
                    position_in = heap_start[device] + heap_size[device]
                    if position_in == heap_start[device + 1] or waiting[heap[position_in]] > 0:
                        continue
                    task = heap[position_in]
                    heap_size[device] += 1
                else:
                    task = head[device]
                    other = late[device]
                    if other != -1 and (task == -1 or _comes_before(other, task, ready, task_number, task_number)):
                        task = other
                        late[device] = _without_root(other, before, after, ready, task_number, task_number)
                    elif task == -1:
                        continue
                    else:
                        head[device] = after[task]
                        if after[task] == -1:
                            tail[device] = -1
                        else:
                            before[after[task]] = -1
                duration = durations[device_type[device], task]
                running[device] = task
                at_work[num_at_work] = device
                until[num_at_work] = now + duration
                num_at_work += 1
                start[task] = now
                finish[task] = now + duration
                busy_s[device] += duration
                if now + duration > makespan:
                    makespan = now + duration
                for storage in range(storage_ptr[task], storage_ptr[task + 1]):
                    memory[device] += storage_bytes[storage]
                if memory[device] > peak_bytes[device]:
                    peak_bytes[device] = memory[device]
                    peak_time_s[device] = now
            num_try_devices = 0
            for position in range(num_try_links):
                link = try_links[position]
                link_listed[link] = False
                x = link_head[link]
                other = link_late[link]
                if other != -1 and (x == -1 or _comes_before(other, x, x_request, x_tensor, x_target)):
                    x = other
                    link_late[link] = _without_root(other, x_before, x_after, x_request, x_tensor, x_target)
                elif x == -1:
                    continue
                else:
                    link_head[link] = x_after[x]
                    if x_after[x] == -1:
                        link_tail[link] = -1
                    else:
                        x_before[x_after[x]] = -1
                tensor = x_tensor[x]
                target = x_target[x]
                link_running[link] = x
                takes = transfer_s[tensor]
                if takes < 0.0:
                    takes = link_latency_s[link] + tensor_bytes[tensor] / link_bytes_per_s[link]
                ends = now + takes
                active[num_active] = link
                active_until[num_active] = ends
                num_active += 1
                if record:
                    x_start[x] = now
                    x_finish[x] = ends
                memory[target] += tensor_bytes[tensor]
                if memory[target] > peak_bytes[target]:
                    peak_bytes[target] = memory[target]
                    peak_time_s[target] = now
            num_try_links = 0

            # ---- go to the next finish, and note all that end then (the least without branches, then who has it)
            next_time = INFINITY
            for position in range(num_at_work):
                next_time = until[position] if until[position] < next_time else next_time
            for position in range(num_active):
                next_time = active_until[position] if active_until[position] < next_time else next_time
            if next_time == INFINITY:
                break
            now = next_time
            num_ending = 0
            for position in range(num_at_work - 1, -1, -1):  # last first: a removal moves the last one up
                if until[position] == now:
                    ending[num_ending] = at_work[position]
                    num_ending += 1
                    num_at_work -= 1
                    at_work[position] = at_work[num_at_work]
                    until[position] = until[num_at_work]
            if num_ending > 1:
                ending[:num_ending].sort()
            num_ending_devices = num_ending
            for position in range(num_active):
                ending[num_ending] = position
                num_ending += active_until[position] == now

        transfers = np.empty((num_transfers if record else 0, 6), np.float64)
        if record:
            for x in range(num_transfers):
                transfers[x, 0] = x_tensor[x]
                transfers[x, 1] = placement[tensor_task[x_tensor[x]]]
                transfers[x, 2] = x_target[x]
                transfers[x, 3] = x_request[x]
                transfers[x, 4] = x_start[x]
                transfers[x, 5] = x_finish[x]
        makespans[row] = makespan
    return transfers, done
