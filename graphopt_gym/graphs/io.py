"""The file format of a graph: an ``.npz`` (a zip of NumPy arrays, never pickle) with a versioned JSON header.

Arrays inside, each in the smallest integer type that holds it:

- ``header``: uint8, the UTF-8 JSON ``{"format", "version", "name", "kinds", "modules", "metadata", "fingerprint"}``;
- ``table.<column>`` [T]: the T distinct rows of all columns but ``module`` and ``colocation``, in order of first
  appearance (real graphs repeat their layers, so T is small; ``table.output_shape`` is [T, highest rank]);
- ``row`` [N]: which row of the table each op has; ``module`` [N], ``colocation`` [N]: those columns, each value as
  the difference to the op before;
- ``inputs`` [N]: how many tensors each op reads; ``offset`` [E]: consumer minus producer of each edge, edges
  sorted by (consumer, producer).
"""

from __future__ import annotations

import io
import json
import math
import os
import zipfile
from typing import Any

import numpy as np

from graphopt_gym.errors import InputError, one_line, quoted
from graphopt_gym.files import parse_json, read_file, write_file
from graphopt_gym.graphs.graph import COLUMNS, MAX_RANK, ComputationGraph

FORMAT = "graphopt-graph"
VERSION = 1
# What a file may say that it holds; the largest graph that ships has 78,825 ops. Small files can inflate to anything.
MAX_OPS, MAX_EDGES = 2**21, 2**24
MAX_BYTES, MAX_HEADER_BYTES = 2**27, 2**25  # inflated: of all arrays, of the JSON header
OP_COLUMNS = ("module", "colocation")  # stored an op; the others through the table of distinct rows
TABLE_COLUMNS = tuple(column for column in COLUMNS if column not in OP_COLUMNS)


def save_graph(graph: ComputationGraph, path: str | os.PathLike[str]) -> None:
    """Writes a graph to ``path``; the same graph and metadata give the same bytes.

    The file is written beside ``path`` and renamed, so no half-written file is ever seen. Missing folders are made.

    Raises:
        InputError: the folder cannot be written, or the metadata is not JSON.
    """
    header = {
        "format": FORMAT,
        "version": VERSION,
        "name": graph.name,
        "kinds": graph.kinds,
        "modules": graph.modules,
        "metadata": graph.metadata,
        "fingerprint": graph.fingerprint,
    }
    try:
        text = json.dumps(header, sort_keys=True, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise InputError(f"graph {graph.name!r}: metadata cannot be written as JSON: {error}") from error
    arrays = {"header": np.frombuffer(text.encode(), np.uint8)}
    table, row = _distinct_rows(graph)
    for column in TABLE_COLUMNS:
        arrays[f"table.{column}"] = table[column]
    arrays["row"] = row
    for column in OP_COLUMNS:
        arrays[column] = np.diff(getattr(graph, column).astype(np.int64), prepend=0)
    inputs = np.diff(graph.pred_ptr)
    arrays["inputs"] = inputs
    arrays["offset"] = np.repeat(np.arange(graph.num_ops), inputs) - graph.pred
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, _narrow(array), version=(1, 0), allow_pickle=False)
            # a ZipInfo of our own: its date is fixed, so the bytes do not depend on the clock
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content.getvalue())
    write_file(path, buffer.getvalue(), make_folders=True)


def read_graph(path: str | os.PathLike[str]) -> ComputationGraph:
    """Reads a graph that :func:`save_graph` wrote.

    Raises:
        InputError: there is no such file, or it is damaged, truncated, cyclic, of a newer version or of another
            format; one line says what and where.
    """
    where = f"graph file {quoted(os.fspath(path))}"
    content = read_file(path, "graph file", limit=MAX_BYTES)
    if content[:4] != b"PK\x03\x04":
        raise InputError(f"{where} is not a zip archive, so not a graph of ours (.npz written by save_graph)")
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
    except Exception as error:  # zipfile raises half a dozen types on damaged directories
        raise InputError(f"{where} is truncated or damaged: {one_line(error)}") from error
    inflated = sum(entry.file_size for entry in archive.infolist())
    if inflated > MAX_BYTES:
        raise InputError(f"{where} would inflate to {inflated:,} bytes; the most that is read is {MAX_BYTES:,}")
    header = _read_header(archive, where)
    arrays = {
        name: _read_array(archive, name, where)
        for name in ("row", "inputs", "offset", *OP_COLUMNS, *(f"table.{column}" for column in TABLE_COLUMNS))
    }
    columns, edges = _decode(arrays, where)
    try:
        graph = ComputationGraph(
            header["name"],
            kinds=header["kinds"],
            modules=header["modules"],
            columns=columns,
            edges=edges,
            metadata=header["metadata"],
        )
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    if graph.fingerprint != header["fingerprint"]:
        raise InputError(
            f"{where} does not hold the graph it was written with: its header says fingerprint "
            f"{header['fingerprint'][:12]}…, its columns give {graph.fingerprint[:12]}…"
        )
    return graph


def _distinct_rows(graph: ComputationGraph) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The distinct rows of the table columns in order of first appearance, and the row of each op."""
    keys = np.column_stack([getattr(graph, column) for column in TABLE_COLUMNS])
    order = np.lexsort(keys.T)  # stable: within equal rows the first op comes first
    new = np.ones(len(order), bool)
    new[1:] = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)
    first = order[new]  # the first op of each distinct row, in sorted order
    by_appearance = np.argsort(first)
    rank = np.empty(len(first), np.int64)
    rank[by_appearance] = np.arange(len(first))
    row = np.empty(len(order), np.int64)
    row[order] = rank[np.cumsum(new) - 1]
    kept = first[by_appearance]
    table = {column: getattr(graph, column)[kept] for column in TABLE_COLUMNS}
    ranks = np.flatnonzero((table["output_shape"] >= 0).any(axis=0))
    table["output_shape"] = table["output_shape"][:, : ranks[-1] + 1 if ranks.size else 0]
    return table, row


def _narrow(array: np.ndarray) -> np.ndarray:
    """The same integers in the smallest type that holds them, little-endian."""
    if array.size == 0:
        return array.astype("u1")
    low, high = int(array.min()), int(array.max())
    for size in (1, 2, 4, 8):
        dtype = np.dtype(f"<{'i' if low < 0 else 'u'}{size}")
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return array.astype(dtype)
    raise AssertionError("unreachable: columns are at most int64")


def _read_header(archive: zipfile.ZipFile, where: str) -> dict[str, Any]:
    if "header.npy" not in archive.namelist():
        raise InputError(f"{where} has no header, so it is not a graph of ours ({FORMAT}): an .npz of something else?")
    if archive.getinfo("header.npy").file_size > MAX_HEADER_BYTES:
        raise InputError(f"{where}: the header would inflate to more than {MAX_HEADER_BYTES:,} bytes, the most it may")
    raw = _read_array(archive, "header", where)
    header = parse_json(raw.astype(np.uint8).tobytes(), f"{where}: the header")
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise InputError(f"{where}: the header does not say format {FORMAT!r}, so it is not a graph of ours")
    version = header.get("version")
    if type(version) is not int or version < 1:  # JSON's true would pass as 1
        raise InputError(f"{where}: the header's version is {version!r}, expected {VERSION}")
    if version > VERSION:
        raise InputError(
            f"{where} has format version {version}, newer than the {VERSION} this release reads: upgrade graphopt-gym"
        )
    for field, kind in {"name": str, "kinds": list, "modules": list, "metadata": dict, "fingerprint": str}.items():
        value = header.get(field)
        if not isinstance(value, kind) or (kind is list and not all(isinstance(item, str) for item in value)):
            raise InputError(f"{where}: the header's {field!r} is missing or not a {kind.__name__}")
    return header


def _read_array(archive: zipfile.ZipFile, name: str, where: str) -> np.ndarray:
    try:
        entry = archive.getinfo(f"{name}.npy")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("compressed by another method than deflate")  # the others inflate without a limit
        content = archive.read(entry)
    except KeyError:
        raise InputError(f"{where}: column {name!r} is missing") from None
    except Exception as error:  # zlib, zipfile and struct each have their own
        raise InputError(f"{where} is damaged at {name!r}: {one_line(error)}") from error
    try:
        stream = io.BytesIO(content)
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("not version 1.0 of NumPy's format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        held = len(content) - stream.tell()
        if math.prod(shape) * dtype.itemsize != held and not dtype.hasobject:
            raise ValueError(f"its header says shape {shape} of {dtype}, but {held:,} bytes follow")
        stream.seek(0)
        array = np.lib.format.read_array(stream, allow_pickle=False)
    except Exception as error:  # NumPy's header parser, a size that does not fit, an object array
        raise InputError(f"{where}: {name!r} is not an array of ours: {one_line(error)}") from error
    if array.dtype.kind not in "iu":
        raise InputError(f"{where}: column {name!r} has dtype {array.dtype}, expected integers")
    if array.ndim != (2 if name == "table.output_shape" else 1):
        raise InputError(f"{where}: column {name!r} has {array.ndim} dimensions")
    return array.astype(np.int64)


def _decode(arrays: dict[str, np.ndarray], where: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Columns and edges [E, 2] from the stored arrays; what the constructor checks is left to it."""
    row, inputs, offset = arrays["row"], arrays["inputs"], arrays["offset"]
    shapes = arrays["table.output_shape"]
    expected: dict[str, tuple[int, ...]] = dict.fromkeys(("row", "inputs", *OP_COLUMNS), (row.size,))
    expected |= {f"table.{column}": (len(arrays["table.kind"]),) for column in TABLE_COLUMNS}
    expected["table.output_shape"] = (len(arrays["table.kind"]), min(shapes.shape[1], MAX_RANK))
    for name, most in (("row", MAX_OPS), ("table.kind", MAX_OPS), ("offset", MAX_EDGES)):
        if (count := len(arrays[name])) > most:
            raise InputError(f"{where}: column {name!r} has {count:,} entries; the most that is read is {most:,}")
    wrong = inputs[(inputs < 0) | (inputs > MAX_EDGES)]
    if wrong.size:
        raise InputError(f"{where}: column 'inputs' holds {wrong[0]}, expected counts")
    expected["offset"] = (int(inputs.sum()),)
    for name, shape in expected.items():
        if arrays[name].shape != shape:
            raise InputError(f"{where}: column {name!r} has shape {arrays[name].shape}, expected {shape}")
    rows = len(arrays["table.kind"])
    if row.size and not (row.min() >= 0 and row.max() < rows):
        raise InputError(f"{where}: column 'row' holds {row.min()} to {row.max()}, but the table has {rows} rows")
    columns = {column: arrays[f"table.{column}"][row] for column in TABLE_COLUMNS if column != "output_shape"}
    padded = np.full((rows, MAX_RANK), -1, np.int64)
    padded[:, : shapes.shape[1]] = shapes
    columns["output_shape"] = padded[row]
    columns |= {column: np.cumsum(arrays[column]) for column in OP_COLUMNS}
    consumer = np.repeat(np.arange(row.size), inputs)
    return columns, np.stack([consumer - offset, consumer], axis=1)
