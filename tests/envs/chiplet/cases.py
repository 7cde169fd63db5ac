"""Random graphs for the chiplet tests."""

from __future__ import annotations

import numpy as np


def random_edges(rng, num_ops, fan_in=2, reach=6):
    """Distinct edges of a DAG in topological order: each op reads a few of the ones shortly before it."""
    edges = set()
    for op in range(1, num_ops):
        for _ in range(int(rng.integers(0 if op % 5 == 0 else 1, fan_in + 1))):
            edges.add((int(rng.integers(max(0, op - reach), op)), op))
    return np.asarray(sorted(edges), np.int32).reshape(-1, 2)


def transformer_edges(blocks, branch=3, length=8):
    """A transformer's shape: residual blocks, attention (three branches that join) and feed-forward in turn."""
    edges, x, new = [], 0, 1
    for block in range(blocks):
        norm = new
        edges.append((x, norm))
        new += 1
        ends = []
        for _ in range(branch if block % 2 == 0 else 1):
            at = norm
            for _ in range(length):
                edges.append((at, new))
                at, new = new, new + 1
            ends.append(at)
        join = new
        edges += [(end, join) for end in ends]
        add = new + 1
        edges += [(join, add), (x, add)]
        x, new = add, new + 2
    return new, np.asarray(sorted(set(edges)), np.int32)
