"""Chiplet partition: which chip of a package runs each op of a pipeline."""

from __future__ import annotations

from graphopt_gym.task import Benchmark, Task, Variant, Words

_ROOM = "graphopt_gym.envs.chiplet"
TASK = Task(
    name="chiplet",
    summary="which chip of a package runs each op of a pipeline",
    variants={
        "ChipletPartition-v0": Variant(
            f"{_ROOM}.env:ChipletPartitionEnv",
            "partition onto the chips of a package, proposals corrected by a constraint solver",
        ),
    },
    problem=f"{_ROOM}.problem:ChipletProblem",
    methods=f"{_ROOM}.methods",
    starts=("greedy", "contiguous"),
    references=("greedy",),
    words=Words("period", "partition", "evaluation", cluster="package"),
    catalogs={"graph": "graphs", "cluster": "packages"},
    toys=tuple({"graph": "bert_tiny_b16", "cluster": "mcm9", "mode": mode} for mode in ("fix", "sample", "step")),
    benchmarks={
        "chiplet-env": Benchmark(
            f"{_ROOM}.benchmarks:env_report",
            "steps a second of ChipletPartition-v0 by mode, beside the corrector alone",
        ),
        "corrector": Benchmark(
            f"{_ROOM}.benchmarks:corrector_report",
            "corrections of chiplet partitions a second, beside z3 alone",
        ),
    },
)
