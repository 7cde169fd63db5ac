"""Equality saturation as methods of ``solve``: explore an e-graph, then extract; once, or again from what came out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.envs.rewrite.problem import RewriteProblem, Rewritten
from graphopt_gym.extras import need
from graphopt_gym.fields import choice
from graphopt_gym.graphs.tensor_program.program import TensorProgram

if TYPE_CHECKING:
    from graphopt_gym.envs.rewrite.saturation.explore import Saturation
    from graphopt_gym.envs.rewrite.saturation.extraction import Extraction
    from graphopt_gym.search.evaluator import Evaluator

SECONDS = 60.0  # of the exploration, and again of the linear program, where the caller gives no limit
RESERVE = 0.05  # of the seconds that are left, kept for building and pricing the program that was extracted
LEAST_GAIN = 1e-9  # relative; less is rounding

SATURATION_OPTIONS: dict[str, Any] = {
    "k_multi": 1,
    "node_limit": 50_000,
    "iteration_limit": 15,
    "memory_bytes": 4 << 30,
    "cycles": "filter",
    "engine": "native",
    "schedule": "first",
}
ILP_OPTIONS: dict[str, Any] = {**SATURATION_OPTIONS, "solver": "cp-sat"}
REPEAT_OPTIONS: dict[str, Any] = {**ILP_OPTIONS, "rounds": 20}


def problem_of(evaluator: Evaluator) -> RewriteProblem:
    problem = evaluator.problem
    assert isinstance(problem, RewriteProblem)
    return problem


def seconds_left(evaluator: Evaluator) -> float:
    """Seconds that the run may still take; infinite where no limit was given."""
    return float("inf") if evaluator.seconds is None else evaluator.seconds - evaluator.wall_s


def as_decision(problem: RewriteProblem, program: TensorProgram) -> Rewritten:
    """A program that came out of an e-graph of verified rules, as a decision; executed when it is evaluated."""
    if program == problem.program:
        return problem.original
    node_costs = problem.program_costs.node_costs(program)
    return Rewritten(problem, program, node_costs, problem.total(program, node_costs), traced=False)


def saturation_greedy(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """Saturation, then the cheapest e-node of each class."""
    _saturate_once(evaluator, ilp=False)


def saturation(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """Saturation, then the greedy extraction, the one that shares costs among readers, and the linear program."""
    check_solver(evaluator.options)
    _saturate_once(evaluator, ilp=True)


def _saturate_once(evaluator: Evaluator, *, ilp: bool) -> None:
    problem = problem_of(evaluator)
    explored = explore(evaluator, problem.program, evaluator.options, share=0.5)
    evaluator.cost(problem.original)
    evaluator.note(**saturation_details(explored))
    evaluator.note(**extract(evaluator, explored, seconds_left(evaluator), ilp=ilp))


def saturation_repeat(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """Saturation of the program, then of the best that came out, and so on until nothing improves.

    A round that improves nothing is followed by one with more iterations of multi-pattern rules, up to two more than
    asked for; then it ends. Each round may take half of the seconds that are left.

    Raises:
        InputError: an option that cannot be; see :func:`saturate`.
    """
    from graphopt_gym.envs.rewrite.saturation.limits import check_limit

    problem, options = problem_of(evaluator), dict(evaluator.options)
    check_limit("rounds", options["rounds"])
    check_solver(options)
    rounds: list[dict[str, Any]] = []
    best, program = problem.original_s, problem.program
    more = 0
    for _ in range(options["rounds"]):
        told = {**options, "k_multi": options["k_multi"] + more} if more else options
        explored = explore(evaluator, program, told, share=0.25)
        if not rounds:
            evaluator.cost(problem.original)
        left = seconds_left(evaluator)
        facts = {"k_multi": told["k_multi"], **saturation_details(explored)}
        facts |= extract(evaluator, explored, left / 3 if np.isfinite(left) else SECONDS / 2, ilp=True)
        rounds.append({**facts, "cost_s": evaluator.best_cost})
        evaluator.note(**facts, round_costs_s=[row["cost_s"] for row in rounds], rounds=len(rounds))
        if evaluator.best_cost < best * (1 - LEAST_GAIN):
            best, program, more = evaluator.best_cost, problem.check(evaluator.best), 0
        elif more < 2:
            more += 1
        else:
            return


def explore(evaluator: Evaluator, program: TensorProgram, options: Mapping[str, Any], share: float) -> Saturation:
    """The e-graph of a program, by the limits of a method's options and a share of the seconds that are left."""
    from graphopt_gym.envs.rewrite.saturation.explore import saturate

    evaluator.check_left()
    problem = problem_of(evaluator)
    left = seconds_left(evaluator)
    limits = {name: options[name] for name in SATURATION_OPTIONS}
    seconds = share * left if np.isfinite(left) else SECONDS
    return saturate(program, problem.matcher.rules, problem.program_costs, seconds=seconds, **limits)


def extract(evaluator: Evaluator, explored: Saturation, seconds: float, *, ilp: bool) -> dict[str, Any]:
    """Proposes what the extractors make of an e-graph, cheap ones first; what they found, for a solution's details."""
    from graphopt_gym.envs.rewrite.saturation.extraction import Choices, extract_greedy, extract_ilp, extract_shared

    problem = problem_of(evaluator)
    started = time.perf_counter()
    until = started + (1 - RESERVE) * seconds
    choices = Choices(explored, until)

    def propose(found: Extraction) -> None:
        evaluator.finish(as_decision(problem, found.program))

    greedy = extract_greedy(explored, choices)
    propose(greedy)
    details: dict[str, Any] = {"greedy_cost_s": greedy.cost, "greedy_s": greedy.seconds}
    if ilp:
        shared = extract_shared(explored, choices, until=until)
        propose(shared)
        details |= {"shared_cost_s": shared.cost}
        seconds = SECONDS if not np.isfinite(seconds) else (1 - RESERVE) * seconds - (time.perf_counter() - started)
        if seconds > 0:
            best = extract_ilp(explored, solver=evaluator.options["solver"], seconds=seconds, choices=choices)
            propose(best)
            details |= {
                "ilp_cost_s": best.cost,
                "ilp_status": best.status,
                "ilp_variables": best.variables,
                "bound_s": best.bound,
                "gap": best.gap,
            }
        else:
            details |= {"ilp_status": "no time left"}
    return {**details, "extraction_s": time.perf_counter() - started}


def check_solver(options: Mapping[str, Any]) -> None:
    """Raises InputError where the option ``solver`` names none, or one that is not installed."""
    from graphopt_gym.envs.rewrite.saturation.solvers import SOLVERS

    solver = choice("solver", options["solver"], SOLVERS)
    need(*SOLVERS[solver], what=f"solver {solver!r}")


def saturation_details(explored: Saturation) -> dict[str, Any]:
    """What an e-graph was like, for a solution's details."""
    return {
        "saturation_stopped_by": explored.stopped_by,
        "nodes": explored.nodes,
        "classes": explored.classes,
        "growth_nodes": [iteration.nodes for iteration in explored.iterations],
        "growth_classes": [iteration.classes for iteration in explored.iterations],
        "applied": [iteration.applied for iteration in explored.iterations],
        "refused_for_cycles": sum(iteration.refused for iteration in explored.iterations),
        "filtered_for_cycles": sum(iteration.filtered for iteration in explored.iterations),
        "saturation_s": explored.seconds,
        "memory_bytes": explored.memory_bytes,
        "rules_that_entered_the_e_graph": dict(sorted(explored.entered.items(), key=lambda row: (-row[1], row[0]))),
    }
