"""FLOPs of aten operators that multiply matrices, or do more than a fixed number of operations an element.

A multiply-add counts as two. What a kernel leaves out is not counted: a causal attention works on the lower triangle,
a 2:4 sparse product on the values that are stored, a grouped product on each group's own rows. Each formula takes
the arguments by the names of the operator's schema, with tensors of true shapes, and what the operator returned.
:data:`FORMULAS` goes over all of ``torch.ops.aten`` as of torch 2.13; what is in ``torch.utils.flop_counter`` and not
here has the formula there, and an operator of one's own the one that is registered with
``torch.utils.flop_counter.register_flop_formula``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

Formula = Callable[[Mapping[str, Any], Any], int]


def _first(out: Any) -> Any:
    return out[0] if isinstance(out, list | tuple) else out


# ---- products


def _product(left: str) -> Formula:
    """out[..., m, n] = left[..., m, k] @ right[..., k, n]."""

    def formula(given: Mapping[str, Any], out: Any) -> int:
        return 2 * _first(out).numel() * given[left].shape[-1]

    return formula


def _mv(given: Mapping[str, Any], out: Any) -> int:
    return 2 * given["mat" if "mat" in given else "self"].numel()


def _addbmm(given: Mapping[str, Any], out: Any) -> int:
    batch, rows, inner = given["batch1"].shape
    return 2 * batch * rows * inner * given["batch2"].shape[-1]


def grouped_mm(given: Mapping[str, Any], out: Any) -> int:
    """Products of groups of rows (or columns, or of the reduced dimension): every row takes part in one group.

    [m, k] x [g, k, n], [g, m, k] x [k, n], [m, k] x [k, n] with k in groups, or [g, m, k] x [g, k, n].
    """
    left, right = given["self"], given["mat2"]
    if left.dim() == 3 and right.dim() == 2:
        return 2 * right.numel() * left.shape[1]
    return 2 * left.numel() * right.shape[-1]


def _foreach_mm(given: Mapping[str, Any], out: Any) -> int:
    return sum(2 * left.numel() * right.shape[-1] for left, right in zip(given["self"], given["mat2"], strict=True))


def _sparse_left(left: str, right: str) -> Formula:
    """A 2:4 sparse left operand, stored as half its columns: the products with what is stored."""

    def formula(given: Mapping[str, Any], out: Any) -> int:
        return 2 * given[left].numel() * given[right].shape[-1]

    return formula


def _sparse_linear(given: Mapping[str, Any], out: Any) -> int:
    rows = given["input"].numel() // max(given["input"].shape[-1], 1)
    return 2 * rows * given["weight"].numel()


def _two_products(given: Mapping[str, Any], out: Any) -> int:
    """The gradients of both operands of a linear layer, as far as they are wanted."""
    weight, tensor = given["weight"], given["self"]
    rows = tensor.numel() // max(tensor.shape[-1], 1)
    return sum(map(bool, given["output_mask"][:2])) * 2 * rows * weight.numel()


def _matmul_backward(given: Mapping[str, Any], out: Any) -> int:
    grad = given["grad"]
    return sum(map(bool, given["mask"])) * 2 * grad.numel() * given["self"].shape[-1]


def _trilinear(given: Mapping[str, Any], out: Any) -> int:
    """A product of three tensors, summed: each with new dimensions where the others have theirs."""
    shapes = []
    for index in (1, 2, 3):
        shape = list(given[f"i{index}"].shape)
        for dimension in sorted(given[f"expand{index}"]):
            shape.insert(dimension, 1)
        shapes.append(shape)
    return 3 * math.prod(max(sizes) for sizes in zip(*shapes, strict=True))


# ---- attention


def causal_pairs(queries: int, keys: int) -> int:
    """Pairs of a query and a key that it may look at where query i sees the keys 0 to i."""
    square = min(queries, keys)
    return square * (square + 1) // 2 + (queries - square) * keys


def _share(given: Mapping[str, Any], queries: int, keys: int) -> int:
    causal = given.get("is_causal") or given.get("custom_mask_type")
    return causal_pairs(queries, keys) if causal else queries * keys


def attention(given: Mapping[str, Any], out: Any) -> int:
    """softmax(q k^T) v for q [b, h, l, d], k [b, h', s, d], v [b, h', s, e]: two products of each pair of positions.

    Causal: of the lower triangle with its diagonal, l (l + 1) / 2 of l^2 pairs. Fused kernels skip whole tiles, so
    they work on a little more, by about half a tile a row.
    """
    query, key, value = (given[name] for name in (("q", "k", "v") if "q" in given else ("query", "key", "value")))
    heads = math.prod(query.shape[:-2])
    pairs = _share(given, query.shape[-2], key.shape[-2])
    return 2 * heads * pairs * (query.shape[-1] + value.shape[-1])


def attention_backward(given: Mapping[str, Any], out: Any) -> int:
    """Five products a pair: q k^T again, and the gradients of the softmax, q, k and v."""
    query, key, value = given["query"], given["key"], given["value"]
    heads = math.prod(query.shape[:-2])
    pairs = _share(given, query.shape[-2], key.shape[-2])
    return 2 * heads * pairs * (3 * query.shape[-1] + 2 * value.shape[-1])


def _positions_first(given: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """(b * h, l, s, d + e) of q [b, l, h, d]; or of packed sequences [sum of l, h, d], each as the longest."""
    query, key, value = given["query"], given["key"], given["value"]
    sizes = query.shape[-1], value.shape[-1]
    if query.dim() == 3 or given.get("cum_seq_q") is not None or given.get("cu_seqlens_q") is not None:
        longest = given.get("max_q", given.get("max_seqlen_q")) or query.shape[-3]
        longest_key = given.get("max_k", given.get("max_seqlen_k")) or key.shape[-3]
        sequences = max(round(query.numel() / (query.shape[-1] * query.shape[-2] * longest)), 1)
        return sequences * query.shape[-2], int(longest), int(longest_key), sum(sizes)
    return query.shape[0] * query.shape[2], query.shape[1], key.shape[1], sum(sizes)


def positions_first(given: Mapping[str, Any], out: Any) -> int:
    heads, queries, keys, both = _positions_first(given)
    return 2 * heads * _share(given, queries, keys) * both


def positions_first_backward(given: Mapping[str, Any], out: Any) -> int:
    heads, queries, keys, both = _positions_first(given)
    return 2 * heads * _share(given, queries, keys) * (2 * both + given["query"].shape[-1])


def multi_head(given: Mapping[str, Any], out: Any) -> int:
    """Projections and attention in one kernel, or a whole encoder layer."""
    source = given.get("query", given.get("src"))
    batch, length, width = source.shape
    weights = [given[name] for name in ("qkv_weight", "proj_weight", "ffn_weight_1", "ffn_weight_2") if name in given]
    return 2 * batch * length * sum(weight.numel() for weight in weights) + 4 * batch * length * length * width


# ---- convolutions


def convolution(given: Mapping[str, Any], out: Any) -> int:
    """weight [out, in / groups, ...]: each output takes the products of one of its filters."""
    weight = given["weight"]
    return 2 * _first(out).numel() * weight.numel() // max(weight.shape[0], 1)


def transposed_convolution(given: Mapping[str, Any], out: Any) -> int:
    """weight [in, out / groups, ...]: each input is multiplied with one of its filters."""
    weight, tensor = given["weight"], given["self"]
    return 2 * tensor.numel() * weight.numel() // max(weight.shape[0], 1)


def convolution_backward(given: Mapping[str, Any], out: Any) -> int:
    """As much as the forward pass for each of the gradients of input and weight that is wanted."""
    weight, grad = given["weight"], given["grad_output"]
    wanted = sum(t is not None for t in out[:2]) if isinstance(out, list | tuple) else 2
    return wanted * 2 * grad.numel() * weight.numel() // max(weight.shape[0], 1)


def _conv_tbc(given: Mapping[str, Any], out: Any) -> int:
    width, channels, _ = given["weight"].shape
    return 2 * _first(out).numel() * width * channels


def _conv_tbc_backward(given: Mapping[str, Any], out: Any) -> int:
    width, channels, _ = given["weight"].shape
    return 4 * given["self"].numel() * width * channels


# ---- recurrent layers


def recurrent(times: int) -> Formula:
    """Every step of every sequence is multiplied with every weight matrix once; ``times`` for the passes.

    What is done an element of the gates is left out: some 30 operations beside 8 times the hidden size.
    """

    def formula(given: Mapping[str, Any], out: Any) -> int:
        tensor = given["input"]
        sizes = given.get("batch_sizes")
        steps = sum(sizes) if sizes else tensor.numel() // max(tensor.shape[-1], 1)
        names = ("weight", "params", "weight0", "weight1", "weight2", "weight3", "weight4")
        weights = [given[name] for name in names if name in given]
        flat = [t for entry in weights for t in (entry if isinstance(entry, list | tuple) else (entry,))]
        return times * 2 * steps * sum(t.numel() for t in flat if t.dim() == 2)

    return formula


def _each(operations: int) -> Formula:
    """A fixed number of operations an element of the first result."""

    def formula(given: Mapping[str, Any], out: Any) -> int:
        return operations * _first(out).numel()

    return formula


# ---- linear algebra: leading terms for matrices [..., m, n] (Golub and Van Loan, Matrix Computations; recalled)


def _matrix(name: str, count: Callable[[float, float], float]) -> Formula:
    def formula(given: Mapping[str, Any], out: Any) -> int:
        matrix = given[name]
        rows, columns = matrix.shape[-2:]
        return int(math.prod(matrix.shape[:-2]) * count(rows, columns)) * (4 if matrix.is_complex() else 1)

    return formula


def _lu(m: float, n: float) -> float:
    return max(m, n) * min(m, n) ** 2 - min(m, n) ** 3 / 3


def _qr(m: float, n: float) -> float:
    """Factors and the columns of Q that are kept."""
    return 2 * (2 * max(m, n) * min(m, n) ** 2 - 2 * min(m, n) ** 3 / 3)


def _svd(given: Mapping[str, Any], out: Any) -> int:
    def count(m: float, n: float) -> float:
        long, short = max(m, n), min(m, n)
        if given.get("compute_uv", True):
            return (
                4 * long**2 * short + 22 * short**3
                if given.get("full_matrices")
                else 14 * long * short**2 + 8 * short**3
            )
        return 4 * long * short**2 - 4 * short**3 / 3

    return _matrix("A" if "A" in given else "self", count)(given, out)


def _eigh(given: Mapping[str, Any], out: Any) -> int:
    return _matrix("A", lambda m, n: (9 if given.get("compute_v", True) else 4 / 3) * n**3)(given, out)


def _solve(matrix: str, factor: Callable[[float], float], each: float) -> Formula:
    """Factors of a matrix [..., n, n], and ``each`` n^2 operations for each right-hand side of the result."""

    def formula(given: Mapping[str, Any], out: Any) -> int:
        size = given[matrix].shape[-1]
        solution = _first(out).numel()  # n elements a right-hand side
        return int(math.prod(given[matrix].shape[:-2]) * factor(size) + each * size * solution)

    return formula


# ---- others


def _fft(real: str = "") -> Formula:
    """5 n log2 n for a transform of n complex numbers; half for real ones (at the side that is ``real``)."""

    def formula(given: Mapping[str, Any], out: Any) -> int:
        signal = _first(out) if real == "out" else given["self"]
        length = math.prod(signal.shape[dimension] for dimension in given["dim"])
        return int((2.5 if real else 5) * signal.numel() * math.log2(max(length, 2)))

    return formula


def _distances(times: int) -> Formula:
    """A difference, a power and a sum for each pair of rows and each column."""

    def formula(given: Mapping[str, Any], out: Any) -> int:
        pairs = given["cdist"].numel() if "cdist" in given else _first(out).numel()
        return times * pairs * given["x1" if "x1" in given else "self"].shape[-1]

    return formula


def _bag(given: Mapping[str, Any], out: Any) -> int:
    """The sum of the rows that are looked up."""
    return given["indices"].numel() * given["weight"].shape[-1]


def _bag_backward(given: Mapping[str, Any], out: Any) -> int:
    return given["indices"].numel() * given["grad"].shape[-1]


def _ctc(given: Mapping[str, Any], out: Any) -> int:
    """Six operations (log-sum-exp of three) a step and state; 2 L + 1 states, of L labels of the longest target."""
    steps = math.prod(given["log_probs"].shape[:-1])
    targets = given["targets"]
    return 6 * steps * (2 * targets.shape[-1] + 1)


FORMULAS: dict[str, Formula] = {
    # products
    "linear": _product("input"),
    "mkldnn_linear": _product("self"),
    "dot": lambda given, out: 2 * given["self"].numel(),
    "vdot": lambda given, out: 2 * given["self"].numel(),
    "mv": _mv,
    "addmv": _mv,
    "addbmm": _addbmm,
    "addr": _each(2),
    "_addmm_activation": _product("mat1"),
    "_int_mm": _product("self"),
    "_scaled_mm": _product("self"),
    "_scaled_mm_v2": _product("self"),
    "_weight_int8pack_mm": _product("self"),
    "_weight_int4pack_mm": _product("self"),
    "_weight_int4pack_mm_for_cpu": _product("self"),
    "_weight_int4pack_mm_with_scales_and_zeros": _product("self"),
    "_dyn_quant_matmul_4bit": _product("inp"),
    "_mixed_dtypes_linear": _product("input"),
    "_grouped_mm": grouped_mm,
    "_scaled_grouped_mm": grouped_mm,
    "_scaled_grouped_mm_v2": grouped_mm,
    "_foreach_mm": _foreach_mm,
    "_sparse_semi_structured_linear": _sparse_linear,
    "_sparse_semi_structured_mm": _sparse_left("mat1", "mat2"),
    "_sparse_semi_structured_addmm": _sparse_left("mat1", "mat2"),
    "_cslt_sparse_mm": _sparse_left("compressed_A", "dense_B"),
    "linear_backward": _two_products,
    "mkldnn_linear_backward": _two_products,
    "matmul_backward": _matmul_backward,
    "_trilinear": _trilinear,
    # attention
    "_scaled_dot_product_flash_attention": attention,
    "_scaled_dot_product_flash_attention_for_cpu": attention,
    "_scaled_dot_product_efficient_attention": attention,
    "_scaled_dot_product_cudnn_attention": attention,
    "_scaled_dot_product_fused_attention_overrideable": attention,
    "_scaled_dot_product_attention_math_for_mps": attention,
    "_triton_scaled_dot_attention": attention,
    "_scaled_dot_product_flash_attention_backward": attention_backward,
    "_scaled_dot_product_flash_attention_for_cpu_backward": attention_backward,
    "_scaled_dot_product_efficient_attention_backward": attention_backward,
    "_scaled_dot_product_cudnn_attention_backward": attention_backward,
    "_scaled_dot_product_fused_attention_overrideable_backward": attention_backward,
    "_flash_attention_forward": positions_first,
    "_flash_attention_forward_no_dropout_inplace": positions_first,
    "_efficient_attention_forward": positions_first,
    "_cudnn_attention_forward": attention,
    "_flash_attention_backward": positions_first_backward,
    "_efficient_attention_backward": positions_first_backward,
    "_cudnn_attention_backward": attention_backward,
    "_native_multi_head_attention": multi_head,
    "_triton_multi_head_attention": multi_head,
    "_transformer_encoder_layer_fwd": multi_head,
    # convolutions
    "cudnn_convolution_relu": convolution,
    "cudnn_convolution_add_relu": convolution,
    "cudnn_convolution_transpose": transposed_convolution,
    "miopen_convolution": convolution,
    "miopen_convolution_relu": convolution,
    "miopen_convolution_add_relu": convolution,
    "miopen_convolution_transpose": transposed_convolution,
    "miopen_depthwise_convolution": convolution,
    "mkldnn_convolution": convolution,
    "_mps_convolution": convolution,
    "_mps_convolution_transpose": transposed_convolution,
    "_nnpack_spatial_convolution": convolution,
    "_conv_depthwise2d": convolution,
    "conv_depthwise3d": convolution,
    "slow_conv3d_forward": convolution,
    "slow_conv_dilated2d": convolution,
    "slow_conv_dilated3d": convolution,
    "slow_conv_transpose2d": transposed_convolution,
    "slow_conv_transpose3d": transposed_convolution,
    "_slow_conv2d_backward": convolution_backward,
    "convolution_backward_overrideable": convolution_backward,
    "mps_convolution_backward": convolution_backward,
    "mps_convolution_transpose_backward": convolution_backward,
    "conv_tbc": _conv_tbc,
    "conv_tbc_backward": _conv_tbc_backward,
    # recurrent layers
    "_cudnn_rnn": recurrent(1),
    "miopen_rnn": recurrent(1),
    "mkldnn_rnn_layer": recurrent(1),
    "_lstm_mps": recurrent(1),
    "_cudnn_rnn_backward": recurrent(2),
    "miopen_rnn_backward": recurrent(2),
    "mkldnn_rnn_layer_backward": recurrent(2),
    "lstm_mps_backward": recurrent(2),
    "_thnn_fused_lstm_cell": _each(30),
    "_thnn_fused_lstm_cell_backward_impl": _each(8),
    "_thnn_fused_gru_cell": _each(24),
    "_thnn_fused_gru_cell_backward": _each(6),
    # linear algebra
    "cholesky": _matrix("self", lambda m, n: n**3 / 3),
    "linalg_cholesky_ex": _matrix("self", lambda m, n: n**3 / 3),
    "cholesky_inverse": _matrix("self", lambda m, n: 2 * n**3 / 3),
    "cholesky_solve": _solve("input2", lambda n: 0, 2),
    "_cholesky_solve_helper": _solve("A", lambda n: 0, 2),
    "linalg_lu_factor_ex": _matrix("A", _lu),
    "linalg_lu": _matrix("A", _lu),
    "_linalg_det": _matrix("A", _lu),
    "_linalg_slogdet": _matrix("A", _lu),
    "linalg_lu_solve": _solve("LU", lambda n: 0, 2),
    "_linalg_solve_ex": _solve("A", lambda n: 2 * n**3 / 3, 2),
    "linalg_inv_ex": _matrix("A", lambda m, n: 2 * n**3),
    "linalg_solve_triangular": _solve("self", lambda n: 0, 1),
    "triangular_solve": _solve("A", lambda n: 0, 1),
    "linalg_ldl_factor_ex": _matrix("self", lambda m, n: n**3 / 3),
    "linalg_ldl_solve": _solve("LD", lambda n: 0, 2),
    "linalg_qr": _matrix("A", _qr),
    "geqrf": _matrix("self", lambda m, n: _qr(m, n) / 2),
    "linalg_householder_product": _matrix("input", lambda m, n: _qr(m, n) / 2),
    "ormqr": lambda given, out: 4 * _first(out).numel() * given["input2"].shape[-1],
    "linalg_lstsq": _matrix("self", lambda m, n: _qr(m, n) / 2),
    "_linalg_svd": _svd,
    "linalg_pinv": lambda given, out: (
        _svd({"self": given["self"]}, out) + 2 * _first(out).numel() * given["self"].shape[-1]
    ),
    "_linalg_eigh": _eigh,
    "linalg_eig": _matrix("self", lambda m, n: 25 * n**3),
    "linalg_eigvals": _matrix("self", lambda m, n: 10 * n**3),
    "_linalg_eigvals": _matrix("self", lambda m, n: 10 * n**3),
    "linalg_matrix_exp": _matrix("self", lambda m, n: 2 * 8 * n**3),  # a Taylor polynomial, scaled and squared
    # transforms, distances, sampling
    "_fft_c2c": _fft(),
    "_fft_r2c": _fft("in"),
    "_fft_c2r": _fft("out"),
    "_cdist_forward": _distances(3),
    "_cdist_backward": _distances(4),
    "_euclidean_dist": _distances(2),
    "_pdist_forward": _distances(3),
    "_embedding_bag": _bag,
    "_embedding_bag_forward_only": _bag,
    "_embedding_bag_backward": _bag_backward,
    "_embedding_bag_dense_backward": _bag_backward,
    "_embedding_bag_per_sample_weights_backward": _bag_backward,
    "_ctc_loss": _ctc,
    "_ctc_loss_backward": _ctc,
    "_cudnn_ctc_loss": _ctc,
    "grid_sampler_2d": _each(14),  # four neighbours, their weights and sums
    "grid_sampler_3d": _each(30),
    "cudnn_grid_sampler": _each(14),
    "grid_sampler_2d_backward": _each(28),
    "grid_sampler_3d_backward": _each(60),
    "upsample_linear1d": _each(3),
    "upsample_bilinear2d": _each(7),
    "upsample_trilinear3d": _each(15),
    "upsample_bicubic2d": _each(35),
    "_upsample_bilinear2d_aa": _each(7),
    "_upsample_bicubic2d_aa": _each(35),
}


@contextmanager
def as_first_captured() -> Iterator[None]:
    """Counts ``mv`` as one FLOP an element, as when the shipped graphs were captured: stored runs rest on their ids."""
    formula = FORMULAS["mv"]
    FORMULAS["mv"] = _each(1)
    try:
        yield
    finally:
        FORMULAS["mv"] = formula
