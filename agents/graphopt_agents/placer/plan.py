"""The plan: what a placement would take, by a list schedule, without simulating it.

Tasks are taken in one order for all devices, and every device runs its own in that order (of the simulator's orders
only ``stream`` does); links carry one transfer at a time, in the order in which the tasks that send are taken. Memory
is that of this schedule: storages from the start of their producer to the end of the last task that reads them or the
last transfer out, copies likewise, parameters and optimiser state always, over :data:`BUCKETS` equal parts of the step.

It takes about as long as a simulation, and is wrong by some per cent, by more where orders matter. What it saves is
simulated placements, not seconds: HEFT and m-ETF plan each placement too before they propose it.
"""

from __future__ import annotations

import numpy as np

from graphopt_agents.placer.arrays import Arrays, transfer_s
from graphopt_gym.compiled import kernel

BUCKETS = 96


@kernel(inner=True, allocates=False)
def _hold(change, device, begin_s, end_s, size, step_s):
    buckets = change.shape[1] - 1
    first = min(buckets - 1, int(begin_s / step_s * buckets))
    last = min(buckets - 1, int(end_s / step_s * buckets))
    change[device, first] += size
    change[device, last + 1] -= size


@kernel
def plan(arrays: Arrays, home, peak_bytes):
    """Seconds of a planned step.

    Args:
        arrays: the problem.
        home: int32 [G], the placement.
        peak_bytes: float64 [D], filled.
    """
    tasks, tensors, devices = arrays.is_source.shape[0], arrays.tensor_task.shape[0], peak_bytes.shape[0]
    finish, free = np.zeros(tasks), np.zeros(devices)
    start = np.zeros(tasks)
    sent, arrived = np.full((tensors, devices), -1.0), np.full((tensors, devices), -1.0)
    link_free = np.zeros(max(1, arrays.link_of.max() + 1))
    step = 0.0
    for turn in range(2 * tasks):  # sources first: what is sent of them is asked for at 0
        task = arrays.sequence[turn % tasks]
        if arrays.is_source[task] != (turn < tasks):
            continue
        at = home[arrays.group_of_task[task]]
        if not arrays.is_source[task]:
            ready = free[at]
            for read in range(arrays.input_ptr[task], arrays.input_ptr[task + 1]):
                tensor = arrays.input_tensor[read]
                producer = arrays.tensor_task[tensor]
                ready = max(ready, arrived[tensor, at] if arrived[tensor, at] >= 0.0 else finish[producer])
            start[task] = ready
            finish[task] = ready + arrays.duration_s[at, task]
            free[at] = finish[task]
            step = max(step, finish[task])
        for tensor in range(arrays.tensor_ptr[task], arrays.tensor_ptr[task + 1]):
            for place in range(arrays.reader_ptr[tensor], arrays.reader_ptr[tensor + 1]):
                target = home[arrays.group_of_task[arrays.reader[place]]]
                if target != at and arrived[tensor, target] < 0.0:
                    link = arrays.link_of[at, target]
                    begin = max(link_free[link], finish[task])
                    sent[tensor, target] = begin
                    arrived[tensor, target] = begin + transfer_s(arrays, tensor, at, target)
                    link_free[link] = arrived[tensor, target]
                    step = max(step, arrived[tensor, target])
    step = max(step, 1e-30)
    change = np.zeros((devices, BUCKETS + 1))
    last = np.zeros(devices)
    for task in range(tasks):
        at = home[arrays.group_of_task[task]]
        change[at, 0] += arrays.persistent_bytes[task]
        first = arrays.storage_ptr[task]
        for storage in range(first, arrays.storage_ptr[task + 1]):
            end = finish[task]
            for tensor in range(arrays.tensor_ptr[task], arrays.tensor_ptr[task + 1]):
                if arrays.tensor_storage[tensor] != storage:
                    continue
                last[:] = -1.0
                for place in range(arrays.reader_ptr[tensor], arrays.reader_ptr[tensor + 1]):
                    reader = arrays.reader[place]
                    target = home[arrays.group_of_task[reader]]
                    last[target] = max(last[target], finish[reader])
                for device in range(devices):
                    if last[device] < 0.0:
                        continue
                    if device == at:
                        end = max(end, last[device])
                    else:
                        end = max(end, arrived[tensor, device])
                        _hold(change, device, sent[tensor, device], last[device], arrays.tensor_bytes[tensor], step)
            _hold(change, at, start[task], end, arrays.storage_bytes[storage], step)
    for device in range(devices):
        held, peak = 0.0, 0.0
        for bucket in range(BUCKETS):
            held += change[device, bucket]
            peak = max(peak, held)
        peak_bytes[device] = peak
    return step
