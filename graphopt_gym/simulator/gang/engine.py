"""The engine of gangs, compiled: tasks that hold several resources at once.

Whatever happens is a *task*: a gang on its core classes, a transfer on its links, a call in its client, a launch on a
host. Semantics (each stated once here; the plain twin in the tests follows the same words):

- A task is ready when its arrival has come and every task that it comes after has finished, plus the delay of that
  edge. It waits in the queue of each of its resources, starts when it goes first in all of them and all are free, and
  runs for its duration without preemption.
- Of the ready tasks of a resource, that of the lowest level goes first, then the earliest ready, then the lowest
  index. On core classes other policies may hold. STRIDE and ROUND_ROBIN: first the client with the least pass. A start
  adds duration x cores / weight to the pass of its client (stride: Waldspurger & Weihl, MIT/LCS/TM-528, 1995); a client
  without a ready gang that gets one has at least the largest pass at which any gang started (start-time fair queueing:
  Goyal et al., SIGCOMM 1996). Round robin: the pass is when the client was last served. LISTS: each core class takes
  strictly the next gang of its list, ready or not. CHOOSE: whoever calls says which, gang by gang.
- At one instant every finish, arrival and hold is taken in before anything starts. Then, again and again, of the tasks
  that can start the one with the lowest index does. Work of no duration finishes at the instant it started, in a
  further round.
- Memory, of each core of a class: a task takes ``keep`` and ``temp`` bytes when it starts; ``temp`` is freed when it
  finishes, ``keep`` when it and all that read it have finished. With back-pressure a task that lacks memory when it
  could start steps aside (in LISTS a gang keeps its turn and waits). Of the gangs that lack memory of a class (the
  first that a gang lacks), and of the other tasks that do, one at a time is let back into its queues: that which needs
  the least there, then that which goes first, as soon as it fits; the next when it has started or stepped aside again.
  Without back-pressure memory is taken all the same.
- A collective inside a gang holds links from when it begins to the gang's finish: no transfer starts on them meanwhile.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from graphopt_gym.compiled import kernel

STATIC, STRIDE, ROUND_ROBIN, LISTS, CHOOSE = range(5)
WAITING, READY, ASIDE, RUNNING, DONE = range(5)  # states of a task
BEGIN, WAIT = -2, -1  # what a caller may say in place of a gang
# places of the counts in State.counts
NUM_EVENTS, NUM_TRY, NUM_ABLE, NUM_OPEN, NUM_DONE, ROUND = range(6)
NOW, VIRTUAL, OVER_TIME, OVER_BYTES, OVER_CLASS = range(5)  # places in State.clock


class Tables(NamedTuple):
    """What is run. T tasks, R resources, of which the first P are core classes; G gangs, the first tasks; C clients."""

    duration_s: np.ndarray  # float64 [T]
    level: np.ndarray  # float64 [T]: of those that are no gangs
    arrival_s: np.ndarray  # float64 [T]
    group: np.ndarray  # int32 [T]: the client of a gang
    cores: np.ndarray  # float64 [T]: of a gang, for its share
    resource_ptr: np.ndarray  # int64 [T + 1]
    resource: np.ndarray  # int32, ascending in each task
    before: np.ndarray  # int32 [T]: tasks that it comes after
    after_ptr: np.ndarray  # int64 [T + 1]
    after: np.ndarray  # int32: tasks that come after it
    delay_s: np.ndarray  # float64, beside `after`
    read_ptr: np.ndarray  # int64 [T + 1]
    read: np.ndarray  # int32: tasks whose memory it reads
    readers: np.ndarray  # int32 [T]: tasks that read its memory
    memory_ptr: np.ndarray  # int64 [T + 1]
    memory_class: np.ndarray  # int32
    keep_bytes: np.ndarray  # int64
    temp_bytes: np.ndarray  # int64
    hold_ptr: np.ndarray  # int64 [T + 1]
    hold: np.ndarray  # int32: links that the collective inside a gang holds
    hold_after_s: np.ndarray  # float64 [T]: from its start
    capacity_bytes: np.ndarray  # int64 [P]
    resident_bytes: np.ndarray  # int64 [P]
    weight: np.ndarray  # float64 [C]


class State(NamedTuple):
    """How far a run is. T tasks, R resources, P core classes, G gangs, C clients."""

    mode: np.ndarray  # int64 [2]: how core classes order gangs, whether there is back-pressure
    level: np.ndarray  # float64 [T]
    list_ptr: np.ndarray  # int64 [P + 1], of LISTS
    list: np.ndarray  # int32
    place: np.ndarray  # int64 [P]: how far each list is
    ready_s: np.ndarray  # float64 [T]
    start_s: np.ndarray  # float64 [T], nan: not yet
    finish_s: np.ndarray  # float64 [T], nan: not started
    status: np.ndarray  # int8 [T]
    waiting: np.ndarray  # int32 [T]
    left: np.ndarray  # int32 [T]: readers that have not finished
    lacks: np.ndarray  # int32 [T]: the class whose memory it lacks; -1: none
    lacked: np.ndarray  # int32 [T]: the class whose memory it lacked first; -1: none
    needs: np.ndarray  # int64 [T]: bytes that it needs there
    aside_ptr: np.ndarray  # int64 [2 P + 1]: a heap for the gangs, then one for the others that lack a class's memory
    aside_size: np.ndarray  # int64 [2 P]
    aside: np.ndarray  # int32
    back: np.ndarray  # int32 [2 P]: the one that was let back and has not started; -1: none
    back_of: np.ndarray  # int32 [T]: of which of these heaps; -1: of none
    running: np.ndarray  # int32 [R]: the task at work; -1: none
    held: np.ndarray  # int32 [R]
    busy_s: np.ndarray  # float64 [R]
    heap_ptr: np.ndarray  # int64 [queues + 1]
    heap_size: np.ndarray  # int64 [queues]
    heap: np.ndarray  # int32
    queued: np.ndarray  # int64 [P]: ready gangs of a class
    ready_gangs: np.ndarray  # int64 [C]
    share: np.ndarray  # float64 [C]: the pass of each client
    trying: np.ndarray  # int32 [R]: resources that may have something to start
    listed: np.ndarray  # bool [R]
    able: np.ndarray  # int32 [T]: a heap of tasks that could start when they were looked at
    is_able: np.ndarray  # bool [T]
    open: np.ndarray  # int32 [G], of CHOOSE: the ready gangs
    event_s: np.ndarray  # float64 [3 T + 1]: a heap
    event: np.ndarray  # int64: task: it finishes, T + task: it arrives, 2 T + task: its collective begins
    used_bytes: np.ndarray  # int64 [P]
    peak_bytes: np.ndarray  # int64 [P]
    peak_s: np.ndarray  # float64 [P]
    counts: np.ndarray  # int64 [6]
    clock: np.ndarray  # float64 [5]


@kernel(inner=True, allocates=False)
def _before(state: Any, by_need, a, b):
    """Whether a task goes before another; ``by_need``: that which needs less memory, where they differ."""
    if by_need and state.needs[a] != state.needs[b]:
        return state.needs[a] < state.needs[b]
    if state.level[a] != state.level[b]:
        return state.level[a] < state.level[b]
    if state.ready_s[a] != state.ready_s[b]:
        return state.ready_s[a] < state.ready_s[b]
    return a < b


@kernel(inner=True, allocates=False)
def _queue_of(classes, groups, resource, group):
    if resource < classes:
        return resource * groups + group
    return classes * groups + resource - classes


@kernel(inner=True, allocates=False)
def _sift_up(state: Any, heap, base, position, task, by_need):
    """Puts a task into the heap of tasks that begins at ``base``, which has a hole at the end, ``position``."""
    while position > 0:
        parent = (position - 1) >> 1
        other = heap[base + parent]
        if _before(state, by_need, other, task):
            break
        heap[base + position] = other
        position = parent
    heap[base + position] = task


@kernel(inner=True, allocates=False)
def _sift_down(state: Any, heap, base, size, task, by_need):
    """Puts a task into the heap of ``size`` tasks that begins at ``base``, which has a hole at the top."""
    position = 0
    while True:
        child = 2 * position + 1
        if child >= size:
            break
        if child + 1 < size and _before(state, by_need, heap[base + child + 1], heap[base + child]):
            child += 1
        if _before(state, by_need, task, heap[base + child]):
            break
        heap[base + position] = heap[base + child]
        position = child
    heap[base + position] = task


@kernel(inner=True, allocates=False)
def _push(state: Any, queue, task):
    state.heap_size[queue] += 1
    _sift_up(state, state.heap, state.heap_ptr[queue], state.heap_size[queue] - 1, task, False)


@kernel(inner=True, allocates=False)
def _pop(state: Any, queue):
    state.heap_size[queue] -= 1
    base, size = state.heap_ptr[queue], state.heap_size[queue]
    _sift_down(state, state.heap, base, size, state.heap[base + size], False)


@kernel(inner=True, allocates=False)
def _aside_push(state: Any, slot, task):
    state.aside_size[slot] += 1
    _sift_up(state, state.aside, state.aside_ptr[slot], state.aside_size[slot] - 1, task, True)


@kernel(inner=True, allocates=False)
def _aside_pop(state: Any, slot):
    state.aside_size[slot] -= 1
    base, size = state.aside_ptr[slot], state.aside_size[slot]
    _sift_down(state, state.aside, base, size, state.aside[base + size], True)


@kernel(inner=True, allocates=False)
def _event_push(state: Any, time, what):
    position = state.counts[NUM_EVENTS]
    state.counts[NUM_EVENTS] += 1
    while position > 0:
        parent = (position - 1) >> 1
        if state.event_s[parent] <= time:
            break
        state.event_s[position] = state.event_s[parent]
        state.event[position] = state.event[parent]
        position = parent
    state.event_s[position] = time
    state.event[position] = what


@kernel(inner=True, allocates=False)
def _event_pop(state: Any):
    state.counts[NUM_EVENTS] -= 1
    size, what = state.counts[NUM_EVENTS], state.event[0]
    time, last, position = state.event_s[size], state.event[size], 0
    while True:
        child = 2 * position + 1
        if child >= size:
            break
        if child + 1 < size and state.event_s[child + 1] < state.event_s[child]:
            child += 1
        if time <= state.event_s[child]:
            break
        state.event_s[position] = state.event_s[child]
        state.event[position] = state.event[child]
        position = child
    state.event_s[position] = time
    state.event[position] = last
    return what


@kernel(inner=True, allocates=False)
def _try(state: Any, resource):
    """Lists a resource among those that may have something to start."""
    if not state.listed[resource]:
        state.listed[resource] = True
        state.trying[state.counts[NUM_TRY]] = resource
        state.counts[NUM_TRY] += 1


@kernel(inner=True, allocates=False)
def _able_push(state: Any, task):
    state.is_able[task] = True
    position = state.counts[NUM_ABLE]
    state.counts[NUM_ABLE] += 1
    while position > 0:
        parent = (position - 1) >> 1
        if state.able[parent] <= task:
            break
        state.able[position] = state.able[parent]
        position = parent
    state.able[position] = task


@kernel(inner=True, allocates=False)
def _able_pop(state: Any):
    state.counts[NUM_ABLE] -= 1
    size, lowest = state.counts[NUM_ABLE], state.able[0]
    last, position = state.able[size], 0
    while True:
        child = 2 * position + 1
        if child >= size:
            break
        if child + 1 < size and state.able[child + 1] < state.able[child]:
            child += 1
        if last <= state.able[child]:
            break
        state.able[position] = state.able[child]
        position = child
    state.able[position] = last
    state.is_able[lowest] = False
    return lowest


@kernel(inner=True, allocates=False)
def _first(tables: Any, state: Any, classes, groups, resource):
    """The task that goes first on a resource; -1: none."""
    if resource < classes:
        if state.mode[0] == LISTS:
            if state.place[resource] == state.list_ptr[resource + 1]:
                return -1
            task = state.list[state.place[resource]]
            return task if state.status[task] == READY else -1
        if groups > 1:
            best, least = -1, 0.0
            for group in range(groups):
                queue = resource * groups + group
                if state.heap_size[queue] > 0:
                    task = state.heap[state.heap_ptr[queue]]
                    share = state.share[group]
                    if best < 0 or share < least or (share == least and _before(state, False, task, best)):
                        best, least = task, share
            return best
    queue = _queue_of(classes, groups, resource, 0)
    if state.heap_size[queue] == 0:
        return -1
    return state.heap[state.heap_ptr[queue]]


@kernel(inner=True, allocates=False)
def _enqueue(tables: Any, state: Any, classes, groups, task):
    """A task is ready, or back."""
    state.status[task] = READY
    first = tables.resource[tables.resource_ptr[task]]
    mode = state.mode[0]
    if first < classes and mode == CHOOSE:
        state.open[state.counts[NUM_OPEN]] = task
        state.counts[NUM_OPEN] += 1
        return
    if first < classes and mode in (STRIDE, ROUND_ROBIN):
        group = tables.group[task]
        if mode == STRIDE and state.ready_gangs[group] == 0:
            state.share[group] = max(state.share[group], state.clock[VIRTUAL])
        state.ready_gangs[group] += 1
    if first >= classes or mode != LISTS:
        for index in range(tables.resource_ptr[task], tables.resource_ptr[task + 1]):
            resource = tables.resource[index]
            group = tables.group[task] if groups > 1 and resource < classes else 0
            _push(state, _queue_of(classes, groups, resource, group), task)
            if resource < classes:
                state.queued[resource] += 1
    _try(state, first)


@kernel(inner=True, allocates=False)
def _dequeue(tables: Any, state: Any, classes, groups, task):
    """A task that goes first in all its queues leaves them."""
    first = tables.resource[tables.resource_ptr[task]]
    mode = state.mode[0]
    if first < classes and mode == CHOOSE:
        last = state.counts[NUM_OPEN] - 1
        for index in range(last + 1):
            if state.open[index] == task:
                state.open[index] = state.open[last]
                break
        state.counts[NUM_OPEN] = last
        return
    if first < classes and mode in (STRIDE, ROUND_ROBIN):
        state.ready_gangs[tables.group[task]] -= 1
    for index in range(tables.resource_ptr[task], tables.resource_ptr[task + 1]):
        resource = tables.resource[index]
        if resource < classes and mode == LISTS:
            state.place[resource] += 1
            continue
        group = tables.group[task] if groups > 1 and resource < classes else 0
        _pop(state, _queue_of(classes, groups, resource, group))
        if resource < classes:
            state.queued[resource] -= 1


@kernel(inner=True, allocates=False)
def _lacking(tables: Any, state: Any, task):
    """(the first class whose memory does not suffice for a task, bytes that it needs there); (-1, 0): none."""
    for index in range(tables.memory_ptr[task], tables.memory_ptr[task + 1]):
        at, need = tables.memory_class[index], tables.keep_bytes[index] + tables.temp_bytes[index]
        if state.used_bytes[at] + need > tables.capacity_bytes[at]:
            return at, need
    return -1, 0


@kernel(inner=True, allocates=False)
def _let_back(tables: Any, state: Any, classes, groups, slot):
    """Lets the first of those that lack memory back, if it fits and no other of them is back."""
    if state.back[slot] >= 0 or state.aside_size[slot] == 0:
        return
    task, at = state.aside[state.aside_ptr[slot]], slot >> 1
    if state.used_bytes[at] + state.needs[task] > tables.capacity_bytes[at]:
        return
    _aside_pop(state, slot)
    state.back[slot] = task
    state.back_of[task] = slot
    state.lacks[task] = -1
    _enqueue(tables, state, classes, groups, task)


@kernel(inner=True, allocates=False)
def _no_longer_back(tables: Any, state: Any, classes, groups, task):
    """A task that was let back has started, or steps aside again: the next one's turn."""
    slot = state.back_of[task]
    if slot >= 0:
        state.back_of[task] = -1
        state.back[slot] = -1
        _let_back(tables, state, classes, groups, slot)


@kernel(inner=True, allocates=False)
def _start(tables: Any, state: Any, classes, groups, task):
    now, mode = state.clock[NOW], state.mode[0]
    _dequeue(tables, state, classes, groups, task)
    state.status[task] = RUNNING
    state.start_s[task] = now
    state.finish_s[task] = now + tables.duration_s[task]
    for index in range(tables.resource_ptr[task], tables.resource_ptr[task + 1]):
        resource = tables.resource[index]
        state.running[resource] = task
        state.busy_s[resource] += tables.duration_s[task]
    for index in range(tables.memory_ptr[task], tables.memory_ptr[task + 1]):
        at = tables.memory_class[index]
        state.used_bytes[at] += tables.keep_bytes[index] + tables.temp_bytes[index]
        if state.used_bytes[at] > state.peak_bytes[at]:
            state.peak_bytes[at] = state.used_bytes[at]
            state.peak_s[at] = now
            over = state.used_bytes[at] - tables.capacity_bytes[at]
            if over > 0 and state.clock[OVER_CLASS] < 0:
                state.clock[OVER_TIME], state.clock[OVER_BYTES], state.clock[OVER_CLASS] = now, over, at
    num_tasks = len(tables.duration_s)
    _event_push(state, state.finish_s[task], task)
    if tables.hold_ptr[task + 1] > tables.hold_ptr[task]:
        _event_push(state, now + tables.hold_after_s[task], 2 * num_tasks + task)
    if tables.resource[tables.resource_ptr[task]] < classes and groups > 1:
        group = tables.group[task]
        if mode == STRIDE:
            state.clock[VIRTUAL] = max(state.clock[VIRTUAL], state.share[group])
            if tables.weight[group] > 0:
                state.share[group] += tables.duration_s[task] * tables.cores[task] / tables.weight[group]
        else:
            state.counts[ROUND] += 1
            state.share[group] = state.counts[ROUND]
        for resource in range(classes):  # whose first gang may be another one now
            if state.running[resource] < 0 and state.queued[resource] > 0:
                _try(state, resource)
    state.lacks[task] = -1
    _no_longer_back(tables, state, classes, groups, task)


@kernel(inner=True, allocates=False)
def _free(tables: Any, state: Any, classes, groups, at):
    """Memory was freed in a class."""
    if state.mode[0] == LISTS:
        _try(state, at)
    _let_back(tables, state, classes, groups, 2 * at)
    _let_back(tables, state, classes, groups, 2 * at + 1)


@kernel(inner=True, allocates=False)
def _free_kept(tables: Any, state: Any, classes, groups, task):
    for index in range(tables.memory_ptr[task], tables.memory_ptr[task + 1]):
        if tables.keep_bytes[index] > 0:
            state.used_bytes[tables.memory_class[index]] -= tables.keep_bytes[index]
            _free(tables, state, classes, groups, tables.memory_class[index])


@kernel(inner=True, allocates=False)
def _finish(tables: Any, state: Any, classes, groups, task):
    now, num_tasks = state.clock[NOW], len(tables.duration_s)
    state.status[task] = DONE
    state.counts[NUM_DONE] += 1
    for index in range(tables.resource_ptr[task], tables.resource_ptr[task + 1]):
        state.running[tables.resource[index]] = -1
        _try(state, tables.resource[index])
    for index in range(tables.hold_ptr[task], tables.hold_ptr[task + 1]):
        state.held[tables.hold[index]] -= 1
        _try(state, tables.hold[index])
    for index in range(tables.memory_ptr[task], tables.memory_ptr[task + 1]):
        if tables.temp_bytes[index] > 0:
            state.used_bytes[tables.memory_class[index]] -= tables.temp_bytes[index]
            _free(tables, state, classes, groups, tables.memory_class[index])
    if state.left[task] == 0:
        _free_kept(tables, state, classes, groups, task)
    for index in range(tables.read_ptr[task], tables.read_ptr[task + 1]):
        source = tables.read[index]
        state.left[source] -= 1
        if state.left[source] == 0:
            _free_kept(tables, state, classes, groups, source)
    for index in range(tables.after_ptr[task], tables.after_ptr[task + 1]):
        other = tables.after[index]
        state.ready_s[other] = max(state.ready_s[other], now + tables.delay_s[index])
        state.waiting[other] -= 1
        if state.waiting[other] == 0:
            if state.ready_s[other] <= now:
                _enqueue(tables, state, classes, groups, other)
            else:
                _event_push(state, state.ready_s[other], num_tasks + other)


@kernel(inner=True, allocates=False)
def _is_free(tables: Any, state: Any, task):
    for index in range(tables.resource_ptr[task], tables.resource_ptr[task + 1]):
        resource = tables.resource[index]
        if state.running[resource] >= 0 or state.held[resource] > 0:
            return False
    return True


@kernel(inner=True, allocates=False)
def _is_candidate(tables: Any, state: Any, task):
    if not _is_free(tables, state, task):
        return False
    return state.mode[1] == 0 or _lacking(tables, state, task)[0] < 0


@kernel(inner=True, allocates=False)
def _is_able(tables: Any, state: Any, classes, groups, task):
    """Whether a ready task goes first on all its resources, and all are free."""
    if state.status[task] != READY or not _is_free(tables, state, task):
        return False
    for index in range(tables.resource_ptr[task], tables.resource_ptr[task + 1]):
        if _first(tables, state, classes, groups, tables.resource[index]) != task:
            return False
    return True


@kernel(inner=True, allocates=False)
def _start_all(tables: Any, state: Any, classes, groups):
    """Starts whatever can start now, but for what the caller chooses."""
    while True:
        while state.counts[NUM_TRY] > 0:
            state.counts[NUM_TRY] -= 1
            resource = state.trying[state.counts[NUM_TRY]]
            state.listed[resource] = False
            if resource < classes and state.mode[0] == CHOOSE:
                continue
            task = _first(tables, state, classes, groups, resource)
            if task >= 0 and not state.is_able[task] and _is_able(tables, state, classes, groups, task):
                _able_push(state, task)
        if state.counts[NUM_ABLE] == 0:
            return
        task = _able_pop(state)
        if not _is_able(tables, state, classes, groups, task):
            continue
        at, need = _lacking(tables, state, task) if state.mode[1] != 0 else (-1, 0)
        if at < 0:
            _start(tables, state, classes, groups, task)
            continue
        state.lacks[task], state.needs[task] = at, need
        if state.lacked[task] < 0:
            state.lacked[task] = at
        on_cores = tables.resource[tables.resource_ptr[task]] < classes
        if on_cores and state.mode[0] == LISTS:
            continue
        _dequeue(tables, state, classes, groups, task)
        state.status[task] = ASIDE
        _aside_push(state, 2 * at + (0 if on_cores else 1), task)
        _no_longer_back(tables, state, classes, groups, task)
        for index in range(tables.resource_ptr[task], tables.resource_ptr[task + 1]):
            _try(state, tables.resource[index])


@kernel(allocates=False)
def advance(tables: Any, state: Any, choice):
    """Runs on from where a state is, to the end or, in CHOOSE, to where a gang is to be chosen.

    Args:
        choice: BEGIN; in CHOOSE a gang that may start, or WAIT: none before the next event.

    Returns how many gangs may be chosen from; 0: the run is over (or stuck, where not all tasks are done).
    """
    num_tasks, classes = len(tables.duration_s), len(tables.capacity_bytes)
    groups = len(tables.weight) if state.mode[0] in (STRIDE, ROUND_ROBIN) else 1
    if choice == BEGIN:
        for task in range(num_tasks):
            if state.waiting[task] == 0:
                if state.ready_s[task] <= 0.0:
                    _enqueue(tables, state, classes, groups, task)
                else:
                    _event_push(state, state.ready_s[task], num_tasks + task)
    elif choice >= 0:
        _start(tables, state, classes, groups, choice)
    wait = choice == WAIT
    while True:
        _start_all(tables, state, classes, groups)
        if state.mode[0] == CHOOSE and not wait:
            found = 0
            for index in range(state.counts[NUM_OPEN]):
                found += _is_candidate(tables, state, state.open[index])
            if found > 0:
                return found
        wait = False
        if state.counts[NUM_EVENTS] == 0:
            return 0
        state.clock[NOW] = state.event_s[0]
        while state.counts[NUM_EVENTS] > 0 and state.event_s[0] == state.clock[NOW]:
            what = _event_pop(state)
            if what < num_tasks:
                _finish(tables, state, classes, groups, what)
            elif what < 2 * num_tasks:
                _enqueue(tables, state, classes, groups, what - num_tasks)
            else:
                task = what - 2 * num_tasks
                for index in range(tables.hold_ptr[task], tables.hold_ptr[task + 1]):
                    state.held[tables.hold[index]] += 1


@kernel(allocates=False)
def candidates(tables: Any, state: Any, mask):
    """Fills bool [G]: the gangs that may be chosen now."""
    mask[:] = False
    for index in range(state.counts[NUM_OPEN]):
        mask[state.open[index]] = _is_candidate(tables, state, state.open[index])


def new_state(
    tables: Tables,
    gangs: int,
    resources: int,
    mode: int,
    back_pressure: bool,
    level: np.ndarray | None = None,
    lists: tuple[np.ndarray, np.ndarray] | None = None,
) -> State:
    """A state before anything happened.

    Args:
        tables: what is run.
        gangs, resources: G and R.
        mode: STATIC, STRIDE, ROUND_ROBIN, LISTS or CHOOSE.
        back_pressure: whether a task waits for memory.
        level: float64 [G], of STATIC: the lowest goes first.
        lists: (pointers int64 [P + 1], gangs int32), of LISTS.
    """
    tasks, classes, clients = len(tables.duration_s), len(tables.capacity_bytes), len(tables.weight)
    groups = clients if mode in (STRIDE, ROUND_ROBIN) else 1
    levels = tables.level.copy()
    if level is not None:
        levels[:gangs] = level
    owner = np.repeat(np.arange(tasks), np.diff(tables.resource_ptr))
    on_core = tables.resource < classes
    group = tables.group[owner] if groups > 1 else np.zeros(len(owner), np.int32)
    queue = np.where(on_core, tables.resource.astype(np.int64) * groups + group,
                     classes * groups + tables.resource.astype(np.int64) - classes)  # fmt: skip
    queues = classes * groups + resources - classes
    heap_ptr = np.zeros(queues + 1, np.int64)
    np.cumsum(np.bincount(queue, minlength=queues), out=heap_ptr[1:])
    share = np.where(tables.weight > 0, 0.0, np.inf) if mode == STRIDE else np.zeros(clients)
    none = np.full(tasks, -1, np.int32)
    first = tables.resource[tables.resource_ptr[:-1]]
    of_memory = np.repeat(np.arange(tasks), np.diff(tables.memory_ptr))
    slot = 2 * tables.memory_class.astype(np.int64) + (first[of_memory] >= classes)
    aside_ptr = np.zeros(2 * classes + 1, np.int64)
    np.cumsum(np.bincount(slot, minlength=2 * classes), out=aside_ptr[1:])
    return State(
        mode=np.array([mode, back_pressure], np.int64),
        level=levels,
        list_ptr=np.zeros(classes + 1, np.int64) if lists is None else lists[0].astype(np.int64),
        list=np.zeros(0, np.int32) if lists is None else lists[1].astype(np.int32),
        place=np.zeros(classes, np.int64) if lists is None else lists[0][:-1].astype(np.int64),
        ready_s=tables.arrival_s.copy(),
        start_s=np.full(tasks, np.nan),
        finish_s=np.full(tasks, np.nan),
        status=np.zeros(tasks, np.int8),
        waiting=tables.before.copy(),
        left=tables.readers.copy(),
        lacks=none.copy(),
        lacked=none.copy(),
        needs=np.zeros(tasks, np.int64),
        aside_ptr=aside_ptr,
        aside_size=np.zeros(2 * classes, np.int64),
        aside=np.empty(len(tables.memory_class), np.int32),
        back=np.full(2 * classes, -1, np.int32),
        back_of=none.copy(),
        running=np.full(resources, -1, np.int32),
        held=np.zeros(resources, np.int32),
        busy_s=np.zeros(resources),
        heap_ptr=heap_ptr,
        heap_size=np.zeros(queues, np.int64),
        heap=np.empty(len(owner), np.int32),
        queued=np.zeros(classes, np.int64),
        ready_gangs=np.zeros(clients, np.int64),
        share=share,
        trying=np.empty(resources, np.int32),
        listed=np.zeros(resources, bool),
        able=np.empty(tasks, np.int32),
        is_able=np.zeros(tasks, bool),
        open=np.empty(gangs, np.int32),
        event_s=np.empty(3 * tasks + 1),
        event=np.empty(3 * tasks + 1, np.int64),
        used_bytes=tables.resident_bytes.copy(),
        peak_bytes=tables.resident_bytes.copy(),
        peak_s=np.zeros(classes),
        counts=np.zeros(6, np.int64),
        clock=np.array([0.0, 0.0, np.nan, 0.0, -1.0]),
    )


def copied(state: State) -> State:
    """A state that goes its own way from here."""
    return State(*(one.copy() for one in state))
