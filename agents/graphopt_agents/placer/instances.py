"""Placement problems to train on: graphs on clusters, varied at random.

What is varied is what a policy must not rely on: how fast links are beside devices, how much of the memory the graph
fills, what each kind of op takes, the order of a device's queue, and whether groups are module calls, their phases, or
single ops.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from graphopt_gym.envs.placement.problem import PlacementProblem
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.graph import OP_CLASSES, PHASES
from graphopt_gym.graphs.zoo import load_graph
from graphopt_gym.hardware.cluster import Cluster, load_cluster

CLUSTERS = ("p100x2", "p100x4", "p100x8", "v100x2", "v100x4", "v100x8", "t4x4", "v100_nvlinkx4", "p100x2_v100x2",
            "p100x4x2", "v100x4x2")  # fmt: skip
LINK_FACTOR = (0.25, 3.0)  # of the links' speed, log-uniform
FILLED = (0.05, 0.65)  # share of all memory that the graph fills, log-uniform, where it is varied
VARIED = 0.6  # share of problems with varied memory, and of those with varied times
TIME_SPREAD = 0.7  # standard deviation of the log of the factor of a kind of op, or of a phase
ORDERS = ("fifo", "fifo", "fifo", "stream", "rank", "program", "priority")
GROUPINGS = ("colocation", "colocation", "colocation", "phase", "op")
MOST_GROUPS, FEWEST_GROUPS, MOST_OPS = 900, 12, 7_000
TRIES = 200


def draw(graphs: Sequence[Any], clusters: Sequence[Any], number: int, seed: int) -> PlacementProblem:
    """One problem, drawn from its number and seed alone; its cluster is called after the number.

    Raises:
        InputError: none of the graphs is of a size to train on.
    """
    rng = np.random.default_rng((seed, number))
    for _ in range(TRIES):
        graph = load_graph(graphs[int(rng.integers(len(graphs)))])
        cluster = load_cluster(clusters[int(rng.integers(len(clusters)))])
        order, grouping = ORDERS[int(rng.integers(len(ORDERS)))], GROUPINGS[int(rng.integers(len(GROUPINGS)))]
        factor = float(np.exp(rng.uniform(*np.log(LINK_FACTOR))))
        memory, times = rng.random(2) < VARIED
        filled = float(np.exp(rng.uniform(*np.log(FILLED))))
        kinds, phases = (np.exp(rng.normal(0, TIME_SPREAD, len(names))) for names in (OP_CLASSES, PHASES))
        if graph.num_ops > MOST_OPS:
            continue
        links = tuple(dataclasses.replace(link, bytes_per_s=link.bytes_per_s * factor) for link in cluster.links)
        cluster = dataclasses.replace(cluster, name=f"{cluster.name}~{number}", links=links)
        problem = PlacementProblem(graph, cluster, order=order, grouping=grouping)
        if not FEWEST_GROUPS <= problem.num_groups <= MOST_GROUPS:
            continue
        given: dict[str, Any] = {}
        if memory:
            cluster = _filled(cluster, _held_bytes(problem), filled)
        if times:
            own = problem.simulator.device_durations_s()[:, problem.simulator.tasks.task_of_op].T
            given["op_times_s"] = own * (kinds[graph.op_class] * phases[graph.phase])[:, None]
        return PlacementProblem(graph, cluster, order=order, grouping=grouping, **given)
    raise InputError(
        f"graphs has none of {FEWEST_GROUPS} to {MOST_GROUPS} groups and at most {MOST_OPS:,} ops, to train on; "
        "name others"
    )


def _held_bytes(problem: PlacementProblem) -> float:
    """What the graph holds when it holds most, run in its own order on one device."""
    from graphopt_gym.envs.placement.groups import make_group_graph

    return float(np.maximum(make_group_graph(problem).memory_bytes, 0.0).sum())


def _filled(cluster: Cluster, held_bytes: float, share: float) -> Cluster:
    """The cluster with memory of which so many bytes fill a share."""
    factor = held_bytes / (share * sum(device.memory_bytes for device in cluster.devices))
    devices = tuple(
        dataclasses.replace(one, memory_bytes=max(1, int(one.memory_bytes * factor))) for one in cluster.devices
    )
    return dataclasses.replace(cluster, devices=devices)
