"""Policies of schedulers, orders of pipelines, cuts of layers, and exact solvers."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator

import numpy as np

from graphopt_gym.envs.gang import exact
from graphopt_gym.envs.gang.bounds import plan_bounds
from graphopt_gym.envs.gang.problem import GangProblem
from graphopt_gym.envs.gang.rules import ORDERS, POLICIES, least_loaded, pipeline_decision, policy_decision
from graphopt_gym.errors import InputError
from graphopt_gym.fields import positive, whole
from graphopt_gym.search.evaluator import BudgetSpent, Evaluator, Method


def _problem(evaluator: Evaluator) -> GangProblem:
    problem = evaluator.problem
    assert isinstance(problem, GangProblem)
    return problem


def _policies(problem: GangProblem, policy: str) -> Iterator[np.ndarray]:
    for plan in range(len(problem.plans)):
        yield policy_decision(problem, plan, policy)


def _spread(problem: GangProblem) -> Iterator[np.ndarray]:
    for plan in range(len(problem.plans)):
        yield policy_decision(problem, plan, "fifo", least_loaded(problem, plan))


def _orders(problem: GangProblem, order: str, cut: str = "") -> Iterator[np.ndarray]:
    for plan, one in enumerate(problem.plans):
        if not cut or one.cut == cut:
            found = pipeline_decision(problem, plan, order)
            if found is not None:
                yield found


def _take(evaluator: Evaluator, decisions: Iterator[np.ndarray], what: str = "") -> None:
    """One after the other, so that nothing is made beyond the budget."""
    some = False
    for decision in decisions:
        some = True
        evaluator.cost(decision)
    if not some:
        raise InputError(f"{what} is for none of the plans of workload {evaluator.problem.graph_name!r}; give another")


def _policy(name: str) -> Callable[[Evaluator, np.random.Generator], None]:
    def run(evaluator: Evaluator, rng: np.random.Generator) -> None:
        _take(evaluator, _policies(_problem(evaluator), name))

    return run


def _order(name: str) -> Callable[[Evaluator, np.random.Generator], None]:
    def run(evaluator: Evaluator, rng: np.random.Generator) -> None:
        _take(evaluator, _orders(_problem(evaluator), name), f"order {name!r}")

    return run


def static_spread(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """First come, first served, on slices that are spread by their work."""
    _take(evaluator, _spread(_problem(evaluator)))


def dp(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """Plans whose layers were cut by dynamic programming, each by the orders that are for it."""
    problem = _problem(evaluator)
    orders = itertools.chain.from_iterable(_orders(problem, order, "dp") for order in ("1f1b", "zb_h1", "interleaved"))
    _take(evaluator, orders, "a cut by dynamic programming")


def heuristics(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """The best of all policies and orders."""
    problem = _problem(evaluator)
    for policy in POLICIES:
        _take(evaluator, _policies(problem, policy))
    if problem.place:
        _take(evaluator, _spread(problem))
    for decision in itertools.chain.from_iterable(_orders(problem, order) for order in ORDERS):
        evaluator.cost(decision)


def _limits(evaluator: Evaluator, name: str) -> tuple[float, int]:
    """(seconds, workers) that a solver may take."""
    limit = positive(f"method {name!r}: option time_limit_s", evaluator.options.get("time_limit_s", exact.SECONDS))
    workers = whole(f"method {name!r}: option workers", evaluator.options.get("workers", 0), 0) or os.cpu_count() or 1
    left = limit if evaluator.seconds is None else min(limit, evaluator.seconds - evaluator.wall_s)
    return max(left, 0.1), workers


def cp_sat(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """The order of the shortest step of each plan, an even share of the time each, with the least of their bounds."""
    problem, (seconds, workers) = _problem(evaluator), _limits(evaluator, "cp_sat")
    seed, least = int(rng.integers(2**31)), np.inf
    found = []
    for plan in range(len(problem.plans)):
        best, cost = None, np.inf
        for decision in _starts(problem, plan):
            now = evaluator.cost(decision)
            if now < cost:
                best, cost = decision, now
        found.append((cost, plan, best))
    for _, plan, best in sorted(found, key=lambda one: one[0]):
        assert best is not None
        solved = exact.least_step(problem, plan, best, seconds / len(found), workers, seed)
        least = min(least, max(solved.lower_bound_s, plan_bounds(problem, plan).step_s))
        if solved.order is not None:
            evaluator.finish(problem.decision_of(plan, problem.levels_of_order(solved.order)))
    gap = evaluator.best_cost / least - 1 if least > 0 else 0.0
    evaluator.note(
        lower_bound_s=least, gap_percent=100 * gap if evaluator.best_valid else None,
        proved=bool(evaluator.best_valid and gap <= 1e-5),
    )  # fmt: skip


def _starts(problem: GangProblem, plan: int) -> Iterator[np.ndarray]:
    """What a solver begins from."""
    yield policy_decision(problem, plan, "fifo")
    yield policy_decision(problem, plan, "longest")
    for order in ORDERS:
        found = pipeline_decision(problem, plan, order)
        if found is not None:
            yield found


def exhaustive(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """Every plan, every slice, every order."""
    problem = _problem(evaluator)
    if problem.num_gangs > exact.MOST_TINY:
        raise InputError(
            f"method 'exhaustive' is for at most {exact.MOST_TINY} gangs, and workload {problem.graph.name!r} has "
            f"{problem.num_gangs}; give 'cp_sat'"
        )
    try:
        for decision in exact.all_decisions(problem):
            evaluator.cost(decision)
    except BudgetSpent:
        evaluator.note(complete=False)
        raise
    evaluator.note(complete=True)


_BARHAM = "Barham et al., Pathways, MLSys 2022"
METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("fifo", _policy("fifo"), "first come, first served", _BARHAM),
        Method("stride", _policy("stride"), "the client with the least service for its weight first",
               "Waldspurger and Weihl, MIT/LCS/TM-528, 1995: proportional share"),
        Method("round_robin", _policy("round_robin"), "the client that was served longest ago first", "textbooks"),
        Method("shortest", _policy("shortest"), "the gang with the least left to the end of its program first",
               "shortest remaining time; Schrage, Operations Research 16, 1968"),
        Method("longest", _policy("longest"), "the gang with the most left to the end of its program first",
               "highest level first; Hu, Operations Research 9, 1961"),
        Method("backfill", _policy("backfill"), "the earliest gang that can start: no core is kept free",
               "list scheduling; Graham, Bell System Technical J. 45, 1966; Lifka, JSSPP 1995: backfilling"),
        Method("backfill_longest", _policy("backfill_longest"), "of those that of the most left to the end first",
               "list scheduling; Graham, Bell System Technical J. 45, 1966; Hu, 1961"),
        Method("static_spread", static_spread, "slices spread by their work, then first come, first served",
               "longest processing time; Graham, SIAM J. on Applied Mathematics 17, 1969"),
        Method("gpipe", _order("gpipe"), "all forward, then all backward", "Huang et al., GPipe, NeurIPS 2019"),
        Method("1f1b", _order("1f1b"), "one forward, one backward in turn", "Narayanan et al., PipeDream, SOSP 2019"),
        Method("interleaved", _order("interleaved"), "1F1B over several chunks a stage",
               "Narayanan et al., Megatron-LM, SC 2021"),
        Method("zb_h1", _order("zb_h1"), "zero bubble, in the memory of 1F1B", "Qi et al., Zero Bubble, ICLR 2024"),
        Method("zb_h2", _order("zb_h2"), "zero bubble, in twice that memory", "Qi et al., Zero Bubble, ICLR 2024"),
        Method("zb_v", _order("zb_v"), "zero bubble, two chunks a stage there and back",
               "after Qi et al., Zero Bubble, ICLR 2024"),
        Method("dp", dp, "layers cut by dynamic programming, by 1F1B or zero bubble",
               "Zheng et al., Alpa, OSDI 2022; Narayanan et al., PipeDream, SOSP 2019"),
        Method("heuristics", heuristics, "the best of all policies and orders, of all plans", "the above"),
        Method("cp_sat", cp_sat, "the order of the shortest step of each plan, with a bound",
               "job shop with transfers, by OR-tools' CP-SAT; Baptiste, Le Pape and Nuijten, 2001", random=True,
               small=True, options={"time_limit_s": exact.SECONDS, "workers": 0}, needs=("ortools",),
               rules={"objective": "step", "place": "no"}),
        Method("exhaustive", exhaustive, "every order of every plan, of at most ten gangs", "enumeration", small=True),
    )
}  # fmt: skip
