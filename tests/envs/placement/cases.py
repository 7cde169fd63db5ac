"""What the tests of the environments share: small graphs and clusters, and an exact comparison."""

from __future__ import annotations

import itertools

import numpy as np

from graphopt_gym.graphs.generators import layered_dag, uniform_op_times_s
from graphopt_gym.hardware.cluster import Cluster, Device, Link
from graphopt_gym.hardware.cost_model import CostModel


class UnitTimes(CostModel):
    """Every op takes a second, so that optima are known."""

    def __init__(self):
        pass

    def op_times(self, graph, device):
        return uniform_op_times_s(graph)


UNIT = UnitTimes()


def cluster(count: int, memory_bytes: int = 10**15, latency_s: float = 1e-5) -> Cluster:
    """Equal devices, a wire for each ordered pair."""
    one = Device("device", "gpu", memory_bytes, 1e11, {"float32": 1e12})
    pairs = [(a, b) for a, b in itertools.product(range(count), repeat=2) if a != b]
    link_of = np.full((count, count), -1, np.int32)
    for index, pair in enumerate(pairs):
        link_of[pair] = index
    links = tuple(Link(f"wire{index}", latency_s, 1e10) for index in range(len(pairs)))
    return Cluster(f"equal{count}", (one,) * count, links, link_of, (0,) * count)


SMALL = layered_dag(60, seed=1, colocated=0.6, phases=True)
LARGER = layered_dag(110, seed=2, colocated=0.6)


def assert_same(ours, theirs, where=""):
    """Equal to the last bit, with the same types, through dicts and object arrays."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            assert_same(ours[key], theirs[key], f"{where}[{key!r}]")
    elif isinstance(ours, tuple):
        assert len(ours) == len(theirs), where
        for index, (mine, other) in enumerate(zip(ours, theirs)):
            assert_same(mine, other, f"{where}[{index}]")
    elif isinstance(ours, np.ndarray):
        assert ours.dtype == theirs.dtype, where
        assert ours.shape == theirs.shape, where
        if ours.dtype == object:
            for index, (mine, other) in enumerate(zip(ours.flat, theirs.flat)):
                assert_same(mine, other, f"{where}[{index}]")
        else:
            assert np.array_equal(ours, theirs), where
    else:
        assert ours == theirs, where
