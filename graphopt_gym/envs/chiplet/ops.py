"""What runs on the chips: the ops to assign, the tensors between them, and the parameters that they hold.

An op here is a task of the simulator (views are folded into what they view). Not assigned are

- sources: a parameter lies on every chip that reads it, an input comes from the host;
- tables of which only gathers read (embeddings): the host looks their rows up;
- backward and optimizer ops: a pipeline of inferences runs the forward part;
- light ops that depend on no parameter (a mask made from the input's lengths): preprocessing, done by the host.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graphopt_gym.errors import InputError
from graphopt_gym.graphs.graph import OP_CLASSES, PHASES
from graphopt_gym.simulator.tasks import TaskGraph, compile_tasks

if TYPE_CHECKING:
    from graphopt_gym.graphs.graph import ComputationGraph
    from graphopt_gym.hardware.package import Package

HEAVY = np.isin(np.asarray(OP_CLASSES), ("matmul", "conv"))
GATHER = OP_CLASSES.index("gather")
HOST = -1
MAX_OPS = 16384  # reachability between all pairs is held as bits


@dataclass(frozen=True, eq=False)
class ChipOps:
    """N ops in topological order, E edges, T tensors, P parameters."""

    tasks: TaskGraph
    task: np.ndarray  # int32 [N] the task that each op is
    edges: np.ndarray  # int32 [E, 2] distinct (producer, consumer), sorted
    tensor_op: np.ndarray  # int32 [T] the producer, or HOST
    tensor_bytes: np.ndarray  # int64 [T]
    reader_ptr: np.ndarray  # int32 [T+1]
    reader: np.ndarray  # int32 ops that read each tensor, ascending
    param_bytes: np.ndarray  # int64 [P]
    param_ptr: np.ndarray  # int32 [P+1]
    param_reader: np.ndarray  # int32 ops that read each parameter, ascending

    @property
    def num_ops(self) -> int:
        return len(self.task)

    def label(self, op: int) -> str:
        """A short name for people."""
        return self.tasks.graph.label(int(self.tasks.first_op[self.task[op]]))


def chip_ops(graph: ComputationGraph) -> ChipOps:
    """The ops of a graph that chips run.

    Raises:
        InputError: there are none, or more than MAX_OPS.
    """
    tasks = compile_tasks(graph)
    count = tasks.num_tasks
    is_param = tasks.is_source & (tasks.persistent_bytes > 0)
    op_class = graph.op_class[tasks.first_op]
    read_by_task = np.repeat(tasks.tensor_task, np.diff(tasks.reader_ptr))
    # tasks come in topological order, so one pass finds what a parameter reaches
    reached = is_param.copy()
    for task in range(count):
        if not reached[task]:
            inputs = tasks.input_tensor[tasks.input_ptr[task] : tasks.input_ptr[task + 1]]
            reached[task] = bool(reached[tasks.tensor_task[inputs]].any())
    forward = graph.phase[tasks.first_op] == PHASES.index("forward")
    on_chip = ~tasks.is_source & forward
    if is_param.any():
        on_chip &= reached | HEAVY[op_class]
    num_ops = int(on_chip.sum())
    if not 1 <= num_ops <= MAX_OPS:
        raise InputError(f"graph {graph.name!r} has {num_ops} ops for chips; give one with 1 to {MAX_OPS}")
    number = np.full(count, HOST, np.int32)
    number[on_chip] = np.arange(num_ops)

    producer, reader = number[read_by_task], number[tasks.reader]
    inside = (producer >= 0) & (reader >= 0)
    edges = np.unique(np.stack([producer[inside], reader[inside]], 1), axis=0).astype(np.int32)

    tensor = np.repeat(np.arange(tasks.num_tensors), np.diff(tasks.reader_ptr))
    seen = (reader >= 0) & ~is_param[read_by_task]
    used, row = np.unique(tensor[seen], return_inverse=True)

    held = is_param[read_by_task] & (reader >= 0) & (op_class[tasks.reader] != GATHER)
    kept = np.unique(read_by_task[held])
    # a parameter that anything but gathers reads lies on the chips of all its readers
    pairs = np.unique(
        np.stack([read_by_task, reader], 1)[np.isin(read_by_task, kept) & (reader >= 0)].astype(np.int64), axis=0
    )
    return ChipOps(
        tasks=tasks,
        task=np.flatnonzero(on_chip).astype(np.int32),
        edges=edges,
        tensor_op=number[tasks.tensor_task[used]],
        tensor_bytes=tasks.tensor_bytes[used],
        reader_ptr=_pointers(row, len(used)),
        reader=reader[seen].astype(np.int32),
        param_bytes=tasks.persistent_bytes[kept],
        param_ptr=_pointers(np.searchsorted(kept, pairs[:, 0]), len(kept)),
        param_reader=pairs[:, 1].astype(np.int32),
    )


def op_seconds(ops: ChipOps, package: Package) -> np.ndarray:
    """float64 [C, N]: an op's time on each chip, the longer of its arithmetic and its traffic with the chip's memory.

    The compiler of such a package orders everything beforehand, so nothing is added for a launch.
    """
    graph, root = ops.tasks.graph, ops.tasks.first_op[ops.task]
    flops = graph.flops[root].astype(np.float64)
    traffic = (graph.bytes_read[root] + graph.bytes_written[root]).astype(np.float64)
    return np.stack([np.maximum(flops / chip.flops_per_s, traffic / chip.memory_bytes_per_s) for chip in package.chips])


def _pointers(rows: np.ndarray, n: int) -> np.ndarray:
    pointers = np.zeros(n + 1, np.int32)
    np.cumsum(np.bincount(rows, minlength=n), out=pointers[1:])
    return pointers
