"""Running a captured graph op by op on real tensors, to check it against eager torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from graphopt_gym.errors import InputError
from graphopt_gym.graphs.aten import METADATA_ONLY
from graphopt_gym.graphs.capture import BuiltGraph, Ref, Trace, flat

if TYPE_CHECKING:
    import torch


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
