"""The environments of gang scheduling: rewards sum up, choices are what they say, SB3 trains."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

import graphopt_gym as gg
from graphopt_gym.envs.gang.instances import GANG_FEATURES, PROGRESS_FEATURES
from graphopt_gym.simulator.gang import Builder, engine
from graphopt_gym.simulator.gang.workloads import workload_of

CASES = [
    {"graph": "toy_pipeline", "cluster": "toy_islands"},
    {"graph": "toy_tenants", "cluster": "toy_islands", "objective": "fairness"},
    {"graph": "toy_crowd", "cluster": "toy_islands", "objective": "throughput"},
    {"graph": "tenants_even", "cluster": "pathways_b_4hosts", "wait": False},
]


def play(env, choose, seed=0):
    """(sum of rewards, last info, actions) of an episode."""
    observation, _ = env.reset(seed=seed)
    total, taken = 0.0, []
    while True:
        taken.append(choose(env, observation))
        observation, reward, ended, _, info = env.step(taken[-1])
        total += reward
        if ended:
            return total, info, taken


def at_random(seed):
    rng = np.random.default_rng(seed)
    return lambda env, _: int(rng.choice(np.flatnonzero(env.action_masks())))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["graph"])
def test_rewards__sum_to_one_minus_the_relative_cost(case):
    env = gym.make("GangScheduling-v0", **case).unwrapped
    terminal = gym.make("GangScheduling-v0", **case, reward="terminal").unwrapped
    for seed in range(4):
        total, info, taken = play(env, at_random(seed))
        problem = env.problem
        outcome = problem.evaluate(info["decision"][: problem.decision_shape[0]])
        assert outcome.valid == info["valid"]
        if outcome.valid:
            assert info["cost"] == outcome.cost
            assert total == pytest.approx(1 - info["relative_cost"], abs=1e-9)
        else:
            assert total == pytest.approx(-9.0)
        steps = iter(taken)
        last, again, _ = play(terminal, lambda env, _: next(steps))  # noqa: B023
        assert again["cost"] == info["cost"]
        assert last == pytest.approx(total - 1.0, abs=1e-9)
        assert len(taken) <= env.episodes.longest


def test_the_earliest_gang__again_and_again_is_first_come_first_served():
    """With one plan, and slices where they lie by default."""
    for graph, cluster in (("toy_tenants", "toy_islands"), ("tenants_mixed", "pathways_c")):
        env = gym.make("GangScheduling-v0", graph=graph, cluster=cluster, place=False).unwrapped
        _, info, _ = play(env, lambda *_: 0)
        assert info["relative_cost"] == pytest.approx(1.0, abs=0.02)


def test_wait__may_be_better():
    """A long gang is there just before a short one that much waits for."""
    build = Builder("late")
    left = build.slice("left", 2)
    right = build.slice("right", 2)
    build.call()
    build.gang("long", left, 5e-3)
    build.call(arrival_s=1e-3)
    short = build.gang("short", left, 1e-3)
    after = build.gang("after", right, 6e-3)
    build.edge(short, after)
    workload = workload_of(build.program())
    env = gym.make("GangScheduling-v0", graph=workload, cluster="toy_islands", controllers="none", place=False)
    env = env.unwrapped
    _, info, _ = play(env, lambda env, _: 0)
    assert info["cost"] == pytest.approx(12e-3)
    choices = iter([32, 1])  # wait, and then the later one first
    _, info, taken = play(env, lambda *_: next(choices, 0))
    assert taken[:2] == [32, 1]
    assert info["cost"] == pytest.approx(8e-3)
    hasty = gym.make(
        "GangScheduling-v0", graph=workload, cluster="toy_islands", controllers="none", place=False, wait=False
    ).unwrapped
    _, info, taken = play(hasty, lambda env, _: 0)
    assert info["cost"] == pytest.approx(12e-3)
    assert not hasty.action_masks()[32]


def test_phases__plan_then_slices_then_gangs():
    env = gym.make("GangScheduling-v0", graph="toy_pipeline", cluster="toy_islands").unwrapped
    observation, info = env.reset(seed=0)
    assert info["plans"] == 5
    assert observation["phase"].tolist() == [1, 0, 0]
    assert env.action_masks().sum() == 5
    assert env.unflatten(observation)["plans"][:, 0].tolist() == [1.0] * 5
    observation, _, _, _, info = env.step(2)
    assert observation["plan"].tolist() == [0, 0, 1, 0, 0]
    assert observation["phase"].tolist() == [0, 1, 0]
    places = env.problem.positions[2][0]
    assert env.action_masks().sum() == len(places) == 4
    shown = env.unflatten(observation)
    assert shown["positions"][: len(places), 3].tolist() == [1.0, 0, 0, 0]
    env.step(3)
    observation, _, _, _, info = env.step(3)
    assert observation["phase"].tolist() == [0, 0, 1]
    shown = env.unflatten(observation)
    assert shown["gangs"][:, GANG_FEATURES.index("there")].sum() == env.episodes.window_size[0]
    assert shown["progress"][PROGRESS_FEATURES.index("started")] == 0
    parts = env.problem.parts(env.decision)
    assert parts.plan == 2
    assert parts.first_core.tolist() == [6, 6]


def test_masks__of_places_leave_room_for_what_stays():
    env = gym.make("GangScheduling-v0", graph="decoder_3b").unwrapped
    env.reset(seed=0)
    env.step(0)
    env.step(1)
    assert env.action_masks()[:4].tolist() == [True, False, True, True]
    _, _, _, _, info = env.step(1)
    assert info["illegal_action"]  # it lies where it does by default
    assert env.episodes.first_core[0][1] == 32


def test_illegal__takes_the_earliest_gang():
    one, other = (
        gym.make("GangScheduling-v0", graph="toy_tenants", cluster="toy_islands", place=False).unwrapped
        for _ in range(2)
    )
    one.reset(seed=0)
    other.reset(seed=0)
    ours, theirs = one.step(20), other.step(0)
    assert ours[-1]["illegal_action"]
    for name, array in ours[0].items():
        assert np.array_equal(array, theirs[0][name])


def test_window__shows_the_earliest_of_many():
    env = gym.make("GangScheduling-v0", graph="tenants_even", cluster="pathways_b_4hosts", window=2).unwrapped
    env.reset(seed=0)
    for _ in range(40):
        state = env.episodes.runs[0][1]
        ready = sorted((state.ready_s[gang], gang) for gang in state.open[: state.counts[3]])
        size = env.episodes.window_size[0]
        assert env.episodes.window[0, :size].tolist() == [gang for _, gang in ready[:2]][:size]
        env.step(0)


def test_one_shot__is_the_decision():
    env = gym.make("GangSchedulingOneShot-v0", graph="toy_pipeline", cluster="toy_islands", max_gangs=50).unwrapped
    problem = gg.make_problem("GangScheduling-v0", graph="toy_pipeline", cluster="toy_islands")
    rng = np.random.default_rng(0)
    for strict in (0, 1):
        env.reset(seed=0)
        action = np.concatenate([[1, strict], rng.integers(0, 4, 4), rng.integers(0, 16, 50)])
        _, reward, ended, _, info = env.step(action)
        assert ended
        assert info["decision"][: problem.decision_shape[0]].tolist() == action[: problem.decision_shape[0]].tolist()
        outcome = problem.evaluate(action[: problem.decision_shape[0]])
        reference = env.episodes.instance(0).reference
        assert reward == (-outcome.cost / reference if outcome.valid else -10.0)


def test_one_shot__unsafe_orders_may_deadlock():
    env = gym.make("GangSchedulingOneShot-v0", graph="toy_tenants", cluster="toy_islands", safe=False).unwrapped
    rng = np.random.default_rng(0)
    valid = []
    for _ in range(20):
        env.reset()
        action = rng.integers(0, env.action_space.nvec)
        action[1] = 1
        valid.append(env.step(action)[-1]["valid"])
    assert not all(valid)


def test_ppo__trains():
    contrib = pytest.importorskip("sb3_contrib")
    from graphopt_gym.wrappers import SB3VecEnv

    arguments = {"graph": ["toy_tenants", "toy_pipeline"], "cluster": "toy_islands"}
    env = SB3VecEnv(gym.make_vec("GangScheduling-v0", num_envs=4, autoreset_mode="SameStep", **arguments))
    model = contrib.MaskablePPO("MultiInputPolicy", env, n_steps=64, batch_size=128, n_epochs=1, seed=0)
    model.learn(512)
    assert model.num_timesteps >= 512


def test_render__draws_cores_over_time():
    env = gym.make("GangScheduling-v0", graph="toy_tenants", cluster="toy_islands", render_mode="rgb_array").unwrapped
    env.reset(seed=0)
    assert env.render().std() > 0
    play(env, at_random(0))
    assert env.render().std() > 0


def test_blocked__gangs_are_seen_by_what_they_wait_for():
    env = gym.make("GangScheduling-v0", graph="crossing:cores=4:calls=4:seed=2", cluster="toy_islands").unwrapped
    env.reset(seed=0)
    rng, seen = np.random.default_rng(0), 0
    path, cores = GANG_FEATURES.index("path"), GANG_FEATURES.index("cores")
    while True:
        if env.episodes.runs[0] is not None:
            simulator, state, ready, _ = env.episodes.runs[0]
            may = simulator.candidates(state)
            waiting = [gang for gang in state.open[: state.counts[engine.NUM_OPEN]].tolist() if not may[gang]]
            parts = env.unflatten(env.episodes.observe(np.array([0])))
            progress = dict(zip(PROGRESS_FEATURES, parts["progress"].ravel(), strict=True))
            assert progress["blocked"] == pytest.approx(len(waiting) / (1 + len(waiting)))
            assert progress["urgent"] == max([0.0, *ready.fixed[waiting, path].tolist()])
            assert progress["wide"] == max([0.0, *ready.fixed[waiting, cores].tolist()])
            on = {gang: set(resources(simulator, gang)) for gang in range(len(may))}
            for gang, row in zip(env.episodes.window[0], parts["gangs"].reshape(-1, len(GANG_FEATURES)), strict=True):
                if row[0]:
                    kept = [ready.fixed[other, path] for other in waiting if on[other] & on[int(gang)]]
                    assert row[GANG_FEATURES.index("keeps")] == max([0.0, *kept])
                    seen += bool(kept)
        legal = np.flatnonzero(env.action_masks())
        if env.step(int(rng.choice(legal)))[2]:
            break
    assert seen > 10


def resources(simulator, gang):
    """The core classes of a gang."""
    tables = simulator.lowered.tables
    mine = tables.resource[tables.resource_ptr[gang] : tables.resource_ptr[gang + 1]].tolist()
    return [one for one in mine if one < simulator.classes.num_classes]
