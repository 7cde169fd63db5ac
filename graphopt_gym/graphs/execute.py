"""Running a captured graph op by op on real tensors, to check it against eager torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from graphopt_gym.errors import InputError
from graphopt_gym.graphs.aten import METADATA_ONLY
from graphopt_gym.graphs.capture import BuiltGraph, Ref, Trace, flat
from graphopt_gym.graphs.graph import PHASES, SOURCE, VIEW

if TYPE_CHECKING:
    import torch

    from graphopt_gym.graphs.layers import Layers, Tensors


class StepResult(NamedTuple):
    """What a step computes."""

    outputs: list[torch.Tensor]  # the loss (training) or the module's output tensors (inference)
    grads: dict[str, torch.Tensor]  # parameter name -> gradient


def execute(
    trace: Trace,
    built: BuiltGraph,
    module: torch.nn.Module,
    inputs: Sequence[torch.Tensor],
    *,
    order: Sequence[int] | None = None,
) -> StepResult:
    """Run every op of the graph once, feeding each one only what its predecessors in the graph produced.

    Args:
        trace, built: from :func:`~graphopt_gym.graphs.capture.trace_step` and ``build_graph``, of a step traced with
            ``target="cpu"``; one of a GPU's runs where a CPU has all its kernels.
        module: gives the values of parameters and buffers; left unchanged.
        inputs: the example inputs' tensors, flattened, with values.
        order: a topological order of the ops; the graph's own by default. An order that the edges allow and the
            computation does not would give wrong results or a missing operand: so random orders test the edges.

    Raises:
        InputError: an op needs a tensor that none of its predecessors produced, or ``order`` is not topological.
    """
    import torch

    graph = built.graph
    values: dict[Ref, Any] = {}
    for number, tensor in zip(trace.inputs, inputs, strict=True):
        values[Ref(number, 0)] = tensor
    state = dict(module.named_parameters()) | dict(module.named_buffers(remove_duplicate=False))
    for name, number in (*trace.params.items(), *trace.buffers.items()):
        values[Ref(number, 0)] = state[name].detach().clone()
    done = [False] * graph.num_ops
    in_place = any(call.uses != call.reads and call.kind not in METADATA_ONLY for call in trace.calls)

    def operand(op: int, value: Any) -> Any:
        if isinstance(value, Ref):
            call = trace.calls[value.call]
            if trace.calls[built.origin[op].call].kind in METADATA_ONLY:
                out = call.outputs[value.output]
                assert out is not None
                return torch.empty(out.shape, dtype=getattr(torch, out.dtype))
            if value.call not in producers and not in_place:
                raise InputError(f"execute: {graph.label(op)} reads {call.kind}, which is no predecessor of it")
            if value not in values:
                raise InputError(f"execute: {graph.label(op)} runs before {call.kind}, which it reads")
            return values[value]
        if isinstance(value, list | tuple):
            return type(value)(operand(op, item) for item in value)
        return torch.device("cpu") if isinstance(value, torch.device) else value

    with torch.no_grad():
        for op in range(graph.num_ops) if order is None else order:
            if not all(done[p] for p in graph.predecessors(op)):
                raise InputError(f"execute: order is not topological at {graph.label(op)}")
            done[op] = True
            ref = built.origin[op]
            if ref.call < 0:
                continue  # an update: in place, nothing reads it
            call = trace.calls[ref.call]
            if ref.output >= 0 or call.func is None:
                if call.constant is not None:
                    values[Ref(ref.call, 0)] = call.constant
                continue
            producers = {built.origin[p].call for p in graph.predecessors(op).tolist()}
            try:
                out = call.func(*operand(op, call.args), **{key: operand(op, v) for key, v in call.kwargs.items()})
            except NotImplementedError as error:
                raise InputError(
                    f"execute: {graph.label(op)} has no kernel for the CPU; trace the step with target='cpu'"
                ) from error
            for index, value in enumerate(flat(out)):
                values[Ref(ref.call, index)] = value
                recorded = call.outputs[index]
                if recorded is not None and isinstance(value, torch.Tensor):
                    shape, dtype = tuple(value.shape), str(value.dtype).removeprefix("torch.")
                    if (shape, dtype) != (recorded.shape, recorded.dtype):
                        raise InputError(
                            f"execute: {graph.label(op)} gives {dtype} {shape}, recorded as {recorded.dtype} "
                            f"{recorded.shape}"
                        )
    return StepResult([values[ref] for ref in trace.outputs], {name: values[ref] for name, ref in trace.grads.items()})


def execute_stages(
    trace: Trace,
    built: BuiltGraph,
    module: torch.nn.Module,
    micro_batches: Sequence[Sequence[torch.Tensor]],
    layers: Layers,
    cuts: Sequence[int],
    *,
    recompute: bool = False,
) -> StepResult:
    """Run a training step as a pipeline of stages, each of which has only what it keeps, or what is sent to it.

    A stage runs its forward ops on parameters, inputs and what the stages before sent; it keeps what its backward ops
    read, and sends on what later stages read. With ``recompute`` it keeps what was sent to it and inputs alone, and
    runs its forward ops again before its backward ones. Then stages run their backward ops from the last to the first.

    Args:
        trace, built: of the step of one micro-batch, traced with ``target="cpu"``.
        module: gives the values of parameters and buffers; left unchanged.
        micro_batches: the example inputs' tensors of each, flattened, with values.
        layers: of ``built.graph``.
        cuts: the first layer of each stage but the first, ascending.
        recompute: whether forward ops run again.

    Returns:
        The loss and the gradients, each the mean of those of the micro-batches.

    Raises:
        InputError: a stage needs a tensor that it neither keeps nor was sent; the step writes in place.
    """
    import torch

    graph = built.graph
    if any(call.uses != call.reads and call.kind not in METADATA_ONLY for call in trace.calls):
        raise InputError(f"execute: {graph.name} writes in place, which stages cannot run again; leave such ops out")
    losses: list[list[Any]] = []
    totals: dict[str, list[Any]] = {name: [] for name in trace.grads}
    state = dict(module.named_parameters()) | dict(module.named_buffers(remove_duplicate=False))
    with torch.no_grad():
        for inputs in micro_batches:
            sources = {Ref(number, 0): tensor for number, tensor in zip(trace.inputs, inputs, strict=True)}
            for name, number in (*trace.params.items(), *trace.buffers.items()):
                sources[Ref(number, 0)] = state[name].detach()
            found = _Stages(trace, built, layers, cuts, sources).step(recompute)
            losses.append([found[ref] for ref in trace.outputs])
            for name, ref in trace.grads.items():
                totals[name].append(found[ref])
    count = len(micro_batches)
    return StepResult(
        [sum(values) / count for values in zip(*losses, strict=True)],
        {name: sum(values) / count for name, values in totals.items()},
    )


class _Stages:
    """One micro-batch through the stages. What a stage has is held by op: the tensors that ops produce."""

    def __init__(
        self, trace: Trace, built: BuiltGraph, layers: Layers, cuts: Sequence[int], sources: dict[Ref, Any]
    ) -> None:
        self.trace, self.built, self.layers, self.sources = trace, built, layers, sources
        self.graph = built.graph
        self.stage = np.searchsorted(np.asarray(cuts, np.int64), layers.layer, "right")
        self.count = len(cuts) + 1
        self.op_of = {ref: op for op, ref in enumerate(built.origin) if ref.call >= 0}
        self.gradients: dict[int, Any] = {}  # of parameters: summed up over stages once a step

    def step(self, recompute: bool) -> dict[Ref, Any]:
        graph, layers = self.graph, self.layers
        runs = (graph.op_class != SOURCE) & ~layers.shared & (graph.phase <= PHASES.index("backward"))
        backward = graph.phase == PHASES.index("backward")
        forward_ops, backward_ops = np.flatnonzero(runs & ~backward), np.flatnonzero(runs & backward)
        kept: list[dict[int, Any]] = []
        sent: dict[int, Any] = {}
        results: dict[Ref, Any] = {}
        for stage in range(self.count):
            arrived = {op: sent[op] for op in self._crossing(layers.forward_tensors, stage)}
            has = dict(arrived)
            self._run(forward_ops[self.stage[forward_ops] == stage], has)
            self._take(results, has)
            sent = {op: has[op] for op in self._crossing(layers.forward_tensors, stage + 1)}
            reads = self._readers(layers.kept_tensors, stage)
            kept.append(arrived if recompute else {op: has[op] for op in reads if op in has})
        sent = {}
        for stage in reversed(range(self.count)):
            has = dict(kept[stage])
            if recompute:
                self._run(forward_ops[self.stage[forward_ops] == stage], has)
            has.update(sent)
            self._run(backward_ops[self.stage[backward_ops] == stage], has)
            self._take(results, has)
            back = [*self._returning(layers.gradients, stage), *self._returning(layers.kept_tensors, stage)]
            sent = {op: has[op] for op in back}
        return results

    def _crossing(self, tensors: Tensors, stage: int) -> list[int]:
        """The tensors that are sent to a stage from the one before."""
        made, last = self._stages(tensors.made), self._stages(tensors.last)
        return tensors.op[(tensors.made >= 0) & (made < stage) & (last >= stage)].tolist()

    def _returning(self, tensors: Tensors, stage: int) -> list[int]:
        """The tensors that a stage sends back to the one before."""
        made, first = self._stages(tensors.made), self._stages(tensors.first)
        return tensors.op[(tensors.made >= 0) & (made >= stage) & (first < stage)].tolist()

    def _readers(self, tensors: Tensors, stage: int) -> list[int]:
        """The tensors that a stage reads, and what it made for lower ones to read."""
        row = np.repeat(np.arange(len(tensors.op)), np.diff(tensors.reader_ptr))
        at = self._of_layer[tensors.reader]
        back = (tensors.made >= 0) & (self._stages(tensors.made) >= stage) & (self._stages(tensors.first) < stage)
        return tensors.op[np.union1d(row[at == stage], np.flatnonzero(back))].tolist()

    @cached_property
    def _of_layer(self) -> np.ndarray:
        found = np.zeros(self.layers.num_layers, np.int64)
        found[self.layers.layer] = self.stage
        return found

    def _stages(self, layer: np.ndarray) -> np.ndarray:
        return self._of_layer[np.maximum(layer, 0)]

    def _take(self, results: dict[Ref, Any], has: dict[int, Any]) -> None:
        for ref in (*self.trace.outputs, *self.trace.grads.values()):
            op = self.op_of[ref if ref in self.op_of else Ref(ref.call, -1)]
            if self.layers.tensor[op] in has:
                results[ref] = self._value(op, op, has)

    def _run(self, ops: np.ndarray, has: dict[int, Any]) -> None:
        """Computes what a stage has not; views are made where they are read."""
        for op in ops[self.layers.tensor[ops] == ops].tolist():
            if op not in has:
                self._compute(op, has)

    def _compute(self, op: int, has: dict[int, Any]) -> None:
        """Sets what an op produces, and what its call produces besides."""
        call, ref = self.trace.calls[self.built.origin[op].call], self.built.origin[op]
        if call.func is None:
            has[op] = call.constant if call.constant is not None else self.sources[Ref(ref.call, 0)]
            return
        if ref.output >= 0:  # an output of an op with several
            has[op] = flat(self._value(self.op_of[Ref(ref.call, -1)], op, has))[ref.output]
            return
        only_metadata = call.kind in METADATA_ONLY
        args = self._operand(call.args, op, has, only_metadata)
        kwargs = {key: self._operand(value, op, has, only_metadata) for key, value in call.kwargs.items()}
        has[op] = call.func(*args, **kwargs)
        if self.layers.of_gradients[op]:
            self.gradients[op] = has[op]

    def _operand(self, value: Any, op: int, has: dict[int, Any], only_metadata: bool) -> Any:
        import torch

        if isinstance(value, Ref):
            if only_metadata:
                out = self.trace.calls[value.call].outputs[value.output]
                assert out is not None
                return torch.empty(out.shape, dtype=getattr(torch, out.dtype))
            item = self.op_of.get(value)
            return self._value(self.op_of[Ref(value.call, -1)] if item is None else item, op, has)
        if isinstance(value, list | tuple):
            return type(value)(self._operand(item, op, has, only_metadata) for item in value)
        return torch.device("cpu") if isinstance(value, torch.device) else value

    def _value(self, wanted: int, reader: int, has: dict[int, Any]) -> Any:
        """What an op produced, if a stage has it, can view it, or may load it."""
        graph = self.graph
        if wanted not in has:
            view = graph.op_class[wanted] == VIEW and self.layers.tensor[wanted] != wanted
            if wanted in self.gradients:
                return self.gradients[wanted]
            if not (view or graph.op_class[wanted] == SOURCE or self.layers.shared[wanted]):
                raise InputError(
                    f"execute: {graph.label(reader)} of stage {self.stage[reader]} reads {graph.label(wanted)} of "
                    f"stage {self.stage[wanted]}, which it neither keeps nor was sent"
                )
            self._compute(wanted, has)
        return has[wanted]
