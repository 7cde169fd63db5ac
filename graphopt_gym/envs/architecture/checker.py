"""Independent checks of what synthesis returns: its properties, from the definitions, and that it runs.

This shares no code with :mod:`.properties`: dependencies are written down as sets of positions, one output position
at a time, letters are read off these sets, and paths are followed backwards from the output.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt_gym.envs.architecture.program import Architecture

if TYPE_CHECKING:
    from graphopt_gym.envs.architecture.properties import Requirement

RANKING = "xoma"
ACTIVATIONS = ("relu", "gelu", "silu", "sigmoid", "softmax")
PASSING = ("reshape", "transpose", "slice", "concat", "dropout")
Letters = dict[tuple[int, int], str]  # (output dimension, input dimension), the batch 0; what is missing is "x"


def check_properties(architecture: Architecture, requirement: Requirement) -> list[str]:
    """Which demands an architecture does not meet, a line each; empty where it meets all."""
    reasons = []
    letters, depths = _letters(architecture), _depths(architecture)
    shape = architecture.ops[-1].shape
    for number, target in enumerate(requirement.mixing):
        if target is None:
            continue
        size = (len(shape) + 1, len(architecture.ops[number].shape) + 1)
        if np.shape(target) != size:
            reasons.append(f"mixing of input {number} is {size}, asked for {np.shape(target)}")
            continue
        for i, j in itertools.product(*map(range, size)):
            has, wanted = letters.get(number, {}).get((i, j), "x"), RANKING[int(target[i, j])]
            if RANKING.index(has) < RANKING.index(wanted):
                reasons.append(f"mixing of output dimension {i} and input {number}'s {j} is {has}, needs {wanted}")
    for number, wanted_depth in enumerate(requirement.depth):
        if depths.get(number, 0) < wanted_depth:
            reasons.append(f"depth from input {number} is {depths.get(number, 0)}, needs {wanted_depth}")
    wanted_shape = requirement.shape
    if len(shape) != len(wanted_shape) or any(w not in (None, n) for n, w in zip(shape, wanted_shape, strict=False)):
        reasons.append(f"shape is {shape}, needs {wanted_shape}")
    return reasons


def check_runs(architecture: Architecture) -> list[str]:
    """Runs an architecture once, on one sample of true size and constant weights; what fails, a line each.

    Raises:
        InputError: torch is not installed.
    """
    from graphopt_gym.extras import need

    need("torch", what="the check of an architecture")
    import torch

    try:
        module = architecture.to_module(seed=None).eval()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.fill_(1 / max(1, parameter[0].numel()) if parameter.dim() else 1.0)
            output = module(*[torch.linspace(-1, 1, int(np.prod(s))).view(1, *s) for s in architecture.input_shapes])
    except Exception as error:  # whatever torch raises
        return [f"it does not run: {type(error).__name__}: {' '.join(str(error).split())[:200]}"]
    reasons = []
    if tuple(output.shape[1:]) != architecture.ops[-1].shape:
        reasons.append(f"it gives {tuple(output.shape[1:])}, stated {architecture.ops[-1].shape}")
    if not bool(torch.isfinite(output).all()):
        reasons.append("its output is not finite")
    return reasons


# -- mixing ------------------------------------------------------------------------------------------------------------


def _letters(architecture: Architecture) -> dict[int, Letters]:
    """Of each input, by its number: how the output mixes it."""
    found: dict[int, list[Letters]] = {}
    waiting: dict[int, list[Letters]] = {}
    rank = len(architecture.ops[-1].shape)
    waiting[len(architecture) - 1] = [{(d, d): "o" for d in range(rank + 1)}]
    for index in range(len(architecture) - 1, -1, -1):  # every reader of an op comes before it
        if index not in waiting:
            continue
        after = _sum(waiting.pop(index))
        op = architecture.ops[index]
        if op.kind == "input":
            found.setdefault(index, []).append(after)
        for position, source in enumerate(op.inputs):
            step = _op_letters(architecture, index, position)
            waiting.setdefault(source, []).append(_product(after, step))
    return {index: _sum(paths) for index, paths in found.items()}


def _sum(paths: Iterable[Letters]) -> Letters:
    total: Letters = {}
    for path in paths:
        for place, letter in path.items():
            if RANKING.index(letter) > RANKING.index(total.get(place, "x")):
                total[place] = letter
    return total


def _product(after: Letters, before: Letters) -> Letters:
    total: Letters = {}
    for (i, k), one in after.items():
        for (middle, j), other in before.items():
            if middle == k and "x" not in (one, other):
                letter = one if RANKING.index(one) >= RANKING.index(other) else other
                if RANKING.index(letter) > RANKING.index(total.get((i, j), "x")):
                    total[i, j] = letter
    return total


def _op_letters(architecture: Architecture, index: int, position: int) -> Letters:
    op, source = architecture.ops[index], architecture.ops[architecture.ops[index].inputs[position]]
    params = _by_name(op.kind, op.params)
    if op.kind == "smul" and params["factor"] == 0:
        return {}
    letters: Letters = {(0, 0): "o"}
    out, into = op.shape, source.shape

    def reads(i: int | None, j: int, sets: Sequence[Iterable[int]]) -> None:
        """The positions along the input's axis j that each position along the output's axis i depends on."""
        sizes = [len(set(one)) for one in sets]
        if into[j] > 1 and min(sizes) == into[j]:
            letters.update({(row, j + 1): "a" for row in range(len(out) + 1)})
        elif i is not None and max(sizes) > 0:
            letters[i + 1, j + 1] = "o" if max(sizes) == 1 else "m"

    kind = op.kind
    if kind == "conv":
        each, group = into[0] // params["groups"], out[0] // params["groups"]
        if params["groups"] == 1:
            _whole(letters, out, 0)
        else:
            reads(0, 0, [range(c // group * each, (c // group + 1) * each) for c in range(out[0])])
        for axis in (1, 2):
            k, s, p, d = (params[key][axis - 1] for key in ("kernel", "stride", "padding", "dilation"))
            reads(axis, axis, [[y * s - p + t * d for t in range(k) if 0 <= y * s - p + t * d < into[axis]]
                               for y in range(out[axis])])  # fmt: skip
    elif kind in ("avg_pool", "max_pool"):
        reads(0, 0, [[c] for c in range(into[0])])
        for axis in (1, 2):
            k, s, p = (params[key][axis - 1] for key in ("kernel", "stride", "padding"))
            reads(axis, axis, [[y * s - p + t for t in range(k) if 0 <= y * s - p + t < into[axis]]
                               for y in range(out[axis])])  # fmt: skip
    elif kind == "group_norm":
        each = into[0] // params["groups"]
        if params["groups"] == 1:
            _whole(letters, out, 0)
        else:
            reads(0, 0, [range(c // each * each, (c // each + 1) * each) for c in range(into[0])])
        for axis in (1, 2):
            _whole(letters, out, axis)
    elif kind in ("dense", "softmax", "layer_norm"):
        for axis in range(len(into)):
            if axis == params["axis"]:
                _whole(letters, out, axis)
            else:
                reads(axis, axis, [[n] for n in range(into[axis])])
    elif kind == "mean":
        kept = [axis for axis in range(len(into)) if params["keep"] or axis not in params["axes"]]
        for axis in range(len(into)):
            if axis in params["axes"]:
                _whole(letters, out, axis)
            else:
                reads(kept.index(axis), axis, [[n] for n in range(into[axis])])
    elif kind == "transpose":
        for axis, moved in enumerate(params["perm"]):
            letters[axis + 1, moved + 1] = "o"
    elif kind == "reshape":
        coordinates = np.unravel_index(np.arange(int(np.prod(into))), into)
        for i, j in itertools.product(range(len(out)), range(len(into))):
            if (np.diff(coordinates[j].reshape(out), axis=i) != 0).any():
                letters[i + 1, j + 1] = "o"
    elif kind == "matmul":
        inner = len(into) - 1 if position == 0 else len(into) - 2
        other = len(into) - 2 if position == 0 else len(into) - 1
        for axis in range(len(into) - 2):
            if into[axis] == out[axis + len(out) - len(into)]:
                letters[axis + len(out) - len(into) + 1, axis + 1] = "o"
        letters[len(out) - (1 if position == 0 else 0), other + 1] = "o"
        _whole(letters, out, inner)
    else:  # an element of each: activations, batch norm, dropout, sums, products, parts
        for axis in range(len(into)):
            to = axis + len(out) - len(into)
            if into[axis] == out[to] or kind in ("concat", "slice"):
                letters[to + 1, axis + 1] = "o"
    return letters


def _whole(letters: Letters, out: tuple[int, ...], axis: int) -> None:
    letters.update({(row, axis + 1): "a" for row in range(len(out) + 1)})


def _by_name(kind: str, params: tuple[Any, ...]) -> dict[str, Any]:
    from graphopt_gym.envs.architecture.ops import OPS

    return dict(zip(OPS[kind].params, params, strict=True))


# -- depth -------------------------------------------------------------------------------------------------------------


def _depths(architecture: Architecture) -> dict[int, int]:
    """Of each input: the longest alternation on a path, by going back from the output."""
    best: dict[tuple[int, str], int] = {
        (len(architecture) - 1, ""): 0
    }  # (op, kind of the segment after it) -> segments
    found: dict[int, int] = {}
    for index in range(len(architecture) - 1, -1, -1):
        op = architecture.ops[index]
        for after in ("", "linear", "activation"):
            if (index, after) not in best:
                continue
            count = best[index, after]
            if op.kind == "input":
                found[index] = max(found.get(index, 0), count)
                continue
            here = after if op.kind in PASSING else "activation" if op.kind in ACTIVATIONS else "linear"
            total = count + (here != after)
            for source in op.inputs:
                best[source, here] = max(best.get((source, here), 0), total)
    return found
