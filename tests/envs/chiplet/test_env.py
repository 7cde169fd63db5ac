"""The chiplet environment: what it promises in each mode; scalar, sync and native vector ones agree exactly."""

from __future__ import annotations

import doctest
import warnings
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from graphopt_gym.envs.chiplet import env as env_module
from graphopt_gym.envs.chiplet.env import ChipletPartitionEnv
from graphopt_gym.envs.chiplet.features import CHIP_FEATURES, OP_FEATURES
from graphopt_gym.envs.chiplet.methods import greedy_decision
from graphopt_gym.envs.chiplet.problem import ChipletProblem
from graphopt_gym.envs.chiplet.propagator import Propagator
from graphopt_gym.envs.chiplet.walk import PROGRESS_FEATURES, STEP_CHIP_FEATURES
from graphopt_gym.envs.core.vector import EpisodeVectorEnv
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.generators import layered_dag
from graphopt_gym.graphs.zoo import GRAPHS
from graphopt_gym.hardware.package import Chip, Package
from tests.envs.chiplet import plain_walk
from tests.envs.placement.cases import assert_same

ChipletPartitionVectorEnv = partial(EpisodeVectorEnv, ChipletPartitionEnv)

MODES = ("fix", "sample", "step")
SMALL = layered_dag(50, seed=1, colocated=0.6)
LARGER = layered_dag(90, 5, seed=2)


def package(count, sram_bytes=10**12, rows=1, mixed=False):
    """Chips on a ring, or in a mesh of ``rows``; every other one half as fast and large where mixed."""
    fast, slow = Chip("fast", 1e12, 1e11, sram_bytes), Chip("slow", 5e11, 5e10, max(1, sram_bytes // 2))
    chips = tuple(slow if mixed and chip % 2 else fast for chip in range(count))
    name = f"{'mesh' if rows > 1 else 'ring'}{count}"
    return Package(name, chips, "mesh" if rows > 1 else "ring", 1e9, rows)


def action(env, rng):
    """A random one, legal in step mode."""
    if env.action_space.shape == ():
        return int(rng.choice(np.flatnonzero(env.action_masks())))
    return rng.random(env.action_space.shape) if env.action_space.dtype == np.float32 else env.action_space.sample()


def episode(env, rng, act=action):
    """(rewards, last info) of one whole episode, begun before."""
    rewards, done = [], False
    while not done:
        _, reward, done, truncated, info = env.step(act(env, rng))
        assert not truncated
        rewards.append(reward)
    return rewards, info


def rules_broken(problem, info):
    """The rules that the independent checker finds broken, but for memory."""
    found = problem.violations(info["decision"][: problem.num_ops])
    return [one for one in found if one.rule != "memory"], [one for one in found if one.rule == "memory"]


# --------------------------------------------------------------------------------------------------- both checkers


@pytest.mark.parametrize("mode", MODES)
def test_check_env__of_gymnasium_and_stable_baselines3_pass(mode):
    from stable_baselines3.common.env_checker import check_env as check_for_sb3

    env = ChipletPartitionEnv([SMALL, LARGER], [package(4), package(6, rows=2)], mode=mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env, skip_render_check=True)
        if mode == "sample":  # its advice for continuous control; chances lie in 0 to 1
            warnings.filterwarnings("ignore", "We recommend you to use a symmetric and normalized Box action space")
        check_for_sb3(env)


# ----------------------------------------------------------------------------------------------- what comes out


@pytest.mark.parametrize("memory_rule", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_partition__keeps_the_rules_and_is_priced_by_the_problem(mode, memory_rule):
    rng = np.random.default_rng(0)
    roomy, tight = package(5, mixed=True), package(6, 6 * 10**7, rows=2)
    env = ChipletPartitionEnv([SMALL, LARGER], [roomy, tight], mode=mode, memory_rule=memory_rule)
    env.action_space.seed(0)
    valid = set()
    for seed in range(12):
        env.reset(seed=seed)
        rewards, info = episode(env, rng)
        problem = env.problem
        decision = info["decision"][: problem.num_ops]
        assert (info["decision"][problem.num_ops :] == -1).all()
        broken, over = rules_broken(problem, info)
        outcome = problem.evaluate(decision)
        assert not broken
        assert info["valid"] == outcome.valid == (not over)
        assert info["cost"] == problem.costs(decision[None])[0][0]
        assert bool(info["reasons"]) == (not info["valid"])
        assert all("memory" in reason for reason in info["reasons"])
        assert rewards[:-1] == [0.0] * (len(rewards) - 1)
        assert rewards[-1] == info["throughput"]
        if info["valid"]:
            greedy = problem.evaluate(greedy_decision(problem))
            assert greedy.valid
            assert rewards[-1] == greedy.cost / info["cost"]
        else:
            assert rewards[-1] == 0.0
        assert info["changed"] == info["changed_ops"].sum()
        assert_same(env.decision, decision)
        assert env.outcome().metrics == outcome.metrics
        valid.add((problem.package.name, info["valid"]))
    assert ("ring5", True) in valid
    assert ("mesh6", False) in valid or memory_rule


def test_fix__leaves_a_valid_candidate_and_says_what_it_changed():
    env = ChipletPartitionEnv([SMALL, LARGER], package(5), max_ops=200, max_chips=8)
    rng = np.random.default_rng(0)
    for name in (SMALL.name, LARGER.name):
        for _ in range(5):
            env.reset(seed=0, options={"graph": name})
            problem = env.problem
            candidate = rng.integers(0, 8, 200)  # padding, and chips that are not there
            valid = problem.sample(rng)
            candidate[: problem.num_ops] = valid
            _, reward, _, _, info = env.step(candidate)
            assert info["decision"][: problem.num_ops].tolist() == valid.tolist()
            assert (info["changed"], info["illegal_action"]) == (0, False)
            assert not info["changed_ops"].any()
            assert reward == info["throughput"] > 0
            env.reset()
            candidate = rng.integers(0, 5, 200)
            _, _, _, _, info = env.step(candidate)
            differs = info["decision"][: env.problem.num_ops] != candidate[: env.problem.num_ops]
            assert info["changed_ops"][: env.problem.num_ops].tolist() == differs.tolist()
            assert info["changed"] > 0


def test_fix__the_greedy_partition_is_worth_one():
    env = ChipletPartitionEnv(LARGER, package(5))
    env.reset(seed=0)
    assert env.step(greedy_decision(env.problem))[1] == 1.0


def test_fix__an_illegal_chip_is_the_last_one_and_is_reported():
    env = ChipletPartitionEnv(SMALL, [package(3), package(6)])
    env.reset(seed=0, options={"cluster": "ring3"})
    masks = env.action_masks().reshape(-1, 6)
    assert masks.tolist() == [[True] * 3 + [False] * 3] * env.problem.num_ops
    candidate = np.zeros(env.problem.num_ops, int)
    candidate[-1] = 5
    _, _, _, _, info = env.step(candidate)
    assert info["illegal_action"]
    assert info["changed_ops"][-1]
    assert 0 <= info["decision"].min() <= info["decision"].max() <= 2


def test_sample__draws_what_is_likely_and_reports_the_rest():
    env = ChipletPartitionEnv(SMALL, package(4), mode="sample", max_ops=60, max_chips=5)
    env.reset(seed=0)
    n = env.problem.num_ops
    wanted = env.problem.sample(np.random.default_rng(3))
    chances = np.zeros((60, 5), np.float32)
    chances[np.arange(n), wanted] = 1
    chances[n:] = 0.3  # padding is ignored, and so are chips that are not there
    chances[:, 4] = 1
    _, _, _, _, info = env.step(chances)
    assert info["decision"][:n].tolist() == wanted.tolist()
    assert info["changed"] == 0
    env.reset()
    chances[:n] = np.random.default_rng(0).random((n, 5))
    _, _, _, _, info = env.step(chances)
    partition, rows = info["decision"][:n], chances[:n, :4]
    assert info["changed_ops"][:n].tolist() == (rows[np.arange(n), partition] < rows.max(axis=1)).tolist()
    drawn = info["drawn_from"]
    assert not drawn[n:].any()
    assert all(sets == 0 or sets >> int(chip) & 1 for sets, chip in zip(drawn[:n].tolist(), partition))
    assert drawn.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((3, 1, np.nan), r"action\[3, 1\] is nan; give numbers from 0 to 1"),
        ((3, 1, -0.5), r"action\[3, 1\] is -0.5; give numbers from 0 to 1"),
        ((3, 1, np.inf), r"action\[3, 1\] is inf; give numbers from 0 to 1"),
    ],
)
def test_sample__refuses_a_bad_proposal_and_changes_nothing(change, message):
    given = {"graph": SMALL, "cluster": package(4), "mode": "sample"}
    env, envs, untouched = ChipletPartitionEnv(**given), *(ChipletPartitionVectorEnv(2, **given) for _ in range(2))
    op, chip, value = change
    good = np.random.default_rng(0).random((2, *env.action_space.shape))
    bad = good.copy()
    bad[1, op, chip] = value
    for one in (env, envs, untouched):
        one.reset(seed=0)
    with pytest.raises(InputError, match=message):
        env.step(bad[1])
    with pytest.raises(InputError, match=message):
        envs.step(bad)
    assert_same(envs.step(good)[4], untouched.step(good)[4])


def test_sample__a_row_of_zeros_prefers_nothing():
    decisions = []
    for row in (0.0, 1.0):
        env = ChipletPartitionEnv(SMALL, package(4), mode="sample")
        env.reset(seed=0)
        decisions.append(env.step(np.full(env.action_space.shape, row, np.float32))[4]["decision"].tolist())
    assert decisions[0] == decisions[1]


@pytest.mark.parametrize("mode", MODES)
def test_step__refuses_an_action_of_another_form(mode):
    env = ChipletPartitionEnv(SMALL, package(4), mode=mode)
    env.reset(seed=0)
    for wrong in ([0, 1], np.full((env.problem.num_ops, 3), 0.5), 0.5):
        with pytest.raises(InputError, match=r"action (has shape|is of type)"):
            env.step(wrong)


# ------------------------------------------------------------------------------------------------------ step mode


def test_step_mode__random_walks_within_the_masks_end_valid():
    rng = np.random.default_rng(0)
    dead_ends = steps = 0
    for seed in range(60):
        graph = layered_dag(int(rng.integers(25, 70)), int(rng.integers(2, 7)), seed=seed, zeros=0.1 * (seed % 3))
        chips = int(rng.integers(2, 12))
        env = ChipletPartitionEnv(graph, package(chips, rows=2 if chips % 2 == 0 and seed % 2 else 1), mode="step")
        env.reset(seed=seed)
        rewards, info = episode(env, rng)
        assert rules_broken(env.problem, info) == ([], [])
        assert info["valid"]
        assert not info["illegal_action"]
        dead_ends += info["dead_end"]
        steps += len(rewards)
        assert len(rewards) == env.problem.num_ops or info["dead_end"]
    assert steps > 1000


def test_step_mode__masks_are_the_propagators():
    env = ChipletPartitionEnv(LARGER, package(6), mode="step")
    rng = np.random.default_rng(1)
    observation, _ = env.reset(seed=0)
    propagator = Propagator(env.problem.corrector.rules)
    for op in range(env.problem.num_ops):
        expected = []
        for chip in range(6):  # by assigning and taking back
            expected.append(propagator.assign(op, chip))
            if expected[-1]:
                propagator.undo()
        assert env.action_masks().tolist() == expected == propagator.allowed(op).tolist()
        assert observation["action_mask"].astype(bool).tolist() == expected
        chosen = int(rng.choice(np.flatnonzero(expected)))
        assert propagator.assign(op, chosen)
        observation, _, done, _, _ = env.step(chosen)
    assert done
    assert env.action_masks().all()


@pytest.mark.parametrize("seed", range(4))
def test_step_mode__observation_agrees_with_the_plain_twin(seed):
    rng = np.random.default_rng(seed)
    on = [package(5, 10**8, mixed=True), package(6, 10**8, rows=2)][seed % 2]
    env = ChipletPartitionEnv([SMALL, LARGER][seed // 2], on, mode="step", max_chips=7)
    observation, _ = env.reset(seed=seed)
    chips = []
    for _ in range(env.problem.num_ops + 1):
        count = env.problem.num_chips
        seen = env.unflatten(observation)
        expected = plain_walk.observe(env.problem, chips, env.episodes.instance(0).greedy_s, env.action_masks()[:count])
        assert not seen["chips"][count:].any()
        assert not seen["action_mask"][count:].any()
        for key, ours in seen.items():
            ours = ours[:count] if key in ("chips", "action_mask") else ours
            np.testing.assert_array_max_ulp(ours.astype(np.float32), expected[key].astype(np.float32), maxulp=1)
        if len(chips) < env.problem.num_ops:
            chips.append(action(env, rng))
            observation, _, done, _, info = env.step(chips[-1])
    assert done
    assert info["decision"][: len(chips)].tolist() == chips
    seconds, link_bytes, memory, _ = env.problem.measure(np.array(chips, np.int32))
    kept, carried, held = env.episodes.so_far(0)
    assert kept.tolist() == seconds.tolist()
    assert carried.tolist() == link_bytes.tolist()
    assert (held <= memory).all()


def test_step_mode__an_illegal_action_takes_the_nearest_allowed_chip():
    env = ChipletPartitionEnv(LARGER, package(6), mode="step", max_chips=8)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    illegal = 0
    for op in range(env.problem.num_ops):
        allowed = np.flatnonzero(env.action_masks())
        wish = int(rng.integers(-2, 9))
        _, _, _, _, info = env.step(wish)
        illegal += info["illegal_action"]
        assert info["illegal_action"] == (wish not in allowed)
        assert env.decision[op] == min(allowed.tolist(), key=lambda chip: (abs(chip - wish), chip))
    assert illegal > 5


def test_step_mode__a_dead_end_is_completed_by_the_corrector():
    """On 36 chips, the many ways through this network end where no mask foresaw it."""
    env = ChipletPartitionEnv("wavenet_1x10_b1", "mcm36", mode="step")
    for seed in range(3):
        env.reset(seed=seed)
        rng, chosen, done = np.random.default_rng(seed), [], False
        while not done:
            chosen.append(action(env, rng))
            _, reward, done, _, info = env.step(chosen[-1])
        assert info["dead_end"]
        assert len(chosen) < env.problem.num_ops
        assert rules_broken(env.problem, info)[0] == []
        taken_back = np.flatnonzero(info["decision"][: len(chosen)] != chosen)
        assert np.flatnonzero(info["changed_ops"]).tolist() == taken_back.tolist()
        assert 0 < info["changed"] == len(taken_back) < len(chosen)
        assert reward == info["throughput"]
        assert env.action_masks().all()


def test_step_mode__a_completion_keeps_what_it_can():
    """Stopped half-way where nothing is wrong, every decided op keeps its chip."""
    env = ChipletPartitionEnv(LARGER, package(6), mode="step")
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(env.problem.num_ops // 2):
        env.step(action(env, rng))
    env.episodes.dead_end[0] = True
    _, reward, done, _, info = env.step(0)
    assert done
    assert info["dead_end"]
    assert rules_broken(env.problem, info) == ([], [])
    assert info["changed"] == 0  # what was decided can be completed
    assert reward == info["throughput"] > 0


def test_step_mode__where_nothing_fits_the_first_step_says_so():
    env = ChipletPartitionEnv(SMALL, package(4, 100), mode="step", memory_rule=True)
    env.reset(seed=0)
    _, reward, done, _, info = env.step(0)
    assert (reward, done, info["valid"], info["dead_end"]) == (0.0, True, False, True)
    assert "no partition fits" in info["reasons"][0]


# ------------------------------------------------------------------------------------------------ observations


@pytest.mark.parametrize("mode", MODES)
def test_observation__is_in_its_space_and_described(mode):
    env = ChipletPartitionEnv([SMALL, LARGER], [package(3, 10**7), package(6, rows=2)], mode=mode, max_ops=150)
    rng = np.random.default_rng(0)
    for seed in range(6):
        observation, info = env.reset(seed=seed)
        done = False
        while not done:
            assert env.observation_space.contains(observation)
            observation, _, done, _, _ = env.step(action(env, rng))
        assert env.observation_space.contains(observation)
        static = env.static_observation()
        n, chips, edges = info["ops"], info["chips"], env.problem.ops.edges
        assert static["nodes"].shape == (150, len(OP_FEATURES))
        assert static["chips"].shape == (6, len(CHIP_FEATURES))
        assert (static["node_mask"].sum(), static["action_mask"].sum()) == (n, chips)
        assert static["edge_index"][:, : len(edges)].T.tolist() == edges.tolist()
        assert (static["edge_index"][:, len(edges) :] == -1).all()
        assert not static["nodes"][n:].any()
        assert not static["chips"][chips:].any()
        if mode != "step":
            for key, array in static.items():
                assert_same(array, env.unflatten(observation)[key], key)
    shaped = env.unflatten(observation)
    if mode == "step":
        assert shaped["chips"].shape == (6, len(CHIP_FEATURES) + len(STEP_CHIP_FEATURES))
        assert shaped["progress"].shape == (len(PROGRESS_FEATURES),)
    for key in observation:
        assert f"| `{key}` |" in ChipletPartitionEnv.__doc__


# --------------------------------------------------------------------------------------- scalar, sync and vector


@pytest.mark.parametrize("autoreset", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("memory_rule", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_vector__agrees_exactly_with_sync(mode, memory_rule, autoreset):
    arguments = {
        "graph": [SMALL, LARGER],
        "cluster": [package(3), package(6, 5 * 10**7, rows=2)],
        "mode": mode,
        "memory_rule": memory_rule,
    }
    sync = SyncVectorEnv([lambda: ChipletPartitionEnv(**arguments)] * 5, autoreset_mode=autoreset)
    vector = ChipletPartitionVectorEnv(5, **arguments, autoreset_mode=autoreset)
    assert vector.observation_space == sync.observation_space
    assert vector.action_space == sync.action_space
    sync.action_space.seed(0)
    steps = 200 if mode == "step" else 8
    for seed in (7, None, [3, None, 11, None, 5]):
        assert_same(vector.reset(seed=seed), sync.reset(seed=seed), "reset")
        for step in range(steps if seed == 7 else 4):
            actions = sync.action_space.sample()
            ours, theirs = vector.step(actions), sync.step(actions)
            assert_same(ours[:4], theirs[:4], f"step {step}")
            assert_same(ours[4], theirs[4], f"infos of step {step}")
            assert_same(vector.action_masks(), np.stack(sync.call("action_masks")))
            assert_same(vector.decision(2), sync.envs[2].decision)


@pytest.mark.parametrize("mode", MODES)
def test_seed__repeats_an_episode(mode):
    env = ChipletPartitionEnv([SMALL, LARGER], package(5), mode=mode)

    def run(seed):
        env.reset(seed=seed)
        return [episode(env, np.random.default_rng(0), wish)[1] for _ in range(3) if env.reset()]

    def wish(env, rng):
        shape = env.action_space.shape
        return rng.random(shape) if mode == "sample" else rng.integers(0, 5, shape or None)

    first, again, other = run(1), run(1), run(2)
    for one, two in zip(first, again):
        assert_same(one, two)
    assert [one["decision"].tolist() for one in first] != [one["decision"].tolist() for one in other]


def test_environments__share_one_problem():
    on = package(4)
    first, second = ChipletPartitionEnv(SMALL, on), ChipletPartitionVectorEnv(2, SMALL, on, mode="step")
    first.reset(seed=0)
    second.reset(seed=0)
    assert first.problem is second.problem(1)
    other = ChipletPartitionEnv(SMALL, on, memory_rule=True)
    other.reset(seed=0)
    assert other.problem is not first.problem


# ------------------------------------------------------------------------------------------------------- learning


def test_sb3__ppo_learns_a_step_on_candidates():
    from stable_baselines3 import PPO

    from graphopt_gym.wrappers import SB3VecEnv

    envs = SB3VecEnv(ChipletPartitionVectorEnv(4, SMALL, package(4), autoreset_mode="SameStep"))
    model = PPO("MultiInputPolicy", envs, n_steps=8, batch_size=16, n_epochs=1, seed=0, device="cpu")
    model.learn(64)
    assert model.num_timesteps == 64
    assert model.ep_info_buffer is not None


def test_sb3__maskable_ppo_learns_a_step_and_never_acts_illegally():
    from sb3_contrib import MaskablePPO

    from graphopt_gym.wrappers import SB3VecEnv

    envs = SB3VecEnv(ChipletPartitionVectorEnv(4, [SMALL, LARGER], package(5), mode="step", autoreset_mode="SameStep"))
    model = MaskablePPO("MultiInputPolicy", envs, n_steps=64, batch_size=64, n_epochs=1, seed=0, device="cpu")
    ended = []

    def watch(scope, _):
        for info in scope["infos"]:
            assert not info.get("illegal_action", False)
            ended.extend([info["valid"]] if "valid" in info else [])
        return True

    model.learn(512, callback=watch)
    assert ended
    assert all(ended)


# ------------------------------------------------------------------------------------------ arguments, rendering


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mod": "fix"}, "unknown argument of ChipletPartition-v0 'mod'; did you mean 'mode'?"),
        ({"package": "mcm4"}, "unknown argument of ChipletPartition-v0 'package'"),
        ({"mode": "fixx"}, "unknown mode 'fixx'; did you mean 'fix'?"),
        ({"cluster": "mcm35"}, "unknown package 'mcm35'; did you mean 'mcm36'?"),
        ({"graph": "bert_bsae"}, "unknown graph 'bert_bsae'; did you mean 'bert_base'?"),
        ({"graph": [SMALL, SMALL]}, f"two of the graphs are called '{SMALL.name}'"),
        ({"cluster": []}, "cluster is an empty list"),
        ({"max_ops": 3}, "max_ops is 3; give a whole number of at least"),
        ({"max_chips": 2}, "max_chips is 2; give a whole number of at least 4"),
        ({"max_edges": 1.5}, "max_edges is 1.5"),
        ({"render_mode": "rgb"}, "unknown render mode 'rgb'; did you mean 'rgb_array'?"),
    ],
)
def test_make__refuses_bad_arguments_with_one_line(arguments, message):
    for make in (ChipletPartitionEnv, lambda **given: ChipletPartitionVectorEnv(2, **given)):
        with pytest.raises(InputError, match=message.replace("?", r"\?")) as raised:
            make(**({"graph": SMALL, "cluster": package(4)} | arguments))
        assert "\n" not in str(raised.value)
    if not {"mod", "package"} & set(arguments):
        with pytest.raises(InputError, match="num_envs is 0"):
            ChipletPartitionVectorEnv(0, SMALL, package(4))


@pytest.mark.parametrize("mode", MODES)
def test_outcome__is_there_when_all_is_decided(mode):
    env = ChipletPartitionEnv(SMALL, package(4), mode=mode)
    with pytest.raises(ResetNeeded):
        env.step(0)
    env.reset(seed=0)
    assert (env.decision == -1).all()
    with pytest.raises(InputError, match="the partition is not complete: 0 of"):
        env.outcome()
    _, info = episode(env, np.random.default_rng(0))
    assert env.outcome().cost == info["cost"]
    with pytest.raises(ResetNeeded):
        env.step(action(env, np.random.default_rng(0)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("on", [package(4), package(6, 10**6, rows=2), package(1)], ids=lambda one: one.name)
def test_render__shows_the_pipeline(mode, on, capsys):
    rng = np.random.default_rng(0)
    env = ChipletPartitionEnv(SMALL, on, mode=mode, render_mode="rgb_array")
    env.reset(seed=0)
    empty = env.render()
    assert (empty.dtype, empty.ndim, empty.shape[2]) == (np.uint8, 3, 3)
    episode(env, rng)
    assert not np.array_equal(env.render(), empty)

    env = ChipletPartitionEnv(SMALL, on, mode=mode, render_mode="ansi")
    env.reset(seed=0)
    assert env.render() == f"{SMALL.name} on {on.name}: 0 of {env.problem.num_ops} ops decided"
    _, info = episode(env, rng)
    lines = env.render().splitlines()
    assert "a sample every" in lines[0]
    assert ("out of memory" in lines[0]) == (not info["valid"])
    assert len(lines) == 1 + len(set(info["decision"].tolist()))
    assert sum("is the bottleneck" in line for line in lines) == 1

    env = ChipletPartitionEnv(SMALL, on, mode=mode, render_mode="human")
    capsys.readouterr()
    env.reset(seed=0)
    assert "ops decided" in capsys.readouterr().out


def test_docstring__runs_and_keeps_the_order_of_gymnasium():
    assert doctest.testmod(env_module).failed == 0
    order = [
        "Description", "Action Space", "Observation Space", "Rewards", "Starting State", "Episode End", "Arguments",
        "Vectorized environment", "Version History",
    ]  # fmt: skip
    heads = [line.strip()[3:] for line in ChipletPartitionEnv.__doc__.splitlines() if line.strip().startswith("## ")]
    assert heads == order


def test_make__by_name_works_with_a_split(monkeypatch):
    monkeypatch.setitem(GRAPHS.splits, "toys", ("rnnlm_2layer", "transformer_xl_2layer"))
    env = gym.make("ChipletPartition-v0", graph="toys", cluster=["mcm4", "mcm9"]).unwrapped
    infos = [env.reset(seed=0 if first else None)[1] for first in [True] + [False] * 30]
    assert len({(info["graph"], info["cluster"]) for info in infos}) == 4
    assert env.reset(options={"cluster": "mcm9"})[1]["chips"] == 9
    assert isinstance(env.problem, ChipletProblem)
