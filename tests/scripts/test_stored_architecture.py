"""Stored runs of architecture search: networks parse and are as large as they say; costs and the page follow."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from experiments.runner import load, module
from experiments.runner.page import render
from experiments.runner.runs import stored_runs

from graphopt_gym.data import data_path
from graphopt_gym.envs.architecture.program import parse_architecture
from graphopt_gym.envs.architecture.training import Trainer
from graphopt_gym.registration import make_problem

FOLDER = data_path().parent / "scripts" / "experiments"
ROOM = data_path("architecture")
EXPERIMENT = load(FOLDER, "architecture")
RUNS = stored_runs(ROOM)
ON_IMAGES = [job for job, run in RUNS.items() if "networks" in run]


def test_stored_runs__are_there():
    assert {job[1] for job in ON_IMAGES} >= {"alpha_nas", "width_scaling"}
    texts = json.loads(gzip.decompress((ROOM / "networks.json.gz").read_bytes()))
    assert set(texts) == {one["text"] for job in ON_IMAGES for one in RUNS[job]["networks"]}


@pytest.mark.parametrize("job", ON_IMAGES, ids=lambda job: "-".join(map(str, job)))
def test_stored_networks__are_what_they_say(job):
    run = RUNS[job]
    seed = EXPERIMENT.problem(job[0]).seed
    assert (run["seed_parameters"], run["seed_flops"]) == (seed.parameters, seed.flops)
    found = {}
    for one in run["networks"]:
        network = parse_architecture(one["text"])
        assert (network.parameters, network.flops) == (one["parameters"], one["flops"])
        assert network.ops[-1].shape == seed.ops[-1].shape
        found[network.fingerprint] = one
    assert len(found) == len(run["networks"])  # no twins
    if job[1] != "random":  # which does not look at the seed
        assert found[seed.fingerprint]["accuracy"] == run["seed_accuracy"]
    objective = EXPERIMENT.arguments(job[0])["objective"]
    costs = {
        "params": lambda one: one["parameters"] / seed.parameters,
        "flops": lambda one: one["flops"] / seed.flops,
        "error": lambda one: (1 - one["accuracy"]) / (1 - run["seed_accuracy"]),
    }
    good = [
        one for one in found.values()
        if not one["reason"] and (objective == "error" or one["accuracy"] >= run["seed_accuracy"])
    ]  # fmt: skip
    best = found[parse_architecture(run["decision"]).fingerprint]
    assert run["valid"]
    assert run["cost"] == pytest.approx(costs[objective](best)) == pytest.approx(min(map(costs[objective], good)))


def test_stored_accuracy__is_that_of_a_training(tmp_path):
    job = next(job for job in ON_IMAGES if job[0] == "cnn_8")
    problem = EXPERIMENT.problem("cnn_8")
    result = Trainer("digits", problem.recipe, cache=tmp_path).results([problem.seed])[0]
    # other versions of torch and other processors round differently
    assert result.accuracy == pytest.approx(RUNS[job]["seed_accuracy"], abs=0.03)


def test_stored_runs__on_the_table_are_looked_up_again():
    problem = EXPERIMENT.problem("nasbench201")
    jobs = [job for job in RUNS if job[0] == "nasbench201"]
    assert jobs
    for job in jobs:
        assert problem.evaluate(RUNS[job]["decision"]).cost == RUNS[job]["cost"]
        regret = RUNS[job]["regret"]
        assert all(len(values) == module(FOLDER, "architecture").TABLE_SEEDS for values in regret.values())
        assert min(regret["500"]) == pytest.approx(
            100 * (problem.table.best[1] - problem.quality(problem.check(RUNS[job]["decision"])).value), abs=1e-9
        )


def test_stored_times__are_those_of_the_cost_model():
    rows = [
        (one["case"], row) for one in json.loads((ROOM / "summary.json").read_text())["timed"] for row in one["rows"]
    ]
    devices = module(FOLDER, "architecture").DEVICES
    for case, row in rows:
        problem = make_problem(EXPERIMENT.env, graph=case, cluster=devices[row["device"]], objective="time")
        if problem.costs_version == row["costs_version"]:  # those of another version are to be made again
            assert problem.seconds(parse_architecture(row["text"])) == pytest.approx(row["best_s"], rel=1e-9)
            assert problem.seconds(problem.seed) == pytest.approx(row["seed_s"], rel=1e-9)
        assert row["best_s"] <= row["seed_s"]
        assert min(row["really_s"], row["seed_really_s"]) > 0


def test_document__says_what_the_stored_runs_say():
    summary = EXPERIMENT.summary(RUNS, Path("none"))
    written = (data_path().parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert render(FOLDER, "architecture", summary) == written
