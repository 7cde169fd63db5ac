"""Placements that cut the graph of groups into one part a device: the human expert's, and METIS's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.envs.placement.groups import GroupGraph, make_group_graph
from graphopt_gym.files import silenced
from graphopt_gym.graphs.stages import named_stages, stage_of_module

if TYPE_CHECKING:
    from graphopt_gym.envs.placement.problem import PlacementProblem

WEIGHT_TOTAL = 2**24  # METIS takes 32-bit integers: weights are scaled to this sum
EDGE_TOTAL = 2**30


# ---- the human expert


def expert(problem: PlacementProblem) -> Iterator[np.ndarray]:
    """The human expert's placements, int32 [G], best first: balanced by work, then, against overflow, by memory.

    Over the devices that any group may be on; groups that may not be where their stage is go elsewhere.

    The graph's stages stay whole and in order, and consecutive ones share a device. Stages of a repeated name
    (``layer.0``, ``layer.1``, …) are layers; stages before the first layer (an embedding, a stem) go with it, those
    after the last one (a head, a loss) with that. Where the graph has encoder and decoder parts, the first half of
    the devices gets the encoder and the second half the decoder. Groups of no stage follow the groups with which they
    exchange most bytes. A graph without stages is cut in topological order.

    The papers' experts count layers: equal layers, as many a device. Here each device gets consecutive layers of as
    equal *work* as whole layers allow, which is the same where they cost the same; a layer with a large head, or a
    decoder's beside an encoder's, counts as what it costs. Stages of captured modules: see
    :mod:`graphopt_gym.graphs.stages`.
    """
    graph = make_group_graph(problem)
    use = problem.usable
    devices = len(use)
    stages = named_stages(problem.graph)
    stage_of_group = _stage_of_group(problem, stages)
    staged = bool((stage_of_group >= 0).any())
    if staged:
        stage_of_group = _follow_neighbours(stage_of_group, graph, len(stages))
    capacity = problem.capacity_bytes[use, None]
    for load in (graph.work_s[use], graph.memory_bytes / capacity, graph.total_bytes / capacity):
        if staged:
            stage_load = np.stack([np.bincount(stage_of_group, row, len(stages)) for row in load])
            placement = _spread(stages, stage_load)[stage_of_group]
        else:
            order = np.argsort(graph.position, kind="stable")
            ends = np.cumsum(_share(1.0 / np.maximum(load.sum(axis=1), 1e-30)))
            done = np.cumsum(_share(load.mean(axis=0)[order]))
            middle = done - _share(load.mean(axis=0)[order]) / 2
            placement = np.empty(problem.num_groups, np.int64)
            placement[order] = np.minimum(np.searchsorted(ends, middle), devices - 1)
        yield problem.keep_to_allowed(use[placement].astype(np.int32))


def _stage_of_group(problem: PlacementProblem, stages: list[dict[str, Any]]) -> np.ndarray:
    """int64 [G]: the stage that most tasks of each group belong to, or -1; the longest matching module path counts."""
    graph, tasks, count = problem.graph, problem.simulator.tasks, len(stages)
    stage = stage_of_module(graph)[graph.module[tasks.first_op]]
    votes = np.zeros((problem.num_groups, count + 1), np.int64)
    # a task that computes outweighs all sources
    weight = np.where(tasks.is_source, 1, tasks.num_tasks)
    np.add.at(votes, (problem.group_of_task, stage), weight)  # stage -1 is the last column
    votes[:, -1] = 0
    return np.where(votes.any(axis=1), votes.argmax(axis=1), -1)


def _spread(stages: list[dict], load: np.ndarray) -> np.ndarray:
    """int64 [stages]: the device of each stage, for load float64 [D, stages]."""
    devices = len(load)
    parts = [stage.get("part", "") for stage in stages]
    placed = [index for index, part in enumerate(parts) if part]
    spans = {"": (0, devices)}
    if {"encoder", "decoder"} <= set(parts) and devices > 1:
        spans = {"encoder": (0, devices // 2), "decoder": (devices // 2, devices)}
        # a stage of neither part goes with the next one that has a part, at the end with the last
        parts = [parts[min((p for p in placed if p >= index), default=placed[-1])] for index in range(len(parts))]
    else:
        parts = [""] * len(parts)
    device = np.zeros(len(stages), np.int64)
    for part, (first, end) in spans.items():
        mine = np.array([index for index, other in enumerate(parts) if other == part], np.int64)
        if len(mine):
            runs = _layers([stages[index]["name"] for index in mine])
            run_load = np.stack([np.bincount(runs, row[mine]) for row in load[first:end]])
            device[mine] = first + _cut(run_load)[runs]
    return device


def _layers(names: list[str]) -> np.ndarray:
    """int64 [stages]: stages with the same number stay together: each a layer, with what precedes or ends them all."""
    families = [re.sub(r"\d+[a-z]?\b|\d+", "#", name) for name in names]
    repeated = [index for index, family in enumerate(families) if families.count(family) > 1]
    if not repeated:
        return np.arange(len(names))
    return np.clip(np.arange(len(names)), repeated[0], repeated[-1]) - repeated[0]


def _cut(load: np.ndarray) -> np.ndarray:
    """int64 [R]: R runs in order onto devices in order, so that the greatest load float64 [D, R] of a device is least.

    Of such cuts, the one with the least sum of squared loads. Dynamic programming over (device, runs taken).
    """
    devices, runs = load.shape
    total = np.concatenate([np.zeros((devices, 1)), np.cumsum(load, axis=1)], axis=1)
    limit = float(np.inf)
    for powers in ("greatest", "squares"):
        best = np.full(runs + 1, np.inf)
        best[0] = 0.0
        choice = np.zeros((devices, runs + 1), np.int64)
        for device in range(devices):
            new = np.full(runs + 1, np.inf)
            for end in range(runs + 1):
                part = total[device, end] - total[device, : end + 1]
                if powers == "greatest":
                    value = np.maximum(best[: end + 1], part)
                else:
                    value = np.where(part <= limit * (1 + 1e-9), best[: end + 1] + part**2, np.inf)
                choice[device, end] = int(np.argmin(value))
                new[end] = value[choice[device, end]]
            best = new
        limit = min(limit, float(best[runs]))
    assigned = np.zeros(runs, np.int64)
    end = runs
    for device in range(devices - 1, -1, -1):
        begin = int(choice[device, end])
        assigned[begin:end] = device
        end = begin
    return assigned


def _follow_neighbours(stage: np.ndarray, graph: GroupGraph, count: int) -> np.ndarray:
    """Replace each -1 by the stage with whose groups it exchanges most bytes; neighbours of those follow next."""
    stage = stage.copy()
    while (stage < 0).any():
        pull = np.zeros((len(stage), count))
        for one, other in ((0, 1), (1, 0)):
            known = stage[graph.edges[:, other]] >= 0
            rows, neighbours = graph.edges[known, one], graph.edges[known, other]
            np.add.at(pull, (rows, stage[neighbours]), graph.edge_bytes[known] + 1.0)
        free = (stage < 0) & pull.any(axis=1)
        if not free.any():  # parts of the graph without any stage
            stage[stage < 0] = 0
            break
        stage[free] = pull[free].argmax(axis=1)
    return stage


# ---- METIS


def metis(problem: PlacementProblem, seed: int = 0) -> Iterator[np.ndarray]:
    """METIS's k-way partitions of the groups, int32 [G], the one balanced by work first.

    Vertices weigh their compute time, edges their bytes (Karypis and Kumar 1998). pymetis has one weight a vertex, so
    memory cannot be a second constraint: the further partitions balance a mix of time and memory, for where the first
    overflows. Unequal devices get parts in proportion to their speed, and to their capacity as far as memory counts.
    METIS knows no fixed vertices: parts get the names of devices so that the least time is where it may not be, and
    groups that still may not be where they are go elsewhere.
    """
    import pymetis

    graph = make_group_graph(problem)
    use = problem.usable
    groups, devices = problem.num_groups, len(use)
    both = np.concatenate([graph.edges, graph.edges[:, ::-1]])
    weight = np.tile(_scaled(graph.edge_bytes, EDGE_TOTAL), 2)
    order = np.lexsort((both[:, 1], both[:, 0]))
    starts = np.concatenate([[0], np.cumsum(np.bincount(both[:, 0], minlength=groups))])
    adjacency = pymetis.CSRAdjacency(starts.tolist(), both[order, 1].tolist())
    work = graph.work_s[use].mean(axis=0)
    speed = 1.0 / np.maximum(graph.work_s[use].sum(axis=1), 1e-30)
    capacity = problem.capacity_bytes[use].astype(np.float64)
    mixes = [(share, graph.memory_bytes) for share in (0.0, 0.25, 0.5, 0.75, 1.0)] + [(1.0, graph.total_bytes)]
    for memory_share, memory_bytes in mixes:
        load = _share(work) * (1 - memory_share) + _share(memory_bytes) * memory_share
        target = _share(speed) * (1 - memory_share) + _share(capacity) * memory_share
        with silenced():  # METIS says what it cannot bisect
            part = pymetis.part_graph(
                devices,
                adjacency,
                vweights=_scaled(load, WEIGHT_TOTAL).tolist(),
                eweights=weight[order].tolist(),
                tpwgts=(target / target.sum()).tolist() if devices > 1 else None,
                recursive=False,
                options=pymetis.Options(seed=seed),
            )
        parts = np.asarray(part.vertex_part, np.int64)
        if problem.allowed is not None:
            parts = _named_to_fit(parts, target, work, problem.allowed[:, use])
        yield problem.keep_to_allowed(use[parts].astype(np.int32))


def _named_to_fit(parts: np.ndarray, target: np.ndarray, work: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """int64 [G]: the parts, those of the same size renamed so that the least work is where it may not be."""
    from scipy.optimize import linear_sum_assignment

    count = len(target)
    wrong = np.stack([np.bincount(parts, np.where(allowed[:, device], 0.0, work), count) for device in range(count)], 1)
    other_size = ~np.isclose(target[:, None], target[None, :])
    wrong[other_size] += 2 * work.sum() + 1.0
    return linear_sum_assignment(wrong)[1][parts]


def _share(values: np.ndarray) -> np.ndarray:
    return values / max(float(values.sum()), 1e-30)


def _scaled(values: np.ndarray, total: int) -> np.ndarray:
    """int64: weights in proportion, at least 1, that add up to about ``total``."""
    return np.maximum(np.rint(_share(values) * total), 1).astype(np.int64)
