"""The stored runs of the chiplet experiment, evaluated again from their decisions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from experiments.runner import module
from experiments.runner.page import render
from experiments.runner.runs import stored_runs

from graphopt_gym.data import data_path
from graphopt_gym.envs.chiplet.bounds import lower_bound
from graphopt_gym.envs.chiplet.problem import ChipletProblem
from graphopt_gym.graphs.zoo.registry import SPLITS

ROOT = data_path().parent
FOLDER = ROOT / "scripts" / "experiments"
SCRIPT = module(FOLDER, "chiplet")
RUNS = stored_runs(data_path("chiplet"))


@pytest.mark.parametrize("graph", SCRIPT.GRAPHS)
def test_stored_runs__cost_what_they_say(graph):
    problem = ChipletProblem(graph, SCRIPT.PACKAGE)
    assert problem.costs_version == ""  # the rates of its chips are chosen: nothing here is fitted
    bound = lower_bound(problem)
    runs = [run for (g, _, _), run in RUNS.items() if g == graph]
    assert {run["name"] for run in runs} >= {"rl", "random", "annealing_random", "tuned", "contiguous"}
    for run in runs:
        assert run["fingerprints"] == problem.fingerprints(), run["name"]
        (cost,), (valid,) = problem.costs(problem.check(run["decision"])[None])
        assert valid == run["valid"], run["name"]
        assert (cost if valid else None) == run["cost"], run["name"]
        if run["valid"]:
            assert cost >= bound * (1 - 1e-12)
            costs = [one for _, _, one in run["history"]]
            assert costs == sorted(costs, reverse=True)
            assert costs[-1] == run["cost"]
    for run in runs:
        if run["name"] in ("rl", "tuned") and run["seed"] == 0:  # by the independent checker
            assert problem.evaluate(run["decision"]).valid == run["valid"]


def test_policy__never_saw_a_family_of_the_test_graphs():
    facts = json.loads(data_path("checkpoints", "chiplet.json").read_text(encoding="utf-8"))
    trained = set(facts["args"]["graphs"])
    assert trained == set(SPLITS["inference_train"])
    assert not trained & set(SCRIPT.GRAPHS)


def test_document__says_what_the_stored_runs_say():
    written = (ROOT / "docs" / "chiplet.md").read_text(encoding="utf-8")
    assert render(FOLDER, "chiplet", SCRIPT.EXPERIMENT.summary(RUNS, Path("none"))) == written
