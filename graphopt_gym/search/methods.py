"""Searches that work on any problem: they see only ``sample``, ``neighbour``, ``crossover`` and ``costs``.

Invalid decisions have a finite price (see ``Problem.costs``), so every search may pass through them.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from graphopt_gym.errors import InputError
from graphopt_gym.problem import ALL_MOVES, Problem
from graphopt_gym.search.evaluator import Evaluator, Method
from graphopt_gym.search.walk import Walk

RANDOM_BATCH = 64
# A walk evaluates several neighbours at once and uses them in order up to the first that it accepts; the rest is
# wasted. It takes as many as keep the expected waste at this share.
WASTE = 0.05
MOST_AT_ONCE = 16
# A compiled walk comes back this often, and with a limit of seconds at least so many times in it.
PART_S = 0.05
PARTS_OF_SECONDS = 400
# Annealing: the first temperature accepts the median deterioration with this probability, the last one is this much
# colder: far enough that the small ones of uneven costs count in the end. After Johnson et al., Operations Research
# 37(6), 1989, who calibrate by the initial acceptance.
FIRST_ACCEPTANCE = 0.1
COOLING = 1e-4
CALIBRATION_MOVES = 32
CALIBRATION_SHARE = 0.02  # of the budget, at most, spent on calibration
# A budget of several times this many moves an entry of the decision is spent in several cycles, each from the best.
CYCLE_MOVES = 50
MOST_CYCLES = 8
REHEATING = 6.0  # how much hotter every other cycle is, to leave what the cool ones are stuck in
# Cross-entropy: rounds in a budget, share of samples that the next round is fitted to, weight of the new fit, weight of
# a start, and a floor under the chances, so that a sample never has fewer random entries than this on average.
ROUNDS = 100
ELITE_SHARE = 0.25
SMOOTHING = 0.5
START_WEIGHT = 0.9
LEAST_CHANGES = 1.0
MOST_CHANCES = 2**25  # numbers that are kept: of each entry one a choice
AT_ONCE = 2**24  # of these compared with what is drawn, at a time
MOST_IDLE_ROUNDS = 12
# Evolution: members of the population and at most what share of the budget they are, members in a tournament, the share
# of children that have two parents, and the most moves that follow.
POPULATION = 64
POPULATION_SHARE = 0.1
TOURNAMENT = 16
CROSSOVER_SHARE = 0.25
MOST_MUTATIONS = 3
CHILDREN_AT_ONCE = 8


def random_search(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """The best of as many random decisions as the budget allows."""
    while True:
        count = min(RANDOM_BATCH, max(1, evaluator.left))
        evaluator.costs(np.stack([evaluator.problem.sample(rng) for _ in range(count)]))


def random_start(evaluator: Evaluator, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """(decision, cost) of a random decision."""
    decision = evaluator.problem.sample(rng)
    return decision, evaluator.cost(decision)


def good_start(evaluator: Evaluator, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """(decision, cost): the best that the task's cheap heuristics propose, or a random decision where it has none.

    The heuristics are those that the problem names as its ``starts``; their evaluations count.
    """
    task = evaluator.problem.task
    if task is None:
        return random_start(evaluator, rng)
    methods = task.method_table()
    for name in evaluator.problem.starts:
        methods[name].run(evaluator, rng)
    if evaluator.best is None:
        return random_start(evaluator, rng)
    return evaluator.best, evaluator.best_cost


Start = Callable[[Evaluator, np.random.Generator], tuple[np.ndarray, float]]


class Cooling(NamedTuple):
    """The temperature of a walk: ``exp(log_temperature + slope * evaluations)``; the walk ends at ``end`` of them."""

    log_temperature: float
    slope: float
    end: int


def _walk(
    evaluator: Evaluator,
    rng: np.random.Generator,
    decision: np.ndarray,
    cost: float,
    cooling: Callable[[], Cooling],
    most_idle: int,
) -> None:
    """A Metropolis walk over neighbours until it ends, or so many moves in a row have improved nothing.

    Where the problem has a walk of its own, its compiled loop does the same; ``cooling`` is asked again now and then.

    Several neighbours of one decision are evaluated at once, and looked at in the order in which they were drawn up to
    the first that is accepted; later ones are dropped, although they are paid for. So the walk is the sequential one.
    """
    problem = evaluator.problem
    if evaluator.walks and problem.has_walk:
        _compiled_walk(evaluator, rng, decision, cost, cooling, most_idle)
        return
    accepted_share = 0.5
    least, idle = cost, 0
    while idle < most_idle:
        log_temperature, slope, end = cooling()
        if evaluator.evaluations >= end:
            return
        at_once = int(np.clip(2 * WASTE / accepted_share, 1, MOST_AT_ONCE))
        moves = np.stack([problem.neighbour(decision, rng) for _ in range(at_once)])
        now = math.exp(log_temperature + slope * evaluator.evaluations)
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


def _compiled_walk(
    evaluator: Evaluator,
    rng: np.random.Generator,
    decision: np.ndarray,
    cost: float,
    cooling: Callable[[], Cooling],
    most_idle: int,
) -> None:
    """The walk by the problem's own code, in parts, between which progress is told and Ctrl-C heard."""
    seed = int(rng.integers(2**64, dtype=np.uint64))
    best = (evaluator.best, evaluator.best_cost, evaluator.best_valid)
    state = Walk(decision, cost, seed, *best, least=cost)
    part_s = PART_S if evaluator.seconds is None else min(PART_S, evaluator.seconds / PARTS_OF_SECONDS)
    begin, steps = evaluator.evaluations, 1
    while state.idle < most_idle:
        log_temperature, slope, end = cooling()
        if evaluator.evaluations >= end:
            return
        # the walk counts its own steps from 0
        state.log_temperature, state.slope = log_temperature + slope * begin, slope
        started, before = evaluator.wall_s, state.step
        evaluator.walk(state, min(steps, end - evaluator.evaluations), most_idle)
        step_s = (evaluator.wall_s - started) / max(1, state.step - before)
        steps = int(np.clip(part_s / max(step_s, 1e-9), 1, 4 * steps))


def hill_climbing_from(start: Start) -> Callable[[Evaluator, np.random.Generator], None]:
    """First-improvement hill climbing; at a local optimum it starts again some random moves away from the best."""

    def run(evaluator: Evaluator, rng: np.random.Generator) -> None:
        problem = evaluator.problem
        size = int(np.prod(problem.decision_shape))
        decision, cost = start(evaluator, rng)
        still = Cooling(-math.inf, 0.0, sys.maxsize)
        while True:
            _walk(evaluator, rng, decision, cost, lambda: still, max(50, 4 * size))
            assert evaluator.best is not None
            decision = evaluator.best
            for _ in range(int(rng.integers(2, max(4, size // 16) + 1))):
                decision = problem.neighbour(decision, rng)
            cost = evaluator.cost(decision)

    return run


def annealing_from(start: Start) -> Callable[[Evaluator, np.random.Generator], None]:
    """Simulated annealing: geometric cooling over the budget from a temperature that the problem's moves set.

    A budget that is large for the problem is spent in several such cycles, each from the best decision so far.
    """

    def run(evaluator: Evaluator, rng: np.random.Generator) -> None:
        problem = evaluator.problem
        decision, cost = start(evaluator, rng)
        tries = int(np.clip(CALIBRATION_SHARE * evaluator.budget, 2, CALIBRATION_MOVES))
        costs, valid = evaluator.costs_and_valid(np.stack([problem.neighbour(decision, rng) for _ in range(tries)]))
        # the price of what breaks a rule says nothing of the costs of those that break none
        rises = (costs - cost)[valid if valid.any() else slice(None)]
        rises = rises[(rises > 0) & np.isfinite(rises)]
        rise = float(np.median(rises)) if len(rises) else abs(cost) * 0.01
        first = math.log(max(rise, 1e-300) / -math.log(FIRST_ACCEPTANCE))
        # a share of the budget is left, of evaluations or, where these are spent first, of seconds
        begin, from_s = evaluator.evaluations, evaluator.wall_s
        room = max(1, evaluator.budget - begin)
        size = int(np.prod(problem.decision_shape))
        if problem.slow_moves:
            first += math.log(min(1.0, room / (problem.slow_moves * size)))
        cycles = int(np.clip(evaluator.budget // (CYCLE_MOVES * size), 1, MOST_CYCLES))

        def cooling_of(cycle: int) -> Callable[[], Cooling]:
            at_first = first + math.log(REHEATING) * (cycle % 2) - math.log(COOLING) * cycle  # as if from the beginning
            end = sys.maxsize if cycle + 1 >= cycles else begin + math.ceil((cycle + 1) * room / cycles)

            def cooling() -> Cooling:
                done, timed = (evaluator.evaluations - begin) / room, 0.0
                if evaluator.seconds is not None:
                    timed = (evaluator.wall_s - from_s) / max(evaluator.seconds - from_s, 1e-9)
                if timed > done:
                    over = timed * cycles >= cycle + 1 and cycle + 1 < cycles
                    return Cooling(at_first + math.log(COOLING) * timed * cycles, 0.0, 0 if over else sys.maxsize)
                slope = math.log(COOLING) * cycles / room
                return Cooling(at_first - slope * begin, slope, end)

            return cooling

        for cycle in itertools.count():
            _walk(evaluator, rng, decision, cost, cooling_of(min(cycle, cycles - 1)), sys.maxsize)
            assert evaluator.best is not None
            decision, cost = evaluator.best, evaluator.best_cost

    return run


def cross_entropy_from(start: Start | None) -> Callable[[Evaluator, np.random.Generator], None]:
    """The cross-entropy method over independent categoricals, one an entry of the decision (Rubinstein 1999).

    They begin even, or, with a start, with most of their weight on its choices. When some rounds in a row improve
    nothing, they begin anew with some of their weight on the best decision.
    """

    def run(evaluator: Evaluator, rng: np.random.Generator) -> None:
        problem = evaluator.problem
        choices = getattr(problem, "num_choices", None)
        if choices is None:
            raise InputError(
                f"method 'cross_entropy' needs decisions whose entries are free of each other; {problem.env_id} has "
                "none (no num_choices): use 'annealing'"
            )
        size = int(np.prod(problem.decision_shape))
        if size * choices > MOST_CHANCES:
            raise InputError(
                f"method 'cross_entropy' would keep {size * choices:,} chances, {choices:,} of each entry (at most "
                f"{MOST_CHANCES:,}): use 'annealing', or a problem with fewer choices"
            )
        columns = np.arange(size)
        allowed = getattr(problem, "choices_allowed", None)
        allowed = np.ones((size, choices), bool) if allowed is None else allowed.reshape(size, choices)
        last = choices - 1 - allowed[:, ::-1].argmax(axis=1)  # the last allowed one of each entry

        def around(decision: np.ndarray | None, weight: float) -> np.ndarray:
            chances = np.where(allowed, (1.0 - weight) / allowed.sum(axis=1, keepdims=True), 0.0)
            if decision is not None:
                chances[columns, decision.ravel()] += weight
            return chances

        chances = around(None, 0.0) if start is None else around(start(evaluator, rng)[0], START_WEIGHT)
        batch = int(np.clip(evaluator.budget // ROUNDS, 8, 256))
        elite = max(2, int(batch * ELITE_SHARE))
        idle = 0
        while True:
            idle += 1
            if idle > MOST_IDLE_ROUNDS:
                chances, idle = around(evaluator.best, float(rng.uniform(0.0, START_WEIGHT))), 0
            best_cost = evaluator.best_cost
            drawn, sums = rng.random((batch, size, 1)), np.cumsum(chances, axis=1)[:, :-1]
            parts = np.array_split(drawn, min(batch, 1 + batch * size * choices // AT_ONCE))
            above = np.concatenate([(part > sums).sum(axis=2, dtype=np.int32) for part in parts])
            samples = np.minimum(above, last, dtype=np.int32)
            costs = evaluator.costs(samples.reshape(batch, *problem.decision_shape))
            if evaluator.best_cost < best_cost:
                idle = 0
            counts = np.zeros((size, choices))
            for row in samples[np.argsort(costs, kind="stable")[:elite]]:
                counts[columns, row] += 1.0 / elite
            chances = (1.0 - SMOOTHING) * chances + SMOOTHING * counts
            chances = np.where(allowed, np.maximum(chances, LEAST_CHANGES / size / choices), 0.0)
            chances /= chances.sum(axis=1, keepdims=True)

    return run


def evolution_from(start: Start | None) -> Callable[[Evaluator, np.random.Generator], None]:
    """Regularized evolution (Real et al. 2019): the winner of a tournament has a child, and the oldest member dies.

    Beyond the paper, some children have two parents, each the winner of a tournament, whose decisions the problem
    crosses; the best member never dies. A few children are made, and evaluated, at once. The population begins with
    random decisions, or with random moves away from the start.
    """

    def run(evaluator: Evaluator, rng: np.random.Generator) -> None:
        problem = evaluator.problem
        size = int(np.clip(POPULATION_SHARE * evaluator.budget, 4, POPULATION))
        if start is None:
            members = [problem.sample(rng) for _ in range(size)]
            costs = evaluator.costs(np.stack(members)).tolist()
        else:
            decision, cost = start(evaluator, rng)
            members, costs = [decision], [cost]
            while len(members) < size:
                members.append(mutated(problem, decision, rng))
            costs += evaluator.costs(np.stack(members[1:])).tolist()
        rivals = max(2, size * TOURNAMENT // POPULATION)

        def winner() -> np.ndarray:
            return members[min(rng.integers(len(members), size=rivals).tolist(), key=costs.__getitem__)]

        while True:
            children = []
            for _ in range(min(CHILDREN_AT_ONCE, size // 2)):
                child = winner()
                if rng.random() < CROSSOVER_SHARE:
                    child = problem.crossover(child, winner(), rng)
                children.append(mutated(problem, child, rng))
            best = int(np.argmin(costs))
            # the oldest come first; the best is young again
            members = [*members[:best], *members[best + 1 :], members[best], *children]
            costs = [*costs[:best], *costs[best + 1 :], costs[best], *evaluator.costs(np.stack(children)).tolist()]
            members, costs = members[len(children) :], costs[len(children) :]

    def mutated(problem: Problem, decision: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        for _ in range(int(rng.integers(1, MOST_MUTATIONS + 1))):
            decision = problem.neighbour(decision, rng)
        return decision

    return run


KIRKPATRICK = "Kirkpatrick et al., Science 220, 1983; calibrated as in Johnson et al., Oper. Res. 37(6), 1989"
LOURENCO = "Lourenço et al., Iterated local search, in: Handbook of Metaheuristics, 2003"
REAL = "Real et al., AAAI 33, 2019 (regularized evolution), with crossover"
RUBINSTEIN = "Rubinstein, Methodology and Computing in Applied Probability 1, 1999"


def _with_moves(
    run: Callable[[Evaluator, np.random.Generator], None],
) -> Callable[[Evaluator, np.random.Generator], None]:
    """A search with the option ``moves``: which set of the problem's moves it draws from."""

    def chosen(evaluator: Evaluator, rng: np.random.Generator) -> None:
        evaluator.problem = evaluator.problem.with_moves(evaluator.options.get("moves", ALL_MOVES))
        run(evaluator, rng)

    return chosen


# From the best of the task's cheap heuristics, as one would use them; ``_random``: from nothing, as papers compare.
METHODS: dict[str, Method] = {
    name: Method(name, run, summary, source, random=True, free_entries=source == RUBINSTEIN)
    if source == RUBINSTEIN or name == "random"
    else Method(name, _with_moves(run), summary, source, random=True, options={"moves": ALL_MOVES})
    for name, run, summary, source in (
        ("random", random_search, "the best of random decisions", "the usual baseline"),
        (
            "hill_climbing",
            hill_climbing_from(good_start),
            "first improvement, from the best of the cheap heuristics; restarts near the best",
            LOURENCO,
        ),
        (
            "hill_climbing_random",
            hill_climbing_from(random_start),
            "first improvement, from a random decision; restarts near the best",
            LOURENCO,
        ),
        (
            "annealing",
            annealing_from(good_start),
            "simulated annealing, from the best of the cheap heuristics",
            KIRKPATRICK,
        ),
        ("annealing_random", annealing_from(random_start), "simulated annealing, from a random decision", KIRKPATRICK),
        (
            "evolution",
            evolution_from(good_start),
            "regularized evolution with crossover, around the best of the cheap heuristics",
            REAL,
        ),
        ("evolution_random", evolution_from(None), "regularized evolution with crossover, from random decisions", REAL),
        (
            "cross_entropy",
            cross_entropy_from(good_start),
            "categoricals fitted to the best samples, at first around the best of the cheap heuristics",
            RUBINSTEIN,
        ),
        (
            "cross_entropy_random",
            cross_entropy_from(None),
            "categoricals fitted to the best samples, even at first",
            RUBINSTEIN,
        ),
    )
}
