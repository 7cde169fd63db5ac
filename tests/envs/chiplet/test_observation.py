"""The features against plain Python over networkx, and their range on odd inputs."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest

from graphopt_gym.envs.chiplet.features import (
    CHIP_FEATURES,
    OP_FEATURES,
    chip_features,
    edge_features,
    op_features,
)
from graphopt_gym.envs.chiplet.problem import ChipletProblem
from graphopt_gym.graphs.generators import chain, fork_join, layered_dag


def graphs():
    yield layered_dag(60, seed=1)
    yield chain(7)
    yield fork_join(5, 3)
    yield chain(1)


@pytest.mark.parametrize("package", ["mcm4", "mcm36", "mcm16_mixed", "mesh6x6"])
def test_features__lie_in_0_to_1_on_any_graph(package):
    for graph in graphs():
        problem = ChipletProblem(graph, package)
        for features, shape in (
            (op_features(problem), (problem.num_ops, len(OP_FEATURES))),
            (chip_features(problem), (problem.num_chips, len(CHIP_FEATURES))),
            (edge_features(problem), (len(problem.ops.edges),)),
        ):
            assert features.dtype == np.float32
            assert features.shape == shape
            assert np.isfinite(features).all()
            assert features.size == 0 or (features.min() >= 0 and features.max() <= 1)


def test_op_features__agree_with_networkx():
    problem = ChipletProblem(layered_dag(80, seed=4), "mcm16")
    features = dict(zip(OP_FEATURES, op_features(problem).T, strict=True))
    work = problem.op_seconds.mean(axis=0)
    graph = nx.DiGraph(problem.ops.edges.tolist())
    graph.add_nodes_from(range(problem.num_ops))
    longest = dict.fromkeys(graph, 0)
    for op in nx.topological_sort(graph):
        for successor in graph.successors(op):
            longest[successor] = max(longest[successor], longest[op] + 1)
    for op in graph:
        above = work[list(nx.ancestors(graph, op))].sum() / work.sum()
        below = work[list(nx.descendants(graph, op))].sum() / work.sum()
        assert features["work_above"][op] == pytest.approx(above, abs=1e-6)
        assert features["work_below"][op] == pytest.approx(below, abs=1e-6)
        assert features["level"][op] == pytest.approx(longest[op] / max(longest.values()), abs=1e-6)
        before = work[:op].sum() + work[op] / 2
        assert features["work_before"][op] == pytest.approx(before / work.sum(), abs=1e-6)
        ratio = work[op] * problem.num_chips / work.sum()
        assert features["time_to_share"][op] == pytest.approx(ratio / (1 + ratio), abs=1e-6)
        assert features["fan_out"][op] == pytest.approx(graph.out_degree(op) / (1 + graph.out_degree(op)))


def test_edge_features__are_what_each_edge_carries():
    problem = ChipletProblem(layered_dag(50, seed=2), "mcm9")
    carried = np.zeros((problem.num_ops, problem.num_ops))
    for tensor, producer in enumerate(problem.ops.tensor_op.tolist()):
        if producer < 0:
            continue
        for reader in problem.ops.reader[problem.ops.reader_ptr[tensor] : problem.ops.reader_ptr[tensor + 1]].tolist():
            carried[producer, reader] += problem.ops.tensor_bytes[tensor] / problem.package.link_bytes_per_s
    share = problem.op_seconds.mean(axis=0).sum() / problem.num_chips
    for (u, v), value in zip(problem.ops.edges.tolist(), edge_features(problem).tolist(), strict=True):
        ratio = carried[u, v] / share
        assert value == pytest.approx(ratio / (1 + ratio), abs=1e-6)
