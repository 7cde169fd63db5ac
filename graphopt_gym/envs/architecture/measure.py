"""Mixing as measured: which elements of the inputs reach which elements of the output, by gradients on random tensors.

It knows nothing of the stated tables (:mod:`.properties`); importing it imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from graphopt_gym.envs.architecture.program import Architecture
from graphopt_gym.envs.architecture.torch_module import to_module

UNKNOWN = 255  # an entry that a measurement cannot tell
_X, _O, _M, _A = range(4)


def measure_mixing(
    architecture: Architecture, seed: int = 0, draws: int = 8, batch: int = 2, points: int = 3
) -> tuple[np.ndarray, ...]:
    """For each input, uint8 [output rank + 1, input rank + 1] of x, o, m, a as 0 to 3, the batch first.

    Lines are drawn through the output along each of its dimensions; for every element on them, the gradient says which
    elements of the input it depends on: those where it is not 0 in one draw at least. From these sets follow the
    letters, as the definition has them (see :mod:`.properties`).

    An entry is :data:`UNKNOWN` where the input's dimension has one position (which is all of them), or the output's
    has, unless it is ``a``: nothing changes along it.

    Args:
        draws: random inputs and weights; where gradients are sparse (max pooling, ReLU) more show more.
        batch: samples, at least 2, so that the batch is a dimension like the others.
        points: of the output that the lines go through.
    """
    output = (batch, *architecture.ops[-1].shape)
    rng = np.random.default_rng(seed)
    bases = [tuple(n // 2 for n in output), *(tuple(int(rng.integers(n)) for n in output) for _ in range(points - 1))]
    elements: list[tuple[int, ...]] = []
    lines: list[tuple[int, list[int]]] = []  # (dimension, numbers of the elements on the line)
    for base in bases:
        for axis, size in enumerate(output):
            line = [(*base[:axis], position, *base[axis + 1 :]) for position in range(size)]
            lines.append((axis, list(range(len(elements), len(elements) + size))))
            elements += line
    flat = torch.as_tensor(np.ravel_multi_index(np.array(elements).T, output))
    reached = [torch.zeros(len(elements), batch, *shape, dtype=torch.bool) for shape in architecture.input_shapes]
    selectors = torch.zeros(len(elements), int(np.prod(output)), dtype=torch.float64)
    selectors[torch.arange(len(elements)), flat] = 1
    for draw in range(draws):
        generator = torch.Generator().manual_seed(seed * 1000 + draw)
        module = to_module(architecture, seed * 1000 + draw).double().eval()
        inputs = [
            torch.randn(batch, *shape, dtype=torch.float64, generator=generator, requires_grad=True)
            for shape in architecture.input_shapes
        ]
        result = module(*inputs).reshape(-1)
        for found, gradient in zip(reached, _gradients(result, inputs, selectors), strict=True):
            if gradient is not None:
                found |= gradient.abs() > 1e-14
    return tuple(_letters(found.numpy(), output, lines) for found in reached)


def _gradients(
    result: torch.Tensor, inputs: list[torch.Tensor], selectors: torch.Tensor
) -> Sequence[torch.Tensor | None]:
    """Of each selected element, stacked."""
    try:
        return torch.autograd.grad(
            result, inputs, selectors, is_grads_batched=True, allow_unused=True, retain_graph=True
        )
    except RuntimeError:  # an operator whose derivative cannot be batched
        rows = [torch.autograd.grad(result, inputs, one, allow_unused=True, retain_graph=True) for one in selectors]
        return [None if column[0] is None else torch.stack(column) for column in zip(*rows, strict=True)]


def _letters(reached: np.ndarray, output: tuple[int, ...], lines: list[tuple[int, list[int]]]) -> np.ndarray:
    """From what each element reaches, bool [elements, *input]."""
    matrix = np.full((len(output), reached.ndim - 1), _X, np.uint8)
    for axis in range(reached.ndim - 1):
        others = tuple(1 + other for other in range(reached.ndim - 1) if other != axis)
        positions = np.asarray(reached.any(axis=others))  # bool [elements, size]
        if positions.shape[1] == 1:
            matrix[:, axis] = UNKNOWN
            continue
        if positions.all():
            matrix[:, axis] = _A
            continue
        several = positions.sum(axis=1).max() > 1
        for dimension, line in lines:
            if output[dimension] == 1:
                matrix[dimension, axis] = UNKNOWN
            elif len(np.unique(positions[line][positions[line].any(axis=1)], axis=0)) > 1:  # of those that reach any
                matrix[dimension, axis] = _M if several else _O
    return matrix
