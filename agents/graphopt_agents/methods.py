"""The learned agents as methods of ``solve`` and ``compare``, found by the entry points of this package.

Nothing here imports torch; a method does so when it runs.
"""

from __future__ import annotations

import importlib

import numpy as np

from graphopt_gym.search.solve import Evaluator, Method


def _method(module: str, summary: str, source: str) -> Method:
    def run(evaluator: Evaluator, rng: np.random.Generator) -> None:
        importlib.import_module(f"graphopt_agents.{module}").method_run()(evaluator, rng)

    name = module.removeprefix("train_")
    return Method(name, run, summary, source, random=True)


GDP_PAPER = "Zhou et al., GDP, arXiv:1910.01578, 2019"
gdp = _method("train_gdp", "GDP's graph network, trained on this graph alone until the budget is spent", GDP_PAPER)
gdp_search = _method("gdp_search", "GDP for a quarter of the budget, then annealing with the policy's moves", GDP_PAPER)
hdp = _method(
    "hdp",
    "HDP's grouper and placer, trained on this graph alone until the budget is spent",
    "Mirhoseini et al., ICLR 2018",
)
