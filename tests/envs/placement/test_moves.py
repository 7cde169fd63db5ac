"""Moves of the local searches, and the compiled walk over them, against a plain twin."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from graphopt_gym.envs.placement.moves import EXCHANGE, KINDS, SETS
from graphopt_gym.envs.placement.problem import PlacementProblem
from graphopt_gym.search.solve import solve
from graphopt_gym.search.walk import Walk
from tests.envs.placement.plain_moves import PlainMoves, Stream, walk
from tests.simulator.cases import random_cluster, random_graph


def random_problem(seed: int, **more) -> PlacementProblem:
    rng = np.random.default_rng(seed)
    graph, cluster = random_graph(rng, 16), random_cluster(rng)
    if seed % 3 == 0 and cluster.num_devices > 1:
        allowed = rng.random((graph.num_ops, cluster.num_devices)) < 0.6
        allowed[:, 0] = True  # views and what they are of have one in common
        more["allowed_devices"] = allowed
    return PlacementProblem(graph, cluster, grouping="op", **more)


def deep_problem(**more) -> PlacementProblem:
    return PlacementProblem("transformer_xl_2layer", "v100x4", **more)


@pytest.mark.parametrize("kind", range(len(KINDS)))
@pytest.mark.parametrize("order", ["fifo", "priority"])
def test_neighbour__is_the_plain_twins(kind, order):
    problem, rng = deep_problem(order=order), np.random.default_rng(kind)
    chances = np.zeros(len(KINDS))
    chances[kind] = 1.0
    problem.move_tables = problem.move_tables._replace(chances=np.cumsum(chances))
    plain, decision = (
        PlainMoves(problem),
        problem.check(np.repeat(np.arange(4), -(-problem.num_groups // 4))[: problem.num_groups]),
    )
    for _ in range(200):
        state = rng.bit_generator.state
        seed = int(rng.integers(2**64, dtype=np.uint64))
        rng.bit_generator.state = state
        changed = problem.neighbour(decision, rng)
        assert changed.tolist() == plain.propose(decision, Stream(seed)).tolist()
        decision = changed


def test_kinds__are_all_drawn_and_each_has_a_chance():
    for chances in SETS.values():
        assert len(chances) == len(KINDS) == EXCHANGE + 1
        assert sum(chances) == pytest.approx(1)
    assert min(SETS["all"]) > 0


@pytest.mark.parametrize("order", ["fifo", "stream", "rank", "priority"])
@pytest.mark.parametrize("seed", range(8))
def test_walk__is_the_plain_twins(seed, order):
    problem, rng = random_problem(seed, order=order), np.random.default_rng(seed)
    if seed % 2:  # some decisions do not fit in memory
        peaks = problem.simulator.cost(problem.lowering.placement(problem.devices_of(problem.sample(rng))))[1]
        problem.capacity_bytes = np.maximum(peaks, 1)
    decision = problem.sample(rng)
    cost, valid = problem.costs(decision[None])
    log_temperature, slope = float(np.log(cost[0] / 10)), -0.02
    idle = (10**9, 25)[seed % 2]
    expected = walk(problem, decision, float(cost[0]), seed, 200, log_temperature, slope, idle)
    state = Walk(
        decision.copy(), float(cost[0]), seed, decision, float(cost[0]), bool(valid[0]), log_temperature, slope,
        least=float(cost[0]),
    )  # fmt: skip
    for steps in (1, 70, 129):  # in parts, as searches take it
        problem.walk(state, steps, idle)
    first = PlainMoves(problem).propose(decision, Stream(seed))
    parts = Walk(decision, float(cost[0]), seed, decision, float(cost[0]), bool(valid[0]), least=float(cost[0]))
    parts.looked = np.full((2, *decision.shape), -1, np.int32)
    problem.walk(parts, 1, idle)
    assert parts.looked.tolist() == [first.tolist(), parts.looked[1].tolist()]
    assert (parts.looked[1] == -1).all()
    assert state.decision.tolist() == expected[0].tolist()
    assert state.cost == expected[1]
    assert state.best.tolist() == expected[2].tolist()
    assert state.best_cost == expected[3]
    assert state.improvements == expected[4]
    assert state.idle >= idle or state.step == 200


def test_walk__is_not_taken_where_a_subclass_prices_or_moves_otherwise():
    class Doubled(PlacementProblem):
        def costs(self, decisions):
            costs, valid = super().costs(decisions)
            return 2 * costs, valid

    assert deep_problem().has_walk
    problem = Doubled("transformer_xl_2layer", "v100x4")
    assert not problem.has_walk
    solution = solve(problem, "annealing_random", budget=50)
    assert solution.history[-1][2] == 2 * solution.outcome.cost


@pytest.mark.parametrize("seed", range(6))
def test_moves__reach_every_decision(seed):
    """From any decision to any other, by moves alone, allowed devices kept."""
    problem, rng = (
        PlacementProblem(random_graph(np.random.default_rng(seed), 5), "toyx2", grouping="op"),
        np.random.default_rng(seed),
    )
    seen, decision = set(), problem.sample(rng)
    for _ in range(4000):
        decision = problem.neighbour(decision, rng)
        seen.add(tuple(decision.tolist()))
    assert seen == set(itertools.product(range(2), repeat=problem.num_groups))
