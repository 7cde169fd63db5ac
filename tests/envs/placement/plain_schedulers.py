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


def heft(instance):
    """(device_of_unit, start, finish) by the paper's words, over lists of busy intervals."""
    num_devices, num_tasks = instance.durations_s.shape
    device_of_unit = np.full(len(instance.unit_bytes), -1)
    start, finish = np.zeros(num_tasks), np.zeros(num_tasks)
    busy = [[] for _ in range(num_devices)]
    for task in sorted(range(num_tasks), key=lambda task: (-instance.rank_s[task], task)):
        if instance.is_source[task]:
            continue
        unit, options = instance.unit_of_task[task], []
        for device in range(num_devices):
            if device_of_unit[unit] not in (-1, device):
                continue
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
        finish[task], device_of_unit[unit], start[task] = min(options)
        busy[device_of_unit[unit]] = sorted([*busy[device_of_unit[unit]], (start[task], finish[task])])
    return device_of_unit, start, finish


def etf(instance, capacity_bytes, favourite):
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
        trial = device_of_unit.copy()
        trial[unit] = device
        before = held_bytes(instance, device_of_unit, num_devices)
        after = held_bytes(instance, trial, num_devices)
        touched = (after != before).any(axis=1)
        touched[device] = True
        return (after <= np.asarray(capacity_bytes)[:, None])[touched].all()

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
            if child in mine and begins[child] == min(max(available[d], arrival(child, d)) for d in allowed[child]):
                task = min(mine, key=lambda task: (everywhere[task], -instance.rank_s[task], task))
                if max(available[device], everywhere[task]) > begins[child]:
                    task = child
            begin = begins[task]
            key = (begin, begin + instance.durations_s[device, task], -instance.rank_s[task], device)
            best = min(best, (key, task)) if best else (key, task)
        (start[best[1]], finish[best[1]], _, device), task = best
        device_of_unit[instance.unit_of_task[task]] = device
        arrival(task, device, keep=True)
        available[device], last[device] = finish[task], task
        done.add(task)
    return device_of_unit, start, finish
