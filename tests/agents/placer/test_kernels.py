"""The placer's kernels against plain twins that count everything anew."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from graphopt_agents.placer.arrays import make_arrays
from graphopt_agents.placer.plan import BUCKETS, plan
from graphopt_agents.placer.ranker import FEATURES, NUM_FEATURES, Ranker, move_features
from graphopt_agents.placer.scorer import BY_HAND, construct, place
from graphopt_agents.placer.scorer import NUM_FEATURES as SCORED
from graphopt_agents.placer.search import GuidedWalk
from graphopt_agents.placer.timeline import analyse

from graphopt_gym.envs.placement.problem import PlacementProblem
from graphopt_gym.graphs.generators import layered_dag
from graphopt_gym.search.walk import Walk
from tests.agents.placer.plain import Plain, guided_walk
from tests.envs.placement.cases import cluster
from tests.envs.placement.test_moves import random_problem

SEEDS = range(12)


def drawn_problem(seed: int, **more) -> PlacementProblem:
    """Groups or single ops on unlike devices, with transfers as long as ops, little memory, and at times not all
    devices allowed; each third of a kind that is drawn for the engine's tests."""
    if seed % 3 == 2:
        return random_problem(seed, **more)
    rng = np.random.default_rng(seed)
    graph = layered_dag(int(rng.integers(20, 45)), seed=seed, colocated=0.6 * (seed % 2), phases=True)
    devices = int(rng.integers(2, 5))
    on = cluster(devices, memory_bytes=int(graph.param_bytes.sum() + graph.output_bytes.sum()) // (devices + 1) + 1)
    times = np.exp(rng.normal(np.log(1e-3), 1.0, (graph.num_ops, 1)) + rng.normal(0, 0.2 * (seed % 4 > 1), devices))
    if seed % 4 == 1:
        allowed = rng.random((graph.num_ops, devices)) < 0.6
        allowed[:, 0] = True
        more["allowed_devices"] = allowed
    grouping = "colocation" if seed % 2 else "op"
    return PlacementProblem(graph, on, grouping=grouping, op_times_s=times, **more)


def state_of(problem, arrays, home):
    timeline = problem.simulator.run_tasks(problem.lowering.placement(home[None])[0])
    return timeline, analyse(
        arrays, home, timeline.start_s, timeline.finish_s, timeline.transfers, timeline.makespan_s, timeline.peak_bytes
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("passes", [1, 2])
def test_construct__sees_and_does_what_its_plain_twin_does(seed, passes):
    problem, rng = drawn_problem(seed), np.random.default_rng(seed)
    arrays, plain = make_arrays(problem), Plain(problem)
    for weights in (BY_HAND, rng.normal(size=SCORED)):
        features = np.zeros((passes * problem.num_groups, problem.num_devices, SCORED))
        home = construct(arrays, weights, passes, features)
        placed, seen = plain.construct(weights, passes)
        np.testing.assert_allclose(features, seen, rtol=1e-7, atol=1e-7)
        assert home.tolist() == placed
        assert np.array_equal(home, place(arrays, weights, passes))
        assert not problem.misplaced(home).any()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("order", ["fifo", "rank"])
def test_plan__is_the_plain_twins(seed, order):
    problem, rng = drawn_problem(seed, order=order), np.random.default_rng(seed)
    arrays, plain, peak = make_arrays(problem), Plain(problem), np.empty(problem.num_devices)
    for _ in range(5):
        home = problem.sample(rng)
        seconds, peaks = plain.plan(home, arrays.sequence.tolist(), BUCKETS)
        assert plan(arrays, home, peak) == pytest.approx(seconds, rel=1e-12)
        np.testing.assert_allclose(peak, peaks, rtol=1e-12)


def test_plan__on_one_device_is_the_simulated_step():
    problem = PlacementProblem("transformer_xl_2layer", "v100x2")
    home, peak = np.zeros(problem.num_groups, np.int32), np.empty(2)
    outcome = problem.evaluate(home)
    assert plan(make_arrays(problem), home, peak) == pytest.approx(outcome.metrics["step_time_s"], rel=1e-9)
    assert outcome.metrics["peak_bytes"][0] <= peak[0] < 1.1 * outcome.metrics["peak_bytes"][0]


@pytest.mark.parametrize("seed", SEEDS)
def test_analyse__is_the_plain_twins(seed):
    problem, rng = drawn_problem(seed), np.random.default_rng(seed)
    arrays, plain = make_arrays(problem), Plain(problem)
    for _ in range(4):
        home = problem.sample(rng)
        timeline, state = state_of(problem, arrays, home)
        if timeline.makespan_s == 0:
            continue
        for name, value in plain.analyse(timeline, home.tolist()).items():
            np.testing.assert_allclose(
                getattr(state, name), value, rtol=1e-6, atol=1e-9 * timeline.makespan_s, err_msg=name
            )


@pytest.mark.parametrize("seed", SEEDS)
def test_move_features__are_the_plain_twins(seed):
    problem, rng = drawn_problem(seed), np.random.default_rng(seed)
    arrays, plain = make_arrays(problem), Plain(problem)
    if problem.num_devices == 1:
        return
    for _ in range(3):
        home = problem.sample(rng)
        timeline, state = state_of(problem, arrays, home)
        if timeline.makespan_s == 0:
            continue
        moves = np.stack([problem.neighbour(home, rng) for _ in range(12)])
        out = np.zeros((len(moves), NUM_FEATURES), np.float32)
        move_features(arrays, state, moves, out)
        for row, wanted in zip(out, moves.tolist()):
            for name, ours, theirs in zip(FEATURES, row, plain.move_features(state, wanted)):
                assert ours == pytest.approx(theirs, rel=2e-4, abs=2e-4), name
        again = np.zeros_like(out)
        move_features(arrays, state, moves[::-1], again)  # none leaves anything to the next
        assert np.array_equal(out, again[::-1])


def test_ranker__scores_in_kernels_as_in_torch():
    torch.manual_seed(0)
    ranker, features = Ranker(), np.random.default_rng(0).normal(size=(50, NUM_FEATURES)).astype(np.float32)
    ranker.mean[:], ranker.scale[:] = 0.1, 0.3
    np.testing.assert_allclose(
        kernel_scores(ranker, features), ranker(torch.from_numpy(features))[:, 0].detach(), atol=1e-4
    )


def kernel_scores(ranker, features):
    from graphopt_agents.placer.ranker import score_moves

    out = np.empty(len(features), np.float32)
    score_moves(features, ranker.arrays(), out)
    return out


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("order", ["fifo", "stream", "rank", "priority"])
@pytest.mark.parametrize("seed", range(6))
def test_walk__is_the_plain_twins(guided, order, seed):
    problem, rng = drawn_problem(seed, order=order), np.random.default_rng(seed)
    if problem.num_devices == 1:
        return
    torch.manual_seed(seed)
    ranker, arrays = Ranker(), make_arrays(problem)
    walk = GuidedWalk(problem, arrays, ranker.arrays(), guided, seed, note=400)
    walk.temperature = 0.05
    start = problem.devices_of(problem.sample(rng))
    decision = problem.decision_of(start)
    cost, valid = problem.costs(decision[None])
    state = Walk(decision, float(cost[0]), 11, decision, float(cost[0]), bool(valid[0]))

    def features_of(found, moves):
        out = np.zeros((len(moves), NUM_FEATURES), np.float32)
        move_features(arrays, found, moves, out)
        return out

    pieces = (
        lambda home: state_of(problem, arrays, home)[1],
        features_of,
        lambda features: kernel_scores(ranker, features),
    )
    begun = (start, float(cost[0]), start, float(cost[0]), bool(valid[0]), 0)
    numbers, counts, current, best, gains, simulated, noted = guided_walk(problem, walk, 11, 150, 0.05, begun, pieces)
    walk(state, 150, 0)
    assert (state.cost, state.best_cost) == numbers
    assert (state.idle, state.best_valid, state.valid) == counts
    assert problem.devices_of(state.decision).tolist() == current.tolist()
    assert problem.devices_of(state.best).tolist() == best.tolist()
    assert state.improvements == gains
    assert walk.made == state.step == len(simulated)
    np.testing.assert_allclose(walk.taken()[1], noted, rtol=1e-6, atol=1e-7)
