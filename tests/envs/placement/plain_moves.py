"""A plain twin of the moves and the walk of the local searches, on Python's own integers and floats."""

from __future__ import annotations

import math

import numpy as np

WORD = 2**64
GAMMA = 0x9E3779B97F4A7C15


def mixed(word):
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        word = (word ^ (word >> shift)) * factor % WORD
    return word ^ (word >> 31)


class Stream:
    """SplitMix64."""

    def __init__(self, seed):
        self.word = mixed(seed % WORD)

    def uniform(self):
        self.word = (self.word + GAMMA) % WORD
        return (mixed(self.word) >> 11) / 2**53

    def below(self, count):
        return int(self.uniform() * count)

    def length(self, most):
        return min(int((most + 1.0) ** self.uniform()), most)


class PlainMoves:
    """The moves of a placement problem, from its tables."""

    def __init__(self, problem):
        self.tables = problem.move_tables
        self.groups, self.devices = problem.num_groups, problem.num_devices
        self.allowed = problem.allowed
        self.with_levels = problem.with_levels

    def propose(self, decision, stream):
        """A moved copy of a decision [G] or [2, G]."""
        rows = np.array(decision).reshape(-1, self.groups).tolist()
        if len(rows) == 2 and self.tables.levels > 1 and stream.uniform() < 0.5:
            self.move_levels(rows[1], stream)
        elif self.devices > 1:
            before = list(rows[0])
            for _ in range(8):
                self.move_devices(rows[0], stream)
                if rows[0] != before:
                    break
            else:
                self.move_any(rows[0], stream)
        return np.array(rows, np.int32).reshape(np.shape(decision))

    def put(self, devices, group, target):
        if self.allowed is None or self.allowed[group, target]:
            devices[group] = target

    def draw_group(self, stream):
        if stream.uniform() >= 0.5:
            return stream.below(self.groups)
        return min(int(np.searchsorted(self.tables.work, stream.uniform())), self.groups - 1)

    def draw_target(self, devices, group, stream):
        near = []
        if stream.uniform() < 0.8:
            low, high = self.tables.neighbour_ptr[group : group + 2]
            near = [devices[other] for other in self.tables.neighbour[low:high] if devices[other] != devices[group]]
        if near:
            return near[stream.below(len(near))]
        return (devices[group] + 1 + stream.below(self.devices - 1)) % self.devices

    def move_any(self, devices, stream):
        at, turn = stream.below(self.groups), stream.below(self.devices - 1)
        for group in [*range(at, self.groups), *range(at)]:
            others = [(devices[group] + 1 + step) % self.devices for step in range(self.devices - 1)]
            for target in others[turn:] + others[:turn]:
                if self.allowed is None or self.allowed[group, target]:
                    devices[group] = target
                    return

    def move_devices(self, devices, stream):
        tables, before = self.tables, list(devices)
        kind = min(int(np.searchsorted(tables.chances, stream.uniform(), side="right")), 7)
        group = self.draw_group(stream)
        home, target = devices[group], self.draw_target(devices, group, stream)
        if kind == 0:
            self.put(devices, group, target)
        elif kind == 7:
            self.exchange(devices, group, stream)
        elif kind == 2:
            self.move_region(devices, group, target, stream)
        elif kind == 4:
            which, whole = stream.below(len(tables.members)), stream.uniform() < 0.5
            for member in tables.members[which, tables.begin[which, group] : tables.end[which, group]].tolist():
                if whole or before[member] == home:
                    self.put(devices, member, target)
        else:
            order = tables.orders[stream.below(len(tables.orders))].tolist()
            at = order.index(group)
            if kind == 5:
                self.shift_border(devices, order, at, stream)
                return
            if kind == 1:
                many = stream.length(max(2, self.groups // 4))
                first = at if stream.uniform() < 0.5 else at - many + 1
            else:
                many = stream.length(self.groups)
                first = at - stream.below(many)
            for member in order[max(0, first) : max(0, first + many)]:
                if before[member] == home or kind == 3:
                    self.put(devices, member, target)
                elif before[member] == target and kind == 6:
                    self.put(devices, member, home)

    def move_region(self, devices, group, target, stream):
        whole, home = stream.uniform() < 0.5, devices[group]
        many = stream.length(max(2, self.groups // 4))
        self.put(devices, group, target)
        queue = [group] * (devices[group] == target)
        for member in queue:
            low, high = self.tables.neighbour_ptr[member : member + 2]
            for other in self.tables.neighbour[low:high].tolist():
                wanted = devices[other] != target if whole else devices[other] == home
                if len(queue) < many and wanted:
                    self.put(devices, other, target)
                    queue += [other] * (devices[other] == target)

    def exchange(self, devices, group, stream):
        home, other = devices[group], stream.below(self.groups)
        for _ in range(8):
            if devices[other] != home:
                break
            other = stream.below(self.groups)
        target = devices[other]
        if target != home:
            self.put(devices, group, target)
            self.put(devices, other, home)

    def shift_border(self, devices, order, at, stream):
        forward = stream.uniform() < 0.5
        line = order[at:] if forward else order[at::-1]
        home = devices[line[0]]
        inside = next((count for count, one in enumerate(line) if devices[one] != home), None)
        if inside is None:
            return
        whole = order if forward else order[::-1]
        edge = whole.index(line[inside])  # the first that is beyond the border
        if stream.uniform() < 0.5:
            whole, edge = whole[::-1], len(whole) - edge
        many, far = stream.length(max(2, self.groups // 4)), devices[whole[edge]]
        target = devices[whole[edge - 1]]
        for member in whole[edge : edge + many]:
            if devices[member] != far:
                break
            self.put(devices, member, target)

    def move_levels(self, levels, stream):
        tables, kind, group = self.tables, stream.uniform(), self.draw_group(stream)
        level = (levels[group] + 1 + stream.below(tables.levels - 1)) % tables.levels
        if kind < 0.25 and len(tables.members):
            which = stream.below(len(tables.members))
            taken = tables.members[which, tables.begin[which, group] : tables.end[which, group]]
        else:
            many = stream.length(max(2, self.groups // 4)) if kind < 0.5 else 1
            at = tables.orders[0].tolist().index(group)
            taken = tables.orders[0, at : at + many]
        for member in taken.tolist():
            levels[member] = level


def walk(problem, decision, cost, seed, steps, log_temperature, slope, most_idle):
    """(decision, cost, best decision, best cost, [(step, best cost)]) of a walk, priced one by one by ``costs``."""
    moves, least, idle = PlainMoves(problem), cost, 0
    best, gains = (decision, cost, bool(problem.costs(decision[None])[1][0])), []
    for step in range(steps):
        if idle >= most_idle:
            break
        stream = Stream(seed + step * GAMMA)
        candidate = moves.propose(decision, stream)
        costs, valid = problem.costs(candidate[None])
        idle += 1
        if (not valid[0], costs[0]) < (not best[2], best[1]):
            best = (candidate, float(costs[0]), bool(valid[0]))
            gains += [(step, best[1])] * best[2]
        temperature, limit = math.exp(log_temperature + slope * step), cost
        if temperature > 0:
            limit -= temperature * math.log(1.0 - stream.uniform())
        if costs[0] <= limit:
            decision, cost = candidate, float(costs[0])
            if cost < least:
                least, idle = cost, 0
    return decision, cost, best[0], best[1], gains
