"""A bound under which no valid partition's period can be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt_gym.envs.chiplet.ops import HOST
from graphopt_gym.envs.chiplet.propagator import Propagator, make_rules

if TYPE_CHECKING:
    from graphopt_gym.envs.chiplet.problem import ChipletProblem


def lower_bound(problem: ChipletProblem) -> float:
    """Seconds that the period of every valid partition takes at least.

    Under a period T no tensor crosses that a link alone takes longer than T to carry, so its producer and readers lie
    on one chip, and so does, by the acyclic rule, all that lies on a way between them: ops become groups. Then T is at
    least

    - the heaviest group's time on its fastest chip;
    - the work of the ops that the rules confine to the first chips (see ``propagator``), over those chips' speed;
    - the k + 1 lightest of the k * C + 1 heaviest groups: some chip gets as many.

    The bound is the least T that agrees with all of that. Memory is left out.
    """
    propagator = Propagator(make_rules(problem.num_ops, problem.num_chips, problem.ops.edges))
    highest = problem.num_chips - 1 - np.argmax(propagator.domains[:, ::-1], axis=1)
    producer, reader, carried_s = _transfers(problem)
    steps = np.concatenate([[0.0], np.unique(carried_s)])  # the groups change where T passes one of these

    def least(step: int) -> float:
        together = carried_s > steps[step]
        return _least_period(problem, _groups(problem, producer[together], reader[together]), highest)

    # what is needed falls with T; find the first step of T that allows it before the next step begins
    low, high = 0, len(steps) - 1
    while low < high:
        middle = (low + high) // 2
        if least(middle) < steps[middle + 1]:
            high = middle
        else:
            low = middle + 1
    return max(float(steps[low]), least(low))


def _transfers(problem: ChipletProblem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(producer, reader, seconds on a link) of every reading of a tensor that another op makes."""
    ops = problem.ops
    count = np.diff(ops.reader_ptr)
    producer = np.repeat(ops.tensor_op, count)
    carried_s = np.repeat(ops.tensor_bytes / problem.package.link_bytes_per_s, count)
    inside = producer != HOST
    return producer[inside], ops.reader[inside], carried_s[inside]


def _groups(problem: ChipletProblem, producer: np.ndarray, reader: np.ndarray) -> np.ndarray:
    """int [N]: the group of each op where the given pairs lie together: what leads around in a circle is one chip's."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n, edges = problem.num_ops, problem.ops.edges
    rows, columns = np.concatenate([edges[:, 0], reader]), np.concatenate([edges[:, 1], producer])
    graph = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(n, n))
    return connected_components(graph, directed=True, connection="strong")[1]


def _least_period(problem: ChipletProblem, group: np.ndarray, highest: np.ndarray) -> float:
    """The least period of a partition that keeps groups together, as far as their work tells."""
    count = int(group.max()) + 1
    times = np.stack([np.bincount(group, row, count) for row in problem.op_seconds])  # [C, groups]
    work = times.min(axis=0)
    top = np.full(count, problem.num_chips - 1)
    np.minimum.at(top, group, highest)
    # in a second, a chip does at most this share of a second's work of the fastest
    speed = 1.0 / np.min(times[:, work > 0] / work[work > 0], axis=1, initial=np.inf)
    chips = np.arange(problem.num_chips)
    confined = np.asarray([work[top <= chip].sum() for chip in chips]) / np.cumsum(np.maximum(speed, 1e-300))
    heaviest = np.sort(work)[::-1]
    usable = int(top.max()) + 1
    shared = [heaviest[k * usable - np.arange(k + 1)].sum() for k in range(1, (count - 1) // usable + 1)]
    return max(float(work.max()), float(confined.max()), *shared)
