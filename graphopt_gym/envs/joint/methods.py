"""The default stack, the best classical heuristics of each task, and each task solved in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from graphopt_gym.envs.joint.problem import FUSIONS, SCHEDULES, TASKS, GraphOptimizationProblem, Parts
from graphopt_gym.errors import InputError
from graphopt_gym.search.evaluator import BudgetSpent, Evaluator, Method
from graphopt_gym.search.methods import annealing_from

PLACEMENTS = ("expert", "metis", "heft", "cpop", "m_topo", "m_etf", "single")  # cheap ones
TURNS = TASKS  # in this order: the later ones depend on the placement


def _problem(evaluator: Evaluator) -> GraphOptimizationProblem:
    assert isinstance(evaluator.problem, GraphOptimizationProblem)
    return evaluator.problem


def default(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """The default stack."""
    problem = _problem(evaluator)
    evaluator.costs(problem.decision_of(problem.default)[None])


def heuristics(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """The best cheap placement, then the best fusion there, then the best schedule of that."""
    problem = _problem(evaluator)
    best = problem.default

    def take(candidates: Iterable[Parts]) -> Parts:
        listed = list(candidates)
        costs = evaluator.costs(np.stack([problem.decision_of(one) for one in listed]))
        return listed[int(np.argmin(costs))]

    if "placement" in problem.tasks:
        found = [best.placement]
        for name in PLACEMENTS:
            try:
                found.append(problem.devices_by(name))
            except InputError:  # one that cannot place this graph
                continue
        best = take(best._replace(placement=one) for one in found)
    placed = best.placement[problem.group_of_task]
    if "fusion" in problem.tasks:
        best = take([best, *(best._replace(fusion=problem.fusion_by(name, placed)) for name in FUSIONS)])
    if "schedule" in problem.tasks:
        take([best, *(best._replace(schedule=problem.schedule_by(name, placed)) for name in SCHEDULES)])


class _Turn(Evaluator):
    """A search over one task, whose decisions are priced as whole ones by another evaluator."""

    def __init__(
        self, outer: Evaluator, part: GraphOptimizationProblem, whole: Callable[[np.ndarray], np.ndarray], budget: int,
        seconds: float | None,
    ) -> None:  # fmt: skip
        super().__init__(part, budget, seconds)
        self.outer, self.whole = outer, whole

    def price(self, decisions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.outer.costs_and_valid(self.whole(decisions))


def in_turn(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """Each task by annealing, the others as they were left: an even share of what is left of the budget each."""
    problem = _problem(evaluator)
    heuristics(evaluator, rng)
    turns = [task for task in TURNS if task in problem.tasks]
    for index, task in enumerate(turns):
        best = problem.parts(evaluator.best)
        part = problem.only(task, default=best)

        def whole(decisions: np.ndarray, best: Parts = best, part: GraphOptimizationProblem = part) -> np.ndarray:
            rows = part.parts(decisions)
            count = len(decisions)
            full = Parts(*(np.broadcast_to(one, (count, one.shape[-1])) for one in rows))
            return problem.decision_of(full)

        share = 1.0 / (len(turns) - index)
        seconds = None if evaluator.seconds is None else (evaluator.seconds - evaluator.wall_s) * share
        budget = max(1, round(evaluator.left * share))
        turn = _Turn(evaluator, part, whole, budget, seconds)
        start = part.decision_of(best)
        cost = evaluator.best_cost
        try:
            annealing_from(lambda *_, start=start, cost=cost: (start, cost))(turn, rng)  # type: ignore[misc]
        except BudgetSpent:
            evaluator.check_left()


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("default", default, "the default stack: placement, fusion and schedule as the problem names them",
               "expert placement, greedy fusion, first come first served: what GO compares with"),
        Method("heuristics", heuristics, "the best of the cheap heuristics of each task, in turn",
               "placement, fusion and list scheduling, each by its literature"),
        Method("in_turn", in_turn, "placement, then fusion, then schedule, each by annealing",
               "the usual compiler: one pass after the other", random=True),
    )
}  # fmt: skip
