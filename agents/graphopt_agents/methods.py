"""The learned agents as methods of ``solve`` and ``compare``, found by the entry points of this package.

Nothing here imports torch; a method does so when it runs.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from graphopt_gym.search.evaluator import Evaluator, Method


def _method(
    module: str, summary: str, source: str, name: str | None = None, make: str = "method_run", **arguments: Any
) -> Method:
    def run(evaluator: Evaluator, rng: np.random.Generator) -> None:
        getattr(importlib.import_module(f"graphopt_agents.{module}"), make)(**arguments)(evaluator, rng)

    return Method(name or module, run, summary, source, random=True, needs=("torch_geometric", "torch"))


GDP_PAPER = "Zhou et al., GDP, arXiv:1910.01578, 2019"
gdp = _method("gdp", "GDP's graph network, trained on this graph alone until the budget is spent", GDP_PAPER)
gdp_search = _method("gdp_search", "GDP for a quarter of the budget, then annealing with the policy's moves", GDP_PAPER)
hdp = _method(
    "hdp",
    "HDP's grouper and placer, trained on this graph alone until the budget is spent",
    "Mirhoseini et al., ICLR 2018",
)

placer = _method(
    "placer",
    "placements by the shipped scorers and by heuristics, those first that a plan likes",
    "ours",
    start_from="placer",
    search=False,
)
placer_search = _method(
    "placer",
    "the best of these, then a search whose moves the shipped ranker chooses by the simulated timeline",
    "ours",
    "placer_search",
    start_from="placer",
)

GO_PAPER = "Zhou et al., Transferable Graph Optimizers for ML Compilers, NeurIPS 2020"
go = _method("go", "GO's network, trained on this graph alone until the budget is spent", GO_PAPER)
go_search = _method(
    "go",
    "GO for a quarter of the budget, then annealing with the policy's moves",
    GO_PAPER,
    "go_search",
    "search_run",
)

MCM_PAPER = "after Xie et al., MLSys 2022"
rl = _method(
    "chiplet",
    "the policy of chiplet partition, trained on this graph alone until the budget is spent",
    MCM_PAPER,
    "rl",
)
rl_pretrained = _method(
    "chiplet",
    "the shipped policy of chiplet partition, fine-tuned on this graph until the budget is spent",
    MCM_PAPER,
    "rl_pretrained",
    start_from="chiplet",
)

XRLFLOW_PAPER = "after He et al., X-RLflow, MLSys 2023"
rewrite_rl = _method(
    "rewrite",
    "the policy of program rewriting, trained on this program alone until the budget is spent",
    XRLFLOW_PAPER,
    "rl",
    learning_rate=3e-3,
)
rewrite_rl_pretrained = _method(
    "rewrite",
    "the shipped policy of program rewriting, as it is and then fine-tuned on this program until the budget is spent",
    XRLFLOW_PAPER,
    "rl_pretrained",
    start_from="rewrite",
)

GANG_POLICY = "ours; PPO: Schulman et al., arXiv:1707.06347, 2017"
gang_rl = _method(
    "gang", "the policy of gang scheduling, trained on this workload alone until the budget is spent", GANG_POLICY, "rl"
)
gang_rl_pretrained = _method(
    "gang",
    "the shipped policy of gang scheduling, as it is and then fine-tuned on this workload until the budget is spent",
    GANG_POLICY,
    "rl_pretrained",
    start_from="gang",
)
