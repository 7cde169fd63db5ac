"""The placement problem: decisions, costs, memory, bounds, and stored solutions."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

import graphopt_gym as gg
from graphopt_gym.envs.placement.problem import PlacementProblem
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.generators import layered_dag
from graphopt_gym.hardware.cluster import Cluster, Link
from tests.simulator.cases import device, random_cluster, random_graph


def cluster_of(count: int, memory_bytes: int = 10**15) -> Cluster:
    link_of = np.zeros((count, count), np.int32)
    np.fill_diagonal(link_of, -1)
    devices = (device(memory_bytes=memory_bytes),) * count
    return Cluster(f"shared{count}", devices, (Link("bus", 1e-5, 1e10),), link_of, (0,) * count)


@pytest.fixture(scope="module")
def problem() -> PlacementProblem:
    return PlacementProblem(layered_dag(300, seed=3, colocated=0.7, phases=True), cluster_of(3))


def test_costs__equal_evaluate_exactly(problem):
    rng = np.random.default_rng(0)
    decisions = np.stack([problem.sample(rng) for _ in range(20)])
    costs, valid = problem.costs(decisions)
    assert valid.all()
    assert costs.tolist() == [problem.evaluate(decision).cost for decision in decisions]


def test_groups__share_a_device_and_come_in_order_of_their_first_op(problem):
    graph = problem.graph
    placement = problem.op_placement(problem.sample(np.random.default_rng(1)))
    real = np.flatnonzero(graph.view_root == np.arange(graph.num_ops))
    for colocation in np.unique(graph.colocation[real]):
        if colocation >= 0:
            assert len(set(placement[real[graph.colocation[real] == colocation]].tolist())) == 1
    assert (placement == placement[graph.view_root]).all()
    firsts = [int(np.flatnonzero(problem.group_of_task == group)[0]) for group in range(problem.num_groups)]
    assert firsts == sorted(firsts)
    every = PlacementProblem(graph, problem.cluster, grouping="op")
    assert every.num_groups == len(real) > problem.num_groups


@pytest.mark.parametrize(
    ("decision", "message"),
    [
        ([0], r"shape \(1,\), expected"),
        (lambda n: [0.5] * n, "type float64, expected integers"),
        (lambda n: [0] * (n - 1) + [3], r"decision\[\d+\] is 3, allowed: 0 to 2 \(device\)"),
        (lambda n: [-1] + [0] * (n - 1), r"decision\[0\] is -1"),
        (lambda n: [[0], [1, 2]], "unequal length"),
        (lambda n: ["a"] * n, "expected integers"),
        (lambda n: [True] * n, "expected integers"),
    ],
)
def test_check__names_the_bad_entry(problem, decision, message):
    given = decision(problem.num_groups) if callable(decision) else decision
    with pytest.raises(InputError, match=message):
        problem.evaluate(given)


def test_memory__overflow_is_named_and_priced_above_valid_placements():
    graph = layered_dag(100, seed=5, phases=True)
    roomy = PlacementProblem(graph, cluster_of(2))
    single = np.zeros(roomy.num_groups, np.int32)
    peak = roomy.evaluate(single).metrics["peak_bytes"][0]
    tight = PlacementProblem(graph, cluster_of(2, memory_bytes=peak - 1))
    outcome = tight.evaluate(single)
    assert not outcome.valid
    assert outcome.cost == float("inf")
    assert len(outcome.reasons) == 1
    assert "device 0" in outcome.reasons[0]
    assert outcome.metrics["step_time_s"] == roomy.evaluate(single).cost
    exact = PlacementProblem(graph, cluster_of(2, memory_bytes=peak))
    assert exact.evaluate(single).valid

    costs, valid = tight.costs(single[None])
    assert not valid[0]
    assert np.isfinite(costs[0])
    assert costs[0] > tight.serial_s
    half = PlacementProblem(graph, cluster_of(2, memory_bytes=peak // 2))
    assert half.costs(single[None])[0][0] > costs[0]  # the more it overflows, the dearer


@pytest.mark.parametrize("seed", range(12))
def test_bounds__no_placement_beats_them(seed):
    rng = np.random.default_rng(seed)
    graph, cluster = random_graph(rng, 7), random_cluster(rng)
    problem = PlacementProblem(graph, cluster, grouping="op")
    every = np.array(list(itertools.product(range(problem.num_devices), repeat=problem.num_groups)))[:20_000]
    best = problem.simulator.run_many(every[:, problem.group_of_task]).makespan_s.min()
    for bound in problem.bounds().values():
        assert bound <= best * (1 + 1e-12)
    if problem.num_devices == 1:
        assert problem.bounds()["work_s"] == pytest.approx(best)


@pytest.mark.parametrize("moves", ["all", "runs"])
def test_neighbour__changes_something_and_only_a_copy(problem, moves):
    problem, rng = problem.with_moves(moves), np.random.default_rng(0)
    decision = problem.sample(rng)
    before = decision.copy()
    for _ in range(300):
        changed = problem.neighbour(decision, rng)
        moved = changed != decision
        assert moved.any()
        assert problem.check(changed) is not None
        if moves == "runs":  # groups of one device to one other
            assert len(np.unique(decision[moved])) == len(np.unique(changed[moved])) == 1
    assert (decision == before).all()
    with pytest.raises(InputError, match="unknown moves 'run'; did you mean 'runs'"):
        problem.with_moves("run")


def test_make_problem__refuses_unknown_names():
    with pytest.raises(InputError, match="did you mean 'Placement-v0'"):
        gg.make_problem("Placement-v1")
    with pytest.raises(InputError, match="did you mean 'cluster'"):
        gg.make_problem("Placement-v0", clustr="v100x4")
    with pytest.raises(InputError, match="unknown grouping 'ops'; did you mean 'op'"):
        PlacementProblem(layered_dag(20, seed=0), cluster_of(2), grouping="ops")


def test_solution__is_saved_whole_or_not_at_all(problem, tmp_path):
    solution = gg.solve(problem, "random", budget=5)
    path = solution.save(tmp_path / "solution.json")
    stored = json.loads(path.read_text())
    assert stored["decision"] == solution.decision.tolist()
    assert stored["cost"] == solution.outcome.cost
    assert stored["fingerprints"] == problem.fingerprints()
    with pytest.raises(InputError, match="cannot write"):
        solution.save(tmp_path / "missing" / "solution.json")
    assert [entry.name for entry in tmp_path.iterdir()] == ["solution.json"]
