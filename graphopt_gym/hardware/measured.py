"""The measurements that the cost model is fitted to and checked against (``envs_data/cost_model``)."""

from __future__ import annotations

import csv
import gzip
import zlib
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from graphopt_gym.data import data_path
from graphopt_gym.hardware.cluster import load_device

if TYPE_CHECKING:
    from graphopt_gym.graphs.graph import ComputationGraph
    from graphopt_gym.hardware.cost_model import CostModel

SPLIT_SEED = 7
TEST_PERCENT = 30
STREAM_OPS = ("add", "mul", "div", "pow", "addu", "mulu", "divu", "powu", "relu", "tanh", "gelu")
TWO_INPUTS = ("add", "mul", "div", "pow")
# what a kernel is, and so what the split goes by
SHAPE_COLUMNS = {
    "bmm": ("batch", "m", "n", "k"),
    "linear": ("batch", "m", "n", "k"),
    "conv": ("batch", "in_channels", "out_channels", "kernel", "size", "stride", "padding"),
}
ROW_SHAPE = ("rows", "columns")

# Rings that an all-reduce among the first n GPUs of a host uses side by side. V100: read off the measured bandwidths,
# which are whole multiples of one NVLink's for all n but 5 (so for these n only the multiple is not checked); A100:
# one ring through NVSwitch.
NVLINK_RINGS = {"v100": {2: 1, 3: 2, 4: 4, 6: 2, 7: 4, 8: 6}, "a100": dict.fromkeys(range(2, 9), 1)}
ALL_REDUCE_FITTED_ON = (2, 4, 8)

Kernels = dict[str, np.ndarray]


@cache
def load_kernels() -> dict[tuple[str, str], Kernels]:
    """(device, op) -> columns, each float64 [rows]: the shape, ``latency_s``, and ``order``.

    ``order``: where in the run a row was measured, from 0 to 1 (rows are kept in the order of the source).
    """
    rows: dict[tuple[str, str], list[list[str]]] = {}
    with gzip.open(data_path("cost_model", "gpu_kernels.csv.gz"), "rt") as file:
        reader = csv.reader(file)
        header = next(reader)
        for row in reader:
            rows.setdefault((row[0], row[1]), []).append(row)
    tables = {}
    for (device, op), group in rows.items():
        shape = SHAPE_COLUMNS.get(op, ROW_SHAPE)
        columns = {name: np.array([float(row[header.index(name)]) for row in group]) for name in shape}
        columns["latency_s"] = np.array([float(row[header.index("latency_us")]) for row in group]) * 1e-6
        columns["order"] = np.arange(len(group)) / len(group)
        tables[device, op] = columns
    return tables


def held_out(op: str, kernels: Kernels) -> np.ndarray:
    """bool [rows]: True where a row is not fitted on.

    By a checksum of the shape (seed 7, 30 % held out): a shape is held out on all devices or on none.
    """
    columns = [kernels[name].astype(int).tolist() for name in SHAPE_COLUMNS.get(op, ROW_SHAPE)]
    texts = (f"{SPLIT_SEED}," + ",".join(map(str, shape)) for shape in zip(*columns))
    return np.array([zlib.crc32(text.encode()) % 100 < TEST_PERCENT for text in texts])


def load_gemm_table() -> tuple[Kernels, Kernels]:
    """Products on an H100 SXM in bfloat16 and in TF32 (``h100_gemm.csv``): the shape and ``latency_s``.

    The file has rates, in TFLOP/s; a product of [batch, m, k] and [batch, k, n] takes 2 batch m n k operations.
    """
    columns = _columns("h100_gemm.csv")
    shape = {name: columns[name] for name in ("batch", "m", "n", "k")}
    flops = 2 * shape["batch"] * shape["m"] * shape["n"] * shape["k"]
    bfloat16, tf32 = (
        shape | {"latency_s": flops / (columns[f"{name}_tflops"] * 1e12)} for name in ("bfloat16", "tf32")
    )
    return bfloat16, tf32


def held_out_of_table(kernels: Kernels) -> np.ndarray:
    """bool [rows]: the third of ``h100_gemm.csv`` that is not fitted on, by a checksum of the shape (seed 7)."""
    shapes = zip(*(kernels[name].astype(int).tolist() for name in ("batch", "m", "n", "k")))
    return np.array([zlib.crc32(f"{SPLIT_SEED},{b},{m},{n},{k}".encode()) % 3 == 0 for b, m, n, k in shapes])


def load_attention_rates() -> dict[str, np.ndarray]:
    """Published rates of fused attention on an H100 SXM (``attention_h100.csv``): ``tflops``, ``length``, ``head``
    (float64 [rows]); ``cudnn``, ``backward``, ``causal`` (bool [rows]).
    """
    with open(data_path("cost_model", "attention_h100.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    numbers = {name: np.array([float(row[name]) for row in rows]) for name in ("tflops", "length", "head")}
    return numbers | {
        "cudnn": np.array([row["kernel"] == "cudnn" for row in rows]),
        "backward": np.array([row["pass"] == "backward" for row in rows]),
        "causal": np.array([row["causal"] == "1" for row in rows]),
    }


def load_published() -> list[dict[str, str]]:
    """Published rates of whole models: one dict a row of ``gpu_published.csv``."""
    with open(data_path("cost_model", "gpu_published.csv"), newline="") as file:
        return list(csv.DictReader(file))


def _columns(file_name: str) -> Kernels:
    with open(data_path("cost_model", file_name), newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


def load_models() -> list[dict[str, str]]:
    """Whole-model times: one dict a row of ``gpu_models.csv``, times in milliseconds."""
    with open(data_path("cost_model", "gpu_models.csv"), newline="") as file:
        return list(csv.DictReader(file))


def model_key(row: dict[str, str]) -> tuple[str, ...]:
    """(device, model, mode, sequence length, batch): what a row of :func:`load_models` is of."""
    return tuple(row[name] for name in ("device", "model", "mode", "sequence_length", "batch"))


def published_graph(row: dict[str, str]) -> ComputationGraph:
    """The captured graph that stands for a row of :func:`load_published`."""
    from graphopt_gym.graphs.io import read_graph
    from graphopt_gym.graphs.zoo.registry import published_name

    precision = "" if row["precision"] == "fp32" else "float16"
    model = row["model"].replace(" ", "_")
    name = published_name(model, row["mode"], int(row["sequence_or_image"]), int(row["batch"]), precision)
    return read_graph(data_path("graphs", "measured", f"{name}.npz"))


@cache
def model_graph(model: str, mode: str, sequence_length: str, batch: str) -> ComputationGraph:
    """The captured graph that stands for a measured model."""
    from graphopt_gym.graphs.io import read_graph

    return read_graph(data_path("graphs", "measured", f"{model}_{mode}_s{sequence_length}_b{batch}.npz"))


def model_seconds(cost_model: CostModel, row: dict[str, str]) -> dict[str, float]:
    """Predicted seconds of a row by phase (``forward``, ``backward``, ``total``): the sum of its op times.

    Of a training step the loss is left out of ``forward`` (module path ``loss``): it was computed between the timers.
    """
    device, *graph_name = model_key(row)
    graph = model_graph(*graph_name)
    times = cost_model.op_times(graph, load_device(device))
    outside = np.array([module.split(".")[0] == "loss" for module in graph.modules])[graph.module]
    forward = float(times[(graph.phase == 0) & ~outside].sum())
    backward = float(times[graph.phase == 1].sum())
    return {"forward": forward, "backward": backward, "total": forward + backward}


def load_all_reduce() -> dict[str, Kernels]:
    """Device -> ``gpus``, ``bytes``, ``time_s``, each float64 [rows]."""
    tables: dict[str, dict[str, list[float]]] = {}
    with open(data_path("cost_model", "allreduce.csv"), newline="") as file:
        for row in csv.DictReader(file):
            table = tables.setdefault(row["device"], {"gpus": [], "bytes": [], "time_s": []})
            table["gpus"].append(float(row["gpus"]))
            table["bytes"].append(float(row["bytes"]))
            table["time_s"].append(float(row["time_us"]) * 1e-6)
    return {device: {name: np.array(values) for name, values in table.items()} for device, table in tables.items()}


def isolated_seconds(timing: dict[str, float], work_s: np.ndarray, order: np.ndarray) -> np.ndarray:
    """float64 [rows]: the latency that the source's timing loop shows for a kernel of ``work_s``.

    The loop records an event, issues the op from Python, records another, and waits. So a kernel starts ``issue_s``
    after the first event, and the second comes ``floor_s`` after it at the soonest: ``max(issue_s + work, floor_s)``.
    For convolutions both grow through the run by ``drift_s`` (a convolution without work takes 110 us in the first
    rows on a P100 and 830 us in the last, on all four GPUs alike: the time to issue grows with the shapes seen).
    This is of the timing loop, not of the kernel: the cost model does not use it.
    """
    return np.maximum(timing["issue_s"] + work_s, timing["floor_s"]) + timing.get("drift_s", 0.0) * order
