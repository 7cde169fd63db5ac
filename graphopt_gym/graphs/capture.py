"""Capture of a training step (forward, backward, optimiser) or of inference from a torch module.

The step runs once under ``FakeTensorMode``: every tensor has its true shape and no memory, so a model of any size
is captured on a laptop. Fake tensors lie on the target device, which need not be there
(:mod:`graphopt_gym.graphs.dispatch`). A dispatch mode on top of it writes down each aten operator that reaches the
backend, with its arguments, in order; autograd itself runs above, so backward operators are recorded like forward ones.
Three facts are noted at each call:

- the stack of module calls (forward hooks), which gives the module path and the colocation group;
- the autograd sequence number, by which a backward operator is led back to the forward operator it derives from
  (the mapping that ``torch.fx.traceback`` and AOTAutograd use, read from the autograd node that is running);
- FLOPs and bytes from tensor metadata (:mod:`graphopt_gym.graphs.aten`).

Time and memory are linear in the number of operators. torch is imported when a function here is called.
"""

from __future__ import annotations

import inspect
import math
import os
import sys
import sysconfig
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from types import CodeType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from graphopt_gym.errors import InputError, unknown_name
from graphopt_gym.extras import import_named
from graphopt_gym.graphs import dispatch
from graphopt_gym.graphs.aten import FLOPS_PER_ELEMENT as FLOPS_PER_ELEMENT
from graphopt_gym.graphs.aten import METADATA_ONLY, NO_KERNEL, Operator, cost, describe, tensors_in
from graphopt_gym.graphs.dispatch import DEVICE, TARGETS
from graphopt_gym.graphs.graph import COLUMNS, DTYPES, MAX_RANK, OP_CLASSES, SOURCE, VIEW, ComputationGraph
from graphopt_gym.graphs.stages import default_stages
from graphopt_gym.graphs.values import NeedsValues, Values

if TYPE_CHECKING:
    import torch

FORWARD, BACKWARD, OPTIMIZER = range(3)
LOSS_MODULE = "loss"  # the module path of what the loss function computes outside the module


class OptimizerRule(NamedTuple):
    """What the update of one parameter costs, in multiples of the parameter's size."""

    state: int  # optimiser state kept
    reads: int  # tensors of the parameter's size read: parameter, gradient, state
    writes: int  # written: parameter, state
    flops: int  # per element


# Adam (Kingma and Ba 2015, algorithm 1): two moments (3 + 4 operations), square root and epsilon (3), update (3).
OPTIMIZERS = {
    "adam": OptimizerRule(state=2, reads=4, writes=3, flops=13),
    "momentum": OptimizerRule(state=1, reads=3, writes=2, flops=4),
    "sgd": OptimizerRule(state=0, reads=2, writes=1, flops=2),
}


# Types that graphs do not have, and the one that stands for each: as wide, and as fast on tensor cores.
NEAREST_DTYPE = {
    "uint64": "int64",
    "uint32": "int32",
    "uint16": "int16",
    "float8_e4m3fn": "int8",
    "float8_e4m3fnuz": "int8",
    "float8_e5m2": "int8",
    "float8_e5m2fnuz": "int8",
    "float8_e8m0fnu": "int8",
    "float4_e2m1fn_x2": "int8",
}


class Ref(NamedTuple):
    """Stands for a tensor in recorded arguments: output ``output`` of call ``call``."""

    call: int
    output: int


@dataclass(slots=True)
class Output:
    """Metadata of one tensor that a call returned."""

    shape: tuple[int, ...]
    dtype: str
    bytes: int


@dataclass(slots=True)
class Call:
    """One recorded operator call, or (``func`` None) a source: parameter, buffer, input or constant."""

    kind: str
    op_class: int
    phase: int
    func: Any = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    uses: tuple[int, ...] = ()  # calls whose results the arguments are
    reads: tuple[int, ...] = ()  # calls it depends on; differs from `uses` only after writes in place
    outputs: tuple[Output | None, ...] = ()
    several: bool = False  # the operator returns a list or tuple
    module: str = ""
    group: Any = None  # key of the colocation group; None where only the neighbours can tell
    derived_from: int = -1  # the forward call that a backward call is the derivative of
    accumulates: bool = False  # a sum of gradients that arrive from several places
    flops: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    output_bytes: int = 0
    name: str = ""  # of a source
    constant: Any = None  # the value of a constant source
    unmodelled: str = ""  # the operator's name where its FLOPs are not known
    recomputed: bool = False  # of a module that is run again in the backward pass


@dataclass(slots=True)
class Trace:
    """A recorded step: calls in order, and which tensors are its results."""

    calls: list[Call]
    params: dict[str, int]  # parameter name -> its source
    inputs: list[int]  # flattened example inputs that are tensors -> their sources
    buffers: dict[str, int]
    outputs: list[Ref]  # tensors of the module's output (inference) or the loss (training)
    grads: dict[str, Ref]  # parameter name -> its gradient; parameters that get none are missing
    results: list[int]  # calls that must live: those of outputs and gradients, after writes in place
    optimizer: str | None
    owner: dict[str, str]  # parameter or buffer name -> path of the module that holds it
    target: str = "cpu"
    without_gradient: list[str] = field(default_factory=list)  # trainable parameters that the loss does not reach
    autocast_off: bool = False  # an autocast("cuda") was off that torch turns off without CUDA


class _Recorder:
    """The calls recorded so far, and where in the module tree the step is."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.phase = FORWARD
        self.stack: list[tuple[str, int]] = []  # (module path, call number), innermost last
        self.children: list[int] = [0]  # child calls seen so far, for each entry of the stack and the outside
        self.module_calls = 0
        self.by_sequence: dict[int, int] = {}  # autograd sequence number -> forward call
        self.operators: dict[Any, Operator] = {}
        self.constants: dict[int, Ref] = {}  # real tensors from outside, by identity
        self.written: dict[int, tuple[Any, int]] = {}  # storage -> (storage, the call that last wrote it in place)
        self.failed_in = ""  # the innermost module that an exception has left, and nothing has run since
        self.numbers: dict[str, list[int]] = {}  # module path -> numbers of its calls in the forward pass

    # -- where we are -------------------------------------------------------------------------------------------

    def enter(self, path: str) -> None:
        self.failed_in = ""
        numbers = self.numbers.setdefault(path, [])
        if self.phase == FORWARD or not numbers:
            self.module_calls += 1
            number = self.module_calls
            numbers.append(number)
        else:  # recomputation: with the forward call, of several with the last one that was not recomputed yet
            number = numbers.pop() if len(numbers) > 1 else numbers[0]
        self.stack.append((path, number))
        self.children.append(0)

    def leave(self) -> None:
        path, _ = self.stack.pop()
        if sys.exc_info()[1] is not None and not self.failed_in:
            self.failed_in = path
        self.children.pop()
        self.children[-1] += 1

    def _place(self) -> tuple[str, Any]:
        """Module path and group key here: a call of a module, and the run between two calls of its children."""
        if not self.stack:
            return LOSS_MODULE, (0, 0)
        path, number = self.stack[-1]
        return path, (number, self.children[-1])

    # -- sources ------------------------------------------------------------------------------------------------

    def add_source(self, tensor: torch.Tensor, kind: str, name: str) -> int:
        number = len(self.calls)
        output = _output(tensor)
        self.calls.append(Call(kind, SOURCE, self.phase, outputs=(output,), output_bytes=output.bytes, name=name))
        tensor._graphopt_ref = Ref(number, 0)  # type: ignore[attr-defined]
        return number

    def ref(self, tensor: torch.Tensor) -> Ref:
        ref = self.constants.get(id(tensor))
        if ref is None:
            ref = getattr(tensor, "_graphopt_ref", None)
        if ref is None:  # a real tensor from outside
            number = len(self.calls)
            output = _output(tensor)
            self.calls.append(
                Call("constant", SOURCE, self.phase, outputs=(output,), output_bytes=output.bytes, constant=tensor)
            )
            ref = self.constants[id(tensor)] = Ref(number, 0)  # the call keeps the tensor, so its id stays its own
        return ref

    def origin(self, tensor: torch.Tensor) -> int:
        """The call on which a reader of ``tensor`` depends: its producer, or a later write in place."""
        call = self.ref(tensor).call
        if self.written:
            entry = self.written.get(tensor.untyped_storage()._cdata)
            if entry is not None and entry[1] > call:
                return entry[1]
        return call

    # -- calls --------------------------------------------------------------------------------------------------

    def add(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> list[torch.Tensor]:
        """Records a call; the tensors that it writes in place."""
        import torch

        operator = self.operators.get(func)
        if operator is None:
            operator = self.operators[func] = describe(func)
        given = [t for value in (*args, *kwargs.values()) for t in tensors_in(value)]
        written_in_place = [
            t
            for position, name in operator.mutates
            for t in tensors_in(args[position] if position < len(args) else kwargs.get(name))
        ]
        read = [] if operator.kind in METADATA_ONLY else list({id(t): t for t in given}.values())
        uses = tuple(dict.fromkeys(self.ref(t).call for t in given))
        reads = tuple(dict.fromkeys(self.origin(t) for t in read))
        self.failed_in = ""
        returned = flat(out)
        produced = [t for t in returned if isinstance(t, torch.Tensor)]
        number = len(self.calls)

        path, group = self._place()
        derived_from, accumulates = -1, False
        sequence = torch.autograd._get_sequence_nr() - 1
        if self.phase == FORWARD or self.stack:
            self.by_sequence.setdefault(sequence, number)
        if (
            self.phase == BACKWARD and not self.stack
        ):  # a module on the stack in backward is recomputation: it knows where it is
            node = torch._C._current_autograd_node()
            derived_from = -1 if node is None else self.by_sequence.get(node._sequence_nr(), -1)
            forward = self.calls[derived_from] if derived_from >= 0 else None
            path, group = (forward.module, forward.group) if forward is not None else ("", None)
            accumulates = (
                operator.kind == "add"
                and len(reads) == 2
                and all(self.calls[r].phase == BACKWARD for r in reads)
                and given[0].shape == given[1].shape
            )

        op_class = operator.op_class
        if operator.kind in NO_KERNEL or (not reads and all(t.numel() <= 1 for t in produced)):
            op_class, reads = SOURCE, ()
        call = Call(
            operator.kind,
            op_class,
            self.phase,
            func,
            replaced(args, torch.Tensor, self.ref),
            {key: replaced(value, torch.Tensor, self.ref) for key, value in kwargs.items()},
            uses,
            reads,
            tuple(_output(t) if isinstance(t, torch.Tensor) else None for t in returned),
            isinstance(out, list | tuple),
            path,
            group,
            derived_from,
            accumulates,
            unmodelled=operator.unmodelled,
            recomputed=self.phase == BACKWARD and bool(self.stack) and op_class not in (SOURCE, VIEW),
        )
        if op_class not in (SOURCE, VIEW):
            call.flops, call.bytes_read, call.bytes_written = cost(operator, args, kwargs, out, read, written_in_place)
        if not call.several and call.outputs[0] is not None:
            call.output_bytes = call.outputs[0].bytes
        self.calls.append(call)

        for index, tensor in enumerate(returned):
            if isinstance(tensor, torch.Tensor):
                tensor._graphopt_ref = Ref(number, index)  # type: ignore[attr-defined]
        for tensor in written_in_place:
            storage = tensor.untyped_storage()
            self.written[storage._cdata] = (storage, number)
            if (
                not call.several and call.outputs and call.outputs[0] is not None
            ):  # later readers take the whole tensor that lies there
                call.output_bytes = max(call.output_bytes, storage.nbytes())
        return written_in_place


def flat(out: Any) -> list[Any]:
    """What an operator returns as a flat list: an item may be a list of tensors itself."""
    if isinstance(out, list | tuple):
        return [item for part in out for item in (part if isinstance(part, list | tuple) else (part,))]
    return [out]


def _output(tensor: torch.Tensor) -> Output:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Output(tuple(tensor.shape), dtype, tensor.numel() * tensor.itemsize)


def replaced(value: Any, kind: type, by: Callable[[Any], Any]) -> Any:
    """Arguments of an operator with ``by(one)`` in place of each that is of a kind: a tensor, or a :class:`Ref`."""
    if isinstance(value, kind):
        return by(value)
    if isinstance(value, list | tuple):
        return type(value)(replaced(item, kind, by) for item in value)
    return value


# What torch's words mean here.
_HINTS = {
    "Cannot access accelerator": "; gradients of torch.func need target='cpu' where torch was built without CUDA",
    "shape_env must not be None": "; nested tensors have no fixed shape: pad them",
}
VALUES_LIMIT_BYTES = 2 * 2**30  # parameters and inputs of a module whose step is run with values where it must be


def trace_step(
    module: torch.nn.Module,
    example_inputs: Any,
    *,
    loss: Callable[[Any], Any] | None = None,
    optimizer: str | None = "adam",
    train: bool = True,
    target: str = "gpu",
) -> Trace:
    """Run one step of ``module`` on fake tensors and record it. Arguments as in :func:`capture`."""
    import torch

    if not isinstance(module, torch.nn.Module):
        raise InputError(f"capture: module is a {type(module).__name__}; give a torch.nn.Module")
    if optimizer is not None and optimizer not in OPTIMIZERS:
        raise unknown_name("optimizer", optimizer, OPTIMIZERS, "(or None)")
    if loss is not None and not callable(loss):
        raise InputError(f"capture: loss is a {type(loss).__name__}; give a function of the module's output")
    if target not in TARGETS:
        raise unknown_name("target", target, TARGETS)
    module = unwrapped(module)
    for path, child in module.named_modules():
        if isinstance(child, torch.jit.ScriptModule):
            what = f"module {path!r}" if path else "module"
            raise InputError(f"capture: {what} is a ScriptModule; give the Python module that it was made from")
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if torch.nn.parameter.is_lazy(tensor):
            raise InputError(f"capture: {name} has no shape yet (a lazy module); call the module once before")
    if target == "gpu":
        dispatch.ensure_device_guard()
    run = partial(_trace, module, example_inputs, loss=loss, optimizer=optimizer, train=train, target=target)
    try:
        with torch.inference_mode(False):
            return run(everything=False)
    except NeedsValues as error:
        args, kwargs = _arguments(example_inputs)
        given = [t for value in (*args, *kwargs.values()) for t in tensors_in(value)]
        held = [*module.parameters(), *module.buffers(), *given]
        without = any(t.device.type == "meta" for t in held)
        size = sum(t.numel() * t.itemsize for t in held)
        first = error
    if not without and size <= VALUES_LIMIT_BYTES:
        try:
            with torch.inference_mode(False):
                return run(everything=True)
        except NeedsValues as error:
            first = error
        reason = "which cannot be computed here"
    elif without:
        reason = "which are not known of tensors on meta: give a module and example inputs with values"
    else:
        reason = (
            f"which would take running the step ({size / 2**30:.1f} GiB of parameters and inputs, of at most "
            f"{VALUES_LIMIT_BYTES / 2**30:.0f}): give a smaller model of that structure"
        )
    raise InputError(
        f"capture: {first.where} uses {first.func}, whose result depends on tensor values, {reason}; or use masks or a "
        "fixed capacity there"
    )


def unwrapped(module: torch.nn.Module) -> torch.nn.Module:
    """The module within ``torch.compile``'s, DataParallel's and DistributedDataParallel's wrappers."""
    import torch

    while True:
        if isinstance(module, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), torch.nn.Module):
            module = inner
        else:
            return module


def _trace(
    module: torch.nn.Module,
    example_inputs: Any,
    *,
    loss: Callable[[Any], Any] | None,
    optimizer: str | None,
    train: bool,
    target: str,
    everything: bool,
) -> Trace:
    """One run of the step. ``everything``: with the values of all tensors of the forward pass."""
    import torch
    from torch._ops import HigherOrderOperator
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
        FakeTensor,
        FakeTensorMode,
        UnsupportedOperatorException,
    )
    from torch.nn.utils.stateless import _reparametrize_module
    from torch.utils import _pytree as pytree
    from torch.utils._python_dispatch import TorchDispatchMode

    recorder, values = _Recorder(), Values(everything)
    gpu = target == "gpu"
    unseen = gpu and not torch.cuda.is_available()  # the engine of autograd would look for what is not there
    device = torch.device(DEVICE[target], 0) if gpu else torch.device("cpu")
    to_copy, device_of = torch.ops.aten._to_copy.default, torch.ops.prim.device.default
    lifted: dict[int, torch.Tensor] = {}  # real tensors from outside, by identity, and what stands for them
    kept: list[torch.Tensor] = []
    fake = FakeTensorMode(allow_non_fake_inputs=True, allow_fallback_kernels=not gpu)

    def on_device(value: Any) -> Any:
        """An argument of an operator as it is on a GPU where everything lies on the GPU."""
        if isinstance(value, FakeTensor):
            return value
        if isinstance(value, torch.Tensor):
            if id(value) not in lifted:
                made, ref = like(value), getattr(value, "_graphopt_ref", None)
                if ref is None:
                    ref = Ref(recorder.add_source(made, "constant", ""), 0)
                    recorder.calls[ref.call].constant = value
                made._graphopt_ref = ref  # type: ignore[attr-defined]
                values.give(made, value)
                lifted[id(value)] = made
                kept.append(value)  # so that its id stays its own
            return lifted[id(value)]
        if isinstance(value, list | tuple):
            return type(value)(on_device(item) for item in value)
        return device if isinstance(value, torch.device) else value

    def like(tensor: torch.Tensor) -> torch.Tensor:
        with fake:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)

    def faked(func: Any, real: Any) -> Any:
        """A real result as fake tensors, with its values where they are right."""

        def imitated(value: Any) -> Any:
            if isinstance(value, list | tuple):
                return type(value)(imitated(item) for item in value)
            if not isinstance(value, torch.Tensor):
                return value
            made = like(value)
            if not getattr(value, "_graphopt_unknown", False):
                values.pair(made, value)
            return made

        if func is torch.ops.aten._pack_padded_sequence.default:
            return imitated(real[0]), real[1]  # the sizes of its batches lie on the CPU, and C++ reads them
        return imitated(real)

    class Record(TorchDispatchMode):
        supports_higher_order_operators = True

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            kwargs = kwargs or {}
            if func is device_of:
                return torch.device("cpu") if unseen and dispatch.from_engine() else func(*args, **kwargs)
            if gpu:
                args = on_device(args)
                kwargs = {key: on_device(value) for key, value in kwargs.items()}
                if func is to_copy and kwargs.get("dtype") in (None, args[0].dtype) and "layout" not in kwargs:
                    return moved(func, args, kwargs)
            if isinstance(func, HigherOrderOperator):
                out = func(*args, **kwargs)
                recorder.add(func, args, kwargs, out)
                return out
            try:
                out = dispatch.shapes_of(func, args, kwargs)
                if out is NotImplemented:
                    out = func(*args, **kwargs)
            except (DataDependentOutputException, DynamicOutputShapeException) as error:
                real = values.decide(func, args, kwargs)
                if real is None:
                    raise NeedsValues(func, place(error)) from error
                out = faked(func, real)
                recorder.add(func, args, kwargs, out)
                return out
            except UnsupportedOperatorException as error:  # torch has no rule of shapes for it
                try:
                    out = faked(func, values.shapes(func, args, kwargs))
                except (RuntimeError, NotImplementedError):
                    raise InputError(
                        f"capture: {place(error)} uses {func}, for whose result torch has no rule of shapes; register "
                        "one with torch.library.register_fake, or give target='cpu'"
                    ) from error
                recorder.add(func, args, kwargs, out)
                return out
            if func.namespace != "prim":
                written = recorder.add(func, args, kwargs, out)
                values.follow(func, args, kwargs, out, written, skip=recorder.phase == BACKWARD and not recorder.stack)
            return out

    def moved(func: Any, args: Any, kwargs: Any) -> torch.Tensor:
        """A copy to where the tensor lies already: the same tensor."""
        out = func(*args, **kwargs)
        out._graphopt_ref = recorder.ref(args[0])
        written = recorder.written.get(args[0].untyped_storage()._cdata)
        if written is not None:
            storage = out.untyped_storage()
            recorder.written[storage._cdata] = (storage, written[1])
        if (value := values.of(args[0])) is not None:
            values.pair(out, value)
        return out

    def place(error: BaseException) -> str:
        """Where in the model an error arose: the module's path, and the line of Python."""
        path = recorder.failed_in or (recorder.stack[-1][0] if recorder.stack else "")
        line = line_of(error, _trace.__code__)
        return (path or type(module).__name__) + (f" ({line})" if line else "")

    def imitate(tensor: torch.Tensor) -> torch.Tensor:
        made = like(tensor)
        if everything or not isinstance(tensor, torch.nn.Parameter):
            values.give(made, tensor)
        return made.requires_grad_(tensor.requires_grad and train)

    names: dict[int, str] = {}  # parameters by identity: a tied one keeps its first name
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), name)
    fakes = {name: imitate(p) for name, p in module.named_parameters()}
    params = {
        name: fakes[names[id(p)]] for name, p in module.named_parameters(remove_duplicate=False)
    }  # tied names share one fake
    buffers = {name: imitate(b) for name, b in module.named_buffers(remove_duplicate=False)}
    owner = {name: name.rpartition(".")[0] for name in (*params, *buffers)}

    args, kwargs = _arguments(example_inputs)
    leaves, structure = pytree.tree_flatten((args, kwargs))
    seen: dict[int, torch.Tensor] = {}
    inputs: list[int] = []
    for position, leaf in enumerate(leaves):
        if isinstance(leaf, torch.Tensor):
            if id(leaf) not in seen:
                seen[id(leaf)] = imitate(leaf.detach())
                inputs.append(recorder.add_source(seen[id(leaf)], "input", f"input{len(inputs)}"))
            leaves[position] = seen[id(leaf)]
    args, kwargs = pytree.tree_unflatten(leaves, structure)
    param_sources = {name: recorder.add_source(tensor, "parameter", name) for name, tensor in fakes.items()}
    buffer_sources = {name: recorder.add_source(tensor, "buffer", name) for name, tensor in buffers.items()}

    def no_backward(*_: Any, **__: Any) -> Any:
        if recorder.phase != FORWARD:
            return run_backward(*_, **__)
        raise InputError(
            f"capture: {place(RuntimeError())} calls backward() in the forward pass; return the loss instead: the "
            "backward pass of the whole step is captured"
        )

    run_backward = torch.autograd.backward
    was_training, handles = {m: m.training for m in module.modules()}, []
    attributes = {m: dict(m.__dict__) for m in module.modules()}  # what a forward pass stores in a module
    for path, child in module.named_modules():
        handles.append(child.register_forward_pre_hook(lambda _m, _a, path=path: recorder.enter(path), prepend=True))
        handles.append(child.register_forward_hook(lambda _m, _a, _o: recorder.leave(), always_call=True))
    grads: dict[str, Ref] = {}
    without_gradient: list[str] = []
    ambient = dispatch.ambient_autocast()
    # Vendor kernels (oneDNN's fused LSTM) would hide the aten operators; cuDNN is asked for in dispatch.
    vendor_kernels = torch.backends.mkldnn.set_flags(_enabled=False)
    eager = torch.compiler.set_stance("force_eager") if hasattr(torch.compiler, "set_stance") else nullcontext()
    try:
        module.train(train)
        with (
            dispatch.surroundings(target, values) as autocasts_off,
            dispatch.replaced((torch.autograd, "backward", no_backward)),
            torch.backends.cudnn.flags(enabled=False),
            torch.autograd.set_multithreading_enabled(not gpu),
            eager,
            fake,
            Record(),
            dispatch.function_mode(target, values),
            torch.set_grad_enabled(train),
            _reparametrize_module(module, {**params, **buffers}),
        ):
            with torch.autocast(DEVICE[target], ambient) if ambient else nullcontext():
                result = module(*args, **kwargs)
                if train:
                    value = _loss_of(result, loss)
                else:
                    outputs = results = [t for t in pytree.tree_leaves(result) if isinstance(t, torch.Tensor)]
                    if loss is not None:
                        outputs = results = [_loss_of(result, loss)]
            if train:
                wanted = {name: p for name, p in fakes.items() if p.requires_grad}
                recorder.phase = BACKWARD
                found: Sequence[torch.Tensor | None] = []
                checkpointed, leaves = _graph_of(value)
                others = list({id(t): t for t in leaves if not any(t is p for p in wanted.values())}.values())
                with torch.autocast(DEVICE[target], enabled=False) if ambient else nullcontext():
                    if checkpointed:  # only the whole backward pass goes through a reentrant checkpoint
                        run_backward(value)
                        found = [p.grad for p in (*wanted.values(), *others)]
                    elif wanted:
                        found = torch.autograd.grad(value, [*wanted.values(), *others], allow_unused=True)
                grads = {n: recorder.ref(g) for n, g in zip(wanted, found) if g is not None}
                without_gradient = [name for name in wanted if name not in grads]
                outputs, results = [value], [value, *(g for g in found if g is not None)]
    except InputError:
        raise
    except NeedsValues as error:
        error.where = error.where or place(error)
        raise
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise NeedsValues(error.func, place(error)) from error
    except Exception as error:  # whatever the module or the loss function raises
        message = (str(error).strip().splitlines() or [""])[0]
        hint = next((hint for words, hint in _HINTS.items() if words in message), "")
        raise InputError(
            f"capture: one step of {type(module).__name__} on the example inputs fails: "
            f"{type(error).__name__}: {message} (in {place(error)}){hint}"
        ) from error
    finally:
        torch.backends.mkldnn.set_flags(_enabled=vendor_kernels[0])
        for handle in handles:
            handle.remove()
        for child, stored in attributes.items():
            child.__dict__.clear()
            child.__dict__.update(stored)
        for child, mode in was_training.items():
            child.training = mode
    if not outputs:
        raise InputError(f"capture: the output of {type(module).__name__} holds no tensor")
    return Trace(
        recorder.calls,
        param_sources,
        inputs,
        buffer_sources,
        [recorder.ref(t) for t in outputs],
        grads,
        [recorder.origin(t) for t in results],
        optimizer if train else None,
        owner,
        target,
        without_gradient,
        bool(autocasts_off),
    )


def _graph_of(value: torch.Tensor) -> tuple[bool, list[torch.Tensor]]:
    """Whether a reentrant activation checkpoint is in the autograd graph of a tensor; its leaves."""
    seen, stack = set(), [value.grad_fn]
    checkpointed, leaves = False, []
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            leaves.append(leaf)
        checkpointed = checkpointed or node.name() == "CheckpointFunctionBackward"
        stack.extend(following for following, _ in node.next_functions)
    return checkpointed, leaves


def line_of(error: BaseException, outermost: CodeType) -> str:
    """``file.py:12`` of the innermost frame, within a call of ``outermost``, of the user's own code, else of a library
    beside torch; or nothing. The frames are those that run now, and those that the error has left."""
    import torch

    frames, frame = [], sys._getframe(1)
    while frame is not None and frame.f_code is not outermost:
        frames.append((frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back  # type: ignore[assignment]
    frames.reverse()
    frames += [(entry.filename, entry.lineno or 0) for entry in traceback.extract_tb(error.__traceback__)]
    ours, theirs = (os.path.dirname(os.path.abspath(m.__file__ or "")) for m in (sys.modules["graphopt_gym"], torch))
    libraries = {path for name in ("stdlib", "platstdlib", "purelib", "platlib") if (path := sysconfig.get_path(name))}
    own, library = "", ""
    for filename, line in frames:
        path = os.path.abspath(filename)
        if path.startswith((ours + os.sep, theirs + os.sep)) or not os.path.isfile(path):
            continue
        if any(path.startswith(folder + os.sep) for folder in libraries):
            library = f"{path}:{line}"
        else:
            near = os.path.relpath(path)
            own = f"{path if near.startswith('..') else near}:{line}"
    for folder in sorted(libraries, key=len, reverse=True):
        library = library.removeprefix(f"{folder}{os.sep}")
    return own or library


def _arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    import torch

    if isinstance(example_inputs, torch.Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, list | tuple):
        return tuple(example_inputs), {}
    raise InputError(
        f"capture: example_inputs is a {type(example_inputs).__name__}; give a tensor, a tuple of positional "
        "arguments or a dict of keyword arguments"
    )


def _loss_of(result: Any, loss: Callable[[Any], Any] | None) -> torch.Tensor:
    import torch
    from torch.utils import _pytree as pytree

    value = loss(result) if loss is not None else result
    tensors = [t for t in pytree.tree_leaves(value) if isinstance(t, torch.Tensor)]
    floating = [t for t in tensors if t.is_floating_point()]
    if not floating:
        raise InputError("capture: the module's output holds no floating-point tensor to train on; give loss=")
    if floating[0].numel() == 1:
        return floating[0].reshape(()) if floating[0].dim() else floating[0]
    if loss is not None:
        raise InputError(f"capture: loss returns shape {tuple(floating[0].shape)}; it must return a scalar tensor")
    return floating[0].mean()


class BuiltGraph(NamedTuple):
    """A graph and, for each op, what it is of the trace: ``Ref(call, output)``, output -1 for the call itself."""

    graph: ComputationGraph
    origin: list[Ref]  # optimiser ops: Ref(-1, -1)


def build_graph(trace: Trace, name: str, metadata: Mapping[str, Any] | None = None) -> BuiltGraph:
    """The :class:`ComputationGraph` of a trace: dead calls dropped, ``getitem`` and optimiser ops added."""
    calls = trace.calls
    alive = _alive(trace)
    grad_of = dict(trace.grads)
    updates = list(grad_of) if trace.optimizer else []
    groups, modules_of = _groups(trace, alive)

    # which outputs of an operator with several are used: each gets a getitem
    taken: dict[int, set[int]] = {}
    for number in np.flatnonzero(alive).tolist():
        for ref in refs_in((calls[number].args, calls[number].kwargs)):
            if calls[ref.call].several:
                taken.setdefault(ref.call, set()).add(ref.output)
    for ref in (*trace.outputs, *grad_of.values()):
        if calls[ref.call].several:
            taken.setdefault(ref.call, set()).add(ref.output)

    rows: list[dict[str, Any]] = []
    origin: list[Ref] = []
    edges: list[tuple[int, int]] = []
    op_of_call: dict[int, int] = {}
    op_of_item: dict[Ref, int] = {}
    kinds: dict[str, int] = {}
    modules: dict[str, int] = {}

    def add(ref: Ref, kind: str, op_class: int, phase: int, out: Output | None, module: str, group: Any, **sizes: int):  # type: ignore[no-untyped-def]
        shape = out.shape if out is not None else ()
        if len(shape) > MAX_RANK:
            raise InputError(f"capture: {kind} makes a tensor of rank {len(shape)}; at most {MAX_RANK} is supported")
        dtype = out.dtype if out is not None else "float32"
        dtype = NEAREST_DTYPE.get(dtype, dtype)
        if dtype not in DTYPES:
            raise InputError(f"capture: {kind} makes a tensor of dtype {dtype}; supported: {', '.join(DTYPES)}")
        rows.append(
            {
                "kind": kinds.setdefault(kind, len(kinds)),
                "op_class": op_class,
                "phase": phase,
                "dtype": DTYPES.index(dtype),
                "output_shape": [*shape, *[-1] * (MAX_RANK - len(shape))],
                "module": modules.setdefault(module, len(modules)),
                "colocation": group,
            }
            | sizes
        )
        origin.append(ref)
        return len(rows) - 1

    def add_call(number: int) -> None:
        call = calls[number]
        for source in call.reads:  # a source stands just before its first reader
            if source not in op_of_call and calls[source].op_class == SOURCE:
                add_call(source)
        used = sorted(taken.get(number, ()))
        items = [(index, out) for index in used if (out := call.outputs[index]) is not None]
        first = next((out for out in call.outputs if out is not None), None)
        module, group = modules_of[number], groups[number]
        op = add(
            Ref(number, -1),
            call.kind,
            call.op_class,
            call.phase,
            first,
            module,
            group,
            flops=call.flops,
            bytes_read=call.bytes_read,
            bytes_written=call.bytes_written,
            output_bytes=sum(out.bytes for _, out in items) if call.several else call.output_bytes,
            param_bytes=first.bytes if call.kind == "parameter" and first is not None else 0,
        )
        op_of_call[number] = op
        # a reader of several outputs names each item; a reader after a write in place names the call
        wanted: dict[int, None] = {}
        for ref in dict.fromkeys(refs_in((call.args, call.kwargs))):
            if ref.call in call.reads:
                wanted[op_of_item.get(ref, op_of_call[ref.call])] = None
        for source in call.reads:
            if source not in call.uses:
                wanted[op_of_call[source]] = None
        edges.extend((source, op) for source in wanted)
        for index, out in items:
            item = add(Ref(number, index), "getitem", VIEW, call.phase, out, module, group, output_bytes=out.bytes)
            op_of_item[Ref(number, index)] = item
            edges.append((op, item))

    for number, call in enumerate(calls):
        if alive[number] and call.op_class != SOURCE:
            add_call(number)
    for number in np.flatnonzero(alive).tolist():  # parameters that nothing reads
        if number not in op_of_call:
            add_call(number)
    if trace.optimizer:
        rule = OPTIMIZERS[trace.optimizer]
    for param in updates:
        source, ref = trace.params[param], grad_of[param]
        out = calls[source].outputs[0]
        assert out is not None
        elements = math.prod(out.shape)
        op = add(
            Ref(-1, -1),
            trace.optimizer or "",
            OP_CLASSES.index("optimizer"),
            OPTIMIZER,
            out,
            trace.owner[param],
            groups[source],
            flops=rule.flops * elements,
            bytes_read=rule.reads * out.bytes,
            bytes_written=rule.writes * out.bytes,
            state_bytes=rule.state * out.bytes,
        )
        edges.append((op_of_call[source], op))
        edges.append((op_of_item.get(ref, op_of_call[ref.call]), op))

    columns: dict[str, Any] = {column: np.asarray([row.get(column, 0) for row in rows], np.int64) for column in COLUMNS}
    _, first_at, inverse = np.unique(columns["colocation"], return_index=True, return_inverse=True)
    columns["colocation"] = np.argsort(np.argsort(first_at))[inverse]  # groups in order of first appearance
    unmodelled = Counter(call.unmodelled for number, call in enumerate(calls) if alive[number] and call.unmodelled)
    if unmodelled:
        metadata = {**(metadata or {}), "unmodelled_ops": dict(sorted(unmodelled.items()))}
    graph = ComputationGraph(
        name, kinds=list(kinds), modules=list(modules), columns=columns, edges=np.asarray(edges), metadata=metadata
    )
    return BuiltGraph(graph, origin)


def refs_in(value: Any) -> Iterator[Ref]:
    """The tensors in recorded arguments."""
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from refs_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from refs_in(item)


def _alive(trace: Trace) -> np.ndarray:
    """bool [calls]: what the results depend on, every parameter, and what a checkpoint computes again: to its end."""
    calls = trace.calls
    alive = np.zeros(len(calls), bool)
    alive[list(trace.params.values())] = True
    alive[trace.results] = True
    alive[[ref.call for ref in (*trace.outputs, *trace.grads.values())]] = True
    for number in range(len(calls) - 1, -1, -1):
        if calls[number].recomputed:
            alive[number] = True
        if alive[number]:
            alive[list(calls[number].reads)] = True
            alive[list(calls[number].uses if calls[number].kind not in METADATA_ONLY else ())] = True
    return alive


def _groups(trace: Trace, alive: np.ndarray) -> tuple[list[int], list[str]]:
    """Colocation group (an arbitrary number) and module path of each call.

    A call keeps the group it was recorded in, or a backward call that of its forward one; a view is with what it
    views, so the derivative of a view is too. A source goes with its first reader, a sum of gradients with the
    operator that takes the sum (the backward of the tensor's producer, or the parameter's update), and anything
    else without a group with its first reader, else its first producer.
    """
    calls = trace.calls
    keys: list[Any] = [call.group for call in calls]
    modules = [call.module for call in calls]
    readers: list[list[int]] = [[] for _ in calls]
    for number, call in enumerate(calls):
        if alive[number]:
            for source in call.reads:
                readers[source].append(number)

    def first_reader(number: int) -> int | None:
        """The first reader that is no view, looking through views."""
        found = []
        stack = [number]
        while stack:
            for reader in readers[stack.pop()]:
                if calls[reader].op_class == VIEW:
                    stack.append(reader)
                else:
                    found.append(reader)
        return min(found, default=None)

    def take(number: int, other: int) -> None:
        keys[number] = keys[other]
        modules[number] = modules[other]

    for number, call in enumerate(calls):
        if call.op_class == SOURCE and alive[number]:
            reader = first_reader(number)
            if reader is not None:
                take(number, reader)
            if call.name in trace.owner:
                modules[number] = trace.owner[call.name]
    for number, call in enumerate(calls):
        if call.derived_from >= 0 and calls[call.derived_from].op_class == VIEW:
            root = call.derived_from
            while calls[root].op_class == VIEW and calls[root].reads:
                root = calls[root].reads[0]
            if keys[root] is not None:
                keys[number] = keys[root]
    updated = {ref.call: trace.params[name] for name, ref in trace.grads.items()}
    for number in range(len(calls) - 1, -1, -1):
        if alive[number] and (calls[number].accumulates or keys[number] is None):
            end: int | None = number
            while end is not None:  # a gradient may reach its parameter through views
                if end in updated:
                    break
                following = [r for r in readers[end] if calls[r].op_class == VIEW]
                end = following[0] if following and len(readers[end]) == 1 else None
            if end is not None:
                take(number, updated[end])
            elif (reader := first_reader(number)) is not None and keys[reader] is not None:
                take(number, reader)
    for number, call in enumerate(calls):
        if not alive[number] or call.op_class == SOURCE:
            continue
        if (call.op_class == VIEW and call.reads) or keys[number] is None:
            known = [source for source in call.reads if keys[source] is not None]
            if known:
                keys[number] = keys[known[0]]
                modules[number] = modules[number] or modules[known[0]]
    numbers: dict[Any, int] = {}
    groups = [
        numbers.setdefault(("alone", number) if key is None else key, len(numbers)) for number, key in enumerate(keys)
    ]
    return groups, modules


class CaptureWarning(UserWarning):
    """A graph was captured, and something about it is probably not meant."""


def capture(
    module: torch.nn.Module,
    example_inputs: Any,
    *,
    loss: Callable[[Any], Any] | None = None,
    optimizer: str | None = "adam",
    train: bool = True,
    target: str = "gpu",
    name: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> ComputationGraph:
    """The computation graph of one training step (or of inference) of a torch module.

    Args:
        module: on any device, ``meta`` too: only shapes are used, so a model need not fit in memory. Wrappers of
            ``torch.compile``, DataParallel and DistributedDataParallel are taken off.
        example_inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments. Shapes and dtypes
            matter, and ``meta`` tensors do; where shapes depend on values (lengths, masks), values are needed. Where
            they depend on what parameters compute, the step is run with values, up to 2 GiB of them.
        loss: function of the module's output that returns a scalar. None: the output itself where it is a
            scalar, else the mean of its first floating-point tensor.
        optimizer: ``"adam"``, ``"momentum"`` (SGD with momentum), ``"sgd"``, or None for no update.
        train: forward, backward and optimiser; False: the forward pass in evaluation mode, without gradients.
        target: the kind of device whose operators are captured, ``"gpu"`` or ``"cpu"``; neither is needed here. On a
            GPU attention, dropout and recurrent layers are fused kernels, and ``torch.autocast`` of any device type
            casts as CUDA's does.
        name: the graph's name; the module's class name by default.
        metadata: facts to keep with the graph (source, configuration, licence, stages).

    Returns:
        A graph whose ops are the aten operators torch runs, in its order. Each parameter is a ``source`` op that
        holds its bytes, and has one ``optimizer`` op that holds its state and updates it in place. An operator
        with several outputs is followed by a ``getitem`` view an output that is used. Results that nothing reads
        are left out. ``colocation`` numbers one group a call of a module: a leaf module's own operators, a
        container's between two calls of its children; backward operators, parameters first used there and their
        updates included.

    Raises:
        InputError: wrong arguments, or a module whose shapes depend on tensor values that are not known.

    Warns:
        CaptureWarning: trainable parameters get no gradient; operators have no formula of FLOPs (give one with
            ``torch.utils.flop_counter.register_flop_formula``); an autocast was off. The graph says the same in
            ``graph.notes``.
    """
    import torch

    module = unwrapped(module)
    trace = trace_step(module, example_inputs, loss=loss, optimizer=optimizer, train=train, target=target)
    args, kwargs = _arguments(example_inputs)
    facts = {
        "source": f"captured from {type(module).__module__}.{type(module).__qualname__}",
        "torch": torch.__version__.split("+")[0],
        "train": bool(train),
        "optimizer": trace.optimizer,
        "inputs": [
            [str(value.dtype).removeprefix("torch."), list(value.shape)]
            for value in (*args, *kwargs.values())
            if isinstance(value, torch.Tensor)
        ],
        "stages": default_stages(module, trace.calls),
    }
    if target != "cpu":  # graphs that were captured before there was a choice are a CPU's, and say nothing
        facts["target"] = target
    if trace.without_gradient:
        names = trace.without_gradient
        facts["parameters_without_gradient"] = {
            "count": len(names),
            "of": sum(p.requires_grad for p in module.parameters()),
            "names": names[:5],
        }
    if trace.autocast_off:
        facts["autocast_off"] = True
    graph = build_graph(trace, name or type(module).__name__, facts | dict(metadata or {})).graph
    for note in graph.notes:
        warnings.warn(note, CaptureWarning, stacklevel=2)
    return graph


CAPTURE_ARGUMENTS = ("module", "example_inputs", "loss", "optimizer", "train", "target", "name", "metadata")


def capture_from_spec(spec: str, **overrides: Any) -> ComputationGraph:
    """Capture what ``"package.module:function"`` names, see :func:`arguments_from_spec`.

    ``overrides`` are arguments that replace its own.
    """
    return capture(**arguments_from_spec(spec) | overrides)


def arguments_from_spec(spec: str) -> dict[str, Any]:
    """The arguments of :func:`capture` that what ``"package.module:function"`` names returns.

    The function takes no arguments and returns ``(module, example_inputs)`` or a dict of :func:`capture`'s
    arguments.

    Raises:
        InputError: the spec is malformed, there is no such module or function, or it returns something else.
    """
    from torch import nn

    with dispatch.autocast_allowed():  # decorators are made when the module is imported
        function = import_named(spec)
    if not callable(function):
        raise InputError(f"capture: {spec} is a {type(function).__name__}, not a function")
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise InputError(f"capture: {spec} cannot be called without arguments: {error}") from error
    with dispatch.autocast_allowed():
        given = function()
    if isinstance(given, Mapping):
        arguments = dict(given)
        for key in arguments:
            if key not in CAPTURE_ARGUMENTS:
                raise unknown_name(f"argument returned by {spec}:", key, CAPTURE_ARGUMENTS)
        for key in ("module", "example_inputs"):
            if key not in arguments:
                raise InputError(f"capture: the dict that {spec} returns lacks {key!r}")
    elif isinstance(given, tuple) and len(given) == 2:
        arguments = {"module": given[0], "example_inputs": given[1]}
    else:
        raise InputError(
            f"capture: {spec} returns a {type(given).__name__}; it must return (module, example_inputs) or a dict "
            "of capture's arguments"
        )
    if not isinstance(arguments["module"], nn.Module):
        raise InputError(
            f"capture: {spec} returns a {type(arguments['module']).__name__} as the module; give a torch.nn.Module"
        )
    return arguments
