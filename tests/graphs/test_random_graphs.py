"""Random graphs: valid, of the size asked for, the same by their number, and like the zoo's."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt_gym.envs.placement.instances import Instance
from graphopt_gym.envs.placement.problem import PlacementProblem
from graphopt_gym.graphs.graph import OP_CLASSES, PHASES, SOURCE, VIEW, ComputationGraph
from graphopt_gym.graphs.random_graphs import FAMILIES, RandomGraphs
from graphopt_gym.graphs.zoo import load_graph

ZOO = ("bert_base", "gpt2_small", "resnet50", "inception_v3_b32", "rnnlm_2layer", "transformer_xl_2layer",
       "wavenet_2x18")  # fmt: skip
DRAWN = 12  # of each family


def _facts(graph: ComputationGraph) -> dict[str, float]:
    """What a training step looks like, in numbers."""
    problem = PlacementProblem(graph, "v100x4")
    seconds = np.sort(problem.simulator.durations_s[0])[::-1]
    seconds = seconds[seconds > 0]
    computes = (graph.op_class != SOURCE) & (graph.op_class != VIEW)
    flops = graph.flops[computes].astype(float)
    of_phase = [float(graph.flops[graph.phase == phase].sum()) for phase in range(len(PHASES))]
    return {
        "edges an op": graph.num_edges / graph.num_ops,
        "time of the top tenth": seconds[: len(seconds) // 10].sum() / seconds.sum(),
        "bytes a FLOP": float((graph.bytes_read + graph.bytes_written).sum()) / flops.sum(),
        "spread of FLOPs": float(np.log(flops[flops > 0]).std()),
        "views": float((graph.op_class == VIEW).mean()),
        "groups an op": problem.num_groups / graph.num_ops,
        "phases a group": PlacementProblem(graph, "v100x4", grouping="phase").num_groups / problem.num_groups,
        "backward to forward": of_phase[1] / of_phase[0],
        "depth an op": int(graph.level.max()) / graph.num_ops,
    }


@cache
def _zoo() -> dict[str, tuple[float, float]]:
    found = [_facts(load_graph(name)) for name in ZOO]
    return {fact: (min(one[fact] for one in found), max(one[fact] for one in found)) for fact in found[0]}


@pytest.mark.parametrize("family", list(FAMILIES))
def test_family__is_like_the_zoo(family: str) -> None:
    """The median graph is within what the zoo spans, a quarter of the span beyond either end included.

    The least and largest of the zoo are of seven graphs of fixed sizes; a random graph of 1,000 ops is smaller than
    most of them, so a recurrent one has fewer steps to a parameter, and more groups an op.
    """
    found = [_facts(RandomGraphs(num_ops=1000, families=family).make(seed)) for seed in range(DRAWN)]
    for fact, (low, high) in _zoo().items():
        median, room = np.median([one[fact] for one in found]), 0.25 * (high - low)
        assert low - room <= median <= high + room, (family, fact, median, (low, high))


def test_costs__are_uneven_from_graph_to_graph() -> None:
    times = [PlacementProblem(RandomGraphs().make(seed), "v100x4").alone_s[0] for seed in range(40)]
    assert max(times) > 20 * min(times)


def _check(graph: ComputationGraph, train: bool) -> None:
    computes = (graph.op_class != SOURCE) & (graph.op_class != VIEW)
    assert (graph.edge_src < graph.edge_dst).all()
    assert graph.succ_ptr[-1] == graph.pred_ptr[-1] == graph.num_edges
    assert (np.diff(graph.pred_ptr)[computes] > 0).all()
    assert (graph.bytes_read[computes] > 0).all()
    assert (graph.bytes_written[computes] > 0).all()
    assert (graph.colocation >= 0).all()
    views = graph.op_class == VIEW
    assert (graph.colocation[views] == graph.colocation[graph.view_root[views]]).all()
    classes, phases = (np.array(names) for names in (OP_CLASSES, PHASES))
    updates = classes[graph.op_class] == "optimizer"
    assert (updates == (phases[graph.phase] == "optimizer")).all()
    parameters = np.flatnonzero(graph.param_bytes)
    if train:
        assert updates.sum() == len(parameters) > 0
        for parameter in parameters:  # read by its own update, in its group
            (update,) = [op for op in graph.successors(parameter) if updates[op]]
            assert graph.colocation[update] == graph.colocation[parameter]
            assert graph.state_bytes[update] in (graph.param_bytes[parameter], 2 * graph.param_bytes[parameter])
        # whatever computes is read, but for updates, and the loss, whose gradient starts from itself
        dead = computes & ~updates & (np.diff(graph.succ_ptr) == 0)
        assert not dead.any()
    else:
        assert not graph.phase.any()
        assert not updates.any()


@settings(max_examples=60)
@given(st.sampled_from(list(FAMILIES)), st.integers(0, 900), st.booleans(), st.integers(0, 2**32 - 1))
def test_graph__is_valid_of_its_size_and_within_what_is_said(family: str, more: int, train: bool, seed: int) -> None:
    drawn = RandomGraphs(num_ops=FAMILIES[family].least + more, families=family, train=train)
    graph = drawn.make(seed)
    assert graph.num_ops == FAMILIES[family].least + more
    _check(graph, train)
    most, one = drawn.most, Instance(PlacementProblem(graph, "v100x2"))
    assert graph.num_edges <= most["edges"]
    assert one.num_groups <= most["groups"]
    assert one.num_edges <= most["group_edges"]


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 2))
def test_seed__makes_the_same_graph_and_another_another(seed: int) -> None:
    drawn = RandomGraphs(num_ops=(128, 256))
    assert drawn.make(seed).fingerprint == drawn.make(seed).fingerprint != drawn.make(seed + 1).fingerprint


@pytest.mark.parametrize("grouping", ["colocation", "phase", "op"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_placement__takes_every_grouping(family: str, grouping: str) -> None:
    problem = PlacementProblem(RandomGraphs(num_ops=200, families=family).make(1), "v100x4", grouping=grouping)
    outcome = problem.evaluate(problem.sample(np.random.default_rng(0)))
    assert outcome.cost > max(problem.bounds().values()) * (1 - 1e-12)


def test_num_ops__are_drawn_from_the_whole_range() -> None:
    sizes = [RandomGraphs(num_ops=(64, 300)).make(seed).num_ops for seed in range(60)]
    assert 64 <= min(sizes) < 80
    assert 250 < max(sizes) <= 300
