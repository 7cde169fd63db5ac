"""Gangs: sharded computations over islands of cores, and the control plane that starts them (Pathways, MLSys 2022)."""

from graphopt_gym.simulator.gang.program import Builder, Client, ShardedProgram, Slice, together
from graphopt_gym.simulator.gang.programs import Pipeline, chain, micro_batch_size, pipeline
from graphopt_gym.simulator.gang.slices import Classes, classify, spread

__all__ = [
    "Builder",
    "Classes",
    "Client",
    "Pipeline",
    "ShardedProgram",
    "Slice",
    "chain",
    "classify",
    "micro_batch_size",
    "pipeline",
    "spread",
    "together",
]
