"""The command line on programs: solve, compare, validate, report; bad input in one line with exit status 2."""

from __future__ import annotations

import json

import numpy as np
import pytest

from graphopt_gym.graphs.tensor_program import program_text
from tests.envs.rewrite.programs import inception


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "inception.txt"
    path.write_text(program_text(inception()))
    return path


def test_solve_validate_report__of_a_program(graphopt, tmp_path, program):
    out = tmp_path / "x.json"
    chosen = ("RewriteOrder-v0", "--graph", program)
    status, said, _ = graphopt("solve", *chosen, "--method", "taso", "--budget", 300, "--out", out, "--json")
    row = json.loads(said)
    assert status == 0
    assert row["cost"] < row["metrics"]["original_s"]
    assert row["metrics"]["same_outputs_when_executed"]
    stored = json.loads(out.read_text())
    assert stored["decision"].splitlines()[-1].startswith("return ")
    assert stored["trace"][-1][2] == stored["cost"]
    assert graphopt("validate", out)[0] == 0
    status, said, _ = graphopt("report", out)
    assert status == 0
    assert [line.rpartition(".")[2] for line in said.splitlines()] == ["png", "html"]
    page = (tmp_path / "x.html").read_text()
    assert stored["trace"][0][0] in page
    assert "Before" in page


def test_compare__writes_a_folder_that_reports_as_one_page(graphopt, tmp_path, program):
    folder = tmp_path / "all"
    chosen = ("RewriteOrder-v0", "-g", program, "--methods", "original,greedy,taso", "--budget", 200)
    status, said, _ = graphopt("compare", *chosen, "--out", folder)
    assert status == 0
    assert "taso" in said
    status, said, _ = graphopt("report", folder)
    assert status == 0
    assert "report.html" in said


def test_validate__a_wrong_program_fails(graphopt, tmp_path, program):
    out = tmp_path / "x.json"
    graphopt("solve", "RewriteOrder-v0", "-g", program, "-m", "original", "-o", out)
    out.write_text(out.read_text().replace("relu(", "tanh(", 1))
    status, said, _ = graphopt("validate", out)
    assert status == 1
    assert "output 0 differs by" in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("return relu(", "bad.txt: line 1, column 12: '(' was never closed"),
        ("return rely(1)", "unknown operator 'rely'; did you mean 'relu'?"),
        (
            'x = input(name="x", shape=(2, 3))\nreturn matmul(x, x)',
            "line 2, column 8: matmul",
        ),
    ],
)
def test_solve__refuses_a_bad_program_in_one_line(graphopt, tmp_path, text, message):
    path = tmp_path / "bad.txt"
    path.write_text(text)
    status, _, error = graphopt("solve", "RewriteOrder-v0", "-g", path, "-m", "taso")
    assert status == 2
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-m", "tasso"), "did you mean 'taso'?"),
        (("-m", "taso", "-b", "0"), "budget is 0"),
        (("-m", "taso", "-c", "v100x4"), "has 4 devices"),
        (("-m", "taso", "--set", "cost=sums"), "did you mean 'sum'?"),
        (("-m", "taso", "--set", "rules=[]"), "rules is an empty list"),
        (("-m", "exhaustive", "-g", "squeezenet"), "at most 24 operators"),
    ],
)
def test_solve__refuses_bad_arguments_in_one_line(graphopt, arguments, message):
    status, _, error = graphopt("solve", "RewriteOrder-v0", *arguments)
    assert status == 2
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-m", "saturation", "--option", "node_limit=0"), "node_limit is 0"),
        (("-m", "saturation", "--option", "iteration_limit=0"), "iteration_limit is 0"),
        (("-m", "saturation", "--option", "memory_bytes=0"), "memory_bytes is 0"),
        (("-m", "saturation", "--option", "k_multi=-1"), "k_multi is -1"),
        (("-m", "saturation", "--option", "cycles=filtered"), "did you mean 'filter'?"),
        (("-m", "saturation", "--option", "nodes_limit=5"), "did you mean 'node_limit'?"),
        (("-m", "saturation", "--seconds", "0"), "seconds is 0"),
        (("-m", "taso", "--set", 'rules=["fused activations"]'), "did you mean 'fused activation'?"),
        (("-m", "taso", "--set", "rules=5"), "rules is 5"),
        (("-m", "taso", "--set", "cluster=5"), "cluster is 5"),
        (("-m", "taso", "--set", "dims=5"), "dims is 5"),
        (("-m", "taso", "--set", 'dims={"batch": 1}'), "program 'small_fire' has none"),
        (("-m", "taso", "-o", "/"), "it is a folder"),
    ],
)
def test_solve__refuses_limits_and_names_in_one_line(graphopt, arguments, message):
    refused(graphopt("solve", "RewriteOrder-v0", "-g", "small_fire", *arguments), message)


def refused(answer, *messages):
    status, _, error = answer
    assert status == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    for message in messages:
        assert message in error


@pytest.mark.parametrize("ending", [".txt", ".onnx"])
@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), ("folder", "is a folder"), (b"", ""), (b"\xff\xfe\x00garbage", ""), (b"\x08\x07", "")],
)
def test_solve__refuses_files_that_are_no_programs(graphopt, tmp_path, ending, content, message):
    if ending == ".onnx":
        pytest.importorskip("onnx")
    path = tmp_path / f"bad{ending}"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    refused(graphopt("solve", "RewriteOrder-v0", "-g", path, "-m", "original"), path.name, message)


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ('x = input(name="x", shape=(2, 3))\nreturn matmul(x, x)', ("line 2, column 8: matmul", "(2, 3) and (2, 3)")),
        ('x = input(name="x", shape=(1, 3, 8, 8))\ny = conv2d(x, weight(name="w", shape=(4, 5, 3, 3)))\nreturn y',
         ("line 2, column 5: conv2d", "(1, 3, 8, 8) and (4, 5, 3, 3)")),
        ('x = input(name="x", shape=(2, -3))\nreturn x', ("line 1, column 5", "sizes must be positive")),
        ('x = input(name="x", shape=(2, 3.5))\nreturn x', ("line 1, column 5", "(2, 3.5)")),
        ('x = input(name="x", shape=(2, 3))\nreturn ()', ("line 2, column 1", "returns nothing")),
        ('x = input(name="x", shape=(2, 3))', ("line 2, column 1", "no `return ...`")),
        ('x = input(name="x", shape=(2, 3))\nreturn relu(y)', ("line 2, column 13", "unknown name 'y'")),
        ('x = input(name="x", shape=(2, 3))\nx = relu(x)\nreturn x', ("line 2, column 1", "second time")),
        ("import os\nreturn os", ("line 1, column 1",)),
        ("return " + "relu(" * 3000 + "x" + ")" * 3000, ("line 1",)),
    ],
)  # fmt: skip
def test_solve__says_where_a_text_is_wrong(graphopt, tmp_path, text, messages):
    path = tmp_path / "bad.txt"
    path.write_text(text)
    refused(graphopt("solve", "RewriteOrder-v0", "-g", path, "-m", "original"), "bad.txt", *messages)


def onnx_file(path, nodes, shape=(2, 3), opset=17, kind="FLOAT", weights=None, **saving):
    """An ONNX file with one input ``x`` and one output ``y``; nodes as (operator, inputs, outputs, attributes)."""
    onnx = pytest.importorskip("onnx")
    make = onnx.helper
    types = onnx.TensorProto
    graph = make.make_graph(
        [make.make_node(op, inputs.split(), outputs.split(), **more) for op, inputs, outputs, more in nodes],
        "graph",
        [make.make_tensor_value_info("x", getattr(types, kind), shape)],
        [make.make_tensor_value_info("y", types.FLOAT, None)],
        [onnx.numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", opset)], ir_version=9)
    onnx.save(model, path, **saving)
    return path


RELU = [("Relu", "x", "y", {})]


@pytest.mark.parametrize(
    ("given", "messages"),
    [
        ({"nodes": [("Erf", "x", "a", {}), ("LSTM", "a a a", "y", {})]}, ("onnxruntime: ", "LSTM", "rank 3")),
        ({"nodes": RELU, "opset": 99}, ("onnxruntime: ", "Opset 99")),
        ({"nodes": RELU, "shape": ("batch", 3)}, ("x[batch, 3]", "dims={'batch': …}")),
        ({"nodes": RELU, "kind": "INT64"}, ("onnxruntime: ", "Type Error")),
        ({"nodes": [("MatMul", "x w", "y", {})], "weights": {"w": np.zeros((4, 5), np.float32)}},
         ("onnxruntime: ", "MatMul", "Incompatible dimensions")),
        ({"nodes": [("Add", "x w", "y", {})], "weights": {"w": np.zeros(3, np.int64)}},
         ("onnxruntime: ", "Type parameter (T)")),
        ({"nodes": [("Gemm", "x w", "y", {})], "shape": (2, 2, 3), "weights": {"w": np.zeros((3, 5), np.float32)}},
         ("onnxruntime: ", "Gemm", "rank 2")),
        ({"nodes": [("Transpose", "x", "y", {"perm": [0, 5]})]}, ("onnxruntime: ", "Transpose", "perm")),
    ],
)  # fmt: skip
def test_solve__refuses_an_onnx_file_in_one_line(graphopt, tmp_path, given, messages):
    path = onnx_file(tmp_path / "bad.onnx", **given)
    refused(graphopt("solve", "RewriteOrder-v0", "-g", path, "-m", "original"), "bad.onnx", *messages)


def test_solve__an_onnx_file_with_symbolic_sizes_takes_them(graphopt, tmp_path):
    path = onnx_file(tmp_path / "open.onnx", RELU, shape=("batch", 3))
    solve = ("solve", "RewriteOrder-v0", "-g", path, "-m", "original", "--set")
    out = tmp_path / "x.json"
    assert graphopt(*solve, 'dims={"batch": 4}', "-o", out)[0] == 0
    assert "shape=(4, 3)" in json.loads(out.read_text())["decision"]
    assert graphopt("validate", out)[0] == 0
    assert graphopt("export", out, "-o", tmp_path / "back.onnx")[0] == 0
    for taken in (path, out):  # what it reads would be lost
        before = taken.read_bytes()
        refused(graphopt("export", out, "-o", taken), "it is the input")
        assert taken.read_bytes() == before
    refused(graphopt(*solve, 'dims={"bach": 4}'), "did you mean 'batch'?")
    refused(graphopt(*solve, 'dims={"batch": 0}'), "'batch' is 0")


def test_solve__an_onnx_file_with_weights_beside_it(graphopt, tmp_path):
    weights = {"w": np.arange(15, dtype=np.float32).reshape(3, 5)}
    path = onnx_file(
        tmp_path / "big.onnx",
        [("MatMul", "x w", "y", {})],
        weights=weights,
        save_as_external_data=True,
        location="big.bin",
        size_threshold=0,
    )
    solve = ("solve", "RewriteOrder-v0", "-g", path, "-m", "original")
    assert graphopt(*solve)[0] == 0
    beside = tmp_path / "big.bin"
    beside.write_bytes(beside.read_bytes()[:20])
    refused(graphopt(*solve), "big.onnx", "weights cannot be read")
    beside.unlink()
    refused(graphopt(*solve), "big.onnx", "weights cannot be read")


def test_solve__a_program_too_large_to_execute_is_not_called_equal(graphopt, tmp_path):
    path = tmp_path / "huge.txt"
    text = 'x = input(name="x", shape=(N, N))\nw = weight(name="w", shape=(N, N))\nreturn relu(matmul(x, w))'
    path.write_text(text.replace("N", "900000"))
    solve = ("solve", "RewriteOrder-v0", "-g", path, "-m", "greedy")
    status, said, _ = graphopt(*solve)
    assert status == 1
    assert "too large to be executed here" in said
    path.write_text(text.replace("N", "9000000"))
    refused(graphopt(*solve), "too large", "2^63")


@pytest.mark.parametrize("command", ["report", "validate", "measure", "export"])
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("return ", "retrun ", "line"),
        ("relu(", "rely(", "did you mean 'relu'?"),
        ('"cluster": "t4"', '"cluster": "t5"', "unknown device 't5'"),
        ('"cost": "sum"', '"cost": "sums"', "did you mean 'sum'?"),
    ],
)
def test_commands__refuse_a_damaged_solution(graphopt, tmp_path, program, command, old, new, message):
    out = tmp_path / "x.json"
    graphopt("solve", "RewriteOrder-v0", "-g", program, "-m", "original", "-o", out)
    text = out.read_text()
    assert old in text
    out.write_text(text.replace(old, new))
    status, said, error = graphopt(command, out)
    assert status in (1, 2)  # validate tells a wrong decision as a failed check
    assert "Traceback" not in error
    assert message in said + error
