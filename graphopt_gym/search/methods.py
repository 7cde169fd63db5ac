"""Searches that work on any problem: they see only ``sample``, ``neighbour`` and ``costs``.

Invalid decisions have a finite price (see ``Problem.costs``), so every search may pass through them.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable

import numpy as np

from graphopt_gym.errors import InputError
from graphopt_gym.registration import ENVIRONMENTS
from graphopt_gym.search.solve import Evaluator, Method

RANDOM_BATCH = 64
# A walk evaluates several neighbours at once and uses them in order up to the first that it accepts; the rest is
# wasted. It takes as many as keep the expected waste at this share.
WASTE = 0.05
MOST_AT_ONCE = 16
# Annealing: the first temperature accepts the median deterioration with this probability, the last one is this much
# colder. After Johnson et al., Operations Research 37(6), 1989, who calibrate by the initial acceptance.
FIRST_ACCEPTANCE = 0.2
COOLING = 1e-3
CALIBRATION_MOVES = 32
CALIBRATION_SHARE = 0.02  # of the budget, at most, spent on calibration


def random_search(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """The best of as many random decisions as the budget allows."""
    while True:
        evaluator.costs(np.stack([evaluator.problem.sample(rng) for _ in range(min(RANDOM_BATCH, max(1, evaluator.left)))]))


def random_start(evaluator: Evaluator, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """(decision, cost) of a random decision."""
    decision = evaluator.problem.sample(rng)
    return decision, evaluator.cost(decision)


def good_start(evaluator: Evaluator, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """(decision, cost): the best that the task's cheap heuristics propose, or a random decision where it has none.

    The heuristics are those that the task's module of methods names in ``STARTS``; their evaluations count.
    """
    spec = ENVIRONMENTS.get(evaluator.problem.env_id)
    if spec is None:
        return random_start(evaluator, rng)
    module = importlib.import_module(spec.methods)
    for name in module.STARTS:
        module.METHODS[name].run(evaluator, rng)
    if evaluator.best is None:
        return random_start(evaluator, rng)
    return evaluator.best, evaluator.cost(evaluator.best)


Start = Callable[[Evaluator, np.random.Generator], tuple[np.ndarray, float]]


def _walk(
    evaluator: Evaluator,
    rng: np.random.Generator,
    decision: np.ndarray,
    cost: float,
    temperature: Callable[[], float],
    patience: float = math.inf,
) -> tuple[np.ndarray, float]:
    """A Metropolis walk over neighbours, until the budget is spent or ``patience`` moves in a row improve nothing.

    Several neighbours of one decision are evaluated at once, and looked at in the order in which they were drawn up to
    the first that is accepted; later ones are dropped, although they are paid for. So the walk is the sequential one.
    """
    problem = evaluator.problem
    accepted_share = 0.5
    least, idle = cost, 0
    while idle < patience:
        at_once = int(np.clip(2 * WASTE / accepted_share, 1, MOST_AT_ONCE))
        moves = np.stack([problem.neighbour(decision, rng) for _ in range(at_once)])
        now = temperature()
        for move, move_cost in zip(moves, evaluator.costs(moves).tolist()):
            # at a temperature of 0 only what is as good or better is accepted
            limit = cost - now * math.log(1.0 - rng.random()) if now > 0 else cost
            accept = move_cost <= limit
            accepted_share += 0.02 * (accept - accepted_share)
            idle += 1
            if accept:
                decision, cost = move, move_cost
                if cost < least:
                    least, idle = cost, 0
                break
    return decision, cost


def hill_climbing_from(start: Start) -> Callable[[Evaluator, np.random.Generator], None]:
    """First-improvement hill climbing; at a local optimum it starts again some random moves away from the best."""

    def run(evaluator: Evaluator, rng: np.random.Generator) -> None:
        problem = evaluator.problem
        size = int(np.prod(problem.decision_shape))
        decision, cost = start(evaluator, rng)
        while True:
            _walk(evaluator, rng, decision, cost, lambda: 0.0, patience=max(50, 4 * size))
            assert evaluator.best is not None
            decision = evaluator.best
            for _ in range(int(rng.integers(2, max(4, size // 16) + 1))):
                decision = problem.neighbour(decision, rng)
            cost = evaluator.cost(decision)

    return run


def annealing_from(start: Start) -> Callable[[Evaluator, np.random.Generator], None]:
    """Simulated annealing: geometric cooling over the budget from a temperature that the problem's moves set."""

    def run(evaluator: Evaluator, rng: np.random.Generator) -> None:
        problem = evaluator.problem
        decision, cost = start(evaluator, rng)
        tries = int(np.clip(CALIBRATION_SHARE * evaluator.budget, 2, CALIBRATION_MOVES))
        rises = evaluator.costs(np.stack([problem.neighbour(decision, rng) for _ in range(tries)])) - cost
        rises = rises[(rises > 0) & np.isfinite(rises)]
        rise = float(np.median(rises)) if len(rises) else abs(cost) * 0.01
        first = rise / -math.log(FIRST_ACCEPTANCE)
        begin = min(evaluator.share_spent, 0.999)

        def temperature() -> float:
            return first * COOLING ** ((evaluator.share_spent - begin) / (1.0 - begin))

        _walk(evaluator, rng, decision, cost, temperature)

    return run


def cross_entropy(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """The cross-entropy method over independent categoricals, one an entry of the decision (Rubinstein 1999).

    Raises:
        InputError: the problem's decisions are not entries from 0 to ``num_choices`` - 1, each free of the others.
    """
    problem = evaluator.problem
    choices = getattr(problem, "num_choices", None)
    if choices is None:
        raise InputError(
            f"method 'cross_entropy' needs decisions whose entries are free of each other; {problem.env_id} has none "
            "(no num_choices): use 'annealing'"
        )
    size = int(np.prod(problem.decision_shape))
    batch = int(np.clip(evaluator.budget // 40, 8, 256))
    elite = max(2, batch // 8)
    chances = np.full((size, choices), 1.0 / choices)
    columns = np.arange(size)
    while True:
        below = rng.random((batch, size, 1)) > np.cumsum(chances, axis=1)[:, :-1]
        samples = below.sum(axis=2).astype(np.int32)
        costs = evaluator.costs(samples.reshape(batch, *problem.decision_shape))
        best = samples[np.argsort(costs, kind="stable")[:elite]]
        counts = np.zeros((size, choices))
        for row in best:
            counts[columns, row] += 1.0 / elite
        chances = 0.3 * chances + 0.7 * counts
        chances = np.maximum(chances, 0.02 / size / choices)
        chances /= chances.sum(axis=1, keepdims=True)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("random", random_search, "the best of random decisions", "the usual baseline", random=True),
        Method(
            "hill_climbing",
            hill_climbing_from(good_start),
            "first improvement from the best cheap heuristic; restarts near the best",
            "Lourenço et al., Iterated local search, 2003",
            random=True,
        ),
        Method(
            "annealing",
            annealing_from(good_start),
            "simulated annealing from the best cheap heuristic",
            "Kirkpatrick et al., Science 220, 1983",
            random=True,
        ),
        Method(
            "annealing_random",
            annealing_from(random_start),
            "simulated annealing from a random decision",
            "Kirkpatrick et al., Science 220, 1983",
            random=True,
        ),
        Method(
            "cross_entropy",
            cross_entropy,
            "independent categoricals fitted to the best samples",
            "Rubinstein, Methodology and Computing in Applied Probability 1, 1999",
            random=True,
        ),
    )
}
