"""What no decision can beat: lower bounds of gang scheduling."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from graphopt_gym.simulator.gang.lower_bounds import ways

if TYPE_CHECKING:
    from graphopt_gym.envs.gang.problem import GangProblem


class Bounds(NamedTuple):
    """Of a plan, or the least of several."""

    path_s: float  # the longest way through gangs (and transfers and the control plane, where slices lie fast)
    cores_s: float  # of the busiest cores
    memory_bytes: int  # of the fullest core: what it holds all the time, and its largest gang

    @property
    def step_s(self) -> float:
        return max(self.path_s, self.cores_s)


def plan_bounds(problem: GangProblem, plan: int) -> Bounds:
    """Lower bounds of the step time and of the peak memory of a plan, wherever its slices may lie."""
    program = problem.plans[plan].program
    simulator = problem.simulator(plan, problem.spread[plan])
    tables, gangs = simulator.lowered.tables, program.num_gangs
    if problem.place:  # transfers, launches and collectives depend on where slices lie: gangs alone
        duration = program.time_s * program.repeats
        head = np.array([0.0] * gangs)
        arrival = program.arrival_s[program.call]
        source, target = program.edge_src.tolist(), program.edge_dst.tolist()
        into: list[list[int]] = [[] for _ in range(gangs)]
        out: list[list[int]] = [[] for _ in range(gangs)]
        for a, b in zip(source, target, strict=True):
            into[b].append(a)
            out[a].append(b)
        for gang in program.sequence.tolist():
            head[gang] = max([arrival[gang], *(head[one] + duration[one] for one in into[gang])])
        tail = np.zeros(gangs)
        for gang in program.sequence[::-1].tolist():
            tail[gang] = max([0.0, *(duration[one] + tail[one] for one in out[gang])])
        on_cores = np.flatnonzero(program.on_cores)
        # gangs of one slice share its cores wherever it lies
        groups = [on_cores[program.slice[on_cores] == v] for v in range(program.num_slices)]
        cores = (duration * program.slice_cores[program.slice] * program.on_cores).sum() / problem.cluster.num_cores
    else:
        head, tail = ways(simulator)
        duration = tables.duration_s
        owner = np.repeat(np.arange(gangs), np.diff(tables.resource_ptr[: gangs + 1]))
        at = tables.resource[: len(owner)]
        groups = [owner[at == number] for number in range(simulator.classes.num_classes)]
        head, tail, duration = head[:gangs], tail[:gangs], duration[:gangs]
        cores = 0.0
    path = float((head + duration + tail).max())
    busiest = max([float(cores), *(one_machine(head[own], duration[own], tail[own]) for own in groups if len(own))])
    held = np.array([one.resident_bytes for one in program.slices], np.int64)
    needs = np.zeros(program.num_slices, np.int64)
    np.maximum.at(needs, program.slice, program.output_bytes + program.temp_bytes)
    return Bounds(path, busiest, int((held + needs).max()))


def bounds(problem: GangProblem) -> Bounds:
    """The least of each bound over the plans."""
    found = [plan_bounds(problem, plan) for plan in range(len(problem.plans))]
    least = min(found, key=lambda one: one.step_s)
    return least._replace(memory_bytes=min(one.memory_bytes for one in found))


def least_cost(problem: GangProblem) -> float:
    """A cost that no decision of a problem is below, in its unit; 0 where fairness is asked for."""
    if problem.objective == "fairness":
        return 0.0
    units = [one.num_units if problem.objective == "throughput" else 1 for one in problem.plans]
    return min(plan_bounds(problem, plan).step_s / each for plan, each in enumerate(units))


def one_machine(head: np.ndarray, duration: np.ndarray, tail: np.ndarray) -> float:
    """The least time in which one machine does jobs that may be interrupted: each ready after its head, done its tail
    before the end. Of those that are ready that of the longest tail (Jackson, Management Sciences Research Project 43,
    1955; the bound of Carlier, European J. of Operational Research 11, 1982)."""
    order = np.argsort(head, kind="stable").tolist()
    ready: list[tuple[float, float]] = []  # (-tail, left)
    now, end, at = 0.0, 0.0, 0
    while at < len(order) or ready:
        if not ready:
            now = max(now, float(head[order[at]]))
        while at < len(order) and head[order[at]] <= now:
            heapq.heappush(ready, (-float(tail[order[at]]), float(duration[order[at]])))
            at += 1
        negative, left = heapq.heappop(ready)
        until = float(head[order[at]]) if at < len(order) else np.inf
        if now + left <= until:
            now += left
            end = max(end, now - negative)
        else:
            heapq.heappush(ready, (negative, left - (until - now)))
            now = until
    return end
