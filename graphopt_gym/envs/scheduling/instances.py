"""The graphs and devices that an environment draws from, each with what it shows of the ops that are put in order."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt_gym.envs.core.features import KIND_FEATURES, kind_features, logs, squashed
from graphopt_gym.envs.core.levels import LevelRoster
from graphopt_gym.envs.scheduling import RULES, orders
from graphopt_gym.envs.scheduling.exact import transfers
from graphopt_gym.envs.scheduling.memory_orders import holdings
from graphopt_gym.envs.scheduling.methods import decision_of
from graphopt_gym.envs.scheduling.problem import SchedulingProblem
from graphopt_gym.simulator.tasks import task_edges

LEVELS = 16
STARTS = RULES
OP_FEATURES = (
    "log_flops",
    "log_output_bytes",
    "time",  # squashed: to that of an average op
    "head",  # the longest way up to it, as a share of the longest of all
    "tail",  # the longest way from its start to the end, as a share
    "slack",  # what is left of the longest way beside head and tail
    "work_behind",  # share of all work that waits for it, its own included
    "log_bytes_held",  # what it gives on its device
    "log_bytes_let_go",  # what nobody but it reads there
    "inputs",  # squashed: how many ops it reads
    "consumers",  # squashed: how many ops read it
    "remote_inputs",  # share of the inputs that are on other devices
    "remote_consumers",  # share of the consumers that are
    "sending",  # squashed: time of its transfers, to that of an average op
    "device_load",  # work of its device, to that of the busiest
    "captured",  # its place in captured order, as a share
    *KIND_FEATURES,
)


class Instance:
    """One problem, the ops that compute, and their features: see :class:`LevelInstance`."""

    def __init__(self, problem: SchedulingProblem) -> None:
        self.problem = problem
        tasks = problem.simulator.tasks
        self.entry = np.flatnonzero(~tasks.is_source)
        self.num_ops, self.num_levels, self.length = len(self.entry), problem.levels, problem.num_tasks
        self.reward_unit = 1.0 if problem.objective == "step" else 2.0**30
        place = np.full(problem.num_tasks, -1, np.int32)
        place[self.entry] = np.arange(self.num_ops)
        self.pairs = task_edges(tasks)
        ends = place[self.pairs]
        self.edges = ends[(ends >= 0).all(axis=1)]
        self.num_edges = len(self.edges)
        mine = orders.placed_durations_s(problem.simulator, problem.placement)[self.entry]
        share = mine / mine.sum() if mine.sum() > 0 else np.full(self.num_ops, 1.0 / max(1, self.num_ops))
        self.time_before = np.append(0.0, np.cumsum(share))
        self.features = self._features()
        self._starts: dict[str, np.ndarray] = {}

    def start(self, name: str) -> np.ndarray:
        if name not in self._starts:
            self._starts[name] = decision_of(self.problem, name)
        return self._starts[name]

    def _features(self) -> np.ndarray:
        problem, graph, count = self.problem, self.problem.graph, self.problem.num_tasks
        simulator, placement = problem.simulator, problem.placement
        tasks, op = simulator.tasks, simulator.tasks.first_op
        seconds = orders.placed_durations_s(simulator, placement)
        average = max(float(seconds[~tasks.is_source].mean()) if self.num_ops else 0.0, 1e-300)
        head, tail = orders.placed_heads_s(simulator, placement), orders.placed_rank(simulator, placement)
        path = max(float((head + tail).max(initial=0.0)), 1e-300)
        held = holdings(tasks, placement)
        gives = np.bincount(held.producer, np.where(held.is_copy, 0, held.num_bytes), count)
        once = np.diff(held.reader_ptr) == 1
        lets_go = np.bincount(held.reader[held.reader_ptr[:-1][once]], held.num_bytes[once], count)
        source, target = self.pairs[:, 0], self.pairs[:, 1]
        apart = placement[source] != placement[target]
        inputs, consumers = np.bincount(target, minlength=count), np.bincount(source, minlength=count)
        sent = transfers(simulator, placement)
        load = np.bincount(placement, seconds, simulator.num_devices)
        work = orders.most_work_remaining(simulator, placement) / max(float(seconds.sum()), 1e-300)
        columns = [
            *(logs(one) for one in (graph.flops[op], graph.output_bytes[op])),
            squashed(seconds / average),
            head / path,
            tail / path,
            1 - (head + tail) / path,
            work,
            logs(gives),
            logs(lets_go),
            squashed(inputs / 1.0),
            squashed(consumers / 1.0),
            np.bincount(target, apart, count) / np.maximum(inputs, 1),
            np.bincount(source, apart, count) / np.maximum(consumers, 1),
            squashed(np.bincount(tasks.tensor_task[sent.tensor], sent.seconds, count) / average),
            load[placement] / max(float(load.max(initial=0.0)), 1e-300),
            np.arange(count) / max(1, count - 1),
        ]
        features = np.column_stack([np.stack(columns, axis=1).clip(0, 1), kind_features(graph, op)])
        assert features.shape[1] == len(OP_FEATURES)
        return features[self.entry].astype(np.float32)


def scheduling_roster(
    graph: Any, cluster: Any, max_ops: int | None, max_edges: int | None, levels: int | None, **options: Any
) -> LevelRoster:
    """All graphs on all clusters that a scheduling environment may be asked for."""
    return LevelRoster(
        SchedulingProblem, Instance, len(OP_FEATURES), graph, cluster, max_ops, max_edges,
        LEVELS if levels is None else levels, **options,
    )  # fmt: skip
