"""Running a TensorProgram: with numpy, or with torch (imported when asked for).

What an ``opaque`` operator computes is not in a program. It is run as an uninterpreted function: a fixed one of its
name that depends on every element of every operand. Two programs that agree for such functions agree for whatever the
operators are, so a rewrite can be checked; what comes out is not what the ONNX file computes, which onnxruntime runs.
For the same reason ``sqrt``, ``log`` and powers that are no whole numbers take the absolute value: of random values
half would give NaN, which says nothing of what is computed from it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from graphopt_gym.errors import InputError, unknown_name
from graphopt_gym.graphs.tensor_program.ops import FOREIGN, OPS, Padding, Shape, pads_of
from graphopt_gym.graphs.tensor_program.program import TensorProgram

OPAQUE_PARAMS = len(OPS["opaque"].params)
BACKENDS = ("numpy", "torch")
DTYPES = ("float32", "float64")


class RandomValues(Mapping[str, np.ndarray]):
    """A value for each leaf of a program, by name, made anew each time it is asked for.

    Normal, weights scaled by 1 / sqrt(fan in) so that deep programs stay finite. A leaf's value depends on the seed,
    its name and its shape alone, so that a program and its rewritten form get the same ones.
    """

    def __init__(self, program: TensorProgram, seed: int = 0, dtype: str = "float64") -> None:
        self.seed, self.dtype = seed, dtype
        self._leaves = {name: (op, shape) for op in ("input", "weight") for name, shape in program.leaves(op).items()}

    def __getitem__(self, name: str) -> np.ndarray:
        op, shape = self._leaves[name]
        digest = hashlib.blake2b(f"{name}{shape}".encode(errors="backslashreplace"), digest_size=8).digest()
        random = np.random.default_rng([self.seed, int.from_bytes(digest, "little")])
        fan_in = 1
        if op == "weight" and len(shape) >= 2:
            fan_in = math.prod(shape[1:]) if len(shape) == 4 else shape[-2]
        value = np.asarray(random.standard_normal(shape))
        value /= math.sqrt(fan_in)
        return value.astype(self.dtype, copy=False)

    def __contains__(self, name: object) -> bool:
        return name in self._leaves

    def __iter__(self) -> Iterator[str]:
        return iter(self._leaves)

    def __len__(self) -> int:
        return len(self._leaves)


def random_values(program: TensorProgram, seed: int = 0, dtype: str = "float64") -> dict[str, np.ndarray]:
    """All of :class:`RandomValues` at once."""
    return dict(RandomValues(program, seed, dtype))


def execute(
    program: TensorProgram,
    values: Mapping[str, Any],
    *,
    dtype: str = "float64",
    backend: str = "numpy",
    watch: Callable[[int, np.ndarray], None] | None = None,
) -> list[np.ndarray]:
    """The program's outputs for the given values of its leaves.

    Args:
        values: an array for each leaf, inputs and weights, by name; each is asked for once, when it is first needed.
        dtype: ``float32`` or ``float64``; what everything is computed in.
        backend: ``numpy`` or ``torch``.
        watch: called with every node and its value, when that is known.

    Raises:
        InputError: a leaf has no value, or one of another shape; an unknown dtype or backend.
    """
    if dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)
    if backend not in BACKENDS:
        raise unknown_name("backend", backend, BACKENDS)
    run: Callable[..., Any] = prepare_torch(dtype) if backend == "torch" else _prepare_numpy(dtype)
    results: dict[int, Any] = {}
    left = {node: len(program.users(node)) for node in program.nodes}
    outputs = set(program.outputs)

    def result(node: int) -> Any:
        if node not in results:  # a leaf: read when first needed
            results[node] = run("leaf", _value(values, program.nodes[node].params[0], program.shape(node), dtype))
            if watch is not None:
                watch(node, np.asarray(results[node]))
        return results[node]

    for node in program.order:
        op, params, inputs, _ = program.nodes[node]
        if op not in ("input", "weight"):
            results[node] = run(op, *[result(source) for source in inputs], *params)
            if watch is not None:
                watch(node, np.asarray(results[node]))
        for source in set(inputs):  # what nobody reads any more is given up
            left[source] -= 1
            if not left[source] and source not in outputs:
                del results[source]
    return [np.asarray(result(output)) for output in program.outputs]


def _value(values: Mapping[str, Any], name: str, shape: Shape, dtype: str) -> np.ndarray:
    if name not in values:
        raise InputError(f"leaf {name!r} has no value; pass an array of shape {shape}")
    value = np.asarray(values[name], dtype=dtype)
    if value.shape != shape:
        raise InputError(f"leaf {name!r} has a value of shape {value.shape}, expected {shape}")
    return value


# -- numpy -------------------------------------------------------------------------------------------------------------


def _prepare_numpy(dtype: str) -> Callable[..., Any]:
    def run(op: str, *arguments: Any) -> Any:
        return np.asarray(NUMPY_OPS[op](*arguments), dtype=dtype)

    return run


def _activate(act: str, x: np.ndarray) -> np.ndarray:
    return x if act == "none" else NUMPY_OPS[act](x)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))


def _gelu(x: np.ndarray) -> np.ndarray:
    from scipy.special import erf

    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def windows(x: np.ndarray, kernel: Shape, stride: Shape, padding: Padding, fill: Any) -> np.ndarray:
    """[N, C, H', W', kernel height, kernel width]: a view of what each place of a kernel sees."""
    above, left, below, right = pads_of(kernel, padding)
    if above or left or below or right:
        x = np.pad(x, [(0, 0), (0, 0), (above, below), (left, right)], constant_values=fill)
    seen = np.lib.stride_tricks.sliding_window_view(x, tuple(kernel), axis=(2, 3))
    return seen[:, :, :: stride[0], :: stride[1]]


def _conv(x: np.ndarray, w: np.ndarray, stride: Shape, padding: Padding, act: str) -> np.ndarray:
    groups = x.shape[1] // w.shape[1]
    seen = windows(x, w.shape[2:], stride, padding, 0.0)
    n, _, height, width = seen.shape[:4]
    seen = seen.reshape(n, groups, w.shape[1], height, width, *w.shape[2:])
    seen = seen.transpose(1, 0, 3, 4, 2, 5, 6).reshape(groups, n * height * width, -1)
    weight = w.reshape(groups, w.shape[0] // groups, -1).transpose(0, 2, 1)
    result = (seen @ weight).reshape(groups, n, height, width, -1).transpose(1, 0, 4, 2, 3)
    return _activate(act, result.reshape(n, w.shape[0], height, width))


def _split(which: int) -> Callable[[Any, int, int], Any]:
    def split(x: Any, axis: int, at: int) -> Any:
        part = slice(at, None) if which else slice(0, at)
        return x[(slice(None),) * axis + (part,)]

    return split


def _enlarge(w: np.ndarray, size: Shape) -> np.ndarray:
    around = [((new - old) // 2,) * 2 for new, old in zip(size, w.shape[2:], strict=True)]
    return np.pad(w, [(0, 0), (0, 0), *around])


def _merge(w: np.ndarray, groups: int, count: int) -> np.ndarray:
    """Each run of ``count`` groups becomes one: an output reads the others' channels with weight 0."""
    outputs, channels, *kernel = w.shape
    parts = w.reshape(groups // count, count, outputs // groups, channels, *kernel)
    merged = np.zeros((groups // count, count, outputs // groups, count, channels, *kernel), w.dtype)
    for i in range(count):
        merged[:, i, :, i] = parts[:, i]
    return merged.reshape(outputs, count * channels, *kernel)


def _identity_kernel(shape: Shape) -> np.ndarray:
    kernel = np.zeros(shape)
    outputs = np.arange(shape[0])
    kernel[outputs, outputs % shape[1], shape[2] // 2, shape[3] // 2] = 1
    return kernel


def _pool_kernel(channels: int, kernel: Shape) -> np.ndarray:
    return np.full((channels, 1, *kernel), 1 / math.prod(kernel))


def _softmax(x: np.ndarray, axis: int) -> np.ndarray:
    raised = np.exp(x - x.max(axis=axis, keepdims=True))
    return raised / raised.sum(axis=axis, keepdims=True)


def _layernorm(x: np.ndarray, scale: np.ndarray, bias: np.ndarray, epsilon: float) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + epsilon) * scale + bias


def _erf(x: np.ndarray) -> np.ndarray:
    from scipy.special import erf

    return np.asarray(erf(x))


def _reduce(how: Callable[..., Any]) -> Callable[[Any, Shape, int], Any]:
    return lambda x, axes, keepdims: how(x, axis=axes, keepdims=bool(keepdims))


def _max_pool(x: np.ndarray, kernel: Shape, stride: Shape, padding: Padding) -> np.ndarray:
    return windows(x, kernel, stride, padding, -np.inf).max(axis=(4, 5))


def _average_pool(x: np.ndarray, kernel: Shape, stride: Shape, padding: Padding) -> np.ndarray:
    return windows(x, kernel, stride, padding, 0.0).mean(axis=(4, 5))


def _concat(*arguments: Any) -> np.ndarray:
    return np.concatenate(arguments[:-1], axis=arguments[-1])


def _opaque(*arguments: Any) -> np.ndarray:
    operands, (kind, name, shape, *_) = arguments[:-OPAQUE_PARAMS], arguments[-OPAQUE_PARAMS:]
    return _uninterpreted(f"{kind} {name}", shape, operands)


def _getitem(x: np.ndarray, index: int, shape: Shape, dtype: str) -> np.ndarray:
    return _uninterpreted(f"getitem {index}", shape, [x])


def _uninterpreted(name: str, shape: Shape, operands: Sequence[np.ndarray]) -> np.ndarray:
    """Of each operand, weighted sums: as many as the result has elements, each element in one or more of them."""
    size = math.prod(shape)
    seed = int.from_bytes(hashlib.blake2b(name.encode(errors="backslashreplace"), digest_size=8).digest(), "little")
    total = np.random.default_rng([seed, 0]).standard_normal(size)
    for place, operand in enumerate(operands, start=1):
        if size == 0 or operand.size == 0:
            continue
        random = np.random.default_rng([seed, place])
        length = max(size, operand.size)
        length += -length % size
        terms = np.zeros(length)
        terms[: max(size, operand.size)] = np.resize(operand, max(size, operand.size))
        terms *= random.standard_normal(length)
        total += terms.reshape(-1, size).sum(axis=0) / math.sqrt(length // size)
    total /= math.sqrt(1 + len(operands))
    return (total + np.sin(total) / 2).reshape(shape)


NUMPY_OPS: dict[str, Callable[..., Any]] = {
    "leaf": lambda value: value,
    "add": np.add,
    "mul": np.multiply,
    "smul": np.multiply,
    "matmul": lambda x, y, act: _activate(act, x @ y),
    "conv2d": _conv,
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "transpose": np.transpose,
    "enlarge": _enlarge,
    "concat": _concat,
    "split0": _split(0),
    "split1": _split(1),
    "maxpool": _max_pool,
    "avgpool": _average_pool,
    "reshape": np.reshape,
    "merge": _merge,
    "eye": np.eye,
    "identity_kernel": _identity_kernel,
    "pool_kernel": _pool_kernel,
    "softmax": _softmax,
    "layernorm": _layernorm,
    "gelu": _gelu,
    "sub": np.subtract,
    "div": np.divide,
    "erf": _erf,
    "sqrt": lambda x: np.sqrt(np.abs(x)),
    "reciprocal": lambda x: 1 / x,
    "exp": np.exp,
    "log": lambda x: np.log(np.abs(x)),
    "abs": np.abs,
    "hardswish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "clip": np.clip,
    "power": lambda x, exponent: np.power(x if exponent % 1 == 0 else np.abs(x), exponent),
    "leakyrelu": lambda x, alpha: np.where(x < 0, alpha * x, x),
    "hardsigmoid": lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1),
    "reducesum": _reduce(np.sum),
    "reducemean": _reduce(np.mean),
    "opaque": _opaque,
    "getitem": _getitem,
}

# -- torch -------------------------------------------------------------------------------------------------------------


def prepare_torch(dtype: str) -> Callable[..., Any]:
    """A function (op, *operands, *parameters) -> tensor on torch's CPU; op ``leaf`` takes an array."""
    import torch
    import torch.nn.functional as F

    kind = getattr(torch, dtype)
    # in place: a fused activation writes no tensor of its own
    activations = {"none": lambda x: x, "relu": torch.relu_, "sigmoid": torch.sigmoid_, "tanh": torch.tanh_}

    def padded(x: Any, kernel: Shape, padding: Padding, fill: float) -> tuple[Any, Shape]:
        """An image, and what torch is to pad: the same on both sides; else it is padded here."""
        above, left, below, right = pads_of(kernel, padding)
        alike = (above, left) == (below, right) and 2 * above <= kernel[0] and 2 * left <= kernel[1]
        return (x, (above, left)) if alike else (F.pad(x, (left, right, above, below), value=fill), (0, 0))

    def padded_window(x: Any, kernel: Shape, stride: Shape, padding: Padding, fill: float) -> tuple[Any, ...]:
        x, around = padded(x, kernel, padding, fill)
        return x, kernel, stride, around

    def conv(x: Any, w: Any, stride: Shape, padding: Padding, act: str) -> Any:
        x, around = padded(x, w.shape[2:], padding, 0.0)
        return activations[act](F.conv2d(x, w, None, stride, around, 1, x.shape[1] // w.shape[1]))

    def max_pool(x: Any, kernel: Shape, stride: Shape, padding: Padding) -> Any:
        return F.max_pool2d(*padded_window(x, kernel, stride, padding, -math.inf))

    def average_pool(x: Any, kernel: Shape, stride: Shape, padding: Padding) -> Any:
        return F.avg_pool2d(*padded_window(x, kernel, stride, padding, 0.0))

    def constant(op: str) -> Callable[..., Any]:
        return lambda *params: torch.as_tensor(np.asarray(NUMPY_OPS[op](*params)), dtype=kind)

    def rebuilt(op: str) -> Callable[..., Any]:
        return lambda w, *params: torch.as_tensor(NUMPY_OPS[op](w.numpy(), *params))

    def foreign(op: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            given = [x.numpy() if isinstance(x, torch.Tensor) else x for x in arguments]
            return torch.as_tensor(NUMPY_OPS[op](*given), dtype=kind)

        return call

    table: dict[str, Callable[..., Any]] = {
        "leaf": lambda value: torch.from_numpy(np.require(value, requirements="W")).to(kind),
        "add": torch.add,
        "mul": torch.mul,
        "smul": torch.mul,
        "matmul": lambda x, y, act: activations[act](x @ y),
        "conv2d": conv,
        "relu": torch.relu,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "transpose": lambda x, perm: x.permute(perm),
        "concat": lambda *arguments: torch.cat(arguments[:-1], arguments[-1]),
        "split0": _split(0),
        "split1": _split(1),
        "maxpool": max_pool,
        "avgpool": average_pool,
        "reshape": torch.reshape,
        "softmax": torch.softmax,
        "layernorm": lambda x, scale, bias, epsilon: F.layer_norm(x, x.shape[-1:], scale, bias, epsilon),
        "gelu": F.gelu,
        "sub": torch.sub,
        "div": torch.div,
        **{op: getattr(torch, op) for op in ("erf", "reciprocal", "exp", "abs")},
        "sqrt": lambda x: torch.sqrt(torch.abs(x)),
        "log": lambda x: torch.log(torch.abs(x)),
        "hardswish": F.hardswish,
        "clip": torch.clamp,
        "power": lambda x, exponent: torch.pow(x if exponent % 1 == 0 else torch.abs(x), exponent),
        "leakyrelu": F.leaky_relu,
        "hardsigmoid": lambda x, alpha, beta: torch.clamp(alpha * x + beta, 0, 1),
        "reducesum": lambda x, axes, keepdims: torch.sum(x, axes, bool(keepdims)),
        "reducemean": lambda x, axes, keepdims: torch.mean(x, axes, bool(keepdims)),
        **{op: constant(op) for op in ("eye", "identity_kernel", "pool_kernel")},
        **{op: rebuilt(op) for op in ("enlarge", "merge")},
        **{op: foreign(op) for op in FOREIGN},
    }

    def run(op: str, *arguments: Any) -> Any:
        return table[op](*arguments)

    return run


def fold_static(
    program: TensorProgram, values: Mapping[str, Any], run: Callable[..., Any], dtype: str
) -> dict[int, Any]:
    """id -> value of every node that depends on weights alone: what is computed once, before inference."""
    results: dict[int, Any] = {}
    for node in program.order:
        op, params, inputs, shape = program.nodes[node]
        if op == "weight":
            results[node] = run("leaf", _value(values, params[0], shape, dtype))
        elif program.is_static(node):
            results[node] = run(op, *[results[source] for source in inputs], *params)
    return results


def compile_torch(
    program: TensorProgram, values: Mapping[str, Any], *, dtype: str = "float32"
) -> Callable[[Sequence[Any]], list[Any]]:
    """A function that runs the program at inference on torch's CPU, weights folded beforehand; for measuring time.

    It takes the inputs' tensors in the order of ``program.leaves("input")`` and returns the outputs' tensors.
    """
    run = prepare_torch(dtype)
    folded = fold_static(program, values, run, dtype)
    live = {node for node in folded if node in program.outputs or any(n not in folded for n in program.users(node))}
    constants = {node: folded[node].contiguous() for node in live}
    inputs = [node for node in program.order if program.nodes[node].op == "input"]
    steps = [
        (node, program.nodes[node].op, program.nodes[node].inputs, program.nodes[node].params)
        for node in program.order
        if not program.is_static(node) and program.nodes[node].op != "input"
    ]

    def call(tensors: Sequence[Any]) -> list[Any]:
        results = constants | dict(zip(inputs, tensors, strict=True))
        for node, op, sources, params in steps:
            results[node] = run(op, *[results[source] for source in sources], *params)
        return [results[output] for output in program.outputs]

    return call
