"""What a decision of gang scheduling means, in plain Python: no code shared with the problem or the engine."""

from __future__ import annotations

import math

from graphopt_gym.simulator.gang import GangSimulator
from tests.simulator.gang.twin import Twin


def one_order(program, levels):
    """All gangs, the highest level first, each behind what it reads."""
    left, order = set(range(program.num_gangs)), []
    edges = list(zip(program.edge_src.tolist(), program.edge_dst.tolist()))
    while left:
        free = [gang for gang in left if not any(b == gang and a in left for a, b in edges)]
        taken = min(free, key=lambda gang: (-levels[gang], gang))
        left.remove(taken)
        order.append(taken)
    return order


def run(problem, decision):
    """(the twin after its run, simulator, plan) of a decision."""
    decision = [int(one) for one in decision]
    plan = problem.graph.plans[decision[0]]
    program = plan.program
    slices, gangs = program.num_slices, program.num_gangs
    most_slices = max(one.program.num_slices for one in problem.graph.plans)
    if problem.safe:
        places = decision[2 : 2 + slices]
        first = [
            int(allowed[at % len(allowed)]) for allowed, at in zip(problem.positions[decision[0]], places, strict=True)
        ]
        levels = decision[2 + most_slices : 2 + most_slices + gangs]
    else:
        first = problem.spread[decision[0]].tolist()
        levels = decision[2:]
    simulator = GangSimulator(
        program, problem.cluster, first, controllers=problem.controllers, dispatch=problem.dispatch,
        back_pressure=problem.back_pressure,
    )  # fmt: skip
    tables, classes = simulator.lowered.tables, simulator.classes.num_classes
    on = [set(tables.resource[tables.resource_ptr[g] : tables.resource_ptr[g + 1]].tolist()) for g in range(gangs)]
    if not problem.safe:
        level_of, at = {}, 0
        for gang in range(gangs):
            for number in sorted(on[gang]):
                if number < classes:
                    level_of[gang, number] = levels[at]
                    at += 1
        lists = [
            sorted((g for g in range(gangs) if number in on[g]), key=lambda g: (-level_of[g, number], g))
            for number in range(classes)
        ]
        twin = Twin(tables, "lists", problem.back_pressure, lists=lists).run()
    elif decision[1]:
        order = one_order(program, levels)
        lists = [[gang for gang in order if number in on[gang]] for number in range(classes)]
        twin = Twin(tables, "lists", problem.back_pressure, lists=lists).run()
    else:
        twin = Twin(tables, "static", problem.back_pressure, level=[-float(one) for one in levels]).run()
    return twin, simulator, plan


def judge(problem, decision):
    """(valid, cost) of a decision."""
    twin, simulator, plan = run(problem, decision)
    tables, program = simulator.lowered.tables, plan.program
    capacity = tables.capacity_bytes.tolist()
    resident = tables.resident_bytes.tolist()
    valid = (
        len(twin.done) == simulator.num_tasks and twin.over is None and all(a <= b for a, b in zip(resident, capacity))
    )
    if not valid:
        return False, math.inf
    ends = [twin.finish[t] for t in range(simulator.num_tasks) if simulator.lowered.kind[t] <= 1]
    if problem.objective == "step":
        return True, max(ends)
    if problem.objective == "throughput":
        return True, max(ends) / (max(plan.unit.tolist()) + 1)
    weights = [client.weight for client in program.clients]
    worst = 1.0
    for client, weight in enumerate(weights):
        own = [g for g in range(program.num_gangs) if program.client[g] == client]
        size = [program.slices[program.slice[g]].cores * bool(program.on_cores[g]) for g in range(program.num_gangs)]
        asked = sum(twin.duration[g] * size[g] for g in own)
        due = min(weight / sum(weights) * problem.shared_cores * problem.horizon_s, asked)
        got = sum(max(0.0, min(twin.finish[g], problem.horizon_s) - twin.start[g]) * size[g] for g in own)
        if due > 0:
            worst = min(worst, got / due)
    return True, max(0.0, 1.0 - worst)
