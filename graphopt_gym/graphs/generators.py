"""Seeded graphs for tests and examples: random layered DAGs, and chains and fork-joins with a known optimum.

Op durations come from a cost model, so a graph alone does not fix them. Where a test needs exact ones it passes
``op_times_s=uniform_op_times_s(graph)`` (or its own float64 [N]) to the simulator.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt_gym.errors import InputError
from graphopt_gym.graphs.graph import (
    COLUMNS,
    DTYPES,
    MAX_RANK,
    OP_CLASSES,
    PHASES,
    SOURCE,
    VIEW,
    ComputationGraph,
)

_COMPUTE = tuple(OP_CLASSES.index(name) for name in ("matmul", "conv", "elementwise", "reduction", "norm", "copy"))
_MATMUL, _OPTIMIZER = OP_CLASSES.index("matmul"), OP_CLASSES.index("optimizer")
_UPDATE = PHASES.index("optimizer")


def layered_dag(
    num_ops: int,
    width: int = 4,
    *,
    seed: int,
    fan_in: int = 3,
    sources: float = 0.15,
    views: float = 0.15,
    zeros: float = 0.0,
    colocated: float = 0.0,
    phases: bool = False,
    equal: bool = False,
) -> ComputationGraph:
    """A random DAG in layers: each op reads mostly from the layer before, sometimes from any earlier one.

    FLOPs spread log-uniformly over 1e5 to 1e11 and tensors over 1e3 to 1e8 bytes, as in real training graphs. Some
    sources are read by many ops, some tensors by several, and views may view views.

    Args:
        num_ops: N, views and sources included.
        width: mean ops a layer.
        seed: of NumPy's generator; the same arguments give the same graph.
        fan_in: most inputs of an op.
        sources: share of ops that are parameters or inputs (the first layer always is); half hold parameters.
        views: share of ops that are views of their one input: all of it or half of it.
        zeros: share of the other ops that take no FLOPs and move no bytes, and of tensors that have none.
        colocated: share of the ops that are in a colocation group of about four; a view is in its input's group.
        phases: forward, backward and optimizer in this order, with optimiser ops and optimiser state.
        equal: all ops of one class, FLOPs and tensor size, so that everything ties.

    Raises:
        InputError: an argument is out of range.
    """
    if num_ops < 1 or width < 1 or fan_in < 1:
        raise InputError(f"layered_dag: num_ops={num_ops}, width={width}, fan_in={fan_in} must each be at least 1")
    for argument, share in {"sources": sources, "views": views, "zeros": zeros, "colocated": colocated}.items():
        if not 0 <= share <= 1:
            raise InputError(f"layered_dag: {argument}={share} must be from 0 to 1")
    rng = np.random.default_rng(seed)
    op = np.arange(num_ops)
    # layers of 1 to 2 * width - 1 ops
    layer_ends = np.cumsum(rng.integers(1, 2 * width, num_ops))
    layer = np.searchsorted(layer_ends, op, side="right")
    layer_start = np.concatenate([[0], layer_ends])

    draw = rng.random(num_ops)
    is_source = (layer == 0) | (draw < sources)
    is_view = ~is_source & (draw < sources + views)
    op_class = np.where(equal, _MATMUL, rng.choice(_COMPUTE, num_ops))
    phase = np.zeros(num_ops, np.int64)
    if phases:
        phase = np.searchsorted([0.4, 0.85], op / num_ops, side="right")
        op_class[phase == _UPDATE] = _OPTIMIZER
    phase[is_source] = 0
    op_class[is_source], op_class[is_view] = SOURCE, VIEW

    inputs = np.where(is_source, 0, np.where(is_view, 1, rng.integers(1, fan_in + 1, num_ops)))
    consumer = np.repeat(op, inputs)
    previous, start = layer_start[layer[consumer] - 1], layer_start[layer[consumer]]
    where, kind = rng.random(len(consumer)), rng.random(len(consumer))
    near = previous + (where * (start - previous)).astype(np.int64)
    far = (where**3 * start).astype(np.int64)  # the cube: early ops, many of them sources, have many readers
    edges = np.unique(np.stack([np.where(kind < 0.75, near, far), consumer], axis=1), axis=0)

    elements = np.full(num_ops, 250_000) if equal else _log_uniform(rng, 2.4, 7.4, num_ops)
    flops = np.full(num_ops, 10**9) if equal else _log_uniform(rng, 5.0, 11.0, num_ops)
    idle, empty = rng.random(num_ops) < zeros, rng.random(num_ops) < zeros
    elements[empty | (op_class == _OPTIMIZER)] = 0
    whole = equal | (rng.random(num_ops) < 0.5)
    producer_of_view = np.zeros(num_ops, np.int64)
    producer_of_view[edges[:, 1]] = edges[:, 0]
    group = np.where(rng.random(num_ops) < colocated, rng.integers(0, max(1, num_ops // 4), num_ops), -1)
    for view in np.flatnonzero(is_view):  # in topological order: the input is final
        viewed = producer_of_view[view]
        elements[view] = elements[viewed] if whole[view] else elements[viewed] // 2
        group[view] = group[viewed]
    output_bytes = 4 * elements
    read = np.bincount(edges[:, 1], output_bytes[edges[:, 0]], num_ops).astype(np.int64)
    free = is_source | is_view | idle
    holds = is_source & (rng.random(num_ops) < 0.5)
    param_bytes = np.where(holds, output_bytes, 0)
    output_shape = np.full((num_ops, MAX_RANK), -1)
    output_shape[:, 0] = elements
    return _graph(
        f"layered_{num_ops}_{seed}",
        {
            "kind": op_class,
            "op_class": op_class,
            "phase": phase,
            "output_shape": output_shape,
            "flops": np.where(free, 0, flops),
            "bytes_read": np.where(free, 0, read),
            "bytes_written": np.where(free, 0, output_bytes),
            "output_bytes": output_bytes,
            "param_bytes": param_bytes,
            "state_bytes": 2 * param_bytes * phases,
            "colocation": group,
        },
        edges,
        {"source": "graphopt_gym.graphs.generators.layered_dag", "seed": seed},
    )


def chain(num_ops: int, *, flops: int = 10**9, output_bytes: int = 0) -> ComputationGraph:
    """Equal matmuls, one after the other. One device is optimal, see :func:`known_optimum_s`."""
    if num_ops < 1:
        raise InputError(f"chain: num_ops={num_ops} must be at least 1")
    op = np.arange(num_ops)
    edges = np.stack([op[:-1], op[1:]], axis=1)
    return _equal_ops("chain", num_ops, flops, output_bytes, edges, {"shape": "chain", "length": num_ops})


def fork_join(branches: int, length: int, *, flops: int = 10**9, output_bytes: int = 0) -> ComputationGraph:
    """One matmul, then ``branches`` chains of ``length`` equal ones, then one that reads them all.

    Op 0 forks, op ``1 + branch * length + position`` is a branch's, the last op joins. The optimum is known, see
    :func:`known_optimum_s`.
    """
    if branches < 1 or length < 1:
        raise InputError(f"fork_join: branches={branches} and length={length} must each be at least 1")
    num_ops = branches * length + 2
    op = np.arange(1, num_ops - 1).reshape(branches, length)
    edges = np.concatenate(
        [
            np.stack([np.zeros(branches, np.int64), op[:, 0]], axis=1),
            np.stack([op[:, :-1].ravel(), op[:, 1:].ravel()], axis=1),
            np.stack([op[:, -1], np.full(branches, num_ops - 1)], axis=1),
        ]
    )
    optimum = {"shape": "fork_join", "branches": branches, "length": length}
    return _equal_ops("fork_join", num_ops, flops, output_bytes, edges, optimum)


def known_optimum_s(graph: ComputationGraph, num_devices: int, op_time_s: float = 1.0) -> float:
    """The least makespan of a :func:`chain` or :func:`fork_join` on equal devices, over placements and orders.

    It holds where every op takes ``op_time_s`` and transfers take no time. A chain's is its length (whatever
    transfers take). A fork-join's is that of the fork, the join, and in between ``branches * length`` ops on k
    devices in ``max(length, ceil(branches * length / k))`` rounds: McNaughton's wrap-around rule (R. McNaughton,
    "Scheduling with deadlines and loss functions", 1959), which never overlaps the two parts of a cut branch. Where
    k divides ``branches``, whole branches dealt out to the devices reach it in any order.

    Raises:
        InputError: the graph's optimum is not known.
    """
    optimum = graph.metadata.get("optimum")
    if optimum is None:
        raise InputError(f"graph {graph.name!r} has no known optimum; chain() and fork_join() have")
    if num_devices < 1:
        raise InputError(f"num_devices={num_devices} must be at least 1")
    length = optimum["length"]
    if optimum["shape"] == "chain":
        return length * op_time_s
    return (2 + max(length, -(-optimum["branches"] * length // num_devices))) * op_time_s


def uniform_op_times_s(graph: ComputationGraph, op_time_s: float = 1.0) -> np.ndarray:
    """float64 [N]: ``op_time_s`` an op, 0 for sources and views; for the simulator's ``op_times_s``."""
    return np.where((graph.op_class == SOURCE) | (graph.op_class == VIEW), 0.0, op_time_s)


def _log_uniform(rng: np.random.Generator, low: float, high: float, size: int) -> np.ndarray:
    return (10.0 ** rng.uniform(low, high, size)).astype(np.int64)


def _equal_ops(
    name: str, num_ops: int, flops: int, output_bytes: int, edges: np.ndarray, optimum: dict[str, Any]
) -> ComputationGraph:
    if flops < 0 or output_bytes < 0:
        raise InputError(f"{name}: flops={flops} and output_bytes={output_bytes} must not be negative")
    output_shape = np.full((num_ops, MAX_RANK), -1)
    output_shape[:, 0] = output_bytes // 4
    columns = {
        "kind": np.full(num_ops, _MATMUL),
        "op_class": np.full(num_ops, _MATMUL),
        "output_shape": output_shape,
        "flops": np.full(num_ops, flops),
        "bytes_read": np.bincount(edges[:, 1], minlength=num_ops) * output_bytes,
        "bytes_written": np.full(num_ops, output_bytes),
        "output_bytes": np.full(num_ops, output_bytes),
        "colocation": np.full(num_ops, -1),
    }
    sizes = "x".join(str(value) for key, value in optimum.items() if key != "shape")
    metadata = {"source": f"graphopt_gym.graphs.generators.{name}", "optimum": optimum}
    return _graph(f"{name}_{sizes}", columns, edges, metadata)


def _graph(name: str, columns: dict[str, np.ndarray], edges: np.ndarray, metadata: dict[str, Any]) -> ComputationGraph:
    """Kinds are the op classes, dtype float32; columns left out are 0."""
    zeros = np.zeros(len(columns["kind"]), np.int64)
    columns = {column: columns.get(column, zeros) for column in COLUMNS}
    columns["dtype"] = zeros + DTYPES.index("float32")
    return ComputationGraph(name, kinds=OP_CLASSES, modules=("",), columns=columns, edges=edges, metadata=metadata)
