"""A captured step that can be run: its calls with their arguments, the values it starts from, what aliases what.

A graph says which op reads which; to run it on several devices one must also know which tensors lie in one storage and
which calls write into it. That is found by running the recorded calls once more on fake tensors, which have strides and
storages and no memory.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from graphopt_gym.errors import InputError, one_line
from graphopt_gym.graphs.capture import Ref, refs_in
from graphopt_gym.graphs.graph import SOURCE, VIEW, ComputationGraph

if TYPE_CHECKING:
    import torch

# Kernels that write running statistics although their schemas do not say so: which arguments. (aten, native_functions)
UNDECLARED_WRITES = {"native_batch_norm": (3, 4), "cudnn_batch_norm": (3, 4), "miopen_batch_norm": (3, 4)}
SEED = 0  # of the values of a model that is built here


class Layout(NamedTuple):
    """Where a tensor lies: elements of ``storage`` from ``offset`` on, by ``stride``."""

    storage: int
    dtype: str
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


@dataclass(frozen=True, slots=True)
class Step:
    """One call of the step, of an op of the graph."""

    op: int  # of the graph
    func: Any  # the operator; None for a source that has a value
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    several: bool
    view: bool
    reads: tuple[Ref, ...]  # tensors that it needs the data of (a view: what it is a view of)
    writes: tuple[Ref, ...]  # those of them that it writes in place
    ghost: bool = False  # it needs only the shapes of its arguments
    random: int = -1  # which of the random calls it is


@dataclass(frozen=True, slots=True)
class Update:
    """The optimiser's step of one parameter."""

    op: int
    param: Ref
    grad: Ref


@dataclass(frozen=True, eq=False)
class Program:
    """A step that can be run.

    Attributes:
        graph: what the step was captured as, N ops.
        steps: calls by number, in the order in which the model makes them; those alone that are ops of the graph.
        updates: of the optimiser, in the graph's order.
        layouts: of every tensor.
        root: the tensor that first lay in each storage.
        storage_bytes: of each storage.
        writers: of each storage that is written in place: the positions of its writers, ascending. A call's position
            is its number; results are read at ``end``; the update number k is at ``end + 1 + k``.
        sources: values by call: parameters, buffers, inputs, constants.
        kept: calls whose values the next step finds as this one leaves them: parameters and buffers.
        results: what a step computes, by name: ``output 0``, …, and ``gradient of NAME``.
        names: calls of parameters and buffers by name.
    """

    graph: ComputationGraph
    steps: Mapping[int, Step]
    updates: tuple[Update, ...]
    layouts: Mapping[Ref, Layout]
    root: Mapping[int, Ref]
    storage_bytes: Mapping[int, int]
    writers: Mapping[int, tuple[int, ...]]
    end: int
    sources: Mapping[int, torch.Tensor]
    kept: frozenset[int]
    results: Mapping[str, Ref]
    names: Mapping[str, int]
    optimizer: str | None
    op_of_call: Mapping[int, int]
    module: str = ""  # the Python module that defines the model, where workers need it for operators of its own
    notes: tuple[str, ...] = field(default=())


def zoo_arguments(graph: ComputationGraph, name: str) -> dict[str, Any] | None:
    """Arguments of ``capture`` that build a zoo's graph anew with values on the CPU; None where no family of the zoo
    makes it.

    A graph is known by its name, or by the family and configuration that captures of the zoo keep in its metadata.
    """
    from graphopt_gym.graphs.zoo.registry import ENTRIES

    if name in ENTRIES:
        return ENTRIES[name].arguments(device="cpu")
    family, config = graph.metadata.get("family"), graph.metadata.get("configuration")
    if family not in {one.family for one in ENTRIES.values()} or not isinstance(config, Mapping):
        return None
    build = importlib.import_module(f"graphopt_gym.graphs.zoo.{family}").build
    try:
        return dict(build(**{**config, "device": "cpu"}))
    except TypeError as error:
        raise InputError(
            f"execute: family {family!r} of the zoo does not take the graph's configuration: {error}"
        ) from None


def build_program(arguments: Mapping[str, Any], name: str, module: str = "") -> Program:
    """Capture a step and keep what it takes to run it.

    Args:
        arguments: those of :func:`graphopt_gym.graphs.capture.capture`, as a function for ``graphopt capture``
            returns them.
        name: of the graph.
        module: the Python module that defines the model.

    Raises:
        InputError: it cannot be captured.
    """
    import torch
    from torch.utils import _pytree as pytree

    from graphopt_gym.graphs.capture import _arguments, build_graph, trace_step

    notes = []
    given = {key: arguments[key] for key in ("loss", "optimizer", "train", "target") if key in arguments}
    net, example = arguments["module"], arguments["example_inputs"]
    trace = trace_step(net, example, **given)
    built = build_graph(trace, name)

    sources: dict[int, torch.Tensor] = {}
    state = dict(net.named_parameters()) | dict(net.named_buffers(remove_duplicate=False))
    names = {**trace.params, **trace.buffers}
    for label, number in names.items():
        sources[number] = state[label].detach()
    leaves = pytree.tree_leaves(_arguments(example))
    distinct = list({id(leaf): leaf for leaf in leaves if isinstance(leaf, torch.Tensor)}.values())
    for number, tensor in zip(trace.inputs, distinct, strict=True):
        sources[number] = tensor.detach()
    for number, call in enumerate(trace.calls):
        if call.constant is not None:
            sources[number] = call.constant
    if any(tensor.is_meta for tensor in sources.values()):
        notes.append("the model has no values (it is on the meta device): they are drawn at random")
        generator = torch.Generator().manual_seed(SEED)
        sources = {
            number: _drawn(tensor, generator) if tensor.is_meta else tensor for number, tensor in sources.items()
        }

    op_of_call = {ref.call: op for op, ref in enumerate(built.origin) if ref.call >= 0 and ref.output < 0}
    layouts, storage_bytes, root = _layouts(trace, op_of_call, sources)
    steps: dict[int, Step] = {}
    writers: dict[int, list[int]] = {}
    random = 0
    for number in sorted(op_of_call):
        step = _step(trace.calls[number], op_of_call[number], random)
        random += step.random >= 0
        steps[number] = step
        for ref in step.writes:
            at = writers.setdefault(layouts[ref].storage, [])
            if not at or at[-1] != number:
                at.append(number)
    end = len(trace.calls)
    labels = [(op, ref) for op, ref in enumerate(built.origin) if ref.call < 0]
    updates = []
    for k, ((op, _), (label, grad)) in enumerate(zip(labels, trace.grads.items() if labels else (), strict=True)):
        param = Ref(trace.params[label], 0)
        updates.append(Update(op, param, grad))
        writers.setdefault(layouts[param].storage, []).append(end + 1 + k)
    results = {f"output {index}": ref for index, ref in enumerate(trace.outputs)}
    results |= {f"gradient of {label}": ref for label, ref in trace.grads.items()}
    return Program(
        built.graph,
        steps,
        tuple(updates),
        layouts,
        root,
        storage_bytes,
        {storage: tuple(at) for storage, at in writers.items()},
        end,
        {number: tensor for number, tensor in sources.items() if number in op_of_call},
        frozenset(number for number in names.values() if number in op_of_call),
        results,
        names,
        trace.optimizer,
        op_of_call,
        module,
        tuple(notes),
    )


def _drawn(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Values for a tensor without: small normal ones, and zeros where they may be indices."""
    import torch

    values = torch.zeros(tensor.shape, dtype=tensor.dtype)
    return values.normal_(0.0, 0.02, generator=generator) if values.is_floating_point() else values


def _step(call: Any, op: int, random: int) -> Step:
    import torch

    from graphopt_gym.graphs.aten import METADATA_ONLY, describe

    if call.func is None:
        return Step(op, None, (), {}, False, False, (), ())
    used = tuple(dict.fromkeys(refs_in((call.args, call.kwargs))))
    ghost = call.kind in METADATA_ONLY
    mutated = [
        call.args[position] if position < len(call.args) else call.kwargs.get(name)
        for position, name in describe(call.func).mutates
    ]
    mutated += [call.args[position] for position in UNDECLARED_WRITES.get(call.kind, ()) if position < len(call.args)]
    return Step(
        op,
        call.func,
        call.args,
        call.kwargs,
        call.several,
        call.op_class == VIEW,
        () if ghost else used,
        tuple(dict.fromkeys(refs_in(mutated))),
        ghost,
        random if torch.Tag.nondeterministic_seeded in call.func.tags else -1,
    )


def _layouts(
    trace: Any, op_of_call: Mapping[int, int], sources: Mapping[int, torch.Tensor]
) -> tuple[dict[Ref, Layout], dict[int, int], dict[int, Ref]]:
    """Layouts of all tensors, bytes and first tensor of all storages: from the recorded calls, on fake tensors."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from graphopt_gym.graphs.aten import describe
    from graphopt_gym.graphs.capture import flat

    values: dict[Ref, torch.Tensor] = {}
    storages: dict[int, tuple[int, Any]] = {}  # by identity: number, and the storage itself, so that it stays its own
    layouts: dict[Ref, Layout] = {}
    sizes: dict[int, int] = {}
    root: dict[int, Ref] = {}

    def note(ref: Ref, tensor: torch.Tensor) -> None:
        values[ref] = tensor
        storage = tensor.untyped_storage()
        if storage._cdata not in storages:
            number = len(storages)
            storages[storage._cdata] = number, storage
            root[number], sizes[number] = ref, storage.nbytes()
        number = storages[storage._cdata][0]
        dtype = str(tensor.dtype).removeprefix("torch.")
        layouts[ref] = Layout(number, dtype, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))

    def here(value: Any) -> Any:
        """An argument, on the CPU: where fake tensors lie makes no difference to their layouts."""
        if isinstance(value, Ref):
            return values[value]
        if isinstance(value, list | tuple):
            return type(value)(here(item) for item in value)
        return torch.device("cpu") if isinstance(value, torch.device) else value

    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        for number, call in enumerate(trace.calls):
            # what is dead may still be a tensor whose shape alone is asked for
            if not all(ref in values for ref in refs_in((call.args, call.kwargs))):
                continue
            if call.func is None:
                tensor = sources[number]
                note(Ref(number, 0), torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype))
                continue
            try:
                out = call.func(*here(call.args), **{key: here(value) for key, value in call.kwargs.items()})
            except Exception as error:
                if trace.target == "cpu" or call.op_class == VIEW or describe(call.func).mutates:
                    raise InputError(f"execute: {call.kind} cannot be run by itself: {one_line(error)}") from error
                # a kernel of GPUs alone: its results are new tensors, as they were recorded
                out = [one and torch.empty(one.shape, dtype=getattr(torch, one.dtype)) for one in call.outputs]
            for index, tensor in enumerate(flat(out)):
                if isinstance(tensor, torch.Tensor):
                    note(Ref(number, index), tensor)
    return layouts, sizes, root


def check_placement(placement: Any, graph: ComputationGraph, devices: int) -> np.ndarray:
    """int32 [N]: the device of each op, views with their roots.

    Raises:
        InputError: another shape, or a device that is not there.
    """
    from graphopt_gym.fields import check_integers

    given = check_integers(placement, (graph.num_ops,), devices, "device", "placement")
    return given[graph.view_root]


def is_source(graph: ComputationGraph, op: int) -> bool:
    return bool(graph.op_class[op] == SOURCE)
