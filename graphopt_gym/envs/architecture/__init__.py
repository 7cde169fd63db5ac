"""Architecture search in a space of program properties (alpha-NAS): networks, their properties, synthesis, training.

What stands here needs no torch to be imported; running, measuring, training and capturing networks imports it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from graphopt_gym.task import Benchmark, Task, Variant, Words

if TYPE_CHECKING:
    from graphopt_gym.envs.architecture.program import Architecture, ArchitectureBuilder, parse_architecture
    from graphopt_gym.envs.architecture.properties import Properties, Requirement, infer
    from graphopt_gym.envs.architecture.seeds import SEEDS, load_seed
    from graphopt_gym.envs.architecture.subgraph import pick_subgraph
    from graphopt_gym.envs.architecture.synthesis import enumerative, mutate_subgraph, progressive

__all__ = [
    "SEEDS",
    "TASK",
    "Architecture",
    "ArchitectureBuilder",
    "Properties",
    "Requirement",
    "enumerative",
    "infer",
    "load_seed",
    "mutate_subgraph",
    "parse_architecture",
    "pick_subgraph",
    "progressive",
]

_ROOM = "graphopt_gym.envs.architecture"
TASK = Task(
    name="architecture",
    summary="which network is smaller or faster than a seed, and no worse",
    variants={
        "ArchitectureSearch-v0": Variant(
            f"{_ROOM}.env:ArchitectureSearchEnv", "networks found by mutating the properties of a seed's blocks"
        ),
    },
    problem=f"{_ROOM}.problem:ArchitectureProblem",
    methods=f"{_ROOM}.methods",
    starts=("seed",),
    references=("seed",),
    words=Words("cost", "network", "evaluation", graph="seed", cluster="device"),
    catalogs={"graph": "architectures", "cluster": "devices"},
    benchmarks={
        "architecture-env": Benchmark(
            f"{_ROOM}.benchmarks:env_report",
            "steps a second of ArchitectureSearch-v0 by track, scalar and vector",
            needs=("torch",),
        ),
        "synthesis": Benchmark(
            f"{_ROOM}.benchmarks:synthesis_report",
            "seconds to synthesise a subgraph of ResNet-34 with given properties, beside enumeration, and how often",
            needs=("torch",),
        ),
    },
)
_LAZY = {
    "Architecture": "program",
    "ArchitectureBuilder": "program",
    "Properties": "properties",
    "Requirement": "properties",
    "SEEDS": "seeds",
    "enumerative": "synthesis",
    "infer": "properties",
    "load_seed": "seeds",
    "mutate_subgraph": "synthesis",
    "parse_architecture": "program",
    "pick_subgraph": "subgraph",
    "progressive": "synthesis",
}  # by their modules: the task alone is imported with the package


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{_ROOM}.{_LAZY[name]}"), name)
