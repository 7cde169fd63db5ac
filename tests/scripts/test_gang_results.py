"""The stored experiment on gang scheduling: its page, its decisions and what rests on no search, made again."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from experiments import gang_parts
from experiments.runner import load
from experiments.runner.page import render
from experiments.runner.runs import stored_runs

from graphopt_gym.data import data_path

FOLDER = data_path().parent / "scripts" / "experiments"
GANG = load(FOLDER, "gang")
RUNS = json.loads(gzip.decompress(data_path("gang", "runs.json.gz").read_bytes()))
SUMMARY = json.loads(data_path("gang", "summary.json").read_text("utf-8"))


def test_runs__are_of_all_workloads_with_three_seeds_of_each_search():
    seeds = {}
    for run in RUNS:
        seeds.setdefault((run["graph"], run["name"]), set()).add(run["seed"])
    for graph in GANG.graphs:
        for name, entry in GANG.entries.items():
            if graph in (entry.graphs or GANG.graphs):
                assert len(seeds[graph, name]) == (3 if GANG.is_random(name) else 1), (graph, name)


@pytest.mark.parametrize("case", GANG.graphs)
def test_runs__cost_what_they_say_within_their_budget(case):
    problem = GANG.problem(case)
    runs = [run for run in RUNS if run["graph"] == case]
    for run in runs:
        assert run["fingerprints"] == problem.fingerprints()
        assert run["evaluations"] <= GANG.budget
    costs, valid = problem.costs(decisions_of(problem, runs))
    assert valid.all()
    assert costs.tolist() == [run["cost"] for run in runs]
    row = next(row for row in SUMMARY["rows"] if row["graph"] == case)
    assert row["best_known"] == costs.min() >= row["bound"] * (1 - 1e-9)


def decisions_of(problem, runs):
    return np.stack([problem.check(run["decision"]) for run in runs])


def test_page__says_what_is_stored():
    assert GANG.summary(stored_runs(data_path("gang")), Path("none")) == SUMMARY
    assert render(FOLDER, "gang", SUMMARY) == (data_path().parent / "docs" / "gang.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("part", ["paper", "staged", "tenancy"])
def test_parts__are_the_same_again(part):
    same(gang_parts.PARTS[part](), SUMMARY["parts"][part])


def same(made, stored):
    if isinstance(made, dict):
        assert made.keys() == stored.keys()
        made, stored = list(made.values()), list(stored.values())
    if isinstance(made, list | tuple):
        assert len(made) == len(stored)
        for one, other in zip(made, stored, strict=True):
            same(one, other)
    elif isinstance(made, float):
        assert made == pytest.approx(stored, rel=1e-6, abs=1e-7)
    else:
        assert made == stored


def test_tenants__get_their_shares_and_one_client_leaves_cores_idle():
    tenancy = SUMMARY["parts"]["tenancy"]
    busy = {row["clients"]: row["busy"] for row in tenancy["busy"]}
    assert busy[1] < 0.6
    assert all(share > 0.97 for clients, share in busy.items() if clients > 1)
    assert all(row["got"] == pytest.approx(row["due"], rel=0.02) for four in tenancy["shares"] for row in four)


def test_searches__are_ahead_of_first_come_and_of_the_orders_of_pipelines():
    for row in SUMMARY["rows"]:
        assert row["best_known"] < 0.98 * row["fifo"]
        for name in ("gpipe", "1f1b"):
            assert row[name] is None or row["best_known"] < 0.98 * row[name]
