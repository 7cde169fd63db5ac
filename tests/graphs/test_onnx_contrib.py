"""Operators of ONNX Runtime's own domain: shapes as ONNX Runtime computes them, FLOPs counted by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt_gym.errors import InputError
from graphopt_gym.graphs.graph import OP_CLASSES
from graphopt_gym.graphs.onnx_import import import_onnx

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
RNG = np.random.default_rng(0)
B, S, T, H, HEADS = 2, 5, 7, 16, 4


def f(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def u8(*shape: int) -> np.ndarray:
    return RNG.integers(0, 255, shape).astype(np.uint8)


def i8(*shape: int) -> np.ndarray:
    return RNG.integers(-100, 100, shape).astype(np.int8)


def i32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


ONE, ZERO8, SCALE = np.float32(1.0), np.uint8(0), np.float32(0.1)
ZERO_S8 = np.int8(0)
TOKENS = np.zeros((B, S), np.int32)
PAST = f(B, HEADS, 3, H // HEADS)
PROJECT = 2 * B * S * H * 3 * H
# id: (operator, inputs, attributes, number of outputs, FLOPs)
CASES: dict[str, tuple[str, list[Any], dict[str, Any], int, int]] = {
    "FusedMatMul": ("FusedMatMul", [f(3, 5, 4), f(3, 6, 4)], {"transB": 1, "alpha": 0.5}, 1, 2 * 3 * 5 * 6 * 4),
    "FusedMatMul, A": ("FusedMatMul", [f(4, 5), f(4, 6)], {"transA": 1}, 1, 2 * 5 * 6 * 4),
    "FusedMatMul, batch": ("FusedMatMul", [f(5, 3, 4), f(3, 4, 6)], {"transBatchA": 1}, 1, 2 * 3 * 5 * 6 * 4),
    "TransposeMatMul": ("TransposeMatMul", [f(4, 5), f(4, 6)], {"transA": 1}, 1, 2 * 5 * 6 * 4),
    "FusedGemm": ("FusedGemm", [f(4, 5), f(6, 5), f(6)], {"transB": 1, "activation": "Relu"}, 1, 2 * 4 * 5 * 6),
    "MatMulNBits": ("MatMulNBits", [f(2, 3, 64), u8(10, 2, 16), f(20)],
                    {"K": 64, "N": 10, "bits": 4, "block_size": 32}, 1, 2 * 6 * 64 * 10),
    "DynamicQuantizeMatMul": ("DynamicQuantizeMatMul", [f(3, 4), i8(4, 6), f(6), i8(6)], {}, 1, 2 * 3 * 4 * 6),
    "MatMulIntegerToFloat": ("MatMulIntegerToFloat", [u8(3, 4), u8(4, 6), SCALE, SCALE], {}, 1, 2 * 3 * 4 * 6),
    "QGemm": ("QGemm", [u8(3, 4), SCALE, ZERO8, u8(6, 4), SCALE, ZERO8, None, SCALE, ZERO8], {"transB": 1}, 1,
              2 * 3 * 4 * 6),
    "QGemm, float": ("QGemm", [u8(3, 4), SCALE, ZERO8, u8(4, 6), SCALE, ZERO8], {}, 1, 2 * 3 * 4 * 6),
    "Attention": ("Attention", [f(B, S, H), f(H, 3 * H), f(3 * H)], {"num_heads": HEADS}, 1,
                  PROJECT + 4 * B * S * S * H),
    "Attention, past": ("Attention", [f(B, S, H), f(H, 3 * H), f(3 * H), None, f(2, B, HEADS, 3, H // HEADS)],
                        {"num_heads": HEADS, "unidirectional": 1}, 2, PROJECT + 4 * B * S * (S + 3) * H),
    "QAttention": ("QAttention", [u8(B, S, H), i8(H, 3 * H), f(3 * H), SCALE, SCALE, None, ZERO8, ZERO_S8],
                   {"num_heads": HEADS}, 1, PROJECT + 4 * B * S * S * H),
    "MultiHeadAttention": ("MultiHeadAttention", [f(B, S, H), f(B, T, H), f(B, T, 2 * H)], {"num_heads": HEADS}, 1,
                           2 * B * S * T * (H + 2 * H)),
    "MultiHeadAttention, heads": ("MultiHeadAttention",
                                  [f(B, S, H), f(B, HEADS, T, H // HEADS), f(B, HEADS, T, H // HEADS)],
                                  {"num_heads": HEADS}, 1, 4 * B * S * T * H),
    "MultiHeadAttention, past": ("MultiHeadAttention",
                                 [f(B, S, H), f(B, S, H), f(B, S, H), None, None, None, PAST, PAST],
                                 {"num_heads": HEADS}, 3, 4 * B * S * (S + 3) * H),
    "GroupQueryAttention": ("GroupQueryAttention",
                            [f(B, S, 32), f(B, S, H), f(B, S, H), f(B, 2, 0, 8), f(B, 2, 0, 8),
                             i32(S - 1, S - 1), i32(S)], {"num_heads": 4, "kv_num_heads": 2}, 3, 4 * B * S * S * 32),
    "GroupQueryAttention, packed": ("GroupQueryAttention",
                                    [f(B, S, 64), None, None, f(B, 2, 0, 8), f(B, 2, 0, 8), i32(S - 1, S - 1),
                                     i32(S)], {"num_heads": 4, "kv_num_heads": 2}, 3, 4 * B * S * S * 32),
    "SkipLayerNormalization": ("SkipLayerNormalization", [f(B, S, H), f(B, S, H), f(H), f(H)], {}, 1, 8 * B * S * H),
    "SkipSimplifiedLayerNormalization": ("SkipSimplifiedLayerNormalization", [f(B, S, H), f(B, S, H), f(H)], {}, 4,
                                         8 * B * S * H),
    "EmbedLayerNormalization": ("EmbedLayerNormalization",
                                [TOKENS, TOKENS, f(9, H), f(S, H), f(2, H), f(H), f(H), TOKENS + 1], {}, 2,
                                8 * B * S * H),
    "BiasGelu": ("BiasGelu", [f(B, H), f(H)], {}, 1, 9 * B * H),
    "FastGelu": ("FastGelu", [f(B, H), f(H)], {}, 1, 8 * B * H),
    "QuickGelu": ("QuickGelu", [f(B, H)], {}, 1, 5 * B * H),
    "Gelu": ("Gelu", [f(B, H)], {}, 1, 8 * B * H),
    "RotaryEmbedding": ("RotaryEmbedding", [f(B, HEADS, S, 4), np.zeros((B, S), np.int64), f(S, 2), f(S, 2)], {}, 1,
                        3 * B * S * H),
    "MoE": ("MoE", [f(6, H), f(6, 3), f(3, 32, H), None, f(3, H, 32)], {"k": 2, "activation_type": "relu"}, 1,
            2 * 2 * 6 * 2 * 32 * H),
    "FusedConv": ("FusedConv", [f(1, 3, 9, 8), f(4, 3, 3, 3), f(4)],
                  {"pads": [1, 1, 1, 1], "strides": [2, 2], "activation": "Relu"}, 1, 2 * 4 * 5 * 4 * 27),
    "NhwcMaxPool": ("NhwcMaxPool", [u8(1, 9, 8, 3)], {"kernel_shape": [2, 2], "strides": [2, 2]}, 1, 4 * 4 * 3 * 4),
    "QLinearConv": ("QLinearConv", [u8(1, 9, 8, 3), SCALE, ZERO8, u8(4, 3, 3, 3), SCALE, ZERO8, SCALE, ZERO8],
                    {"channels_last": 1, "kernel_shape": [3, 3]}, 1, 2 * 7 * 6 * 4 * 27),
    "QLinearAdd": ("QLinearAdd", [u8(3, 4), SCALE, ZERO8, u8(4), SCALE, ZERO8, SCALE, ZERO8], {}, 1, 12),
    "QLinearSigmoid": ("QLinearSigmoid", [u8(3, 4), SCALE, ZERO8, SCALE, ZERO8], {}, 1, 12),
    "QLinearConcat": ("QLinearConcat", [SCALE, ZERO8, u8(3, 4), SCALE, ZERO8, u8(3, 2), SCALE, ZERO8], {"axis": 1}, 1,
                      0),
    "QLinearAveragePool": ("QLinearAveragePool", [u8(1, 3, 9, 8), SCALE, ZERO8, SCALE, ZERO8],
                           {"kernel_shape": [3, 2], "ceil_mode": 1, "strides": [4, 2]}, 1, 3 * 3 * 4 * 6),
    "QLinearGlobalAveragePool": ("QLinearGlobalAveragePool", [u8(1, 9, 8, 3), SCALE, ZERO8, SCALE, ZERO8],
                                 {"channels_last": 1}, 1, 9 * 8 * 3),
    "QuantizeLinear": ("QuantizeLinear", [f(3, 4), SCALE, ZERO_S8], {}, 1, 12),
    "DequantizeLinear": ("DequantizeLinear", [u8(3, 4), SCALE, ZERO8], {}, 1, 12),
    "CDist": ("CDist", [f(3, 4), f(5, 4)], {"metric": "euclidean"}, 1, 3 * 15 * 4),
    "GatherBlockQuantized": ("GatherBlockQuantized", [u8(9, 32), np.array([[1, 2, 3]], np.int64), f(9, 2)],
                             {"bits": 4, "block_size": 32, "gather_axis": 0, "quantize_axis": 1}, 1, 0),
    "DynamicQuantizeLSTM": ("DynamicQuantizeLSTM",
                            [f(S, B, 4), i8(1, 4, 32), i8(1, 8, 32), None, None, None, None, None, f(1), i8(1), f(1),
                             i8(1)], {"hidden_size": 8}, 3, 2 * S * B * 32 * (4 + 8)),
}  # fmt: skip


def model_of(kind: str, inputs: list[Any], attributes: dict[str, Any], outputs: int) -> Any:
    """One operator; small integers and what is quantised are initializers, as ONNX Runtime wants some of them so."""
    names = ["" if given is None else f"x{index}" for index, given in enumerate(inputs)]
    node = onnx.helper.make_node(
        kind, names, [f"y{index}" for index in range(outputs)], name="n", domain="com.microsoft", **attributes
    )
    values, weights = [], []
    for name, given in zip(names, inputs, strict=True):
        array = np.asarray(given)
        if not name:
            continue
        if (array.ndim and name == "x0") or (array.dtype == np.float32 and array.ndim > 2) or array.shape == (B, S):
            kind_of = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            values.append(onnx.helper.make_tensor_value_info(name, kind_of, array.shape))
        else:
            weights.append(onnx.numpy_helper.from_array(array, name))
    results = [onnx.helper.make_tensor_value_info(f"y{index}", 1, None) for index in range(outputs)]
    graph = onnx.helper.make_graph([node], "g", values, results, weights)
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("com.microsoft", 1)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize("case", CASES)
def test_contrib__shapes_are_onnx_runtimes(case: str, tmp_path: Path) -> None:
    kind, inputs, attributes, outputs, flops = CASES[case]
    model = model_of(kind, inputs, attributes, outputs)
    feeds = {value.name: np.asarray(inputs[int(value.name[1:])]) for value in model.graph.input}
    for value in model.graph.output:
        value.ClearField("type")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    results = runtime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"]).run(None, feeds)
    for value, result in zip(model.graph.output, results, strict=True):
        dtype = onnx.helper.np_dtype_to_tensor_dtype(result.dtype)
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, dtype, None))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    graph = import_onnx(path)
    [op] = [op for op in range(graph.num_ops) if graph.kinds[graph.kind[op]] == kind]
    found = [op] if outputs == 1 else graph.successors(op).tolist()
    assert [graph.shape(one) for one in found] == [result.shape for result in results]
    assert [graph.output_bytes[one] for one in found] == [result.nbytes for result in results]
    assert graph.flops[op] == flops
    assert "unmodelled_ops" not in graph.metadata
    assert OP_CLASSES[graph.op_class[op]] != "other"


def test_contrib__unknown_operators_take_the_shapes_that_the_file_states(tmp_path: Path) -> None:
    model = model_of("Sampling", [f(3, 4)], {}, 1)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"1 shapes cannot be inferred, starting with: y0 \(of Sampling\); store"):
        import_onnx(path)
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y0", 1, [3, 9]))
    path.write_bytes(model.SerializeToString())
    graph = import_onnx(path)
    assert graph.metadata["unmodelled_ops"] == {"com.microsoft.Sampling": 1}
    assert graph.shape(graph.num_ops - 1) == (3, 9)
