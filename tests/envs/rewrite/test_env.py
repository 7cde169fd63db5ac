"""The rewrite environment: what it promises; scalar, sync and native vector ones agree; a policy learns on it."""

from __future__ import annotations

import doctest
import warnings
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from graphopt_gym.envs.core.vector import EpisodeVectorEnv
from graphopt_gym.envs.rewrite import env as env_module
from graphopt_gym.envs.rewrite import episodes as episodes_module
from graphopt_gym.envs.rewrite.env import RewriteOrderEnv
from graphopt_gym.envs.rewrite.features import MATCH_FEATURES, NODE_FEATURES, PROGRESS_FEATURES, shown
from graphopt_gym.envs.rewrite.rules.matching import Match
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.tensor_program import execute, parse_program, random_values
from tests.envs.placement.cases import assert_same
from tests.envs.rewrite.programs import all_programs, attention, inception, recurrent

RewriteOrderVectorEnv = partial(EpisodeVectorEnv, RewriteOrderEnv)

PROGRAMS = [attention(), recurrent(), inception()]


def legal(env, rng, ends=0.0):
    """A random legal action; 0 with chance ``ends`` only."""
    matches = np.flatnonzero(env.action_masks())[1:]
    return 0 if rng.random() < ends or not len(matches) else int(rng.choice(matches))


# --------------------------------------------------------------------------------------------------- both checkers


def test_check_env__of_gymnasium_and_stable_baselines3_pass():
    from stable_baselines3.common.env_checker import check_env as check_for_sb3

    env = RewriteOrderEnv(PROGRAMS, ["t4", "v100_pcie_16gb"], max_matches=20, max_steps=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env, skip_render_check=True)
        check_for_sb3(env)


# ----------------------------------------------------------------------------------------------- what comes out


@pytest.mark.parametrize("program", all_programs(), ids=lambda program: program.name)
def test_program__computes_the_same_at_random_points_of_random_episodes(program):
    env = RewriteOrderEnv(program, max_steps=60, max_matches=40)
    values = random_values(program, seed=3)
    expected = execute(program, values)
    rng = np.random.default_rng(0)
    executed = set()
    for seed in range(5):
        env.reset(seed=seed)
        done = False
        while not done:
            _, _, done, _, _ = env.step(legal(env, rng, ends=0.01))
            if done or rng.random() < 0.15:
                for before, after in zip(expected, execute(env.decision, values), strict=True):
                    np.testing.assert_allclose(after, before, rtol=0, atol=1e-9 * np.abs(before).max())
                executed.add(env.decision.fingerprint)
    assert len(executed) > 15


@pytest.mark.parametrize("program", all_programs(), ids=lambda program: program.name)
def test_matches__kept_up_to_date_are_those_of_a_new_search(program):
    env = RewriteOrderEnv(program, max_steps=30, max_matches=1000)
    rng = np.random.default_rng(1)
    env.reset(seed=0)
    done = False
    while not done:
        _, _, done, _, _ = env.step(legal(env, rng))
        state = env.episodes.state(0)
        assert state.matches == env.problem.matcher.find(state.program).matches


def test_rewards__add_up_to_what_is_saved():
    env = RewriteOrderEnv(PROGRAMS, max_steps=15)
    rng = np.random.default_rng(0)
    for seed in range(6):
        _, begun = env.reset(seed=seed)
        rewards, done = [], False
        while not done:
            _, reward, done, truncated, info = env.step(legal(env, rng, ends=0.05))
            assert not truncated
            rewards.append(reward)
        outcome = env.outcome()
        assert outcome.valid
        assert info["cost"] == outcome.cost == env.problem.evaluate(info["decision"]).cost
        assert begun["cost"] == env.problem.original_s
        assert sum(rewards) == pytest.approx(info["saved"], abs=1e-12)
        assert info["saved"] == (begun["cost"] - info["cost"]) / begun["cost"]
        assert info["steps"] == len(rewards) <= 15
        assert info["best_cost"] <= min(info["cost"], begun["cost"])
        assert env.problem.check_trace(info["decision"], info["trace"]) == ""


def test_action_0__ends_and_an_illegal_action_changes_nothing():
    env = RewriteOrderEnv(recurrent(), max_steps=4)
    env.reset(seed=0)
    before = env.decision
    for action in (env.action_space.n - 1, -1):
        observation, reward, done, _, info = env.step(action)
        assert (reward, done, info["illegal_action"]) == (0.0, False, True)
        assert env.decision == before
    assert observation["progress"][2] == 0.5
    _, reward, done, _, info = env.step(0)
    assert (reward, done, info["illegal_action"], info["trace"]) == (0.0, True, False, ())
    env.reset(seed=0)
    assert [env.step(1)[2] for _ in range(4)] == [False, False, False, True]


def test_observation__says_what_the_program_is():
    env = RewriteOrderEnv(recurrent(), max_matches=100)
    observation, info = env.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(10):
        parts, state = env.unflatten(observation), env.episodes.state(0)
        program, order = state.program, state.program.order
        assert parts["nodes"].shape[1] == len(NODE_FEATURES)
        assert parts["node_mask"].sum() == len(program)
        edges = parts["edge_index"]
        edges = edges[:, edges[0] >= 0]
        expected = [(s, node) for node in order for s in program.nodes[node].inputs]
        assert [(order[a], order[b]) for a, b in edges.T.tolist()] == expected
        column = list(NODE_FEATURES).index("is_matmul")
        assert parts["nodes"][:, column].sum() == sum(program.nodes[node].op == "matmul" for node in order)
        count = int(parts["action_mask"].sum()) - 1
        assert count == len(state.matches)
        for rule, roots, match in zip(parts["match_rule"], parts["match_roots"], state.matches, strict=False):
            assert rule == match.rule
            assert tuple(order[root] for root in roots if root >= 0) == match.roots
        assert (parts["match_rule"][count:] == -1).all()
        assert parts["matches"].shape[1] == len(MATCH_FEATURES)
        assert parts["progress"].shape == (len(PROGRESS_FEATURES),)
        assert env.observation_space.contains(observation)
        observation = env.step(legal(env, rng))[0]
    static = env.static_observation()
    assert static["node_mask"].sum() == info["nodes"]


def test_size__a_program_cannot_outgrow_its_padding():
    program = inception()
    env = RewriteOrderEnv(program, max_nodes=len(program) + 4, max_steps=200, max_matches=30)
    rng = np.random.default_rng(0)
    observation, _ = env.reset(seed=0)
    done, largest = False, 0
    while not done:
        observation, _, done, _, _ = env.step(legal(env, rng))
        largest = max(largest, len(env.decision))
        assert env.observation_space.contains(observation)
    assert len(program) < largest <= len(program) + 4


def test_shown__takes_evenly_from_each_rule():
    matches = [Match(0, (root,), ()) for root in range(10)] + [
        Match(1, (0,), ()),
        Match(2, (0,), ()),
        Match(2, (5,), ()),
    ]
    assert shown(matches, 100) == matches
    assert [match[:2] for match in shown(matches, 5)] == [(0, (0,)), (0, (1,)), (1, (0,)), (2, (0,)), (2, (5,))]
    assert [match.rule for match in shown(matches, 3)] == [0, 1, 2]


def plain_shown(matches, most):
    """The first matches of all rules, the second ones, …, until there are enough."""
    ranked = [(sum(other.rule == one.rule for other in matches[:at]), one) for at, one in enumerate(matches)]
    return sorted(one for _, one in sorted(ranked)[:most])


def test_shown__agrees_with_the_plain_twin():
    rng = np.random.default_rng(0)
    for _ in range(50):
        places = {(int(rule), int(root)) for rule, root in rng.integers(0, 8, (30, 2))}
        matches = [Match(rule, (root,), ()) for rule, root in sorted(places)]
        for most in range(1, len(matches) + 2):
            assert shown(matches, most) == plain_shown(matches, most)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda one: one.name)
def test_step__of_a_kept_program_is_as_of_a_new_one(program, monkeypatch):
    """Whether programs are kept, pushed out, or searched anew: the same is seen."""
    kept, fresh = RewriteOrderEnv(program, max_steps=12), RewriteOrderEnv(program, max_steps=12)
    taken = 0
    for seed in (0, 1, 0, 2, 0):
        rng = np.random.default_rng(seed)
        observation, _ = kept.reset(seed=0)
        fresh.reset(seed=0)
        done = False
        while not done:
            fresh.episodes._kept.clear()
            action = legal(kept, rng)
            found = kept.step(action), fresh.step(action)
            for name in observation:
                assert_same(found[0][0][name], found[1][0][name], name)
            assert found[0][1:] == found[1][1:]
            state = kept.episodes.state(0)
            assert state.matches == kept.problem.matcher.find(state.program).matches
            assert list(state.program.order) == plain_order(state.program)
            done = found[0][2]
            taken += 1
    assert len(kept.episodes._kept) < taken
    monkeypatch.setattr(episodes_module, "KEPT", 3)
    for seed in (0, 3):
        rng = np.random.default_rng(seed)
        small = RewriteOrderEnv(program, max_steps=12)
        small.reset(seed=0)
        while not small.step(legal(small, rng))[2]:
            assert len(small.episodes._kept) <= 3


def plain_order(program):
    """Operands first, in their order."""
    out = []

    def visit(node):
        for source in program.nodes[node].inputs:
            visit(source)
        if node not in out:
            out.append(node)

    for output in program.outputs:
        visit(output)
    return out


def test_reset__draws_from_lists_and_takes_options():
    env = RewriteOrderEnv(PROGRAMS, ["t4", "v100_pcie_16gb"])
    drawn = {(info["graph"], info["cluster"]) for info in (env.reset(seed=seed)[1] for seed in range(40))}
    assert len(drawn) == 6
    _, info = env.reset(options={"graph": "recurrent", "cluster": "t4"})
    assert (info["graph"], info["cluster"]) == ("recurrent", "t4")
    with pytest.raises(InputError, match="did you mean 'recurrent'"):
        env.reset(options={"graph": "recurent"})


def test_render__in_each_mode(capsys):
    for mode in ("rgb_array", "ansi", "human"):
        env = RewriteOrderEnv(inception(), render_mode=mode)
        env.reset(seed=0)
        env.step(1)
        frame = env.render()
        if mode == "rgb_array":
            assert frame.dtype == np.uint8
            assert frame.shape[2] == 3
            assert frame.std() > 5
        elif mode == "ansi":
            assert "inception on t4" in frame
    assert "inception on t4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_matches": 0}, "max_matches is 0; give a whole number, at least 1"),
        ({"max_steps": 0}, "max_steps is 0; give a whole number, at least 1"),
        ({"max_nodes": 3}, "max_nodes is 3; give a whole number of at least 49"),
        ({"max_edges": True}, "max_edges is True"),
        ({"graph": []}, "graph is an empty list"),
        ({"cluster": "t5"}, "unknown device 't5'; did you mean 't4'?"),
        ({"max_match": 3}, "unknown argument of RewriteOrder-v0 'max_match'; did you mean 'max_matches'?"),
    ],
)
def test_env__refuses_bad_arguments_in_one_line(arguments, message):
    with pytest.raises(InputError) as caught:
        RewriteOrderEnv(**{"graph": recurrent(), **arguments})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_documentation__examples_hold():
    assert doctest.testmod(env_module).failed == 0


# ------------------------------------------------------------------------------------------------------- vectors


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_vector__agrees_with_sync(mode):
    arguments = {"graph": PROGRAMS, "cluster": ["t4", "v100_pcie_16gb"], "max_steps": 6, "max_matches": 30}
    native = RewriteOrderVectorEnv(3, **arguments, autoreset_mode=mode)
    sync = SyncVectorEnv([lambda: RewriteOrderEnv(**arguments)] * 3, autoreset_mode=mode)
    (ours, info), (theirs, expected) = native.reset(seed=5), sync.reset(seed=5)
    assert_same(info, expected)
    rng = np.random.default_rng(0)
    ends = 0
    for _ in range(40):
        assert_same(ours, theirs)
        masks = native.action_masks()
        assert_same(masks, np.stack(sync.call("action_masks")))
        actions = np.array([0 if rng.random() < 0.1 else rng.choice(np.flatnonzero(mask)) for mask in masks])
        (ours, *results), (theirs, *expected) = native.step(actions), sync.step(actions)
        assert_same(tuple(results), tuple(expected))
        ends += int(results[1].sum())
    assert ends > 10


# ------------------------------------------------------------------------------------------------------ learning


def small():
    """Products that can be merged, and activations that can be fused into them."""
    return parse_program(
        '"small"\nx = input(name="x", shape=(8, 64))\n'
        'a = matmul(x, weight(name="a", shape=(64, 64)))\nb = matmul(x, weight(name="b", shape=(64, 64)))\n'
        'c = matmul(weight(name="c", shape=(8, 8)), x)\n'
        "return relu(a), relu(b), add(c, mul(x, c))"
    )


def random_return(env, episodes):
    rng = np.random.default_rng(0)
    total = 0.0
    for seed in range(episodes):
        env.reset(seed=seed)
        done = False
        while not done:
            _, reward, done, _, _ = env.step(int(rng.choice(np.flatnonzero(env.action_masks()))))
            total += reward
    return total / episodes


@pytest.mark.parametrize("seed", range(3))
def test_maskable_ppo__beats_a_random_policy(seed):
    import torch
    from sb3_contrib import MaskablePPO

    torch.set_num_threads(1)
    env = RewriteOrderEnv(small(), max_matches=16, max_steps=8)
    model = MaskablePPO(
        "MultiInputPolicy", env, seed=seed, n_steps=128, batch_size=64, gamma=0.98, n_epochs=8, ent_coef=0.02,
        learning_rate=1e-3,
    )  # fmt: skip
    model.learn(1536)
    observation, _ = env.reset(seed=0)
    total, done = 0.0, False
    while not done:
        action, _ = model.predict(observation, action_masks=env.action_masks(), deterministic=True)
        observation, reward, done, _, _ = env.step(int(action))
        total += reward
    assert total > random_return(env, 100) + 0.05


def test_make_vec__runs_with_maskable_ppo_through_the_adapter():
    from sb3_contrib import MaskablePPO

    from graphopt_gym.wrappers import SB3VecEnv

    envs = SB3VecEnv(RewriteOrderVectorEnv(4, [recurrent(), inception()], max_matches=30, max_steps=5,
                                           autoreset_mode="SameStep"))  # fmt: skip
    MaskablePPO("MultiInputPolicy", envs, n_steps=8, batch_size=16, n_epochs=1).learn(32)


def test_registration__makes_scalar_and_vector():
    env = gym.make("RewriteOrder-v0", graph=recurrent())
    assert isinstance(env.unwrapped, RewriteOrderEnv)
    envs = gym.make_vec("RewriteOrder-v0", num_envs=2, vectorization_mode="vector_entry_point", graph=recurrent())
    assert isinstance(envs, EpisodeVectorEnv)
