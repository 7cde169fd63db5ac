"""The walk of annealing and hill climbing over placements, compiled: moves, engine and acceptance in one loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt_gym.compiled import kernel
from graphopt_gym.envs.placement.moves import GAMMA, mixed, propose, uniform
from graphopt_gym.simulator import engine

if TYPE_CHECKING:
    from graphopt_gym.envs.placement.problem import PlacementProblem
    from graphopt_gym.search.walk import Walk

MOST_IMPROVEMENTS = 256  # noted in one call, which then ends


@kernel
def walk(
    seed,  # uint64
    first,  # the number of the first step
    steps,  # how many at most
    log_temperature,
    slope,
    most_idle,  # it ends when so many steps in a row have improved nothing
    numbers,  # float64 [3]: cost, least cost, best cost; changed in place, as all from here on to `gains`
    counts,  # int64 [4]: idle steps, whether the best is valid, valid decisions, improvements
    current,  # int32 [R, G]: devices, and levels where there are such
    best,  # int32 [R, G]
    steps_of_gains,  # int64 [I]
    gains,  # float64 [I]
    looked,  # int32 [S, R, G], filled: the decisions that were looked at; [0, R, G] where nobody asks
    moves,  # Moves
    unit_of_task,  # int32 [K]
    rank,  # float64 [K], [0] where the order needs none
    level_weight,  # what one level is worth beside the rank
    capacity_bytes,  # int64 [D]
    serial_s,
    order,
    durations,
    device_type,
    link_of,
    link_latency_s,
    link_bytes_per_s,
    sequence,
    is_source,
    persistent_bytes,
    storage_ptr,
    storage_bytes,
    tensor_ptr,
    tensor_bytes,
    tensor_storage,
    tensor_task,
    reader_ptr,
    reader,
    input_ptr,
    input_tensor,
    input_of_reader,
    transfer_s,
):
    """Take steps from ``current``. Returns how many were taken. Costs are those of ``PlacementProblem.price``."""
    tasks, devices, groups = unit_of_task.shape[0], capacity_bytes.shape[0], current.shape[1]
    candidate, queue = current.copy(), np.empty(groups, np.int32)
    placements, priorities = np.empty((1, tasks), np.uint32), np.empty((1, rank.shape[0]))
    priorities[0] = rank
    times = np.empty(0)  # nothing is recorded
    record = times.shape[0] > 0  # no literal: the engine would be compiled once more for it
    makespans, peaks = np.empty(1), np.empty((1, devices), np.int64)
    peak_times, busy = np.empty((1, devices)), np.empty((1, devices))
    stream = np.empty(1, np.uint64)
    for taken in range(steps):
        if counts[0] >= most_idle or counts[3] == gains.shape[0]:
            return taken
        step = first + taken
        stream[0] = mixed(seed + np.uint64(step) * GAMMA)
        candidate[:] = current
        propose(candidate, moves, queue, stream)
        if taken < looked.shape[0]:
            looked[taken] = candidate
        for task in range(tasks):
            placements[0, task] = candidate[0, unit_of_task[task]]
        if current.shape[0] == 2:
            for task in range(tasks):
                priorities[0, task] = candidate[1, unit_of_task[task]] * level_weight + rank[task]
        engine.run(
            placements, priorities, order, durations, device_type, link_of, link_latency_s, link_bytes_per_s, sequence,
            is_source, persistent_bytes, storage_ptr, storage_bytes, tensor_ptr, tensor_bytes, tensor_storage,
            tensor_task, reader_ptr, reader, input_ptr, input_tensor, input_of_reader, transfer_s, record,
            times, times, makespans, peaks, peak_times, busy,
        )  # fmt: skip
        cost, beyond, valid = makespans[0], 0.0, True
        for device in range(devices):
            over = max(peaks[0, device] - capacity_bytes[device], 0)
            valid = valid and over == 0
            beyond += over / capacity_bytes[device]
        if moves.allowed.shape[0] > 0:
            wrong = 0
            for group in range(groups):
                wrong += not moves.allowed[group, candidate[0, group]]
            valid = valid and wrong == 0
            beyond += wrong / groups
        if not valid:
            cost += serial_s * (1 + beyond)
        counts[0] += 1
        counts[2] += valid
        if cost < numbers[2] if valid == (counts[1] == 1) else valid:
            numbers[2], counts[1] = cost, valid
            best[:] = candidate
            if valid:
                steps_of_gains[counts[3]], gains[counts[3]] = step, cost
                counts[3] += 1
        limit, temperature = numbers[0], np.exp(log_temperature + slope * step)
        if temperature > 0:
            limit -= temperature * np.log(1.0 - uniform(stream))
        if cost <= limit:
            current[:] = candidate
            numbers[0] = cost
            if cost < numbers[1]:
                numbers[1], counts[0] = cost, 0
    return steps


def run_walk(problem: PlacementProblem, state: Walk, steps: int, most_idle: int) -> None:
    """Take up to so many steps of a walk, in place; see :meth:`graphopt_gym.problem.Problem.walk`."""
    simulator, rows = problem.simulator, problem.decision_shape[:-1] or (1,)
    shape = (*rows, problem.num_groups)
    current, best = (np.array(one, np.int32).reshape(shape) for one in (state.decision, state.best))
    numbers = np.array([state.cost, state.least, state.best_cost])
    counts = np.array([state.idle, state.best_valid, 0, 0], np.int64)
    at, gains = np.empty(MOST_IMPROVEMENTS, np.int64), np.empty(MOST_IMPROVEMENTS)
    rank = simulator.priorities
    looked = np.empty((0, *shape), np.int32) if state.looked is None else state.looked.reshape(-1, *shape)
    taken = walk(
        np.uint64(state.seed), state.step, steps, state.log_temperature, state.slope, most_idle, numbers, counts,
        current, best, at, gains, looked, problem.move_tables, problem.group_of_task, rank,
        rank.max(initial=0.0) + 1.0, problem.capacity_bytes, problem.serial_s, *simulator.columns,
    )  # fmt: skip
    state.decision, state.best = (one.reshape(problem.decision_shape) for one in (current, best))
    state.cost, state.least, state.best_cost = numbers.tolist()
    state.idle, state.best_valid = int(counts[0]), bool(counts[1])
    state.valid += int(counts[2])
    state.improvements += zip(at[: counts[3]].tolist(), gains[: counts[3]].tolist(), strict=True)
    state.step += int(taken)
