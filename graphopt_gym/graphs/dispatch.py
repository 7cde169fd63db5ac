"""What makes torch take the decisions of the target device while a step is traced. Imports torch when used.

Operators are chosen by where tensors lie: on a GPU dropout is one kernel, attention a fused one, an LSTM cuDNN's. So
the fake tensors of a step for ``"gpu"`` lie on ``cuda:0``, which needs no GPU: they have no memory and run no kernel.
Four things must be stood in for where torch has no CUDA:

- the *device guard*, which autograd asks for a stream (:func:`ensure_device_guard`), and the engine that runs the
  backward pass, which would look for the accelerator: it is told that tensors lie on the CPU (:func:`from_engine`);
- the choice among *attention* kernels, made by torch's CUDA library from dtypes and shapes (:func:`attention`);
- *recurrent layers*, which go to cuDNN from that library too (:func:`recurrent`);
- *autocast*, which torch turns off without CUDA, and random states that checkpointing keeps (:func:`surroundings`).
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from graphopt_gym.errors import InputError

if TYPE_CHECKING:
    import torch

    from graphopt_gym.graphs.values import Values

TARGETS = ("gpu", "cpu")
DEVICE = {"gpu": "cuda", "cpu": "cpu"}  # torch's device type of each target
CAPABILITY = (8, 0)  # the compute capability of the GPU that is meant: the oldest with bfloat16 and flash attention

_CUDA = 1  # c10::DeviceType::CUDA
_REGISTRY = "_ZN3c104impl26device_guard_impl_registryE"  # c10::impl::device_guard_impl_registry
_kept: list[Any] = []  # what C++ points to


def ensure_device_guard() -> None:
    """Lets autograd record operators of fake CUDA tensors where torch was built without CUDA.

    A build with CUDA and no GPU gets torch's own no-op guard (``torch._C._ensureCUDADeviceGuardSet``, which fake
    tensors call). A build without CUDA has no guard that this function could replace: it is given one to replace, an
    object all of whose methods return 0, as the method that it asks does where there are no devices.

    Raises:
        InputError: this torch cannot be prepared so.
    """
    import torch

    if _kept or torch.backends.cuda.is_built():
        return
    folder = os.path.join(os.path.dirname(torch.__file__), "lib")
    try:
        library = ctypes.CDLL(os.path.join(folder, "libc10.dylib" if sys.platform == "darwin" else "libc10.so"))
        registry = (ctypes.c_void_p * (_CUDA + 1)).in_dll(library, _REGISTRY)
        install = torch._C._ensureCUDADeviceGuardSet
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f"capture: target 'gpu' is not possible with torch {torch.__version__} on {sys.platform}; give target='cpu'"
        ) from error
    if registry[_CUDA] is None:
        method = ctypes.CFUNCTYPE(ctypes.c_int)
        none = method(lambda: 0)
        table = (method * 64)(*[none] * 64)
        guard = ctypes.c_void_p(ctypes.addressof(table))
        _kept.extend((none, table, guard))
        registry[_CUDA] = ctypes.addressof(guard)
        install()
        if registry[_CUDA] == ctypes.addressof(guard):
            registry[_CUDA] = None
            _kept.clear()
            raise InputError(f"capture: target 'gpu' is not possible with torch {torch.__version__}; give target='cpu'")


def from_engine() -> bool:
    """Whether the C++ code that calls a dispatch mode was itself called by ``torch.autograd``'s engine, and not by
    Python code that runs within the backward pass (recomputation, a function's own backward)."""
    import torch
    from torch.autograd import graph

    folder = os.path.dirname(torch.__file__)
    frame: Any = sys._getframe(2)
    while (
        frame is not None and frame.f_code.co_name in ("_fn", "inner") and frame.f_code.co_filename.startswith(folder)
    ):
        frame = frame.f_back  # torch's wrappers of a mode's method
    return frame is not None and frame.f_code is graph._engine_run_backward.__code__


# ---- attention


def _autocast(tensors: Sequence[torch.Tensor | None]) -> list[Any]:
    """Floating-point tensors in autocast's type where it is on, as before any kernel on its list."""
    import torch

    if not torch.is_autocast_enabled("cuda"):
        return list(tensors)
    dtype = torch.get_autocast_dtype("cuda")
    return [
        t.to(dtype) if isinstance(t, torch.Tensor) and t.is_floating_point() and t.dtype != torch.float64 else t
        for t in tensors
    ]


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """``scaled_dot_product_attention`` on a GPU of compute capability 8.0 or newer.

    The first of these that is enabled (``torch.nn.attention.sdpa_kernel``) and can take the arguments, in torch's
    default order (rules recalled from ``aten/src/ATen/native/transformers/cuda/sdp_utils.cpp``):

    - flash attention: float16 or bfloat16, no mask, one head size of at most 256 for query, key and value, causal
      only with as many queries as keys; grouped queries. Head sizes are padded to multiples of 8;
    - memory-efficient attention: also float32 and masks; as many heads of keys as of queries; head sizes that are
      multiples of 4 (float32) or 8 (half precision);
    - the product, softmax and product that attention is made of;
    - cuDNN's, where it alone is enabled.
    """
    import torch
    from torch.nn import functional as F

    aten, cuda = torch.ops.aten, torch.backends.cuda
    query, key, value, attn_mask = _autocast((query, key, value, attn_mask))
    half = query.dtype in (torch.float16, torch.bfloat16)
    shaped = (
        query.dim() == key.dim() == value.dim() == 4
        and query.dtype == key.dtype == value.dtype
        and query.shape[0] == key.shape[0] == value.shape[0]
        and min(query.numel(), key.numel(), value.numel()) > 0
        and all(t.stride(-1) == 1 for t in (query, key, value))
    )
    size, grouped = query.shape[-1], enable_gqa and query.shape[1] != key.shape[1]
    shaped = shaped and (grouped or query.shape[1] == key.shape[1] == value.shape[1])
    flash = (
        shaped
        and half
        and attn_mask is None
        and key.shape[-1] == value.shape[-1] == size <= 256
        and not (is_causal and query.shape[-2] != key.shape[-2])
    )
    multiple = 8 if half else 4
    efficient = (
        shaped
        and (half or query.dtype == torch.float32)
        and not grouped
        and size % multiple == 0
        and value.shape[-1] % multiple == 0
        and not (attn_mask is not None and is_causal)
    )
    if cuda.flash_sdp_enabled() and flash:
        padding = -size % 8
        if padding:
            scale = 1 / math.sqrt(size) if scale is None else scale
            query, key, value = (F.pad(t, (0, padding)) for t in (query, key, value))
        out = aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
        return out[..., :size] if padding else out
    if attn_mask is not None and attn_mask.dtype == torch.bool and (efficient or half):
        attn_mask = torch.where(attn_mask, 0.0, -math.inf).to(query.dtype)
    bias = None
    if attn_mask is not None and efficient:
        bias = attn_mask.to(query.dtype).expand(*query.shape[:2], query.shape[-2], key.shape[-2])
    needs_grad = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    if cuda.mem_efficient_sdp_enabled() and efficient:
        return aten._scaled_dot_product_efficient_attention(
            query, key, value, bias, needs_grad, dropout_p, is_causal, scale=scale
        )[0]
    if cuda.cudnn_sdp_enabled() and not cuda.math_sdp_enabled() and shaped and half:
        return aten._scaled_dot_product_cudnn_attention(
            query, key, value, bias, needs_grad, dropout_p, is_causal, False, scale=scale
        )[0]
    return aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa
    )[0]


def _attend(values: Values, *args: Any, **kwargs: Any) -> torch.Tensor:
    """:func:`attention`, with the value of its result where those of its arguments are known."""
    import torch

    out = attention(*args, **kwargs)
    if values.everything and values.known(args, *kwargs.values()):  # no CPU has these kernels
        values.pair(out, values.compute(torch._C._nn.scaled_dot_product_attention, args, kwargs))
    return out


def rms_norm(
    input: torch.Tensor, normalized_shape: Sequence[int], weight: torch.Tensor | None = None, eps: float | None = None
) -> torch.Tensor:
    """One kernel where the weight is of the input's type (rule recalled from ``layer_norm.cpp``), else its parts."""
    import torch

    fused = getattr(torch.ops.aten, "_fused_rms_norm", None)
    if fused is None or input.is_complex() or (weight is not None and weight.dtype != input.dtype):
        return torch.rms_norm(input, normalized_shape, weight, eps)
    return fused(input, list(normalized_shape), weight, eps)[0]


# ---- recurrent layers

_MODES = {"rnn_relu": 0, "rnn_tanh": 1, "lstm": 2, "gru": 3}  # cudnnRNNMode_t


def recurrent(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    """``torch.lstm``, ``gru``, ``rnn_tanh`` or ``rnn_relu`` as the one kernel of cuDNN, padded or packed."""
    import torch

    names = {
        False: ("input", "hx", "params", "has_biases", "num_layers", "dropout", "train", "bidirectional"),
        True: ("data", "batch_sizes", "hx", "params", "has_biases", "num_layers", "dropout", "train", "bidirectional"),
    }
    packed = "batch_sizes" in kwargs or (len(args) > 3 and isinstance(args[3], list | tuple))
    given = dict(zip((*names[packed], "batch_first"), args)) | kwargs
    data = given["data" if packed else "input"]
    sizes = [int(size) for size in given["batch_sizes"].tolist()] if packed else []
    hidden = given["hx"]
    hx, cx = tuple(hidden) if name == "lstm" else (hidden, None)
    weights = list(given["params"])
    data, hx, cx, *weights = _autocast((data, hx, cx, *weights))
    biases, layers = bool(given["has_biases"]), int(given["num_layers"])
    directions = 2 if given["bidirectional"] else 1
    stride = len(weights) // (layers * directions)  # tensors of a layer in one direction
    projection = weights[-1].shape[0] if stride == (5 if biases else 3) else 0
    size = weights[1].shape[0] // {"lstm": 4, "gru": 3}.get(name, 1)
    out = torch.ops.aten._cudnn_rnn(
        data,
        weights,
        stride,
        weights[0].new_empty(0),  # on a GPU the buffer in which the weights lie already
        hx.contiguous(),
        None if cx is None else cx.contiguous(),
        _MODES[name],
        size,
        projection,
        layers,
        bool(given.get("batch_first", False)),
        float(given["dropout"]),
        bool(given["train"]),
        bool(given["bidirectional"]),
        sizes,
        None,
    )
    return out[:3] if name == "lstm" else out[:2]


def pad_packed(
    data: torch.Tensor, batch_sizes: torch.Tensor, batch_first: bool, padding_value: float, total_length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """``torch._VF._pad_packed_sequence``, whose C++ writes lengths to memory that a fake tensor has not.

    Args:
        data: [sum of lengths, ...]. batch_sizes: int64 [T], real: how many sequences have a step t.
    """
    sizes = batch_sizes.tolist()
    out = data.new_full((max(len(sizes), total_length), sizes[0], *data.shape[1:]), padding_value)
    start, offset = 0, 0
    for step in range(1, len(sizes) + 1):  # one copy a run of steps with as many sequences
        if step == len(sizes) or sizes[step] != sizes[start]:
            rows = (step - start) * sizes[start]
            part = data[offset : offset + rows].view(step - start, sizes[start], *data.shape[1:])
            out[start:step, : sizes[start]].copy_(part)
            start, offset = step, offset + rows
    lengths = [sum(size > sequence for size in sizes) for sequence in range(sizes[0])]
    return out.transpose(0, 1) if batch_first else out, batch_sizes.new_tensor(lengths)


def shapes_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of an operator for which torch has no rule of shapes, or none for all types; else NotImplemented."""
    import torch

    rule = _RULES.get(str(func._schema.name))
    if rule is None:
        return NotImplemented
    given = dict(zip((argument.name for argument in func._schema.arguments), args)) | kwargs
    return rule(torch, given)


def _rnn_backward(torch: Any, given: dict[str, Any]) -> Any:
    mask, cx = given["output_mask"], given["cx"]
    return (
        torch.empty_like(given["input"]) if mask[0] else None,
        torch.empty_like(given["hx"]) if mask[1] else None,
        torch.empty_like(cx) if cx is not None and mask[2] else None,
        [torch.empty_like(weight) for weight in given["weight"]] if mask[3] else [],
    )


def _gru_cell(torch: Any, given: dict[str, Any]) -> Any:
    hx = given["hx"]
    return torch.empty_like(hx), hx.new_empty((hx.shape[0], 5 * hx.shape[1]))


def _gru_cell_backward(torch: Any, given: dict[str, Any]) -> Any:
    grad = given["grad_hy"]
    rows, size = grad.shape
    gates = [grad.new_empty((rows, 3 * size)) for _ in range(2)]
    bias = [grad.new_empty((3 * size,)) if given["has_bias"] else None for _ in range(2)]
    return gates[0], gates[1], torch.empty_like(grad), bias[0], bias[1]


def _grouped_mm(torch: Any, given: dict[str, Any]) -> Any:
    """torch's rule is for bfloat16 alone; the operator takes float16 and float32 too."""
    left, right = given["self"], given["mat2"]
    shape: tuple[int, ...] = (left.shape[-2], right.shape[-1])
    if left.dim() == right.dim():
        shape = (left.shape[0] if left.dim() == 3 else given["offs"].shape[0], *shape)
    return left.new_empty(shape, dtype=given.get("out_dtype") or left.dtype)


_RULES = {
    "aten::_cudnn_rnn_backward": _rnn_backward,
    "aten::_thnn_fused_gru_cell": _gru_cell,
    "aten::_thnn_fused_gru_cell_backward": _gru_cell_backward,
    "aten::_grouped_mm": _grouped_mm,
    # cuDNN's loss takes targets of one type and on the CPU alone; torch's own kernel takes all
    "aten::_use_cudnn_ctc_loss": lambda _torch, _given: False,
    "aten::_use_miopen_ctc_loss": lambda _torch, _given: False,
}


# ---- the state of torch around a step


@contextmanager
def replaced(*replacements: tuple[Any, str, Any]) -> Iterator[None]:
    """Attributes replaced, and put back."""
    with ExitStack() as stack:
        for owner, name, value in replacements:
            if hasattr(owner, name):
                stack.callback(setattr, owner, name, getattr(owner, name))
                setattr(owner, name, value)
        yield


@contextmanager
def autocast_allowed() -> Iterator[None]:
    """``torch.autocast("cuda")`` that is made here is on, though torch has no CUDA."""
    import torch
    from torch.amp.autocast_mode import autocast

    def never(*_: Any, **__: Any) -> bool:
        return False

    def always(*_: Any, **__: Any) -> bool:
        return True

    make = autocast.__init__

    def made(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        self._graphopt_meant = True

    common = sys.modules.get("torch.cuda.amp.common")
    with replaced(
        (common, "amp_definitely_not_available", never),
        (torch.cuda, "is_bf16_supported", always),
        (autocast, "__init__", made),
    ):
        yield


# Operators that have a decomposition beside kernels: for a CPU (of torch 2.13, read from its dispatcher), or for CUDA.
_DECOMPOSED = ("silu_backward", "mish_backward", "native_channel_shuffle", "_fused_rms_norm")


@contextmanager
def _kernels() -> Iterator[None]:
    """Stands for CUDA's kernels of operators that torch would else take apart, since it finds none.

    They are never called: an operator is recorded before its kernel is looked for.
    """
    import torch

    def kernel(*_: Any, **__: Any) -> Any:
        raise NotImplementedError("a kernel of CUDA, which torch was built without")

    library = torch.library.Library("aten", "IMPL")
    try:
        for name in _DECOMPOSED:
            if hasattr(torch.ops.aten, name):
                library.impl(name, kernel, "CUDA")
        yield
    finally:
        library._destroy()


@contextmanager
def surroundings(target: str, values: Values) -> Iterator[list[str]]:
    """While a step is traced: autocast means the target, and no random state is read or written.

    Gives a list that is empty at the end unless an autocast for CUDA was off, and may have been turned off by torch
    when it was made, for want of CUDA: nobody can tell then.

    ``torch.autocast`` of any device type that is on casts the target's operators: a model that runs under
    ``autocast("cpu")`` here runs under ``autocast("cuda")`` there.
    """
    import torch
    from torch.amp.autocast_mode import autocast

    device = DEVICE[target]
    enter, leave = autocast.__enter__, autocast.__exit__
    without_cuda = not torch.cuda.is_available()
    off: list[str] = []
    nested = torch.autocast_increment_nesting() - 1
    torch.autocast_decrement_nesting()
    if nested and without_cuda and ambient_autocast() is None:
        off.append("around")

    def enter_target(self: Any) -> Any:
        own = self.device
        if own == "cuda" and not self._enabled and without_cuda and not hasattr(self, "_graphopt_meant"):
            off.append("within")
        if self._enabled and own != device:
            self.device = device
        try:
            return enter(self)
        finally:
            entered.append((self.device, own))
            self.device = own

    def leave_target(self: Any, *reason: Any) -> Any:
        used, own = entered.pop()
        self.device = used
        try:
            return leave(self, *reason)
        finally:
            self.device = own

    choices: list[tuple[Any, str, Any]] = []
    if target == "gpu":
        choices += [
            # functions of torch that are written in Python call it by this name
            (torch.nn.functional, "scaled_dot_product_attention", partial(_attend, values)),
            (torch.cuda, "get_device_capability", lambda _device=None: CAPABILITY),
            (torch.cuda, "current_device", lambda: 0),
            (torch.cuda, "synchronize", lambda _device=None: None),
            (torch.cuda, "empty_cache", lambda: None),
        ]

    def enter_inference(self: Any) -> None:
        """Without gradients: in inference mode itself operators would arrive before they are taken apart."""
        self._graphopt_context = torch.no_grad() if self.mode else nullcontext()
        self._graphopt_context.__enter__()

    def leave_inference(self: Any, *reason: Any) -> None:
        self._graphopt_context.__exit__(*reason)

    entered: list[tuple[str, str]] = []
    state = torch.empty(0, dtype=torch.uint8)

    @contextmanager
    def fork_rng(*_: Any, **__: Any) -> Iterator[None]:
        yield

    def convert(self: Any, fn: Any, recurse: bool = True) -> Any:
        """``module.to(dtype)`` within a forward pass: a cast of its parameters, which stay what they are."""
        for child in self.children() if recurse else ():
            child._apply(fn)
        for held in (self._parameters, self._buffers):
            for name, tensor in held.items():
                if tensor is not None and (made := fn(tensor)).dtype != tensor.dtype:
                    held[name] = made
        return self

    def is_unknown(tensor: Any) -> bool:
        return isinstance(tensor, torch._subclasses.FakeTensor) and values.of(tensor) is None

    checkpoint = sys.modules.get("torch.utils.checkpoint")
    # transformers builds masks that it would leave out where it could see that they hide nothing
    transformers = sys.modules.get("transformers.utils.import_utils")
    with (
        autocast_allowed(),
        _kernels() if target == "gpu" and not torch.backends.cuda.is_built() else nullcontext(),
        replaced(
            *choices,
            (autocast, "__enter__", enter_target),
            (autocast, "__exit__", leave_target),
            (torch.inference_mode, "__enter__", enter_inference),
            (torch.inference_mode, "__exit__", leave_inference),
            (torch.nn.Module, "_apply", convert),
            (torch, "get_rng_state", lambda: state),
            (torch, "set_rng_state", lambda _state: None),
            (torch.random, "fork_rng", fork_rng),
            (transformers, "is_fake_tensor", is_unknown),
            (checkpoint, "get_device_states", lambda *_: ([], [])),
            (logging.getLogger("torch._subclasses.fake_tensor"), "disabled", True),  # the error is told in one line
            (checkpoint, "set_device_states", lambda *_, **__: None),
        ),
    ):
        yield off


def ambient_autocast() -> torch.dtype | None:
    """The type of the autocast that is on around the call; None where there is none."""
    import torch

    return next((torch.get_autocast_dtype(d) for d in ("cuda", "cpu") if torch.is_autocast_enabled(d)), None)


def function_mode(target: str, values: Values) -> Any:
    """A ``TorchFunctionMode`` that makes the choices of the target that are made above aten.

    Where ``values`` knows those of the arguments, it is told those of the results.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensor
    from torch.nn import functional as F
    from torch.overrides import TorchFunctionMode

    gpu = target == "gpu"

    class Choices(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            kwargs = kwargs or {}
            if func in READS_VALUES and isinstance(args[0], FakeTensor):
                return values.read(func, args, kwargs)
            if func is torch.Tensor.__format__ and values.of(args[0]) is not None:
                return values.compute(func, args, kwargs)  # a number within a text
            if func is torch._C._VariableFunctions._pad_packed_sequence:
                return pad_packed(*args, **kwargs)
            if not gpu:
                if func is F.dropout or func is torch.dropout:
                    return dropout(*args, **kwargs)
                return func(*args, **kwargs)
            if func is SDPA:
                return _attend(values, *args, **kwargs)
            if func in LAYERS:
                out = recurrent(LAYERS[func], args, kwargs)
                if values.everything and values.known(args, *kwargs.values()):  # no CPU has this kernel
                    values.pair(out, values.compute(func, args, kwargs))
                return out
            if func is F.rms_norm or func is torch.rms_norm:
                return rms_norm(*args, **kwargs)
            if func is torch.Tensor.cuda:
                return args[0]
            return func(*args, **kwargs)

    SDPA = torch._C._nn.scaled_dot_product_attention
    READS_VALUES = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__}
    LAYERS = {getattr(torch._C._VariableFunctions, name): name for name in _MODES}

    def dropout(
        input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, train: bool = True
    ) -> torch.Tensor:
        """One kernel with a mask, as on a GPU: a CPU's would be three."""
        return torch.native_dropout(input, p, True)[0] if p and training and train else input

    return Choices()
