"""Plain twins of the compiled schedulers and of their memory account: short, slow, from the definitions."""

from __future__ import annotations

import numpy as np


def inputs(instance, task):
    return instance.input_tensor[instance.input_ptr[task] : instance.input_ptr[task + 1]].tolist()


def readers(instance, tensor):
    return instance.reader[instance.reader_ptr[tensor] : instance.reader_ptr[tensor + 1]].tolist()


def transfer_s(instance, tensor, home, device):
    if home == device:
        return 0.0
    return instance.latency_s[home, device] + instance.tensor_bytes[tensor] / instance.bytes_per_s[home, device]


def held_bytes(instance, device_of_unit, num_devices):
    """int64 [D, B]: what each device holds over time, were units placed so (-1: not placed)."""
    held = np.zeros((num_devices, instance.profile.shape[1]), np.int64)
    for unit, device in enumerate(device_of_unit):
        if device >= 0:
            held[device] += instance.profile[unit]
    for tensor, producer in enumerate(instance.tensor_task.tolist()):
        home = device_of_unit[instance.unit_of_task[producer]]
        if home < 0:
            continue
        for device in set(range(num_devices)) - {home}:
            there = [r for r in readers(instance, tensor) if device_of_unit[instance.unit_of_task[r]] == device]
            if there:
                begin = 0 if instance.is_source[producer] else instance.bucket[producer]
                held[device, begin : max(instance.bucket[r] for r in there) + 1] += instance.tensor_bytes[tensor]
    return held


def has_room(instance, device_of_unit, unit, device, capacity_bytes):
    """Whether placing a unit on a device leaves within capacity all devices on which it changes anything."""
    trial = device_of_unit.copy()
    trial[unit] = device
    before = held_bytes(instance, device_of_unit, len(capacity_bytes))
    after = held_bytes(instance, trial, len(capacity_bytes))
    touched = (after != before).any(axis=1)
    touched[device] = True
    return (after <= np.asarray(capacity_bytes)[:, None])[touched].all()


def heft(instance, capacity_bytes=None):
    """(device_of_unit, start, finish) by the paper's words, or None where some unit fits nowhere."""
    order = sorted(range(len(instance.rank_s)), key=lambda task: (-instance.rank_s[task], task))
    return insertion(instance, order, {}, capacity_bytes)


def cpop(instance, capacity_bytes=None):
    """CPOP by the paper's words: ranks down, the critical path from the entry, a queue of ready tasks."""
    computing = [task for task in range(len(instance.rank_s)) if not instance.is_source[task]]
    down: dict[int, float] = {}

    def rank_d(task):
        if task not in down:
            ways = [0.0]
            for tensor in inputs(instance, task):
                producer = int(instance.tensor_task[tensor])
                if not instance.is_source[producer]:
                    ways.append(rank_d(producer) + instance.mean_s[producer] + instance.mean_transfer_s[tensor])
            down[task] = max(ways)
        return down[task]

    entries = [task for task in computing if rank_d(task) == 0.0]
    path = [max(entries, key=lambda task: (instance.rank_s[task], -task))]
    while True:
        ways = [
            (instance.mean_transfer_s[tensor] + instance.rank_s[reader], -tensor, -reader)
            for tensor in range(instance.tensor_ptr[path[-1]], instance.tensor_ptr[path[-1] + 1])
            for reader in readers(instance, tensor)
        ]
        if not ways:
            break
        path.append(-max(ways)[2])
    on = min(range(len(instance.durations_s)), key=lambda device: (instance.durations_s[device, path].sum(), device))
    order, done = [], set(range(len(instance.rank_s))) - set(computing)
    while len(order) < len(computing):
        ready = [
            task
            for task in computing
            if task not in done and all(int(instance.tensor_task[t]) in done for t in inputs(instance, task))
        ]
        order.append(max(ready, key=lambda task: (instance.rank_s[task] + rank_d(task), -task)))
        done.add(order[-1])
    return insertion(instance, order, dict.fromkeys(path, on), capacity_bytes)


def insertion(instance, order, preferred, capacity_bytes):
    """Tasks in order, over lists of busy intervals; each on its preferred device, or where it finishes first."""
    num_devices, num_tasks = instance.durations_s.shape
    device_of_unit = np.full(len(instance.unit_bytes), -1)
    start, finish = np.zeros(num_tasks), np.zeros(num_tasks)
    busy = [[] for _ in range(num_devices)]
    for task in order:
        if instance.is_source[task]:
            continue
        unit = instance.unit_of_task[task]
        may = [int(device_of_unit[unit])]
        if may == [-1]:
            may = [
                device
                for device in range(num_devices)
                if capacity_bytes is None or has_room(instance, device_of_unit, unit, device, capacity_bytes)
            ]
            may = [device for device in may if device == preferred.get(task)] or may
        options = []
        for device in may:
            begin = 0.0
            for tensor in inputs(instance, task):
                producer = instance.tensor_task[tensor]
                home = device_of_unit[instance.unit_of_task[producer]]
                if home != -1:
                    begin = max(begin, finish[producer] + transfer_s(instance, tensor, home, device))
            for left, right in busy[device]:
                if begin + instance.durations_s[device, task] <= left:
                    break
                begin = max(begin, right)
            options.append((begin + instance.durations_s[device, task], device, begin))
        if not options:
            return None
        finish[task], device_of_unit[unit], start[task] = min(options)
        busy[device_of_unit[unit]] = sorted([*busy[device_of_unit[unit]], (start[task], finish[task])])
    return device_of_unit, start, finish


def etf(instance, capacity_bytes, favourite, by_finish=False):
    """(device_of_unit, start, finish), or None where some unit fits nowhere. ``favourite`` empty: m-ETF."""
    num_devices, num_tasks = instance.durations_s.shape
    device_of_unit = np.full(len(instance.unit_bytes), -1)
    start, finish = np.zeros(num_tasks), np.zeros(num_tasks)
    available, last = [0.0] * num_devices, [-1] * num_devices
    link_free: dict[int, float] = {}
    received: dict[tuple[int, int], float] = {}
    done = set(np.flatnonzero(instance.is_source).tolist())
    everywhere: dict[int, float] = {}

    def arrival(task, device, keep=False):
        free, latest = dict(link_free), 0.0
        for tensor in inputs(instance, task):
            producer = int(instance.tensor_task[tensor])
            home = int(device_of_unit[instance.unit_of_task[producer]])
            when = finish[producer]
            if home not in (-1, device):
                if (device, tensor) in received:
                    when = received[device, tensor]
                else:
                    link = int(instance.link_of[home, device])
                    when = max(when, free.get(link, 0.0)) + transfer_s(instance, tensor, home, device)
                    free[link] = when
                    if keep:
                        received[device, tensor] = when
            latest = max(latest, when)
        if keep:
            link_free.update(free)
        return latest

    def may_run(task, device):
        unit = instance.unit_of_task[task]
        if device_of_unit[unit] != -1:
            return device_of_unit[unit] == device
        return has_room(instance, device_of_unit, unit, device, capacity_bytes)

    def reached(task, device):
        """When a task is under way (or, by finish, over) on a device."""
        return max(available[device], arrival(task, device)) + instance.durations_s[device, task] * by_finish

    while len(done) < num_tasks:
        ready = [
            task
            for task in range(num_tasks)
            if task not in done and all(int(instance.tensor_task[t]) in done for t in inputs(instance, task))
        ]
        for task in ready:
            if task not in everywhere:
                home = device_of_unit[instance.unit_of_task[task]]
                everywhere[task] = max(arrival(task, d) for d in range(num_devices) if home in (-1, d))
        allowed = {task: [device for device in range(num_devices) if may_run(task, device)] for task in ready}
        if not all(allowed.values()):
            return None
        best = None
        for device in range(num_devices):
            mine = [task for task in ready if device in allowed[task]]
            if not mine:
                continue
            begins = {task: max(available[device], arrival(task, device)) for task in mine}
            task = min(mine, key=lambda task: (begins[task], -instance.rank_s[task], task))
            child = favourite[last[device]] if len(favourite) and last[device] != -1 else -1
            if child in mine and reached(child, device) == min(reached(child, d) for d in allowed[child]):
                task = min(mine, key=lambda task: (everywhere[task], -instance.rank_s[task], task))
                if max(available[device], everywhere[task]) > begins[child]:
                    task = child
            begin = begins[task]
            end = begin + instance.durations_s[device, task]
            key = (end, begin) if by_finish else (begin, end)
            found = ((*key, -instance.rank_s[task], device), task, begin, end)
            best = min(best, found) if best else found
        (*_, device), task, start[best[1]], finish[best[1]] = best
        device_of_unit[instance.unit_of_task[task]] = device
        arrival(task, device, keep=True)
        available[device], last[device] = finish[task], task
        done.add(task)
    return device_of_unit, start, finish
