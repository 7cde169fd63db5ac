"""An architecture as a ``torch.nn.Module``: initialisation, execution, gradients. Importing this imports torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphopt_gym.envs.architecture.program import Architecture
from graphopt_gym.errors import InputError

BATCH_NORM_MOMENTUM = 0.1


class OpModule(nn.Module):
    """One op with its trainable tensors ``weight`` and ``bias``; a batch norm has running statistics, too."""

    weight: Any  # a Parameter, or None
    bias: Any
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, architecture: Architecture, index: int, device: str) -> None:
        super().__init__()
        self.op = architecture.ops[index]
        shapes = architecture.trainable(index)
        for name in ("weight", "bias"):
            given = nn.Parameter(torch.empty(shapes[name], device=device)) if name in shapes else None
            self.register_parameter(name, given)
        if self.op.kind == "batch_norm":
            self.register_buffer("running_mean", torch.zeros(shapes["weight"], device=device))
            self.register_buffer("running_var", torch.ones(shapes["weight"], device=device))

    def forward(self, *operands: Tensor) -> Tensor:
        return RUN[self.op.kind](self, operands, *self.op.params)

    def extra_repr(self) -> str:
        return f"{self.op.kind}{self.op.params}"


class ArchitectureModule(nn.Module):
    """Computes an architecture on batches: an argument [batch, *shape] for each input; returns [batch, *shape].

    Attributes:
        architecture: what it computes.
        layers: an :class:`OpModule` for each op but the inputs, by the op's index (as text).
    """

    def __init__(self, architecture: Architecture, device: str = "cpu") -> None:
        super().__init__()
        self.architecture = architecture
        self.layers = nn.ModuleDict(
            {
                str(index): OpModule(architecture, index, device)
                for index, op in enumerate(architecture.ops)
                if op.kind != "input"
            }
        )
        last = [readers[-1] if readers else len(architecture) for readers in architecture.readers]
        self._done = [[source for source in dict.fromkeys(op.inputs) if last[source] == index]
                      for index, op in enumerate(architecture.ops)]  # fmt: skip

    def forward(self, *inputs: Tensor) -> Tensor:
        architecture = self.architecture
        if len(inputs) != len(architecture.inputs):
            raise InputError(f"{architecture.name!r} has {len(architecture.inputs)} inputs, got {len(inputs)} tensors")
        for value, index in zip(inputs, architecture.inputs, strict=True):
            if tuple(value.shape[1:]) != architecture.ops[index].shape:
                raise InputError(
                    f"input {architecture.ops[index].params[0]!r} has shape {tuple(value.shape)}, expected "
                    f"(batch, {', '.join(map(str, architecture.ops[index].shape))})"
                )
        results: dict[int, Tensor] = dict(enumerate(inputs))
        for index in range(len(inputs), len(architecture)):
            op = architecture.ops[index]
            results[index] = self.layers[str(index)](*[results[source] for source in op.inputs])
            for source in self._done[index]:  # what nobody reads any more is given up
                del results[source]
        return results[architecture.output]


def to_module(architecture: Architecture, seed: int | None = 0, device: str = "cpu") -> ArchitectureModule:
    """The module that computes an architecture, in training mode.

    Convolutions and dense layers start as He et al. (ICCV 2015) propose, normal with variance 2 / fan in, and without
    bias; norms as the identity; ``param`` as its ``init`` says (normal: standard deviation 0.02, as of ViT's position
    embeddings). The same seed gives the same numbers; torch's own generator is not touched.

    Args:
        seed: None leaves the trainable tensors uninitialised.
        device: such as ``meta``, where shapes alone are wanted.
    """
    module = ArchitectureModule(architecture, device)
    if seed is not None and device != "meta":
        generator = torch.Generator(device).manual_seed(seed)
        for layer in module.layers.values():
            initialise(layer, generator)
    return module


@torch.no_grad()
def initialise(layer: Any, generator: torch.Generator) -> None:
    """Fill an op's trainable tensors ``weight`` and ``bias`` (None where there are none), see :func:`to_module`."""
    kind, weight = layer.op.kind, layer.weight
    if layer.bias is not None:
        layer.bias.zero_()
    if weight is None:
        return
    if kind in ("conv", "dense"):
        weight.normal_(0, math.sqrt(2 / math.prod(weight.shape[1:])), generator=generator)
    elif kind == "param" and layer.op.param("init") == "normal":
        weight.normal_(0, 0.02, generator=generator)
    elif kind == "param" and layer.op.param("init") == "zeros":
        weight.zero_()
    else:
        weight.fill_(1)


# -- what each op computes: (layer, operands with a batch dimension, *parameters); axes count from behind the batch ----


def _at_last(x: Tensor, axis: int, run: Callable[[Tensor], Tensor]) -> Tensor:
    axis += 1
    return run(x) if axis == x.dim() - 1 else run(x.movedim(axis, -1)).movedim(-1, axis)


def _dense(layer: OpModule, xs: Sequence[Tensor], features: int, bias: bool, axis: int) -> Tensor:
    if axis == 0 and xs[0].dim() == 4:  # over channels: a convolution of 1 x 1 moves no data
        return F.conv2d(xs[0], layer.weight[:, :, None, None], layer.bias)
    return _at_last(xs[0], axis, lambda x: F.linear(x, layer.weight, layer.bias))


def _conv(layer: OpModule, xs: Sequence[Tensor], features: int, kernel: Any, *rest: Any) -> Tensor:
    stride, padding, dilation, groups, _ = rest
    return F.conv2d(xs[0], layer.weight, layer.bias, stride, padding, dilation, groups)


def _batch_norm(layer: OpModule, xs: Sequence[Tensor], axis: int, epsilon: float) -> Tensor:
    x = xs[0] if axis == 0 else xs[0].movedim(axis + 1, 1)
    x = F.batch_norm(
        x,
        layer.running_mean,
        layer.running_var,
        layer.weight,
        layer.bias,
        layer.training,
        BATCH_NORM_MOMENTUM,
        epsilon,
    )
    return x if axis == 0 else x.movedim(1, axis + 1)


def _layer_norm(layer: OpModule, xs: Sequence[Tensor], axis: int, epsilon: float) -> Tensor:
    size = (xs[0].shape[axis + 1],)
    return _at_last(xs[0], axis, lambda x: F.layer_norm(x, size, layer.weight, layer.bias, epsilon))


def _reshape(layer: OpModule, xs: Sequence[Tensor], shape: Any) -> Tensor:
    return xs[0].reshape(xs[0].shape[0], *shape)


def _param(layer: OpModule, xs: Sequence[Tensor], *params: Any) -> Tensor:
    return layer.weight[None]


def _concat(layer: OpModule, xs: Sequence[Tensor], axis: int) -> Tensor:
    batch = max(x.shape[0] for x in xs)  # a param's batch of one is repeated
    return torch.cat([x if x.shape[0] == batch else x.expand(batch, *x.shape[1:]) for x in xs], axis + 1)


def _broadcast(run: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def both(layer: OpModule, xs: Sequence[Tensor]) -> Tensor:
        x, y = xs
        rank = max(x.dim(), y.dim())  # dimensions of one sample line up at the right, the batch stays first
        x, y = (z if z.dim() == rank else z.reshape(z.shape[0], *[1] * (rank - z.dim()), *z.shape[1:]) for z in (x, y))
        return run(x, y)

    return both


def _unary(run: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda layer, xs: run(xs[0])


def _pool(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda layer, xs, kernel, stride, padding: run(xs[0], kernel, stride, padding)


RUN: dict[str, Callable[..., Tensor]] = {
    "param": _param,
    "dense": _dense,
    "conv": _conv,
    "add": _broadcast(torch.add),
    "mul": _broadcast(torch.mul),
    "matmul": _broadcast(torch.matmul),
    "smul": lambda layer, xs, factor: xs[0] * factor,
    "relu": _unary(F.relu),
    "gelu": _unary(F.gelu),
    "silu": _unary(F.silu),
    "sigmoid": _unary(torch.sigmoid),
    "softmax": lambda layer, xs, axis: F.softmax(xs[0], axis + 1),
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    # not F.group_norm, which refuses one sample with one value a group
    "group_norm": lambda layer, xs, groups, epsilon: torch.group_norm(xs[0], groups, layer.weight, layer.bias, epsilon),
    "dropout": lambda layer, xs, rate: F.dropout(xs[0], rate, layer.training),
    "avg_pool": _pool(F.avg_pool2d),
    "max_pool": _pool(F.max_pool2d),
    "mean": lambda layer, xs, axes, keep: xs[0].mean([axis + 1 for axis in axes], keep),
    "reshape": _reshape,
    "transpose": lambda layer, xs, perm: xs[0].permute(0, *[axis + 1 for axis in perm]),
    "slice": lambda layer, xs, axis, start, stop: xs[0].narrow(axis + 1, start, stop - start),
    "concat": _concat,
}
