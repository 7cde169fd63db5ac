"""From ops to tasks: what the engine runs.

A *task* is one kernel: an op, or a fused group of ops, with the zero-cost views of its members folded in. A *tensor*
is what crosses a task's border. A view that keeps the size of what it views *is* that tensor; a smaller one (a slice,
one output of several) is a tensor of its own, in the storage of its root. So a weight and its transpose are sent once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.errors import InputError, one_line, quoted
from graphopt_gym.fields import check_numbers
from graphopt_gym.graphs.graph import SOURCE, VIEW, ComputationGraph

if TYPE_CHECKING:
    from graphopt_gym.hardware.cluster import Device
    from graphopt_gym.hardware.cost_model import CostModel
    from graphopt_gym.simulator.own_costs import OwnCosts


@dataclass(frozen=True, eq=False)
class TaskGraph:
    """Tasks, the storages and tensors they produce, and who reads them. K tasks, S storages, T tensors.

    Tasks are numbered by their lowest op, so a tie between tasks breaks by op index. Tensors are numbered by
    (task, op), so a tie between tensors breaks by producer.
    """

    graph: ComputationGraph
    task_of_op: np.ndarray  # int32 [N]
    first_op: np.ndarray  # int32 [K] lowest op of the task
    sequence: np.ndarray  # int32 [K] tasks in captured order: by lowest op, a task after those that it reads from
    is_source: np.ndarray  # bool [K] parameters and inputs: there at time 0
    persistent_bytes: np.ndarray  # int64 [K] parameters and optimiser state
    storage_ptr: np.ndarray  # int32 [K+1] storages of a task
    storage_bytes: np.ndarray  # int64 [S]
    tensor_ptr: np.ndarray  # int32 [K+1] tensors of a task
    tensor_bytes: np.ndarray  # int64 [T]
    tensor_storage: np.ndarray  # int32 [T]
    tensor_task: np.ndarray  # int32 [T] the task that produces the tensor
    tensor_op: np.ndarray  # int32 [T] the op whose output the tensor is
    reader_ptr: np.ndarray  # int32 [T+1]
    reader: np.ndarray  # int32 tasks that read each tensor, ascending, without the producer
    input_ptr: np.ndarray  # int32 [K+1]
    input_tensor: np.ndarray  # int32 tensors that each task reads, ascending
    transfer_s: np.ndarray  # float64 [T] seconds of each transfer, or -1: what the link takes
    fused: np.ndarray  # int32 [N] the fused group given for each op, or -1

    @cached_property
    def input_of_reader(self) -> np.ndarray:
        """int32, as ``reader``: which of all inputs each is, a position in ``input_tensor``."""
        position = np.empty(len(self.reader), np.int32)
        position[np.argsort(self.reader, kind="stable")] = np.arange(len(self.reader), dtype=np.int32)
        return position

    @property
    def num_tasks(self) -> int:
        return len(self.first_op)

    @property
    def num_tensors(self) -> int:
        return len(self.tensor_bytes)


def compile_tasks(graph: ComputationGraph, fusion: np.ndarray | None = None, own: OwnCosts | None = None) -> TaskGraph:
    """Fold views and fused groups into tasks.

    Args:
        graph: the computation graph, N ops.
        fusion: int [N], the fused group of each op, -1 for an op that is a kernel by itself; views follow their
            root whatever is given. Groups may use any numbers.
        own: what is stated of tensors and static memory in place of what the graph says.

    Raises:
        InputError: ``fusion`` has the wrong shape or type, puts a source into a group, or makes a cycle of groups.
    """
    n = graph.num_ops
    root = graph.view_root
    is_view = graph.op_class == VIEW
    if fusion is None:
        fused = np.full(n, -1, np.int32)
    else:
        fusion = np.asarray(fusion)
        if fusion.shape != (n,) or fusion.dtype.kind not in "iu":
            raise InputError(f"fusion must be integers [{n}], got {fusion.dtype} {fusion.shape}")
        if n and int(fusion.max()) >= 2**31:
            raise InputError(f"fusion holds {fusion.max()}; number the groups below 2**31")
        fused = np.where(is_view, fusion[root], fusion).clip(min=-1).astype(np.int32)
        bad = np.flatnonzero((fused >= 0) & (graph.op_class[root] == SOURCE) & ~is_view)
        if bad.size:
            op = int(bad[0])
            raise InputError(f"fusion puts {graph.label(op)} into group {fused[op]}; a source has no kernel")
        fused = np.where(graph.op_class[root] == SOURCE, -1, fused).astype(np.int32)

    # lowest op of each op's task
    lowest = root.astype(np.int64)
    members = np.flatnonzero(fused >= 0)
    if members.size:
        groups, inverse = np.unique(fused[members], return_inverse=True)
        first = np.full(len(groups), n, np.int64)
        np.minimum.at(first, inverse, root[members])
        lowest[members] = first[inverse]
    first_op, task_of_op = np.unique(lowest, return_inverse=True)
    task_of_op = task_of_op.astype(np.int32)
    k = len(first_op)

    out_bytes = graph.output_bytes
    alias = _aliases(graph)

    reads_alias = alias[graph.edge_src]
    src_task, dst_task = task_of_op[graph.edge_src], task_of_op[graph.edge_dst]
    crossing = src_task != dst_task
    # what is sent: an op's tensor, or of it what edges state that differ from the others
    sent_op, sent_bytes, sent_s, sent_by = _sent(reads_alias[crossing], np.flatnonzero(crossing), out_bytes, own)
    if own is not None and own.op_bytes is not None:
        out_bytes = np.where(own.op_bytes >= 0, own.op_bytes, out_bytes)
    pairs = np.unique(sent_by * k + dst_task[crossing])
    crossing_sent, crossing_reader = pairs // k, (pairs % k).astype(np.int32)

    # a storage is a root op whose output leaves its task, or that nobody reads (an output of the step)
    read_by_anyone = np.zeros(n, bool)
    not_view_edge = ~is_view[graph.edge_dst]
    read_by_anyone[root[graph.edge_src[not_view_edge]]] = True
    stored = np.zeros(n, bool)
    stored[root[sent_op]] = True
    stored |= (root == np.arange(n)) & ~read_by_anyone
    storage_op = np.flatnonzero(stored)
    storage_op = storage_op[np.argsort(task_of_op[storage_op], kind="stable")]
    storage_of_op = np.full(n, -1, np.int64)
    storage_of_op[storage_op] = np.arange(len(storage_op))
    # a parameter's memory is in persistent_bytes already
    storage_bytes = np.where(graph.param_bytes[storage_op] > 0, 0, out_bytes[storage_op])

    by_producer = np.lexsort((sent_op, task_of_op[sent_op]))  # stable: of one op, as they are
    tensor_op, tensor_bytes, transfer_s = sent_op[by_producer], sent_bytes[by_producer], sent_s[by_producer]
    tensor_of_sent = np.empty(len(tensor_op), np.int64)
    tensor_of_sent[by_producer] = np.arange(len(tensor_op))
    crossing_tensor = tensor_of_sent[crossing_sent]
    order = np.lexsort((crossing_reader, crossing_tensor))
    by_reader = np.lexsort((crossing_tensor, crossing_reader))

    static = graph.param_bytes + graph.state_bytes
    if own is not None and own.static_bytes is not None:
        static = np.where(own.static_bytes >= 0, own.static_bytes, static)
    persistent = np.bincount(task_of_op, weights=static, minlength=k)
    tasks = TaskGraph(
        graph=graph,
        task_of_op=task_of_op,
        first_op=first_op.astype(np.int32),
        sequence=np.arange(k, dtype=np.int32),  # ops are in topological order
        is_source=graph.op_class[first_op] == SOURCE,
        persistent_bytes=persistent.astype(np.int64),
        storage_ptr=_pointers(task_of_op[storage_op], k),
        storage_bytes=storage_bytes.astype(np.int64),
        tensor_ptr=_pointers(task_of_op[tensor_op], k),
        tensor_bytes=tensor_bytes.astype(np.int64),
        transfer_s=transfer_s,
        tensor_storage=storage_of_op[root[tensor_op]].astype(np.int32),
        tensor_task=task_of_op[tensor_op],
        tensor_op=tensor_op.astype(np.int32),
        reader_ptr=_pointers(crossing_tensor, len(tensor_op)),
        reader=crossing_reader[order],
        input_ptr=_pointers(crossing_reader, k),
        input_tensor=crossing_tensor[by_reader].astype(np.int32),
        fused=fused,
    )
    return replace(tasks, sequence=_sequence(tasks)) if members.size else tasks


def _aliases(graph: ComputationGraph) -> np.ndarray:
    """int64 [N]: the tensor, named by an op, that each op's readers read: a view as large as what it views is that."""
    alias = np.arange(graph.num_ops, dtype=np.int64)
    view_ops = np.flatnonzero(graph.op_class == VIEW)
    viewed = graph.pred[graph.pred_ptr[view_ops]]
    for op, read in zip(view_ops.tolist(), viewed.tolist(), strict=True):
        if graph.output_bytes[op] >= graph.output_bytes[alias[read]]:
            alias[op] = alias[read]
    return alias


def _sent(
    alias: np.ndarray, edges: np.ndarray, out_bytes: np.ndarray, own: OwnCosts | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The tensors that cross the borders of tasks: (op, bytes, seconds or -1), and the one that each edge sends.

    Tensors of one op are in the order of their bytes, then of their seconds.

    Args:
        alias: int64 [X], the op whose tensor each crossing edge reads.
        edges: int64 [X], the crossing edges.
        out_bytes: int64 [N], by the graph.
    """
    if own is None:
        op, by = np.unique(alias, return_inverse=True)
        return op, out_bytes[op], np.full(len(op), -1.0), by.astype(np.int64)

    def stated(of_edge: np.ndarray | None, of_op: np.ndarray | None, otherwise: np.ndarray) -> np.ndarray:
        values = otherwise if of_op is None else np.where(of_op[alias] >= 0, of_op[alias], otherwise)
        return values if of_edge is None else np.where(of_edge[edges] >= 0, of_edge[edges], values)

    sizes = stated(own.edge_bytes, own.op_bytes, out_bytes[alias]).astype(np.int64)
    seconds = stated(own.edge_transfer_s, own.op_transfer_s, np.full(len(alias), -1.0)) + 0.0  # -0.0 is 0.0
    order = np.lexsort((seconds, sizes, alias))
    rows = np.stack([alias[order], sizes[order]])
    new = np.ones(len(order), bool)
    new[1:] = (rows[:, 1:] != rows[:, :-1]).any(axis=0) | (seconds[order][1:] != seconds[order][:-1])
    first = order[new]
    by = np.empty(len(order), np.int64)
    by[order] = np.cumsum(new) - 1
    return alias[first], sizes[first], seconds[first], by


def task_edges(tasks: TaskGraph) -> np.ndarray:
    """int32 [E', 2]: distinct (producer task, consumer task) pairs, sorted."""
    src = np.repeat(tasks.tensor_task, np.diff(tasks.reader_ptr)).astype(np.int64)
    keys = np.unique(src * tasks.num_tasks + tasks.reader)
    return np.stack([keys // tasks.num_tasks, keys % tasks.num_tasks], axis=1).astype(np.int32)


def task_times(tasks: TaskGraph, cost_model: CostModel, device: Device) -> np.ndarray:
    """float64 [K]: seconds of each task on a device, 0 for sources.

    A task of one op takes the op's time. A fused group is one kernel: the compute times of its members, memory time
    only for the bytes that cross its border, and one launch overhead (the largest of its members').
    """
    graph = tasks.graph
    op_times = priced(cost_model, graph, device)
    times = op_times[tasks.first_op].copy()
    is_view = graph.op_class == VIEW
    size = np.bincount(tasks.task_of_op[~is_view], minlength=tasks.num_tasks)
    if (size > 1).any():
        found = _asked(cost_model, "components", graph, device)
        if not isinstance(found, tuple | list) or len(found) != 3:
            raise InputError(
                f"components of the cost model is {quoted(found, 80)}; give compute_s, bytes_per_s and launch_s"
            )
        compute_s, bytes_per_s, launch_s = (
            check_numbers("each of the components of the cost model", one, (graph.num_ops,)) for one in found
        )
        real = np.flatnonzero(~is_view)
        with np.errstate(divide="ignore", invalid="ignore"):  # by 0, which is said in the next line
            moved_s = border_bytes(tasks)[real] / bytes_per_s[real]
        check_seconds(np.stack([compute_s[real], launch_s[real], moved_s]), graph, real)
        task = tasks.task_of_op[real]
        compute = np.bincount(task, weights=compute_s[real], minlength=tasks.num_tasks)
        launch = np.zeros(tasks.num_tasks)
        np.maximum.at(launch, task, launch_s[real])
        memory = np.bincount(task, weights=moved_s, minlength=tasks.num_tasks)
        fused = size > 1
        times[fused] = (launch + np.maximum(compute, memory))[fused]
    return times


def priced(cost_model: CostModel, graph: ComputationGraph, device: Device) -> np.ndarray:
    """float64 [N]: the ``op_times`` of a cost model, perhaps a user's; its values are not checked.

    Raises:
        InputError: it raises something, or gives something else than N numbers.
    """
    found = _asked(cost_model, "op_times", graph, device)
    return check_numbers("op_times of the cost model", found, (graph.num_ops,))


def _asked(cost_model: CostModel, what: str, graph: ComputationGraph, device: Device) -> Any:
    try:
        return getattr(cost_model, what)(graph, device)
    except InputError:
        raise
    except Exception as error:  # whatever a user's code raises
        raise InputError(
            f"{what} of the cost model {type(cost_model).__name__} raised {type(error).__name__} for graph "
            f"{graph.name!r} on device {device.name!r}: {one_line(error)}; let it give an array"
        ) from error


def check_seconds(seconds: np.ndarray, graph: ComputationGraph, ops: np.ndarray) -> None:
    """Refuses times that no op takes.

    Args:
        seconds: float64 [..., K], of the ops ``ops``, int [K].

    Raises:
        InputError: the first that is no finite number of at least 0; or all together are too long to be added up.
    """
    bad = np.argwhere(~((seconds >= 0) & (seconds < np.inf)))
    if len(bad):
        at = tuple(bad[0])
        raise InputError(
            f"the time of {graph.label(ops[at[-1]])} is {seconds[at]} s; give finite seconds, at least 0, for each op"
        )
    with np.errstate(over="ignore"):
        if seconds.reshape(-1, seconds.shape[-1]).max(axis=0, initial=0.0).sum() == np.inf:
            raise InputError("the times of all ops add up to more than a float holds; give seconds")


def border_bytes(tasks: TaskGraph) -> np.ndarray:
    """float64 [N]: the bytes that each op still moves through memory within its task.

    What it reads and writes, less what stays inside: a tensor read from a member of the same group, an output that
    only members read, and what a member has read already. A tensor from outside is read once by a task, by the first
    member that does; views as large as it are that tensor, smaller ones are tensors of their own, of which no more are
    read than the storage that all of them lie in holds.
    """
    graph = tasks.graph
    n = graph.num_ops
    root, is_view = graph.view_root, graph.op_class == VIEW
    reader_is_op = ~is_view[graph.edge_dst]
    src, dst = graph.edge_src[reader_is_op], graph.edge_dst[reader_is_op]
    inside = tasks.task_of_op[src] == tasks.task_of_op[dst]
    kept = np.bincount(dst[inside], graph.output_bytes[src[inside]], n)

    src, dst = src[~inside], dst[~inside]
    whole = graph.output_bytes[root[src]]
    size = np.minimum(graph.output_bytes[src], whole)  # one that repeats what it views touches no more
    storage = root[src].astype(np.int64) * tasks.num_tasks + tasks.task_of_op[dst]
    order = np.lexsort((src, dst, storage))  # by (storage, task), then by reader
    tensor = (_aliases(graph)[src] * tasks.num_tasks + tasks.task_of_op[dst])[order]
    new = np.zeros(len(src), bool)
    new[np.unique(tensor, return_index=True)[1]] = True
    read = np.cumsum(np.where(new, size[order], 0))
    begins = np.ones(len(src), bool)
    begins[1:] = storage[order][1:] != storage[order][:-1]
    before = np.concatenate([[0], read])[:-1]
    of_storage = before[begins][np.cumsum(begins) - 1]  # what was read before the first of each
    counted = np.minimum(read - of_storage, whole[order]) - np.minimum(before - of_storage, whole[order])
    kept = kept + np.bincount(dst[order], size[order] - counted, n)
    reads = np.maximum(graph.bytes_read - kept, 0.0)

    leaves = np.zeros(n, bool)
    crossing = tasks.task_of_op[graph.edge_src] != tasks.task_of_op[graph.edge_dst]
    leaves[root[graph.edge_src[crossing]]] = True
    read_at_all = np.zeros(n, bool)
    read_at_all[root[graph.edge_src[reader_is_op]]] = True
    written = np.where(leaves | ~read_at_all, graph.bytes_written, 0.0)
    return np.where(is_view, 0.0, reads + written)


def _pointers(rows: np.ndarray, n: int) -> np.ndarray:
    pointers = np.zeros(n + 1, np.int32)
    np.cumsum(np.bincount(rows, minlength=n), out=pointers[1:])
    return pointers


def _sequence(tasks: TaskGraph) -> np.ndarray:
    """int32 [K]: the tasks in captured order, where fused groups may read what comes after their lowest op.

    Raises:
        InputError: there is none: the groups are in a cycle.
    """
    edges = task_edges(tasks)
    if (edges[:, 0] < edges[:, 1]).all():
        return np.arange(tasks.num_tasks, dtype=np.int32)
    import networkx as nx

    graph = nx.DiGraph()
    graph.add_nodes_from(range(tasks.num_tasks))
    graph.add_edges_from(edges.tolist())
    try:
        return np.fromiter(nx.lexicographical_topological_sort(graph), np.int32, tasks.num_tasks)
    except nx.NetworkXUnfeasible:
        cycle = [edge[0] for edge in nx.find_cycle(graph)]
        path = " -> ".join(tasks.graph.label(int(tasks.first_op[task])) for task in [*cycle[:5], cycle[0]])
        raise InputError(f"fusion makes a cycle of groups: {path}") from None
