"""ONNX files: written programs run elsewhere with the same outputs; read back; what is not supported is listed."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from graphopt_gym.errors import InputError  # noqa: E402
from graphopt_gym.graphs.tensor_program import TensorProgram, execute, parse_program, random_values  # noqa: E402
from graphopt_gym.graphs.tensor_program.onnx_io import read_onnx, to_onnx, write_onnx  # noqa: E402
from tests.graphs.tensor_programs import EVERY_OP, TEXTS  # noqa: E402


def run_elsewhere(model, program, values) -> list[np.ndarray]:
    """By onnxruntime where it is installed, else by onnx's reference evaluator."""
    feeds = {name: values[name].astype(np.float32) for name in program.leaves("input")}
    try:
        import onnxruntime
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        return ReferenceEvaluator(model).run(None, feeds)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def assert_same(program: TensorProgram, values, results) -> None:
    expected = execute(program, values)
    for mine, other in zip(expected, results, strict=True):
        np.testing.assert_allclose(other, mine, rtol=0, atol=1e-5 * max(1, np.abs(mine).max()))


KNOWN = {"every op": EVERY_OP} | {name: text for name, text in TEXTS.items() if name != "opaque"}


@pytest.mark.parametrize("text", KNOWN.values(), ids=KNOWN)
def test_to_onnx__runs_with_the_same_outputs_and_reads_back(text, tmp_path):
    program = parse_program(text)
    values = random_values(program, seed=3)
    model = to_onnx(program, values)
    assert_same(program, values, run_elsewhere(model, program, values))
    write_onnx(program, tmp_path / "p.onnx", values)
    again, weights = read_onnx(tmp_path / "p.onnx")
    results = execute(again, {name: values[name] for name in again.leaves("input")} | weights)
    assert_same(program, values, results)


def save(path, nodes, inputs, output_shape, initializers=(), opset=20):
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [info(name, onnx.TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [info("out", onnx.TensorProto.FLOAT, output_shape)],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in dict(initializers).items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=9)
    onnx.save(model, path)
    return model


def node(kind, inputs, output, **attributes):
    return onnx.helper.make_node(kind, inputs, [output] if isinstance(output, str) else output, **attributes)


def test_read_onnx__of_a_foreign_file_gives_the_same_outputs(tmp_path):
    rng = np.random.default_rng(0)

    def f(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    weights = {
        "w": f(4, 3, 3, 3),
        "b": f(4),
        "scale": f(4),
        "shift": f(4),
        "mean": f(4),
        "var": np.abs(f(4)) + 1,
        "fc": f(5, 4),
        "fb": f(5),
        "two": np.float32(2),
        "axes": np.array([0]),
        "sizes": np.array([2, 3]),
    }
    nodes = [
        node("Conv", ["x", "w", "b"], "c", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], "n"),
        node("Relu", ["n"], "r"),
        node("AveragePool", ["r"], "a", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
        node("GlobalAveragePool", ["a"], "g"),
        node("Flatten", ["g"], "f"),
        node("Gemm", ["f", "fc", "fb"], "m", transB=1, alpha=0.5, beta=2.0),
        node("Div", ["m", "two"], "d"),
        node("Split", ["d", "sizes"], ["s", "t"], axis=1),
        node("Concat", ["t", "s"], "k", axis=1),
        node("Unsqueeze", ["k", "axes"], "u"),
        node("Dropout", ["u"], "p"),
        node("Softmax", ["p"], "out"),
    ]
    model = save(tmp_path / "m.onnx", nodes, {"x": (1, 3, 8, 8)}, (1, 1, 5), weights)
    program, values = read_onnx(tmp_path / "m.onnx")
    values["x"] = f(1, 3, 8, 8)
    assert_same(program, values, run_elsewhere(model, program, values))
    assert program.name == "m"


def test_to_onnx__refuses_a_missing_value():
    program = parse_program('return relu(weight(name="w", shape=(2,)))')
    with pytest.raises(InputError, match=r"weight 'w' needs a value of shape \(2,\)"):
        to_onnx(program, {})


def test_to_onnx__refuses_what_it_does_not_know():
    with pytest.raises(InputError, match=r"operator 'LSTM' \('n'\) is one of an ONNX file; export it from that file"):
        to_onnx(parse_program(TEXTS["opaque"]))
