"""A placement problem as the kernels of the placer read it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from graphopt_gym.compiled import kernel
from graphopt_gym.envs.placement.groups import make_group_graph
from graphopt_gym.envs.placement.moves import module_of_group, module_partitions

if TYPE_CHECKING:
    from graphopt_gym.envs.placement.problem import PlacementProblem


class Arrays(NamedTuple):
    """D devices, K tasks, T tensors of tasks, G groups, H tensors that groups exchange, S storages of tasks.

    Lists of lists are pointers and entries: those of row ``i`` are ``entries[ptr[i]:ptr[i + 1]]``.
    """

    # tasks
    duration_s: np.ndarray  # float64 [D, K]
    is_source: np.ndarray  # bool [K]
    group_of_task: np.ndarray  # int32 [K]
    sequence: np.ndarray  # int32 [K] the order in which a plan takes tasks; each follows those that it reads
    tensor_ptr: np.ndarray  # int32 [K+1] the tensors that a task gives
    tensor_task: np.ndarray  # int32 [T]
    tensor_bytes: np.ndarray  # int64 [T]
    tensor_storage: np.ndarray  # int32 [T]
    stated_s: np.ndarray  # float64 [T] seconds of its transfer where they are stated, else -1
    mean_transfer_s: np.ndarray  # float64 [T] over pairs of devices
    reader_ptr: np.ndarray  # int32 [T+1]
    reader: np.ndarray  # int32 tasks
    input_ptr: np.ndarray  # int32 [K+1]
    input_tensor: np.ndarray  # int32
    storage_ptr: np.ndarray  # int32 [K+1] the storages that a task allocates
    storage_bytes: np.ndarray  # int64 [S]
    persistent_bytes: np.ndarray  # int64 [K]
    # devices and links
    link_of: np.ndarray  # int32 [D, D], -1 on the diagonal
    latency_s: np.ndarray  # float64 [D, D], 0 on the diagonal
    s_per_byte: np.ndarray  # float64 [D, D], 0 on the diagonal
    capacity_bytes: np.ndarray  # float64 [D]
    allowed: np.ndarray  # bool [G, D]
    # groups
    group_ptr: np.ndarray  # int64 [G+1]
    group_task: np.ndarray  # int64 [K] tasks of each group, ascending
    work_s: np.ndarray  # float64 [D, G]
    held_bytes: np.ndarray  # float64 [G] when the graph holds most, see GroupGraph.memory_bytes
    order: np.ndarray  # int64 [2, G] groups by their first computing task, and module after module
    position: np.ndarray  # int64 [2, G] rank of each group in each order
    part: np.ndarray  # int64 [2, G] the module of each group, and its layer (see module_partitions)
    # what groups exchange
    sent: np.ndarray  # int64 [H] tensors of tasks
    sender: np.ndarray  # int64 [H] groups
    sent_s: np.ndarray  # float64 [H] mean seconds of a transfer
    of_source: np.ndarray  # bool [H] whether it is a parameter or an input
    readers_ptr: np.ndarray  # int64 [H+1]
    readers: np.ndarray  # int64 groups
    sends_ptr: np.ndarray  # int64 [G+1] what each group sends
    sends: np.ndarray  # int64
    reads_ptr: np.ndarray  # int64 [G+1] what each group reads of others
    reads: np.ndarray  # int64


def _rows(keys: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(pointers int64 [count+1], entries int64): where each key of 0..count-1 occurs."""
    ptr = np.concatenate([[0], np.cumsum(np.bincount(keys, minlength=count))]).astype(np.int64)
    return ptr, np.argsort(keys, kind="stable").astype(np.int64)


def make_arrays(problem: PlacementProblem) -> Arrays:
    """The arrays of a problem. The plan takes tasks in captured order, by longest way where the problem does."""
    simulator, tasks, cluster = problem.simulator, problem.simulator.tasks, problem.cluster
    devices, groups, group = problem.num_devices, problem.num_groups, problem.group_of_task.astype(np.int64)
    graph = make_group_graph(problem)
    latency_s, s_per_byte = np.zeros((devices, devices)), np.zeros((devices, devices))
    for source, target in np.argwhere(np.array(cluster.link_of) >= 0).tolist():
        link = cluster.links[cluster.link_of[source, target]]
        latency_s[source, target], s_per_byte[source, target] = link.latency_s, 1.0 / link.bytes_per_s
    pairs = max(1, devices * (devices - 1))
    mean_s = np.where(
        tasks.transfer_s < 0,
        latency_s.sum() / pairs + tasks.tensor_bytes * (s_per_byte.sum() / pairs),
        tasks.transfer_s if devices > 1 else 0.0,
    )
    sequence = tasks.sequence
    if simulator.order in ("rank", "priority"):
        sequence = sequence[np.argsort(-simulator.priorities[sequence], kind="stable")]

    tensor = np.repeat(np.arange(tasks.num_tensors), np.diff(tasks.reader_ptr))
    pair = np.unique(tensor * groups + group[tasks.reader])
    tensor, reader = pair // groups, pair % groups
    crossing = group[tasks.tensor_task[tensor]] != reader
    tensor, reader = tensor[crossing], reader[crossing]
    sent, which = np.unique(tensor, return_inverse=True)
    readers_ptr, by_tensor = _rows(which, len(sent))
    sender = group[tasks.tensor_task[sent]]
    sends_ptr, sends = _rows(sender, groups)
    reads_ptr, by_reader = _rows(reader, groups)
    group_ptr, group_task = _rows(group, groups)

    by_position = np.argsort(graph.position, kind="stable")
    module = module_of_group(problem)
    partitions = module_partitions(problem)
    order = np.stack([by_position, by_position[np.argsort(module[by_position], kind="stable")]])
    allowed = np.ones((groups, devices), bool) if problem.allowed is None else problem.allowed
    return Arrays(
        duration_s=np.ascontiguousarray(simulator.device_durations_s()),
        is_source=tasks.is_source,
        group_of_task=problem.group_of_task,
        sequence=np.ascontiguousarray(sequence),
        tensor_ptr=tasks.tensor_ptr,
        tensor_task=tasks.tensor_task,
        tensor_bytes=tasks.tensor_bytes,
        tensor_storage=tasks.tensor_storage,
        stated_s=tasks.transfer_s,
        mean_transfer_s=mean_s,
        reader_ptr=tasks.reader_ptr,
        reader=tasks.reader,
        input_ptr=tasks.input_ptr,
        input_tensor=tasks.input_tensor,
        storage_ptr=tasks.storage_ptr,
        storage_bytes=tasks.storage_bytes,
        persistent_bytes=tasks.persistent_bytes,
        link_of=np.array(cluster.link_of, np.int32, order="C"),
        latency_s=latency_s,
        s_per_byte=s_per_byte,
        capacity_bytes=problem.capacity_bytes.astype(np.float64),
        allowed=np.ascontiguousarray(allowed),
        group_ptr=group_ptr,
        group_task=group_task,
        work_s=np.ascontiguousarray(graph.work_s),
        held_bytes=np.maximum(graph.memory_bytes, 0.0),
        order=order,
        position=np.argsort(order, axis=1),
        part=np.stack([module, partitions[-1] if partitions else module]),
        sent=sent,
        sender=sender,
        sent_s=mean_s[sent],
        of_source=tasks.is_source[tasks.tensor_task[sent]],
        readers_ptr=readers_ptr,
        readers=reader[by_tensor],
        sends_ptr=sends_ptr,
        sends=sends,
        reads_ptr=reads_ptr,
        reads=which[by_reader],
    )


@kernel(inner=True, allocates=False)
def transfer_s(arrays, tensor, source, target):
    """Seconds of a tensor's transfer between two devices; 0 from one to itself."""
    if source == target:
        return 0.0
    if arrays.stated_s[tensor] >= 0.0:
        return arrays.stated_s[tensor]
    return arrays.latency_s[source, target] + arrays.tensor_bytes[tensor] * arrays.s_per_byte[source, target]
