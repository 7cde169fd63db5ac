"""Fits the cost model's own formulas for GPUs to timed kernels, and terms to the operators that these leave out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphopt_gym.errors import InputError
from graphopt_gym.graphs.graph import DTYPE_BYTES
from graphopt_gym.hardware.calibration.fit import Table
from graphopt_gym.hardware.calibration.kernels import COLUMNS, OPS
from graphopt_gym.hardware.calibration.table import Timed
from graphopt_gym.hardware.cluster import Device
from graphopt_gym.hardware.fitting import fit_conv, fit_gemm, fit_rows, fit_streams, fit_tensor_cores
from graphopt_gym.hardware.roofline import NORM_KNOTS, SOFTMAX_KNOTS

FEWEST = 12  # kernels that a formula is fitted to
# our names -> those that the formulas' streams have
STREAMS = {
    "add": "add", "mul": "mul", "div": "div", "add:scalar": "addu", "mul:scalar": "mulu", "div:scalar": "divu",
    "pow:scalar": "powu", "relu": "relu", "tanh": "tanh", "gelu": "gelu",
}  # fmt: skip
LINEAR, BMM = ("linear", "mm", "addmm"), ("bmm", "baddbmm")


def fit_gpu(device: Device, rows: Sequence[Timed], tables: Table) -> dict[str, Any]:
    """``linear``, ``bmm``, ``conv``, ``stream``, ``softmax``, ``norm`` and ``tensor_cores`` of a device, and ``terms``.

    What there are too few kernels for is left to the device's architecture. A call's own time is left out of the terms:
    it is the launch.
    """
    groups: dict[tuple[str, str], list[Timed]] = {}
    for one in rows:
        groups.setdefault((one.kernel.op.split(":")[0] if OPS[one.kernel.op].family in ("product", "conv")
                           else one.kernel.op, one.kernel.dtype), []).append(one)  # fmt: skip

    def of(ops: Sequence[str], dtype: str = "float32") -> list[Timed]:
        return [one for op in ops for one in groups.get((op, dtype), [])]

    fitted: dict[str, Any] = {}
    for name, ops in (("linear", LINEAR), ("bmm", BMM)):
        if len(of(ops)) >= FEWEST:
            fitted[name], _ = fit_gemm(device, columns(of(ops)), linear=name == "linear")
    # what the formulas take: square kernels without groups, half padded
    plain = [one for one in of(["convolution"]) if one.kernel.shape["groups"] == 1]
    if len(plain) >= FEWEST:
        fitted["conv"], _ = fit_conv(device, columns(plain))
    streams = {name: columns(of([op])) for op, name in STREAMS.items() if len(of([op])) >= 3}
    if streams:
        fitted["stream"], _ = fit_streams(device, streams)
    for name, op, knots in (("softmax", "_softmax", SOFTMAX_KNOTS), ("norm", "native_layer_norm", NORM_KNOTS)):
        if len(of([op])) >= len(knots):
            fitted[name], _ = fit_rows(device, columns(of([op])), knots)
    cores = {}
    for dtype in ("bfloat16", "float16"):
        products = of((*LINEAR, *BMM), dtype)
        if len(products) >= FEWEST and dtype in device.peak_flops:
            cores[dtype], _ = fit_tensor_cores(device, columns(products), dtype, DTYPE_BYTES[dtype], operands=True)
    if cores:
        fitted["tensor_cores"] = cores
    terms = {
        dtype: {
            key: {term: price for term, price in prices.items() if term != "call"}
            for key, prices in table.items()
            if key not in STREAMS and not key.startswith("class:") and key in OPS
            and OPS[key].family not in ("product", "conv", "attention") and key not in ("_softmax", "native_layer_norm")
        }
        for dtype, table in tables.items()
    }  # fmt: skip
    if any(terms.values()):
        fitted["terms"] = {"float32": {}} | terms
    fitted |= {"in_model": {"linear": 1.0, "bmm": 1.0, "conv": 1.0}, "power_share": 1.0} if fitted else {}
    if not fitted:
        raise InputError(
            f"kernel times: too few for a fit of {device.name}; give {FEWEST} or more float32 products (mm, linear), "
            "or convolutions, or 3 of an element-wise operator"
        )
    return fitted


def columns(rows: Sequence[Timed]) -> dict[str, np.ndarray]:
    """float64 [rows] by column, as :func:`graphopt_gym.hardware.measured.load_kernels` has them."""
    names = COLUMNS[OPS[rows[0].kernel.op].family]
    table = {name: np.array([float(one.kernel.shape[name]) for one in rows]) for name in names}
    table["latency_s"] = np.array([one.seconds for one in rows])
    table["order"] = np.arange(len(rows)) / len(rows)
    return table
