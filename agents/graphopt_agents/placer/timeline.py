"""What a simulated timeline says of each group: on the critical path or not, how long it waits, where there is room."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from graphopt_agents.placer.arrays import Arrays
from graphopt_gym.compiled import kernel

BUCKETS = 256  # of the step, for what devices are busy with


class State(NamedTuple):
    """A placement and its simulated step. G groups, D devices, H tensors between groups, P parts."""

    home: np.ndarray  # int32 [G]
    step_s: float
    readers: np.ndarray  # int32 [H, D] groups that read each tensor, by device
    load_s: np.ndarray  # float64 [D]
    peak_bytes: np.ndarray  # float64 [D]
    critical_s: np.ndarray  # float64 [G] on the critical path
    waits_for_s: np.ndarray  # float64 [G, D] transfers on that path to or from each other device
    slack_s: np.ndarray  # float64 [G] how much later its most urgent task could start
    room: np.ndarray  # float64 [G, D] share of the time of its tasks that each device is idle
    queued_s: np.ndarray  # float64 [G] between being ready and starting
    middle: np.ndarray  # float64 [G] when it runs, of the step
    may_take_s: np.ndarray  # float64 [H] how long a transfer of it could take without more step time
    cut_s: float  # seconds of transfers of activations and gradients
    cut_sources_s: float  # and of parameters and inputs
    in_module: np.ndarray  # float64 [P, D] seconds of each module by device
    in_layer: np.ndarray  # float64 [P, D]


@kernel
def analyse(arrays: Arrays, home, start_s, finish_s, transfers, step_s, peak_bytes):
    """The state of a placement, int32 [G], whose timeline was recorded.

    Args:
        start_s, finish_s: float64 [K].
        transfers: float64 [X, 6], see ``Timeline.transfers``.
        step_s: its step time.
        peak_bytes: int64 [D].
    """
    tasks, tensors = arrays.is_source.shape[0], arrays.tensor_task.shape[0]
    devices, groups = arrays.work_s.shape
    arrived = np.full((tensors, devices), -1.0)
    for row in range(transfers.shape[0]):
        arrived[int(transfers[row, 0]), int(transfers[row, 2])] = transfers[row, 5]
    by_start = np.argsort(start_s, kind="mergesort")
    before, after = np.full(tasks, -1, np.int64), np.full(tasks, -1, np.int64)
    last = np.full(devices, -1, np.int64)
    for task in by_start:
        if arrays.is_source[task]:
            continue
        at = home[arrays.group_of_task[task]]
        before[task] = last[at]
        if last[at] >= 0:
            after[last[at]] = task
        last[at] = task
    # how late each task may start, as all of them are ordered
    latest = np.zeros(tasks)
    for turn in range(tasks - 1, -1, -1):
        task = by_start[turn]
        if arrays.is_source[task]:
            continue
        at, end = home[arrays.group_of_task[task]], step_s
        if after[task] >= 0:
            end = min(end, latest[after[task]])
        for tensor in range(arrays.tensor_ptr[task], arrays.tensor_ptr[task + 1]):
            for place in range(arrays.reader_ptr[tensor], arrays.reader_ptr[tensor + 1]):
                reader = arrays.reader[place]
                away = home[arrays.group_of_task[reader]] != at
                end = min(end, latest[reader] - (arrays.mean_transfer_s[tensor] if away else 0.0))
        latest[task] = end - (finish_s[task] - start_s[task])
    slack, queued, ready = np.full(groups, step_s), np.zeros(groups), np.zeros(tasks)
    for task in range(tasks):
        if arrays.is_source[task]:
            continue
        group = arrays.group_of_task[task]
        at = home[group]
        slack[group] = min(slack[group], latest[task] - start_s[task])
        for read in range(arrays.input_ptr[task], arrays.input_ptr[task + 1]):
            tensor = arrays.input_tensor[read]
            producer = arrays.tensor_task[tensor]
            there = home[arrays.group_of_task[producer]] == at
            ready[task] = max(ready[task], finish_s[producer] if there else arrived[tensor, at])
        queued[group] += start_s[task] - ready[task]
    # one critical path, from its end
    critical, waits = np.zeros(groups), np.zeros((groups, devices))
    least = 1e-9 * step_s
    task = np.int64(np.argmax(finish_s))
    for _ in range(tasks):
        group = arrays.group_of_task[task]
        at = home[group]
        critical[group] += finish_s[task] - start_s[task]
        if (
            before[task] >= 0
            and finish_s[before[task]] >= start_s[task] - least
            and ready[task] < start_s[task] - least
        ):
            task = before[task]
            continue
        found, when = np.int64(-1), 0.0
        for read in range(arrays.input_ptr[task], arrays.input_ptr[task + 1]):
            tensor = arrays.input_tensor[read]
            producer = arrays.tensor_task[tensor]
            there = home[arrays.group_of_task[producer]] == at
            came = finish_s[producer] if there else arrived[tensor, at]
            if came > when:
                found, when = np.int64(producer), came
        if found < 0:
            break
        other = arrays.group_of_task[found]
        if home[other] != at:
            waits[group, home[other]] += when - finish_s[found]
            waits[other, at] += when - finish_s[found]
        if arrays.is_source[found]:
            break
        task = found
    # when devices are busy, and with that where there is room for each group
    busy, width = np.zeros((devices, BUCKETS)), max(step_s, 1e-30) / BUCKETS
    for task in range(tasks):
        if arrays.is_source[task]:
            continue
        at = home[arrays.group_of_task[task]]
        first = min(BUCKETS - 1, int(start_s[task] / width))
        final = min(BUCKETS - 1, int(finish_s[task] / width))
        for bucket in range(first, final + 1):
            low, high = max(start_s[task], bucket * width), min(finish_s[task], (bucket + 1) * width)
            busy[at, bucket] += max(0.0, high - low) / width
    room, middle, work = np.zeros((groups, devices)), np.zeros(groups), np.zeros(groups)
    for task in range(tasks):
        if arrays.is_source[task]:
            continue
        group, seconds = arrays.group_of_task[task], finish_s[task] - start_s[task]
        at = 0.5 * (start_s[task] + finish_s[task])
        bucket = min(BUCKETS - 1, int(at / width))
        work[group] += seconds
        middle[group] += seconds * at / max(step_s, 1e-30)
        for device in range(devices):
            room[group, device] += seconds * max(0.0, 1.0 - busy[device, bucket])
    for group in range(groups):
        if work[group] > 0.0:
            middle[group] /= work[group]
            for device in range(devices):
                room[group, device] /= work[group]
    # tensors between groups
    sent = arrays.sent.shape[0]
    readers, may_take = np.zeros((sent, devices), np.int32), np.empty(sent)
    cut, cut_sources = 0.0, 0.0
    for number in range(sent):
        for place in range(arrays.readers_ptr[number], arrays.readers_ptr[number + 1]):
            readers[number, home[arrays.readers[place]]] += 1
        tensor = arrays.sent[number]
        producer, may = arrays.tensor_task[tensor], step_s
        for place in range(arrays.reader_ptr[tensor], arrays.reader_ptr[tensor + 1]):
            reader = arrays.reader[place]
            if arrays.group_of_task[reader] != arrays.sender[number] and not arrays.is_source[reader]:
                may = min(may, latest[reader] - finish_s[producer])
        may_take[number] = may
        for device in range(devices):
            if device != home[arrays.sender[number]] and readers[number, device] > 0:
                if arrays.of_source[number]:
                    cut_sources += arrays.sent_s[number]
                else:
                    cut += arrays.sent_s[number]
    load, peak = np.zeros(devices), np.zeros(devices)
    in_module = np.zeros((arrays.part[0].max() + 1, devices))
    in_layer = np.zeros((arrays.part[1].max() + 1, devices))
    for group in range(groups):
        at = home[group]
        load[at] += arrays.work_s[at, group]
        in_module[arrays.part[0, group], at] += arrays.work_s[at, group]
        in_layer[arrays.part[1, group], at] += arrays.work_s[at, group]
    for device in range(devices):
        peak[device] = peak_bytes[device]
    return State(
        home.copy(), step_s, readers, load, peak, critical, waits, slack, room, queued, middle, may_take, cut,
        cut_sources, in_module, in_layer,
    )  # fmt: skip
