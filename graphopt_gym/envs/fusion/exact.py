"""The best fusion of a small graph: all legal kernels are listed, and CP-SAT chooses those that part the graph.

Every fusion that priorities can reach parts the ops into legal kernels without a cycle among them; the reverse need
not hold, as a producer goes into all of its fusible consumers or none. So the least sum of kernels' times is a bound of
the step time on one device, and where a decision reaches it the decision is proved best.
"""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.envs.fusion.problem import FusionProblem
from graphopt_gym.errors import InputError
from graphopt_gym.extras import need
from graphopt_gym.fields import positive, whole
from graphopt_gym.simulator.fused import kernel_seconds
from graphopt_gym.simulator.fusing import LOOP, holds

if TYPE_CHECKING:
    from graphopt_gym.search.evaluator import Evaluator

SECONDS = 60.0
MOST_KERNELS = 50_000
ORDERS = 32  # of the same producers, tried at random
UNITS = 2**40  # of the step time without fusion


def legal_kernels(problem: FusionProblem, most: int = MOST_KERNELS) -> list[tuple[int, ...]]:
    """All sets of two tasks or more that may be one kernel, of one device, each joined by what its tasks read.

    Cycles among several kernels are another matter; a set that would be on a circle by itself is left out.

    Raises:
        InputError: more than ``most``.
    """
    tables, placement = problem.fused.tables, problem.placement
    after: list[set[int]] = [set() for _ in range(problem.num_tasks)]
    near: list[set[int]] = [set() for _ in range(problem.num_tasks)]
    for task in range(problem.num_tasks - 1, -1, -1):
        for at in range(tables.succ_ptr[task], tables.succ_ptr[task + 1]):
            reader = int(tables.succ[at])
            after[task] |= {reader} | after[reader]
            if tables.succ_ok[at] and placement[task] == placement[reader]:
                near[task].add(reader)
                near[reader].add(task)

    def convex(members: frozenset[int]) -> bool:
        """Whether no way leads out of them and back."""
        outside = set().union(*(after[one] for one in members)) - members
        return not any(after[one] & members for one in outside)

    found: set[frozenset[int]] = set()
    grown: set[frozenset[int]] = {frozenset((task,)) for task in range(problem.num_tasks) if near[task]}
    seen = set(grown)
    while grown:
        wider: set[frozenset[int]] = set()
        for members in grown:
            for other in set().union(*(near[one] for one in members)) - members:
                whole_set = members | {other}
                if whole_set in seen or len(whole_set) > tables.most[0]:
                    continue
                if sum(tables.fusion_class[one] != LOOP for one in whole_set) > 1:
                    continue  # nor may any that holds it
                seen.add(whole_set)
                wider.add(whole_set)
                if len(seen) > most:
                    raise InputError(
                        f"method 'cp_sat' would look at more than {most:,} kernels of {problem.graph.name!r}: take "
                        "'annealing'"
                    )
                if convex(whole_set) and holds(tables, np.sort(np.array(list(whole_set))), placement):
                    found.add(whole_set)
        grown = wider
    return sorted(tuple(sorted(one)) for one in found)


def best_partition(
    problem: FusionProblem, seconds: float = SECONDS, workers: int = 1, seed: int = 0
) -> tuple[list[tuple[int, ...]], float]:
    """(the kernels of several tasks in the best partition found, a sum of kernels' seconds that none beats)."""
    need("ortools", what="method 'cp_sat'")
    from ortools.sat.python import cp_model

    kernels = legal_kernels(problem)
    tables, placement = problem.fused.tables, problem.placement
    tasks = np.flatnonzero(~problem.fused.task_tables.is_source)
    alone = {
        int(task): problem.simulator.durations_s[problem.simulator.device_type[placement[task]], task] for task in tasks
    }
    unit_s = max(sum(alone.values()), 1e-300) / UNITS
    model = cp_model.CpModel()
    chosen = [(members, model.new_bool_var("")) for members in kernels]
    single = {task: model.new_bool_var("") for task in alone}
    covers: dict[int, list[Any]] = {task: [variable] for task, variable in single.items()}
    for members, variable in chosen:
        for task in members:
            covers[task].append(variable)
    for variables in covers.values():
        model.add_exactly_one(variables)
    # no circle: kernels have places in an order, and all members of one the same
    place = {task: model.new_int_var(0, problem.num_tasks, "") for task in alone}
    together: dict[tuple[int, int], list[Any]] = {}
    for members, variable in chosen:
        for one, other in itertools.pairwise(members):
            model.add(place[one] == place[other]).only_enforce_if(variable)
        inside = set(members)
        for task in members:
            for at in range(tables.succ_ptr[task], tables.succ_ptr[task + 1]):
                if int(tables.succ[at]) in inside:
                    together.setdefault((task, int(tables.succ[at])), []).append(variable)
    for task in alone:
        for at in range(tables.succ_ptr[task], tables.succ_ptr[task + 1]):
            reader = int(tables.succ[at])
            apart = model.new_bool_var("")
            model.add(sum(together.get((task, reader), ())) + apart == 1)
            model.add(place[task] < place[reader]).only_enforce_if(apart)
    terms = [(int(alone[task] / unit_s), variable) for task, variable in single.items()]
    terms += [
        (int(kernel_seconds(problem.fused, np.array(members), placement) / unit_s), variable)
        for members, variable in chosen
    ]
    model.minimize(sum(units * variable for units, variable in terms))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = workers
    solver.parameters.random_seed = seed
    solver.parameters.max_time_in_seconds = seconds
    for variable in single.values():
        model.add_hint(variable, True)
    status = solver.solve(model)
    bound = max(0.0, solver.best_objective_bound) * unit_s
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return [], bound
    return [members for members, variable in chosen if solver.value(variable)], bound


def cp_sat(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """The method: the best partition, as a decision that tries what leads to it, and the steps around that one."""
    problem: Any = evaluator.problem
    assert isinstance(problem, FusionProblem)
    limit = positive("method 'cp_sat': option time_limit_s", evaluator.options.get("time_limit_s", SECONDS))
    workers = whole("method 'cp_sat': option workers", evaluator.options.get("workers", 0), 0) or os.cpu_count() or 1
    evaluator.cost(np.zeros(problem.num_tasks, np.int32))
    left = limit if evaluator.seconds is None else min(limit, evaluator.seconds - evaluator.wall_s)
    kernels, partition_s = best_partition(problem, max(left, 0.1), workers, int(rng.integers(2**31)))
    decision, tables = np.zeros(problem.num_tasks, np.int32), problem.fused.tables
    for members in kernels:
        inside = set(members)
        for task in members:
            readers = tables.succ[tables.succ_ptr[task] : tables.succ_ptr[task + 1]].tolist()
            decision[task] = any(one in inside for one in readers)
    # a fusion that another stands in the way of may come about in another order
    for _ in range(ORDERS):
        if evaluator.left < 1:
            break
        evaluator.cost(np.where(decision > 0, rng.integers(1, problem.levels, problem.num_tasks), 0).astype(np.int32)
                       if evaluator.evaluations > 1 else decision)  # fmt: skip
    lower_s = max(partition_s if problem.cluster.num_devices == 1 else 0.0, *problem.bounds().values())
    gap = evaluator.best_cost / lower_s - 1 if lower_s > 0 else 0.0
    evaluator.note(
        lower_bound_s=lower_s, gap_percent=100 * gap if evaluator.best_valid else None, proved=bool(gap <= 1e-9)
    )
