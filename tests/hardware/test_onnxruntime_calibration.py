"""A device fitted to onnxruntime's kernels: rows of a profile, prices, the file, the command."""

import json
import math

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from graphopt_gym.data import data_path
from graphopt_gym.envs.rewrite.problem import RewriteProblem
from graphopt_gym.graphs.tensor_program import parse_program
from graphopt_gym.hardware.calibration import onnxruntime as calibration
from graphopt_gym.hardware.cluster import load_device
from graphopt_gym.hardware.terms import conv_work, generic_work, product_work
from tests.commands import run_command

PROGRAM = """
x = input(name="x", shape=(2, 16, 12, 12))
c = relu(conv2d(x, weight(name="w", shape=(32, 16, 3, 3))))
d = conv2d(c, weight(name="d", shape=(32, 1, 3, 3)), stride=(2, 2))
p = maxpool(conv2d(d, weight(name="v", shape=(24, 32, 1, 1))), kernel=(3, 3))
m = matmul(reshape(p, shape=(48, 36)), weight(name="m", shape=(36, 20)))
return softmax(tanh(m)), concat(m, m, axis=0)
"""


def test_kernel_rows__are_those_of_a_program():
    rows = calibration.time_programs([parse_program(PROGRAM, "p")])
    found = {name: work for name, _, work, _ in rows}
    assert {"conv2d", "conv2d:depthwise", "conv2d:1x1", "maxpool", "matmul", "softmax", "tanh"} <= found.keys()
    assert all(seconds > 0 for *_, seconds in rows)
    assert float(found["conv2d"]["flop"]) == 2 * 2 * 144 * 9 * 32 * 16
    assert float(found["conv2d:depthwise"]["flop"]) == 2 * 2 * 36 * 9 * 32
    assert float(found["matmul"]["flop"]) == 2 * 48 * 20 * 36
    assert float(found["softmax"]["row"]) == 48


def drawn_rows(count=60):
    """Kernels whose times are sums of known prices."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(count):
        a, b, c = (int(size) for size in rng.integers(16, 200, 3))
        conv = conv_work(1, a, b, 1, 9, c * c, c * c, 4)
        product, moved = product_work(1, a, b, c, 4), generic_work(8 * a * b * c, 0.0, 4 * a * b * c)
        rows += [
            ("conv2d", "conv", conv, 1e-6 + 5e-12 * float(conv["flop"])),
            ("matmul", "matmul", product, 2e-6 + 8e-12 * float(product["flop"])),
            ("add", "elementwise", moved, 1e-6 + 1e-10 * float(moved["byte"])),
        ]
    return rows


def test_onnxruntime_device__recovers_prices_and_is_what_programs_are_priced_by(tmp_path):
    from graphopt_gym.hardware.calibration.device import device_toml

    device, report = calibration.onnxruntime_device("mine", drawn_rows(), threads=2)
    assert max(row["median_error"] for row in report if not row["op"].startswith("class:")) < 1e-3
    (tmp_path / "mine.toml").write_text(device_toml(device))
    again = load_device(str(tmp_path / "mine.toml"))
    assert again.fitted["runtime"] == "onnxruntime"
    assert again.compute_units == 2
    text = """
x = input(name="x", shape=(1, 64, 20, 20))
c = add(conv2d(x, weight(name="w", shape=(64, 64, 3, 3))), weight(name="b", shape=(64, 1, 1)))
return relu(c)
"""
    problem = RewriteProblem(parse_program(text), str(tmp_path / "mine.toml"))
    flops = 2 * 400 * 9 * 64 * 64
    assert problem.original_s == pytest.approx(1e-6 + 5e-12 * flops, rel=0.02)


def test_shipped_device__prices_what_published_networks_take():
    device = load_device(str(data_path("calibration", "cpu.toml")))
    table = device.fitted["terms"]["float32"]
    assert {"conv2d", "conv2d:1x1", "conv2d:depthwise", "matmul", "gelu", "layernorm", "class:copy"} <= table.keys()
    assert 5e9 < device.peak_flops["float32"] < 5e12
    assert 1e-3 < RewriteProblem("squeezenet", "cpu").original_s < 1e-1


def test_command__times_programs_and_writes_a_device(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GRAPHOPT_HOME", str(tmp_path))
    monkeypatch.setattr(calibration, "design", lambda quick: [parse_program(PROGRAM, "p")] * 3)
    status, said, error = run_command(["calibrate", "--device", "onnxruntime", "--json"], monkeypatch, capsys)
    assert status == 0, error
    assert json.loads(said)["file"] == str(tmp_path / "devices" / "cpu.toml")
    assert RewriteProblem("small_fire", "cpu").device.name == "cpu"
    assert math.isfinite(RewriteProblem("small_fire", "cpu").original_s)
    status, _, error = run_command(["calibrate", "--device", "onnxruntime", "--step", "a=1"], monkeypatch, capsys)
    assert status != 0
    assert "leave --kernels and --step out" in error
