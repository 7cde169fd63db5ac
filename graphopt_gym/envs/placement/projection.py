"""From a plan for single ops to one for groups: the papers schedule ops, a placement may only move groups."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np

from graphopt_gym.envs.placement.list_scheduling import Instance, Plan, make_instance

if TYPE_CHECKING:
    from graphopt_gym.envs.placement.problem import PlacementProblem


def op_instance(problem: PlacementProblem) -> Instance:
    """What schedulers read of a problem, were every op (task) a group; each may be where its group may be."""
    by_op = copy.copy(problem)
    by_op.num_groups = problem.simulator.tasks.num_tasks
    by_op.group_of_task = np.arange(by_op.num_groups, dtype=np.int32)
    if problem.allowed is not None:
        by_op.allowed = problem.allowed[problem.group_of_task]
    return make_instance(by_op)


def project(groups: Instance, ops: Instance, plan: Plan) -> np.ndarray:
    """int32 [2, G]: a plan of single ops as devices of groups, in two ways.

    A unit of groups goes to the device on which most of its time was put (mean times, so that a slow device does not
    count for more), or to that of its longest op. One without any time goes where most of its ops are. None goes to a
    device on which it may not be.

    Args:
        groups: the problem by its groups.
        ops: the same problem by its ops.
        plan: of ``ops``.
    """
    device_of_task = plan.device_of_unit[ops.unit_of_task]
    unit, shape = groups.unit_of_task, groups.allowed.shape
    time_s, number = np.zeros(shape), np.zeros(shape)
    np.add.at(time_s, (unit, device_of_task), ops.mean_s)
    np.add.at(number, (unit, device_of_task), 1.0)
    votes = np.where(time_s.any(axis=1, keepdims=True), time_s, number)
    most = np.where(groups.allowed, votes, -1.0).argmax(axis=1)
    order = np.lexsort((-ops.mean_s, unit))  # of each unit the longest op first
    longest = device_of_task[order[np.searchsorted(unit[order], np.arange(shape[0]))]]
    longest = np.where(groups.allowed[np.arange(shape[0]), longest] & time_s.any(axis=1), longest, most)
    return np.stack([most, longest])[:, groups.unit_of_group].astype(np.int32)


def rank_levels(problem: PlacementProblem, groups: Instance) -> np.ndarray:
    """int32 [G]: levels of groups by the mean upward rank of their ops, spread evenly; the higher the first."""
    computes = np.where(groups.is_source, 0.0, 1.0)
    total = np.bincount(problem.group_of_task, groups.rank_s * computes, problem.num_groups)
    mean = total / np.maximum(np.bincount(problem.group_of_task, computes, problem.num_groups), 1.0)
    position = np.argsort(np.argsort(mean, kind="stable"), kind="stable")
    return (position * problem.priority_levels // problem.num_groups).astype(np.int32)
