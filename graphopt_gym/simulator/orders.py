"""The order of a step: what a free device takes next of its ops. A named part of every problem on the engine.

- ``fifo``: the earliest ready, ties by op index. What dataflow executors do, the papers' TensorFlow among them.
- ``stream``: strictly the next in captured order, waiting for it. Eager PyTorch and JAX, whose devices run one stream.
- ``program``: of the ready ones, the first in captured order.
- ``rank``: of the ready ones, that with the longest way to the end: HEFT's upward rank, over mean times and transfers
  (Topcuoglu et al., IEEE TPDS 13(3), 2002, eq. 8).
- ``priority``: of the ready ones, that of the highest level that the decision states; of one level, by ``rank``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt_gym.compiled import kernel

if TYPE_CHECKING:
    from graphopt_gym.hardware.cluster import Cluster
    from graphopt_gym.simulator.tasks import TaskGraph

ORDERS = ("fifo", "stream", "program", "rank", "priority")
FIFO, PRIORITY, STREAM = 0, 1, 2  # the three that the engine knows

WORDS = {  # for people
    "fifo": "first come, first served",
    "stream": "strictly in captured order",
    "program": "the first ready in captured order",
    "rank": "the longest way to the end first",
    "priority": "by the decision's priorities",
}


def engine_order(order: str) -> int:
    """Which of the engine's orders a name is run by."""
    return {"fifo": FIFO, "stream": STREAM}.get(order, PRIORITY)


def fixed_priorities(
    order: str, tasks: TaskGraph, durations_s: np.ndarray, cluster: Cluster, use: np.ndarray | None = None
) -> np.ndarray:
    """float64 [K]: the priorities of an order that a decision does not change (of ``priority``: of equal levels).

    Empty where the engine needs none.

    Args:
        durations_s: float64 [D, K]; looked at for ``rank`` and ``priority`` alone.
        use: int64, the devices whose times are averaged; all where left out.
    """
    if order in ("fifo", "stream"):
        return np.zeros(0)
    if order == "program":
        position = np.empty(tasks.num_tasks)
        position[tasks.sequence] = np.arange(tasks.num_tasks)
        return -position
    return upward_rank_s(tasks, durations_s, cluster, use)


def upward_rank_s(
    tasks: TaskGraph, durations_s: np.ndarray, cluster: Cluster, use: np.ndarray | None = None
) -> np.ndarray:
    """float64 [K]: the longest way from the start of each task to the end, over mean times and mean transfers.

    Args as of :func:`fixed_priorities`.
    """
    use = np.arange(cluster.num_devices) if use is None else use
    return upward_rank(
        tasks.sequence, durations_s[use].mean(axis=0), mean_transfer_s(tasks, cluster, use), tasks.tensor_ptr,
        tasks.reader_ptr, tasks.reader,
    )  # fmt: skip


def mean_transfer_s(tasks: TaskGraph, cluster: Cluster, use: np.ndarray) -> np.ndarray:
    """float64 [T]: seconds of each tensor's transfer, averaged over the ordered pairs of the devices ``use``."""
    links = cluster.link_of[np.ix_(use, use)]
    count = np.bincount(links[links >= 0], minlength=len(cluster.links))
    pairs = max(int(count.sum()), 1)
    latency_s = sum(n * link.latency_s for n, link in zip(count, cluster.links, strict=True)) / pairs
    s_per_byte = sum(n / link.bytes_per_s for n, link in zip(count, cluster.links, strict=True)) / pairs
    stated = tasks.transfer_s if len(use) > 1 else 0.0
    return np.where(tasks.transfer_s < 0, latency_s + tasks.tensor_bytes * s_per_byte, stated)


@kernel
def upward_rank(sequence, mean_s, mean_transfer_s, tensor_ptr, reader_ptr, reader):
    """float64 [K]: the longest path from each task to an exit; ``sequence`` is a topological order."""
    rank = np.zeros(mean_s.shape[0])
    for position in range(sequence.shape[0] - 1, -1, -1):
        task = sequence[position]
        longest = 0.0
        for tensor in range(tensor_ptr[task], tensor_ptr[task + 1]):
            for place in range(reader_ptr[tensor], reader_ptr[tensor + 1]):
                longest = max(longest, mean_transfer_s[tensor] + rank[reader[place]])
        rank[task] = mean_s[task] + longest
    return rank
