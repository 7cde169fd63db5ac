"""Fits the cost model to the measurements: ``python scripts/fit_cost_model.py [--out FILE]``.

Reads ``envs_data/cost_model`` and writes ``fitted.json`` there, by the fits of :mod:`graphopt_gym.hardware.fitting`,
one architecture at a time, on what is not held out. Takes two to four minutes on one core. The same data give the same
file. What is fitted on what is in ``envs_data/cost_model/README.md``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from graphopt_gym.data import data_path
from graphopt_gym.files import write_text
from graphopt_gym.hardware.cluster import load_device
from graphopt_gym.hardware.cost_model import CostModel
from graphopt_gym.hardware.fitting import (
    fit_all_reduce,
    fit_attention,
    fit_conv,
    fit_gemm,
    fit_rows,
    fit_streams,
    fit_tensor_cores,
)
from graphopt_gym.hardware.measured import (
    ALL_REDUCE_FITTED_ON,
    NVLINK_RINGS,
    SPLIT_SEED,
    STREAM_OPS,
    TEST_PERCENT,
    Kernels,
    held_out,
    held_out_of_table,
    load_all_reduce,
    load_attention_rates,
    load_gemm_table,
    load_kernels,
    load_models,
    model_key,
    model_seconds,
)
from graphopt_gym.hardware.roofline import NORM_KNOTS, SOFTMAX_KNOTS, power_share
from graphopt_gym.hardware.validation import model_rows, published_rows

COSTS = "2"  # of what an op costs; another wherever a formula or a fitted number changes
# architecture -> the measured devices its parameters come from: (for convolutions, for all else)
ARCHITECTURES = {
    "pascal": ("p100_pcie_16gb", "p100_pcie_16gb"),
    "volta": ("v100_pcie_32gb", "v100_pcie_32gb"),
    "turing": ("t4", "t4"),
    "ampere": ("a100_pcie_80gb", "a100_pcie_40gb"),
}
TENSOR_CORES = "h100_sxm_80gb"
# Whole-model rows that are fitted on: of each model but those of CHECKED, and each mode, that with the smallest batch.
CHECKED = ("gpt3_27", "gpt3_xl", "switchxl4")
# Chosen: an inference runtime issues a kernel while the one before runs, and a captured graph leaves what the hardware
# takes between two kernels (recalled: about one microsecond; two where each is issued by itself).
BACK_TO_BACK_S, GRAPH_S = 2e-6, 1e-6
# What flash attention reaches where it uses the tensor cores in full (A100, 64 to 73 % of the peak for heads of 128:
# Dao, FlashAttention-2, 2023), over what it reaches on an H100, whose newer instructions it does not use.
FLASH_ELSEWHERE = 0.70 / 0.37
# Of the memory-efficient kernel beside flash attention (recalled: a third to a half as fast in half precision).
EFFICIENT = 0.45


def fitted_on(device: str, op: str) -> Kernels:
    """The kernels that are not held out."""
    kernels = load_kernels()[device, op]
    return {name: values[~held_out(op, kernels)] for name, values in kernels.items()}


def anchor_rows() -> list[dict[str, str]]:
    """The whole-model rows that are fitted on."""
    smallest: dict[tuple[str, ...], dict[str, str]] = {}
    for row in load_models():
        key = (row["device"], row["model"], row["mode"])
        if row["model"] not in CHECKED and (key not in smallest or int(row["batch"]) < int(smallest[key]["batch"])):
            smallest[key] = row
    return list(smallest.values())


def fit_models(fitted: dict[str, Any]) -> dict[str, Any]:
    """Sets ``in_model`` of each architecture and the eager launch, together, in place; says how they scatter.

    A step is a line in each factor: products by layout, everything else, and a launch a kernel. Least squares on the
    logarithm over the anchor rows, robust (soft L1 at 5 %).
    """
    names = [name for name, (_, device) in ARCHITECTURES.items() if any(r["device"] == device for r in load_models())]
    rows = anchor_rows()
    parts = {model_key(row): step_parts(fitted, row) for row in rows}
    measured = np.array([float(row["total_ms"]) * 1e-3 for row in rows])
    architecture = [names.index(load_device(row["device"]).architecture) for row in rows]

    def solve(chosen: list[int]) -> np.ndarray:
        def residuals(x: np.ndarray) -> np.ndarray:
            factors, launch_s = np.exp(x[:-1]).reshape(-1, 2), np.exp(x[-1])
            predicted = [
                (linear * factors[architecture[i], 0] + bmm * factors[architecture[i], 1] + rest + kernels * launch_s)
                for i in chosen
                for linear, bmm, rest, kernels in [parts[model_key(rows[i])]]
            ]
            # a weak pull to 1 where the rows do not tell the two layouts apart
            return np.append(np.log(np.array(predicted) / measured[chosen]), 0.02 * x[:-1])

        start = np.append(np.zeros(2 * len(names)), np.log(15e-6))
        return np.exp(least_squares(residuals, start, loss="soft_l1", f_scale=0.05).x)

    everything = list(range(len(rows)))
    best = solve(everything)
    without = np.array([solve([i for i in everything if i != left_out]) for left_out in everything])
    for index, name in enumerate(names):
        linear, bmm = best[2 * index : 2 * index + 2]
        # no whole model with convolutions is fitted on: as the products on average
        both = {"linear": float(linear), "bmm": float(bmm), "conv": float(np.sqrt(linear * bmm))}
        fitted["architectures"][name]["in_model"] = both
    # not measured as a whole: as those whose clocks their power does not hold back
    held = [fitted["architectures"][name]["in_model"] for name in ("pascal", "volta")]
    mean = {key: float(np.sqrt(held[0][key] * held[1][key])) for key in ("linear", "bmm", "conv")}
    for name in set(ARCHITECTURES) - set(names):
        fitted["architectures"][name]["in_model"] = mean
    fitted["launch_s"] = {"eager": float(best[-1]), "back_to_back": BACK_TO_BACK_S, "graph": GRAPH_S}
    scatter = {
        f"{name} {layout}": [float(without[:, 2 * i + j].min()), float(without[:, 2 * i + j].max())]
        for i, name in enumerate(names)
        for j, layout in enumerate(("linear", "bmm"))
    }
    return {
        "anchors": [list(model_key(row)) for row in rows],
        "range_with_one_row_left_out": scatter
        | {"launch_s": [float(without[:, -1].min()), float(without[:, -1].max())]},
    }


def uncertainties(fitted: dict[str, Any]) -> dict[str, Any]:
    """Mean |predicted / measured - 1| of whole models: by architecture, of others with their own left out; and in half
    precision of published rates, without a factor for their software.
    """
    model = CostModel(fitted)
    totals = [row for row in model_rows(fitted, model) if row["phase"] == "total"]
    own: dict[str, list[float]] = {}
    for row in totals:
        own.setdefault(load_device(row["device"]).architecture, []).append(abs(row["error"]))
    half = [
        abs(row["predicted_s"] / row["measured_s"] - 1) for row in published_rows(model) if row["type"] != "float32"
    ]
    by_architecture = {name: float(np.mean(errors)) for name, errors in own.items()}
    return {
        "float32": by_architecture | {"others": float(np.mean([abs(row["left_out_error"]) for row in totals]))},
        "half": {"others": float(np.mean(half))},
    }


def step_parts(fitted: dict[str, Any], row: dict[str, str]) -> tuple[float, float, float, float]:
    """Seconds of the products by layout (linear, bmm), of the rest, and the number of kernels, without launch."""
    device = load_device(row["device"])
    totals = []
    for linear, bmm in ((1.0, 1.0), (1e-9, 1.0), (1.0, 1e-9)):
        p = {**fitted["architectures"][device.architecture], "in_model": {"linear": linear, "bmm": bmm, "conv": 1.0}}
        model = CostModel({**fitted, "architectures": {device.architecture: p}, "launch_s": {"eager": 0.0}})
        totals.append(model_seconds(model, row)["total"])
    p = {**fitted["architectures"][device.architecture], "in_model": {"linear": 1.0, "bmm": 1.0, "conv": 1.0}}
    one = CostModel({**fitted, "architectures": {device.architecture: p}, "launch_s": {"eager": 1.0}})
    return (
        totals[0] - totals[1],
        totals[0] - totals[2],
        totals[1] + totals[2] - totals[0],
        model_seconds(one, row)["total"] - totals[0],
    )


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=data_path("cost_model", "fitted.json"))
    parser.add_argument("--kernels", type=Path, help="take kernels from this fitted file; fit the rest")
    arguments = parser.parse_args()
    architectures, timing = {}, {}
    started = time.perf_counter()

    def done(what: str) -> None:
        print(f"{time.perf_counter() - started:6.1f} s  {what}", file=sys.stderr)

    for architecture, (conv_device, device_name) in ARCHITECTURES.items():
        if arguments.kernels:
            continue
        device = load_device(device_name)
        p: dict[str, Any] = {"fitted_on": sorted({conv_device, device_name}), "power_share": power_share(device)}
        loop: dict[str, Any] = {}
        p["stream"], loop_streams = fit_streams(device, {op: fitted_on(device_name, op) for op in STREAM_OPS})
        loop |= loop_streams
        done(f"{architecture}: element-wise")
        p["softmax"], loop["softmax"] = fit_rows(device, fitted_on(device_name, "softmax"), SOFTMAX_KNOTS)
        p["norm"], loop["ln"] = fit_rows(device, fitted_on(device_name, "ln"), NORM_KNOTS)
        done(f"{architecture}: softmax, norm")
        p["linear"], loop["linear"] = fit_gemm(device, fitted_on(device_name, "linear"), linear=True)
        p["bmm"], loop["bmm"] = fit_gemm(device, fitted_on(device_name, "bmm"))
        done(f"{architecture}: matrix products")
        p["conv"], loop["conv"] = fit_conv(load_device(conv_device), fitted_on(conv_device, "conv"))
        done(f"{architecture}: convolutions")
        architectures[architecture] = p
        timing[architecture] = loop
    if arguments.kernels:
        old = json.loads(arguments.kernels.read_text("utf-8"))
        architectures, timing = old["architectures"], old["timing_loop"]
        for architecture, (_, device_name) in ARCHITECTURES.items():
            architectures[architecture]["power_share"] = power_share(load_device(device_name))

    device = load_device(TENSOR_CORES)
    cores, start_s = {}, {}
    for rate, item_bytes, table in zip(("bfloat16", "tfloat32"), (2, 4), load_gemm_table()):
        rows = {name: values[~held_out_of_table(table)] for name, values in table.items()}
        cores[rate], start_s[rate] = fit_tensor_cores(device, rows, rate, item_bytes, operands=rate == "tfloat32")
    done("tensor cores")
    attention = fit_attention(device, load_attention_rates())
    fitted: dict[str, Any] = {
        "format": "graphopt-cost-model",
        "version": 2,
        "costs": COSTS,
        "split": {"seed": SPLIT_SEED, "held_out_percent": TEST_PERCENT},
        "architectures": architectures,
        "tensor_cores": cores,
        "attention": attention | {"flash_elsewhere": FLASH_ELSEWHERE, "efficient": EFFICIENT},
        "timing_loop": timing | {"tensor_cores": start_s},
    }
    fitted["whole_models"] = fit_models(fitted)
    done("whole models: launch overhead, products in a model")
    fitted["uncertainty"] = uncertainties(fitted)
    fitted["all_reduce"] = {}
    for name, table in load_all_reduce().items():
        on = np.isin(table["gpus"], ALL_REDUCE_FITTED_ON)
        rings = np.array([NVLINK_RINGS[name].get(int(gpus), 1) for gpus in table["gpus"]])
        fitted["all_reduce"][name] = fit_all_reduce({key: values[on] for key, values in table.items()}, rings[on])
    write_text(arguments.out, json.dumps(rounded(fitted), indent=1) + "\n")
    print(arguments.out)


if __name__ == "__main__":
    main()
