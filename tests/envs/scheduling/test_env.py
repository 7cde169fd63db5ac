"""The scheduling environments: rewards sum up, the vector form agrees, graphs are drawn, SB3 trains."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

import graphopt_gym as gg
from graphopt_gym.envs.scheduling import methods
from graphopt_gym.errors import InputError

SMALL = {"graph": "transformer_xl_2layer", "cluster": "v100x2"}
DRAWN = {"graph": "random:num_ops=64-128", "cluster": "random:devices=2-3", "placement": "single"}


@pytest.mark.parametrize("start", ["program", "fifo", "depth_first"])
@pytest.mark.parametrize("objective", ["step", "memory"])
def test_rewards__sum_to_the_gain_over_the_start(start, objective):
    env = gym.make("Scheduling-v0", **SMALL, start=start, objective=objective)
    problem = gg.make_problem("Scheduling-v0", **SMALL, levels=16, objective=objective)
    unit = 1.0 if objective == "step" else 2.0**30
    _, info = env.reset(seed=0)
    rng, total = np.random.default_rng(1), 0.0
    begin = np.sqrt(gg.solve(problem, start).outcome.cost / unit)
    for step in range(info["ops"]):
        _, reward, ended, _, last = env.step(int(rng.integers(16)))
        total += reward
        assert ended == (step == info["ops"] - 1)
    outcome = problem.evaluate(last["decision"][: problem.num_tasks])
    assert last["cost"] == outcome.cost
    assert total == pytest.approx(begin - np.sqrt(outcome.cost / unit), abs=1e-12)


def test_start__program_is_captured_order_at_any_number_of_levels():
    problem = gg.make_problem("Scheduling-v0", **SMALL, levels=2)
    decision = methods.decision_of(problem, "program")
    assert len(set(decision.tolist())) == 1
    priority = methods.program(problem.simulator, problem.placement)
    assert problem.evaluate(decision).cost == problem.simulator.cost(problem.placement, priority)[0]


@pytest.mark.parametrize("objective", ["step", "memory"])
def test_one_shot__reward_is_that_of_the_decision(objective):
    env = gym.make("SchedulingOneShot-v0", **SMALL, max_ops=250, objective=objective)
    problem = gg.make_problem("Scheduling-v0", **SMALL, levels=16, objective=objective)
    _, info = env.reset(seed=0)
    action = np.random.default_rng(0).integers(0, 16, 250)
    _, reward, ended, _, last = env.step(action)
    expected = methods.decision_of(problem, "program")
    expected[~problem.simulator.tasks.is_source] = action[: info["ops"]]
    assert ended
    assert last["decision"][: problem.num_tasks].tolist() == expected.tolist()
    assert reward == -np.sqrt(problem.evaluate(expected).cost / (1.0 if objective == "step" else 2.0**30))
    assert env.unwrapped.action_masks().shape == (250 * 16,)
    assert env.unwrapped.action_masks().reshape(250, 16)[info["ops"] :].sum() == 250 - info["ops"]


def test_one_shot__an_invalid_decision_is_worth_the_least():
    env = gym.make("SchedulingOneShot-v0", **SMALL, objective="memory", within=0.99)
    env.reset(seed=0)
    _, reward, _, _, info = env.step(np.zeros(env.action_space.shape, int))
    assert (reward, info["valid"]) == (-10.0, False)
    assert info["reasons"][0].startswith("too slow")


def test_vector__an_illegal_level_changes_nothing():
    env = gym.make("Scheduling-v0", **SMALL, levels=4)
    env.reset(seed=0)
    _, reward, _, _, info = env.unwrapped.step(3)
    vector = gym.make_vec("Scheduling-v0", num_envs=2, **{**SMALL, "levels": 4})
    vector.reset(seed=0)
    _, rewards, *_ = vector.step(np.array([3, 2]))
    assert rewards[0] == reward
    assert not info["illegal_action"]
    *_, info = env.unwrapped.step(4)
    assert info["illegal_action"]


@pytest.mark.parametrize("env_id", ["Scheduling-v0", "SchedulingOneShot-v0", "Fusion-v0", "FusionOneShot-v0"])
def test_drawn__graphs_and_clusters(env_id):
    many = gym.make_vec(env_id, num_envs=3, **DRAWN)
    each = gym.vector.SyncVectorEnv([lambda: gym.make(env_id, **DRAWN)] * 3)
    (ours, info), (theirs, other) = many.reset(seed=5), each.reset(seed=5)
    assert list(info["graph"]) == list(other["graph"])
    assert len(set(info["graph"])) == 3
    many.action_space.seed(0)
    ends = 0
    for _ in range(200):
        assert many.observation_space.contains(ours)
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])
        action = many.action_space.sample()
        ours, reward, ended, _, _ = many.step(action)
        theirs, wanted, done, _, _ = each.step(action)
        np.testing.assert_array_equal(reward, wanted)
        np.testing.assert_array_equal(ended, done)
        ends += ended.sum()
    assert ends > 3


def test_drawn__a_problem_is_that_of_the_episode():
    env = gym.make("Scheduling-v0", **DRAWN).unwrapped
    names = set()
    for seed in range(4):
        _, info = env.reset(seed=seed)
        assert env.problem.graph_name == info["graph"]
        names.add(info["graph"])
        again = gg.make_problem("Scheduling-v0", **env.problem.config)
        assert again.fingerprints() == env.problem.fingerprints()
    assert len(names) > 1


def test_drawn__what_does_not_fit_is_drawn_again():
    from graphopt_gym.envs.core.placed import UnfitError

    drawn = "random:num_ops=1000-4000"
    env = gym.make("SchedulingOneShot-v0", graph=drawn, cluster="v100x2").unwrapped
    alone = f"{drawn}:seed=2881021352"  # 25 GiB on one of the devices
    with pytest.raises(UnfitError, match="finds nothing valid"):
        gg.make_problem("Scheduling-v0", graph=alone, cluster="v100x2")
    with pytest.raises(UnfitError, match="finds nothing valid"):
        env.reset(options={"graph": alone})
    names = [env.reset(seed=seed)[1]["graph"] for seed in range(60)]
    assert alone not in names
    assert names == [env.reset(seed=seed)[1]["graph"] for seed in range(60)]


def test_arguments__bad_ones_are_refused_in_one_line():
    for arguments, said in (
        ({"start": "fifi"}, "did you mean 'fifo'"),
        ({"objektive": "step"}, "did you mean 'objective'"),
        ({"levels": 1}, "levels is 1"),
        ({**DRAWN, "levels": "many"}, "levels"),
        ({"max_ops": 3}, "max_ops is 3"),
        ({"reward": "none"}, "unknown reward 'none'"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            gym.make("Scheduling-v0", **{**SMALL, **arguments})
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("objective", ["step", "memory"])
def test_ppo__trains(objective):
    stable_baselines3 = pytest.importorskip("stable_baselines3")
    from graphopt_gym.wrappers import SB3VecEnv

    env = SB3VecEnv(gym.make_vec("Scheduling-v0", num_envs=4, autoreset_mode="SameStep", **SMALL, objective=objective))
    model = stable_baselines3.PPO("MultiInputPolicy", env, n_steps=48, batch_size=96, n_epochs=1, seed=0)
    model.learn(400)
    assert model.num_timesteps >= 400
