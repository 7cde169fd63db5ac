"""The best contiguous pipeline, by dynamic programming over ideals (Tarnawski et al., NeurIPS 2020, §5.1.1).

An *ideal* of the forward graph holds with every op all that it reads from. What a device runs in a contiguous pipeline
is the difference of two ideals, one in the other, together with the backward ops of the same groups; so the best
pipeline is a cheapest chain of ideals from the empty one to the whole graph, where the cost of a chain is the load of
its busiest device. All pairs of ideals are looked at that could be in a chain cheaper than the best one known.

The graph is first made smaller, as in the authors' code: groups go together that lie on a cycle of groups, and one
that computes nothing and reads nothing (a weight by itself) goes to the reader before which no other can be. Groups of
backward ops alone get the mirror images of their edges. Where there are too many ideals, an order of the ops is drawn
up and edges are added between all ops that stand a *band* or more apart in it: of band 1 the ideals are the prefixes of
the order, and bands are widened while ideals, and pairs of them, are few enough. Then the pipeline is the best of
those, no more.

Loads are those of :mod:`graphopt_gym.simulator.pipeline` where tensors go through the host. Directly sent, a tensor is
counted as if one other device read it; memory counts as if all devices not yet used came later. What a chain costs
then, and whether it fits, its evaluation says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from graphopt_gym.compiled import kernel
from graphopt_gym.envs.placement.groups import make_group_graph
from graphopt_gym.errors import InputError
from graphopt_gym.fields import whole
from graphopt_gym.graphs.graph import PHASES

if TYPE_CHECKING:
    from graphopt_gym.envs.placement.problem import PlacementProblem
    from graphopt_gym.search.evaluator import Evaluator

IDEALS = 200_000
START_IDEALS = 5_000  # where it is only what a search begins from
AT_ONCE = 200  # ideals between two looks at the clock
BELIEVED_CAPACITIES = (1.0, 0.9, 0.8, 0.65, 0.5)
MOST_STATES = 4096  # numbers of devices used, by kind
BANDS = (1, 4, 8, 16, 32, 64)
PAIRS = 1_000  # pairs of ideals that are looked at, at most, for each ideal that there may be


@dataclass(frozen=True)
class Bundles:
    """Tensors by what they go to: B bundles, each of the tensors out of one place that the same others read."""

    of_tensor: np.ndarray  # int64 [T], or -1: nothing else reads it
    home: np.ndarray  # int64 [B]
    reader_ptr: np.ndarray  # int64 [B+1]
    reader: np.ndarray  # int64: places other than the home

    def added(self, rows: np.ndarray) -> np.ndarray:
        """float64 [R, B]: of tensors float64 [R, T], the sums of bundles."""
        sent = self.of_tensor >= 0
        return np.array([np.bincount(self.of_tensor[sent], row[sent], len(self.home)) for row in rows])


def make_bundles(home: np.ndarray, tensor: np.ndarray, reader: np.ndarray) -> Bundles:
    """Of the places int [T] that tensors come from, and of pairs of a tensor and a place that reads it, int [R]."""
    read: dict[int, set[int]] = {}
    for one, place in zip(tensor.tolist(), reader.tolist(), strict=True):
        if home[one] != place:
            read.setdefault(one, set()).add(place)
    known: dict[tuple[int, ...], int] = {}
    of_tensor = np.full(len(home), -1, np.int64)
    for one, places in read.items():
        of_tensor[one] = known.setdefault((int(home[one]), *sorted(places)), len(known))
    ends = [key[1:] for key in known]
    return Bundles(
        of_tensor,
        np.array([key[0] for key in known], np.int64),
        np.cumsum([0, *map(len, ends)]).astype(np.int64),
        np.array([place for end in ends for place in end], np.int64),
    )


@dataclass(frozen=True)
class Parts:
    """What is not cut: V parts in topological order of the forward graph; C kinds of devices, T bundles."""

    part_of_group: np.ndarray  # int64 [G]
    edges: np.ndarray  # int64 [E, 2] of (part, part): what must not come later, lower first
    compute_s: np.ndarray  # float64 [C, V]
    static_bytes: np.ndarray  # float64 [V]
    sample_bytes: np.ndarray  # float64 [V] what a sample holds
    allowed: np.ndarray  # bool [C, V]
    producer: np.ndarray  # int64 [T]
    reader_ptr: np.ndarray  # int64 [T+1]
    reader: np.ndarray  # int64
    out_s: np.ndarray  # float64 [C, T]
    in_s: np.ndarray  # float64 [C, T]
    devices: tuple[np.ndarray, ...]  # C times int64: the devices of a kind
    capacity_bytes: np.ndarray  # float64 [C]
    overlap: bool
    trains: bool

    @property
    def count(self) -> int:
        return self.compute_s.shape[1]


def make_parts(problem: PlacementProblem, light: bool = False) -> Parts:
    """Of a problem whose objective is throughput; ``light``: only what holds no memory goes to its reader.

    Raises:
        InputError: more kinds of devices than can be counted.
    """
    pipeline = problem.pipeline
    assert pipeline is not None
    tasks, groups = problem.simulator.tasks, problem.num_groups
    # a module call stays whole whatever the grouping is, unless ops have no modules
    cell_of_group = problem.lowering.group_of_unit if problem.grouping == "phase" else np.arange(groups)
    cell_of_task = cell_of_group[problem.group_of_task].astype(np.int64)
    cells = int(cell_of_task.max()) + 1
    forward = tasks.graph.phase[tasks.first_op] == PHASES.index("forward")
    tensor = np.repeat(np.arange(tasks.num_tensors), np.diff(tasks.reader_ptr))
    source, target = tasks.tensor_task[tensor].astype(np.int64), tasks.reader.astype(np.int64)
    pairs = np.stack([cell_of_task[source], cell_of_task[target]], axis=1)
    ahead = forward[source] & forward[target]
    has_forward = np.zeros(cells, bool)
    has_forward[cell_of_task[forward]] = True
    orphan = ~has_forward
    mirrored = ~forward[source] & ~forward[target] & orphan[pairs].any(axis=1)
    edges = np.concatenate([pairs[ahead], pairs[mirrored][:, ::-1]])
    edges = np.unique(edges[edges[:, 0] != edges[:, 1]], axis=0)

    kind_of_device = _kinds(problem)
    kinds = int(kind_of_device.max()) + 1
    devices = tuple(np.flatnonzero(kind_of_device == kind) for kind in range(kinds))
    if np.prod([len(row) + 1 for row in devices]) > MOST_STATES:
        raise InputError(
            f"method 'dp' counts devices by kind, and {problem.cluster.name!r} has {kinds} kinds of "
            f"{problem.num_devices} devices: too many numbers of each; take 'annealing', or fewer kinds"
        )
    first = np.array([row[0] for row in devices])
    per_group = problem._group_s[first]
    compute = np.stack([np.bincount(cell_of_group, row, cells) for row in per_group])
    allowed = np.ones((kinds, cells), bool)
    if problem.allowed is not None:
        for kind in range(kinds):
            np.logical_and.at(allowed[kind], cell_of_group, problem.allowed[:, first[kind]])

    # groups on a cycle together, then weights with their readers
    merged = connected_components(coo_array((np.ones(len(edges)), edges.T), (cells, cells)), connection="strong")[1]
    merged = merged.astype(np.int64)
    readers = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)
    weight = compute.max(axis=0)
    if light:
        weight = weight + np.bincount(cell_of_task, tasks.persistent_bytes, cells)
    part, edges = _in_order(*_absorb(merged, edges, readers, weight, allowed))
    count = int(part.max()) + 1
    part_of_group = part[cell_of_group]
    part_of_task = part_of_group[problem.group_of_task]

    graph = make_group_graph(problem)
    static = np.bincount(part_of_task, tasks.persistent_bytes, count)
    held = np.bincount(part_of_group, graph.memory_bytes, count) - static
    may = np.ones((kinds, count), bool)
    for kind in range(kinds):
        np.logical_and.at(may[kind], part, allowed[kind])
    out_s, in_s = _transfers(problem, first)
    bundles = make_bundles(part_of_task[tasks.tensor_task], tensor, part_of_task[tasks.reader])
    return Parts(
        part_of_group,
        edges,
        np.stack([np.bincount(part, row, count) for row in compute]),
        static,
        np.maximum(held, 0.0),
        may,
        bundles.home,
        bundles.reader_ptr,
        bundles.reader,
        bundles.added(out_s),
        bundles.added(in_s),
        devices,
        problem.capacity_bytes[first].astype(np.float64),
        pipeline.overlap,
        pipeline.phases == 2,
    )


def _kinds(problem: PlacementProblem) -> np.ndarray:
    """int64 [D]: the kind of each device: of one kind all ops take the same time, and may be on them alike."""
    pipeline, simulator = problem.pipeline, problem.simulator
    assert pipeline is not None
    keys = []
    for device in range(problem.num_devices):
        allowed = b"" if problem.allowed is None else problem.allowed[:, device].tobytes()
        keys.append((int(simulator.device_type[device]), int(problem.capacity_bytes[device]), allowed,
                     bool(pipeline.in_host[device]) and pipeline.transfers == "host"))  # fmt: skip
    known = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([known[key] for key in keys])


def _transfers(problem: PlacementProblem, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(out, in) float64 [C, T]: seconds of each tensor from and to a device of each kind; sent directly: on the fastest
    link there is between two devices."""
    pipeline, tasks = problem.pipeline, problem.simulator.tasks
    assert pipeline is not None
    if pipeline.transfers == "host":
        out_s, in_s = pipeline.host_s()
        return out_s[first], in_s[first]
    links = problem.cluster.links
    if not links:
        return np.zeros((len(first), tasks.num_tensors)), np.zeros((len(first), tasks.num_tensors))
    by_link = np.min([link.latency_s + tasks.tensor_bytes / link.bytes_per_s for link in links], axis=0)
    seconds = np.where(tasks.transfer_s >= 0, tasks.transfer_s, by_link)
    return np.repeat(seconds[None], len(first), axis=0), np.repeat(seconds[None], len(first), axis=0)


def _absorb(
    merged: np.ndarray, edges: np.ndarray, readers: np.ndarray, weight: np.ndarray, allowed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(part int64 [cells], edges between parts): a part of no weight that follows nothing goes to the first of its
    readers, where all others follow that one and it may be wherever that may."""
    while True:
        count = int(merged.max()) + 1
        at = np.unique(merged[edges], axis=0)
        at = at[at[:, 0] != at[:, 1]]
        read = np.unique(merged[readers], axis=0)
        read = read[read[:, 0] != read[:, 1]]
        work = np.bincount(merged, weight, count)
        may = np.ones((len(allowed), count), bool)
        for kind in range(len(allowed)):
            np.logical_and.at(may[kind], merged, allowed[kind])
        followed = np.zeros(count, bool)
        followed[at[:, 1]] = True
        reach = _reachable(count, at)
        target = np.arange(count)
        for one in np.flatnonzero((work == 0) & ~followed).tolist():
            its = read[read[:, 0] == one, 1]
            firsts = [int(first) for first in its if reach[first, its].all() and (may[:, one] >= may[:, first]).all()]
            if firsts:
                target[one] = firsts[0]
        if (target == np.arange(count)).all():
            return merged, at
        while (target != target[target]).any():
            target = target[target]
        merged = np.unique(target, return_inverse=True)[1][merged]


def _reachable(count: int, edges: np.ndarray) -> np.ndarray:
    """bool [count, count]: whether there is a way from one to another; each reaches itself."""
    reach = np.eye(count, dtype=bool)
    follows: list[list[int]] = [[] for _ in range(count)]
    for source, target in edges.tolist():
        follows[source].append(target)
    for one in _sorted(count, edges)[::-1].tolist():
        for other in follows[one]:
            reach[one] |= reach[other]
    return reach


def _sorted(count: int, edges: np.ndarray) -> np.ndarray:
    """int64 [count]: parts in topological order, of those that are ready the one whose last input came last: depth
    first, so that what was begun is finished before another branch is."""
    waits = np.bincount(edges[:, 1], minlength=count)
    follows: list[list[int]] = [[] for _ in range(count)]
    for source, target in edges.tolist():
        follows[source].append(target)
    ready, order = np.flatnonzero(waits == 0)[::-1].tolist(), []
    while ready:
        one = ready.pop()
        order.append(one)
        for other in follows[one][::-1]:
            waits[other] -= 1
            if not waits[other]:
                ready.append(other)
    return np.array(order, np.int64)


def _in_order(merged: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same with parts numbered in topological order."""
    number = np.argsort(_sorted(int(merged.max()) + 1, edges))
    return number[merged], number[edges]


@dataclass(frozen=True)
class Ideals:
    """M ideals of V parts, a subset before what holds it; the empty one first, the whole graph last."""

    words: np.ndarray  # uint64 [M, W], a bit a part
    ptr: np.ndarray  # int64 [M+1]: the ideals with one part less
    less: np.ndarray  # int64
    part: np.ndarray  # int64, the part that each of those is less


def make_ideals(count: int, edges: np.ndarray, limit: int) -> Ideals | None:
    """All ideals of a graph of parts in topological order, edges int [E, 2]; None where there are over ``limit``."""
    before = np.concatenate([[0], np.cumsum(np.bincount(edges[:, 1], minlength=count))])
    after = np.concatenate([[0], np.cumsum(np.bincount(edges[:, 0], minlength=count))])
    keys = np.random.default_rng(0).integers(1, 2**63, count, dtype=np.int64)
    found, words, source, part, target = _grow(
        count, before, edges[np.argsort(edges[:, 1], kind="stable"), 0].astype(np.int64),
        after, edges[np.argsort(edges[:, 0], kind="stable"), 1].astype(np.int64), keys, limit,
    )  # fmt: skip
    if found > limit:
        return None
    by_target = np.argsort(target, kind="stable")
    ptr = np.concatenate([[0], np.cumsum(np.bincount(target, minlength=found))])
    return Ideals(words[:found], ptr, source[by_target], part[by_target])


@kernel
def _grow(count, before_ptr, before, after_ptr, after, keys, limit):
    """(ideals found, their words, and of each step from one to the next: source, part, target); limit + 1: too many."""
    size = (count + 63) // 64
    words = np.zeros((limit + 1, size), np.uint64)
    ready = np.zeros((limit + 1, size), np.uint64)  # parts that could be next
    hashes = np.zeros(limit + 1, np.int64)
    slots = 4
    while slots < 4 * (limit + 1):
        slots *= 2
    table = np.full(slots, -1, np.int64)
    room, steps = 4 * limit + 64, 0
    source, part, target = np.zeros(room, np.int64), np.zeros(room, np.int64), np.zeros(room, np.int64)
    one = np.uint64(1)
    for each in range(count):
        if before_ptr[each] == before_ptr[each + 1]:
            ready[0, each >> 6] |= one << np.uint64(each & 63)
    table[0] = 0
    found, at = 1, 0
    new_words, new_ready = np.zeros(size, np.uint64), np.zeros(size, np.uint64)
    while at < found:
        for each in range(count):
            if not (ready[at, each >> 6] >> np.uint64(each & 63)) & one:
                continue
            hashed = hashes[at] ^ keys[each]
            for word in range(size):
                new_words[word], new_ready[word] = words[at, word], ready[at, word]
            new_words[each >> 6] |= one << np.uint64(each & 63)
            slot, goal = hashed & (slots - 1), -1
            while table[slot] >= 0:
                known = table[slot]
                if hashes[known] == hashed:
                    same = True
                    for word in range(size):
                        same = same and words[known, word] == new_words[word]
                    if same:
                        goal = known
                        break
                slot = (slot + 1) & (slots - 1)
            if goal < 0:
                if found > limit - 1:
                    return limit + 1, words, source[:0], part[:0], target[:0]
                goal = found
                found += 1
                table[slot] = goal
                hashes[goal] = hashed
                new_ready[each >> 6] &= ~(one << np.uint64(each & 63))
                for index in range(after_ptr[each], after_ptr[each + 1]):
                    other, complete = after[index], True
                    for reads in range(before_ptr[other], before_ptr[other + 1]):
                        needed = before[reads]
                        complete = complete and (new_words[needed >> 6] >> np.uint64(needed & 63)) & one == one
                    if complete:
                        new_ready[other >> 6] |= one << np.uint64(other & 63)
                for word in range(size):
                    words[goal, word], ready[goal, word] = new_words[word], new_ready[word]
            if steps == room:
                room *= 2
                longer = np.zeros(room, np.int64)
                longer[:steps] = source
                source = longer
                longer = np.zeros(room, np.int64)
                longer[:steps] = part
                part = longer
                longer = np.zeros(room, np.int64)
                longer[:steps] = target
                target = longer
            source[steps], part[steps], target[steps] = at, each, goal
            steps += 1
        at += 1
    return found, words, source[:steps], part[:steps], target[:steps]


class Chains:
    """The cheapest chains of ideals, worked out from smaller to larger ideals in steps.

    Args:
        parts: V parts on C kinds of devices.
        ideals: of the parts.
        share: how much of each capacity is believed in.
        below: chains that cost more are not wanted.
    """

    def __init__(self, parts: Parts, ideals: Ideals, share: float, below: float) -> None:
        self.parts, self.ideals = parts, ideals
        counts = np.array([len(row) for row in parts.devices])
        self.stride = np.concatenate([[1], np.cumprod(counts[:-1] + 1)]).astype(np.int64)
        self.states = int(np.prod(counts + 1))
        count = len(ideals.words)
        self.cost = np.full((count, self.states), np.inf)
        self.cost[0] = 0.0
        self.cut = np.full((count, self.states), -1, np.int32)  # the ideal before the last device's
        self.kind = np.full((count, self.states), -1, np.int8)
        self.done = 1
        self.pairs = 0
        bits = np.unpackbits(ideals.words.view(np.uint8), axis=1, bitorder="little")[:, : parts.count]
        self.work_s = bits @ parts.compute_s.min(axis=0)
        parts_of = np.argsort(parts.reader, kind="stable")
        tensor_of_reader = np.repeat(np.arange(len(parts.producer)), np.diff(parts.reader_ptr))
        by_producer = np.argsort(parts.producer, kind="stable")
        self._arguments = (
            ideals.ptr, ideals.less, ideals.part, self.work_s, parts.compute_s, parts.static_bytes, parts.sample_bytes,
            parts.allowed, _pointers(parts.producer, parts.count), by_producer, _pointers(parts.reader, parts.count),
            tensor_of_reader[parts_of], np.diff(parts.reader_ptr), parts.out_s, parts.in_s,
            counts, self.stride, parts.capacity_bytes * share, parts.overlap, parts.trains,
            np.full(count, -1, np.int64),
        )  # fmt: skip
        self.below = below

    @property
    def finished(self) -> bool:
        return self.done >= len(self.cost)

    def work(self, ideals: int) -> None:
        """As many further ideals."""
        stop = min(len(self.cost), self.done + ideals)
        self.pairs += _chain(self.done, stop, *self._arguments, self.below, self.cost, self.cut, self.kind)
        self.done = stop

    def best(self) -> np.ndarray | None:
        """int32 [V]: the device of each part in the cheapest chain; None where none is cheap enough."""
        last = len(self.cost) - 1
        state = int(self.cost[last].argmin())
        if not np.isfinite(self.cost[last, state]):
            return None
        found = np.full(self.parts.count, -1, np.int32)
        ideal, steps = last, []
        while ideal:
            cut, kind = int(self.cut[ideal, state]), int(self.kind[ideal, state])
            steps.append((ideal, cut, kind))
            ideal, state = cut, state - int(self.stride[kind])
        left = [list(row) for row in self.parts.devices]
        for ideal, cut, kind in steps[::-1]:
            device = left[kind].pop(0)
            new = self.ideals.words[ideal] & ~self.ideals.words[cut]
            found[np.flatnonzero(np.unpackbits(new.view(np.uint8), bitorder="little")[: self.parts.count])] = device
        return found


def _pointers(owner: np.ndarray, count: int) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=count))])


@kernel
def _chain(
    start, stop, ptr, less, part, work_s, compute_s, static_bytes, sample_bytes, allowed, made_ptr, made, read_ptr,
    read, num_readers, out_s, in_s, counts, stride, capacity, overlap, trains, seen, below, cost, cut, kind_of,
):  # fmt: skip
    """The cheapest chains to the ideals from ``start`` to ``stop``; gives the pairs of ideals looked at."""
    kinds, states = len(counts), cost.shape[1]
    devices = 0
    for kind in range(kinds):
        devices += counts[kind]
    total = work_s[-1]
    inside = np.zeros(len(num_readers), np.int64)  # of each tensor: how many of its readers are in the set
    has = np.zeros(len(num_readers), np.bool_)  # whether its producer is
    compute, sent, received = np.zeros(kinds), np.zeros(kinds), np.zeros(kinds)
    used = np.zeros(states, np.int64)
    for state in range(states):
        for kind in range(kinds):
            used[state] += state // stride[kind] % (counts[kind] + 1)
    depth_of = np.zeros(allowed.shape[1] + 2, np.int64)  # the way down: ideal, next step from it, part that led there
    next_step = np.zeros(allowed.shape[1] + 2, np.int64)
    led = np.zeros(allowed.shape[1] + 2, np.int64)
    barred = np.zeros(kinds, np.int64)
    pairs = 0
    for ideal in range(start, stop):
        # how many devices it takes at least, and may take at most so that the rest fits on those that are left
        fewest, most = 1.0, float(devices)
        if below < np.inf:
            fewest = max(fewest, np.ceil(work_s[ideal] / below - 1e-6))
            most = devices - np.ceil((total - work_s[ideal]) / below - 1e-6)
        if fewest > most:
            continue
        compute[:], sent[:], received[:] = 0.0, 0.0, 0.0
        barred[:] = 0
        static, sample = 0.0, 0.0
        depth = 0
        depth_of[0], next_step[0] = ideal, ptr[ideal]
        seen[ideal] = ideal
        while depth >= 0:
            here = depth_of[depth]
            if next_step[depth] == ptr[here + 1]:  # back
                if depth > 0:
                    gone = led[depth]
                    static -= static_bytes[gone]
                    sample -= sample_bytes[gone]
                    for kind in range(kinds):
                        compute[kind] -= compute_s[kind, gone]
                        barred[kind] -= not allowed[kind, gone]
                    for index in range(made_ptr[gone], made_ptr[gone + 1]):
                        tensor = made[index]
                        has[tensor] = False
                        if inside[tensor] < num_readers[tensor]:
                            for kind in range(kinds):
                                sent[kind] -= out_s[kind, tensor]
                        if inside[tensor] > 0:
                            for kind in range(kinds):
                                received[kind] += in_s[kind, tensor]
                    for index in range(read_ptr[gone], read_ptr[gone + 1]):
                        tensor = read[index]
                        inside[tensor] -= 1
                        if has[tensor]:
                            if inside[tensor] == num_readers[tensor] - 1:
                                for kind in range(kinds):
                                    sent[kind] += out_s[kind, tensor]
                        elif inside[tensor] == 0:
                            for kind in range(kinds):
                                received[kind] -= in_s[kind, tensor]
                depth -= 1
                continue
            step = next_step[depth]
            next_step[depth] += 1
            goal = less[step]
            if seen[goal] == ideal:
                continue
            seen[goal] = ideal
            new = part[step]
            # the least that this set, and so any larger one, costs
            least = np.inf
            for kind in range(kinds):
                if barred[kind] == 0 and allowed[kind, new] and static + static_bytes[new] <= capacity[kind]:
                    least = min(least, compute[kind] + compute_s[kind, new])
            if least > below:
                continue
            depth += 1
            depth_of[depth], next_step[depth], led[depth] = goal, ptr[goal], new
            static += static_bytes[new]
            sample += sample_bytes[new]
            for kind in range(kinds):
                compute[kind] += compute_s[kind, new]
                barred[kind] += not allowed[kind, new]
            for index in range(made_ptr[new], made_ptr[new + 1]):
                tensor = made[index]
                has[tensor] = True
                if inside[tensor] > 0:
                    for kind in range(kinds):
                        received[kind] -= in_s[kind, tensor]
                if inside[tensor] < num_readers[tensor]:
                    for kind in range(kinds):
                        sent[kind] += out_s[kind, tensor]
            for index in range(read_ptr[new], read_ptr[new + 1]):
                tensor = read[index]
                inside[tensor] += 1
                if has[tensor]:
                    if inside[tensor] == num_readers[tensor]:
                        for kind in range(kinds):
                            sent[kind] -= out_s[kind, tensor]
                elif inside[tensor] == 1:
                    for kind in range(kinds):
                        received[kind] += in_s[kind, tensor]
            pairs += 1
            for kind in range(kinds):
                if barred[kind]:
                    continue
                if overlap:
                    load = max(compute[kind], sent[kind], received[kind])
                else:
                    load = compute[kind] + sent[kind] + received[kind]
                if load > below:
                    continue
                for state in range(stride[kind], states):
                    if used[state] < fewest or used[state] > most or state // stride[kind] % (counts[kind] + 1) == 0:
                        continue
                    before = state - stride[kind]
                    if cost[goal, before] >= cost[ideal, state] or load >= cost[ideal, state]:
                        continue
                    flying = devices - used[state] + 1 if trains else 1
                    if static + sample * flying > capacity[kind]:
                        continue
                    cost[ideal, state] = max(load, cost[goal, before])
                    cut[ideal, state] = goal
                    kind_of[ideal, state] = kind
    return pairs


def banded(count: int, edges: np.ndarray, order: np.ndarray, band: int) -> np.ndarray:
    """The edges, and one from each part to all that stand ``band`` or more behind it in a topological order."""
    if band >= count:
        return edges
    pairs = [np.stack([order[:-behind], order[behind:]], axis=1) for behind in range(band, min(count, 2 * band))]
    return np.unique(np.concatenate([edges, *pairs]), axis=0)


def orders(parts: Parts) -> Iterator[np.ndarray]:
    """Topological orders of the parts: depth first, and as captured (by level)."""
    yield np.arange(parts.count)
    level = np.zeros(parts.count, np.int64)
    for source, target in parts.edges[np.argsort(parts.edges[:, 1], kind="stable")].tolist():
        level[target] = max(level[target], level[source] + 1)
    yield np.lexsort((np.arange(parts.count), level))


def dp(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """The method: prefixes of a few orders first, then all ideals, or as many as there may be."""
    problem: Any = evaluator.problem
    limit = whole("option ideals", evaluator.options.get("ideals", START_IDEALS), 2)
    every = True
    for light in (False, True):
        parts = make_parts(problem, light)
        found, band = _dp(evaluator, parts, limit)
        every = band >= parts.count
        # where not all fits on each device, a weight may be better off without its reader
        if parts.static_bytes.sum() + parts.sample_bytes.sum() * problem.num_devices <= parts.capacity_bytes.min():
            break
    if evaluator.best is None:  # no pipeline fits: one device, as far as may be
        decision = problem.keep_to_allowed(np.zeros(problem.num_groups, np.int32))
        evaluator.cost(problem.decision_of(decision))
    evaluator.note(parts=parts.count, ideals=found, all_contiguous=every)


def _dp(evaluator: Evaluator, parts: Parts, limit: int) -> tuple[int, int]:
    """Prefixes of a few orders, then wider and wider bands while ideals and pairs are few enough: (ideals, band)."""
    problem: Any = evaluator.problem

    def run(ideals: Ideals, share: float) -> bool | None:
        """Whether the best chain is valid; None where it takes more pairs than allowed."""
        if evaluator.best_valid and evaluator.best_cost <= 0:  # nothing is cheaper
            return True
        chains = Chains(parts, ideals, share, evaluator.best_cost if evaluator.best_valid else np.inf)
        while not chains.finished:
            if evaluator.best is not None:
                evaluator.check_left()
            chains.work(AT_ONCE)
            if chains.pairs > PAIRS * limit:
                return None
        devices = chains.best()
        if devices is None:
            return evaluator.best_valid
        decision = problem.keep_to_allowed(devices[parts.part_of_group])
        _, valid = evaluator.costs_and_valid(problem.decision_of(decision)[None])
        return bool(valid[0])

    lines = list(orders(parts))
    reached, known = 0, 0
    for band in (*BANDS, parts.count):
        if band > parts.count or reached == parts.count:
            continue
        for order in lines if band == 1 else lines[:1]:
            ideals = make_ideals(parts.count, banded(parts.count, parts.edges, order, band), limit)
            if ideals is None:
                return known, reached
            for share in BELIEVED_CAPACITIES:
                valid = run(ideals, share)
                if valid is None:
                    return known, reached
                if valid:
                    break
            known = len(ideals.words)
        reached = band
    return known, reached
