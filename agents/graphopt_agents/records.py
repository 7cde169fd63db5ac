"""The learned agents as the command line knows them, found by the entry points of this package. Nothing here imports
torch; an agent's module does."""

from __future__ import annotations

from graphopt_gym.agent import Agent

PPO = Agent(
    "ppo",
    "proximal policy optimisation on any environment, by Stable-Baselines3",
    "Schulman et al., arXiv:1707.06347, 2017",
    "graphopt_agents.ppo:Trainer",
    length="steps",
    transfers=False,
)
MASKABLE_PPO = Agent(
    "maskable_ppo",
    "the same with illegal actions masked out, by sb3-contrib",
    "Huang and Ontañón, FLAIRS 2022, arXiv:2006.14171",
    "graphopt_agents.ppo:MaskableTrainer",
    length="steps",
    transfers=False,
)
GDP = Agent(
    "gdp",
    "a graph network that places the whole graph at once",
    "Zhou et al., GDP, arXiv:1910.01578, 2019",
    "graphopt_agents.gdp:Trainer",
    ("Placement-v0", "PlacementOneShot-v0"),
    cluster="the paper's of a paper's graph, else v100x4",
)
PLACER = Agent(
    "placer",
    "scorers that place groups by local features, and a ranker of moves that guides a search",
    "ours; by CMA-ES (Hansen and Ostermeier, 2001) and after DAgger (Ross et al., 2011)",
    "graphopt_agents.placer:Trainer",
    ("Placement-v0", "PlacementOneShot-v0"),
    cluster="drawn in training; then the paper's of a paper's graph, else v100x4",
)
GO = Agent(
    "go",
    "a graph network that places, fuses and schedules the whole graph at once",
    "Zhou et al., GO, NeurIPS 2020",
    "graphopt_agents.go:Trainer",
    ("GraphOptimization-v0", "GraphOptimizationOneShot-v0"),
    cluster="the paper's of a paper's graph, else v100x4",
)
CHIPLET = Agent(
    "chiplet",
    "a graph network that proposes partitions over the chips of a package, through the corrector",
    "Xie et al., MLSys 2022",
    "graphopt_agents.chiplet:Trainer",
    ("ChipletPartition-v0",),
    cluster="mcm36",
)
REWRITE = Agent(
    "rewrite",
    "a graph network that says which rule rewrites a program where, one rewrite after the other",
    "after He et al., X-RLflow, MLSys 2023",
    "graphopt_agents.rewrite:Trainer",
    ("RewriteOrder-v0",),
    cluster="t4",
)
GANG = Agent(
    "gang",
    "a scorer of the gangs that may start, which fits any program and machine",
    "ours; PPO: Schulman et al., arXiv:1707.06347, 2017",
    "graphopt_agents.gang:Trainer",
    ("GangScheduling-v0",),
    cluster="pathways_b_4hosts",
)
