"""Greedy, dynamic programming, and z3's optimum."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from graphopt_gym.envs.chiplet import TASK
from graphopt_gym.envs.chiplet.bounds import lower_bound
from graphopt_gym.envs.chiplet.checker import RULES
from graphopt_gym.envs.chiplet.exact import Exact, best_partition
from graphopt_gym.envs.chiplet.methods import (
    BELIEVED_CAPACITIES,
    METHODS,
    _fill,
    contiguous_decision,
    greedy_decision,
)
from graphopt_gym.envs.chiplet.problem import ChipletProblem
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.generators import chain, layered_dag
from graphopt_gym.hardware.package import Chip, Package, load_package
from graphopt_gym.search.methods import METHODS as SEARCHES
from graphopt_gym.search.solve import solve


def package_of(num_chips, sram_bytes=2**40, **other):
    return Package("toy", (Chip("toy", 1e12, 1e11, sram_bytes),) * num_chips, "ring", 1e10, **other)


def all_valid(problem):
    """(cost, decision) of the best valid decision, by looking at every one."""
    every = np.asarray(list(itertools.product(range(problem.num_chips), repeat=problem.num_ops)), np.int32)
    costs, valid = problem.costs(every)
    if not valid.any():
        return np.inf, None
    best = int(np.argmin(np.where(valid, costs, np.inf)))
    return costs[best], every[best]


@pytest.mark.parametrize("seed", range(4))
def test_contiguous__is_the_optimum_on_chains(seed):
    rng = np.random.default_rng(seed)
    graph = chain(8, output_bytes=10**7)
    problem = ChipletProblem(graph, package_of(4))
    problem.op_seconds = problem.op_seconds * rng.uniform(0.1, 1.0, problem.num_ops)
    problem.__dict__.pop("_tables", None)
    decision = contiguous_decision(problem)
    outcome = problem.evaluate(decision)
    assert outcome.valid
    assert outcome.cost == pytest.approx(all_valid(problem)[0])


def test_contiguous__keeps_to_the_memory_exactly():
    rng = np.random.default_rng(0)
    found = none = 0
    for seed in range(30):
        graph = layered_dag(int(rng.integers(14, 22)), seed=seed, width=2)
        free = ChipletProblem(graph, package_of(3))
        if free.num_ops > 9:
            continue
        most = int(free.measure(np.zeros(free.num_ops, np.int32))[2][0])
        problem = ChipletProblem(graph, package_of(3, max(1, int(most * rng.uniform(0.4, 1.1)))))
        decision = contiguous_decision(problem)
        slices = [
            np.searchsorted(cuts, np.arange(problem.num_ops), side="right").astype(np.int32)
            for count in range(3)
            for cuts in itertools.combinations(range(1, problem.num_ops), count)
        ]
        edges = problem.ops.edges
        slices = [one for one in slices if (np.diff(one[edges], axis=1) <= 1).all()]
        costs, valid = problem.costs(np.stack(slices))
        best = costs[valid].min() if valid.any() else None
        if decision is None:
            assert best is None
            none += 1
        else:
            assert problem.evaluate(decision).valid
            assert problem.evaluate(decision).cost == pytest.approx(best)
            found += 1
    assert found > 3
    assert none > 0


def test_best_partition__is_the_best_of_all():
    checked = infeasible = 0
    for seed in range(14):
        graph = layered_dag(13, seed=seed, width=2)
        problem = ChipletProblem(graph, package_of(3, 2**40 if seed % 3 else 3 * 10**7))
        if problem.num_ops > 9:
            continue
        verdict = best_partition(problem)
        assert verdict.proved
        cost, decision = all_valid(problem)
        if decision is None:
            assert verdict.decision is None
            infeasible += 1
            continue
        outcome = problem.evaluate(verdict.decision)
        assert outcome.valid
        assert outcome.cost <= cost + problem.serial_s * 1e-6 * (problem.num_ops + 1)
        checked += 1
    assert checked > 3
    assert infeasible > 0


def test_exact__memory_is_the_checkers():
    rng = np.random.default_rng(1)
    answers = {True: 0, False: 0}
    for seed in range(8):
        graph = layered_dag(16, seed=seed, width=2)
        free = ChipletProblem(graph, package_of(3))
        most = int(free.measure(np.zeros(free.num_ops, np.int32))[2][0])
        problem = ChipletProblem(graph, package_of(3, max(1, int(most * 0.8))), memory_rule=True)
        exact = Exact.of(problem)
        for _ in range(8):
            decision = free.sample(rng)
            fits = not problem.violations(decision)
            assert exact.is_completable(decision) == fits
            answers[fits] += 1
    assert min(answers.values()) > 5


def test_infeasible__too_little_memory_is_proved_by_z3_and_named_by_the_corrector():
    graph = layered_dag(16, seed=5, width=2)
    free = ChipletProblem(graph, package_of(3))
    problem = ChipletProblem(graph, package_of(3, 1000), memory_rule=True)
    assert problem.num_ops == free.num_ops
    verdict = Exact.of(problem).complete(np.full(problem.num_ops, -1))
    assert verdict.proved
    assert verdict.decision is None
    correction = problem.corrector.sample(None, np.random.default_rng(0))
    assert not correction.valid
    assert "no partition fits the chips' memory" in correction.reason
    assert contiguous_decision(problem) is None


@pytest.mark.parametrize("package", ["mcm4", "mcm36", "mesh6x6", "mcm16_mixed"])
def test_greedy__is_valid_and_spreads_the_work(package):
    known = load_package(package)
    roomy = replace(known, chips=tuple(replace(one, sram_bytes=2**36) for one in known.chips))
    problem = ChipletProblem("resnet50", roomy)
    outcome = problem.evaluate(greedy_decision(problem))
    assert outcome.valid, outcome.reasons
    single = problem.evaluate(np.zeros(problem.num_ops, int)).cost
    assert outcome.cost < single * 0.6
    cut = problem.evaluate(contiguous_decision(problem))
    assert cut.valid
    assert (greedy_decision(problem) == greedy_decision(problem)).all()


def test_greedy__keeps_to_memory_where_it_can():
    graph = chain(12, output_bytes=1000)
    problem = ChipletProblem(graph, package_of(4, 7000))
    assert problem.evaluate(greedy_decision(problem)).valid
    tight = ChipletProblem(graph, package_of(4, 500))
    outcome = tight.evaluate(greedy_decision(tight))
    assert {reason.split(":")[0] for reason in outcome.reasons} == {RULES[3]}


def test_greedy__falls_back_to_a_cut_where_memory_is_tight():
    fallen = 0
    for seed in range(30):
        graph = layered_dag(24, seed=seed, width=2)
        free = ChipletProblem(graph, package_of(4))
        most = int(free.measure(np.zeros(free.num_ops, np.int32))[2][0])
        for share in (0.5, 0.6, 0.7):
            problem = ChipletProblem(graph, package_of(4, int(most * share)))
            cut = contiguous_decision(problem)
            if cut is not None:
                greedy = greedy_decision(problem)
                assert problem.evaluate(greedy).valid
                fallen += all(
                    (found := _fill(problem, believed)) is None or not problem.costs(found[None])[1][0]
                    for believed in BELIEVED_CAPACITIES
                )
    assert fallen > 0


def test_methods__run_through_solve():
    problem = ChipletProblem(chain(6), package_of(3))
    assert set(TASK.starts) <= set(METHODS)
    for method in METHODS.values():
        solution = solve(problem, method, budget=5)  # exact among them
        assert solution.outcome.valid
        assert solution.evaluations == 1


@pytest.mark.parametrize("search", ["random", "hill_climbing", "annealing", "evolution", "evolution_random"])
def test_searches__find_the_optimum_of_a_small_instance(search):
    problem = ChipletProblem(layered_dag(13, seed=4, width=2), package_of(3))
    cost, _ = all_valid(problem)
    solution = solve(problem, SEARCHES[search], budget=400, seed=0)
    assert solution.outcome.valid
    assert solution.outcome.cost <= cost * (1 + 1e-12)


def test_memory_rule__what_the_corrector_excludes_z3_excludes():
    rng = np.random.default_rng(2)
    said = {"valid": 0, "excluded": 0}
    for seed in range(24):
        graph = layered_dag(15, seed=seed, width=2)
        free = ChipletProblem(graph, package_of(3))
        least = min(int(free.measure(free.sample(rng))[2].max()) for _ in range(20))
        problem = ChipletProblem(graph, package_of(3, max(1, int(least * rng.uniform(0.3, 1.1)))), memory_rule=True)
        correction = problem.corrector.sample(None, rng)
        verdict = Exact.of(problem).complete(np.full(problem.num_ops, -1))
        assert verdict.proved
        if correction.valid:
            assert verdict.decision is not None
            said["valid"] += 1
        elif "excluded" in correction.reason or "fits on none" in correction.reason:
            assert verdict.decision is None
            said["excluded"] += 1
    assert min(said.values()) > 2


def test_lower_bound__is_under_every_valid_partition_and_often_reached():
    rng = np.random.default_rng(3)
    reached = checked = simple = 0
    for seed in range(40):
        chips = tuple(Chip("toy", 1e12 * s, 1e11 * s, 2**40) for s in rng.choice([0.5, 1.0, 2.0], 3))
        speed = 10.0 ** rng.uniform(8.5, 11)
        problem = ChipletProblem(layered_dag(13, seed=seed, width=2), Package("toy", chips, "ring", speed))
        if problem.num_ops > 9:
            continue
        best, bound = all_valid(problem)[0], lower_bound(problem)
        assert bound <= best * (1 + 1e-12)
        checked += 1
        reached += bound > best * (1 - 1e-9)
        simple += problem.op_seconds.min(axis=0).max() > best * (1 - 1e-9)
    assert checked > 20
    assert reached > max(checked / 2, simple)


def test_lower_bound__is_under_z3s_optimum():
    for seed in range(3):
        problem = ChipletProblem(layered_dag(36, seed=seed, width=2), package_of(4))
        solution = solve(problem, "exact")
        assert solution.outcome.valid
        assert lower_bound(problem) <= solution.outcome.cost * (1 + 1e-12)


def test_lower_bound__is_reached_on_a_chain_spread_evenly():
    assert lower_bound(ChipletProblem(chain(12), package_of(4))) == pytest.approx(3e-3)
    # the last op can be no farther than the first edges allow, however many chips there are
    assert lower_bound(ChipletProblem(chain(3), package_of(36))) == pytest.approx(1e-3)


def test_exact__refuses_what_is_too_large_and_what_fits_nowhere_in_one_line():
    with pytest.raises(InputError, match="213 ops on 36 chips: use 'annealing'") as caught:
        solve(ChipletProblem("bert_base_b1", "mcm36"), "exact")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"z3 proved that .* no partition"):
        solve(ChipletProblem(chain(6, output_bytes=1000), package_of(3, 500)), "exact")
    with pytest.raises(InputError, match=r"z3 proved no optimum in 0 s .*; give more"):
        solve(ChipletProblem(layered_dag(60, seed=3, width=2), package_of(4)), "exact", seconds=0.01)


@pytest.mark.parametrize("method", ["hill_climbing_random", "annealing_random", "evolution_random"])
def test_searches__from_nothing_come_near_the_bound_on_a_real_network(method):
    problem = ChipletProblem("gnmt_l2_t2_b1", "mcm36")
    solution = solve(problem, method, budget=1000)
    assert solution.outcome.valid
    assert solution.outcome.cost <= 1.05 * lower_bound(problem)


def test_crossover__takes_from_both_and_keeps_to_the_rules():
    rng = np.random.default_rng(4)
    problem = ChipletProblem("resnet18_b1", "mcm16")
    first, second = problem.sample(rng), problem.sample(rng)
    mixed = 0
    for _ in range(20):
        child = problem.crossover(first, second, rng)
        assert {one.rule for one in problem.violations(child)} <= {RULES[3]}
        assert (problem.crossover(first, first, rng) == first).all()
        mixed += (child != first).any() and (child != second).any()
    assert mixed > 10


def test_neighbour__of_each_kind_begins_at_the_bottleneck_as_often_as_it_says(monkeypatch):
    problem = ChipletProblem("resnet18_b1", "mcm16")
    rng = np.random.default_rng(5)
    decision = problem.sample(rng)
    seconds, link_bytes, _, _ = problem.measure(decision)
    link_s = link_bytes / problem.package.link_bytes_per_s
    if seconds.max() >= link_s.max():
        slow = set(np.flatnonzero(decision == seconds.argmax()).tolist())
    else:
        a, b = problem.package.links[int(link_s.argmax())]
        slow = {
            op
            for u, v in problem.ops.edges.tolist()
            if decision[u] <= a and decision[v] >= b
            for op in (u, v)
        }  # fmt: skip
    drawn = [problem._op_to_move(decision, rng) in slow for _ in range(2000)]
    expected = 0.5 + 0.5 * len(slow) / problem.num_ops
    assert abs(np.mean(drawn) - expected) < 0.05
