"""The operators of an architecture: operands, parameters, shapes, trainable parameters, work.

The grammar is alpha-NAS's (Jin, Phothilimthana, Roy: "Neural Architecture Search using Property Guided Synthesis",
OOPSLA 2022, arXiv:2205.03960): ``dense``, ``conv`` (stride, groups, dilation), ``add``, ``smul`` (by a constant),
``relu``, ``gelu``, ``silu``, ``sigmoid``, ``softmax``, ``batch_norm``, ``layer_norm``, ``group_norm``, ``dropout``,
``avg_pool``, ``max_pool``, and ``reshape`` and ``mean`` for heads. Its seeds need a few more, which synthesis never
draws: ``input``, ``param`` (a trainable tensor, such as position embeddings), ``mul`` (gates), ``matmul`` and
``transpose`` (attention), ``concat`` and ``slice``.

Shapes and axes are those of one sample; the batch dimension stands before them and no operator touches it. Images are
(channels, height, width), tokens (count, features). A multiply-add counts as two FLOPs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graphopt_gym.errors import InputError, quoted
from graphopt_gym.graphs.tensor_program.ops import REQUIRED, Params, Shape, ShapeError, params_of, refused

INITS = ("zeros", "ones", "normal")
MOST_RANK = 6
MOST_ELEMENTS = 2**40  # of a tensor of one sample, and of a trainable tensor: more is a slip, not a network


@dataclass(frozen=True)
class OpSpec:
    """One operator.

    Attributes:
        operands: how many it reads; -1: two or more.
        params: parameter -> (kind, default); kinds: ``int``, ``count`` (at least 1), ``ints``, ``pair`` (an int stands
            for two), ``float``, ``rate``, ``bool``, ``str``, ``init``.
        infer: (operand shapes, *parameters) -> output shape; raises ShapeError.
        normal: (operand shapes, *parameters) -> the parameters in the one form that they are stored in.
        trainable: (operand shapes, *parameters) -> shapes of the trainable tensors by name.
        flops: (operand shapes, output shape, *parameters) -> operations for one sample.
        role: ``source``, ``primitive`` (synthesis draws it), or ``structural`` (subgraphs are cut there).
        segment: what a path counts it as: ``linear``, ``nonlinear``, or ``neither`` where values pass as they are.
    """

    name: str
    operands: int
    params: Mapping[str, tuple[str, Any]]
    infer: Callable[..., Shape]
    role: str
    segment: str
    flops: Callable[..., int]
    trainable: Callable[..., dict[str, Shape]] = lambda shapes, *params: {}
    normal: Callable[..., Params] = lambda shapes, *params: params


def infer(op: str, shapes: Sequence[Shape], params: Params) -> tuple[Params, Shape]:
    """The parameters of an op in normal form, and the shape of what it produces.

    Raises:
        InputError: the operands or parameters do not fit; names the op and all shapes.
    """
    spec = OPS[op]
    try:
        if len(shapes) != spec.operands and not (spec.operands < 0 and len(shapes) >= 2):
            wanted = str(spec.operands) if spec.operands >= 0 else "two or more"
            raise ShapeError(f"takes {wanted} operands, got {len(shapes)}")
        params = spec.normal(shapes, *params)
        shape = spec.infer(shapes, *params)
        if len(shape) > MOST_RANK or any(size < 1 for size in shape):
            raise ShapeError(f"gives shape {shape}; sizes must be positive, at most {MOST_RANK} of them")
        for given in (shape, *spec.trainable(shapes, *params).values()):
            if math.prod(given) > MOST_ELEMENTS:
                raise ShapeError(f"needs a tensor of shape {given}, above 2**40 elements")
        return params, shape
    except ShapeError as error:
        raise refused(op, shapes, dict(zip(spec.params, params, strict=True)), error) from None


def make_params(op: str, given: Mapping[str, Any]) -> Params:
    """Parameters by name, as the tuple in the operator's order, with defaults filled in.

    Raises:
        InputError: unknown operator or parameter, one is missing, or has the wrong type.
    """
    return params_of(OPS, op, given, _checked)


def _checked(op: str, name: str, kind: str, value: Any) -> Any:
    if kind in ("int", "count") and _is_int(value) and (kind == "int" or value >= 1):
        return int(value)
    if kind == "pair" and _is_int(value):
        return (int(value), int(value))
    listed = kind in ("ints", "pair") and isinstance(value, Sequence) and not isinstance(value, str)
    if listed and all(map(_is_int, value)) and (kind == "ints" or len(value) == 2):
        return tuple(int(item) for item in value)
    if kind in ("float", "rate") and isinstance(value, int | float) and not isinstance(value, bool):
        value = float(value)
        if math.isfinite(value) and (kind == "float" or 0 <= value < 1):
            return value
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind == "str" and isinstance(value, str) and value:
        return value
    if kind == "init" and value in INITS:
        return value
    wanted = {
        "int": "an integer",
        "count": "an integer, at least 1",
        "pair": "an integer or two of them",
        "ints": "a tuple of integers",
        "float": "a finite number",
        "rate": "a number of at least 0 and below 1",
        "bool": "True or False",
        "str": "a name in quotes",
        "init": f"one of {', '.join(INITS)}",
    }[kind]
    raise InputError(f"{op}: {name} is {quoted(value, 80)}; give {wanted}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def feature_axis(shape: Shape) -> int:
    """The axis of channels or features: the first of an image, else the last."""
    return 0 if len(shape) == 3 else len(shape) - 1


# -- shapes ------------------------------------------------------------------------------------------------------------


def _axis(shape: Shape, axis: int | None) -> int:
    if axis is None:
        axis = feature_axis(shape)
    if not -len(shape) <= axis < len(shape):
        raise ShapeError(f"has axis {axis}, but the operand has {len(shape)} dimensions")
    return axis % len(shape)


def _first(shapes: Sequence[Shape], *params: Any) -> Shape:
    return shapes[0]


def _image(shape: Shape) -> None:
    if len(shape) != 3:
        raise ShapeError("needs an image (channels, height, width)")


def broadcast(a: Shape, b: Shape) -> Shape:
    """The shape that two shapes broadcast to, as in numpy."""
    rank = max(len(a), len(b))
    a, b = (1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b
    if any(x != y and 1 not in (x, y) for x, y in zip(a, b, strict=True)):
        raise ShapeError("does not broadcast")
    return tuple(max(x, y) for x, y in zip(a, b, strict=True))


def _dense_normal(shapes: Sequence[Shape], features: int, bias: bool, axis: int | None) -> Params:
    return features, bias, _axis(shapes[0], axis)


def _dense(shapes: Sequence[Shape], features: int, bias: bool, axis: int) -> Shape:
    x = shapes[0]
    return (*x[:axis], features, *x[axis + 1 :])


def _windows(size: Shape, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape = (1, 1)) -> Shape:
    if min(*kernel, *stride, *dilation) < 1 or min(padding) < 0:
        raise ShapeError("needs a kernel, stride and dilation of at least 1, and padding of at least 0")
    extent = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    places = tuple((n + 2 * p - e) // s + 1 for n, e, s, p in zip(size, extent, stride, padding, strict=True))
    if any(n + 2 * p < e for n, p, e in zip(size, padding, extent, strict=True)):
        raise ShapeError(f"has windows of {extent}, larger than the image {size} with its padding {padding}")
    return places


def same_padding(kernel: Shape, dilation: Shape = (1, 1)) -> Shape:
    """Zeros on each side with which a window of stride 1 keeps the size, for odd kernels; half as much for even."""
    return tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))


def _conv_normal(
    shapes: Sequence[Shape],
    features: int,
    kernel: Shape,
    stride: Shape,
    padding: Shape | None,
    dilation: Shape,
    groups: int,
    bias: bool,
) -> Params:
    if padding is None:
        padding = same_padding(kernel, dilation)
    dilation = tuple(1 if k == 1 else d for k, d in zip(kernel, dilation, strict=True))
    return features, kernel, stride, padding, dilation, groups, bias


def _conv(
    shapes: Sequence[Shape],
    features: int,
    kernel: Shape,
    stride: Shape,
    padding: Shape,
    dilation: Shape,
    groups: int,
    bias: bool,
) -> Shape:
    _image(shapes[0])
    channels = shapes[0][0]
    if channels % groups or features % groups:
        raise ShapeError(f"has {groups} groups, which do not divide {channels} channels and {features} features")
    return (features, *_windows(shapes[0][1:], kernel, stride, padding, dilation))


def _pool_normal(shapes: Sequence[Shape], kernel: Shape, stride: Shape | None, padding: Shape) -> Params:
    return kernel, kernel if stride is None else stride, padding


def _pool(shapes: Sequence[Shape], kernel: Shape, stride: Shape, padding: Shape) -> Shape:
    _image(shapes[0])
    if any(2 * p > k for k, p in zip(kernel, padding, strict=True)):
        raise ShapeError("pads more than half its kernel")
    return (shapes[0][0], *_windows(shapes[0][1:], kernel, stride, padding))


def _axis_normal(shapes: Sequence[Shape], axis: int | None, *rest: Any) -> Params:
    return (_axis(shapes[0], axis), *rest)


def _group_norm(shapes: Sequence[Shape], groups: int, epsilon: float) -> Shape:
    _image(shapes[0])
    if shapes[0][0] % groups:
        raise ShapeError(f"has {groups} groups, which do not divide {shapes[0][0]} channels")
    return shapes[0]


def _mean_normal(shapes: Sequence[Shape], axes: Shape, keep: bool) -> Params:
    return tuple(sorted({_axis(shapes[0], axis) for axis in axes})), keep


def _mean(shapes: Sequence[Shape], axes: Shape, keep: bool) -> Shape:
    if not axes:
        raise ShapeError("needs an axis")
    return tuple(1 if axis in axes else n for axis, n in enumerate(shapes[0]) if keep or axis not in axes)


def _reshape_normal(shapes: Sequence[Shape], shape: Shape) -> Params:
    if shape.count(-1) == 1:
        known = -math.prod(shape)
        if known > 0 and math.prod(shapes[0]) % known == 0:
            shape = tuple(math.prod(shapes[0]) // known if size == -1 else size for size in shape)
    return (shape,)


def _reshape(shapes: Sequence[Shape], shape: Shape) -> Shape:
    if min(shape, default=1) < 1 or math.prod(shape) != math.prod(shapes[0]):
        raise ShapeError("changes the number of elements")
    return shape


def _transpose_normal(shapes: Sequence[Shape], perm: Shape) -> Params:
    return (tuple(_axis(shapes[0], axis) for axis in perm),)


def _transpose(shapes: Sequence[Shape], perm: Shape) -> Shape:
    if sorted(perm) != list(range(len(shapes[0]))):
        raise ShapeError(f"needs a permutation of 0 to {len(shapes[0]) - 1}")
    return tuple(shapes[0][axis] for axis in perm)


def _slice(shapes: Sequence[Shape], axis: int, start: int, stop: int) -> Shape:
    x = shapes[0]
    if not 0 <= start < stop <= x[axis]:
        raise ShapeError(f"takes {start} to {stop}, which is no part of 0 to {x[axis]}")
    return (*x[:axis], stop - start, *x[axis + 1 :])


def _concat(shapes: Sequence[Shape], axis: int) -> Shape:
    x = shapes[0]
    for y in shapes[1:]:
        if len(y) != len(x) or x[:axis] != y[:axis] or x[axis + 1 :] != y[axis + 1 :]:
            raise ShapeError(f"needs shapes that are equal except along axis {axis}")
    return (*x[:axis], sum(y[axis] for y in shapes), *x[axis + 1 :])


def _matmul(shapes: Sequence[Shape]) -> Shape:
    x, y = shapes
    if len(x) < 2 or len(y) < 2:
        raise ShapeError("needs operands of at least two dimensions")
    if x[-1] != y[-2]:
        raise ShapeError(f"has inner sizes {x[-1]} and {y[-2]}, which differ")
    return (*broadcast(x[:-2], y[:-2]), x[-2], y[-1])


# -- trainable tensors and work ----------------------------------------------------------------------------------------


def _dense_trainable(shapes: Sequence[Shape], features: int, bias: bool, axis: int) -> dict[str, Shape]:
    return {"weight": (features, shapes[0][axis])} | ({"bias": (features,)} if bias else {})


def _conv_trainable(shapes: Sequence[Shape], features: int, kernel: Shape, *rest: Any) -> dict[str, Shape]:
    groups, bias = rest[-2:]
    weight = {"weight": (features, shapes[0][0] // groups, *kernel)}
    return weight | ({"bias": (features,)} if bias else {})


def _scale_and_bias(axis_of: Callable[..., int]) -> Callable[..., dict[str, Shape]]:
    def trainable(shapes: Sequence[Shape], *params: Any) -> dict[str, Shape]:
        size = (shapes[0][axis_of(*params)],)
        return {"weight": size, "bias": size}

    return trainable


def _each(operations: int) -> Callable[..., int]:
    return lambda shapes, shape, *params: operations * math.prod(shape)


def _dense_flops(shapes: Sequence[Shape], shape: Shape, features: int, bias: bool, axis: int) -> int:
    return 2 * math.prod(shape) * shapes[0][axis]


def _conv_flops(shapes: Sequence[Shape], shape: Shape, features: int, kernel: Shape, *rest: Any) -> int:
    return 2 * math.prod(shape) * math.prod(kernel) * (shapes[0][0] // rest[-2])


def _pool_flops(shapes: Sequence[Shape], shape: Shape, kernel: Shape, *rest: Any) -> int:
    return math.prod(shape) * math.prod(kernel)


_INT, _COUNT, _INTS, _PAIR = ("int", REQUIRED), ("count", REQUIRED), ("ints", REQUIRED), ("pair", REQUIRED)
_AXIS, _EPSILON = ("int", None), ("float", 1e-5)
_POOL = {"kernel": _PAIR, "stride": ("pair", None), "padding": ("pair", (0, 0))}
_SOURCE, _PRIMITIVE, _STRUCTURAL = "source", "primitive", "structural"
_LINEAR, _NONLINEAR, _NEITHER = "linear", "nonlinear", "neither"
_AXIS_FIRST = _scale_and_bias(lambda axis, epsilon: axis)

OPS: dict[str, OpSpec] = {
    spec.name: spec
    for spec in (
        OpSpec("input", 0, {"name": ("str", REQUIRED), "shape": _INTS}, lambda _, name, shape: shape,
               _SOURCE, _NEITHER, _each(0)),
        OpSpec("param", 0, {"shape": _INTS, "init": ("init", "normal")}, lambda _, shape, init: shape,
               _SOURCE, _NEITHER, _each(0), lambda _, shape, init: {"weight": shape}),
        OpSpec("dense", 1, {"features": _COUNT, "bias": ("bool", True), "axis": _AXIS}, _dense,
               _PRIMITIVE, _LINEAR, _dense_flops, _dense_trainable, _dense_normal),
        OpSpec("conv", 1, {"features": _COUNT, "kernel": _PAIR, "stride": ("pair", (1, 1)), "padding": ("pair", None),
                           "dilation": ("pair", (1, 1)), "groups": ("count", 1), "bias": ("bool", True)}, _conv,
               _PRIMITIVE, _LINEAR, _conv_flops, _conv_trainable, _conv_normal),
        OpSpec("add", 2, {}, lambda shapes: broadcast(*shapes), _STRUCTURAL, _LINEAR, _each(1)),
        OpSpec("mul", 2, {}, lambda shapes: broadcast(*shapes), _STRUCTURAL, _LINEAR, _each(1)),
        OpSpec("matmul", 2, {}, _matmul, _STRUCTURAL, _LINEAR,
               lambda shapes, shape: 2 * math.prod(shape) * shapes[0][-1]),
        OpSpec("smul", 1, {"factor": ("float", REQUIRED)}, _first, _PRIMITIVE, _LINEAR, _each(1)),
        OpSpec("relu", 1, {}, _first, _PRIMITIVE, _NONLINEAR, _each(1)),
        OpSpec("gelu", 1, {}, _first, _PRIMITIVE, _NONLINEAR, _each(8)),
        OpSpec("silu", 1, {}, _first, _PRIMITIVE, _NONLINEAR, _each(5)),
        OpSpec("sigmoid", 1, {}, _first, _PRIMITIVE, _NONLINEAR, _each(4)),
        OpSpec("softmax", 1, {"axis": _AXIS}, _first, _PRIMITIVE, _NONLINEAR, _each(5), normal=_axis_normal),
        OpSpec("batch_norm", 1, {"axis": _AXIS, "epsilon": _EPSILON}, _first,
               _PRIMITIVE, _LINEAR, _each(4), _AXIS_FIRST, _axis_normal),
        OpSpec("layer_norm", 1, {"axis": _AXIS, "epsilon": _EPSILON}, _first,
               _PRIMITIVE, _LINEAR, _each(8), _AXIS_FIRST, _axis_normal),
        OpSpec("group_norm", 1, {"groups": _COUNT, "epsilon": _EPSILON}, _group_norm,
               _PRIMITIVE, _LINEAR, _each(8), _scale_and_bias(lambda *_: 0)),
        OpSpec("dropout", 1, {"rate": ("rate", 0.1)}, _first, _PRIMITIVE, _NEITHER, _each(0)),
        OpSpec("avg_pool", 1, _POOL, _pool, _PRIMITIVE, _LINEAR, _pool_flops, normal=_pool_normal),
        OpSpec("max_pool", 1, _POOL, _pool, _PRIMITIVE, _LINEAR, _pool_flops, normal=_pool_normal),
        OpSpec("mean", 1, {"axes": _INTS, "keep": ("bool", False)}, _mean, _STRUCTURAL, _LINEAR,
               lambda shapes, shape, *params: math.prod(shapes[0]), normal=_mean_normal),
        OpSpec("reshape", 1, {"shape": _INTS}, _reshape, _STRUCTURAL, _NEITHER, _each(0), normal=_reshape_normal),
        OpSpec("transpose", 1, {"perm": _INTS}, _transpose, _STRUCTURAL, _NEITHER, _each(0),
               normal=_transpose_normal),
        OpSpec("slice", 1, {"axis": _INT, "start": _INT, "stop": _INT}, _slice, _STRUCTURAL, _NEITHER, _each(0),
               normal=_axis_normal),
        OpSpec("concat", -1, {"axis": _INT}, _concat, _STRUCTURAL, _NEITHER, _each(0), normal=_axis_normal),
    )
}  # fmt: skip
PRIMITIVES = tuple(name for name, spec in OPS.items() if spec.role == _PRIMITIVE)
