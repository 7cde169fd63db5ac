"""Stages of a pipeline by dynamic programming over the order of the layers.

The slowest stage sets the pace of a pipeline, so that is what is made as fast as can be, as in PipeDream (Narayanan et
al., SOSP 2019, §3.1): the last of s stages ends at layer j and begins where the slower of it and of the best s - 1
stages before is least. Of the partitions with that slowest stage it is the one through which a micro-batch goes
fastest, the other term of Alpa's objective (Zheng et al., OSDI 2022, §5.2).

With few micro-batches a slower slowest stage may be worth it: given their number, Alpa's objective as a whole is made
least, by the same dynamic program for each candidate of the slowest stage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

SAME = 1 + 1e-12  # loads that differ by rounding alone are the same


class StageLoads(NamedTuple):
    """Of one stage, for each range of layers ``[i, j)`` that it may be: L layers; inf where it may not be."""

    load_s: np.ndarray  # float64 [L + 1, L + 1]: what a micro-batch takes of its cores, or of its links, at least
    through_s: np.ndarray  # float64 [L + 1, L + 1]: from when it comes to when it was sent on, there and back


def partition_layers(
    layers: int, stages: int, loads: Callable[[int], StageLoads], micro_batches: int | None = None
) -> tuple[int, ...] | None:
    """The first layer of each stage but the first; None where no partition is allowed.

    Args:
        layers: L.
        stages: S, at most L: each has a layer at least.
        loads: of stage 0 to S - 1. Called once for each.
        micro_batches: M, to make ``sum of through_s + (M - 1) x slowest load`` least, O(S^2 L^4) at worst; left out:
            the slowest load first, O(S L^2).
    """
    ahead = np.arange(layers + 1)[:, None] < np.arange(layers + 1)[None, :]
    given = [loads(stage) for stage in range(stages)]
    given = [one._replace(load_s=np.where(ahead, one.load_s, np.inf)) for one in given]
    slowest = np.full(layers + 1, np.inf)
    slowest[0] = 0.0
    for one in given:
        slowest = np.maximum(slowest[:, None], one.load_s).min(axis=0)
    least = slowest[layers]
    if not np.isfinite(least):
        return None
    if micro_batches is None:
        return _within(given, least * SAME)[1]
    loads_s = np.unique(np.stack([one.load_s for one in given]))
    best, found = np.inf, None
    for limit in loads_s[(loads_s >= least) & np.isfinite(loads_s)].tolist():
        if (micro_batches - 1) * limit >= best:
            break
        through_s, cuts = _within(given, limit * SAME)
        if through_s + (micro_batches - 1) * limit < best:
            best, found = through_s + (micro_batches - 1) * limit, cuts
    return found


def _within(given: Sequence[StageLoads], limit_s: float) -> tuple[float, tuple[int, ...]]:
    """(seconds, first layers of the stages but the first) of the partition of the fastest way through, none of whose
    loads is beyond a limit."""
    layers = len(given[0].load_s) - 1
    total = np.full(layers + 1, np.inf)
    total[0] = 0.0
    begins = np.zeros((len(given), layers + 1), np.int64)
    for stage, one in enumerate(given):
        reached = np.where(one.load_s <= limit_s, total[:, None] + one.through_s, np.inf)
        begins[stage] = reached.argmin(axis=0)
        total = reached.min(axis=0)
    cuts, end = [], layers
    for stage in range(len(given) - 1, 0, -1):
        end = int(begins[stage, end])
        cuts.append(end)
    return float(total[layers]), tuple(cuts[::-1])
