"""The stored experiments of learning to schedule gangs: pages say what is stored, and decisions cost what they say."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from experiments.runner import load
from experiments.runner.page import render
from experiments.runner.runs import stored_runs
from graphopt_agents.core import checkpoints

from graphopt_gym.data import data_path

FOLDER = data_path().parent / "scripts" / "experiments"
DOCS = data_path().parent / "docs"
TRANSFER = load(FOLDER, "gang-transfer")
RUNS = stored_runs(data_path("gang_transfer"))


@pytest.mark.parametrize("case", TRANSFER.graphs)
def test_transfer__runs_cost_what_they_say_at_equal_decisions(case):
    problem = TRANSFER.problem(case)
    runs = [run for job, run in RUNS.items() if job[0] == case]
    assert {run["name"] for run in runs} == set(TRANSFER.entries)
    for run in runs:
        assert run["fingerprints"] == problem.fingerprints()
        assert run["evaluations"] <= (TRANSFER.entries[run["name"]].budget or TRANSFER.budget)
    costs, valid = problem.costs(np.stack([problem.check(run["decision"]) for run in runs]))
    assert valid.all()
    assert costs.tolist() == [run["cost"] for run in runs]


def test_transfer__page_says_what_is_stored():
    summary = TRANSFER.summary(RUNS, Path("none"))
    assert summary == json.loads(data_path("gang_transfer", "summary.json").read_text("utf-8"))
    assert render(FOLDER, "gang-transfer", summary) == (DOCS / "gang_transfer.md").read_text(encoding="utf-8")


def test_transfer__one_decision_of_the_learned_is_ahead_of_the_untrained():
    rows = json.loads(data_path("gang_transfer", "summary.json").read_text("utf-8"))["rows"]
    ratios = [row["learned_1"] / row["untrained_1"] for row in rows]
    assert np.exp(np.mean(np.log(ratios))) < 0.97


def test_learning__page_and_curves_say_what_is_stored():
    summary = json.loads(data_path("gang_learning", "summary.json").read_text("utf-8"))
    assert render(FOLDER, "gang-learning", summary) == (DOCS / "gang_learning.md").read_text(encoding="utf-8")
    with data_path("gang_learning", "curves.csv").open() as file:
        curves = list(csv.DictReader(file))
    assert len(summary["rows"]) == 3
    for row in summary["rows"]:
        assert row["fingerprints"] == load(FOLDER, "gang-learning").problem(row["graph"]).fingerprints()
        assert len(row["ppo_mean"]) == 3
        for seed, mean in enumerate(row["ppo_mean"]):
            mine = [one for one in curves if (one["graph"], one["seed"]) == (row["graph"], str(seed))]
            assert float(mine[-1]["mean_cost"]) == float(f"{mean:.6g}")
            assert mean < row["random_mean"]


def test_shipped__is_of_seed_0():
    kept = checkpoints.load_checkpoint("gang", "gang")
    assert kept.args["seed"] == 0
    assert kept.args["graphs"]
