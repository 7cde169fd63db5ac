"""What no order of gangs can beat."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from graphopt_gym.compiled import kernel
from graphopt_gym.simulator.gang.simulator import GangSimulator


class Bounds(NamedTuple):
    """Seconds that a run takes at least, whatever the policy."""

    core_s: float  # of the busiest core class: from when its first gang can start to when the last gang's work is done
    link_s: float  # of the busiest link, alike
    path_s: float  # the longest way through gangs, transfers and the control plane, as if nothing waited for another

    @property
    def least_s(self) -> float:
        return max(self)


class Ways(NamedTuple):
    """How long the ways through each task are, as if nothing waited for a resource. T tasks."""

    head_s: np.ndarray  # float64 [T]: when it can start at the earliest
    tail_s: np.ndarray  # float64 [T]: the least from its finish to the end of all that comes after it


def ways(simulator: GangSimulator) -> Ways:
    """The longest way to each task of a simulator, and from it."""
    tables = simulator.lowered.tables
    count = simulator.num_tasks
    before = np.repeat(np.arange(count), np.diff(tables.after_ptr))
    start = _earliest(
        tables.after_ptr, tables.after, tables.delay_s, tables.before, tables.arrival_s, tables.duration_s
    )
    back = np.argsort(tables.after, kind="stable")
    back_ptr = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(tables.after, minlength=count), out=back_ptr[1:])
    tail = _earliest(
        back_ptr, before[back].astype(np.int32), tables.delay_s[back],
        np.diff(tables.after_ptr).astype(np.int32), np.zeros(count), tables.duration_s,
    )  # fmt: skip
    return Ways(start, tail)


def bounds(simulator: GangSimulator) -> Bounds:
    """Lower bounds of the makespan of a simulator's program; memory is left out."""
    tables, lowered = simulator.lowered.tables, simulator.lowered
    count = simulator.num_tasks
    start, tail = ways(simulator)
    works = lowered.kind <= 1  # the makespan is that of gangs and transfers
    path = float((start + tables.duration_s)[works].max())
    owner = np.repeat(np.arange(count), np.diff(tables.resource_ptr))
    load = np.bincount(tables.resource, tables.duration_s[owner], lowered.num_resources)
    head, end = np.full(lowered.num_resources, np.inf), np.full(lowered.num_resources, np.inf)
    np.minimum.at(head, tables.resource, start[owner])
    np.minimum.at(end, tables.resource, tail[owner])
    whole = np.where(load > 0, load + np.where(np.isfinite(head), head + end, 0.0), 0.0)
    classes, links = simulator.classes.num_classes, lowered.offsets["executor"]
    return Bounds(float(whole[:classes].max()), float(whole[classes:links].max(initial=0.0)), path)


@kernel
def _earliest(after_ptr, after, delay_s, before, arrival_s, duration_s):
    """float64 [T]: when each task can start at the earliest, as if nothing waited for a resource."""
    count = len(duration_s)
    start, left, queue = arrival_s.copy(), before.copy(), np.empty(count, np.int64)
    end = 0
    for task in range(count):
        if left[task] == 0:
            queue[end] = task
            end += 1
    at = 0
    while at < end:
        task = queue[at]
        at += 1
        for index in range(after_ptr[task], after_ptr[task + 1]):
            other = after[index]
            start[other] = max(start[other], start[task] + duration_s[task] + delay_s[index])
            left[other] -= 1
            if left[other] == 0:
                queue[end] = other
                end += 1
    return start
