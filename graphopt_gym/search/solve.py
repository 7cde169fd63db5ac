"""``solve``: run a method on a problem under a budget, and keep the best, whatever happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import numpy as np

from graphopt_gym.errors import InputError, unknown_name
from graphopt_gym.problem import Problem, Solution
from graphopt_gym.registration import env_ids, task_of
from graphopt_gym.task import Task


class BudgetSpent(Exception):
    """Raised inside a method when its budget is used up; ``solve`` catches it."""

    def __init__(self, by: str) -> None:
        super().__init__(by)
        self.by = by


@dataclass(frozen=True)
class Method:
    """A way to solve a problem.

    ``run(evaluator, rng)`` proposes decisions to ``evaluator.costs`` until it is done or the budget is spent; the
    evaluator keeps the best. ``random``: whether the seed matters. ``free_entries``: whether it needs decisions whose
    entries are free of each other (a problem with ``num_choices``). ``small``: whether it refuses large instances.
    ``options``: what the method can be told, with what it takes where it is not told; ``run`` finds them in
    ``evaluator.options``, and raises InputError for a value that it cannot take.
    """

    name: str
    run: Callable[[Evaluator, np.random.Generator], None]
    summary: str
    source: str
    random: bool = False
    free_entries: bool = False
    small: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


class Evaluator:
    """Counts evaluations, keeps the best decision, and stops a method when its budget is spent.

    Args:
        problem: what is solved.
        budget: most evaluations.
        seconds: most seconds, or None.
        progress: called with (evaluations, best cost) after each batch, or None.
        options: the method's options, each with its value.

    Attributes:
        details: what the method says of its run beside the decision, see :meth:`note`.
    """

    def __init__(
        self,
        problem: Problem,
        budget: int,
        seconds: float | None = None,
        progress: Callable[[int, float], None] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.problem = problem
        self.options = dict(options or {})
        self.details: dict[str, Any] = {}
        self.budget = budget
        self.seconds = seconds
        self.evaluations = 0
        self.best: Any = None
        self.best_cost = float("inf")
        self.best_valid = False
        self.history: list[tuple[int, float, float]] = []
        self._progress = progress
        self._started = time.perf_counter()

    @property
    def wall_s(self) -> float:
        return time.perf_counter() - self._started

    @property
    def left(self) -> int:
        """Evaluations left."""
        return self.budget - self.evaluations

    @property
    def share_spent(self) -> float:
        """0 at the start, 1 when the budget of evaluations or seconds is spent: what a cooling schedule follows."""
        spent = self.evaluations / self.budget
        return min(1.0, max(spent, self.wall_s / self.seconds if self.seconds else 0.0))

    def costs(self, decisions: np.ndarray) -> np.ndarray:
        """float64 [B]: costs of B decisions, as :meth:`costs_and_valid`."""
        return self.costs_and_valid(decisions)[0]

    def costs_and_valid(self, decisions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(cost float64 [B], valid bool [B]), counted against the budget; invalid ones are priced, see Problem.costs.

        A batch larger than what is left is cut: the rest of the costs are ``inf``, and not valid.

        Raises:
            BudgetSpent: nothing is left.
        """
        self.check_left()
        return self._take(decisions)

    def check_left(self) -> None:
        """Raises BudgetSpent where nothing is left: for methods that do long work between two evaluations."""
        if self.left <= 0:
            raise BudgetSpent("budget")
        if self.seconds is not None and self.wall_s >= self.seconds:
            raise BudgetSpent("seconds")

    def finish(self, decision: Any) -> float:
        """The cost of a decision that work begun in time led to: taken even if the time ran out meanwhile.

        Raises:
            BudgetSpent: no evaluation is left.
        """
        if self.left <= 0:
            raise BudgetSpent("budget")
        return float(self._take(np.asarray(decision)[None])[0][0])

    def note(self, **details: Any) -> None:
        """Keeps JSON-able facts of the run for ``Solution.details``; a later one of a name stands for it."""
        self.details.update(details)

    def _take(self, decisions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        taken = np.asarray(decisions)[: self.left]
        costs, valid = self.price(taken)
        # a valid decision always beats an invalid one
        row = int(np.lexsort((costs, ~valid))[0])
        if costs[row] < self.best_cost if valid[row] == self.best_valid else valid[row]:
            best = taken[row]
            self.best = best.copy() if isinstance(best, np.ndarray) else best  # other decisions cannot be changed
            self.best_cost, self.best_valid = float(costs[row]), bool(valid[row])
            if self.best_valid:
                self.history.append((self.evaluations + row + 1, self.wall_s, self.best_cost))
        self.evaluations += len(taken)
        if self._progress:
            self._progress(self.evaluations, self.best_cost if self.best_valid else float("inf"))
        cut = len(decisions) - len(taken)
        if cut:
            return np.concatenate([costs, np.full(cut, np.inf)]), np.concatenate([valid, np.zeros(cut, bool)])
        return costs, valid

    def price(self, decisions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(cost float64 [B], valid bool [B]) of decisions, where they are priced: the problem."""
        return self.problem.costs(decisions)

    def cost(self, decision: Any) -> float:
        """The cost of one decision, as :meth:`costs`."""
        return float(self.costs(np.asarray(decision)[None])[0])


def own_task(env_id: str) -> Task | None:
    """The task of a problem; None where it is of a class that no task is registered for."""
    return task_of(env_id) if env_id in env_ids() else None


def method_table(env_id: str) -> dict[str, Method]:
    """The methods of a task: its own first, then the task-independent searches."""
    from graphopt_gym.search.methods import METHODS as SEARCHES

    task = own_task(env_id)
    own = {} if task is None else task.method_table()
    return {**own, **{name: method for name, method in SEARCHES.items() if name not in own}}


def installed_methods(env_id: str) -> dict[str, EntryPoint]:
    """Methods of other packages for a task: entry points of the group ``graphopt_gym.methods.<task>``.

    Each names a :class:`Method`, which ``load()`` imports. The learned agents' methods come in this way.
    """
    task = own_task(env_id)
    found = () if task is None else entry_points(group=f"graphopt_gym.methods.{task.name}")
    return {entry.name: entry for entry in found}


def find_method(env_id: str, name: str) -> Method:
    """The method of that name: the task's own, a search, or one of another installed package.

    Raises:
        InputError: no such method, with the nearest.
    """
    table = method_table(env_id)
    if name in table:
        return table[name]
    installed = installed_methods(env_id)
    if name not in installed:
        raise unknown_name("method", name, [*table, *installed])
    method: Method = installed[name].load()
    return method


def methods(env_id: str) -> list[str]:
    """The names of this package's methods for an environment; ``solve`` takes those of others too, by name.

    Those that need decisions whose entries are free of each other are left out where they are not.
    """
    free = hasattr(task_of(env_id).problem_class(), "num_choices")
    return [name for name, method in method_table(env_id).items() if free or not method.free_entries]


def method_options(method: Method, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """A method's options: those given, and its own values for the rest.

    Raises:
        InputError: one that the method does not have, with the nearest.
    """
    for name in given or {}:
        if name not in method.options:
            if not method.options:
                raise InputError(f"method {method.name!r} takes no options; {name!r} was given")
            raise unknown_name(f"method {method.name!r}: option", name, method.options)
    return {**method.options, **(given or {})}


def solve(
    problem: Problem,
    method: str | Method,
    *,
    budget: int = 1000,
    seconds: float | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Solution:
    """Run one method on a problem.

    Args:
        problem: from :func:`make_problem`.
        method: one of ``methods(problem.env_id)``, one that another package installs, or a method of one's own.
        budget: most evaluations of the problem. Constructive heuristics use one or a few.
        seconds: most seconds, checked between evaluations; None for no limit.
        seed: of the method's random choices.
        options: of the method, by name; see ``Method.options``.
        progress: called with (evaluations, best cost so far).

    Returns:
        The best decision found. An interrupt (Ctrl-C) ends the run and keeps it.

    Raises:
        InputError: an unknown method or option, a value that an option cannot take, a budget or seconds not above 0,
            or nothing evaluated within the seconds.
    """
    chosen = method if isinstance(method, Method) else find_method(problem.env_id, method)
    if not isinstance(budget, int | np.integer) or isinstance(budget, bool) or budget < 1:
        raise InputError(f"budget is {budget!r}; give a whole number of evaluations, at least 1")
    if seconds is not None and not (np.isfinite(seconds) and seconds > 0):
        raise InputError(f"seconds is {seconds!r}; give a number above 0")
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise InputError(f"seed is {seed!r}; give a whole number, at least 0")
    evaluator = Evaluator(problem, int(budget), seconds, progress, method_options(chosen, options))
    stopped_by = "finished"
    try:
        chosen.run(evaluator, np.random.default_rng(seed))
    except BudgetSpent as spent:
        stopped_by = spent.by
    except KeyboardInterrupt:
        if evaluator.best is None:
            raise
        stopped_by = "interrupt"
    wall_s = evaluator.wall_s
    if evaluator.best is None:
        raise InputError(f"method {chosen.name!r} evaluated nothing within {evaluator.seconds} s; give more seconds")
    return Solution(
        problem=problem,
        method=chosen.name,
        seed=int(seed),
        decision=problem.check(evaluator.best),
        outcome=problem.evaluate(evaluator.best),
        evaluations=evaluator.evaluations,
        wall_s=wall_s,
        history=tuple(evaluator.history),
        stopped_by=stopped_by,
        trace=problem.trace(evaluator.best),
        options=evaluator.options,
        details=evaluator.details,
    )


def compare(
    problem: Problem,
    names: Iterable[str],
    *,
    budget: int = 1000,
    seconds: float | None = None,
    seeds: int = 3,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[str, int, int, float], Any] | None = None,
) -> list[Solution]:
    """Several methods under one budget; random ones with seeds 0 to seeds-1, the others once.

    Each takes those of the ``options`` that it has. ``progress`` is called with (method, seed, evaluations, best cost).
    Raises InputError as :func:`solve` does, before anything runs, and for an option that no method has.
    """
    chosen = [find_method(problem.env_id, name) for name in names]
    if not chosen:
        raise InputError("no methods given; name at least one")
    if not isinstance(seeds, int) or seeds < 1:
        raise InputError(f"seeds is {seeds!r}; give a whole number, at least 1")
    known = {name for method in chosen for name in method.options}
    for name in options or {}:
        if name not in known:
            if not known:
                raise InputError(f"none of the methods takes options; {name!r} was given")
            raise unknown_name("option", name, known)
    rows = []
    for method in chosen:
        own = {name: value for name, value in (options or {}).items() if name in method.options}
        for seed in range(seeds if method.random else 1):

            def report(evaluations: int, best: float, name: str = method.name, seed: int = seed) -> None:
                if progress:
                    progress(name, seed, evaluations, best)

            rows.append(solve(problem, method, budget=budget, seconds=seconds, seed=seed, options=own, progress=report))
            if rows[-1].stopped_by == "interrupt":
                return rows
    return rows
