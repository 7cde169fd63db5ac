"""PPO and MaskablePPO on any environment: they learn, repeat, go on exactly, and refuse what they cannot do."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")

from graphopt_agents.core import checkpoints
from graphopt_agents.ppo import TRAINERS, Args, MaskableTrainer, Trainer

from graphopt_gym.errors import InputError
from graphopt_gym.graphs.generators import chain, layered_dag
from graphopt_gym.graphs.io import save_graph
from graphopt_gym.registration import env_ids
from graphopt_gym.solutions import validate
from tests.agents.test_gdp import assert_same
from tests.commands import only_json

SMALL: dict[str, dict[str, Any]] = {
    "Placement-v0": {},
    "PlacementOneShot-v0": {},
    "ChipletPartition-v0": {"graph": "bert_tiny_b16", "cluster": "mcm4"},
    "RewriteOrder-v0": {"graph": "small_fire", "environment": {"max_steps": 8, "max_matches": 40}},
    "Fusion-v0": {},
    "FusionOneShot-v0": {},
    "GraphOptimization-v0": {},
    "GraphOptimizationOneShot-v0": {},
    "Scheduling-v0": {},
    "SchedulingOneShot-v0": {},
    "GangScheduling-v0": {"graph": "toy_tenants", "cluster": "toy_islands"},
    "GangSchedulingOneShot-v0": {"graph": "toy_tenants", "cluster": "toy_islands"},
    "ArchitectureSearch-v0": {
        "graph": "nasbench201",
        "cluster": "t4",
        "environment": {"track": "table", "objective": "flops", "max_steps": 6},
    },
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A graph of 20 groups, by path."""
    path = tmp_path_factory.mktemp("graphs") / "small.npz"
    save_graph(layered_dag(60, seed=4, colocated=0.9, phases=True), path)
    return str(path)


def arguments(graph, **changes):
    return Args(
        **({"graph": graph, "cluster": "v100x2", "steps": 1000, "num_envs": 4, "epochs": 2, "width": 16} | changes)
    )


@pytest.mark.parametrize("agent", TRAINERS)
def test_train__beats_random_placements(tmp_path, agent):
    path = tmp_path / "chain.npz"
    save_graph(chain(16, flops=10**8, output_bytes=10**9), path)
    args = Args(
        graph=str(path),
        cluster="v100x2",
        environment={"grouping": "op", "max_devices": 4},
        steps=6000,
        num_envs=16,
        minibatches=4,
        learning_rate=3e-3,
    )
    result = TRAINERS[agent].train(args)
    (task,), solution = result.tasks, result.solution()
    rng = np.random.default_rng(0)
    random_costs, _ = task.problem.costs(np.stack([task.problem.sample(rng) for _ in range(500)]))
    assert random_costs.mean() > random_costs.min() > result.curve[-1]["mean_cost"]
    assert solution.outcome.cost == task.problem.costs(np.zeros((1, 16), int))[0][0]  # a chain belongs on one device
    assert solution.outcome.cost == task.problem.evaluate(solution.decision).cost
    assert solution.outcome.cost <= min(row["best_cost"] for row in result.curve)


def test_train__repeats_with_its_seed(small):
    def costs(seed):
        torch.rand(2), np.random.rand(2)  # what others have drawn does not matter
        return [row["mean_cost"] for row in Trainer.train(arguments(small, seed=seed)).curve]

    assert costs(1) == costs(1) != costs(2)
    np.random.seed(3)
    torch.manual_seed(3)
    drawn = np.random.rand(), torch.rand(1)
    np.random.seed(3)
    torch.manual_seed(3)
    Trainer.train(arguments(small, steps=100))
    assert (np.random.rand(), torch.rand(1)) == drawn  # nor does it change what they draw


def run_cases():
    for env_id in env_ids():
        for agent in TRAINERS:
            yield env_id, {}, agent
    for agent in TRAINERS:
        yield "ChipletPartition-v0", {"mode": "step"}, agent
        yield "PlacementOneShot-v0", {"max_devices": 3}, agent
        yield "Placement-v0", {"start": "random"}, agent
    yield "ChipletPartition-v0", {"mode": "sample"}, "ppo"


@pytest.mark.parametrize(("env_id", "more", "agent"), run_cases())
def test_train__on_every_environment_and_goes_on_exactly(small, tmp_path, env_id, more, agent):
    given = {"graph": small, "cluster": "v100x2", "num_envs": 3, "epochs": 2, "width": 8, **SMALL[env_id]}
    if env_id == "RewriteOrder-v0":
        given["cluster"] = "t4"
    given["environment"] = {**given.get("environment", {}), **more}
    trainer = TRAINERS[agent]
    longest = trainer.make_tasks(Args(env=env_id, **given))[0].envs.get_attr("episodes")[0].longest
    args = Args(env=env_id, **given, steps=4 * 3 * longest, checkpoint_every=1)
    whole = trainer.train(args, tmp_path / "whole")
    stopped = []

    def interrupt(row):
        stopped.append(row["update"])
        if row["update"] == 2:
            os.kill(os.getpid(), signal.SIGTERM if agent == "ppo" else signal.SIGINT)

    assert trainer.train(args, tmp_path / "parts", progress=interrupt).interrupted
    torch.rand(3), np.random.rand(3)
    parts = trainer.train(args, tmp_path / "parts", resume=True)
    assert (stopped, parts.updates, parts.done, whole.done) == ([1, 2], 4, args.steps, args.steps)
    states = []
    for name in ("whole", "parts"):
        state = checkpoints.load_checkpoint(tmp_path / name, agent).state
        curve = [{key: row[key] for key in row if key != "wall_s"} for row in json.loads(state.pop("curve"))]
        state.pop("wall_s")
        for task in state["tasks"].values():
            task["improved"] = [(row[0], row[2]) for row in task["improved"]]
        states.append((state, curve))
    assert_same(*states)
    solution = parts.solution()
    assert solution.problem.evaluate(solution.decision).valid == solution.outcome.valid
    if solution.outcome.valid:
        assert solution.outcome.cost == parts.curve[-1]["best_cost"]
    (path,) = (tmp_path / "parts").glob("solution_*.json")
    assert validate(path).mismatches == ()
    likeliest = trainer.evaluate(tmp_path / "parts")
    assert likeliest.problem.fingerprints() == solution.problem.fingerprints()
    assert likeliest.outcome.cost == likeliest.problem.evaluate(likeliest.decision).cost


def test_evaluate__places_another_graph_on_a_smaller_cluster(small, tmp_path):
    out = tmp_path / "run"
    MaskableTrainer.train(arguments(small, cluster="v100x4"), out)
    solution = MaskableTrainer.evaluate(out, graph="rnnlm_2layer", cluster="p100x2")
    assert solution.problem.graph.name == "rnnlm_2layer"
    assert set(solution.decision.tolist()) <= {0, 1}
    with pytest.raises(InputError, match="trained with max_devices=4, not 8, which"):
        MaskableTrainer.evaluate(out, cluster="v100x8")


def test_scale__brings_returns_to_one(small):
    envs = Trainer.make_envs(arguments(small, num_envs=32))
    envs.reset()
    returns, rng = np.zeros(32), np.random.default_rng(0)
    for _ in range(envs.get_attr("episodes")[0].longest):
        _, rewards, _, _ = envs.step(rng.integers(0, 2, 32))
        returns += rewards
    assert 0.2 < np.sqrt(np.mean(returns**2)) < 5
    assert envs.scale > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0; give a whole number, at least 1"),
        ({"seed": -1}, "seed is -1; give a whole number, at least 0"),
        ({"seed": 2**64}, "seed is 18446744073709551616; give a whole number, at least 0 and at most"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; give a finite number"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; give a number above 0"),
        ({"gamma": 5}, "gamma is 5; give a number from 0 to 1"),
        ({"gae_lambda": -0.1}, "gae_lambda is -0.1; give a number from 0 to 1"),
        ({"clip_range": -1}, "clip_range is -1; give a number above 0"),
        ({"entropy": float("inf")}, "entropy is inf; give a finite number"),
        ({"num_envs": 2.5}, "num_envs is 2.5; give a whole number, at least 1"),
        ({"env": "Placemnt-v0"}, "unknown environment 'Placemnt-v0'; did you mean 'Placement-v0'"),
        ({"graph": "bert_bsae"}, "unknown graph 'bert_bsae'; did you mean 'bert_base'"),
        ({"graph": "inference_test"}, "ppo trains on one graph on one cluster, not"),
        ({"env": "PlacementOneShot-v0", "num_envs": 1}, "an episode has one step; give at least 2"),
    ],
)
def test_train__refuses_bad_arguments(small, changes, message):
    with pytest.raises(InputError, match=message) as error:
        Trainer.train(arguments(**({"graph": small} | changes)))
    assert "\n" not in str(error.value)


def test_train__refuses_folders_and_damaged_checkpoints(small, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot "):
        Trainer.train(arguments(small), tmp_path / "file" / "run")
    out = tmp_path / "run"
    Trainer.train(arguments(small, steps=100), out)
    with pytest.raises(InputError, match="already holds a run"):
        Trainer.train(arguments(small), out)
    with pytest.raises(InputError, match="already holds another run, with width=16, not 8"):
        Trainer.train(arguments(small, width=8), out, resume=True)
    with pytest.raises(InputError, match="is of agent 'ppo', not 'maskable_ppo'"):
        MaskableTrainer.train(arguments(small), out, resume=True)
    with checkpoints.held_folder(out, resume=True), pytest.raises(InputError, match="another process is training into"):
        Trainer.train(arguments(small), out, resume=True)
    kept = checkpoints.load_checkpoint(out)
    for args, state in (
        ({**kept.args, "width": 10**12}, kept.state),
        ({**kept.args, "width": 8}, kept.state),
        (kept.args, {**kept.state, "network": {}}),
        (kept.args, {**kept.state, "network": {"weight": "text"}}),
    ):
        path = checkpoints.save_checkpoint(tmp_path / "changed.pt", "ppo", args, state)
        with pytest.raises(InputError, match="another network") as error:
            Trainer.evaluate(path)
        assert "\n" not in str(error.value)
    (out / "checkpoint.pt").write_bytes(b"damaged")
    with pytest.raises(InputError, match="damaged"):
        Trainer.train(arguments(small), out, resume=True)


def test_command__takes_any_environment_and_its_arguments(graphopt, tmp_path):
    run = tmp_path / "run"
    settings = ["--set=num_envs=2", "--set=max_steps=5", "--set=max_matches=20", "--set=width=8"]
    code, out, err = graphopt(
        "train", "maskable_ppo", "--env", "RewriteOrder-v0", "-g", "small_fire", *settings, "--steps", 20, "-o", run
    )
    assert code == 0, err
    assert "20 of 20 steps: mean inference time " in err
    assert "maskable_ppo: small_fire on t4" in out
    code, out, err = graphopt("train", "maskable_ppo", "--out", run, "--resume", "--steps", 40, "--json")
    assert code == 0, err
    assert only_json(out)["rows" if "rows" in only_json(out) else "env"]
    code, out, err = graphopt("evaluate", run, "--json")
    assert code == 0, err
    assert only_json(out)["method"] == "maskable_ppo"
    for arguments, message in (
        (["train", "ppo", "--env", "Placement-v1"], "unknown environment 'Placement-v1'; did you mean 'Placement-v0'"),
        (["train", "ppo", "--set", "grupping=op"], "unknown argument of ppo 'grupping'; did you mean 'grouping'?"),
        (["train", "gdp", "--env", "RewriteOrder-v0"], "agents for RewriteOrder-v0: maskable_ppo, ppo, rewrite"),
        (
            ["train", "maskable_ppo", "--env", "ChipletPartition-v0", "--set", "mode=sample"],
            "maskable_ppo masks choices, and an action of ChipletPartition-v0 is numbers here; train ppo",
        ),
        (["train", "ppo", "--set", "learning_rate=NaN"], "learning_rate"),
        (["train", "ppo", "--set", "gamma=5"], "gamma is 5"),
        (["train", "ppo", "--seed", "-1"], "seed is -1"),
    ):
        code, out, err = graphopt(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert message in err


DRAWN = {"graph": "random:num_ops=64-96", "cluster": "random:devices=2-3", "num_envs": 4, "epochs": 2, "width": 16}


def test_train__on_drawn_graphs_learns_and_solves_a_fixed_set(tmp_path):
    args = Args(**{**DRAWN, "epochs": 4, "width": 32}, steps=6000, checkpoint_every=3, evaluated=4)
    result = Trainer.train(args, tmp_path / "run")
    rewards = np.array([row["mean_reward"] for row in result.curve])
    third = len(rewards) // 3
    assert rewards[-third:].mean() > 0.5 * rewards[:third].mean()  # they are negative: half of it is left, at most
    tried = [row["update"] for row in result.curve if row["evaluated_cost"] is not None]
    assert tried == sorted({1, *range(3, result.updates + 1, 3), result.updates})
    assert {row["graph"] for row in result.curve} == {DRAWN["graph"]}
    solutions = result.solutions()
    assert len({solution.problem.graph_name for solution in solutions}) == 4
    assert all(validate(path).ok for path in (tmp_path / "run").glob("solution_*.json"))
    other = Trainer.make_tasks(Args(**DRAWN, seed=5, evaluated=4))
    assert [task.name for task in other] == [task.name for task in result.tasks]  # whatever the run's seed is
    place = Trainer.evaluate(tmp_path / "run", graph="random:num_ops=80:seed=3", cluster="v100x2")
    assert place.problem.graph_name == "random:num_ops=80:seed=3"


def test_train__on_drawn_graphs_goes_on_exactly(tmp_path):
    args = Args(**DRAWN, steps=600, checkpoint_every=1, evaluated=2)
    whole = Trainer.train(args, tmp_path / "whole")

    def interrupt(row):
        if row["update"] == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    assert Trainer.train(args, tmp_path / "parts", progress=interrupt).interrupted
    parts = Trainer.train(args, tmp_path / "parts", resume=True)
    assert parts.updates == whole.updates > 1
    for mine, theirs in zip(parts.curve, whole.curve, strict=True):
        assert {**mine, "wall_s": 0} == {**theirs, "wall_s": 0}


def test_train__refuses_a_list_of_graphs():
    with pytest.raises(InputError, match="on one graph on one cluster, not 2; or on ever new ones"):
        Trainer.make_envs(Args(graph=["random:num_ops=64:seed=1", "random:num_ops=64:seed=2"], cluster="v100x2"))
