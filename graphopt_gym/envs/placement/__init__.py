"""Device placement: which device runs each group of ops of a training step."""

from __future__ import annotations

from graphopt_gym.task import Benchmark, Task, Variant, Words

_ROOM = "graphopt_gym.envs.placement"
TASK = Task(
    name="placement",
    summary="which device of a cluster runs each group of ops",
    variants={
        "Placement-v0": Variant(f"{_ROOM}.env:PlacementEnv", "device placement, one group of ops a step"),
        "PlacementOneShot-v0": Variant(
            f"{_ROOM}.env:PlacementOneShotEnv", "device placement, the whole graph in one action"
        ),
    },
    problem=f"{_ROOM}.problem:PlacementProblem",
    methods=f"{_ROOM}.methods",
    starts=("single", "expert", "metis", "heft", "m_etf"),
    references=("expert",),
    words=Words("step time", "placement", "simulator call"),
    commands={"execute": f"{_ROOM}.execution:execute_report"},
    toys=({"graph": "transformer_xl_2layer", "cluster": "v100x2"},),
    benchmarks={
        "env": Benchmark(f"{_ROOM}.benchmarks:env_report", "steps a second of Placement-v0, scalar and vector"),
        "order": Benchmark(f"{_ROOM}.benchmarks:order_report", "the same placements under each order of a step"),
        "search": Benchmark(
            f"{_ROOM}.benchmarks:search_report",
            "what searches take beside the engine, and what they reach with each set of moves",
        ),
        "throughput": Benchmark(
            f"{_ROOM}.benchmarks:throughput_report", "periods of pipelines, by method", needs=("ortools",)
        ),
        "agent": Benchmark(
            "graphopt_agents.benchmark:agent_report",
            "seconds and memory of GDP's and GO's networks, up to 80,000 ops",
            needs=("torch", "torch_geometric", "stable_baselines3", "graphopt_agents"),
        ),
        "placer": Benchmark(
            "graphopt_agents.placer.benchmark:placer_report",
            "what the placer's parts take beside a simulation, and its search beside annealing",
            needs=("torch", "cmaes", "graphopt_agents"),
        ),
    },
)
