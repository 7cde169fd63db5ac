"""Environments draw graphs and clusters anew at each reset, by their generator alone."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import graphopt_gym as gg
from graphopt_gym.envs.chiplet.env import ChipletPartitionEnv
from graphopt_gym.envs.placement.env import PlacementEnv, PlacementOneShotEnv
from graphopt_gym.errors import InputError
from graphopt_gym.generator import Curriculum
from graphopt_gym.graphs.generators import layered_dag
from graphopt_gym.graphs.graph import ComputationGraph
from graphopt_gym.solutions import validate

GRAPH, CLUSTER = "random:num_ops=64-128", "random:devices=2-4"


def _random_env(**arguments: Any) -> PlacementEnv:
    return PlacementEnv(**{"graph": GRAPH, "cluster": CLUSTER, **arguments})


def _names(env: Any, count: int, **first: Any) -> list[tuple[str, str]]:
    infos = [env.reset(**first)[1], *(env.reset()[1] for _ in range(count - 1))]
    return [(info["graph"], info["cluster"]) for info in infos]


def _episode(env: Any, rng: np.random.Generator) -> dict[str, Any]:
    done, info = False, {}
    while not done:
        action = rng.choice(np.flatnonzero(env.action_masks()))
        observation, _, done, _, info = env.step(int(action))
        assert env.observation_space.contains(observation)
    return info


def _own(rng: np.random.Generator) -> ComputationGraph:
    return layered_dag(int(rng.integers(10, 40)), seed=int(rng.integers(1000)))


def test_reset__draws_anew_and_the_seed_says_what() -> None:
    env = _random_env()
    first = _names(env, 6, seed=3)
    assert len(set(first)) == 6
    assert _names(env, 6, seed=3) == first
    assert _names(_random_env(), 6, seed=3) == first
    assert _names(env, 6, seed=4) != first


def test_episode__keeps_to_the_spaces_whatever_is_drawn() -> None:
    env, rng, rooms = _random_env(observation="graph"), np.random.default_rng(0), set()
    observation, _ = env.reset(seed=0)
    for _ in range(5):
        assert env.observation_space.contains(observation)
        info = _episode(env, rng)
        decision = info["decision"][: env.problem.num_groups]
        assert env.problem.evaluate(decision).cost == info["cost"] or not info["valid"]
        rooms.add(env.problem.num_groups)
        observation, _ = env.reset()
    assert len(rooms) > 1


@pytest.mark.parametrize("grouping", ["phase", "op"])
def test_grouping__has_room(grouping: str) -> None:
    env = PlacementOneShotEnv(graph=GRAPH, cluster=CLUSTER, grouping=grouping)
    for _ in range(10):
        observation, _ = env.reset(seed=None)
        assert env.observation_space.contains(observation)


def test_problem__is_that_of_the_episode() -> None:
    env = _random_env()
    with pytest.raises(gym.error.ResetNeeded):
        _ = env.problem
    _, info = env.reset(seed=0)
    assert env.problem.graph_name == info["graph"]
    again = gg.make_problem("Placement-v0", **env.problem.config)
    assert again.fingerprints() == env.problem.fingerprints()


def test_solution__is_checked_from_its_file(tmp_path: Path) -> None:
    env = _random_env()
    env.reset(seed=0)
    solution = gg.solve(env.problem, "annealing", budget=50)
    solution.save(tmp_path / "solution.json")
    assert validate(tmp_path / "solution.json").ok


def test_vector__agrees_with_scalar_ones() -> None:
    arguments: dict[str, Any] = {"graph": GRAPH, "cluster": CLUSTER, "observation": "graph"}
    many = gym.make_vec("Placement-v0", num_envs=3, **arguments)
    each: Any = gym.vector.SyncVectorEnv([lambda: gym.make("Placement-v0", **arguments)] * 3)
    rng = np.random.default_rng(0)
    (ours, info), (theirs, other) = many.reset(seed=5), each.reset(seed=5)
    assert list(info["graph"]) == list(other["graph"])
    assert len(set(info["graph"])) == 3
    for _ in range(60):
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])
        action = rng.integers(0, 2, 3)
        ours, reward, ended, _, info = many.step(action)
        theirs, wanted, done, _, other = each.step(action)
        np.testing.assert_array_equal(reward, wanted)
        np.testing.assert_array_equal(ended, done)
        assert list(info.get("graph", [])) == list(other.get("graph", []))


def test_drawn__stands_beside_what_is_fixed() -> None:
    env = PlacementEnv(graph=["transformer_xl_2layer", GRAPH], cluster=["v100x2", "perturbed:v100x4"])
    names = _names(env, 30, seed=0)
    graphs, clusters = ({name.partition(":seed")[0] for name in column} for column in zip(*names, strict=True))
    assert graphs == {"transformer_xl_2layer", GRAPH}
    assert clusters == {"v100x2", "perturbed:v100x4"}
    _, info = env.reset(options={"graph": "transformer_xl_2layer", "cluster": "perturbed:v100x4"})
    assert info["graph"] == "transformer_xl_2layer"
    assert env.problem.config["graph"] == "transformer_xl_2layer"
    assert env.problem.config["cluster"] == info["cluster"]


def test_options__choose_one_that_is_drawn() -> None:
    env = _random_env()
    _, info = env.reset(options={"graph": f"{GRAPH}:seed=7"})
    assert info["graph"] == f"{GRAPH}:seed=7"
    assert env.reset(options={"graph": GRAPH})[1]["graph"].startswith(f"{GRAPH}:seed=")
    for name in ("random:num_ops=64:seed=7", "bert_base", 3):
        with pytest.raises(InputError, match="unknown graph of this environment"):
            env.reset(options={"graph": name})


def test_seeds__make_a_finite_set() -> None:
    env = _random_env(graph=f"{GRAPH}:seed=0-3", cluster="v100x2")
    assert {graph for graph, _ in _names(env, 40, seed=0)} == {f"{GRAPH}:seed={seed}" for seed in range(4)}


def test_one_seed__is_a_graph_like_any_other() -> None:
    env = _random_env(graph=f"{GRAPH}:seed=7", cluster="v100x2")
    assert env.problem.graph_name == f"{GRAPH}:seed=7"
    assert env.episodes.roster.max_groups == env.problem.num_groups


def test_function__draws_within_the_room_given() -> None:
    env = PlacementEnv(graph=_own, cluster="v100x2", max_groups=40, max_edges=200)
    first = _names(env, 4, seed=0)
    assert len(set(first)) > 1
    assert _names(env, 4, seed=0) == first
    _episode(env, np.random.default_rng(0))
    with pytest.raises(InputError, match=r"which may return any size; give max_groups"):
        PlacementEnv(graph=_own)
    with pytest.raises(InputError, match=r"was drawn and needs max_groups=\d+, but there is room for 3; give more"):
        PlacementEnv(graph=_own, max_groups=3, max_edges=200).reset(seed=0)
    with pytest.raises(InputError, match="returned a int; return a ComputationGraph"):
        PlacementEnv(graph=lambda rng: 3, max_groups=3, max_edges=9).reset(seed=0)


def test_curriculum__draws_from_its_stage() -> None:
    stages = Curriculum("random:num_ops=64", "random:num_ops=96", "random:num_ops=128")
    env = PlacementEnv(graph=stages, cluster="v100x2")
    assert env.episodes.roster.max_groups == 128 // 3

    def ops(**reset: Any) -> int:
        env.reset(**reset)
        return env.problem.graph.num_ops

    assert ops(seed=0) == 64
    env.set_stage(2)
    assert ops() == 128
    assert ops(options={"stage": 1}) == 96
    assert ops() == 128
    for stage in (3, -1, "last"):
        with pytest.raises(InputError, match="stage is"):
            env.set_stage(stage)  # type: ignore[arg-type]
    vector: Any = gym.make_vec("Placement-v0", num_envs=2, graph=stages, cluster="v100x2")
    vector.set_stage(1)
    assert all("num_ops=96" in name for name in vector.reset(seed=0)[1]["graph"])
    with pytest.raises(InputError, match="there are no stages here"):
        _random_env().set_stage(0)
    with pytest.raises(InputError, match=r"stage 0 of .* draws nothing"):
        PlacementEnv(graph=Curriculum("bert_base"))


def test_refused__what_belongs_to_one_graph() -> None:
    with pytest.raises(InputError, match="op_times_s is of one graph on one cluster, but they are drawn"):
        _random_env(op_times_s=np.ones(64))
    with pytest.raises(InputError, match="start is an array"):
        _random_env(start=[0, 1])
    with pytest.raises(InputError, match="RewriteOrder-v0 draws no graphs"):
        gym.make("RewriteOrder-v0", graph=_own)
    with pytest.raises(InputError, match="mode 'step' draws no graphs"):
        ChipletPartitionEnv(graph="random", cluster="mcm4", mode="step")


@pytest.mark.parametrize("mode", ["fix", "sample"])
def test_chiplet__draws_too(mode: str) -> None:
    env = ChipletPartitionEnv(graph="random:num_ops=64-128:train=no", cluster="mcm4", mode=mode)
    found = set()
    for seed in range(4):
        observation, info = env.reset(seed=seed)
        assert env.observation_space.contains(observation)
        found.add(info["graph"])
        _, _, done, _, info = env.step(env.action_space.sample())
        assert done
        assert env.problem.evaluate(info["decision"][: env.problem.num_ops]).valid == info["valid"]
    assert len(found) == 4


def test_copy__goes_on_alike() -> None:
    env = _random_env()
    env.reset(seed=0)
    for other in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        assert _names(other, 3, seed=8) == _names(env, 3, seed=8)
