"""The stored runs of the experiments on placement and on joint decisions, evaluated again from their decisions."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from experiments.runner import load
from experiments.runner.page import render
from experiments.runner.runs import stored_runs

from graphopt_gym.data import data_path
from graphopt_gym.graphs.zoo.registry import SPLITS, own_cluster
from tests.stored_costs import is_refused, of_today, same_but_costs

FOLDER = data_path().parent / "scripts" / "experiments"
EXPERIMENTS = {
    "placement": {"annealing", "expert", "metis"},
    "placement-transfer": {"gdp", "expert", "gdp_zero"},
    "joint": {"annealing", "default", "heuristics"},
    "placer": {"annealing", "expert", "placer_search"},
}


def runs_of(name):
    room = load(FOLDER, name).room
    return json.loads(gzip.decompress(data_path(room, "runs.json.gz").read_bytes()))


RUNS = {name: runs_of(name) for name in EXPERIMENTS}
CASES = [(name, case) for name, runs in RUNS.items() for case in dict.fromkeys(run["graph"] for run in runs)]


def test_stored_runs__are_of_all_graphs():
    for name, runs in RUNS.items():
        graphs = {run["graph"] for run in runs}
        assert graphs >= set(load(FOLDER, name).graphs), name
        assert name == "joint" or graphs >= set(SPLITS["papers"])


@pytest.mark.parametrize(("name", "case"), CASES)
def test_stored_runs__cost_what_they_say__or_are_refused(name, case, tmp_path):
    problem = load(FOLDER, name).problem(case)
    assert problem.cluster.name == (case.partition("@")[2] or own_cluster(problem.graph.name))
    runs = [run for run in RUNS[name] if run["graph"] == case]
    assert {run["name"] for run in runs} >= EXPERIMENTS[name]
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


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_document__says_what_the_stored_runs_say(name):
    room = load(FOLDER, name).room
    written = (data_path().parent / "docs" / f"{room}.md").read_text(encoding="utf-8")
    summary = load(FOLDER, name).summary(stored_runs(data_path(room)), Path("none"))
    assert render(FOLDER, name, summary) == written
