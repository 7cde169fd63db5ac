"""The engine of gangs in plain Python, written from its semantics alone: no code shared with it. Slow and obvious."""

from __future__ import annotations

import math


class Twin:
    """One run. ``mode`` is ``static``, ``stride``, ``round_robin``, ``lists`` or ``choose``."""

    def __init__(self, tables, mode="static", back_pressure=True, level=None, lists=None, choose=None):
        self.mode, self.back_pressure, self.lists, self.choose = mode, back_pressure, lists, choose
        count = len(tables.duration_s)
        self.tasks = range(count)
        self.duration = tables.duration_s.tolist()
        self.level = tables.level.tolist()
        if level is not None:
            self.level[: len(level)] = level
        self.client, self.cores = tables.group.tolist(), tables.cores.tolist()
        self.weight = tables.weight.tolist()

        def rows(ptr, *columns):
            return [
                list(zip(*(column[ptr[t] : ptr[t + 1]].tolist() for column in columns), strict=True))
                for t in self.tasks
            ]

        self.resources = [[r for (r,) in row] for row in rows(tables.resource_ptr, tables.resource)]
        self.after = rows(tables.after_ptr, tables.after, tables.delay_s)
        self.reads = [[s for (s,) in row] for row in rows(tables.read_ptr, tables.read)]
        self.memory = rows(tables.memory_ptr, tables.memory_class, tables.keep_bytes, tables.temp_bytes)
        self.holds = [[r for (r,) in row] for row in rows(tables.hold_ptr, tables.hold)]
        self.hold_after = tables.hold_after_s.tolist()
        self.capacity = tables.capacity_bytes.tolist()
        self.used = tables.resident_bytes.tolist()
        self.peak, self.peak_s = list(self.used), [0.0] * len(self.used)
        self.classes = len(self.capacity)
        self.edges_left = tables.before.tolist()
        self.readers = [0] * count
        for t in self.tasks:
            for source in self.reads[t]:
                self.readers[source] += 1
        self.ready = tables.arrival_s.tolist()
        self.start, self.finish = [math.nan] * count, [math.nan] * count
        self.waiting_ready = {t for t in self.tasks if self.edges_left[t] == 0}  # whose ready time is known
        self.queue = set()
        self.aside = {}  # task -> (class that it lacks, whether it is a gang, bytes that it needs there)
        self.back = {}  # (class, whether a gang) -> the task that was let back
        self.lacked = [-1] * count
        self.running = {}  # task -> finish
        self.done = set()
        self.taken_hold = {}  # task whose collective runs -> True
        self.passes = [0.0 if w > 0 or mode != "stride" else math.inf for w in self.weight]
        self.virtual, self.round = 0.0, 0
        self.place = [0] * self.classes
        self.over = None
        self.now = 0.0
        self.chosen = []

    def is_gang(self, t):
        return self.resources[t][0] < self.classes

    # ---- order

    def key(self, t):
        return (self.level[t], self.ready[t], t)

    def first(self, r):
        if r < self.classes and self.mode == "lists":
            if self.place[r] == len(self.lists[r]):
                return None
            t = self.lists[r][self.place[r]]
            return t if t in self.queue else None
        waiting = [t for t in self.queue if r in self.resources[t]]
        if not waiting:
            return None
        if r < self.classes and self.mode in ("stride", "round_robin") and len(self.weight) > 1:
            return min(waiting, key=lambda t: (self.passes[self.client[t]], *self.key(t)))
        return min(waiting, key=self.key)

    def free(self, t):
        busy = {r for other in self.running for r in self.resources[other]}
        busy |= {r for other in self.taken_hold for r in self.holds[other]}
        return not busy & set(self.resources[t])

    def lacks(self, t):
        for at, keep, temp in self.memory[t]:
            if self.used[at] + keep + temp > self.capacity[at]:
                return at, self.is_gang(t), keep + temp
        return None

    def let_back(self):
        for slot in [(at, gang) for at in range(self.classes) for gang in (True, False)]:
            there = [t for t, (*where, _) in self.aside.items() if tuple(where) == slot]
            if there and slot not in self.back:
                t = min(there, key=lambda t: (self.aside[t][2], self.key(t)))
                if self.used[slot[0]] + self.aside[t][2] <= self.capacity[slot[0]]:
                    del self.aside[t]
                    self.back[slot] = t
                    self.enqueue(t)

    def no_longer_back(self, t):
        self.back = {slot: other for slot, other in self.back.items() if other != t}
        self.let_back()

    # ---- what happens

    def enqueue(self, t):
        if self.mode == "stride" and self.is_gang(t):
            mine = [o for o in self.queue if self.is_gang(o) and self.client[o] == self.client[t]]
            if not mine:
                self.passes[self.client[t]] = max(self.passes[self.client[t]], self.virtual)
        self.queue.add(t)

    def begin(self, t):
        self.queue.discard(t)
        self.start[t] = self.now
        self.finish[t] = self.now + self.duration[t]
        self.running[t] = self.finish[t]
        for at, keep, temp in self.memory[t]:
            self.used[at] += keep + temp
            if self.used[at] > self.peak[at]:
                self.peak[at], self.peak_s[at] = self.used[at], self.now
                if self.used[at] > self.capacity[at] and self.over is None:
                    self.over = (self.now, self.used[at] - self.capacity[at], at)
        if self.is_gang(t):
            client = self.client[t]
            if self.mode == "lists":
                for r in self.resources[t]:
                    self.place[r] += 1
            elif self.mode == "stride" and len(self.weight) > 1:
                self.virtual = max(self.virtual, self.passes[client])
                if self.weight[client] > 0:
                    self.passes[client] += self.duration[t] * self.cores[t] / self.weight[client]
            elif self.mode == "round_robin":
                self.round += 1
                self.passes[client] = self.round
        self.no_longer_back(t)

    def end(self, t):
        del self.running[t]
        self.taken_hold.pop(t, None)
        self.done.add(t)
        freed = [(at, temp) for at, _, temp in self.memory[t] if temp]
        for source in [t, *self.reads[t]]:
            if source != t:
                self.readers[source] -= 1
            if self.readers[source] == 0:
                freed += [(at, keep) for at, keep, _ in self.memory[source] if keep]
        for at, size in freed:
            self.used[at] -= size
        for other, delay in self.after[t]:
            self.edges_left[other] -= 1
            self.ready[other] = max(self.ready[other], self.now + delay)
            if self.edges_left[other] == 0:
                self.waiting_ready.add(other)

    def take_in(self):
        """Everything that happens at this instant."""
        for t in sorted(t for t, finish in self.running.items() if finish == self.now):
            self.end(t)
        for t in self.running:
            if self.holds[t] and self.start[t] + self.hold_after[t] <= self.now:
                self.taken_hold[t] = True
        arrived = {t for t in self.waiting_ready if self.ready[t] <= self.now}
        self.waiting_ready -= arrived
        for t in sorted(arrived):
            self.enqueue(t)
        self.let_back()

    def start_one(self):
        """Starts, or sets aside, the lowest task that can start; whether there was one."""
        for t in sorted(self.queue):
            if self.is_gang(t) and self.mode == "choose":
                continue
            if not self.free(t) or any(self.first(r) != t for r in self.resources[t]):
                continue
            lack = self.lacks(t) if self.back_pressure else None
            if lack is None:
                self.begin(t)
                return True
            self.lacked[t] = lack[0] if self.lacked[t] < 0 else self.lacked[t]
            if not (self.mode == "lists" and self.is_gang(t)):
                self.queue.discard(t)
                self.aside[t] = lack
                self.no_longer_back(t)
                return True
        return False

    def candidates(self):
        return sorted(
            t for t in self.queue
            if self.is_gang(t) and self.free(t) and not (self.back_pressure and self.lacks(t) is not None)
        )  # fmt: skip

    def run(self):
        self.take_in()
        while True:
            while self.start_one():
                pass
            if self.mode == "choose":
                while found := self.candidates():
                    choice = self.choose(found)
                    if choice is None:
                        break
                    self.chosen.append(choice)
                    self.begin(choice)
                    while self.start_one():
                        pass
            times = [*self.running.values(), *(self.ready[t] for t in self.waiting_ready)]
            times += [
                self.start[t] + self.hold_after[t] for t in self.running if self.holds[t] and t not in self.taken_hold
            ]
            if not times:
                return self
            self.now = min(times)
            self.take_in()
