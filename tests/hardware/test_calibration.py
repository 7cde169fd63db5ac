"""Calibration: the design, the fits, tables of kernel times, device files, steps. No test asserts a speed."""

from __future__ import annotations

import csv
import gzip
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

import graphopt_gym as gg
from graphopt_gym.benchmarks import calibration
from graphopt_gym.cli.app import app
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.capture import capture
from graphopt_gym.hardware.calibration import anchors, device, fit, session, steps, table, timing
from graphopt_gym.hardware.calibration.kernels import COLUMNS, OPS, Kernel, design
from graphopt_gym.hardware.calibration.table import HEADER, Timed
from graphopt_gym.hardware.cluster import DEVICES, Device, load_device
from graphopt_gym.hardware.cost_model import load_cost_model
from graphopt_gym.hardware.terms import TERMS, family_of, keyed_work, priced, term_times


class Counted:
    """A clock that runs nothing: every call takes two microseconds; it may break off after so many repeats."""

    def __init__(self, repeats: float = math.inf) -> None:
        self.left = repeats

    def repeat(self, call, count):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return 2e-6 * count, True


def one_of(op: str, dtype: str = "float32") -> Kernel:
    sizes = {"batch": 2, "m": 24, "n": 32, "k": 16, "in_channels": 32, "out_channels": 16, "groups": 1, "kernel": 3,
             "size": 8, "stride": 1, "padding": 1, "rows": 12, "columns": 32}  # fmt: skip
    name, _, variant = op.partition(":")
    sizes |= {"1x1": {"kernel": 1, "padding": 0}, "grouped": {"groups": 4}, "thin": {"m": 3},
              "depthwise": {"groups": 32, "out_channels": 32}}.get(variant, {})  # fmt: skip
    if name in ("mm", "addmm", "linear"):
        sizes["batch"] = 1
    return Kernel(op, dtype, {column: sizes[column] for column in COLUMNS[OPS[op].family]})


# --- the design and the harness -------------------------------------------------------------------------------------


def test_design__is_the_same_each_time_and_has_every_operator():
    full, quick = design("cpu", "float32"), design("cpu", "float32", quick=True)
    assert [one.key for one in full] == [one.key for one in design("cpu", "float32")]
    assert {one.op for one in full} == {one.op for one in quick} == set(OPS) - {"linear"}
    assert len({one.key for one in full}) == len(full) > 2 * len(quick)
    for one in full:
        assert table.variant_of(one.op.removesuffix(":thin"), dict(one.shape)) in (one.op, one.op.split(":")[0])
        assert all(value >= 0 for value in one.shape.values())
        assert float(np.asarray(one.work["byte"])) > 0


@pytest.mark.parametrize("op", sorted(OPS))
def test_kernel__can_be_built_and_called(op):
    call = timing.build(one_of(op), "cpu")
    for _ in range(3):
        call()


def test_measured_s__is_a_low_quantile_of_repeats_that_count():
    class Noisy:
        def __init__(self):
            self.at = 0

        def repeat(self, call, count):
            call()
            self.at += 1
            return (5e-3, True) if self.at % 2 else (1e-3, False)

    assert timing.measured_s(lambda: None, Noisy(), seconds=0.02) == 5e-3
    assert timing.measured_s(lambda: None, Counted(), seconds=1e-3) == pytest.approx(2e-6)


def test_processor_clock__counts_the_calls():
    calls = []
    seconds, counts = timing.ProcessorClock().repeat(lambda: calls.append(1), 7)
    assert len(calls) == 7
    assert seconds >= 0
    assert counts


class FakeCuda:
    """As much of ``torch.cuda`` as the clock uses: a call takes 3 us as it is and 1 us in a graph."""

    def __init__(self, monkeypatch, capturable: bool):
        self.now, self.in_graph, self.capturable, cuda = 0.0, False, capturable, self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at = cuda.now

            def elapsed_time(self, end):
                return (end.at - self.at) * 1e3

        class Graph:
            calls = 0

            def replay(self):
                cuda.now += self.calls * 1e-6

        class Capture:
            def __init__(self, graph):
                self.graph = graph

            def __enter__(self):
                if not cuda.capturable:
                    raise RuntimeError("operation not permitted when stream is capturing")
                cuda.in_graph = self.graph

            def __exit__(self, *_):
                cuda.in_graph = False

        class Chosen:
            def __init__(self, device):
                assert device == "cuda"

            def __enter__(self):
                return self

            def __exit__(self, *_):
                return None

        for name, value in {"Event": Event, "CUDAGraph": Graph, "graph": Capture, "device": Chosen,
                            "synchronize": lambda: None}.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, value)

    def call(self):
        if self.in_graph:
            self.in_graph.calls += 1
        else:
            self.now += 3e-6


@pytest.mark.parametrize(("capturable", "seconds"), [(True, 1e-6), (False, 3e-6)])
def test_cuda_clock__times_a_captured_graph_or_the_calls_as_they_are(monkeypatch, capturable, seconds):
    cuda = FakeCuda(monkeypatch, capturable)
    assert timing.measured_s(cuda.call, timing.CudaClock("cuda"), 1e-3) == pytest.approx(seconds)


@pytest.mark.parametrize("op", ["addmm", "convolution_backward", "native_batch_norm_backward", "native_layer_norm",
                                "_softmax_backward_data", "scaled_dot_product_attention_backward", "adam"])  # fmt: skip
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_kernel__can_be_called_in_other_types(op, dtype):
    timing.build(one_of(op, dtype), "cpu")()


# --- what a kernel does is what a captured graph says it does --------------------------------------------------------


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.one = nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.Conv2d(32, 48, 1, bias=False)
        self.depth = nn.Conv2d(48, 48, 3, 1, 1, groups=48, bias=False)
        self.table = nn.Embedding(70, 40)
        self.batch, self.linear, self.layer = nn.BatchNorm2d(32), nn.Linear(48, 40), nn.LayerNorm(40)

    def forward(self, x):
        x = self.depth(self.one(F.relu(self.batch(self.conv(x)))))
        x = F.max_pool2d(x, 2, 2)
        x = self.layer(F.gelu(self.linear(x.flatten(2).transpose(1, 2).contiguous())))
        x = x + self.table(torch.arange(25))
        return torch.log_softmax(x, -1) + torch.bmm(x, x.transpose(1, 2)).sum(-1, keepdim=True)


def test_kernels__have_the_work_of_the_graphs_ops():
    graph = capture(Everything(), torch.zeros(4, 16, 20, 20), target="cpu", optimizer="adam")
    image = {"batch": 4, "groups": 1, "stride": 1, "padding": 0}
    first = image | {"in_channels": 16, "out_channels": 32, "kernel": 3, "size": 20, "stride": 2, "padding": 1}
    one = image | {"in_channels": 32, "out_channels": 48, "kernel": 1, "size": 10}
    depth = image | {"in_channels": 48, "out_channels": 48, "groups": 48, "kernel": 3, "size": 10, "padding": 1}
    pool = {"batch": 4, "in_channels": 48, "kernel": 2, "size": 10, "stride": 2, "padding": 0}
    array = {"rows": 100, "columns": 40}
    expected = {
        "convolution": first, "convolution:1x1": one, "convolution:depthwise": depth,
        "convolution_backward:weight": first, "convolution_backward:1x1": one,
        "convolution_backward:depthwise": depth, "max_pool2d_with_indices": pool,
        "max_pool2d_with_indices_backward": pool, "native_batch_norm": {"batch": 4, "in_channels": 32, "size": 10},
        "native_batch_norm_backward": {"batch": 4, "in_channels": 32, "size": 10},
        "relu": {"rows": 4 * 32, "columns": 100}, "threshold_backward": {"rows": 4 * 32, "columns": 100},
        "addmm": {"batch": 1, "m": 100, "n": 40, "k": 48}, "gelu": array, "gelu_backward": array,
        "native_layer_norm": array, "native_layer_norm_backward": array, "_log_softmax": array,
        "_log_softmax_backward_data": array, "bmm": {"batch": 4, "m": 25, "n": 25, "k": 40},
        "sum:inner": {"rows": 100, "columns": 25}, "clone:transposed": {"rows": 100, "columns": 48},
        "adam": {"rows": 40, "columns": 48}, "adam:zeros": {"rows": 70, "columns": 40},
        "embedding_dense_backward": {"rows": 25, "columns": 40, "m": 70},
    }  # fmt: skip
    seen = set()
    for keys, ops, work in keyed_work(graph):
        if keys[0] not in expected:
            continue
        kernel = Kernel(keys[0], "float32", expected[keys[0]]).work
        terms = TERMS[family_of(keys[0])]
        rows = np.array([np.broadcast_to(np.asarray(work[term], float), len(ops)) for term in terms]).T
        ours = np.array([float(np.asarray(kernel[term])) for term in terms])
        # vectors (biases, means) that a kernel reads beside its arrays are not in the table's shapes
        close = np.isclose(rows, ours, rtol=0.04, atol=2).all(axis=1)
        if close.any():
            seen.add(keys[0])
    assert seen == set(expected)


def test_layout__is_kept_by_elementwise_operators_and_paid_for_where_it_is_mixed():
    class Turned(nn.Module):
        def forward(self, x):
            turned = (x.transpose(1, 2) * 2).relu()  # stays as it lies
            return turned + x.reshape(4, 16, 8), F.softmax(turned, -1)

    graph = capture(Turned(), torch.zeros(4, 8, 16), target="cpu", train=False)
    found = [(keys[0], len(ops)) for keys, ops, _ in keyed_work(graph)]
    assert ("add:transposed", 1) in found
    assert ("relu", 1) in found
    assert ("mul:scalar", 1) in found
    assert ("clone:transposed", 1) in found
    assert ("_softmax", 1) in found


# --- fits -----------------------------------------------------------------------------------------------------------


def synthetic(rng: np.random.Generator, noise: float = 0.0) -> list[Timed]:
    """Times by a plain formula: 100 GFLOP/s, 10 GB/s for what is read and written, 2 us a call."""
    rows = []
    for kernel in design("cpu", "float32", quick=True):
        s, base = kernel.shape, kernel.op.split(":")[0]
        if base in ("mm", "addmm", "bmm", "baddbmm"):
            b, m, n, k = (s[name] for name in ("batch", "m", "n", "k"))
            seconds = 2e-6 + 2 * b * m * n * k / 100e9 + 4 * b * (m * k + k * n + m * n) / 10e9
        elif kernel.op in ("add", "relu", "gelu", "clone", "sum:outer"):
            tensors = {"add": 3, "sum:outer": 1}.get(kernel.op, 2)
            seconds = 2e-6 + 4 * tensors * s["rows"] * s["columns"] / 10e9
        else:
            continue
        rows.append(Timed(kernel, seconds * math.exp(noise * rng.standard_normal())))
    return rows


def test_fit_terms__recovers_what_a_plain_formula_made():
    rows = synthetic(np.random.default_rng(0))
    prices, report = fit.fit_terms(rows)
    assert fit.exchanged(rows) == []
    fitted = [float(priced(prices["float32"][one.kernel.op], one.kernel.work)) for one in rows]
    assert fitted == pytest.approx([one.seconds for one in rows], rel=0.01)
    assert prices["float32"]["mm"]["flop"] == pytest.approx(1 / 100e9, rel=0.01)
    assert prices["float32"]["add"]["byte"] == pytest.approx(1 / 10e9, rel=0.01)
    assert prices["float32"]["gelu"]["call"] == pytest.approx(2e-6, rel=0.01)
    assert {row["op"] for row in report} == {one.kernel.op for one in rows}
    assert "tanh" not in prices["float32"]
    assert "class:elementwise" in prices["float32"]


def test_fit_terms__does_not_follow_outliers():
    rows = synthetic(np.random.default_rng(0), noise=0.03)
    rows = [replace(one, seconds=one.seconds * (20 if index % 9 == 0 else 1)) for index, one in enumerate(rows)]
    prices, _ = fit.fit_terms(rows)
    assert prices["float32"]["mm"]["flop"] == pytest.approx(1 / 100e9, rel=0.1)


def test_fit_anchors__recovers_factors():
    rng = np.random.default_rng(0)
    parts = np.array([[rng.uniform(0, 10e-3), 6e-3, rng.uniform(0, 5e-3), rng.integers(10, 2000)] for _ in range(8)])
    factors = {"in_model_products": 1.2, "in_model_streams": 1.7, "launch_us": 4.5}
    measured = 1.2 * parts[:, 0] + parts[:, 1] + 0.7 * parts[:, 2] + 4.5e-6 * parts[:, 3]
    assert anchors.fit_anchors(parts, measured) == pytest.approx(factors, rel=1e-6)


@pytest.mark.parametrize("name", anchors.NAMES)
def test_anchor__runs_and_updates_as_it_is_captured(name):
    arguments = anchors.anchor(name, True)
    before = [one.detach().clone() for one in arguments["module"].parameters()]
    anchors.running_step(arguments, "cpu")()
    assert all(not torch.equal(one, other) for one, other in zip(before, arguments["module"].parameters()))
    anchors.running_step(anchors.anchor(name, False), "cpu")()


# --- tables ---------------------------------------------------------------------------------------------------------


def written(path: Path, *rows: str, header: str = "op,batch,m,n,k,rows,columns,latency_us") -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("mm,1,64,64,,,,10", "row 2: column 'k' is missing; mm needs a whole number"),
        ("mm,1,64,64,0.5,,,10", "column 'k' is '0.5'"),
        ("mm,1,64,-3,64,,,10", "column 'n' is '-3'"),
        ("mm,1,64,nan,64,,,10", "column 'n' is 'nan'"),
        ("mm,1,64,64,64,,,0", "column 'latency_us' is '0'; give microseconds above 0"),
        ("mm,1,64,64,64,,,fast", "column 'latency_us' is 'fast'"),
        ("mm,1,64,64,64,,,inf", "column 'latency_us' is 'inf'"),
        ("matmull,1,64,64,64,,,10", "column 'op': unknown operator 'matmull'; did you mean 'matmul'"),
        ("relu,,,,,8,,10", "column 'columns' is missing"),
        ("mm,1,64,64,64,,,10,9", "row 2: 9 fields, the header has 8 columns"),
    ],
)
def test_table__names_row_column_value_and_fix(tmp_path, row, says):
    with pytest.raises(InputError, match="kernel times") as error:
        table.read_kernels(written(tmp_path / "k.csv", row))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_table__refuses_what_is_no_table(tmp_path):
    for content, says in [(b"", "column 'op' is missing"), (b"op,m\n", "column 'latency_us' is missing"),
                          (b"op,op,latency_us\n", "column 'op' is there twice"), (b"\x1f\x8bxx", "gzip"),
                          (b"op,latency_us\n", "no rows"), (b"\xff\xfe\x00", "UTF-8")]:  # fmt: skip
        (tmp_path / "k.csv").write_bytes(content)
        with pytest.raises(InputError) as error:
            table.read_kernels(tmp_path / "k.csv")
        assert says in str(error.value)
    row = "conv,1,8,8,1,9,4,1,0,10"
    columns = "op,batch,in_channels,out_channels,groups,kernel,size,stride,padding,latency_us"
    with pytest.raises(InputError, match="column 'kernel' is 9, wider than the padded image"):
        table.read_kernels(written(tmp_path / "k.csv", row, header=columns))
    with pytest.raises(InputError, match="column 'groups' is 3, which does not divide"):
        table.read_kernels(written(tmp_path / "k.csv", row.replace(",1,9", ",3,1"), header=columns))


def test_table__takes_the_shipped_measurements_and_what_it_wrote(tmp_path):
    shipped = table.read_kernels(gg.data.data_path("cost_model", "gpu_kernels.csv.gz"))
    assert len(shipped) > 60000
    ours = table.of_device(shipped, "t4", "table")
    assert 0 < len(ours) < len(shipped)
    assert {one.device for one in ours} == {"t4"}
    with pytest.raises(InputError, match="names 5 devices: unknown device 't5'; did you mean 't4'"):
        table.of_device(shipped, "t5", "table")
    rows = [Timed(one_of(op), 1e-6 * (index + 1)) for index, op in enumerate(OPS)]
    table.write_kernels(tmp_path / "k.csv", "mine", rows)
    (tmp_path / "k.csv.gz").write_bytes(gzip.compress((tmp_path / "k.csv").read_bytes()))
    for path in (tmp_path / "k.csv", tmp_path / "k.csv.gz"):
        again = table.read_kernels(path)
        assert [one.kernel.key for one in again] == [one.kernel.key for one in rows]
        assert [one.seconds for one in again] == pytest.approx([one.seconds for one in rows], rel=1e-4)


def test_possible__leaves_out_or_refuses_what_is_faster_than_the_device(tmp_path):
    toy = load_device("toy_1tflops")  # 1 TFLOP/s, 100 GB/s
    product = Kernel("mm", "float32", {"batch": 1, "m": 1000, "n": 1000, "k": 1000})  # 2 ms at the peak
    stream = Kernel("relu", "float32", {"rows": 2**14, "columns": 2**12})  # 512 MiB: 5.4 ms
    rows = [Timed(product, 2.1e-3, 2), Timed(stream, 5.5e-3, 3)]
    said: list[str] = []
    assert table.possible(rows * 10, toy, "table", said.append) == rows * 10
    assert not said
    wrong = [Timed(product, 1.8e-3, 4), Timed(stream, 5e-3, 5)]
    assert table.possible([*rows * 10, *wrong], toy, "table", said.append) == rows * 10
    assert "row 4: mm in 1800 us is 1.11 TFLOP/s, above the 1 of toy_1tflops" in said[0]
    assert "row 5: relu in 5000 us moves 107.4 GB/s, above the 100" in said[1]
    with pytest.raises(InputError, match="2 of 4 rows cannot be of toy_1tflops, the first: row 4"):
        table.possible([*rows, *wrong], toy, "table", said.append)


def test_exchanged__finds_columns_in_another_order():
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(60):
        m, n, k = (int(2 ** rng.uniform(5, 11)) for _ in range(3))
        seconds = 5e-6 + 2 * m * n * k / 1e12 + 4 * m * n / 2e9  # the result costs most
        rows.append(Timed(Kernel("mm", "float32", {"batch": 1, "m": m, "n": n, "k": k}), seconds))
    assert fit.exchanged(rows) == []
    wrong = [
        replace(one, kernel=replace(one.kernel, shape={**s, "n": s["k"], "k": s["n"]}))
        for one in rows
        for s in [one.kernel.shape]
    ]
    [warning] = fit.exchanged(wrong)
    assert warning.startswith("mm (float32): the columns m, n, k fit better as m, k, n")


# --- sessions and device files --------------------------------------------------------------------------------------


def test_time_design__goes_on_where_it_was_interrupted(tmp_path):
    kernels, path = [one_of(op) for op in ("relu", "add", "mm", "clone")], tmp_path / "new" / "my_cpu.csv"
    each = Counted()
    session.time_design(kernels[:1], "cpu", "mine", tmp_path / "one.csv", each)
    repeats = round(-each.left) if math.isfinite(each.left) else None
    counted = Counted(1e9)
    session.time_design(kernels[:2], "cpu", "mine", tmp_path / "two.csv", counted)
    repeats = round((1e9 - counted.left) / 2)
    with pytest.raises(KeyboardInterrupt):
        session.time_design(kernels, "cpu", "mine", path, Counted(2.5 * repeats))
    assert [one.kernel.op for one in table.read_kernels(path)] == ["relu", "add"]
    with pytest.raises(InputError, match="are there already; give --resume"):
        session.time_design(kernels, "cpu", "mine", path, Counted())
    rest = Counted(1e9)
    rows = session.time_design(kernels, "cpu", "mine", path, rest, resume=True)
    assert [one.kernel.op for one in rows] == [one.op for one in kernels]
    assert round(1e9 - rest.left) == 2 * repeats  # the first two were not timed again
    assert [one.kernel.key for one in table.read_kernels(path)] == [one.key for one in kernels]
    assert path.read_text().splitlines()[0] == ",".join(HEADER)


def test_time_design__says_once_what_a_device_cannot_run(tmp_path):
    class Refusing(Counted):
        def repeat(self, call, count):
            raise RuntimeError("not implemented for 'Half'\nmore")

    said: list[str] = []
    kernels = [one_of("relu", "float16"), replace(one_of("relu", "float16"), shape={"rows": 5, "columns": 5})]
    rows = session.time_design(kernels, "cpu", "mine", tmp_path / "k.csv", Refusing(), warn=said.append)
    assert rows == []
    assert said == ["left out: relu in float16: not implemented for 'Half'"]


def calibrated(name: str = "mine") -> Device:
    rows = synthetic(np.random.default_rng(0))
    prices, _ = fit.fit_terms(rows)
    made, report = device.fit_device(device.this_processor(name, 1, rows), prices)
    assert report == []
    return made


def test_device_file__is_what_the_catalog_reads(tmp_path, monkeypatch):
    made = calibrated()
    assert 70e9 < made.peak_flops["float32"] < 100e9  # what is not bytes or calls
    assert made.memory_bytes_per_s == pytest.approx(10e9, rel=0.05)
    assert made.kind == "cpu"
    monkeypatch.setenv("GRAPHOPT_HOME", str(tmp_path))
    assert device.own_folder() == tmp_path / "devices"
    device.own_folder().mkdir()
    (device.own_folder() / "mine.toml").write_text(device.device_toml(made, ["a comment"]))
    again = DEVICES.load("mine")
    assert again.fitted == made.fitted
    assert again.sources == made.sources
    assert again.memory_bytes == made.memory_bytes
    assert again.memory_bytes_per_s == pytest.approx(made.memory_bytes_per_s)
    problem = gg.make_problem("Placement-v0", graph="dlrm_small_b1", cluster=str(device.own_folder() / "mine.toml"))
    assert problem.evaluate(np.zeros(problem.num_groups, int)).cost > 0


def test_cost_model__charges_terms_factors_and_launch():
    made = calibrated()
    graph = capture(nn.Sequential(nn.Linear(64, 64), nn.GELU()), torch.zeros(32, 64), target="cpu", train=False)
    model = load_cost_model()
    kernels = {graph.kinds[graph.kind[op]]: op for op in range(graph.num_ops) if graph.flops[op]}
    prices = made.fitted["terms"]["float32"]
    product = Kernel("addmm", "float32", {"batch": 1, "m": 32, "n": 64, "k": 64}).work
    stream = Kernel("gelu", "float32", {"rows": 32, "columns": 64}).work
    by_hand = {
        "addmm": sum(price * float(np.asarray(product[term])) for term, price in prices["addmm"].items()),
        "gelu": sum(price * float(np.asarray(stream[term])) for term, price in prices["gelu"].items()),
    }
    slower = replace(made, fitted={**made.fitted, "in_model_products": 2.0, "in_model_streams": 3.0,
                                   "launch_us": {"eager": 7.0, "back_to_back": 1.0, "graph": 0.0}})  # fmt: skip
    plain, charged = model.op_times(graph, made), model.op_times(graph, slower)
    for kind, op in kernels.items():
        assert plain[op] == pytest.approx(by_hand[kind], rel=0.03)
    moved = 2 * 32 * 64 * 4 * prices["clone"]["byte"]  # the bytes of a copy take three times as long
    assert charged[kernels["addmm"]] == pytest.approx(2 * plain[kernels["addmm"]] + 7e-6, rel=1e-6)
    assert charged[kernels["gelu"]] == pytest.approx(plain[kernels["gelu"]] + 2 * moved + 7e-6, rel=1e-6)
    assert load_cost_model("back_to_back").op_times(graph, slower).sum() < charged.sum()
    seconds, copied = term_times(made.fitted, graph)
    assert (copied[list(kernels.values())] <= seconds[list(kernels.values())] * 1.5).all()


# --- steps ----------------------------------------------------------------------------------------------------------


def measured_on(device_name: str, factors: dict[str, float], *graphs: str) -> list[steps.Step]:
    """Steps as a device with known factors would take them."""
    model = load_cost_model()
    one = steps.with_factors(load_device(device_name), factors, model)
    loaded = [gg.load_graph(name) for name in graphs]
    return [steps.Step(graph.name, graph, float(model.op_times(graph, one).sum())) for graph in loaded]


def test_fit_steps__one_step_gives_one_factor_exactly():
    given = measured_on("v100_pcie_16gb", {"in_model_products": 1.31}, "bert_base")
    made, factors, rows = steps.fit_steps(load_device("v100_pcie_16gb"), given)
    assert factors == {"in_model_products": pytest.approx(1.31, rel=1e-3)}
    assert rows[0]["error"] == pytest.approx(0, abs=1e-3)
    assert rows[0]["before_s"] != rows[0]["measured_s"]
    assert made.fitted["in_model_products"] == factors["in_model_products"]


def test_fit_steps__two_steps_give_two():
    truth = {"in_model_products": 0.9, "launch_us": 21.0}
    given = measured_on("v100_pcie_16gb", truth, "bert_base", "rnnlm_2layer")
    _, factors, rows = steps.fit_steps(load_device("v100_pcie_16gb"), given)
    assert factors == pytest.approx(truth, rel=0.01)
    assert max(abs(row["error"]) for row in rows) < 1e-3


def test_fit_steps__the_same_step_twice_shows_one_factor():
    given = measured_on("v100_pcie_16gb", {"in_model_products": 1.2}, "bert_base") * 2
    _, factors, _ = steps.fit_steps(load_device("v100_pcie_16gb"), given)
    assert list(factors) == ["in_model_products"]


def test_fit_steps__refuses_a_time_that_no_factor_gives():
    [step] = measured_on("v100_pcie_16gb", {}, "bert_base")
    with pytest.raises(InputError, match="is it the right device, and the time in seconds"):
        steps.fit_steps(load_device("v100_pcie_16gb"), [step._replace(seconds=1e-3)])
    with pytest.raises(InputError, match="give at least one"):
        steps.fit_steps(load_device("v100_pcie_16gb"), [])


# --- the command ----------------------------------------------------------------------------------------------------


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["calibrate", *arguments])
    if isinstance(result.exception, InputError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_command__from_a_table_of_kernel_times(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAPHOPT_HOME", str(tmp_path))
    table.write_kernels(tmp_path / "k.csv", "any", synthetic(np.random.default_rng(0)))
    answer = json.loads(run("--kernels", str(tmp_path / "k.csv"), "--name", "mine", "--json"))
    assert answer["device"] == "mine"
    assert Path(answer["file"]) == tmp_path / "devices" / "mine.toml"
    assert DEVICES.load("mine").fitted["terms"]["float32"]["mm"]["flop"] == pytest.approx(1e-11, rel=0.01)


def test_command__from_steps(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAPHOPT_HOME", str(tmp_path))
    [step] = measured_on("v100_pcie_16gb", {"in_model_products": 1.2}, "bert_base")
    out = run("--device", "v100_pcie_16gb", "--step", f"bert_base={step.seconds!r}")
    assert "in_model_products: 1.2" in out
    assert "v100_pcie_16gb_calibrated" in out
    made = DEVICES.load("v100_pcie_16gb_calibrated")
    assert load_cost_model().op_times(step.graph, made).sum() == pytest.approx(step.seconds, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--step", "bert_base"], "--step needs a device to start from"),
        (["--device", "t4", "--step", "bert_base"], "is not GRAPH=SECONDS"),
        (["--device", "t4", "--step", "bert_base=soon"], "'soon' is no number of seconds"),
        (["--device", "t4", "--step", "bert_base=-1"], "-1"),
        (["--device", "t4", "--step", "bert_bass=1"], "did you mean 'bert_base'"),
        (["--device", "t4"], "is not of this machine"),
        (["--device", "t5"], "unknown device 't5'"),
        (["--name", "a/b"], "name is 'a/b'"),
        (["--out", "x.json"], "give a file that ends in .toml"),
        (["--dtypes", "bfloat16"], "float32 is missing"),
        (["--dtypes", "float32,half"], "'half' is not one of"),
        (["--threads", "0"], "threads"),
        (["--kernels", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_command__refuses(arguments, says, tmp_path, monkeypatch):
    monkeypatch.setenv("GRAPHOPT_HOME", str(tmp_path))
    with pytest.raises(InputError) as error:
        run(*arguments)
    assert says in str(error.value)


def test_benchmark__compares_a_calibrated_processor_with_steps_that_run(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "MODELS", {name: calibration.MODELS[name] for name in ("rnnlm",)})
    (tmp_path / "mine.toml").write_text(device.device_toml(calibrated()))
    report = calibration.calibration_report(device=str(tmp_path / "mine.toml"), seconds=1e-3)
    assert [row["mode"] for row in report["models"]] == ["training", "inference"]
    for row in report["models"]:
        assert row["error"] == pytest.approx(row["calibrated_s"] / row["measured_s"] - 1)
        assert row["ops"] > 100
    assert [row["kind"] for row in report["summary"]] == ["recurrent", "all"]
    monkeypatch.setenv("GRAPHOPT_HOME", str(tmp_path))
    with pytest.raises(InputError, match="'my_cpu' is not there yet: run graphopt calibrate"):
        calibration.calibration_report()


def test_shipped_calibration__is_what_its_kernel_times_give():
    folder = gg.data.data_path("calibration")
    rows = table.read_kernels(folder / "kernels.csv.gz")
    shipped = load_device(str(folder / "my_cpu.toml"))
    prices, _ = fit.fit_terms(rows)
    for key in ("mm", "gelu", "convolution", "native_layer_norm", "adam"):
        works = [one.kernel.work for one in rows if one.kernel.op == key]
        stored = [float(priced(shipped.fitted["terms"]["float32"][key], work)) for work in works]
        assert stored == pytest.approx([float(priced(prices["float32"][key], work)) for work in works], rel=0.01)
    with open(folder / "steps.csv", newline="") as file:
        steps_run = list(csv.DictReader(file))
    assert {row["model"] for row in steps_run} == set(calibration.MODELS)
    missed = {(row["model"], row["mode"]) for row in steps_run if abs(float(row["error"])) >= 0.15}
    assert missed == {("rnnlm", "training"), ("dlrm", "training")}  # 15.5 and 16.5 %; the page says so
    assert sum(abs(float(row["error"])) for row in steps_run) / len(steps_run) < 0.05
    for row in steps_run:
        assert float(row["error"]) == pytest.approx(float(row["calibrated_s"]) / float(row["measured_s"]) - 1, abs=2e-3)


def test_header__has_every_column_that_an_operator_needs():
    assert {column for columns in COLUMNS.values() for column in columns} <= set(HEADER)
    assert next(csv.reader([",".join(HEADER)])) == list(HEADER)


def test_fastest__takes_the_least_time_of_each_step():
    graph = None
    slow = [anchors.Anchor("a", graph, 2.0), anchors.Anchor("b", graph, 5.0)]
    fast = [anchors.Anchor("a", graph, 3.0), anchors.Anchor("b", graph, 4.0)]
    assert [(one.name, one.seconds) for one in anchors.fastest([slow, fast])] == [("a", 2.0), ("b", 4.0)]
