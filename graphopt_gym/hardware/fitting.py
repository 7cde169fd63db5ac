"""Least squares (scipy) of the roofline's parameters on timed kernels, on the logarithm of the latency.

Robust (soft L1 at 10 %), from several starts, with a weak pull to the starting values (a residual of 3 % for a factor
of e), which keeps parameters in place that the data do not show. A table of kernels is a dict of columns, float64
[rows] each, as :func:`graphopt_gym.hardware.measured.load_kernels` reads them: the shape, ``latency_s``, ``order``.
Every fit of kernels gives the parameters and, apart from them, what its timing loop adds
(:func:`~graphopt_gym.hardware.measured.isolated_seconds`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from graphopt_gym.hardware.cluster import Device
from graphopt_gym.hardware.collectives import ring_all_reduce_s
from graphopt_gym.hardware.measured import TWO_INPUTS, Kernels, isolated_seconds
from graphopt_gym.hardware.roofline import (
    CONV_TILES,
    TILES,
    WINOGRAD_TILES,
    attention_seconds,
    conv_seconds,
    gemm_seconds,
    row_efficiency,
    stream_efficiency,
    tensor_core_seconds,
)

K_STEPS = (8, 32, 64, 128)
STARTS = 3
PULL = 0.03
NOISE = 0.1  # residuals beyond 10 % count linearly


@dataclass
class Spec:
    """The parameters of one fit: name -> (start, low, high), a number or a list, all positive."""

    table: dict[str, tuple[Any, float, float]]

    def vector(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        start = np.log(np.concatenate([np.atleast_1d(start) for start, _, _ in self.table.values()]))
        sizes = [np.size(start) for start, _, _ in self.table.values()]
        low = np.log(np.repeat([low for _, low, _ in self.table.values()], sizes))
        high = np.log(np.repeat([high for _, _, high in self.table.values()], sizes))
        return start, low, high

    def unpack(self, x: np.ndarray) -> dict[str, Any]:
        values, at = {}, 0
        for name, (start, _, _) in self.table.items():
            size = np.size(start)
            part = np.exp(x[at : at + size])
            values[name] = part.tolist() if np.ndim(start) else float(part[0])
            at += size
        return values


def fit(
    spec: Spec, predict: Callable[[dict[str, Any]], np.ndarray], latency_s: np.ndarray, starts: int = STARTS
) -> tuple[dict[str, Any], float]:
    """(parameters, cost) of the best of several starts."""
    start, low, high = spec.vector()
    # a kernel near the floor of the timing loop says little
    weight = np.where(latency_s > 100e-6, 1.0, 0.5)
    rng = np.random.default_rng(0)
    best = None
    for attempt in range(starts):
        x0 = start if attempt == 0 else start + rng.normal(0, 0.4, len(start))

        def residuals(x: np.ndarray) -> np.ndarray:
            return np.append(weight * np.log(predict(spec.unpack(x)) / latency_s), PULL * (x - start))

        result = least_squares(
            residuals, np.clip(x0, low + 1e-6, high - 1e-6), bounds=(low, high), loss="soft_l1", f_scale=NOISE,
            diff_step=3e-3, max_nfev=60,
        )  # fmt: skip
        if best is None or result.cost < best.cost:
            best = result
    assert best is not None
    return spec.unpack(best.x), float(best.cost)


def _timing(latency_s: np.ndarray, percentile: float, issue: float = 0.6) -> dict[str, tuple[Any, float, float]]:
    floor = float(np.percentile(latency_s, percentile))
    low = 0.1 * floor if percentile < 10 else 1e-6
    return {"issue_s": (issue * floor, low, floor), "floor_s": (floor, 0.5 * floor, 2 * floor)}


def fit_gemm(
    device: Device,
    rows: Kernels,
    *,
    linear: bool = False,
    dtype: str = "float32",
    item_bytes: int = 4,
    quick: bool = False,
) -> tuple[dict[str, Any], dict[str, float]]:
    """Matrix products: ``batch``, ``m``, ``n``, ``k``. ``linear``: with weights stored [n, k]; ``quick``: one
    start, and one step of k, of those that are tried.

    Returns:
        the parameters of :func:`gemm_seconds` with ``bytes``, and the timing loop's.
    """
    latency = rows["latency_s"]
    shape = (rows["batch"], rows["m"], rows["n"], rows["k"])
    batch, m, n, k = shape
    streamed = item_bytes * batch * (m * k + k * n + m * n)
    table: dict[str, tuple[Any, float, float]] = {
        "tiles": ([0.85, 0.8, 0.8, 0.75, 0.7, 0.7, 0.6, 0.6, 0.5], 0.02, 1.05),
        "k_fixed": (16, 0.1, 400),
        "fill": (0.5, 1e-3, 20),
        "quantised": (0.5, 0.01, 1),
        "split_s": (5e-6, 1e-7, 50e-6),
        "long_gain": (0.1, 1e-3, 2),
        "long_s": (2e-3, 1e-4, 0.2),
        "bytes": (0.7, 0.1, 1),
        **_timing(latency, 3, 0.7),
    }
    if linear:  # only these have a very long k
        table |= {"deep_loss": (0.1, 1e-3, 5), "deep_k": (16000, 1000, 200000), "deep_power": (2, 0.5, 6)}
    spec = Spec(table)
    units, bandwidth = max(device.compute_units, 1), device.memory_bytes_per_s

    def predict(p: dict[str, Any], k_step: int) -> np.ndarray:
        p = {"deep_loss": 0.0, **p, "k_step": k_step}
        work = np.maximum(
            gemm_seconds(p, units, device.peak(dtype), bandwidth, *shape), streamed / (bandwidth * p["bytes"])
        )
        return isolated_seconds(p, work, rows["order"])

    def attempt(k_step: int) -> tuple[dict[str, Any], float]:
        p, cost = fit(spec, lambda p: predict(p, k_step), latency, 1 if quick else STARTS)
        return {"deep_loss": 0.0, **p, "k_step": k_step}, cost

    assert len(table["tiles"][0]) == len(TILES)
    p, _ = min((attempt(k_step) for k_step in (K_STEPS[1:2] if quick else K_STEPS)), key=lambda tried: tried[1])
    return p, {"issue_s": p.pop("issue_s"), "floor_s": p.pop("floor_s")}


def fit_conv(device: Device, rows: Kernels) -> tuple[dict[str, Any], dict[str, float]]:
    """Square 2-D convolutions: ``batch``, ``in_channels``, ``out_channels``, ``kernel``, ``size``, ``stride``."""
    latency = rows["latency_s"]
    images, size, outputs = rows["batch"], rows["size"], rows["out_channels"]
    k = rows["in_channels"] * rows["kernel"] ** 2
    in_elements = images * rows["in_channels"] * size**2
    streamed = 4 * (in_elements + k * outputs + images * outputs * size**2)
    winograd = (rows["kernel"] == 3) & (rows["stride"] == 1)
    share = (0.7, 0.01, 20)
    spec = Spec(
        {
            "tiles": ([0.7, 0.7, 0.7, 0.7, 0.6, 0.6, 0.5], 0.02, 1.05),
            "k_fixed": (16, 0.1, 400), "fill": (0.5, 1e-3, 20),
            "in_bytes": (18, 0.1, 200), "out_bytes": (2, 0.01, 20), "weight_bytes": (2, 0.01, 20),
            "fused": (0.6, 0.02, 1.05), "fused_fill": (0.5, 1e-3, 20), "fused_k": (8, 0.1, 400),
            "fused_weight_bytes": (2, 0.005, 20),
            "wide": ([0.7] * len(WINOGRAD_TILES), 0.02, 1.05), "wide_fill": (0.5, 1e-3, 20),
            "wide_k": (8, 0.1, 400), "wide_in_bytes": share, "wide_out_bytes": share, "wide_weight_bytes": share,
            "bytes": (0.6, 0.1, 1),
            "issue_s": (30e-6, 1e-6, 100e-6), "floor_s": (60e-6, 20e-6, 150e-6), "drift_s": (300e-6, 1e-6, 2e-3),
        }
    )  # fmt: skip
    assert len(CONV_TILES) == 7

    def predict(p: dict[str, Any]) -> np.ndarray:
        work = np.maximum(
            conv_seconds(
                p, max(device.compute_units, 1), device.peak("float32"), device.memory_bytes_per_s,
                images, size, size, outputs, k, winograd,
            ),
            streamed / (device.memory_bytes_per_s * p["bytes"]),
        )  # fmt: skip
        return isolated_seconds(p, work, rows["order"])

    p, _ = fit(spec, predict, latency)
    return p, {name: p.pop(name) for name in ("issue_s", "floor_s", "drift_s")}


def fit_streams(device: Device, tables: Mapping[str, Kernels]) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """One efficiency for kernels with one input and one for two, over the element-wise ops of ``tables`` together."""
    latency = np.concatenate([rows["latency_s"] for rows in tables.values()])
    table: dict[str, tuple[Any, float, float]] = {"one_input": (0.8, 0.1, 1), "two_inputs": (0.8, 0.1, 1)}
    for op, rows in tables.items():
        table |= {f"{name}.{op}": value for name, value in _timing(rows["latency_s"], 10).items()}

    def predict(p: dict[str, Any]) -> np.ndarray:
        parts = []
        for op, rows in tables.items():
            written = 4 * rows["rows"] * rows["columns"]
            read = written * (2 if op in TWO_INPUTS else 1)
            rate = device.memory_bytes_per_s * stream_efficiency(p, read, written)
            timing = {"issue_s": p[f"issue_s.{op}"], "floor_s": p[f"floor_s.{op}"]}
            parts.append(isolated_seconds(timing, (read + written) / rate, rows["order"]))
        return np.concatenate(parts)

    p, _ = fit(Spec(table), predict, latency, starts=1)
    timing = {op: {"issue_s": p[f"issue_s.{op}"], "floor_s": p[f"floor_s.{op}"]} for op in tables}
    return {"one_input": p["one_input"], "two_inputs": p["two_inputs"]}, timing


def fit_rows(device: Device, rows: Kernels, knots: tuple[int, ...]) -> tuple[list[float], dict[str, float]]:
    """Kernels that reduce rows: an efficiency at each of ``knots``, the rows' lengths."""
    spec = Spec({"rows": ([0.6] * len(knots), 0.05, 1), **_timing(rows["latency_s"], 10)})

    def predict(p: dict[str, Any]) -> np.ndarray:
        rate = device.memory_bytes_per_s * row_efficiency(knots, p["rows"], rows["columns"])
        return isolated_seconds(p, 8 * rows["rows"] * rows["columns"] / rate, rows["order"])

    p, _ = fit(spec, predict, rows["latency_s"])
    return p["rows"], {"issue_s": p["issue_s"], "floor_s": p["floor_s"]}


def fit_tensor_cores(
    device: Device, rows: Kernels, rate: str, item_bytes: int, *, operands: bool
) -> tuple[dict[str, Any], float]:
    """Products on tensor cores: (parameters of :func:`tensor_core_seconds` with ``bytes``, seconds to start).

    Args:
        rate: whose peak.
        operands: fit also what the operands cost beside the product.
    """
    batch, m, n, k = (rows[name] for name in ("batch", "m", "n", "k"))
    streamed = item_bytes * batch * (m * k + k * n + m * n)
    spec = Spec(
        {
            "largest": (0.85, 0.1, 1.05), "small": (0.6, 0.05, 1), "wave_s": (0.5e-6, 1e-8, 1e-5),
            "fill": (0.3, 1e-3, 5), "quantised": (0.5, 0.01, 1), "split_s": (2e-6, 1e-7, 2e-5), "bytes": (0.8, 0.1, 1),
            "start_s": (2e-6, 1e-7, 8e-6),
        } | ({"left_bytes": (1, 0.05, 1e3), "right_bytes": (1, 0.05, 1e3)} if operands else {})
    )  # fmt: skip

    def predict(p: dict[str, Any]) -> np.ndarray:
        p = {"left_bytes": np.inf, "right_bytes": np.inf, **p}
        computed = tensor_core_seconds(
            p, device.compute_units, device.peak(rate), device.memory_bytes_per_s, item_bytes, batch, m, n, k
        )
        return p["start_s"] + np.maximum(computed, streamed / (device.memory_bytes_per_s * p["bytes"]))

    p, _ = fit(spec, predict, rows["latency_s"], starts=8)
    return {"left_bytes": 1e9, "right_bytes": 1e9, **p}, p.pop("start_s")


def fit_attention(device: Device, rows: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Published rates of fused attention: ``tflops``, ``length``, ``head``, and bool ``backward``, ``causal``,
    ``cudnn``; parameters of :func:`attention_seconds` by kernel.
    """
    fitted = {}
    peak = np.full(len(rows["tflops"]), device.peak("bfloat16"))
    for name, of in (("flash", ~rows["cudnn"]), ("cudnn", rows["cudnn"])):
        spec = Spec(
            {"forward": (0.4, 0.05, 1), "backward": (0.35, 0.05, 1), "head_half": (8, 0.1, 200),
             "length_half": (100, 1, 5000)}
        )  # fmt: skip
        flops = np.full(of.sum(), 1e12)

        def predict(p: dict[str, Any], of: np.ndarray = of, flops: np.ndarray = flops) -> np.ndarray:
            both = {"flash": p, "cudnn": p, "flash_elsewhere": 1.0, "efficient": 1.0}
            always = np.ones(of.sum(), bool)
            return attention_seconds(
                both, "hopper", flops, peak[of], rows["length"][of], rows["head"][of], rows["backward"][of], always,
                ~always,
            )  # fmt: skip

        fitted[name], _ = fit(spec, predict, flops / (rows["tflops"][of] * 1e12))
    return fitted


def fit_all_reduce(table: Kernels, rings: np.ndarray) -> dict[str, float]:
    """Bandwidth of a ring, latency of a step and start. ``rings``: how many run side by side in each row."""
    spec = Spec({"bytes_per_s": (50e9, 1e9, 1e12), "latency_s": (6e-6, 1e-7, 1e-4), "start_s": (1e-5, 1e-7, 1e-3)})

    def predict(p: dict[str, Any]) -> np.ndarray:
        return ring_all_reduce_s(table["gpus"], table["bytes"], p["bytes_per_s"] * rings, p["latency_s"], p["start_s"])

    return fit(spec, predict, table["time_s"], starts=1)[0]
