"""The placement environments: what they promise, and that scalar, sync and native vector ones agree exactly."""

from __future__ import annotations

import doctest
import itertools
import math
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import graphopt_gym
from graphopt_gym.envs.core.vector import EpisodeVectorEnv
from graphopt_gym.envs.placement import env as env_module
from graphopt_gym.envs.placement import features
from graphopt_gym.envs.placement.env import PlacementEnv, PlacementOneShotEnv
from graphopt_gym.envs.placement.problem import PlacementProblem
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.generators import chain, fork_join, known_optimum_s, layered_dag
from graphopt_gym.hardware.cluster import Cluster, Device, Link
from tests.envs.placement.cases import LARGER, SMALL, UNIT, assert_same, cluster
from tests.envs.placement.plain_env import PlainEnv
from tests.simulator.cases import random_cluster, random_graph

PlacementVectorEnv = partial(EpisodeVectorEnv, PlacementEnv)
PlacementOneShotVectorEnv = partial(EpisodeVectorEnv, PlacementOneShotEnv)


def run(env, actions, **reset):
    """(rewards, last info) of an episode."""
    env.reset(**reset)
    rewards = []
    for action in actions:
        _, reward, done, truncated, info = env.step(action)
        assert not truncated
        rewards.append(reward)
    assert done
    return rewards, info


# ---------------------------------------------------------------------------------------------- what is observed


@pytest.mark.parametrize("seed", range(12))
def test_observation__agrees_with_the_plain_twin(seed):
    rng = np.random.default_rng(seed)
    graph = random_graph(rng) if seed % 2 else layered_dag(40, seed=seed, colocated=0.5, phases=True, zeros=0.2)
    env = PlacementEnv(graph, random_cluster(rng), start="random")
    observation, _ = env.reset(seed=seed)
    twin = PlainEnv(env.problem)
    twin.reset(env.decision.tolist())
    nodes = env.episodes.instance(0).tables.node_features
    np.testing.assert_allclose(nodes, [twin.node(g) for g in range(len(nodes))], rtol=1e-6, atol=1e-7)
    for _ in range(env.problem.num_groups):
        action = int(rng.integers(env.problem.num_devices))
        for key, expected in twin.observe().items():
            # the twin adds in another order, in float64: at most the last bit of float32 can differ
            ours, theirs = observation[key].astype(np.float32), expected.astype(np.float32)
            np.testing.assert_array_max_ulp(ours, theirs, maxulp=1)
        observation, reward, done, _, info = env.step(action)
        assert reward == twin.step(action)
    assert done
    assert info["cost"] == twin.cost
    assert info["decision"].tolist() == twin.placement


@pytest.mark.parametrize("seed", range(6))
def test_memory__agrees_with_the_plain_twin(seed):
    rng = np.random.default_rng(seed)
    graph = random_graph(rng) if seed % 2 else layered_dag(40, seed=seed, colocated=0.5)
    on = random_cluster(rng)
    step, one_shot = PlacementEnv(graph, on, observation="graph"), PlacementOneShotEnv(graph, on, max_groups=90)
    twin = PlainEnv(step.problem)
    groups = step.problem.num_groups
    expected = np.array(twin.memory(), np.float32)
    for env in (step, one_shot):
        shaped = env.unflatten(env.reset(seed=0)[0])
        np.testing.assert_array_max_ulp(shaped["memory"][:groups], expected, maxulp=1)
    assert not shaped["memory"][groups:].any()
    whole = shaped["devices"][:, features.STATIC_DEVICE_FEATURES.index("whole_graph_memory")]
    np.testing.assert_array_max_ulp(whole, np.array(twin.whole_graph_memory(), np.float32), maxulp=1)


def test_memory__is_half_where_the_graph_just_fills_the_device():
    held = PlacementEnv(SMALL, cluster(2)).episodes.instances[0].tables
    total = int(held.persistent_bytes.sum() + held.activation_bytes.sum())
    for memory_bytes, whole in ((total, 0.5), (3 * total, 0.25)):
        env = PlacementOneShotEnv(SMALL, cluster(2, memory_bytes))
        shaped = env.unflatten(env.reset(seed=0)[0])
        assert shaped["devices"][:, 4].tolist() == [whole] * 2
        # the mean of the ratios before squashing is that of the whole graph
        ratio = shaped["memory"].astype(np.float64)
        np.testing.assert_allclose((ratio / (1 - ratio)).mean(axis=0), whole / (1 - whole), rtol=1e-5)


@pytest.mark.parametrize("grouping", ["colocation", "op"])
@pytest.mark.parametrize("observation", ["step", "graph"])
def test_observation__is_in_its_space_to_the_end(grouping, observation):
    env = PlacementEnv(
        [SMALL, LARGER], [cluster(2), cluster(4, 10**7)], grouping=grouping, observation=observation, max_groups=150
    )
    rng = np.random.default_rng(0)
    for episode in range(4):
        seen, _ = env.reset(seed=episode)
        assert env.observation_space.contains(seen)
        done = False
        while not done:
            seen, _, done, _, _ = env.step(int(rng.integers(4)))
            assert env.observation_space.contains(seen)


def test_observation__names_a_feature_for_each_column():
    env = PlacementEnv(SMALL, cluster(3), observation="graph")
    observation, _ = env.reset(seed=0)
    shaped = env.unflatten(observation)
    assert shaped["group"].shape == (len(features.GROUP_FEATURES),) == (25,)
    assert shaped["devices"].shape == (3, len(features.DEVICE_FEATURES)) == (3, 15)
    assert shaped["progress"].shape == (len(features.PROGRESS_FEATURES),) == (5,)
    for document, keys in ((PlacementEnv.__doc__, observation), (PlacementOneShotEnv.__doc__, {"nodes": 0})):
        for key in keys:
            assert f"| `{key}` |" in document


def test_static_observation__is_what_the_graph_observation_holds():
    env = PlacementEnv([SMALL, LARGER], [cluster(2), cluster(3)], observation="graph")
    observation, info = env.reset(seed=3, options={"graph": SMALL.name, "cluster": "equal2"})
    static, shaped = env.static_observation(), env.unflatten(observation)
    for key, array in static.items():
        assert_same(array, shaped[key], key)
    groups, problem = info["groups"], env.problem
    assert static["node_mask"].sum() == groups < env.episodes.roster.max_groups
    assert not static["nodes"][groups:].any()
    assert not static["times"][:, 2:].any()
    assert not static["memory"][groups:].any()
    assert not static["memory"][:, 2:].any()
    edges = static["edge_index"][:, static["edge_index"][0] >= 0].T
    tasks, group = problem.simulator.tasks, problem.group_of_task
    wanted = {
        (int(group[tasks.tensor_task[tensor]]), int(group[reader]))
        for tensor in range(tasks.num_tensors)
        for reader in tasks.reader[tasks.reader_ptr[tensor] : tasks.reader_ptr[tensor + 1]]
    }
    assert {tuple(edge) for edge in edges.tolist()} == {pair for pair in wanted if pair[0] != pair[1]}
    assert (shaped["placement"][groups:] == -1).all()


def test_observation__does_not_depend_on_the_scale_of_the_graph():
    """Times and bytes ten times as large on a cluster ten times as fast and large look the same but for log sizes."""
    big = SMALL.replace(**{name: 16 * getattr(SMALL, name) for name in ("output_bytes", "param_bytes", "state_bytes")})

    def seen(graph, memory_bytes, bytes_per_s):
        base = cluster(2, memory_bytes)
        links = tuple(Link(link.name, 0.0, bytes_per_s) for link in base.links)
        env = PlacementEnv(graph, Cluster("c", base.devices, links, base.link_of, base.hosts), cost_model=UNIT)
        env.reset(seed=0)
        return [env.step(action)[0] for action in (1, 0, 1, 1, 0, 1)]

    for small, large in zip(seen(SMALL, 10**9, 1e8), seen(big, 16 * 10**9, 16e8)):
        np.testing.assert_array_equal(small["devices"], large["devices"])
        np.testing.assert_array_equal(small["progress"], large["progress"])


# -------------------------------------------------------------------------------------------------------- rewards


@pytest.mark.parametrize("start", ["single", "expert", "random"])
@pytest.mark.parametrize("memory_bytes", [10**15, 10**8, 10**7])
def test_rewards__sum_to_the_change_of_phi(start, memory_bytes):
    env = PlacementEnv(SMALL, cluster(3, memory_bytes), start=start)
    rng = np.random.default_rng(5)
    for seed in range(3):
        env.reset(seed=seed)
        first = env.problem.costs(env.decision[None])[0][0]
        rewards, info = run(env, rng.integers(0, 3, env.problem.num_groups), seed=seed)
        final_cost, valid = env.problem.costs(info["decision"][None])
        assert (info["cost"], info["valid"]) == (final_cost[0], valid[0])
        change = -math.sqrt(final_cost[0]) + math.sqrt(first)
        # exact but for the rounding of each difference and of the sum
        assert abs(math.fsum(rewards) - change) <= len(rewards) * np.spacing(math.sqrt(max(first, final_cost[0])))
        if valid[0]:
            assert info["cost"] == env.problem.evaluate(info["decision"]).cost


def test_rewards__overflow_costs_more_than_any_fitting_placement_and_less_overflow_is_better():
    env = PlacementEnv(SMALL, cluster(2, 10**15))
    env.reset(seed=0)
    peak = int(env.outcome().metrics["peak_bytes"][0])
    costs = {}
    for memory_bytes in (peak // 4, peak // 2, 10 * peak):
        tight = PlacementEnv(SMALL, cluster(2, memory_bytes))
        tight.reset(seed=0)
        _, info = run(tight, [0] * tight.problem.num_groups)
        costs[memory_bytes] = info["cost"]
        assert info["valid"] == (memory_bytes > peak)
    assert costs[peak // 4] > costs[peak // 2] > env.problem.serial_s
    assert costs[10 * peak] <= env.problem.serial_s * (1 + 1e-12)


def test_rewards__staying_costs_nothing_and_is_not_simulated(monkeypatch):
    env = PlacementEnv(SMALL, cluster(3))
    env.reset(seed=0)
    monkeypatch.setattr(type(env.problem.simulator), "cost", lambda *_: pytest.fail("simulated"))
    rewards, _ = run(env, [0] * env.problem.num_groups)
    assert set(rewards) == {0.0}


def test_terminal_reward__is_the_papers():
    rng = np.random.default_rng(0)
    for memory_bytes in (10**15, 10**7):
        env = PlacementEnv(SMALL, cluster(3, memory_bytes), reward="terminal")
        env.reset(seed=0)
        rewards, info = run(env, rng.integers(0, 3, env.problem.num_groups))
        outcome = env.problem.evaluate(info["decision"])
        assert outcome.valid == (memory_bytes == 10**15) == info["valid"]
        assert rewards[:-1] == [0.0] * (len(rewards) - 1)
        assert rewards[-1] == (-math.sqrt(outcome.cost) if outcome.valid else -10.0)


def test_one_shot_reward__is_the_papers():
    env = PlacementOneShotEnv([SMALL, LARGER], cluster(3))
    env.action_space.seed(0)
    for name in (SMALL.name, LARGER.name):
        env.reset(seed=0, options={"graph": name})
        action = env.action_space.sample()
        _, reward, done, truncated, info = env.step(action)
        assert (done, truncated, info["illegal_action"]) == (True, False, False)
        decision = action[: env.problem.num_groups]
        assert info["decision"][: env.problem.num_groups].tolist() == decision.tolist()
        assert (info["decision"][env.problem.num_groups :] == -1).all()
        assert reward == -math.sqrt(env.problem.evaluate(decision).cost)
    tight = PlacementOneShotEnv(SMALL, cluster(3, 10**7))
    tight.reset(seed=0)
    assert tight.step(tight.action_space.sample())[1] == -10.0


# --------------------------------------------------------------------------------------- instances of known optimum


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_known_optimum__is_reached_by_whole_branches(devices):
    graph = fork_join(4, 3)
    env = PlacementEnv(graph, cluster(devices, latency_s=0.0), grouping="op", cost_model=UNIT)
    action = [0, *((op - 1) // 3 % devices for op in range(1, 13)), 0]
    _, info = run(env, action)
    assert info["cost"] == known_optimum_s(graph, devices)


def test_known_optimum__a_chain_stays_on_one_device():
    graph = chain(6, output_bytes=10**9)
    env = PlacementEnv(graph, cluster(2), grouping="op", cost_model=UNIT)
    best = min(run(env, action)[1]["cost"] for action in itertools.product(range(2), repeat=6))
    assert best == known_optimum_s(graph, 2) == run(env, [1] * 6)[1]["cost"]


# --------------------------------------------------------------------------------------- scalar, sync and vector


CASES = {
    "one graph": (PlacementEnv, PlacementVectorEnv, {"graph": SMALL, "cluster": cluster(3)}),
    "mixed": (
        PlacementEnv,
        PlacementVectorEnv,
        {
            "graph": [SMALL, LARGER],
            "cluster": [cluster(2), cluster(4, 3 * 10**8)],
            "start": "random",
            "observation": "graph",
        },
    ),
    "terminal": (
        PlacementEnv,
        PlacementVectorEnv,
        {"graph": [SMALL, LARGER], "cluster": cluster(3, 3 * 10**8), "reward": "terminal"},
    ),
    "one shot": (
        PlacementOneShotEnv,
        PlacementOneShotVectorEnv,
        {"graph": [SMALL, LARGER], "cluster": [cluster(2), cluster(3)]},
    ),
}


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("case", CASES)
def test_vector__agrees_exactly_with_sync(case, mode):
    scalar_class, vector_class, arguments = CASES[case]
    count = 5
    sync = SyncVectorEnv([lambda: scalar_class(**arguments)] * count, autoreset_mode=mode)
    vector = vector_class(count, **arguments, autoreset_mode=mode)
    assert vector.metadata["autoreset_mode"] == mode
    assert vector.observation_space == sync.observation_space
    assert vector.action_space == sync.action_space
    assert vector.single_observation_space == sync.single_observation_space
    sync.action_space.seed(0)
    steps = 12 if "one shot" in case else 2 * 110 + 30
    for seed in (7, None, [3, None, 11, None, 5]):
        assert_same(vector.reset(seed=seed), sync.reset(seed=seed), "reset")
        if seed is not None:
            known = list(vector.np_random_seed)
            assert known == list(sync.np_random_seed)
        for step in range(steps if seed == 7 else 10):
            actions = sync.action_space.sample()
            ours, theirs = vector.step(actions), sync.step(actions)
            assert_same(ours[:4], theirs[:4], f"step {step}")
            assert_same(ours[4], theirs[4], f"infos of step {step}")
            masks = np.stack(sync.call("action_masks"))
            assert_same(vector.action_masks(), masks)


def test_vector__agrees_with_options():
    arguments = {"graph": [SMALL, LARGER], "cluster": cluster(2)}
    sync = SyncVectorEnv([lambda: PlacementEnv(**arguments)] * 3)
    vector = PlacementVectorEnv(3, **arguments)
    options = {"graph": LARGER.name}
    assert_same(vector.reset(seed=1, options=options), sync.reset(seed=1, options=options))
    assert {vector.problem(row).graph.name for row in range(3)} == {LARGER.name}
    assert_same(vector.outcome(0).metrics, sync.envs[0].outcome().metrics)
    assert_same(vector.static_observation(2), sync.envs[2].static_observation())


def test_scalar__agrees_with_a_sub_environment():
    vector = PlacementVectorEnv(4, SMALL, cluster(3), start="random")
    scalar = PlacementEnv(SMALL, cluster(3), start="random")
    observations, _ = vector.reset(seed=10)
    observation, _ = scalar.reset(seed=12)
    rng = np.random.default_rng(0)
    for _ in range(scalar.problem.num_groups):
        assert_same({key: array[2] for key, array in observations.items()}, observation)
        actions = rng.integers(0, 3, 4)
        observations, rewards, terminated, _, _ = vector.step(actions)
        observation, reward, done, _, _ = scalar.step(actions[2])
        assert (reward, done) == (rewards[2], terminated[2])
    assert done


def test_make_vec__gives_the_native_vector_environment():
    envs = gym.make_vec(
        "Placement-v0", num_envs=64, vectorization_mode="vector_entry_point", graph=SMALL, cluster=cluster(2)
    )
    assert isinstance(envs, EpisodeVectorEnv)
    observations, infos = envs.reset(seed=0)
    assert observations["group"].shape == (64, 25)
    assert infos["_graph"].all()
    _, rewards, *_ = envs.step(np.arange(64) % 2)
    assert len(set(rewards[1::2].tolist())) == 1
    assert set(rewards[::2].tolist()) == {0.0}
    envs.close()


# ---------------------------------------------------------------------------------------- actions, masks, choosing


def test_illegal_action__leaves_the_group_and_is_reported():
    env = PlacementEnv(SMALL, [cluster(2), cluster(4)], start="random")
    env.reset(seed=0, options={"cluster": "equal2"})
    assert env.action_masks().tolist() == [True, True, False, False]
    before = env.decision
    for illegal in (3, 2, -1, 10**6):
        observation, reward, _, _, info = env.step(illegal)
        assert (reward, info["illegal_action"]) == (0.0, True)
        assert observation["action_mask"].tolist() == [1, 1, 0, 0]
        assert (env.decision == before).all()
    assert env.step(1)[4]["illegal_action"] is False
    env.reset(seed=0, options={"cluster": "equal4"})
    assert env.action_masks().all()


def test_illegal_action__of_the_one_shot_goes_to_the_fastest_device():
    env = PlacementOneShotEnv([SMALL, LARGER], cluster(2), max_devices=3)
    env.reset(seed=0, options={"graph": SMALL.name})
    groups = env.problem.num_groups
    masks = env.action_masks().reshape(-1, 3)
    assert masks[:groups].tolist() == [[True, True, False]] * groups
    assert masks[groups:].tolist() == [[True, False, False]] * (len(masks) - groups)
    action = np.full(len(masks), 2)
    action[0] = 1
    _, _, _, _, info = env.step(action)
    assert info["illegal_action"]
    assert info["decision"][:groups].tolist() == [1] + [0] * (groups - 1)
    env.reset(seed=0, options={"graph": SMALL.name})
    legal = np.where(np.arange(len(masks)) < groups, 1, 2)  # padding is ignored
    assert env.step(legal)[4]["illegal_action"] is False


def test_reset__draws_every_pair_and_repeats_with_the_seed():
    env = PlacementEnv([SMALL, LARGER], [cluster(2), cluster(3)])

    def names(seed):
        infos = [env.reset(seed=seed if first else None)[1] for first in [True] + [False] * 30]
        return [(info["graph"], info["cluster"]) for info in infos]

    assert names(4) == names(4) != names(5)
    assert len(set(names(4))) == 4


def test_graph__may_be_the_name_of_a_split(monkeypatch):
    monkeypatch.setitem(graphopt_gym.catalogs()["graphs"].splits, "toys", ("rnnlm_2layer", "transformer_xl_2layer"))
    env = PlacementEnv("toys", "v100x2")
    assert env.reset(seed=0, options={"graph": "transformer_xl_2layer"})[1]["graph"] == "transformer_xl_2layer"
    assert {env.reset()[1]["graph"] for _ in range(20)} == {"rnnlm_2layer", "transformer_xl_2layer"}


def test_start__is_what_was_asked_for():
    groups = PlacementProblem(SMALL, cluster(3)).num_groups
    given = np.arange(groups) % 3
    env = PlacementEnv(SMALL, cluster(3), start=given)
    env.reset(seed=0)
    assert env.decision.tolist() == given.tolist()
    env = PlacementEnv(SMALL, cluster(3), start="expert")
    env.reset(seed=0)
    assert env.decision.tolist() == graphopt_gym.solve(env.problem, "expert").decision.tolist()
    env = PlacementEnv(SMALL, cluster(3), start="random")
    env.reset(seed=1)
    first = env.decision
    env.reset()
    assert (env.decision != first).any()
    env.reset(seed=1)
    assert (env.decision == first).all()


def test_start__single_is_the_device_that_is_fastest_alone():
    fast = Device("fast", "gpu", 10**15, 1e12, {"float32": 1e13})
    base = cluster(2)
    mixed = Cluster("mixed", (base.devices[0], fast), base.links, base.link_of, base.hosts)
    env = PlacementEnv(SMALL, mixed)
    env.reset(seed=0)
    assert set(env.decision.tolist()) == {1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clutser": "v100x4"}, "unknown argument of Placement-v0 'clutser'; did you mean 'cluster'?"),
        ({"unknown": 1}, "unknown argument of Placement-v0 'unknown'"),
        ({"cluster": "v100x3"}, "unknown cluster 'v100x3'; did you mean"),
        ({"graph": "bert_bsae"}, "unknown graph 'bert_bsae'; did you mean 'bert_base'?"),
        ({"grouping": "ops"}, "unknown grouping 'ops'; did you mean 'op'?"),
        ({"reward": "improvment"}, "unknown reward 'improvment'; did you mean 'improvement'?"),
        ({"observation": "graphs"}, "unknown observation 'graphs'; did you mean 'graph'?"),
        ({"start": "singel"}, "unknown start 'singel'; did you mean 'single'?"),
        ({"start": [0]}, r"decision has shape \(1,\)"),
        ({"graph": []}, "graph is an empty list"),
        ({"graph": [SMALL, SMALL]}, f"two of the graphs are called '{SMALL.name}'"),
        ({"graph": [SMALL, LARGER], "start": [0]}, "start is an array, which fits one graph"),
        ({"max_devices": 2}, "max_devices is 2; give a whole number of at least 3"),
        ({"max_groups": 1.5}, "max_groups is 1.5"),
    ],
)
def test_make__refuses_bad_arguments_with_one_line(arguments, message):
    for make in (gym.make, gym.make_vec):
        with pytest.raises(InputError, match=message.replace("?", r"\?")) as raised:
            make("Placement-v0", **({"graph": SMALL, "cluster": cluster(3)} | arguments))
        assert "\n" not in str(raised.value)


def test_vector__refuses_bad_arguments_with_one_line():
    with pytest.raises(InputError, match="num_envs is 0"):
        PlacementVectorEnv(0, SMALL, cluster(2))
    with pytest.raises(InputError, match="autoreset_mode is 'Never'; give 'NextStep', 'SameStep', 'Disabled'"):
        PlacementVectorEnv(2, SMALL, cluster(2), autoreset_mode="Never")
    envs = PlacementVectorEnv(2, SMALL, cluster(2))
    with pytest.raises(ResetNeeded, match=r"call reset\(\) first"):
        envs.step([0, 0])
    with pytest.raises(InputError, match="3 seeds for 2 sub-environments"):
        envs.reset(seed=[1, 2, 3])
    envs.reset(seed=0)
    with pytest.raises(InputError, match=r"actions have shape \(3,\)"):
        envs.step([0, 0, 0])
    with pytest.raises(InputError, match="unknown reset option 'grahp'; did you mean 'graph'"):
        envs.reset(options={"grahp": SMALL.name})
    with pytest.raises(InputError, match="unknown graph of this environment 'other'"):
        envs.reset(options={"graph": "other"})


def test_step__asks_for_reset_before_and_after_an_episode():
    env = PlacementEnv(SMALL, cluster(2))
    with pytest.raises(ResetNeeded):
        env.step(0)
    with pytest.raises(ResetNeeded):
        env.render()
    env.reset(seed=0)
    run(env, [0] * env.problem.num_groups)
    with pytest.raises(ResetNeeded):
        env.step(0)
    one_shot = PlacementOneShotEnv(SMALL, cluster(2))
    one_shot.reset(seed=0)
    with pytest.raises(InputError, match=r"action has shape \(3,\)"):
        one_shot.step(np.zeros(3, int))


def test_environments__share_one_problem():
    first, second = PlacementEnv(SMALL, cluster(3)), PlacementVectorEnv(2, SMALL, cluster(3))
    first.reset(seed=0)
    second.reset(seed=0)
    assert first.problem is second.problem(1)
    other = PlacementEnv(SMALL, cluster(3), cost_model=UNIT)
    other.reset(seed=0)
    assert other.problem is not first.problem


# ------------------------------------------------------------------------------------------------------ rendering


@pytest.mark.parametrize("scalar", [True, False])
def test_render__shows_the_placement(scalar, capsys):
    def make(mode):
        arguments = {"graph": SMALL, "cluster": cluster(2), "render_mode": mode}
        return PlacementEnv(**arguments) if scalar else PlacementVectorEnv(2, **arguments)

    def first(frame):
        return frame if scalar else frame[0]

    envs = make("rgb_array")
    envs.reset(seed=0)
    single = first(envs.render())
    assert (single.dtype, single.ndim, single.shape[2]) == (np.uint8, 3, 3)
    for _ in range(10):
        envs.step(1 if scalar else [1, 1])
    assert not np.array_equal(first(envs.render()), single)

    envs = make("ansi")
    envs.reset(seed=0)
    text = first(envs.render())
    assert f"{SMALL.name} on equal2: 0 of" in text
    lines = text.splitlines()  # a head, a line a device, the rules, what costs rest on
    assert len(lines) == 5
    assert lines[3:] == ["  order fifo, grouping colocation", f"  {PlacementProblem(SMALL, cluster(2)).costs_note}"]

    envs = make("human")
    envs.reset(seed=0)
    shown = capsys.readouterr().out
    assert text in shown
    assert envs.render() in (None, (None, None))


def test_render__refuses_an_unknown_mode():
    with pytest.raises(InputError, match="unknown render mode 'rgb'; did you mean 'rgb_array'"):
        PlacementEnv(SMALL, cluster(2), render_mode="rgb")


# -------------------------------------------------------------------------------------------------- documentation


def test_docstrings__run_and_keep_the_order_of_gymnasium():
    assert doctest.testmod(env_module).failed == 0
    order = [
        "Description", "Action Space", "Observation Space", "Rewards", "Starting State", "Episode End", "Arguments",
        "Vectorized environment", "Version History",
    ]  # fmt: skip
    for documented in (PlacementEnv, PlacementOneShotEnv):
        heads = [line.strip()[3:] for line in documented.__doc__.splitlines() if line.strip().startswith("## ")]
        assert heads == order
