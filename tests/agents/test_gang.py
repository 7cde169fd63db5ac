"""The agent of gang scheduling: its scorer, CMA-ES, the trainer, the methods."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from graphopt_agents import gang as agent
from graphopt_agents.gang import Evolution
from graphopt_agents.methods import gang_rl
from graphopt_agents.networks.gang import SIZES, GangConfig, GangNetwork

import graphopt_gym as gg
from graphopt_gym.envs.gang.episodes import STEP
from graphopt_gym.envs.gang.instances import GANG_FEATURES
from graphopt_gym.errors import InputError
from graphopt_gym.search.solve import solve

SMALL = {"graphs": ("toy_tenants", "toy_pipeline"), "clusters": ("toy_islands",), "episodes": 6}

pytestmark = pytest.mark.usefixtures("one_thread")


def problem(graph="toy_tenants"):
    return gg.make_problem("GangScheduling-v0", graph=graph, cluster="toy_islands", place=False)


def network(seed=None):
    made = GangNetwork(GangConfig())
    if seed is not None:
        weights = np.random.default_rng(seed).normal(size=sum(SIZES.values()))
        with torch.no_grad():
            made.weights.copy_(torch.from_numpy(weights))
    return made


def several_ready():
    """(observations, masks) of a step of one environment at which several gangs may start."""
    env = gym.make("GangScheduling-v0", graph="tenants_crossing", cluster="pathways_b_4hosts", place=False).unwrapped
    env.reset(seed=0)
    while env.action_masks()[:32].sum() < 3:
        env.step(int(np.flatnonzero(env.action_masks())[-1]))
    rows = np.array([0])
    return env.episodes.observe(rows), env.episodes.masks(rows)


def test_scores__of_gangs_go_with_them_whatever_their_order():
    observations, masks = several_ready()
    count = int(masks[0, :32].sum())
    policy = network(seed=1)
    logits = policy(policy.inputs(observations, masks))[0][0].detach().numpy()
    order = np.random.default_rng(0).permutation(count)
    gangs = observations["gangs"].reshape(1, -1, len(GANG_FEATURES)).copy()
    gangs[0, :count] = gangs[0, order]
    moved = policy(policy.inputs(observations | {"gangs": gangs.reshape(1, -1)}, masks))[0][0].detach().numpy()
    np.testing.assert_allclose(moved[:count], logits[order], rtol=1e-6)
    assert moved[32] == pytest.approx(logits[32])
    assert len(set(logits[:count].tolist())) > 1
    assert (logits[~masks[0]] == np.finfo(np.float32).min).all()


def test_untrained__takes_the_earliest_gang_and_strays():
    observations, masks = several_ready()
    policy = network()
    logits = policy(policy.inputs(observations, masks))[0][0]
    assert int(logits.argmax()) == 0
    drawn = network(seed=1).drawn(4000, np.random.default_rng(0)) - network(seed=1).weights.detach().numpy()
    spread = [drawn[first::4].std() for first in range(4)]
    np.testing.assert_allclose(np.array(spread) / spread[0], [1, 2, 4, 8], rtol=0.05)
    assert {part.name for part in STEP} >= {"gangs", "plans", "positions", "islands", "progress", "phase"}


@pytest.mark.parametrize("shape", ["sphere", "ellipsoid"])
def test_evolution__finds_the_optimum_of_a_quadratic(shape):
    scale = np.ones(8) if shape == "sphere" else np.logspace(0, 2, 8)
    goal, rng = np.linspace(-1, 1, 8), np.random.default_rng(0)
    search = Evolution(np.zeros(8), 0.5, 12)
    for _ in range(250):
        candidates = search.ask(rng)
        search.tell(candidates, (scale * (candidates - goal) ** 2).sum(axis=1))
    np.testing.assert_allclose(search.mean, goal, atol=1e-4)


def test_train__goes_on_exactly_and_its_decisions_are_valid(tmp_path):
    args = agent.Trainer.args_from({**SMALL, "updates": 4})
    whole = agent.Trainer.train(args, tmp_path / "whole")
    agent.Trainer.train(agent.Trainer.args_from({**SMALL, "updates": 2}), tmp_path / "parts")
    parts = agent.Trainer.train(args, tmp_path / "parts", resume=True)
    assert torch.equal(whole.network.weights, parts.network.weights)
    assert [row["mean_cost"] for row in whole.curve] == [row["mean_cost"] for row in parts.curve]
    assert whole.evaluations == 4 * 2 * 6
    for solution in whole.solutions():
        assert solution.outcome.valid
        assert solution.problem.evaluate(solution.decision).cost == solution.outcome.cost
    found = agent.Trainer.evaluate(tmp_path / "whole", "tenants_even", "pathways_b_4hosts", samples=3)
    assert found.outcome.valid
    assert found.evaluations == 3


def test_method__spends_its_budget_and_is_no_worse_than_the_earliest_gang():
    first = gg.solve(problem(), "fifo").outcome.cost
    found = solve(problem(), gang_rl, budget=40, seed=0, options=None)
    assert found.outcome.valid
    assert 40 - 16 <= found.evaluations <= 40
    assert found.outcome.cost <= 1.02 * first


def test_place__chooses_slices_and_plans():
    args = agent.Trainer.args_from({**SMALL, "place": True, "updates": 1})
    trainer = agent.Trainer.train(args)
    assert all(task.best_valid for task in trainer.tasks)
    assert {one.problem.place for one in trainer.tasks} == {True}


@pytest.mark.parametrize(("field", "value"), [("episodes", 2), ("step", 0.0), ("objective", "steps")])
def test_arguments__are_checked(field, value):
    with pytest.raises(InputError, match=field):
        agent.Trainer.make_tasks(agent.Trainer.args_from({**SMALL, field: value}))
