"""How far the cost model is from what was measured: on shapes it was not fitted on, and on whole models."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.data import data_path
from graphopt_gym.hardware.cluster import Device, load_device, load_link
from graphopt_gym.hardware.collectives import ring_all_reduce_s
from graphopt_gym.hardware.cost_model import TRANSFER_FROM, CostModel, load_cost_model, read_fitted
from graphopt_gym.hardware.measured import (
    ALL_REDUCE_FITTED_ON,
    NVLINK_RINGS,
    STREAM_OPS,
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
    NORM_KNOTS,
    SOFTMAX_KNOTS,
    Parameters,
    conv_seconds,
    gemm_seconds,
    row_efficiency,
    stream_efficiency,
)

if TYPE_CHECKING:
    pass

LONG_S = 100e-6
# class of the report -> ops of the source, and the median error that is aimed at (of kernels over 100 us)
CLASSES: dict[str, tuple[tuple[str, ...], float | None]] = {
    "matmul": (("bmm", "linear"), 0.15),
    "conv": (("conv",), 0.15),
    "elementwise": (STREAM_OPS, 0.10),
    "softmax": (("softmax",), None),
    "norm": (("ln",), None),
}
MODEL_TARGET = 0.10
ALL_REDUCE_LINKS = {"v100": "nvlink2", "a100": "nvlink3_switch"}


def kernel_seconds(p: Parameters, device: Device, op: str, kernels: Kernels) -> np.ndarray:
    """float64 [rows]: seconds of work of measured kernels, from the parameters of one architecture.

    The same formulas as :class:`CostModel` applies to a graph's ops, without launch and without ``in_model``.
    """
    bandwidth, peak, units = device.memory_bytes_per_s, device.peak("float32"), device.compute_units
    if op in ("bmm", "linear"):
        batch, m, n, k = (kernels[name] for name in ("batch", "m", "n", "k"))
        compute = gemm_seconds(p[op], units, peak, bandwidth, batch, m, n, k)
        moved = 4 * batch * (m * k + k * n + m * n) / p[op]["bytes"]
    elif op == "conv":
        images, size, outputs = kernels["batch"], kernels["size"], kernels["out_channels"]
        k = kernels["in_channels"] * kernels["kernel"] ** 2
        in_elements = images * kernels["in_channels"] * size**2
        winograd = (kernels["kernel"] == 3) & (kernels["stride"] == 1)
        compute = conv_seconds(
            p["conv"], units, peak, bandwidth, images, size, size, outputs, k, winograd
        )  # fmt: skip
        moved = 4 * (in_elements + k * outputs + images * outputs * size**2) / p["conv"]["bytes"]
    else:
        written = 4 * kernels["rows"] * kernels["columns"]
        read = written * (2 if op in TWO_INPUTS else 1)
        if op == "softmax":
            efficiency = row_efficiency(SOFTMAX_KNOTS, p["softmax"], kernels["columns"])
        elif op == "ln":
            efficiency = row_efficiency(NORM_KNOTS, p["norm"], kernels["columns"])
        else:
            efficiency = stream_efficiency(p["stream"], read, written)
        compute, moved = np.zeros(len(written)), (read + written) / efficiency
    return np.maximum(compute, moved / bandwidth)


def cost_model_report(say: Callable[[str], object] = str) -> dict[str, list[dict[str, Any]]]:
    """Everything that the fit is judged by, as rows of plain values.

    - ``kernels``: by device and op class, over held-out shapes: error of the latency that the timing loop would show.
      ``median_error`` etc. are of kernels over 100 us; ``median_error_all`` of all. ``median_work_error``: of the work
      by itself against the measured latency less what the loop adds, where that leaves over 100 us.
    - ``models``: each whole-model row and phase; ``fitted`` names the number that was fitted to the row, if one was.
    - ``anchors``: by whole-model row, what the worst error among the other rows of its device would be, had the
      device's ``in_model`` factor been fitted to that row.
    - ``leave_one_out``: as ``kernels`` and ``models``, each architecture priced by the rule for devices without
      measurements, from the other architectures.
    - ``all_reduce``: by device and number of GPUs; ``fitted`` where the row was fitted on.

    ``say`` is called with a line now and then.
    """
    say("kernels and whole models, priced by the cost model")
    fitted = read_fitted(data_path("cost_model", "fitted.json"))
    cost_model = load_cost_model()
    return {
        "kernels": _kernel_rows(fitted),
        "models": _model_rows(fitted, cost_model),
        "anchors": _anchor_rows(cost_model),
        "leave_one_out": _leave_one_out_rows(fitted),
        "all_reduce": _all_reduce_rows(fitted),
    }


def _errors(fitted: dict[str, Any], device: Device, op: str, several: list[Parameters]) -> tuple[np.ndarray, ...]:
    """Of the held-out rows: relative error, measured seconds, relative error of the work, measured seconds of work.

    The work is the geometric mean over ``several``.
    """
    kernels = load_kernels()[device.name, op]
    test = held_out(op, kernels)
    rows = {name: values[test] for name, values in kernels.items()}
    logs = [np.log(kernel_seconds(p, device, op, rows)) for p in several]
    timing = fitted["timing_loop"][device.architecture][op]
    work = np.exp(np.mean(logs, axis=0))
    latency = rows["latency_s"]
    measured_work = np.maximum(latency - timing["issue_s"] - timing.get("drift_s", 0.0) * rows["order"], 1e-9)
    return isolated_seconds(timing, work, rows["order"]) / latency - 1, latency, work / measured_work - 1, measured_work


def _summary(errors: list[tuple[np.ndarray, ...]]) -> dict[str, Any]:
    error, latency, work_error, work = (np.abs(np.concatenate(column)) for column in zip(*errors))
    long = latency > LONG_S
    return {
        "shapes": len(error),
        "shapes_over_100us": int(long.sum()),
        "median_error": float(np.median(error[long])),
        "mean_error": float(error[long].mean()),
        "p90_error": float(np.percentile(error[long], 90)),
        "median_error_all": float(np.median(error)),
        "median_work_error": float(np.median(work_error[work > LONG_S])),
    }


def _measured_devices(op: str) -> list[Device]:
    return [load_device(device) for device, measured in load_kernels() if measured == op]


def _kernel_rows(fitted: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for op_class, (ops, target) in CLASSES.items():
        groups = (
            {op_class: ops}
            if op_class != "matmul"
            else {"matmul": ops, "matmul: bmm": ("bmm",), "matmul: linear": ("linear",)}
        )
        for label, members in groups.items():
            for device in _measured_devices(members[0]):
                p = fitted["architectures"][device.architecture]
                summary = _summary([_errors(fitted, device, op, [p]) for op in members])
                met = None if target is None else summary["median_error"] < target
                rows.append({"device": device.name, "op_class": label, **summary, "target": target, "met": met})
    return rows


def _model_rows(fitted: dict[str, Any], cost_model: CostModel) -> list[dict[str, Any]]:
    models = fitted["whole_models"]
    numbers = {tuple(models["launch_row"]): "launch_s"}
    numbers |= {tuple(key): f"in_model of {architecture}" for architecture, key in models["compute_rows"].items()}
    rows = []
    for row in load_models():
        predicted = model_seconds(cost_model, row)
        for phase in ("forward", "backward", "total"):
            measured = float(row[f"{phase}_ms"]) * 1e-3
            if measured == 0 or (phase != "total" and row["mode"] == "inf"):
                continue  # of inference, the total is the forward pass
            error = predicted[phase] / measured - 1
            rows.append(
                {
                    **dict(zip(("device", "model", "mode", "sequence_length", "batch"), model_key(row))),
                    "phase": phase,
                    "measured_s": measured,
                    "predicted_s": predicted[phase],
                    "error": error,
                    "fitted": numbers.get(model_key(row), ""),
                    "met": bool(abs(error) < MODEL_TARGET),
                }
            )
    return rows


def _anchor_rows(cost_model: CostModel) -> list[dict[str, Any]]:
    """Of how much the choice of the row for ``in_model`` matters. Models with control flow on values are left out."""
    rows = []
    for device_name in dict.fromkeys(row["device"] for row in load_models()):
        device = load_device(device_name)
        of_device = [row for row in load_models() if row["device"] == device_name and row["model"] != "switchxl4"]
        p = cost_model.architectures[device.architecture]
        # a total is close to a line in the factor: two evaluations give every anchor's errors
        grid = np.array([0.6, 1.2]) * p["in_model"]
        totals = np.array(
            [
                [model_seconds(_with_factor(cost_model, device, factor), row)["total"] for row in of_device]
                for factor in grid
            ]
        )
        measured = np.array([float(row["total_ms"]) for row in of_device]) * 1e-3
        slope = (totals[1] - totals[0]) / (grid[1] - grid[0])
        for anchor, row in enumerate(of_device):
            factor = grid[0] + (measured[anchor] - totals[0][anchor]) / slope[anchor]
            errors = np.abs((totals[0] + slope * (factor - grid[0])) / measured - 1)
            errors[anchor] = 0
            key = model_key(row)
            rows.append(
                {
                    "device": device_name,
                    "anchor": " ".join(key[1:]),
                    "in_model": float(factor),
                    "worst_error": float(errors.max()),
                }
            )
    return rows


def _with_factor(cost_model: CostModel, device: Device, factor: float) -> CostModel:
    p = {**cost_model.architectures[device.architecture], "in_model": float(factor)}
    return CostModel({device.architecture: p}, cost_model.launch_s)


def _leave_one_out_rows(fitted: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    architectures = fitted["architectures"]
    for left_out in architectures:
        others = [name for name in TRANSFER_FROM if name != left_out]
        several = [architectures[name] for name in others]
        shared = {"left_out": left_out, "priced_by": " ".join(others)}
        for op_class, (ops, _) in CLASSES.items():
            for device in _measured_devices(ops[0]):
                if device.architecture != left_out:
                    continue
                errors = [_errors(fitted, device, op, several) for op in ops]
                summary = _summary(errors)
                long = np.concatenate([error[latency > LONG_S] for error, latency, *_ in errors])
                rows.append(
                    {
                        **shared,
                        "device": device.name,
                        "what": op_class,
                        "median_error": summary["median_error"],
                        "median_signed_error": float(np.median(long)),
                    }
                )
        model = CostModel(
            {name: p for name, p in architectures.items() if name != left_out},
            fitted["whole_models"]["launch_s"],
            others,
        )
        signed = [
            model_seconds(model, row)["total"] / (float(row["total_ms"]) * 1e-3) - 1
            for row in load_models()
            if load_device(row["device"]).architecture == left_out
        ]
        if signed:
            rows.append(
                {
                    **shared,
                    "device": architectures[left_out]["fitted_on"][0],
                    "what": "whole models",
                    "median_error": float(np.median(np.abs(signed))),
                    "median_signed_error": float(np.median(signed)),
                }
            )
    return rows


def _all_reduce_rows(fitted: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for device, table in load_all_reduce().items():
        p = fitted["all_reduce"][device]
        for gpus in np.unique(table["gpus"]).astype(int).tolist():
            of_gpus = table["gpus"] == gpus
            size_bytes, time_s = table["bytes"][of_gpus], table["time_s"][of_gpus]
            rings = NVLINK_RINGS[device].get(gpus, 1)
            predicted = ring_all_reduce_s(
                float(gpus), size_bytes, p["bytes_per_s"] * rings, p["latency_s"], p["start_s"]
            )
            error = np.abs(predicted / time_s - 1)
            rows.append(
                {
                    "device": device,
                    "gpus": gpus,
                    "rings": rings,
                    "bytes_per_s": p["bytes_per_s"],
                    "link_bytes_per_s": load_link(ALL_REDUCE_LINKS[device]).bytes_per_s,
                    "median_error": float(np.median(error)),
                    "worst_error": float(error.max()),
                    "fitted": gpus in ALL_REDUCE_FITTED_ON,
                }
            )
    return rows
