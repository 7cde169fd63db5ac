"""Import from ONNX: sizes against hand counts, folding, refusals."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt_gym.errors import InputError
from graphopt_gym.graphs.graph import DTYPES, OP_CLASSES, ComputationGraph
from graphopt_gym.graphs.io import read_graph, save_graph
from graphopt_gym.graphs.onnx_import import import_onnx

onnx = pytest.importorskip("onnx")
helper, numpy_helper, FLOAT, INT64 = (
    onnx.helper,
    onnx.numpy_helper,
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.INT64,
)


def weight(name: str, *shape: int) -> Any:
    return numpy_helper.from_array(np.ones(shape, np.float32), name)


def integers(name: str, values: Any) -> Any:
    return numpy_helper.from_array(np.asarray(values, np.int64), name)


def value(name: str, shape: Any, dtype: int = FLOAT) -> Any:
    return helper.make_tensor_value_info(name, dtype, shape)


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    """Names of inputs and outputs divided by spaces; the node is called after its first output."""
    return helper.make_node(kind, inputs.split(), outputs.split(), name=f"n_{outputs.split()[0]}", **attributes)


def save(
    folder: Path,
    nodes: list[Any],
    inputs: list[Any],
    outputs: list[Any],
    initializers: list[Any] = (),  # type: ignore[assignment]
    opset: int = 20,
    **options: Any,
) -> Path:
    graph = helper.make_graph(nodes, "main", inputs, outputs, list(initializers))
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("custom", 1)],
        ir_version=11,
        **options,
    )
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def ops(graph: ComputationGraph) -> dict[str, int]:
    """The op of each module name; the node's own op, not its getitems."""
    found: dict[str, int] = {}
    for op in range(graph.num_ops):
        found.setdefault(graph.modules[graph.module[op]], op)
    return found


def classes(graph: ComputationGraph) -> dict[str, str]:
    return {name: OP_CLASSES[graph.op_class[op]] for name, op in ops(graph).items()}


@pytest.fixture
def cnn(tmp_path: Path) -> Path:
    nodes = [
        node("Conv", "x w1 b1", "conv", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
        node("BatchNormalization", "conv scale shift mean var", "bn"),
        node("Relu", "bn", "relu"),
        node("Conv", "relu w2", "depthwise", kernel_shape=[3, 3], group=8),
        node("MaxPool", "depthwise", "pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("ConvTranspose", "pool w3", "up", kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", "up", "mean_pool"),
        node("Flatten", "mean_pool", "flat"),
        node("Gemm", "flat w4 b4", "fc", transB=1),
        node("Softmax", "fc", "y", axis=-1),
    ]
    weights = [
        weight("w1", 8, 3, 3, 3), weight("b1", 8), *(weight(n, 8) for n in ("scale", "shift", "mean", "var")),
        weight("w2", 8, 1, 3, 3), weight("w3", 8, 4, 2, 2), weight("w4", 10, 4), weight("b4", 10),
    ]  # fmt: skip
    return save(tmp_path, nodes, [value("x", ["N", 3, 16, 16])], [value("y", ["N", 10])], weights)


def test_import_onnx__cnn_matches_hand_counts(cnn: Path) -> None:
    graph = import_onnx(cnn, dims={"N": 2})
    op = ops(graph)
    # x 2x3x16x16 -> conv 2x8x8x8 -> depthwise 2x8x6x6 -> pool 2x8x3x3 -> up 2x4x6x6 -> 2x4 -> fc 2x10
    expected = {
        "n_conv": 2 * (2 * 8 * 8 * 8) * 3 * 9,
        "n_bn": 8 * 2 * 8 * 8 * 8,
        "n_relu": 2 * 8 * 8 * 8,
        "n_depthwise": 2 * (2 * 8 * 6 * 6) * 1 * 9,
        "n_pool": (2 * 8 * 3 * 3) * 4,
        "n_up": 2 * (2 * 8 * 3 * 3) * 4 * 4,
        "n_mean_pool": 2 * 4 * 6 * 6,
        "n_flat": 0,
        "n_fc": 2 * 2 * 10 * 4,
        "n_y": 5 * 2 * 10,
    }
    assert {name: int(graph.flops[op[name]]) for name in expected} == expected
    parameters = 8 * 27 + 8 + 4 * 8 + 8 * 9 + 8 * 4 * 4 + 40 + 10
    assert graph.param_bytes.sum() == 4 * parameters
    assert graph.bytes_read[op["n_conv"]] == 4 * (2 * 3 * 16 * 16 + 8 * 27 + 8)
    assert graph.bytes_written[op["n_conv"]] == graph.output_bytes[op["n_conv"]] == 4 * 2 * 8 * 8 * 8
    assert graph.shape(op["n_up"]) == (2, 4, 6, 6)
    assert classes(graph)["n_flat"] == "view"
    assert graph.name == "model"
    assert graph.metadata["dims"] == {"N": 2}
    assert "unmodelled_ops" not in graph.metadata
    assert "stages" not in graph.metadata
    assert (graph.phase == 0).all()


def test_import_onnx__colocates_a_node_with_its_sources_and_views(cnn: Path) -> None:
    graph = import_onnx(cnn, dims={"N": 2})
    op = ops(graph)
    group = {name: int(graph.colocation[op[name]]) for name in op}
    assert group["w1"] == group["b1"] == group["n_conv"] == group["x"]
    assert group["n_flat"] == group["n_mean_pool"] != group["n_fc"] == group["w4"]
    assert sorted(set(group.values())) == list(range(9))


def test_import_onnx__sources_stand_before_their_first_reader(cnn: Path) -> None:
    graph = import_onnx(cnn, dims={"N": 1})
    names = [graph.modules[graph.module[op]] for op in range(graph.num_ops)]
    assert names[:4] == ["x", "w1", "b1", "n_conv"]
    assert names[-4:] == ["w4", "b4", "n_fc", "n_y"]


@pytest.fixture
def transformer(tmp_path: Path) -> Path:
    """Embedding, one attention head pair through Split and a computed Reshape, a two-layer MLP."""
    nodes = [
        node("Gather", "table ids", "h"),
        node("LayerNormalization", "h g1 c1", "norm", axis=-1),
        node("MatMul", "norm wqkv", "qkv"),
        node("Split", "qkv", "q k v", axis=-1, num_outputs=3),
        node("Shape", "ids", "shape"),
        node("Gather", "shape zero", "batch"),
        node("Unsqueeze", "batch axes0", "batch1"),
        node("Concat", "batch1 tail", "heads", axis=0),
        *(node("Reshape", f"{name} heads", f"{name}4") for name in "qkv"),
        node("Transpose", "q4", "qt", perm=[0, 2, 1, 3]),
        node("Transpose", "k4", "kt", perm=[0, 2, 3, 1]),
        node("Transpose", "v4", "vt", perm=[0, 2, 1, 3]),
        node("MatMul", "qt kt", "scores"),
        node("Constant", "", "root", value_float=4.0),
        node("Div", "scores root", "scaled"),
        node("Softmax", "scaled", "p", axis=-1),
        node("MatMul", "p vt", "mixed"),
        node("Transpose", "mixed", "back", perm=[0, 2, 1, 3]),
        node("Reshape", "back like_h", "merged"),
        node("MatMul", "merged wo", "o"),
        node("Add", "o h", "r"),
        node("MatMul", "r wu", "u"),
        node("Gelu", "u", "a"),
        node("MatMul", "a wd", "d"),
        node("Add", "d r", "y"),
    ]
    weights = [
        weight("table", 1000, 32), weight("g1", 32), weight("c1", 32), weight("wqkv", 32, 96), weight("wo", 32, 32),
        weight("wu", 32, 128), weight("wd", 128, 32), integers("zero", 0), integers("axes0", [0]),
        integers("tail", [8, 2, 16]), integers("like_h", [0, 0, 32]),
    ]  # fmt: skip
    return save(tmp_path, nodes, [value("ids", ["batch", 8], INT64)], [value("y", ["batch", 8, 32])], weights)


def test_import_onnx__transformer_matches_hand_counts(transformer: Path) -> None:
    graph = import_onnx(transformer, dims={"batch": 3})
    op, tokens = ops(graph), 3 * 8
    matmuls = {
        "n_qkv": 2 * tokens * 32 * 96,
        "n_scores": 2 * (3 * 2 * 8 * 8) * 16,
        "n_mixed": 2 * (3 * 2 * 8 * 16) * 8,
        "n_o": 2 * tokens * 32 * 32,
        "n_u": 2 * tokens * 32 * 128,
        "n_d": 2 * tokens * 128 * 32,
    }
    assert {name: int(graph.flops[op[name]]) for name in matmuls} == matmuls
    assert graph.flops[graph.op_class == OP_CLASSES.index("matmul")].sum() == sum(matmuls.values())
    assert graph.flops[op["n_a"]] == 8 * tokens * 128
    assert graph.flops[op["n_norm"]] == 8 * tokens * 32
    assert graph.flops[op["n_h"]] == 0
    # of the table only the rows asked for are read, and int64 indices
    assert graph.bytes_read[op["n_h"]] == 4 * tokens * 32 + 8 * tokens
    assert graph.param_bytes.sum() == 4 * (1000 * 32 + 64 + 32 * 96 + 32 * 32 + 2 * 32 * 128)


def test_import_onnx__folds_shape_arithmetic_and_makes_views(transformer: Path) -> None:
    graph = import_onnx(transformer, dims={"batch": 3})
    of = classes(graph)
    for folded in ("n_shape", "n_batch", "n_batch1", "n_heads", "zero", "axes0", "tail", "like_h"):
        assert folded not in of
    assert of["n_q"] == of["n_q4"] == of["n_merged"] == "view"
    assert of["n_qt"] == of["n_kt"] == of["n_back"] == "copy"
    split = ops(graph)["n_q"]
    assert [graph.kinds[graph.kind[item]] for item in graph.successors(split)] == ["getitem"] * 3
    assert graph.view_root[graph.successors(split)].tolist() == [ops(graph)["n_qkv"]] * 3
    assert graph.output_bytes[split] == 4 * 3 * 8 * 96
    assert graph.output_bytes[graph.successors(split)].tolist() == [4 * 3 * 8 * 32] * 3


def test_import_onnx__graph_survives_the_file_format(transformer: Path, tmp_path: Path) -> None:
    graph = import_onnx(transformer, dims={"batch": 3})
    save_graph(graph, tmp_path / "graph.npz")
    again = read_graph(tmp_path / "graph.npz")
    assert again.fingerprint == graph.fingerprint
    assert again.metadata == graph.metadata


@pytest.mark.parametrize(
    ("kind", "shapes", "attributes", "flops"),
    [
        ("Gemm", [(5, 7), (5, 3)], {"transA": 1}, 2 * 7 * 3 * 5),
        ("MatMul", [(4, 5, 7), (7, 3)], {}, 2 * 4 * 5 * 3 * 7),
        ("Einsum", [(4, 5, 7), (4, 7, 3)], {"equation": "bij,bjk->bik"}, 2 * 4 * 5 * 7 * 3),
        ("Einsum", [(4, 5), (4, 5)], {"equation": "ij,ij->ij"}, 4 * 5),
        ("Conv", [(1, 2, 9), (6, 2, 3)], {}, 2 * (6 * 7) * 2 * 3),
        ("AveragePool", [(1, 2, 8, 8)], {"kernel_shape": [4, 4], "strides": [4, 4]}, 2 * 2 * 2 * 16),
        ("ReduceSum", [(6, 7)], {}, 42),
        ("ArgMax", [(6, 7)], {"axis": 1}, 42),
        ("LogSoftmax", [(6, 7)], {}, 5 * 42),
        ("Add", [(6, 7), (7,)], {}, 42),
        ("Sum", [(6, 7), (6, 7), (6, 7)], {}, 2 * 42),
        ("Sigmoid", [(6, 7)], {}, 4 * 42),
        ("Concat", [(6, 7), (6, 7)], {"axis": 0}, 0),
        ("Attention", [(2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 4)], {}, 2 * (2 * 3) * 5 * 7 * (8 + 4)),
        ("Attention", [(2, 5, 24), (2, 7, 24), (2, 7, 12)], {"q_num_heads": 3, "kv_num_heads": 3}, 2 * 6 * 35 * 12),
        ("GroupNormalization", [(2, 4, 5), (4,), (4,)], {"num_groups": 2}, 8 * 40),
    ],
)
def test_import_onnx__flops_of_an_operator(
    tmp_path: Path, kind: str, shapes: list[tuple[int, ...]], attributes: dict[str, Any], flops: int
) -> None:
    names = [f"x{position}" for position in range(len(shapes))]
    path = save(
        tmp_path,
        [node(kind, " ".join(names), "y", **attributes)],
        [value(name, shape) for name, shape in zip(names, shapes, strict=True)],
        [value("y", None, INT64 if kind == "ArgMax" else FLOAT)],
        opset=23,
    )
    graph = import_onnx(path)
    assert graph.flops[-1] == flops
    assert classes(graph)["n_y"] not in ("view", "source", "other")
    assert graph.bytes_read[-1] == 4 * sum(int(np.prod(shape)) for shape in shapes)


def test_import_onnx__recurrent_layer(tmp_path: Path) -> None:
    path = save(
        tmp_path,
        [
            helper.make_node(
                "LSTM", ["x", "w", "r"], ["", "h", "c"], name="n", hidden_size=16, direction="bidirectional"
            )
        ],
        [value("x", [5, 3, 8])],
        [value("h", None), value("c", None)],
        [weight("w", 2, 64, 8), weight("r", 2, 64, 16)],
    )
    graph = import_onnx(path)
    lstm = ops(graph)["n"]
    assert graph.flops[lstm] == 2 * (5 * 3) * 2 * 64 * (8 + 16)
    assert graph.output_bytes[lstm] == 2 * 4 * (2 * 3 * 16)  # final h and c; the sequence of outputs is left out
    assert len(graph.successors(lstm)) == 2


def test_import_onnx__one_used_output_needs_no_getitem(tmp_path: Path) -> None:
    path = save(
        tmp_path,
        [node("TopK", "x k", "values indices")],
        [value("x", [4, 10])],
        [value("indices", None, INT64)],
        [integers("k", [3])],
    )
    graph = import_onnx(path)
    topk = graph.num_ops - 1
    assert graph.kinds[graph.kind[topk]] == "TopK"
    assert graph.shape(topk) == (4, 3)
    assert DTYPES[graph.dtype[topk]] == "int64"


def test_import_onnx__transpose_of_unit_dimensions_is_a_view(tmp_path: Path) -> None:
    nodes = [node("Transpose", "x", "t", perm=[0, 2, 1, 3]), node("Relu", "t", "y")]
    path = save(tmp_path, nodes, [value("x", [3, 1, 5, 7])], [value("y", None)])
    assert classes(import_onnx(path))["n_t"] == "view"


def test_import_onnx__works_out_shapes_that_the_model_computes(tmp_path: Path) -> None:
    """Heads folded into the batch, as exporters write it: no shape inference by itself follows the product."""
    nodes = [
        node("Shape", "x", "shape"),
        node("Gather", "shape zero", "batch"),
        node("Mul", "batch heads", "rows"),
        node("Unsqueeze", "rows axes0", "rows1"),
        node("Concat", "rows1 tail", "target", axis=0),
        node("Reshape", "x target", "folded"),
        node("ConstantOfShape", "target", "zeros"),
        node("Add", "folded zeros", "y"),
    ]
    constants = [integers("zero", 0), integers("heads", 2), integers("axes0", [0]), integers("tail", [-1, 4])]
    path = save(tmp_path, nodes, [value("x", ["batch", 6, 8])], [value("y", None)], constants)
    with pytest.raises(InputError, match=r"2 shapes cannot be inferred, starting with: zeros \(of ConstantOfShape\)"):
        import_onnx(path, dims={"batch": 3})  # -1 is no size
    constants[-1] = integers("tail", [6, 4])
    path = save(tmp_path, nodes, [value("x", ["batch", 6, 8])], [value("y", None)], constants)
    graph = import_onnx(path, dims={"batch": 3})
    assert graph.shape(graph.num_ops - 1) == (6, 6, 4)
    assert classes(graph) == {"x": "source", "n_folded": "view", "zeros": "source", "n_y": "elementwise"}
    zeros = ops(graph)["zeros"]
    assert (graph.kinds[graph.kind[zeros]], graph.param_bytes[zeros]) == ("constant", 0)


def test_import_onnx__weights_in_constant_nodes_are_parameters(tmp_path: Path) -> None:
    nodes = [node("Constant", "", "w", value=weight("w", 4, 5)), node("MatMul", "x w", "y")]
    graph = import_onnx(save(tmp_path, nodes, [value("x", [3, 4])], [value("y", None)]))
    assert graph.param_bytes.sum() == 4 * 4 * 5


def test_import_onnx__slice_at_computed_position_is_a_copy(tmp_path: Path) -> None:
    nodes = [
        node("ArgMax", "x", "start", axis=0, keepdims=1),
        node("Add", "start one", "end"),
        node("Slice", "x start end", "y"),
    ]
    path = save(tmp_path, nodes, [value("x", [9])], [value("y", [1])], [integers("one", [1])])
    graph = import_onnx(path)
    assert classes(graph)["n_y"] == "copy"
    assert len(graph.predecessors(graph.num_ops - 1)) == 3


def test_import_onnx__drops_what_no_output_needs(tmp_path: Path) -> None:
    nodes = [node("Relu", "x", "y"), node("Mul", "x unused", "dead")]
    path = save(tmp_path, nodes, [value("x", [4]), value("z", [4])], [value("y", [4])], [weight("unused", 4)])
    assert set(ops(import_onnx(path))) == {"x", "n_y"}


def test_import_onnx__unknown_operator_is_other_and_listed(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Fancy", ["x", "w"], ["f"], name="n_f", domain="custom"),
        helper.make_node("Fancy", ["f", "w"], ["g"], name="n_g", domain="custom"),
        node("Det", "g", "y"),
    ]
    graph_args = ([value("x", [4, 4])], [value("y", [])], [weight("w", 4, 4)])
    path = save(tmp_path, nodes, *graph_args)
    with pytest.raises(InputError, match=r"2 shapes cannot be inferred, starting with: f \(of Fancy\), g \(of Fancy\)"):
        import_onnx(path)
    model = onnx.load(path)
    model.graph.value_info.extend([value("f", [4, 4]), value("g", [4, 4])])
    path.write_bytes(model.SerializeToString())
    graph = import_onnx(path)
    assert graph.metadata["unmodelled_ops"] == {"Det": 1, "custom.Fancy": 2}
    fancy = ops(graph)["n_f"]
    assert classes(graph)["n_f"] == "other"
    assert (graph.flops[fancy], graph.bytes_read[fancy], graph.bytes_written[fancy]) == (0, 128, 64)


def test_import_onnx__inlines_local_functions(tmp_path: Path) -> None:
    function = helper.make_function(
        "custom", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 20)]
    )
    nodes = [helper.make_node("Twice", ["x"], ["y"], name="n", domain="custom")]
    path = save(tmp_path, nodes, [value("x", [4])], [value("y", [4])], functions=[function])
    graph = import_onnx(path)
    assert graph.kinds[graph.kind[-1]] == "Add"


def test_import_onnx__weights_beside_the_model_are_not_needed(tmp_path: Path) -> None:
    path = save(
        tmp_path, [node("MatMul", "x w", "y")], [value("x", [2, 64])], [value("y", None)], [weight("w", 64, 64)]
    )
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").unlink()
    assert import_onnx(path).param_bytes.sum() == 4 * 64 * 64


def test_import_onnx__names_every_open_dimension_and_the_fix(tmp_path: Path) -> None:
    path = save(
        tmp_path,
        [node("Add", "x z", "y")],
        [value("x", ["batch", "seq", 4]), value("z", [None, 4])],
        [value("y", ["batch", "seq", 4])],
    )
    with pytest.raises(InputError, match=r"x\[batch, seq, 4\], z\[z:0, 4\]; give the sizes.*'batch': ….*'z:0': …"):
        import_onnx(path)
    with pytest.raises(InputError, match=r"z\[z:0, 4\]; give the sizes: dims=\{'seq': …, 'z:0': …\}"):
        import_onnx(path, dims={"batch": 2})
    with pytest.raises(InputError, match="unknown ONNX dimension 'bach'; did you mean 'batch'"):
        import_onnx(path, dims={"bach": 2})
    with pytest.raises(InputError, match="dimension 'batch' is 0; give an integer of at least 1"):
        import_onnx(path, dims={"batch": 0})
    graph = import_onnx(path, dims={"batch": 2, "seq": 3, "z:0": 3})
    assert graph.shape(graph.num_ops - 1) == (2, 3, 4)


@pytest.mark.parametrize("symbol", ["?", "N"])
def test_import_onnx__one_name_for_two_sizes__each_is_given_by_its_place(tmp_path: Path, symbol: str) -> None:
    path = save(
        tmp_path,
        [node("MatMul", "x z", "m"), node("Relu", "m", "y")],
        [value("x", [symbol, symbol]), value("z", [symbol, 4])],
        [value("y", [symbol, 4])],
    )
    missing = "'x:0': …, 'x:1': …, 'z:0': …" if symbol == "?" else "'N': …"
    with pytest.raises(InputError, match=re.escape(f"give the sizes: dims={{{missing}}}")):
        import_onnx(path)
    with pytest.raises(InputError, match=r"give the sizes: dims=\{'x:1': …, 'z:0': …\}"):
        import_onnx(path, dims={"x:0": 3})
    graph = import_onnx(path, dims={"x:0": 3, "x:1": 5, "z:0": 5})
    assert graph.shape(graph.num_ops - 1) == (3, 4)
    assert import_onnx(path, dims={symbol: 5, "x:0": 3}).fingerprint == graph.fingerprint
    assert import_onnx(path, dims={symbol: 6}).shape(graph.num_ops - 1) == (6, 4)


def test_import_onnx__refuses_strings(tmp_path: Path) -> None:
    path = save(tmp_path, [node("Identity", "x", "y")], [value("x", [4], 8)], [value("y", [4], 8)])
    with pytest.raises(InputError, match=r"unsupported type: x \(string\), y \(string\)"):
        import_onnx(path)


def test_import_onnx__refuses_a_graph_that_computes_nothing(tmp_path: Path) -> None:
    path = save(tmp_path, [node("Shape", "x", "y")], [value("x", [4])], [value("y", [1], INT64)])
    with pytest.raises(InputError, match="computes nothing"):
        import_onnx(path)


def test_import_onnx__refuses_an_invalid_model(tmp_path: Path) -> None:
    path = save(tmp_path, [node("Add", "x nowhere", "y")], [value("x", [4])], [value("y", [4])])
    with pytest.raises(InputError, match=r"not a valid ONNX model.*nowhere") as caught:
        import_onnx(path)
    assert "\n" not in str(caught.value)


def test_import_onnx__refuses_damaged_and_foreign_files(cnn: Path, tmp_path: Path) -> None:
    content = cnn.read_bytes()
    cases = {"text": b"hello, this is a text file\n", "empty": b"", "zip": b"PK\x03\x04" + bytes(60)}
    cases |= {f"cut{length}": content[:length] for length in (3, 50, len(content) // 2, len(content) - 4)}
    for name, bad in cases.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(bad)
        with pytest.raises(InputError, match=rf"{name}.onnx' is not an? (ONNX|valid ONNX) model") as caught:
            import_onnx(path, dims={"N": 1})
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"missing.onnx' cannot be read: No such file"):
        import_onnx(tmp_path / "missing.onnx")


def test_import_onnx__missing_package_names_the_extra(cnn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match=r'pip install "graphopt-gym\[onnx\]"'):
        import_onnx(cnn)
