"""What is timed for a calibration: kernels by operator and shape, and the design that draws them.

A :class:`Kernel` is one call of an operator at one shape: ``mm`` with ``batch, m, n, k``. The columns that say a shape
depend on the family of the operator (:data:`COLUMNS`); they are the columns of a table of kernel times too
(:mod:`graphopt_gym.hardware.calibration.table`). Operators have the names that a captured graph gives them, with a
variant behind a colon where one name covers kernels of different speed, as in
:mod:`graphopt_gym.hardware.terms`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from graphopt_gym.graphs.graph import DTYPE_BYTES
from graphopt_gym.hardware.terms import LANES, Work, attention_work, conv_work, generic_work, product_work

# family -> the columns that say the shape of its kernels
COLUMNS: dict[str, tuple[str, ...]] = {
    "product": ("batch", "m", "n", "k"),  # [batch, m, k] x [batch, k, n]
    "attention": ("batch", "m", "n", "k"),  # batch x heads, queries, keys, width of a head
    "conv": ("batch", "in_channels", "out_channels", "groups", "kernel", "size", "stride", "padding"),
    "pool": ("batch", "in_channels", "kernel", "size", "stride", "padding"),
    "channels": ("batch", "in_channels", "size"),  # square images
    "table": ("rows", "columns", "m"),  # rows looked up, width, rows of the table
    "array": ("rows", "columns"),
}
SHAPE_COLUMNS = ("batch", "m", "n", "k", "in_channels", "out_channels", "groups", "kernel", "size", "stride",
                 "padding", "rows", "columns")  # fmt: skip
OPTIONAL = {"batch": 1, "groups": 1, "stride": 1, "padding": 0}  # what an empty field stands for
FLOATING = ("float32", "float64", "float16", "bfloat16")


class Op(NamedTuple):
    """What there is to know of an operator without running it.

    ``tensors``: how many tensors of the array's size are read and written. ``rows``: whether a row costs something by
    itself.
    """

    family: str
    op_class: str
    tensors: tuple[float, float] = (1, 1)
    rows: bool = False


def _array(op_class: str, names: str, reads: float, writes: float, rows: bool = False) -> dict[str, Op]:
    return {name: Op("array", op_class, (reads, writes), rows) for name in names.split()}


OPS: dict[str, Op] = {
    "mm": Op("product", "matmul"),
    "addmm": Op("product", "matmul"),
    "bmm": Op("product", "matmul"),
    "baddbmm": Op("product", "matmul"),
    **{f"{name}:thin": Op("product", "matmul") for name in ("mm", "addmm", "bmm", "baddbmm")},
    "linear": Op("product", "matmul"),  # tables of others: x @ w.T, without a bias
    "scaled_dot_product_attention": Op("attention", "matmul"),
    "scaled_dot_product_attention_backward": Op("attention", "matmul"),
    **{
        f"convolution{direction}{variant}": Op("conv", "conv")
        for direction in ("", "_backward", "_backward:weight")
        for variant in ("", ":1x1", ":grouped", ":depthwise")
        if not (variant and ":" in direction)
    },
    **_array("elementwise", "relu gelu tanh sigmoid silu exp sqrt rsqrt pow neg log hardswish abs erf", 1, 1),
    **_array("elementwise", "add mul div sub", 2, 1),
    **_array("elementwise", "add:scalar mul:scalar div:scalar pow:scalar", 1, 1),
    **_array("elementwise", "add:transposed mul:transposed", 2, 1),
    **_array("elementwise", "threshold_backward gelu_backward tanh_backward sigmoid_backward silu_backward", 2, 1),
    **_array("elementwise", "where", 2.25, 1),
    **_array("elementwise", "masked_fill", 1.25, 1),
    **_array("elementwise", "native_dropout", 1, 1.25),
    **_array("elementwise", "native_dropout_backward", 1.25, 1),
    **_array("elementwise", "bernoulli fill", 0, 1),
    **_array("reduction", "sum:inner mean:inner amax:inner", 1, 0, rows=True),
    **_array("reduction", "sum:outer", 1, 0),
    **_array("softmax", "_softmax _log_softmax", 1, 1, rows=True),
    **_array("softmax", "_softmax_backward_data _log_softmax_backward_data", 2, 1, rows=True),
    **_array("norm", "native_layer_norm", 1, 1, rows=True),
    **_array("norm", "native_layer_norm_backward", 2, 1, rows=True),
    "native_batch_norm": Op("channels", "norm", (1, 1), True),
    "native_batch_norm:eval": Op("channels", "norm", (1, 1), True),
    "native_batch_norm_backward": Op("channels", "norm", (2, 1), True),
    "native_group_norm": Op("channels", "norm", (1, 1), True),
    "native_group_norm_backward": Op("channels", "norm", (2, 1), True),
    "max_pool2d_with_indices": Op("pool", "pool"),
    "max_pool2d_with_indices_backward": Op("pool", "pool"),
    "avg_pool2d": Op("pool", "pool"),
    "avg_pool2d_backward": Op("pool", "pool"),
    **_array("gather", "nll_loss_forward", 1, 0, rows=True),
    **_array("gather", "nll_loss_backward", 1, 1, rows=True),
    "embedding": Op("table", "gather", (1, 1), True),
    "embedding_dense_backward": Op("table", "gather", (1, 1), True),
    "index_select": Op("table", "gather", (1, 1), True),
    **_array("copy", "clone clone:permuted clone:transposed cat _to_copy", 1, 1),
    **_array("copy", "copy slice_backward", 1, 1),
    **_array("optimizer", "adam adam:zeros", 4, 3),
    **_array("optimizer", "momentum", 3, 2),
    **_array("optimizer", "sgd", 2, 1),
}


@dataclass(frozen=True)
class Kernel:
    """One call of an operator at one shape.

    Args:
        op: one of :data:`OPS`.
        dtype: of its floating-point tensors.
        shape: values by column, those of :data:`COLUMNS` for the operator's family.
    """

    op: str
    dtype: str
    shape: Mapping[str, int]

    @property
    def key(self) -> tuple[object, ...]:
        """What two equal kernels have in common."""
        return (self.op, self.dtype, *(self.shape[name] for name in COLUMNS[OPS[self.op].family]))

    @property
    def work(self) -> Work:
        """What the kernel does, as the cost model's terms count it."""
        op, s, item = OPS[self.op], self.shape, DTYPE_BYTES[self.dtype]
        if op.family == "product":
            added = {"addmm": s["n"], "baddbmm": s["batch"] * s["m"] * s["n"]}.get(self.op.split(":")[0], 0)
            return product_work(s["batch"], s["m"], s["n"], s["k"], item, added * item)
        if op.family == "attention":
            backward = self.op.endswith("backward")
            return attention_work(s["batch"], s["m"], s["n"], s["k"], item, backward)
        if op.family == "conv":
            return conv_work(
                s["batch"], s["in_channels"], s["out_channels"], s["groups"], s["kernel"] ** 2, s["size"] ** 2,
                output_size(s) ** 2, item, 2 if "_backward" in self.op and ":weight" not in self.op else 1,
            )  # fmt: skip
        if op.family == "pool":
            inside, outside = (s["batch"] * s["in_channels"] * side**2 for side in (s["size"], output_size(s)))
            index = 8 * outside if self.op.startswith("max") else 0
            moved: float = (inside + outside) * item + index
            if self.op.endswith("backward"):
                moved += inside * item
            written = (inside if self.op.endswith("backward") else outside) * item
            return generic_work(moved, outside * s["kernel"] ** 2, written)
        if op.family == "channels":
            elements = s["batch"] * s["in_channels"] * s["size"] ** 2
            return generic_work(sum(op.tensors) * elements * item, s["batch"] * s["in_channels"], elements * item)
        if op.family == "table":
            looked_up = s["rows"] * s["columns"] * item
            if self.op.endswith("backward"):
                table = s["m"] * s["columns"] * item
                return generic_work(looked_up + 8 * s["rows"] + table, s["rows"], table)
            return generic_work(2 * looked_up + 8 * s["rows"], s["rows"], looked_up)
        elements = s["rows"] * s["columns"]
        if self.op == "_to_copy":
            return generic_work((4 + 2) * elements, 0, 2 * elements)
        moved = sum(op.tensors) * elements * item
        if op.op_class == "reduction":
            moved += (s["rows"] if self.op.endswith("inner") else s["columns"]) * item
        made = (1 if op.op_class == "optimizer" else op.tensors[1]) * elements * item
        return generic_work(moved, s["rows"] if op.rows else 0, made)


def output_size(shape: Mapping[str, int]) -> int:
    """The side of a convolution's or a pool's output."""
    return (shape["size"] + 2 * shape["padding"] - shape["kernel"]) // shape["stride"] + 1


# --- the design -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limits:
    """How large kernels get: elements of an array, FLOPs of a product or convolution, and how many are drawn."""

    elements: int
    flops: float
    products: int
    convolutions: int
    sizes: int


LIMITS = {
    ("cpu", False): Limits(2**24, 3e9, 200, 160, 10),
    ("cpu", True): Limits(2**21, 5e8, 48, 36, 5),
    ("gpu", False): Limits(2**27, 3e12, 220, 140, 10),
    ("gpu", True): Limits(2**25, 3e11, 80, 50, 6),
}


def design(kind: str, dtype: str, quick: bool = False, seed: int = 0) -> list[Kernel]:
    """The kernels of a calibration, the same for the same arguments.

    Sizes are drawn log-uniformly: a kernel of a few microseconds is as likely as one of the largest. Most channels and
    widths are multiples of 8, as in models.

    Args:
        kind: ``"cpu"`` or ``"gpu"``.
        dtype: of all of them.
        quick: a third of the kernels, and no large ones.
        seed: of the draw.
    """
    limits = LIMITS[kind, quick]
    rng = np.random.default_rng([seed, DTYPE_BYTES[dtype]])
    drawn = [*_products(limits, rng), *_convolutions(limits, rng), *_others(limits, rng)]
    kernels = [Kernel(op, dtype, shape) for op, shape in drawn if not (op == "_to_copy" and dtype != "float32")]
    return list({kernel.key: kernel for kernel in kernels}.values())


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> int:
    return round(math.exp(rng.uniform(math.log(low), math.log(high))))


def _width(rng: np.random.Generator, low: float, high: float) -> int:
    """Log-uniform; above 16 mostly a multiple of 16, or of 8: what models have."""
    value, chance = _log_uniform(rng, low, high), rng.random()
    if value < 16 or chance < 0.1:
        return max(1, value)
    step = 16 if chance < 0.8 else 8
    return value // step * step


def _accepted(draw: Callable[[], tuple[float, dict[str, int]]], low: float, high: float) -> dict[str, int]:
    """A shape whose FLOPs, drawn along, lie between two bounds."""
    while True:
        flops, shape = draw()
        if low <= flops <= high:
            return shape


def _products(limits: Limits, rng: np.random.Generator) -> Iterator[tuple[str, dict[str, int]]]:
    wide = 4096 if limits.flops < 1e10 else 16384

    def product(thin: bool, most: int, batches: int) -> tuple[float, dict[str, int]]:
        batch = _log_uniform(rng, 2, batches) if batches else 1
        m, n, k = _width(rng, LANES, most), _width(rng, LANES, most), _width(rng, 8, most)
        if thin:
            short = _log_uniform(rng, 1, LANES - 1)
            m, n = (short, n) if rng.random() < 0.7 else (m, short)
        return 2 * batch * m * n * k * (batch * m * n < limits.elements), {"batch": batch, "m": m, "n": n, "k": k}

    for op, share, most, batches in (("mm", 0.45, wide, 0), ("addmm", 0.25, wide, 0), ("bmm", 0.2, 1024, 128),
                                     ("baddbmm", 0.1, 1024, 128)):  # fmt: skip
        for thin, part in ((False, 0.75), (True, 0.25)):
            for _ in range(max(4, round(part * share * limits.products))):
                shape = _accepted(partial(product, thin, most, batches), 2e4, limits.flops)
                yield f"{op}:thin" if thin else op, shape

    def heads() -> tuple[float, dict[str, int]]:
        length = _width(rng, 16, 1024)
        shape = {"batch": _log_uniform(rng, 2, 128), "m": length, "n": length, "k": int(rng.choice([32, 64, 128]))}
        return 4 * shape["batch"] * length * length * shape["k"], shape

    for op in ("scaled_dot_product_attention", "scaled_dot_product_attention_backward"):
        for _ in range(max(4, limits.products // 12)):
            yield op, _accepted(heads, 1e6, limits.flops / 2)


def _convolutions(limits: Limits, rng: np.random.Generator) -> Iterator[tuple[str, dict[str, int]]]:
    def any_shape(variant: str) -> tuple[float, dict[str, int]]:
        kernel = 1 if variant == ":1x1" else int(rng.choice([3, 3, 3, 3, 5, 7]))
        stride = int(rng.choice([1, 1, 1, 2]))
        size = _log_uniform(rng, 2, 128)
        inputs, outputs, groups = _width(rng, 8, 1024), _width(rng, 8, 1024), 1
        if variant == ":depthwise":
            outputs = groups = inputs
        elif variant == ":grouped":
            groups = int(rng.choice([2, 4, 8, 16, 32]))
            inputs, outputs = groups * max(inputs // groups, 4), groups * max(outputs // groups, 4)
        elif rng.random() < 0.1 and not variant:
            inputs = 3  # images
            if rng.random() < 0.3:  # cut into patches
                kernel = stride = int(rng.choice([4, 8, 16]))
        shape = {
            "batch": _log_uniform(rng, 1, 32), "in_channels": inputs, "out_channels": outputs, "groups": groups,
            "kernel": kernel, "size": size, "stride": stride, "padding": kernel // 2 if kernel % 2 else 0,
        }  # fmt: skip
        side = output_size(shape)
        images = shape["batch"] * max(inputs * size**2, outputs * side**2)
        flops = 2 * shape["batch"] * outputs * side**2 * (inputs // groups) * kernel**2
        fits = images < limits.elements and side > 0 and inputs // groups * outputs * kernel**2 < 2**23
        return flops * fits, shape

    def count(share: float) -> int:
        return max(4, round(share * limits.convolutions))

    for op in ("convolution", "convolution_backward"):
        for variant, share, most in (
            ("", 0.5, 1.0),
            (":1x1", 0.3, 1.0),
            (":grouped", 0.2, 0.5),
            (":depthwise", 0.2, 0.1),
        ):
            for _ in range(count(share)):
                yield op + variant, _accepted(partial(any_shape, variant), 2e5, most * limits.flops)
    for _ in range(count(0.2)):
        yield "convolution_backward:weight", _accepted(partial(any_shape, ""), 1e6, limits.flops)


def _others(limits: Limits, rng: np.random.Generator) -> Iterator[tuple[str, dict[str, int]]]:
    for name, op in OPS.items():
        if name == "linear" or op.family in ("product", "attention", "conv"):
            continue
        # one size from each of as many equal parts of the range, so that none is left out
        edges = np.linspace(math.log(256), math.log(limits.elements), limits.sizes + 1)
        for low, high in pairwise(edges):
            elements = math.exp(rng.uniform(low, high))
            yield name, _other_shape(name, op, elements, rng)


def _other_shape(name: str, op: Op, elements: float, rng: np.random.Generator) -> dict[str, int]:
    if op.family in ("pool", "channels"):
        size = int(rng.choice([side for side in (7, 14, 28, 32, 56, 112) if side**2 <= max(elements / 8, 50)]))
        planes = max(1, round(elements / size**2))
        channels = min(planes, _width(rng, 8, 512))
        if name.startswith("native_group_norm"):
            channels = max(32, channels // 32 * 32)
        shape = {"batch": max(1, planes // channels), "in_channels": channels, "size": size}
        if op.family == "pool":
            kernel = int(rng.choice([2, 3]))
            shape |= {"kernel": kernel, "stride": 2, "padding": kernel // 2 if kernel == 3 else 0}
        return shape
    if name.startswith(("_softmax", "_log_softmax")):
        columns = _log_uniform(rng, 16, min(4096, elements / 4))
    elif op.op_class == "optimizer":
        columns = max(1, round(elements))
    elif name.startswith("clone:"):
        columns = int(rng.choice([32, 64, 128]))
    else:
        columns = _width(rng, 32, min(2048, max(elements / 4, 33)))
    shape = {"rows": max(1, round(elements / columns)), "columns": columns}
    if op.family == "table":
        shape["m"] = min(_log_uniform(rng, 1000, 50000), 2**23 // columns)  # as large as those of models
    return shape
