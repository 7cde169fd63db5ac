"""Op fusion: which ops of a training step become one kernel, by the order in which fusions are tried."""

from __future__ import annotations

from graphopt_gym.task import Benchmark, Task, Variant, Words

_ROOM = "graphopt_gym.envs.fusion"
TASK = Task(
    name="fusion",
    summary="which ops become one kernel, by the order in which fusions are tried",
    variants={
        "Fusion-v0": Variant(f"{_ROOM}.env:FusionEnv", "op fusion, one op a step"),
        "FusionOneShot-v0": Variant(f"{_ROOM}.env:FusionOneShotEnv", "op fusion, the whole graph in one action"),
    },
    problem=f"{_ROOM}.problem:FusionProblem",
    methods=f"{_ROOM}.methods",
    starts=("none", "greedy", "vertical", "epilogues", "benefit"),
    references=("greedy",),
    words=Words("step time", "fusion", "simulator call"),
    toys=({"graph": "transformer_xl_2layer", "cluster": "v100x2"},),
    benchmarks={
        "fusion": Benchmark(f"{_ROOM}.benchmarks:fusion_report", "what fusing takes beside the engine"),
        "cpu-fusion": Benchmark(
            f"{_ROOM}.on_cpu:cpu_fusion_report",
            "what fusing saves on this processor",
            ("torch",),
        ),
    },
)
