"""The fusion environments: rewards sum up, the vector form agrees, SB3 trains."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

import graphopt_gym as gg

SMALL = {"graph": "transformer_xl_2layer", "cluster": "v100x2"}


@pytest.mark.parametrize("start", ["none", "greedy"])
def test_rewards__sum_to_the_gain_over_the_start(start):
    env = gym.make("Fusion-v0", **SMALL, start=start)
    problem = gg.make_problem("Fusion-v0", **SMALL)
    _, info = env.reset(seed=0)
    rng, total = np.random.default_rng(1), 0.0
    begin = np.sqrt(gg.solve(problem, start).outcome.cost)
    for step in range(info["ops"]):
        _, reward, ended, _, last = env.step(int(rng.integers(16)))
        total += reward
        assert ended == (step == info["ops"] - 1)
    decision = last["decision"][: problem.num_tasks]
    outcome = problem.evaluate(decision)
    assert last["cost"] == outcome.cost
    assert total == pytest.approx(begin - np.sqrt(outcome.cost), abs=1e-12)
    assert set(np.flatnonzero(decision > 1)) <= set(problem.producers)


def test_one_shot__reward_is_that_of_the_decision():
    env = gym.make("FusionOneShot-v0", **SMALL, max_ops=120)
    problem = gg.make_problem("Fusion-v0", **SMALL)
    _, info = env.reset(seed=0)
    action = np.random.default_rng(0).integers(0, 16, 120)
    _, reward, ended, _, last = env.step(action)
    expected = np.zeros(problem.num_tasks, np.int32)
    expected[problem.producers] = action[: info["ops"]]
    assert ended
    assert last["decision"][: problem.num_tasks].tolist() == expected.tolist()
    assert reward == -np.sqrt(problem.evaluate(expected).cost)
    assert env.unwrapped.action_masks().shape == (120 * 16,)
    assert env.unwrapped.action_masks().reshape(120, 16)[info["ops"] :].sum() == 120 - info["ops"]


def test_step__an_illegal_level_changes_nothing():
    env = gym.make("Fusion-v0", **SMALL, levels=4)
    env.reset(seed=0)
    _, reward, _, _, info = env.unwrapped.step(3)
    vector = gym.make_vec("Fusion-v0", num_envs=2, **{**SMALL, "levels": 4})
    vector.reset(seed=0)
    _, rewards, *_ = vector.step(np.array([3, 0]))
    assert rewards.tolist() == [reward, 0.0]
    assert not info["illegal_action"]


def test_ppo__trains():
    stable_baselines3 = pytest.importorskip("stable_baselines3")
    from graphopt_gym.wrappers import SB3VecEnv

    env = SB3VecEnv(gym.make_vec("Fusion-v0", num_envs=4, autoreset_mode="SameStep", **SMALL))
    model = stable_baselines3.PPO("MultiInputPolicy", env, n_steps=48, batch_size=96, n_epochs=1, seed=0)
    model.learn(400)
    assert model.num_timesteps >= 400
