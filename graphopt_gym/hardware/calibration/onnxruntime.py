"""A device of this machine's CPU as onnxruntime uses it: prices fitted to the kernels that its profiler reports.

What is timed are whole networks, so that kernels are those of a model: convolutions in onnxruntime's own layout, with
bias, sum and activation inside, products with their bias, layer normalisations with their skip connection. The
networks are the zoo's programs and smaller, randomly sized ones of the same families; the least of a kernel's times
counts (the lower quartile over runs). Prices are sums of terms (:mod:`graphopt_gym.hardware.terms`) by the operators of
tensor programs; ``runtime`` in the device file says that programs are to be priced as onnxruntime runs them, see
:class:`graphopt_gym.envs.rewrite.cost.ProgramCosts`.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from graphopt_gym.errors import InputError
from graphopt_gym.extras import need
from graphopt_gym.hardware.calibration.device import last_cache_bytes, rounded
from graphopt_gym.hardware.calibration.fit import FEWEST, NOISE, NOISE_OF_CLASS, features, fit_prices, validated
from graphopt_gym.hardware.cluster import Device
from graphopt_gym.hardware.terms import TERMS, Work, conv_work, family_of, generic_work, product_work

RUNTIME = "onnxruntime"
RUNS = 12
QUARTILE = 25
ITEM = 4  # bytes of a float32
PRODUCTS = ("MatMul", "FusedMatMul", "Gemm", "FusedGemm")
# kernels of onnxruntime -> the operator of tensor programs and its class; others are priced by their class alone
OPERATORS = {
    "Softmax": ("softmax", "softmax"), "LayerNormalization": ("layernorm", "norm"),
    "SkipLayerNormalization": ("layernorm", "norm"), "Gelu": ("gelu", "elementwise"),
    "BiasGelu": ("gelu", "elementwise"), "Relu": ("relu", "elementwise"), "Tanh": ("tanh", "elementwise"),
    "Sigmoid": ("sigmoid", "elementwise"), "Add": ("add", "elementwise"), "Mul": ("mul", "elementwise"),
    "MaxPool": ("maxpool", "pool"), "AveragePool": ("avgpool", "pool"), "GlobalAveragePool": ("avgpool", "pool"),
    "Transpose": ("transpose", "copy"), "Concat": ("concat", "copy"), "Split": ("split0", "copy"),
    "Slice": ("split0", "copy"), "ReorderInput": ("", "copy"), "ReorderOutput": ("", "copy"),
}  # fmt: skip
Row = tuple[str, str, Work, float]  # operator with its variant, class, work, seconds


def kernel_rows(model: bytes, feeds: Mapping[str, Any], threads: int = 1, runs: int = RUNS) -> list[Row]:
    """The kernels that onnxruntime runs a model with, at all its optimisations, and what each takes."""
    need("onnxruntime", what="a calibration of onnxruntime")
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="graphopt.") as folder:
        options = onnxruntime.SessionOptions()
        options.enable_profiling, options.profile_file_prefix = True, os.path.join(folder, "profile")
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        for _ in range(runs):
            session.run(None, dict(feeds))
        with open(session.end_profiling(), encoding="utf-8") as file:
            events = json.load(file)
    times: dict[str, list[float]] = {}
    facts: dict[str, Mapping[str, Any]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times.setdefault(event["name"], []).append(event["dur"] * 1e-6)
            facts[event["name"]] = event["args"]
    rows = []
    for name, seconds in times.items():
        took = float(np.percentile(seconds[1:] or seconds, QUARTILE))
        row = _row(facts[name], took)
        if row is not None and took > 0:
            rows.append(row)
    return rows


def _shapes(stated: Iterable[Mapping[str, list[int]]]) -> list[tuple[int, ...]]:
    return [tuple(next(iter(one.values()))) for one in stated]


def _row(facts: Mapping[str, Any], seconds: float) -> Row | None:
    kind = facts["op_name"]
    given, made = _shapes(facts["input_type_shape"]), _shapes(facts["output_type_shape"])
    if not given or not made or any(not one or 0 in one for one in made):
        return None
    x, out = given[0], made[0]
    if kind in ("Conv", "FusedConv") and len(given) > 1 and len(x) == len(given[1]) == 4:
        return _convolution(x, given[1], out, seconds)
    if kind in PRODUCTS and len(out) >= 2 and len(x) >= 2:
        m, n = out[-2:]
        batch = math.prod(out[:-2])
        k = math.prod(x) / max(batch * m, 1)
        thin = ":thin" if min(m, n) < 16 else ""
        return f"matmul{thin}", "matmul", product_work(batch, m, n, k, ITEM), seconds
    if kind not in OPERATORS:
        return None
    name, op_class = OPERATORS[kind]
    written = ITEM * math.prod(out)
    read = sum(ITEM * math.prod(one) for one in given)
    rows = float(math.prod(out) / max(out[-1], 1)) if op_class in ("softmax", "norm") else 0.0
    if op_class == "pool":
        taps = math.prod(x[2:]) if kind == "GlobalAveragePool" else 9  # the window is not reported; 3 x 3 is common
        rows = float(math.prod(out) * taps)
        read = ITEM * math.prod(x)
    if kind in ("Split", "Slice"):
        read = written
    return name, op_class, generic_work(read + written, rows, written), seconds


def _convolution(x: tuple[int, ...], w: tuple[int, ...], out: tuple[int, ...], seconds: float) -> Row:
    groups = max(x[1] // max(w[1], 1), 1)
    area = math.prod(w[2:])
    variant = ":1x1" if area == 1 else ""
    if groups > 1:
        variant = ":depthwise" if w[1] == 1 else ":grouped"
    work = conv_work(x[0], x[1], out[1], groups, area, math.prod(x[2:]), math.prod(out[2:]), ITEM)
    return f"conv2d{variant}", "conv", work, seconds


def design(quick: bool = False) -> list[Any]:
    """The programs that are timed."""
    from graphopt_gym.graphs.tensor_program import parse_program
    from graphopt_gym.graphs.zoo.programs import WORKLOADS, load_program
    from graphopt_gym.graphs.zoo.programs.variants import write_variants

    with tempfile.TemporaryDirectory(prefix="graphopt.") as folder:
        texts = []
        for path in write_variants(folder, 8 if quick else 24, seed=1):
            with open(path, encoding="utf-8") as file:
                texts.append(parse_program(file.read(), path))
    return texts if quick else [*(load_program(name) for name in WORKLOADS), *texts]


def time_programs(
    programs: Iterable[Any], threads: int = 1, done: Callable[[int, str], object] = lambda count, name: None
) -> list[Row]:
    """The kernels of programs, with random weights."""
    from graphopt_gym.graphs.tensor_program import random_values
    from graphopt_gym.graphs.tensor_program.onnx_io import to_onnx

    need("onnx", "onnxruntime", what="a calibration of onnxruntime")
    rows: list[Row] = []
    for count, program in enumerate(programs):
        done(count, program.name)
        values = random_values(program, dtype="float32")
        feeds = {name: values[name] for name in program.leaves("input")}
        rows += kernel_rows(to_onnx(program, values).SerializeToString(), feeds, threads)
    return rows


def fit_rows(rows: Iterable[Row]) -> tuple[dict[str, dict[str, float]], list[dict[str, Any]]]:
    """(prices by key, a row of cross-validated errors a key), as ``fit_terms`` of timed kernels."""
    keys: dict[str, list[tuple[Work, float]]] = {}
    for name, op_class, work, seconds in rows:
        for key in (name, f"class:{op_class}"):
            if key:
                keys.setdefault(key, []).append((work, seconds))
    table: dict[str, dict[str, float]] = {}
    report = []
    for key, members in keys.items():
        if len(members) < FEWEST:
            continue
        family = family_of(key) if key.startswith("class:") else _family(key)
        amounts = features([work for work, _ in members], family)
        times = np.array([took for _, took in members])
        prices = fit_prices(amounts, times, NOISE_OF_CLASS if key.startswith("class:") else NOISE)
        table[key] = {term: float(price) for term, price in zip(TERMS[family], prices, strict=True) if price > 0}
        errors = np.abs(validated(amounts, times) / times - 1)
        report.append(
            {"op": key, "kernels": len(members), "median_error": float(np.median(errors)),
             "p90_error": float(np.percentile(errors, 90))}
        )  # fmt: skip
    return table, report


def _family(key: str) -> str:
    return {"matmul": "product", "conv2d": "conv"}.get(key.split(":")[0], "generic")


def onnxruntime_device(name: str, rows: list[Row], threads: int = 1) -> tuple[Device, list[dict[str, Any]]]:
    """(the device, a row of errors a key).

    Raises:
        InputError: no convolution or product among the rows.
    """
    table, report = fit_rows(rows)
    rates = [float(work["flop"]) / took for _, op_class, work, took in rows if op_class in ("conv", "matmul")]
    moved = [float(work["byte"]) / took for _, op_class, work, took in rows if op_class in ("elementwise", "copy")]
    if not rates or not moved:
        raise InputError("kernel times: no products, or none that only move bytes; time the whole design")
    device = Device(
        name=name,
        kind="cpu",
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        memory_bytes_per_s=max(moved),
        peak_flops={"float32": max(rates)},
        compute_units=threads,
        cache_bytes=last_cache_bytes(),
        fitted=rounded(
            {
                "runtime": RUNTIME,
                "terms": {"float32": table},
                "in_model_products": 1.0,
                "in_model_streams": 1.0,
                "launch_us": {"eager": 0.0, "back_to_back": 0.0, "graph": 0.0},
            }
        ),
        sources={
            "memory_gib": "the system's physical memory",
            "memory_gb_per_s": "measured: the best kernel of onnxruntime that only moves bytes",
            "peak_tflops": "measured: the best rate of a product or convolution in onnxruntime",
            "compute_units": "the threads that were used",
            "cache_mib": "the system's last level of cache",
        },
    )
    return device, report
