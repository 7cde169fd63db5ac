"""Fits the cost model to the measured kernels: ``python scripts/fit_cost_model.py [--out FILE]``.

Reads ``envs_data/cost_model`` and writes ``fitted.json`` there. Least squares (scipy) on the logarithm of the
latency, robust (soft L1 at 10 %), one architecture at a time, on the shapes that are not held out. A weak pull to
the starting values (a residual of 3 % for a factor of e) keeps parameters in place that the data do not show.
Takes two to four minutes on one core. The same data give the same file.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import brentq, least_squares

from graphopt_gym.data import data_path
from graphopt_gym.files import write_text
from graphopt_gym.hardware.cluster import Device, load_device
from graphopt_gym.hardware.collectives import ring_all_reduce_s
from graphopt_gym.hardware.cost_model import CostModel
from graphopt_gym.hardware.measured import (
    ALL_REDUCE_FITTED_ON,
    NVLINK_RINGS,
    SPLIT_SEED,
    STREAM_OPS,
    TEST_PERCENT,
    TWO_INPUTS,
    Kernels,
    held_out,
    isolated_seconds,
    load_all_reduce,
    load_kernels,
    load_models,
    model_key,
    model_seconds,
)
from graphopt_gym.hardware.roofline import (
    CONV_TILES,
    NORM_KNOTS,
    SOFTMAX_KNOTS,
    TILES,
    WINOGRAD_TILES,
    conv_seconds,
    gemm_seconds,
    row_efficiency,
    stream_efficiency,
)

# architecture -> the measured devices its parameters come from: (for convolutions, for all else)
ARCHITECTURES = {
    "pascal": ("p100_pcie_16gb", "p100_pcie_16gb"),
    "volta": ("v100_pcie_32gb", "v100_pcie_32gb"),
    "turing": ("t4", "t4"),
    "ampere": ("a100_pcie_80gb", "a100_pcie_40gb"),
}
# The whole-model rows that are fitted on, one number each; all others are for checking.
# Seconds between kernels: the row with the shortest kernels among the models without control flow on values.
LAUNCH_ROW = ("v100_pcie_32gb", "bert_large", "train", "512", "2")
# How much faster or slower matrix products run in a whole model than by themselves.
COMPUTE_ROWS = {
    "pascal": ("p100_pcie_16gb", "bert_large", "inf", "512", "8"),
    "volta": ("v100_pcie_32gb", "bert_large", "inf", "512", "8"),
    "turing": ("t4", "opt_13", "inf", "2048", "2"),
}
COSTS = "1"  # raise it where what an op costs changes: solutions say which costs they were priced by
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


def fit_gemm(device: Device, op: str) -> tuple[dict[str, Any], dict[str, float]]:
    kernels = load_kernels()[device.name, op]
    rows = {name: values[~held_out(op, kernels)] for name, values in kernels.items()}
    latency = rows["latency_s"]
    shape = (rows["batch"], rows["m"], rows["n"], rows["k"])
    streamed = 4 * rows["batch"] * (rows["m"] * rows["k"] + rows["k"] * rows["n"] + rows["m"] * rows["n"])
    floor = float(np.percentile(latency, 3))
    table: dict[str, tuple[Any, float, float]] = {
        "tiles": ([0.85, 0.8, 0.8, 0.75, 0.7, 0.7, 0.6, 0.6, 0.5], 0.02, 1.05),
        "k_fixed": (16, 0.1, 400),
        "fill": (0.5, 1e-3, 20),
        "quantised": (0.5, 0.01, 1),
        "split_s": (5e-6, 1e-7, 50e-6),
        "long_gain": (0.1, 1e-3, 2),
        "long_s": (2e-3, 1e-4, 0.2),
        "bytes": (0.7, 0.1, 1),
        "issue_s": (0.7 * floor, 0.1 * floor, floor),
        "floor_s": (floor, 0.5 * floor, 2 * floor),
    }
    if op == "linear":  # only these have wide outputs
        table |= {"wide_loss": (0.1, 1e-3, 5), "wide_n": (16000, 1000, 200000), "wide_m": (0.2, 0.01, 1)}
    spec = Spec(table)

    def predict(p: dict[str, Any], k_step: int) -> np.ndarray:
        p = {"wide_loss": 0.0, **p, "k_step": k_step}
        work = np.maximum(
            gemm_seconds(p, device.compute_units, device.peak("float32"), device.memory_bytes_per_s, *shape),
            streamed / (device.memory_bytes_per_s * p["bytes"]),
        )
        return isolated_seconds(p, work, rows["order"])

    def attempt(k_step: int) -> tuple[dict[str, Any], float]:
        p, cost = fit(spec, lambda p: predict(p, k_step), latency)
        return {"wide_loss": 0.0, **p, "k_step": k_step}, cost

    p, _ = min((attempt(k_step) for k_step in K_STEPS), key=lambda tried: tried[1])
    return p, {"issue_s": p.pop("issue_s"), "floor_s": p.pop("floor_s")}


def fit_conv(device: Device) -> tuple[dict[str, Any], dict[str, float]]:
    kernels = load_kernels()[device.name, "conv"]
    rows = {name: values[~held_out("conv", kernels)] for name, values in kernels.items()}
    latency = rows["latency_s"]
    images, size, outputs = rows["batch"], rows["size"], rows["out_channels"]
    k = rows["in_channels"] * rows["kernel"] ** 2
    in_elements = images * rows["in_channels"] * size**2
    streamed = 4 * (in_elements + k * outputs + images * outputs * size**2)
    winograd = np.ones(len(k), bool)  # all rows: 3x3, stride 1
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
                p, device.compute_units, device.peak("float32"), device.memory_bytes_per_s,
                images, size, size, outputs, k, winograd,
            ),
            streamed / (device.memory_bytes_per_s * p["bytes"]),
        )  # fmt: skip
        return isolated_seconds(p, work, rows["order"])

    p, _ = fit(spec, predict, latency)
    return p, {name: p.pop(name) for name in ("issue_s", "floor_s", "drift_s")}


def fit_streams(device: Device) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """One efficiency for kernels with one input and one for two, over all element-wise ops together."""
    tables = {op: load_kernels()[device.name, op] for op in STREAM_OPS}
    rows = {op: {name: v[~held_out(op, t)] for name, v in t.items()} for op, t in tables.items()}
    latency = np.concatenate([rows[op]["latency_s"] for op in STREAM_OPS])
    table: dict[str, tuple[Any, float, float]] = {"one_input": (0.8, 0.1, 1), "two_inputs": (0.8, 0.1, 1)}
    for op in STREAM_OPS:
        floor = float(np.percentile(rows[op]["latency_s"], 10))
        table[f"issue_s.{op}"] = (0.6 * floor, 1e-6, floor)
        table[f"floor_s.{op}"] = (floor, 0.5 * floor, 2 * floor)

    def predict(p: dict[str, Any]) -> np.ndarray:
        parts = []
        for op in STREAM_OPS:
            written = 4 * rows[op]["rows"] * rows[op]["columns"]
            read = written * (2 if op in TWO_INPUTS else 1)
            rate = device.memory_bytes_per_s * stream_efficiency(p, read, written)
            timing = {"issue_s": p[f"issue_s.{op}"], "floor_s": p[f"floor_s.{op}"]}
            parts.append(isolated_seconds(timing, (read + written) / rate, rows[op]["order"]))
        return np.concatenate(parts)

    p, _ = fit(Spec(table), predict, latency, starts=1)
    timing = {op: {"issue_s": p[f"issue_s.{op}"], "floor_s": p[f"floor_s.{op}"]} for op in STREAM_OPS}
    return {"one_input": p["one_input"], "two_inputs": p["two_inputs"]}, timing


def fit_rows(device: Device, op: str, knots: tuple[int, ...]) -> tuple[list[float], dict[str, float]]:
    kernels: Kernels = load_kernels()[device.name, op]
    rows = {name: values[~held_out(op, kernels)] for name, values in kernels.items()}
    floor = float(np.percentile(rows["latency_s"], 10))
    spec = Spec(
        {
            "rows": ([0.6] * len(knots), 0.05, 1),
            "issue_s": (0.6 * floor, 1e-6, floor),
            "floor_s": (floor, 0.5 * floor, 2 * floor),
        }
    )

    def predict(p: dict[str, Any]) -> np.ndarray:
        rate = device.memory_bytes_per_s * row_efficiency(knots, p["rows"], rows["columns"])
        return isolated_seconds(p, 8 * rows["rows"] * rows["columns"] / rate, rows["order"])

    p, _ = fit(spec, predict, rows["latency_s"])
    return p["rows"], {"issue_s": p["issue_s"], "floor_s": p["floor_s"]}


def fit_models(architectures: dict[str, Any]) -> dict[str, Any]:
    """Sets ``in_model`` of each architecture in place, and gives the launch overhead."""
    rows = {model_key(row): row for row in load_models()}
    for p in architectures.values():
        p["in_model"] = 1.0

    def excess(row: dict[str, str], launch_s: float) -> float:
        return model_seconds(CostModel(architectures, launch_s), row)["total"] - float(row["total_ms"]) * 1e-3

    launch_s = float(brentq(lambda launch_s: excess(rows[LAUNCH_ROW], launch_s), 0, 1e-3, xtol=1e-9))
    for architecture, key in COMPUTE_ROWS.items():

        def with_factor(factor: float, architecture: str = architecture, key: tuple[str, ...] = key) -> float:
            architectures[architecture]["in_model"] = factor
            return excess(rows[key], launch_s)

        architectures[architecture]["in_model"] = float(brentq(with_factor, 0.3, 3, xtol=1e-5))
    return {"launch_s": launch_s, "launch_row": list(LAUNCH_ROW), "compute_rows": COMPUTE_ROWS}


def fit_all_reduce() -> dict[str, dict[str, float]]:
    """Bandwidth of a ring, latency of a step and start, by device."""
    result = {}
    for device, table in load_all_reduce().items():
        rings = np.array([NVLINK_RINGS[device].get(int(gpus), 1) for gpus in table["gpus"]])
        fitted_on = np.isin(table["gpus"], ALL_REDUCE_FITTED_ON)
        spec = Spec({"bytes_per_s": (50e9, 1e9, 1e12), "latency_s": (6e-6, 1e-7, 1e-4), "start_s": (1e-5, 1e-7, 1e-3)})

        def predict(p: dict[str, Any], table: Kernels = table, rings: np.ndarray = rings) -> np.ndarray:
            return ring_all_reduce_s(
                table["gpus"], table["bytes"], p["bytes_per_s"] * rings, p["latency_s"], p["start_s"]
            )

        result[device], _ = fit(
            spec,
            lambda p, predict=predict, fitted_on=fitted_on: predict(p)[fitted_on],  # type: ignore[misc]
            table["time_s"][fitted_on],
            starts=1,
        )
    return result


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def write(path: Path, result: dict[str, Any]) -> None:
    write_text(path, json.dumps(rounded(result), indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=data_path("cost_model", "fitted.json"))
    arguments = parser.parse_args()
    architectures, timing = {}, {}
    started = time.perf_counter()

    def done(what: str) -> None:
        print(f"{time.perf_counter() - started:6.1f} s  {what}", file=sys.stderr)

    for architecture, (conv_device, device_name) in ARCHITECTURES.items():
        device = load_device(device_name)
        p: dict[str, Any] = {"fitted_on": sorted({conv_device, device_name})}
        loop: dict[str, Any] = {}
        p["stream"], loop_streams = fit_streams(device)
        loop |= loop_streams
        done(f"{architecture}: element-wise")
        p["softmax"], loop["softmax"] = fit_rows(device, "softmax", SOFTMAX_KNOTS)
        p["norm"], loop["ln"] = fit_rows(device, "ln", NORM_KNOTS)
        done(f"{architecture}: softmax, norm")
        p["linear"], loop["linear"] = fit_gemm(device, "linear")
        p["bmm"], loop["bmm"] = fit_gemm(device, "bmm")
        assert len(p["linear"]["tiles"]) == len(TILES)
        done(f"{architecture}: matrix products")
        p["conv"], loop["conv"] = fit_conv(load_device(conv_device))
        done(f"{architecture}: convolutions")
        architectures[architecture] = p
        timing[architecture] = loop
    models = fit_models(architectures)
    done("whole models: launch overhead, compute in a model")
    write(
        arguments.out,
        {
            "format": "graphopt-cost-model",
            "version": 1,
            "costs": COSTS,
            "split": {"seed": SPLIT_SEED, "held_out_percent": TEST_PERCENT},
            "architectures": architectures,
            "timing_loop": timing,
            "whole_models": models,
            "all_reduce": fit_all_reduce(),
        },
    )
    print(arguments.out)


if __name__ == "__main__":
    main()
