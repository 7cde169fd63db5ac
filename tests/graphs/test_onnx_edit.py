"""Rewritten programs written as edits of the ONNX files that they came from, and the check before that."""

import os

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from graphopt_gym.errors import InputError  # noqa: E402
from graphopt_gym.graphs.tensor_program import onnx_edit, parse_program, program_text  # noqa: E402
from graphopt_gym.graphs.tensor_program.onnx_edit import difference, edit_onnx, write_edited  # noqa: E402
from graphopt_gym.graphs.tensor_program.onnx_read import load_onnx  # noqa: E402
from tests.graphs.onnx_files import BFLOAT, BOOL, DOUBLE, FLOAT, HALF, INT64, info, make_model, node  # noqa: E402

rng = np.random.default_rng(0)


def f(*shape, dtype=np.float32):
    return rng.standard_normal(shape).astype(dtype)


def load(tmp_path, model, **options):
    path = tmp_path / "given.onnx"
    path.write_bytes(model.SerializeToString())
    return load_onnx(path, **options)


def written(loaded, program, tmp_path):
    out = tmp_path / "out.onnx"
    said = write_edited(loaded, program, out)
    return onnx.load(out), said


def by_name(model):
    return {one.name: one for one in model.graph.node}


def run(model, feeds):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def network():
    """A convolution with a bias, a pool, a Gemm, what the language does not know, an unused input, metadata."""
    nodes = [
        node("Conv", ["x", "w", "b"], "c", pads=[1, 1, 1, 1]), node("Relu", ["c"], "r"),
        node("Erf", ["r"], "e"), node("Mul", ["e", "two"], "m"),
        node("GlobalAveragePool", ["m"], "p"), node("Flatten", ["p"], "f"),
        node("Gemm", ["f", "fw", "fb"], "g", transB=1), node("Tanh", ["g"], "t"),
        node("Identity", ["t"], "y"),
    ]  # fmt: skip
    weights = {"w": f(4, 3, 3, 3), "b": f(4), "two": np.float32(2), "fw": f(5, 4), "fb": f(5)}
    inputs = {"x": ("batch", 3, 6, 6), "unused": (("batch", 2), INT64)}
    model = make_model(nodes, inputs, {"y": ("batch", 5)}, weights)
    model.metadata_props.add(key="author", value="somebody")
    model.producer_name = "a tool"
    model.graph.doc_string = "what it is"
    return model


def test_edit_onnx__of_the_program_itself_is_the_file(tmp_path):
    model = network()
    loaded = load(tmp_path, model, dims={"batch": 1})
    edited = edit_onnx(loaded, parse_program(program_text(loaded.program)))
    assert edited.model.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)
    assert (edited.kept, edited.added) == (9, 0)


def test_write_edited__what_is_not_touched_stays(tmp_path):
    model = network()
    loaded = load(tmp_path, model, dims={"batch": 1})
    program = loaded.program
    erf = next(index for index in program.order if program.nodes[index].op == "erf")
    edit = program.edit()
    (smul,) = program.users(erf)
    two = program.nodes[smul].inputs[1]
    edit.replace({smul: edit.op("mul", edit.op("reshape", two, shape=(1, 1, 1, 1)), erf)})
    new, said = written(loaded, edit.finish(), tmp_path)
    before, after = by_name(model), by_name(new)
    assert (said["kept"], said["added"]) == (8, 1)
    assert said["checked"] == [{"batch": 1}, {"batch": 2}]
    assert before.keys() - after.keys() == {"node m"}
    for name in before.keys() & after.keys():
        assert before[name] == after[name]
    (added,) = (one for one in new.graph.node if one.name not in before)
    assert (added.op_type, list(added.output)) == ("Mul", ["m"])
    assert new.graph.input == model.graph.input
    assert new.graph.output == model.graph.output
    assert new.metadata_props == model.metadata_props
    assert (new.producer_name, new.graph.doc_string, new.opset_import) == ("a tool", "what it is", model.opset_import)
    kept = {tensor.name: tensor for tensor in new.graph.initializer}
    assert all(kept[tensor.name] == tensor for tensor in model.graph.initializer if tensor.name != "two")


def test_write_edited__a_convolution_keeps_its_bias_and_a_gemm_is_one(tmp_path):
    nodes = [
        node("Conv", ["x", "w", "b"], "c"), node("Relu", ["c"], "r"), node("Conv", ["x", "v", "b"], "d"),
        node("Concat", ["r", "d"], "k", axis=1), node("GlobalAveragePool", ["k"], "p"), node("Flatten", ["p"], "f"),
        node("Gemm", ["f", "fw", "fb"], "g", transB=1), node("Gemm", ["f", "gw", "fb"], "h", transB=1),
        node("Add", ["g", "h"], "y"),
    ]  # fmt: skip
    weights = {"w": f(4, 3, 1, 1), "v": f(4, 3, 1, 1), "b": f(4), "fw": f(5, 8), "gw": f(5, 8), "fb": f(5)}
    loaded = load(tmp_path, make_model(nodes, {"x": ("n", 3, 4, 4)}, {"y": ("n", 5)}, weights), dims={"n": 2})
    program = loaded.program
    edit = program.edit()
    convs = [index for index in program.order if program.nodes[index].op == "conv2d"]
    adds = [next(iter(program.users(conv))) for conv in convs]
    x = program.nodes[convs[0]].inputs[0]
    joined = edit.op("conv2d", x, edit.op("concat", *(program.nodes[conv].inputs[1] for conv in convs), axis=0))
    bias = edit.op("concat", *(program.nodes[add].inputs[1] for add in adds), axis=0)
    both = edit.op("add", joined, bias)
    edit.replace({add: edit.op(f"split{i}", both, axis=1, at=4) for i, add in enumerate(adds)})
    products = [index for index in program.order if program.nodes[index].op == "matmul"]
    sides = [program.nodes[one].inputs[1] for one in products]
    summed = edit.op("matmul", program.nodes[products[0]].inputs[0], edit.op("add", *sides))
    (end,) = program.outputs
    (twice,) = {program.nodes[index].inputs[1] for index in program.nodes[end].inputs}
    edit.replace({end: edit.op("add", summed, edit.op("add", twice, twice))})
    new, said = written(loaded, edit.finish(), tmp_path)
    kinds = [one.op_type for one in new.graph.node]
    assert sorted(kinds) == sorted(["Conv", "Split", "Relu", "Concat", "GlobalAveragePool", "Flatten", "Gemm"])
    conv = next(one for one in new.graph.node if one.op_type == "Conv")
    assert len(conv.input) == 3
    assert said["checked"] == [{"n": 2}, {"n": 4}]
    assert {"w", "v", "fw", "gw"}.isdisjoint(tensor.name for tensor in new.graph.initializer)


@pytest.mark.parametrize("kind", ["Conv", "MatMul"])
def test_write_edited__biases_after_a_split_become_one_before_it(kind, tmp_path):
    shape, axis, bias = ((2, 3, 4, 4), 1, (4, 1, 1)) if kind == "Conv" else ((2, 3), 1, (4,))
    size = (4, 3, 1, 1) if kind == "Conv" else (3, 4)
    nodes = [
        one
        for index in range(3)
        for one in (node(kind, ["x", f"w{index}"], f"c{index}"), node("Add", [f"c{index}", f"b{index}"], f"y{index}"))
    ]
    weights = {f"w{index}": f(*size) for index in range(3)} | {f"b{index}": f(*bias) for index in range(3)}
    out = (2, 4, 4, 4) if kind == "Conv" else (2, 4)
    loaded = load(tmp_path, make_model(nodes, {"x": shape}, {f"y{index}": out for index in range(3)}, weights))
    program = loaded.program
    op = {"Conv": "conv2d", "MatMul": "matmul"}[kind]
    products = [index for index in program.order if program.nodes[index].op == op]
    edit = program.edit()
    joined = edit.op("concat", *(program.nodes[one].inputs[1] for one in products), axis=0 if kind == "Conv" else 1)
    whole = edit.op(op, program.nodes[products[0]].inputs[0], joined)
    rest = edit.op("split1", whole, axis=axis, at=4)
    parts = [edit.op("split0", whole, axis=axis, at=4), *(edit.op(f"split{i}", rest, axis=axis, at=4) for i in (0, 1))]
    edit.replace(dict(zip(products, parts, strict=True)))
    new, _ = written(loaded, edit.finish(), tmp_path)
    assert [one.op_type for one in new.graph.node] == [{"Conv": "Conv", "MatMul": "Gemm"}[kind], "Split"]
    assert list(new.graph.node[1].output) == ["y0", "y1", "y2"]


@pytest.mark.parametrize("kind", [HALF, DOUBLE, FLOAT])
def test_write_edited__types_stay(kind, tmp_path):
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    large = 1e200 if kind == DOUBLE else 100
    nodes = [node("MatMul", ["x", "w"], "a"), node("MatMul", ["x", "v"], "b"), node("Add", ["a", "b"], "c"),
             node("Mul", ["c", "large"], "y")]  # fmt: skip
    weights = {"w": f(3, 4, dtype=dtype), "v": f(3, 4, dtype=dtype), "large": np.asarray(large, dtype)}
    model = make_model(nodes, {"x": ((2, 3), kind)}, {"y": ((2, 4), kind)}, weights)
    loaded = load(tmp_path, model)
    program = loaded.program
    edit = program.edit()
    a, b = (index for index in program.order if program.nodes[index].op == "matmul")
    (add,) = program.users(a)
    x = program.nodes[a].inputs[0]
    edit.replace({add: edit.op("matmul", x, edit.op("add", program.nodes[a].inputs[1], program.nodes[b].inputs[1]))})
    new, _ = written(loaded, edit.finish(), tmp_path)
    assert [one.op_type for one in new.graph.node] == ["MatMul", "Mul"]
    assert {tensor.data_type for tensor in new.graph.initializer} == {kind}
    assert new.graph.output == model.graph.output
    feeds = {"x": f(2, 3, dtype=dtype)}
    before, after = run(model, feeds)[0], run(new, feeds)[0]
    assert np.isfinite(before).all()
    assert after.dtype == before.dtype == dtype
    assert not difference(before, after)


def test_write_edited__bfloat16_that_cannot_be_run_here_is_refused(tmp_path):
    weight = onnx.helper.make_tensor("w", BFLOAT, (3, 3), f(9).tolist())
    nodes = [node("MatMul", ["x", "w"], "a"), node("Relu", ["a"], "y")]
    loaded = load(tmp_path, make_model(nodes, {"x": ((2, 3), BFLOAT)}, {"y": ((2, 3), BFLOAT)}, {"w": weight}))
    with pytest.raises(InputError, match="so its rewritten form cannot be checked, and is not written"):
        written(loaded, loaded.program, tmp_path)
    assert not (tmp_path / "out.onnx").exists()


def test_write_edited__shapes_that_follow_from_open_sizes_still_do(tmp_path):
    nodes = [
        node("Relu", ["x"], "r"), node("Transpose", ["r"], "t", perm=[0, 2, 1]), node("Shape", ["t"], "s"),
        node("Gather", ["s", "zero"], "n"), node("Concat", ["n", "rest"], "k", axis=0),
        node("Reshape", ["t", "k"], "f"), node("Tanh", ["f"], "y"),
    ]  # fmt: skip
    weights = {"zero": np.array([0]), "rest": np.array([-1])}
    loaded = load(tmp_path, make_model(nodes, {"x": ("batch", "seq", 4)}, {"y": ("batch", None)}, weights),
                  dims={"batch": 1, "seq": 3})  # fmt: skip
    # the transpose goes before the Relu, so the tensor whose shape is asked for is another one
    program = loaded.program
    x, _, transpose = program.order[:3]
    edit = program.edit()
    edit.replace({transpose: edit.op("relu", edit.op("transpose", x, perm=(0, 2, 1)))})
    new, said = written(loaded, edit.finish(), tmp_path)
    assert len(said["checked"]) == 4
    assert [dim.dim_param for dim in new.graph.input[0].type.tensor_type.shape.dim] == ["batch", "seq", ""]
    feeds = {"x": f(5, 7, 4)}
    assert not difference(*(run(model, feeds)[0] for model in (onnx.load(loaded.path), new)))


def test_write_edited__new_reshapes_leave_sizes_open(tmp_path):
    nodes = [node("MatMul", ["x", "w"], "m"), node("Reshape", ["m", "heads"], "h"), node("Tanh", ["h"], "y")]
    weights = {"w": f(4, 6), "heads": np.array([0, 0, 2, 3])}
    loaded = load(tmp_path, make_model(nodes, {"x": ("batch", "seq", 4)}, {"y": ("batch", "seq", 2, 3)}, weights),
                  dims={"batch": 1, "seq": 5})  # fmt: skip
    program = loaded.program
    (end,) = program.outputs
    reshape = program.nodes[end].inputs[0]
    matmul = program.nodes[reshape].inputs[0]
    edit = program.edit()
    edit.replace({end: edit.op("reshape", edit.op("tanh", matmul), shape=(1, 5, 2, 3))})
    new, said = written(loaded, edit.finish(), tmp_path)
    assert [one.op_type for one in new.graph.node] == ["MatMul", "Tanh", "Reshape"]
    assert len(said["checked"]) == 4


def test_write_edited__a_rewrite_that_holds_for_one_size_alone_is_refused(tmp_path):
    nodes = [node("Transpose", ["x"], "t", perm=[1, 0, 2]), node("Relu", ["t"], "y")]
    loaded = load(tmp_path, make_model(nodes, {"x": ("n", 1, 4)}, {"y": (1, "n", 4)}), dims={"n": 1})
    program = loaded.program
    x, transpose, _ = program.order
    edit = program.edit()
    edit.replace({transpose: x})
    with pytest.raises(
        InputError, match=r"rewritten form at n=2 is float32\[2, 1, 4\], the original's float32\[1, 2, 4\]; "
    ):
        written(loaded, edit.finish(), tmp_path)
    assert not (tmp_path / "out.onnx").exists()


def test_write_edited__what_a_subgraph_reads_is_renamed_with_it(tmp_path):
    then = onnx.helper.make_graph([node("Neg", ["k"], "then")], "then", [], [info("then", (2, 3))])
    other = onnx.helper.make_graph([node("Identity", ["r"], "else")], "else", [], [info("else", (2, 3))])
    nodes = [node("Relu", ["x"], "r"), node("Identity", ["r"], "k"),
             node("If", ["c"], "i", then_branch=then, else_branch=other), node("Sigmoid", ["i"], "y")]  # fmt: skip
    loaded = load(tmp_path, make_model(nodes, {"x": (2, 3), "c": ((), BOOL)}, {"y": (2, 3)}))
    program = loaded.program
    relu = next(index for index in program.order if program.nodes[index].op == "relu")
    edit = program.edit()
    edit.replace({relu: edit.op("relu", edit.op("transpose", edit.op("transpose", program.nodes[relu].inputs[0],
                                                                   perm=(1, 0)), perm=(1, 0)))})  # fmt: skip
    new, _ = written(loaded, edit.finish(), tmp_path)
    names = {name for one in new.graph.node for name in one.output} | {"x", "c"}
    (branch,) = (one for one in new.graph.node if one.op_type == "If")
    for attribute in branch.attribute:
        assert set(attribute.g.node[0].input) <= names


def test_write_edited__weights_beside_the_model_stay_beside_it(tmp_path):
    model = make_model([node("MatMul", ["x", "w"], "m"), node("Relu", ["m"], "y")], {"x": (2, 64)}, {"y": (2, 64)},
                       {"w": f(64, 64)})  # fmt: skip
    path = tmp_path / "given.onnx"
    onnx.save(model, path, save_as_external_data=True, location="given.data", size_threshold=0)
    loaded = load_onnx(path)
    write_edited(loaded, loaded.program, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").stat().st_size < 2000
    assert (tmp_path / "out.onnx.data").stat().st_size == 64 * 64 * 4
    assert not difference(run_file(tmp_path / "out.onnx"), run_file(path))
    assert sorted(os.listdir(tmp_path)) == ["given.data", "given.onnx", "out.onnx", "out.onnx.data"]
    (tmp_path / "link").symlink_to("out.onnx")
    write_edited(loaded, loaded.program, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe' is no file, beside which the model's weights could lie"):
        write_edited(loaded, loaded.program, tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


def run_file(path):
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.random.default_rng(0).standard_normal((2, 64)).astype(np.float32)})[0]


def test_write_edited__a_wrong_model_is_refused_and_nothing_is_written(tmp_path, monkeypatch):
    loaded = load(tmp_path, make_model([node("Relu", ["x"], "y"), node("Cast", ["y"], "z", to=INT64)], {"x": (2, 3)},
                                       {"y": (2, 3), "z": ((2, 3), INT64)}))  # fmt: skip

    def refused(message, **attributes):
        wrong = edit_onnx(loaded, loaded.program)
        monkeypatch.setattr(onnx_edit, "edit_onnx", lambda *_: wrong)
        for name, value in attributes.items():
            setattr(wrong.model.graph.node[0], name, value)
        with pytest.raises(InputError, match=message) as caught:
            write_edited(loaded, loaded.program, tmp_path / "out.onnx")
        assert "\n" not in str(caught.value)
        assert os.listdir(tmp_path) == ["given.onnx"]
        monkeypatch.undo()

    refused(r"output 'y' of its rewritten form differs by .* where the largest is .*; it is not written", op_type="Abs")
    refused("the rewritten form of ONNX file .* cannot be run by onnxruntime: .*Relux", op_type="Relux")


def test_write_edited__refuses_a_folder_that_is_none_before_it_works(tmp_path):
    loaded = load(tmp_path, make_model([node("Relu", ["x"], "y")], {"x": (2, 3)}, {"y": (2, 3)}))
    with pytest.raises(InputError, match=r"cannot write .*; give a path that can be written"):
        write_edited(loaded, loaded.program, tmp_path / "none" / "out.onnx")


def test_difference__is_in_the_rounding_of_the_type():
    one = np.ones(4)
    for dtype, small, large in ((np.float16, 1e-2, 1e-1), (np.float32, 5e-5, 1e-3), (np.float64, 5e-9, 1e-6)):
        assert not difference(one.astype(dtype), (one + small).astype(dtype))
        assert difference(one.astype(dtype), (one + large).astype(dtype))
    assert difference(np.arange(3), np.array([0, 1, 3])) == "differs in 1 of 3 elements of int64"
    assert difference(one, one.astype(np.float32)) == "is float32[4], the original's float64[4]"
    assert difference(np.array([1, np.nan]), np.array([1, 2.0])) == "has infinities or NaNs elsewhere"
    assert not difference(np.array([np.inf, np.nan]), np.array([np.inf, np.nan]))
    assert difference([one], [one, one]) == "holds 2 tensors, the original's 1"


@pytest.mark.parametrize("opset", [9, 17, 20])
def test_write_edited__operators_that_rules_make_anew(opset, tmp_path):
    """A part of the result is read; by the rules of parts all operators are made anew, on that part alone."""
    from graphopt_gym.envs.rewrite.rules.matching import Matcher
    from graphopt_gym.envs.rewrite.rules.table import load_rules

    axes = {"axes": [-1]}
    clip = [node("Clip", ["s"], "c", min=-0.5, max=0.5)] if opset < 11 else [node("Clip", ["s", "low", "high"], "c")]
    swish = [node("HardSwish", ["i"], "h")] if opset >= 14 else [node("Abs", ["i"], "h")]
    total = [node("ReduceSum", ["q", "last"], "t")] if opset >= 13 else [node("ReduceSum", ["q"], "t", **axes)]
    middle = [node("ReduceMean", ["q", "last"], "m")] if opset >= 18 else [node("ReduceMean", ["q"], "m", **axes)]
    nodes = [
        node("Sub", ["x", "z"], "s"), *clip, node("HardSigmoid", ["c"], "i", alpha=0.3), *swish,
        node("LeakyRelu", ["h"], "l", alpha=0.2), node("Erf", ["l"], "e"), node("Exp", ["e"], "g"),
        node("Sqrt", ["g"], "r"), node("Log", ["g"], "o"), node("Div", ["o", "r"], "d"),
        node("Pow", ["d", "three"], "p"),
        node("Reciprocal", ["g"], "k"), node("Add", ["p", "k"], "q"), *total, *middle, node("Mul", ["t", "m"], "n"),
        node("Slice", ["n"], "y", axes=[0], starts=[0], ends=[2]) if opset < 10
        else node("Slice", ["n", "zero", "two", "zero"], "y"),
    ]  # fmt: skip
    weights = {
        "low": np.float32(-0.5), "high": np.float32(0.5), "three": np.float32(3), "last": np.array([-1]),
        "zero": np.array([0]), "two": np.array([2]),
    }  # fmt: skip
    model = make_model(nodes, {"x": ("batch", 4, 3), "z": ("batch", 4, 3)}, {"y": (2, 4, 1)}, weights, opset)
    loaded = load(tmp_path, model, dims={"batch": 6})
    matcher, program = Matcher(load_rules("parts")), loaded.program
    for _ in range(60):
        found = matcher.find(program).matches
        if not found:
            break
        program, _ = matcher.apply(program, found[0])
    assert not found
    assert all(program.shape(one)[0] == 2 for one in program.order if program.nodes[one].inputs)
    new, said = written(loaded, program, tmp_path)
    assert said["added"] >= 16
    kinds = {one.op_type for one in new.graph.node}
    assert kinds >= {"Sub", "Clip", "HardSigmoid", "LeakyRelu", "Erf", "Pow", "ReduceSum", "ReduceMean", "Div"}
