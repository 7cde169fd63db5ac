"""Observations as graphs."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

import graphopt_gym  # noqa: F401 - registers the environments
from graphopt_gym.envs.rewrite.features import node_features
from graphopt_gym.errors import InputError
from graphopt_gym.wrappers import GraphObservation, PyGObservation
from tests.envs.placement.cases import LARGER, SMALL, cluster
from tests.envs.rewrite.programs import attention, recurrent

ARGUMENTS = {"graph": [SMALL, LARGER], "cluster": [cluster(2), cluster(3)]}


def make(env_id):
    extra = {"observation": "graph"} if env_id == "Placement-v0" else {}
    return gym.make(env_id, **ARGUMENTS, **extra)


@pytest.mark.parametrize("env_id", ["Placement-v0", "PlacementOneShot-v0"])
def test_graph__is_in_its_space_and_holds_the_groups(env_id):
    env = GraphObservation(make(env_id))
    for name in (SMALL.name, LARGER.name):
        graph, info = env.reset(seed=0, options={"graph": name})
        assert env.observation_space.contains(graph)
        instance = env.unwrapped.episodes.instance(0)
        assert graph.nodes.shape[0] == info["groups"]
        assert graph.edge_links.tolist() == instance.group_edges.tolist()
        assert np.array_equal(graph.nodes[:, :27], instance.tables.node_features)


def test_graph__follows_the_placement():
    env = GraphObservation(make("Placement-v0"))
    graph, _ = env.reset(seed=0, options={"cluster": "equal3"})
    assert graph.nodes.shape[1] == 27 + 3 + 3 + 3 + 2
    assert graph.nodes[:, 33:36].tolist() == [[1, 0, 0]] * len(graph.nodes)
    assert graph.nodes[:, 36].sum() == 0
    assert graph.nodes[:, 37].argmax() == 0
    graph = env.step(2)[0]
    assert graph.nodes[:2, 33:].tolist() == [[0, 0, 1, 1, 0], [1, 0, 0, 0, 1]]


def test_pyg__is_the_same_graph_and_batches():
    pytest.importorskip("torch_geometric")
    from torch_geometric.data import Batch

    env, plain = PyGObservation(make("Placement-v0")), GraphObservation(make("Placement-v0"))
    seen = []
    for name in (SMALL.name, LARGER.name):
        data, info = env.reset(seed=1, options={"graph": name})
        graph, _ = plain.reset(seed=1, options={"graph": name})
        data.validate()
        assert data.num_nodes == info["groups"]
        assert np.array_equal(data.x.numpy(), graph.nodes)
        assert np.array_equal(data.edge_index.numpy().T, graph.edge_links)
        assert np.array_equal(data.edge_attr.numpy(), graph.edges)
        assert tuple(data.devices.shape) == (1, 3, 15)
        seen.append(data)
    batch = Batch.from_data_list(seen)
    assert batch.num_graphs == 2
    assert tuple(batch.devices.shape) == (2, 3, 15)
    one_shot, _ = PyGObservation(make("PlacementOneShot-v0")).reset(seed=0)
    assert tuple(one_shot.action_mask.shape) == (1, 3)


def test_graph__of_a_chiplet_partition_holds_its_ops():
    pytest.importorskip("torch_geometric")
    arguments = {"graph": [SMALL, LARGER], "cluster": ["mcm4", "mcm9"], "mode": "sample"}
    env, pyg = (wrap(gym.make("ChipletPartition-v0", **arguments)) for wrap in (GraphObservation, PyGObservation))
    for name in (SMALL.name, LARGER.name):
        graph, info = env.reset(seed=0, options={"graph": name})
        instance = env.unwrapped.episodes.instance(0)
        assert env.observation_space.contains(graph)
        assert np.array_equal(graph.nodes, instance.op_features[: info["ops"]])
        assert graph.edge_links.tolist() == env.unwrapped.problem.ops.edges.tolist()
        assert np.array_equal(graph.edges[:, 0], instance.edge_features)
        data, _ = pyg.reset(seed=0, options={"graph": name})
        assert np.array_equal(data.x.numpy(), graph.nodes)
        assert np.array_equal(data.chips[0, : info["chips"]].numpy(), instance.chip_features)
    assert env.step(env.action_space.sample())[2]


def test_graph__of_a_program_holds_its_operands_and_matches():
    pytest.importorskip("torch_geometric")
    from torch_geometric.data import Batch

    programs = [attention(), recurrent()]
    env, pyg = (wrap(gym.make("RewriteOrder-v0", graph=programs)) for wrap in (GraphObservation, PyGObservation))
    seen = []
    for program in programs:
        graph, info = env.reset(seed=0, options={"graph": program.name})
        state = env.unwrapped.episodes.state(0)
        assert env.observation_space.contains(graph)
        features, edges, operand = node_features(state, info["cost"])
        assert np.array_equal(graph.nodes, features)
        assert np.array_equal(graph.edge_links.T, edges)
        assert np.array_equal(graph.edges[:, 0], operand)
        data, _ = pyg.reset(seed=0, options={"graph": program.name})
        data.validate()
        assert np.array_equal(data.x.numpy(), graph.nodes)
        place = state.program.position
        roots = [(place[match.roots[0]], place[match.roots[-1]]) for match in state.matches]
        assert data.match_index.T.tolist() == [list(pair) for pair in roots]
        assert data.match_rule.tolist() == [match.rule for match in state.matches]
        assert len(data.matches) == info["matches"] == int(data.action_mask.sum()) - 1
        seen.append(data)
    batch = Batch.from_data_list(seen, follow_batch=["matches"])
    assert np.bincount(batch.matches_batch).tolist() == [len(one.matches) for one in seen]
    moved = batch.match_index[:, batch.matches_batch == 1] - seen[0].num_nodes
    assert moved.tolist() == seen[1].match_index.tolist()
    assert pyg.step(1)[0].num_nodes == len(pyg.unwrapped.episodes.state(0).program)


def test_wrappers__refuse_an_observation_without_a_graph():
    for wrapper in (GraphObservation, PyGObservation):
        with pytest.raises(InputError, match="make it with observation='graph'"):
            wrapper(gym.make("Placement-v0", graph=SMALL, cluster=cluster(2)))
        with pytest.raises(InputError, match="holds no graph"):
            wrapper(gym.make("ChipletPartition-v0", graph=SMALL, mode="step"))
