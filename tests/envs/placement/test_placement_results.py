"""The stored runs of the placement experiment, evaluated again from their decisions."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from experiments.runner import load
from experiments.runner.page import render
from experiments.runner.runs import stored_runs

from graphopt_gym.data import data_path
from graphopt_gym.envs.placement.problem import PlacementProblem
from graphopt_gym.graphs.zoo.registry import SPLITS, ZOO
from tests.stored_costs import is_refused, of_today, same_but_costs

RUNS = json.loads(gzip.decompress(data_path("placement", "runs.json.gz").read_bytes()))


@pytest.mark.parametrize("graph", SPLITS["papers"])
def test_stored_runs__cost_what_they_say__or_are_refused(graph, tmp_path):
    problem = PlacementProblem(graph, ZOO[graph].cluster)
    runs = [run for run in RUNS if run["graph"] == graph]
    assert {run["name"] for run in runs} >= {"gdp", "annealing", "expert", "metis"}
    for run in runs:
        same_but_costs(run, problem)
        outcome = problem.evaluate(run["decision"])
        if of_today(run, problem):
            assert outcome.valid == run["valid"], run["name"]
            assert (outcome.cost if outcome.valid else None) == run["cost"], run["name"]
        if run["valid"]:
            costs = [cost for _, _, cost in run["history"]]
            assert costs == sorted(costs, reverse=True)
            assert costs[-1] == run["cost"]
    if not of_today(runs[0], problem):
        is_refused(runs[0], problem, problem.check(runs[0]["decision"]), tmp_path)


def test_document__says_what_the_stored_runs_say():
    root = data_path().parent
    folder = root / "scripts" / "experiments"
    written = (root / "docs" / "placement.md").read_text(encoding="utf-8")
    summary = load(folder, "placement").summary(stored_runs(data_path("placement")), Path("none"))
    assert render(folder, "placement", summary) == written
