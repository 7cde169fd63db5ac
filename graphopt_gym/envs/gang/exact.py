"""Exact gang scheduling: by CP-SAT on small instances, by looking at all orders on tiny ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from graphopt_gym.simulator.gang.lower_bounds import ways

if TYPE_CHECKING:
    from graphopt_gym.envs.gang.problem import GangProblem

SECONDS = 20.0
TICKS = 2_000_000  # of the best known step: what times are rounded to
MOST_TINY = 10  # gangs of a plan all of whose orders are looked at


class Exact(NamedTuple):
    """What a solver found of a plan whose slices lie where ``spread`` puts them."""

    order: np.ndarray | None  # int32 [G]; None: nothing in time
    lower_bound_s: float


def least_step(problem: GangProblem, plan: int, start: np.ndarray, seconds: float, workers: int, seed: int) -> Exact:
    """The order of a plan's gangs of the shortest step, by CP-SAT: gangs and transfers as intervals that do not
    overlap on a core class or a link.

    Memory, and links that a collective inside a gang holds, are left out, times are rounded down, and the control plane
    counts as if nothing waited in it: so the bound holds for the simulator as well.

    Args:
        start: a decision of this plan, to begin from.
    """
    from ortools.sat.python import cp_model

    simulator, state = problem.run(start)
    begun_s = float(np.nanmax(state.finish_s))
    tables, kind = simulator.lowered.tables, simulator.lowered.kind
    gangs = simulator.program.num_gangs
    head, duration = ways(simulator).head_s, tables.duration_s
    tick = begun_s / TICKS
    works = np.flatnonzero(kind <= 1)
    horizon = 2 * TICKS
    model = cp_model.CpModel()
    begin, intervals, ends = {}, {}, []
    for task in works.tolist():
        size = int(duration[task] / tick)
        first = model.new_int_var(min(horizon, int(head[task] / tick)), horizon, "")
        begin[task], intervals[task] = first, model.new_fixed_size_interval_var(first, size, "")
        ends.append(first + size)
        model.add_hint(first, int(np.nan_to_num(state.start_s[task]) / tick))
    for task in works.tolist():
        for index in range(tables.after_ptr[task], tables.after_ptr[task + 1]):
            other = int(tables.after[index])
            if other in begin:
                wait = int(duration[task] / tick) + int(tables.delay_s[index] / tick)
                model.add(begin[other] >= begin[task] + wait)
    owner = np.repeat(np.arange(simulator.num_tasks), np.diff(tables.resource_ptr))
    for number in range(simulator.lowered.num_resources):
        mine = [task for task in owner[tables.resource == number].tolist() if task in intervals]
        if len(mine) > 1:
            model.add_no_overlap([intervals[task] for task in mine])
    makespan = model.new_int_var(0, horizon, "")
    model.add_max_equality(makespan, ends)
    model.minimize(makespan)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = seconds
    solver.parameters.num_workers = workers
    solver.parameters.random_seed = seed
    status = solver.solve(model)
    bound = solver.best_objective_bound * tick
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Exact(None, max(0.0, bound))
    place = np.empty(gangs, np.int64)
    place[simulator.program.sequence] = np.arange(gangs)
    starts = np.array([solver.value(begin[gang]) for gang in range(gangs)])
    return Exact(np.lexsort((place, starts)).astype(np.int32), bound)


def all_orders(problem: GangProblem, plan: int, first_core: np.ndarray) -> Iterator[np.ndarray]:
    """Every order of a plan's gangs, int32 [G], up to those that give all cores the same lists.

    Of two gangs next to each other that share no cores, and of which neither reads the other, that of the lower number
    comes first; what of this is still the same in all lists is left out, too.
    """
    simulator = problem.simulator(plan, first_core)
    program, tables = simulator.program, simulator.lowered.tables
    gangs, classes = program.num_gangs, simulator.classes.num_classes
    on = [
        frozenset(one for one in tables.resource[a:b].tolist() if one < classes)
        for a, b in itertools.pairwise(tables.resource_ptr[: gangs + 1].tolist())
    ]
    before: list[set[int]] = [set() for _ in range(gangs)]
    for a, b in zip(program.edge_src.tolist(), program.edge_dst.tolist(), strict=True):
        before[b].add(a)
    seen: set[tuple[tuple[int, ...], ...]] = set()

    def extend(taken: list[int], done: set[int]) -> Iterator[np.ndarray]:
        if len(taken) == gangs:
            lists = tuple(tuple(gang for gang in taken if number in on[gang]) for number in range(classes))
            if lists not in seen:
                seen.add(lists)
                yield np.array(taken, np.int32)
            return
        for gang in range(gangs):
            if gang in done or not before[gang] <= done:
                continue
            if taken and gang < taken[-1] and not on[gang] & on[taken[-1]] and taken[-1] not in before[gang]:
                continue
            yield from extend([*taken, gang], done | {gang})

    return extend([], set())


def all_decisions(problem: GangProblem) -> Iterator[np.ndarray]:
    """Every strict decision, up to those that run the same: of all plans, on all slices, in all orders."""
    for plan, places in enumerate(problem.positions):
        for first in itertools.product(*(one.tolist() for one in places)):
            first_core = np.array(first, np.int64)
            for order in all_orders(problem, plan, first_core):
                yield problem.decision_of(plan, problem.levels_of_order(order), True, first_core)
