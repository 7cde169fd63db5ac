"""The graphs and devices that an environment draws from, each with what it shows of the ops that may be fused."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt_gym.envs.core.features import KIND_FEATURES, kind_features, logs, squashed
from graphopt_gym.envs.core.levels import LevelRoster
from graphopt_gym.envs.fusion.methods import Fusible, greedy, none, savings_s
from graphopt_gym.envs.fusion.problem import FusionProblem

STARTS = ("none", "greedy")
LEVELS = 16
OP_FEATURES = (
    "log_flops",
    "log_bytes_read",
    "log_bytes_written",
    "log_output_bytes",
    "time",  # squashed: by itself, to that of an average op
    "memory_bound",  # share of its time that memory takes, of memory and compute
    "saving",  # squashed: what fusing it into all of its fusible consumers saves, to the time of an average op
    "consumers",  # squashed: how many ops read it
    "fusible_consumers",  # share of them that it may go into
    "fusible_producers",  # share of what it reads, from other ops, that may go into it
    "level",  # in the graph, as a share of the depth
    *KIND_FEATURES,
)


class Instance:
    """One problem, the ops whose level matters, and their features: see :class:`LevelInstance`."""

    reward_unit = 1.0  # seconds

    def __init__(self, problem: FusionProblem) -> None:
        self.problem = problem
        self.entry = problem.producers
        self.num_ops, self.num_levels, self.length = len(self.entry), problem.levels, problem.num_tasks
        tables, place = problem.fused.tables, np.full(problem.num_tasks, -1, np.int64)
        place[self.entry] = np.arange(self.num_ops)
        source = np.repeat(np.arange(problem.num_tasks), np.diff(tables.succ_ptr))
        ends = np.stack([place[source], place[tables.succ]], axis=1)
        self.edges = ends[(ends >= 0).all(axis=1)].astype(np.int32)
        self.num_edges = len(self.edges)
        kind, every = problem.simulator.device_type[problem.placement], np.arange(problem.num_tasks)
        seconds = problem.simulator.durations_s[kind, every]
        mine = seconds[self.entry]
        share = mine / mine.sum() if mine.sum() > 0 else np.full(self.num_ops, 1.0 / max(1, self.num_ops))
        self.time_before = np.append(0.0, np.cumsum(share))
        self.features = op_features(problem)[self.entry]

    def start(self, name: str) -> np.ndarray:
        return none(self.problem) if name == "none" else greedy(self.problem)


def op_features(problem: Fusible) -> np.ndarray:
    """float32 [K, F] in 0 to 1: :data:`OP_FEATURES` of each task, on the devices where it is."""
    graph, tasks = problem.simulator.graph, problem.simulator.tasks
    tables, parts, count = problem.fused.tables, problem.fused.task_tables, tasks.num_tasks
    op, every = tasks.first_op, np.arange(count)
    kind = problem.simulator.device_type[problem.placement]
    seconds = problem.simulator.durations_s[kind, every]
    average = max(float(seconds[~parts.is_source].mean()), 1e-300)
    moved = (parts.bytes_read + parts.bytes_written) / parts.bytes_per_s[kind, every]
    work = moved + parts.compute_s[kind, every]
    consumers, producers = np.diff(tables.succ_ptr), np.diff(tables.pred_ptr)
    source, target = np.repeat(every, consumers), np.repeat(every, producers)
    columns = [
        *(logs(one) for one in (graph.flops[op], parts.bytes_read, parts.bytes_written, tables.output_bytes)),
        squashed(seconds / average),
        np.divide(moved, work, out=np.zeros(count), where=work > 0),
        squashed(savings_s(problem) / average),
        squashed(consumers / 1.0),
        np.bincount(source, tables.succ_ok, count) / np.maximum(consumers, 1),
        np.bincount(target, tables.pred_ok, count) / np.maximum(producers, 1),
        graph.level[op] / max(1, int(graph.level.max())),
    ]
    features = np.column_stack([np.stack(columns, axis=1), kind_features(graph, op)])
    assert features.shape[1] == len(OP_FEATURES)
    return features.astype(np.float32)  # type: ignore[no-any-return]


def fusion_roster(
    graph: Any, cluster: Any, max_ops: int | None, max_edges: int | None, levels: int | None, **options: Any
) -> LevelRoster:
    """All graphs on all clusters that a fusion environment may be asked for."""
    return LevelRoster(
        FusionProblem, Instance, len(OP_FEATURES), graph, cluster, max_ops, max_edges,
        LEVELS if levels is None else levels, **options,
    )  # fmt: skip
