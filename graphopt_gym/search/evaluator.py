"""What a method is, and what it proposes decisions to: a budget, a clock, and the best so far."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graphopt_gym.problem import Problem
from graphopt_gym.search.walk import Walk


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
    ``evaluator.options``, and raises InputError for a value that it cannot take. ``needs``: modules without which it
    does not run. ``rules``: those that a problem must have, of :attr:`Problem.rules`; others are refused.
    """

    name: str
    run: Callable[[Evaluator, np.random.Generator], None]
    summary: str
    source: str
    random: bool = False
    free_entries: bool = False
    small: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    rules: Mapping[str, str] = field(default_factory=dict)

    def suits(self, problem: Problem) -> bool:
        """Whether the problem has the rules that it needs."""
        return not self.rules or all(problem.rules.get(name) == rule for name, rule in self.rules.items())


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
        self.evaluations = self.valid_evaluations = 0
        self.best: Any = None
        self.best_cost = float("inf")
        self.best_valid = False
        self.history: list[tuple[int, float, float]] = []
        self._progress = progress
        self._started = _clock()

    @property
    def wall_s(self) -> float:
        """Seconds so far, without those of compiling: they are those of the first run on a machine."""
        return _clock() - self._started

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

    def count(self, evaluations: int) -> None:
        """Counts evaluations that a method did by itself, as those of a compiled loop."""
        self.evaluations += evaluations

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
        self._count(len(taken), int(valid.sum()))
        cut = len(decisions) - len(taken)
        if cut:
            return np.concatenate([costs, np.full(cut, np.inf)]), np.concatenate([valid, np.zeros(cut, bool)])
        return costs, valid

    @property
    def walks(self) -> bool:
        """Whether the problem prices, so that a walk of its own may stand for calls of :meth:`price`."""
        return type(self).price is Evaluator.price

    def walk(
        self, walk: Walk, steps: int, most_idle: int, take: Callable[[Walk, int, int], None] | None = None
    ) -> None:
        """Steps of a walk, counted as evaluations.

        Args:
            take: takes them, as :meth:`Problem.walk` says; the problem's own where left out.

        Raises:
            BudgetSpent: nothing is left.
        """
        self.check_left()
        began, before, valid = self.wall_s, walk.step, walk.valid
        (take or self.problem.walk)(walk, min(steps, self.left), most_idle)
        taken, wall_s = walk.step - before, self.wall_s - began
        for step, cost in walk.improvements:  # when each came: as if all steps took equally long
            done = step - before + 1
            self.history.append((self.evaluations + done, began + wall_s * done / max(taken, 1), cost))
        walk.improvements.clear()
        self.best, self.best_cost, self.best_valid = walk.best, walk.best_cost, walk.best_valid
        self._count(taken, walk.valid - valid)

    def _count(self, evaluations: int, valid: int) -> None:
        self.evaluations += evaluations
        self.valid_evaluations += valid
        if self._progress:
            self._progress(self.evaluations, self.best_cost if self.best_valid else float("inf"))

    def price(self, decisions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(cost float64 [B], valid bool [B]) of decisions, where they are priced: the problem."""
        return self.problem.costs(decisions)

    def cost(self, decision: Any) -> float:
        """The cost of one decision, as :meth:`costs`."""
        return float(self.costs(np.asarray(decision)[None])[0])


def _clock() -> float:
    """Seconds by a clock that stands still while kernels are compiled."""
    compiled = sys.modules.get("graphopt_gym.compiled")  # not loaded where the problem has no kernels
    return compiled.clock() if compiled else time.perf_counter()
