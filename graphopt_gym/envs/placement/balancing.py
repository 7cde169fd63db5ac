"""Simulated annealing of a pipeline's loads, which a compiled loop keeps up to date move by move.

The period is the largest of many loads, and most moves leave it as it is; so what is annealed is the p-norm of the
loads, which sees them all and the larger ones more. Moves take a group, a run of groups that stand one after the other
and share a device, those on its device that tensors dearer than a drawn one tie to a group, or a group and one of
another device in exchange. The order of groups is that of the graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from graphopt_gym.compiled import kernel
from graphopt_gym.envs.placement.contiguous import BELIEVED_CAPACITIES, dp, make_bundles

if TYPE_CHECKING:
    from graphopt_gym.envs.placement.problem import PlacementProblem
    from graphopt_gym.search.evaluator import Evaluator

AT_ONCE = 20_000  # moves between two evaluations
CYCLES = 3
# of the period: the first and the last temperature of a cycle
FIRST, LAST = 6e-2, 1e-3
LEAST_PERIOD_S = 1e-300  # of the temperature, where all is free
NORM = 3  # the loads are taken to the power of 2**3


class Tables(NamedTuple):
    """A problem for the loop. G groups, D devices, T bundles of tensors that the same groups read, L links, R loads.

    Loads are those of devices (or of their compute alone, with overlap), then, sent directly, those of links; through
    the host with overlap, those of what devices send, then receive.
    """

    compute_s: np.ndarray  # float64 [D, G]
    static_bytes: np.ndarray  # float64 [G]
    capacity_bytes: np.ndarray  # float64 [D]
    allowed: np.ndarray  # bool [G, D]
    order: np.ndarray  # int64 [G]
    place_in_order: np.ndarray  # int64 [G]
    home: np.ndarray  # int64 [T]
    reader_ptr: np.ndarray  # int64 [T+1]
    reader: np.ndarray  # int64: groups other than the home
    made_ptr: np.ndarray  # int64 [G+1]
    made: np.ndarray  # int64: the bundles that each group makes
    read_ptr: np.ndarray  # int64 [G+1]
    read: np.ndarray  # int64: the bundles that each group reads
    out_s: np.ndarray  # float64 [D, T], through the host
    in_s: np.ndarray  # float64 [D, T]
    direct_s: np.ndarray  # float64 [L, T], over each link
    weight_s: np.ndarray  # float64 [T], over an average link
    link_of: np.ndarray  # int64 [D, D]
    host: bool
    overlap: bool


def make_tables(problem: PlacementProblem) -> Tables:
    """Of a problem whose objective is throughput."""
    pipeline = problem.pipeline
    assert pipeline is not None
    tasks, groups, cluster = problem.simulator.tasks, problem.num_groups, problem.cluster
    group = problem.group_of_task
    tensor = np.repeat(np.arange(tasks.num_tensors), np.diff(tasks.reader_ptr))
    bundles = make_bundles(group[tasks.tensor_task], tensor, group[tasks.reader])
    homes, reader, reader_ptr = bundles.home, bundles.reader, bundles.reader_ptr
    host = pipeline.transfers == "host"
    out_s, in_s = (bundles.added(one) for one in pipeline.host_s()) if host else (np.zeros((1, 1)), np.zeros((1, 1)))
    direct_s = np.zeros((1, 1))
    if not host and cluster.links:
        by_link = [link.latency_s + tasks.tensor_bytes / link.bytes_per_s for link in cluster.links]
        direct_s = bundles.added(np.where(tasks.transfer_s >= 0, tasks.transfer_s, by_link))
    owner = np.repeat(np.arange(len(homes)), np.diff(reader_ptr))
    by_reader = np.argsort(reader, kind="stable")
    moves = problem.move_tables
    return Tables(
        problem._group_s,
        np.bincount(group, tasks.persistent_bytes, groups),
        problem.capacity_bytes.astype(np.float64),
        np.ones((groups, problem.num_devices), bool) if problem.allowed is None else problem.allowed,
        moves.orders[0].astype(np.int64),
        moves.positions[0].astype(np.int64),
        homes,
        reader_ptr,
        reader,
        np.concatenate([[0], np.cumsum(np.bincount(homes, minlength=groups))]).astype(np.int64),
        np.argsort(homes, kind="stable"),
        np.concatenate([[0], np.cumsum(np.bincount(reader, minlength=groups))]).astype(np.int64),
        owner[by_reader],
        np.ascontiguousarray(out_s),
        np.ascontiguousarray(in_s),
        np.ascontiguousarray(direct_s),
        np.ascontiguousarray(out_s.max(axis=0) if host else direct_s.mean(axis=0)),
        cluster.link_of.astype(np.int64),
        host,
        pipeline.overlap,
    )


@kernel(inner=True)
def _carry(tables, bundle, source, target, sign, loads):
    """Adds ``sign`` times what sending a bundle from one device to another takes; directly, or out of the host."""
    devices = len(tables.capacity_bytes)
    if tables.host:
        at = 2 * devices + target if tables.overlap else target
        loads[at] += sign * tables.in_s[target, bundle]
        return
    link = tables.link_of[source, target]
    seconds = sign * tables.direct_s[link, bundle]
    loads[devices + link] += seconds
    if not tables.overlap:
        loads[source] += seconds
        loads[target] += seconds


@kernel(inner=True)
def _leave(tables, bundle, source, sign, loads):
    """Adds ``sign`` times what writing a bundle to the host takes."""
    if tables.host:
        at = len(tables.capacity_bytes) + source if tables.overlap else source
        loads[at] += sign * tables.out_s[source, bundle]


@kernel(inner=True)
def _put(tables, placement, group, target, readers, held, loads):
    """Moves a group to another device, with loads, memory held and readers int [T, D] (of each bundle by device)."""
    devices = len(tables.capacity_bytes)
    source = placement[group]
    loads[source] -= tables.compute_s[source, group]
    loads[target] += tables.compute_s[target, group]
    held[source] -= tables.static_bytes[group]
    held[target] += tables.static_bytes[group]
    for index in range(tables.made_ptr[group], tables.made_ptr[group + 1]):
        bundle = tables.made[index]
        before, after = 0, 0
        for device in range(devices):
            if readers[bundle, device]:
                if device != source:
                    before += 1
                    _carry(tables, bundle, source, device, -1.0, loads)
                if device != target:
                    after += 1
                    _carry(tables, bundle, target, device, 1.0, loads)
        if before:
            _leave(tables, bundle, source, -1.0, loads)
        if after:
            _leave(tables, bundle, target, 1.0, loads)
    for index in range(tables.read_ptr[group], tables.read_ptr[group + 1]):
        bundle = tables.read[index]
        at = placement[tables.home[bundle]]
        before, after = 0, 0
        if tables.host:
            for device in range(devices):
                before += device != at and readers[bundle, device] > 0
        readers[bundle, source] -= 1
        if readers[bundle, source] == 0 and source != at:
            _carry(tables, bundle, at, source, -1.0, loads)
        readers[bundle, target] += 1
        if readers[bundle, target] == 1 and target != at:
            _carry(tables, bundle, at, target, 1.0, loads)
        if tables.host:
            for device in range(devices):
                after += device != at and readers[bundle, device] > 0
            if before and not after:
                _leave(tables, bundle, at, -1.0, loads)
            if after and not before:
                _leave(tables, bundle, at, 1.0, loads)
    placement[group] = target


@kernel(inner=True)
def count_up(tables, placement, readers, held, loads):
    """Fills readers int64 [T, D], held float64 [D] and loads float64 [R] from a placement int [G]."""
    readers[:], held[:], loads[:] = 0, 0.0, 0.0
    devices = len(tables.capacity_bytes)
    for group in range(len(placement)):
        held[placement[group]] += tables.static_bytes[group]
        loads[placement[group]] += tables.compute_s[placement[group], group]
    for bundle in range(len(tables.home)):
        at, away = placement[tables.home[bundle]], 0
        for index in range(tables.reader_ptr[bundle], tables.reader_ptr[bundle + 1]):
            readers[bundle, placement[tables.reader[index]]] += 1
        for device in range(devices):
            if device != at and readers[bundle, device]:
                away += 1
                _carry(tables, bundle, at, device, 1.0, loads)
        if away:
            _leave(tables, bundle, at, 1.0, loads)


@kernel(inner=True)
def _norm(loads, scale):
    total = 0.0
    for load in loads:
        power = load / scale
        for _ in range(NORM):
            power *= power
        total += power
    return scale * total ** (1.0 / 2**NORM)


@kernel(inner=True)
def _also(group, move, home, placement, stamp, old, back, count):
    """The count with a group taken along, where it is on the device and not there yet."""
    if stamp[group] == move or placement[group] != home:
        return count
    stamp[group] = move
    old[count], back[count] = group, home
    return count + 1


@kernel
def anneal(tables, placement, seed, moves, first, last, capacity, readers, held, loads, best):
    """Anneals ``placement``, int64 [G], for so many moves, from one temperature to another; gives the least period.

    ``best`` is the placement that has it. A move that puts more on a device than ``capacity`` float64 [D] is not made.
    """
    np.random.seed(seed)
    groups, devices = len(placement), len(tables.capacity_bytes)
    count_up(tables, placement, readers, held, loads)
    least = loads.max()
    best[:] = placement
    scale = least if least > 0 else 1.0
    now = _norm(loads, scale)
    old, back = np.zeros(groups + 1, np.int64), np.zeros(groups + 1, np.int64)
    stamp = np.full(groups, -1, np.int64)
    for move in range(moves):
        temperature = first * (last / first) ** (move / moves)
        group = np.random.randint(groups)
        home, count = placement[group], 0
        kind = np.random.random()
        target = np.random.randint(devices - 1)
        target += target >= home
        if kind < 0.75:  # to where one of its neighbours is
            makes = tables.made_ptr[group + 1] - tables.made_ptr[group]
            reads = tables.read_ptr[group + 1] - tables.read_ptr[group]
            if makes + reads:
                which = np.random.randint(makes + reads)
                if which < makes:
                    bundle = tables.made[tables.made_ptr[group] + which]
                    low, high = tables.reader_ptr[bundle], tables.reader_ptr[bundle + 1]
                    other = tables.reader[low + np.random.randint(high - low)]
                else:
                    other = tables.home[tables.read[tables.read_ptr[group] + which - makes]]
                if placement[other] != home:
                    target = placement[other]
        if kind > 0.85:  # in exchange for one from there
            other = np.random.randint(groups)
            if placement[other] == home:
                continue
            target = placement[other]
            old[0], old[1], back[0], back[1], count = group, other, home, target, 2
            if not (tables.allowed[group, target] and tables.allowed[other, home]):
                continue
        elif kind > 0.6 and len(tables.weight_s):
            tie = tables.weight_s[np.random.randint(len(tables.weight_s))]
            old[0], back[0], count, at = group, home, 1, 0
            stamp[group] = move
            while at < count:
                one = old[at]
                at += 1
                for index in range(tables.made_ptr[one], tables.made_ptr[one + 1]):
                    bundle = tables.made[index]
                    if tables.weight_s[bundle] >= tie:
                        for number in range(tables.reader_ptr[bundle], tables.reader_ptr[bundle + 1]):
                            count = _also(tables.reader[number], move, home, placement, stamp, old, back, count)
                for index in range(tables.read_ptr[one], tables.read_ptr[one + 1]):
                    bundle = tables.read[index]
                    if tables.weight_s[bundle] >= tie:
                        count = _also(tables.home[bundle], move, home, placement, stamp, old, back, count)
            may = 2 * count <= groups
            for index in range(count):
                may = may and tables.allowed[old[index], target]
            if not may:
                continue
        elif kind > 0.35:
            length = 1 + int((groups / 4.0) ** np.random.random())
            step = 1 if np.random.random() < 0.5 else -1
            at = tables.place_in_order[group]
            while count < length and 0 <= at < groups and placement[tables.order[at]] == home:
                old[count], back[count] = tables.order[at], home
                count += tables.allowed[tables.order[at], target]
                at += step
        else:
            old[0], back[0], count = group, home, 1
            if not tables.allowed[group, target]:
                continue
        for index in range(count):
            _put(tables, placement, old[index], home if back[index] == target else target, readers, held, loads)
        fits = True
        for device in range(devices):
            fits = fits and held[device] <= capacity[device]
        then = _norm(loads, scale) if fits else np.inf
        if fits and (then <= now or np.random.random() < np.exp((now - then) / temperature)):
            now = then
            period = loads.max()
            if period < least * (1 - 1e-12):
                least = period
                best[:] = placement
        else:
            for index in range(count):
                _put(tables, placement, old[index], back[index], readers, held, loads)
        if move % 4096 == 4095:  # what adding and taking away left
            count_up(tables, placement, readers, held, loads)
            scale = loads.max() if loads.max() > 0 else 1.0
            now = _norm(loads, scale)
    return least


def load_annealing(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """The method: from the best contiguous pipeline, in cycles, each from the best; each move is an evaluation."""
    dp(evaluator, rng)
    run(evaluator, rng, evaluator.left)


def run(evaluator: Evaluator, rng: np.random.Generator, moves: int, seconds: float | None = None) -> None:
    """So many moves, and at most so many seconds, from the evaluator's best."""
    problem: Any = evaluator.problem
    tables = make_tables(problem)
    if problem.num_devices == 1 or moves < 1:
        return
    devices, groups = problem.num_devices, problem.num_groups
    count = devices + (2 * devices * tables.overlap if tables.host else problem.cluster.num_links)
    readers = np.zeros((len(tables.home), devices), np.int64)
    held, loads = np.zeros(devices), np.zeros(count)
    placement = problem.devices_of(evaluator.best).astype(np.int64)
    best, share = placement.copy(), 0
    begun, spent = evaluator.wall_s, 0.0
    done = 0
    while done < moves and (seconds is None or evaluator.wall_s - begun < seconds):
        spent = max(done / moves, (evaluator.wall_s - begun) / seconds if seconds else 0.0, evaluator.share_spent)
        cool = spent * CYCLES % 1.0
        at_once = min(AT_ONCE, moves - done, evaluator.left - 1)
        if at_once < 1:
            return
        next_cool = min(1.0, cool + CYCLES * at_once / moves)
        period = (
            evaluator.best_cost
            if evaluator.best_valid
            else problem.pipeline.costs(problem.lowering.placement(placement[None]))[0][0]
        )
        period = max(period, LEAST_PERIOD_S)
        first, last = (period * FIRST * (LAST / FIRST) ** at for at in (cool, next_cool))
        anneal(tables, placement, int(rng.integers(2**31)), at_once, first, last,
               tables.capacity_bytes * BELIEVED_CAPACITIES[share], readers, held, loads, best)  # fmt: skip
        done += at_once
        evaluator.count(at_once)
        _, valid = evaluator.costs_and_valid(problem.decision_of(best[None].astype(np.int32)))
        if not valid[0] and share + 1 < len(BELIEVED_CAPACITIES):
            share += 1
        if next_cool >= 1.0 or (spent * CYCLES) // 1 != ((spent + at_once / moves) * CYCLES) // 1:
            placement[:] = problem.devices_of(evaluator.best)
    assert len(placement) == groups
