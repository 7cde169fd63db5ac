"""What kernels the ops of a graph are: the shapes and formats that the formulas of the roofline take.

Each class here reads one op class off a graph once (distinct shapes only) and prices it with the parameters of one
architecture. A *format* is what a kernel multiplies in: a dtype, or ``tfloat32`` for float32 operands on tensor cores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from graphopt_gym.graphs.graph import DTYPE_BYTES, DTYPES, OP_CLASSES, SOURCE, ComputationGraph
from graphopt_gym.hardware.cluster import TFLOAT32, Device
from graphopt_gym.hardware.roofline import (
    Parameters,
    attention_seconds,
    conv_seconds,
    gemm_seconds,
    power_left,
    power_share,
    tensor_core_seconds,
    within_power,
)

FORMATS = (*DTYPES, TFLOAT32)
TF32 = ("none", "conv", "all")
# Formats that tensor cores multiply in, and the measured format whose parameters stand for each.
TENSOR_CORE_FORMATS = {"float16": "bfloat16", "bfloat16": "bfloat16", TFLOAT32: TFLOAT32}
# Architectures without tensor cores: their float16 peak is that of the ordinary cores, two values at a time.
WITHOUT_TENSOR_CORES = ("pascal",)
# Seconds between the kernels of two groups of one convolution. Fitted, one number, to six whole models: ResNeXt-50,
# -101 and -152 (32x4d and 64x4d), T4, float32, batch 1, against ResNets from the same tables (PaddleClas, "Inference
# speed based on T4 GPU", envs_data/cost_model/grouped_models.csv); the fit gives them within 10 %.
GROUP_START_S = 6.96e-6
MATMUL, CONV, SOFTMAX, NORM = (OP_CLASSES.index(name) for name in ("matmul", "conv", "softmax", "norm"))
_TRANSPOSES = ("t", "transpose", "permute")
_CASTS = ("_to_copy", "Cast")
_ATTENTION = "scaled_dot_product"
_ITEM_BYTES = np.array([DTYPE_BYTES[dtype] for dtype in DTYPES], np.float64)
_FLOAT32, _TFLOAT32 = FORMATS.index("float32"), FORMATS.index(TFLOAT32)


def op_formats(graph: ComputationGraph, device: Device, tf32: str) -> np.ndarray:
    """int8 [N]: the format, an index into :data:`FORMATS`, that each op multiplies in.

    ``tf32``: which float32 products run on tensor cores where the device's datasheet has a rate for them: ``"conv"``
    (convolutions; PyTorch's default on Ampere and later), ``"all"`` (matrix products too) or ``"none"``.
    """
    formats = graph.dtype.copy()
    if TFLOAT32 not in device.peak_flops or tf32 == "none":
        return formats
    products = (graph.op_class == CONV) | ((graph.op_class == MATMUL) if tf32 == "all" else False)
    formats[products & (graph.dtype == _FLOAT32)] = _TFLOAT32
    return formats


def on_tensor_cores(device: Device) -> np.ndarray:
    """bool [F]: the formats that the device multiplies in on tensor cores."""
    has = device.kind == "gpu" and device.architecture not in WITHOUT_TENSOR_CORES
    return np.array([has and name in TENSOR_CORE_FORMATS and name in device.peak_flops for name in FORMATS])


class _Distinct:
    """Kernels as rows of numbers, each distinct one once."""

    ops: np.ndarray
    distinct: np.ndarray
    inverse: np.ndarray

    def _keep(self, columns: list[np.ndarray]) -> None:
        table = np.stack(columns, axis=1).astype(np.float64)
        self.distinct, self.inverse = np.unique(table, axis=0, return_inverse=True)


class Products(_Distinct):
    """The matrix products of a graph, fused attention left out."""

    def __init__(self, graph: ComputationGraph, formats: np.ndarray) -> None:
        attention = np.array([_ATTENTION in kind for kind in graph.kinds], bool)[graph.kind]
        self.ops = np.flatnonzero((graph.op_class == MATMUL) & ~attention)
        shape = graph.output_shape[self.ops]
        rank = (shape >= 0).sum(axis=1)
        rows = np.arange(len(self.ops))
        n = np.where(rank >= 2, shape[rows, np.maximum(rank - 1, 0)], 1)
        m = np.where(rank >= 2, shape[rows, np.maximum(rank - 2, 0)], np.where(rank == 1, shape[:, 0], 1))
        size = np.where(shape >= 0, shape, 1).prod(axis=1)
        batch = size // np.maximum(m * n, 1)
        k = np.maximum(graph.flops[self.ops] / np.maximum(2 * size, 1), 1)
        # weights stored [n, k]: y = x @ w.T
        transposed = _transposed_sources(graph)
        reads_transposed = np.zeros(graph.num_ops, bool)
        reads_transposed[graph.edge_dst[transposed[graph.edge_src]]] = True
        linear = reads_transposed[self.ops] & (batch == 1)
        self._keep([linear, batch, m, n, k, formats[self.ops]])

    def price(
        self, p: Parameters, tensor_cores: Mapping[str, Parameters], device: Device,
        seconds: np.ndarray, efficiency: np.ndarray,
    ) -> None:  # fmt: skip
        """Sets compute seconds, and the share of the memory bandwidth, of its ops in place."""
        if not len(self.ops):
            return
        linear, batch, m, n, k, formats = self.distinct.T
        computed, rate = np.empty(len(linear)), np.empty(len(linear))
        units, bandwidth, peak, on_cores = _rates(device, formats)
        for layout, chosen in (("linear", linear == 1), ("bmm", linear == 0)):
            chosen = chosen & ~on_cores
            computed[chosen] = p["in_model"][layout] * gemm_seconds(
                within_power(p[layout], p, device), units, peak[chosen] * power_left(p, device), bandwidth,
                batch[chosen], m[chosen], n[chosen], k[chosen],
            )  # fmt: skip
            rate[chosen] = p[layout]["bytes"]
        _on_cores(
            tensor_cores, device, formats, on_cores, computed, rate,
            lambda q, item_bytes, peak, chosen: tensor_core_seconds(
                q, units, peak, bandwidth, item_bytes, batch[chosen], m[chosen], n[chosen], k[chosen]
            ),
        )  # fmt: skip
        seconds[self.ops] = computed[self.inverse]
        efficiency[self.ops] = rate[self.inverse]


class Convolutions(_Distinct):
    """The convolutions of a graph: the geometry that :func:`conv_seconds` takes, and how many times it is done."""

    def __init__(self, graph: ComputationGraph, formats: np.ndarray, grouped: bool) -> None:
        self.ops = np.flatnonzero(graph.op_class == CONV)
        if not len(self.ops):
            return
        shape = graph.output_shape[self.ops].astype(np.float64)
        flops = graph.flops[self.ops].astype(np.float64)
        weight_of = weights_of(graph)
        weight = weight_of[self.ops]
        known = weight >= 0
        weight_shape = np.where(known[:, None], graph.output_shape[weight], -1).astype(np.float64)
        area = np.where(weight_shape[:, 2:] >= 0, weight_shape[:, 2:], 1).prod(axis=1)
        three = known & (weight_shape[:, 2] == 3) & (weight_shape[:, 3] == 3) & (weight_shape[:, 4] < 0)

        backward = np.array(["backward" in kind for kind in graph.kinds])[graph.kind[self.ops]]
        only_weight = backward & known & (shape == weight_shape).all(axis=1)
        both = backward & ~only_weight
        times = np.where(both, 2.0, 1.0)
        groups = _groups(graph, weight_of)[self.ops] if grouped else np.ones(len(self.ops))
        groups = np.where(backward, 1.0, groups)
        self.times = times * groups
        self.start_s = np.where(groups > 1, groups * GROUP_START_S, 0.0)
        spatial = np.where(shape[:, 2:] >= 0, shape[:, 2:], 1)
        images, out_channels = shape[:, 0], np.maximum(shape[:, 1], 1)
        height, width = spatial[:, 0], spatial[:, 1:].prod(axis=1)
        # the gradient of a weight: the forward product, of which only the number of outputs is known
        products = np.maximum(weight_shape[:, 0], 1) * np.maximum(weight_shape[:, 1], 1) * area
        positions = flops / np.maximum(2 * products, 1) / times
        images, height = np.where(only_weight, 1, images), np.where(only_weight, 1, height)
        width = np.where(only_weight, positions, width)
        out_channels = np.where(only_weight, weight_shape[:, 0], out_channels)
        k = np.maximum(flops / times / np.maximum(2 * images * height * width * out_channels, 1), 1)
        read = graph.bytes_read[self.ops] / _ITEM_BYTES[graph.dtype[self.ops]]
        in_elements = np.where(
            backward, positions * np.maximum(weight_shape[:, 0], 1), np.maximum(read - k * out_channels, 0)
        )
        # stride 1: as many input positions a channel as output positions
        winograd = (
            three & ~only_weight & (in_elements / groups < 1.5 * images * height * width * (k / np.maximum(area, 1)))
        )
        self._keep([images, height, width, out_channels / groups, k, winograd, formats[self.ops]])

    def price(
        self, p: Parameters, tensor_cores: Mapping[str, Parameters], device: Device,
        seconds: np.ndarray, efficiency: np.ndarray,
    ) -> None:  # fmt: skip
        """As :meth:`Products.price`. On tensor cores a convolution is the implicit product alone, without Winograd."""
        if not len(self.ops):
            return
        images, height, width, out_channels, k, winograd, formats = self.distinct.T
        computed, rate = np.empty(len(images)), np.empty(len(images))
        units, bandwidth, peak, on_cores = _rates(device, formats)
        # a dtype's own width: float32 where it is multiplied as tfloat32
        item_bytes = np.append(_ITEM_BYTES, 4.0)[formats.astype(int)]
        chosen = ~on_cores
        computed[chosen] = p["in_model"]["conv"] * conv_seconds(
            p["conv"], units, peak[chosen] * power_left(p, device), bandwidth, images[chosen], height[chosen],
            width[chosen], out_channels[chosen], k[chosen], winograd[chosen] == 1, item_bytes[chosen],
        )  # fmt: skip
        rate[:] = p["conv"]["bytes"]
        m = images * height * width
        _on_cores(
            tensor_cores, device, formats, on_cores, computed, rate,
            lambda q, item_bytes, peak, chosen: tensor_core_seconds(
                q, units, peak, bandwidth, item_bytes, np.ones(chosen.sum()), m[chosen], out_channels[chosen], k[chosen]
            ),
        )  # fmt: skip
        seconds[self.ops] = self.times * computed[self.inverse] + self.start_s
        efficiency[self.ops] = rate[self.inverse]


class Attention(_Distinct):
    """Fused attention, forward and backward: ``_scaled_dot_product_*`` of PyTorch, ``Attention`` of ONNX.

    FLOPs are those of the graph (a causal mask counts the triangle that is computed); the length of the queries and
    the size of a head are the last two dimensions of what comes out.
    """

    def __init__(self, graph: ComputationGraph, formats: np.ndarray) -> None:
        kinds = graph.kinds
        self.ops = np.flatnonzero(np.array([_ATTENTION in kind for kind in kinds], bool)[graph.kind])
        if not len(self.ops):
            return
        shape = graph.output_shape[self.ops]
        rank = np.maximum((shape >= 0).sum(axis=1), 2)
        rows = np.arange(len(self.ops))
        head, length = shape[rows, rank - 1], shape[rows, rank - 2]
        backward = np.array(["backward" in kind for kind in kinds])[graph.kind[self.ops]]
        flash = np.array(["flash" in kind or "cudnn" in kind for kind in kinds])[graph.kind[self.ops]]
        cudnn = np.array(["cudnn" in kind for kind in kinds])[graph.kind[self.ops]]
        self._keep([graph.flops[self.ops], length, head, backward, flash, cudnn, formats[self.ops]])

    def price(
        self, p: Parameters, attention: Parameters, device: Device, seconds: np.ndarray, efficiency: np.ndarray
    ) -> None:
        """As :meth:`Products.price`."""
        if not len(self.ops):
            return
        flops, length, head, backward, flash, cudnn, formats = self.distinct.T
        peak = peaks(device)[formats.astype(int)] * power_left(p, device)
        computed = attention_seconds(
            attention, device.architecture, flops, peak, length, head, backward == 1, flash == 1, cudnn == 1
        )
        seconds[self.ops] = computed[self.inverse]
        efficiency[self.ops] = 0.8


def _rates(device: Device, formats: np.ndarray) -> tuple[int, float, np.ndarray, np.ndarray]:
    """(units, bandwidth, peak float64 [X], on tensor cores bool [X]) for kernels of these formats."""
    at = formats.astype(int)
    return max(device.compute_units, 1), device.memory_bytes_per_s, peaks(device)[at], on_tensor_cores(device)[at]


def peaks(device: Device) -> np.ndarray:
    """float64 [F]: the datasheet's FLOP/s by format."""
    return np.array([device.peak(name) for name in FORMATS])


def _on_cores(
    tensor_cores: Mapping[str, Parameters], device: Device, formats: np.ndarray, on_cores: np.ndarray,
    computed: np.ndarray, rate: np.ndarray, price: Callable[[Parameters, float, float, np.ndarray], Any],
) -> None:  # fmt: skip
    """Prices what runs on tensor cores, a format at a time, in place."""
    for name, measured in TENSOR_CORE_FORMATS.items():
        chosen = on_cores & (formats == FORMATS.index(name))
        if chosen.any():
            q = tensor_cores[measured]
            peak = device.peak(name) * power_share(device)
            computed[chosen] = price(q, DTYPE_BYTES.get(name, 4), peak, chosen)
            rate[chosen] = q["bytes"]


def _transposed_sources(graph: ComputationGraph) -> np.ndarray:
    """bool [N]: transposes of parameters and inputs, and their casts: a cast keeps the layout of what it reads."""
    by_kind = np.array([kind in _TRANSPOSES for kind in graph.kinds])
    transposed, root = by_kind[graph.kind], graph.view_root.copy()
    casts = np.flatnonzero(np.isin(graph.kind, [i for i, kind in enumerate(graph.kinds) if kind == "_to_copy"]))
    casts = casts[np.diff(graph.pred_ptr)[casts] == 1]
    read = graph.pred[graph.pred_ptr[casts]]
    before = np.arange(graph.num_ops)  # what a cast reads, through views; any other op: itself
    before[casts] = graph.view_root[read]
    for cast, tensor in zip(casts.tolist(), read.tolist(), strict=True):  # in topological order
        transposed[cast] = transposed[tensor]
    while not np.array_equal(further := before[root], root):
        root = further
    return transposed & (graph.op_class[root] == SOURCE)


def weights_of(graph: ComputationGraph) -> np.ndarray:
    """int64 [N]: the weight, a source with parameters and at least 3 dimensions, that a convolution reads, or -1.

    A weight that is cast first (automatic mixed precision) is found through the cast.
    """
    weight_of = np.full(graph.num_ops, -1)
    is_weight = (graph.op_class == SOURCE) & (graph.param_bytes > 0) & (graph.output_shape[:, 2] >= 0)
    copies = np.array([kind in _CASTS for kind in graph.kinds], bool)[graph.kind]
    stands_for = np.where(is_weight, np.arange(graph.num_ops), -1)
    casts = np.flatnonzero(is_weight[graph.edge_src] & copies[graph.edge_dst])
    stands_for[graph.edge_dst[casts]] = graph.edge_src[casts]
    edges = np.flatnonzero((stands_for[graph.edge_src] >= 0) & (graph.op_class[graph.edge_dst] == CONV))
    weight_of[graph.edge_dst[edges]] = stands_for[graph.edge_src[edges]]
    return weight_of


def _groups(graph: ComputationGraph, weight_of: np.ndarray) -> np.ndarray:
    """float64 [N]: groups of each grouped convolution; 1 for all else, and for depthwise and transposed ones.

    Args:
        weight_of: int [N], the weight that an op reads, or -1.
    """
    groups = np.ones(graph.num_ops)
    shape, weight = graph.output_shape, weight_of[graph.edge_dst]
    edges = np.flatnonzero((weight >= 0) & (weight != graph.edge_src) & (graph.op_class[graph.edge_dst] == CONV))
    read, op, weight = graph.edge_src[edges], graph.edge_dst[edges], weight[edges]
    image = ((shape[read] >= 0).sum(axis=1) == (shape[op] >= 0).sum(axis=1)) & (shape[weight, 0] == shape[op, 1])
    several, rest = np.divmod(shape[read, 1], np.maximum(shape[weight, 1], 1))
    grouped = image & (several > 1) & (rest == 0) & (several < np.minimum(shape[read, 1], shape[op, 1]))
    groups[op[grouped]] = several[grouped]
    return groups


def row_lengths(graph: ComputationGraph) -> np.ndarray:
    """float64 [N]: how many elements softmax and normalisation reduce at a time (elsewhere the last dimension)."""
    shape = np.where(graph.output_shape >= 0, graph.output_shape, 1)
    rank = np.maximum((graph.output_shape >= 0).sum(axis=1), 1)
    last = shape[np.arange(graph.num_ops), rank - 1].astype(np.float64)
    over_batch = np.array(["batch_norm" in kind for kind in graph.kinds])[graph.kind]
    over_group = np.array(["group_norm" in kind for kind in graph.kinds])[graph.kind]
    rows = np.where(over_group, shape[:, 2:].prod(axis=1), last)
    return np.where(over_batch, shape[:, 0] * shape[:, 2:].prod(axis=1), rows)
