"""Bounds, and the best priorities of a small graph by CP-SAT, with the gap where it is not proved.

No priorities give less than the bounds. What the engine does with priorities is not all that a schedule could do: links
carry transfers in order of request, and no device waits while a task is ready. The models below allow devices to wait,
so what they prove is a bound; their schedules are put in order, and the simulator says what the orders cost.
"""

from __future__ import annotations

import heapq
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from graphopt_gym.compiled import clock, kernel
from graphopt_gym.envs.scheduling import orders
from graphopt_gym.envs.scheduling.memory_orders import holdings, liu, memory_greedy, sethi_ullman
from graphopt_gym.envs.scheduling.orders import placed_durations_s, placed_heads_s, placed_rank, priority_of
from graphopt_gym.errors import InputError
from graphopt_gym.extras import need
from graphopt_gym.fields import positive, whole

if TYPE_CHECKING:
    from graphopt_gym.simulator.simulator import Simulator

SECONDS = 60.0
UNITS = 2**26  # of time, in the step time of the best order that is known
PROVED = 1e-4  # the gap at which an order counts as the best: times are rounded, and waiting may be all that is left
MOST_INTERVALS = 20_000  # tasks and transfers; more than that no solver orders in minutes
MOST_PAIRS = 20_000  # transfers of one link whose order follows that of their requests; more are in any order
MOST_STEPS = 200_000  # tasks times steps that the integer program of memory is made for
MOST_ORDERED = 20_000  # tasks of which the order of least memory is sought
MOST_SETS = 200_000  # sets of tasks looked at, which are kept
MOST_BITS = 500_000_000  # of all these sets
SEARCH_SHARE = 0.3  # of the time: sets of tasks, before the solver
MOST_RELATED = 20_000  # tasks for whose memory bound ancestors and descendants are looked at
MOST_SWAPPED = 64  # tasks of which all pairs are swapped, not neighbours alone


# ---- bounds


class LowerBounds(NamedTuple):
    """What no priorities beat, of a placement. D devices, L links."""

    critical_path_s: float  # the longest path, with the transfers that it really takes
    device_s: np.ndarray  # float64 [D] a device that takes one task at a time, of which each comes and goes by its path
    link_s: np.ndarray  # float64 [L] the same of a link and its transfers
    peak_bytes: np.ndarray  # int64 [D]

    @property
    def makespan_s(self) -> float:
        return float(max(self.critical_path_s, self.device_s.max(initial=0.0), self.link_s.max(initial=0.0)))


def lower_bounds(simulator: Simulator, placement: np.ndarray) -> LowerBounds:
    """Bounds of the step time and of each device's memory.

    A device: no task starts before its head, the longest path up to it; after it comes at least its tail, the longest
    path from its end. The least that one machine takes for that, were tasks taken up again after others, is Jackson's
    preemptive schedule (Carlier, European J. Operational Research 11, 1982). A link is such a machine, too. Memory:
    parameters and state, and the most that some task needs at once (see :func:`memory_bounds`).

    Args:
        simulator: of K tasks.
        placement: int32 [K].
    """
    tasks, placement = simulator.tasks, np.asarray(placement)
    duration_s, head_s = placed_durations_s(simulator, placement), placed_heads_s(simulator, placement)
    rank_s = placed_rank(simulator, placement)
    computes = ~tasks.is_source
    device_s = np.zeros(simulator.num_devices)
    for device in range(simulator.num_devices):
        on = np.flatnonzero(computes & (placement == device))
        device_s[device] = one_machine_s(head_s[on], duration_s[on], (rank_s - duration_s)[on])
    sent = transfers(simulator, placement)
    link_s = np.zeros(simulator.cluster.num_links)
    requested_s = (head_s + duration_s)[tasks.tensor_task[sent.tensor]]
    after_s = np.array([rank_s[readers].max() for readers in sent.readers])
    for link in range(len(link_s)):
        on = np.flatnonzero(sent.link == link)
        if len(on):
            link_s[link] = one_machine_s(requested_s[on], sent.seconds[on], after_s[on])
    path_s = float((head_s + rank_s).max(initial=0.0, where=computes))
    return LowerBounds(path_s, device_s, link_s, memory_bounds(simulator, placement))


def one_machine_s(head_s: np.ndarray, work_s: np.ndarray, tail_s: np.ndarray) -> float:
    """Seconds of Jackson's preemptive schedule: of the jobs whose head is over, always that with the longest tail."""
    come = np.argsort(head_s, kind="stable").tolist()
    head, left, tail = head_s.tolist(), work_s.tolist(), tail_s.tolist()
    waiting: list[tuple[float, int]] = []
    now = longest = 0.0
    at = 0
    while at < len(come) or waiting:
        if not waiting:
            now = max(now, head[come[at]])
        while at < len(come) and head[come[at]] <= now:
            heapq.heappush(waiting, (-tail[come[at]], come[at]))
            at += 1
        job = waiting[0][1]
        until = head[come[at]] if at < len(come) else float("inf")
        if now + left[job] <= until:
            now += left[job]
            longest = max(longest, now + tail[job])
            heapq.heappop(waiting)
        else:
            left[job] -= until - now
            now = until
    return longest


class Transfers(NamedTuple):
    """The transfers of a placement, in order of tensor, then target. X of them."""

    tensor: np.ndarray  # int64 [X]
    target: np.ndarray  # int64 [X]
    link: np.ndarray  # int64 [X]
    seconds: np.ndarray  # float64 [X]
    readers: list[np.ndarray]  # of each: the tasks there that read it


def transfers(simulator: Simulator, placement: np.ndarray) -> Transfers:
    """Which transfers a placement, int [K], makes."""
    tasks, cluster = simulator.tasks, simulator.cluster
    tensor = np.repeat(np.arange(tasks.num_tensors), np.diff(tasks.reader_ptr))
    target = placement[tasks.reader].astype(np.int64)
    apart = target != placement[tasks.tensor_task[tensor]]
    keys = (tensor * simulator.num_devices + target)[apart]
    found, which = np.unique(keys, return_inverse=True)
    by_transfer = tasks.reader[apart][np.argsort(which, kind="stable")]
    cuts = np.cumsum(np.bincount(which, minlength=len(found)))[:-1]
    tensor, target = found // simulator.num_devices, found % simulator.num_devices
    link = cluster.link_of[placement[tasks.tensor_task[tensor]], target].astype(np.int64)
    latency_s = np.array([one.latency_s for one in cluster.links])
    bytes_per_s = np.array([one.bytes_per_s for one in cluster.links])
    stated = tasks.transfer_s[tensor]
    taken = latency_s[link] + tasks.tensor_bytes[tensor] / bytes_per_s[link] if len(link) else stated
    readers = np.split(by_transfer, cuts) if len(found) else []
    return Transfers(tensor, target, link, np.where(stated >= 0, stated, taken), readers)


def memory_bounds(simulator: Simulator, placement: np.ndarray) -> np.ndarray:
    """int64 [D]: bytes that each device holds at least, at its peak.

    At the beginning: what sources there give. While a task runs: what it reads and gives and, in graphs of up to
    MOST_RELATED tasks, what one of its ancestors (or a source) has given there that one of its descendants reads there.
    """
    tasks, placement = simulator.tasks, np.ascontiguousarray(placement, np.int32)
    held = holdings(tasks, placement)
    return _memory_bounds(
        placement, simulator.num_devices, tasks.is_source, tasks.sequence, tasks.persistent_bytes, tasks.tensor_ptr,
        tasks.reader_ptr, tasks.reader, tasks.input_ptr, tasks.tensor_task[tasks.input_tensor], held,
        simulator.num_tasks <= MOST_RELATED,
    )  # fmt: skip


@kernel
def _memory_bounds(
    placement, num_devices, is_source, sequence, persistent_bytes, tensor_ptr, reader_ptr, reader, input_ptr, producer,
    held, related,
):  # fmt: skip
    num_tasks, num_items = placement.shape[0], held.num_bytes.shape[0]
    most, base = np.zeros(num_devices, np.int64), np.zeros(num_devices, np.int64)
    for task in range(num_tasks):
        base[placement[task]] += persistent_bytes[task]
    for item in range(num_items):
        is_read = held.reader_ptr[item + 1] > held.reader_ptr[item]
        if is_source[held.producer[item]] and not held.is_copy[item] and is_read:
            most[held.device[item]] += held.num_bytes[item]
    items_ptr = np.zeros(num_tasks + 1, np.int64)  # what each task gives at home
    for item in range(num_items):
        if not held.is_copy[item]:
            items_ptr[held.producer[item] + 1] += 1
    for task in range(num_tasks):
        items_ptr[task + 1] += items_ptr[task]
    position = np.empty(num_tasks, np.int64)
    for place in range(num_tasks):
        position[sequence[place]] = place
    above, below = np.zeros(num_tasks, np.int32), np.zeros(num_tasks, np.int32)  # the task of which each is one, + 1
    for task in range(num_tasks):
        if is_source[task]:
            continue
        device, total = placement[task], 0
        for item in range(items_ptr[task], items_ptr[task + 1]):
            total += held.num_bytes[item]
        for place in range(held.read_ptr[task], held.read_ptr[task + 1]):
            total += held.num_bytes[held.read[place]]
        if related:
            mark = task + 1
            above[task] = below[task] = mark
            for place in range(position[task], -1, -1):
                other = sequence[place]
                if above[other] == mark:
                    for index in range(input_ptr[other], input_ptr[other + 1]):
                        above[producer[index]] = mark
            for place in range(position[task], num_tasks):
                other = sequence[place]
                if below[other] == mark:
                    for tensor in range(tensor_ptr[other], tensor_ptr[other + 1]):
                        for index in range(reader_ptr[tensor], reader_ptr[tensor + 1]):
                            below[reader[index]] = mark
            for item in range(num_items):
                maker = held.producer[item]
                if held.device[item] != device or held.is_copy[item] or maker == task:
                    continue
                if above[maker] != mark and not is_source[maker]:
                    continue
                later, now = False, False
                for place in range(held.reader_ptr[item], held.reader_ptr[item + 1]):
                    later |= below[held.reader[place]] == mark
                    now |= held.reader[place] == task  # counted already
                if later and not now:
                    total += held.num_bytes[item]
        most[device] = max(most[device], total)
    return most + base


# ---- step time


class TimeResult(NamedTuple):
    """The best order found for a placement."""

    priority: np.ndarray  # float64 [K]
    makespan_s: float  # by the simulator
    lower_bound_s: float  # no priorities give less

    @property
    def gap(self) -> float:
        """How much longer than the bound, as a share of it."""
        if self.makespan_s <= self.lower_bound_s:
            return 0.0
        return self.makespan_s / self.lower_bound_s - 1 if self.lower_bound_s > 0 else float("inf")

    @property
    def proved(self) -> bool:
        """Whether it is the best, but for PROVED of the bound."""
        return self.gap <= PROVED


def least_makespan(
    simulator: Simulator,
    placement: np.ndarray,
    *,
    seconds: float = SECONDS,
    workers: int = 0,
    seed: int = 0,
    start: np.ndarray | None = None,
) -> TimeResult:
    """The priorities of the shortest step, by CP-SAT, and a bound.

    The model: an interval a task and a transfer, no two at once on a device or a link; transfers of a link start in the
    order in which they were requested, as far as there are few enough. Devices may wait. The schedules found are put in
    order by start and simulated, the best is improved by swaps of tasks of one device. Times are rounded down to whole
    units, so that the bound holds for the true times. It is the job shop with communication as intervals (Baptiste, Le
    Pape and Nuijten, *Constraint-Based Scheduling*, 2001), solved by lazy clause generation.

    Args:
        simulator: of K tasks.
        placement: int32 [K].
        seconds: the solver ends by then, whatever making the model took; swaps take about a fifth of it more.
        workers: of the solver; 0: one a core.
        seed: of the solver.
        start: float64 [K], priorities to begin with, beside those of the rules.

    Raises:
        InputError: OR-tools is not installed; there are too many tasks and transfers; an option out of range.
    """
    need("ortools", what="method 'cp_sat'")
    limit = positive("method 'cp_sat': option seconds", seconds)
    workers = whole("method 'cp_sat': option workers", workers, 0) or os.cpu_count() or 1
    placement = np.ascontiguousarray(placement, np.int32)
    sent = transfers(simulator, placement)
    size = int((~simulator.tasks.is_source).sum()) + len(sent.tensor)
    if size > MOST_INTERVALS:
        raise InputError(
            f"method 'cp_sat' would need {size:,} intervals for tasks and transfers (at most {MOST_INTERVALS:,}): take "
            "'annealing', or a rule"
        )
    until = clock() + limit
    known = [rule(simulator, placement) for rule in _RULES]
    known += [] if start is None else [np.asarray(start, np.float64)]
    priority, makespan_s = _best(simulator, placement, known)
    lower_s = lower_bounds(simulator, placement).makespan_s
    unit_s = makespan_s / UNITS
    if makespan_s > lower_s * (1 + PROVED) and unit_s > 0:
        starts, bound_s = _solve_time(simulator, placement, sent, priority, lower_s, unit_s, until, workers, seed)
        lower_s = max(lower_s, bound_s)
        if starts:
            priority, makespan_s = _best(simulator, placement, [priority, *(-one for one in starts)])
    if makespan_s > lower_s * (1 + PROVED):
        priority, makespan_s = _swapped(simulator, placement, priority, makespan_s, limit / 5)
    return TimeResult(priority, makespan_s, min(lower_s, makespan_s))


_RULES = (
    placed_rank, orders.highest_level, orders.most_work_remaining, orders.longest_first, orders.shortest_first,
    orders.depth_first,
)  # fmt: skip


def _best(simulator: Simulator, placement: np.ndarray, known: Any) -> tuple[np.ndarray, float]:
    every = np.asarray(known, np.float64)
    made = simulator.run_many(np.tile(placement, (len(every), 1)), every).makespan_s
    return every[int(made.argmin())], float(made.min())


def _solve_time(
    simulator: Simulator,
    placement: np.ndarray,
    sent: Transfers,
    priority: np.ndarray,
    lower_s: float,
    unit_s: float,
    until: float,
    workers: int,
    seed: int,
) -> tuple[list[np.ndarray], float]:
    """(starts float64 [K] of each schedule found, in units; the bound in seconds)."""
    from ortools.sat.python import cp_model

    tasks, model = simulator.tasks, cp_model.CpModel()
    timeline = simulator.run_tasks(placement, priority)
    known = {(int(row[0]), int(row[2])): row[4] for row in timeline.transfers}
    horizon = UNITS + tasks.num_tasks + len(sent.tensor)  # what is known, however sums are rounded
    units = np.floor(placed_durations_s(simulator, placement) / unit_s).astype(np.int64)
    takes = np.floor(sent.seconds / unit_s).astype(np.int64)
    head = np.floor(placed_heads_s(simulator, placement) / unit_s * (1 - 1e-9)).astype(np.int64)
    computing = np.flatnonzero(~tasks.is_source).tolist()
    begin: list[Any] = [0] * tasks.num_tasks
    machine: dict[tuple[str, int], list[Any]] = {}
    makespan = model.new_int_var(int(lower_s / unit_s * (1 - 1e-9)), horizon, "")
    for task in computing:
        begin[task] = model.new_int_var(int(min(head[task], horizon)), horizon, "")
        model.add_hint(begin[task], int(timeline.start_s[task] / unit_s))
        one = model.new_fixed_size_interval_var(begin[task], int(units[task]), "")
        machine.setdefault(("device", int(placement[task])), []).append(one)
        model.add(begin[task] + int(units[task]) <= makespan)

    def after(earlier: int, later: Any) -> None:
        if not tasks.is_source[earlier]:
            model.add(later >= begin[earlier] + int(units[earlier]))

    for tensor in range(tasks.num_tensors):
        maker = int(tasks.tensor_task[tensor])
        for reader in tasks.reader[tasks.reader_ptr[tensor] : tasks.reader_ptr[tensor + 1]].tolist():
            if placement[reader] == placement[maker]:
                after(maker, begin[reader])
    on_link: dict[int, list[int]] = {}
    carried: list[Any] = []
    for index in range(len(sent.tensor)):
        maker = int(tasks.tensor_task[sent.tensor[index]])
        starts = model.new_int_var(0, horizon, "")
        model.add_hint(starts, int(known[int(sent.tensor[index]), int(sent.target[index])] / unit_s))
        carried.append(starts)
        after(maker, starts)
        for reader in sent.readers[index].tolist():
            model.add(begin[reader] >= starts + int(takes[index]))
        one = model.new_fixed_size_interval_var(starts, int(takes[index]), "")
        machine.setdefault(("link", int(sent.link[index])), []).append(one)
        on_link.setdefault(int(sent.link[index]), []).append(index)
    for intervals in machine.values():
        model.add_no_overlap(intervals)
    pairs = MOST_PAIRS
    for indices in sorted(on_link.values(), key=len):
        pairs -= len(indices) * (len(indices) - 1) // 2
        if pairs < 0:
            break
        for place, x in enumerate(indices):
            for y in indices[place + 1 :]:
                _first_come(model, tasks, begin, units, carried, takes, sent, x, y)
    model.minimize(makespan)

    class Found(cp_model.CpSolverSolutionCallback):
        """Keeps the starts of each schedule."""

        def __init__(self) -> None:
            super().__init__()
            self.starts: list[np.ndarray] = []

        def on_solution_callback(self) -> None:
            starts = np.zeros(tasks.num_tasks)
            starts[computing] = [self.value(begin[task]) for task in computing]
            self.starts.append(starts)

    found = Found()
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = workers
    solver.parameters.random_seed = seed
    solver.parameters.max_time_in_seconds = max(0.0, until - clock())
    solver.solve(model, found)
    return found.starts, max(0.0, solver.best_objective_bound) * unit_s


def _first_come(
    model: Any,
    tasks: Any,
    begin: list[Any],
    units: np.ndarray,
    carried: list[Any],
    takes: np.ndarray,
    sent: Transfers,
    x: int,
    y: int,
) -> None:
    """Of two transfers of a link, that which was requested first goes first.

    Rounded times may turn the order of requests that are a unit apart, so those may go in any order.
    """
    makers = [int(tasks.tensor_task[sent.tensor[one]]) for one in (x, y)]
    if makers[0] == makers[1]:  # x: the lower tensor, then the lower target
        model.add(carried[y] >= carried[x] + int(takes[x]))
        return
    request = [0 if tasks.is_source[one] else begin[one] + int(units[one]) for one in makers]
    x_first = model.new_bool_var("")
    model.add(carried[y] >= carried[x] + int(takes[x])).only_enforce_if(x_first)
    model.add(carried[x] >= carried[y] + int(takes[y])).only_enforce_if(~x_first)
    if tasks.is_source[makers[0]] and tasks.is_source[makers[1]]:
        model.add(x_first == 1)
        return
    model.add(request[0] <= request[1] + 1).only_enforce_if(x_first)
    model.add(request[1] <= request[0] + 1).only_enforce_if(~x_first)


def _swapped(
    simulator: Simulator, placement: np.ndarray, priority: np.ndarray, makespan_s: float, limit: float
) -> tuple[np.ndarray, float]:
    """Swaps of the priorities of two tasks of one device, the best of all each time, until none shortens the step."""
    until = clock() + limit
    is_source = simulator.tasks.is_source
    # by what the simulator did, as neighbours in priority need not be neighbours on their device
    by_start = priority_of(np.lexsort((-priority, simulator.run_tasks(placement, priority).start_s)))
    made_s, _ = simulator.cost(placement, by_start)
    if made_s <= makespan_s:
        priority, makespan_s = by_start, made_s
    while clock() < until:
        order = np.argsort(-priority, kind="stable")
        order = order[~is_source[order]]
        pairs = []
        for device in range(simulator.num_devices):
            on = order[placement[order] == device].tolist()
            reach = len(on) if len(order) <= MOST_SWAPPED else 2
            pairs += [(a, b) for at, a in enumerate(on) for b in on[at + 1 : at + reach]]
        best, least_s = priority, makespan_s
        rows = max(1, 2**20 // len(priority))
        for at in range(0, len(pairs), rows):
            part = np.array(pairs[at : at + rows])
            tried = np.tile(priority, (len(part), 1))
            row = np.arange(len(part))
            tried[row, part[:, 0]], tried[row, part[:, 1]] = priority[part[:, 1]], priority[part[:, 0]]
            found, its_s = _best(simulator, placement, tried)
            if its_s < least_s:
                best, least_s = found, its_s
            if clock() > until:
                break
        if least_s >= makespan_s:
            break
        priority, makespan_s = best, least_s
    return priority, makespan_s


# ---- memory


class MemoryResult(NamedTuple):
    """The order of least memory found on one device."""

    priority: np.ndarray  # float64 [K]
    peak_bytes: int  # by the simulator
    lower_bound_bytes: int  # no order needs less

    @property
    def gap(self) -> float:
        """How much more than the bound, as a share of it."""
        if self.peak_bytes <= self.lower_bound_bytes:
            return 0.0
        return self.peak_bytes / self.lower_bound_bytes - 1 if self.lower_bound_bytes > 0 else float("inf")

    @property
    def proved(self) -> bool:
        """Whether no order needs less, to the byte."""
        return self.peak_bytes <= self.lower_bound_bytes


def least_peak(
    simulator: Simulator,
    placement: np.ndarray,
    *,
    seconds: float = SECONDS,
    workers: int = 0,
    seed: int = 0,
    start: np.ndarray | None = None,
) -> MemoryResult:
    """The order of all tasks on one device with the least peak, by search and by CP-SAT, and a bound.

    First :func:`search_sets`, for SEARCH_SHARE of the time: it proves the best order of many a large graph, too. Where
    it ends without, and tasks are few enough, the integer program of OLLA for lifetimes alone (Steiner et al., "OLLA:
    Optimizing the Lifetime and Location of Arrays to Reduce the Memory Usage of Neural Networks", 2022; MODeL, ICML
    2023): a task runs at one step, between the number of its ancestors and that of its descendants from the end; a
    storage is there from the step of its producer to that of its last reader; the most that is there is least. A
    variable says that a task has run by a step, not at it: what OLLA calls created and preserved are differences of
    those. Bytes are exact, so is the bound.

    Args:
        simulator: of K tasks.
        placement: int32 [K], the same device everywhere.
        seconds: at most, of the search and of the solver.
        workers: of the solver; 0: one a core.
        seed: of the solver.
        start: float64 [K], priorities to begin with, beside those of the memory orders.

    Raises:
        InputError: OR-tools is not installed; tasks on two devices; too many tasks; an option out of range.
    """
    need("ortools", what="method 'olla'")
    limit = positive("method 'olla': option seconds", seconds)
    workers = whole("method 'olla': option workers", workers, 0) or os.cpu_count() or 1
    placement = np.ascontiguousarray(placement, np.int32)
    used = np.unique(placement)
    if len(used) > 1:
        raise InputError(f"method 'olla' orders one device, the placement has {len(used)}: take 'memory_greedy'")
    computing = int((~simulator.tasks.is_source).sum())
    if computing > MOST_ORDERED:
        raise InputError(
            f"method 'olla' orders at most {MOST_ORDERED:,} tasks, here are {computing:,}: take 'liu' or "
            "'memory_greedy'"
        )
    known = [rule(simulator, placement) for rule in (liu, sethi_ullman, memory_greedy, orders.depth_first)]
    known += [] if start is None else [np.asarray(start, np.float64)]
    priority, peak = _least_held(simulator, placement, known)
    lower = int(memory_bounds(simulator, placement)[used].sum())
    begun = clock()
    if peak > lower:
        order, lower = search_sets(simulator, lower, peak, SEARCH_SHARE * limit)
        if order is not None:
            priority, peak = _least_held(simulator, placement, [priority, priority_of(order)])
    left = max(0.0, limit - (clock() - begun))
    if peak > lower and computing**2 <= MOST_STEPS:
        order, bound = _solve_memory(simulator, placement, priority, lower, peak, left, workers, seed)
        lower = max(lower, bound)
        if order is not None:
            priority, peak = _least_held(simulator, placement, [priority, order])
    return MemoryResult(priority, peak, lower)


def search_sets(
    simulator: Simulator, lower: int, peak: int, seconds: float, most: int = MOST_SETS
) -> tuple[np.ndarray | None, int]:
    """(the order int32 [K] of all tasks on one device with the least peak, or None; a bound in bytes).

    What is held depends on which tasks have run, not on their order, so sets of tasks are searched, those that are
    reached with the least peak first (of these the largest), as in the dynamic program of Ahn et al. ("Ordering Chaos",
    MLSys 2020). A task that fits below the peak that there was already and leaves no more than there is now runs at
    once: to run it later, with all else as it was, is never better. None: no order needs less than ``peak`` (the bound
    says so), or the search was ended (the least peak of a set not yet looked at is the bound).

    Args:
        lower: a bound that is known, in bytes with parameters and state.
        peak: of an order that is known; only orders below it are sought.
        seconds: after which the search ends.
        most: sets, after which the search ends.
    """
    until, tasks = clock() + seconds, simulator.tasks
    held = holdings(tasks, np.zeros(tasks.num_tasks, np.int32))
    computing = tasks.sequence[~tasks.is_source[tasks.sequence]].tolist()
    place = {task: at for at, task in enumerate(computing)}
    inputs = [0] * len(computing)  # a bit for each task that it reads from
    readers: list[list[int]] = [[] for _ in computing]
    for at, task in enumerate(computing):
        read = tasks.input_tensor[tasks.input_ptr[task] : tasks.input_ptr[task + 1]]
        for maker in {place[one] for one in tasks.tensor_task[read].tolist() if one in place}:
            inputs[at] |= 1 << maker
            readers[maker].append(at)
    added, kept = [0] * len(computing), [0] * len(computing)
    lets_go: list[list[tuple[int, int]]] = [[] for _ in computing]  # of each: (its readers, bytes)
    memory = int(tasks.persistent_bytes.sum())
    for item, num_bytes in enumerate(held.num_bytes.tolist()):
        its = [place[one] for one in held.reader[held.reader_ptr[item] : held.reader_ptr[item + 1]].tolist()]
        maker = place.get(int(held.producer[item]), -1)
        if maker >= 0:
            added[maker] += num_bytes
            kept[maker] += num_bytes if its else 0
        elif its:
            memory += num_bytes
        every = sum(1 << one for one in its)
        for one in its:
            lets_go[one].append((every, num_bytes))
    most = min(most, MOST_BITS // max(1, len(computing)))
    whole_set = (1 << len(computing)) - 1
    before: dict[int, tuple[int, int]] = {}  # of each set looked at: the set before it, the task between
    begin = max(lower, memory)
    ready = tuple(at for at in range(len(computing)) if not inputs[at])
    heap = [
        (begin, 0, 0, memory, ready, (0, -1))
    ]  # peak, -size, the set, bytes held, tasks that may run, what led there
    while heap:
        top, size, done, memory, ready, led = heapq.heappop(heap)
        if done in before:
            continue
        if len(before) == most or (not len(before) % 256 and clock() > until):
            return None, top
        before[done] = led
        if done == whole_set:
            order: list[int] = []
            while done:
                done, at = before[done]
                order.append(computing[at])
            return np.array([*np.flatnonzero(tasks.is_source).tolist(), *reversed(order)], np.int32), top
        steps = []
        for at in ready:
            then = done | 1 << at
            left = memory + kept[at] - sum(num_bytes for every, num_bytes in lets_go[at] if not every & ~then)
            steps.append((memory + added[at], left, at, then))
            if memory + added[at] <= top and left <= memory:
                steps = steps[-1:]
                break
        for needs, left, at, then in steps:
            if then in before or max(top, needs) >= peak:
                continue
            now = tuple(one for one in readers[at] if not inputs[one] & ~then)
            may = (*(one for one in ready if one != at), *now)
            heapq.heappush(heap, (max(top, needs), size - 1, then, left, may, (done, at)))
    return None, peak


def _least_held(simulator: Simulator, placement: np.ndarray, known: Any) -> tuple[np.ndarray, int]:
    every = np.asarray(known, np.float64)
    peaks = simulator.run_many(np.tile(placement, (len(every), 1)), every).peak_bytes.max(axis=1)
    return every[int(peaks.argmin())], int(peaks.min())


def _solve_memory(
    simulator: Simulator,
    placement: np.ndarray,
    priority: np.ndarray,
    lower: int,
    peak: int,
    limit: float,
    workers: int,
    seed: int,
) -> tuple[np.ndarray | None, int]:
    """(priorities float64 [K] of the best order, or None; the bound in bytes), of orders that need at most ``peak``."""
    from ortools.sat.python import cp_model

    tasks, model = simulator.tasks, cp_model.CpModel()
    held = holdings(tasks, placement)
    computing = tasks.sequence[~tasks.is_source[tasks.sequence]].tolist()
    steps = len(computing)
    inputs: dict[int, set[int]] = {}
    for task in computing:
        read = tasks.input_tensor[tasks.input_ptr[task] : tasks.input_ptr[task + 1]]
        makers = tasks.tensor_task[read]
        inputs[task] = set(makers[~tasks.is_source[makers]].tolist())
    above = dict.fromkeys(computing, 0)  # the ancestors of each, a bit each
    below = dict.fromkeys(computing, 0)
    for task in computing:
        for other in inputs[task]:
            above[task] |= above[other] | 1 << other
    for task in reversed(computing):
        for other in inputs[task]:
            below[other] |= below[task] | 1 << task
    first = {task: above[task].bit_count() for task in computing}
    last = {task: steps - 1 - below[task].bit_count() for task in computing}
    known = dict(zip(sorted(computing, key=simulator.run_tasks(placement, priority).start_s.tolist().__getitem__),
                     range(steps), strict=True))  # fmt: skip
    has_run: dict[int, list[Any]] = {}
    for task in computing:
        row: list[Any] = []
        for step in range(steps):
            if first[task] <= step < last[task]:
                variable = model.new_bool_var("")
                model.add_hint(variable, known[task] <= step)
                row.append(variable)
                if step > first[task]:
                    model.add_implication(row[step - 1], variable)
            else:
                row.append(int(step >= last[task]))
        has_run[task] = row

    def run_by(task: int, step: int) -> Any:
        return 1 if tasks.is_source[task] else 0 if step < 0 else has_run[task][step]

    for step in range(steps):
        model.add(sum(has_run[task][step] for task in computing) == step + 1)
        for task in computing:
            for other in inputs[task]:
                if not isinstance(has_run[task][step], int) or has_run[task][step]:
                    model.add(run_by(other, step - 1) >= has_run[task][step])
    # storages that live alike count as one
    alike: dict[tuple[int, tuple[int, ...]], int] = {}
    for item in range(len(held.num_bytes)):
        readers = tuple(held.reader[held.reader_ptr[item] : held.reader_ptr[item + 1]].tolist())
        maker = int(held.producer[item])
        if readers or not tasks.is_source[maker]:
            alike[maker, readers] = alike.get((maker, readers), 0) + int(held.num_bytes[item])
    alike = {key: size for key, size in alike.items() if size}
    persistent = int(tasks.persistent_bytes.sum())
    unit = int(np.gcd.reduce(list(alike.values()))) if alike else 1
    most = model.new_int_var(-(-(lower - persistent) // unit), (peak - persistent) // unit, "")
    for step in range(steps):
        there: list[Any] = []
        for (maker, readers), size in alike.items():
            begun = run_by(maker, step)
            if isinstance(begun, int) and not begun:
                continue
            if len(readers) < 2:
                there.append(size // unit * (begun - run_by(readers[0] if readers else maker, step - 1)))
                continue
            left = [reader for reader in readers if not _is(run_by(reader, step - 1), 1)]
            if not left:
                continue
            if _is(begun, 1) and any(_is(run_by(reader, step - 1), 0) for reader in left):
                there.append(size // unit)
                continue
            held_now = model.new_bool_var("")
            for reader in left:
                model.add(held_now + run_by(reader, step - 1) >= begun)
            there.append(size // unit * held_now)
        model.add(sum(there) <= most)
    model.minimize(most)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = workers
    solver.parameters.random_seed = seed
    solver.parameters.max_time_in_seconds = limit
    status = solver.solve(model)
    bound = persistent + max(0, round(solver.best_objective_bound)) * unit
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None, bound
    when = {task: sum(1 - (one if isinstance(one, int) else solver.value(one)) for one in row)
            for task, row in has_run.items()}  # fmt: skip
    sources = np.flatnonzero(tasks.is_source).tolist()
    return priority_of(np.array([*sources, *sorted(computing, key=when.__getitem__)])), bound


def _is(given: Any, number: int) -> bool:
    """Whether a term is that constant."""
    return isinstance(given, int) and given == number
