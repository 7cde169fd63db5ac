"""Reading ONNX files as programs: what the language knows is translated, all else is opaque; any file is taken."""

import os

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from graphopt_gym.errors import InputError  # noqa: E402
from graphopt_gym.graphs.tensor_program import parse_program, program_text, to_computation_graph  # noqa: E402
from graphopt_gym.graphs.tensor_program.onnx_read import load_onnx  # noqa: E402
from tests.graphs.onnx_files import (  # noqa: E402
    BFLOAT,
    BOOL,
    DOUBLE,
    HALF,
    INT64,
    assert_translated,
    info,
    make_model,
    node,
)

rng = np.random.default_rng(0)


def f(*shape, dtype=np.float32):
    return rng.standard_normal(shape).astype(dtype)


def load(tmp_path, model, **options):
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return load_onnx(path, **options)


def kinds(loaded) -> list[str]:
    """Of the opaque operators, in order."""
    nodes = (loaded.program.nodes[index] for index in loaded.program.order)
    return [one.params[0] for one in nodes if one.op == "opaque"]


def ints(*values):
    return np.array(values, np.int64)


IMAGE = {"x": (1, 4, 6, 6)}
THEN, ELSE = (
    onnx.helper.make_graph([node(kind, ["h"], name)], name, [], [info(name, (2, 3))])
    for kind, name in (("Relu", "then"), ("Neg", "else"))
)
BODY = onnx.helper.make_graph(
    [node("Add", ["a", "h"], "b"), node("Identity", ["go"], "went")],
    "body",
    [info("i", (), INT64), info("go", (), BOOL), info("a", (2, 3))],
    [info("went", (), BOOL), info("b", (2, 3))],
)
CASES = {  # nodes, inputs, outputs, weights, opset, opaque kinds, translated
    "rank raised by a divisor": (
        [node("Div", ["x", "c"], "d"), node("Concat", ["d", "d"], "y", axis=0)],
        {"x": (2, 3)}, {"y": (2, 2, 3)}, {"c": np.full((1, 1, 1), 3, np.float32)}, 20, [], 2,
    ),
    "rank raised by factors and terms": (
        [node("Mul", ["x", "c"], "m"), node("Add", ["c", "m"], "a"), node("Sub", ["a", "s"], "b"),
         node("Sum", ["b", "x", "s"], "y")],
        {"x": (2, 3)}, {"y": (1, 1, 2, 3)}, {"c": f(1, 1, 1), "s": f(1, 1, 2, 3)}, 20, [], 4,
    ),
    "forms of opset 7": (
        [node("Unsqueeze", ["x"], "u", axes=[0]), node("Slice", ["u"], "s", axes=[2], starts=[1], ends=[3]),
         node("Split", ["s"], ["p", "q"], axis=1, split=[1, 1]), node("Squeeze", ["q"], "z", axes=[0]),
         node("Softmax", ["z"], "y"), node("Softmax", ["s"], "w"), node("ReduceMean", ["x"], "r", axes=[1])],
        {"x": (2, 3)}, {"y": (1, 2), "p": (1, 1, 2), "w": (1, 2, 2), "r": (2, 1)}, {}, 7, ["Softmax"], 7,
    ),
    "one-dimensional products": (
        [node("MatMul", ["x", "w"], "m"), node("MatMul", ["m", "v"], "y"), node("MatMul", ["v", "v"], "z")],
        {"x": (2, 5, 3)}, {"y": (2,), "z": ()}, {"w": f(3), "v": f(5)}, 20, [], 2,
    ),
    "constants by shape": (
        [node("Shape", ["x"], "s"), node("Gather", ["s", "zero"], "n"), node("Concat", ["n", "rest"], "t", axis=0),
         node("Reshape", ["x", "t"], "y"), node("ConstantOfShape", ["s"], "o"), node("Add", ["x", "o"], "z")],
        {"x": (2, 3, 4)}, {"y": (2, 12), "z": (2, 3, 4)}, {"zero": ints(0), "rest": ints(-1)}, 20, [], 2,
    ),
    "slices and gathers": (
        [node("Gather", ["x", "one"], "g", axis=-1), node("Gather", ["x", "run"], "r", axis=1),
         node("Gather", ["x", "mixed"], "m", axis=1), node("Slice", ["x", "b", "e", "a", "two"], "s")],
        {"x": (2, 4)}, {"g": (2,), "r": (2, 2), "m": (2, 2), "s": (2, 2)},
        {"one": np.int64(-1), "run": ints(1, 2), "mixed": ints(3, 1), "b": ints(0), "e": ints(4), "a": ints(1),
         "two": ints(2)}, 20, ["Gather", "Slice"], 2,
    ),
    "image operators": (
        [node("Conv", ["x", "w", "b"], "c", pads=[1, 1, 1, 1]), node("Conv", ["c", "w"], "d", dilations=[2, 2]),
         node("Conv", ["c", "w"], "p", pads=[0, 1, 1, 0]), node("ReduceMean", ["c", "hw"], "y", keepdims=0),
         node("BatchNormalization", ["c", "b", "b", "b", "v"], "n", epsilon=0.1),
         node("AveragePool", ["n"], "z", kernel_shape=[3, 3], pads=[1, 1, 1, 1])],
        IMAGE, {"y": (1, 4), "z": (1, 4, 6, 6), "d": (1, 4, 2, 2), "p": (1, 4, 5, 5)},
        {"w": f(4, 4, 3, 3), "b": f(4), "v": np.abs(f(4)), "hw": ints(2, 3)}, 20, ["Conv", "AveragePool"], 4,
    ),
    "whole numbers and truth values": (
        [node("Gather", ["table", "ids"], "e"), node("Cast", ["mask"], "c", to=1), node("Mul", ["e", "c"], "y"),
         node("Add", ["ids", "ids"], "two"), node("Where", ["mask", "y", "c"], "z")],
        {"ids": ((2, 3), INT64), "mask": ((2, 1, 1), BOOL)},
        {"y": (2, 3, 4), "two": ((2, 3), INT64), "z": (2, 3, 4)}, {"table": f(60, 4)}, 20,
        ["Gather", "Cast", "Add", "Where"], 1,
    ),
    "several results": (
        [node("LSTM", ["x", "w", "r"], ["", "last", "cell"], hidden_size=3), node("Relu", ["last"], "h"),
         node("Add", ["h", "cell"], "y"), node("Dropout", ["y"], ["k", "gone"])],
        {"x": (5, 2, 4)}, {"k": (1, 2, 3)}, {"w": f(1, 12, 4), "r": f(1, 12, 3)}, 20, ["LSTM"], 2,
    ),
    "control flow": (
        [node("Relu", ["x"], "h"), node("ReduceSum", ["x"], "s", keepdims=0), node("Greater", ["s", "zero"], "c"),
         node("If", ["c"], "i", then_branch=THEN, else_branch=ELSE),
         node("Loop", ["three", "", "i"], "l", body=BODY), node("Tanh", ["l"], "y")],
        {"x": (2, 3)}, {"y": (2, 3)}, {"zero": np.float32(0), "three": np.int64(3)}, 20,
        ["Greater", "If", "Loop", "Tanh"], 2,
    ),
    "shapes found in data": (
        [node("Greater", ["x", "zero"], "c"), node("Compress", ["x", "c"], "k", axis=0), node("Relu", ["k"], "r"),
         node("Reshape", ["r", "flat"], "y"), node("Relu", ["x"], "z")],
        {"x": (8,)}, {"y": (None,), "z": (8,)}, {"zero": np.float32(0), "flat": ints(-1)}, 20,
        ["Greater", "Compress", "Relu", "Reshape"], 1,
    ),
    "quantised pairs": (
        [node("QuantizeLinear", ["x", "s", "z"], "q"), node("DequantizeLinear", ["q", "s", "z"], "d"),
         node("DequantizeLinear", ["wq", "s", "wz"], "w"), node("Conv", ["d", "w"], "c"), node("Relu", ["c"], "r"),
         node("QuantizeLinear", ["r", "s", "z"], "p"), node("DequantizeLinear", ["p", "s", "z"], "e"),
         node("Identity", ["e"], "o"), node("Tanh", ["o"], "y")],
        IMAGE, {"y": (1, 4, 6, 6)},
        {"s": np.float32(0.1), "z": np.uint8(128), "wz": np.int8(0),
         "wq": rng.integers(-9, 9, (4, 4, 1, 1)).astype(np.int8)}, 20,
        ["QuantizeLinear", "DequantizeLinear", "Conv", "Relu", "QuantizeLinear",
         "DequantizeLinear", "Identity"], 1,
    ),
    "sequences": (
        [node("SequenceConstruct", ["x", "x"], "s"), node("ConcatFromSequence", ["s"], "c", axis=0),
         node("Relu", ["c"], "y")],
        {"x": (2, 3)}, {"y": (4, 3)}, {}, 20, None, None,
    ),
    "elementwise functions": (
        [node("Clip", ["x", "low"], "c"), node("Pow", ["c", "three"], "p"), node("Sub", ["p", "x"], "s"),
         node("Div", ["s", "row"], "d"), node("Div", ["d", "p"], "e"), node("HardSigmoid", ["e"], "h", alpha=0.3),
         node("HardSwish", ["h"], "i"), node("LeakyRelu", ["i"], "l"), node("Erf", ["l"], "f"), node("Exp", ["f"], "g"),
         node("Sqrt", ["g"], "q"), node("Log", ["q"], "o"), node("Abs", ["o"], "a"), node("Reciprocal", ["g"], "y"),
         node("ReduceSum", ["a"], "t", keepdims=0), node("ReduceMean", ["a", "last"], "m"),
         node("Pow", ["c", "row"], "z"), node("ReduceSum", ["a", "none"], "n", noop_with_empty_axes=1)],
        {"x": (2, 3)}, {"y": (2, 3), "t": (), "m": (2, 1), "z": (2, 3), "n": (2, 3)},
        {"low": np.float32(0.5), "three": np.float32(3), "row": f(3), "last": ints(-1), "none": ints()}, 20,
        ["Pow", "ReduceSum"], 16,
    ),
    "clips of opset 6": (
        [node("Clip", ["x"], "c", min=-0.5), node("Clip", ["c"], "y", max=0.5)], {"x": (2, 3)}, {"y": (2, 3)}, {}, 9,
        [], 2,
    ),
    "layer normalisation of any epsilon": (
        [node("LayerNormalization", ["x", "s", "b"], "y", epsilon=1e-12)], {"x": (2, 3)}, {"y": (2, 3)},
        {"s": f(3), "b": f(3)}, 20, [], 1,
    ),
    "float16": ([node("Div", ["x", "c"], "d"), node("Gemm", ["d", "w"], "y", alpha=0.5)],
                {"x": ((2, 3), HALF)}, {"y": ((2, 2), HALF)},
                {"c": np.float16(3), "w": f(3, 2, dtype=np.float16)}, 20, [], 2),
    "numbers at the ends": (
        [node("Div", ["x", "tiny"], "a"), node("Div", ["x", "huge"], "b"), node("Mul", ["x", "huge"], "y")],
        {"x": ((2,), DOUBLE)}, {"a": ((2,), DOUBLE), "b": ((2,), DOUBLE), "y": ((2,), DOUBLE)},
        {"tiny": np.float64(1e-310), "huge": np.float64(1e200)}, 20, ["Div"], 2,
    ),
    "an empty input, one that is not used": (
        [node("Concat", ["past", "x"], "k", axis=0), node("Tanh", ["x"], "y")],
        {"past": (0, 3), "x": (2, 3), "unused": ((4,), INT64)}, {"k": (2, 3), "y": (2, 3)}, {}, 20,
        ["Input", "Concat"], 1,
    ),
    "onnxruntime's own": (
        [node("Gelu", ["x"], "g", domain="com.microsoft"), node("MatMul", ["g", "w"], "y")],
        {"x": (2, 3)}, {"y": (2, 3)}, {"w": f(3, 3)}, 20, ["com.microsoft.Gelu"], 1,
    ),
    "random numbers": (
        [node("RandomNormal", [], "r", shape=[2, 3]), node("Add", ["x", "r"], "y")],
        {"x": (2, 3)}, {"y": (2, 3)}, {}, 20, ["RandomNormal"], 1,
    ),
    "outputs that are constants and inputs": (
        [node("Shape", ["x"], "s"), node("Identity", ["w"], "c"), node("Relu", ["x"], "y")],
        {"x": (2, 3)}, {"s": ((2,), INT64), "c": (3,), "y": (2, 3), "x": (2, 3)}, {"w": f(3)}, 20, ["Constant"], 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_load_onnx__translates_what_it_knows_and_passes_the_rest_through(name, tmp_path):
    nodes, inputs, outputs, weights, opset, opaque, translated = CASES[name]
    domains = ("com.microsoft",) if name == "onnxruntime's own" else ()
    loaded = load(tmp_path, make_model(nodes, inputs, outputs, weights, opset, domains))
    if opaque is not None:
        assert sorted(kinds(loaded)) == sorted(opaque)
        assert assert_translated(loaded) == translated
    program = loaded.program
    assert parse_program(program_text(program)) == program
    to_computation_graph(program)
    for name, shape, index in zip(outputs, outputs.values(), program.outputs, strict=True):
        expected = shape[0] if shape and isinstance(shape[0], tuple) else shape
        if None not in expected:
            assert program.shape(index) == expected, name


def test_load_onnx__bfloat16_is_read_where_this_machine_cannot_run_it(tmp_path):
    weight = onnx.helper.make_tensor("w", BFLOAT, (3, 3), f(9).tolist())
    model = make_model(
        [node("MatMul", ["x", "w"], "y")], {"x": ((2, 3), BFLOAT)}, {"y": ((2, 3), BFLOAT)}, {"w": weight}
    )
    loaded = load(tmp_path, model)
    assert [loaded.program.nodes[index].op for index in loaded.program.order] == ["input", "weight", "matmul"]
    assert loaded.values["w"].dtype.name == "bfloat16"


def test_load_onnx__what_follows_from_an_open_size_is_opaque(tmp_path):
    nodes = [
        node("Shape", ["x"], "s"), node("Slice", ["s", "one", "two"], "n"), node("Slice", ["table", "zero", "n"], "p"),
        node("Add", ["x", "p"], "a"), node("Concat", ["zero", "minus"], "t", axis=0), node("Reshape", ["a", "t"], "y"),
    ]  # fmt: skip
    weights = {"table": f(9, 4), "zero": ints(0), "one": ints(1), "two": ints(2), "minus": ints(-1)}
    model = make_model(nodes, {"x": ("batch", "seq", 4)}, {"y": ("batch", None)}, weights)
    loaded = load(tmp_path, model, dims={"batch": 2, "seq": 3})
    assert kinds(loaded) == ["Slice"]
    assert loaded.program.is_static(loaded.ids["p"])  # computed once for a size, and never folded
    assert assert_translated(loaded) == 2
    with pytest.raises(InputError, match=r"give the sizes: dims={'batch': …, 'seq': …} \(graphopt … --dims") as caught:
        load(tmp_path, model)
    assert "\n" not in str(caught.value)


def test_load_onnx__unnamed_sizes_are_each_by_themselves(tmp_path):
    model = make_model([node("Add", ["x", "y"], "z")], {"x": ("?", 3), "y": (1, "?")}, {"z": (None, 3)})
    assert load(tmp_path, model, dims={"x:0": 2, "y:1": 3}).program.shape(2) == (2, 3)
    with pytest.raises(InputError, match=r"dims={'x:0': …, 'y:1': …}"):
        load(tmp_path, model)
    assert load(tmp_path, model, dims={"?": 3, "x:0": 1}).program.shape(2) == (1, 3)


def test_load_onnx__local_functions_are_inlined(tmp_path):
    body = [onnx.helper.make_node("Relu", ["a"], ["b"]), onnx.helper.make_node("Erf", ["b"], ["c"])]
    function = onnx.helper.make_function("mine", "F", ["a"], ["c"], body, [onnx.helper.make_opsetid("", 20)])
    model = make_model([node("F", ["x"], "y", domain="mine")], {"x": (2,)}, {"y": (2,)}, domains=["mine"],
                       functions=[function])  # fmt: skip
    assert [one.op for one in load(tmp_path, model).program.nodes.values()] == ["input", "relu", "erf"]


@pytest.mark.parametrize(
    ("nodes", "options", "message"),
    [
        (
            [node("Mystery", ["x"], "y", domain="mine")],
            {"domains": ["mine"]},
            "cannot be run by onnxruntime: .*Mystery",
        ),
        ([node("Relu", ["x"], "y")], {"opset": 99}, "cannot be run by onnxruntime: .*Opset 99"),
        ([node("MatMul", ["x", "x"], "y")], {}, "m.onnx' cannot be run by onnxruntime|is not a valid ONNX model"),
    ],
)
def test_load_onnx__refuses_what_onnxruntime_cannot_run(nodes, options, message, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path, make_model(nodes, {"x": (2, 3)}, {"y": (2, 3)}, **options))
    assert "\n" not in str(caught.value)


def test_load_onnx__refuses_more_than_2_gb_at_once(tmp_path):
    path = tmp_path / "large.onnx"
    with open(path, "wb") as file:
        os.truncate(file.fileno(), 2**31)
    with pytest.raises(
        InputError, match="has 2,147,483,648 bytes; no ONNX file holds more than 2 GB: store its weights"
    ):
        load_onnx(path)
