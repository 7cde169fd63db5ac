"""Program rewriting: a program in, a program that computes the same in less time out."""

from __future__ import annotations

from graphopt_gym.task import Benchmark, Task, Variant, Words

_ROOM = "graphopt_gym.envs.rewrite"
_BENCHMARKS = f"{_ROOM}.benchmarks"
TASK = Task(
    name="rewrite",
    summary="which rewrite rules make a program faster, where and in what order",
    variants={
        "RewriteOrder-v0": Variant(
            f"{_ROOM}.env:RewriteOrderEnv", "rewriting a tensor program: which rule, where, in what order"
        ),
    },
    problem=f"{_ROOM}.problem:RewriteProblem",
    methods=f"{_ROOM}.methods",
    starts=("original",),
    references=("original", "greedy"),
    words=Words("inference time", "program", "evaluation", graph="program", cluster="device"),
    catalogs={"graph": "programs", "cluster": "devices"},
    benchmarks={
        "rewrite-env": Benchmark(f"{_BENCHMARKS}:env_report", "steps a second of RewriteOrder-v0, scalar and vector"),
        "matching": Benchmark(
            f"{_BENCHMARKS}:matching_report",
            "matches of rewrite rules kept up to date, against searching the whole program anew",
        ),
        "saturation": Benchmark(
            f"{_BENCHMARKS}:saturation_report",
            "e-nodes a second of equality saturation by engine, and seconds of extraction",
            needs=("ortools", "highspy"),
        ),
    },
    commands={
        "export": f"{_ROOM}.programs:export_solution",
        "measure": f"{_ROOM}.programs:measure_report",
    },
)
