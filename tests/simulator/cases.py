"""Small random graphs, clusters and decisions, made to be nasty: ties, zeros, shared links, views of views."""

from __future__ import annotations

import numpy as np

from graphopt_gym.errors import InputError
from graphopt_gym.graphs.graph import COLUMNS, MAX_RANK, ComputationGraph
from graphopt_gym.hardware.cluster import Cluster, Device, Link
from graphopt_gym.simulator import compile_tasks


def random_graph(rng: np.random.Generator, most_ops: int = 24) -> ComputationGraph:
    n = int(rng.integers(1, most_ops + 1))
    columns = {name: np.zeros((n, MAX_RANK) if name == "output_shape" else n, np.int64) for name in COLUMNS}
    edges = []
    for op in range(n):
        kind = rng.random()
        count = int(rng.integers(0, min(op, 3) + 1))
        inputs = rng.choice(op, count, replace=False).tolist() if op else []
        if kind < 0.2 or not inputs:
            columns["op_class"][op] = 0 if rng.random() < 0.7 else 4
            inputs = []
        elif kind < 0.45:
            columns["op_class"][op] = 1
            inputs = inputs[:1]
        else:
            columns["op_class"][op] = int(rng.integers(2, 13))
        edges += [(source, op) for source in inputs]
    sizes = rng.choice([0, 1, 2, 3, 5, 8], n) * int(rng.choice([1, 1000]))
    columns["output_bytes"] = sizes
    columns["bytes_read"] = rng.integers(0, 40, n)
    columns["bytes_written"] = rng.integers(0, 40, n)
    columns["flops"] = rng.integers(0, 100, n)
    source = columns["op_class"] == 0
    columns["param_bytes"] = np.where(source & (rng.random(n) < 0.5), sizes, 0)
    columns["state_bytes"] = np.where(rng.random(n) < 0.1, 7, 0)
    return ComputationGraph("random", kinds=["op"], modules=[""], columns=columns, edges=np.array(edges, np.int64))


def device(name: str = "device", **changes) -> Device:
    fields = {"kind": "gpu", "memory_bytes": 10**12, "memory_bytes_per_s": 1e9, "peak_flops": {"float32": 1e12}}
    return Device(name=name, **{**fields, **changes})


def random_cluster(rng: np.random.Generator) -> Cluster:
    count = int(rng.integers(1, 5))
    kinds = [device(f"kind{index}") for index in range(int(rng.integers(1, 3)))]
    pairs = count * (count - 1)
    num_links = int(rng.integers(1, pairs + 1)) if pairs else 0
    links = tuple(
        Link(f"link{index}", float(rng.choice([0.0, 1.0, 0.3])), float(rng.choice([1.0, 4.0, 1000.0])))
        for index in range(num_links)
    )
    link_of = np.full((count, count), -1, np.int32)
    for source in range(count):
        for target in range(count):
            if source != target:
                link_of[source, target] = rng.integers(num_links)
    devices = tuple(kinds[index] for index in rng.integers(0, len(kinds), count))
    return Cluster("random", devices, links, link_of, tuple([0] * count))


def random_fusion(rng: np.random.Generator, graph: ComputationGraph) -> np.ndarray:
    """A legal fusion: ops join the group of one of their inputs where that makes no cycle."""
    fusion = np.full(graph.num_ops, -1, np.int64)
    for op in range(graph.num_ops):
        inputs = [int(i) for i in graph.predecessors(op) if graph.op_class[graph.view_root[i]] != 0]
        if not inputs or graph.op_class[op] < 2 or rng.random() < 0.4:
            continue
        partner = graph.view_root[inputs[int(rng.integers(len(inputs)))]]
        trial = fusion.copy()
        trial[op] = trial[partner] = trial[partner] if trial[partner] >= 0 else op
        try:
            compile_tasks(graph, trial)
        except InputError:
            continue
        fusion = trial
    return fusion
