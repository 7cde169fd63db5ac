"""What a graph says of an aten operator: its class, FLOPs, and bytes read and written.

FLOPs of matrix products and convolutions are those of ``torch.utils.flop_counter`` and of
:mod:`graphopt_gym.graphs.flops`. Operators that are known to work element by element, to reduce or to move data get a
count per element (:data:`FLOPS_PER_ELEMENT`), which ``flop_counter`` does not have: compare the two on the classes
``matmul`` and ``conv``. An operator that is neither counts as one FLOP an element and is *not modelled*: graphs name
such operators in ``metadata["unmodelled_ops"]``. Bytes come from tensor metadata: each distinct operand read once, an
expanded one at the size it is stored, each result written once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from graphopt_gym.graphs.flops import FORMULAS
from graphopt_gym.graphs.graph import OP_CLASSES, VIEW

if TYPE_CHECKING:
    import torch

_CLASS_OF_KIND = {
    "matmul": "mm addmm bmm baddbmm dot vdot mv addmv addbmm linear _scaled_dot_product_flash_attention "
    "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_efficient_attention "
    "_scaled_dot_product_cudnn_attention _scaled_dot_product_fused_attention_overrideable "
    "_scaled_dot_product_attention_math_for_mps _triton_scaled_dot_attention _flash_attention_forward "
    "_flash_attention_forward_no_dropout_inplace _efficient_attention_forward _cudnn_attention_forward "
    "_flash_attention _efficient_attention _cudnn_attention _native_multi_head_attention "
    "_triton_multi_head_attention _transformer_encoder_layer_fwd _addmm_activation _int_mm _scaled_mm _scaled_mm_v2 "
    "_weight_int8pack_mm _weight_int4pack_mm _weight_int4pack_mm_for_cpu _weight_int4pack_mm_with_scales_and_zeros "
    "_dyn_quant_matmul_4bit _mixed_dtypes_linear _grouped_mm _scaled_grouped_mm _scaled_grouped_mm_v2 _foreach_mm "
    "_sparse_semi_structured_linear _sparse_semi_structured_mm _sparse_semi_structured_addmm _cslt_sparse_mm "
    "mkldnn_linear matmul _trilinear _cudnn_rnn miopen_rnn mkldnn_rnn_layer _lstm_mps lstm_mps flex_attention "
    "_sparse_addmm hspmm sspaddmm _sparse_sparse_matmul sparse_sampled_addmm _sparse_mm_reduce_impl",
    "conv": "convolution _convolution convolution_overrideable cudnn_convolution cudnn_convolution_relu "
    "cudnn_convolution_add_relu cudnn_convolution_transpose miopen_convolution miopen_convolution_relu "
    "miopen_convolution_add_relu miopen_convolution_transpose miopen_depthwise_convolution mkldnn_convolution "
    "_mps_convolution _mps_convolution_transpose mps_convolution mps_convolution_transpose "
    "_nnpack_spatial_convolution _conv_depthwise2d conv_depthwise3d slow_conv3d_forward slow_conv_dilated2d "
    "slow_conv_dilated3d slow_conv_transpose2d slow_conv_transpose3d _slow_conv2d_forward _slow_conv2d conv_tbc",
    "softmax": "_softmax _log_softmax _safe_softmax _masked_softmax _sparse_softmax _sparse_log_softmax softmax "
    "log_softmax",
    "norm": "native_layer_norm native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training "
    "_native_batch_norm_legit_functional cudnn_batch_norm miopen_batch_norm batch_norm _batch_norm_with_update "
    "_batch_norm_with_update_functional _batch_norm_no_update native_group_norm _fused_rms_norm "
    "quantized_batch_norm batch_norm_stats batch_norm_elemt batch_norm_gather_stats batch_norm_update_stats "
    "batch_norm_gather_stats_with_counts batch_norm_backward_reduce batch_norm_backward_elemt "
    "_weight_norm_interface renorm",
    "pool": "max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d "
    "_adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d max_pool2d mkldnn_max_pool2d mkldnn_max_pool3d mkldnn_adaptive_avg_pool2d "
    "fractional_max_pool2d fractional_max_pool3d max_unpool2d max_unpool3d quantized_max_pool1d quantized_max_pool2d "
    "quantized_max_pool3d",
    "reduction": "sum mean amax amin max min argmax argmin var var_mean std prod any all logsumexp cumsum cumprod "
    "norm linalg_vector_norm count_nonzero topk sort kthvalue nansum std_mean aminmax _aminmax median nanmedian mode "
    "cummax cummin _cummax_helper _cummin_helper logcumsumexp _logcumsumexp trace bincount histc histogram "
    "searchsorted bucketize isin dist native_norm linalg__powsum allclose equal is_same_size _is_all_true "
    "_is_any_true unique_dim unique_consecutive unique_dim_consecutive _unique _unique2 segment_reduce "
    "_segment_reduce _foreach_norm _foreach_max _foreach_powsum _sparse_sum _sparse_csr_sum _sparse_csr_prod "
    "hash_tensor _ctc_loss _cudnn_ctc_loss _compute_linear_combination _linalg_check_errors _assert_async",
    "gather": "embedding embedding_dense embedding_bag gather scatter scatter_add scatter_reduce index index_put "
    "_index_put_impl index_select index_add index_copy take take_along_dim nonzero nll_loss_forward "
    "nll_loss nll_loss2d_forward nll_loss2d masked_select _unsafe_index _unsafe_index_put index_fill index_reduce put "
    "masked_scatter nonzero_static _unsafe_masked_index _unsafe_masked_index_put_accumulate embedding_renorm "
    "_embedding_bag _embedding_bag_forward_only _embedding_bag_dense _embedding_bag_per_sample_weights",
    "copy": "cat stack clone copy _to_copy constant_pad_nd repeat roll flip select_scatter slice_scatter "
    "diagonal_scatter as_strided_scatter slice select tril triu diag_embed reflection_pad1d reflection_pad2d "
    "replication_pad1d replication_pad2d upsample_nearest2d im2col col2im unfold repeat_interleave "
    "split_with_sizes_copy reflection_pad3d replication_pad3d upsample_nearest1d upsample_nearest3d "
    "_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d _stack _chunk_cat block_diag "
    "channel_shuffle pixel_shuffle pixel_unshuffle rot90 diagonal "
    "_pack_padded_sequence resize resize_as _copy_from _foreach_copy _foreach_clone lu_unpack narrow_copy "
    "_jagged_to_padded_dense_forward _padded_dense_to_jagged_forward _nested_from_padded _nested_from_padded_tensor "
    "to_padded_tensor _to_dense _to_sparse _to_sparse_csr _to_sparse_csc _to_sparse_bsr _to_sparse_bsc "
    "sparse_mask _coalesce _conj_copy _neg_view_copy _lazy_clone copy_sparse_to_sparse _cudnn_rnn_flatten_weight "
    "_cslt_compress _to_sparse_semi_structured _sparse_semi_structured_tile _sparse_semi_structured_apply "
    "_sparse_semi_structured_apply_dense _convert_weight_to_int4pack _convert_weight_to_int4pack_for_cpu "
    "_dyn_quant_pack_4bit_weight to_mkldnn _pin_memory int_repr set spdiags",
    "elementwise": "bernoulli native_dropout uniform normal random exponential zeros ones full arange fill zero "
    "threshold gelu tanh sigmoid silu hardtanh leaky_relu elu softplus where masked_fill rand randn randint "
    "zeros_like ones_like full_like rand_like randn_like new_zeros new_ones new_full log_sigmoid_forward "
    "log_sigmoid mse_loss smooth_l1_loss huber_loss glu prelu _prelu_kernel mish hardswish hardsigmoid hardshrink "
    "softshrink rrelu_with_noise rrelu_with_noise_functional binary_cross_entropy binary_cross_entropy_with_logits "
    "multi_margin_loss multilabel_margin_loss multilabel_margin_loss_forward soft_margin_loss _fused_dropout "
    "_masked_scale _add_relu floor_divide addr polar complex cauchy geometric log_normal multinomial poisson binomial "
    "normal_functional randperm range eye linspace logspace tril_indices triu_indices randint_like "
    "bartlett_window blackman_window hamming_window hann_window kaiser_window fft_fftfreq fft_rfftfreq "
    "_standard_gamma _standard_gamma_grad _sample_dirichlet _dirichlet_grad _philox_normal _philox_uniform "
    "_philox_key_split _philox_key_fold_in linalg_cross _thnn_fused_lstm_cell _thnn_fused_gru_cell "
    "_transform_bias_rescale_qkv affine_grid_generator cudnn_affine_grid_generator "
    "quantize_per_tensor quantize_per_channel quantize_per_tensor_dynamic dequantize "
    "fake_quantize_per_tensor_affine_cachemask fake_quantize_per_channel_affine_cachemask "
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams _fake_quantize_learnable_per_tensor_affine "
    "_fake_quantize_learnable_per_channel_affine _fused_moving_avg_obs_fq_helper "
    "_fused_moving_avg_obs_fq_helper_functional _make_per_tensor_quantized_tensor "
    "_make_per_channel_quantized_tensor _amp_foreach_non_finite_check_and_unscale _amp_update_scale "
    "_fused_adam _fused_adamw _fused_sgd _fused_adagrad grid_sampler_2d grid_sampler_3d cudnn_grid_sampler "
    "upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa "
    "_upsample_bicubic2d_aa _upsample_lanczos2d_aa",
}
_CLASS: dict[str, int] = {
    kind: OP_CLASSES.index(op_class) for op_class, kinds in _CLASS_OF_KIND.items() for kind in kinds.split()
}
# What a kernel reads of its large first operand is only the rows asked for.
_READS_ROWS = frozenset(
    {"embedding", "gather", "index", "index_select", "take", "take_along_dim", "masked_select", "_unsafe_index"}
)
_BAGS = frozenset({"_embedding_bag", "_embedding_bag_forward_only"})
# The tensor argument gives a shape only; nothing is read.
METADATA_ONLY = frozenset(
    {
        "zeros_like",
        "ones_like",
        "full_like",
        "empty_like",
        "rand_like",
        "randn_like",
        "new_zeros",
        "new_ones",
        "new_full",
        "new_empty",
        "new_empty_strided",
    }
)
NO_KERNEL = frozenset(
    {"empty", "empty_strided", "empty_like", "empty_permuted", "new_empty", "new_empty_strided", "scalar_tensor"}
)
_WRITE_ONLY = frozenset({"fill", "zero", "copy", "bernoulli", "uniform", "normal", "random", "exponential"})
_VIEW_KINDS = frozenset({"_unsafe_view", "detach", "lift_fresh", "unsafe_split", "unsafe_split_with_sizes"})

# Operations per element where it is not one, by kind: counts of the arithmetic in the textbook formula.
FLOPS_PER_ELEMENT = {
    "gelu": 8,
    "gelu_backward": 16,
    "tanh": 4,
    "sigmoid": 4,
    "silu": 5,
    "tanh_backward": 3,
    "sigmoid_backward": 3,
    "silu_backward": 8,
    "_softmax": 5,
    "_softmax_backward_data": 4,
    "_log_softmax": 5,
    "_log_softmax_backward_data": 4,
    "native_layer_norm": 8,
    "native_layer_norm_backward": 14,
    "native_dropout": 2,
    "native_batch_norm": 8,
    "native_batch_norm_backward": 12,
    "native_group_norm": 8,
    "native_group_norm_backward": 14,
}


def _operator_class(kind: str, func: Any) -> int:
    import torch

    base = kind.removesuffix("_data").removesuffix("_impl").removesuffix("_backward")
    for name in (kind, base):
        if name in _CLASS:
            return _CLASS[name]
    if torch.Tag.pointwise in func.tags or kind.startswith("_foreach_"):
        return OP_CLASSES.index("elementwise")
    if kind.endswith("_copy"):  # of a view
        return OP_CLASSES.index("copy")
    return OP_CLASSES.index("other")


@dataclass(slots=True)
class Operator:
    """What there is to know of an aten overload, whatever its arguments."""

    kind: str
    op_class: int
    is_view: bool
    mutates: tuple[tuple[int, str], ...]  # (position, name) of the arguments written in place
    formula: Callable[..., int] | None  # of the arguments and ``out_val``
    unmodelled: str = ""  # its name with its library's, where its FLOPs are not known


# Classes whose FLOPs follow from the number of elements; operators of the others need a formula.
_COUNTED = frozenset(OP_CLASSES.index(name) for name in OP_CLASSES if name not in ("matmul", "conv", "other"))


def describe(func: Any) -> Operator:
    import torch
    from torch.utils import flop_counter

    if not hasattr(func, "_schema"):  # a higher-order operator, which takes functions too: flex_attention
        registered = flop_counter.flop_registry.get(func)
        kind = func.name()
        op_class = _CLASS.get(kind.removesuffix("_backward"), OP_CLASSES.index("other"))
        return Operator(kind, op_class, False, (), registered, "" if registered else f"higher_order.{kind}")
    name = func._schema.name.split("::")[-1]
    mutates = tuple(
        (position, argument.name)
        for position, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )
    kind = name.removesuffix("_") if mutates and not name.endswith("__") else name
    inplace_view = torch.Tag.inplace_view in func.tags  # squeeze_: writes metadata
    is_view = bool(func.is_view) or kind in _VIEW_KINDS or inplace_view
    mutates = () if inplace_view else mutates
    space = func.namespace
    formula: Callable[..., int] | None = flop_counter.flop_registry.get(func._overloadpacket)
    if formula is None and kind != name and space == "aten":  # addmm_, in place
        formula = flop_counter.flop_registry.get(getattr(torch.ops.aten, kind, None))
    if space == "aten" and kind in FORMULAS:
        own, names = FORMULAS[kind], [argument.name for argument in func._schema.arguments]

        def formula(*args: Any, out_val: Any, **kwargs: Any) -> int:
            return own(dict(zip(names, args)) | kwargs, out_val)

    op_class = VIEW if is_view else _operator_class(kind, func) if space == "aten" else _class_elsewhere(func, formula)
    known = is_view or formula is not None or op_class in _COUNTED or kind in NO_KERNEL
    unmodelled = "" if known else name if space == "aten" else f"{space}.{name}"
    return Operator(kind, op_class, is_view, mutates, formula, unmodelled)


def _class_elsewhere(func: Any, formula: Callable[..., int] | None) -> int:
    """The class of another library's operator: element-wise by its tag, or a product where it has a formula."""
    import torch

    if torch.Tag.pointwise in func.tags:
        return OP_CLASSES.index("elementwise")
    return OP_CLASSES.index("matmul" if formula is not None else "other")


def _distinct_bytes(tensor: torch.Tensor) -> int:
    """Bytes that a kernel must touch to read a tensor once: an expanded dimension is stored once."""
    elements = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        if stride or size == 0:
            elements *= size
    return elements * tensor.itemsize


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in an argument or result: aten takes and gives no deeper nesting than lists."""
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)


def _count_flops(operator: Operator, args: Any, kwargs: Any, out: Any, read: Sequence[torch.Tensor]) -> int:
    if operator.formula is not None:
        return int(operator.formula(*args, **kwargs, out_val=out))
    name = OP_CLASSES[operator.op_class]
    largest = max((t.numel() for t in read), default=0)
    if name in ("copy", "view", "source"):
        return 0
    if name == "gather":  # only the scatters that add, and losses, compute
        return largest if operator.kind.endswith(("backward", "add", "forward")) else 0
    if name == "pool":
        window = next((a for a in args[1:] if isinstance(a, list | tuple) and a and isinstance(a[0], int)), None)
        if operator.kind.startswith("_adaptive") or window is None:
            return largest
        first = next(tensors_in(out))
        return int((read[0].numel() if operator.kind.endswith("backward") else first.numel()) * math.prod(window))
    if name == "reduction":
        return largest
    if operator.kind in ("zeros", "ones", "full", "arange", "fill", "zero") or operator.kind in METADATA_ONLY:
        return 0
    per_element = FLOPS_PER_ELEMENT.get(operator.kind, 1)
    if name == "norm" and operator.kind not in FLOPS_PER_ELEMENT:
        per_element = 14 if operator.kind.endswith("backward") else 8
    if name in ("norm", "softmax"):
        return per_element * largest
    if operator.kind.startswith("_foreach_"):  # lists of tensors; in place it returns nothing
        return per_element * sum(t.numel() for t in tensors_in(out if out is not None else args[0]))
    return per_element * next((t.numel() for t in tensors_in(out)), 0)


class Cost(NamedTuple):
    """Of one call."""

    flops: int
    bytes_read: int
    bytes_written: int


def cost(
    operator: Operator,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    out: Any,
    read: Sequence[torch.Tensor],
    in_place: Sequence[torch.Tensor],
) -> Cost:
    """FLOPs and bytes of one call of an operator that runs a kernel.

    Args:
        args, kwargs, out: the call, with tensors of true shapes.
        read: the distinct tensors among the arguments.
        in_place: those that it writes.
    """
    sources = read[1:] if operator.kind in _WRITE_ONLY and in_place else read
    sizes = [_distinct_bytes(t) for t in sources]
    if operator.kind in _BAGS and sizes:  # as many rows as are asked for, of which a bag's sum is one
        sizes[0] = min(sizes[0], read[1].numel() * read[0].shape[-1] * read[0].itemsize)
    elif operator.kind in _READS_ROWS and sizes:
        sizes[0] = min(sizes[0], sum(t.numel() * t.itemsize for t in tensors_in(out)))
    written = {id(t): t for t in (*tensors_in(out), *in_place)}
    return Cost(
        _count_flops(operator, args, kwargs, out, read), sum(sizes), sum(_distinct_bytes(t) for t in written.values())
    )
