"""Timelines to draw: a graph of every phase on two and on nine devices."""

from __future__ import annotations

import numpy as np

from graphopt_gym.graphs.generators import layered_dag
from graphopt_gym.hardware.cluster import Cluster, Device, Link
from graphopt_gym.simulator import Simulator, Timeline


def make_cluster(devices: int, memory_bytes: int = 16 * 2**30) -> Cluster:
    """A link of its own for each ordered pair."""
    device = Device("toy", "gpu", memory_bytes, 1e11, {"float32": 1e12})
    pairs = [(source, target) for source in range(devices) for target in range(devices) if source != target]
    link_of = np.full((devices, devices), -1, np.int32)
    for index, pair in enumerate(pairs):
        link_of[pair] = index
    links = tuple(Link(f"wire:{source}->{target}", 1e-6, 1e10) for source, target in pairs)
    return Cluster(f"toyx{devices}", (device,) * devices, links, link_of, (0,) * devices)


def make_timeline(num_ops: int, devices: int, memory_bytes: int = 16 * 2**30, fuse: bool = False) -> Timeline:
    graph = layered_dag(num_ops, 4, seed=1, phases=True)
    fusion = None
    if fuse:  # an op and the one that reads it alone and nothing else, two by two
        fusion = np.full(graph.num_ops, -1)
        for op in range(graph.num_ops):
            readers = graph.successors(op).tolist()
            pair = [op, *readers]
            alone = len(readers) == 1 and len(graph.predecessors(readers[0])) == 1
            if alone and (graph.op_class[pair] > 1).all() and (fusion[pair] < 0).all():
                fusion[pair] = op
    simulator = Simulator(graph, make_cluster(devices, memory_bytes), fusion=fusion)
    rng = np.random.default_rng(0)
    return simulator.run(rng.integers(0, devices, graph.num_ops))
