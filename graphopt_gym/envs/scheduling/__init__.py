"""Scheduling: in which order each device runs its ops; the placement is given."""

from __future__ import annotations

from graphopt_gym.task import Benchmark, Task, Variant, Words

_ROOM = "graphopt_gym.envs.scheduling"
RULES = (
    "fifo", "program", "rank", "placed_rank", "highest_level", "most_work_remaining", "shortest_first",
    "longest_first", "depth_first", "sethi_ullman", "liu", "memory_greedy",
)  # fmt: skip
TASK = Task(
    name="scheduling",
    summary="in which order each device runs its ops, where the placement is given",
    variants={
        "Scheduling-v0": Variant(f"{_ROOM}.env:SchedulingEnv", "scheduling, one op a step"),
        "SchedulingOneShot-v0": Variant(
            f"{_ROOM}.env:SchedulingOneShotEnv", "scheduling, the whole graph in one action"
        ),
    },
    problem=f"{_ROOM}.problem:SchedulingProblem",
    methods=f"{_ROOM}.methods",
    starts=RULES,
    references=("fifo",),
    words=Words("step time", "schedule", "simulator call"),
    toys=({"graph": "transformer_xl_2layer", "cluster": "v100x2"},),
    benchmarks={
        "scheduling": Benchmark(f"{_ROOM}.benchmarks:scheduling_report", "what pricing an order and the rules take"),
    },
)
