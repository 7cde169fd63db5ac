"""Placement, fusion and schedule of a training step, in one decision."""

from __future__ import annotations

from graphopt_gym.task import Benchmark, Task, Variant, Words

_ROOM = "graphopt_gym.envs.joint"
TASK = Task(
    name="joint",
    summary="placement, fusion and schedule of a training step in one decision",
    variants={
        "GraphOptimization-v0": Variant(
            f"{_ROOM}.env:GraphOptimizationEnv", "placement, fusion and schedule, one choice a step"
        ),
        "GraphOptimizationOneShot-v0": Variant(
            f"{_ROOM}.env:GraphOptimizationOneShotEnv",
            "placement, fusion and schedule, all in one action",
        ),
    },
    problem=f"{_ROOM}.problem:GraphOptimizationProblem",
    methods=f"{_ROOM}.methods",
    starts=("default", "heuristics"),
    references=("default",),
    words=Words("step time", "decision", "simulator call"),
    toys=({"graph": "transformer_xl_2layer", "cluster": "v100x2"},),
    benchmarks={
        "joint": Benchmark(f"{_ROOM}.benchmarks:joint_report", "a joint evaluation, beside the engine alone"),
    },
)
