"""A placement problem at the level of its groups: what they weigh, and what they exchange."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from graphopt_gym.envs.placement.problem import PlacementProblem
    from graphopt_gym.simulator.tasks import TaskGraph


@dataclass(frozen=True)
class GroupGraph:
    """A placement problem at the level of its groups. G groups, E edges, D devices."""

    work_s: np.ndarray  # float64 [D, G] compute of each group on each device
    memory_bytes: np.ndarray  # float64 [G] held when the graph, run in its own order on one device, holds most
    total_bytes: np.ndarray  # float64 [G] parameters, optimiser state and all outputs, whenever they are held
    position: np.ndarray  # float64 [G] first task that computes: the groups' order
    edges: np.ndarray  # int64 [E, 2] of (group, group), each pair once, lower first
    edge_bytes: np.ndarray  # float64 [E] bytes that cross where the two are apart; of stated seconds, as many as fit in


def make_group_graph(problem: PlacementProblem) -> GroupGraph:
    """Add up tasks and tensors by group."""
    simulator, tasks = problem.simulator, problem.simulator.tasks
    groups, group = problem.num_groups, problem.group_of_task
    work = np.stack([np.bincount(group, times, groups) for times in simulator.durations_s])[simulator.device_type]
    producer, begin, last = storage_lifetimes(tasks)
    change = np.bincount(begin, tasks.storage_bytes, tasks.num_tasks + 1)
    change -= np.bincount(last + 1, tasks.storage_bytes, tasks.num_tasks + 1)
    fullest = int(np.argmax(np.cumsum(change)))
    held = np.where((begin <= fullest) & (fullest <= last), tasks.storage_bytes, 0)
    persistent = np.bincount(group, tasks.persistent_bytes, groups)
    memory = persistent + np.bincount(group[producer], held, groups)
    total = persistent + np.bincount(group[producer], tasks.storage_bytes, groups)
    position = np.full(groups, np.inf)
    computing = np.flatnonzero(~tasks.is_source)
    np.minimum.at(position, group[computing], computing)

    tensor = np.repeat(np.arange(tasks.num_tensors), np.diff(tasks.reader_ptr))
    source, target = group[tasks.tensor_task[tensor]].astype(np.int64), group[tasks.reader].astype(np.int64)
    # a tensor goes once to a group, however many tasks of it read
    once = np.unique(tensor * groups + target, return_index=True)[1]
    once = once[source[once] != target[once]]
    low, high = np.minimum(source, target)[once], np.maximum(source, target)[once]
    pairs, inverse = np.unique(low * groups + high, return_inverse=True)
    size = tasks.tensor_bytes.astype(np.float64)
    if (tasks.transfer_s >= 0).any():
        rate = np.mean([link.bytes_per_s for link in problem.cluster.links] or [0.0])
        size = np.where(tasks.transfer_s >= 0, tasks.transfer_s * rate, size)
    edge_bytes = np.bincount(inverse, size[tensor[once]], len(pairs))
    edges = np.stack([pairs // groups, pairs % groups], axis=1)
    return GroupGraph(work, memory, total, position, edges, edge_bytes)


def storage_lifetimes(tasks: TaskGraph) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(producer, first, last) int64 [S]: the tasks over which each storage is held, in the graph's own order.

    In that order a forward pass is followed by its backward pass, so activations that live at once overlap here.
    """
    producer = np.repeat(np.arange(tasks.num_tasks), np.diff(tasks.storage_ptr))
    last = producer.copy()
    np.maximum.at(last, np.repeat(tasks.tensor_storage, np.diff(tasks.reader_ptr)), tasks.reader)
    return producer, np.where(tasks.is_source[producer], 0, producer), last
