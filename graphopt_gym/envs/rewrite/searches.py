"""Sequential searches over programs: one rewrite at a time, matches and costs kept up to date."""

from __future__ import annotations

import heapq
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from graphopt_gym.envs.rewrite.problem import RewriteProblem, Rewritten
from graphopt_gym.envs.rewrite.rules.matching import Match
from graphopt_gym.errors import InputError

if TYPE_CHECKING:
    from graphopt_gym.search.evaluator import Evaluator

ALPHA = 1.05  # a program that costs more than this times the best is not searched further (TASO, section 5)
AT_ONCE = 16  # programs priced between two looks at the clock
WALK_LENGTH = 100
MOST_EXHAUSTIVE = 24  # operators that a program for the exhaustive search may compute
ROOM = 2  # nodes that a program may have more than the original in the exhaustive search


def original(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """The program as it is."""
    evaluator.cost(_problem(evaluator).original)


def greedy(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """Applies the rewrite that saves most, until none saves anything."""
    state = _problem(evaluator).original
    evaluator.cost(state)
    while True:
        cheapest: Rewritten | None = None
        children: list[Rewritten] = []
        for match in state.matches:
            child = state.apply(match)
            if cheapest is None or child.cost < cheapest.cost:
                cheapest = child
            children.append(child)
            if len(children) == AT_ONCE:
                _price(evaluator, children)
        _price(evaluator, children)
        if cheapest is None or not cheapest.cost < state.cost:
            return
        state = cheapest


def taso(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """TASO's cost-based backtracking search (Jia et al., SOSP 2019, algorithm 2).

    The cheapest program in the queue is taken out, and each of its rewrites goes in that was not seen before and costs
    less than :data:`ALPHA` times the best. An evaluation is a program seen for the first time.
    """
    start = _problem(evaluator).original
    evaluator.cost(start)
    seen = {start.program.fingerprint}
    # what to do is queued, not the program: those that are never taken out take no room
    queue: list[tuple[float, int, Rewritten, Match | None]] = [(start.cost, 0, start, None)]
    queued = 1
    best = start.cost
    while queue:
        cost, _, parent, match = heapq.heappop(queue)
        if cost > ALPHA * best:
            return  # nor is anything else in the queue cheaper
        state = parent if match is None else parent.apply(match)
        children: list[Rewritten] = []
        for match in state.matches:
            child = state.apply(match)
            fingerprint = child.program.fingerprint
            if fingerprint in seen:
                continue
            seen.add(fingerprint)
            children.append(child)
            if len(children) == AT_ONCE:
                _price(evaluator, children)
            if child.cost < ALPHA * best:
                best = min(best, child.cost)
                heapq.heappush(queue, (child.cost, queued, state, match))
                queued += 1
        _price(evaluator, children)


def random_walk(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """Random rewrites one after the other; after :data:`WALK_LENGTH` of them from the original again."""
    problem = _problem(evaluator)
    evaluator.cost(problem.original)
    while True:
        state = problem.original
        steps: list[Rewritten] = []
        for _ in range(WALK_LENGTH):
            state = problem.neighbour(state, rng)
            steps.append(state)
            if len(steps) == AT_ONCE:
                _price(evaluator, steps)
        _price(evaluator, steps)


def exhaustive(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """Every program that rewrites reach without growing, breadth first; ends by itself once it has seen them all.

    A program may have at most :data:`ROOM` nodes more than the original. If the budget ends the search, the best is
    not proven.

    Raises:
        InputError: the program computes more than :data:`MOST_EXHAUSTIVE` operators.
    """
    problem = _problem(evaluator)
    ops = problem.program.statistics()["computed"]
    if ops > MOST_EXHAUSTIVE:
        raise InputError(
            f"method 'exhaustive' takes programs of at most {MOST_EXHAUSTIVE} operators; "
            f"{problem.program.name!r} has {ops}: use 'taso'"
        )
    start = problem.original
    evaluator.cost(start)
    seen = {start.program.fingerprint}
    most = len(start.program) + ROOM
    waiting: deque[tuple[Rewritten, Match | None]] = deque([(start, None)])
    children: list[Rewritten] = []
    while waiting:
        parent, match = waiting.popleft()
        state = parent if match is None else parent.apply(match)
        for match in state.matches:
            child = state.apply(match)
            if len(child.program) > most or child.program.fingerprint in seen:
                continue
            seen.add(child.program.fingerprint)
            children.append(child)
            waiting.append((state, match))
            if len(children) == AT_ONCE:
                _price(evaluator, children)
    _price(evaluator, children)


def _price(evaluator: Evaluator, states: list[Rewritten]) -> None:
    """Proposes programs, and empties the list."""
    if states:
        taken = np.empty(len(states), object)
        taken[:] = states
        states.clear()
        evaluator.costs(taken)


def _problem(evaluator: Evaluator) -> RewriteProblem:
    problem = evaluator.problem
    assert isinstance(problem, RewriteProblem)
    return problem
