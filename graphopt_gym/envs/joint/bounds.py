"""Seconds that no placement, fusion and schedule of a step can beat."""

from __future__ import annotations

import numpy as np

from graphopt_gym.simulator.fused import FusedSimulator
from graphopt_gym.simulator.fusing import LOOP, OPAQUE
from graphopt_gym.simulator.orders import upward_rank


def step_bounds(fused: FusedSimulator) -> dict[str, float]:
    """Lower bounds on the step time of a graph on a cluster, whatever is decided.

    A kernel has one op at most that is no loop (a product, a row-wise or an opaque op), so each of these keeps its
    launch and its compute, opaque ones their whole time. No fusion saves the bytes of a tensor that only such ops read
    (each reads it in a kernel of its own), nor those that such an op writes for another.

    ``path_s``: the longest path of a graph, transfers free, each op on its fastest device. ``work_s``: all work, shared
    evenly by the devices.
    """
    tables, classes = fused.task_tables, fused.tables.fusion_class
    tasks = fused.simulator.tasks
    count = tasks.num_tasks
    alone = (classes != LOOP) & ~tables.is_source
    read, written = _unavoidable_bytes(fused, alone)
    memory = (read + written) / tables.bytes_per_s  # [types, K]
    compute = np.where(tables.is_source, 0.0, tables.compute_s)
    launch = np.where(alone, tables.launch_s, 0.0)
    opaque = (classes == OPAQUE) & ~tables.is_source
    whole = np.where(tables.is_source, 0.0, tables.durations)
    # on a path: the ops that are no loops with what each takes at least, or all compute with their launches
    heavy = np.where(opaque, whole, np.where(alone, launch + np.maximum(compute, memory), 0.0)).min(axis=0)
    light = np.where(opaque, whole, launch + compute).min(axis=0)
    path = max(
        float(upward_rank(
            tasks.sequence, seconds, np.zeros(tasks.num_tensors), tasks.tensor_ptr, tasks.reader_ptr, tasks.reader
        ).max(initial=0.0))
        for seconds in (heavy, light)
    )  # fmt: skip
    # a device's kernels take their launches and the larger of all compute and all memory
    fixed = np.where(opaque, whole, launch).min(axis=0).sum()
    rest = [np.where(opaque, 0.0, part).min(axis=0).sum() for part in (compute, memory)]
    work = (fixed + max(rest)) / fused.simulator.num_devices if count else 0.0
    return {"path_s": path, "work_s": float(work)}


def _unavoidable_bytes(fused: FusedSimulator, alone: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(read, written), float64 [K]: bytes that ops which share no kernel move whatever is fused.

    An op may read less of a tensor than all of it: what it reads is counted less all that might be saved.
    """
    tables = fused.task_tables
    count = len(alone)
    reader = np.repeat(np.arange(count), np.diff(tables.edge_ptr))
    source = tables.edge_task
    only_alone = np.bincount(source, ~alone[reader], count) == 0  # no loop reads it
    by_alone = np.bincount(source, alone[reader], count) > 0
    kept = only_alone[source] & (alone[source] | tables.is_source[source])
    # a tensor that an op reads twice, by two names, is counted once in a kernel
    pairs = reader.astype(np.int64) * count + source
    _, which, times = np.unique(pairs, return_inverse=True, return_counts=True)
    twice = times[which] > 1
    saved = np.bincount(reader, np.where(kept & ~twice, 0.0, tables.edge_bytes), count)
    read = np.where(alone, np.maximum(tables.bytes_read - saved, 0.0), 0.0)
    written = np.where(alone & (by_alone | tables.unread), tables.bytes_written, 0.0)
    return read, written
