"""Fusion decisions: costs against the simulator that is given the groups, legality by a checker that shares nothing."""

from __future__ import annotations

import itertools
import json

import networkx as nx
import numpy as np
import pytest

import graphopt_gym as gg
from graphopt_gym.envs.fusion import exact, methods
from graphopt_gym.envs.fusion.problem import FusionProblem
from graphopt_gym.errors import InputError
from graphopt_gym.hardware.cluster import Cluster
from graphopt_gym.simulator import Simulator
from graphopt_gym.solutions import load_solution, validate
from tests.simulator import fusing_twin
from tests.simulator.cases import device
from tests.simulator.test_fusing import shaped_graph

ONE = Cluster("one", (device(cache_bytes=64, compute_units=2),), (), np.array([[-1]]), (0,))


def tiny(seed, most_ops=9, **arguments):
    return FusionProblem(shaped_graph(np.random.default_rng(seed), most_ops), ONE, placement="single", **arguments)


@pytest.mark.parametrize("seed", range(40))
def test_outcomes__are_of_legal_kernels_and_priced_as_the_simulator_prices_them(seed):
    problem = FusionProblem(shaped_graph(np.random.default_rng(seed)), ONE, placement="single", levels=4)
    rng = np.random.default_rng(seed)
    decisions = np.stack([problem.sample(rng) for _ in range(4)])
    costs, valid = problem.costs(decisions)
    assert valid.all()
    for decision, cost in zip(decisions, costs):
        groups = problem.kernel_of_op(decision)
        placement = np.zeros(problem.graph.num_ops, int)
        assert fusing_twin.faults(problem.graph, ONE, placement, groups) == []
        assert Simulator(problem.graph, ONE, fusion=groups).run(placement).makespan_s == cost
        outcome = problem.evaluate(decision)
        assert outcome.cost == cost
        assert outcome.metrics["kernels"] == len(
            {int(groups[op]) if groups[op] >= 0 else -1 - op for op in fusing_twin.Ops(problem.graph).real}
        )


def test_memory__decides_validity():
    graph = shaped_graph(np.random.default_rng(3))
    free = FusionProblem(graph, ONE, placement="single")
    peak = free.evaluate(methods.none(free)).metrics["peak_bytes"][0]
    small = Cluster("small", (device(memory_bytes=peak - 1),), (), np.array([[-1]]), (0,))
    problem = FusionProblem(graph, small, placement=[0] * graph.num_ops)
    outcome = problem.evaluate(methods.none(problem))
    assert not outcome.valid
    assert "out of memory: device 0" in outcome.reasons[0]
    cost, valid = problem.costs(methods.none(problem)[None])
    assert not valid[0]
    assert cost[0] > free.evaluate(methods.none(free)).cost


def best_by_all_orders(problem):
    """The least cost of all orders in which any of the producers are tried."""
    producers, best = problem.producers, np.inf
    for count in range(len(producers) + 1):
        for chosen in itertools.permutations(producers, count):
            decision = np.zeros(problem.num_tasks, np.int32)
            decision[list(chosen)] = np.arange(count, 0, -1)
            best = min(best, float(problem.costs(decision[None])[0][0]))
    return best


@pytest.mark.parametrize("seed", range(25))
def test_methods__against_all_orders(seed):
    problem = tiny(seed, levels=8)
    if not 0 < len(problem.producers) <= 5:
        pytest.skip("nothing to fuse, or too much for all orders")
    best = best_by_all_orders(problem)
    assert best >= problem.bounds()["work_s"] * (1 - 1e-12)
    for name in ("none", "greedy", "vertical", "epilogues", "benefit"):
        assert gg.solve(problem, name).outcome.cost >= best
    assert gg.solve(problem, "annealing", budget=600, seed=0).outcome.cost == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("seed", range(25))
def test_cp_sat__bounds_all_orders_and_finds_the_best(seed):
    pytest.importorskip("ortools")
    problem = tiny(seed, levels=8)
    if not 0 < len(problem.producers) <= 5:
        pytest.skip("nothing to fuse, or too much for all orders")
    best = best_by_all_orders(problem)
    solution = gg.solve(problem, "cp_sat", budget=100, options={"time_limit_s": 20.0, "workers": 1})
    assert solution.details["lower_bound_s"] <= best * (1 + 1e-9)
    assert solution.outcome.cost >= best
    if solution.details["proved"]:
        assert solution.outcome.cost == pytest.approx(best, rel=1e-9)


def test_cp_sat__proves_most_of_them():
    pytest.importorskip("ortools")
    proved = tried = 0
    for seed in range(12):
        problem = tiny(seed)
        if len(problem.producers):
            tried += 1
            solution = gg.solve(problem, "cp_sat", budget=100, options={"time_limit_s": 20.0, "workers": 1})
            proved += solution.details["proved"]
    assert tried >= 6
    assert proved >= 0.7 * tried


@pytest.mark.parametrize("seed", range(30))
def test_legal_kernels__are_those_that_the_checker_lets_pass(seed):
    problem = tiny(seed, 8)
    graph, ops = problem.graph, fusing_twin.Ops(problem.graph)
    task_of = {int(op): at for at, op in enumerate(problem.simulator.tasks.first_op)}
    expected = set()
    for count in range(2, len(ops.real) + 1):
        for members in itertools.combinations(ops.real, count):
            joined = {op: members[0] if op in members else op for op in ops.real}
            near = ops.edges.subgraph(members).to_undirected()
            if (
                nx.is_connected(near)
                and not ops.why_not(members, ONE.devices[0], 64, 64)
                and not ops.makes_cycle(joined)
            ):
                expected.add(tuple(task_of[op] for op in members))
    assert set(exact.legal_kernels(problem)) == expected
    assert graph.num_ops >= len(ops.real)


def test_solutions__are_kept_and_validated(tmp_path):
    problem = FusionProblem("transformer_xl_2layer", "v100x2")
    path = gg.solve(problem, "greedy").save(tmp_path / "greedy.json")
    assert load_solution(path).config == problem.config
    assert validate(path).ok
    text = json.loads(path.read_text())
    text["decision"][0] = 99
    path.write_text(json.dumps(text))
    (said,) = validate(path).mismatches
    assert "99" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"levels": 1}, "levels is 1"),
        ({"order": "stream"}, "unknown order 'stream'"),
        ({"placement": "exprt"}, "did you mean 'expert'"),
        ({"placement": [0, 1]}, "placement"),
        ({"placement": [7] * 237}, "placement"),
    ],
)
def test_arguments__bad_ones_are_refused_in_one_line(arguments, said):
    with pytest.raises(InputError, match=said) as caught:
        FusionProblem(**{"graph": "transformer_xl_2layer", **arguments})
    assert "\n" not in str(caught.value)


def test_cpu_fusion__one_loop_does_what_the_ops_do():
    torch = pytest.importorskip("torch")
    from graphopt_gym.envs.fusion.on_cpu import _programs

    programs = _programs(torch)
    module, inputs_of, loop = programs["affine, relu"]
    inputs = inputs_of(5, 7)
    np.testing.assert_allclose(loop(*(one.numpy() for one in inputs)), module(*inputs).numpy(), rtol=1e-6)
    for name, (module, inputs_of, _) in programs.items():
        assert torch.isfinite(module(*inputs_of(4, 8))).all(), name
