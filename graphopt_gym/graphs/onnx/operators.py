"""ONNX's operators: their classes, and their FLOPs from the shapes of tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from graphopt_gym.graphs.capture import FLOPS_PER_ELEMENT
from graphopt_gym.graphs.graph import OP_CLASSES, VIEW
from graphopt_gym.graphs.onnx import contrib
from graphopt_gym.graphs.onnx.contrib import Tensor
from graphopt_gym.graphs.onnx.front import attributes_of

if TYPE_CHECKING:
    import onnx

_CLASS_OF_KIND = {
    "matmul": "Gemm MatMul MatMulInteger QLinearMatMul Einsum Attention RNN LSTM GRU",
    "conv": "Conv ConvTranspose ConvInteger QLinearConv",
    "softmax": "Softmax LogSoftmax Hardmax",
    "norm": "BatchNormalization InstanceNormalization LayerNormalization GroupNormalization RMSNormalization "
    "LpNormalization MeanVarianceNormalization LRN",
    "pool": "MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool",
    "reduction": "ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp "
    "ReduceSumSquare ArgMax ArgMin TopK CumSum",
    "gather": "Gather GatherElements GatherND Scatter ScatterElements ScatterND OneHot",
    "copy": "Transpose Concat Pad Tile Expand Cast CastLike DepthToSpace SpaceToDepth Resize Upsample Trilu "
    "ReverseSequence ConstantOfShape EyeLike",
    "elementwise": "Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor "
    "Ceil Celu Clip Cos Cosh DequantizeLinear Div DynamicQuantizeLinear Elu Equal Erf Exp Floor Gelu Greater "
    "GreaterOrEqual HardSigmoid HardSwish IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not "
    "Or PRelu Pow QuantizeLinear Range Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt "
    "Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor",
    "view": "Reshape Squeeze Unsqueeze Flatten Identity Slice Dropout Split",
}
_CLASS = {kind: OP_CLASSES.index(name) for name, kinds in _CLASS_OF_KIND.items() for kind in kinds.split()}
_COPY, _OTHER = OP_CLASSES.index("copy"), OP_CLASSES.index("other")
# As in the capture from torch; one operation per element for the rest.
_PER_ELEMENT = {
    "Gelu": FLOPS_PER_ELEMENT["gelu"],
    "Tanh": FLOPS_PER_ELEMENT["tanh"],
    "Sigmoid": FLOPS_PER_ELEMENT["sigmoid"],
    "Swish": FLOPS_PER_ELEMENT["silu"],
}
_PER_ELEMENT_OF_CLASS = {"softmax": FLOPS_PER_ELEMENT["_softmax"], "norm": FLOPS_PER_ELEMENT["native_layer_norm"]}
# types that DTYPES lacks, as one of the same size
SAME_SIZE = {
    "uint16": "int16",
    "uint32": "int32",
    "uint64": "int64",
    "float8e4m3fn": "uint8",
    "float8e4m3fnuz": "uint8",
    "float8e5m2": "uint8",
    "float8e5m2fnuz": "uint8",
    "float": "float32",
    "double": "float64",
}


# What the laying flat of control flow adds, see graphopt_gym.graphs.onnx.flatten.
OWN = "graphopt"
_CLASS_OF_OWN = {"Select": VIEW, "Stack": _COPY}


def class_of(node: onnx.NodeProto) -> int:
    """Index into OP_CLASSES; ``other`` where the operator is not known."""
    if node.domain == OWN:
        return _CLASS_OF_OWN[node.op_type]
    if is_contrib(node):
        return OP_CLASSES.index(contrib.CLASS.get(node.op_type, "other"))
    return _CLASS.get(node.op_type, _OTHER) if node.domain in ("", "ai.onnx") else _OTHER


def is_contrib(node: onnx.NodeProto) -> bool:
    """Whether it is ONNX Runtime's; the exporter writes some of those into ONNX's own domain."""
    return node.domain == contrib.DOMAIN or (
        node.domain in ("", "ai.onnx") and node.op_type in ("SimplifiedLayerNormalization", "FusedMatMul")
    )


def flops_of(node: onnx.NodeProto, given: Sequence[Tensor | None], out: Tensor) -> int | None:
    """FLOPs of a node; None where its operator, or this form of it, is not known."""
    if is_contrib(node):
        return contrib.flops_of(node.op_type, attributes_of(node), given, out)
    kind, op_class = node.op_type, OP_CLASSES[class_of(node)]
    x = given[0] if given and given[0] is not None else out
    attributes = attributes_of(node)
    if op_class == "gather" or kind in ("Range",):
        return 0
    if kind in ("MatMul", "MatMulInteger", "QLinearMatMul"):
        return 2 * out.elements * x.shape[-1]
    if kind == "Gemm":
        return 2 * out.elements * x.shape[0 if attributes.get("transA") else 1]
    if kind == "Einsum":
        return _einsum_flops(attributes["equation"].decode(), given)
    if kind == "Attention":  # queries by keys, then weights by values: opset 23
        keys, past = given[1], given[4] if len(given) > 4 else None
        assert keys is not None
        length = keys.shape[-2] + (past.shape[-2] if past is not None else 0)
        return 2 * (x.elements + out.elements) * length
    if kind in ("RNN", "LSTM", "GRU"):  # both weights times each step of each sequence
        return 2 * x.shape[0] * x.shape[1] * sum(w.elements for w in given[1:3] if w is not None)
    if op_class == "conv":
        weight = given[3 if kind == "QLinearConv" else 1]
        assert weight is not None
        positions = x if kind == "ConvTranspose" else out
        return 2 * positions.elements * math.prod(weight.shape[1:])
    if op_class == "pool":
        return out.elements * math.prod(attributes["kernel_shape"]) if "kernel_shape" in attributes else x.elements
    if op_class == "reduction":
        return x.elements
    if op_class in _PER_ELEMENT_OF_CLASS:
        return _PER_ELEMENT_OF_CLASS[op_class] * x.elements
    if kind in ("Sum", "Max", "Min", "Mean"):
        return max(1, len(given) - 1) * out.elements
    if op_class == "elementwise":
        return _PER_ELEMENT.get(kind, 1) * out.elements
    return None


def _einsum_flops(equation: str, given: Sequence[Tensor | None]) -> int | None:
    """Of the plain loop over all indices; None with an ellipsis."""
    left, _, right = equation.replace(" ", "").partition("->")
    if "." in left or not right:
        return None
    sizes: dict[str, int] = {}
    for indices, tensor in zip(left.split(","), given, strict=True):
        assert tensor is not None
        sizes.update(zip(indices, tensor.shape, strict=True))
    return math.prod(sizes.values()) * (len(given) - 1 + (not set(sizes) <= set(right)))
