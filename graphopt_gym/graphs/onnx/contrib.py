"""Operators of ONNX Runtime's own domain, ``com.microsoft``: shapes of their outputs, classes and FLOPs.

Shapes as in ONNX Runtime's ContribOperators.md, in part recalled and in part read from its
``tools/symbolic_shape_infer.py``; the tests compare them with what ONNX Runtime computes where its CPU provider has the
operator. FLOPs count a multiply-add as two and leave out biases, as elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from graphopt_gym.graphs.graph import DTYPE_BYTES

DOMAIN = "com.microsoft"

CLASS_OF_KIND = {
    "matmul": "FusedMatMul TransposeMatMul FusedMatMulActivation GemmFastGelu FusedGemm MatMulNBits MatMulFpQ4 "
    "MatMulBnb4 MatMulInteger16 MatMulIntegerToFloat DynamicQuantizeMatMul QGemm GemmFloat8 Attention QAttention "
    "PackedAttention MultiHeadAttention DecoderMaskedMultiHeadAttention GroupQueryAttention LongformerAttention MoE "
    "QMoE DynamicQuantizeLSTM CDist",
    "conv": "FusedConv NhwcConv NhwcFusedConv QLinearConv",
    "norm": "SkipLayerNormalization SkipSimplifiedLayerNormalization SimplifiedLayerNormalization "
    "EmbedLayerNormalization GroupNorm SkipGroupNorm",
    "softmax": "BiasSoftmax QLinearSoftmax",
    "pool": "NhwcMaxPool MaxpoolWithMask QLinearAveragePool QLinearGlobalAveragePool",
    "reduction": "QLinearReduceMean",
    "gather": "GatherBlockQuantized",
    "copy": "QLinearConcat",
    "elementwise": "BiasGelu FastGelu QuickGelu Gelu BiasAdd BiasSplitGelu BiasDropout RotaryEmbedding QLinearAdd "
    "QLinearMul QLinearSigmoid QLinearLeakyRelu QuantizeLinear DequantizeLinear Inverse",
}
CLASS = {kind: name for name, kinds in CLASS_OF_KIND.items() for kind in kinds.split()}
# of the elements of the output, where it is not 1
PER_ELEMENT = {"BiasGelu": 9, "FastGelu": 8, "QuickGelu": 5, "Gelu": 8, "BiasSplitGelu": 10, "RotaryEmbedding": 3}


class Tensor(NamedTuple):
    """A tensor's type: a name of :data:`graphopt_gym.graphs.graph.DTYPES`, or of ONNX's own, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * DTYPE_BYTES[self.dtype]


Given = Sequence[Tensor | None]
Attributes = Mapping[str, Any]
Outputs = Sequence[Tensor | None]


def _at(given: Given, index: int) -> Tensor:
    tensor = given[index] if index < len(given) else None
    if tensor is None:
        raise ValueError(f"its input {index} is missing, or of no known shape")
    return tensor


def _maybe(given: Given, index: int) -> Tensor | None:
    return given[index] if index < len(given) else None


def _broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    return tuple(max(sizes) if 0 not in sizes else 0 for sizes in zip(*padded, strict=True))


def _product(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a matrix product, as NumPy's ``matmul``."""
    rows = a[-2:-1] if len(a) > 1 else ()
    columns = b[-1:] if len(b) > 1 else ()
    return (*_broadcast(a[:-2], b[:-2]), *rows, *columns)


def _swapped(shape: tuple[int, ...], swap: Any, batch: Any = 0) -> tuple[int, ...]:
    if batch and len(shape) > 2:  # the first dimension goes before the last two
        shape = (*shape[1:-1], shape[0], shape[-1])
    return (*shape[:-2], shape[-1], shape[-2]) if swap and len(shape) > 1 else shape


def _matmul(a: Attributes, given: Given) -> Outputs:
    x, y = _at(given, 0), _at(given, 1)
    left = _swapped(x.shape, a.get("transA"), a.get("transBatchA"))
    return [Tensor(x.dtype, _product(left, _swapped(y.shape, a.get("transB"), a.get("transBatchB"))))]


def _gemm(a: Attributes, given: Given, second: int = 1) -> Outputs:
    x, y = _at(given, 0), _at(given, second)
    return [Tensor(x.dtype, (x.shape[1 if a.get("transA") else 0], y.shape[0 if a.get("transB") else 1]))]


def _q_gemm(a: Attributes, given: Given) -> Outputs:
    out = _gemm(a, given, 3)[0]
    assert out is not None
    return [Tensor(out.dtype if _maybe(given, 7) else _at(given, 1).dtype, out.shape)]


def _packed_weight(a: Attributes, given: Given) -> Outputs:
    x = _at(given, 0)
    return [Tensor(x.dtype, (*x.shape[:-1], int(a["N"])))]


def _packed_with_shape(a: Attributes, given: Given) -> Outputs:
    raise ValueError("its shape is in a tensor")


def _to_float(a: Attributes, given: Given) -> Outputs:
    return [Tensor(_at(given, 2).dtype, _product(_at(given, 0).shape, _at(given, 1).shape))]


def _integer_product(a: Attributes, given: Given) -> Outputs:
    return [Tensor("int32", _product(_at(given, 0).shape, _at(given, 1).shape))]


def _attention(a: Attributes, given: Given) -> Outputs:
    x, weight, past = _at(given, 0), _at(given, 1), _maybe(given, 4)
    sizes = a.get("qkv_hidden_sizes") or [weight.shape[1] // 3] * 3
    return _with_present(a, x, sizes, past)


def _q_attention(a: Attributes, given: Given) -> Outputs:
    scale, past = _at(given, 3), _maybe(given, 8)
    x = Tensor(scale.dtype, _at(given, 0).shape)
    return _with_present(a, x, [_at(given, 1).shape[1] // 3] * 3, past)


def _with_present(a: Attributes, x: Tensor, sizes: Sequence[int], past: Tensor | None) -> Outputs:
    heads = int(a["num_heads"])
    out = Tensor(x.dtype, (*x.shape[:-1], int(sizes[2])))
    if len(x.shape) < 3:  # without padding: tokens of all sequences
        return [out]
    length = x.shape[1]
    if past is not None:
        length = past.shape[3] if a.get("past_present_share_buffer") else past.shape[3] + length
    return [out, Tensor(x.dtype, (2, x.shape[0], heads, length, int(sizes[1]) // heads))]


class _Heads(NamedTuple):
    """Sizes of an attention over heads."""

    batch: int
    queries: int  # a sequence
    keys: int  # a sequence, those of the past included
    query_width: int  # of all heads
    value_width: int  # of all query heads
    kv_heads: int
    key_size: int  # of a head
    value_size: int
    dtype: str


def _heads(kind: str, a: Attributes, given: Given) -> _Heads:
    heads = int(a["num_heads"])
    kv_heads = int(a.get("kv_num_heads", heads))
    query, key, value = _at(given, 0), _maybe(given, 1), _maybe(given, 2)
    past = _maybe(given, 3 if kind == "GroupQueryAttention" else 5 if kind.startswith("Decoder") else 6)
    batch, queries = query.shape[:2]
    width, added = query.shape[-1], queries
    key_size = value_size = 0
    if len(query.shape) == 5:  # [B, S, heads, 3, size]
        width = heads * query.shape[4]
    elif key is None:  # all three side by side, in the last dimension
        width = query.shape[2] * heads // (heads + 2 * kv_heads)
    elif len(key.shape) == 5:  # [B, S, heads, 2, size]
        added = key.shape[1]
    elif len(key.shape) == 4:  # [B, heads, S, size]
        added, key_size = key.shape[2], key.shape[3]
    else:
        added, key_size = key.shape[1], key.shape[2] // kv_heads
    key_size = key_size or width // heads
    if value is not None:
        value_size = value.shape[3] if len(value.shape) == 4 else value.shape[2] // kv_heads
    value_size = value_size or key_size
    keys = added
    if past is not None:
        shared = a.get("past_present_share_buffer") or kind.startswith("Decoder")
        keys = past.shape[2] if shared else past.shape[2] + added
    return _Heads(batch, queries, keys, width, heads * value_size, kv_heads, key_size, value_size, query.dtype)


def _multi_head(kind: str) -> Callable[[Attributes, Given], Outputs]:
    def infer(a: Attributes, given: Given) -> Outputs:
        h = _heads(kind, a, given)
        present = (h.batch, h.kv_heads, h.keys)
        return [
            Tensor(h.dtype, (h.batch, h.queries, h.value_width)),
            Tensor(h.dtype, (*present, h.key_size)),
            Tensor(h.dtype, (*present, h.value_size)),
        ]

    return infer


def _like(index: int = 0, dtype: int = -1) -> Callable[[Attributes, Given], Outputs]:
    """The shape of an input, and its type or that of another input."""

    def infer(a: Attributes, given: Given) -> Outputs:
        x = _at(given, index)
        return [x if dtype < 0 else Tensor(_at(given, dtype).dtype, x.shape)]

    return infer


def _skip_norm(a: Attributes, given: Given) -> Outputs:
    x = _at(given, 0)
    per_row = Tensor("float32", (*x.shape[:-1], 1))
    return [x, per_row, per_row, x]


def _simplified_norm(a: Attributes, given: Given) -> Outputs:
    x = _at(given, 0)
    axis = int(a.get("axis", -1)) % len(x.shape)
    return [x, Tensor("float32", (*x.shape[:axis], *[1] * (len(x.shape) - axis)))]


def _skip_group_norm(a: Attributes, given: Given) -> Outputs:
    return [_at(given, 0), _at(given, 0)]


def _embed_norm(a: Attributes, given: Given) -> Outputs:
    ids, words = _at(given, 0), _at(given, 2)
    out = Tensor(words.dtype, (*ids.shape, words.shape[1]))
    return [out, Tensor("int32", ids.shape[:1]), out]


def _binary(a: Attributes, given: Given) -> Outputs:
    x = _at(given, 0)
    return [Tensor(x.dtype, _broadcast(x.shape, _at(given, 3).shape))]


def _half(a: Attributes, given: Given) -> Outputs:
    x = _at(given, 0)
    return [Tensor(x.dtype, (*x.shape[:-1], x.shape[-1] // 2))]


def _quantized(a: Attributes, given: Given) -> Outputs:
    zero = _maybe(given, 2)
    return [Tensor("uint8" if zero is None else zero.dtype, _at(given, 0).shape)]


def _concat(a: Attributes, given: Given) -> Outputs:
    parts = [_at(given, index) for index in range(2, len(given), 3)]
    shape = list(parts[0].shape)
    shape[int(a["axis"])] = sum(part.shape[int(a["axis"])] for part in parts)
    return [Tensor(parts[0].dtype, tuple(shape))]


def _reduce_mean(a: Attributes, given: Given) -> Outputs:
    x = _at(given, 0)
    axes = {int(axis) % len(x.shape) for axis in a.get("axes") or range(len(x.shape))}
    keep = a.get("keepdims", 1)
    return [Tensor(x.dtype, tuple(1 if i in axes else n for i, n in enumerate(x.shape) if keep or i not in axes))]


def _global_pool(a: Attributes, given: Given) -> Outputs:
    x = _at(given, 0)
    ones = (1,) * (len(x.shape) - 2)
    return [Tensor(x.dtype, (x.shape[0], *ones, x.shape[-1]) if a.get("channels_last") else (*x.shape[:2], *ones))]


def _windows(a: Attributes, size: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """Positions of a sliding window along each axis (ONNX's Conv and pools)."""
    count = len(size)
    strides, dilations = a.get("strides") or [1] * count, a.get("dilations") or [1] * count
    auto = (a.get("auto_pad") or b"NOTSET").decode()
    if auto.startswith("SAME"):
        return [-(-n // stride) for n, stride in zip(size, strides, strict=True)]
    pads = (a.get("pads") if auto == "NOTSET" else None) or [0] * (2 * count)
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    free = [n + pads[i] + pads[i + count] - reach[i] for i, n in enumerate(size)]
    return [(-(-room // strides[i]) if a.get("ceil_mode") else room // strides[i]) + 1 for i, room in enumerate(free)]


def _conv(weight: int, out: int = 0) -> Callable[[Attributes, Given], Outputs]:
    """A convolution; ``out``: the input that has the output's type."""

    def infer(a: Attributes, given: Given) -> Outputs:
        x, w = _at(given, 0), _at(given, weight)
        size = _windows(a, x.shape[2:], w.shape[2:])
        return [Tensor(_at(given, out).dtype, (x.shape[0], w.shape[0], *size))]

    return infer


def _channels_last_conv(weight: int) -> Callable[[Attributes, Given], Outputs]:
    def infer(a: Attributes, given: Given) -> Outputs:
        x, w = _at(given, 0), _at(given, weight)
        size = _windows(a, x.shape[1:-1], w.shape[2:])
        return [Tensor(x.dtype, (x.shape[0], *size, w.shape[0]))]

    return infer


def _q_conv(a: Attributes, given: Given) -> Outputs:
    if a.get("channels_last"):
        return _channels_last_conv(3)(a, given)
    return _conv(3, 7)(a, given)


def _pool(channels_last: bool | None) -> Callable[[Attributes, Given], Outputs]:
    def infer(a: Attributes, given: Given) -> Outputs:
        x = _at(given, 0)
        if a.get("channels_last") if channels_last is None else channels_last:
            return [Tensor(x.dtype, (x.shape[0], *_windows(a, x.shape[1:-1], a["kernel_shape"]), x.shape[-1]))]
        return [Tensor(x.dtype, (*x.shape[:2], *_windows(a, x.shape[2:], a["kernel_shape"])))]

    return infer


def _lstm(a: Attributes, given: Given) -> Outputs:
    x, weight = _at(given, 0), _at(given, 1)
    directions, hidden = weight.shape[0], int(a["hidden_size"])
    last = Tensor(x.dtype, (directions, x.shape[1], hidden))
    return [Tensor(x.dtype, (x.shape[0], directions, x.shape[1], hidden)), last, last]


def _distances(a: Attributes, given: Given) -> Outputs:
    x = _at(given, 0)
    return [Tensor(x.dtype, (x.shape[0], _at(given, 1).shape[0]))]


def _gather_block(a: Attributes, given: Given) -> Outputs:
    data, indices, scales = _at(given, 0), _at(given, 1), _at(given, 2)
    axis = int(a.get("gather_axis", 0)) % len(data.shape)
    shape = list(data.shape)
    if data.dtype == "uint8":  # several numbers a byte
        shape[int(a.get("quantize_axis", 1))] *= 8 // int(a.get("bits", 4))
    return [Tensor(scales.dtype, (*shape[:axis], *indices.shape, *shape[axis + 1 :]))]


def _dropout(a: Attributes, given: Given) -> Outputs:
    return [_at(given, 0), Tensor("bool", _at(given, 0).shape)]


_INFER: dict[str, Callable[[Attributes, Given], Outputs]] = {
    **dict.fromkeys(("FusedMatMul", "TransposeMatMul", "FusedMatMulActivation", "GemmFastGelu"), _matmul),
    **dict.fromkeys(("FusedGemm", "GemmFloat8"), _gemm),
    **dict.fromkeys(("MatMulNBits", "MatMulBnb4"), _packed_weight),
    **dict.fromkeys(("Attention", "PackedAttention"), _attention),
    **{kind: _multi_head(kind)
       for kind in ("MultiHeadAttention", "DecoderMaskedMultiHeadAttention", "GroupQueryAttention")},
    **dict.fromkeys(("FastGelu", "BiasGelu", "QuickGelu", "Gelu", "BiasAdd", "RotaryEmbedding", "MoE", "QMoE",
                     "Inverse", "LongformerAttention", "GroupNorm", "BiasSoftmax", "QLinearSigmoid", "QLinearLeakyRelu",
                     "QLinearSoftmax"), _like()),
    **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), _skip_norm),
    **dict.fromkeys(("QLinearAdd", "QLinearMul"), _binary),
    **dict.fromkeys(("NhwcConv", "NhwcFusedConv"), _channels_last_conv(1)),
    "FusedConv": _conv(1),
    "QLinearConv": _q_conv,
    "QAttention": _q_attention,
    "QGemm": _q_gemm,
    "DynamicQuantizeMatMul": _matmul,
    "MatMulIntegerToFloat": _to_float,
    "MatMulInteger16": _integer_product,
    "MatMulFpQ4": _packed_with_shape,
    "SimplifiedLayerNormalization": _simplified_norm,
    "SkipGroupNorm": _skip_group_norm,
    "EmbedLayerNormalization": _embed_norm,
    "BiasSplitGelu": _half,
    "BiasDropout": _dropout,
    "QuantizeLinear": _quantized,
    "DequantizeLinear": _like(0, 1),
    "QLinearConcat": _concat,
    "QLinearReduceMean": _reduce_mean,
    "QLinearGlobalAveragePool": _global_pool,
    "QLinearAveragePool": _pool(None),
    "NhwcMaxPool": _pool(True),
    "MaxpoolWithMask": _pool(False),
    "DynamicQuantizeLSTM": _lstm,
    "CDist": _distances,
    "GatherBlockQuantized": _gather_block,
}  # fmt: skip


def outputs_of(kind: str, attributes: Attributes, given: Given) -> Outputs:
    """Types of an operator's outputs, in order; None where that of one cannot be known.

    Raises:
        ValueError, or what comes of inputs that do not fit.
    """
    return _INFER[kind](attributes, given) if kind in _INFER else []


def flops_of(kind: str, attributes: Attributes, given: Given, out: Tensor) -> int | None:
    """FLOPs of an operator with these inputs and this first output; None where it is not known."""
    if CLASS.get(kind) == "matmul":
        return _product_flops(kind, attributes, given, out)
    if kind in ("MaxpoolWithMask", "NhwcMaxPool", "QLinearAveragePool"):
        return out.elements * math.prod(attributes["kernel_shape"])
    if CLASS.get(kind) == "conv":
        weight = _at(given, 3 if kind == "QLinearConv" else 1)
        return 2 * out.elements * math.prod(weight.shape[1:])
    if CLASS.get(kind) in ("gather", "copy"):
        return 0
    if CLASS.get(kind) in ("pool", "reduction"):
        return _at(given, 0).elements
    if CLASS.get(kind) == "norm":
        return 8 * out.elements
    if CLASS.get(kind) == "softmax":
        return 5 * out.elements
    return PER_ELEMENT.get(kind, 1) * out.elements if kind in CLASS else None


def _product_flops(kind: str, a: Attributes, given: Given, out: Tensor) -> int | None:
    x = _at(given, 0)
    if kind in ("MatMulNBits", "MatMulBnb4", "MatMulFpQ4"):
        return 2 * out.elements * x.shape[-1]
    if kind in ("Attention", "QAttention", "PackedAttention"):
        weight = _at(given, 1)
        project = 2 * x.elements * weight.shape[1]
        present = _with_present(a, x, a.get("qkv_hidden_sizes") or [weight.shape[1] // 3] * 3,
                                _maybe(given, {"Attention": 4, "QAttention": 8}.get(kind, 99)))  # fmt: skip
        keys = x.shape[0] if len(present) < 2 else present[1].shape[3]  # type: ignore[union-attr]
        sizes = a.get("qkv_hidden_sizes") or [weight.shape[1] // 3] * 3
        return project + 2 * math.prod(x.shape[:-1]) * keys * (int(sizes[0]) + int(sizes[2]))
    if kind in ("MultiHeadAttention", "DecoderMaskedMultiHeadAttention", "GroupQueryAttention"):
        h = _heads(kind, a, given)
        return 2 * h.batch * h.queries * h.keys * (h.query_width + h.value_width)
    if kind == "LongformerAttention":  # a window on both sides
        weight = _at(given, 1)
        return 2 * x.elements * weight.shape[1] + 4 * x.elements * (2 * int(a["window"]) + 1)
    if kind in ("MoE", "QMoE"):
        rows = math.prod(x.shape[:-1])
        places = (2, 5, 8) if kind == "QMoE" and len(given) > 8 else (2, 4, 6)
        weights = [w for w in (_maybe(given, place) for place in places) if w is not None and len(w.shape) == 3]
        packed = 8 // int(a.get("expert_weight_bits", 4)) if kind == "QMoE" else 1  # numbers a byte
        return 2 * int(a.get("k", 1)) * rows * packed * sum(math.prod(w.shape[1:]) for w in weights)
    if kind == "DynamicQuantizeLSTM":
        return 2 * math.prod(x.shape[:2]) * sum(_at(given, index).elements for index in (1, 2))
    if kind == "CDist":
        return 3 * out.elements * x.shape[1]
    if kind in ("FusedGemm", "GemmFloat8", "QGemm"):
        return 2 * out.elements * x.shape[0 if a.get("transA") else 1]
    return 2 * out.elements * _swapped(x.shape, a.get("transA"), a.get("transBatchA"))[-1]
