"""How far the cost model is from what was measured: on shapes it was not fitted on, and on whole models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from graphopt_gym.hardware.cluster import Device, load_device, load_link
from graphopt_gym.hardware.collectives import ring_all_reduce_s
from graphopt_gym.hardware.cost_model import TRANSFER_FROM, CostModel, load_cost_model, read_costs
from graphopt_gym.hardware.measured import (
    ALL_REDUCE_FITTED_ON,
    NVLINK_RINGS,
    STREAM_OPS,
    TWO_INPUTS,
    Kernels,
    held_out,
    held_out_of_table,
    isolated_seconds,
    load_all_reduce,
    load_attention_rates,
    load_gemm_table,
    load_kernels,
    load_models,
    load_published,
    model_key,
    model_seconds,
    published_graph,
)
from graphopt_gym.hardware.roofline import (
    NORM_KNOTS,
    SOFTMAX_KNOTS,
    Parameters,
    attention_seconds,
    conv_seconds,
    gemm_seconds,
    power_left,
    row_efficiency,
    stream_efficiency,
    tensor_core_seconds,
    within_power,
)

LONG_S = 100e-6
# class of the report -> ops of the source, and the median error that is aimed at (of kernels over 100 us)
CLASSES: dict[str, tuple[tuple[str, ...], float | None]] = {
    "bmm": (("bmm",), 0.08),
    "linear": (("linear",), 0.08),
    "conv": (("conv",), 0.15),
    "elementwise": (STREAM_OPS, 0.10),
    "softmax": (("softmax",), None),
    "norm": (("ln",), None),
}
MODEL_TARGET, LEFT_OUT_TARGET = 0.06, 0.12  # mean over the whole models of a device
TENSOR_CORE_TARGET = 0.10
PUBLISHED_TARGET = 0.15
TENSOR_CORE_DEVICE = "h100_sxm_80gb"
ALL_REDUCE_LINKS = {"v100": "nvlink2", "a100": "nvlink3_switch"}


def kernel_seconds(p: Parameters, device: Device, op: str, kernels: Kernels) -> np.ndarray:
    """float64 [rows]: seconds of work of measured kernels, from the parameters of one architecture.

    The same formulas as :class:`CostModel` applies to a graph's ops, without launch and without ``in_model``.
    """
    bandwidth, units = device.memory_bytes_per_s, device.compute_units
    peak = device.peak("float32") * power_left(p, device)
    if op in ("bmm", "linear"):
        batch, m, n, k = (kernels[name] for name in ("batch", "m", "n", "k"))
        compute = gemm_seconds(within_power(p[op], p, device), units, peak, bandwidth, batch, m, n, k)
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

    - ``summary``: by device and type, the mean error of whole models, of those not fitted on, and with its own GPU
      left out, and the worst; then of published rates.
    - ``kernels``: by device and op class, over held-out shapes: error of the latency that the timing loop would show.
      ``median_error`` etc. are of kernels over 100 us; ``median_error_all`` of all. ``median_work_error``: of the work
      by itself against the measured latency less what the loop adds, where that leaves over 100 us. ``left_out``: the
      median with the device's architecture priced by the rule for those without measurements.
    - ``half_precision``: products on an H100's tensor cores, and fused attention.
    - ``models``: each whole-model row and phase; ``fitted`` where the row is among those that launch and in-model
      factors are fitted on; ``left_out_error`` with the device's architecture priced as above.
    - ``published``: whole-model rates, each over one software factor a precision, fitted to the rows.
    - ``all_reduce``: by device and number of GPUs; ``fitted`` where the row was fitted on.

    ``say`` is called with a line now and then.
    """
    say("kernels and whole models, priced by the cost model")
    fitted = read_costs()
    cost_model = load_cost_model()
    models = model_rows(fitted, cost_model)
    published = published_rows(cost_model)
    half = _half_precision_rows(fitted)
    return {
        "summary": _summary_rows(models, published, half, cost_model),
        "kernels": _kernel_rows(fitted),
        "half_precision": half,
        "models": models,
        "published": published,
        "all_reduce": _all_reduce_rows(fitted),
    }


def transfer_without(architecture: str) -> tuple[str, ...]:
    """The architectures that stand in for one that is left out."""
    return tuple(name for name in TRANSFER_FROM if name != architecture)


def without(fitted: dict[str, Any], architecture: str) -> CostModel:
    """The cost model that has not seen an architecture's measurements."""
    others = {name: p for name, p in fitted["architectures"].items() if name != architecture}
    return CostModel({**fitted, "architectures": others}, transfer_from=transfer_without(architecture))


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


def _statistics(errors: list[tuple[np.ndarray, ...]]) -> dict[str, Any]:
    error, latency, work_error, work = (np.abs(np.concatenate(column)) for column in zip(*errors))
    long = latency > LONG_S
    return {
        "shapes": len(error),
        "shapes_over_100us": int(long.sum()),
        "median_error": float(np.median(error[long])),
        "mean_error": float(error[long].mean()),
        "p90_error": float(np.percentile(error[long], 90)),
        "worst_error": float(error[long].max()),
        "median_error_all": float(np.median(error)),
        "median_work_error": float(np.median(work_error[work > LONG_S])),
    }


def _measured_devices(op: str) -> list[Device]:
    return [load_device(device) for device, measured in load_kernels() if measured == op]


def _kernel_rows(fitted: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    architectures = fitted["architectures"]
    for op_class, (ops, target) in CLASSES.items():
        for device in _measured_devices(ops[0]):
            summary = _statistics([_errors(fitted, device, op, [architectures[device.architecture]]) for op in ops])
            several = [architectures[name] for name in transfer_without(device.architecture)]
            left_out = _statistics([_errors(fitted, device, op, several) for op in ops])
            rows.append(
                {
                    "device": device.name,
                    "type": "float32",
                    "op_class": op_class,
                    **summary,
                    "left_out": left_out["median_error"],
                    "target": target,
                    "met": None if target is None else summary["median_error"] < target,
                }
            )
    return rows


def _half_precision_rows(fitted: dict[str, Any]) -> list[dict[str, Any]]:
    """Products by format, those fitted on and those held out; fused attention, all of it fitted on."""
    device = load_device(TENSOR_CORE_DEVICE)
    rows = []

    def add(op: str, format: str, held: bool, error: np.ndarray, target: float | None) -> None:
        error = np.abs(error)
        met = None if target is None else bool(error.mean() < target)
        rows.append(
            {"device": device.name, "type": format, "op_class": op, "held_out": held, "rows": len(error),
             "median_error": float(np.median(error)), "mean_error": float(error.mean()),
             "worst_error": float(error.max()), "target": target, "met": met}
        )  # fmt: skip

    for format, item_bytes, table in zip(("bfloat16", "tfloat32"), (2, 4), load_gemm_table()):
        q, start_s = fitted["tensor_cores"][format], fitted["timing_loop"]["tensor_cores"][format]
        batch, m, n, k = (table[name] for name in ("batch", "m", "n", "k"))
        work = tensor_core_seconds(
            q, device.compute_units, device.peak(format), device.memory_bytes_per_s, item_bytes, batch, m, n, k
        )
        moved = item_bytes * batch * (m * k + k * n + m * n) / (device.memory_bytes_per_s * q["bytes"])
        error = (start_s + np.maximum(work, moved)) / table["latency_s"] - 1
        held = held_out_of_table(table)
        target = TENSOR_CORE_TARGET if format == "bfloat16" else None
        for chosen in (False, True):
            add("matmul", format, chosen, error[held == chosen], target)
    table = load_attention_rates()
    flops, peak = np.full(len(table["tflops"]), 1e12), np.full(len(table["tflops"]), device.peak("bfloat16"))
    always = np.ones(len(flops), bool)
    predicted = attention_seconds(
        fitted["attention"], device.architecture, flops, peak, table["length"], table["head"], table["backward"],
        always, table["cudnn"],
    )  # fmt: skip
    add("attention", "bfloat16", False, predicted * table["tflops"] - 1, None)
    return rows


def model_rows(fitted: dict[str, Any], cost_model: CostModel) -> list[dict[str, Any]]:
    anchors = {tuple(key) for key in fitted["whole_models"]["anchors"]}
    rows = []
    for row in load_models():
        predicted = model_seconds(cost_model, row)
        left_out = model_seconds(without(fitted, load_device(row["device"]).architecture), row)
        for phase in ("forward", "backward", "total"):
            measured = float(row[f"{phase}_ms"]) * 1e-3
            if measured == 0 or (phase != "total" and row["mode"] == "inf"):
                continue  # of inference, the total is the forward pass
            rows.append(
                {
                    **dict(zip(("device", "model", "mode", "sequence_length", "batch"), model_key(row))),
                    "type": "float32",
                    "phase": phase,
                    "measured_s": measured,
                    "predicted_s": predicted[phase],
                    "error": predicted[phase] / measured - 1,
                    "left_out_error": left_out[phase] / measured - 1,
                    "fitted": model_key(row) in anchors,
                }
            )
    return rows


def published_rows(cost_model: CostModel) -> list[dict[str, Any]]:
    """Seconds a batch by published rate over predicted; ``error``: of the rate, with the precision's factor."""
    rows: list[dict[str, Any]] = []
    for row in load_published():
        measured = int(row["batch"]) / float(row["examples_per_s"])
        predicted = float(cost_model.op_times(published_graph(row), load_device(row["device"])).sum())
        rows.append(
            {
                **{name: row[name] for name in ("device", "model", "mode", "sequence_or_image", "batch")},
                "type": "float32" if row["precision"] == "fp32" else "float16",
                "measured_s": measured,
                "predicted_s": predicted,
            }
        )
    for precision in ("float32", "float16"):
        of = [one for one in rows if one["type"] == precision]
        factor = float(np.exp(np.mean([np.log(one["measured_s"] / one["predicted_s"]) for one in of])))
        for one in of:
            error = one["measured_s"] / (one["predicted_s"] * factor) - 1
            one |= {"software_factor": factor, "error": error, "met": bool(abs(error) < PUBLISHED_TARGET)}
    return rows


def _summary_rows(
    models: list[dict[str, Any]], published: list[dict[str, Any]], half: list[dict[str, Any]], cost_model: CostModel
) -> list[dict[str, Any]]:
    rows = []
    totals = [row for row in models if row["phase"] == "total"]
    for name in [*dict.fromkeys(row["device"] for row in totals), "all"]:
        of = [row for row in totals if name in ("all", row["device"])]
        checked = [row for row in of if not row["fitted"]]
        error, left_out = (float(np.mean([abs(row[key]) for row in of])) for key in ("error", "left_out_error"))
        rows.append(
            {
                "device": name,
                "type": "float32",
                "what": "whole models",
                "rows": len(of),
                "mean_error": error,
                "mean_error_not_fitted": float(np.mean([abs(row["error"]) for row in checked])),
                "worst_error": max((row["error"] for row in of), key=abs),
                "left_out": left_out,
                "worst_left_out": max((row["left_out_error"] for row in of), key=abs),
                "target": MODEL_TARGET,
                "met": error < MODEL_TARGET,
                "left_out_target": LEFT_OUT_TARGET,
                "left_out_met": left_out < LEFT_OUT_TARGET,
            }
        )
    for precision in ("float32", "float16"):
        of = [row for row in published if row["type"] == precision]
        rows.append(
            {
                "device": "v100_sxm2_16gb t4" if precision == "float32" else "v100_sxm2_16gb",
                "type": precision,
                "what": f"published rates, over a factor of {of[0]['software_factor']:.2f}",
                "rows": len(of),
                "mean_error": float(np.mean([abs(row["error"]) for row in of])),
                "worst_error": max((row["error"] for row in of), key=abs),
                "target": PUBLISHED_TARGET,
                "met": all(row["met"] for row in of),
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
