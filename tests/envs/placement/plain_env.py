"""The placement environment without any speed: sets, dicts and loops, written from its documentation."""

from __future__ import annotations

import math

import numpy as np

from graphopt_gym.envs.placement.problem import PlacementProblem
from graphopt_gym.graphs.graph import OP_CLASSES, PHASES, SOURCE, VIEW


def logarithm(size: float) -> float:
    return min(1.0, math.log1p(size) / math.log1p(1e15))


def squash(ratio: float) -> float:
    return ratio / (1.0 + ratio)


class PlainEnv:
    def __init__(self, problem: PlacementProblem) -> None:
        self.problem = problem
        self.cluster, self.tasks = problem.cluster, problem.simulator.tasks
        self.G, self.D = problem.num_groups, problem.num_devices
        group = problem.group_of_task.tolist()
        durations = problem.simulator.device_durations_s()
        self.duration = [[0.0] * self.G for _ in range(self.D)]
        self.best_ops = [0.0] * self.G
        for device in range(self.D):
            for task, its in enumerate(group):
                self.duration[device][its] += durations[device, task]
        self.best = [min(self.duration[device][g] for device in range(self.D)) for g in range(self.G)]
        self.total = float(np.array(self.best).sum())
        self.persistent = [0.0] * self.G
        self.activation = [0.0] * self.G
        for task, its in enumerate(group):
            self.persistent[its] += float(self.tasks.persistent_bytes[task])
            for storage in range(self.tasks.storage_ptr[task], self.tasks.storage_ptr[task + 1]):
                self.activation[its] += float(self.tasks.storage_bytes[storage])
        # (sender, reader) -> [bytes, tensors, their bytes, stated seconds], each tensor once a reading group; tensors
        # with stated seconds are counted in the first and the last
        self.sent: dict[tuple[int, int], list[float]] = {}
        for tensor in range(self.tasks.num_tensors):
            sender = group[self.tasks.tensor_task[tensor]]
            readers = self.tasks.reader[self.tasks.reader_ptr[tensor] : self.tasks.reader_ptr[tensor + 1]]
            for reader in {group[task] for task in readers.tolist()} - {sender}:
                entry = self.sent.setdefault((sender, reader), [0.0, 0.0, 0.0, 0.0])
                size, stated = float(self.tasks.tensor_bytes[tensor]), float(self.tasks.transfer_s[tensor])
                for column, value in enumerate((size, 0.0, 0.0, stated) if stated >= 0 else (size, 1.0, size, 0.0)):
                    entry[column] += value
        self.capacity = [float(size) for size in problem.capacity_bytes]

    def reset(self, start: list[int]) -> None:
        self.placement = list(start)
        self.current = 0
        self.cost, self.valid, self.peak = self.price()
        self.start_cost = self.cost

    def price(self) -> tuple[float, bool, list[int]]:
        outcome = self.problem.evaluate(np.array(self.placement))
        cost = self.problem.costs(np.array([self.placement]))[0][0]
        return float(cost), outcome.valid, outcome.metrics["peak_bytes"]

    def step(self, device: int) -> float:
        before = -math.sqrt(self.cost)
        if 0 <= device < self.D and self.may(self.current, device):
            self.placement[self.current] = device
        self.current += 1
        self.cost, self.valid, self.peak = self.price()
        return -math.sqrt(self.cost) - before

    def may(self, group: int, device: int) -> bool:
        own = self.problem.own
        return own is None or own.allowed is None or bool(own.allowed[self.problem.group_of_op == group, device].all())

    def link(self, source: int, target: int, tensors: float, size: float, stated_s: float) -> float:
        link = self.cluster.links[self.cluster.link_of[source, target]]
        return size / link.bytes_per_s + tensors * link.latency_s + stated_s

    def group(self, g: int) -> list[float]:
        node = self.node(g)
        return node[:11] + node[13:]  # without its places in time

    def node(self, g: int) -> list[float]:
        graph, ops = self.problem.graph, np.flatnonzero(self.problem.group_of_op == g)
        seconds = dict.fromkeys(ops.tolist(), 0.0)
        for task in np.flatnonzero(self.problem.group_of_task == g).tolist():
            seconds[int(self.tasks.first_op[task])] = float(self.problem.simulator.device_durations_s()[:, task].min())

        def share(column: np.ndarray, code: int) -> float:
            mine = sum(seconds[op] for op in ops.tolist() if column[op] == code)
            return min(1.0, mine / self.best[g]) if self.best[g] > 0 else 0.0

        real = [op for op in ops.tolist() if graph.op_class[op] not in (SOURCE, VIEW)]
        depth = max(1, int(graph.level.max()))
        return [
            logarithm(int(graph.flops[ops].sum())),
            logarithm(int((graph.bytes_read + graph.bytes_written)[ops].sum())),
            logarithm(int(graph.param_bytes[ops].sum())),
            logarithm(int(graph.state_bytes[ops].sum())),
            logarithm(self.activation[g]),
            logarithm(sum(entry[0] for (_, reader), entry in self.sent.items() if reader == g)),
            logarithm(sum(entry[0] for (sender, _), entry in self.sent.items() if sender == g)),
            logarithm(len(real)),
            squash(self.best[g] * self.G / self.total) if self.total else 0.0,
            int(graph.level[ops].min()) / depth,
            int(graph.level[ops].max()) / depth,
            self.time_place([other for other in range(self.G) if other < g], [g]),
            self.time_place(
                [other for other in range(self.G) if self.module(other) < self.module(g)],
                [other for other in range(self.G) if self.module(other) == self.module(g)],
            ),
            *(share(graph.phase, code) for code in range(len(PHASES))),
            *(share(graph.op_class, code) for code in range(len(OP_CLASSES)) if code not in (SOURCE, VIEW)),
        ]

    def time_place(self, before: list[int], own: list[int]) -> float:
        time = {g: self.best[g] / self.total if self.total else 1 / self.G for g in range(self.G)}
        return sum(time[g] for g in before) + sum(time[g] for g in own) / 2

    def module(self, g: int) -> int:
        """The first group whose first op is of the same module as this one's."""
        first = [int(np.flatnonzero(self.problem.group_of_op == other)[0]) for other in range(self.G)]
        module = self.problem.graph.module[first].tolist()
        return module.index(module[g])

    def memory(self) -> list[list[float]]:
        """[G][D]: the static share of memory of each group on each device."""
        held = [self.persistent[g] + self.activation[g] for g in range(self.G)]
        return [[squash(self.G * held[g] / self.capacity[d]) for d in range(self.D)] for g in range(self.G)]

    def whole_graph_memory(self) -> list[float]:
        """[D]: the static device feature."""
        return [squash((sum(self.persistent) + sum(self.activation)) / self.capacity[d]) for d in range(self.D)]

    def observe(self) -> dict[str, np.ndarray]:
        g, ended = self.current, self.current == self.G
        decided = range(self.current)
        per_group = self.G / self.total if self.total else 0.0
        even = self.D / self.total if self.total else 0.0
        traffic = sum(entry[0] for pair, entry in self.sent.items() if g in pair)
        exchanged = sum(entry[0] for pair, entry in self.sent.items() if g in pair and sum(pair) - g in decided)
        devices = []
        fastest = max((link.bytes_per_s for link in self.used_links()), default=1.0)
        for d in range(self.D):
            alone = sum(self.duration[d])
            there = [other for other in range(self.D) if other != d]
            rate = [self.cluster.links[self.cluster.link_of[d, other]].bytes_per_s for other in there]
            transfer = bytes_in = bytes_out = 0.0
            for (sender, reader), (size, *rest) in self.sent.items():
                if reader == g and sender in decided:
                    source = self.placement[sender]
                    bytes_in += size if source == d else 0.0
                    transfer += self.link(source, d, *rest) if source != d else 0.0
                if sender == g and reader in decided:
                    target = self.placement[reader]
                    bytes_out += size if target == d else 0.0
                    transfer += self.link(d, target, *rest) if target != d else 0.0
            mine = [other for other in decided if self.placement[other] == d]
            held = 0.0 if ended else self.persistent[g] + self.activation[g]
            whole = sum(self.duration[d][other] for other in range(self.G) if self.placement[other] == d)
            devices.append(
                [
                    1.0,
                    self.total / alone if alone else 1.0,
                    self.capacity[d] / max(self.capacity),
                    sum(rate) / len(rate) / fastest if rate else 1.0,
                    0.0 if ended else squash(self.duration[d][g] * per_group),
                    squash(held / self.capacity[d]),
                    squash(sum(self.duration[d][other] for other in mine) * even),
                    squash(whole * even),
                    squash(sum(self.persistent[other] for other in mine) / self.capacity[d]),
                    squash(sum(self.activation[other] for other in mine) / self.capacity[d]),
                    squash(self.peak[d] / self.capacity[d]),
                    bytes_in / traffic if traffic else 0.0,
                    bytes_out / traffic if traffic else 0.0,
                    squash(transfer * per_group),
                    0.0 if ended else float(self.placement[g] == d),
                ]
            )
        ratio = math.sqrt(self.cost / self.start_cost) if self.start_cost else 0.0
        time_decided = sum(self.best[other] for other in decided) / self.total if self.total else g / self.G
        progress = [
            g / self.G,
            time_decided,
            1.0 - exchanged / traffic if traffic else 0.0,
            squash(ratio),
            float(self.valid),
        ]
        return {
            "group": np.array(self.group(g) if not ended else [0.0] * 25),
            "devices": np.array(devices).ravel(),
            "progress": np.array(progress),
            "action_mask": np.array([ended or self.may(g, device) for device in range(self.D)]),
        }

    def used_links(self) -> list:
        used = {int(link) for link in self.cluster.link_of.ravel() if link >= 0}
        return [self.cluster.links[link] for link in used]
