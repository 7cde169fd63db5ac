"""Levels in place of priorities: as few as give the same schedule. K tasks, D devices.

A device compares the tasks that are ready while it chooses, and no others. So a priority of many values, such as a
rank, is a decision of few levels: enough that each task, when it was started, was first among those that waited.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt_gym.compiled import kernel

if TYPE_CHECKING:
    from graphopt_gym.simulator.simulator import Simulator
    from graphopt_gym.simulator.timeline import Timeline


def ready_s(timeline: Timeline) -> np.ndarray:
    """float64 [K]: when the last input of each task was on its device."""
    tasks, devices = timeline.tasks, timeline.cluster.num_devices
    finish_s, device = timeline.finish_s, timeline.task_device.astype(np.int64)
    producer = tasks.tensor_task[tasks.input_tensor]
    reader = np.repeat(np.arange(tasks.num_tasks), np.diff(tasks.input_ptr))
    arrives_s = finish_s[producer]
    apart = device[producer] != device[reader]
    if apart.any():
        sent = timeline.transfers[:, 0].astype(np.int64) * devices + timeline.transfers[:, 2].astype(np.int64)
        order = np.argsort(sent)
        asked = tasks.input_tensor[apart].astype(np.int64) * devices + device[reader[apart]]
        arrives_s[apart] = timeline.transfers[order[np.searchsorted(sent[order], asked)], 5]
    found = np.zeros(tasks.num_tasks)
    np.maximum.at(found, reader, arrives_s)
    return found


def fewest_levels(timeline: Timeline, tie: np.ndarray) -> np.ndarray:
    """int64 [K]: levels from 0 by which tasks start when they did, as few as there can be; sources have level 0.

    Where transfers take no time there may be one too many: what arrives at an instant counts as if it were there when
    another task starts then.

    Of each device the tasks are gone through from the last one started to the first. One needs the level of the most
    urgent of those that waited when it was started, or the next one, where that task is first within a level.

    Args:
        timeline: of a schedule in which no device waited while a task was ready.
        tie: [K]: within a level the highest is first, then the earliest ready, then the lowest task.
    """
    count, ready, computes = len(tie), ready_s(timeline), np.flatnonzero(~timeline.tasks.is_source)
    place = np.empty(count, np.int64)  # within a level, from the last to the first
    place[np.lexsort((-np.arange(count), -ready, tie))] = np.arange(count)
    levels = np.zeros(count, np.int64)
    for device in range(timeline.cluster.num_devices):
        on = computes[timeline.task_device[computes] == device]
        # what takes no time ends before another begins; of several such, inputs come first
        on = on[np.lexsort((on, timeline.finish_s[on], timeline.start_s[on]))][::-1]
        sorted_s = np.sort(ready[on])
        arrival = np.empty(len(on), np.int64)
        arrival[np.argsort(ready[on], kind="stable")] = np.arange(len(on))
        waiting = np.searchsorted(sorted_s, timeline.start_s[on], side="right")
        levels[on] = _levels(place[on], arrival, waiting, count)
    return levels


@kernel
def _levels(place, arrival, waiting, count):
    """Of tasks from the last started to the first: ``arrival`` numbers them by when they were ready; the first
    ``waiting`` of these were, when each was started. A tree of prefixes (Fenwick, 1994) holds the most urgent."""
    size = place.shape[0]
    levels, most = np.zeros(size, np.int64), np.full(size + 1, -1, np.int64)
    for this in range(size):
        first = -1
        at = waiting[this]
        while at > 0:
            first = max(first, most[at])
            at -= at & -at
        if first >= 0:
            levels[this] = first // count + (place[this] < first % count)
        urgency = levels[this] * count + place[this]
        at = arrival[this] + 1
        while at <= size:
            most[at] = max(most[at], urgency)
            at += at & -at
    return levels


def spread(levels: np.ndarray, count: int) -> np.ndarray:
    """int32 [K]: levels from 0, spread over ``count`` of them; some become one where there are more."""
    most = int(levels.max(initial=0))
    if most >= count:
        return (levels * count // (most + 1)).astype(np.int32)
    step = (count - 1) // most if most else 0
    return (levels * step + (count - 1 - most * step) // 2).astype(np.int32)


def levels_of(
    simulator: Simulator, placement: np.ndarray, priority: np.ndarray, tie: np.ndarray, count: int
) -> np.ndarray:
    """int32 [K]: levels from 0 to ``count`` - 1 that stand for priorities, float64 [K].

    The schedule is the same where ``count`` is as large as :func:`fewest_levels` need; else neighbouring levels are
    one.
    """
    timeline = simulator.run_tasks(placement, priority)
    few = fewest_levels(timeline, tie)
    again_s, peak_bytes = simulator.cost(placement, few + tie)
    if again_s != timeline.makespan_s or (peak_bytes != timeline.peak_bytes).any():
        # tasks that take no time may have been in another order: then a level for each priority
        few = np.unique(priority, return_inverse=True)[1].reshape(-1)
    return spread(few, count)
