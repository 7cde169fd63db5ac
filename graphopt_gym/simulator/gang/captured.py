"""Pipelines from the suite's own graphs: a captured training step in stages and micro-batches, by the cost model.

The layers of a graph (:mod:`graphopt_gym.graphs.layers`) are cut into stages, a slice of cores each; every core of a
slice holds the stage whole and takes a share of each micro-batch's examples (data-parallel), and gradients are reduced
over them. What a stage costs is what its ops cost with that share, each a kernel on the machine's core, one after the
other: forward ops, backward ops, of these apart those that only the gradients of parameters need, and updates.

**Memory** of each core. All the time: parameters, the optimiser's state and a gradient of each; of a parameter that two
stages read, a copy and a gradient on each of them, and the state on the first. From a forward to its backward: what
backward ops read, and what the stage sends on; where forward is run again (``recompute``: Chen et al., Training Deep
Nets with Sublinear Memory Cost, 2016; GPipe, NeurIPS 2019, §2.3), what was sent to it and inputs alone. While
it computes: the most that is alive besides, in captured order, over its layers; in a backward that runs forward again,
all that forward kept as well.

**Transfers** between stages are what :mod:`graphopt_gym.graphs.layers` says: once a micro-batch; what a stage does not
use it hands on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from graphopt_gym.errors import InputError
from graphopt_gym.fields import choice, flag, whole
from graphopt_gym.graphs.graph import ComputationGraph
from graphopt_gym.graphs.layers import BACKWARD, FORWARD, UPDATE, Layers, Tensors, layers_of
from graphopt_gym.graphs.microbatches import micro_batch
from graphopt_gym.graphs.zoo import load_graph
from graphopt_gym.hardware.collectives import COLLECTIVE_KINDS
from graphopt_gym.hardware.cost_model import CostModel, cost_model_of
from graphopt_gym.hardware.machine import Machine, load_machine
from graphopt_gym.simulator.gang.lowering import SliceCosts
from graphopt_gym.simulator.gang.orders import PIPELINE_ORDERS, pipeline_lists
from graphopt_gym.simulator.gang.partition import StageLoads, partition_layers
from graphopt_gym.simulator.gang.program import KEEP
from graphopt_gym.simulator.gang.programs import Pipeline, micro_batch_size, per_each, pipeline, stage_layers
from graphopt_gym.simulator.gang.slices import classify, spread
from graphopt_gym.units import format_bytes

PARTITIONS = ("dp", "even")
MOST_LAYERS = 2000  # tables of memory have so many rows and columns
FAR = 2**40  # an end of ranges beyond all layers
LAUNCH = "graph"  # a gang is one computation: its kernels are launched together


@dataclass(frozen=True, eq=False)
class LayerCosts:
    """What layers cost a core with its share of one micro-batch. L layers; cut c lies before layer c.

    Tables over ranges are of the layers ``[i, j)``, int64 [L + 1, L + 1].
    """

    forward_s: np.ndarray  # float64 [L]
    backward_s: np.ndarray  # float64 [L]: without what only the gradients of parameters need
    weight_s: np.ndarray  # float64 [L]: that
    apply_s: np.ndarray  # float64 [L]: updates, once a step
    sent_bytes: np.ndarray  # int64 [L + 1]: across each cut
    returned_bytes: np.ndarray  # int64 [L + 1]: back across each cut
    forward_temp_bytes: np.ndarray  # int64 [L]: alive in forward ops besides what is kept
    backward_temp_bytes: np.ndarray  # int64 [L]: alive in backward ops besides what was kept
    resident_bytes: np.ndarray  # over ranges
    gradient_bytes: np.ndarray  # over ranges: of the parameters that they read
    tied_bytes: np.ndarray  # over ranges: gradients that come from others that read the same parameters
    kept_bytes: np.ndarray  # over ranges: from forward to backward
    rerun_bytes: np.ndarray  # over ranges: in a backward that runs forward again


def layer_costs(
    layers: Layers, share: int, sums: bool, machine: Machine, model: CostModel, recompute: bool = False
) -> LayerCosts:
    """The costs of layers.

    Args:
        layers: of a training step.
        share: one core has so large a part of the step's batch with a micro-batch: one in ``share``.
        sums: whether gradients of micro-batches are summed up.
        machine: its core.
        model: prices ops.
        recompute: whether forward is run again in backward, which sets the memory.
    """
    graph, count = layers.graph, layers.num_layers
    part, of = micro_batch(graph, share, sums)
    seconds = model.op_times(part, machine.core)
    layer, phase, weight = layers.layer[of], part.phase, layers.is_weight[of]
    again = np.append(False, of[1:] == of[:-1])  # a gradient added to those before
    weight |= again

    def added(chosen: np.ndarray) -> np.ndarray:
        return np.bincount(layer[chosen], seconds[chosen], count)

    size = np.zeros(graph.num_ops, np.int64)
    size[of[~again]] = part.output_bytes[~again]
    several = np.array([kind == "getitem" for kind in graph.kinds])[graph.kind] & (
        layers.tensor == np.arange(graph.num_ops)
    )
    size[graph.pred[graph.pred_ptr[np.flatnonzero(several & (graph.op_class == 1))]]] = 0  # its outputs have them
    forward, kept, back = layers.forward_tensors, layers.kept_tensors, layers.gradients
    sent, returned = np.zeros(count + 1, np.int64), np.zeros(count + 1, np.int64)
    made = forward.made >= 0
    _spans(sent, forward.made[made] + 1, forward.last[made], size[forward.op[made]])
    _spans(returned, back.first + 1, back.made, size[back.op])
    rides = kept.made >= 0
    _spans(returned, kept.first[rides] + 1, kept.made[rides], size[kept.op[rides]])

    ranges = _Ranges(count)
    everything = ranges.table(_kept(forward, kept, size))
    stash = ranges.table(_received(forward, size)) if recompute else everything
    unread = np.diff(kept.reader_ptr) == 0
    alive = forward.op[made] if recompute else forward.op[made & unread]
    resident, gradients = ranges.table(_parameters(layers, True)), ranges.table(_parameters(layers, False))
    return LayerCosts(
        added(phase == FORWARD),
        added((phase == BACKWARD) & ~weight),
        added((phase == BACKWARD) & weight),
        added(phase == UPDATE),
        sent,
        returned,
        _peaks(layers, alive, size, FORWARD),
        _peaks(
            layers,
            np.flatnonzero((graph.phase == BACKWARD) & (layers.tensor == np.arange(graph.num_ops))),
            size,
            BACKWARD,
        ),
        resident,
        gradients,
        ranges.table(_tied(layers)),
        stash,
        np.maximum(everything - stash, 0) if recompute else np.zeros_like(everything),
    )


Rectangles = tuple[Any, Any, Any, Any, Any]  # [first begin, last begin], [first end, last end] of ranges, and bytes


class _Ranges:
    """Tables over ranges of layers from rectangles of ranges that each add some bytes."""

    def __init__(self, count: int) -> None:
        self.count = count

    def table(self, rectangles: Iterable[Rectangles]) -> np.ndarray:
        """int64 [L + 1, L + 1]"""
        size = self.count + 2
        steps = np.zeros((size + 1, size + 1), np.int64)
        for begin, begin_last, end, end_last, size_bytes in rectangles:
            columns = np.broadcast_arrays(
                begin, begin_last, np.asarray(end), np.minimum(end_last, self.count), size_bytes
            )
            there = (columns[0] <= columns[1]) & (columns[2] <= columns[3])
            a, b, c, d, value = (np.asarray(column)[there] for column in columns)
            np.add.at(steps, (a, c), value)
            np.subtract.at(steps, (b + 1, c), value)
            np.subtract.at(steps, (a, d + 1), value)
            np.add.at(steps, (b + 1, d + 1), value)
        return steps.cumsum(axis=0).cumsum(axis=1)[: self.count + 1, : self.count + 1]


def _spans(total: np.ndarray, begin: np.ndarray, end: np.ndarray, value: np.ndarray) -> None:
    """Adds values to all entries from ``begin`` to ``end``, both included."""
    steps = np.zeros(len(total) + 1, np.int64)
    there = begin <= end
    np.add.at(steps, begin[there], value[there])
    np.subtract.at(steps, end[there] + 1, value[there])
    total += np.cumsum(steps)[:-1]


def _hits(tensors: Tensors, size: np.ndarray, chosen: np.ndarray, above: np.ndarray) -> Rectangles:
    """Ranges with a layer that reads a tensor, of those above a layer: each by the lowest such layer in it."""
    row = np.repeat(np.arange(len(tensors.op)), np.diff(tensors.reader_ptr))
    before = np.append(-1, tensors.reader[:-1]) if len(row) else tensors.reader
    before = np.where(np.append(True, row[1:] != row[:-1])[: len(row)], -1, before)
    before = np.maximum(before, above[row])
    mine = chosen[row] & (tensors.reader > above[row])
    row, reader = row[mine], tensors.reader[mine]
    return before[mine] + 1, reader, reader + 1, FAR, size[tensors.op[row]]


def _kept(forward: Tensors, kept: Tensors, size: np.ndarray) -> list[Rectangles]:
    """What ranges of layers keep for backward: what it reads there, and what they send on."""
    made, inputs = forward.made, forward.made < 0
    own = ~inputs
    read = own & (np.diff(kept.reader_ptr) > 0)
    highest = np.maximum(kept.last, np.where(kept.first < made, made, -1))
    return [
        (0, forward.last[own], made[own] + 1, forward.last[own], size[forward.op[own]]),
        (0, highest[read], forward.last[read] + 1, FAR, size[forward.op[read]]),
        _hits(kept, size, inputs, np.full(len(made), -1)),
    ]


def _received(forward: Tensors, size: np.ndarray) -> list[Rectangles]:
    """What was sent to a range of layers, and what of the inputs it loads."""
    return [_hits(forward, size, np.ones(len(forward.op), bool), forward.made)]


def _parameters(layers: Layers, whole_: bool) -> list[Rectangles]:
    """What ranges of layers hold all the time (parameters, gradients, state), or gradients alone."""
    graph = layers.graph
    rows: list[tuple[int, int, int]] = []  # (above, layer, bytes): of ranges that hold the layer and none from above on
    for one in layers.parameters:
        size = int(graph.param_bytes[one.op])
        rows += [
            (low, high, 2 * size if whole_ else size) for low, high in zip((-1, *one.layers), one.layers, strict=False)
        ]
    if whole_:
        rows += [(-1, one.layers[0], int(graph.state_bytes[one.op])) for one in layers.parameters]
        learned = {one.op for one in layers.parameters}
        fixed = [op for op in np.flatnonzero(graph.param_bytes).tolist() if op not in learned]
        rows += [(-1, int(layers.layer[op]), int(graph.param_bytes[op])) for op in fixed]
    low, high, size_ = np.array(rows, np.int64).reshape(-1, 3).T
    return [(low + 1, high, high + 1, FAR, size_)]


def _tied(layers: Layers) -> list[Rectangles]:
    """Gradients of parameters that come to the ranges with their homes, from layers beyond."""
    rows = [
        (one.layers[0], before, after, int(layers.graph.param_bytes[one.op]))
        for one in layers.parameters
        for before, after in pairwise(one.layers)
    ]
    home, before, after, size = np.array(rows, np.int64).reshape(-1, 4).T
    return [(0, home, before + 1, after, size)]  # whatever stages the others are in: one copy at a time


def _peaks(layers: Layers, ops: np.ndarray, size: np.ndarray, phase: int) -> np.ndarray:
    """int64 [L]: the most bytes that tensors of a phase have at a time while ops of each layer run, in captured order.

    A gradient of parameters is there while it is made: then it is in the sum that stays.
    """
    graph = layers.graph
    last = np.arange(graph.num_ops)
    reads = graph.phase[graph.edge_dst] == phase
    np.maximum.at(last, layers.tensor[graph.edge_src[reads]], graph.edge_dst[reads])
    ends = np.where(layers.of_gradients[ops], ops, last[ops])
    change = np.zeros(graph.num_ops + 1, np.int64)
    np.add.at(change, ops, size[ops])
    np.subtract.at(change, ends + 1, size[ops])
    alive = np.cumsum(change)[:-1]
    found = np.zeros(layers.num_layers, np.int64)
    runs = (graph.phase == phase) & ~layers.shared
    np.maximum.at(found, layers.layer[runs], alive[runs])
    return found


# ---- a pipeline


@dataclass(frozen=True, eq=False)
class CapturedPipeline(Pipeline):
    """A pipeline of a captured step, and what its D stages are, in the order of the data."""

    layers: Layers
    cuts: tuple[int, ...]  # [D - 1]: the first layer of each stage but the first
    examples: int | None  # of a micro-batch on a core; None where the graph does not say its batch

    def __repr__(self) -> str:
        return f"CapturedPipeline({self.program.name!r}, layers={self.layers.num_layers}, cuts={list(self.cuts)})"

    @property
    def stage_layers(self) -> list[list[str]]:
        """The names of each stage's layers."""
        bounds = (0, *self.cuts, self.layers.num_layers)
        return [list(self.layers.names[a:b]) for a, b in pairwise(bounds)]


def captured_pipeline(
    graph: str | ComputationGraph,
    stages: int,
    micro_batches: int,
    machine: str | Machine = "pathways_b",
    *,
    cores: int | Sequence[int] = 1,
    batch: int | None = None,
    chunks: int = 1,
    layout: str = "loop",
    recompute: bool = False,
    split: bool = False,
    partition: str | Sequence[int] = "dp",
    cut: str = "auto",
    order: str = "1f1b",
    steps: int = 1,
    reduce: str = "step",
    arrival_s: float = 0.0,
    calls: str = "step",
    cost_model: object = None,
) -> CapturedPipeline:
    """A captured training step as a pipeline on a machine; see the module's text.

    Args:
        graph: a name of the zoo, a file, or a graph; a training step.
        stages: S, one slice each.
        micro_batches: M.
        machine: its core sets the times; its links, with slices one after the other, what a stage sends in how long.
        cores: of each slice; they divide the examples of a micro-batch.
        batch: examples of a step; the graph's own where left out. A core's share of a micro-batch is no larger than
            the graph's batch.
        chunks, layout, steps, reduce, arrival_s, calls: as of :func:`pipeline`.
        recompute: whether forward runs again in backward.
        split: whether the gradient of the weights is a gang apart from that of the inputs.
        partition: ``dp``, the stages whose slowest is fastest, of those that fit in memory with ``order`` (dynamic
            programming; with few micro-batches, where filling and draining count, others can be faster); ``even``, as
            many layers each, the larger ones first; or the first layer of each stage but the first.
        cut: what a layer is, as of :func:`~graphopt_gym.graphs.layers.layers_of`.
        order: one of :data:`PIPELINE_ORDERS`, which says how many micro-batches ``dp`` has to find memory for.
        cost_model: prices ops, as of :func:`~graphopt_gym.hardware.cost_model.cost_model_of`; by default kernels are
            launched together (``graph``).

    Raises:
        InputError: one line naming the field, the value and the fix: more stages than layers, micro-batches that do not
            divide the batch, no partition that fits.
    """
    graph, machine, model = load_graph(graph), load_machine(machine), cost_model_of(cost_model, LAUNCH)
    depth = whole("stages", stages, 1) * whole("chunks", chunks, 1)
    whole("micro_batches", micro_batches, 1)
    choice("order", order, PIPELINE_ORDERS)
    if flag("recompute", recompute) and flag("split", split):
        raise InputError(
            "recompute and split are both True; what runs again would have to be kept, so give one of them"
        )
    layers = layers_of(graph, cut)
    if depth > layers.num_layers:
        raise InputError(
            f"stages x chunks is {depth}, more than the {layers.num_layers} layers of {graph.name!r}; give at most "
            f"{layers.num_layers}" + (", or cut='calls'" if cut != "calls" else "")
        )
    if layers.num_layers > MOST_LAYERS:
        raise InputError(
            f"graph {graph.name!r} has {layers.num_layers} layers by cut={cut!r}; the most is {MOST_LAYERS}"
        )
    sizes = [whole("cores", size, 1) for size in per_each("cores", cores, stages)]
    shares, examples = zip(*(_share(graph, micro_batches, size, batch) for size in sizes), strict=True)
    costs = {
        share: layer_costs(layers, share, micro_batches > 1, machine, model, recompute)
        for share in dict.fromkeys(shares)
    }
    setting = _Setting(
        layers, machine, micro_batches, sizes, [costs[share] for share in shares], chunks, layout, recompute
    )
    cuts = _cuts(setting, partition, order)
    columns = setting.stages(cuts)
    backward = np.array(columns["backward_s"]) + recompute * np.array(columns["forward_s"])
    if not split:
        backward += np.array(columns["weight_s"])
    made = pipeline(
        stages, micro_batches, columns["forward_s"], backward.tolist(),
        weight_s=columns["weight_s"] if split else None, apply_s=setting.apply_s(cuts), cores=sizes, chunks=chunks,
        layout=layout, steps=steps, stash_bytes=columns["kept_bytes"], boundary_bytes=columns["sent_bytes"][1:],
        returned_bytes=columns["returned_bytes"][1:], forward_temp_bytes=columns["forward_temp_bytes"],
        backward_temp_bytes=columns["backward_temp_bytes"], reduce=reduce, arrival_s=arrival_s, calls=calls,
        **setting.parameters(cuts), name=f"{graph.name} S={stages} M={micro_batches}",
    )  # fmt: skip
    return CapturedPipeline(**vars(made), layers=layers, cuts=cuts, examples=examples[0])


def _share(graph: ComputationGraph, micro_batches: int, cores: int, batch: int | None) -> tuple[int, int | None]:
    """(one in how many of the graph's batch a core has in a micro-batch, examples that this is)."""
    configuration = graph.metadata.get("configuration")
    own = configuration.get("batch") if isinstance(configuration, dict) else None
    if batch is not None:
        whole("batch", batch, 1)
        own = own if isinstance(own, int) else batch
    elif not isinstance(own, int):
        return micro_batches * cores, None
    each = micro_batch_size(own if batch is None else batch, micro_batches)
    if each % cores:
        raise InputError(
            f"cores is {cores}, which does not divide the {each} examples of a micro-batch; give a divisor"
        )
    examples = each // cores
    if own % examples:
        raise InputError(
            f"a core has {examples} examples of a micro-batch, which do not divide the {own} that {graph.name!r} was "
            f"captured with; give another batch, more micro_batches or cores"
        )
    return own // examples, examples


class _Setting:
    """Layers, their costs on each slice, and the machine. S slices, D = S * chunks stages."""

    def __init__(
        self,
        layers: Layers,
        machine: Machine,
        micro_batches: int,
        sizes: list[int],
        costs: list[LayerCosts],
        chunks: int,
        layout: str,
        recompute: bool,
    ) -> None:
        self.layers, self.machine, self.micro_batches, self.sizes = layers, machine, micro_batches, sizes
        self.costs, self.chunks, self.layout, self.recompute = costs, chunks, layout, recompute
        dummy = pipeline(len(sizes), 1, 1.0, 1.0, cores=sizes, chunks=chunks, layout=layout)
        self.slice_of = dummy.slice_of.tolist()
        classes = classify(dummy.program, machine, spread(dummy.program, machine))
        self.links = SliceCosts(machine, dummy.program, classes)
        self.offsets = dict.fromkeys(("ici out", "ici in", "pcie up", "pcie down", "dcn out", "dcn in"), 0)

    @property
    def depth(self) -> int:
        return len(self.slice_of)

    # -- what the program is made of

    def stages(self, cuts: tuple[int, ...]) -> dict[str, list[Any]]:
        """[D] each: what :func:`pipeline` takes of a stage; of what is sent, before each stage."""
        bounds = (0, *cuts, self.layers.num_layers)
        columns: dict[str, list[Any]] = {}
        for stage, (a, b) in enumerate(pairwise(bounds)):
            cost, before = self.costs[self.slice_of[stage]], self.slice_of[max(stage - 1, 0)]
            for name in ("forward_s", "backward_s", "weight_s"):
                columns.setdefault(name, []).append(float(getattr(cost, name)[a:b].sum()))
            columns.setdefault("kept_bytes", []).append(int(cost.kept_bytes[a, b]))
            columns.setdefault("forward_temp_bytes", []).append(int(cost.forward_temp_bytes[a:b].max()))
            columns.setdefault("backward_temp_bytes", []).append(
                int(_backward_temp(cost)[a:b].max() + cost.rerun_bytes[a, b])
            )
            columns.setdefault("sent_bytes", []).append(int(self.costs[before].sent_bytes[a]) * self.sizes[before])
            columns.setdefault("returned_bytes", []).append(
                int(cost.returned_bytes[a]) * self.sizes[self.slice_of[stage]]
            )
        return columns

    def _slice_of_layer(self, cuts: tuple[int, ...]) -> np.ndarray:
        stage = np.searchsorted(np.array(cuts, np.int64), np.arange(self.layers.num_layers), "right")
        return np.array(self.slice_of)[stage]

    def apply_s(self, cuts: tuple[int, ...]) -> list[float]:
        """[S]: of the parameters whose first slice it is."""
        home = self._slice_of_layer(cuts)
        return [float(cost.apply_s[home == number].sum()) for number, cost in enumerate(self.costs)]

    def parameters(self, cuts: tuple[int, ...]) -> dict[str, Any]:
        """``resident_bytes`` and ``gradient_bytes`` [S], and ``tied``."""
        graph, slice_of = self.layers.graph, self._slice_of_layer(cuts)
        resident, gradients = np.zeros(len(self.sizes), np.int64), np.zeros(len(self.sizes), np.int64)
        tied: dict[tuple[int, int], int] = {}
        for one in self.layers.parameters:
            size, holders = int(graph.param_bytes[one.op]), np.unique(slice_of[list(one.layers)]).tolist()
            resident[holders] += 2 * size
            gradients[holders] += size
            resident[holders[0]] += int(graph.state_bytes[one.op])
            for other in holders[1:]:
                tied[holders[0], other] = tied.get((holders[0], other), 0) + size
        learned = [one.op for one in self.layers.parameters]
        fixed = graph.param_bytes.copy()
        fixed[learned] = 0
        np.add.at(resident, slice_of[self.layers.layer], fixed)
        rows = [(low, high, size) for (low, high), size in sorted(tied.items())]
        return {"resident_bytes": resident, "gradient_bytes": gradients, "tied": rows}

    # -- what the partition looks at

    def loads(self, stage: int, flying: Sequence[int]) -> tuple[StageLoads, np.ndarray]:
        """Of one stage; and the bytes of a core that it needs, int64 [L + 1, L + 1]. See :func:`in_flight`."""
        in_flight, waiting = flying[stage], max(flying[stage - 1] - flying[stage], 0) + 1
        cost, here = self.costs[self.slice_of[stage]], self.slice_of[stage]
        count = self.layers.num_layers
        each = (
            cost.forward_s * (1 + self.recompute) + cost.backward_s + cost.weight_s + cost.apply_s / self.micro_batches
        )
        total = np.concatenate([[0.0], np.cumsum(each)])
        compute = total[None, :] - total[:, None]
        fixed_s, per_byte = self._reduce(here)
        compute = (
            compute
            + np.where(cost.gradient_bytes > 0, fixed_s + per_byte * cost.gradient_bytes, 0.0) / self.micro_batches
        )
        sends = np.zeros((2, count + 1))  # across the cut behind the stage: on, and back
        gets = np.zeros((2, count + 1))
        if stage < self.depth - 1:
            after = self.slice_of[stage + 1]
            sends[0] = self._transfer(here, after, cost.sent_bytes)
            sends[1] = self._transfer(after, here, self.costs[after].returned_bytes)
        if stage:
            before = self.slice_of[stage - 1]
            gets[0] = self._transfer(before, here, self.costs[before].sent_bytes)
            gets[1] = self._transfer(here, before, cost.returned_bytes)
        links = np.maximum(sends[0][None, :] + gets[1][:, None], gets[0][:, None] + sends[1][None, :])
        # copies that wait for their turn: of what comes, as far as the stage before is ahead, and one on its way; of
        # gradients, of all micro-batches that are in flight
        came = cost.sent_bytes[:, None] * (stage > 0)
        needs = cost.resident_bytes + cost.tied_bytes + in_flight * np.maximum(cost.kept_bytes, came) + waiting * came
        needs = needs + np.maximum(_most(cost.forward_temp_bytes), _most(_backward_temp(cost)) + cost.rerun_bytes)
        if stage:
            needs = needs + cost.returned_bytes[:, None]
        if stage < self.depth - 1:
            needs = needs + in_flight * cost.returned_bytes[None, :]
        return StageLoads(np.maximum(compute, links), compute + (sends[0] + sends[1])[None, :]), needs

    def _transfer(self, source: int, target: int, size: np.ndarray) -> np.ndarray:
        """Seconds of so many bytes of a core from one slice to another."""
        if source == target:
            return np.zeros(len(size))
        cores = self.sizes[source]
        fixed, more = (self.links.transfer(source, target, KEEP, cores * one, self.offsets)[0] for one in (0, 2**30))
        return np.where(size > 0, fixed + size * ((more - fixed) / 2**30), 0.0)

    def _reduce(self, number: int) -> tuple[float, float]:
        """(seconds, seconds a byte) of a slice's all-reduce."""
        kind = COLLECTIVE_KINDS.index("all_reduce")
        if self.sizes[number] == 1:
            return 0.0, 0.0
        fixed, more = (self.links.collective(kind, number, size) for size in (0, 2**30))
        return fixed, (more - fixed) / 2**30


def _backward_temp(cost: LayerCosts) -> np.ndarray:
    """int64 [L]: a backward that runs forward again has the larger of both."""
    return np.maximum(cost.backward_temp_bytes, cost.forward_temp_bytes * (cost.rerun_bytes.any()))


def _most(values: np.ndarray) -> np.ndarray:
    """int64 [L + 1, L + 1]: the largest of each range; 0 of an empty one."""
    count = len(values)
    found = np.zeros((count + 1, count + 1), np.int64)
    for begin in range(count):
        found[begin, begin + 1 :] = np.maximum.accumulate(values[begin:])
    return found


def in_flight(order: str, stages: int, micro_batches: int, chunks: int = 1, layout: str = "loop") -> list[int]:
    """The most micro-batches that each of the S * chunks stages keeps something of at a time, in an order.

    Raises:
        InputError: as :func:`pipeline_lists`.
    """
    made = pipeline(stages, micro_batches, 1.0, 1.0, weight_s=1.0, chunks=chunks, layout=layout)
    stage_of = np.full(made.program.num_gangs, -1, np.int64)
    change = np.zeros(made.program.num_gangs, np.int64)
    for stage in range(stages * chunks):
        for gangs, step in ((made.forward, 1), (made.backward, 0), (made.weight, -1)):
            stage_of[gangs[0, stage]], change[gangs[0, stage]] = stage, step
    held, most = [0] * (stages * chunks), [0] * (stages * chunks)
    for row in pipeline_lists(made, order):
        for gang in row:
            stage = int(stage_of[gang])
            held[stage] += int(change[gang])
            most[stage] = max(most[stage], held[stage])
    return most


def _cuts(setting: _Setting, partition: str | Sequence[int], order: str) -> tuple[int, ...]:
    count, depth = setting.layers.num_layers, setting.depth
    if not isinstance(partition, str):
        given = tuple(whole(f"partition[{number}]", one, 1, count - 1) for number, one in enumerate(partition))
        if len(given) != depth - 1 or any(a >= b for a, b in pairwise(given)):
            raise InputError(f"partition is {list(given)}; give the first layers of {depth - 1} stages, ascending")
        return given
    choice("partition", partition, PARTITIONS)
    if partition == "even":
        return tuple(np.cumsum(stage_layers(count, depth))[:-1].tolist())
    flying = in_flight(order, len(setting.sizes), setting.micro_batches, setting.chunks, setting.layout)
    room = setting.machine.hbm_bytes // setting.chunks  # each stage of a slice may take an equal part of it

    def fitting(stage: int) -> StageLoads:
        found, needs = setting.loads(stage, flying)
        return StageLoads(np.where(needs <= room, found.load_s, np.inf), found.through_s)

    def of_memory(stage: int) -> StageLoads:
        needs = setting.loads(stage, flying)[1].astype(np.float64)
        return StageLoads(needs, needs)

    cuts = partition_layers(count, depth, fitting)
    if cuts is None:
        least = partition_layers(count, depth, of_memory)
        assert least is not None
        bounds = (0, *least, count)
        need = max(of_memory(stage).load_s[a, b] for stage, (a, b) in enumerate(pairwise(bounds)))
        raise InputError(
            f"no partition of {setting.layers.graph.name!r} into {depth} stages fits: the largest needs "
            f"{format_bytes(int(need))} of the {format_bytes(room)} on a core at least, with order {order!r}; give "
            "more stages or micro_batches" + ("" if setting.recompute else ", or recompute=True")
        )
    return cuts
