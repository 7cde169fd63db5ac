"""Graphs of a few ops with chosen shapes."""

from __future__ import annotations

import numpy as np

from graphopt_gym.graphs.graph import COLUMNS, DTYPES, MAX_RANK, OP_CLASSES, ComputationGraph


def graph_of(*ops: dict) -> ComputationGraph:
    """A graph of ops given as dicts: ``kind``, ``op_class``, ``shape``, ``inputs``, and any column."""
    columns = {
        name: np.zeros((len(ops), MAX_RANK) if name == "output_shape" else len(ops), np.int64) for name in COLUMNS
    }
    columns["output_shape"][:] = -1
    columns["colocation"][:] = -1
    kinds = sorted({op["kind"] for op in ops})
    edges = []
    for index, op in enumerate(ops):
        columns["kind"][index] = kinds.index(op["kind"])
        columns["op_class"][index] = OP_CLASSES.index(op["op_class"])
        columns["dtype"][index] = DTYPES.index(op.get("dtype", "float32"))
        columns["output_shape"][index, : len(op["shape"])] = op["shape"]
        columns["output_bytes"][index] = 4 * int(np.prod(op["shape"]))
        edges += [(source, index) for source in op.get("inputs", ())]
        for name in ("flops", "bytes_read", "bytes_written", "param_bytes"):
            columns[name][index] = op.get(name, 0)
    return ComputationGraph("test", kinds=kinds, modules=[""], columns=columns, edges=np.array(edges, np.int64))


def source(*shape: int, param: bool = True) -> dict:
    size = 4 * int(np.prod(shape))
    return {"kind": "source", "op_class": "source", "shape": shape, "param_bytes": size if param else 0}


def product(m: int, n: int, k: int, batch: int = 0, transposed_weight: bool = False) -> ComputationGraph:
    """x [m, k] times w, as ``mm`` or ``bmm``; op 2 or 3 is the product."""
    shape = (batch, m, n) if batch else (m, n)
    count = max(batch, 1)
    op = {
        "kind": "bmm" if batch else "mm",
        "op_class": "matmul",
        "shape": shape,
        "flops": 2 * count * m * n * k,
        "bytes_read": 4 * count * (m * k + k * n),
        "bytes_written": 4 * count * m * n,
    }
    if transposed_weight:
        view = {"kind": "t", "op_class": "view", "shape": (k, n), "inputs": [1]}
        return graph_of(source(m, k, param=False), source(n, k), view, {**op, "inputs": [0, 2]})
    return graph_of(source(m, k, param=False), source(k, n), {**op, "inputs": [0, 1]})


def convolution(images: int, size: int, channels: int, outputs: int, kernel: int, stride: int = 1) -> ComputationGraph:
    """Op 2 is the forward convolution, op 3 its backward (both gradients), op 4 that of the weight alone."""
    out = size // stride
    k = channels * kernel**2
    flops = 2 * images * out**2 * outputs * k
    in_bytes, out_bytes = 4 * images * size**2 * channels, 4 * images * out**2 * outputs
    weight_bytes = 4 * outputs * k
    return graph_of(
        source(images, channels, size, size, param=False),
        source(outputs, channels, kernel, kernel),
        {"kind": "convolution", "op_class": "conv", "shape": (images, outputs, out, out), "inputs": [0, 1],
         "flops": flops, "bytes_read": in_bytes + weight_bytes, "bytes_written": out_bytes},
        {"kind": "convolution_backward", "op_class": "conv", "shape": (images, channels, size, size),
         "inputs": [0, 1, 2], "flops": 2 * flops, "bytes_read": in_bytes + weight_bytes + out_bytes,
         "bytes_written": in_bytes + weight_bytes},
        {"kind": "convolution_backward", "op_class": "conv", "shape": (outputs, channels, kernel, kernel),
         "inputs": [0, 1, 2], "flops": flops, "bytes_read": in_bytes + weight_bytes + out_bytes,
         "bytes_written": weight_bytes},
    )  # fmt: skip
