"""A training step in micro-batches: GPipe's and 1F1B's, from a step that takes its batch at once.

Huang et al., "GPipe: Efficient Training of Giant Neural Networks using Pipeline Parallelism", NeurIPS 2019; Narayanan
et al., "PipeDream: Generalized Pipeline Parallelism for DNN Training", SOSP 2019 (1F1B).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt_gym.errors import InputError
from graphopt_gym.fields import choice, whole
from graphopt_gym.graphs.graph import (
    COLUMNS,
    DTYPE_BYTES,
    DTYPES,
    OP_CLASSES,
    PHASES,
    SOURCE,
    VIEW,
    ComputationGraph,
)

SCHEDULES = ("gpipe", "1f1b")
_BACKWARD, _UPDATE = PHASES.index("backward"), PHASES.index("optimizer")
_ELEMENTWISE = OP_CLASSES.index("elementwise")


def microbatched(graph: ComputationGraph, count: int, schedule: str = "gpipe", stages: int = 1) -> ComputationGraph:
    """The step of a graph in ``count`` micro-batches of equal size: weights shared, gradients summed, one update.

    The ops that a parameter's value alone makes (it and its views) are there once, and so are updates; all others once
    a micro-batch. What depends on the batch has a share of FLOPs, bytes and output of one in ``count``, rounded up;
    what is of a parameter's size (its gradient, what is written of it) has not. Gradients of micro-batches are summed
    up by ops of their own, one after the other. Colocation groups and modules are those of the graph, so a decision
    over groups is one for both.

    The captured order, which ``order="program"`` and ``"stream"`` go by, is the schedule's. ``"gpipe"``: all forward
    passes, then all backward passes. ``"1f1b"``: ``stages`` forward passes, then a backward pass and a forward pass in
    turn, the order of the first of so many stages. It is one order for all devices: with ``"program"`` the later stages
    go ahead where they can, with ``"stream"`` they keep to the first stage's order and wait.

    Of an op's output shape the first dimension that ``count`` divides is divided. Matrix products and convolutions are
    so priced as smaller ones; where none can be divided the shape stays, and only FLOPs and bytes say the share.

    Args:
        graph: a training step, forward, backward and updates, in this order of phases.
        count: micro-batches.
        schedule: one of :data:`SCHEDULES`.
        stages: of the pipeline, for ``"1f1b"``.

    Raises:
        InputError: the graph has no backward pass and updates; an argument makes no sense.
    """
    whole("count", count, 1)
    whole("stages", stages, 1)
    choice("schedule", schedule, SCHEDULES)
    _check_step(graph)
    if count == 1:
        return graph
    shared, gradients = shared_ops(graph), _gradients(graph)
    update = graph.phase == _UPDATE
    # an update, and whatever only it leads to, is once
    once = shared | update
    each = np.flatnonzero(~once)
    forward, backward = each[graph.phase[each] != _BACKWARD], each[graph.phase[each] == _BACKWARD]
    sources, updates = np.flatnonzero(shared), np.flatnonzero(update)

    place = np.empty((count, graph.num_ops), np.int64)  # of each op of each micro-batch in the new graph
    origin: list[np.ndarray] = [sources]
    place[:, sources] = np.arange(len(sources))
    at = len(sources)
    total: dict[int, int] = {}  # gradient -> the op that has its sum so far
    sums: list[tuple[int, int, int]] = []  # (place, sum so far, gradient of one more)

    def lay(ops: np.ndarray, number: int) -> None:
        nonlocal at
        place[number, ops] = at + np.arange(len(ops))
        origin.append(ops)
        at += len(ops)

    def add_up(number: int) -> None:
        nonlocal at
        for gradient in gradients.tolist():
            own = int(place[number, gradient])
            if gradient in total:
                sums.append((at, total[gradient], own))
                origin.append(np.array([gradient]))
                total[gradient], at = at, at + 1
            else:
                total[gradient] = own

    ahead = count if schedule == "gpipe" else min(stages, count)
    for number in range(ahead):
        lay(forward, number)
    for number in range(count):
        lay(backward, number)
        add_up(number)
        if ahead + number < count:
            lay(forward, ahead + number)
    lay(updates, 0)
    place[1:, updates] = place[0, updates]

    of = np.concatenate(origin)
    is_sum = np.zeros(len(of), bool)
    is_sum[[row for row, _, _ in sums]] = True
    columns = _columns(graph, of, is_sum, once, count)
    edges = [np.array([(source, row) for row, *both in sums for source in both], np.int64).reshape(-1, 2)]
    for number in range(count):
        kept = np.ones(graph.num_edges, bool) if number == 0 else ~once[graph.edge_dst]
        edges.append(np.stack([place[number, graph.edge_src[kept]], place[number, graph.edge_dst[kept]]], axis=1))
    # updates read the sums
    first = edges[1]
    into = update[graph.edge_dst] & np.isin(graph.edge_src, gradients)
    first[into, 0] = [total[gradient] for gradient in graph.edge_src[into].tolist()]
    kinds = graph.kinds if "add" in graph.kinds else (*graph.kinds, "add")
    columns["kind"] = np.where(is_sum, kinds.index("add"), columns["kind"])
    return ComputationGraph(
        f"{graph.name}_{schedule}_{count}",
        kinds=kinds,
        modules=graph.modules,
        columns=columns,
        edges=np.concatenate(edges),
        metadata={**graph.metadata, "micro_batches": count, "schedule": schedule},
    )


def micro_batch(graph: ComputationGraph, count: int, sums: bool = True) -> tuple[ComputationGraph, np.ndarray]:
    """One of ``count`` micro-batches by itself: (its graph, int64 [N]: which op of the step each of its N ops is).

    Each op has its share, as in :func:`microbatched`. With ``sums`` an op right behind each gradient adds it to those
    of the micro-batches before.

    Raises:
        InputError: as :func:`microbatched`.
    """
    whole("count", count, 1)
    _check_step(graph)
    gradients = _gradients(graph) if sums else np.zeros(0, np.int64)
    of = np.concatenate([np.arange(graph.num_ops), gradients])
    order = np.argsort(of, kind="stable")
    of, is_sum = of[order], order >= graph.num_ops
    if count == 1 and not len(gradients):
        return graph, of
    place = np.empty(len(of), np.int64)
    place[order] = np.arange(len(of))
    sum_of = np.full(graph.num_ops, -1, np.int64)
    sum_of[gradients] = place[graph.num_ops :]
    update = graph.phase == _UPDATE
    source, target = graph.edge_src.astype(np.int64), graph.edge_dst.astype(np.int64)
    summed = update[target] & (sum_of[source] >= 0)
    edges = np.stack([np.where(summed, sum_of[source], place[source]), place[target]], axis=1)
    edges = np.concatenate([edges, np.stack([place[gradients], sum_of[gradients]], axis=1)])
    columns = _columns(graph, of, is_sum, shared_ops(graph) | update, count)
    kinds = graph.kinds if "add" in graph.kinds else (*graph.kinds, "add")
    columns["kind"] = np.where(is_sum, kinds.index("add"), columns["kind"])
    made = ComputationGraph(
        f"{graph.name}_1_of_{count}",
        kinds=kinds,
        modules=graph.modules,
        columns=columns,
        edges=edges,
        metadata={**graph.metadata, "micro_batches": count},
    )
    return made, of


def _check_step(graph: ComputationGraph) -> None:
    if not (graph.phase == _UPDATE).any() or not (graph.phase == _BACKWARD).any():
        raise InputError(f"graph {graph.name!r} is no training step; micro-batches need a backward pass and updates")


def shared_ops(graph: ComputationGraph) -> np.ndarray:
    """bool [N]: parameters, buffers and constants of the forward pass that no batch is in, and views of these alone."""
    names = np.array([kind != "input" for kind in graph.kinds])[graph.kind]
    sources = (graph.op_class == SOURCE) & names & (graph.phase != _BACKWARD)
    return sources[graph.view_root] & ((graph.op_class == VIEW) | sources)


def _gradients(graph: ComputationGraph) -> np.ndarray:
    """int64: the ops that updates read and that each micro-batch makes, in their order."""
    into = graph.phase[graph.edge_dst] == _UPDATE
    made = np.unique(graph.edge_src[into])
    return made[graph.phase[made] == _BACKWARD]


def _columns(
    graph: ComputationGraph, of: np.ndarray, is_sum: np.ndarray, once: np.ndarray, count: int
) -> dict[str, np.ndarray]:
    """The columns of the ops ``of`` the graph, each its share."""
    parts = graph.op_class[of]
    columns: dict[str, Any] = {column: getattr(graph, column)[of].copy() for column in COLUMNS}
    fixed = of_parameters(graph)  # bytes of the output that do not depend on the batch
    read_fixed = np.zeros(graph.num_ops, np.int64)
    np.add.at(read_fixed, graph.edge_dst, fixed[graph.edge_src])
    split = ~once[of] & ~is_sum

    def share(values: np.ndarray, kept: np.ndarray) -> np.ndarray:
        kept = np.minimum(values, kept)
        return np.where(split, kept + -(-(values - kept) // count), values)

    columns["flops"] = share(columns["flops"], np.zeros(len(of), np.int64))
    columns["bytes_read"] = share(columns["bytes_read"], read_fixed[of])
    for column in ("bytes_written", "output_bytes"):
        columns[column] = share(columns[column], fixed[of])
    shape = columns["output_shape"]
    divides = split[:, None] & (shape > 0) & (shape % count == 0) & (fixed[of] < graph.output_bytes[of])[:, None]
    rows = np.flatnonzero(divides.any(axis=1))
    shape[rows, divides[rows].argmax(axis=1)] //= count
    # a sum of gradients: reads two, writes one, in the group of what made it
    size = graph.output_bytes[of]
    items = np.array([DTYPE_BYTES[dtype] for dtype in DTYPES])[columns["dtype"]]
    columns["op_class"] = np.where(is_sum, _ELEMENTWISE, parts)
    for column, value in (("flops", size // items), ("bytes_read", 2 * size), ("bytes_written", size)):
        columns[column] = np.where(is_sum, value, columns[column])
    for column in ("param_bytes", "state_bytes"):
        columns[column] = np.where(is_sum, 0, columns[column])
    return columns


def of_parameters(graph: ComputationGraph) -> np.ndarray:
    """int64 [N]: bytes of each output that no batch is in: parameters, and gradients of these.

    What is shared is so in full. A gradient is told by the update that reads it: the chain of views before it, and of
    what makes it, as much as the gradients that it makes.
    """
    shared = shared_ops(graph)
    fixed = np.where(shared, graph.output_bytes, 0)
    gradients = _gradients(graph)
    fixed[gradients] = graph.output_bytes[gradients]
    # backwards along views, from the gradients to the ops that made them
    for op in range(graph.num_ops - 1, -1, -1):
        if graph.op_class[op] == VIEW and fixed[op] and not shared[op]:
            source = int(graph.predecessors(op)[0])
            if not shared[source] and graph.phase[source] == _BACKWARD:
                fixed[source] = min(graph.output_bytes[source], fixed[source] + fixed[op])
        elif fixed[op] and graph.phase[op] == _BACKWARD and graph.kinds[graph.kind[op]].startswith("add"):
            for source in graph.predecessors(op).tolist():  # gradients of a parameter that is used several times
                if graph.output_bytes[source] == fixed[op] and graph.phase[source] == _BACKWARD:
                    fixed[source] = fixed[op]
    return fixed
