"""What a graph says of an aten operator: its class, FLOPs, and bytes read and written.

FLOPs of matrix products, convolutions and attention are those of ``torch.utils.flop_counter``. Other operators get
a count per element (:data:`FLOPS_PER_ELEMENT`), which ``flop_counter`` does not have: compare the two on the classes
``matmul`` and ``conv``. Bytes come from tensor metadata: each distinct operand read once, an expanded one at the size
it is stored, each result written once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from graphopt_gym.graphs.graph import OP_CLASSES, VIEW

if TYPE_CHECKING:
    import torch

_CLASS_OF_KIND = {
    "matmul": "mm addmm bmm baddbmm dot mv addmv addbmm linear _scaled_dot_product_flash_attention "
    "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_efficient_attention "
    "_scaled_dot_product_cudnn_attention",
    "conv": "convolution _convolution convolution_overrideable cudnn_convolution",
    "softmax": "_softmax _log_softmax",
    "norm": "native_layer_norm native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training "
    "_native_batch_norm_legit_functional cudnn_batch_norm _batch_norm_with_update _batch_norm_no_update "
    "native_group_norm _fused_rms_norm",
    "pool": "max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d "
    "_adaptive_avg_pool3d adaptive_max_pool2d",
    "reduction": "sum mean amax amin max min argmax argmin var var_mean std prod any all logsumexp cumsum cumprod "
    "norm linalg_vector_norm count_nonzero topk sort kthvalue nansum",
    "gather": "embedding embedding_dense embedding_bag gather scatter scatter_add scatter_reduce index index_put "
    "_index_put_impl index_select index_add index_copy take take_along_dim nonzero nll_loss_forward "
    "nll_loss nll_loss2d_forward nll_loss2d masked_select _unsafe_index _unsafe_index_put",
    "copy": "cat stack clone copy _to_copy constant_pad_nd repeat roll flip select_scatter slice_scatter "
    "diagonal_scatter as_strided_scatter slice select tril triu diag_embed reflection_pad1d reflection_pad2d "
    "replication_pad1d replication_pad2d upsample_nearest2d im2col col2im unfold repeat_interleave "
    "split_with_sizes_copy",
    "elementwise": "bernoulli native_dropout uniform normal random exponential zeros ones full arange fill zero "
    "threshold gelu tanh sigmoid silu hardtanh leaky_relu elu softplus where masked_fill rand randn randint "
    "zeros_like ones_like full_like rand_like randn_like new_zeros new_ones new_full log_sigmoid_forward "
    "log_sigmoid mse_loss smooth_l1_loss huber_loss glu prelu _prelu_kernel mish hardswish hardsigmoid",
}
_CLASS: dict[str, int] = {
    kind: OP_CLASSES.index(op_class) for op_class, kinds in _CLASS_OF_KIND.items() for kind in kinds.split()
}
# What a kernel reads of its large first operand is only the rows asked for.
_READS_ROWS = frozenset(
    {"embedding", "gather", "index", "index_select", "take", "take_along_dim", "masked_select", "_unsafe_index"}
)
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
NO_KERNEL = frozenset({"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "scalar_tensor"})
_WRITE_ONLY = frozenset({"fill", "zero", "copy", "bernoulli", "uniform", "normal", "random", "exponential"})
_VIEW_KINDS = frozenset({"_unsafe_view", "detach", "lift_fresh"})

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

    base = kind.removesuffix("_data").removesuffix("_backward")
    for name in (kind, base):
        if name in _CLASS:
            return _CLASS[name]
    if torch.Tag.pointwise in func.tags:
        return OP_CLASSES.index("elementwise")
    return OP_CLASSES.index("other")


@dataclass(slots=True)
class Operator:
    """What there is to know of an aten overload, whatever its arguments."""

    kind: str
    op_class: int
    is_view: bool
    mutates: tuple[tuple[int, str], ...]  # (position, name) of the arguments written in place
    formula: Callable[..., int] | None


def describe(func: Any) -> Operator:
    from torch.utils import flop_counter

    name = func._schema.name.split("::")[-1]
    mutates = tuple(
        (position, argument.name)
        for position, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )
    kind = name.removesuffix("_") if mutates and not name.endswith("__") else name
    is_view = bool(func.is_view) or kind in _VIEW_KINDS
    formula: Callable[..., int] | None = flop_counter.flop_registry.get(func._overloadpacket)
    if kind == "_scaled_dot_product_flash_attention_for_cpu":

        def formula(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
            return flop_counter.sdpa_flop_count(q.shape, k.shape, v.shape)
    elif kind == "_scaled_dot_product_flash_attention_for_cpu_backward":

        def formula(grad: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
            return flop_counter.sdpa_backward_flop_count(grad.shape, q.shape, k.shape, v.shape)

    return Operator(kind, VIEW if is_view else _operator_class(kind, func), is_view, mutates, formula)


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
    if operator.kind in _READS_ROWS and sizes:
        sizes[0] = min(sizes[0], sum(t.numel() * t.itemsize for t in tensors_in(out)))
    written = {id(t): t for t in (*tensors_in(out), *in_place)}
    return Cost(
        _count_flops(operator, args, kwargs, out, read), sum(sizes), sum(_distinct_bytes(t) for t in written.values())
    )
