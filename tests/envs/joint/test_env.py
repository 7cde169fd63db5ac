"""The joint environments: rewards sum up, blocks of an action are told apart, SB3 trains."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

import graphopt_gym as gg

SMALL = {"graph": "transformer_xl_2layer", "cluster": "v100x2"}


@pytest.mark.parametrize("start", ["default", "plain"])
def test_rewards__sum_to_the_gain_over_the_start(start):
    env = gym.make("GraphOptimization-v0", **SMALL, start=start)
    problem = gg.make_problem("GraphOptimization-v0", **SMALL)
    _, info = env.reset(seed=0)
    instance = env.unwrapped.episodes.instance(0)
    begin, rng, total = np.sqrt(problem.costs(instance.start(start)[None])[0][0]), np.random.default_rng(1), 0.0
    for step in range(info["ops"]):
        allowed = np.flatnonzero(env.unwrapped.action_masks())
        assert len(allowed) == instance.choices[step]
        _, reward, ended, _, last = env.step(int(rng.choice(allowed)))
        total += reward
        assert ended == (step == info["ops"] - 1)
    decision = last["decision"][: problem.decision_shape[0]]
    assert last["cost"] == problem.costs(decision[None])[0][0]
    assert total == pytest.approx(begin - np.sqrt(last["cost"]), abs=1e-12)


def test_step__a_device_that_is_not_there_changes_nothing():
    env = gym.make("GraphOptimization-v0", **SMALL)
    env.reset(seed=0)
    _, reward, _, _, info = env.unwrapped.step(2)
    assert info["illegal_action"]
    assert reward == 0


def test_observation__shows_the_device_and_what_is_around():
    env = gym.make("GraphOptimization-v0", **SMALL)
    observation, _ = env.reset(seed=0)
    problem = env.unwrapped.problem
    shown = env.unwrapped.unflatten(observation)
    assert shown["task"].tolist() == [1, 0, 0]
    assert shown["here"].argmax() == problem.default.placement[0]
    observation, *_ = env.step(1)
    observation, *_ = env.step(0)
    assert env.unwrapped.unflatten(observation)["around"].sum() == pytest.approx(1)


def test_one_shot__reward_is_that_of_the_decision():
    env = gym.make("GraphOptimizationOneShot-v0", **SMALL, max_ops=250, max_groups=50)
    problem = gg.make_problem("GraphOptimization-v0", **SMALL)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    blocks = [rng.integers(0, most, size) for most, size in ((2, 50), (16, 250), (16, 250))]
    _, reward, ended, _, last = env.step(np.concatenate(blocks))
    expected = np.concatenate(
        [block[:size] for block, size in zip(blocks, (problem.num_groups, problem.num_tasks, problem.num_tasks))]
    )
    assert ended
    assert last["decision"].tolist() == expected.tolist()
    assert reward == -np.sqrt(problem.evaluate(expected).cost)
    masks = env.unwrapped.action_masks()
    assert masks.shape == (50 * 2 + 2 * 250 * 16,)
    padded = (50 - problem.num_groups) + 2 * (250 - problem.num_tasks)
    assert masks.sum() == padded + 2 * problem.num_groups + 2 * 16 * problem.num_tasks


def test_ppo__trains():
    pytest.importorskip("stable_baselines3")
    contrib = pytest.importorskip("sb3_contrib")
    from graphopt_gym.wrappers import SB3VecEnv

    env = SB3VecEnv(gym.make_vec("GraphOptimization-v0", num_envs=4, autoreset_mode="SameStep", **SMALL))
    model = contrib.MaskablePPO("MultiInputPolicy", env, n_steps=48, batch_size=96, n_epochs=1, seed=0)
    model.learn(400)
    assert model.num_timesteps >= 400
