"""What schedulers and pipelines do by rule, as decisions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from graphopt_gym.errors import InputError
from graphopt_gym.simulator.gang import engine
from graphopt_gym.simulator.gang.engine import BEGIN, State
from graphopt_gym.simulator.gang.orders import pipeline_lists

if TYPE_CHECKING:
    from graphopt_gym.envs.gang.problem import GangProblem
    from graphopt_gym.simulator.gang.simulator import GangSimulator

POLICIES = ("fifo", "shortest", "longest", "stride", "round_robin", "backfill", "backfill_longest")
ORDERS = ("gpipe", "1f1b", "interleaved", "zb_h1", "zb_h2", "zb_v")


def policy_decision(problem: GangProblem, plan: int, policy: str, first_core: np.ndarray | None = None) -> np.ndarray:
    """int32: the decision of a policy: by level, where levels say what it does; else the order in which it starts
    gangs, as a strict one."""
    program = problem.plans[plan].program
    first = problem.spread[plan] if first_core is None else first_core
    by_level = {
        "fifo": np.zeros(program.num_gangs), "shortest": -program.remaining_s, "longest": program.remaining_s,
    }  # fmt: skip
    if policy in by_level and problem.safe:
        return problem.decision_of(plan, problem.levels_of_priorities(by_level[policy]), False, first)
    simulator = problem.simulator(plan, first)
    if policy.startswith("backfill"):
        urgency = program.remaining_s if policy == "backfill_longest" else np.zeros(program.num_gangs)
        levels = problem.levels_of_order(start_order(simulator, backfilled(simulator, urgency)))
        return problem.decision_of(plan, levels, True, first)
    if policy == "longest":
        state = simulator.begin("priority", priorities=program.remaining_s)
    else:
        state = simulator.begin(policy)
    engine.advance(simulator.lowered.tables, state, BEGIN)
    levels = problem.levels_of_order(start_order(simulator, state))
    return problem.decision_of(plan, levels, True, first)


def pipeline_decision(problem: GangProblem, plan: int, order: str) -> np.ndarray | None:
    """int32: the decision of a pipeline's order; None where it is not for that plan."""
    made = problem.plans[plan].pipeline
    if made is None:
        return None
    simulator = problem.simulator(plan, problem.spread[plan])
    try:
        found = orders_of_lists(simulator, pipeline_lists(made, order))
    except InputError:
        return None
    return problem.decision_of(plan, problem.levels_of_order(found))


def least_loaded(problem: GangProblem, plan: int) -> np.ndarray:
    """int64 [V]: each slice, that of the most work first, where its cores have the least to do so far."""
    program = problem.plans[plan].program
    work = np.bincount(program.slice, program.time_s * program.repeats, program.num_slices)
    load = np.zeros(problem.cluster.num_cores)
    found = np.empty(program.num_slices, np.int64)
    for v in np.argsort(-work, kind="stable").tolist():
        size, places = program.slices[v].cores, problem.positions[plan][v]
        highest = [float(load[at : at + size].max()) for at in places.tolist()]
        found[v] = places[int(np.argmin(highest))]
        load[found[v] : found[v] + size] += work[v]
    return found


def backfilled(simulator: GangSimulator, urgency: np.ndarray) -> State:
    """A run in which no core is kept free for a gang that cannot start yet: of the gangs that may start always the most
    urgent does, of those the earliest ready, then that of the lowest number.

    Args:
        simulator: of the program.
        urgency: float64 [G].
    """
    state = simulator.choose()
    count = simulator.step(state)
    while count:
        may = np.flatnonzero(simulator.candidates(state))
        order = np.lexsort((may, state.ready_s[may], -urgency[may]))
        count = int(engine.advance(simulator.lowered.tables, state, int(may[order[0]])))
    return state


def start_order(simulator: GangSimulator, state: State) -> np.ndarray:
    """int32 [G]: gangs in the order of their starts, at one instant each behind what it reads; last those that never
    started."""
    program = simulator.program
    place = np.empty(program.num_gangs, np.int64)
    place[program.sequence] = np.arange(program.num_gangs)
    start = np.nan_to_num(state.start_s[: program.num_gangs], nan=np.inf)
    return np.lexsort((place, start)).astype(np.int32)


def orders_of_lists(simulator: GangSimulator, lists: Sequence[Sequence[int]]) -> np.ndarray:
    """int32 [G]: one order of all gangs that agrees with the list of each slice: that in which they start.

    Raises:
        InputError: the lists end in a deadlock, so there is no such order.
    """
    state = simulator.begin("lists", lists=simulator.lists_of_slices(lists))
    engine.advance(simulator.lowered.tables, state, BEGIN)
    return start_order(simulator, state)
