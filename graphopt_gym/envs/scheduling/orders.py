"""Priority rules of list scheduling, for a placement that is fixed. K tasks, T tensors, D devices.

Each function takes a simulator and the device of each task, int32 [K], and gives float64 [K]: higher first in the ready
queue of the task's device, as the engine's order PRIORITY reads it. All are near-linear in tasks and edges.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphopt_gym.compiled import kernel
from graphopt_gym.simulator.orders import upward_rank

if TYPE_CHECKING:
    from graphopt_gym.simulator.simulator import Simulator

MOST_EXACT = 4096  # tasks whose descendants are counted one by one; of more, their work is estimated
SAMPLES = 64  # of that estimate: it is off by 1 / sqrt(SAMPLES - 2) = 13 %, one standard deviation


def placed_durations_s(simulator: Simulator, placement: np.ndarray) -> np.ndarray:
    """float64 [K]: seconds of each task on its device."""
    return simulator.durations_s[simulator.device_type[placement], np.arange(simulator.num_tasks)]


def shortest_first(simulator: Simulator, placement: np.ndarray) -> np.ndarray:
    """float64 [K]: shortest processing time first (Smith, Naval Research Logistics Quarterly 3, 1956)."""
    return -placed_durations_s(simulator, placement)


def longest_first(simulator: Simulator, placement: np.ndarray) -> np.ndarray:
    """float64 [K]: longest processing time first (Graham, SIAM J. Applied Mathematics 17(2), 1969)."""
    return placed_durations_s(simulator, placement)


def highest_level(simulator: Simulator, placement: np.ndarray) -> np.ndarray:
    """float64 [K]: the longest remaining path in seconds of compute, without transfers: "highest levels first with
    estimated times" (Adam, Chandy and Dickson, Communications of the ACM 17(12), 1974)."""
    tasks = simulator.tasks
    return upward_rank(
        tasks.sequence, placed_durations_s(simulator, placement), np.zeros(tasks.num_tensors), tasks.tensor_ptr,
        tasks.reader_ptr, tasks.reader,
    )  # fmt: skip


def placed_rank(simulator: Simulator, placement: np.ndarray) -> np.ndarray:
    """float64 [K]: the longest remaining path with the seconds that tasks and transfers really take where they are.

    The upward rank of HEFT (Topcuoglu et al., IEEE TPDS 13(3), 2002, eq. 8) has means over devices in their place, as
    no placement is known yet; here it is, so this is the tail of Carlier (European J. Operational Research 11, 1982).
    """
    tasks, (latency_s, bytes_per_s) = simulator.tasks, _rates(simulator)
    return _placed_rank(
        tasks.sequence, placed_durations_s(simulator, placement), np.asarray(placement), latency_s, bytes_per_s,
        tasks.transfer_s, tasks.tensor_bytes, tasks.tensor_ptr, tasks.reader_ptr, tasks.reader,
    )  # fmt: skip


def placed_heads_s(simulator: Simulator, placement: np.ndarray) -> np.ndarray:
    """float64 [K]: the earliest that each task could start, by the longest path up to it, transfers included."""
    tasks, (latency_s, bytes_per_s) = simulator.tasks, _rates(simulator)
    return _placed_heads(
        tasks.sequence, placed_durations_s(simulator, placement), np.asarray(placement), latency_s, bytes_per_s,
        tasks.transfer_s, tasks.tensor_bytes, tasks.tensor_task, tasks.input_ptr, tasks.input_tensor,
    )  # fmt: skip


def _rates(simulator: Simulator) -> tuple[np.ndarray, np.ndarray]:
    """float64 [D, D] latency and bytes/s from each device to each other; on the diagonal 0 and infinity."""
    cluster = simulator.cluster
    latency_s = np.array([*(link.latency_s for link in cluster.links), 0.0])
    bytes_per_s = np.array([*(link.bytes_per_s for link in cluster.links), np.inf])
    return latency_s[cluster.link_of], bytes_per_s[cluster.link_of]  # -1 is the last


@kernel(inner=True, allocates=False)
def _takes(tensor, source, target, latency_s, bytes_per_s, transfer_s, tensor_bytes):
    """Seconds of a transfer, 0 where there is none."""
    if source == target:
        return 0.0
    if transfer_s[tensor] >= 0.0:
        return transfer_s[tensor]
    return latency_s[source, target] + tensor_bytes[tensor] / bytes_per_s[source, target]


@kernel
def _placed_rank(
    sequence, durations_s, placement, latency_s, bytes_per_s, transfer_s, tensor_bytes, tensor_ptr, reader_ptr, reader
):
    rank = np.zeros(durations_s.shape[0])
    for position in range(sequence.shape[0] - 1, -1, -1):
        task = sequence[position]
        longest = 0.0
        for tensor in range(tensor_ptr[task], tensor_ptr[task + 1]):
            for place in range(reader_ptr[tensor], reader_ptr[tensor + 1]):
                other = reader[place]
                takes = _takes(
                    tensor, placement[task], placement[other], latency_s, bytes_per_s, transfer_s, tensor_bytes
                )
                longest = max(longest, takes + rank[other])
        rank[task] = durations_s[task] + longest
    return rank


@kernel
def _placed_heads(
    sequence, durations_s, placement, latency_s, bytes_per_s, transfer_s, tensor_bytes, tensor_task, input_ptr,
    input_tensor,
):  # fmt: skip
    head = np.zeros(durations_s.shape[0])
    for task in sequence:
        for position in range(input_ptr[task], input_ptr[task + 1]):
            tensor = input_tensor[position]
            producer = tensor_task[tensor]
            takes = _takes(
                tensor, placement[producer], placement[task], latency_s, bytes_per_s, transfer_s, tensor_bytes
            )
            head[task] = max(head[task], head[producer] + durations_s[producer] + takes)
    return head


# ---- most work remaining


def most_work_remaining(simulator: Simulator, placement: np.ndarray) -> np.ndarray:
    """float64 [K]: the seconds of compute of a task and all its descendants, each once.

    The rule of job shops (MWKR; Haupt, OR Spektrum 11, 1989), where a job is a chain; in a graph, what remains of the
    job of a task is all that waits for it. To sum over descendants takes quadratic time, so of more than MOST_EXACT
    tasks the sums are estimated as by Cohen (J. Computer and System Sciences 55(3), 1997): every task draws numbers
    that are exponential with its work as rate, and the least among descendants is exponential with the sum of theirs.
    """
    tasks, work_s = simulator.tasks, placed_durations_s(simulator, placement)
    columns = (tasks.tensor_ptr, tasks.reader_ptr, tasks.reader)
    if simulator.num_tasks <= MOST_EXACT:
        return _work_of_descendants(tasks.sequence, work_s, *columns)
    return estimated_work(tasks.sequence, work_s, *columns, SAMPLES)


def estimated_work(
    sequence: np.ndarray,
    work_s: np.ndarray,
    tensor_ptr: np.ndarray,
    reader_ptr: np.ndarray,
    reader: np.ndarray,
    samples: int,
) -> np.ndarray:
    """float64 [K]: the estimate of :func:`most_work_remaining`; the same draws at every call."""
    drawn = np.random.default_rng(0).standard_exponential((len(work_s), samples))
    with np.errstate(divide="ignore"):  # what has no work is never the least
        drawn /= work_s[:, None]
    begin = reader_ptr[tensor_ptr].tolist()  # of the readers of each task
    for task in sequence[::-1].tolist():
        readers = reader[begin[task] : begin[task + 1]]
        if len(readers):
            np.minimum(drawn[task], drawn[readers].min(axis=0), out=drawn[task])
    return (samples - 1) / drawn.sum(axis=1)  # type: ignore[no-any-return]


@kernel
def _work_of_descendants(sequence, work_s, tensor_ptr, reader_ptr, reader):
    num_tasks = work_s.shape[0]
    words = (num_tasks + 63) // 64
    below = np.zeros((num_tasks, words), np.uint64)  # a bit for each descendant, and for the task
    work = np.zeros(num_tasks)
    for place in range(num_tasks - 1, -1, -1):
        task = sequence[place]
        below[task, task >> 6] |= np.uint64(1) << np.uint64(task & 63)
        for tensor in range(tensor_ptr[task], tensor_ptr[task + 1]):
            for position in range(reader_ptr[tensor], reader_ptr[tensor + 1]):
                for word in range(words):
                    below[task, word] |= below[reader[position], word]
        total = 0.0
        for word in range(words):
            bits = below[task, word]
            other = word * 64
            while bits != np.uint64(0):
                if bits & np.uint64(1):
                    total += work_s[other]
                bits >>= np.uint64(1)
                other += 1
        work[task] = total
    return work


# ---- depth first


def depth_first(simulator: Simulator, placement: np.ndarray) -> np.ndarray:
    """float64 [K]: post-order from the sinks, the input (and the sink) with the longest path up to it first.

    The sequential depth-first order, which a parallel run that takes it as priorities exceeds in memory by little
    (Blelloch, Gibbons and Matias, J. of the ACM 46(2), 1999).
    """
    path_s = placed_heads_s(simulator, placement) + placed_durations_s(simulator, placement)
    sinks = np.flatnonzero(_num_readers(simulator) == 0)
    return priority_of(post_order(simulator, path_s, sinks[np.argsort(-path_s[sinks], kind="stable")]))


def post_order(simulator: Simulator, weight: np.ndarray, roots: np.ndarray) -> np.ndarray:
    """int32 [K]: all tasks that the roots need and the roots, each after its inputs; heavier inputs first.

    Args:
        weight: [K]; of equal ones the lowest task is first.
        roots: int [R], tasks in the order in which they are sought; every task must be among what they need.
    """
    tasks = simulator.tasks
    producer = tasks.tensor_task[tasks.input_tensor]
    by = np.repeat(np.arange(simulator.num_tasks), np.diff(tasks.input_ptr))
    producer = producer[np.lexsort((producer, -weight[producer], by))]
    return _post_order(tasks.input_ptr, producer, roots.astype(np.int32))


def priority_of(order: np.ndarray) -> np.ndarray:
    """float64 [K]: priorities by which tasks go in an order, int [K]."""
    priority = np.empty(len(order))
    priority[order] = -np.arange(len(order), dtype=np.float64)
    return priority


def _num_readers(simulator: Simulator) -> np.ndarray:
    tasks = simulator.tasks
    return np.diff(tasks.reader_ptr[tasks.tensor_ptr])


@kernel
def _post_order(input_ptr, producer, roots):
    num_tasks = input_ptr.shape[0] - 1
    order = np.empty(num_tasks, np.int32)
    stack = np.empty(num_tasks, np.int32)
    following = input_ptr[:-1].copy()  # the next input of each task to look at
    seen = np.zeros(num_tasks, np.bool_)
    count = 0
    for root in roots:
        if seen[root]:
            continue
        seen[root] = True
        stack[0] = root
        depth = 1
        while depth > 0:
            task = stack[depth - 1]
            if following[task] == input_ptr[task + 1]:
                order[count] = task
                count += 1
                depth -= 1
                continue
            other = producer[following[task]]
            following[task] += 1
            if not seen[other]:
                seen[other] = True
                stack[depth] = other
                depth += 1
    return order
