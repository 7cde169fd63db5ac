"""Measuring programs on the CPU, and writing those of solutions as files."""

from __future__ import annotations

import json

import numpy as np
import pytest

from graphopt_gym.envs.rewrite.measure import TOLERANCE, correlation, measure, speedup_of
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.tensor_program import ProgramBuilder, parse_program, program_text
from tests.envs.rewrite.programs import inception

pytest.importorskip("torch")


def chain(length, size=192, act="relu"):
    builder = ProgramBuilder("chain")
    x = builder.input("x", (size, size))
    for _ in range(length):
        x = builder.op("matmul", x, builder.weight("w", (size, size)), act=act)
    return builder.finish([x])


@pytest.mark.parametrize("clock", ["wall", "cpu"])
def test_measure__twice_the_work_takes_about_twice_the_time(clock):
    half = parse_program(program_text(chain(4)).replace("v5 = matmul(v4, v1, act=relu)\nreturn v5", "return v4"))
    # the same outputs' shapes and leaves, half the products: the times must tell, and so must the outputs
    found = measure(chain(8), half, runs=30, seconds=5, clock=clock)
    assert found.low <= found.speedup <= found.high
    assert found.low > 1.2
    assert not found.same_outputs
    assert found.original.low_s <= found.original.median_s <= found.original.high_s
    assert found.runs == 30


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_measure__a_program_and_itself_give_the_same_and_threads_are_restored(dtype):
    import torch

    before = torch.get_num_threads()
    program = inception()
    found = measure(program, program, runs=3, dtype=dtype, threads=before + 1)
    assert found.same_outputs
    assert found.difference == 0
    assert torch.get_num_threads() == before


def test_measure__tells_apart_what_differs_by_more_than_rounding():
    text = program_text(chain(2))
    assert not measure(parse_program(text), parse_program(text.replace("act=relu", "act=tanh", 1)), runs=3).same_outputs
    leaves = "\n".join(f'{name} = input(name="{name}", shape=(64,))' for name in "xyz")
    sums = [parse_program(f"{leaves}\nreturn {text}") for text in ("add(add(x, y), z)", "add(x, add(y, z))")]
    found = measure(*sums, runs=3)
    assert found.difference > 0
    assert found.difference <= TOLERANCE["float32"]
    assert found.same_outputs


def test_speedup_of__the_interval_holds_the_ratio_and_shrinks_with_runs():
    rng = np.random.default_rng(0)
    widths = []
    for runs in (10, 1000):
        pairs = rng.lognormal(0, 0.3, (runs, 2)) * [2.0, 1.0]
        ratio, low, high = speedup_of(pairs)
        assert low <= ratio <= high
        assert low < 2 < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 3


def test_correlation__of_ranks():
    assert correlation([1, 2, 3, 4, 5], [1, 4, 9, 16, 25]) == pytest.approx(1)
    assert correlation([1, 2, 3, 4, 5], [5, 4, 3, 2, 1]) == pytest.approx(-1)
    assert correlation([1, 2], [1, 2]) is None
    assert correlation([1] * 5, [1, 2, 3, 4, 5]) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"runs": 0}, "runs is 0"),
        ({"seconds": 0}, "seconds is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"dtype": "float16"}, "dtype 'float16'"),
        ({"clock": "sun"}, "clock 'sun'"),
    ],
)
def test_measure__refuses_bad_limits(arguments, message):
    with pytest.raises(InputError, match=message):
        measure(chain(1), chain(1), **arguments)


def test_measure__refuses_programs_with_other_leaves_or_outputs():
    with pytest.raises(InputError, match="'x' of the rewritten program has shape"):
        measure(chain(1), chain(1, size=8))
    text = program_text(chain(1))
    with pytest.raises(InputError, match="outputs have shapes"):
        measure(parse_program(text), parse_program(text.replace("return v2", "return v2, v2")))


def test_measure__refuses_operators_of_a_file():
    program = parse_program('return opaque(input(name="x", shape=(2,)), kind="LSTM", name="l", shape=(2,))')
    with pytest.raises(InputError, match=r"does not run, such as LSTM \('l'\); export it"):
        measure(program, program)


@pytest.fixture
def solution(graphopt, tmp_path):
    path, out = tmp_path / "inception.txt", tmp_path / "x.json"
    path.write_text(program_text(inception()))
    graphopt("solve", "RewriteOrder-v0", "-g", path, "-m", "taso", "-b", 100, "-o", out)
    return out


def test_measure_command__simulated_beside_measured(graphopt, tmp_path, solution):
    status, said, _ = graphopt("measure", solution, "--runs", 3, "--json")
    assert status == 0
    (row,) = json.loads(said)["rows"]
    stored = json.loads(solution.read_text())
    assert row["rewritten_s"] == stored["cost"]
    assert row["cpu_original_s"] > 0
    assert row["low_percent"] <= row["cpu_saved_percent"] <= row["high_percent"]
    (tmp_path / "other.json").write_text("{}")
    status, said, error = graphopt("measure", tmp_path, "--runs", 3)
    assert status == 0
    assert "this machine's CPU" in said
    assert "left out" in error


def test_measure_command__other_outputs_are_an_exit_status_of_1(graphopt, solution):
    solution.write_text(solution.read_text().replace("relu(", "tanh(", 1))
    assert graphopt("measure", solution, "--runs", 3)[0] == 1


def test_export_command__writes_onnx_with_the_weights_it_came_with(graphopt, tmp_path):
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    from graphopt_gym.graphs.tensor_program import random_values
    from graphopt_gym.graphs.tensor_program.onnx_io import write_onnx

    given, out, back = tmp_path / "given.onnx", tmp_path / "x.json", tmp_path / "back.onnx"
    write_onnx(inception(), given, random_values(inception(), seed=7, dtype="float32"))
    graphopt("solve", "RewriteOrder-v0", "-g", given, "-m", "taso", "-b", 100, "-o", out)
    status, said, _ = graphopt("export", out, "-o", back)
    assert status == 0
    assert f"weights: of {given}" in said
    onnx.checker.check_model(onnx.load(back), full_check=True)
    sessions = [ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]) for path in (given, back)]
    inputs = random_values(inception(), seed=3, dtype="float32")
    named = {one.name: inputs[one.name] for one in sessions[0].get_inputs()}
    for before, after in zip(*(session.run(None, named) for session in sessions), strict=True):
        np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())
    names = [[[one.name for one in some] for some in (s.get_inputs(), s.get_outputs())] for s in sessions]
    assert names[0] == names[1]


def test_export_command__what_programs_do_not_know_is_stepped_around(graphopt, tmp_path):
    pytest.importorskip("onnxruntime")
    import gymnasium as gym

    from tests.graphs.onnx_files import make_model, node

    def f(*shape):
        return np.random.default_rng(0).standard_normal(shape).astype(np.float32)

    nodes = [
        node("MatMul", ["x", "a"], "p"), node("MatMul", ["x", "b"], "q"), node("Mish", ["p"], "m"),
        node("Transpose", ["q"], "t", perm=[1, 0]), node("Transpose", ["t"], "u", perm=[1, 0]),
        node("Add", ["m", "u"], "y"),
    ]  # fmt: skip
    model = make_model(nodes, {"x": ("batch", 64)}, {"y": ("batch", 64)}, {"a": f(64, 64), "b": f(64, 64)})
    given, out = tmp_path / "given.onnx", tmp_path / "x.json"
    given.write_bytes(model.SerializeToString())
    env = gym.make("RewriteOrder-v0", graph=f"{given}@batch=2")
    observation, info = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert info["matches"] > 0
    graphopt("solve", "RewriteOrder-v0", "-g", given, "--dims", "batch=2", "-m", "taso", "-b", 100, "-o", out)
    assert "Mish" in json.loads(out.read_text())["decision"]
    assert graphopt("validate", out)[0] == 0
    status, said, _ = graphopt("export", out, "-o", tmp_path / "back.onnx", "--json")
    assert status == 0
    assert json.loads(said)["same_outputs_at"] == "batch=2; batch=4"
    import onnx

    kinds = [one.op_type for one in onnx.load(tmp_path / "back.onnx").graph.node]
    assert "Transpose" not in kinds
    assert kinds.count("Mish") == 1
    status, said, error = graphopt("measure", out, "--runs", 3, "--seconds", 1, "--json")
    assert status == 0, error
    executors = [row["executor"] for row in json.loads(said)["rows"] if "after" not in row["executor"]]
    assert executors == [f"onnxruntime, {level}" for level in ("none", "basic", "extended", "all")]  # torch has no Mish


def test_export_command__writes_text(graphopt, tmp_path, solution):
    out = tmp_path / "y.txt"
    assert graphopt("export", solution, "-o", out)[0] == 0
    stored = json.loads(solution.read_text())
    assert parse_program(out.read_text()) == parse_program(stored["decision"])


@pytest.mark.parametrize("command", ["measure", "export"])
def test_commands__refuse_what_is_no_solution_of_a_program(graphopt, tmp_path, command):
    for name, content in (("a.json", ""), ("b.json", "{}"), ("c.json", "[1")):
        (tmp_path / name).write_text(content)
        status, _, error = graphopt(command, tmp_path / name)
        assert status == 2
        assert error.count("\n") == 1
    out = tmp_path / "p.json"
    graphopt("solve", "Placement-v0", "-g", "bert_base", "-m", "single", "-o", out)
    status, _, error = graphopt(command, out)
    assert status == 2
    assert "is a solution of Placement-v0" in error
