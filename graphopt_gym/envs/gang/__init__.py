"""Gang scheduling: who runs which sharded computation next, on which slice of which island, by which plan."""

from __future__ import annotations

from graphopt_gym.task import Benchmark, Task, Variant, Words

_ROOM = "graphopt_gym.envs.gang"
TASK = Task(
    name="gang",
    summary="which gang runs next on which slice of an island, and by which plan a pipeline does",
    variants={
        "GangScheduling-v0": Variant(
            f"{_ROOM}.env:GangSchedulingEnv", "gangs on islands of cores, one choice a step of a simulated run"
        ),
        "GangSchedulingOneShot-v0": Variant(
            f"{_ROOM}.env:GangSchedulingOneShotEnv", "plan, slices and order of all gangs in one action"
        ),
    },
    problem=f"{_ROOM}.problem:GangProblem",
    methods=f"{_ROOM}.methods",
    starts=("fifo", "heuristics"),
    references=("fifo",),
    words=Words("step time", "schedule", "simulator call", graph="workload", cluster="machine"),
    catalogs={"graph": "workloads", "cluster": "machines"},
    toys=({"graph": "toy_pipeline", "cluster": "toy_islands"},),
    benchmarks={
        "gang-env": Benchmark(f"{_ROOM}.benchmarks:env_report", "steps a second of GangScheduling-v0"),
    },
)
