"""The operators of a TensorProgram: operands, parameters, shapes.

TENSAT's: ``add mul smul matmul conv2d relu tanh sigmoid transpose enlarge concat split maxpool avgpool reshape merge
input weight``. Where ours differ:

- ``add`` and ``mul`` broadcast as numpy does; the batch dimensions of ``matmul`` too.
- ``smul(x, s)`` takes its factor as an operand of shape ``()``, as TASO does, so that it can be folded into a weight.
- ``conv2d`` has no parameter for groups: they follow from the shapes, ``x.channels / w.shape[1]``, as in TASO.
- ``same`` padding adds ``(kernel - 1) / 2`` zeros on both sides (odd kernels only), whatever the stride, so that a
  kernel enlarged with zeros gives the same result. A kernel of 1 x 1 pads nothing, so its padding is stored as same.
- ``avgpool`` counts padded zeros (as PyTorch does by default), so that it is a convolution.
- ``split`` says where: ``split0(x, axis, at)`` is the part before index ``at``, ``split1`` the rest, in place of
  TENSAT's "at the place of the latest concat" with projections ``split_0`` and ``split_1``; so a program has no hidden
  state.
- ``enlarge`` takes the size, not a reference kernel; ``merge`` takes how many groups there were, which says how the
  output channels belong to them.
- ``concat`` takes two operands or more.
- ``input`` and ``weight`` may say a ``dtype``: what tensors are priced as; what they compute does not depend on it.

- ``padding`` of convolutions and pools may be four numbers, too: zeros above, left, below, right.

Ours: ``eye``, ``identity_kernel``, ``pool_kernel`` (TENSAT's constants Imatmul, Iconv, Cpool), ``softmax``,
``layernorm``, ``gelu``, and what whole networks have beside (:data:`MORE`): ``sub``, ``div``, element-wise functions
(``erf sqrt reciprocal exp log abs clip power leakyrelu hardsigmoid hardswish``), sums and means along axes. Of these
rules know only that a part of the result needs a part of the operand.

``opaque`` stands for an operator that the language does not know, such as an LSTM of an ONNX file: it reads any number
of tensors, its ``name`` says which operator of the file it is, and no rule matches it. Its ``shape`` and ``dtype`` are
those of one of its results; ``getitem`` is another. ``op_class``, ``flops`` and bytes are what the cost model needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graphopt_gym.errors import InputError, unknown_name
from graphopt_gym.graphs.graph import DTYPES, MAX_RANK, OP_CLASSES

Shape = tuple[int, ...]
Params = tuple[Any, ...]
REQUIRED = object()
ACTIVATIONS = ("none", "relu", "sigmoid", "tanh")
PADDINGS = ("same", "valid")
NAMES = frozenset(ACTIVATIONS + PADDINGS)  # the words that a parameter may be
Padding = str | Shape
FOREIGN = ("opaque", "getitem")  # of these a tensor may be empty, as what is found in data may be
_LEAST = {-1: 2, -2: 0}


class ShapeError(Exception):
    """Why operands do not fit; :func:`infer` adds the op and the shapes."""


@dataclass(frozen=True)
class OpSpec:
    """One operator.

    Attributes:
        operands: how many it reads; -1: two or more; -2: any number.
        params: parameter -> (kind, default); kinds: ``int``, ``ints``, ``float``, ``str``, ``act``, ``padding``.
        infer: (operand shapes, *parameters) -> output shape; raises ShapeError.
        normal: (operand shapes, *parameters) -> the parameters in the one form that they are stored in.
    """

    name: str
    operands: int
    params: Mapping[str, tuple[str, Any]]
    infer: Callable[..., Shape]
    normal: Callable[..., Params] | None = None


def infer(op: str, shapes: Sequence[Shape], params: Params) -> tuple[Params, Shape]:
    """The parameters of an op in normal form, and the shape of what it produces.

    Raises:
        InputError: the operands or parameters do not fit; names the op and all shapes.
    """
    spec = OPS[op]
    try:
        if len(shapes) != spec.operands and not (spec.operands < 0 and len(shapes) >= _LEAST[spec.operands]):
            wanted = str(spec.operands) if spec.operands >= 0 else "two or more"
            raise ShapeError(f"takes {wanted} operands, got {len(shapes)}")
        if spec.normal is not None:
            params = spec.normal(shapes, *params)
        shape = spec.infer(shapes, *params)
        if len(shape) > MAX_RANK or any(size < (op not in FOREIGN) for size in shape):
            raise ShapeError(f"gives shape {shape}; sizes must be positive, at most {MAX_RANK} of them")
        return params, shape
    except ShapeError as error:
        raise refused(op, shapes, dict(zip(spec.params, params, strict=True)), error) from None


def refused(op: str, shapes: Sequence[Shape], params: Mapping[str, Any], error: ShapeError) -> InputError:
    """What is said of an op whose operands or parameters do not fit: the op, its parameters, why, and all shapes."""
    operands = f"; operand shapes {' and '.join(map(str, shapes))}" if shapes else ""
    settings = ", ".join(f"{name}={value}" for name, value in params.items())
    return InputError(f"{op}({settings}) {error}{operands}")


def make_params(op: str, given: Mapping[str, Any]) -> Params:
    """Parameters by name, as the tuple in the operator's order, with defaults filled in.

    Raises:
        InputError: unknown operator or parameter, one is missing, or has the wrong type.
    """
    return params_of(OPS, op, given, _checked)


def params_of(
    ops: Mapping[str, Any], op: str, given: Mapping[str, Any], checked: Callable[[str, str, str, Any], Any]
) -> Params:
    """As :func:`make_params`, of any table of operators whose specs have ``params``: parameter -> (kind, default).

    Args:
        checked: (operator, parameter, kind, value) -> the value in its one form, or InputError. A value of None is not
            asked where it is the default.
    """
    if op not in ops:
        raise unknown_name("operator", op, ops)
    spec = ops[op]
    for name in given:
        if name not in spec.params:
            raise unknown_name(f"{op}: parameter", name, spec.params)
    values = []
    for name, (kind, default) in spec.params.items():
        value = given.get(name, default)
        if value is REQUIRED:
            raise InputError(f"{op}: parameter {name!r} is missing")
        values.append(value if value is None and default is None else checked(op, name, kind, value))
    return tuple(values)


def _checked(op: str, name: str, kind: str, value: Any) -> Any:
    if kind == "int" and _is_int(value):
        return int(value)
    if kind == "ints" and isinstance(value, Sequence) and not isinstance(value, str) and all(map(_is_int, value)):
        return tuple(int(item) for item in value)
    if kind == "str" and isinstance(value, str) and value:
        return value
    if kind == "float" and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if kind == "padding" and isinstance(value, tuple | list) and len(value) == 4 and all(map(_is_int, value)):
        return tuple(int(item) for item in value)
    choices = {"act": ACTIVATIONS, "padding": PADDINGS}.get(kind, ())
    if value in choices:
        return value
    wanted = {"int": "an integer", "ints": "a tuple of integers", "str": "a name in quotes", "float": "a number"}.get(
        kind
    )
    raise InputError(f"{op}: {name} is {value!r}; expected {wanted or 'one of ' + ', '.join(choices)}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def broadcast(a: Shape, b: Shape) -> Shape:
    """The shape that two shapes broadcast to, as in numpy."""
    if a == b:
        return a
    if len(a) < len(b):
        a, b = b, a
    head = len(a) - len(b)
    merged = list(a)
    for i, size in enumerate(b, start=head):
        if merged[i] != size and size != 1:
            if merged[i] != 1:
                raise ShapeError("does not broadcast")
            merged[i] = size
    return tuple(merged)


def pads_of(kernel: Shape, padding: Padding) -> tuple[int, int, int, int]:
    """Zeros added above, left, below and right of an image, as ONNX orders them."""
    if isinstance(padding, tuple):
        return padding  # type: ignore[return-value]
    height, width = ((size - 1) // 2 if padding == "same" else 0 for size in kernel)
    return height, width, height, width


def normal_padding(kernel: Shape, padding: Padding) -> Padding:
    """Padding in its one form: ``same`` or ``valid`` where it is one of these."""
    if tuple(kernel) == (1, 1) and (padding == "valid" or padding == (0, 0, 0, 0)):
        return "same"
    if isinstance(padding, tuple):
        if all(size % 2 for size in kernel) and padding == pads_of(kernel, "same"):
            return "same"
        return "valid" if not any(padding) else padding
    return padding


def _leaf(shapes: Sequence[Shape], name: str, shape: Shape, dtype: str) -> Shape:
    if dtype not in DTYPES:
        raise ShapeError(f"is of dtype {dtype!r}; known: {', '.join(DTYPES)}")
    return shape


def _elementwise(shapes: Sequence[Shape]) -> Shape:
    return broadcast(shapes[0], shapes[1])


def _smul(shapes: Sequence[Shape]) -> Shape:
    if shapes[1] != ():
        raise ShapeError("needs a factor of shape ()")
    return shapes[0]


def _first(shapes: Sequence[Shape], *params: Any) -> Shape:
    return shapes[0]


def _matmul(shapes: Sequence[Shape], act: str) -> Shape:
    x, y = shapes
    if len(x) < 2 or len(y) < 2:
        raise ShapeError("needs operands of at least two dimensions")
    if x[-1] != y[-2]:
        raise ShapeError(f"has inner sizes {x[-1]} and {y[-2]}, which differ")
    return (*broadcast(x[:-2], y[:-2]), x[-2], y[-1])


def _pair(name: str, value: Shape) -> None:
    if len(value) != 2 or min(value) < 1:
        raise ShapeError(f"needs two positive numbers as {name}")


def _windows(size: Shape, kernel: Shape, stride: Shape, padding: Padding) -> Shape:
    _pair("stride", stride)
    if isinstance(padding, tuple) and (len(padding) != 4 or min(padding) < 0):
        raise ShapeError("needs four numbers, none negative, as padding")
    if padding == "same" and not (kernel[0] % 2 and kernel[1] % 2):
        raise ShapeError(f"pads 'same' for odd kernels only, not {kernel}")
    above, left, below, right = pads_of(kernel, padding)
    padded = (size[0] + above + below, size[1] + left + right)
    places = tuple((whole - taken) // step + 1 for whole, taken, step in zip(padded, kernel, stride, strict=True))
    if min(places) < 1:
        raise ShapeError(f"has a kernel {kernel} larger than the input {size}")
    return places


def _conv_normal(shapes: Sequence[Shape], stride: Shape, padding: Padding, act: str) -> Params:
    return stride, normal_padding(shapes[1][2:], padding), act


def _conv(shapes: Sequence[Shape], stride: Shape, padding: Padding, act: str) -> Shape:
    x, w = shapes
    if len(x) != 4 or len(w) != 4:
        raise ShapeError("needs an input [N, C, H, W] and a weight [O, C / groups, H, W]")
    groups, rest = divmod(x[1], w[1])
    if rest or w[0] % groups:
        raise ShapeError(f"has {x[1]} input channels, which do not divide into groups of {w[1]} for {w[0]} outputs")
    return (x[0], w[0], *_windows(x[2:], w[2:], stride, padding))


def _pool_normal(shapes: Sequence[Shape], kernel: Shape, stride: Shape, padding: Padding) -> Params:
    return kernel, stride, normal_padding(kernel, padding)


def _pool(shapes: Sequence[Shape], kernel: Shape, stride: Shape, padding: Padding) -> Shape:
    (x,) = shapes
    _pair("kernel", kernel)
    if len(x) != 4:
        raise ShapeError("needs an input [N, C, H, W]")
    return (*x[:2], *_windows(x[2:], kernel, stride, padding))


def _transpose(shapes: Sequence[Shape], perm: Shape) -> Shape:
    (x,) = shapes
    if sorted(perm) != list(range(len(x))):
        raise ShapeError(f"needs a permutation of 0 to {len(x) - 1}")
    return tuple(x[axis] for axis in perm)


def _enlarge(shapes: Sequence[Shape], size: Shape) -> Shape:
    (w,) = shapes
    _pair("size", size)
    if len(w) != 4 or any(new < old or (new - old) % 2 for new, old in zip(size, w[2:], strict=True)):
        raise ShapeError("needs a kernel [O, C, H, W], smaller by an even number in each direction")
    return (*w[:2], *size)


def _axis(x: Shape, axis: int) -> int:
    if not -len(x) <= axis < len(x):
        raise ShapeError(f"has axis {axis}, but the operand has {len(x)} dimensions")
    return axis % len(x)


def _axis_normal(shapes: Sequence[Shape], axis: int) -> Params:
    return (_axis(shapes[0], axis),)


def _concat(shapes: Sequence[Shape], axis: int) -> Shape:
    x = shapes[0]
    for y in shapes[1:]:
        if len(y) != len(x) or x[:axis] != y[:axis] or x[axis + 1 :] != y[axis + 1 :]:
            raise ShapeError(f"needs shapes that are equal except along axis {axis}")
    return (*x[:axis], sum(y[axis] for y in shapes), *x[axis + 1 :])


def _split_normal(shapes: Sequence[Shape], axis: int, at: int) -> Params:
    return _axis(shapes[0], axis), at


def _split(which: int) -> Callable[..., Shape]:
    def infer_split(shapes: Sequence[Shape], axis: int, at: int) -> Shape:
        (x,) = shapes
        if not 0 < at < x[axis]:
            raise ShapeError(f"splits at {at}, which is not inside 0 to {x[axis]}")
        return (*x[:axis], x[axis] - at if which else at, *x[axis + 1 :])

    return infer_split


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


def _merge(shapes: Sequence[Shape], groups: int, count: int) -> Shape:
    (w,) = shapes
    if len(w) != 4 or groups < 1 or count < 1 or groups % count or w[0] % groups:
        raise ShapeError("needs a weight [O, C, H, W], groups that divide O, and a count that divides groups")
    return (w[0], w[1] * count, *w[2:])


def _eye(shapes: Sequence[Shape], n: int) -> Shape:
    return (n, n)


def _identity_kernel(shapes: Sequence[Shape], shape: Shape) -> Shape:
    if len(shape) != 4 or min(shape) < 1 or shape[0] % shape[1] or not (shape[2] % 2 and shape[3] % 2):
        raise ShapeError("needs a shape [O, C, H, W] with C dividing O, and H and W odd")
    return shape


def _pool_kernel(shapes: Sequence[Shape], channels: int, kernel: Shape) -> Shape:
    _pair("kernel", kernel)
    return (channels, 1, *kernel)


def _layernorm(shapes: Sequence[Shape], epsilon: float) -> Shape:
    x, scale, bias = shapes
    if epsilon < 0:
        raise ShapeError("needs an epsilon of 0 or more")
    if not x or scale != x[-1:] or bias != x[-1:]:
        raise ShapeError("needs a scale and a bias of the last dimension's size")
    return x


def _reduce_normal(shapes: Sequence[Shape], axes: Shape, keepdims: int) -> Params:
    return tuple(sorted({_axis(shapes[0], axis) for axis in axes})), int(bool(keepdims))


def _reduce(shapes: Sequence[Shape], axes: Shape, keepdims: int) -> Shape:
    if not axes:
        raise ShapeError("needs an axis or more")
    kept = [1 if axis in axes else size for axis, size in enumerate(shapes[0])]
    return tuple(size for axis, size in enumerate(kept) if keepdims or axis not in axes)


def _opaque(
    shapes: Sequence[Shape],
    kind: str,
    name: str,
    shape: Shape,
    dtype: str,
    op_class: str,
    flops: int,
    bytes_read: int,
    bytes_written: int,
) -> Shape:
    if op_class not in OP_CLASSES:
        raise ShapeError(f"is of op_class {op_class!r}; known: {', '.join(OP_CLASSES)}")
    if op_class == "view" and len(shapes) != 1:
        raise ShapeError(f"is a view of {len(shapes)} tensors; a view is of one (or op_class='copy')")
    if min(flops, bytes_read, bytes_written) < 0:
        raise ShapeError("has negative flops or bytes")
    return shape


def _getitem(shapes: Sequence[Shape], index: int, shape: Shape, dtype: str) -> Shape:
    if index < 0:
        raise ShapeError("counts results from 0")
    return shape


_INT, _INTS, _STR = ("int", REQUIRED), ("ints", REQUIRED), ("str", REQUIRED)
_ACT, _PAD, _STRIDE = ("act", "none"), ("padding", "same"), ("ints", (1, 1))
_DTYPE, _NONE = ("str", "float32"), ("int", 0)
_AXES = {"axes": _INTS, "keepdims": ("int", 1)}
FLOATS = ("float32", "float64", "float16", "bfloat16")
LARGEST = 3.4028234663852886e38  # of float32: clip's bound where it has none
PLAIN = ("erf", "sqrt", "reciprocal", "exp", "log", "abs", "hardswish")  # functions without parameters
PARAMETRIC = ("clip", "power", "leakyrelu", "hardsigmoid")
MORE = frozenset((*PLAIN, *PARAMETRIC, "sub", "div", "reducesum", "reducemean"))  # what published rules do not know
_POOL = {"kernel": _INTS, "stride": _STRIDE, "padding": _PAD}

OPS: dict[str, OpSpec] = {
    spec.name: spec
    for spec in (
        OpSpec("input", 0, {"name": _STR, "shape": _INTS, "dtype": _DTYPE}, _leaf),
        OpSpec("weight", 0, {"name": _STR, "shape": _INTS, "dtype": _DTYPE}, _leaf),
        OpSpec("add", 2, {}, _elementwise),
        OpSpec("mul", 2, {}, _elementwise),
        OpSpec("smul", 2, {}, _smul),
        OpSpec("matmul", 2, {"act": _ACT}, _matmul),
        OpSpec("conv2d", 2, {"stride": _STRIDE, "padding": _PAD, "act": _ACT}, _conv, _conv_normal),
        OpSpec("relu", 1, {}, _first),
        OpSpec("tanh", 1, {}, _first),
        OpSpec("sigmoid", 1, {}, _first),
        OpSpec("transpose", 1, {"perm": _INTS}, _transpose),
        OpSpec("enlarge", 1, {"size": _INTS}, _enlarge),
        OpSpec("concat", -1, {"axis": _INT}, _concat, _axis_normal),
        OpSpec("split0", 1, {"axis": _INT, "at": _INT}, _split(0), _split_normal),
        OpSpec("split1", 1, {"axis": _INT, "at": _INT}, _split(1), _split_normal),
        OpSpec("maxpool", 1, _POOL, _pool, _pool_normal),
        OpSpec("avgpool", 1, _POOL, _pool, _pool_normal),
        OpSpec("reshape", 1, {"shape": _INTS}, _reshape, _reshape_normal),
        OpSpec("merge", 1, {"groups": _INT, "count": _INT}, _merge),
        OpSpec("eye", 0, {"n": _INT}, _eye),
        OpSpec("identity_kernel", 0, {"shape": _INTS}, _identity_kernel),
        OpSpec("pool_kernel", 0, {"channels": _INT, "kernel": _INTS}, _pool_kernel),
        OpSpec("softmax", 1, {"axis": ("int", -1)}, _first, _axis_normal),
        OpSpec("layernorm", 3, {"epsilon": ("float", 1e-5)}, _layernorm),
        OpSpec("gelu", 1, {}, _first),
        OpSpec("sub", 2, {}, _elementwise),
        OpSpec("div", 2, {}, _elementwise),
        *(OpSpec(name, 1, {}, _first) for name in PLAIN),
        OpSpec("clip", 1, {"low": ("float", -LARGEST), "high": ("float", LARGEST)}, _first),
        OpSpec("power", 1, {"exponent": ("float", 2.0)}, _first),
        OpSpec("leakyrelu", 1, {"alpha": ("float", 0.01)}, _first),
        OpSpec("hardsigmoid", 1, {"alpha": ("float", 0.2), "beta": ("float", 0.5)}, _first),
        OpSpec("reducesum", 1, _AXES, _reduce, _reduce_normal),
        OpSpec("reducemean", 1, _AXES, _reduce, _reduce_normal),
        OpSpec("opaque", -2, {"kind": _STR, "name": _STR, "shape": _INTS, "dtype": _DTYPE, "op_class": ("str", "other"),
                              "flops": _NONE, "bytes_read": _NONE, "bytes_written": _NONE}, _opaque),
        OpSpec("getitem", 1, {"index": _INT, "shape": _INTS, "dtype": _DTYPE}, _getitem),
    )
}  # fmt: skip
# parameters that operators were given later; a program's fingerprint leaves them out where they are as before
ADDED = {"layernorm": 1, "input": 1, "weight": 1}
LEAVES = frozenset(name for name, spec in OPS.items() if spec.operands == 0)
