"""Classical scheduling methods: the orders of executors and compilers, priority rules, memory orders, exact ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.envs.scheduling import exact, memory_orders, orders
from graphopt_gym.envs.scheduling.problem import SchedulingProblem
from graphopt_gym.fields import positive, whole
from graphopt_gym.search.evaluator import Evaluator, Method

if TYPE_CHECKING:
    from graphopt_gym.simulator.simulator import Simulator

    Rule = Callable[[Simulator, np.ndarray], np.ndarray]


def fifo(simulator: Simulator, placement: np.ndarray) -> np.ndarray:
    """float64 [K]: all alike, so that the engine takes the earliest ready."""
    return np.zeros(simulator.num_tasks)


def program(simulator: Simulator, placement: np.ndarray) -> np.ndarray:
    """float64 [K]: captured order."""
    return orders.priority_of(simulator.tasks.sequence)


def rank(simulator: Simulator, placement: np.ndarray) -> np.ndarray:
    """float64 [K]: HEFT's upward rank, over mean times and mean transfers."""
    return simulator.priorities


# what each says of a task, and where it is from
RULES: dict[str, tuple[Rule, str, str]] = {
    "fifo": (fifo, "the earliest ready first", "dataflow executors, TensorFlow among them"),
    "program": (program, "the first in captured order", "a stream that may skip what is not ready"),
    "rank": (
        rank,
        "the longest way to the end first, by mean times",
        "Topcuoglu et al., IEEE TPDS 13(3), 2002",
    ),
    "placed_rank": (
        orders.placed_rank,
        "the longest way to the end first, by the times of this placement",
        "Carlier, European J. Operational Research 11, 1982: the tail",
    ),
    "highest_level": (
        orders.highest_level,
        "the longest way to the end first, without transfers",
        "Adam, Chandy and Dickson, Communications of the ACM 17(12), 1974",
    ),
    "most_work_remaining": (
        orders.most_work_remaining,
        "the most work among what waits for it first",
        "MWKR; Haupt, OR Spektrum 11, 1989",
    ),
    "shortest_first": (
        orders.shortest_first,
        "the shortest task first",
        "SPT; Smith, Naval Research Logistics Quarterly 3, 1956",
    ),
    "longest_first": (
        orders.longest_first,
        "the longest task first",
        "LPT; Graham, SIAM J. Applied Mathematics 17(2), 1969",
    ),
    "depth_first": (
        orders.depth_first,
        "post-order from the ends, the longest way first",
        "Blelloch, Gibbons and Matias, J. of the ACM 46(2), 1999",
    ),
    "sethi_ullman": (
        memory_orders.sethi_ullman,
        "the post-order of least memory, of a tree",
        "Sethi and Ullman, J. of the ACM 17(4), 1970; Liu, ACM TOMS 12(3), 1986",
    ),
    "liu": (
        memory_orders.liu,
        "the order of least memory, of a tree",
        "Liu, SIAM J. Algebraic Discrete Methods 8(3), 1987",
    ),
    "memory_greedy": (
        memory_orders.memory_greedy,
        "the task that leaves the least memory first",
        "XLA's list scheduler, hlo_memory_scheduler.cc of OpenXLA (recalled)",
    ),
}


def _problem(evaluator: Evaluator) -> SchedulingProblem:
    problem: Any = evaluator.problem
    assert isinstance(problem, SchedulingProblem)
    return problem


def decision_of(problem: SchedulingProblem, name: str) -> np.ndarray:
    """int32 [K]: the decision of a rule, by its name."""
    return problem.decision_of(RULES[name][0](problem.simulator, problem.placement))


def _proposes(name: str) -> Callable[[Evaluator, np.random.Generator], None]:
    def run(evaluator: Evaluator, rng: np.random.Generator) -> None:
        evaluator.cost(decision_of(_problem(evaluator), name))

    return run


def _limits(evaluator: Evaluator, name: str) -> tuple[float, int]:
    """(seconds, workers) that a solver may take."""
    limit = positive(f"method {name!r}: option time_limit_s", evaluator.options.get("time_limit_s", exact.SECONDS))
    workers = whole(f"method {name!r}: option workers", evaluator.options.get("workers", 0), 0) or os.cpu_count() or 1
    left = limit if evaluator.seconds is None else min(limit, evaluator.seconds - evaluator.wall_s)
    return max(left, 0.1), workers


def _begin(evaluator: Evaluator) -> np.ndarray:
    """The best of all rules, so that there is a valid decision where a solver looks at one objective only.

    Returns its priorities, float64 [K].
    """
    problem = _problem(evaluator)
    evaluator.costs(np.stack([decision_of(problem, name) for name in RULES]))
    return evaluator.best + problem.tie  # type: ignore[no-any-return]


def cp_sat(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """The order of the shortest step; where memory stands in its way, the best rule, with the bound all the same."""
    _solve(evaluator, rng, "cp_sat", exact.least_makespan, "lower_bound_s", exact.PROVED)


def olla(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """The order of least memory on one device; the bound holds within a time limit, too."""
    _solve(evaluator, rng, "olla", exact.least_peak, "lower_bound_bytes", 0.0)


def _solve(
    evaluator: Evaluator, rng: np.random.Generator, name: str, solver: Callable[..., Any], bound: str, tolerance: float
) -> None:
    """What a solver of the method ``name`` finds, noted with its ``bound``: proved where it is within a tolerance."""
    problem, (seconds, workers) = _problem(evaluator), _limits(evaluator, name)
    start = _begin(evaluator)
    found = solver(
        problem.simulator, problem.placement, seconds=seconds, workers=workers, seed=int(rng.integers(2**31)),
        start=start,
    )  # fmt: skip
    evaluator.finish(problem.decision_of(found.priority))
    cost, lower = evaluator.best_cost, getattr(found, bound)
    gap = cost / lower - 1 if lower > 0 else 0.0
    near = gap <= tolerance if lower > 0 else cost <= 0  # a bound of 0 proves nothing else
    evaluator.note(
        **{bound: lower}, gap_percent=100 * gap if evaluator.best_valid else None,
        proved=bool(evaluator.best_valid and near),
    )  # fmt: skip


METHODS: dict[str, Method] = {
    **{name: Method(name, _proposes(name), summary, source) for name, (_, summary, source) in RULES.items()},
    "cp_sat": Method(
        "cp_sat",
        cp_sat,
        "the order of the shortest step, with a bound",
        "job shop with communication, by OR-tools' CP-SAT; Baptiste, Le Pape and Nuijten, 2001",
        random=True,
        small=True,
        options={"time_limit_s": exact.SECONDS, "workers": 0},
        needs=("ortools",),
        rules={"objective": "step"},
    ),
    "olla": Method(
        "olla",
        olla,
        "the order of least memory on one device, with a bound",
        "Steiner et al., OLLA, 2022 (MODeL, ICML 2023), after Ahn et al., Ordering Chaos, MLSys 2020",
        random=True,
        small=True,
        options={"time_limit_s": exact.SECONDS, "workers": 0},
        needs=("ortools",),
        rules={"objective": "memory"},
    ),
}
