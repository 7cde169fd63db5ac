"""What an op costs on a device: a fitted roofline with launch overhead.

    seconds = launch_s + max(compute_s, (bytes_read + bytes_written) / bytes_per_s)

``compute_s`` and ``bytes_per_s`` come from the formulas of :mod:`graphopt_gym.hardware.roofline` with parameters
fitted to measured kernels (``envs_data/cost_model``), by the op's class, shape and size:

- ``matmul``: m, n and the batch from the output's shape, k from the FLOPs. A product that reads a transposed
  parameter (``x @ w.T``, as ``torch.nn.Linear`` does) has the parameters fitted to that layout, others those of
  ``bmm``.
- ``conv``: geometry from the output's shape, the FLOPs, and the weight it reads. A backward convolution that gives the
  gradients of both input and weight counts as two convolutions of the input gradient's geometry (not measured).
  On a GPU the groups of a grouped convolution run one after another, each a kernel of one group's channels, with
  :data:`GROUP_START_S` in front: published times of ResNeXts on a T4 grow with the number of groups, by about 10 us
  each (see there). Depthwise convolutions have kernels of their own in libraries, and backward ones are not told
  apart: both are priced as one dense kernel with a group's input channels.
- ``softmax``, ``norm``: a share of the memory bandwidth by row length. All other classes: a share by how many tensors
  are read, fitted to element-wise kernels; for reductions, pooling, gathers, copies and updates, which were not
  measured, that is an assumption.

Matrix products and convolutions take ``in_model`` times as long inside a whole model as the kernels measured by
themselves: one number an architecture, fitted to one whole-model row.

Only float32 was measured. Other types scale with the datasheet's peak and with their bytes.

**Devices without measurements.** Parameters belong to an architecture: a V100 SXM2 has those of the V100 PCIe that was
measured, with its own peak. An architecture that was not measured takes the geometric mean of the times that the
parameters of :data:`TRANSFER_FROM` give with the device's own numbers (peaks, bandwidth, compute units), that is, the
mean of log-efficiencies with tiles and waves counted on its own units. Turing is left out of the mean: the T4's
clocks fall under its 70 W limit, which says nothing of other devices. Leave-one-out errors of this rule are in
:func:`graphopt_gym.hardware.validation.cost_model_report`. Architecture ``ideal`` reaches its datasheet, without
launch overhead.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np

from graphopt_gym.data import data_path
from graphopt_gym.errors import InputError, quoted
from graphopt_gym.files import parse_json, read_file
from graphopt_gym.graphs.graph import DTYPE_BYTES, DTYPES, OP_CLASSES, SOURCE, VIEW, ComputationGraph
from graphopt_gym.hardware.cluster import Device
from graphopt_gym.hardware.roofline import (
    NORM_KNOTS,
    SOFTMAX_KNOTS,
    Parameters,
    conv_seconds,
    gemm_seconds,
    row_efficiency,
    stream_efficiency,
)

IDEAL = "ideal"
# Seconds between the kernels of two groups of one convolution. Fitted, one number, to six whole models: ResNeXt-50,
# -101 and -152 (32x4d and 64x4d), T4, float32, batch 1, against ResNets from the same tables (PaddleClas, "Inference
# speed based on T4 GPU", envs_data/cost_model/grouped_models.csv); the fit gives them within 10 %.
GROUP_START_S = 7.03e-6
TRANSFER_FROM = ("pascal", "volta", "ampere")
MATMUL, CONV, SOFTMAX, NORM = (OP_CLASSES.index(name) for name in ("matmul", "conv", "softmax", "norm"))
_TRANSPOSES = ("t", "transpose", "permute")
_ITEM_BYTES = np.array([DTYPE_BYTES[dtype] for dtype in DTYPES], np.float64)


class CostModel:
    """Prices the ops of a graph on a device.

    Args:
        architectures: fitted parameters by architecture, as in ``envs_data/cost_model/fitted.json``.
        launch_s: seconds between two kernels, added to each.
        transfer_from: the architectures whose mean stands in for one that was not measured.
        version: of the costs, which is another wherever an op costs something else; see :func:`costs_version`.
    """

    name = "roofline"
    version = ""

    def __init__(
        self,
        architectures: dict[str, Any],
        launch_s: float,
        transfer_from: Sequence[str] = TRANSFER_FROM,
        version: str = "",
    ) -> None:
        self.version = version
        self.architectures = architectures
        self.launch_s = launch_s
        self.transfer_from = tuple(transfer_from)

    def parameters(self, device: Device) -> list[Parameters]:
        """The fitted parameters that a device's times are the geometric mean of: its own, or the stand-ins'."""
        if device.architecture in self.architectures:
            return [self.architectures[device.architecture]]
        return [self.architectures[name] for name in self.transfer_from if name in self.architectures]

    def components(self, graph: ComputationGraph, device: Device) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(compute_s, bytes_per_s, launch_s), each float64 [N]; 0, 1 and 0 for sources and views.

        ``op_times == launch_s + max(compute_s, (bytes_read + bytes_written) / bytes_per_s)``, exactly.
        """
        n = graph.num_ops
        compute_s, bytes_per_s, launch_s = np.zeros(n), np.ones(n), np.zeros(n)
        real = np.flatnonzero((graph.op_class != SOURCE) & (graph.op_class != VIEW))
        peak = np.array([device.peak(dtype) for dtype in DTYPES])[graph.dtype]
        compute_s[real] = graph.flops[real] / peak[real]
        bytes_per_s[real] = device.memory_bytes_per_s
        if device.architecture == IDEAL:
            return compute_s, bytes_per_s, launch_s
        launch_s[real] = self.launch_s
        several = self.parameters(device)
        products, convolutions = _Products(graph, peak), _Convolutions(graph, peak, device.kind == "gpu")
        rows = _row_lengths(graph)
        log_compute, log_efficiency = np.zeros(n), np.zeros(n)
        for p in several:
            seconds, efficiency = compute_s.copy(), np.ones(n)
            efficiency[real] = stream_efficiency(p["stream"], graph.bytes_read[real], graph.bytes_written[real])
            for op_class, knots in ((SOFTMAX, SOFTMAX_KNOTS), (NORM, NORM_KNOTS)):
                ops = np.flatnonzero(graph.op_class == op_class)
                efficiency[ops] = row_efficiency(knots, p[OP_CLASSES[op_class]], rows[ops])
            products.price(p, device, seconds, efficiency)
            convolutions.price(p, device, seconds, efficiency)
            with np.errstate(divide="ignore"):
                log_compute += np.log(seconds) / len(several)
            log_efficiency += np.log(efficiency) / len(several)
        compute_s[real] = np.exp(log_compute[real])
        bytes_per_s[real] *= np.exp(log_efficiency[real])
        return compute_s, bytes_per_s, launch_s

    def op_times(self, graph: ComputationGraph, device: Device) -> np.ndarray:
        """float64 [N]: seconds of each op, one kernel each, on a device; 0 for sources and views."""
        compute_s, bytes_per_s, launch_s = self.components(graph, device)
        moved = (graph.bytes_read + graph.bytes_written) / bytes_per_s
        costless = (graph.op_class == SOURCE) | (graph.op_class == VIEW)
        return np.where(costless, 0.0, launch_s + np.maximum(compute_s, moved))

    def fused_times(
        self, graph: ComputationGraph, device: Device, group: np.ndarray, border_bytes: np.ndarray
    ) -> np.ndarray:
        """float64 [G]: seconds of fused groups, one kernel each.

        The compute of all members, each by its own class's efficiency; the bytes that cross the border, each at its
        member's rate; one launch: ``max(launch_s) + max(sum(compute_s), sum(border_bytes / bytes_per_s))``.

        Args:
            group: int [N], the group of each op from 0 to G-1, or -1 for an op that is in none.
            border_bytes: [N], the bytes that each op reads from and writes to outside its group.
        """
        compute_s, bytes_per_s, launch_s = self.components(graph, device)
        members = np.flatnonzero((group >= 0) & (graph.op_class != SOURCE) & (graph.op_class != VIEW))
        groups = int(group.max(initial=-1)) + 1
        launch = np.zeros(groups)
        np.maximum.at(launch, group[members], launch_s[members])
        compute = np.bincount(group[members], weights=compute_s[members], minlength=groups)
        moved_s = border_bytes[members] / bytes_per_s[members]
        return launch + np.maximum(compute, np.bincount(group[members], weights=moved_s, minlength=groups))


@cache
def load_cost_model() -> CostModel:
    """The fitted cost model of the package."""
    fitted = read_fitted(data_path("cost_model", "fitted.json"))
    return CostModel(fitted["architectures"], fitted["whole_models"]["launch_s"], version=fitted["costs"])


def costs_version(model: object, devices: Iterable[Device]) -> str:
    """The version of the costs that a model gives devices: its ``version``, or the name of its class where it has none.

    Empty where nothing fitted is in them: our model on ideal devices.
    """
    if type(model) is CostModel and all(device.architecture == IDEAL for device in devices):
        return ""
    return str(getattr(model, "version", "") or type(model).__name__)


def read_fitted(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a file that ``scripts/fit_cost_model.py`` wrote.

    Raises:
        InputError: it cannot be read, is not such a file, or is of another version.
    """
    where = quoted(os.fspath(path))
    fitted = parse_json(read_file(path), where)
    if not isinstance(fitted, dict) or fitted.get("format") != "graphopt-cost-model":
        raise InputError(f"{where}: not a fitted cost model; write one with scripts/fit_cost_model.py")
    if fitted.get("version") != 1:
        raise InputError(f"{where}: version {fitted.get('version')!r} of the format; this package reads version 1")
    if not (isinstance(fitted.get("costs"), str) and fitted["costs"]):
        raise InputError(f'{where}: costs is {quoted(fitted.get("costs"))}; give the version of the costs, such as "1"')
    return fitted


class _Products:
    """The matrix products of a graph, each distinct one once."""

    def __init__(self, graph: ComputationGraph, peak: np.ndarray) -> None:
        self.ops = np.flatnonzero(graph.op_class == MATMUL)
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
        table = np.stack([linear, batch, m, n, k, peak[self.ops]], axis=1).astype(np.float64)
        self.distinct, self.inverse = np.unique(table, axis=0, return_inverse=True)

    def price(self, p: Parameters, device: Device, seconds: np.ndarray, efficiency: np.ndarray) -> None:
        if not len(self.ops):
            return
        units, bandwidth = max(device.compute_units, 1), device.memory_bytes_per_s
        linear, batch, m, n, k, peak = self.distinct.T
        computed, rate = np.empty(len(linear)), np.empty(len(linear))
        for layout, chosen in (("linear", linear == 1), ("bmm", linear == 0)):
            computed[chosen] = gemm_seconds(
                p[layout], units, peak[chosen], bandwidth, batch[chosen], m[chosen], n[chosen], k[chosen]
            )
            rate[chosen] = p[layout]["bytes"]
        seconds[self.ops] = p["in_model"] * computed[self.inverse]
        efficiency[self.ops] = rate[self.inverse]


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


class _Convolutions:
    """The convolutions of a graph: the geometry that :func:`conv_seconds` takes, and how many times it is done."""

    def __init__(self, graph: ComputationGraph, peak: np.ndarray, grouped: bool) -> None:
        self.ops = np.flatnonzero(graph.op_class == CONV)
        if not len(self.ops):
            return
        shape = graph.output_shape[self.ops].astype(np.float64)
        flops = graph.flops[self.ops].astype(np.float64)
        weight_of = np.full(graph.num_ops, -1)
        is_weight = (graph.op_class == SOURCE) & (graph.param_bytes > 0) & (graph.output_shape[:, 2] >= 0)
        edges = np.flatnonzero(is_weight[graph.edge_src] & (graph.op_class[graph.edge_dst] == CONV))
        weight_of[graph.edge_dst[edges]] = graph.edge_src[edges]
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
        winograd = three & ~only_weight & (in_elements / groups < 1.5 * images * height * width * (k / area))
        table = np.stack([images, height, width, out_channels / groups, k, winograd, peak[self.ops]], axis=1)
        self.distinct, self.inverse = np.unique(table, axis=0, return_inverse=True)

    def price(self, p: Parameters, device: Device, seconds: np.ndarray, efficiency: np.ndarray) -> None:
        if not len(self.ops):
            return
        images, height, width, out_channels, k, winograd, peak = self.distinct.T
        computed = conv_seconds(
            p["conv"], max(device.compute_units, 1), peak, device.memory_bytes_per_s,
            images, height, width, out_channels, k, winograd == 1,
        )  # fmt: skip
        seconds[self.ops] = p["in_model"] * self.times * computed[self.inverse] + self.start_s
        efficiency[self.ops] = p["conv"]["bytes"]


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


def _row_lengths(graph: ComputationGraph) -> np.ndarray:
    """float64 [N]: how many elements softmax and normalisation reduce at a time (elsewhere the last dimension)."""
    shape = np.where(graph.output_shape >= 0, graph.output_shape, 1)
    rank = np.maximum((graph.output_shape >= 0).sum(axis=1), 1)
    last = shape[np.arange(graph.num_ops), rank - 1].astype(np.float64)
    over_batch = np.array(["batch_norm" in kind for kind in graph.kinds])[graph.kind]
    over_group = np.array(["group_norm" in kind for kind in graph.kinds])[graph.kind]
    rows = np.where(over_group, shape[:, 2:].prod(axis=1), last)
    return np.where(over_batch, shape[:, 0] * shape[:, 2:].prod(axis=1), rows)
