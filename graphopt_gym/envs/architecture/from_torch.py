"""A user's ``torch.nn.Module`` as an architecture, where the grammar has all that it does.

Importing this imports torch. ``torch.export`` flattens the module to aten operators on known shapes; each becomes one
op or a few. What the grammar lacks is collected, so that one error names all of it.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from graphopt_gym.envs.architecture.ops import Shape
from graphopt_gym.envs.architecture.program import Architecture, ArchitectureBuilder
from graphopt_gym.errors import InputError, one_line, quoted

_BATCH = 2  # of the example: torch.export treats a batch of one apart


class _OutsideError(Exception):
    """Why an operator is outside the grammar."""


class _Tensor:
    """A tensor of the traced module: an op of the architecture, or a trainable tensor that no op has taken yet.

    ``batch``: where its batch dimension stands; attention that is written by hand may move it away and back.
    """

    def __init__(
        self,
        index: int | None,
        name: str = "",
        value: torch.Tensor | None = None,
        batch: int = 0,
        trainable: bool = True,
    ) -> None:
        self.index, self.name, self.value, self.batch, self.trainable = index, name, value, batch, trainable


def from_module(module: nn.Module, image: Sequence[int], name: str | None = None) -> Architecture:
    """The architecture that a module computes; its blocks are the paths of its sub-modules, two levels deep.

    Args:
        module: takes one batch of images and returns one tensor; in any mode, it is not changed.
        image: the shape of one image, such as ``(3, 224, 224)``.
        name: of the architecture; the module's class name by default.

    Raises:
        InputError: a module that does not run on such images, or operators outside the grammar, all of them named.
    """
    return import_module(module, image, name)[0]


def import_module(
    module: nn.Module, image: Sequence[int], name: str | None = None
) -> tuple[Architecture, dict[str, torch.Tensor]]:
    """As :func:`from_module`, and the module's weights for the architecture's module to load::

    architecture, weights = import_module(module, (3, 32, 32))
    architecture.to_module().load_state_dict(weights)
    """
    if not isinstance(module, nn.Module):
        raise InputError(f"module is {quoted(module, 80)}; give a torch.nn.Module")
    name = name or type(module).__name__
    shape = tuple(image)
    if not shape or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in shape):
        raise InputError(f"image is {quoted(image, 80)}; give the shape of one image, such as (3, 32, 32)")
    parameters = [*module.parameters(), *module.buffers()]
    device = parameters[0].device if parameters else "cpu"
    modes = {one: one.training for one in module.modules()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module.eval()  # in training, batch norms write to their buffers
            exported = torch.export.export(module, (torch.zeros(_BATCH, *shape, device=device),), strict=False)
    except Exception as error:  # whatever the module raises
        raise InputError(f"{name} cannot be traced on images {shape}: {one_line(error)}") from error
    finally:
        for one, training in modes.items():
            one.training = training
    return _Importer(exported, shape, name).run()


class _Importer:
    def __init__(self, exported: Any, image: Shape, name: str) -> None:
        self.exported, self.b = exported, ArchitectureBuilder(name)
        self.values: dict[Any, Any] = {}
        self.weights: dict[int, dict[str, torch.Tensor]] = {}
        self.params: dict[str, int] = {}  # trainable tensors that are ops of their own, by name
        self.outside: Counter[str] = Counter()
        self.image = image

    def run(self) -> tuple[Architecture, dict[str, torch.Tensor]]:
        signature = self.exported.graph_signature
        stored = {**self.exported.state_dict, **self.exported.constants}
        where = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        where |= signature.inputs_to_lifted_tensor_constants
        output: Any = None
        for node in self.exported.graph.nodes:
            if node.op == "placeholder":
                if node.name in where:
                    path = where[node.name]
                    trainable = node.name in signature.inputs_to_parameters
                    self.values[node] = _Tensor(None, path, stored[path], trainable=trainable)
                else:
                    self.values[node] = _Tensor(self.b.input("image", self.image))
            elif node.op == "call_function":
                self.b.block = _block(node)
                try:
                    self.values[node] = self.call(node)
                except (_OutsideError, InputError) as error:
                    self.outside[f"{_kind(node)} ({error})" if str(error) else _kind(node)] += 1
                    self.values[node] = self.unknown(node)
            elif node.op == "output":
                output = node.args[0]
        if self.outside:
            listed = ", ".join(f"{kind} x{n}" if n > 1 else kind for kind, n in self.outside.items())
            raise InputError(f"{self.b.name} is outside the grammar of architectures: {listed}")
        outputs = [one for one in (output if isinstance(output, tuple | list) else [output]) if one is not None]
        if len(outputs) != 1 or self.values[outputs[0]].index is None:
            raise InputError(f"{self.b.name} returns {len(outputs)} tensors; an architecture returns one")
        last = self.values[outputs[0]].index
        builder = self.b
        if last == 0:
            raise InputError(f"{builder.name} returns its input; an architecture has an op at least")
        kept = _kept(builder, last)
        architecture = builder.finish(last)
        position = {old: new for new, old in enumerate(kept)}
        state = {
            f"layers.{position[index]}.{key}": value.detach().clone()
            for index, tensors in self.weights.items()
            if index in position
            for key, value in tensors.items()
        }
        return architecture, state

    def unknown(self, node: Any) -> _Tensor | None:
        """Stands for what an operator outside the grammar gives, so that all that follows is judged, too."""
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or value.dim() < 1 or value.shape[0] != _BATCH:
            return None
        return _Tensor(self.b.input(f"outside{len(self.b.ops)}", tuple(value.shape[1:])))

    def call(self, node: Any) -> Any:
        kind = _kind(node)
        if kind not in _CALLS:
            raise _OutsideError
        if any(self.values.get(one, 0) is None for one in node.all_input_nodes):
            return None  # listed further up
        schema = getattr(node.target, "_schema", None)
        given = list(node.args)
        if schema is not None:
            for argument in schema.arguments[len(given) :]:
                given.append(node.kwargs.get(argument.name, argument.default_value))
        arguments = [self.value(one) for one in given]
        return _CALLS[kind](self, *arguments)

    def value(self, argument: Any) -> Any:
        if isinstance(argument, torch.fx.Node):
            return self.values[argument]
        if isinstance(argument, list | tuple):
            return [self.value(one) for one in argument]
        return argument

    # -- helpers of the calls ------------------------------------------------------------------------------------

    def op(self, kind: str, *xs: _Tensor, weights: dict[str, _Tensor | None] | None = None, **params: Any) -> _Tensor:
        index = self.b.op(kind, *[self.index(x) for x in xs], **params)
        taken = {key: tensor.value for key, tensor in (weights or {}).items() if tensor is not None}
        if any(value is None for value in taken.values()):
            raise _OutsideError("a weight that is computed")
        if taken:
            self.weights[index] = taken  # type: ignore[assignment]
        return _Tensor(index)

    def index(self, x: Any) -> int:
        """The op of a tensor; a trainable tensor that is used as it is becomes a ``param``, once."""
        if not isinstance(x, _Tensor):
            raise _OutsideError("a constant operand")
        if x.batch:
            raise _OutsideError("moves the batch")
        if x.index is None:
            assert x.value is not None
            shape = tuple(x.value.shape)
            if not x.trainable:
                raise _OutsideError(f"a constant tensor of shape {shape}")
            if shape[:1] == (1,):  # its batch of one
                shape = shape[1:]
            if x.name not in self.params:
                self.params[x.name] = self.b.op("param", shape=shape, init=_init(x.value))
                self.weights[self.params[x.name]] = {"weight": x.value.reshape(shape)}
            x.index = self.params[x.name]
            if self.b.shape(x.index) != shape:
                raise _OutsideError(f"a parameter used as {self.b.shape(x.index)} and as {shape}")
        return x.index

    def shape(self, x: _Tensor) -> Shape:
        return self.b.shape(self.index(x))

    def axis(self, x: _Tensor, axis: int) -> int:
        """An axis of one sample, from one of the batch."""
        axis %= len(self.shape(x)) + 1
        if axis == 0:
            raise _OutsideError("along the batch")
        return axis - 1


def _kept(builder: ArchitectureBuilder, output: int) -> list[int]:
    """Indices in the builder of the ops that ``finish`` keeps, in its order."""
    kept = {output, 0}
    for index in range(output, -1, -1):
        if index in kept:
            kept.update(builder.ops[index].inputs)
    return sorted(kept)


def _init(value: torch.Tensor) -> str:
    if value.is_meta:
        return "normal"
    return "zeros" if bool((value == 0).all()) else "ones" if bool((value == 1).all()) else "normal"


def _kind(node: Any) -> str:
    name = getattr(node.target, "__name__", str(node.target))
    return name.split(".")[0].rstrip("_") if not name.startswith("_") else name.split(".")[0]


def _block(node: Any) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if path]
    parts = paths[-1].split(".") if paths else []
    return ".".join(parts[:2])


def _pair(value: Any, otherwise: Any = None) -> tuple[int, int]:
    if value is None or value == []:
        value = otherwise
    values = [value] if isinstance(value, int) else list(value)
    return (values[0], values[-1])


def _plain(kind: str) -> Callable[..., _Tensor]:
    return lambda i, x, *rest: i.op(kind, x)


def _conv2d(i: _Importer, x: Any, w: Any, b: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> _Tensor:
    features, _, *kernel = w.value.shape
    dilation = _pair(dilation, 1)
    if isinstance(padding, str):
        if padding == "same" and any(d * (k - 1) % 2 for k, d in zip(kernel, dilation, strict=True)):
            raise _OutsideError("padding 'same' of an even kernel")
        padding = [d * (k - 1) // 2 if padding == "same" else 0 for k, d in zip(kernel, dilation, strict=True)]
    return i.op(
        "conv",
        x,
        features=features,
        kernel=tuple(kernel),
        stride=_pair(stride, 1),
        padding=_pair(padding, 0),
        dilation=dilation,
        groups=groups,
        bias=b is not None,
        weights={"weight": w, "bias": b},
    )


def _linear(i: _Importer, x: Any, w: Any, b: Any) -> _Tensor:
    return i.op("dense", x, features=w.value.shape[0], bias=b is not None, axis=-1, weights={"weight": w, "bias": b})


def _batch_norm(i: _Importer, x: Any, w: Any, b: Any, mean: Any, var: Any, training: bool, *rest: Any) -> _Tensor:
    if w is None or b is None or mean is None:
        raise _OutsideError("without weights or running statistics")
    weights = {"weight": w, "bias": b, "running_mean": mean, "running_var": var}
    return i.op("batch_norm", x, axis=0, epsilon=float(rest[1]), weights=weights)


def _layer_norm(i: _Importer, x: Any, shape: Any, w: Any, b: Any, epsilon: float, *rest: Any) -> _Tensor:
    if len(shape) != 1 or w is None or b is None:
        raise _OutsideError("over several dimensions, or without weights")
    return i.op("layer_norm", x, axis=-1, epsilon=float(epsilon), weights={"weight": w, "bias": b})


def _group_norm(i: _Importer, x: Any, groups: int, w: Any, b: Any, epsilon: float, *rest: Any) -> _Tensor:
    if w is None or b is None:
        raise _OutsideError("without weights")
    return i.op("group_norm", x, groups=groups, epsilon=float(epsilon), weights={"weight": w, "bias": b})


def _gelu(i: _Importer, x: Any, approximate: str = "none") -> _Tensor:
    if approximate != "none":
        raise _OutsideError(f"approximated by {approximate}")
    return i.op("gelu", x)


def _softmax(i: _Importer, x: Any, dim: int, *rest: Any) -> _Tensor:
    return i.op("softmax", x, axis=i.axis(x, dim))


def _dropout(i: _Importer, x: Any, rate: float, *rest: Any) -> _Tensor:
    return i.op("dropout", x, rate=float(rate)) if rate else x


def _max_pool(i: _Importer, x: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool) -> _Tensor:
    if ceil or _pair(dilation, 1) != (1, 1):
        raise _OutsideError("with ceil_mode or dilation")
    return i.op("max_pool", x, kernel=_pair(kernel), stride=_pair(stride, kernel), padding=_pair(padding, 0))


def _avg_pool(
    i: _Importer, x: Any, kernel: Any, stride: Any, padding: Any, ceil: bool, counted: bool, divisor: Any
) -> _Tensor:
    if ceil or divisor is not None or (not counted and _pair(padding, 0) != (0, 0)):
        raise _OutsideError("with ceil_mode, a divisor, or padding that is not counted")
    return i.op("avg_pool", x, kernel=_pair(kernel), stride=_pair(stride, kernel), padding=_pair(padding, 0))


def _adaptive(i: _Importer, x: Any, size: Any) -> _Tensor:
    size, image = _pair(size), i.shape(x)[1:]
    if size == (1, 1):
        return i.op("mean", x, axes=(1, 2), keep=True)
    if any(n % s for n, s in zip(image, size, strict=True)):
        raise _OutsideError(f"from {image} to {size}, which does not divide it")
    kernel = tuple(n // s for n, s in zip(image, size, strict=True))
    return i.op("avg_pool", x, kernel=kernel)


def _mean(i: _Importer, x: Any, dim: Any, keep: bool = False, *rest: Any) -> _Tensor:
    if not dim:
        raise _OutsideError("over the batch")
    return i.op("mean", x, axes=tuple(i.axis(x, d) for d in ([dim] if isinstance(dim, int) else dim)), keep=keep)


def _view(i: _Importer, x: Any, shape: Any) -> _Tensor:
    sizes = list(shape)
    if sizes[0] == -1 and math.prod(sizes[1:]) == math.prod(i.shape(x)):
        sizes[0] = _BATCH
    if sizes[0] != _BATCH:
        raise _OutsideError("changes the batch")
    return i.op("reshape", x, shape=tuple(sizes[1:]))


def _flatten(i: _Importer, x: Any, start: int = 0, end: int = -1) -> _Tensor:
    shape = i.shape(x)
    start, end = i.axis(x, start), i.axis(x, end)
    return i.op("reshape", x, shape=(*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :]))


def _unflatten(i: _Importer, x: Any, dim: int, sizes: Any) -> _Tensor:
    axis, shape = i.axis(x, dim), i.shape(x)
    return i.op("reshape", x, shape=(*shape[:axis], *sizes, *shape[axis + 1 :]))


def _unsqueeze(i: _Importer, x: Any, dim: int) -> _Tensor:
    if x.index is None and dim == 0 and x.value is not None:
        return _Tensor(None, x.name, x.value[None], trainable=x.trainable)
    shape = i.shape(x)
    dim = dim % (len(shape) + 2)
    if dim == 0:
        raise _OutsideError("before the batch")
    return i.op("reshape", x, shape=(*shape[: dim - 1], 1, *shape[dim - 1 :]))


def _squeeze(i: _Importer, x: Any, dim: Any = None) -> _Tensor:
    shape = i.shape(x)
    dims = range(len(shape)) if dim is None else [i.axis(x, d) for d in ([dim] if isinstance(dim, int) else dim)]
    return i.op("reshape", x, shape=tuple(n for axis, n in enumerate(shape) if n != 1 or axis not in dims))


def _permute(i: _Importer, x: Any, dims: Any) -> _Tensor:
    batch, x = x.batch, _Tensor(i.index(_Tensor(x.index, x.name, x.value, trainable=x.trainable)))
    rank = len(i.shape(x)) + 1
    dims = [d % rank for d in dims]
    perm = tuple(d - (d > batch) for d in dims if d != batch)
    moved = x if perm == tuple(range(rank - 1)) else i.op("transpose", x, perm=perm)
    return _Tensor(moved.index, batch=dims.index(batch))


def _transpose(i: _Importer, x: Any, a: int, b: int) -> _Tensor:
    rank = len(i.b.shape(x.index)) + 1 if x.index is not None else len(x.value.shape)
    dims = list(range(rank))
    dims[a], dims[b] = dims[b], dims[a]
    return _permute(i, x, dims)


def _unbind(i: _Importer, x: Any, dim: int = 0) -> list[_Tensor]:
    rank = len(i.b.shape(x.index)) + 1
    dim %= rank
    size = i.b.shape(x.index)[dim - (dim > x.batch)]
    return [_select(i, x, dim, at) for at in range(size)]


def _add(i: _Importer, x: Any, y: Any, alpha: Any = 1) -> _Tensor:
    if alpha != 1:
        raise _OutsideError("with a factor")
    return i.op("add", x, y)


def _mul(i: _Importer, x: Any, y: Any) -> _Tensor:
    if isinstance(x, int | float):
        x, y = y, x
    return i.op("smul", x, factor=float(y)) if isinstance(y, int | float) else i.op("mul", x, y)


def _div(i: _Importer, x: Any, y: Any) -> _Tensor:
    if not isinstance(y, int | float) or y == 0:
        raise _OutsideError("by a tensor")
    return i.op("smul", x, factor=1 / y)


def _cat(i: _Importer, xs: Any, dim: int = 0) -> _Tensor:
    return i.op("concat", *xs, axis=i.axis(xs[0], dim))


def _expand(i: _Importer, x: Any, size: Any, *rest: Any) -> _Tensor:
    if x.index is None and tuple(size[1:]) in (tuple(x.value.shape[1:]), (-1,) * (len(size) - 1)):
        return x  # a trainable tensor, once for each sample
    raise _OutsideError


def _select(i: _Importer, x: Any, dim: int, at: int) -> _Tensor:
    batch, x = x.batch, _Tensor(i.index(_Tensor(x.index, x.name, x.value, trainable=x.trainable)))
    shape = i.shape(x)
    dim %= len(shape) + 1
    if dim == batch:
        raise _OutsideError("along the batch")
    axis = dim - (dim > batch)
    at %= shape[axis]
    part = i.op("slice", x, axis=axis, start=at, stop=at + 1)
    part = i.op("reshape", part, shape=(*shape[:axis], *shape[axis + 1 :]))
    return _Tensor(part.index, batch=batch - (dim < batch))


def _slice(i: _Importer, x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> _Tensor:
    if dim == 0 and start in (None, 0) and (end is None or end > _BATCH):
        return x
    axis = i.axis(x, dim)
    size = i.shape(x)[axis]
    start, end = slice(start, end).indices(size)[:2]
    if step != 1:
        raise _OutsideError("with a step")
    return x if (start, end) == (0, size) else i.op("slice", x, axis=axis, start=start, stop=end)


def _chunk(i: _Importer, x: Any, count: int, dim: int = 0) -> list[_Tensor]:
    size = i.shape(x)[i.axis(x, dim)]
    return _split(i, x, -(-size // count), dim)


def _split(i: _Importer, x: Any, sizes: Any, dim: int = 0) -> list[_Tensor]:
    axis = i.axis(x, dim)
    total = i.shape(x)[axis]
    if isinstance(sizes, int):
        sizes = [min(sizes, total - start) for start in range(0, total, sizes)]
    ends = [sum(sizes[: n + 1]) for n in range(len(sizes))]
    return [i.op("slice", x, axis=axis, start=end - size, stop=end) for size, end in zip(sizes, ends, strict=True)]


def _attention(
    i: _Importer, q: Any, k: Any, v: Any, mask: Any, dropout: float, causal: bool, scale: Any, *rest: Any
) -> _Tensor:
    if mask is not None or causal:
        raise _OutsideError("with a mask")
    shape = i.shape(k)
    factor = i.shape(q)[-1] ** -0.5 if scale is None else float(scale)
    perm = (*range(len(shape) - 2), len(shape) - 1, len(shape) - 2)
    scores = i.op("matmul", i.op("smul", q, factor=factor), i.op("transpose", k, perm=perm))
    weights = i.op("softmax", scores, axis=len(shape) - 1)
    return i.op("matmul", i.op("dropout", weights, rate=dropout) if dropout else weights, v)


_CALLS: dict[str, Callable[..., Any]] = {
    "conv2d": _conv2d,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    **{kind: _plain(kind) for kind in ("relu", "silu", "sigmoid")},
    "matmul": lambda i, x, y: i.op("matmul", x, y),
    "bmm": lambda i, x, y: i.op("matmul", x, y),
    "gelu": _gelu,
    "softmax": _softmax,
    "_softmax": _softmax,
    "dropout": _dropout,
    "max_pool2d": _max_pool,
    "avg_pool2d": _avg_pool,
    "adaptive_avg_pool2d": _adaptive,
    "mean": _mean,
    "view": _view,
    "reshape": _view,
    "_unsafe_view": _view,
    "flatten": _flatten,
    "unflatten": _unflatten,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "permute": _permute,
    "transpose": _transpose,
    "add": _add,
    "mul": _mul,
    "div": _div,
    "cat": _cat,
    "expand": _expand,
    "select": _select,
    "unbind": _unbind,
    "slice": _slice,
    "narrow": lambda i, x, dim, start, length: _slice(i, x, dim, start, start + length),
    "chunk": _chunk,
    "split": _split,
    "split_with_sizes": _split,
    "getitem": lambda i, xs, at: xs[at],
    "scaled_dot_product_attention": _attention,
    **{kind: lambda i, x, *rest: x for kind in ("contiguous", "clone", "alias", "detach", "lift_fresh_copy")},
}
