"""Kernel times as sums of terms: the formulas of a device that was calibrated operator by operator.

The time of a kernel is a sum over what it does, each at a price that was fitted to timed kernels of the same key::

    seconds = call + flop * FLOPs + byte * bytes + over_2m * (bytes beyond 2 MiB) + ...      (all prices >= 0)

A key is the name of an operator (``mm``, ``gelu_backward``), with a variant behind a colon where one name covers
kernels of different speed: ``sum:outer``, ``clone:transposed``, ``convolution:depthwise``, ``adam:zeros``.
Which work there is to pay for (:data:`TERMS`):

- matrix products: FLOPs; FLOPs wasted where the output's width is no multiple of 16 (``ragged_flop``) or its height is
  below 24 (``short_flop``); bytes of the two operands and of the result (``left_byte``, ``right_byte``, ``out_byte``);
- convolutions: FLOPs, those of channels filled up to a multiple of 16, bytes of image, result and weight (each is put
  in another layout), of the weight once an image, and of the patches that an implicit product reads;
- attention: FLOPs, bytes, and scores (``row``), each with an exponential;
- all else: bytes, and rows (``row``): of a softmax or a normalisation, or the taps of a pool.

Bytes beyond 256 KiB, 2 MiB and 16 MiB have prices of their own on top: the caches of a processor; so have the bytes of
results above 32 MiB (``fresh_byte``), whose memory a process gets from the system each time, page by page. An operator
without a key is priced by that of its class, e.g. ``class:elementwise``, fitted to all kernels of the class together.

**Layout.** Element-wise operators on a processor write as they read: what a transposition turned stays turned until an
operator copies it. One that reads both layouts pays for it (``add:transposed``), and so does a normalisation, softmax,
pool or reduction that reads a turned tensor (a ``clone:transposed`` on top). Products take either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from graphopt_gym.graphs.graph import DTYPE_BYTES, DTYPES, OP_CLASSES, SOURCE, VIEW, ComputationGraph

LANES = 16  # to a multiple of which a vector unit fills up
TILE_HEIGHT = 24
STEPS = {"over_256k": 2**18, "over_2m": 2**21, "over_16m": 2**24}
FRESH_BYTES = 2**25  # results above this size come from the system each time (the C library's largest threshold)
_MEMORY = (*STEPS, "fresh_byte")
TERMS: dict[str, tuple[str, ...]] = {
    "product": ("call", "flop", "ragged_flop", "short_flop", "out_byte", "left_byte", "right_byte", *_MEMORY),
    "conv": (
        "call",
        "flop",
        "ragged_flop",
        "in_byte",
        "out_byte",
        "weight_byte",
        "weight_image",
        "patch_byte",
        *_MEMORY,
    ),
    "attention": ("call", "flop", "byte", "row", *_MEMORY),
    "generic": ("call", "byte", "row", *_MEMORY),
}
Work = dict[str, Any]  # term -> how much of it, a number or float64 [X]
Prices = Mapping[str, float]  # term -> seconds a unit

# Operators that run the same kernels under other names.
SAME = {
    **dict.fromkeys(
        ("zeros", "ones", "full", "zero", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"),
        "fill",
    ),
    **dict.fromkeys(("_native_batch_norm_legit", "_native_batch_norm_legit_functional", "cudnn_batch_norm",
                     "_batch_norm_with_update"), "native_batch_norm"),
    **dict.fromkeys(("_native_batch_norm_legit_no_training", "_batch_norm_no_update"), "native_batch_norm:eval"),
    "cudnn_batch_norm_backward": "native_batch_norm_backward",
    "cudnn_convolution": "convolution",
    "_convolution": "convolution",
    "convolution_overrideable": "convolution",
    **{
        f"_scaled_dot_product_{name}_attention{suffix}{direction}": f"scaled_dot_product_attention{direction}"
        for name in ("flash", "efficient", "cudnn")
        for suffix in ("", "_for_cpu")
        for direction in ("", "_backward")
    },
    **dict.fromkeys(("gather", "index", "take", "_unsafe_index"), "index_select"),
    **dict.fromkeys(("stack", "constant_pad_nd", "repeat"), "cat"),
    "select_backward": "slice_backward",
    "split_with_sizes_copy": "clone",
    "rsub": "sub",
    "max": "amax", "min": "amax", "amin": "amax", "argmax": "amax",
    "leaky_relu": "relu", "threshold": "relu", "hardtanh": "relu", "clamp": "relu", "clamp_min": "relu",
    "leaky_relu_backward": "threshold_backward", "hardtanh_backward": "threshold_backward",
    **dict.fromkeys(("eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_not", "logical_or"), "abs"),
    "uniform": "bernoulli",
}  # fmt: skip
ATTENTION = ("scaled_dot_product_attention", "scaled_dot_product_attention_backward")
WITH_SCALAR = ("add", "mul", "div", "pow")  # timed with a number, too, in place of the second tensor
_TURNS = ("t", "transpose", "permute", "numpy_T", "mT")


def product_work(batch: Any, m: Any, n: Any, k: Any, item: Any, added_bytes: Any = 0) -> Work:
    """Of products [batch, m, k] x [batch, k, n] of elements of ``item`` bytes; a bias of ``added_bytes``."""
    filled = np.ceil(np.asarray(n) / LANES) * LANES
    left, right, out = batch * m * k * item, batch * k * n * item, batch * m * n * item
    return _with_steps(
        {
            "call": 1.0,
            "flop": 2.0 * batch * m * n * k,
            "ragged_flop": 2.0 * batch * m * k * (filled - n),
            "short_flop": 2.0 * batch * k * n * np.maximum(TILE_HEIGHT - np.asarray(m), 0),
            "out_byte": out, "left_byte": left, "right_byte": right,
        },
        left + right + out + added_bytes,
        out,
    )  # fmt: skip


def conv_work(
    batch: Any, inputs: Any, outputs: Any, groups: Any, area: Any, in_positions: Any, out_positions: Any, item: Any,
    times: Any = 1,
) -> Work:  # fmt: skip
    """Of convolutions; ``area`` of the kernel, ``times`` 2 for the gradients of both image and weight."""
    a_group, made = np.asarray(inputs) / groups, np.asarray(outputs) / groups
    filled = groups * np.ceil(a_group / LANES) * LANES * np.ceil(made / LANES) * LANES
    depthwise = (a_group == 1) & (np.asarray(groups) > 1)
    filled = np.where(depthwise, inputs * made, filled)
    image, out = batch * inputs * in_positions * item, batch * outputs * out_positions * item
    weight = outputs * a_group * area * item
    macs = 2.0 * batch * out_positions * area * times
    return _with_steps(
        {
            "call": 1.0,
            "flop": macs * outputs * a_group,
            "ragged_flop": macs * (filled - outputs * a_group),
            "in_byte": image * times, "out_byte": out * times, "weight_byte": weight * times,
            "weight_image": batch * weight * times,
            "patch_byte": np.where(np.asarray(area) > 1, batch * out_positions * inputs * area * item * times, 0.0),
        },
        (image + out + weight) * times,
        np.where(np.asarray(times) > 1, image, out),
    )  # fmt: skip


def attention_work(batch: Any, m: Any, n: Any, k: Any, item: Any, backward: bool) -> Work:
    """Of attention with ``batch`` heads in all, m queries, n keys of width k."""
    tensors = (4, 8)[backward]  # q, k, v and the result; the gradients of all
    return _with_steps(
        {"call": 1.0, "flop": (10.0 if backward else 4.0) * batch * m * n * k, "row": 1.0 * batch * m * n},
        tensors // 2 * batch * (m + n) * k * item,
        batch * m * k * item,
    )


def generic_work(moved_bytes: Any, rows: Any, written_bytes: Any = 0) -> Work:
    """Of all else: bytes read and written, rows (or taps), and the bytes written among them."""
    return _with_steps({"call": 1.0, "row": rows}, moved_bytes, written_bytes)


def _with_steps(work: Work, moved_bytes: Any, written_bytes: Any) -> Work:
    moved, written = np.asarray(moved_bytes, np.float64), np.asarray(written_bytes, np.float64)
    steps = {name: np.maximum(moved - size, 0.0) for name, size in STEPS.items()}
    return work | {"byte": moved} | steps | {"fresh_byte": np.where(written > FRESH_BYTES, written, 0.0)}


def priced(prices: Prices, work: Work) -> np.ndarray:
    """float64 [X]: seconds of kernels."""
    return np.asarray(sum(price * np.asarray(work[term], np.float64) for term, price in prices.items()))


def family_of(key: str, op_class: str = "") -> str:
    """Which of :data:`TERMS` a key's prices are for."""
    if key in ATTENTION:
        return "attention"
    name = key.split(":")[0]
    if key == "class:matmul" or name in ("mm", "addmm", "bmm", "baddbmm", "linear", "addbmm"):
        return "product"
    return "conv" if key == "class:conv" or name in ("convolution", "convolution_backward") else "generic"


class Keyed(NamedTuple):
    """Ops of a graph that have the same key: their numbers, and their work, each term float64 [ops] or a number."""

    keys: tuple[str, ...]  # the most fitting first
    ops: np.ndarray
    work: Work


def keyed_work(graph: ComputationGraph) -> list[Keyed]:
    """The ops of a graph by key, an op that copies its operand first in two of them. Kept with the graph."""
    if graph not in _KEPT:
        _KEPT[graph] = list(_keyed(graph))
    return _KEPT[graph]


_KEPT: WeakKeyDictionary[ComputationGraph, list[Keyed]] = WeakKeyDictionary()
_REDUCTIONS = ("sum", "mean", "amax", "prod", "any", "all", "var", "norm", "linalg_vector_norm", "var_mean")


def _keyed(graph: ComputationGraph) -> Iterator[Keyed]:
    n = graph.num_ops
    shape = np.where(graph.output_shape >= 0, graph.output_shape, 1).astype(np.float64)
    rank = (graph.output_shape >= 0).sum(axis=1)
    item = np.array([DTYPE_BYTES[dtype] for dtype in DTYPES], np.float64)[graph.dtype]
    written = graph.bytes_written.astype(np.float64)
    moved = graph.bytes_read + written
    elements = shape.prod(axis=1)
    last = shape[np.arange(n), np.maximum(rank - 1, 0)]
    first = np.full(n, -1)
    has = np.diff(graph.pred_ptr) > 0
    first[has] = graph.pred[graph.pred_ptr[:-1][has]]
    turned, which = _turned(graph, shape, rank)
    # updates whose gradient is that of an embedding: zero at all rows that are not looked up
    looked_up = np.zeros(n, bool)
    dense = np.array([kind == "embedding_dense_backward" for kind in graph.kinds])[graph.kind]
    looked_up[graph.edge_dst[dense[graph.edge_src]]] = True
    costs = (graph.op_class != SOURCE) & (graph.op_class != VIEW)
    for kind, kind_name in enumerate(graph.kinds):
        name = SAME.get(kind_name, kind_name)
        of_kind = np.flatnonzero((graph.kind == kind) & costs)
        for op_class in np.unique(graph.op_class[of_kind]).tolist():
            ops = of_kind[graph.op_class[of_kind] == op_class]
            class_name = OP_CLASSES[op_class]
            general = f"class:{class_name}"
            family = family_of(name)
            if family == "generic" and general in ("class:matmul", "class:conv"):
                family = family_of(general)
            if family == "attention":
                width = (10.0 if name.endswith("backward") else 4.0) * last[ops]
                work = generic_work(moved[ops], graph.flops[ops] / np.maximum(width, 1), written[ops])
                yield Keyed((name,), ops, work | {"flop": graph.flops[ops].astype(np.float64)})
                continue
            if family == "product":
                m = np.where(rank[ops] >= 2, shape[ops, np.maximum(rank[ops] - 2, 0)], 1.0)
                k = np.maximum(graph.flops[ops] / np.maximum(2 * elements[ops], 1), 1)
                work = product_work(elements[ops] / (m * last[ops]), m, last[ops], k, item[ops])
                thin = np.minimum(m, last[ops]) < LANES
                yield from _split(ops, work, ((name, general), ~thin), ((f"{name}:thin", name, general), thin))
                continue
            if family == "conv":
                yield from _convolutions(graph, name, ops, item)
                continue
            rows = elements[ops] / np.maximum(last[ops], 1)
            one_key: tuple[str, ...] = (name, general)
            cases: list[tuple[tuple[str, ...], np.ndarray]]
            if name in _REDUCTIONS:
                source = np.maximum(first[ops], 0)
                inner = elements[ops] * last[source] <= elements[source]
                work = generic_work(moved[ops], np.where(inner, elements[ops], 0.0), written[ops])
                cases = [((f"{name}:{way}", f"sum:{way}", general), chosen)
                         for way, chosen in (("inner", inner), ("outer", ~inner))]  # fmt: skip
            elif name.startswith(("native_batch_norm", "native_group_norm")):
                work = generic_work(moved[ops], shape[ops, :2].prod(axis=1), written[ops])
                cases = [(one_key, np.ones(len(ops), bool))]
                if name == "native_batch_norm":  # in evaluation nothing but the result is written
                    evaluated = written[ops] <= elements[ops] * item[ops]
                    cases = [((f"{name}:eval", name, general), evaluated), (one_key, ~evaluated)]
            elif class_name == "elementwise":
                work = generic_work(moved[ops], 0.0, written[ops])
                cases = []
                mixed = turned[ops] == MIXED
                scalar = (graph.bytes_read[ops] < 1.5 * elements[ops] * item[ops]) & (name in WITH_SCALAR)
                for key, chosen in (((f"{name}:scalar", *one_key), scalar & ~mixed), (one_key, ~scalar & ~mixed),
                                    ((f"{name}:transposed", "add:transposed", *one_key), mixed)):  # fmt: skip
                    cases.append((key, chosen))
            else:
                if class_name == "pool":
                    rows = graph.flops[ops].astype(np.float64)
                elif name in (
                    "embedding_dense_backward",
                    "nll_loss_forward",
                ):  # rows that go in
                    rows = np.array([_largest_operand_rows(graph, op, elements, last) for op in ops.tolist()])
                elif class_name not in ("softmax", "norm", "gather"):
                    rows = np.zeros(len(ops))
                if class_name == "optimizer":
                    work = generic_work(moved[ops], 0.0, elements[ops] * item[ops])
                else:
                    work = generic_work(moved[ops], rows, written[ops])
                cases = [(one_key, np.ones(len(ops), bool))]
                if class_name == "optimizer":
                    unread = looked_up[ops]
                    cases = [((f"{name}:zeros", *one_key), unread), (one_key, ~unread)]
                if name in ("clone", "copy", "_to_copy"):
                    cases = [(one_key, turned[ops] == PLAIN), (("clone:permuted", *one_key), turned[ops] == PERMUTED),
                             (("clone:transposed", *one_key), turned[ops] >= TURNED)]  # fmt: skip
            yield from _split(ops, work, *cases)
            if class_name in ("norm", "softmax", "pool", "reduction"):
                copied = turned[ops] >= TURNED
                if copied.any():
                    again = ops[copied]
                    size = elements[which[again]] * item[again]
                    yield Keyed(("clone:transposed",), again, generic_work(2 * size, 0.0, size))


def _largest_operand_rows(graph: ComputationGraph, op: int, elements: np.ndarray, last: np.ndarray) -> float:
    given = graph.pred[graph.pred_ptr[op] : graph.pred_ptr[op + 1]]
    if not len(given):
        return 1.0
    largest = given[elements[given].argmax()]
    return float(elements[largest] / max(last[largest], 1))


def _split(ops: np.ndarray, work: Work, *cases: tuple[tuple[str, ...], np.ndarray]) -> Iterator[Keyed]:
    for keys, chosen in cases:
        if chosen.any():
            yield Keyed(keys, ops[chosen], {term: _part(amount, chosen) for term, amount in work.items()})


def _part(amount: Any, chosen: np.ndarray) -> Any:
    return amount if np.ndim(amount) == 0 else amount[chosen]


PLAIN, PERMUTED, TURNED, MIXED = range(4)


def _turned(graph: ComputationGraph, shape: np.ndarray, rank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(layout, operand), both int [N]: the layout of what an op reads: as its dimensions go, with some before the last
    exchanged, with the last one exchanged, or some so and some so; and the largest operand that is turned so."""
    operand = np.zeros(graph.num_ops, np.int64)
    layout = np.zeros(graph.num_ops, np.int8)  # of what an op gives
    read = np.zeros(graph.num_ops, np.int8)
    turns = np.array([kind in _TURNS for kind in graph.kinds], bool)[graph.kind]
    view, elementwise = graph.op_class == VIEW, graph.op_class == OP_CLASSES.index("elementwise")
    elements = shape.prod(axis=1)
    for op in np.flatnonzero(view | (np.diff(graph.pred_ptr) > 0)).tolist():
        given = graph.pred[graph.pred_ptr[op] : graph.pred_ptr[op + 1]]
        if not len(given):
            continue
        if view[op]:
            source = given[0]
            layout[op] = layout[source]
            if turns[op] and rank[op] >= 2:
                if shape[op, rank[op] - 1] == shape[source, rank[source] - 1] and rank[op] > 2:
                    layout[op] = max(layout[source], PERMUTED)
                else:
                    layout[op] = PLAIN if layout[source] == TURNED else TURNED
            continue
        whole = layout[given[elements[given] * 2 > elements[op]]] if elementwise[op] else layout[given]
        if not len(whole):
            continue
        most, least = whole.max(), whole.min()
        if elementwise[op]:
            read[op] = MIXED if most == TURNED and least < TURNED else most
            layout[op] = most if most == least else PLAIN
        else:
            read[op] = most
            if most >= TURNED:
                so = given[layout[given] == most]
                operand[op] = so[elements[so].argmax()]
    return read, operand


def _convolutions(graph: ComputationGraph, name: str, ops: np.ndarray, item: np.ndarray) -> Iterator[Keyed]:
    """By variant. The weight is the operand that is a parameter, or else whose channels fit."""
    found: dict[tuple[str, ...], list[tuple[int, tuple[float, ...]]]] = {}
    backward = name.startswith("convolution_backward")
    for op in ops.tolist():
        operands = graph.pred[graph.pred_ptr[op] : graph.pred_ptr[op + 1]]
        shapes = {int(one): tuple(size for size in graph.output_shape[one].tolist() if size >= 0) for one in operands}
        out = tuple(size for size in graph.output_shape[op].tolist() if size >= 0)
        many = {one: dims for one, dims in shapes.items() if len(dims) == len(out) and len(dims) > 2}
        weights = [one for one in many if graph.param_bytes[one] > 0]
        weight = many[weights[0]] if weights else None
        images = [dims for one, dims in many.items() if not weights or one != weights[0]]
        if weight is None and not backward:
            fits = [dims for dims in images if dims[0] == out[1] and dims[2:] != out[2:]]
            weight = fits[-1] if len(fits) == 1 else None
            images = [dims for dims in images if dims is not weight]
        if weight is None or not images:
            found.setdefault(("class:conv",), []).append((op, ()))
            continue
        only_weight = backward and out == weight
        if backward:
            made = [dims for dims in images if dims[1] == weight[0]]
            small = min(made or images, key=lambda dims: np.prod(dims[2:]))
            large = next((dims for dims in images if dims is not small), small if only_weight else out)
        else:
            large, small = images[0], out
        positions = (float(np.prod(large[2:])), float(np.prod(small[2:])))
        groups = max(large[1] // max(weight[1], 1), 1)
        area, times = float(np.prod(weight[2:])), 2.0 if backward and not only_weight else 1.0
        depthwise = groups > 1 and weight[1] == 1
        key: tuple[str, ...] = (name,)
        if depthwise or groups > 1:
            key = (f"{name}:{'depthwise' if depthwise else 'grouped'}", name)
        elif only_weight:
            key = (f"{name}:weight", name)
        elif area == 1:
            key = (f"{name}:1x1", name)
        facts = (large[0], large[1], small[1], groups, area, *positions, item[op], times)
        found.setdefault((*key, "class:conv"), []).append((op, tuple(map(float, facts))))
    for keys, entries in found.items():
        chosen = np.array([op for op, _ in entries])
        if keys == ("class:conv",):
            zero = dict.fromkeys(TERMS["conv"], np.zeros(len(chosen)))
            moved = (graph.bytes_read + graph.bytes_written)[chosen].astype(np.float64)
            work = zero | generic_work(moved, 0.0, graph.bytes_written[chosen])
            work |= {"flop": graph.flops[chosen].astype(np.float64)}
            yield Keyed(("class:conv",), chosen, work)
        else:
            yield Keyed(keys, chosen, conv_work(*np.array([facts for _, facts in entries]).T))


def keyed_seconds(tables: Mapping[str, Mapping[str, Prices]], graph: ComputationGraph) -> np.ndarray:
    """float64 [N]: seconds of the ops that a device's prices know, NaN for all else.

    Args:
        tables: dtype -> key -> prices; a dtype that is not there is priced as float32.
    """
    known = np.zeros(graph.num_ops, bool)
    seconds = np.zeros(graph.num_ops)
    for keys, ops, work in keyed_work(graph):
        for dtype in np.unique(graph.dtype[ops]).tolist():
            table = tables.get(DTYPES[dtype], tables["float32"])
            key = next((key for key in keys if key in table), None)
            if key is not None:
                chosen = graph.dtype[ops] == dtype
                part = {term: _part(amount, chosen) for term, amount in work.items()}
                seconds[ops[chosen]] += priced(table[key], part)
                known[ops[chosen]] = True
    return np.where(known, seconds, np.nan)


def products_of(graph: ComputationGraph) -> np.ndarray:
    """bool [N]: matrix products, attention and convolutions."""
    return np.isin(graph.op_class, [OP_CLASSES.index(name) for name in ("matmul", "conv")])


def keyed_parts(
    tables: Mapping[str, Mapping[str, Prices]], graph: ComputationGraph
) -> tuple[float, float, float, float]:
    """(seconds of products, convolutions and attention; of all other kernels; of them what a copy of the same bytes
    takes; how many kernels), priced by terms."""
    seconds, copied = np.nan_to_num(keyed_seconds(tables, graph)), copy_seconds(tables, graph)
    product = products_of(graph)
    kernels = (graph.op_class != SOURCE) & (graph.op_class != VIEW)
    others = seconds[~product]
    copies = np.minimum(copied[~product], others)
    return float(seconds[product].sum()), float(others.sum()), float(copies.sum()), float(kernels.sum())


def copy_seconds(tables: Mapping[str, Mapping[str, Prices]], graph: ComputationGraph) -> np.ndarray:
    """float64 [N]: what a copy would take that moves the bytes of each op."""
    moved = generic_work(graph.bytes_read + graph.bytes_written, 0.0)
    copied = np.zeros(graph.num_ops)
    for dtype in np.unique(graph.dtype).tolist():
        table = tables.get(DTYPES[dtype], tables["float32"])
        prices = table.get("clone") or table.get("copy") or table.get("class:copy") or {}
        prices = {term: price for term, price in prices.items() if term == "byte" or term in STEPS}
        copied = np.where(graph.dtype == dtype, priced(prices, moved), copied)
    return copied


def term_times(fitted: Mapping[str, Any], graph: ComputationGraph) -> tuple[np.ndarray, np.ndarray]:
    """(seconds, seconds of them that are the bytes of a copy), each float64 [N]; NaN for ops without a price.

    Args:
        fitted: a device's ``terms``, with ``in_model_products``, how many times as long products take inside a step,
            and ``in_model_streams``, how many times as long the bytes of all other kernels take, as those of a copy.
    """
    tables = fitted["terms"]
    seconds = keyed_seconds(tables, graph)
    copied = np.fmin(copy_seconds(tables, graph), seconds)
    streams = fitted.get("in_model_streams", 1.0)
    others = seconds + (streams - 1) * copied
    return np.where(products_of(graph), fitted.get("in_model_products", 1.0) * seconds, others), streams * copied
