"""The file format: round trips, size, speed, and one clear line for every kind of damage."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import time
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt_gym.errors import InputError
from graphopt_gym.graphs.generators import layered_dag
from graphopt_gym.graphs.graph import COLUMNS, ComputationGraph
from graphopt_gym.graphs.io import MAX_BYTES, MAX_EDGES, MAX_HEADER_BYTES, MAX_OPS, read_graph, save_graph

GRAPH = layered_dag(60, seed=0, zeros=0.2, colocated=0.5, phases=True).replace(
    name="naïve", metadata={"licence": "MIT", "stages": [{"name": "a", "modules": ["x"]}], "versions": {"b": 1, "a": 2}}
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_graph(GRAPH, tmp_path / "graph.npz")
    return tmp_path / "graph.npz"


def same(left: ComputationGraph, right: ComputationGraph) -> bool:
    return (
        all(np.array_equal(getattr(left, column), getattr(right, column)) for column in COLUMNS)
        and np.array_equal(left.edges, right.edges)
        and (left.name, left.kinds, left.modules, left.metadata)
        == (right.name, right.kinds, right.modules, right.metadata)
    )


def change(path: Path, **arrays: Any) -> None:
    """Writes the file again with some arrays replaced (or left out, where None)."""
    with np.load(path) as stored:
        content = {name: stored[name] for name in stored.files}
    content |= {name.replace("__", "."): array for name, array in arrays.items()}
    np.savez(path, **{name: array for name, array in content.items() if array is not None})


def change_header(path: Path, **fields: Any) -> None:
    with np.load(path) as stored:
        header = json.loads(stored["header"].tobytes()) | fields
    header = {field: value for field, value in header.items() if value is not None}
    change(path, header=np.frombuffer(json.dumps(header).encode(), np.uint8))


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_graph(path)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text


# -- round trips ----------------------------------------------------------------------------------------------------


def test_save_graph__round_trip(path: Path) -> None:
    assert same(read_graph(path), GRAPH)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 80), st.integers(1, 10), st.integers(0, 2**32), st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_save_graph__round_trip_of_any_graph(
    tmp_path_factory: pytest.TempPathFactory,
    num_ops: int, width: int, seed: int, views: float, zeros: float, equal: bool,
) -> None:  # fmt: skip
    graph = layered_dag(num_ops, width, seed=seed, views=views, zeros=zeros, colocated=zeros, equal=equal)
    path = tmp_path_factory.getbasetemp() / "any.npz"
    save_graph(graph, path)
    assert same(read_graph(path), graph)


def test_save_graph__keeps_extreme_values(path: Path) -> None:
    flops = GRAPH.flops.copy()
    flops[:6] = [2**63 - 1, 2**32, 2**32 - 1, 2**31, 255, 256]
    groups = GRAPH.colocation.copy()
    groups[:3] = [2**31 - 1, -1, 2**31 - 1]
    shapes = np.full_like(GRAPH.output_shape, -1)  # all scalars
    graph = GRAPH.replace(flops=flops, colocation=groups, output_shape=shapes)
    save_graph(graph, path)
    assert same(read_graph(path), graph)


def test_save_graph__same_graph_gives_same_bytes(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 2e9)
    reordered = dict(reversed(GRAPH.metadata.items()))
    save_graph(GRAPH.replace(metadata=reordered), tmp_path / "later.npz")
    assert (tmp_path / "later.npz").read_bytes() == path.read_bytes()
    save_graph(read_graph(path), tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == path.read_bytes()


def test_save_graph__writes_no_pickle_and_plain_arrays(path: Path) -> None:
    with np.load(path, allow_pickle=False) as stored:
        assert all(stored[name].dtype.kind in "iu" for name in stored.files)
        header = json.loads(stored["header"].tobytes())
    assert (header["format"], header["version"], header["name"]) == ("graphopt-graph", 1, "naïve")
    assert header["metadata"] == GRAPH.metadata
    assert header["fingerprint"] == GRAPH.fingerprint


def test_save_graph__makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "graph.npz"
    save_graph(GRAPH, path)
    save_graph(GRAPH.replace(name="second"), path)
    assert read_graph(path).name == "second"
    assert os.listdir(path.parent) == ["graph.npz"]


def test_save_graph__refuses_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write '.*file/graph.npz': (File exists|Not a directory)"):
        save_graph(GRAPH, tmp_path / "file" / "graph.npz")
    with pytest.raises(InputError, match=r"cannot write '/proc/graph.npz'"):
        save_graph(GRAPH, "/proc/graph.npz")
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match=r"cannot write '.*taken': Is a directory"):
        save_graph(GRAPH, tmp_path / "taken")
    assert sorted(os.listdir(tmp_path)) == ["file", "taken"]  # no temporary file stays


def test_save_graph__refuses_metadata_that_is_not_json(path: Path) -> None:
    before = path.read_bytes()
    for metadata in ({"a": object()}, {"a": float("nan")}):
        with pytest.raises(InputError, match="metadata cannot be written as JSON"):
            save_graph(GRAPH.replace(metadata=metadata), path)
    assert path.read_bytes() == before


# -- size and speed -------------------------------------------------------------------------------------------------


def repeated(num_ops: int, period: int = 400) -> ComputationGraph:
    """As real training graphs: layers that repeat, and long edges from forward to backward."""
    layer = layered_dag(period, 6, seed=1)
    copies = -(-num_ops // period)
    columns = {column: np.concatenate([getattr(layer, column)] * copies) for column in COLUMNS}
    columns["module"] = np.repeat(np.arange(copies), period)
    columns["colocation"] = np.arange(copies * period) // 4
    edges = [layer.edges + period * index for index in range(copies)]
    rng = np.random.default_rng(0)
    half = copies * period // 2
    far = np.stack([rng.integers(0, half, half), rng.integers(half, 2 * half, half)], axis=1)
    reads_several = ~np.isin(columns["op_class"][far[:, 1]], (0, 1))
    modules = [f"encoder.layer.{index}" for index in range(copies)]
    return ComputationGraph(
        "repeated",
        kinds=layer.kinds,
        modules=modules,
        columns=columns,
        edges=np.concatenate([*edges, far[reads_several]]),
    )


def test_save_graph__is_small(tmp_path: Path) -> None:
    path = tmp_path / "graph.npz"
    save_graph(repeated(2000), path)
    assert path.stat().st_size < 20_000
    save_graph(repeated(80_000), path)
    assert path.stat().st_size < 400_000


def test_io__imports_nothing_heavy() -> None:
    code = (
        "import sys, graphopt_gym.graphs.io, graphopt_gym.graphs.generators\n"
        "print([m for m in ('torch', 'networkx', 'numba', 'matplotlib', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -- damage ---------------------------------------------------------------------------------------------------------


def test_read_graph__refuses_files_that_are_no_graphs(tmp_path: Path) -> None:
    assert "cannot be read: No such file or directory" in refusal(tmp_path / "missing.npz")
    assert "cannot be read: Is a directory" in refusal(tmp_path)
    foreign = tmp_path / "foreign.npz"
    for content in (b"", b"PK", b"hello", bytes(1000)):
        foreign.write_bytes(content)
        assert "is not a zip archive, so not a graph of ours" in refusal(foreign)
    np.savez(foreign, a=np.arange(3))
    assert "has no header, so it is not a graph of ours (graphopt-graph)" in refusal(foreign)
    np.savez(foreign, header=np.arange(3, dtype=np.uint8))
    assert "the header is damaged or not JSON" in refusal(foreign)
    np.savez(foreign, header=np.frombuffer(b'{"format": "other"}', np.uint8))
    assert "the header does not say format 'graphopt-graph'" in refusal(foreign)
    with zipfile.ZipFile(foreign, "w") as archive:
        archive.writestr("header.npy", b"not an array")
    assert "'header' is not an array of ours" in refusal(foreign)


def test_read_graph__refuses_every_truncation(path: Path) -> None:
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        assert ("truncated or damaged" if length >= 4 else "not a zip archive") in refusal(path)


def test_read_graph__never_takes_damaged_bytes_for_another_graph(path: Path) -> None:
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for position in rng.integers(0, len(content), 400):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            read = read_graph(path)
        except InputError:
            refused += 1
        else:
            assert same(read, GRAPH)  # a date in the zip directory, say, means nothing
    assert refused > 300


def test_read_graph__refuses_other_versions(path: Path) -> None:
    change_header(path, version=2)
    assert "has format version 2, newer than the 1 this release reads: upgrade graphopt-gym" in refusal(path)
    for version in (0, "1", 1.5, True, None):
        change_header(path, version=version)
        assert f"the header's version is {version!r}, expected 1" in refusal(path)


@pytest.mark.parametrize(
    ("field", "bad"), [("name", 3), ("kinds", "mm"), ("modules", [1]), ("metadata", []), ("fingerprint", None)]
)
def test_read_graph__refuses_a_header_with_wrong_fields(path: Path, field: str, bad: Any) -> None:
    change_header(path, **{field: bad})
    assert f"the header's {field!r} is missing or not a " in refusal(path)


@pytest.mark.parametrize("column", ["row", "inputs", "offset", "module", "colocation", "table__flops", "table__kind"])
def test_read_graph__refuses_missing_and_wrong_columns(path: Path, column: str) -> None:
    original, name = path.read_bytes(), column.replace("__", ".")
    change(path, **{column: None})
    assert f"column {name!r} is missing" in refusal(path)
    for bad, message in (
        (
            np.zeros(3, np.int32),
            f"column {name!r} has shape (3,), expected (" if column != "table__kind" else "expected",
        ),
        (np.zeros(60), f"column {name!r} has dtype float64, expected integers"),
        (np.zeros((60, 2), int), f"column {name!r} has 2 dimensions"),
    ):
        path.write_bytes(original)
        if bad.shape == (3,) and column in ("row", "inputs"):
            message = "expected ("  # the others are then the ones that do not fit
        change(path, **{column: bad})
        assert message in refusal(path)


def test_read_graph__refuses_object_arrays_unread(path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (os.abort, ())

    content = io.BytesIO()
    np.lib.format.write_array(content, np.array([Trap()], object), allow_pickle=True)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, entry in entries.items():
            archive.writestr(name, content.getvalue() if name == "row.npy" else entry)
    assert "'row' is not an array of ours: Object arrays cannot be loaded" in refusal(path)


def test_read_graph__refuses_values_out_of_range(path: Path) -> None:
    with np.load(path) as stored:
        row, inputs, kind = stored["row"].astype(int), stored["inputs"].astype(int), stored["table.kind"].astype(int)
    original = path.read_bytes()
    change(path, row=row + 10_000)
    assert "column 'row' holds 10000 to" in refusal(path)
    path.write_bytes(original)
    inputs[0], inputs[1] = -1, inputs[1] + inputs[0] + 1
    change(path, inputs=inputs)
    assert "column 'inputs' holds -1, expected counts" in refusal(path)
    path.write_bytes(original)
    change(path, table__kind=kind + 99)
    assert "column 'kind' of op 0 is " in refusal(path)
    path.write_bytes(original)
    change(path, offset=np.full(GRAPH.num_edges, 10_000))
    assert "but ops are 0 to 59" in refusal(path)


def test_read_graph__refuses_a_cycle_and_names_its_ops(path: Path) -> None:
    with np.load(path) as stored:
        offset = stored["offset"].astype(np.int64)
    consumer = np.repeat(np.arange(GRAPH.num_ops), np.diff(GRAPH.pred_ptr))
    # the first op that reads something and is read itself: let it read its reader
    edge = next(edge for edge, op in enumerate(consumer) if len(GRAPH.successors(op)))
    first = consumer[edge]
    reader = GRAPH.successors(first)[0]
    offset[edge] = first - reader
    change(path, offset=offset)
    text = refusal(path)
    assert "is cyclic: " in text
    assert f"[{first}]" in text
    assert f"[{reader}]" in text


def test_read_graph__refuses_changed_numbers(path: Path) -> None:
    with np.load(path) as stored:
        flops = stored["table.flops"].astype(np.int64)
    flops[0] += 1
    change(path, table__flops=flops)
    assert f"its header says fingerprint {GRAPH.fingerprint[:12]}…, its columns give" in refusal(path)


def test_read_graph__refuses_an_array_larger_than_its_file(path: Path) -> None:
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000000,), }"
    header = header.ljust(117) + b"\n"
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    entries["row.npy"] = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(path, "w") as archive:
        for name, entry in entries.items():
            archive.writestr(name, entry)
    assert "'row' is not an array of ours" in refusal(path)


def zipped(path: Path, method: int = zipfile.ZIP_DEFLATED, **contents: bytes) -> None:
    """Writes the file again with the bytes of some entries replaced."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    entries |= {f"{name.replace('__', '.')}.npy": content for name, content in contents.items()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, entry in entries.items():
            archive.writestr(name, entry)


def npy(shape: tuple[int, ...], content: bytes, descr: str = "|u1") -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


def test_read_graph__refuses_what_inflates_past_the_limit_before_it_does(path: Path) -> None:
    zipped(path, row=npy((MAX_BYTES,), bytes(MAX_BYTES)))
    assert path.stat().st_size < 300_000
    tracemalloc.start()
    try:
        assert "would inflate to 134,2" in refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_read_graph__refuses_a_header_that_inflates_and_other_compression(path: Path) -> None:
    original = path.read_bytes()
    zipped(path, header=npy((MAX_HEADER_BYTES,), b"[" * MAX_HEADER_BYTES))
    assert "the header would inflate to more than" in refusal(path)
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        path.write_bytes(original)
        zipped(path, method)
        assert "compressed by another method than deflate" in refusal(path)
    path.write_bytes(original)
    zipped(path, header=npy((100_000,), b"[" * 100_000))
    assert "the header is damaged or not JSON" in refusal(path)


@pytest.mark.parametrize("shape", [(10**15,), (2**62, 2), (-1,), (-2, -3), (3,)])
@pytest.mark.parametrize("descr", ["|u1", "<i8", "|V0", "<f8", "<U1000000"])
def test_read_graph__refuses_declared_sizes_that_its_bytes_have_not(path: Path, shape: Any, descr: str) -> None:
    zipped(path, row=npy(shape, bytes(60), descr))
    text = refusal(path)
    assert "'row'" in text


def test_read_graph__refuses_more_ops_and_edges_than_it_reads(path: Path) -> None:
    original = path.read_bytes()
    for column, most in (("row", MAX_OPS), ("offset", MAX_EDGES)):
        zipped(path, **{column: npy((most + 1,), bytes(most + 1))})
        assert f"column {column!r} has {most + 1:,} entries" in refusal(path)
        path.write_bytes(original)
    with np.load(path) as stored:
        inputs = stored["inputs"].astype(np.uint64)
    inputs[:4] = 2**62  # their sum wraps to 0
    change(path, inputs=inputs)
    assert f"column 'inputs' holds {2**62}, expected counts" in refusal(path)


def test_graph__refuses_sizes_that_overflow() -> None:
    shapes = GRAPH.output_shape.copy()
    shapes[7] = 256
    with pytest.raises(InputError, match=r"output_shape of op 7 is .*elements or more"):
        GRAPH.replace(output_shape=shapes)
    for column in ("output_bytes", "param_bytes", "state_bytes"):
        held = getattr(GRAPH, column).copy()
        held[:2] = 2**62
        with pytest.raises(InputError, match=f"column '{column}' adds up to"):
            GRAPH.replace(**{column: held})


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_read_graph__any_integers_in_any_column_give_a_graph_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.npz"
    save_graph(GRAPH, path)
    with np.load(path) as stored:
        column = data.draw(st.sampled_from(sorted(set(stored.files) - {"header"})))
        dtype = data.draw(st.sampled_from([np.int8, np.uint8, np.int32, np.int64, np.uint64]))
        array = stored[column].astype(dtype)
    limits = np.iinfo(dtype)
    for _ in range(data.draw(st.integers(1, 4))):
        array.flat[data.draw(st.integers(0, array.size - 1))] = data.draw(st.integers(limits.min, limits.max))
    change(path, **{column: array})
    with contextlib.suppress(InputError):
        assert read_graph(path).num_ops == GRAPH.num_ops
