"""Stages of a pipeline by dynamic programming over the order of the layers.

The slowest stage sets the pace of a pipeline, so that is what is made as fast as can be, as in PipeDream (Narayanan et
al., SOSP 2019, §3.1): the last of s stages ends at layer j and begins where the slower of it and of the best s - 1
stages before is least. Of the partitions with that slowest stage it is the one through which a micro-batch goes
fastest, the other term of Alpa's objective (Zheng et al., OSDI 2022, §5.2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

SAME = 1 + 1e-12  # loads that differ by rounding alone are the same


class StageLoads(NamedTuple):
    """Of one stage, for each range of layers ``[i, j)`` that it may be: L layers; inf where it may not be."""

    load_s: np.ndarray  # float64 [L + 1, L + 1]: what a micro-batch takes of its cores, or of its links, at least
    through_s: np.ndarray  # float64 [L + 1, L + 1]: from when it comes to when it was sent on, there and back


def partition_layers(layers: int, stages: int, loads: Callable[[int], StageLoads]) -> tuple[int, ...] | None:
    """The first layer of each stage but the first; None where no partition is allowed.

    Args:
        layers: L.
        stages: S, at most L: each has a layer at least.
        loads: of stage 0 to S - 1. Called twice for each.
    """
    ahead = np.arange(layers + 1)[:, None] < np.arange(layers + 1)[None, :]
    best = np.full(layers + 1, np.inf)
    best[0] = 0.0
    for stage in range(stages):
        load = np.where(ahead, loads(stage).load_s, np.inf)
        best = np.maximum(best[:, None], load).min(axis=0)
    limit = best[layers] * SAME
    if not np.isfinite(limit):
        return None
    total = np.full(layers + 1, np.inf)
    total[0] = 0.0
    begins = np.zeros((stages, layers + 1), np.int64)
    for stage in range(stages):
        found = loads(stage)
        may = ahead & (found.load_s <= limit)
        reached = np.where(may, total[:, None] + found.through_s, np.inf)
        begins[stage] = reached.argmin(axis=0)
        total = reached.min(axis=0)
    cuts, end = [], layers
    for stage in range(stages - 1, 0, -1):
        end = int(begins[stage, end])
        cuts.append(end)
    return tuple(cuts[::-1])
