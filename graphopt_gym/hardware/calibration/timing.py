"""Kernels made real: operands, the call, and clocks. torch is imported when a function here is called.

A kernel is called on several sets of operands in turn, so that a small one finds them in a cache, as in a model where
its neighbours touch other memory meanwhile, and not always in the nearest. Its time is a low quantile over repeats:
what disturbs a machine only ever adds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from graphopt_gym.errors import InputError
from graphopt_gym.hardware.calibration.kernels import Kernel

if TYPE_CHECKING:
    import torch

SETS_BYTES = 32 * 2**20  # operands that are called on in turn, together, where one set is smaller
MOST_SETS = 8
SHORTEST_S = 200e-6  # a repeat is so many calls that it lasts this long
SECONDS, REPEATS = 0.06, (6, 60)  # of one kernel: for so long, at least and at most so many repeats
QUANTILE = 0.2
OFF_PROCESSOR = 0.03  # a repeat that spent more of its time waiting for a processor does not count
OPTIMIZED = 8  # parameters of a step of an optimiser

Call = Callable[[], object]


class Clock(Protocol):
    """What measures a repeat: seconds of ``count`` calls, one after another."""

    def repeat(self, call: Call, count: int) -> tuple[float, bool]:
        """(seconds, whether it counts)."""
        ...


class ProcessorClock:
    """Time on the processor of this thread, or with several threads wall time.

    The first leaves out when others had the processor, so that it can be told on a machine that is not idle. With
    several threads a repeat during which this one was put off the processor does not count.
    """

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads

    def repeat(self, call: Call, count: int) -> tuple[float, bool]:
        busy, started = time.thread_time(), time.perf_counter()
        for _ in range(count):
            call()
        wall = time.perf_counter() - started
        busy = time.thread_time() - busy
        if self.threads == 1:
            return min(busy, wall), True
        return wall, busy >= (1 - OFF_PROCESSOR) * wall


class CudaClock:
    """Time between two events of a GPU around calls that are a CUDA graph where they can be, so that no launch counts.

    An operator that cannot be captured (one that synchronises) is called as it is.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.kept: tuple[Call | None, int, Any] = (None, 0, None)

    def repeat(self, call: Call, count: int) -> tuple[float, bool]:
        import torch

        with torch.cuda.device(self.device):
            if self.kept[0] is not call or self.kept[1] != count:
                self.kept = (call, count, self._captured(call, count))
            graph = self.kept[2]
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            start.record()
            if graph is not None:
                graph.replay()
            else:
                for _ in range(count):
                    call()
            end.record()
            torch.cuda.synchronize()
            return start.elapsed_time(end) * 1e-3, True

    def _captured(self, call: Call, count: int) -> Any:
        import torch

        call()
        torch.cuda.synchronize()
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for _ in range(count):
                    call()
            graph.replay()
            return graph
        except RuntimeError:
            torch.cuda.synchronize()
            return None


def clock_of(device: str, threads: int = 1) -> Clock:
    """The clock of ``"cpu"`` or ``"cuda"``."""
    return ProcessorClock(threads) if device == "cpu" else CudaClock(device)


def measured_s(call: Call, clock: Clock, seconds: float = SECONDS) -> float:
    """Seconds of one call: a low quantile over repeats, each of as many calls as take :data:`SHORTEST_S`."""
    call()
    count = 1
    while True:
        once, _ = clock.repeat(call, count)
        if once >= SHORTEST_S / 2 or count >= 4096:
            break
        count = min(4096, max(2 * count, int(count * SHORTEST_S / max(once, 1e-9))))
    times: list[float] = []
    disturbed: list[float] = []
    least, most = REPEATS
    spent = 0.0
    while len(times) + len(disturbed) < least or (spent < seconds and len(times) + len(disturbed) < most):
        once, counts = clock.repeat(call, count)
        (times if counts else disturbed).append(once / count)
        spent += once
    return float(np.quantile(times if len(times) >= least // 2 else times + disturbed, QUANTILE))


def kernel_s(kernel: Kernel, device: str, clock: Clock) -> float:
    """Seconds of a kernel on a device.

    Raises:
        InputError: the device has not the memory for it, or no kernel for its type; the message says which.
    """
    import torch

    try:
        with torch.no_grad():
            return measured_s(build(kernel, device), clock)
    except (RuntimeError, NotImplementedError) as error:
        text = str(error).strip().splitlines()
        raise InputError(f"{kernel.op} in {kernel.dtype}: {text[0] if text else type(error).__name__}") from None


def build(kernel: Kernel, device: str) -> Call:
    """What calls a kernel once, on the next of several sets of operands.

    The call is made on the backend's operator itself, without autograd, as inside a backward pass.
    """

    one_set = max(float(np.asarray(kernel.work["byte"])), 1.0)
    sets = int(np.clip(SETS_BYTES // one_set, 1, MOST_SETS))
    made = [_made(kernel, device) for _ in range(sets)]
    results: list[object] = [None] * sets  # kept for a while: a new result goes where none was just now
    at = 0

    def call() -> None:
        nonlocal at
        at = at + 1 if at + 1 < sets else 0
        function, arguments = made[at]
        results[at] = function(*arguments)

    return call


def _made(kernel: Kernel, device: str) -> tuple[Callable[..., object], Sequence[Any]]:
    """(function, arguments): one call of the kernel on operands of its own."""
    import torch

    aten, s = torch.ops.aten, kernel.shape
    dtype = getattr(torch, kernel.dtype)
    name, _, variant = kernel.op.partition(":")

    def tensor(*size: int) -> torch.Tensor:
        count = math.prod(size)  # few are drawn, since drawing takes longer than kernels; in the domain of log and sqrt
        few = torch.rand(min(count, 2**16), device=device).add_(0.5).to(dtype)
        return few.repeat(-(-count // len(few)))[:count].view(size).contiguous()

    if name in ("mm", "addmm", "bmm", "baddbmm", "linear"):
        batch, m, n, k = s["batch"], s["m"], s["n"], s["k"]
        layout = (m + n + k) % 3  # as forward and backward passes read them: x @ w.T, g @ w, x.T @ g
        if name in ("mm", "addmm", "linear"):
            left = tensor(k, m).t() if layout == 2 else tensor(m, k)
            right = tensor(n, k).t() if layout == 0 or name != "mm" else tensor(k, n)
            if name == "addmm":
                return aten.addmm.default, (tensor(n), left, right)
            return aten.mm.default, (left, right)
        left = tensor(batch, k, m).transpose(1, 2) if layout == 2 else tensor(batch, m, k)
        right = tensor(batch, n, k).transpose(1, 2) if layout == 0 else tensor(batch, k, n)
        if name == "baddbmm":
            return aten.baddbmm.default, (tensor(batch, m, n), left, right)
        return aten.bmm.default, (left, right)
    if name == "scaled_dot_product_attention":
        query, key, value = tensor(1, s["batch"], s["m"], s["k"]), *(tensor(1, s["batch"], s["n"], s["k"]),) * 2
        return torch.nn.functional.scaled_dot_product_attention, (query, key, value)
    if name == "scaled_dot_product_attention_backward":
        return _attention_backward(tensor, s)
    if name.startswith("convolution"):
        groups, side = s["groups"], s["kernel"]
        image = tensor(s["batch"], s["in_channels"], s["size"], s["size"])
        weight = tensor(s["out_channels"], s["in_channels"] // groups, side, side)
        where = ([s["stride"]] * 2, [s["padding"]] * 2, [1, 1], False, [0, 0], groups)
        if name == "convolution":
            return aten.convolution.default, (image, weight, None, *where)
        gradient = torch.randn_like(aten.convolution.default(image, weight, None, *where))
        mask = [variant != "weight", True, False]
        return aten.convolution_backward.default, (gradient, image, weight, None, *where, mask)
    if name.startswith(("native_batch_norm", "native_group_norm")):
        return _channels(kernel, tensor, device)
    if "pool2d" in name:
        image = tensor(s["batch"], s["in_channels"], s["size"], s["size"])
        window = ([s["kernel"]] * 2, [s["stride"]] * 2, [s["padding"]] * 2)
        if name == "avg_pool2d":
            return aten.avg_pool2d.default, (image, *window)
        if name == "avg_pool2d_backward":
            gradient = torch.randn_like(aten.avg_pool2d.default(image, *window))
            return aten.avg_pool2d_backward.default, (gradient, image, *window, False, True, None)
        if name == "max_pool2d_with_indices":
            return aten.max_pool2d_with_indices.default, (image, *window)
        made, index = aten.max_pool2d_with_indices.default(image, *window)
        gradient = torch.randn_like(made)
        return aten.max_pool2d_with_indices_backward.default, (gradient, image, *window, [1, 1], False, index)
    if name in ("adam", "momentum", "sgd"):
        return _optimizer(kernel.op, tensor, s, device)
    return _on_arrays(kernel, tensor, device)


def _attention_backward(tensor: Callable[..., torch.Tensor], s: Any) -> tuple[Callable[..., object], Sequence[Any]]:
    """The backward of the fused operator, as autograd calls it."""
    import torch

    query = tensor(1, s["batch"], s["m"], s["k"]).requires_grad_()
    key, value = (tensor(1, s["batch"], s["n"], s["k"]).requires_grad_() for _ in range(2))
    with torch.enable_grad():
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    gradient = torch.randn_like(out)

    def backward() -> object:
        return torch.autograd.grad(out, (query, key, value), gradient, retain_graph=True)

    return backward, ()


def _channels(
    kernel: Kernel, tensor: Callable[..., torch.Tensor], device: str
) -> tuple[Callable[..., object], Sequence[Any]]:
    import torch

    aten, s = torch.ops.aten, kernel.shape
    name, _, variant = kernel.op.partition(":")
    batch, channels, size = s["batch"], s["in_channels"], s["size"]
    image, gradient = tensor(batch, channels, size, size), tensor(batch, channels, size, size)
    weight, bias = tensor(channels), tensor(channels)
    if name.startswith("native_batch_norm"):
        if image.itemsize == 2:  # as autocast leaves them
            weight, bias = weight.float(), bias.float()
        running = (torch.ones_like(weight), torch.ones_like(weight))
        if name == "native_batch_norm":
            return aten.native_batch_norm.default, (image, weight, bias, *running, variant != "eval", 0.1, 1e-5)
        _, mean, scale = aten.native_batch_norm.default(image, weight, bias, *running, True, 0.1, 1e-5)
        arguments = (gradient, image, weight, *running, mean, scale, True, 1e-5, [True, True, True])
        return aten.native_batch_norm_backward.default, arguments
    facts = (batch, channels, size**2, min(32, channels))
    if name == "native_group_norm":
        return aten.native_group_norm.default, (image, weight, bias, *facts, 1e-5)
    _, mean, scale = aten.native_group_norm.default(image, weight, bias, *facts, 1e-5)
    return aten.native_group_norm_backward.default, (gradient, image, mean, scale, weight, *facts, [True, True, True])


def _optimizer(
    name: str, tensor: Callable[..., torch.Tensor], s: Any, device: str
) -> tuple[Callable[..., object], Sequence[Any]]:
    """A share of a step of torch's optimiser in the form that it takes by itself: tensor by tensor on a processor,
    all at once (``foreach``) on a GPU. The time is that of a whole step: see :func:`time_kernels`. ``adam:zeros``: no
    gradient arrives, as at the rows of an embedding that are not looked up; on processors the root of zero takes
    several times as long as that of other numbers."""
    import torch

    parameters = [torch.nn.Parameter(tensor(s["rows"], s["columns"])) for _ in range(OPTIMIZED)]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter) if name.endswith(":zeros") else torch.randn_like(parameter)
    optimizer: torch.optim.Optimizer
    if name.startswith("adam"):
        optimizer = torch.optim.Adam(parameters)
    else:
        optimizer = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9 if name == "momentum" else 0.0)
    optimizer.step()
    return optimizer.step, ()


def _on_arrays(
    kernel: Kernel, tensor: Callable[..., torch.Tensor], device: str
) -> tuple[Callable[..., object], Sequence[Any]]:
    import torch

    aten, s = torch.ops.aten, kernel.shape
    rows, columns = s["rows"], s["columns"]
    name, _, variant = kernel.op.partition(":")

    def array() -> torch.Tensor:
        return tensor(rows, columns)

    if variant == "scalar":
        scalar = {"add": aten.add.Tensor, "mul": aten.mul.Tensor, "div": aten.div.Tensor, "pow": aten.pow.Tensor_Scalar}
        return scalar[name], (array(), 3.0)
    if variant == "transposed" and name in ("add", "mul"):
        function = {"add": aten.add.Tensor, "mul": aten.mul.Tensor}[name]
        return function, (array(), tensor(columns, rows).t())
    if name == "pow":
        return aten.pow.Tensor_Scalar, (array(), 2.0)
    if name in ("add", "mul", "div", "sub"):
        return getattr(aten, name).Tensor, (array(), array())
    if name == "where":
        return aten.where.self, (array() > 0.7, array(), array())
    if name == "masked_fill":
        return aten.masked_fill.Scalar, (array(), array() > 0.7, 0.0)
    if name == "native_dropout":
        if device == "cpu":  # three kernels there: that is how a processor drops
            return torch.nn.functional.dropout, (array(), 0.1, True)
        return aten.native_dropout.default, (array(), 0.1, True)
    if name == "native_dropout_backward":
        if device == "cpu":
            return aten.mul.Tensor, (array(), array())
        return aten.native_dropout_backward.default, (array(), array() > 0.7, 1.1)
    if name == "bernoulli":
        return aten.bernoulli_.float, (array(), 0.9)
    if name == "fill":
        return aten.zeros_like.default, (array(),)
    if name in ("sum", "mean", "amax"):
        function = {"sum": aten.sum.dim_IntList, "mean": aten.mean.dim, "amax": aten.amax.default}[name]
        return function, (array(), [0] if variant == "outer" else [1], name != "sum")
    if name in ("_softmax", "_log_softmax"):
        return getattr(aten, name).default, (array(), 1, False)
    if name.endswith("softmax_backward_data"):
        return getattr(aten, name).default, (array(), array(), 1, getattr(torch, kernel.dtype))
    if name == "native_layer_norm":
        return aten.native_layer_norm.default, (array(), [columns], tensor(columns), tensor(columns), 1e-5)
    if name == "native_layer_norm_backward":
        image, weight, bias = array(), tensor(columns), tensor(columns)
        _, mean, scale = aten.native_layer_norm.default(image, [columns], weight, bias, 1e-5)
        arguments = (array(), image, [columns], mean, scale, weight, bias, [True, True, True])
        return aten.native_layer_norm_backward.default, arguments
    if name in ("embedding", "embedding_dense_backward", "index_select"):
        index = torch.randint(0, s["m"], (rows,), device=device)
        if name == "embedding_dense_backward":
            return aten.embedding_dense_backward.default, (array(), index, s["m"], -1, False)
        looked_up = tensor(s["m"], columns)
        if name == "embedding":
            return aten.embedding.default, (looked_up, index)
        return aten.index_select.default, (looked_up, 0, index)
    if name == "clone":
        image = array()
        if variant == "permuted":  # the heads of attention: [length, heads, width] to [heads, length, width]
            heads = max(1, min(16, rows))
            length = max(1, rows // heads)
            image = tensor(length, heads, columns).transpose(0, 1)
        elif variant == "transposed":
            image = tensor(columns, rows).t()
        return lambda one: aten.clone.default(one, memory_format=torch.contiguous_format), (image,)
    if name == "cat":
        return aten.cat.default, ([tensor(rows, columns - columns // 2), tensor(rows, max(columns // 2, 1))], 1)
    if name == "_to_copy":
        return lambda one: aten._to_copy.default(one, dtype=torch.bfloat16), (array(),)
    if name == "copy":
        return aten.copy_.default, (array(), array())
    if name == "slice_backward":
        return aten.slice_backward.default, (array()[: (rows + 1) // 2], [rows, columns], 0, 0, (rows + 1) // 2, 1)
    if name.startswith("nll_loss"):
        target = torch.randint(0, columns, (rows,), device=device)
        if name == "nll_loss_forward":
            return aten.nll_loss_forward.default, (array(), target, None, 1, -100)
        one, total = tensor(1).view(()), tensor(1).view(())
        return aten.nll_loss_backward.default, (one, array(), target, None, 1, -100, total)
    if name == "threshold_backward":
        return aten.threshold_backward.default, (array(), array(), 0)
    if name.endswith("_backward"):
        return getattr(aten, name).default, (array(), array())
    return getattr(aten, name).default, (array(),)


def measure_launches(device: str) -> dict[str, float]:
    """Microseconds that a tiny kernel costs on a GPU by the way it is run: ``back_to_back``, without autograd, and
    ``graph``, from a captured CUDA graph."""
    import torch

    one = torch.ones(256, device=device)
    clock = CudaClock(device)
    count = 500

    def call() -> object:
        return torch.ops.aten.add_.Tensor(one, one)

    measured = {}
    for mode in ("graph", "back_to_back"):
        times = []
        for _ in range(20):
            if mode == "back_to_back":
                clock.kept = (call, count, None)  # as it is, without a graph
            times.append(clock.repeat(call, count)[0] / count)
        measured[mode] = float(np.quantile(times, QUANTILE)) * 1e6
    return measured


def time_kernels(
    kernels: Sequence[Kernel],
    device: str,
    done: Callable[[Kernel, float], object],
    clock: Clock | None = None,
    skipped: Callable[[Kernel, str], object] = lambda kernel, why: None,
) -> None:
    """Time kernels one after another; ``done`` gets each with its seconds, ``skipped`` those that cannot be run."""
    clock = clock or clock_of(device)
    for kernel in kernels:
        try:
            seconds = kernel_s(kernel, device, clock)
        except InputError as error:
            skipped(kernel, str(error))
            continue
        done(kernel, seconds / (OPTIMIZED if kernel.op.split(":")[0] in ("adam", "momentum", "sgd") else 1))
