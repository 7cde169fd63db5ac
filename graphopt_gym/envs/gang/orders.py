"""Orders of gangs from levels, compiled."""

from __future__ import annotations

import numpy as np

from graphopt_gym.compiled import kernel


@kernel(inner=True)
def _first(levels, a, b):
    return levels[a] > levels[b] or (levels[a] == levels[b] and a < b)


@kernel
def topological_order(pointers, successors, levels):
    """int32 [G]: of the gangs whose predecessors are all there, again and again that of the highest level, of one level
    the lowest number.

    Args:
        pointers, successors: who reads each gang.
        levels: int32 [G].
    """
    count = len(levels)
    waiting = np.zeros(count, np.int32)
    for index in range(len(successors)):
        waiting[successors[index]] += 1
    heap, size = np.empty(count, np.int32), 0
    order, end = np.empty(count, np.int32), 0
    gang = 0
    while gang < count or size > 0:
        # a gang comes in when nothing is left that it waits for: at the beginning, or after its last predecessor
        if gang < count:
            if waiting[gang] == 0:
                size = _push(heap, size, levels, gang)
            gang += 1
            continue
        taken = heap[0]
        size = _pop(heap, size, levels)
        order[end] = taken
        end += 1
        for index in range(pointers[taken], pointers[taken + 1]):
            other = successors[index]
            waiting[other] -= 1
            if waiting[other] == 0:
                size = _push(heap, size, levels, other)
    return order


@kernel(inner=True)
def _push(heap, size, levels, gang):
    at = size
    while at > 0:
        parent = (at - 1) >> 1
        if _first(levels, heap[parent], gang):
            break
        heap[at] = heap[parent]
        at = parent
    heap[at] = gang
    return size + 1


@kernel(inner=True)
def _pop(heap, size, levels):
    size -= 1
    last, at = heap[size], 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and _first(levels, heap[child + 1], heap[child]):
            child += 1
        if _first(levels, last, heap[child]):
            break
        heap[at] = heap[child]
        at = child
    heap[at] = last
    return size


@kernel
def class_lists(order, resource_ptr, resource, classes):
    """(pointers int64 [P + 1], gangs int32): the gangs of each core class, in one order of all.

    Args:
        order: int32 [G].
        resource_ptr, resource: the resources of each task, of which the first P are core classes.
        classes: P.
    """
    pointers = np.zeros(classes + 1, np.int64)
    for gang in range(len(order)):
        for index in range(resource_ptr[gang], resource_ptr[gang + 1]):
            if resource[index] < classes:
                pointers[resource[index] + 1] += 1
    for at in range(classes):
        pointers[at + 1] += pointers[at]
    fill, found = pointers.copy(), np.empty(pointers[classes], np.int32)
    for position in range(len(order)):
        gang = order[position]
        for index in range(resource_ptr[gang], resource_ptr[gang + 1]):
            at = resource[index]
            if at < classes:
                found[fill[at]] = gang
                fill[at] += 1
    return pointers, found


def dense_levels(priorities: np.ndarray) -> np.ndarray:
    """int32 [G]: ranks from 0 on in the order of priorities, equal ones alike."""
    return np.unique(priorities, return_inverse=True)[1].reshape(-1).astype(np.int32)
