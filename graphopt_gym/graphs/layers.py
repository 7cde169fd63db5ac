"""The layers of a training step in the order of the data, and what has to go from stage to stage where it is cut.

A *layer* is what a pipeline's stages are made of: consecutive layers are a stage. Layers are the blocks that the graph
names (its ``stages``, see :mod:`graphopt_gym.graphs.stages`) or, where it names none, calls of modules in captured
order. No forward op is in a lower layer than one that it reads, and no backward op in a higher layer than a backward op
that it reads; so the stages of a cut run one after the other, forward and then back.

**What is where.** A forward op is in the layer of its module; where several layers call one module (a dropout of the
whole model), those of its calls that the edges say so are with what they read, or with what reads them. A backward op
is in the layer of the forward ops of its colocation group, a sum of gradients where the last of them is made, and a
view with what it views. Parameters, and what is computed from none of the batch, are
in every layer that reads them; the first of these is their *home*, and has the update. Inputs of the step are loaded
where they are read.

**Tensors.** A tensor that a later layer reads, forward or backward, is *sent* across every cut between: stages hand on
what they do not use. What backward ops read of a higher layer is sent back across every cut between. Gradients of
parameters are not sent with micro-batches: each layer that reads a parameter sums up its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from graphopt_gym.errors import InputError
from graphopt_gym.fields import choice
from graphopt_gym.graphs.graph import PHASES, SOURCE, VIEW, ComputationGraph
from graphopt_gym.graphs.microbatches import of_parameters, shared_ops
from graphopt_gym.graphs.stages import named_stages, stage_of_module

FORWARD, BACKWARD, UPDATE = range(len(PHASES))
CUTS = ("auto", "blocks", "calls")


class Tensors(NamedTuple):
    """What ops of a step hand over to each other. R tensors, made by an op each; Q pairs of a tensor and a layer."""

    op: np.ndarray  # int64 [R]: an op, or one output of an op with several; its views are the same tensor
    made: np.ndarray  # int64 [R]: the layer that makes it; -1: an input of the step
    first: np.ndarray  # int64 [R]: the lowest layer that reads it; its own where none does
    last: np.ndarray  # int64 [R]: the highest layer that reads it; its own where none does
    reader_ptr: np.ndarray  # int64 [R + 1]
    reader: np.ndarray  # int64 [Q]: the layers that read it, ascending


class Parameter(NamedTuple):
    """A parameter that is learned."""

    op: int  # its source
    layers: tuple[int, ...]  # the layers that read it, ascending; the first is its home
    update: int  # the op of its update


@dataclass(frozen=True, eq=False)
class Layers:
    """L layers of a training step of N ops."""

    graph: ComputationGraph
    names: tuple[str, ...]  # [L]
    layer: np.ndarray  # int64 [N]: of sources, and of what no batch is in, the first layer that reads them

    @property
    def num_layers(self) -> int:
        return len(self.names)

    @cached_property
    def shared(self) -> np.ndarray:
        """bool [N]: what no batch is in, see :func:`~graphopt_gym.graphs.microbatches.shared_ops`."""
        return shared_ops(self.graph)

    @cached_property
    def tensor(self) -> np.ndarray:
        """int64 [N]: the op that holds each op's tensor: itself, or what it is a view of."""
        return _tensor_of(self.graph)

    @cached_property
    def of_gradients(self) -> np.ndarray:
        """bool [N]: backward ops whose tensor is a gradient of parameters, whole or in part."""
        graph = self.graph
        whole = (of_parameters(graph) >= graph.output_bytes) & (graph.output_bytes > 0)
        return whole & (graph.phase == BACKWARD)

    @cached_property
    def forward_tensors(self) -> Tensors:
        """What forward ops make and inputs are, with all its readers, forward and backward."""
        return self._tensors(FORWARD, (FORWARD, BACKWARD))

    @cached_property
    def kept_tensors(self) -> Tensors:
        """The same with its backward readers alone: what has to be kept for these."""
        return self._tensors(FORWARD, (BACKWARD,))

    @cached_property
    def gradients(self) -> Tensors:
        """What backward ops make, without gradients of parameters, with its backward readers."""
        return self._tensors(BACKWARD, (BACKWARD,))

    def _tensors(self, phase: int, readers: tuple[int, ...]) -> Tensors:
        graph, tensor = self.graph, self.tensor
        made_here = (graph.phase == phase) & (tensor == np.arange(graph.num_ops)) & ~self.shared
        if phase == BACKWARD:
            made_here &= ~self.of_gradients & (graph.op_class != SOURCE)
        ops = np.flatnonzero(made_here)
        number = np.full(graph.num_ops, -1, np.int64)
        number[ops] = np.arange(len(ops))
        # a view is no reader: its own readers are
        reads = np.isin(graph.phase[graph.edge_dst], readers) & (tensor[graph.edge_dst] == graph.edge_dst)
        source = number[tensor[graph.edge_src[reads]]]
        pairs = np.stack([source, self.layer[graph.edge_dst[reads]]], axis=1)[source >= 0]
        pairs = np.unique(pairs, axis=0)
        made = np.where(graph.op_class[ops] == SOURCE, -1, self.layer[ops])
        own = np.maximum(made, 0)
        first, last = np.full(len(ops), self.num_layers, np.int64), np.full(len(ops), -1, np.int64)
        np.minimum.at(first, pairs[:, 0], pairs[:, 1])
        np.maximum.at(last, pairs[:, 0], pairs[:, 1])
        unread = last < 0
        first[unread], last[unread] = own[unread], own[unread]
        ptr = np.concatenate([[0], np.cumsum(np.bincount(pairs[:, 0], minlength=len(ops)))])
        return Tensors(ops, made, first, last, ptr, pairs[:, 1])

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """Those that an update changes, in the order of their sources."""
        graph = self.graph
        source_of = np.where(self.shared, graph.view_root, -1)
        computes = ((graph.phase == FORWARD) | (graph.phase == BACKWARD)) & ~self.shared
        reads = computes[graph.edge_dst] & (source_of[graph.edge_src] >= 0)
        pairs = np.unique(
            np.stack([source_of[graph.edge_src[reads]], self.layer[graph.edge_dst[reads]]], axis=1), axis=0
        )
        layers: dict[int, list[int]] = {}
        for source, layer in pairs.tolist():
            layers.setdefault(source, []).append(layer)
        found = []
        for update in np.flatnonzero(graph.phase == UPDATE).tolist():
            for source in sorted({int(source_of[op]) for op in graph.predecessors(update)} - {-1}):
                found.append(Parameter(source, tuple(layers.get(source, [int(self.layer[source])])), update))
        return tuple(sorted(found))

    @cached_property
    def is_weight(self) -> np.ndarray:
        """bool [N]: backward ops that the gradients of parameters need and those of inputs do not.

        What only updates read, or such ops of the same colocation group. An op that makes both at once (a backward
        convolution, normalisation or attention kernel) is none.
        """
        graph, found = self.graph, np.zeros(self.graph.num_ops, bool)
        backward, gradient = (graph.phase == BACKWARD).tolist(), self.of_gradients.tolist()
        update, group = (graph.phase == UPDATE).tolist(), graph.colocation.tolist()
        for op in range(graph.num_ops - 1, -1, -1):
            if backward[op]:
                found[op] = all(
                    update[reader] or (found[reader] and (group[reader] == group[op] or gradient[reader]))
                    for reader in graph.successors(op).tolist()
                )
        return found


def layers_of(graph: ComputationGraph, cut: str = "auto") -> Layers:
    """The layers of a training step.

    Args:
        graph: forward, backward and updates.
        cut: what a layer is. ``blocks``: a block that the graph names. ``calls``: a call of a module, in captured
            order. ``auto``: blocks where the graph names two or more, else calls.

    Raises:
        InputError: the graph is no training step; it names no blocks.
    """
    choice("cut", cut, CUTS)
    if not (graph.phase == UPDATE).any() or not (graph.phase == BACKWARD).any():
        raise InputError(f"graph {graph.name!r} is no training step; layers need a backward pass and updates")
    stages = named_stages(graph)
    if cut == "blocks" and len(stages) < 2:
        raise InputError(f"graph {graph.name!r} names {len(stages)} blocks; give cut='calls'")
    shared = shared_ops(graph)
    forward = np.flatnonzero((graph.phase == FORWARD) & ~shared & (graph.op_class != SOURCE))
    real = forward[graph.op_class[forward] != VIEW]
    if cut == "blocks" or (cut == "auto" and len(stages) > 1):
        hint = np.full(graph.num_ops, -1, np.int64)
        hint[real] = stage_of_module(graph)[graph.module[real]]
        _drop_conflicts(graph, forward, hint)
        labels = [str(stage["name"]) for stage in stages]
    else:
        groups, at = np.unique(graph.colocation[real], return_index=True)
        rank = np.empty(len(groups), np.int64)
        rank[np.argsort(at, kind="stable")] = np.arange(len(groups))
        hint = np.full(graph.num_ops, -1, np.int64)
        hint[real] = rank[np.searchsorted(groups, graph.colocation[real])]
        labels = [graph.modules[graph.module[real[one]]] or "(root)" for one in np.sort(at).tolist()]
    layer = _forward_layers(graph, forward, hint)
    used = np.unique(layer[forward])
    layer[forward] = np.searchsorted(used, layer[forward])
    _backward_layers(graph, real, shared, layer)
    _source_layers(graph, shared, layer)
    return Layers(graph, tuple(labels[number] for number in used.tolist()), layer)


def _tensor_of(graph: ComputationGraph) -> np.ndarray:
    """int64 [N]: the op that holds each op's tensor; an output of an op with several is one by itself."""
    item = np.array([kind == "getitem" for kind in graph.kinds])[graph.kind] & (graph.op_class == VIEW)
    found = np.arange(graph.num_ops)
    views = np.flatnonzero((graph.op_class == VIEW) & ~item)
    found[views] = graph.pred[graph.pred_ptr[views]]
    while not np.array_equal(further := found[found], found):
        found = further
    return found


def _drop_conflicts(graph: ComputationGraph, forward: np.ndarray, hint: np.ndarray) -> None:
    """Takes the hint from groups of ops whose module is called in several layers, until edges go to no lower one.

    The group that most conflicts are of goes first; of equal ones the one that moves the fewest bytes.
    """
    group, ops = graph.colocation.tolist(), forward.tolist()
    counts = np.zeros(graph.num_ops, bool)
    counts[forward] = True
    before = [[source for source in graph.predecessors(op).tolist() if counts[source]] for op in ops]
    moved = np.bincount(graph.colocation[forward] + 1, (graph.bytes_read + graph.bytes_written)[forward])
    while True:
        own = hint.tolist()
        reach: dict[int, tuple[int, int]] = {}  # the highest hint so far, and the group that it is of
        blame: dict[int, int] = {}
        for op, sources in zip(ops, before, strict=True):
            highest = max((reach[source] for source in sources), default=(-1, -1))
            if 0 <= own[op] < highest[0]:
                for one in (highest[1], group[op]):
                    blame[one] = blame.get(one, 0) + 1
            reach[op] = max(highest, (own[op], group[op]))
        if not blame:
            return
        worst = max(blame, key=lambda one: (blame[one], -moved[one + 1], -one))
        hint[forward[graph.colocation[forward] == worst]] = -1


def _forward_layers(graph: ComputationGraph, forward: np.ndarray, hint: np.ndarray) -> np.ndarray:
    """int64 [N]: the layer of each forward op: its hint, or else that of what it reads, or else of what reads it."""
    layer = np.full(graph.num_ops, -1, np.int64)
    ops = forward.tolist()
    counts = np.zeros(graph.num_ops, bool)
    counts[forward] = True
    for op in ops:
        sources = [int(layer[source]) for source in graph.predecessors(op).tolist() if counts[source]]
        layer[op] = max([int(hint[op]), *sources])
    for op in reversed(ops):
        if layer[op] < 0:
            readers = [int(layer[reader]) for reader in graph.successors(op).tolist() if counts[reader]]
            layer[op] = min((one for one in readers if one >= 0), default=0)
    return layer


def _backward_layers(graph: ComputationGraph, forward: np.ndarray, shared: np.ndarray, layer: np.ndarray) -> None:
    """Sets the layers of backward ops: those of their groups, as far as what they read allows."""
    highest = np.full(int(graph.colocation.max()) + 2, -1, np.int64)
    np.maximum.at(highest, graph.colocation[forward] + 1, layer[forward])
    highest[0] = -1  # of no group
    top = int(layer[forward].max())
    backward = (graph.phase == BACKWARD) & ~shared & (graph.op_class != SOURCE)
    made_here = backward & (graph.phase[_tensor_of(graph)] == BACKWARD)  # not a view of what forward made
    for op in np.flatnonzero(backward).tolist():
        limits = [int(layer[source]) for source in graph.predecessors(op).tolist() if made_here[source]]
        own = int(highest[graph.colocation[op] + 1])
        adds_up = len(limits) > 1 and graph.kinds[graph.kind[op]].startswith("add")
        if graph.op_class[op] == VIEW:
            own = int(layer[graph.predecessors(op)[0]])
        elif adds_up or own < 0:  # one sum is sent back, and not what it is of
            own = top
        layer[op] = min([own, *limits])


def _source_layers(graph: ComputationGraph, shared: np.ndarray, layer: np.ndarray) -> None:
    """Sets the layers of sources, of views of what is shared, and of updates: the first that reads them."""
    open_ = shared | (graph.op_class == SOURCE)
    far = int(layer.max()) + 1
    first = np.full(graph.num_ops, far, np.int64)
    reads = open_[graph.edge_src] & ~open_[graph.edge_dst] & (graph.phase[graph.edge_dst] != UPDATE)
    np.minimum.at(first, graph.view_root[graph.edge_src[reads]], layer[graph.edge_dst[reads]])
    by_root = first[graph.view_root]
    layer[open_] = np.where(by_root[open_] < far, by_root[open_], 0)
    for update in np.flatnonzero(graph.phase == UPDATE).tolist():
        sources = graph.predecessors(update)
        known = sources[shared[sources]]
        layer[update] = int(layer[known].min()) if len(known) else int(layer[sources].min(initial=0))
