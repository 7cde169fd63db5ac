"""Architecture search in a space of program properties (alpha-NAS): networks, their properties, synthesis.

What stands here needs no torch to be imported; running, measuring and capturing networks imports it.
"""

from __future__ import annotations

from graphopt_gym.envs.architecture.program import Architecture, ArchitectureBuilder, parse_architecture
from graphopt_gym.envs.architecture.properties import Properties, Requirement, infer
from graphopt_gym.envs.architecture.seeds import SEEDS, load_seed
from graphopt_gym.envs.architecture.subgraph import pick_subgraph
from graphopt_gym.envs.architecture.synthesis import enumerative, mutate_subgraph, progressive

__all__ = [
    "SEEDS",
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
