"""Tables of kernel times: CSV with a row a kernel, as ``envs_data/cost_model/gpu_kernels.csv.gz`` has them.

Columns: ``device`` (any name), ``op``, ``dtype`` (``float32`` where there is none), the columns that say the shape (see
:data:`~graphopt_gym.hardware.calibration.kernels.COLUMNS` for which an operator has), and ``latency_us``. Other
columns are passed over. The names that the shipped table has (``softmax``, ``ln``, ``addu``, ``conv``) stand for the
operators that they time.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from graphopt_gym.errors import InputError, quoted, unknown_name
from graphopt_gym.files import read_file, write_text
from graphopt_gym.hardware.calibration.kernels import COLUMNS, FLOATING, OPS, OPTIONAL, SHAPE_COLUMNS, Kernel
from graphopt_gym.hardware.cluster import Device

HEADER = ("device", "op", "dtype", *SHAPE_COLUMNS, "latency_us")
NAMES = {
    "softmax": "_softmax", "log_softmax": "_log_softmax", "ln": "native_layer_norm", "layer_norm": "native_layer_norm",
    "batch_norm": "native_batch_norm", "conv": "convolution", "conv2d": "convolution", "matmul": "mm",
    "addu": "add:scalar", "mulu": "mul:scalar", "divu": "div:scalar", "powu": "pow:scalar", "dropout": "native_dropout",
    "relu_backward": "threshold_backward",
}  # fmt: skip
MOST = 2**40  # of a size in a shape
ABOVE_PEAK = 1.05  # a rate so many times the device's peak is not possible
MOST_IMPOSSIBLE, WARNED = 0.1, 5  # a table with a larger share of impossible rows is refused; so many are named
CACHES = 4  # working sets so many times the last cache cannot move faster than the memory


@dataclass(frozen=True)
class Timed:
    """A kernel with its time, the row of the table it stands in (from 2: the first is the header; 0: none), and the
    device that the row names."""

    kernel: Kernel
    seconds: float
    row: int = 0
    device: str = ""


def variant_of(op: str, shape: dict[str, int]) -> str:
    """The key of an operator at a shape: what the shape itself tells of its variant."""
    if ":" in op:
        return op
    if OPS[op].family == "conv":
        groups = shape["groups"]
        if groups > 1:
            return f"{op}:{'depthwise' if groups == shape['in_channels'] else 'grouped'}"
        return f"{op}:1x1" if shape["kernel"] == 1 else op
    if f"{op}:thin" in OPS and min(shape["m"], shape["n"]) < 16:
        return f"{op}:thin"
    return op


def read_kernels(path: str | os.PathLike[str]) -> list[Timed]:
    """The kernels of a CSV file, ``.gz`` too.

    Raises:
        InputError: the file cannot be read, a column is missing, or a field has no value that is possible; one line
            names row, column, value and what to give.
    """
    where = f"kernel times {quoted(os.fspath(path))}"
    content = read_file(path, "kernel times")
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError) as error:
            raise InputError(f"{where}: not a whole gzip file: {error}") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{where}: not a text file in UTF-8; give a CSV file") from None
    reader = csv.reader(io.StringIO(text))
    try:
        header = [name.strip() for name in next(reader, [])]
        lines = [(reader.line_num, line) for line in reader if any(field.strip() for field in line)]
    except csv.Error as error:
        raise InputError(f"{where}: row {reader.line_num}: {error}") from None
    for column in ("op", "latency_us"):
        if column not in header:
            raise InputError(
                f"{where}: column {column!r} is missing from the first row; give at least op, the columns of its "
                "shape, and latency_us"
            )
    repeated = next((name for name in header if name and header.count(name) > 1), None)
    if repeated:
        raise InputError(f"{where}: column {repeated!r} is there twice; keep one")
    if not lines:
        raise InputError(f"{where}: no rows below the header; give a row a kernel")
    return [_timed(f"{where}: row {number}", number, header, line) for number, line in lines]


def _timed(where: str, number: int, header: list[str], line: list[str]) -> Timed:
    if len(line) > len(header):
        raise InputError(f"{where}: {len(line)} fields, the header has {len(header)} columns; quote fields with commas")
    fields = dict(zip(header, (field.strip() for field in line)))
    given = fields.get("op", "")
    op = NAMES.get(given, given)
    if op not in OPS:
        raise unknown_name(f"{where}: column 'op': operator", given, [*OPS, *NAMES])
    dtype = fields.get("dtype", "") or "float32"
    if dtype not in FLOATING:
        raise unknown_name(f"{where}: column 'dtype': type", dtype, FLOATING)
    shape = {}
    for column in COLUMNS[OPS[op].family]:
        text = fields.get(column, "")
        if text == "" and column in OPTIONAL:
            shape[column] = OPTIONAL[column]
            continue
        least = 0 if column == "padding" else 1
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (least <= value <= MOST and value == int(value)):
            what = "is missing" if text == "" else f"is {quoted(text)}"
            raise InputError(f"{where}: column {column!r} {what}; {given} needs a whole number from {least} to {MOST}")
        shape[column] = int(value)
    if OPS[op].family in ("conv", "pool"):
        if shape["kernel"] > shape["size"] + 2 * shape["padding"]:
            raise InputError(
                f"{where}: column 'kernel' is {shape['kernel']}, wider than the padded image "
                f"({shape['size']} + 2 x {shape['padding']}); 'size' is the side of the input"
            )
        groups = shape.get("groups", 1)
        if groups > 1 and (shape["in_channels"] % groups or shape["out_channels"] % groups):
            raise InputError(
                f"{where}: column 'groups' is {groups}, which does not divide in_channels ({shape['in_channels']}) and "
                f"out_channels ({shape['out_channels']})"
            )
    latency = fields.get("latency_us", "")
    try:
        latency_us = float(latency)
    except ValueError:
        latency_us = math.nan
    if not 0 < latency_us < 1e12:
        raise InputError(f"{where}: column 'latency_us' is {quoted(latency)}; give microseconds above 0")
    return Timed(Kernel(variant_of(op, shape), dtype, shape), latency_us * 1e-6, number, fields.get("device", ""))


def write_kernels(path: str | os.PathLike[str], device: str, rows: Sequence[Timed]) -> Path:
    """Write a table whole, in the columns of :data:`HEADER`."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(HEADER)
    for one in rows:
        shape = [one.kernel.shape.get(column, "") for column in SHAPE_COLUMNS]
        writer.writerow([device, one.kernel.op, one.kernel.dtype, *shape, f"{one.seconds * 1e6:.5g}"])
    return write_text(path, out.getvalue())


def of_device(rows: Sequence[Timed], device: str, where: str) -> list[Timed]:
    """The rows of one device, where a table has those of several.

    Raises:
        InputError: it has several, and none of the name; the message names them.
    """
    names = list(dict.fromkeys(one.device for one in rows))
    if len(names) <= 1:
        return list(rows)
    if device not in names:
        raise unknown_name(f"{where}: column 'device' names {len(names)} devices: device", device,
                           names)  # fmt: skip
    return [one for one in rows if one.device == device]


def possible(rows: Sequence[Timed], device: Device, where: str, warn: Callable[[str], object]) -> list[Timed]:
    """The rows that can be of a device; those that cannot are named in warnings.

    Raises:
        InputError: more than :data:`MOST_IMPOSSIBLE` of the rows cannot: see :func:`impossible` for the rule.
    """
    wrong = impossible(rows, device)
    if len(wrong) > MOST_IMPOSSIBLE * len(rows):
        first = next(iter(wrong.values()))
        raise InputError(f"{where}: {len(wrong)} of {len(rows)} rows cannot be of {device.name}, the first: {first}")
    for text in list(wrong.values())[:WARNED]:
        warn(f"left out: {text}")
    if len(wrong) > WARNED:
        warn(f"left out: {len(wrong) - WARNED} more rows like these")
    return [one for index, one in enumerate(rows) if index not in wrong]


def impossible(rows: Sequence[Timed], device: Device) -> dict[int, str]:
    """By its index, what cannot be of a device, a line each; empty where all rows are possible.

    - A product or convolution faster than :data:`ABOVE_PEAK` times the peak of its type (convolutions: 4 times that,
      since the Winograd algorithm does a 2.25th to a 4th of the multiplications).
    - Tensors of :data:`CACHES` times the last cache and more that move faster than :data:`ABOVE_PEAK` times the memory.
    """
    found: dict[int, str] = {}
    cache = max(device.cache_bytes, 2**25) * CACHES
    for index, one in enumerate(rows):
        work, dtype = one.kernel.work, one.kernel.dtype
        what = f"row {one.row}: {one.kernel.op} in {one.seconds * 1e6:.4g} us"
        flops, moved = float(np.asarray(work.get("flop", 0.0))), float(np.asarray(work["byte"]))
        peak = max(device.peak(name) for name in ("float32", "tfloat32", "float16", "bfloat16")) \
            if dtype == "float32" and device.kind == "gpu" else device.peak(dtype)  # fmt: skip
        limit = ABOVE_PEAK * peak * (4 if OPS[one.kernel.op].family == "conv" else 1)
        if flops > limit * one.seconds:
            found[index] = (
                f"{what} is {flops / one.seconds / 1e12:.3g} TFLOP/s, above the {peak / 1e12:.3g} of "
                f"{device.name} ({dtype}); check the shape's columns, and that latency_us is in microseconds"
            )
        elif moved > cache and moved > ABOVE_PEAK * device.memory_bytes_per_s * one.seconds:
            found[index] = (
                f"{what} moves {moved / one.seconds / 1e9:.4g} GB/s, above the {device.memory_bytes_per_s / 1e9:.4g} "
                f"of {device.name}; check the shape's columns, and that latency_us is in microseconds"
            )
    return found
