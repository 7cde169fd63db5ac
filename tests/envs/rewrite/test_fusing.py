"""What is priced on a processor as onnxruntime runs it: the same operators stand alone in its own optimised graphs."""

import math

import numpy as np
import pytest

from graphopt_gym.envs.rewrite import fusing
from graphopt_gym.envs.rewrite.problem import RewriteProblem
from graphopt_gym.envs.rewrite.saturation.explore import saturate
from graphopt_gym.envs.rewrite.saturation.extraction import extract_greedy, extract_ilp
from graphopt_gym.graphs.tensor_program import parse_program, random_values
from tests.envs.rewrite.programs import all_programs

IMAGE = 'x = input(name="x", shape=(1, 16, 8, 8))\nw = weight(name="w", shape=(16, 16, 3, 3))\n'
BIAS = 'b = weight(name="b", shape=(16, 1, 1))\n'
ROWS = 'x = input(name="x", shape=(4, 8))\nw = weight(name="w", shape=(8, 8))\n'
HEADS = 'q = input(name="q", shape=(2, 4, 8))\nk = input(name="k", shape=(2, 4, 8))\ns = weight(name="s", shape=())\n'
CASES = {  # text, operators that stand alone
    "bias and activation": (IMAGE + BIAS + "return relu(add(conv2d(x, w), b))", ["conv2d"]),
    "a normalisation goes into the weight": (IMAGE + BIAS + "return relu(add(mul(conv2d(x, w), b), b))", ["conv2d"]),
    "a sum, then an activation": (
        IMAGE + BIAS + "y = maxpool(x, kernel=(3, 3))\nreturn relu(add(y, add(conv2d(y, w), b)))", ["conv2d", "maxpool"]
    ),
    "what two read stays": (IMAGE + "c = conv2d(x, w)\nreturn relu(c), tanh(c)", ["conv2d", "relu", "tanh"]),
    "an output stays": (IMAGE + "c = conv2d(x, w)\nreturn relu(c), c", ["conv2d", "relu"]),
    "a product with its bias": (ROWS + 'return add(matmul(x, w), weight(name="b", shape=(8,)))', ["matmul"]),
    "a product, bias and activation": (
        ROWS + 'return relu(add(matmul(x, w), weight(name="b", shape=(8,))))', ["matmul"]
    ),
    "a transposed operand and a scale": (
        HEADS + "return softmax(smul(matmul(q, transpose(k, perm=(0, 2, 1))), s))", ["matmul", "softmax"]
    ),
    "a scale before": (HEADS + "return softmax(matmul(smul(q, s), transpose(k, perm=(0, 2, 1))))",
                       ["matmul", "softmax"]),
    "normalised after a sum": (
        'x = input(name="x", shape=(2, 4, 8))\ng = weight(name="g", shape=(8,))\n'
        "return layernorm(add(tanh(x), sigmoid(x)), g, g)",
        ["layernorm", "sigmoid", "tanh"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_absorbed__is_what_onnxruntime_fuses(name, tmp_path):
    text, alone = CASES[name]
    program = parse_program(text)
    computed = [node for node in program.order if not program.is_static(node) and program.nodes[node].inputs]
    left = [node for node in computed if not fusing.is_absorbed(program, node)]
    assert sorted(program.nodes[node].op for node in left) == alone
    costs = RewriteProblem(program, "cpu").original.node_costs
    assert set(costs) == set(left)
    assert all(seconds > 0 for seconds in costs.values())
    assert kernels(program, tmp_path) == len(alone)


def test_absorbed__a_batch_normalisation_of_a_file_is_one_kernel_with_its_activation(tmp_path):
    pytest.importorskip("onnx")
    from graphopt_gym.graphs.tensor_program.onnx_read import load_onnx
    from tests.graphs.onnx_files import make_model, node

    rng = np.random.default_rng(0)
    values = {name: rng.uniform(0.5, 1.5, 16).astype(np.float32) for name in "sbmv"}
    nodes = [
        node("MaxPool", ["x"], "p", kernel_shape=[3, 3]), node("BatchNormalization", ["p", *"sbmv"], "n"),
        node("Relu", ["n"], "r"), node("Conv", ["r", "w"], "y"),
    ]  # fmt: skip
    weights = values | {"w": rng.standard_normal((16, 16, 3, 3)).astype(np.float32)}
    model = make_model(nodes, {"x": (1, 16, 8, 8)}, {"y": (1, 16, 4, 4)}, weights)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    program = load_onnx(tmp_path / "m.onnx").program
    costs = RewriteProblem(program, "cpu").original.node_costs
    assert sorted(program.nodes[one].op for one in costs) == ["conv2d", "maxpool", "mul"]
    assert kernels_of(model, tmp_path) == 3


def kernels(program, tmp_path) -> int:
    """Operators of a program after all of onnxruntime's optimisations."""
    pytest.importorskip("onnx")
    from graphopt_gym.graphs.tensor_program.onnx_io import to_onnx

    return kernels_of(to_onnx(program, random_values(program, dtype="float32")), tmp_path)


def kernels_of(model, tmp_path) -> int:
    """Changes of layout and shape left out."""
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "o.onnx"), 4
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    beside = ("ReorderInput", "ReorderOutput", "Reshape", "Identity")
    return sum(one.op_type not in beside for one in onnx.load(tmp_path / "o.onnx").graph.node)


def test_parts__are_copies__and_images_are_moved_thrice():
    rows = RewriteProblem(parse_program(ROWS + "h = relu(matmul(x, w))\nreturn split0(h, axis=0, at=1)"), "cpu")
    ops = {rows.program.nodes[node].op for node in rows.original.node_costs}
    assert "split0" in ops
    assert fusing.copied("split0", (1, 4), (1, 4, 8, 8)) == 3
    assert fusing.copied("reshape", ((4,),), (4,)) == 0


def test_as_run__a_product_with_one_matrix_is_one_of_two_matrices():
    text = 'x = input(name="x", shape=({}, 8))\nreturn matmul(x, weight(name="w", shape=(8, 8)))'
    whole, parts = (RewriteProblem(parse_program(text.format(shape)), "cpu") for shape in ("64", "4, 4, 4"))
    assert whole.original_s == parts.original_s


@pytest.mark.parametrize("program", all_programs(), ids=lambda program: program.name)
def test_update__prices_what_an_edit_changed_as_all_anew(program):
    problem = RewriteProblem(program, "cpu", rules="all")
    state, rng = problem.original, np.random.default_rng(0)
    for _ in range(60):
        state = problem.neighbour(state, rng)
        anew = problem.program_costs.node_costs(state.program)
        assert dict(state.node_costs) == anew
        assert state.cost == math.fsum(anew.values())


@pytest.mark.parametrize("program", all_programs(), ids=lambda program: program.name)
def test_extraction__its_bound_holds_for_programs_with_fused_operators(program):
    problem = RewriteProblem(program, "cpu", rules=["production", "parts", "fused activation"])
    explored = saturate(program, problem.matcher.rules, problem.program_costs, node_limit=2000)
    greedy, best = extract_greedy(explored), extract_ilp(explored, seconds=2)
    assert best.bound <= best.cost * (1 + 1e-6)
    assert min(greedy.cost, best.cost) <= problem.original_s
    rng = np.random.default_rng(0)
    state = problem.original
    for _ in range(20):
        state = problem.neighbour(state, rng)
        if explored.stopped_by == "saturated":
            assert best.bound <= state.cost * (1 + 1e-6)
